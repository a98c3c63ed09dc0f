package dispatcher

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// UpdateStatus takes the newest states of the caller's tasks and answers once they are committed. Statuses of
// tasks that are unknown, or not the caller's, are accepted and dropped: nothing can come of them.
func (s *Server) UpdateStatus(ctx context.Context, req *swarmpb.UpdateStatusRequest) (*swarmpb.UpdateStatusResponse, error) {
	x, err := s.session(ctx, req.GetSessionId())
	if err != nil {
		return nil, err
	}
	statuses, err := cleanStatuses(req.GetStatuses())
	if err != nil {
		return nil, err
	}
	select {
	case x.updating <- struct{}{}:
		defer func() { <-x.updating }()
	case <-x.ended:
		return nil, x.over()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if statuses, err = s.own(ctx, x.nodeID, statuses); err != nil {
		return nil, err
	}
	switch err := s.statuses.merge(ctx, x.ended, statuses); {
	case errors.Is(err, errEnded):
		return nil, x.over()
	case err != nil:
		return nil, err
	}
	return &swarmpb.UpdateStatusResponse{}, nil
}

// own keeps the statuses of tasks that are placed on the node, without addresses that are not of the node's block: all
// nodes would send connections there. The node may have its tasks and its block from a manager that is ahead of this one:
// before anything is dropped, this one catches up.
func (s *Server) own(ctx context.Context, nodeID string, statuses []*swarmpb.TaskStatus) ([]*swarmpb.TaskStatus, error) {
	view, fresh := s.view(), false
	block := blockOf(view, nodeID)
	own := make([]*swarmpb.TaskStatus, 0, len(statuses))
	for _, st := range statuses {
		placed, within := view.Placement(st.GetTaskId()).GetNodeId() == nodeID, isWithin(block, st.GetAddress())
		if !(placed && within) && !fresh {
			latest, err := s.freshView(ctx)
			if err != nil {
				return nil, err
			}
			view, fresh = latest, true
			block = blockOf(view, nodeID)
			placed, within = view.Placement(st.GetTaskId()).GetNodeId() == nodeID, isWithin(block, st.GetAddress())
		}
		if !placed {
			continue
		}
		if !within {
			s.log.Debug("an address that is not of the node's block is dropped",
				"node", nodeID, "task", st.GetTaskId(), "address", st.GetAddress(), "block", block)
			st.Address = "" // ours: it was copied
		}
		own = append(own, st)
	}
	return own, nil
}

// blockOf is the block that the node gives its tasks addresses from; the zero prefix before it has one.
func blockOf(view *store.View, nodeID string) netip.Prefix {
	block, err := netip.ParsePrefix(uplinkBlock(view, nodeID))
	if err != nil {
		return netip.Prefix{}
	}
	return block
}

// isWithin tells whether a task may have the address: one of the block, or none yet.
func isWithin(block netip.Prefix, address string) bool {
	a, err := netip.ParseAddr(address)
	return address == "" || err == nil && block.Contains(a)
}

// cleanStatuses copies statuses, bounded and printable, the newest of each task; a status that no worker may
// report refuses them all.
func cleanStatuses(in []*swarmpb.TaskStatus) ([]*swarmpb.TaskStatus, error) {
	if len(in) > maxStatuses {
		return nil, wire.Errorf(wire.CodeInvalid, "statuses: %d in one request; at most %d are allowed", len(in), maxStatuses)
	}
	out := make([]*swarmpb.TaskStatus, 0, len(in))
	at := make(map[string]int, len(in))
	for i, st := range in {
		clean, err := cleanStatus(st)
		if err != nil {
			return nil, wire.Errorf(wire.CodeInvalid, "statuses[%d]: %w", i, err)
		}
		if j, ok := at[clean.GetTaskId()]; ok {
			out[j] = newer(out[j], clean)
			continue
		}
		at[clean.GetTaskId()] = len(out)
		out = append(out, clean)
	}
	return out, nil
}

func cleanStatus(st *swarmpb.TaskStatus) (*swarmpb.TaskStatus, error) {
	id := st.GetTaskId()
	if !swarmpb.ValidID(id) {
		return nil, wire.Errorf(wire.CodeInvalid, "task ID %.40q is malformed", id)
	}
	if !reportable(st.GetState()) {
		return nil, wire.Errorf(wire.CodeInvalid, "task %s: state %d is not one that a worker reports", id, st.GetState())
	}
	ports, err := cleanPorts(st.GetHostPorts())
	if err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "task %s: %w", id, err)
	}
	clean := &swarmpb.TaskStatus{
		TaskId:    id,
		State:     st.GetState(),
		At:        max(st.GetAt(), 0),
		Message:   cleanText(st.GetMessage(), maxMessageBytes),
		Error:     cleanText(st.GetError(), maxMessageBytes),
		Address:   cleanText(st.GetAddress(), maxNameBytes),
		HostPorts: ports,
	}
	if h := st.GetHealth(); h != nil {
		if _, known := swarmpb.HealthState_name[int32(h.GetState())]; !known {
			return nil, wire.Errorf(wire.CodeInvalid, "task %s: health %d is unknown", id, h.GetState())
		}
		clean.Health = &swarmpb.HealthStatus{
			State: h.GetState(), NotReady: h.GetNotReady(), Failing: h.GetFailing(), NotReadyFailing: h.GetNotReadyFailing(),
			Output: cleanText(h.GetOutput(), maxMessageBytes), At: max(h.GetAt(), 0),
		}
	}
	if c := st.GetContainer(); c != nil {
		clean.Container = &swarmpb.ContainerStatus{
			ContainerId:   cleanText(c.GetContainerId(), maxNameBytes),
			Pid:           c.GetPid(),
			ExitCode:      c.GetExitCode(),
			OomKilled:     c.GetOomKilled(),
			StartedAt:     max(c.GetStartedAt(), 0),
			FinishedAt:    max(c.GetFinishedAt(), 0),
			LocalRestarts: c.GetLocalRestarts(),
			ImageDigest:   cleanText(c.GetImageDigest(), maxNameBytes),
			// The newest are at the end.
			LocalExitCodes: c.GetLocalExitCodes()[max(0, len(c.GetLocalExitCodes())-maxLocalExits):],
		}
	}
	return clean, nil
}

