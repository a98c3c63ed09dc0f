package control

import (
	"context"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Planner foretells what the leader would do.
type Planner interface {
	// Plan tells what follows when the proposals are written on top of view, for one service: Strategy, Steps, Truncated,
	// Problems, Starts, Stops, AtLeast, and NoChange when no task would change. It writes nothing, neither into view nor
	// into the proposals, and ends when ctx does. The rest of the response is control's.
	Plan(ctx context.Context, view *store.View, proposals []*swarmpb.Proposal, serviceID string) (*swarmpb.PlanServiceResponse, error)
}
