package control

import (
	"fmt"
	"slices"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// maxWaits bounds the services that are named in a drain's progress.
const maxWaits = 16

// nodeReader answers with nodes as one view has them.
type nodeReader struct {
	view     *store.View
	placing  Placing
	managers managers
	// held is what was said of services, so that each is looked at once.
	held map[string]string
}

func (s *Server) nodes(view *store.View) *nodeReader {
	return &nodeReader{view, s.cfg.Placing, s.managers(), map[string]string{}}
}

// info puts the rows of a node together with what its tasks take of it and its part among the managers. It reads the
// node's tasks at most once each for that, and not at all unless it is drained or has generic resources.
func (r *nodeReader) info(node *swarmpb.Node) *swarmpb.NodeInfo {
	view, m := r.view, r.managers
	info := &swarmpb.NodeInfo{
		Node:    node,
		Status:  view.NodeStatus(node.GetId()),
		Leader:  node.GetId() == m.leader,
		Tasks:   uint32(max(view.Usage(node.GetId()).Tasks, 0)),
		Manager: m.status(view, node.GetId()),
		Drain:   r.drain(node),
	}
	r.account(node, info)
	if info.Status == nil {
		info.Status = &swarmpb.NodeStatus{NodeId: node.GetId(), State: swarmpb.NodeState_NODE_STATE_UNKNOWN, Message: "joined, not connected yet"}
	}
	for a := range view.AllocationsOf(node.GetId()) {
		if a.GetPool() == poolUplink {
			info.UplinkBlock = a.GetAddress()
			break
		}
	}
	return info
}

// account fills in what tasks take of the node and leave of it.
func (r *nodeReader) account(node *swarmpb.Node, info *swarmpb.NodeInfo) {
	if r.placing == nil {
		usage := r.view.Usage(node.GetId())
		info.Reserved = &swarmpb.Resources{NanoCpus: usage.NanoCPUs, MemoryBytes: usage.MemoryBytes}
		return
	}
	info.Reserved, info.Free, info.NotAccepted = r.placing.Account(r.view, node)
}

// drain is how far a drain has come; nil for a node that is not being drained. Containers outside of services stay, and
// are not counted.
func (r *nodeReader) drain(node *swarmpb.Node) *swarmpb.NodeDrain {
	if availability(node) != swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN {
		return nil
	}
	progress := &swarmpb.NodeDrain{Since: node.GetAvailabilityChangedAt()}
	if progress.Since == 0 {
		progress.Since = node.GetMeta().GetUpdatedAt()
	}
	view, waits := r.view, map[string]string{} // by the name of the service
	for task := range view.TasksOn(node.GetId()) {
		service := view.Service(task.GetServiceId())
		if view.Observed(task.GetId()).Ended() || service.GetSpec().IsAttachment() {
			continue
		}
		progress.Left++
		heir := heirOf(view, task)
		name := service.GetSpec().GetName()
		switch {
		case !wanted(task), heir != nil && view.NodeID(heir.GetId()) != "":
			progress.Moving++
		case heir != nil:
			if message := view.Placement(heir.GetId()).GetMessage(); message != "" {
				waits[name] = swarmpb.TaskName(name, heir.GetSlot(), heir.GetNodeId()) + ": " + message
			}
		default:
			if reason := r.holds(service.GetId()); reason != "" && waits[name] == "" {
				waits[name] = reason
			}
		}
	}
	progress.Waits = lines(waits, maxWaits)
	return progress
}

// holds is why tasks of a service that are to leave nodes wait; empty when they do not.
func (r *nodeReader) holds(serviceID string) string {
	reason, known := r.held[serviceID]
	if !known && r.placing != nil {
		reason = r.placing.Held(r.view, serviceID)
		r.held[serviceID] = reason
	}
	return reason
}

// heirOf is the newest task that is to follow another one and is still wanted; nil without any.
func heirOf(view *store.View, task *swarmpb.Task) (heir *swarmpb.Task) {
	for other := range view.TasksIn(task.GetServiceId(), task.GetSlot()) {
		if other.GetReplaces() == task.GetId() && wanted(other) && !view.Observed(other.GetId()).Ended() {
			heir = other
		}
	}
	return heir
}

// lines are what is said of names, by name, at most so many of them.
func lines(of map[string]string, most int) (out []string) {
	for _, text := range of {
		out = append(out, text)
	}
	slices.Sort(out)
	return first(out, most)
}

// first keeps so many lines about services; where there are more, the last one says how many.
func first(lines []string, most int) []string {
	if more := len(lines) - most; more >= 1 {
		return append(lines[:most-1:most-1], fmt.Sprintf("and %d more services", more+1))
	}
	return lines
}
