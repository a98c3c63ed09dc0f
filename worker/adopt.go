package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

// Problems by what they are about.
const (
	aboutRuntime = "container runtime"
	aboutNetwork = "network"
)

// restore takes up the records of a former process.
func (f *fleet) restore(k kept) {
	f.version = k.version
	f.logsSwept = k.unread // logs whose tasks cannot be read now have owners all the same
	f.contact.restore(k.contact)
	f.tell.restored(k)
	for key, template := range k.templates {
		f.templates[key] = template
	}
	for id, assigned := range k.tasks {
		status := k.statuses[id]
		if assigned.GetId() != id || !validTaskID(id) {
			continue
		}
		if status.GetTaskId() != id {
			status = &swarmpb.TaskStatus{TaskId: id, State: swarmpb.TaskState_TASK_STATE_ASSIGNED, At: time.Now().UnixNano()}
		}
		f.tasks[id] = &task{
			id: id, assigned: assigned, status: status, doing: hold, wake: make(chan struct{}, 1),
			template: f.templates[templateKey{assigned.GetServiceId(), assigned.GetTemplateVersion()}],
		}
		f.tasks[id].comeback = k.comebacks[id].restored(f.tasks[id].template)
		f.tasks[id].restoreHealth()
	}
	if k.config != nil {
		f.takeConfig(k.config)
	}
}

