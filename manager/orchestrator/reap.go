package orchestrator

import (
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
)

// reap deletes a slot's tasks that nobody needs to see any more: beyond the history of a slot in use, all that have
// stopped in one that is not, and what went down with a node that is no member any more.
func (p *planner) reap(s *slot) {
	inUse := !p.service.Removing && len(s.live()) > 0
	keep := history(p.view.Cluster())
	left := len(s.replicas)
	for i := range s.replicas {
		if at := s.replicas[i].until; !at.IsZero() && !p.service.Removing {
			p.wake(at) // then its successor may start, and it may go
		}
	}
	keepsRun := p.keepsRuns()
	for i := len(s.replicas) - 1; i >= 0 && len(p.plan.Writes) < reconcile.MaxWrites-1; i-- {
		r := &s.replicas[i]
		if p.reapable(r, inUse, &keep) && !(p.job && !p.service.Removing && keepsRun(r, inUse)) {
			p.deleteTask(r)
			left--
		}
	}
	if left == 0 && s.progress != nil {
		p.delete(swarmpb.SlotProgressKey(p.service.Id, s.number))
	}
}

// reapable judges one replica, newest first; keep is how many ended ones may still be kept.
func (p *planner) reapable(r *replica, inUse bool, keep *int) bool {
	switch {
	case p.service.Removing:
		return r.task.DesiredState >= stateRemove && r.gone()
	case r.live() || !r.until.IsZero():
		return false
	case !inUse:
		return r.state.Ended() || r.orphaned || r.node == ""
	case r.state.Ended():
		*keep--
		return *keep < 0
	default:
		return r.orphaned || r.node == ""
	}
}

// deleteTask deletes a task's rows. One without a node is guarded against getting one meanwhile.
func (p *planner) deleteTask(r *replica) {
	if r.node == "" {
		p.guard(swarmpb.TaskPlacementKey(r.task.Id), r.placement)
	}
	p.delete(swarmpb.TaskKey(r.task.Id))
}

// remove empties a service that its user removed: its tasks are told to go, the slots delete them as they stop, and
// with the last one goes the service.
func (p *planner) remove() {
	any := false
	for task := range p.view.TasksOf(p.service.Id) {
		any = true
		if task.DesiredState >= stateRemove {
			continue
		}
		if !p.room() {
			p.plan.More = true
			return
		}
		p.write(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{
			TaskId: task.Id, DesiredState: stateRemove, Draining: task.Draining}}})
	}
	if any {
		return
	}
	for progress := range p.view.SlotsOf(p.service.Id) {
		if !p.room() {
			p.plan.More = true
			return
		}
		p.delete(swarmpb.SlotProgressKey(p.service.Id, progress.Slot))
	}
	p.delete(swarmpb.ServiceProgressKey(p.service.Id))
	p.delete(swarmpb.ServiceKey(p.service.Id))
}
