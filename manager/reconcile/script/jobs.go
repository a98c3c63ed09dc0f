package script

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// setSchedule sets one field of a job's schedule; in the times, _ stands for a space.
func setSchedule(spec *swarmpb.ServiceSpec, key, value string) (err error) {
	if spec.Schedule == nil {
		spec.Schedule = &swarmpb.Schedule{}
	}
	s := spec.Schedule
	switch key {
	case "schedule":
		s.Cron = strings.ReplaceAll(value, "_", " ")
		_, err = s.Timetable()
	case "timezone":
		s.Timezone = value
		_, err = time.LoadLocation(value)
	case "overlap":
		s.Overlap, err = swarmpb.ParseOverlapPolicy(value)
	case "missed":
		s.Missed, err = swarmpb.ParseMissedRunPolicy(value)
	case "suspended":
		s.Suspended = value == "yes"
	default:
		var n uint64
		n, err = strconv.ParseUint(value, 10, 32)
		keep := uint32(n)
		s.History = &keep
	}
	return err
}

// doJob prints a job's runs, oldest first.
func (w *World) doJob(args []string) (string, error) {
	job := w.View().ServiceProgress(args[0]).GetJob()
	if job == nil {
		return "no run yet\n", nil
	}
	var b strings.Builder
	zone, err := time.LoadLocation(w.View().Service(args[0]).GetSpec().GetSchedule().GetTimezone())
	if err != nil {
		return "", err
	}
	clock := func(at int64) string { return time.Unix(0, at).In(zone).Format("Jan 2 15:04:05 MST") }
	for _, run := range append(job.Runs, job.Active...) {
		fmt.Fprintf(&b, "run %d", run.Run)
		if run.ScheduledAt != 0 {
			fmt.Fprintf(&b, " of %s", clock(run.ScheduledAt))
		}
		fmt.Fprintf(&b, ": %d/%d completed", run.Completed, run.Total)
		if run.Failed > 0 {
			fmt.Fprintf(&b, ", %d failed", run.Failed)
		}
		if run.Outcome != "" {
			fmt.Fprintf(&b, "; %s after %s", run.Outcome, time.Duration(run.EndedAt-run.StartedAt))
		}
		b.WriteString("\n")
	}
	if job.LeftOut > 0 {
		fmt.Fprintf(&b, "%d left out\n", job.LeftOut)
	}
	if job.Message != "" {
		b.WriteString(job.Message + "\n")
	}
	if job.NextAt != 0 {
		fmt.Fprintf(&b, "next at %s\n", clock(job.NextAt))
	}
	return b.String(), nil
}

// doLeaderless lets time pass while nobody decides anything. Nodes do nothing new meanwhile either.
func (w *World) doLeaderless(args []string) error {
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	w.engine.Pass(w.Now().Add(d))
	w.Relist()
	return nil
}

func (w *World) doAt(args []string) error {
	at, err := time.Parse(time.RFC3339, args[0])
	if err != nil {
		return err
	}
	if at.Before(w.Now()) {
		return fmt.Errorf("%s has passed", at)
	}
	return w.Advance(at.Sub(w.Now()))
}

func labelsOf(pairs []string) map[string]string {
	labels := map[string]string{}
	for _, pair := range pairs {
		key, value, _ := strings.Cut(pair, "=")
		labels[key] = value
	}
	return labels
}
