package plan

import (
	"context"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/allocator"
	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/placement"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// ending is how a plan ends.
type ending int

const (
	// settled: the service is as it should be.
	settled ending = iota
	// waits: a person is waited for.
	waits
	// paused: the update has stopped, because it failed or by its user.
	paused
	// failed: the update has turned back because it failed.
	failed
	// stuck: nothing moves any more, and the service is not as it should be.
	stuck
	// cut: it went on for longer than was looked.
	cut
)

// run is the making of one plan.
type run struct {
	service string
	store   *store.Store
	engine  *reconcile.Virtual
	watch   *store.Watch
	start   time.Time
	// left is how much work may still be done.
	left  int
	end   ending
	steps recorder
	// pending is why tasks had no node, or no address, when the engine last came to rest.
	pending []string
}

func newRun(view *store.View, serviceID string, now time.Time, work int) (*run, error) {
	r := &run{service: serviceID, store: view.Fork(), start: now, left: work}
	r.steps = recorder{service: serviceID, start: now.UnixNano()}
	var reconcilers []reconcile.Reconciler
	for _, o := range orchestrator.Reconcilers() {
		reconcilers = append(reconcilers, focused{Reconciler: o, run: r})
	}
	reconcilers = append(reconcilers, allocator.Reconcilers()...)
	reconcilers = append(reconcilers, placing{placement.NewVirtual(serviceID), r}, newWorkers(serviceID))
	var err error
	if r.watch, err = r.store.Watch(view.Index(), 0); err != nil {
		return nil, err
	}
	r.engine, err = reconcile.NewVirtual(reconcile.VirtualConfig{Store: r.store, Now: now, Reconcilers: reconcilers})
	return r, err
}

// focused is a reconciler of the orchestrator that sees to the one service alone: its units of work are the service, its
// slots, or its tasks.
type focused struct {
	reconcile.Reconciler
	run *run
}

// surveyed is how many tasks a look at a service goes through in the time of a write.
const surveyed = 50

func (f focused) Affects(view *store.View, change store.Change) []reconcile.ID {
	var ids []reconcile.ID
	for _, id := range f.Reconciler.Affects(view, change) {
		if id.Object == f.run.service || view.Task(id.Object).GetServiceId() == f.run.service {
			ids = append(ids, id)
		}
	}
	return ids
}

// All is what may be to do for the service before anything changes.
func (f focused) All(view *store.View) []reconcile.ID {
	if one, ok := f.Reconciler.(interface {
		Of(view *store.View, object string) []reconcile.ID
	}); ok {
		return one.Of(view, f.run.service)
	}
	return []reconcile.ID{{Object: f.run.service}}
}

func (f focused) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	f.run.left--
	if id.Slot == 0 {
		f.run.left -= view.TaskCountOf(f.run.service) / surveyed
	}
	return f.Reconciler.Reconcile(view, id, now)
}

// placing is placement, whose rounds cost by the nodes.
type placing struct {
	*placement.Virtual
	run *run
}

// ranked is how many nodes a round of placement reads in the time of a write.
const ranked = 20

func (p placing) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	p.run.left -= view.NodeCount() / ranked
	return p.Virtual.Reconcile(view, id, now)
}

// propose writes what control would.
func (r *run) propose(proposal *swarmpb.Proposal) error {
	_, err := r.engine.Propose(proposal)
	return err
}

// play lets the leader work until the plan ends.
func (r *run) play(ctx context.Context) error {
	r.engine.Look(func(reconciler reconcile.Reconciler) []reconcile.ID {
		switch reconciler.(type) {
		case focused, placing, *workers:
			return reconciler.All(r.store.View())
		default: // what the allocator has to do follows from what changes
			return nil
		}
	})
	for {
		before := r.update()
		if err := ctx.Err(); err != nil {
			return err
		}
		busy, err := r.engine.Step()
		if err != nil {
			return err
		}
		if err := r.record(ctx); err != nil {
			return err
		}
		if r.left <= 0 {
			r.end = cut
			return nil
		}
		if turnedBack(before, r.update()) {
			r.end = failed
			return nil
		}
		if busy {
			continue
		}
		if end, over := r.rest(); over {
			r.end = end
			return nil
		}
		next, ok := r.engine.Next()
		switch {
		case !ok, r.nextRun(next):
			r.end = stuck
			return nil
		case next.Sub(r.start) > MaxTime:
			r.end = cut
			return nil
		}
		r.engine.Pass(next)
	}
}

// nextRun tells whether the next run of a schedule is what a time is waited for: it changes nothing for those before it.
func (r *run) nextRun(at time.Time) bool {
	next := r.store.View().ServiceProgress(r.service).GetJob().GetNextAt()
	return next != 0 && at.UnixNano() >= next
}

// record takes in the changes that a step has made.
func (r *run) record(ctx context.Context) error {
	for r.watch.Reached() == nil {
		batch, err := r.watch.Next(ctx)
		if err != nil {
			return err
		}
		r.left -= len(batch.Changes)
		for _, change := range batch.Changes {
			r.steps.add(batch.View, change, r.engine.Now())
		}
	}
	return nil
}

func (r *run) update() *swarmpb.UpdateStatus {
	return r.store.View().ServiceProgress(r.service).GetUpdate()
}

// turnedBack tells whether an update that was moving is being rolled back by itself.
func turnedBack(before, now *swarmpb.UpdateStatus) bool {
	return before.GetState() == swarmpb.UpdateState_UPDATE_STATE_UPDATING && now.GetFailedTemplateVersion() != 0 &&
		now.GetFailedTemplateVersion() == before.GetTemplateVersion()
}

// rest judges the state in which nobody has anything to do at this time: how the plan ends, unless time is to pass.
func (r *run) rest() (ending, bool) {
	view, update := r.store.View(), r.update()
	if reasons := pending(view, r.service); len(reasons) > 0 || !update.Paused() {
		r.pending = reasons // what has just failed no longer waits: what it waited for is why
	}
	switch {
	case update.Paused():
		return paused, true
	case update.Underway():
		return waits, update.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING
	default:
		return settled, inPlace(view, r.service)
	}
}

// inPlace tells whether all tasks of the service are where they should be: those that are to run do, and the others have ended
// as far as anyone knows.
func inPlace(view *store.View, serviceID string) bool {
	for task := range view.TasksOf(serviceID) {
		rows := view.TaskRows(task.Id)
		node := rows.Placement.GetNodeId()
		switch {
		case rows.Observed.Ended():
		case task.DesiredState.Wanted():
			if !rows.Status.Up() {
				return false
			}
		case ready(view, node):
			return false
		}
	}
	return true
}
