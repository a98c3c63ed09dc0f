package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/health"
	"github.com/swarmd/swarmd/worker/runtime"
)

// hook runs a task's pre-stop command, once, when it is to stop and was RUNNING. It is bounded, and what comes of it stops nothing: a
// failure is said in the task's message. A task that has to end for want of managers has none: they count on its time. A later
// process that finds the task on its way runs it again.
func (f *fleet) hook(ctx context.Context, t *task) {
	_, template, status := f.look(t)
	c := template.GetSpec().GetContainer()
	f.mu.Lock()
	s := t.situation()
	skip := t.hooked || len(c.GetPreStop()) == 0 || status.GetState() != swarmpb.TaskState_TASK_STATE_RUNNING || s.lapsed || s.cut || s.again
	t.hooked = true
	f.mu.Unlock()
	if skip || ctx.Err() != nil {
		return
	}
	f.say(t, "running its pre-stop command", status.GetError())
	timeout := hookTime(c)
	call, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	go func() { // what has to end for want of managers meanwhile does
		for sleep(call, comebackEvery) {
			f.mu.Lock()
			s := t.situation()
			f.mu.Unlock()
			if s.cut || s.lapsed {
				cancel()
			}
		}
	}()
	result, err := f.runtime.Exec(call, t.id, runtime.ExecSpec{Args: c.GetPreStop(), Limit: health.MaxOutput})
	failed := ""
	switch {
	case ctx.Err() != nil, errors.Is(err, runtime.ErrNotRunning), errors.Is(err, runtime.ErrNotFound):
		return
	case errors.Is(call.Err(), context.Canceled):
		failed = "its pre-stop command was cut short, as the task has to end"
	case err != nil && call.Err() != nil:
		failed = fmt.Sprintf("its pre-stop command did not end within %s: %s", timeout, result.Output)
	case err != nil:
		failed = "its pre-stop command could not be run: " + explain(err)
	case result.Code != 0:
		failed = fmt.Sprintf("its pre-stop command failed with exit code %d: %s", result.Code, result.Output)
	default:
		return
	}
	failed = oneLine(failed)
	f.log.Warn("a pre-stop command failed; stopping the task all the same", "task", t.id, "service", t.assigned.GetServiceName(), "error", failed)
	f.mu.Lock()
	t.hookFailed = failed
	f.mu.Unlock()
	f.say(t, failed, status.GetError())
}

// hookTime is how long a pre-stop command may take.
func hookTime(c *swarmpb.ContainerSpec) time.Duration {
	if c.GetPreStopTimeout() == nil {
		return graceOf(c)
	}
	return max(0, c.GetPreStopTimeout().AsDuration())
}
