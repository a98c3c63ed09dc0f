package orchestrator

import (
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// failures counts the slots that have failed in this update, and answers what the first one remembers.
func (r *rollout) failures() (count int, first *swarmpb.SlotProgress) {
	for progress := range r.view.SlotsOf(r.service.Id) {
		if progress.FailedUpdate == r.update.StartedAt && progress.TemplateVersion == r.goal.template {
			if count == 0 {
				first = progress
			}
			count++
		}
	}
	return count, first
}

// failed gives the verdict over the update if too many of its slots have failed. It answers whether there was one.
func (r *rollout) failed() bool {
	if r.settings.action == swarmpb.FailureAction_FAILURE_ACTION_CONTINUE {
		return false
	}
	count, first := r.failures()
	if count == 0 || float64(count) <= r.settings.maxFailures*float64(r.update.Replicas(r.size())) {
		return false
	}
	r.fail("failure or early termination of " + r.describeSlot(first))
	return true
}

// stalled gives the verdict when nothing has got further for as long as the deadline says; last is when something did,
// waits the task that is waited for. It answers whether there was a verdict.
func (r *rollout) stalled(last time.Time, waits *replica) bool {
	if r.settings.deadline == 0 || r.settings.action == swarmpb.FailureAction_FAILURE_ACTION_CONTINUE {
		return false
	}
	for _, at := range []int64{r.update.StartedAt, r.update.PhaseSince, r.update.ProgressedAt} {
		if t := time.Unix(0, at); t.After(last) {
			last = t
		}
	}
	if at := last.Add(r.settings.deadline); r.now.Before(at) {
		r.wake(at)
		return false
	}
	cause := fmt.Sprintf("no progress for %s", r.settings.deadline)
	if waits != nil {
		cause += ", waiting for " + r.describe(waits.task.Id)
	}
	r.fail(cause)
	return true
}

// fail pauses the update or turns it back. A rollback that fails pauses: there is nothing left to go back to. A set that
// has failed loses its traffic in the same write.
func (r *rollout) fail(cause string) {
	if r.goal.rollback {
		next := r.edit()
		next.State, next.PausedAtVersion = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED, r.service.GetMeta().GetVersion()
		next.Message = "rollback paused due to " + cause
		r.plan.More = true
		return
	}
	if r.settings.action == swarmpb.FailureAction_FAILURE_ACTION_ROLLBACK {
		if previous := r.previous(); previous != 0 {
			r.turnBack(previous, r.goal.template)
			r.edit().Message = "update rolled back due to " + cause
			return
		}
	}
	next := r.edit()
	next.State, next.PausedAtVersion = swarmpb.UpdateState_UPDATE_STATE_PAUSED, r.service.GetMeta().GetVersion()
	next.Message = "update paused due to " + cause
	if r.update.Sets() {
		next.Share = 0
	}
	r.plan.More = true
}

// turnBack is the beginning of the way back to a template. Of two sets, the one that is there already has all traffic at
// once when it is whole, or when the other one was only tried; else it is filled up first.
func (r *rollout) turnBack(template, failed uint64) {
	now := r.now.UnixNano()
	next := &swarmpb.UpdateStatus{
		State: swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED, StartedAt: now, PhaseSince: now, ProgressedAt: now,
		TemplateVersion: template, FailedTemplateVersion: failed, StableTemplateVersion: r.update.GetTemplateVersion(),
		Strategy: settingsOf(r.service, true).strategy, Phase: phasePreparing,
		Revision: r.service.Revision, CommandSequence: r.service.GetCommand().GetSequence(),
	}
	if r.update.Sets() {
		next.Strategy, next.ReplicaShare = r.update.Strategy, swarmpb.WholeShare
		switch {
		case !r.update.StableEnds && r.whole(template):
			next.Phase, next.Share, next.StableEnds = phaseReturning, swarmpb.WholeShare, true
		case promoted(r.update):
			next.Phase = phaseStarting
		default:
			next.Phase, next.Share = phaseStarting, swarmpb.WholeShare
		}
	}
	r.next = next
	r.plan.More = true
}

// whole tells whether as many slots as the spec asks for are of the template.
func (r *rollout) whole(template uint64) bool {
	have := uint64(0)
	for _, of := range r.members() {
		if of == template {
			have++
		}
	}
	return have >= replicas(r.service)
}

// describeSlot names the task of a slot that has failed: the one whose end was counted, or the one that takes no
// connections.
func (r *rollout) describeSlot(progress *swarmpb.SlotProgress) string {
	s := readSlot(r.view, r.service, progress.Slot, r.now)
	for _, live := range s.live() {
		if unready(live.status) {
			return r.describe(live.task.Id)
		}
	}
	return r.describe(progress.EndedTask)
}

// describe names a task as users know it, with its ID and what became of it as far as its rows are still there.
func (r *rollout) describe(id string) string {
	rows := r.view.TaskRows(id)
	if rows.Task == nil {
		return "task " + id
	}
	text := fmt.Sprintf("task %s (%s)", swarmpb.TaskName(r.service.GetSpec().GetName(), rows.Task.Slot, rows.Task.NodeId), id)
	switch {
	case rows.Status.GetError() != "":
		text += ": " + rows.Status.GetError()
	case rows.Placement.GetNodeId() == "" && rows.Placement.GetMessage() != "":
		text += ": " + rows.Placement.GetMessage()
	case unready(rows.Status):
		text += ": not ready"
		if output := rows.Status.GetHealth().GetOutput(); output != "" {
			text += ": " + output
		}
	case !rows.Observed.Ended() && rows.Observed < stateRunning && rows.Status.GetHealth().GetOutput() != "":
		text += ": not ready yet: " + rows.Status.GetHealth().GetOutput()
	}
	return text
}

// previous is the template to go back to: that of the old set, or of most slots when the update began, whatever the spec
// before said: an update to that one may have failed, or never have got far. Where no slot was of another template, it is
// the previous spec's or, when that spec differed in other things alone, the latest before the goal's that anything still
// refers to. 0 when there is none.
func (r *rollout) previous() uint64 {
	if stable := r.update.StableTemplateVersion; stable != r.goal.template && r.view.Template(r.service.Id, stable) != nil {
		return stable
	}
	version := r.service.PreviousTemplateVersion
	if version != 0 && version != r.goal.template && r.view.Template(r.service.Id, version) != nil {
		return version
	}
	version = 0
	for template := range r.view.TemplatesOf(r.service.Id) {
		if template.Version < r.goal.template {
			version = max(version, template.Version)
		}
	}
	return version
}
