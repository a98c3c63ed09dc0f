package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/health"
	"github.com/swarmd/swarmd/worker/runtime"
)

// A task with probes stays STARTING until it is ready for the first time. From then on its readiness is part of its status, which is
// reported when it changes; one that is unhealthy is sick: it is stopped, and fails. What is known outlives this process in the status
// that is on the disk: a later one asks on from there.

// newProber asks the tasks of a node.
func newProber(cfg Config) *health.Prober {
	var mu sync.Mutex
	jitter := rand.New(rand.NewPCG(cfg.Seed, 1))
	return health.New(health.Config{Exec: cfg.Runtime.Exec, Dial: cfg.Network.Dial, Logger: cfg.Logger, Jitter: func() float64 {
		mu.Lock()
		defer mu.Unlock()
		return jitter.Float64()
	}})
}

// checksOf finds what a task is asked. Its image may have a say in it, and is there by now.
func (f *fleet) checksOf(ctx context.Context, t *task) health.Checks {
	f.mu.Lock()
	known := t.checks
	f.mu.Unlock()
	if known != nil {
		return *known
	}
	_, template, status := f.look(t)
	container := template.GetSpec().GetContainer()
	var image *runtime.Healthcheck
	if health.AsksImage(container) && container.GetImage() != "" {
		digest := container.GetImageDigest()
		if runs := status.GetContainer().GetImageDigest(); runs != "" {
			digest = runs
		}
		var err error
		if image, err = f.imageCheck(ctx, container.GetImage(), digest); err != nil {
			if ctx.Err() == nil {
				f.log.Warn("cannot read an image's health check; doing without", "task", t.id, "error", err)
			}
			return health.Of(container, nil)
		}
	}
	checks := health.Of(container, image)
	f.mu.Lock()
	defer f.mu.Unlock()
	t.checks = &checks
	return checks
}

// imageCheck asks until there is an answer, or ctx ends. An image that was removed under its container has none.
func (f *fleet) imageCheck(ctx context.Context, image, digest string) (*runtime.Healthcheck, error) {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	for {
		call, cancel := context.WithTimeout(ctx, runtimeCall)
		check, err := f.runtime.Healthcheck(call, image, digest)
		cancel()
		if err == nil || errors.Is(err, runtime.ErrNotFound) || errors.Is(err, runtime.ErrInvalid) || !sleep(ctx, pause.next(nil)) {
			return check, err
		}
	}
}

// begins notes, before a container is started, that it is asked and has not answered, so that a crash does not make it one that is
// not asked.
func (f *fleet) begins(t *task, checks health.Checks) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !checks.Any() || t.status.GetState() == swarmpb.TaskState_TASK_STATE_STARTING && t.status.GetHealth() != nil {
		return
	}
	t.health = health.State{Live: swarmpb.HealthState_HEALTH_STATE_STARTING, At: t.afterHealth(time.Now())}
	f.setState(t, t.status.GetState(), func(s *swarmpb.TaskStatus) { s.Health = t.health.Status() })
}

// awaitsReady tells whether a task whose container runs may not have been ready yet, where no record says that it was. Its image may have
// a say in that: then its start, which goes on, finds out. A guest may not have been attached yet.
func (t *task) awaitsReady() bool {
	c := t.template.GetSpec().GetContainer()
	return t.status.GetHealth() != nil || c.GetImage() != "" && !c.GetNoHealthcheck() || guestOf(t.template) != nil
}

// afterHealth is a time of something new about a task's health: the newest counts, also when the host's clock was set back.
func (t *task) afterHealth(at time.Time) time.Time {
	if last := t.health.At; !at.After(last) {
		return last.Add(1)
	}
	return at
}

// restoreHealth takes up what a former process knew.
func (t *task) restoreHealth() {
	state := t.status.GetState()
	if state.Ended() || t.status.GetHealth() == nil {
		return
	}
	t.health = health.StateOf(t.status.GetHealth(), state == swarmpb.TaskState_TASK_STATE_RUNNING)
	if t.health.Live == swarmpb.HealthState_HEALTH_STATE_UNHEALTHY && t.comeback.Ended == nil {
		t.sick = t.status.GetError() // it was being stopped for that
		if !strings.HasPrefix(t.sick, "unhealthy") {
			t.sick = "unhealthy: " + oneLine(t.health.Output)
		}
	}
}