// reportable are the states that a worker owns.
func reportable(state swarmpb.TaskState) bool {
	_, known := swarmpb.TaskState_name[int32(state)]
	return known && state >= swarmpb.TaskState_TASK_STATE_ACCEPTED && state <= swarmpb.TaskState_TASK_STATE_REJECTED
}

func cleanPorts(in []*swarmpb.PortConfig) ([]*swarmpb.PortConfig, error) {
	if len(in) > maxHostPorts {
		return nil, wire.Errorf(wire.CodeInvalid, "%d host ports; at most %d are allowed", len(in), maxHostPorts)
	}
	var out []*swarmpb.PortConfig
	for _, p := range in {
		if p.GetTargetPort() > 65535 || p.GetPublishedPort() > 65535 {
			return nil, wire.Errorf(wire.CodeInvalid, "host port %d:%d is out of range", p.GetPublishedPort(), p.GetTargetPort())
		}
		out = append(out, &swarmpb.PortConfig{
			Name:          cleanText(p.GetName(), maxNameBytes),
			Protocol:      p.GetProtocol(),
			TargetPort:    p.GetTargetPort(),
			PublishedPort: p.GetPublishedPort(),
			Mode:          p.GetMode(),
		})
	}
	return out, nil
}

// newer is the status that counts of two of one task, b having come later: a state never goes back, nor does the
// worker's clock within a state.
func newer(a, b *swarmpb.TaskStatus) *swarmpb.TaskStatus {
	if b.GetState() < a.GetState() || b.GetState() == a.GetState() && b.GetAt() < a.GetAt() {
		return a
	}
	return b
}

// unchanged tells whether merging the status would leave the row as it is, but for the time of the report. A
// field that is not set leaves the row's.
func unchanged(row, st *swarmpb.TaskStatus) bool {
	if row == nil || st.GetState() != row.GetState() {
		return row.GetState() > st.GetState()
	}
	if st.GetAt() < row.GetAt() {
		return true
	}
	return row.GetMessage() == st.GetMessage() && row.GetError() == st.GetError() &&
		(st.GetAddress() == "" || row.GetAddress() == st.GetAddress()) &&
		(st.GetHealth() == nil || row.GetHealth() != nil && st.GetHealth().GetAt() < row.GetHealth().GetAt() || proto.Equal(row.GetHealth(), st.GetHealth())) &&
		(st.GetContainer() == nil || proto.Equal(row.GetContainer(), st.GetContainer())) &&
		(len(st.GetHostPorts()) == 0 || equalPorts(row.GetHostPorts(), st.GetHostPorts()))
}

func equalPorts(a, b []*swarmpb.PortConfig) bool {
	return slices.EqualFunc(a, b, func(x, y *swarmpb.PortConfig) bool { return proto.Equal(x, y) })
}
