package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd/embedded"
)

// Waits between attempts to reach a containerd that is away.
const (
	retryFirst = 50 * time.Millisecond
	retryLast  = time.Second
	// eventPatience is how long the event of an exit may be behind the disappearance of its task.
	eventPatience = time.Second
)

// monitor holds one Wait in containerd for a running container. exit is set before done is closed.
type monitor struct {
	done chan struct{}
	exit runtime.Exit
	// young is set from the start until the first signal.
	young atomic.Pointer[young]
}

// young is a process just started: since when, and the program it ran before the container's own.
type young struct {
	program os.FileInfo
	since   time.Time
}

// seen is what events said of a container.
type seen struct {
	oom  bool
	exit *runtime.Exit
}

// watch makes sure that somebody waits for the container.
func (r *Runtime) watch(id string) *monitor {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, ok := r.monitors[id]; ok {
		return m
	}
	m := &monitor{done: make(chan struct{})}
	r.monitors[id] = m
	if r.ctx.Err() != nil { // Run has ended: nobody will wait any more
		return m
	}
	r.tasks.Go(func() { r.follow(id, m) })
	return m
}

// follow waits for the end, keeps it in the container's state, tells the waiters and lets the shim go.
func (r *Runtime) follow(id string, m *monitor) {
	r.pin(r.ctx, id)
	exit, ok := r.awaitExit(id)
	if !ok {
		return
	}
	exit.OOMKilled = r.oomKilled(id)
	if young := m.young.Load(); young != nil {
		exit.Reason = r.reasonOf(id, exit, young.since)
	}
	kept := r.keepExit(id, m, exit)
	m.exit = exit
	close(m.done)
	defer r.ids.lock(id)()
	r.mu.Lock()
	current := r.monitors[id]
	r.mu.Unlock()
	switch {
	case current == nil: // removed meanwhile, which may have been before the shim was pinned
		r.unpin(r.ctx, id)
	case current != m: // and made anew: the pin is the new one's
	case !kept: // then its shim is the one that knows, until the container is removed
	default:
		if err := r.deleteTask(r.ctx, id); err != nil && r.ctx.Err() == nil {
			r.log.Warn("let the shim of an ended container go", "task", id, "error", err)
		}
		r.unpin(r.ctx, id)
	}
}

// keepExit writes the exit down; false when that failed, as on a full disk, or the container was removed meanwhile.
func (r *Runtime) keepExit(id string, m *monitor, exit runtime.Exit) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.monitors[id] != m {
		return false
	}
	s, err := r.readState(id)
	if err == nil {
		s.Exit = &exit
		err = r.writeState(s)
	}
	if err != nil {
		r.log.Warn("write down how a container ended", "task", id, "error", err)
	}
	return err == nil
}

// exitOf is how a container ended that was started, also when that could not be written down; nil while it runs.
func (r *Runtime) exitOf(s *state) *runtime.Exit {
	if s.Exit != nil {
		exit := *s.Exit
		return &exit
	}
	r.mu.Lock()
	m := r.monitors[s.ID]
	r.mu.Unlock()
	if m == nil {
		return nil
	}
	select {
	case <-m.done:
		exit := m.exit
		return &exit
	default:
		return nil
	}
}

// awaitExit asks until there is an answer. A containerd that restarts answers once it has loaded its tasks, so
// a task it does not know has ended. False: we are to stop.
func (r *Runtime) awaitExit(id string) (runtime.Exit, bool) {
	known := false // containerd knew the task while we were listening for events
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		got, err := r.client.TaskService().Wait(r.ctx, &tasks.WaitRequest{ContainerID: id})
		if err == nil {
			return runtime.Exit{Code: got.ExitStatus, At: protobuf.FromTimestamp(got.ExitedAt)}, true
		}
		if r.ctx.Err() != nil {
			return runtime.Exit{}, false
		}
		if errdefs.IsNotFound(errgrpc.ToNative(err)) {
			return r.lostExit(id, known)
		}
		known = true
		if !sleep(r.ctx, wait) {
			return runtime.Exit{}, false
		}
	}
}

// lostExit is of a task that containerd no longer knows: from what was recorded before it started again, from
// its event, or unknown.
func (r *Runtime) lostExit(id string, known bool) (runtime.Exit, bool) {
	if r.ExitDir != "" {
		if exit, ok := embedded.ReadExit(r.ExitDir, id); ok {
			return runtime.Exit{Code: exit.Code, At: exit.At}, true
		}
	}
	ctx, cancel := context.WithTimeout(r.ctx, eventPatience)
	defer cancel()
	for {
		r.mu.Lock()
		exit := r.seen[id].exit
		r.mu.Unlock()
		if exit != nil {
			return *exit, true
		}
		if !known || !sleep(ctx, retryFirst) {
			return runtime.Exit{At: time.Now(), Unknown: true}, r.ctx.Err() == nil
		}
	}
}

