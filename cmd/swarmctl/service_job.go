package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// jobFlags are those of jobs and their schedules.
type jobFlags struct {
	total, maxConcurrent            uint64
	cron, timezone, overlap, missed string
	history                         uint32
	suspend                         bool
	removes                         bool // an empty schedule takes one away that there is
}

var (
	totalFlags    = []string{"total", "max-concurrent"}
	scheduleFlags = []string{"schedule", "timezone", "overlap", "missed", "schedule-history", "suspend"}
)

func (j *jobFlags) define(cmd *cobra.Command, create bool) {
	f := cmd.Flags()
	f.Uint64Var(&j.total, "total", 1, "replicated-job: `number` of tasks that are to complete")
	f.Uint64Var(&j.maxConcurrent, "max-concurrent", 0, "replicated-job: `number` of tasks at a time (default: all)")
	remove := ""
	if j.removes = !create; j.removes {
		remove = `; "" takes it away: then the job runs once more, at once, if it has not run since its tasks were changed`
	}
	f.StringVar(&j.cron, "schedule", "", "job: `when` it runs, such as \"*/5 * * * *\", @daily or \"@every 90s\""+remove)
	f.StringVar(&j.timezone, "timezone", "", "job: time `zone` of the schedule, such as Asia/Seoul (default: UTC)")
	f.StringVar(&j.overlap, "overlap", "forbid", "job: when a run's time comes while another goes on: forbid leaves it out, replace stops the other one, allow runs both")
	f.StringVar(&j.missed, "missed", "once", "job: when nobody led the cluster at a run's time: once makes up for it, however many there were, skip does not")
	f.Uint32Var(&j.history, "schedule-history", swarmpb.DefaultScheduleHistory, "job: `number` of runs whose tasks are kept")
	f.BoolVar(&j.suspend, "suspend", false, "job: the schedule begins no runs")
	completeWords(cmd, "schedule", "@hourly", "@daily", "@weekly", "@monthly", "@yearly")
	completeWords(cmd, "overlap", "forbid", "replace", "allow")
	completeWords(cmd, "missed", "once", "skip")
}

// apply changes the spec by the flags that were given.
func (j *jobFlags) apply(f *pflag.FlagSet, spec *swarmpb.ServiceSpec) error {
	if changed(f, totalFlags...) {
		mode := spec.GetMode().GetReplicatedJob()
		if mode == nil {
			return fmt.Errorf("--total and --max-concurrent are of a replicated-job; this service is %s", modeWord(spec.GetMode()))
		}
		set(f, "total", &mode.Total, j.total)
		set(f, "max-concurrent", &mode.MaxConcurrent, j.maxConcurrent)
	}
	switch {
	case !changed(f, scheduleFlags...):
		return nil
	case !spec.IsJob():
		return fmt.Errorf("--%s is of a job; this service is %s", scheduleFlags[slices.IndexFunc(scheduleFlags, f.Changed)], modeWord(spec.GetMode()))
	case f.Changed("schedule") && j.cron == "" && !j.removes:
		return errors.New("--schedule \"\": it says no times, and without a schedule the job would run at once; give it times, or leave the flag out")
	case f.Changed("schedule") && j.cron == "":
		spec.Schedule = nil
		return nil
	case spec.Schedule == nil && !f.Changed("schedule"):
		return errors.New("the job has no schedule; give one with --schedule")
	}
	s := orNew(&spec.Schedule)
	set(f, "schedule", &s.Cron, j.cron)
	set(f, "timezone", &s.Timezone, j.timezone)
	set(f, "suspend", &s.Suspended, j.suspend)
	if f.Changed("schedule-history") {
		s.History = &j.history
	}
	var errs []error
	if f.Changed("overlap") {
		policy, err := swarmpb.ParseOverlapPolicy(j.overlap)
		errs, s.Overlap = append(errs, prefixed("--overlap", err)), policy
	}
	if f.Changed("missed") {
		policy, err := swarmpb.ParseMissedRunPolicy(j.missed)
		errs, s.Missed = append(errs, prefixed("--missed", err)), policy
	}
	return errors.Join(errs...)
}

