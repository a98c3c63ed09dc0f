package orchestrator

import (
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// Rollout is the reconciler that moves services from one template to another. It begins replacements, as many at a
// time as the update allows, and judges them; Replicated carries each of them along.
type Rollout struct{}

// Name is rollout.
func (Rollout) Name() string { return "rollout" }

// Affects names the service when its spec changes and, while it is being updated, when a slot has got further.
func (Rollout) Affects(view *store.View, change store.Change) []reconcile.ID {
	service := ""
	switch change.Table {
	case swarmpb.Table_TABLE_SERVICE:
		if change.New == nil {
			return nil
		}
		return []reconcile.ID{{Object: change.Key.ID}}
	case swarmpb.Table_TABLE_SLOT_PROGRESS:
		service = change.Key.ID
	case swarmpb.Table_TABLE_TASK:
		before, _ := change.Old.(*swarmpb.Task)
		after, _ := change.New.(*swarmpb.Task)
		if before != nil && (after == nil || before.DesiredState != after.DesiredState && after.DesiredState > stateRunning) {
			service = before.ServiceId
		}
	case swarmpb.Table_TABLE_TASK_STATUS:
		status, ok := change.New.(*swarmpb.TaskStatus)
		if ok && status.State >= stateRunning {
			service = view.Task(status.TaskId).GetServiceId()
		}
	}
	if service == "" || !active(view.ServiceProgress(service).GetUpdate()) {
		return nil
	}
	return []reconcile.ID{{Object: service}}
}

// All names every service.
func (Rollout) All(view *store.View) []reconcile.ID {
	var ids []reconcile.ID
	for service := range view.Services() {
		ids = append(ids, reconcile.ID{Object: service.Id})
	}
	return ids
}

// Reconcile plans the next step of one service's update.
func (Rollout) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	service := view.Service(id.Object)
	if service == nil || service.Removing || !replicated(service) {
		return reconcile.Plan{}, nil
	}
	r := &rollout{planner: newPlanner(view, service, now)}
	r.update = r.progress.GetUpdate()
	r.goal = goalOf(view, service, r.update)
	r.settings = settingsOf(service, r.goal.rollback)
	switch {
	case r.goal.reachedBy(r.update) && active(r.update):
		r.advance()
	case !r.goal.reachedBy(r.update) || finished(r.update) || r.resumed():
		r.begin()
	}
	return r.finish(), nil
}

// rollout is one step of one service's update.
type rollout struct {
	*planner
	update   *swarmpb.UpdateStatus
	goal     goal
	settings settings
}

// resumed tells whether the update was paused and the user has updated the service since, be it to the same spec.
func (r *rollout) resumed() bool {
	return paused(r.update) && r.service.GetMeta().GetVersion() > r.update.PausedAtVersion
}

// begin starts an update when a slot is of another template, or when one that is paused or goes somewhere else is to
// be superseded.
// Replacements of that one which have not started yet are called off first, so that no slot is down for its sake.
func (r *rollout) begin() {
	unfinished := r.update != nil && !finished(r.update)
	if !unfinished && !r.strays() {
		return
	}
	dirty := false
	for s := range slots(r.view, r.service, 0, r.now) {
		live := s.live()
		if len(live) == 0 || live[len(live)-1].task.TemplateVersion == r.goal.template {
			continue
		}
		dirty = true
		if !r.room() {
			r.plan.More = true
			return
		}
		for i := len(live) - 1; i > 0 && live[0].runs() && !live[i].runs(); i-- {
			if i == len(live)-1 {
				r.guardSlot(s)
			}
			r.desire(live[i], stateShutdown)
		}
	}
	if !dirty && !unfinished {
		return
	}
	state, message := swarmpb.UpdateState_UPDATE_STATE_UPDATING, "update in progress"
	if r.goal.rollback {
		state, message = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED, "manually requested rollback"
		if r.goal.failed != 0 {
			message = "rollback in progress"
		}
	}
	r.put(&swarmpb.UpdateStatus{State: state, Message: message, StartedAt: r.now.UnixNano(),
		TemplateVersion: r.goal.template, FailedTemplateVersion: r.goal.failed})
	r.plan.More = true
}

// strays tells cheaply whether any task may be of another template than the goal's.
func (r *rollout) strays() bool {
	for template := range r.view.TemplatesOf(r.service.Id) {
		if template.Version == r.goal.template {
			continue
		}
		for _, n := range r.view.Counts(r.service.Id, template.Version) {
			if n > 0 {
				return true
			}
		}
	}
	return false
}

