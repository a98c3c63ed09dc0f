package control

import (
	"context"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Planner foretells what the leader would do.
type Planner interface {
	// Plan tells what follows when the proposals are written on top of view, for one service: Strategy, Steps, Truncated,
	// Problems, Starts, Stops, AtLeast, and NoChange when no task would change. It writes nothing, neither into view nor
	// into the proposals, and ends when ctx does. The rest of the response is control's.
	Plan(ctx context.Context, view *store.View, proposals []*swarmpb.Proposal, serviceID string) (*swarmpb.PlanServiceResponse, error)
}

const (
	// maxPlans is how many plans, explanations and searches for balance are worked out at the same time: each takes a
	// processor of a manager that others need.
	maxPlans = 2
	// planTimeout bounds a plan of a caller without a deadline.
	planTimeout = 30 * time.Second
)

// PlanService tells what a create, an update or a rollback would do, by what they would write: it refuses what they
// would refuse, with the same words.
func (s *Server) PlanService(caller context.Context, req *swarmpb.PlanServiceRequest) (*swarmpb.PlanServiceResponse, error) {
	ctx, cancel := context.WithTimeout(caller, planTimeout)
	defer cancel()
	view, err := s.plannedFrom(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.planned(ctx, view, req)
	if err != nil {
		return nil, err
	}
	response := &swarmpb.PlanServiceResponse{NoChange: true, Strategy: c.after.GetUpdate().StrategyOr()}
	if c.proposal != nil {
		if response, err = s.foretell(ctx, view, c); err != nil {
			return nil, err
		}
	}
	response.Before, response.After = c.before, c.after
	response.Warnings = append(c.warnings, response.GetWarnings()...)
	return response, nil
}

// plannedFrom is the view that a write would be decided by.
func (s *Server) plannedFrom(ctx context.Context) (*store.View, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	return s.fresh(ctx)
}

// planned is the change that is only to be looked at.
func (s *Server) planned(ctx context.Context, view *store.View, req *swarmpb.PlanServiceRequest) (*change, error) {
	switch asked := req.GetChange().(type) {
	case *swarmpb.PlanServiceRequest_Create:
		// A service that is to be made with the same request has its name taken by itself, and is told so.
		return s.creation(ctx, view, swarmpb.NewID(), asked.Create)
	case *swarmpb.PlanServiceRequest_Update:
		return s.update(ctx, view, asked.Update)
	case *swarmpb.PlanServiceRequest_Rollback:
		return s.rollback(view, asked.Rollback)
	}
	return nil, wire.Errorf(wire.CodeInvalid, "plan: neither a create nor an update nor a rollback is given; give one of them")
}

// foretell asks the planner, which works for at most maxPlans callers at a time.
func (s *Server) foretell(ctx context.Context, view *store.View, c *change) (*swarmpb.PlanServiceResponse, error) {
	if s.cfg.Planner == nil {
		return nil, wire.Errorf(wire.CodeUnimplemented, "plan: this manager cannot plan")
	}
	done, err := s.work(ctx, "plan")
	if err != nil {
		return nil, err
	}
	defer done()
	proposal := swarmpb.Clone(c.proposal)
	proposal.Now = time.Now().UnixNano()
	return s.cfg.Planner.Plan(ctx, view, []*swarmpb.Proposal{proposal}, c.id)
}
