package plan

import (
	"fmt"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// foretoldRuns is how many times of a schedule are told.
const foretoldRuns = 3

// job says what becomes of a job beyond its steps: of its run, how many tasks it has, as nobody knows how long they take, and of its
// schedule when runs begin. Empty for a service that is no job, or of which nothing is to be said.
func (r *run) job(view *store.View) string {
	spec := view.Service(r.service).GetSpec()
	if !spec.IsJob() {
		return ""
	}
	var parts []string
	job := view.ServiceProgress(r.service).GetJob()
	if run := newest(job); run.GetStartedAt() >= r.start.UnixNano() {
		text := fmt.Sprintf("run %d: %s", run.GetRun(), count(run.GetTotal(), "task"))
		if most := spec.GetMode().GetReplicatedJob().GetMaxConcurrent(); most > 0 && most < run.GetTotal() {
			text += fmt.Sprintf(", %d at a time", most)
		}
		parts = append(parts, text+"; how long they take is not known")
	}
	if spec.GetSchedule() != nil {
		parts = append(parts, nextRuns(spec.GetSchedule(), r.engine.Now()))
	}
	return strings.Join(parts, "; ")
}

// newest is the run that was begun last, whether it goes on or not; nil when none was.
func newest(job *swarmpb.JobProgress) *swarmpb.JobRun {
	for _, runs := range [][]*swarmpb.JobRun{job.GetActive(), job.GetRuns()} {
		for _, run := range runs {
			if run.GetRun() == job.GetRun() {
				return run
			}
		}
	}
	return nil
}

// nextRuns tells when a schedule's runs begin from now on.
func nextRuns(schedule *swarmpb.Schedule, now time.Time) string {
	if schedule.GetSuspended() {
		return "the schedule is suspended: no run begins until it goes on"
	}
	times, err := schedule.Timetable()
	if err != nil {
		return err.Error()
	}
	var next []string
	for at := now; len(next) < foretoldRuns; {
		if at = times.Next(at); at.IsZero() {
			break
		}
		next = append(next, at.In(times.Zone()).Format(time.RFC3339))
	}
	switch len(next) {
	case 0:
		return "no run is due any more"
	case 1:
		return "the only run begins at " + next[0]
	}
	last := len(next) - 1
	return "runs begin at " + strings.Join(next[:last], ", ") + " and " + next[last]
}

// count is a number of things in words.
func count(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
