package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

// stop ends the container, with its grace period.
func (f *fleet) stop(ctx context.Context, t *task) {
	_, template, _ := f.look(t)
	spec := template.GetSpec().GetContainer()
	signal := spec.GetStopSignal()
	doing, why := "stopping", ""
	if reason := f.lapseOf(t); reason != "" {
		doing, why = "stopping: "+reason, "stopped: "+reason
	}
	sick := f.sickOf(t)
	if sick != "" {
		doing, why = "stopping: it is unhealthy", sick
	}
	f.say(t, doing, sick)
	f.hook(ctx, t)
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	for {
		call, cancel := context.WithTimeout(ctx, graceOf(spec)+stopSlack)
		began := time.Now()
		exit, err := f.runtime.Stop(call, t.id, signal, graceOf(spec))
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case sick != "" && (err == nil || errors.Is(err, runtime.ErrNotFound)) && f.wanted(t):
			f.endSick(ctx, t, exit, sick)
			return
		case err == nil:
			f.end(ctx, t, swarmpb.TaskState_TASK_STATE_SHUTDOWN, func(s *swarmpb.TaskStatus) {
				s.Error = cmp.Or(why, overdue(exit, time.Since(began), graceOf(spec)))
				noteExit(s, exit)
			})
			return
		case errors.Is(err, runtime.ErrNotFound), f.neverStarted(ctx, t.id):
			f.end(ctx, t, swarmpb.TaskState_TASK_STATE_SHUTDOWN, func(s *swarmpb.TaskStatus) { s.Error = why })
			return
		}
		if errors.Is(err, runtime.ErrInvalid) {
			signal = "SIGTERM" // a signal that this host does not know must not keep the container alive
		}
		f.log.Warn("cannot stop container", "task", t.id, "error", err)
		f.say(t, doing+": "+explain(err)+"; trying again", explain(err))
		if !sleep(ctx, pause.next(nil)) {
			return
		}
	}
}

// overdue tells of a container that took no notice of its stop signal and was killed after its grace period; empty for others, also
// for one that was given no time.
func overdue(exit runtime.Exit, took, grace time.Duration) string {
	if grace == 0 || took < grace || exit.Code != 128+uint32(unix.SIGKILL) {
		return ""
	}
	return fmt.Sprintf("killed: it did not end within its grace period of %s", grace)
}

// lapseOf is why a task ends though the managers want it; empty otherwise.
func (f *fleet) lapseOf(t *task) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return t.lapsed
}
