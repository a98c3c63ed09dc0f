package orchestrator

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
)

// survey is what the slots from a mark on tell of an update whose new tasks take the slots of the old ones.
type survey struct {
	// bare are the first slots in which an old task runs and no successor is being made ready, as many as the window takes.
	bare []*slot
	// ready are those whose successor waits at READY for its turn.
	ready []*slot
	// idle are slots in which nothing runs: there is nothing to lose.
	idle []*slot
	// loose are slots that only have to let go of what never started, or of what gives way to a task of the goal that
	// runs already: that takes no part of the budget.
	loose []*slot
	// held is how many successors wait for their turn, preparing how many of them are on their way to READY, refused how
	// many find no node.
	held, preparing, refused int
	// begun is how many slots hold a part of the budget, watched how many of these are up and watched; open is how many
	// are not done with.
	begun, watched, open int
	// waits is a task that is waited for, the first one that finds no node if any does.
	waits *replica
	// progressed is when a slot last got further.
	progressed time.Time
	// settled: every slot up to here is done with.
	settled uint64
	// more: the survey ended early, there may be more slots to begin.
	more bool
}

// done tells whether there is nothing left to do or to wait for.
func (w *survey) done() bool {
	return w.open == 0 && len(w.bare)+len(w.idle)+len(w.loose) == 0
}

// wait notes a task that is waited for.
func (w *survey) wait(r *replica) {
	if w.waits == nil || r.refused && !w.waits.refused {
		w.waits = r
	}
}

// further notes a time at which a slot got further.
func (w *survey) further(at time.Time) {
	if at.After(w.progressed) {
		w.progressed = at
	}
}

// survey looks at the slots above a mark until it has found as many as can be begun or made ready.
func (r *rollout) survey(mark uint64) *survey {
	w := &survey{settled: mark}
	window := reconcile.MaxWrites
	if n := r.settings.window(); n > 0 {
		window = int(min(n, uint64(window)))
	}
	unbroken := true
	for s := range slots(r.view, r.service, mark, r.now) {
		done := r.judge(s, w)
		if r.settings.window() > 0 && w.held+len(w.bare) > window || len(w.bare)+len(w.idle) > reconcile.MaxWrites {
			w.bare, w.more = w.bare[:min(len(w.bare), max(0, window-w.held))], true
			return w
		}
		if unbroken = unbroken && done; unbroken {
			w.settled = s.number
		}
	}
	return w
}

// judge enters a slot into the survey. It answers whether the update is done with it.
func (r *rollout) judge(s *slot, w *survey) bool {
	live := s.live()
	if len(live) == 0 {
		return true
	}
	heir := live[len(live)-1]
	switch {
	case r.away(heir):
		if heir.task.TemplateVersion == r.goal.template && len(live) == 1 {
			return true
		}
		w.loose = append(w.loose, s)
		return false
	case heir.task.TemplateVersion != r.goal.template:
		return r.judgeOld(s, live, w)
	case len(live) > 1:
		r.judgePair(s, live[len(live)-2], heir, w)
		return false
	default:
		return r.judgeAlone(s, heir, w)
	}
}

// judgeOld is of a slot whose newest task is not of the goal's template.
func (r *rollout) judgeOld(s *slot, live []*replica, w *survey) bool {
	runs, keeps, evicted := false, false, false
	for _, task := range live {
		runs = runs || task.runs()
		evicted = evicted || task.evicted && task.runs()
		keeps = keeps || task.runs() && task.task.TemplateVersion == r.goal.template
	}
	newest := live[len(live)-1]
	mine := s.progress.GetTemplateVersion() == r.goal.template && s.progress.GetFailedUpdate() == r.update.StartedAt
	switch at := time.Unix(0, s.progress.GetNotBefore()); {
	case keeps, len(live) == 1 && r.leftOver(newest):
		w.loose = append(w.loose, s)
	case mine && s.progress.GetGivenUp():
		return true
	case mine && r.now.Before(at):
		r.wake(at)
		w.open++
	case evicted: // the drain goes first
		w.open++
		w.wait(newest)
	case runs:
		w.bare = append(w.bare, s)
	default:
		w.idle = append(w.idle, s)
	}
	return false
}

// leftOver tells whether a task that has the slot alone is what another update made and never started: the task that it
// was to follow is of another kind.
func (r *rollout) leftOver(heir *replica) bool {
	old := r.view.Task(heir.task.Replaces)
	return heir.task.DesiredState < stateRunning && heir.task.StartNotBefore == 0 &&
		old != nil && old.TemplateVersion != heir.task.TemplateVersion
}