// adopt compares the records with what the runtime has, and lets the tasks go on from there. It tries until the
// runtime answers: before that nothing can be decided.
func (f *fleet) adopt(ctx context.Context) {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	for {
		call, cancel := context.WithTimeout(ctx, runtimeCall)
		containers, err := f.runtime.List(call)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if f.issues.set(aboutRuntime, err); err == nil {
			for _, id := range f.match(append(containers, f.guests()...)) {
				f.goneByID(ctx, id)
			}
			break
		}
		f.log.Error("container runtime does not answer", "error", err)
		if !sleep(ctx, pause.next(nil)) {
			return
		}
	}
	if err := f.cfg.Network.Sweep(ctx, f.liveIDs()); err != nil && ctx.Err() == nil {
		f.log.Warn("cannot clear the network of tasks that are gone", "error", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.tasks {
		f.kick(t)
	}
	poke(f.tied)
	close(f.adopted)
}

// match brings the records up to what happened while nobody watched, and says which tasks had run and do not any more.
func (f *fleet) match(containers []runtime.Container) (gone []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found := map[string]runtime.Container{}
	for _, c := range containers {
		found[c.ID] = c
		if f.tasks[c.ID] == nil {
			f.strangers[c.ID] = c
		}
	}
	for id, t := range f.tasks {
		c, there := found[id]
		state := t.status.GetState()
		switch {
		case state.Ended():
			t.cleaned = !there // its network is swept
		case t.situation().again:
			// It is being started again: whatever is there now, the step finds out.
		case there && guestOf(t.template) != nil:
			// To attach goes on where it was: a record says nothing of how far that had come.
		case there && c.State != runtime.Created && state <= swarmpb.TaskState_TASK_STATE_STARTING && t.awaitsReady():
			f.setState(t, swarmpb.TaskState_TASK_STATE_STARTING, func(s *swarmpb.TaskStatus) { noteAdopted(s, c) }) // its start goes on
		case there && c.State != runtime.Created:
			f.setState(t, swarmpb.TaskState_TASK_STATE_RUNNING, func(s *swarmpb.TaskStatus) { noteAdopted(s, c) })
		case state > swarmpb.TaskState_TASK_STATE_STARTING:
			// It has run: whatever is left of it, it never runs again.
			f.setState(t, endedState(t), func(s *swarmpb.TaskStatus) { noteGone(s) })
			gone = append(gone, id)
		case t.template == nil:
			f.setState(t, swarmpb.TaskState_TASK_STATE_REJECTED, func(s *swarmpb.TaskStatus) { s.Error = "its template is lost" })
		}
	}
	return gone
}

// noteGone says that a container that had run is not there any more.
func noteGone(s *swarmpb.TaskStatus) {
	s.Error = errGone
	if s.GetContainer() != nil {
		s.Container.Pid = 0
	}
}

func noteAdopted(s *swarmpb.TaskStatus, c runtime.Container) {
	if s.GetContainer() == nil {
		s.Container = &swarmpb.ContainerStatus{}
	}
	s.Container.ContainerId, s.Container.Pid = c.ID, c.Pid
	if c.Digest != "" {
		s.Container.ImageDigest = c.Digest
	}
}

// removeStranger ends a container that no one has assigned to this node.
func (f *fleet) removeStranger(ctx context.Context, c runtime.Container) {
	f.log.Warn("removing a container that is not assigned to this node", "task", c.ID)
	if c.State == runtime.Running {
		call, cancel := context.WithTimeout(ctx, defaultGrace+stopSlack)
		_, err := f.runtime.Stop(call, c.ID, "", defaultGrace)
		cancel()
		if err != nil && ctx.Err() == nil {
			f.log.Warn("cannot stop container", "task", c.ID, "error", err)
		}
	}
	if !f.remove(ctx, c.ID) {
		return
	}
	if err := f.runtime.RemoveLogs(ctx, c.ID); err != nil {
		f.log.Warn("cannot remove logs", "task", c.ID, "error", err)
	}
}

// takeConfig has the network follow the node's configuration, newest only. f.mu is held.
func (f *fleet) takeConfig(config *swarmpb.NodeConfig) {
	if config == nil || f.config != nil && proto.Equal(config, f.config) {
		return
	}
	f.config = config
	f.db.set(bucketNode, keyConfig, config)
	if f.configuring {
		return
	}
	f.configuring = f.spawnLocked(f.configure)
}

func (f *fleet) configure(ctx context.Context) {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	var done *swarmpb.NodeConfig
	for {
		f.mu.Lock()
		want := f.config
		if want == done || ctx.Err() != nil {
			f.configuring = false
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		err := f.cfg.Network.Configure(ctx, want)
		if ctx.Err() != nil {
			continue
		}
		if f.issues.set(aboutNetwork, err); err != nil {
			f.log.Error("cannot configure the network", "block", want.GetUplinkBlock(), "error", err)
			sleep(ctx, pause.next(nil))
			continue
		}
		pause.reset()
		done = want
		f.mu.Lock()
		f.stir()
		f.mu.Unlock()
	}
}

// maxStops bounds the containers that removeAll ends at once: most of that time is waiting for them.
const maxStops = 64

// removeReserve is what removeAll keeps of its time for what comes after the grace periods.
const removeReserve = 30 * time.Second

// removeAll takes everything of this node away.
func (f *fleet) removeAll(ctx context.Context, k kept) error {
	containers, err := f.runtime.List(ctx)
	if err != nil {
		return err
	}
	var group errgroup.Group // each is tried, whatever comes of the others
	group.SetLimit(maxStops)
	errs := make([]error, len(containers))
	for i, c := range containers {
		assigned := k.tasks[c.ID]
		spec := k.templates[templateKey{assigned.GetServiceId(), assigned.GetTemplateVersion()}].GetSpec().GetContainer()
		group.Go(func() error {
			errs[i] = f.removeOne(ctx, c, spec)
			return nil
		})
	}
	_ = group.Wait()
	logged, err := f.runtime.Logged(ctx)
	errs = append(errs, err)
	for _, id := range logged {
		errs = append(errs, f.runtime.RemoveLogs(ctx, id), f.runtime.RemoveVolumes(ctx, id))
	}
	return errors.Join(append(errs, f.cfg.Network.Teardown(ctx))...)
}

func (f *fleet) removeOne(ctx context.Context, c runtime.Container, spec *swarmpb.ContainerSpec) error {
	if c.State == runtime.Running {
		grace := graceOf(spec)
		if deadline, ok := ctx.Deadline(); ok {
			grace = min(grace, max(0, time.Until(deadline)-removeReserve))
		}
		call, cancel := context.WithTimeout(ctx, grace+removeReserve/2)
		defer cancel()
		// Remove kills what Stop could not end.
		if _, err := f.runtime.Stop(call, c.ID, spec.GetStopSignal(), grace); err != nil {
			f.log.Warn("cannot stop container", "task", c.ID, "error", err)
		}
	}
	if !acquire(ctx, f.removals) {
		return ctx.Err()
	}
	defer func() { <-f.removals }()
	if err := f.runtime.Remove(ctx, c.ID); err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	return errors.Join(f.cfg.Network.Detach(ctx, c.ID), f.runtime.RemoveLogs(ctx, c.ID))
}
