// Package plan foretells what the leader would do with a service: the engine of `--dry-run` and `service plan`.
//
// It copies the store (store.View.Fork), writes there what control would propose, and lets the leader's own reconcilers and
// placement work on the copy, in virtual time, with workers that do at once as they are told. What they do to the service's
// tasks is the plan; there is no second opinion about rollouts here that could differ from the first.
//
// It promises: nothing is written but to the copy; the same view, proposals and time give the same plan; it takes no
// lock, and its work, memory and answer are bounded. Only the service itself is carried on. Other services keep what they
// claim, whatever they are about to do.
package plan

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

const (
	// MaxSteps is the most steps of an answer.
	MaxSteps = 1000
	// MaxProblems is the most problems of an answer.
	MaxProblems = 20
	// MaxTime is how far a plan looks ahead: no step of a canary may be watched for longer.
	MaxTime = 90 * 24 * time.Hour
	// MaxWork bounds a plan's work, in rows written and what takes about as long: 10 to 20 us each.
	MaxWork = 50_000
	// maxPlans is how many are made at a time; others wait.
	maxPlans = 2
)

// Planner makes plans; it is control's Planner.
type Planner struct {
	clock func() time.Time
	slots chan struct{}
	// work is MaxWork, but in tests.
	work int
}

// New makes a planner for a manager's clock.
func New(clock func() time.Time) *Planner {
	return &Planner{clock: clock, slots: make(chan struct{}, maxPlans), work: MaxWork}
}

// Plan tells what follows when the proposals are written on top of view, for one service. It fills Strategy, Steps,
// Truncated, Problems, Starts, Stops, AtLeast and NoChange, and Warnings where what follows was not looked at to the end;
// those counts are then an estimate. An error is ctx's, or the store's refusal of a proposal: a *store.ConflictError or
// store.ErrInvalid.
func (p *Planner) Plan(ctx context.Context, view *store.View, proposals []*swarmpb.Proposal, serviceID string) (answer *swarmpb.PlanServiceResponse, err error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("plan service %s: others are being planned: %w", serviceID, ctx.Err())
	}
	// The leader's driver recovers a reconciler's panic; what panics there must not end a manager here.
	defer func() {
		if cause := recover(); cause != nil {
			answer, err = nil, fmt.Errorf("plan service %s: panic: %v\n%s", serviceID, cause, debug.Stack())
		}
	}()
	r, err := newRun(view, serviceID, p.clock(), p.work)
	if err != nil {
		return nil, fmt.Errorf("plan service %s: %w", serviceID, err)
	}
	for _, proposal := range proposals {
		if err := r.propose(proposal); err != nil {
			return nil, fmt.Errorf("plan service %s: %w", serviceID, err)
		}
	}
	if err := r.play(ctx); err != nil {
		return nil, fmt.Errorf("plan service %s: %w", serviceID, err)
	}
	return r.answer(), nil
}
