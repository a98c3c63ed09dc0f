package worker

import (
	"context"
	"errors"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network"
	"github.com/swarmd/swarmd/worker/runtime"
)

// A task whose template names a guest has no container: it is that guest's place in a network. It is prepared without
// anything being done, starts by being attached, and runs until the guest has gone. Nobody here stops the guest.

// guestOf is what a template says of a guest; nil: it runs a container.
func guestOf(template *swarmpb.AssignedTemplate) *network.Guest {
	g := template.GetSpec().GetGuest()
	if g == nil {
		return nil
	}
	return &network.Guest{PID: g.GetPid(), Path: g.GetNetns(), Namespace: g.GetNamespace()}
}

// stepGuest is step for such a task; false: the action is the same for all.
func (f *fleet) stepGuest(ctx, wait context.Context, t *task, act action) bool {
	if _, template, _ := f.look(t); guestOf(template) == nil {
		return false
	}
	switch act {
	case prepare:
		f.update(t, swarmpb.TaskState_TASK_STATE_READY, nil)
	case start:
		f.startGuest(ctx, wait, t)
	case watch:
		f.watchGuest(ctx, wait, t)
	case drain:
		f.mu.Lock()
		t.dry = true // its connections are its own
		f.mu.Unlock()
	case stop:
		f.end(ctx, t, swarmpb.TaskState_TASK_STATE_SHUTDOWN, nil)
	default:
		return false
	}
	return true
}

func (f *fleet) startGuest(ctx, wait context.Context, t *task) {
	f.update(t, swarmpb.TaskState_TASK_STATE_STARTING, nil)
	at, err := f.attach(wait, t)
	if wait.Err() != nil {
		return
	}
	if err != nil {
		f.reject(ctx, t, explain(err))
		return
	}
	_, template, _ := f.look(t)
	message := "attached"
	for _, note := range at.Notes {
		message += "; " + note
	}
	f.update(t, swarmpb.TaskState_TASK_STATE_RUNNING, func(s *swarmpb.TaskStatus) {
		s.Message = oneLine(message)
		s.Container = &swarmpb.ContainerStatus{Pid: template.GetSpec().GetGuest().GetPid(), StartedAt: time.Now().UnixNano()}
	})
}

// watchGuest waits for the guest's end.
func (f *fleet) watchGuest(ctx, wait context.Context, t *task) {
	why, err := f.cfg.Network.AwaitGuest(wait, t.id)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			f.log.Warn("cannot wait for an attached container", "task", t.id, "error", err)
			sleep(wait, f.cfg.Limits.RetryMin)
		}
		return
	}
	f.gone(ctx, t)
	f.end(ctx, t, swarmpb.TaskState_TASK_STATE_COMPLETE, func(s *swarmpb.TaskStatus) {
		s.Message = oneLine(why)
		noteExit(s, runtime.Exit{At: time.Now()})
	})
}

// guests are those that a former process attached, as if they were containers.
func (f *fleet) guests() []runtime.Container {
	var out []runtime.Container
	for _, id := range f.cfg.Network.Guests() {
		out = append(out, runtime.Container{ID: id, State: runtime.Running})
	}
	return out
}
