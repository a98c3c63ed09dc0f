package orchestrator

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// Rollout is the reconciler that moves services from one template to another. It says which slots, and what share of
// the traffic, and judges what comes of it; Replicated carries each slot along, and fills and empties sets.
type Rollout struct{}

// Name is rollout.
func (Rollout) Name() string { return "rollout" }

// Affects names the service when its spec changes and, while it is being updated, when a slot has got further; and the
// slot of a new set's task that takes no connections any more.
func (Rollout) Affects(view *store.View, change store.Change) []reconcile.ID {
	service := ""
	switch change.Table {
	case swarmpb.Table_TABLE_SERVICE:
		if change.New == nil {
			return nil
		}
		return []reconcile.ID{{Object: change.Key.ID}}
	case swarmpb.Table_TABLE_SLOT_PROGRESS, swarmpb.Table_TABLE_SERVICE_METRIC:
		service = change.Key.ID
	case swarmpb.Table_TABLE_TASK:
		before, _ := change.Old.(*swarmpb.Task)
		after, _ := change.New.(*swarmpb.Task)
		if before != nil && (after == nil || before.DesiredState != after.DesiredState && after.DesiredState > stateRunning) {
			service = before.ServiceId
		}
	case swarmpb.Table_TABLE_TASK_STATUS:
		return statusAffects(view, change)
	case swarmpb.Table_TABLE_TASK_PLACEMENT:
		placement, ok := change.New.(*swarmpb.TaskPlacement)
		before, _ := change.Old.(*swarmpb.TaskPlacement)
		if ok && (placement.Message != "" || before.GetMessage() != "") { // an update's message tells why its task waits
			service = view.Task(placement.TaskId).GetServiceId()
		}
	case swarmpb.Table_TABLE_NODE:
		if change.Old != nil {
			return updatesOn(view, change.Key.ID)
		}
	case swarmpb.Table_TABLE_NODE_STATUS:
		before, _ := change.Old.(*swarmpb.NodeStatus)
		after, _ := change.New.(*swarmpb.NodeStatus)
		if down(before) != down(after) {
			return updatesOn(view, change.Key.ID)
		}
	}
	if service == "" || !active(view.ServiceProgress(service).GetUpdate()) {
		return nil
	}
	return []reconcile.ID{{Object: service}}
}

// statusAffects: an update waits for tasks to be ready to start, up, and stopped.
func statusAffects(view *store.View, change store.Change) (ids []reconcile.ID) {
	status, ok := change.New.(*swarmpb.TaskStatus)
	if !ok || status.State < stateReady {
		return nil
	}
	task := view.Task(status.TaskId)
	update := view.ServiceProgress(task.GetServiceId()).GetUpdate()
	if !active(update) {
		return nil
	}
	fresh := task.TemplateVersion == update.TemplateVersion
	if update.Sets() {
		if !fresh && update.Phase != phaseEnding && update.Phase != phaseReturning || fresh && status.State < stateRunning {
			return nil
		}
		if fresh && unready(status) && judged(update) {
			ids = slotOf(task)
		}
	}
	return append(ids, reconcile.ID{Object: task.ServiceId})
}

// unready: it was ready, and takes no connections now.
func unready(status *swarmpb.TaskStatus) bool {
	return status.GetState() == stateRunning && !status.Up()
}

// updatesOn are the services with tasks on a node that are being updated.
func updatesOn(view *store.View, nodeID string) (ids []reconcile.ID) {
	seen := map[string]bool{}
	for task := range view.TasksOn(nodeID) {
		if !seen[task.ServiceId] && active(view.ServiceProgress(task.ServiceId).GetUpdate()) {
			ids = append(ids, reconcile.ID{Object: task.ServiceId})
		}
		seen[task.ServiceId] = true
	}
	return ids
}

