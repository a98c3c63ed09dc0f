package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

const (
	stateComplete = swarmpb.TaskState_TASK_STATE_COMPLETE
	// overtaken is for how long a plan that was made before a task completed may still be carried out.
	overtaken = 5 * time.Second
	// onTime is how late a run may begin where nothing is wrong, and lateWrite how long a write may take where much is.
	onTime    = 3 * time.Second
	lateWrite = 20 * time.Second
)

// runs is what must hold of jobs: no slot of a run is filled again without a reason, and a schedule has exactly one run for each of its
// times but those that its policies leave out. It is used with the mutex of the checks held.
type runs struct {
	c *checks
	// tasks of jobs, all that there ever were, and by place, oldest first.
	tasks map[string]*swarmpb.Task
	at    map[placeOfRun][]string
	// open are the tasks that have neither completed nor an excuse.
	open map[string]*swarmpb.Task
	// excuses are why the place of a task may have another one.
	excuses map[string]string
	// completed is when a task was first known to have completed.
	completed map[string]time.Duration
	started   map[string]bool
	// clean are tasks whose container has ended with 0.
	clean map[string]bool
	// newest is the newest time of a schedule that has a run, by service.
	newest map[string]int64
	// calm: no fault is left that keeps a run from beginning in time.
	calm bool
	seen struct{ runs, slots, again, leftOut int }
}

// placeOfRun is a slot of a run, or a node of a run with a task a node.
type placeOfRun struct {
	service string
	run     uint64
	slot    uint64
	node    string
}

func (p placeOfRun) String() string {
	if p.node != "" {
		return fmt.Sprintf("node %s in run %d of job %s", p.node, p.run, p.service)
	}
	return fmt.Sprintf("slot %d in run %d of job %s", p.slot, p.run, p.service)
}

func placeOf(t *swarmpb.Task) placeOfRun {
	if t.NodeId != "" {
		return placeOfRun{service: t.ServiceId, run: t.Run, node: t.NodeId}
	}
	return placeOfRun{service: t.ServiceId, run: t.Run, slot: t.Slot}
}

func newRuns(c *checks) *runs {
	return &runs{c: c, tasks: map[string]*swarmpb.Task{}, open: map[string]*swarmpb.Task{}, at: map[placeOfRun][]string{}, excuses: map[string]string{},
		completed: map[string]time.Duration{}, started: map[string]bool{}, clean: map[string]bool{}, newest: map[string]int64{}}
}

// batch is told of changes that nobody has seen yet, and what they led to.
func (r *runs) batch(v *store.View, changes []store.Change) {
	var made []*swarmpb.Task
	lost := map[string]bool{}
	for _, change := range changes {
		switch now := change.New.(type) {
		case *swarmpb.Task:
			if now.Run > 0 && r.tasks[now.Id] == nil {
				made = append(made, now)
			}
		case *swarmpb.TaskStatus:
			r.status(now)
		case *swarmpb.TaskPlacement:
			for _, id := range now.Preempts {
				r.excuse(id, "it was to give way to task "+now.TaskId)
			}
		case *swarmpb.NodeStatus:
			if now.State == swarmpb.NodeState_NODE_STATE_DOWN {
				lost[now.NodeId] = true
			}
		case *swarmpb.ServiceProgress:
			old, _ := change.Old.(*swarmpb.ServiceProgress)
			r.progress(v, old, now)
		}
	}
	for id, task := range r.open {
		r.excuse(id, excuseOf(v, task, lost))
	}
	for _, task := range made {
		r.made(task)
	}
	for service := range v.Services() {
		r.concurrent(v, service)
	}
}

// excuse notes why the place of a task may have another one, unless it has completed: nothing that comes later excuses that.
func (r *runs) excuse(id, why string) {
	if _, completed := r.completed[id]; !completed && r.excuses[id] == "" && why != "" && r.tasks[id] != nil {
		r.excuses[id] = why
		delete(r.open, id)
	}
}

