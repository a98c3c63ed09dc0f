package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/runtime"
)

// Kill sends a signal to the container's first process; to one that has ended it does nothing.
func (r *Runtime) Kill(ctx context.Context, id, signal string) error {
	s, err := r.readState(id)
	if err != nil {
		return err
	}
	number, err := parseSignal(signal)
	if err != nil {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	switch {
	case s.Exit != nil:
		return nil
	case !s.started():
		return fmt.Errorf("kill container %s: it has not been started", id)
	}
	if err := r.signal(ctx, s, number); err != nil {
		return fmt.Errorf("kill container %s: %w", id, err)
	}
	return nil
}

// signal goes by pidfd where the process can be seen, which spares a run of the OCI runtime.
func (r *Runtime) signal(ctx context.Context, s *state, number unix.Signal) error {
	if s.Ticks != 0 {
		if number != unix.SIGKILL {
			r.settle(ctx, s)
		}
		return signalProcess(s, number)
	}
	_, err := r.client.TaskService().Kill(r.namespaced(ctx), &tasks.KillRequest{ContainerID: s.ID, Signal: uint32(number)})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// settle waits until the process has become the container's program and has come to rest once, or a second at
// most: a start returns before the exec, what the OCI runtime's part of the process is told is lost, and a
// program told to end before it has set up its handlers ends badly. Only the first signal after a start waits.
func (r *Runtime) settle(ctx context.Context, s *state) {
	m := r.watch(s.ID)
	young := m.young.Load()
	if young == nil {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, young.since.Add(settleAtMost))
	defer cancel()
	for resting := 0; resting < settledAfter; {
		now := programOf(s.Pid)
		if now == nil || !sleep(ctx, settleEvery) {
			break
		}
		if resting++; os.SameFile(young.program, now) || !atRest(s.Pid) {
			resting = 0
		}
	}
	sleep(ctx, time.Until(young.since.Add(settleAge)))
	m.young.Store(nil)
}

// atRest says whether the process waits for something other than a disk or a processor.
func atRest(pid uint32) bool {
	body, err := os.ReadFile(filepath.Join("/proc", strconv.FormatUint(uint64(pid), 10), "stat"))
	if err != nil {
		return true
	}
	fields := bytes.Fields(body[bytes.LastIndexByte(body, ')')+1:])
	return len(fields) == 0 || string(fields[0]) != "R" && string(fields[0]) != "D"
}

func signalProcess(s *state, number unix.Signal) error {
	fd, err := unix.PidfdOpen(int(s.Pid), 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", s.Pid, err)
	}
	defer unix.Close(fd)
	ticks, err := startTicks(filepath.Join("/proc", strconv.FormatUint(uint64(s.Pid), 10)))
	if errors.Is(err, os.ErrNotExist) || err == nil && ticks != s.Ticks {
		return nil // it has ended, and another process may have its number
	}
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, number, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", s.Pid, err)
	}
	return nil
}

// Stop ends a container: the signal (empty = the spec's, the image's, or SIGTERM), the grace period, SIGKILL.
func (r *Runtime) Stop(ctx context.Context, id, signal string, grace time.Duration) (runtime.Exit, error) {
	s, err := r.readState(id)
	if err != nil {
		return runtime.Exit{}, err
	}
	for _, choice := range []string{s.StopSignal, "SIGTERM"} {
		if signal == "" {
			signal = choice
		}
	}
	if grace > 0 {
		patient, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		if err := r.insist(patient, s, signal); err != nil {
			return runtime.Exit{}, err
		}
		exit, err := r.Wait(patient, id)
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return exit, err
		}
	}
	if err := r.Kill(ctx, id, "SIGKILL"); err != nil {
		return runtime.Exit{}, err
	}
	return r.Wait(ctx, id)
}

const (
	settleEvery  = 5 * time.Millisecond
	settledAfter = 3 // looks in a row
	settleAge    = 50 * time.Millisecond
	settleAtMost = time.Second
)

// programOf is the file that a process runs; nil when it cannot be seen.
func programOf(pid uint32) os.FileInfo {
	info, err := os.Stat(filepath.Join("/proc", strconv.FormatUint(uint64(pid), 10), "exe"))
	if err != nil {
		return nil
	}
	return info
}

// insistEvery is how often a young process is looked at for its handler.
const insistEvery = 20 * time.Millisecond

// insist sends the signal and, where the container's first process had no handler for it yet, sends it again
// once there is one: the kernel drops what the first process of a namespace does not handle, so that a stop
// just after a start would last all of the grace period. It returns at the latest when the process has ended.
func (r *Runtime) insist(ctx context.Context, s *state, signal string) error {
	number, err := parseSignal(signal)
	if err != nil {
		return fmt.Errorf("stop container %s: %w", s.ID, err)
	}
	handled := s.Ticks == 0 || number == unix.SIGKILL || handles(s.Pid, number)
	if err := r.Kill(ctx, s.ID, signal); err != nil || handled || !s.started() {
		return err
	}
	ended := r.watch(s.ID).done
	ticker := time.NewTicker(insistEvery)
	defer ticker.Stop()
	for settled := 0; settled < 2; { // a handler just set up may not be the last
		select {
		case <-ticker.C:
		case <-ended:
			return nil
		case <-ctx.Done():
			return nil
		}
		if settled++; !handles(s.Pid, number) {
			settled = 0
		}
	}
	return r.Kill(ctx, s.ID, signal)
}

// handles says whether a process has a handler for the signal, or ignores it on purpose.
func handles(pid uint32, number unix.Signal) bool {
	body, err := os.ReadFile(filepath.Join("/proc", strconv.FormatUint(uint64(pid), 10), "status"))
	if err != nil {
		return true
	}
	for line := range bytes.Lines(body) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if string(name) != "SigCgt" && string(name) != "SigIgn" {
			continue
		}
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err != nil || mask&(1<<(uint(number)-1)) != 0 {
			return true
		}
	}
	return false
}