// All names every service, and the slots of new sets' tasks that take no connections.
func (Rollout) All(view *store.View) []reconcile.ID {
	var ids []reconcile.ID
	for service := range view.Services() {
		ids = append(ids, reconcile.ID{Object: service.Id})
		update := view.ServiceProgress(service.Id).GetUpdate()
		if !active(update) || !update.Sets() || !judged(update) {
			continue
		}
		for task := range view.TasksOf(service.Id) {
			if task.TemplateVersion == update.TemplateVersion && unready(view.Status(task.Id)) {
				ids = append(ids, slotOf(task)...)
			}
		}
	}
	return ids
}

// Reconcile plans the next step of one service's update, or judges the readiness of one of its slots.
func (Rollout) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	service := view.Service(id.Object)
	if service == nil || service.Removing || service.GetSpec().IsJob() {
		return reconcile.Plan{}, nil
	}
	r := &rollout{planner: newPlanner(view, service, now)}
	r.update = r.progress.GetUpdate()
	r.goal = goalOf(view, service, r.update)
	r.settings = settingsOf(service, r.goal.rollback)
	if r.goal.reachedBy(r.update) && r.update.Underway() {
		r.settings.strategy = r.update.Strategy
		if r.update.Strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_UNSPECIFIED {
			r.settings.strategy = rolling // it was begun by an earlier version
		}
	}
	switch {
	case id.Slot > 0:
		r.judgeReadiness(id.Slot)
	case r.clockWentBack():
	case r.obey():
	case r.goal.reachedBy(r.update) && active(r.update):
		r.advance()
	case !r.goal.reachedBy(r.update) || finished(r.update) || r.resumed():
		r.begin()
	default:
		r.callOff()
	}
	r.flush()
	return r.finish(), nil
}

// rollout is one step of one service's update.
type rollout struct {
	*planner
	update   *swarmpb.UpdateStatus
	goal     goal
	settings settings
	// next is what the update is to be after this plan, nil while that is what it is now.
	next *swarmpb.UpdateStatus
}

// edit is the update as it is to be.
func (r *rollout) edit() *swarmpb.UpdateStatus {
	if r.next == nil {
		r.next = swarmpb.Clone(r.update)
	}
	return r.next
}

// resumed tells whether the update was paused because it failed, and the user has updated the service since, be it to the
// same spec. An update of two sets, and one that was paused by hand, goes on by command alone.
func (r *rollout) resumed() bool {
	return paused(r.update) && !r.update.Sets() && r.update.PausedAtVersion != 0 &&
		r.service.GetMeta().GetVersion() > r.update.PausedAtVersion
}

// clockWentBack has the update go on by this leader's clock where an earlier one's was ahead: else it would wait for as long
// as that was, and what is made from now on would count as made before the update, which nobody watches. It answers
// whether there was anything to set right. The phase begins anew, and slots that had failed are forgotten, which were
// not too many.
func (r *rollout) clockWentBack() bool {
	u, now := r.update, r.now.UnixNano()
	if !u.Underway() || max(u.StartedAt, u.PhaseSince, u.ProgressedAt) <= now+int64(ClockSkew) {
		return false
	}
	next := r.edit()
	next.StartedAt, next.PhaseSince, next.ProgressedAt = min(u.StartedAt, now), min(u.PhaseSince, now), min(u.ProgressedAt, now)
	r.plan.More = true
	return true
}

