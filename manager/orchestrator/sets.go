package orchestrator

import (
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// promoted tells whether the new set has all traffic, and had all its tasks up when it got it.
func promoted(update *swarmpb.UpdateStatus) bool {
	return update.Share >= swarmpb.WholeShare && update.Phase != phaseStarting
}

// judged tells whether the new set may fail the update: as long as the old one is whole. Where it goes back to a set that
// is there already, and where the old set stops, there is no other to turn to.
func judged(update *swarmpb.UpdateStatus) bool {
	switch update.GetPhase() {
	case phaseStarting, phaseWatching, phaseWaiting, phaseGrace:
		return true
	default:
		return false
	}
}

// returns tells whether the user goes back to the old set of an update of two sets: that is there already. What else the spec
// has become since, its number of replicas say, changes nothing about that.
func (r *rollout) returns() bool {
	return r.update.Sets() && !r.goal.reachedBy(r.update) && r.goal.template == r.update.StableTemplateVersion
}

// lastStep is the number of the step that has all traffic: after a canary's own ones.
func (r *rollout) lastStep() uint32 {
	if r.settings.strategy == canary && !r.goal.rollback {
		return uint32(len(r.settings.steps))
	}
	return 0
}

// lastOne tells whether the update is at the step that has all traffic. Its number alone does not tell: the steps are those
// of the spec as it is now, which may have fewer than when the step began.
func (r *rollout) lastOne() bool {
	return r.update.Step >= r.lastStep() && r.update.ReplicaShare >= swarmpb.WholeShare
}

// startStep begins a step: its tasks start. Traffic follows when they are up.
func (r *rollout) startStep(next *swarmpb.UpdateStatus, step uint32) {
	next.Step, next.ReplicaShare = step, swarmpb.WholeShare
	if step < r.lastStep() {
		next.ReplicaShare = r.settings.steps[step].GetShare()
	}
	next.Share = min(next.Share, next.ReplicaShare) // its user may have given other steps since, smaller ones
	r.setPhase(next, phaseStarting)
	r.announce(next)
}

// grace gives the new set all traffic, and leaves the old one for a while.
func (r *rollout) grace(next *swarmpb.UpdateStatus) {
	next.Share, next.ReplicaShare = swarmpb.WholeShare, swarmpb.WholeShare
	r.setPhase(next, phaseGrace)
	r.announce(next)
}

// endStable has the old set stop.
func (r *rollout) endStable(next *swarmpb.UpdateStatus) {
	next.StableEnds = true
	r.setPhase(next, phaseEnding)
	r.announce(next)
}

// advanceSets takes an update of two sets one step further, or ends it.
func (r *rollout) advanceSets() {
	switch r.update.Phase {
	case phaseEnding, phaseReturning:
		if r.othersStopped() {
			r.complete()
		}
		return
	}
	if r.failed() || r.metricFailed() {
		return
	}
	want := r.update.Replicas(replicas(r.service))
	end := time.Unix(0, r.update.PhaseSince)
	switch r.update.Phase {
	case phaseWatching:
		end = end.Add(r.watch())
	case phaseGrace:
		end = end.Add(r.settings.grace)
	}
	if r.now.Before(end) {
		r.wake(end)
		return
	}
	if r.update.Phase == phaseWaiting {
		r.waiting(want)
		return
	}
	if !r.setUp(want) {
		r.awaitSet(end)
		return
	}
	next := r.edit()
	switch r.update.Phase {
	case phaseStarting:
		r.started(next)
	case phaseWatching:
		r.watchedWell(next)
	case phaseGrace:
		r.endStable(next)
	default: // of a later version: from the beginning of the step
		r.startStep(next, r.update.Step)
	}
}

// watch is how long the step is watched.
func (r *rollout) watch() time.Duration {
	if step := r.update.Step; step < r.lastStep() {
		return max(0, r.settings.steps[step].GetWatch().AsDuration())
	}
	return r.settings.monitor
}

// started: all tasks of the step are up, and get their share.
func (r *rollout) started(next *swarmpb.UpdateStatus) {
	if r.goal.rollback {
		next.Share, next.StableEnds = swarmpb.WholeShare, true
		r.setPhase(next, phaseReturning)
		return
	}
	next.Share = r.update.ReplicaShare // of the tasks that are up, not of what the step's share has become since
	if r.update.Strategy == blueGreen {
		next.Share = 0
	}
	r.setPhase(next, phaseWatching)
	r.announce(next)
}

// watchedWell: nothing failed while the step was watched.
func (r *rollout) watchedWell(next *swarmpb.UpdateStatus) {
	step := r.update.Step
	switch {
	case r.update.Strategy == blueGreen, step < r.lastStep() && r.settings.steps[step].GetManual():
		r.setPhase(next, phaseWaiting)
		r.say("%s", r.waitingText(r.update.Replicas(replicas(r.service)), next.Share))
	case step < r.lastStep():
		r.startStep(next, step+1)
	case !r.lastOne():
		r.startStep(next, r.lastStep())
	default:
		r.grace(next)
	}
}

// waiting keeps the message of an update that waits for a person true.
func (r *rollout) waiting(want uint64) {
	up := uint64(0)
	for range r.upOfSet() {
		up++
	}
	text := r.waitingText(want, r.update.Share)
	if up < want {
		text = fmt.Sprintf("waiting for promote: %s has %d/%s up%s", r.version(), up, tasks(want), r.promoteHint())
	}
	r.say("%s", text)
}

func (r *rollout) waitingText(want uint64, share uint32) string {
	traffic := "no traffic"
	if share > 0 {
		traffic = percent(share) + " of the traffic"
	}
	return fmt.Sprintf("waiting for promote: %s has %d/%s up and %s%s", r.version(), want, tasks(want), traffic, r.promoteHint())
}

func (r *rollout) promoteHint() string {
	return fmt.Sprintf("; `swarmctl service promote %s`", r.service.GetSpec().GetName())
}

// announce says what an update does in the phase that it comes to.
func (r *rollout) announce(next *swarmpb.UpdateStatus) {
	verb := r.verb()
	where := ""
	if last := r.lastStep(); next.Strategy == canary && last > 0 {
		where = fmt.Sprintf("step %d of %d: ", min(next.Step, last)+1, last+1)
	}
	name := fmt.Sprintf("%s v%d", r.service.GetSpec().GetName(), next.Revision)
	if next.Revision == 0 {
		name = "the new version of " + r.service.GetSpec().GetName()
	}
	switch next.Phase {
	case phaseStarting:
		want := replicas(r.service) * uint64(next.ReplicaShare)
		next.Message = fmt.Sprintf("%s: %s%s of %s start beside the old ones", verb, where,
			tasks((want+swarmpb.WholeShare-1)/swarmpb.WholeShare), name)
	case phaseWatching:
		traffic := "no traffic"
		if next.Share > 0 {
			traffic = percent(next.Share) + " of the traffic"
		}
		next.Message = fmt.Sprintf("%s: %s%s is up with %s and watched for %s", verb, where, name, traffic, r.watch())
	case phaseGrace:
		next.Message = fmt.Sprintf("%s: %s has all traffic; the old tasks stay for %s", verb, name, r.settings.grace)
	case phaseEnding:
		next.Message = fmt.Sprintf("%s: %s has all traffic; the old tasks stop", verb, name)
	}
}

// upOfSet walks the slots whose task of the new set is up, with since when.
func (r *rollout) upOfSet() func(func(uint64, time.Time) bool) {
	return func(yield func(uint64, time.Time) bool) {
		for task := range r.view.TasksOf(r.service.Id) {
			if task.TemplateVersion != r.update.TemplateVersion || task.DesiredState != stateRunning {
				continue
			}
			if one := readReplica(r.view, task, r.now, nil); one.up() && !yield(task.Slot, one.upSince(r.now)) {
				return
			}
		}
	}
}

// setUp tells whether so many slots of the new set are up. It looks at the tasks only when there are enough of them.
func (r *rollout) setUp(want uint64) bool {
	if uint64(r.view.Up(r.service.Id, r.update.TemplateVersion)) < want {
		return false
	}
	up, last := uint64(0), uint64(0)
	for slot := range r.upOfSet() {
		if slot != last {
			up, last = up+1, slot
		}
	}
	return up >= want
}

// awaitSet waits for the tasks of the new set that are not up, since a time, but no longer than the deadline says.
func (r *rollout) awaitSet(since time.Time) {
	var waits *replica
	for task := range r.view.UnplacedOf(r.service.Id) {
		if task.TemplateVersion != r.update.TemplateVersion || task.DesiredState > stateRunning {
			continue
		}
		if one := readReplica(r.view, task, r.now, nil); one.refused {
			waits = &one
			break
		}
	}
	deadline := r.settings.deadline
	if at := time.Unix(0, max(since.UnixNano(), r.update.ProgressedAt)).Add(deadline); deadline > 0 && !r.now.Before(at) {
		for _, up := range r.upOfSet() {
			if up.After(since) {
				since = up
			}
		}
		if waits == nil {
			waits = r.notUp()
		}
	}
	if r.stalled(since, waits) {
		return
	}
	if text := r.refusal(waits); text != "" {
		r.say("%s: %s", r.verb(), text)
	}
}

// notUp is the first task of the new set that is not up, nil when there is none.
func (r *rollout) notUp() *replica {
	for task := range r.view.TasksOf(r.service.Id) {
		if task.TemplateVersion == r.update.TemplateVersion && task.DesiredState <= stateRunning {
			if one := readReplica(r.view, task, r.now, nil); !one.up() {
				return &one
			}
		}
	}
	return nil
}

// othersStopped tells whether nothing of the other set is to run or runs any more.
func (r *rollout) othersStopped() bool {
	for task := range r.view.TasksOf(r.service.Id) {
		if task.TemplateVersion == r.update.TemplateVersion {
			continue
		}
		one := readReplica(r.view, task, r.now, nil)
		if one.live() {
			return false
		}
		if !one.stopped() {
			if !one.until.IsZero() {
				r.wake(one.until)
			}
			return false
		}
	}
	return true
}

// metricFailed gives the verdict when a canary's metric is out of its bounds. It answers whether there was one.
func (r *rollout) metricFailed() bool {
	metric := r.view.ServiceMetric(r.service.Id)
	if r.update.Strategy != canary || r.goal.rollback || r.update.Share == 0 || metric.GetFailedSince() == 0 ||
		metric.GetUpdate() != r.update.StartedAt || r.settings.action == swarmpb.FailureAction_FAILURE_ACTION_CONTINUE {
		return false
	}
	cause := "its metric"
	if metric.Message != "" {
		cause += ": " + metric.Message
	} else {
		cause += fmt.Sprintf(": %g is out of its bounds", metric.Value)
	}
	r.fail(cause)
	return true
}

// judgeReadiness fails the slot of a new set's task that has not been ready for longer than the monitored time.
func (r *rollout) judgeReadiness(number uint64) {
	if !r.goal.reachedBy(r.update) || !active(r.update) || !r.update.Sets() || !judged(r.update) {
		return
	}
	s := readSlot(r.view, r.service, number, r.now)
	live := s.live()
	if len(live) == 0 {
		return
	}
	one := live[len(live)-1]
	if one.task.TemplateVersion != r.update.TemplateVersion || !one.runs() || one.up() {
		return
	}
	since := max(one.status.GetHealth().GetAt(), one.task.GetMeta().GetCreatedAt())
	if at := clamp(since, r.now).Add(r.settings.monitor); r.now.Before(at) {
		r.wake(at)
		return
	}
	progress := s.progressOf(r.service, r.update.TemplateVersion)
	if progress.FailedUpdate == r.update.StartedAt {
		return
	}
	progress.FailedUpdate = r.update.StartedAt
	r.guardSlot(s)
	r.putSlot(progress)
}