// excuseOf says why a task's place may have another one, by what the view says of where it is.
func excuseOf(v *store.View, task *swarmpb.Task, lost map[string]bool) string {
	node := cmp.Or(v.NodeID(task.Id), task.NodeId)
	job := v.ServiceProgress(task.ServiceId).GetJob()
	at := slices.IndexFunc(job.GetActive(), func(r *swarmpb.JobRun) bool { return r.Run == task.Run })
	switch {
	case at < 0:
		return "its run was over"
	case task.NodeId == "" && task.Slot > job.Active[at].Base+job.Active[at].Total:
		return "its run had become shorter"
	case node == "":
		return ""
	case lost[node] || v.Node(node) == nil || v.NodeStatus(node).GetState() == swarmpb.NodeState_NODE_STATE_DOWN:
		return "its node was lost"
	case v.Node(node).GetSpec().GetAvailability() == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN:
		return "its node was drained"
	case !inZone(v, node, v.Template(task.ServiceId, task.TemplateVersion)):
		return "its node did not suit any more"
	}
	return ""
}

func (r *runs) status(now *swarmpb.TaskStatus) {
	task := r.tasks[now.TaskId]
	if task == nil || !now.State.Ended() {
		return
	}
	if now.State != stateComplete {
		r.excuse(now.TaskId, "it ended as "+now.State.Name())
		if now.State == swarmpb.TaskState_TASK_STATE_FAILED && r.clean[now.TaskId] {
			r.c.add("%s: task %s ended with 0 and is called failed: %s", placeOf(task), now.TaskId, now.Error)
		}
		return
	}
	if _, known := r.completed[now.TaskId]; !known {
		r.completed[now.TaskId] = r.c.clock()
		delete(r.open, now.TaskId)
	}
}

// made judges a new task by those that its place has had in the run.
func (r *runs) made(task *swarmpb.Task) {
	place := placeOf(task)
	for _, id := range r.at[place] {
		since, completed := r.completed[id]
		switch {
		case r.excuses[id] == "":
			r.c.add("%s: task %s was made after task %s, which completed: %t, and had not failed, nor was its node lost, nor was it displaced", place, task.Id, id, completed)
		case completed && r.c.clock()-since > overtaken:
			r.c.add("%s: task %s was made %s after task %s had completed", place, task.Id, r.c.clock()-since, id)
		}
	}
	if len(r.at[place]) == 0 {
		r.seen.slots++
	} else {
		r.seen.again++
	}
	r.tasks[task.Id], r.open[task.Id] = task, task
	r.at[place] = append(r.at[place], task.Id)
}

// start is told of each container that was started, and how often it has been on that machine.
func (r *runs) start(id string, times int) {
	task := r.tasks[id]
	if task == nil {
		return
	}
	place := placeOf(task)
	if times > 1 && r.clean[id] {
		r.c.add("%s: task %s has ended with 0 and is started again", place, id)
	}
	for _, other := range r.at[place] {
		if other == id {
			break // what came later has been judged when it was made
		}
		if r.started[other] && r.excuses[other] == "" {
			r.c.add("%s: task %s is started after task %s, which had not failed, nor was its node lost, nor was it displaced", place, id, other)
		}
	}
	r.started[id] = true
}

func (r *runs) end(id string, exit runtime.Exit) {
	if task := r.tasks[id]; task != nil && !exit.Unknown && exit.Code == 0 {
		r.clean[id] = true
	}
}

// concurrent: a run has tasks in no more slots at a time than its job says.
func (r *runs) concurrent(v *store.View, service *swarmpb.Service) {
	most := service.GetSpec().GetMode().GetReplicatedJob().GetMaxConcurrent()
	if most == 0 || service.Removing {
		return
	}
	busy := map[uint64]map[uint64]bool{}
	for task := range v.TasksOf(service.Id) {
		if task.DesiredState.Wanted() && !v.Observed(task.Id).Ended() {
			if busy[task.Run] == nil {
				busy[task.Run] = map[uint64]bool{}
			}
			busy[task.Run][task.Slot] = true
		}
	}
	for task := range v.TasksOf(service.Id) {
		if v.Observed(task.Id) == stateComplete { // what else is in the slot has yet to be told that it is not needed
			delete(busy[task.Run], task.Slot)
		}
	}
	for run, slots := range busy {
		if uint64(len(slots)) > most {
			r.c.add("run %d of job %s has tasks in %d slots at %d, at most %d are allowed at a time: %s", run, service.GetSpec().GetName(), len(slots), v.Index(), most, pastOf(v, service, run))
		}
	}
}