// begin starts an update when a slot is of another template, or when one that is paused or goes somewhere else is to
// be superseded. What of that one has not started yet is called off first, so that no slot is down for its sake.
func (r *rollout) begin() {
	unfinished := r.update != nil && !finished(r.update)
	if !unfinished && !r.strays() {
		return
	}
	if r.returns() {
		r.turnBack(r.goal.template, r.goal.failed)
		r.edit().Message = "manually requested rollback"
		return
	}
	old := map[uint64]int{}
	dirty, spare := false, r.spare()
	for s := range slots(r.view, r.service, 0, r.now) {
		template := s.template()
		if template == 0 || template == r.goal.template || r.abandoned(s) {
			continue
		}
		dirty = true
		if !r.room() {
			r.plan.More = true
			return
		}
		live := s.live()
		if r.surplus(template) && (!s.up() || spare > 0) {
			if s.up() {
				spare--
			}
			r.guardSlot(s)
			for _, task := range live {
				r.desire(task, stateShutdown)
			}
			continue
		}
		old[live[0].task.TemplateVersion]++
		for i := len(live) - 1; i > 0 && live[0].runs() && !live[i].runs(); i-- {
			if i == len(live)-1 {
				r.guardSlot(s)
			}
			r.desire(live[i], stateShutdown)
		}
	}
	if dirty || unfinished {
		r.next = r.first(old)
		r.plan.More = true
	}
}

// first is the status of an update that begins; old are the templates of the slots that it leaves, with their number.
func (r *rollout) first(old map[uint64]int) *swarmpb.UpdateStatus {
	state, message := swarmpb.UpdateState_UPDATE_STATE_UPDATING, "update in progress"
	if r.goal.rollback {
		state, message = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED, "manually requested rollback"
		if r.goal.failed != 0 {
			message = "rollback in progress"
		}
	}
	now := r.now.UnixNano()
	next := &swarmpb.UpdateStatus{
		State: state, Message: message, StartedAt: now, TemplateVersion: r.goal.template, FailedTemplateVersion: r.goal.failed,
		Strategy: r.settings.strategy, Phase: phasePreparing, PhaseSince: now, ProgressedAt: now,
		StableTemplateVersion: mostOf(old), Revision: r.service.Revision,
		CommandSequence: r.service.GetCommand().GetSequence(),
	}
	if r.settings.strategy.Sets() {
		if len(old) == 0 { // nothing to stand beside: what is there is of the goal
			next.Strategy = rolling
		} else {
			r.startStep(next, 0)
		}
	}
	return next
}

// mostOf is the template that most slots have; the newest of several.
func mostOf(slots map[uint64]int) (best uint64) {
	for template, n := range slots {
		if best == 0 || n > slots[best] || n == slots[best] && template > best {
			best = template
		}
	}
	return best
}

// surplus tells whether a slot of the template is to go first when an update of two sets is superseded: the set that
// has not been promoted, or the one that it was to follow if it has. On the way back to a set that is not whole yet, it is
// the one that was tried.
func (r *rollout) surplus(template uint64) bool {
	switch {
	case !r.update.Sets() || r.goal.reachedBy(r.update):
		return false
	case promoted(r.update):
		return template != r.update.TemplateVersion
	case r.update.Share >= swarmpb.WholeShare:
		return template == r.update.StableTemplateVersion
	default:
		return template == r.update.TemplateVersion
	}
}

// spare is how many tasks are up beyond what the service has by its spec: so many may go at once, whichever set they
// are of.
func (r *rollout) spare() int {
	if !r.update.Sets() {
		return 0
	}
	up := -int(replicas(r.service))
	for s := range slots(r.view, r.service, 0, r.now) {
		if s.up() {
			up++
		}
	}
	return max(0, up)
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
	switch {
	case r.update.Sets():
		r.advanceSets()
	case r.update.Strategy == recreate:
		r.advanceRecreate()
	default:
		r.advanceRolling()
	}
}

// callOff ends what a paused update has made ready and not begun: an old task that ends is followed by one of its kind.
func (r *rollout) callOff() {
	if r.update.Sets() {
		return
	}
	for s := range slots(r.view, r.service, 0, r.now) {
		live := s.live()
		if len(live) < 2 || !waitsForTurn(live[len(live)-2], live[len(live)-1]) {
			continue
		}
		if !r.room() {
			r.plan.More = true
			return
		}
		r.guardSlot(s)
		r.desire(live[len(live)-1], stateShutdown)
	}
}