// judgePair is of a slot in which a task of the goal's template waits for its turn, or has had it.
func (r *rollout) judgePair(s *slot, base, heir *replica, w *survey) {
	w.open++
	if !waitsForTurn(base, heir) {
		w.begun++
		w.wait(heir)
		return
	}
	if heir.state.Ended() || heir.lost || !base.runs() || base.evicted {
		return // the slot itself has something to do about it first
	}
	w.held++
	switch {
	case heir.state >= stateReady:
		w.ready = append(w.ready, s)
		w.further(clamp(heir.status.GetAt(), r.now))
	case heir.refused:
		w.refused++
		w.wait(heir)
	default:
		w.preparing++
		w.wait(heir)
	}
}

// judgeAlone is of a slot whose only task is of the goal's template.
func (r *rollout) judgeAlone(s *slot, heir *replica, w *survey) bool {
	mine := s.progress.GetTemplateVersion() == r.goal.template
	failed := mine && s.progress.GetFailedUpdate() == r.update.StartedAt
	switch {
	case heir.task.DesiredState < stateRunning && heir.task.StartNotBefore == 0 && !heir.gone():
		w.begun++
		w.open++
		w.wait(heir)
		return false
	case failed, heir.task.Replaces == "":
		return true
	case heir.task.GetMeta().GetCreatedAt() < r.update.StartedAt && !(mine && s.progress.GetFailures() > 0):
		return true // an earlier one is done; not one that crashed in an earlier try, of which nobody knows yet what becomes now
	case heir.state.Ended():
		if mine && s.progress.GetGivenUp() || !r.policy(heir.task.TemplateVersion).restarts(heir.state) {
			return true
		}
		w.begun++
		w.open++
		return false
	case !heir.up() || heir.task.DesiredState != stateRunning:
		w.begun++
		w.open++
		w.wait(heir)
		return false
	}
	since := heir.upSince(r.now)
	done, free := since.Add(r.settings.monitor), since.Add(max(r.settings.monitor, r.settings.delay))
	for _, at := range []time.Time{done, free} {
		if r.now.Before(at) {
			r.wake(at)
		}
	}
	w.further(since)
	if r.now.Before(free) {
		w.begun++
		w.watched++
	} else {
		w.further(free)
	}
	if r.now.Before(done) {
		w.open++
		return false
	}
	return !r.now.Before(free)
}

// clamp is a worker's time, no later than now.
func clamp(at int64, now time.Time) time.Time {
	if t := time.Unix(0, at); t.Before(now) {
		return t
	}
	return now
}

// settledStep is how far the mark of settled slots must have moved to be worth a write.
const settledStep = 64

// advanceRolling takes an update of some slots at a time as far as its budget allows, or ends it.
func (r *rollout) advanceRolling() {
	if r.failed() {
		return
	}
	w := r.survey(r.update.SettledSlot)
	if w.done() && r.update.SettledSlot > 0 {
		w = r.survey(0) // what is below the mark may have changed since: the end is judged by the whole
	}
	if w.done() {
		r.complete()
		return
	}
	if w.watched == 0 && w.waits != nil && r.stalled(w.progressed, w.waits) {
		return
	}
	preparing := r.update.Phase == phasePreparing
	switch {
	case !preparing:
		r.spend(w)
	case len(w.bare) == 0 && w.preparing == 0 && len(w.loose) == 0 && (w.refused == 0 || len(w.ready)+len(w.idle) > 0):
		r.setPhase(r.edit(), phaseNone)
	}
	r.prepare(w)
	r.explain(w)
	if mark := max(w.settled, r.update.SettledSlot); mark >= r.update.SettledSlot+settledStep {
		next := r.edit()
		next.SettledSlot, next.ProgressedAt = mark, r.now.UnixNano()
	}
}

// prepare lets go of what takes no budget, and makes successors ready in the slots of the window.
func (r *rollout) prepare(w *survey) {
	for _, s := range append(w.loose, w.bare...) {
		if !r.room() {
			r.plan.More = true
			return
		}
		r.turn(s)
	}
	if w.more && len(w.loose) > 0 {
		r.plan.More = true
	}
}