// pastOf is what became of the tasks of a run, for a failed test.
func pastOf(v *store.View, service *swarmpb.Service, run uint64) string {
	var b strings.Builder
	for task := range v.TasksOf(service.Id) {
		if task.Run == run {
			fmt.Fprintf(&b, "\n  slot %d attempt %d made at %s is %s of %s on %q, replaces %q, beside %t", task.Slot, task.Attempt, time.Unix(0, task.GetMeta().GetCreatedAt()).UTC().Format("04:05.000"),
				v.Observed(task.Id).Name(), task.DesiredState.Name(), v.NodeName(v.NodeID(task.Id)), task.Replaces, task.Beside)
		}
	}
	fmt.Fprintf(&b, "\n  %v", v.ServiceProgress(service.Id).GetJob())
	for slot := range v.SlotsOf(service.Id) {
		fmt.Fprintf(&b, "\n  %v", slot)
	}
	return b.String()
}

// progress checks a job's step.
func (r *runs) progress(v *store.View, before, after *swarmpb.ServiceProgress) {
	old, now := before.GetJob(), after.GetJob()
	if now == nil {
		if old != nil {
			r.c.add("job %s: what was known of its runs is gone", after.ServiceId)
		}
		return
	}
	if now.Run < old.GetRun() || now.Run > old.GetRun()+1 {
		r.c.add("job %s: run %d follows run %d", after.ServiceId, now.Run, old.GetRun())
	}
	begun := now.Run > old.GetRun()
	if begun {
		r.seen.runs++
	}
	for _, run := range now.Active {
		for _, was := range old.GetActive() {
			if run.Run == was.Run && run.SettledSlot < was.SettledSlot {
				r.c.add("job %s run %d: its mark went back from %d to %d", after.ServiceId, run.Run, was.SettledSlot, run.SettledSlot)
			}
		}
	}
	if now.Schedule == "" && now.NextAt == 0 && old.GetNextAt() == 0 {
		if begun && old.GetRun() > 0 && old.GetTemplateVersion() == now.TemplateVersion {
			r.c.add("job %s: run %d begins with the template that run %d had", after.ServiceId, now.Run, old.GetRun())
		}
		return
	}
	r.scheduled(v, old, now, after, begun)
}

// scheduled checks the step of a job with a schedule: each time is dealt with once, in one step, and as the policies say.
func (r *runs) scheduled(v *store.View, old, now *swarmpb.JobProgress, row *swarmpb.ServiceProgress, begun bool) {
	tell := func(format string, args ...any) {
		r.c.add("schedule of %s, run %d: %s; before: %v; after: %v", row.ServiceId, now.Run, fmt.Sprintf(format, args...), old, now)
	}
	service := v.Service(row.ServiceId)
	written := time.Unix(0, row.GetMeta().GetUpdatedAt())
	first := old.GetNextAt()
	if now.Schedule != old.GetSchedule() {
		first = 0
		if old == nil && now.Schedule != "" && service != nil {
			first = timetable(now.Schedule).Next(time.Unix(0, service.GetMeta().GetCreatedAt())).UnixNano()
		}
	}
	switch {
	case first == 0 || now.NextAt == first:
		if begun {
			tell("it has begun, and no time has come")
		}
		if first == 0 && now.NextAt != 0 && now.NextAt <= written.Add(-lateWrite).UnixNano() {
			tell("the first time is long over")
		}
		return
	case now.Schedule == "":
		return
	}
	times := timetable(now.Schedule)
	at := time.Unix(0, now.ScheduledAt)
	last, count := times.Late(time.Unix(0, first), at)
	if !last.Equal(at) || at.After(written) {
		tell("%s is none of its times, or has not come at %s", at, written)
	}
	if next := times.Next(at); now.NextAt != next.UnixNano() {
		tell("the time after %s is %s", at, next)
	}
	if begun {
		count--
		if at.UnixNano() <= r.newest[row.ServiceId] {
			tell("there has been a run for this time, or a later one")
		}
		r.newest[row.ServiceId] = at.UnixNano()
		if run := now.Active[len(now.Active)-1]; run.Run != now.Run || run.ScheduledAt != now.ScheduledAt {
			tell("its row says otherwise: %v", run)
		}
	}
	if left := now.LeftOut - old.GetLeftOut(); left != count {
		tell("%d times were left out, and it says %d", count, left)
	}
	r.seen.leftOut += int(count)
	if service == nil || service.Removing {
		return
	}
	late := written.Sub(at)
	if r.calm && (late > onTime || count > 1 || count == 1 && begun) {
		tell("%s is dealt with %s late, %d times were missed", at, late, count)
	}
	if why := policies(service.Spec.Schedule, now, begun, late); why != "" {
		tell("%s", why)
	}
}

