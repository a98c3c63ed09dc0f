package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Placing answers what placement and the orchestrator think of a view, through the code that they decide with. It writes nothing.
type Placing interface {
	// Explain judges every member for one more task of the service's present template, in any order. An error is why the template
	// cannot be used.
	Explain(view *store.View, serviceID string) ([]*swarmpb.NodeVerdict, error)
	// Rebalance is the moves that would be made, one after another, at most so many and fewer where looking for them costs too
	// much, whether there are more, and why services are left alone, a line each. A move changes what those after it see.
	Rebalance(view *store.View, most int) (moves []*swarmpb.ProposedMove, more bool, leftAlone []string)
	// Account is what tasks reserve of what the cluster takes the node to have, and what they leave, which is below 0 where too
	// much was given away, both with generic resources by kind and instance; and what the node says of itself beyond that, one line
	// each. It reads the node's tasks only where it has generic resources.
	Account(view *store.View, node *swarmpb.Node) (reserved, free *swarmpb.Resources, notAccepted []string)
	// Held says in a line why tasks of the service that are to leave their nodes wait; empty when none has to.
	Held(view *store.View, serviceID string) string
}

// Bounds on answers about placement.
const (
	maxPending   = 100
	maxMoves     = 1000
	maxLeftAlone = 32
)

// ExplainService tells for each node whether it would take one more task of the service, and which tasks wait for a node.
func (s *Server) ExplainService(caller context.Context, req *swarmpb.ExplainServiceRequest) (*swarmpb.ExplainServiceResponse, error) {
	ctx, cancel := context.WithTimeout(caller, planTimeout)
	defer cancel()
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	service, err := findService(view, req.GetService())
	if err != nil {
		return nil, err
	}
	name := service.GetSpec().GetName()
	switch {
	case service.GetSpec().IsAttachment():
		guest := service.GetSpec().GetTask().GetGuest()
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "service %q: it stands for a container outside of services, which is where it is, on node %s; `swarmctl network inspect` shows it",
			name, view.NodeName(guest.GetNodeId()))
	case service.GetRemoving():
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "service %q: it is being removed and gets no more tasks", name)
	}
	done, err := s.work(ctx, "explain service \""+name+"\"")
	if err != nil {
		return nil, err
	}
	defer done()
	if s.cfg.Placing == nil {
		return nil, wire.Errorf(wire.CodeUnimplemented, "service %q: this manager cannot explain placement", name)
	}
	response := &swarmpb.ExplainServiceResponse{ServiceId: service.GetId(), ServiceName: name, TemplateVersion: service.GetTemplateVersion()}
	if response.Nodes, err = s.cfg.Placing.Explain(view, service.GetId()); err != nil {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "service %q: no node can be judged: %w", name, err)
	}
	slices.SortFunc(response.Nodes, func(a, b *swarmpb.NodeVerdict) int {
		return cmp.Or(cmp.Compare(a.GetHostname(), b.GetHostname()), cmp.Compare(a.GetNodeId(), b.GetNodeId()))
	})
	for task := range view.UnplacedOf(service.GetId()) {
		if response.PendingTotal++; len(response.Pending) < maxPending {
			response.Pending = append(response.Pending, taskInfo(view, task))
		}
	}
	return response, nil
}

// work waits for one of the places of those who compute much, of which there are maxPlans, and gives it back with done.
func (s *Server) work(ctx context.Context, what string) (done func(), err error) {
	select {
	case s.plans <- struct{}{}:
		return func() { <-s.plans }, nil
	case <-ctx.Done():
		return nil, wire.Errorf(wire.CodeResourceExhausted, "%s: this manager works out %d other answers, and none has ended in time; try again in a moment", what, maxPlans)
	}
}

// RebalanceCluster asks for tasks to be moved for balance, and tells which are to be expected; a dry run only tells. The leader
// looks for itself: what else happens meanwhile may lead to other moves.
func (s *Server) RebalanceCluster(caller context.Context, req *swarmpb.RebalanceClusterRequest) (*swarmpb.RebalanceClusterResponse, error) {
	ctx, cancel := context.WithTimeout(caller, planTimeout)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	if s.cfg.Placing == nil {
		return nil, wire.Errorf(wire.CodeUnimplemented, "rebalance: this manager cannot tell what is to be moved")
	}
	if !req.GetDryRun() {
		view, err := s.plannedFrom(ctx)
		if err != nil {
			return nil, err
		}
		response, err := s.moves(ctx, view)
		if err != nil {
			return nil, err
		}
		return response, s.askForBalance(caller, request)
	}
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return s.moves(ctx, view)
}

// moves are those to be expected.
func (s *Server) moves(ctx context.Context, view *store.View) (*swarmpb.RebalanceClusterResponse, error) {
	done, err := s.work(ctx, "rebalance")
	if err != nil {
		return nil, err
	}
	defer done()
	moves, more, alone := s.cfg.Placing.Rebalance(view, maxMoves)
	return &swarmpb.RebalanceClusterResponse{Moves: moves, Truncated: more, LeftAlone: first(alone, maxLeftAlone)}, nil
}

// askForBalance notes in the cluster's row that a user wants tasks to be moved; a repeated request asks once.
func (s *Server) askForBalance(caller context.Context, request string) error {
	ctx, cancel := writing(caller)
	defer cancel()
	err := s.rewrite(ctx, func(view *store.View) error {
		cluster := swarmpb.Clone(view.Cluster())
		// Each request counts, also where the clock of the manager before was ahead.
		cluster.RebalanceAt = max(time.Now().UnixNano(), cluster.GetRebalanceAt()+1)
		return s.changeCluster(ctx, request, cluster.GetMeta().GetVersion(), cluster)
	}, nil)
	if err == nil {
		s.log.Info("rebalance asked for")
	}
	return conflictError(err, "the cluster")
}
