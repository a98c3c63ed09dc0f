package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network"
	"github.com/swarmd/swarmd/worker/runtime"
)

// step does one action. Each may be cut short at any point, by ctx (this process ends) or by a crash, and is right
// when it is done again; wait ends early when the task is to do something else. A step that is cut short by ctx
// changes no state.
func (f *fleet) step(ctx, wait context.Context, t *task, act action) {
	if f.stepGuest(ctx, wait, t, act) {
		return
	}
	switch act {
	case accept:
		f.update(t, swarmpb.TaskState_TASK_STATE_ACCEPTED, nil)
	case prepare:
		f.prepare(wait, t)
	case start:
		f.start(ctx, wait, t)
	case watch:
		f.watch(ctx, wait, t)
	case again:
		f.comeBack(ctx, wait, t)
	case drain:
		f.drain(ctx, wait, t)
	case stop:
		f.stop(ctx, t)
	case abandon:
		f.end(ctx, t, swarmpb.TaskState_TASK_STATE_SHUTDOWN, nil)
	case clean:
		f.clean(ctx, t)
	case forget:
		f.forget(ctx, t)
	}
}

// look returns what a step needs of its task.
func (f *fleet) look(t *task) (*swarmpb.AssignedTask, *swarmpb.AssignedTemplate, *swarmpb.TaskStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return t.assigned, t.template, t.status
}

// finalError is one that no other try can mend.
type finalError struct{ error }

func isFinal(err error) bool {
	var final finalError
	return errors.As(err, &final) || errors.Is(err, runtime.ErrInvalid)
}

// say changes the message of a task that stays in its state, and what keeps it there: empty when nothing is wrong.
func (f *fleet) say(t *task, message, trouble string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	message, trouble = oneLine(message), oneLine(trouble)
	if t.status.GetMessage() != message || t.status.GetError() != trouble {
		f.setState(t, t.status.GetState(), func(s *swarmpb.TaskStatus) { s.Message, s.Error = message, trouble })
	}
}

// sayTrouble tells of an error that another try may mend.
func (f *fleet) sayTrouble(t *task, why string) { f.say(t, why+"; trying again", why) }

func (f *fleet) reject(ctx context.Context, t *task, why string) {
	f.log.Warn("task rejected", "task", t.id, "error", why)
	f.end(ctx, t, swarmpb.TaskState_TASK_STATE_REJECTED, func(s *swarmpb.TaskStatus) { s.Error = oneLine(why) })
}

// prepare fetches the image and attaches the task to the network.
func (f *fleet) prepare(wait context.Context, t *task) {
	f.update(t, swarmpb.TaskState_TASK_STATE_PREPARING, nil)
	assigned, template, _ := f.look(t)
	spec, err := f.specOf(assigned, template, network.Attachment{})
	if err != nil {
		f.reject(wait, t, explain(err))
		return
	}
	image, err := f.fetch(wait, t, spec)
	if err == nil {
		_, err = f.attach(wait, t)
	}
	if wait.Err() != nil {
		return
	}
	if err != nil {
		f.reject(wait, t, explain(err))
		return
	}
	f.update(t, swarmpb.TaskState_TASK_STATE_READY, func(s *swarmpb.TaskStatus) {
		s.Container = &swarmpb.ContainerStatus{ImageDigest: image.Digest}
	})
}

// fetch has the image that an earlier task of the same template ran here, if there was one: replicas of one version
// do not drift apart with a tag, and a replacement does not wait for a registry. Else it asks for what the spec names.
func (f *fleet) fetch(wait context.Context, t *task, spec runtime.Spec) (runtime.Image, error) {
	if known := f.knownDigest(t); spec.Digest == "" && known != "" {
		key := f.pullOf(t, spec)
		key.digest = known
		image, err := f.pulls.get(wait, key, f.spawn)
		if err == nil || wait.Err() != nil {
			return image, err
		}
		f.log.Info("an earlier replica's image cannot be had any more; asking for its tag", "task", t.id, "image", spec.Image, "digest", known, "error", err)
	}
	return f.pull(wait, t, spec)
}

