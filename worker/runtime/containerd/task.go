package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

// namespaced is what calls to services outside the client's own wrappers need.
func (r *Runtime) namespaced(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, Namespace)
}

// Start starts the container's process. One that runs is left alone; one that has ended is refused: a task is
// one attempt.
func (r *Runtime) Start(ctx context.Context, id string) (uint32, error) {
	ctx = r.namespaced(ctx)
	defer r.ids.lock(id)()
	s, err := r.readState(id)
	if err != nil {
		return 0, err
	}
	switch {
	case s.Exit != nil:
		return 0, startError(id, errors.New("it has ended already; remove it and make it anew"))
	case s.started():
		r.watch(id)
		return s.Pid, nil
	}
	pid, before, err := r.startTask(ctx, s)
	if err != nil {
		return 0, startError(id, err)
	}
	s.Pid, s.Ticks = pid, ticksOf(pid, id)
	if err := r.writeState(s); err != nil {
		return 0, errors.Join(err, r.deleteTask(context.WithoutCancel(ctx), id))
	}
	if m := r.watch(id); before != nil {
		m.young.Store(&young{program: before, since: time.Now()})
	}
	return pid, nil
}

// startTask also gives the program that the process was before it became the container's, if that could be seen.
func (r *Runtime) startTask(ctx context.Context, s *state) (pid uint32, before os.FileInfo, err error) {
	mounts, err := r.client.SnapshotService(s.Snapshotter).Mounts(ctx, s.ID)
	if err != nil {
		return 0, nil, err
	}
	logs := r.logURI(s.ID)
	request := &tasks.CreateTaskRequest{ContainerID: s.ID, Rootfs: mount.ToProto(mounts), Stdout: logs, Stderr: logs}
	if err := os.MkdirAll(r.LogDir(s.ID), 0o700); err != nil {
		return 0, nil, err
	}
	service := r.client.TaskService()
	joined, err := r.joinShim(ctx, s.ID)
	if err != nil {
		return 0, nil, err
	}
	created, err := service.Create(ctx, request)
	joined(err == nil)
	if err == nil {
		before = programOf(created.Pid)
	} else if err = errgrpc.ToNative(err); !errdefs.IsAlreadyExists(err) {
		return 0, nil, err
	} else if pid, err := r.halfStarted(ctx, s.ID); pid != 0 || err != nil {
		return pid, nil, err
	}
	started, err := service.Start(ctx, &tasks.StartRequest{ContainerID: s.ID})
	if err != nil {
		err = errgrpc.ToNative(err)
		if undo := r.deleteTask(context.WithoutCancel(ctx), s.ID); undo != nil {
			r.log.Warn("remove what did not start", "task", s.ID, "error", undo)
		}
		return 0, nil, err
	}
	return started.Pid, before, nil
}

// halfStarted is for a process of ours that died between a start and its record: it gives the pid of a container
// that runs or has run, 0 of one that never did.
func (r *Runtime) halfStarted(ctx context.Context, id string) (uint32, error) {
	got, err := r.client.TaskService().Get(ctx, &tasks.GetRequest{ContainerID: id})
	switch err = errgrpc.ToNative(err); {
	case errdefs.IsNotFound(err), err == nil && got.Process.Status == taskapi.Status_CREATED:
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("ask containerd whether container %s was started: %w", id, err)
	}
	return got.Process.Pid, nil
}

func (r *Runtime) logURI(id string) string {
	query := url.Values{"dir": {r.LogDir(id)}, "size": {strconv.FormatInt(r.LogSize, 10)}, "files": {strconv.Itoa(r.LogFiles)}}
	return (&url.URL{Scheme: "binary", Path: r.logger, RawQuery: query.Encode()}).String()
}

// ticksOf is the start time of a container's first process, or 0 when that cannot be seen from here: then its
// pid is of another namespace, and signals go through the shim.
func ticksOf(pid uint32, id string) uint64 {
	dir := filepath.Join("/proc", strconv.FormatUint(uint64(pid), 10))
	cgroups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil || !bytes.Contains(cgroups, []byte("/"+id)) {
		return 0
	}
	ticks, err := startTicks(dir)
	if err != nil {
		return 0
	}
	return ticks
}

// startTicks is field 22 of stat, counted from behind the program's name, which may hold anything.
func startTicks(dir string) (uint64, error) {
	body, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(body[bytes.LastIndexByte(body, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("%s/stat is not understood", dir)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// deleteTask kills what is left of the process and has the shim end. The caller holds the ID's lock.
func (r *Runtime) deleteTask(ctx context.Context, id string) error {
	defer r.execs.close(id)()
	r.groups.leave(id)
	service := r.client.TaskService()
	for attempt := 0; ; attempt++ {
		_, err := service.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
		if err = errgrpc.ToNative(err); err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if attempt > 0 || errdefs.IsUnavailable(err) || ctx.Err() != nil {
			return translate("end container "+id, err)
		}
		// Most likely it runs: kill its first process, and the kernel all others of its namespace with it; then delete again.
		_, err = service.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL)})
		if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
			return translate("kill container "+id, err)
		}
		if _, err = service.Wait(ctx, &tasks.WaitRequest{ContainerID: id}); err != nil {
			if err = errgrpc.ToNative(err); !errdefs.IsNotFound(err) {
				return translate("wait for container "+id, err)
			}
		}
	}
}