// Wait returns when the process has ended; at once when it already has.
func (r *Runtime) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	s, err := r.readState(id)
	if err != nil {
		return runtime.Exit{}, err
	}
	switch {
	case s.Exit != nil:
		return *s.Exit, nil
	case !s.started():
		return runtime.Exit{}, fmt.Errorf("wait for container %s: it has not been started", id)
	}
	m := r.watch(id)
	select {
	case <-m.done:
		return m.exit, nil
	case <-ctx.Done():
		return runtime.Exit{}, fmt.Errorf("wait for container %s: %w", id, ctx.Err())
	case <-r.ctx.Done():
		return runtime.Exit{}, fmt.Errorf("wait for container %s: the runtime has ended: %w", id, context.Canceled)
	}
}

// adopt watches every container that was started and has not ended, as far as we know. What ended while
// nobody watched is written down before it returns; without an answer of containerd it is an error.
func (r *Runtime) adopt(ctx context.Context) error {
	ids, err := r.known()
	if err != nil {
		return err
	}
	var fresh []string
	for _, id := range ids {
		s, err := r.readState(id)
		if err != nil || !s.started() || s.Exit != nil {
			continue
		}
		r.mu.Lock()
		_, watched := r.monitors[id]
		r.mu.Unlock()
		if !watched {
			fresh = append(fresh, id)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	running, err := r.runningTasks(ctx)
	if err != nil {
		return err
	}
	var ended []*monitor
	for _, id := range fresh {
		if m := r.watch(id); !running[id] {
			ended = append(ended, m)
		} else if s, err := r.readState(id); err == nil {
			r.sweepExecs(s)
		}
	}
	for _, m := range ended {
		select {
		case <-m.done:
		case <-ctx.Done():
			return fmt.Errorf("find how containers ended: %w", ctx.Err())
		case <-r.ctx.Done():
			return context.Canceled
		}
	}
	return nil
}

func (r *Runtime) runningTasks(ctx context.Context) (map[string]bool, error) {
	got, err := r.client.TaskService().List(r.namespaced(ctx), &tasks.ListTasksRequest{})
	if err != nil {
		return nil, translate("list running containers", errgrpc.ToNative(err))
	}
	running := map[string]bool{}
	for _, t := range got.Tasks {
		running[t.ID] = t.Status != taskapi.Status_STOPPED
	}
	return running, nil
}

// forget drops what is remembered of a removed container. Its waiters are told by the monitor.
func (r *Runtime) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.monitors, id)
	delete(r.seen, id)
}

// oomKilled asks the container's memory cgroup, which lives until its task is deleted, and what events said.
func (r *Runtime) oomKilled(id string) bool {
	r.mu.Lock()
	oom := r.seen[id].oom
	r.mu.Unlock()
	if oom {
		return true
	}
	body, err := os.ReadFile(r.host.memoryFile(filepath.Join(r.CgroupParent, id), "memory.oom_control", "memory.events"))
	return err == nil && oomKills(body) > 0
}

// oomKills reads the count that both cgroup versions give on a line of its own.
func oomKills(body []byte) int {
	for line := range bytes.Lines(body) {
		if fields := bytes.Fields(line); len(fields) == 2 && string(fields[0]) == "oom_kill" {
			n, err := strconv.Atoi(string(fields[1]))
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// watchEvents hears of what a Wait cannot tell: a container out of memory, and the exit of one whose shim
// died. Events are never replayed, so after a break everything is looked at again, with the stream already open.
func (r *Runtime) watchEvents(ctx context.Context) {
	for wait := retryFirst; ; wait = min(2*wait, retryLast) {
		stream, errs := r.client.Subscribe(ctx, `topic=="/tasks/oom",namespace==`+Namespace, `topic=="/tasks/exit",namespace==`+Namespace)
		if err := r.adopt(ctx); err == nil {
			wait = retryFirst
			r.collectSoon()
		}
		r.hear(stream, errs)
		if !sleep(ctx, wait) {
			return
		}
	}
}

func (r *Runtime) hear(stream <-chan *events.Envelope, errs <-chan error) {
	for {
		select {
		case envelope := <-stream:
			if envelope == nil {
				return
			}
			event, err := typeurl.UnmarshalAny(envelope.Event)
			if err != nil {
				r.log.Warn("read event of containerd", "topic", envelope.Topic, "error", err)
				continue
			}
			r.note(event)
		case err := <-errs:
			if err != nil && !errors.Is(err, context.Canceled) && r.ctx.Err() == nil {
				r.log.Debug("events of containerd broke off", "error", err)
			}
			return
		}
	}
}

func (r *Runtime) note(event any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e := event.(type) {
	case *eventsapi.TaskOOM:
		if _, watched := r.monitors[e.ContainerID]; watched {
			s := r.seen[e.ContainerID]
			s.oom = true
			r.seen[e.ContainerID] = s
		}
	case *eventsapi.TaskExit:
		if _, watched := r.monitors[e.ContainerID]; watched && e.ID == e.ContainerID {
			s := r.seen[e.ContainerID]
			s.exit = &runtime.Exit{Code: e.ExitStatus, At: protobuf.FromTimestamp(e.ExitedAt)}
			r.seen[e.ContainerID] = s
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
