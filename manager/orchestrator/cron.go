package orchestrator

import (
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// due begins the run whose time has come, and moves the schedule on in the same write. It answers whether one has begun.
func (j *job) due() bool {
	schedule := j.service.Spec.Schedule
	if schedule == nil {
		j.state.Schedule, j.state.NextAt = "", 0
		if j.state.Run > 0 && j.state.TemplateVersion == j.service.TemplateVersion {
			return false
		}
		j.cut(outcomeSuperseded)
		j.begin(0)
		return true
	}
	times, err := schedule.Timetable()
	if err != nil { // validation refuses it; a later version may have taken it
		j.state.Schedule, j.state.NextAt = "", 0
		j.state.Message = fmt.Sprintf("schedule %q: %v", schedule.Cron, err)
		return false
	}
	j.follow(schedule, times)
	if j.state.NextAt == 0 {
		return false
	}
	if next := time.Unix(0, j.state.NextAt); j.now.Before(next) {
		j.wake(next)
		return false
	}
	newest, count := times.Late(time.Unix(0, j.state.NextAt), j.now)
	j.state.LeftOut += count - 1
	if count > 1 {
		j.state.Message = fmt.Sprintf("%d times before %s were missed", count-1, clock(newest))
	}
	j.state.ScheduledAt, j.state.NextAt = newest.UnixNano(), nano(times.Next(newest))
	if j.state.NextAt != 0 {
		j.wake(time.Unix(0, j.state.NextAt))
	}
	return j.run(schedule, newest)
}

// follow notes the schedule that the next time is of. A changed one counts from now, as does one that goes on after it was
// suspended.
func (j *job) follow(schedule *swarmpb.Schedule, times *swarmpb.Timetable) {
	text := schedule.Timezone + " " + schedule.Cron
	if schedule.Suspended {
		text = ""
	}
	if text == j.state.Schedule {
		return
	}
	from := j.now
	if j.state.Run == 0 && j.state.Schedule == "" && j.progress.GetJob() == nil {
		from = time.Unix(0, j.service.GetMeta().GetCreatedAt())
	}
	j.state.Schedule, j.state.NextAt = text, 0
	if text != "" {
		j.state.NextAt = nano(times.Next(from))
	}
}

// run begins the run of a time, if the policies allow it.
func (j *job) run(schedule *swarmpb.Schedule, at time.Time) bool {
	leave := func(format string, args ...any) bool {
		j.state.LeftOut++
		j.state.Message = fmt.Sprintf("the run of %s was left out: ", clock(at)) + fmt.Sprintf(format, args...)
		return false
	}
	if late := j.now.Sub(at); late > MissedAfter && schedule.MissedOr() == swarmpb.MissedRunPolicy_MISSED_RUN_POLICY_SKIP {
		return leave("it was missed by %s", late.Round(time.Second))
	}
	if n := len(j.state.Active); n > 0 {
		switch schedule.OverlapOr() {
		case swarmpb.OverlapPolicy_OVERLAP_POLICY_REPLACE:
			j.cut(outcomeReplaced)
		case swarmpb.OverlapPolicy_OVERLAP_POLICY_ALLOW:
			if n >= MaxActiveRuns {
				return leave("%d runs go on, and no more are allowed at a time", n)
			}
		default:
			return leave("run %d goes on", j.state.Active[n-1].Run)
		}
	}
	message := j.state.Message
	j.begin(at.UnixNano())
	if j.now.Sub(at) > MissedAfter {
		j.state.Message = fmt.Sprintf("run %d makes up for %s, which was missed", j.state.Run, clock(at))
	} else if message != j.progress.GetJob().GetMessage() {
		j.state.Message = message
	}
	return true
}

// nano is a time in a row; 0 for none.
func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func clock(t time.Time) string { return t.Format(time.RFC3339) }