// knownDigest is what the newest other task of the template ran; empty without one.
func (f *fleet) knownDigest(t *task) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	digest, newest := "", int64(0)
	for _, other := range f.tasks {
		if other.assigned.GetServiceId() != t.assigned.GetServiceId() || other.assigned.GetTemplateVersion() != t.assigned.GetTemplateVersion() {
			continue
		}
		if d := other.status.GetContainer().GetImageDigest(); d != "" && other.status.GetAt() > newest {
			digest, newest = d, other.status.GetAt()
		}
	}
	return digest
}

// acquire takes a place in a bounded crowd; false when ctx ended first.
func acquire(ctx context.Context, places chan struct{}) bool {
	select {
	case places <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// start makes and starts the container. Once its process may run nothing but its end ends the step: only between
// tries does it look whether the task is to do something else.
func (f *fleet) start(ctx, wait context.Context, t *task) {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	var until time.Time
	fetched := false
	for {
		at, err := f.attach(wait, t)
		if err == nil {
			if !acquire(wait, f.starts) {
				return
			}
			f.update(t, swarmpb.TaskState_TASK_STATE_STARTING, nil)
			release := sync.OnceFunc(func() { <-f.starts })
			err = f.tryStart(ctx, wait, t, at, release)
			release()
		}
		if err == nil || wait.Err() != nil {
			return
		}
		if err = f.fetchAgain(wait, t, err, &fetched); wait.Err() != nil {
			return
		}
		if err == nil {
			continue
		}
		if until.IsZero() {
			until = time.Now().Add(f.cfg.Limits.StartFor)
		}
		late := !time.Now().Before(until) && !f.onItsOwn(t)
		switch {
		case isFinal(err), late && errors.Is(err, network.ErrPortTaken):
			f.reject(ctx, t, explain(err))
			return
		case late:
			f.log.Warn("task failed to start", "task", t.id, "error", err)
			f.end(ctx, t, swarmpb.TaskState_TASK_STATE_FAILED, func(s *swarmpb.TaskStatus) { s.Error = explain(err) })
			return
		}
		f.sayTrouble(t, explain(err))
		if !sleep(wait, pause.next(nil)) {
			return
		}
	}
}

// imageGone says that the image of a spec was removed since it was fetched.
type imageGone struct {
	error
	spec runtime.Spec
}

func (e imageGone) Unwrap() error { return e.error }

// fetchAgain has the image back that an error says to be gone; other errors are returned as they are. It does so once a
// start: it may take long, and is no part of what is bounded there.
func (f *fleet) fetchAgain(wait context.Context, t *task, err error, done *bool) error {
	var gone imageGone
	if *done || !errors.As(err, &gone) {
		return err
	}
	_, err = f.pull(wait, t, gone.spec)
	*done = err == nil
	return err
}

// tryStart brings the task to RUNNING, whatever of the way is already behind it. It calls started once the container has.
func (f *fleet) tryStart(ctx, wait context.Context, t *task, at network.Attachment, started func()) error {
	assigned, template, status := f.look(t)
	call, cancel := context.WithTimeout(ctx, runtimeCall)
	defer cancel()
	if ports := template.GetHostPorts(); len(ports) > 0 {
		var err error
		if at.Ports, err = f.cfg.Network.Publish(call, t.id, ports); err != nil {
			return err
		}
	}
	spec, err := f.specOf(assigned, template, at)
	if err != nil {
		return finalError{err}
	}
	if spec.Digest == "" {
		spec.Digest = status.GetContainer().GetImageDigest() // what was fetched is what runs
	}
	if spec.Inherits {
		if err := f.runtime.TakeVolumes(call, assigned.GetReplaces(), t.id); err != nil {
			return err
		}
	}
	err = f.runtime.Create(call, spec)
	if errors.Is(err, runtime.ErrNotFound) {
		return imageGone{err, spec}
	}
	if err != nil {
		return err
	}
	if wait.Err() != nil {
		return wait.Err() // it is not to run any more
	}
	checks := f.checksOf(wait, t)
	f.begins(t, checks)
	pid, err := f.runtime.Start(call, t.id)
	if err != nil {
		if c, found := f.find(ctx, t.id); !found || c.State == runtime.Created {
			return err
		}
	}
	container := &swarmpb.ContainerStatus{ContainerId: t.id, Pid: pid, StartedAt: time.Now().UnixNano(), ImageDigest: spec.Digest}
	started()
	if checks.Any() && !f.awaitReady(ctx, wait, t, container) {
		return nil
	}
	f.awaitListener(wait, t, assigned.GetServiceId())
	f.update(t, swarmpb.TaskState_TASK_STATE_RUNNING, func(s *swarmpb.TaskStatus) {
		s.HostPorts = at.Ports
		s.Container = container
		f.cameBack(t, s)
	})
	return nil
}

const (
	// listenPause is between two looks whether a container listens; every lookEvery-th asks whether it still runs.
	listenPause = 20 * time.Millisecond
	lookEvery   = 10
)

// awaitListener waits until a container that was just started listens where its clients will connect to, for as long as the network
// says: a task that is RUNNING gets connections, and those that come before its program has opened its sockets are refused.
func (f *fleet) awaitListener(wait context.Context, t *task, serviceID string) {
	began := time.Now()
	tick := time.NewTicker(listenPause)
	defer tick.Stop()
	for looks := 1; ; looks++ {
		listens, within, err := f.cfg.Network.Listening(t.id, serviceID)
		if listens || err != nil || time.Since(began) >= within {
			return
		}
		if looks%lookEvery == 0 {
			if c, found := f.find(wait, t.id); !found || c.State != runtime.Running {
				return
			}
		}
		select {
		case <-tick.C:
		case <-wait.Done():
			return
		}
	}
}

// find looks a container up.
func (f *fleet) find(ctx context.Context, id string) (runtime.Container, bool) {
	ctx, cancel := context.WithTimeout(ctx, runtimeCall)
	defer cancel()
	all, err := f.runtime.List(ctx)
	if err != nil {
		return runtime.Container{}, false
	}
	for _, c := range all {
		if c.ID == id {
			return c, true
		}
	}
	return runtime.Container{}, false
}

// neverStarted says whether a container is there without ever having had a process.
func (f *fleet) neverStarted(ctx context.Context, id string) bool {
	c, found := f.find(ctx, id)
	return found && c.State == runtime.Created
}

// watch waits for the container's end and says how it came.
func (f *fleet) watch(ctx, wait context.Context, t *task) {
	f.learnPorts(ctx, t)
	alive, asked := f.askHealth(wait, t)
	exit, err := f.runtime.Wait(alive, t.id)
	asked()
	if err == nil || errors.Is(err, runtime.ErrNotFound) {
		f.gone(ctx, t)
	}
	switch {
	case wait.Err() != nil, err != nil && f.sickOf(t) != "":
	case errors.Is(err, runtime.ErrNotFound):
		f.end(ctx, t, swarmpb.TaskState_TASK_STATE_FAILED, noteGone)
	case err != nil:
		f.log.Warn("cannot wait for container", "task", t.id, "error", err)
		sleep(wait, f.cfg.Limits.RetryMin)
	case !f.stays(t, exit):
		f.ended(ctx, t, exit)
	}
}

// ended gives a task the last state that its container's end means.
func (f *fleet) ended(ctx context.Context, t *task, exit runtime.Exit) {
	state := swarmpb.TaskState_TASK_STATE_FAILED
	if why := explainExit(exit); why == "" {
		state = swarmpb.TaskState_TASK_STATE_COMPLETE
	}
	f.end(ctx, t, state, func(s *swarmpb.TaskStatus) {
		s.Error = explainExit(exit)
		noteExit(s, exit)
	})
}

func noteExit(s *swarmpb.TaskStatus, exit runtime.Exit) {
	c := s.GetContainer()
	if c == nil {
		c = &swarmpb.ContainerStatus{ContainerId: s.GetTaskId()}
		s.Container = c
	}
	c.Pid, c.ExitCode, c.OomKilled = 0, int32(exit.Code), exit.OOMKilled
	if !exit.At.IsZero() {
		c.FinishedAt = exit.At.UnixNano()
	}
}

// end gives the task its last state. Its ports and address are free by then, so that who comes after it can have
// them at once; what of that fails is done again by clean.
func (f *fleet) end(ctx context.Context, t *task, state swarmpb.TaskState, edit func(*swarmpb.TaskStatus)) {
	if ctx.Err() != nil {
		return
	}
	call, cancel := context.WithTimeout(ctx, runtimeCall)
	defer cancel()
	f.gone(call, t)
	// Its end is told first: to take links away lasts some tens of milliseconds, in which all nodes go on sending to it. clean does that. Host
	// ports are given back before: its successor on this node binds them as soon as it has ended.
	if _, template, status := f.look(t); len(template.GetHostPorts())+len(status.GetHostPorts()) > 0 {
		if err := f.cfg.Network.Detach(call, t.id); err != nil {
			f.log.Warn("cannot detach task from the network", "task", t.id, "error", err)
		}
	}
	if ctx.Err() != nil {
		return
	}
	f.update(t, state, func(s *swarmpb.TaskStatus) {
		if c := s.GetContainer(); c.GetPid() != 0 {
			c.Pid = 0
		}
		if exit := t.comeback.Ended; exit != nil {
			noteExit(s, *exit) // its container may be gone already, and the next one never have been
		}
		if t.hookFailed != "" {
			s.Message = t.hookFailed
		}
		if edit != nil {
			edit(s)
		}
	})
}

// clean takes away what an ended task has left. Its last state is on the disk before its container goes: until
// then the container is the only witness of how it ended.
func (f *fleet) clean(ctx context.Context, t *task) {
	f.mu.Lock()
	removed := t.removed
	f.mu.Unlock()
	if !removed {
		if err := f.db.flushed(ctx); err != nil {
			sleep(ctx, f.cfg.Limits.RetryMin)
			return
		}
	}
	if !f.bequeath(ctx, t) || !f.remove(ctx, t.id) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	t.cleaned, t.template = true, nil
}

// remove takes a container and its network away; false when ctx ended first.
func (f *fleet) remove(ctx context.Context, id string) bool {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	for {
		if !acquire(ctx, f.removals) {
			return false
		}
		call, cancel := context.WithTimeout(ctx, runtimeCall)
		err := errors.Join(f.runtime.Remove(call, id), f.cfg.Network.Detach(call, id))
		cancel()
		<-f.removals
		if ctx.Err() != nil {
			return false
		}
		if f.issues.set("remove container of task "+id, err); err == nil {
			return true
		}
		f.log.Warn("cannot remove container", "task", id, "error", err)
		if !sleep(ctx, pause.next(nil)) {
			return false
		}
	}
}

// forget takes away the last of a task that is not this node's any more.
func (f *fleet) forget(ctx context.Context, t *task) {
	if err := f.runtime.RemoveLogs(ctx, t.id); err != nil {
		f.log.Warn("cannot remove logs", "task", t.id, "error", err)
	}
	if err := f.runtime.RemoveVolumes(ctx, t.id); err != nil {
		f.log.Warn("cannot remove volumes", "task", t.id, "error", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !t.removed || ctx.Err() != nil { // it was assigned again meanwhile
		return
	}
	delete(f.tasks, t.id)
	for _, bucket := range []string{bucketTasks, bucketStatuses, bucketAcked, bucketComebacks} {
		f.db.set(bucket, t.id, nil)
	}
	f.reports.drop(t.id)
}
