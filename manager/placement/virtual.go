package placement

import (
	"fmt"
	"time"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// virtualID is the one unit of work of a Virtual.
const virtualID = "placement"

// Virtual is the planner as a reconciler, for a store that nobody else writes to. It places tasks as a Placer does: those of
// all services or, honouring what the others claim, of one.
// Unlike other reconcilers it remembers what it has been shown, so it serves one reconcile.Virtual.
type Virtual struct {
	planner *planner
	service string
	// written are the decisions that the last plan holds, in order.
	written []*decision
}

// NewVirtual makes one for a service, empty for all. What waits already is placed when it is asked to look at All.
func NewVirtual(serviceID string) *Virtual {
	v := &Virtual{planner: newPlanner(), service: serviceID}
	v.planner.only = serviceID
	return v
}

// Name is placement.
func (v *Virtual) Name() string { return "placement" }

// Affects takes in a change, and has work when a task of the service may get a node by it.
func (v *Virtual) Affects(view *store.View, change store.Change) []reconcile.ID {
	v.planner.observe(view, []store.Change{change})
	return v.work()
}

// All looks at all tasks that wait.
func (v *Virtual) All(view *store.View) []reconcile.ID {
	if v.service == "" {
		v.planner.reset(view)
	} else {
		v.planner.enqueue(v.service)
	}
	return v.work()
}

func (v *Virtual) work() []reconcile.ID {
	if !v.planner.waiting() {
		return nil
	}
	return []reconcile.ID{{Object: virtualID}}
}

// Reconcile decides about as many waiting tasks as one round does.
func (v *Virtual) Reconcile(view *store.View, _ reconcile.ID, now time.Time) (reconcile.Plan, error) {
	if !v.planner.waiting() {
		return reconcile.Plan{}, nil
	}
	v.written = v.planner.plan(view, now)
	if len(v.written) > reconcile.MaxRest+1 {
		return reconcile.Plan{}, fmt.Errorf("a round has %d decisions, at most %d fit a plan", len(v.written), reconcile.MaxRest+1)
	}
	var plan reconcile.Plan
	for i, d := range v.written {
		part := reconcile.Plan{Writes: d.writes, Guards: d.guards}
		if i == 0 {
			plan = part
		} else {
			plan.Rest = append(plan.Rest, part)
		}
	}
	plan.More = v.planner.waiting()
	return plan, nil
}

// Settled takes in what became of the next decision.
func (v *Virtual) Settled(_ reconcile.ID, _ reconcile.Plan, index uint64, err error) {
	d := v.written[0]
	v.written = v.written[1:]
	if err != nil {
		v.planner.refused(d)
		return
	}
	v.planner.applied(d, index)
}
