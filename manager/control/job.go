package control

import (
	"fmt"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// desired is how many tasks a service without a number of replicas should have at a time: those of the nodes that suit,
// which the orchestrator has made, or as many of a job's as may run at a time. total is how many slots the newest run of a job has.
func desired(view *store.View, service *swarmpb.Service, job *swarmpb.JobProgress) (atATime, total uint64) {
	if mode := service.GetSpec().GetMode().GetReplicatedJob(); mode != nil {
		total = mode.GetTotal()
		for _, run := range append(job.GetRuns()[:len(job.GetRuns()):len(job.GetRuns())], job.GetActive()...) {
			if run.GetRun() == job.GetRun() {
				total = run.GetTotal()
			}
		}
		atATime = total
		if most := mode.GetMaxConcurrent(); most > 0 {
			atATime = min(most, total)
		}
		return atATime, total
	}
	slot := uint64(0)
	for task := range view.TasksOf(service.GetId()) {
		if wanted(task) && task.GetSlot() != slot {
			slot = task.GetSlot()
			atATime++
		}
	}
	if service.GetSpec().IsJob() {
		total = atATime
	}
	return atATime, total
}

// jobWarnings are what a user should know of a change of a job.
func jobWarnings(view *store.View, service *swarmpb.Service, next *swarmpb.ServiceSpec) []string {
	if !next.IsJob() {
		return nil
	}
	job, was := view.ServiceProgress(service.GetId()).GetJob(), service.GetSpec()
	name, changed := next.GetName(), swarmpb.TemplateChanged(was, next)
	switch {
	case next.GetSchedule() != nil && changed && len(job.GetActive()) > 0:
		return []string{fmt.Sprintf("job %q: the run that goes on stays as it began; the new template holds from the next run on", name)}
	case next.GetSchedule() == nil && changed && len(job.GetActive()) > 0:
		return []string{fmt.Sprintf("job %q: run %d is stopped, and another one begins", name, job.GetRun())}
	case !changed && job.GetEndedAt() != 0 && next.GetSchedule() == nil &&
		was.GetMode().GetReplicatedJob().GetTotal() != next.GetMode().GetReplicatedJob().GetTotal():
		return []string{fmt.Sprintf("job %q: its run has ended; the new total holds from the next run on, which `swarmctl service update --force %s` begins", name, name)}
	}
	return nil
}

// commandSchedule suspends a job's schedule, or lets it go on: a change of its spec.
func commandSchedule(r *rollout, req *swarmpb.CommandRolloutRequest) (*swarmpb.Proposal, string, error) {
	schedule := r.service.GetSpec().GetSchedule()
	pause := req.GetAction() == swarmpb.RolloutAction_ROLLOUT_ACTION_PAUSE
	switch {
	case req.GetAbort() || !pause && req.GetAction() != swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME:
		return nil, "", r.refuse("a job has no rollout; an update of its template begins a new run, and `swarmctl service rollback %s` one of the version before", r.name())
	case schedule == nil:
		return nil, "", r.refuse("it is a job without a schedule; there is nothing to %s", req.GetAction().Name())
	case schedule.GetSuspended() == pause && pause:
		return nil, "", r.refuse("its schedule is suspended already; go on with `swarmctl service resume %s`", r.name())
	case schedule.GetSuspended() == pause:
		return nil, "", r.refuse("its schedule is not suspended; there is nothing to resume")
	}
	spec := swarmpb.Clone(r.service.GetSpec())
	spec.Schedule.Suspended = pause
	c := &change{id: r.service.GetId(), before: r.service.GetSpec(), after: spec}
	c.replace(r.view, r.service, r.service.GetMeta().GetVersion(), replacement{spec: spec, author: req.GetAuthor(), cause: req.GetAction().Name()})
	if pause {
		return c.proposal, fmt.Sprintf("the schedule of %s is suspended: no run begins, and one that goes on is left", r.name()), nil
	}
	message := fmt.Sprintf("the schedule of %s goes on", r.name())
	if times, err := spec.Schedule.Timetable(); err == nil {
		message += "; the next run is at " + times.Next(time.Now()).In(times.Zone()).Format(time.RFC3339)
	}
	return c.proposal, message, nil
}
