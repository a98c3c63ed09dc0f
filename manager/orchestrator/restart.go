package orchestrator

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// policy is a template's restart policy with its defaults.
type policy struct {
	spec *swarmpb.RestartPolicy
	// job: what has completed is done, whatever the condition.
	job bool
}

func (p policy) condition() swarmpb.RestartCondition {
	if c := p.spec.GetCondition(); c != swarmpb.RestartCondition_RESTART_CONDITION_UNSPECIFIED {
		return c
	}
	return swarmpb.RestartCondition_RESTART_CONDITION_ANY
}

// restarts tells whether a task that ended in a state is to be restarted, attempts aside.
func (p policy) restarts(state swarmpb.TaskState) bool {
	switch p.condition() {
	case swarmpb.RestartCondition_RESTART_CONDITION_NONE:
		return false
	case swarmpb.RestartCondition_RESTART_CONDITION_ON_FAILURE:
		return state != stateComplete
	default:
		return state != stateComplete || !p.job
	}
}

// delay is the pause before the restart that follows so many failures in a row: the user's own to the letter, or
// none at first and then BackoffMin, doubling to BackoffMax.
func (p policy) delay(failures uint32) time.Duration {
	switch {
	case p.spec.GetDelay() != nil:
		return max(0, p.spec.GetDelay().AsDuration())
	case failures == 0:
		return 0
	case failures > 16:
		return BackoffMax
	default:
		return min(BackoffMax, BackoffMin<<(failures-1))
	}
}

// restart follows a task that ended though it was meant to run: with a successor, now or later, or, when the policy
// says no, with nothing. The ended task then keeps its desired state, which keeps its slot filled.
func (p *planner) restart(s *slot, r *replica) {
	pol := p.policy(r.task.TemplateVersion)
	progress := s.progressOf(p.service, r.task.TemplateVersion)
	counted := progress.EndedTask == r.task.Id
	if !pol.restarts(r.state) {
		if !counted && p.watched(r) {
			progress.EndedTask, progress.FailedUpdate = r.task.Id, p.progress.GetUpdate().GetStartedAt()
			p.guardTask(r)
			p.putSlot(progress)
		}
		return
	}
	if !counted {
		progress = p.count(s, r)
	}
	wait := progress.NotBefore > p.now.UnixNano()
	// A task that got as far as READY is followed at once by one that waits there. One that was turned away would
	// only be turned away again: its successor is made when the pause is over.
	if progress.GivenUp || wait && r.state == stateRejected {
		if !counted {
			p.guardTask(r)
			p.putSlot(progress)
		}
		if !progress.GivenUp {
			p.wake(time.Unix(0, progress.NotBefore))
		}
		return
	}
	if !counted {
		p.putSlot(progress)
	}
	p.desire(r, stateShutdown)
	p.heir(s, r, &swarmpb.Task{TemplateVersion: p.templateOf(r), StartNotBefore: progress.NotBefore,
		SameNode: r.node != "" && p.service.GetSpec().GetUpdate().StrategyOr() == inPlace})
}

// count enters a task's end into the slot's memory: the backoff, the attempts, and the update that it fails.
func (p *planner) count(s *slot, r *replica) *swarmpb.SlotProgress {
	now := p.now.UnixNano()
	pol := p.policy(r.task.TemplateVersion)
	progress := s.progressOf(p.service, r.task.TemplateVersion)
	progress.EndedTask, progress.NotBefore = r.task.Id, 0
	if r.ran() >= StableWindow {
		progress.Failures = 0
	}
	delay := pol.delay(progress.Failures)
	progress.Failures = min(progress.Failures+1, 1<<30)

	window := pol.spec.GetWindow().AsDuration()
	if progress.WindowStartedAt == 0 || window > 0 && now-progress.WindowStartedAt > int64(window) {
		progress.Restarts, progress.WindowStartedAt = 0, now
	}
	if most := pol.spec.GetMaxAttempts(); most > 0 && progress.Restarts >= most {
		progress.GivenUp = true
	} else {
		progress.Restarts++
		if delay > 0 {
			progress.NotBefore = p.now.Add(delay).UnixNano()
		}
	}
	if p.watched(r) {
		progress.FailedUpdate = p.progress.GetUpdate().GetStartedAt()
	}
	return progress
}

// watched tells whether a task's end is a failure of the update under way: the update made it, and it ended within the
// monitored time of its being up, or after its probes had found it unwell. A new set is watched until the update has
// completed.
func (p *planner) watched(r *replica) bool {
	update := p.progress.GetUpdate()
	if !active(update) || r.task.TemplateVersion != update.TemplateVersion {
		return false
	}
	if r.state == stateComplete && !p.policy(r.task.TemplateVersion).restarts(r.state) {
		return false
	}
	if update.Sets() {
		return judged(update)
	}
	if r.task.GetMeta().GetCreatedAt() < update.StartedAt {
		return false
	}
	after, up := r.upAfter()
	return !up || r.ran()-after <= settingsOf(p.service, rollsBack(update)).monitor
}