// awaitReady asks a container that was just started until it is ready; false when it will not be: it has ended, is sick, or is to do
// something else. The container's start is written down first. One that a node starts again by itself stays RUNNING meanwhile.
func (f *fleet) awaitReady(ctx, wait context.Context, t *task, container *swarmpb.ContainerStatus) bool {
	f.mu.Lock()
	running := t.status.GetState() >= swarmpb.TaskState_TASK_STATE_RUNNING
	if before := t.status.GetContainer().GetStartedAt(); before != 0 && !running {
		container.StartedAt = before // by a former process, or a former try
	}
	if !running {
		f.setState(t, t.status.GetState(), func(s *swarmpb.TaskStatus) { s.Container = swarmpb.Clone(container) })
	}
	f.mu.Unlock()
	if running {
		return true // watch asks
	}
	alive, asked := f.askHealth(wait, t)
	exit, err := f.runtime.Wait(alive, t.id)
	asked()
	f.mu.Lock()
	ready, sick := t.health.WasReady, t.sick != ""
	f.mu.Unlock()
	switch {
	case wait.Err() != nil || sick:
		return false
	case err == nil:
		f.ended(ctx, t, exit)
		return false
	case errors.Is(err, runtime.ErrNotFound):
		f.end(ctx, t, swarmpb.TaskState_TASK_STATE_FAILED, noteGone)
		return false
	case !ready:
		f.log.Warn("cannot wait for container", "task", t.id, "error", err)
		sleep(wait, f.cfg.Limits.RetryMin)
	}
	return ready
}

// askHealth asks a task until ctx ends, beside what the caller does; alive ends when it is sick, and, before it was ready first, when it
// is. asked is to be called then, and returns once nobody asks any more.
func (f *fleet) askHealth(ctx context.Context, t *task) (alive context.Context, asked func()) {
	alive, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() {
		checks := f.checksOf(alive, t)
		if !checks.Any() || alive.Err() != nil {
			return
		}
		f.mu.Lock()
		status, from, untold := t.status, t.health, false
		if status.GetState() == swarmpb.TaskState_TASK_STATE_RUNNING && status.GetHealth() == nil {
			// It has run without being asked, under an older version, or what it answered is lost: it is taken to be well.
			from = health.State{Live: swarmpb.HealthState_HEALTH_STATE_HEALTHY, Ready: true, WasReady: true}
			untold = true
		}
		f.mu.Unlock()
		started := time.Now()
		if at := status.GetContainer().GetStartedAt(); at != 0 {
			started = time.Unix(0, at)
		}
		f.prober.Watch(alive, health.Task{ID: t.id, Checks: checks, Started: started, From: from, Untold: untold}, func(s health.State) {
			f.noteHealth(t, s)
			if s.Reason != "" || s.WasReady && status.GetState() < swarmpb.TaskState_TASK_STATE_RUNNING {
				cancel()
			}
		})
	})
	return alive, func() { cancel(); asking.Wait() }
}

// noteHealth takes and reports what has changed.
func (f *fleet) noteHealth(t *task, s health.State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := t.health
	s.At = t.afterHealth(s.At)
	t.health = s
	f.setState(t, t.status.GetState(), func(status *swarmpb.TaskStatus) {
		status.Health = s.Status()
		if s.Reason != "" {
			t.sick = oneLine(s.Reason)
			status.Error = t.sick
		}
	})
	switch {
	case s.Reason != "":
		f.log.Warn("a task is unhealthy", "task", t.id, "service", t.assigned.GetServiceName(), "error", t.sick)
	case was.WasReady && was.Ready != s.Ready:
		f.log.Info("a task's readiness has changed", "task", t.id, "service", t.assigned.GetServiceName(), "ready", s.Ready, "output", oneLine(s.Output))
	}
}

// sickOf is why a task is stopped though it is to run; empty otherwise.
func (f *fleet) sickOf(t *task) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return t.sick
}

// wanted tells whether a task is to run, were it well.
func (f *fleet) wanted(t *task) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := t.situation()
	return s.desired < swarmpb.TaskState_TASK_STATE_SHUTDOWN && !s.removed && !s.lapsed
}

// endSick is the end of a task that was stopped for its health. It is one that has crashed to its policy.
func (f *fleet) endSick(ctx context.Context, t *task, exit runtime.Exit, why string) {
	exit.Reason, exit.OOMKilled = why, false
	f.gone(ctx, t)
	f.mu.Lock()
	t.sick = ""
	f.mu.Unlock()
	if exit.At.IsZero() || !f.stays(t, exit) {
		f.ended(ctx, t, exit)
	}
}

// bequeath gives the volumes of a task that has ended to the one that takes them over, before they go with its container; false when ctx
// ended first. An heir that is not known here yet finds what was given to the task, but not what was its own.
func (f *fleet) bequeath(ctx context.Context, t *task) bool {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	for {
		heir := f.heirOf(t)
		if heir == "" {
			return true
		}
		call, cancel := context.WithTimeout(ctx, runtimeCall)
		err := f.runtime.TakeVolumes(call, t.id, heir)
		cancel()
		if err == nil {
			return true
		}
		f.log.Warn("cannot hand volumes on", "task", t.id, "to", heir, "error", err)
		if !sleep(ctx, pause.next(nil)) {
			return false
		}
	}
}

// heirOf is the task that takes over the volumes of one; empty without one. Of several the one counts that is still wanted.
func (f *fleet) heirOf(t *task) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, other := range f.tasks {
		if s := other.situation(); other.assigned.GetReplaces() == t.id && other.assigned.GetTakesVolumes() &&
			s.desired < swarmpb.TaskState_TASK_STATE_SHUTDOWN && !s.removed && !s.observed.Ended() {
			return id
		}
	}
	return ""
}