// advance takes the update as far as its budget allows, or ends it.
func (r *rollout) advance() {
	if failures, task := r.failures(); r.tooMany(failures) && r.settings.action != swarmpb.FailureAction_FAILURE_ACTION_CONTINUE {
		r.fail(task)
		return
	}
	w := r.survey(r.update.SettledSlot)
	if w.open == 0 && len(w.dirty) == 0 {
		// What is below the mark may have changed since: the end is judged by the whole.
		if r.update.SettledSlot > 0 {
			w = r.survey(0)
		}
		if w.open == 0 && len(w.dirty) == 0 {
			r.complete()
			return
		}
	}
	r.spend(w)
	if mark := max(w.settled, r.update.SettledSlot); mark >= r.update.SettledSlot+settledStep && r.room() {
		next := swarmpb.Clone(r.update)
		next.SettledSlot = mark
		r.put(next)
	}
}

// settledStep is how far the mark of settled slots must have moved to be worth a write.
const settledStep = 64

// spend begins replacements for what is left of the budget.
func (r *rollout) spend(w survey) {
	budget := len(w.dirty)
	if r.settings.parallelism > 0 {
		budget = int(min(uint64(budget), r.settings.parallelism-min(r.settings.parallelism, uint64(w.begun))))
	}
	for _, s := range w.dirty[:budget] {
		if !r.room() {
			r.plan.More = true
			return
		}
		r.turn(s)
	}
	if w.more && budget == len(w.dirty) {
		r.plan.More = true
	}
}

// turn begins one slot's replacement. A slot in which a task of the goal still runs only loses the others.
func (r *rollout) turn(s *slot) {
	live := s.live()
	for _, keep := range live {
		if keep.task.TemplateVersion != r.goal.template || !keep.runs() {
			continue
		}
		r.guardSlot(s)
		for _, other := range live {
			if other != keep {
				r.desire(other, stateShutdown)
			}
		}
		return
	}
	if s.progress != nil && s.progress.FailedUpdate != r.update.StartedAt {
		// What it remembers is of other tasks, even if they were of this template.
		s.progress = &swarmpb.SlotProgress{
			ServiceId: r.service.Id, Slot: s.number, TemplateVersion: r.goal.template, Meta: s.progress.Meta}
		r.putSlot(s.progress)
	}
	r.replace(s, r.goal.template, r.settings.order)
}

// survey is what the slots from a mark on tell.
type survey struct {
	// dirty are the first slots that can be begun, as many as can be of use.
	dirty []*slot
	// begun is how many slots hold a part of the budget; open how many are not done with.
	begun, open int
	// settled: every slot up to here is done with.
	settled uint64
	// more: the survey ended early, there may be more dirty slots.
	more bool
}

// survey looks at the slots above a mark until it has found more dirty ones than can be begun.
func (r *rollout) survey(mark uint64) survey {
	w := survey{settled: mark}
	most := reconcile.MaxWrites
	if p := r.settings.parallelism; p > 0 {
		most = int(min(uint64(most), p))
	}
	unbroken := true
	for s := range slots(r.view, r.service, mark, r.now) {
		dirty, begun, open := r.judge(s)
		if dirty {
			if len(w.dirty) == most {
				w.more = true
				return w
			}
			w.dirty = append(w.dirty, s)
		}
		if begun {
			w.begun++
		}
		if open {
			w.open++
		}
		if unbroken = unbroken && !dirty && !begun && !open; unbroken {
			w.settled = s.number
		}
	}
	return w
}

// judge tells of a slot whether it can be begun, whether it holds a part of the budget, and whether the update has
// still to wait for it.
func (r *rollout) judge(s *slot) (dirty, begun, open bool) {
	live := s.live()
	if len(live) == 0 {
		return false, false, false
	}
	heir := live[len(live)-1]
	mine := s.progress.GetTemplateVersion() == r.goal.template
	failed := mine && s.progress.GetFailedUpdate() == r.update.StartedAt
	switch {
	case heir.task.TemplateVersion != r.goal.template:
		if failed && s.progress.GetGivenUp() {
			return false, false, false
		}
		if at := time.Unix(0, s.progress.GetNotBefore()); failed && r.now.Before(at) {
			r.wake(at)
			return false, false, true
		}
		return true, false, false
	case len(live) > 1:
		return false, true, true
	case failed, heir.task.Replaces == "", heir.task.GetMeta().GetCreatedAt() < r.update.StartedAt:
		return false, false, false
	case heir.state.Ended():
		over := mine && s.progress.GetGivenUp() || !r.policy(heir.task.TemplateVersion).restarts(heir.state)
		return false, !over, !over
	case heir.state != stateRunning || heir.task.DesiredState != stateRunning:
		return false, true, true
	}
	since := heir.runningSince(r.now)
	free := since.Add(max(r.settings.monitor, r.settings.delay))
	done := since.Add(r.settings.monitor)
	for _, at := range []time.Time{done, free} {
		if r.now.Before(at) {
			r.wake(at)
		}
	}
	return false, r.now.Before(free), r.now.Before(done)
}

