package orchestrator

import (
	"slices"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// MaxVictims is how many tasks at most are told in one plan to give way to another.
const MaxVictims = 32

// Preemption is the reconciler that stops tasks where placement has found that one of higher priority fits only without
// them (id: the task that waits). Each of them has a successor at once, which waits for room like any task.
type Preemption struct{}

var _ reconcile.Reconciler = Preemption{}

// Name is preemption.
func (Preemption) Name() string { return "preemption" }

// Affects names a task that asks others to give way, and all that do when priorities change.
func (p Preemption) Affects(view *store.View, change store.Change) []reconcile.ID {
	switch change.Table {
	case swarmpb.Table_TABLE_TASK_PLACEMENT:
		if row, ok := change.New.(*swarmpb.TaskPlacement); ok && asks(row) {
			return []reconcile.ID{{Object: row.TaskId}}
		}
	case swarmpb.Table_TABLE_SERVICE:
		before, _ := change.Old.(*swarmpb.Service)
		after, _ := change.New.(*swarmpb.Service)
		if before != nil && after != nil && before.GetSpec().GetPriority() != after.GetSpec().GetPriority() {
			return p.All(view)
		}
	}
	return nil
}

// All names every task that asks others to give way.
func (Preemption) All(view *store.View) (ids []reconcile.ID) {
	for task := range view.Unplaced() {
		if asks(view.Placement(task.Id)) {
			ids = append(ids, reconcile.ID{Object: task.Id})
		}
	}
	return ids
}

// asks tells whether a task without a node waits for others to give way.
func asks(row *swarmpb.TaskPlacement) bool {
	return row.GetNodeId() == "" && len(row.GetPreempts()) > 0
}

// Reconcile stops those of the tasks named that live and are of lower priority, all in one part: less would be stopped for
// nothing. Who waits, and its priority and theirs, are guarded.
func (Preemption) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	waiting, row := view.Task(id.Object), view.Placement(id.Object)
	if waiting == nil || waiting.DesiredState >= stateShutdown || !asks(row) {
		return reconcile.Plan{}, nil
	}
	service := view.Service(waiting.ServiceId)
	if service == nil || service.Removing {
		return reconcile.Plan{}, nil
	}
	plan := reconcile.Plan{Guards: []*swarmpb.Guard{
		{Key: swarmpb.TaskKey(waiting.Id), Version: waiting.GetMeta().GetVersion()},
		{Key: swarmpb.TaskPlacementKey(waiting.Id), Version: row.Version},
		{Key: swarmpb.ServiceKey(service.Id), Version: service.GetMeta().GetVersion()},
	}}
	out := map[reconcile.ID]map[string]bool{}
	var order []reconcile.ID // slots, as they are named
	for i, victim := range victims(view, service, row) {
		if i == MaxVictims {
			plan.More = true
			break
		}
		at := reconcile.ID{Object: victim.ServiceId, Slot: victim.Slot}
		if out[at] == nil {
			out[at], order = map[string]bool{}, append(order, at)
		}
		out[at][victim.Id] = true
	}
	// One planner a service: the attempt of its new tasks is lifted once.
	slices.SortStableFunc(order, func(a, b reconcile.ID) int { return strings.Compare(a.Object, b.Object) })
	for len(order) > 0 {
		p := newPlanner(view, view.Service(order[0].Object), now)
		for len(order) > 0 && order[0].Object == p.service.Id {
			p.giveWay(readSlot(view, p.service, order[0].Slot, now), out[order[0]], waiting.Id)
			order = order[1:]
		}
		plan.Writes, plan.Guards = append(plan.Writes, p.plan.Writes...), append(plan.Guards, p.plan.Guards...)
	}
	if len(plan.Writes) == 0 {
		return reconcile.Plan{}, nil
	}
	return plan, nil
}

// victims are the tasks named in the row that hold something on the node and may be stopped for a task of the service: of
// lower priority, and not a container outside of services.
func victims(view *store.View, service *swarmpb.Service, row *swarmpb.TaskPlacement) (out []*swarmpb.Task) {
	for _, id := range row.Preempts {
		victim := view.Task(id)
		if victim == nil || victim.DesiredState >= stateShutdown || view.NodeID(id) != row.PreemptsOn || view.Observed(id).Ended() {
			continue
		}
		its := view.Service(victim.ServiceId)
		if its == nil || its.Removing || its.GetSpec().IsAttachment() || its.GetSpec().GetPriority() >= service.GetSpec().GetPriority() {
			continue
		}
		out = append(out, victim)
	}
	return out
}

// giveWay stops some tasks of a slot for another task. What else lives there has the slot from here on; else the newest of
// them has a successor of its own template. An heir that waits for its turn goes too, since nobody has said that it is, and
// one that would take over what is to become free. The new one claims what it needs beside what it replaces, so that it gets
// none of that either.
func (p *planner) giveWay(s *slot, out map[string]bool, to string) {
	live := s.live()
	p.guardSlot(s)
	var newest, stays *replica
	for _, r := range live {
		if out[r.task.Id] {
			newest = r
			p.desire(r, stateShutdown)
		}
	}
	for _, r := range live {
		switch {
		case out[r.task.Id]:
		case waitsForTurn(newest, r) || !r.task.Beside && (r.node == "" || r.node == newest.node):
			p.desire(r, stateShutdown)
		default:
			stays = r
		}
	}
	if stays != nil {
		return
	}
	progress := s.progressOf(p.service, newest.task.TemplateVersion)
	progress.GaveWayTo = to
	p.putSlot(progress)
	p.heir(s, newest, &swarmpb.Task{TemplateVersion: p.templateOf(newest), Beside: true, StartNotBefore: newest.task.StartNotBefore})
}