// policies says in what a step is not as the policies are, which a service keeps all its life.
func policies(s *swarmpb.Schedule, now *swarmpb.JobProgress, begun bool, late time.Duration) string {
	skip := s.MissedOr() == swarmpb.MissedRunPolicy_MISSED_RUN_POLICY_SKIP
	if begun {
		switch {
		case skip && late > orchestrator.MissedAfter+lateWrite:
			return "it was missed, and made up for"
		case s.OverlapOr() != swarmpb.OverlapPolicy_OVERLAP_POLICY_ALLOW && len(now.Active) != 1:
			return fmt.Sprintf("%d runs go on at a time", len(now.Active))
		case len(now.Active) > orchestrator.MaxActiveRuns:
			return fmt.Sprintf("%d runs go on at a time", len(now.Active))
		}
		return ""
	}
	overlap := len(now.Active) > 0
	switch s.OverlapOr() {
	case swarmpb.OverlapPolicy_OVERLAP_POLICY_REPLACE:
		overlap = false
	case swarmpb.OverlapPolicy_OVERLAP_POLICY_ALLOW:
		overlap = len(now.Active) >= orchestrator.MaxActiveRuns
	}
	if !overlap && !(skip && late > orchestrator.MissedAfter) {
		return "it was left out for no reason"
	}
	return ""
}

// timetable of a schedule as it stands in a job's progress.
func timetable(text string) *swarmpb.Timetable {
	zone, cron, _ := strings.Cut(text, " ")
	times, err := (&swarmpb.Schedule{Timezone: zone, Cron: cron}).Timetable()
	if err != nil {
		panic(fmt.Sprintf("schedule %q: %v", text, err)) // it has been validated
	}
	return times
}

// settled checks, once nothing happens any more, that runs are as their rows say.
func (r *runs) settled(v *store.View) {
	for service := range v.Services() {
		job := v.ServiceProgress(service.Id).GetJob()
		if service.GetSpec().GetSchedule() == nil && job.GetRun() == 0 && service.GetSpec().IsJob() {
			r.c.add("job %s has had no run", service.Spec.Name)
		}
		for _, run := range job.GetRuns() {
			done := uint64(0)
			for place, ids := range r.at {
				ours := place.service == service.Id && place.run == run.Run && (place.node != "" || place.slot > run.Base && place.slot <= run.Base+run.Total)
				if ours && slices.ContainsFunc(ids, func(id string) bool { _, ok := r.completed[id]; return ok }) {
					done++
				}
			}
			switch {
			case done < run.Completed:
				r.c.add("job %s run %d: %d slots are said to have completed, %d have", service.Spec.Name, run.Run, run.Completed, done)
			case run.Outcome == "completed" && service.Spec.Mode.GetReplicatedJob() != nil && (done != run.Total || done != run.Completed):
				r.c.add("job %s run %d has completed with %d slots of %d, and says %d", service.Spec.Name, run.Run, done, run.Total, run.Completed)
			}
		}
	}
}
