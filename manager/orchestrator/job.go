package orchestrator

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	// MaxRuns is how many finished runs are remembered.
	MaxRuns = 10
	// MaxActiveRuns is how many runs of a schedule that allows it may go on at a time.
	MaxActiveRuns = 10
	// MissedAfter is how late a time of a schedule is made up for without counting as missed.
	MissedAfter = time.Minute
)

// What becomes of runs.
const (
	outcomeCompleted  = "completed"
	outcomeFailed     = "failed"
	outcomeReplaced   = "replaced"
	outcomeSuperseded = "superseded"
)

// Job is the reconciler of jobs: it begins runs, fills their slots, and ends them. A slot has completed when a task of
// the run has, and the rows of such tasks stay as long as the run goes on; what lies below the run's mark is known from
// its row. So no leader repeats a slot, or forgets one.
type Job struct{}

var _ reconcile.Reconciler = Job{}

// Name is job.
func (Job) Name() string { return "job" }

// Affects names the job that changes, or in which a task has come to its end; and jobs with a task a node when a node changes.
func (Job) Affects(view *store.View, change store.Change) (ids []reconcile.ID) {
	of := func(id string) []reconcile.ID {
		if view.Service(id).GetSpec().IsJob() {
			return []reconcile.ID{{Object: id}}
		}
		return nil
	}
	switch change.Table {
	case swarmpb.Table_TABLE_SERVICE:
		if change.New != nil {
			return of(change.Key.ID)
		}
	case swarmpb.Table_TABLE_TASK_STATUS:
		if status, ok := change.New.(*swarmpb.TaskStatus); ok && status.State.Ended() {
			return of(view.Task(status.TaskId).GetServiceId())
		}
	case swarmpb.Table_TABLE_SLOT_PROGRESS:
		if progress, ok := change.New.(*swarmpb.SlotProgress); ok && progress.GivenUp {
			return of(progress.ServiceId)
		}
	case swarmpb.Table_TABLE_TASK:
		if task, ok := change.Old.(*swarmpb.Task); ok && change.New == nil {
			return of(task.ServiceId)
		}
	case swarmpb.Table_TABLE_NODE, swarmpb.Table_TABLE_NODE_STATUS:
		if !nodeMatters(change) {
			return nil
		}
		for service := range view.Services() {
			if service.GetSpec().GetMode().GetGlobalJob() != nil {
				ids = append(ids, reconcile.ID{Object: service.Id})
			}
		}
	}
	return ids
}

// All names every job.
func (Job) All(view *store.View) (ids []reconcile.ID) {
	for service := range view.Services() {
		if service.GetSpec().IsJob() {
			ids = append(ids, reconcile.ID{Object: service.Id})
		}
	}
	return ids
}

// Of is All for one service.
func (Job) Of(_ *store.View, serviceID string) []reconcile.ID {
	return []reconcile.ID{{Object: serviceID}}
}

// Pace keeps looks at jobs with a task a node apart: each is at all nodes, and nodes may join, or tasks end, one after another.
func (Job) Pace(view *store.View, id reconcile.ID) time.Duration {
	if view.Service(id.Object).GetSpec().GetMode().GetGlobalJob() == nil {
		return 0
	}
	return lookPace(view)
}

// Reconcile takes a job's runs as far as they can go.
func (Job) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	service := view.Service(id.Object)
	if service == nil || service.Removing || !service.GetSpec().IsJob() {
		return reconcile.Plan{}, nil
	}
	j := &job{planner: newPlanner(view, service, now), state: &swarmpb.JobProgress{}, filled: map[uint64]bool{}}
	if old := j.progress.GetJob(); old != nil {
		j.state = swarmpb.Clone(old)
	}
	j.single = true
	// The row comes last, and how far it says that things have come is true of what else is in the plan.
	j.guard(swarmpb.ServiceProgressKey(service.Id), j.progress.GetMeta().GetVersion())
	j.advance()
	j.flush()
	return j.finish(), nil
}

// job is one step of a job.
type job struct {
	*planner
	// state is what the job's progress is to be after this plan.
	state *swarmpb.JobProgress
	// filled are the slots that get a task in this plan: several runs may lack one on the same node.
	filled map[uint64]bool
}

// advance ends the runs that have come to their end, begins those whose time has come, and fills slots.
func (j *job) advance() {
	for _, run := range slices.Clone(j.state.Active) {
		if found := j.look(run); found.over() {
			j.end(run, found, "")
		}
	}
	j.reopen()
	if j.due() {
		j.plan.More = true // its slots are filled once it is known that it has begun
		return
	}
	if !j.swept() {
		return
	}
	for _, run := range j.state.Active {
		found := j.look(run)
		j.fill(run, found)
		run.Completed, run.Failed = found.done, found.failed
		run.SettledSlot, run.SettledFailed = found.mark, found.markFailed
		if run.Run == j.state.Run {
			j.state.Completed = run.Completed
		}
		if j.service.Spec.Mode.GetGlobalJob() != nil {
			run.Total = found.done + found.failed + found.busy + uint64(len(found.lacking))
		}
	}
}

