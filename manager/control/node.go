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
	nodes := s.nodes(view)
	for node := range view.Nodes() {
		response.Nodes = append(response.Nodes, nodes.info(node))
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
	return &swarmpb.GetNodeResponse{Node: s.nodes(view).info(node)}, nil
}

// RemoveNode takes a node out of the cluster and ends its connections. Its tasks are replaced elsewhere. Of a node that
// the same request has removed already, the answer is the name that it was asked for by.
func (s *Server) RemoveNode(ctx context.Context, req *swarmpb.RemoveNodeRequest) (*swarmpb.RemoveNodeResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		view, err := s.fresh(ctx)
		if err != nil {
			return nil, err
		}
		node, err := s.findNode(view, req.GetNode())
		if errors.Is(err, wire.ErrNotFound) && req.GetRequestId() != "" && s.done(ctx, request) {
			return &swarmpb.RemoveNodeResponse{Id: req.GetNode()}, nil
		}
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
			s.log.Info("node removed", "node", node.GetId(), "hostname", view.NodeName(node.GetId()), "force", req.GetForce())
			return &swarmpb.RemoveNodeResponse{Id: node.GetId()}, nil
		}
		if !errors.As(err, &conflict) || try == rewrites {
			return nil, conflictError(err, "node "+view.NodeName(node.GetId()))
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

// done tells whether the request has been carried out before: what cannot be applied is answered all the same when
// its request ID is known.
func (s *Server) done(ctx context.Context, request string) bool {
	never := guard(swarmpb.NodeKey(request), ^uint64(0))
	return s.write(ctx, request, &swarmpb.Proposal{Guards: []*swarmpb.Guard{never}}) == nil
}

func (s *Server) checkRemove(view *store.View, node *swarmpb.Node, force bool) error {
	name := view.NodeName(node.GetId())
	manager := desiredRole(node) == swarmpb.NodeRole_NODE_ROLE_MANAGER
	switch {
	case manager && lastManager(view, node.GetId()):
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is the last manager, and without one the cluster is gone; to take the cluster down, run `swarmctl leave --force` on it", name)
	case manager:
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is a manager; demote it first with `swarmctl node demote %s`", name, name)
	case s.managers().member(node.GetId()) != nil:
		return wire.Errorf(wire.CodeFailedPrecondition, "node %s: its demotion is under way; try again once `swarmctl node ls` shows no manager status of it", name)
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

// desiredRole is what the node should be; a row of before there were promotions says nothing but what it is.
func desiredRole(node *swarmpb.Node) swarmpb.NodeRole {
	if role := node.GetSpec().GetDesiredRole(); role != swarmpb.NodeRole_NODE_ROLE_UNSPECIFIED {
		return role
	}
	return node.GetRole()
}
