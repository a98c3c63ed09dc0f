package control

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// UpdateNode replaces the spec. A role that is not set stays as it is, and so does what is accepted of the node, unless
// all that it says now is; an availability that is not set is active. A spec that says the same changes nothing.
func (s *Server) UpdateNode(ctx context.Context, req *swarmpb.UpdateNodeRequest) (*swarmpb.UpdateNodeResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	if req.GetSpec() == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "node %q: the spec is missing", req.GetNode())
	}
	name, row := "", ""
	var response *swarmpb.UpdateNodeResponse
	err = s.rewrite(ctx, func(view *store.View) error {
		node, err := s.findNode(view, req.GetNode())
		if err != nil {
			return err
		}
		name, row = "node "+view.NodeName(node.GetId()), swarmpb.NodeKey(node.GetId()).ID()
		spec, err := nodeSpec(view, node, req)
		if err != nil {
			return err
		}
		if !proto.Equal(node.GetSpec(), spec) {
			if err := s.changeNode(ctx, view, node, spec, req.GetVersion(), request); err != nil {
				return err
			}
		}
		response = s.updatedNode(ctx, view, node, spec)
		return nil
	}, func(conflict *store.ConflictError) bool {
		// A change of another row is no concern of the user's, unless it leads to another decision.
		return req.GetVersion() != 0 && conflict.Key.ID() == row
	})
	if err != nil {
		return nil, conflictError(err, name)
	}
	return response, nil
}

// updatedNode answers with the node as it is by now: a write that was passed on to the leader may not have arrived here yet.
// Where no leader answers any more, but the write was acknowledged, with what was written.
func (s *Server) updatedNode(ctx context.Context, view *store.View, node *swarmpb.Node, spec *swarmpb.NodeSpec) *swarmpb.UpdateNodeResponse {
	before := node.GetMeta().GetVersion()
	if now, err := s.fresh(ctx); err == nil {
		view = now
	}
	if now := view.Node(node.GetId()); now != nil {
		node = now
	}
	if node.GetMeta().GetVersion() == before {
		node = swarmpb.Clone(node)
		node.Spec = spec
	}
	return &swarmpb.UpdateNodeResponse{Node: s.nodes(view).info(node)}
}

// nodeSpec is the spec that was asked for, made whole and checked.
func nodeSpec(view *store.View, node *swarmpb.Node, req *swarmpb.UpdateNodeRequest) (*swarmpb.NodeSpec, error) {
	spec, name := swarmpb.Clone(req.GetSpec()), view.NodeName(node.GetId())
	if spec.GetDesiredRole() == swarmpb.NodeRole_NODE_ROLE_UNSPECIFIED {
		spec.DesiredRole = desiredRole(node)
	}
	if spec.GetAvailability() == swarmpb.NodeAvailability_NODE_AVAILABILITY_UNSPECIFIED {
		spec.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE
	}
	if err := spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "node %s: %w", name, err)
	}
	was := node.GetSpec().GetAccepted()
	switch status := view.NodeStatus(node.GetId()); {
	case req.GetAccept() && status.GetDescription() == nil:
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "node %s: it has never connected, so that there is nothing of it to accept; "+
			"try again once `swarmctl node ls` shows it ready", name)
	case req.GetAccept():
		spec.Accepted = status.GetDescription().Facts()
	case spec.GetAccepted() == nil || proto.Equal(spec.GetAccepted(), was):
		spec.Accepted = was
	default:
		return nil, wire.Errorf(wire.CodeInvalid, "node %s: only what it says of itself can be accepted, and all of it; `swarmctl node update --accept %s` does that", name, name)
	}
	return spec, nil
}

// changeNode writes the node's new spec. A demotion is decided by who the other managers are, so it is guarded by
// their rows too: of two at once the second is decided anew.
func (s *Server) changeNode(ctx context.Context, view *store.View, node *swarmpb.Node, spec *swarmpb.NodeSpec, version uint64, request string) error {
	if version == 0 {
		version = node.GetMeta().GetVersion()
	}
	proposal := &swarmpb.Proposal{Guards: []*swarmpb.Guard{guard(swarmpb.NodeKey(node.GetId()), version)}}
	was, wants := desiredRole(node), spec.GetDesiredRole()
	switch {
	case was == wants:
	case wants == swarmpb.NodeRole_NODE_ROLE_MANAGER:
		if err := checkPromote(view, node); err != nil {
			return err
		}
	default:
		m := s.managers()
		if err := m.checkDemote(view, node); err != nil {
			return err
		}
		for other := range view.Nodes() {
			if other.GetId() != node.GetId() && m.concerns(other) {
				proposal.Guards = append(proposal.Guards, guard(swarmpb.NodeKey(other.GetId()), other.GetMeta().GetVersion()))
			}
		}
	}
	next := swarmpb.Clone(node)
	next.Spec = spec
	if availability(node) != spec.GetAvailability() {
		next.AvailabilityChangedAt = time.Now().UnixNano()
	}
	proposal.Writes = []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: next}})}
	if err := s.write(ctx, request, proposal); err != nil {
		return err
	}
	s.log.Info("node updated", "node", node.GetId(), "hostname", view.NodeName(node.GetId()),
		"role", wants.Name(), "availability", spec.GetAvailability().Name(), "accepted", !proto.Equal(node.GetSpec().GetAccepted(), spec.GetAccepted()))
	return nil
}