// flush writes the job's progress if it changes.
func (j *job) flush() {
	if proto.Equal(j.state, j.progress.GetJob()) {
		return
	}
	next := &swarmpb.ServiceProgress{ServiceId: j.service.Id, Attempt: j.progress.GetAttempt(), Job: j.state,
		Update: j.progress.GetUpdate(), Outcomes: j.progress.GetOutcomes()}
	if j.lifted {
		next.Attempt = j.attempt
	}
	j.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: next}})
}

// total is how many slots the spec asks for; of a job with a task a node that follows from the nodes.
func (j *job) total() uint64 { return j.service.Spec.Mode.GetReplicatedJob().GetTotal() }

// begin begins a run, which has a time of the schedule, or none.
func (j *job) begin(scheduled int64) {
	run := &swarmpb.JobRun{Run: j.state.Run + 1, ScheduledAt: scheduled, StartedAt: j.now.UnixNano(), Total: j.total(),
		TemplateVersion: j.service.TemplateVersion}
	others := slices.SortedFunc(slices.Values(j.state.Active), func(a, b *swarmpb.JobRun) int { return cmp.Compare(a.Base, b.Base) })
	for _, other := range others { // the lowest slots that no other run has
		if run.Base+run.Total > other.Base {
			run.Base = max(run.Base, other.Base+other.Total)
		}
	}
	run.SettledSlot = run.Base
	j.state.Run, j.state.StartedAt, j.state.EndedAt, j.state.Completed = run.Run, run.StartedAt, 0, 0
	j.state.TemplateVersion, j.state.Message = run.TemplateVersion, ""
	j.state.Active = append(j.state.Active, run)
}

// end enters a run's end. Its outcome is by what its slots came to, unless it is cut short.
func (j *job) end(run *swarmpb.JobRun, found *findings, outcome string) {
	run.EndedAt, run.Completed, run.Failed, run.Outcome = j.now.UnixNano(), found.done, found.failed, outcome
	run.Total = max(run.Total, found.done+found.failed)
	if outcome == "" {
		run.Outcome = outcomeCompleted
		if found.failed > 0 {
			run.Outcome = outcomeFailed
		}
		run.Total = found.done + found.failed
	}
	j.state.Active = slices.DeleteFunc(j.state.Active, func(r *swarmpb.JobRun) bool { return r.Run == run.Run })
	j.state.Runs = append(j.state.Runs, run)
	j.state.Runs = j.state.Runs[max(0, len(j.state.Runs)-MaxRuns):]
	if run.Run == j.state.Run {
		j.state.EndedAt, j.state.Completed = run.EndedAt, run.Completed
	}
}

// cut ends all runs that go on.
func (j *job) cut(outcome string) {
	for _, run := range slices.Clone(j.state.Active) {
		j.end(run, j.look(run), outcome)
	}
}

// reopen goes on with the newest run of a job with a task a node when a node has come that suits: without a schedule
// no other run would have it.
func (j *job) reopen() {
	n := len(j.state.Runs)
	if j.service.Spec.Schedule != nil || j.service.Spec.Mode.GetGlobalJob() == nil || len(j.state.Active) > 0 || n == 0 ||
		j.state.Runs[n-1].Run != j.state.Run || j.state.TemplateVersion != j.service.TemplateVersion {
		return
	}
	run := j.state.Runs[n-1]
	if found := j.look(run); len(found.lacking) == 0 {
		return
	}
	run.EndedAt, run.Outcome = 0, ""
	j.state.EndedAt = 0
	j.state.Runs, j.state.Active = j.state.Runs[:n-1], append(j.state.Active, run)
}

// swept stops what belongs to runs that do not go on any more, and deletes the tasks of runs that are not kept, once for
// each run that begins. It answers whether that is done.
func (j *job) swept() bool {
	if j.state.SweptRun >= j.state.Run {
		return true
	}
	for s := range slots(j.view, j.service, 0, j.now) {
		guarded := false
		for i := range s.replicas {
			r := &s.replicas[i]
			if r.task.Run == j.state.Run || j.goesOn(r.task.Run) {
				continue
			}
			if !j.room() {
				j.plan.More = true
				return false
			}
			switch {
			case r.live():
				if !guarded {
					guarded = true
					j.guardSlot(s)
				}
				j.desire(r, stateShutdown)
			case r.state.Ended() && !j.keepsRun(r.task.Run):
				j.guardTask(r)
				j.deleteTask(r)
			}
		}
	}
	j.state.SweptRun = j.state.Run
	return true
}
