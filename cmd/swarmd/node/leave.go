package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	leaveTimeout = 2 * time.Minute
	// resignTimeout bounds the wait until a manager that leaves is none any more.
	resignTimeout = time.Minute
	// demoteTries is how often another change of the node may come in between.
	demoteTries = 5
)

// Leave takes this host out of its cluster: its containers are stopped and removed.
func (s *localServer) Leave(ctx context.Context, req *swarmpb.LeaveRequest) (*swarmpb.LeaveResponse, error) {
	n := s.node
	n.changing.Lock()
	defer n.changing.Unlock()
	m := n.current()
	if m == nil {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "leave: this host belongs to no cluster")
	}
	if n.stopping() {
		return nil, wire.Errorf(wire.CodeUnavailable, "leave: swarmd is stopping; try again once it has started")
	}
	if !req.GetForce() {
		if err := m.resign(ctx); err != nil {
			return nil, err
		}
	}
	id, _ := m.creds.Identity()
	n.stopMember()
	if err := n.forgetIdentity(); err != nil {
		err = fmt.Errorf("leave: this host is still in its cluster: %w", err)
		// Part of it may be gone: without it the next start would remove what is in the cluster still.
		saveErr := wire.SaveIdentity(n.identityDir(), id)
		again, openErr := n.newMember(id, m.state())
		if err = errors.Join(err, saveErr); openErr != nil {
			return nil, n.explain(errors.Join(err, openErr))
		}
		return nil, n.explain(errors.Join(err, n.start(again)))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := n.takeDown(ctx, m.agent); err != nil {
		return nil, n.explain(fmt.Errorf("leave: this host has left its cluster, but something is left behind, which the next start of swarmd removes: %w", err))
	}
	n.log.Info("left the cluster")
	return &swarmpb.LeaveResponse{}, nil
}

// resign takes this host out of the managers, if it is one: after that it can leave as a worker does. With an error it
// is as it was, or still on its way.
func (m *member) resign(ctx context.Context) error {
	if m.refusal() != nil {
		return nil // the managers have removed this node already
	}
	if m.isPromoted() {
		return wire.Errorf(wire.CodeUnavailable, "leave: this host is just becoming a manager, and the others would wait for it; try again once "+
			"`swarmctl info` says that it is one, or use `swarmctl leave --force`")
	}
	if !m.isManager() {
		return nil
	}
	id, _ := m.creds.Identity()
	p, err := m.serving()
	if err != nil {
		return wire.Errorf(wire.CodeOf(err), "leave: this host is a manager and has to be demoted first: %w; demote it on another "+
			"manager with `swarmctl node demote %s`, or use `swarmctl leave --force`", err, id.NodeID)
	}
	ctx, cancel := context.WithTimeout(ctx, resignTimeout)
	defer cancel()
	// The others refuse one that is out of the managers already: somebody else has demoted it, and it has yet to hear of it.
	if err := demote(ctx, p.manager.Control(), id.NodeID); err != nil && wire.CodeOf(err) != wire.CodePermissionDenied {
		return err
	}
	m.want(roleWorker)
	if m.await(ctx, func() bool { return m.refused != nil || m.role == roleWorker && !m.clearing }) != nil {
		return wire.Errorf(wire.CodeUnavailable, "leave: this host is being demoted, and was not out of the managers within %s; "+
			"`swarmctl node ls` on another manager shows them: when most of them are up, run `swarmctl leave` again", resignTimeout)
	}
	return nil
}

// demote asks for the node to be a worker.
func demote(ctx context.Context, control swarmpb.ControlServer, nodeID string) error {
	list, err := control.ListNodes(ctx, &swarmpb.ListNodesRequest{})
	if err != nil {
		return undemoted(err)
	}
	if !slices.ContainsFunc(list.GetNodes(), func(n *swarmpb.NodeInfo) bool {
		return n.GetNode().GetId() != nodeID && n.GetNode().GetSpec().GetDesiredRole() == roleManager
	}) {
		return wire.Errorf(wire.CodeFailedPrecondition,
			"leave: this is the last manager: the cluster, its services and its tokens would be lost; if that is what you want, use `swarmctl leave --force`")
	}
	for try := 1; ; try++ {
		got, err := control.GetNode(ctx, &swarmpb.GetNodeRequest{Node: nodeID})
		if err != nil {
			return undemoted(err)
		}
		node := got.GetNode().GetNode()
		spec := proto.CloneOf(node.GetSpec())
		if spec.GetDesiredRole() == roleWorker {
			return nil
		}
		spec.DesiredRole = roleWorker
		_, err = control.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{
			Node: nodeID, Version: node.GetMeta().GetVersion(), Spec: spec, RequestId: swarmpb.NewID(),
		})
		if wire.CodeOf(err) == wire.CodeConflict && try < demoteTries {
			continue
		}
		if err != nil {
			return undemoted(err)
		}
		return nil
	}
}

func undemoted(err error) error {
	return wire.Errorf(wire.CodeOf(err), "leave: this host is a manager and has to be demoted first: %w; "+
		"when the other managers are gone for good, use `swarmctl leave --force`", err)
}

// takeDown removes what the host did for its cluster. The identity is gone before: whatever happens from here on, no
// start resumes the membership. Its last traces go at the end: while there are some, the next start does this again.
func (n *Node) takeDown(ctx context.Context, agent interface{ RemoveAll(context.Context) error }) error {
	if err := errors.Join(agent.RemoveAll(ctx), n.network.Teardown(ctx)); err != nil {
		return err
	}
	return n.forget()
}

// finishLeave removes what a leave that was cut short has left. changing is held.
func (n *Node) finishLeave(ctx context.Context) {
	if !n.hasTraces() {
		return
	}
	n.log.Warn("removing what a leave, init or join that did not end has left")
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	agent, err := n.newAgent("none", state{}, nil)
	if err == nil {
		err = n.containerdReady(ctx)
	}
	if err == nil {
		err = n.takeDown(ctx, agent)
	}
	if err != nil {
		n.log.Error("something of a former cluster is left on this host; the next start tries to remove it again", "error", err)
	}
}
