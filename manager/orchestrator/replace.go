package orchestrator

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// replace begins a replacement in a slot: what lives there gives way to a task of the template. What is up stays
// up until the order says that it goes; everything else goes at once.
func (p *planner) replace(s *slot, template uint64, order swarmpb.UpdateOrder) {
	live := s.live()
	p.guardSlot(s)
	var base *replica
	for _, r := range live {
		if r.runs() {
			base = r
		}
	}
	for _, r := range live {
		if r != base {
			p.desire(r, stateShutdown)
		}
	}
	if base == nil {
		p.heir(s, live[len(live)-1], template, 0)
		return
	}
	progress := s.progressOf(p.service, template)
	if s.progress != nil {
		progress = swarmpb.Clone(s.progress)
	}
	p.putSlot(progress)
	heir := &swarmpb.Task{Slot: s.number, TemplateVersion: template, DesiredState: stateReady, Replaces: base.task.Id}
	if order == swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST {
		heir.DesiredState, heir.Beside = stateRunning, true
	}
	p.create(heir)
}

// heir makes the task that follows old, which does not run or is told to stop in the same plan. It may start when
// the slot is clear and its time has come.
func (p *planner) heir(s *slot, old *replica, template uint64, notBefore int64) {
	p.guardTask(old)
	desired := stateRunning
	if notBefore > p.now.UnixNano() {
		desired = stateReady
	} else {
		notBefore = 0
	}
	if !s.clear() && !p.neverStarted(s) {
		desired = stateReady
	}
	p.create(&swarmpb.Task{Slot: s.number, TemplateVersion: template, DesiredState: desired,
		Replaces: old.task.Id, StartNotBefore: notBefore})
}

// neverStarted tells whether nothing in the slot can be running: each replica has stopped or has no node. The
// guards on the live ones' placement keep it true.
func (p *planner) neverStarted(s *slot) bool {
	for i := range s.replicas {
		if r := &s.replicas[i]; !r.stopped() && r.node != "" {
			return false
		}
	}
	for i := range s.replicas {
		if r := &s.replicas[i]; !r.stopped() {
			p.guard(swarmpb.TaskPlacementKey(r.task.Id), r.placement)
		}
	}
	return true
}

// step carries on what is under way in a slot.
func (p *planner) step(s *slot) {
	live := s.live()
	if len(live) == 0 {
		return
	}
	p.guardSlot(s)
	heir := live[len(live)-1]
	var base *replica
	for _, r := range live[:len(live)-1] {
		if r.gone() || base != nil {
			p.desire(r, stateShutdown)
		} else {
			base = r
		}
	}
	if base == nil {
		p.alone(s, heir)
		return
	}
	p.pair(s, base, heir)
}

// pair carries on a replacement while the old task still has the slot.
func (p *planner) pair(s *slot, base, heir *replica) {
	switch {
	case heir.state.Ended():
		p.putSlot(p.count(s, heir))
		p.desire(heir, stateShutdown)
	case heir.lost:
		p.desire(heir, stateShutdown)
	case heir.refused && base.evicted: // a drain empties the node, in either order
		p.desire(base, stateShutdown)
	case heir.task.DesiredState == stateRunning:
		if heir.state == stateRunning {
			p.desire(base, stateShutdown)
		}
	case heir.state >= stateReady:
		p.desire(base, stateShutdown)
	}
}

// alone carries on the one task that has the slot.
func (p *planner) alone(s *slot, r *replica) {
	task := r.task
	switch {
	case r.state.Ended():
		p.restart(s, r)
	case r.lost:
		// What became of it is not known: it may well be running. Under the condition none it is not run again.
		if p.policy(task.TemplateVersion).condition() != swarmpb.RestartCondition_RESTART_CONDITION_NONE {
			p.desire(r, stateShutdown)
			p.heir(s, r, p.templateOf(r), task.StartNotBefore)
		}
	case r.evicted:
		p.evict(s, r)
	case task.DesiredState < stateRunning && s.clear(r):
		if at := time.Unix(0, task.StartNotBefore); p.now.Before(at) {
			p.wake(at)
		} else {
			p.desire(r, stateRunning)
		}
	case r.state == stateRunning && forgettable(s.progress):
		p.delete(swarmpb.SlotProgressKey(p.service.Id, s.number))
	}
}

// forgettable tells whether a progress row remembers nothing: a replacement has touched it, and is done.
func forgettable(progress *swarmpb.SlotProgress) bool {
	return progress != nil && progress.EndedTask == "" && progress.Failures == 0 && progress.Restarts == 0
}

// evict moves a task off a node that is drained, after the pause that a failed attempt to do so has earned.
func (p *planner) evict(s *slot, r *replica) {
	progress := s.progressOf(p.service, r.task.TemplateVersion)
	if at := time.Unix(0, progress.NotBefore); p.now.Before(at) {
		p.wake(at)
		return
	}
	p.replace(s, p.templateOf(r), p.service.GetSpec().GetUpdate().GetOrder())
}

// templateOf is the template that a task's successor is made from when nothing but the task is at fault: its own,
// so that a rollout alone decides when a slot moves on.
func (p *planner) templateOf(r *replica) uint64 {
	if p.view.Template(p.service.Id, r.task.TemplateVersion) != nil {
		return r.task.TemplateVersion
	}
	return p.template()
}
