package orchestrator

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// replace begins a replacement in a slot: what lives there gives way to like, a task of which the template and the ways
// to replace are set. What is up stays up until it is its turn; everything else goes at once.
func (p *planner) replace(s *slot, like *swarmpb.Task) {
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
		like.Beside = false
		p.heir(s, live[len(live)-1], like)
		return
	}
	progress := s.progressOf(p.service, like.TemplateVersion)
	if s.progress != nil {
		progress = swarmpb.Clone(s.progress)
	}
	p.putSlot(progress)
	like.Slot, like.DesiredState, like.Replaces = s.number, stateReady, base.task.Id
	like.NodeId, like.Run = base.task.NodeId, base.task.Run
	p.create(like)
}

// heir makes the task that follows old, which does not run or is told to stop in the same plan. It may start when
// the slot is clear, its time has come, and a rollout does not hold it back.
func (p *planner) heir(s *slot, old *replica, like *swarmpb.Task) {
	p.guardTask(old)
	like.Slot, like.Replaces, like.DesiredState = s.number, old.task.Id, p.started()
	if like.Run == 0 {
		like.NodeId, like.Run = old.task.NodeId, old.task.Run
	}
	if like.StartNotBefore > p.now.UnixNano() {
		like.DesiredState = stateReady
	} else {
		like.StartNotBefore = 0
	}
	if p.heldBack(like.TemplateVersion) || !s.clear() && !p.neverStarted(s) {
		like.DesiredState = stateReady
	}
	p.create(like)
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
	if p.job && p.over(s, live) {
		return
	}
	heir, older := live[len(live)-1], live[:len(live)-1]
	var base *replica
	for _, r := range older {
		if !r.gone() && base == nil {
			base = r
		}
	}
	if base == nil && len(older) > 0 && p.outOfTurn(older[len(older)-1], heir) {
		p.desire(heir, stateShutdown)
		base, older = older[len(older)-1], older[:len(older)-1]
		heir = base
	}
	for _, r := range older {
		if r != base {
			p.desire(r, stateShutdown)
		}
	}
	if base == nil || base == heir {
		p.alone(s, heir)
		return
	}
	p.pair(s, base, heir)
}

// waitsForTurn tells whether the heir in a slot is of another kind than the old task, so that the rollout alone says
// when it is its turn.
func waitsForTurn(base, heir *replica) bool {
	return heir.task.DesiredState < stateRunning && heir.task.TemplateVersion != base.task.TemplateVersion
}

// outOfTurn tells whether the old task, which has ended by itself or is lost, is to be followed by one of its own kind
// rather than by the heir that waits for its turn: no update goes there any more, the heir itself is of no use, or
// all old tasks are to have stopped first.
func (p *planner) outOfTurn(base, heir *replica) bool {
	update := p.progress.GetUpdate()
	return waitsForTurn(base, heir) && (!active(update) || update.TemplateVersion != heir.task.TemplateVersion ||
		heir.state.Ended() || heir.lost || update.Strategy == recreate && update.Phase == phasePreparing)
}

// heldBack tells whether no task of the template may start yet: a recreate has not stopped all others.
func (p *planner) heldBack(template uint64) bool {
	update := p.progress.GetUpdate()
	return active(update) && update.Strategy == recreate && update.TemplateVersion == template &&
		(update.Phase == phasePreparing || update.Phase == phaseEnding)
}

// pair carries on a replacement while the old task still has the slot.
func (p *planner) pair(s *slot, base, heir *replica) {
	switch {
	case heir.state.Ended():
		p.putSlot(p.count(s, heir))
		p.desire(heir, stateShutdown)
	case heir.lost:
		p.desire(heir, stateShutdown)
	case waitsForTurn(base, heir):
		if base.evicted { // the drain goes first, and moves the task as it is
			p.desire(heir, stateShutdown)
		}
	case heir.refused && base.evicted: // a drain empties the node, in either order
		p.desire(base, stateShutdown)
	case heir.refused && heir.task.Move == moveBalance: // no node is better any more
		p.desire(heir, stateShutdown)
	case heir.evicted && heir.task.DesiredState < stateRunning: // it would only move again
		p.desire(heir, stateShutdown)
	case heir.task.DesiredState.Starts():
		if heir.up() {
			p.desire(base, stateShutdown)
		}
	case heir.state >= stateReady && heir.task.Beside:
		p.desire(heir, p.started())
	case heir.state >= stateReady:
		p.desire(base, stateShutdown)
	}
}

// alone carries on the one task that has the slot.
func (p *planner) alone(s *slot, r *replica) {
	task := r.task
	switch {
	case task.NodeId != "" && p.view.Node(task.NodeId) == nil:
		p.desire(r, stateShutdown) // what it was for is gone
	case r.state.Ended():
		p.restart(s, r)
	case r.lost:
		// What became of it is not known: it may well be running. Under the condition none it is not run again.
		if p.policy(task.TemplateVersion).condition() != swarmpb.RestartCondition_RESTART_CONDITION_NONE {
			p.desire(r, stateShutdown)
			p.heir(s, r, &swarmpb.Task{TemplateVersion: p.templateOf(r), StartNotBefore: task.StartNotBefore})
		}
	case r.evicted: // Moves has it elsewhere
	case task.DesiredState < stateRunning && s.clear(r) && !p.heldBack(task.TemplateVersion):
		if at := time.Unix(0, task.StartNotBefore); p.now.Before(at) {
			p.wake(at)
		} else {
			p.desire(r, p.started())
		}
	case r.state == stateRunning && p.forgettable(s.progress):
		p.delete(swarmpb.SlotProgressKey(p.service.Id, s.number))
	}
}

// forgettable tells whether a progress row remembers nothing: a replacement has touched it, and is done.
func (p *planner) forgettable(progress *swarmpb.SlotProgress) bool {
	return progress != nil && progress.EndedTask == "" && progress.Failures == 0 && progress.Restarts == 0 &&
		(progress.FailedUpdate == 0 || progress.FailedUpdate != p.progress.GetUpdate().GetStartedAt())
}

// templateOf is the template that a task's successor is made from when nothing but the task is at fault: its own,
// so that a rollout alone decides when a slot moves on.
func (p *planner) templateOf(r *replica) uint64 {
	if p.view.Template(p.service.Id, r.task.TemplateVersion) != nil {
		return r.task.TemplateVersion
	}
	return p.template()
}
