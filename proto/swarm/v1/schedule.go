package swarmpb

import (
	"cmp"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // all managers agree on the zones, whatever their hosts have

	"github.com/robfig/cron/v3"
)

const (
	// MaxScheduleLength bounds the text of a schedule.
	MaxScheduleLength = 128
	// DefaultScheduleHistory is how many runs' tasks a schedule keeps, MaxScheduleHistory the most that it may.
	DefaultScheduleHistory = 5
	MaxScheduleHistory     = 10
	// MinScheduleInterval and MaxScheduleInterval bound @every.
	MinScheduleInterval = time.Second
	MaxScheduleInterval = 366 * 24 * time.Hour
)

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// Timetable is the times of a schedule. It is pure: the same times on every manager.
type Timetable struct {
	times cron.Schedule
	zone  *time.Location
	// elapsed: every hour has its times, so they go by the time that passes, not by what the clock on the wall shows.
	elapsed bool
}

// Zone is the time zone that the schedule's times are meant in.
func (t *Timetable) Zone() *time.Location { return t.zone }

// Timetable reads the schedule's five fields, or @hourly, @every 90s and the like, and its time zone. Its errors are *FieldErrors.
func (x *Schedule) Timetable() (*Timetable, error) {
	text := strings.TrimSpace(x.GetCron())
	wrong := func(problem, fix string) (*Timetable, error) {
		return nil, &FieldError{Field: fmt.Sprintf("schedule %q", x.GetCron()), Problem: problem, Fix: fix}
	}
	switch {
	case len(text) > MaxScheduleLength:
		return wrong(fmt.Sprintf("it has %d characters", len(text)), fmt.Sprintf("use at most %d", MaxScheduleLength))
	case strings.Contains(text, "TZ="):
		return wrong("it names a time zone", "that is a field of its own (--timezone)")
	}
	zone, err := time.LoadLocation(cmp.Or(x.GetTimezone(), "UTC"))
	if err != nil || zone == time.Local {
		return nil, &FieldError{Field: fmt.Sprintf("time zone %q", x.GetTimezone()), Problem: "it is not known", Fix: "use an IANA name such as Asia/Seoul"}
	}
	times, err := cronParser.Parse(text)
	if err != nil {
		return wrong(cronProblem(err), `use five fields as in crontab, such as "*/5 * * * *", or @hourly, @daily, @every 90s`)
	}
	t := &Timetable{times: times, zone: zone}
	every, err := time.ParseDuration(strings.TrimPrefix(text, "@every "))
	if err == nil && (every < MinScheduleInterval || every > MaxScheduleInterval) { // shorter ones would be rounded up
		return wrong(fmt.Sprintf("%s is not a time that @every takes", every), fmt.Sprintf("use %s to %s", MinScheduleInterval, MaxScheduleInterval))
	}
	spec, fields := times.(*cron.SpecSchedule)
	const allHours = 1<<24 - 1
	t.elapsed = !fields || spec.Hour&allHours == allHours
	return t, nil
}

// cronProblem is what the parser found, without what it says of Go.
func cronProblem(err error) string {
	if rest, ok := strings.CutPrefix(err.Error(), "failed to parse int from "); ok {
		word, _, _ := strings.Cut(rest, ": ")
		return fmt.Sprintf("%q is neither a number nor the name of a day or a month", word)
	}
	return err.Error()
}

// Next is the first time of the schedule after another; zero when there is none within five years. A time of day that
// daylight saving leaves out is at the first minute that exists after it, one that comes twice is at its first.
func (t *Timetable) Next(after time.Time) time.Time {
	if t.elapsed {
		return t.times.Next(after.In(t.zone))
	}
	wall := onWall(after.In(t.zone))
	for {
		if wall = t.times.Next(wall); wall.IsZero() {
			return wall
		}
		if at := t.at(wall); at.After(after) {
			return at
		}
	}
}

// Late is the newest time of the schedule that is not after now, and how many there are from first, which is one, up to it.
// Of times that are more than a week old the number is not known: they are not counted.
func (t *Timetable) Late(first, now time.Time) (newest time.Time, count uint64) {
	const week = 7 * 24 * time.Hour
	newest, count = first, 1
	if old := now.Add(-week); first.Before(old) {
		if at := t.Next(old); !at.IsZero() && !at.After(now) {
			newest = at
		}
	}
	for {
		next := t.Next(newest)
		if next.IsZero() || next.After(now) {
			return newest, count
		}
		newest = next
		count++
	}
}

// onWall is what a clock on the wall shows, as if it were UTC.
func onWall(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// at is when the clock on the zone's wall shows a time first, or, when it never does, when it jumps over it.
func (t *Timetable) at(wall time.Time) time.Time {
	// Zones change their offset by less than a day, and seldom: of the two offsets around, the earlier one holds first.
	for probe := wall.Add(-36 * time.Hour); ; {
		_, offset := probe.In(t.zone).Zone()
		at := wall.Add(-time.Duration(offset) * time.Second)
		_, end := probe.In(t.zone).ZoneBounds()
		switch {
		case end.IsZero() || at.Before(end):
			if start, _ := probe.In(t.zone).ZoneBounds(); at.Before(start) {
				return start
			}
			return at
		default:
			probe = end
		}
	}
}

// HistoryOr is how many runs' tasks are kept.
func (x *Schedule) HistoryOr() uint64 {
	if x == nil || x.History == nil {
		return DefaultScheduleHistory
	}
	return uint64(*x.History)
}

// OverlapOr and MissedOr are the policies with their defaults.
func (x *Schedule) OverlapOr() OverlapPolicy {
	return cmp.Or(x.GetOverlap(), OverlapPolicy_OVERLAP_POLICY_FORBID)
}

func (x *Schedule) MissedOr() MissedRunPolicy {
	return cmp.Or(x.GetMissed(), MissedRunPolicy_MISSED_RUN_POLICY_ONCE)
}
