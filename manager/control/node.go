package control

import (
	"context"
	"errors"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// ListNodes returns all nodes, by ID.
func (s *Server) ListNodes(ctx context.Context, _ *swarmpb.ListNodesRequest) (*swarmpb.ListNodesResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	response := &swarmpb.ListNodesResponse{}
	for node := range view.Nodes() {
		response.Nodes = append(response.Nodes, s.nodeInfo(view, node))
	}
	return response, nil
}

// GetNode returns one node.
func (s *Server) GetNode(ctx context.Context, req *swarmpb.GetNodeRequest) (*swarmpb.GetNodeResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	node, err := s.findNode(view, req.GetNode())
	if err != nil {
		return nil, err
	}
	return &swarmpb.GetNodeResponse{Node: s.nodeInfo(view, node)}, nil
}

// RemoveNode takes a node out of the cluster and ends its connections. Its tasks are replaced elsewhere.
func (s *Server) RemoveNode(ctx context.Context, req *swarmpb.RemoveNodeRequest) (*swarmpb.RemoveNodeResponse, error) {
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		view, err := s.read(ctx)
		if err != nil {
			return nil, err
		}
		node, err := s.findNode(view, req.GetNode())
		if err != nil {
			return nil, err
		}
		if err := s.checkRemove(view, node, req.GetForce()); err != nil {
			return nil, err
		}
		err = s.write(ctx, request, removeNode(view, node, req.GetForce()))
		var conflict *store.ConflictError
		if err == nil {
			s.cfg.CloseNode(node.GetId())
			s.log.Info("node removed", "node", node.GetId(), "hostname", nodeName(view, node.GetId()), "force", req.GetForce())
			return &swarmpb.RemoveNodeResponse{Id: node.GetId()}, nil
		}
		if !errors.As(err, &conflict) || try == rewrites {
			return nil, conflictError(err, "node "+nodeName(view, node.GetId()))
		}
	}
}

// removeNode deletes the node's row, with which that of its status goes. Without force the node must still be as
// down as it was when it was looked at.
func removeNode(view *store.View, node *swarmpb.Node, force bool) *swarmpb.Proposal {
	proposal := &swarmpb.Proposal{
		Guards: []*swarmpb.Guard{guard(swarmpb.NodeKey(node.GetId()), node.GetMeta().GetVersion())},
		Writes: []*swarmpb.Write{{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(node.GetId())}}},
	}
	if !force {
		version := view.NodeStatus(node.GetId()).GetMeta().GetVersion()
		proposal.Guards = append(proposal.Guards, guard(swarmpb.NodeStatusKey(node.GetId()), version))
	}
	return proposal
}

func (s *Server) checkRemove(view *store.View, node *swarmpb.Node, force bool) error {
	name := nodeName(view, node.GetId())
	switch {
	case isManager(node) && managers(view) == 1:
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is the last manager, and without one the cluster is gone; to take the cluster down, run `swarmctl leave --force` on it", name)
	case node.GetId() == s.cfg.NodeID:
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is the manager that answers this; run the command on another manager, or `swarmctl leave` on this one", name)
	case isManager(node):
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is a manager; demote it first with `swarmctl node demote %s`", name, name)
	case force:
		return nil
	}
	status := view.NodeStatus(node.GetId())
	switch status.GetState() {
	case swarmpb.NodeState_NODE_STATE_DOWN:
		return nil
	case swarmpb.NodeState_NODE_STATE_UNSPECIFIED, swarmpb.NodeState_NODE_STATE_UNKNOWN:
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it has joined and may connect at any moment; run `swarmctl leave` on it, or remove it with --force", name)
	}
	return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is %s and not down; run `swarmctl leave` on it or stop it first, or remove it with --force", name, status.GetState().Name())
}

func isManager(node *swarmpb.Node) bool {
	return node.GetRole() == swarmpb.NodeRole_NODE_ROLE_MANAGER || node.GetSpec().GetDesiredRole() == swarmpb.NodeRole_NODE_ROLE_MANAGER
}

func managers(view *store.View) int {
	count := 0
	for node := range view.Nodes() {
		if isManager(node) {
			count++
		}
	}
	return count
}

// nodeName is the hostname, or the ID of a node that has never told one.
func nodeName(view *store.View, id string) string {
	if name := view.NodeStatus(id).GetDescription().GetHostname(); name != "" {
		return name
	}
	return id
}