// availability is what the node's spec says, or leaves to the default.
func availability(node *swarmpb.Node) swarmpb.NodeAvailability {
	return cmp.Or(node.GetSpec().GetAvailability(), swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE)
}

// concerns tells whether the node is, should be or until lately was a manager.
func (m managers) concerns(node *swarmpb.Node) bool {
	return desiredRole(node) == swarmpb.NodeRole_NODE_ROLE_MANAGER || node.GetRole() == swarmpb.NodeRole_NODE_ROLE_MANAGER || m.member(node.GetId()) != nil
}

// checkPromote refuses a node that could not take up a manager's work: one that is away would only be waited for.
func checkPromote(view *store.View, node *swarmpb.Node) error {
	status := view.NodeStatus(node.GetId())
	if status.GetState() == swarmpb.NodeState_NODE_STATE_READY {
		return nil
	}
	state := status.GetState()
	if state == swarmpb.NodeState_NODE_STATE_UNSPECIFIED {
		state = swarmpb.NodeState_NODE_STATE_UNKNOWN
	}
	return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is %s and cannot become a manager before it is ready; bring it back, or promote another node",
		view.NodeName(node.GetId()), state.Name())
}

// checkDemote refuses to demote a manager without which there would be none, or no majority that answers.
func (m managers) checkDemote(view *store.View, node *swarmpb.Node) error {
	name := view.NodeName(node.GetId())
	if lastManager(view, node.GetId()) {
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is the last manager, and a cluster cannot do without one; "+
			"promote another node first with `swarmctl node promote NODE`", name)
	}
	if part := m.member(node.GetId()); part == nil || !part.Voter {
		return nil // it does not count for majorities yet
	}
	rest := m.without(view, node.GetId())
	if need := rest.total/2 + 1; len(rest.firm) < need {
		return rest.refusal(name, need)
	}
	return nil
}

// lastManager tells whether no other node is to be a manager.
func lastManager(view *store.View, id string) bool {
	for other := range view.Nodes() {
		if other.GetId() != id && desiredRole(other) == swarmpb.NodeRole_NODE_ROLE_MANAGER {
			return false
		}
	}
	return true
}

// voters are those that would be left, by name.
type voters struct {
	total int
	// firm stay and answer, absent stay and do not answer, leaving are on their way out of Raft, and joining have
	// no vote yet.
	firm, absent, leaving, joining []string
}

// without is who would be left to vote.
func (m managers) without(view *store.View, id string) voters {
	var v voters
	for _, m := range m.members {
		name, node := view.NodeName(m.ID), view.Node(m.ID)
		stays := node != nil && desiredRole(node) == swarmpb.NodeRole_NODE_ROLE_MANAGER
		switch {
		case m.ID == id:
			continue
		case !m.Voter:
			if stays {
				v.joining = append(v.joining, name)
			}
			continue
		case !stays:
			v.leaving = append(v.leaving, name)
		case reachable(view, m.ID):
			v.firm = append(v.firm, name)
		default:
			v.absent = append(v.absent, name)
		}
		v.total++
	}
	return v
}

func (v voters) refusal(name string, need int) error {
	if v.total == 0 {
		what := "promote another node first with `swarmctl node promote NODE`"
		if len(v.joining) > 0 {
			what = fmt.Sprintf("wait until `swarmctl node ls` shows %s as Reachable", strings.Join(v.joining, ", "))
		}
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: no other manager has a vote yet; %s", name, what)
	}
	var why, what []string
	if len(v.absent) > 0 {
		why = append(why, strings.Join(v.absent, ", ")+" "+isAre(len(v.absent))+" not ready")
		what = append(what, "bring "+strings.Join(v.absent, ", ")+" back, or demote "+v.absent[0]+" first")
	}
	if len(v.leaving) > 0 {
		why = append(why, strings.Join(v.leaving, ", ")+" "+isAre(len(v.leaving))+" being demoted")
		what = append(what, "wait until `swarmctl node ls` shows no manager status of "+strings.Join(v.leaving, ", "))
	}
	answer := "none"
	if len(v.firm) > 0 {
		answer = fmt.Sprintf("%d (%s)", len(v.firm), strings.Join(v.firm, ", "))
	}
	return wire.Errorf(wire.CodeFailedPrecondition, "node %s: without it the managers would have no majority: of the other %d, %d must answer, and %s would, because %s; %s",
		name, v.total, need, answer, strings.Join(why, " and "), strings.Join(what, "; "))
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}
