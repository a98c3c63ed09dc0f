package orchestrator

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// slotWrites is the most writes that one slot's step or replacement needs, reaping aside.
const slotWrites = 8

// planner gathers one plan for a service.
type planner struct {
	view     *store.View
	service  *swarmpb.Service
	progress *swarmpb.ServiceProgress
	now      time.Time
	// plan is the part that is being filled; done are those before it.
	plan reconcile.Plan
	done []reconcile.Plan
	// attempt is what this plan's new tasks are numbered: all the same, for no two are in one slot. lifted: the part
	// says so.
	attempt uint64
	lifted  bool
	// single: the plan has one part, since what it rests on changes with it.
	single bool
	// job: the service's tasks are to run to their end.
	job bool
}

func newPlanner(view *store.View, service *swarmpb.Service, now time.Time) *planner {
	p := &planner{view: view, service: service, progress: view.ServiceProgress(service.Id), now: now}
	p.attempt, p.job = p.progress.GetAttempt()+1, service.GetSpec().IsJob()
	p.open()
	return p
}

// open begins a part of the plan; each is guarded by the service's row.
func (p *planner) open() {
	p.plan.Writes, p.plan.Guards, p.lifted = nil, nil, false
	p.guard(swarmpb.ServiceKey(p.service.Id), p.service.GetMeta().GetVersion())
}

// finish is the whole plan.
func (p *planner) finish() reconcile.Plan {
	if len(p.done) == 0 {
		return p.plan
	}
	parts := p.done
	if len(p.plan.Writes) > 0 {
		parts = append(parts, reconcile.Plan{Writes: p.plan.Writes, Guards: p.plan.Guards})
	}
	whole := parts[0]
	whole.At, whole.More, whole.Rest = p.plan.At, p.plan.More, parts[1:]
	return whole
}

func (p *planner) write(w *swarmpb.Write) { p.plan.Writes = append(p.plan.Writes, w) }

func (p *planner) guard(key *swarmpb.RowKey, version uint64) {
	p.plan.Guards = append(p.plan.Guards, &swarmpb.Guard{Key: key, Version: version})
}

func (p *planner) guardTask(r *replica) {
	if !r.guarded {
		r.guarded = true
		p.guard(swarmpb.TaskKey(r.task.Id), r.task.GetMeta().GetVersion())
	}
}

// guardSlot guards all that a decision about who lives in a slot rests on: its live tasks, and its progress, which
// every new pair touches. Of two plans that change who lives there, one is refused.
func (p *planner) guardSlot(s *slot) {
	for _, r := range s.live() {
		p.guardTask(r)
	}
	p.guard(swarmpb.SlotProgressKey(p.service.Id, s.number), s.progress.GetMeta().GetVersion())
}

// room makes sure that another slot's writes fit the plan, in a new part if need be; false when it is full.
func (p *planner) room() bool {
	if len(p.plan.Writes)+slotWrites <= reconcile.MaxWrites && len(p.plan.Guards)+slotWrites <= store.MaxGuards {
		return true
	}
	if p.single || len(p.done) == reconcile.MaxRest {
		return false
	}
	p.done = append(p.done, reconcile.Plan{Writes: p.plan.Writes, Guards: p.plan.Guards})
	p.open()
	return true
}

// wake asks to look again at a time, or earlier.
func (p *planner) wake(at time.Time) {
	if p.plan.At.IsZero() || at.Before(p.plan.At) {
		p.plan.At = at
	}
}

// create makes a task in a slot out of what the caller knows of it. Its ID follows from the slot and the attempt, so
// the same plan makes the same task.
func (p *planner) create(task *swarmpb.Task) {
	if !p.lifted {
		p.lifted = true
		p.write(&swarmpb.Write{Op: &swarmpb.Write_AdvanceAttempt{AdvanceAttempt: &swarmpb.AdvanceAttempt{
			ServiceId: p.service.Id, Attempt: p.attempt}}})
	}
	task.Id = swarmpb.TaskID(p.service.Id, task.Slot, "", p.attempt)
	task.ServiceId, task.Attempt = p.service.Id, p.attempt
	p.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: task}})
}

func (p *planner) put(row *swarmpb.Row) { p.write(&swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}}) }

func (p *planner) putSlot(progress *swarmpb.SlotProgress) {
	p.put(&swarmpb.Row{Row: &swarmpb.Row_SlotProgress{SlotProgress: progress}})
}

func (p *planner) delete(key *swarmpb.RowKey) {
	p.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: key}})
}

// desire sets a task's desired state, guarded by the task as it was read.
func (p *planner) desire(r *replica, state swarmpb.TaskState) {
	p.guardTask(r)
	p.write(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{
		TaskId: r.task.Id, DesiredState: state, Draining: r.task.Draining}}})
}

// started is the desired state of tasks that are to be started.
func (p *planner) started() swarmpb.TaskState {
	if p.job {
		return stateComplete
	}
	return stateRunning
}

// template is the one that new tasks of the service are made from.
func (p *planner) template() uint64 {
	return goalOf(p.view, p.service, p.progress.GetUpdate()).template
}

// policy is the restart policy of a template; the default one when the template is gone.
func (p *planner) policy(template uint64) policy {
	return policy{p.view.Template(p.service.Id, template).GetSpec().GetRestart(), p.job}
}