// spend lets slots have their turn for what is left of the budget: first those that have nothing to lose.
func (r *rollout) spend(w *survey) {
	budget := len(w.idle) + len(w.ready)
	if r.settings.parallelism > 0 {
		budget = int(min(uint64(budget), r.settings.parallelism-min(r.settings.parallelism, uint64(w.begun))))
	}
	for i, s := range append(w.idle, w.ready...)[:budget] {
		switch {
		case !r.room():
			r.plan.More = true
			return
		case i < len(w.idle):
			r.turn(s)
		default:
			r.open(s)
		}
	}
	if w.more && budget == len(w.idle)+len(w.ready) && budget > 0 {
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
	if newest := live[len(live)-1]; r.away(newest) {
		r.turnAway(s, live)
		return
	}
	if s.progress != nil && s.progress.FailedUpdate != r.update.StartedAt {
		// What it remembers is of other tasks, even if they were of this template.
		s.progress = &swarmpb.SlotProgress{
			ServiceId: r.service.Id, Slot: s.number, TemplateVersion: r.goal.template, Meta: s.progress.Meta}
		r.putSlot(s.progress)
	}
	r.replace(s, &swarmpb.Task{TemplateVersion: r.goal.template, Beside: r.settings.startFirst(), SameNode: r.settings.strategy == inPlace})
}

// open lets the successor in a slot, which is ready, have its turn.
func (r *rollout) open(s *slot) {
	live := s.live()
	heir := live[len(live)-1]
	r.guardSlot(s)
	if heir.task.Beside {
		r.desire(heir, stateRunning)
		return
	}
	for _, old := range live[:len(live)-1] {
		r.desire(old, stateShutdown)
	}
}

// advanceRecreate takes an update that stops all old tasks before it starts the new ones through its phases.
func (r *rollout) advanceRecreate() {
	if r.update.Phase == phaseEnding {
		r.stopOld()
		return
	}
	// What waits may start before anything is judged: nothing is up.
	if r.update.Phase != phasePreparing && r.startNew() {
		return
	}
	if r.failed() || r.update.Phase == phasePreparing && r.stillPreparing() {
		return
	}
	w := r.survey(0)
	if w.done() {
		r.complete()
		return
	}
	if w.watched < w.begun+w.held && r.stalled(w.progressed, w.waits) {
		return
	}
	switch r.update.Phase {
	case phasePreparing:
		r.prepare(w)
		if len(w.bare)+len(w.loose)+w.preparing+w.refused > 0 {
			break
		}
		r.setPhase(r.edit(), phaseEnding)
		if !r.goal.rollback {
			r.say("update in progress: all tasks are ready, the old ones stop")
		}
	case phaseStarting:
		if w.begun == w.watched && w.held == 0 {
			r.setPhase(r.edit(), phaseWatching)
		}
	}
	r.explain(w)
}

// startNew lets all start that waits, once all old tasks have stopped, and has what an old task has come back to meanwhile
// follow. It answers whether there was anything.
func (r *rollout) startNew() (any bool) {
	for s := range slots(r.view, r.service, 0, r.now) {
		live := s.live()
		if len(live) == 0 {
			continue
		}
		heir := live[len(live)-1]
		old := heir.task.TemplateVersion != r.goal.template
		waits := heir.task.DesiredState < stateRunning && heir.task.StartNotBefore == 0 && !heir.gone()
		if !old && (!waits || len(live) == 1 && !s.clear(heir)) || old && !r.mayFollow(s) {
			continue
		}
		if any = true; !r.room() {
			r.plan.More = true
			return true
		}
		switch {
		case old:
			r.turn(s)
		case len(live) > 1:
			r.open(s)
		default:
			r.guardSlot(s)
			r.desire(heir, stateRunning)
		}
	}
	r.plan.More = r.plan.More || any
	return any
}

// mayFollow tells whether an old task is to be followed now, and not later or never because its slot has failed.
func (r *rollout) mayFollow(s *slot) bool {
	p := s.progress
	if p.GetTemplateVersion() != r.goal.template || p.GetFailedUpdate() != r.update.StartedAt {
		return true
	}
	at := time.Unix(0, p.GetNotBefore())
	if r.now.Before(at) {
		r.wake(at)
	}
	return !p.GetGivenUp() && !r.now.Before(at)
}

// stillPreparing tells cheaply whether tasks of the goal are on their way to READY and none is left to be made, so that
// a status in a large service does not cost a look at all of it.
func (r *rollout) stillPreparing() bool {
	early, all := 0, 0
	for state, n := range r.view.Counts(r.service.Id, r.goal.template) {
		if state < stateReady {
			early += n
		}
		if !state.Ended() {
			all += n
		}
	}
	return early > cheapLook && uint64(all) >= r.size()
}

// cheapLook is how many tasks on their way are few enough to look at every slot.
const cheapLook = 64

// stopOld stops all that is not of the goal's template, in the second phase of a recreate, and makes its successors where
// there are none yet.
func (r *rollout) stopOld() {
	clear := true
	for s := range slots(r.view, r.service, 0, r.now) {
		for i := range s.replicas {
			if old := &s.replicas[i]; old.task.TemplateVersion != r.goal.template && !old.stopped() && !r.away(old) {
				clear = false
				if !old.until.IsZero() {
					r.wake(old.until)
				}
			}
		}
		live := s.live()
		if len(live) == 0 || live[0].task.TemplateVersion == r.goal.template {
			continue
		}
		clear = false
		if !r.room() {
			r.plan.More = true
			return
		}
		r.guardSlot(s)
		for _, old := range live {
			if old.task.TemplateVersion != r.goal.template {
				r.desire(old, stateShutdown)
			}
		}
		if newest := live[len(live)-1]; newest.task.TemplateVersion != r.goal.template {
			r.heir(s, newest, &swarmpb.Task{TemplateVersion: r.goal.template})
		}
	}
	if clear {
		r.setPhase(r.edit(), phaseStarting)
	}
}