func (r *rollout) complete() {
	next := r.edit()
	next.State, next.Message = swarmpb.UpdateState_UPDATE_STATE_COMPLETED, "update completed"
	if r.goal.rollback {
		next.State, next.Message = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, "rollback completed"
	}
	next.CompletedAt, next.SettledSlot, next.Phase = r.now.UnixNano(), 0, phaseNone
	kept := uint64(0)
	for _, template := range r.members() {
		if template != r.goal.template {
			kept++
		}
	}
	if kept > 0 {
		next.Message += fmt.Sprintf(", but for %s of another version: those that were to follow failed until they were given up", tasks(kept))
	}
}

// abandoned tells whether the update has ended without the slot: what was to follow there was given up. It is tried again
// by another update, and not because another manager leads.
func (r *rollout) abandoned(s *slot) bool {
	return r.goal.reachedBy(r.update) && finished(r.update) && r.update.Revision == r.service.Revision &&
		s.progress.GetTemplateVersion() == r.goal.template && s.progress.GetFailedUpdate() == r.update.StartedAt && s.progress.GetGivenUp()
}

// setPhase goes to a phase, or to the same one anew.
func (r *rollout) setPhase(next *swarmpb.UpdateStatus, phase swarmpb.RolloutPhase) {
	next.Phase, next.PhaseSince = phase, r.now.UnixNano()
	r.plan.More = true
}

// say sets the update's message.
func (r *rollout) say(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); text != r.update.Message || r.next != nil {
		r.edit().Message = text
	}
}

// flush writes the service's progress with the update if that changes. The row is not guarded: nobody else writes its
// update, and the store never lowers its attempt.
func (r *rollout) flush() {
	if r.next == nil || proto.Equal(r.next, r.update) {
		return
	}
	if !r.room() {
		r.plan.More = true
		return
	}
	r.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{
		ServiceId: r.service.Id, Attempt: r.progress.GetAttempt(), Update: r.next, Outcomes: r.outcomes()}}})
}

// outcomes are what became of the newest revisions, with what this plan makes of the update's.
func (r *rollout) outcomes() []*swarmpb.RevisionOutcome {
	all := slices.Clone(r.progress.GetOutcomes())
	note := func(o *swarmpb.RevisionOutcome) {
		i := slices.IndexFunc(all, func(have *swarmpb.RevisionOutcome) bool { return have.Revision == o.Revision })
		if i < 0 {
			all = append(all, o)
			return
		}
		if r.goal.failed != 0 && o.State == swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED {
			o.Message = all[i].Message // why it was rolled back
		}
		if all[i].State != o.State || all[i].Message != o.Message {
			all[i] = o
		}
	}
	now := r.now.UnixNano()
	if old := r.update; old.Underway() && old.Revision != 0 && old.Revision != r.next.Revision {
		what := "superseded by version %d before it was done"
		if r.goal.rollback {
			what = "aborted by version %d before it was done"
		}
		note(&swarmpb.RevisionOutcome{Revision: old.Revision, At: now, Message: fmt.Sprintf(what, r.next.Revision)})
	}
	if r.next.Revision != 0 && r.next.State != swarmpb.UpdateState_UPDATE_STATE_UNSPECIFIED &&
		(r.next.State != r.update.GetState() || r.next.Revision != r.update.GetRevision()) {
		note(&swarmpb.RevisionOutcome{Revision: r.next.Revision, State: r.next.State, Message: r.next.Message, At: now})
	}
	slices.SortFunc(all, func(a, b *swarmpb.RevisionOutcome) int {
		if a.Revision < b.Revision {
			return -1
		}
		return 1
	})
	return all[max(0, len(all)-MaxOutcomes):]
}

// paused: the update waits for the user.
func paused(update *swarmpb.UpdateStatus) bool { return update.Paused() }

// finished: the update has come to its end, or never was.
func finished(update *swarmpb.UpdateStatus) bool { return !update.Underway() }
