package orchestrator

import (
	"cmp"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// obey does what the user has told the rollout since it last looked, once. It answers whether there was anything. What
// the state does not allow, or what is about another template, is void; that too is noted.
func (r *rollout) obey() bool {
	command := r.service.GetCommand()
	if r.update == nil || command.GetSequence() <= r.update.CommandSequence || !r.goal.reachedBy(r.update) {
		return false
	}
	next := r.edit()
	next.CommandSequence = command.Sequence
	if command.TemplateVersion == r.update.TemplateVersion && r.update.Underway() {
		author := cmp.Or(command.Author, "its user")
		switch command.Action {
		case swarmpb.RolloutAction_ROLLOUT_ACTION_PAUSE:
			r.pause(author)
		case swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME:
			r.resume()
		case swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE:
			r.promote(false)
		case swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE_FULLY:
			r.promote(true)
		}
	}
	if next := r.next; paused(next) && next.PausedAtVersion != 0 {
		next.PausedAtVersion = r.service.GetMeta().GetVersion() // a command is no update of the service
	}
	r.plan.More = true
	return true
}

// pause stops the update where it is. While a recreate stops the old tasks there is nothing to be had from it but a
// service that is down: there it is void.
func (r *rollout) pause(author string) {
	if !active(r.update) || r.update.Strategy == recreate && r.update.Phase == phaseEnding {
		return
	}
	next := r.edit()
	next.State, next.PausedAtVersion = swarmpb.UpdateState_UPDATE_STATE_PAUSED, 0
	what := "update"
	if r.goal.rollback {
		next.State, what = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED, "rollback"
	}
	next.Message = what + " paused by " + author
}

// resume goes on where the update was paused. One that had failed tries its step again, with its failures forgotten.
func (r *rollout) resume() {
	if !paused(r.update) {
		return
	}
	next, now := r.edit(), r.now.UnixNano()
	failed := r.update.PausedAtVersion != 0
	next.State, next.Message = swarmpb.UpdateState_UPDATE_STATE_UPDATING, "update in progress"
	if r.goal.rollback {
		next.State, next.Message = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED, "rollback in progress"
	}
	next.PausedAtVersion, next.PhaseSince, next.ProgressedAt = 0, now, now
	if r.update.Sets() && !r.goal.rollback {
		defer r.announce(next)
	}
	if !failed {
		return
	}
	next.StartedAt, next.SettledSlot = now, 0
	if r.update.Sets() {
		next.Phase = phaseStarting
	} else {
		next.Phase = phasePreparing
	}
}

// promote goes on to the next step of an update of two sets, or to its end without further steps. All traffic goes to a set
// only when all of it is up.
func (r *rollout) promote(fully bool) {
	if !active(r.update) || !r.update.Sets() || r.goal.rollback {
		return
	}
	next, last := r.edit(), r.lastStep()
	switch phase := r.update.Phase; {
	case phase == phaseGrace:
		r.endStable(next)
	case phase == phaseStarting && !(fully && r.update.Strategy == canary):
	case phase == phaseStarting, phase == phaseWatching, phase == phaseWaiting:
		switch {
		case r.update.Strategy == blueGreen || r.lastOne():
			if phase != phaseStarting && r.setUp(r.update.Replicas(replicas(r.service))) {
				r.grace(next)
			}
		case fully:
			r.startStep(next, last)
		default:
			r.startStep(next, min(r.update.Step+1, last))
		}
	}
}