// failures counts the slots whose task of this update ended while it was watched, and names one of those.
func (r *rollout) failures() (count int, task string) {
	for progress := range r.view.SlotsOf(r.service.Id) {
		if progress.FailedUpdate == r.update.StartedAt && progress.TemplateVersion == r.goal.template {
			if count == 0 {
				task = progress.EndedTask
			}
			count++
		}
	}
	return count, task
}

// tooMany tells whether so many failed slots are more than the allowed share of all.
func (r *rollout) tooMany(failures int) bool {
	return failures > 0 && float64(failures) > r.settings.maxFailures*float64(replicas(r.service))
}

// fail pauses the update or turns it back. A rollback that fails pauses: there is nothing left to go back to.
func (r *rollout) fail(task string) {
	next := swarmpb.Clone(r.update)
	next.PausedAtVersion = r.service.GetMeta().GetVersion()
	if r.goal.rollback {
		next.State = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED
		next.Message = fmt.Sprintf("rollback paused due to failure or early termination of %s", r.describe(task))
		r.put(next)
		return
	}
	if r.settings.action == swarmpb.FailureAction_FAILURE_ACTION_ROLLBACK {
		if previous := r.previous(); previous != 0 {
			r.put(&swarmpb.UpdateStatus{
				State:                 swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED,
				Message:               fmt.Sprintf("update rolled back due to failure or early termination of %s", r.describe(task)),
				StartedAt:             r.now.UnixNano(),
				TemplateVersion:       previous,
				FailedTemplateVersion: r.goal.template,
			})
			r.plan.More = true
			return
		}
	}
	next.State = swarmpb.UpdateState_UPDATE_STATE_PAUSED
	next.Message = fmt.Sprintf("update paused due to failure or early termination of %s", r.describe(task))
	r.put(next)
}

// describe names a task as users know it, with its ID and what became of it as far as its rows are still there.
func (r *rollout) describe(id string) string {
	rows := r.view.TaskRows(id)
	if rows.Task == nil {
		return "task " + id
	}
	text := fmt.Sprintf("task %s (%s)", swarmpb.TaskName(r.service.GetSpec().GetName(), rows.Task.Slot, rows.Task.NodeId), id)
	if cause := rows.Status.GetError(); cause != "" {
		text += ": " + cause
	}
	return text
}

// previous is the template to go back to: the previous spec's or, when that spec differed in other things alone,
// the latest before the goal's that anything still refers to. 0 when there is none.
func (r *rollout) previous() uint64 {
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

func (r *rollout) complete() {
	next := swarmpb.Clone(r.update)
	next.State, next.Message = swarmpb.UpdateState_UPDATE_STATE_COMPLETED, "update completed"
	if r.goal.rollback {
		next.State, next.Message = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed"
	}
	next.CompletedAt, next.SettledSlot = r.now.UnixNano(), 0
	r.put(next)
}

// put writes the service's progress with the update. The row is not guarded: nobody else writes its update, and the
// store never lowers its attempt.
func (r *rollout) put(update *swarmpb.UpdateStatus) {
	r.planner.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{
		ServiceId: r.service.Id, Attempt: r.progress.GetAttempt(), Update: update}}})
}

// paused: the update waits for the user.
func paused(update *swarmpb.UpdateStatus) bool {
	switch update.GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_PAUSED, swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED:
		return true
	default:
		return false
	}
}

// finished: the update has come to its end, or never was.
func finished(update *swarmpb.UpdateStatus) bool {
	switch update.GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_UNSPECIFIED, swarmpb.UpdateState_UPDATE_STATE_COMPLETED,
		swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED:
		return true
	default:
		return false
	}
}