func prefixed(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// replicasWord is running/wanted, and of a job how many have completed: 3/5 (2/5 completed).
func replicasWord(s *swarmpb.ServiceInfo) string {
	text := fmt.Sprintf("%d/%d", s.GetRunning(), s.GetDesired())
	if s.GetService().GetSpec().IsJob() {
		text += fmt.Sprintf(" (%d/%d completed)", s.GetProgress().GetJob().GetCompleted(), s.GetTotal())
	}
	return text
}

// prettyJob is how far a job is, its schedule, and its runs, newest first.
func (a *app) prettyJob(p printer, s *swarmpb.ServiceInfo) {
	spec, job := s.GetService().GetSpec(), s.GetProgress().GetJob()
	if !spec.IsJob() {
		return
	}
	p.line("Completed", fmt.Sprintf("%d of %d", job.GetCompleted(), s.GetTotal()))
	if n := spec.GetMode().GetReplicatedJob().GetMaxConcurrent(); n > 0 {
		p.line("At a time", count(n, "task"))
	}
	if schedule := spec.GetSchedule(); schedule != nil {
		zone := schedule.GetTimezone()
		if zone == "" {
			zone = "UTC"
		}
		p.line("Schedule", fmt.Sprintf("%s (%s), overlap %s, missed %s", schedule.GetCron(), zone, schedule.OverlapOr().Name(), schedule.MissedOr().Name()))
		p.line("Next run", nextRun(s))
		if job.GetLeftOut() > 0 {
			p.line("Left out", count(job.GetLeftOut(), "run"))
		}
	}
	p.line("Job", job.GetMessage())
	var lines []string
	for _, run := range slices.Backward(append(slices.Clone(job.GetRuns()), job.GetActive()...)) {
		text := fmt.Sprintf("#%d %s", run.GetRun(), a.ago(run.GetStartedAt()))
		if run.GetOutcome() == "" {
			text += ": goes on"
		} else {
			text += fmt.Sprintf(": %s after %s", run.GetOutcome(), time.Duration(run.GetEndedAt()-run.GetStartedAt()).Round(time.Second))
		}
		text += fmt.Sprintf(", %d/%d completed", run.GetCompleted(), run.GetTotal())
		if run.GetFailed() > 0 {
			text += fmt.Sprintf(", %d failed", run.GetFailed())
		}
		lines = append(lines, text)
	}
	p.lines("Runs", lines)
}

// nextRun is when a schedule begins its next run, in its own time zone.
func nextRun(s *swarmpb.ServiceInfo) string {
	schedule, next := s.GetService().GetSpec().GetSchedule(), s.GetProgress().GetJob().GetNextAt()
	switch {
	case schedule.GetSuspended():
		return "none, it is suspended"
	case next == 0:
		return "not known yet"
	}
	at := time.Unix(0, next)
	zone, err := time.LoadLocation(schedule.GetTimezone())
	if err != nil {
		zone = time.UTC
	}
	return at.In(zone).Format("2006-01-02 15:04:05 MST")
}

// job judges a job that was created or changed: it has settled when its run has ended, or when its schedule is known.
func (p *picture) job(now time.Time) verdict {
	s, name := p.service, p.name()
	job, spec := s.GetProgress().GetJob(), s.GetService().GetSpec()
	if schedule := spec.GetSchedule(); schedule != nil {
		known := job.GetSchedule() != "" && job.GetNextAt() != 0
		if schedule.GetSuspended() {
			known = job != nil && job.GetNextAt() == 0
		}
		if !known {
			return verdict{summary: "waiting for the leader"}
		}
		v := verdict{done: true, summary: "scheduled", note: "next run: " + nextRun(s)}
		if schedule.GetSuspended() {
			v.summary = "suspended"
		}
		return v
	}
	if job.GetRun() == 0 || job.GetTemplateVersion() != s.GetService().GetTemplateVersion() {
		return verdict{summary: "waiting for the leader"}
	}
	v := verdict{summary: fmt.Sprintf("%d/%d completed", job.GetCompleted(), s.GetTotal())}
	if job.GetEndedAt() != 0 {
		return p.jobEnded(v)
	}
	v.summary += fmt.Sprintf(", %d running", s.GetRunning())
	wanted, surplus := p.byReplica()
	if surplus > 0 {
		v.summary += fmt.Sprintf(", %d to stop", surplus)
	}
	for _, attempts := range wanted {
		t := attempts.newest
		if t.GetTask().GetRun() != job.GetRun() || t.GetState() == swarmpb.TaskState_TASK_STATE_COMPLETE {
			continue
		}
		up, hopeless, _ := p.attempt(attempts, now)
		v.replicas = append(v.replicas, p.describe(attempts, up))
		final := t.GetState().Ended() && p.failures[t.GetName()] < 3 // the run goes on with the others
		if hopeless != "" && !final && v.err == nil {
			v.err = fmt.Errorf("%s: %s; the cluster goes on trying, see `swarmctl service %s %s`", t.GetName(), hopeless, whereToLook(t), name)
		}
	}
	return v
}

// jobEnded is what has become of the newest run.
func (p *picture) jobEnded(v verdict) verdict {
	job := p.service.GetProgress().GetJob()
	for _, run := range job.GetRuns() {
		if run.GetRun() == job.GetRun() && run.GetOutcome() != "completed" {
			v.err = fmt.Errorf("job %s: run %d %s: %d of %s completed, %d failed; see `swarmctl service ps %s`",
				p.name(), run.GetRun(), run.GetOutcome(), run.GetCompleted(), count(run.GetTotal(), "task"), run.GetFailed(), p.name())
			return v
		}
	}
	v.done = true
	return v
}
