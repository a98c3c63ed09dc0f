package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/runtime"
)

const (
	// logSpaceEvery is how often the space that logs take is looked at.
	logSpaceEvery = time.Minute
	// logShare is the part of their disk that logs may take, one in so many: beyond it, those of ended tasks go.
	logShare = 10
)

// boundLogs keeps the logs within their share of the disk, until ctx ends.
func (f *fleet) boundLogs(ctx context.Context) error {
	if f.cfg.LogDir == nil {
		return nil
	}
	for sleep(ctx, logSpaceEvery) {
		if err := f.trimLogs(ctx); err != nil && ctx.Err() == nil {
			f.log.Warn("cannot make room among the logs", "error", err)
		}
	}
	return nil
}

// sweepLogs removes, once in a process and after the managers have said what the node has to run, the logs of tasks that the
// node does not have: those whose records were lost, or that a crash left behind.
func (f *fleet) sweepLogs(ctx context.Context) {
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	for {
		err := f.trySweepLogs(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		f.log.Warn("cannot remove the logs of tasks that are gone", "error", err)
		if !sleep(ctx, pause.next(nil)) {
			return
		}
	}
}

func (f *fleet) trySweepLogs(ctx context.Context) error {
	call, cancel := context.WithTimeout(ctx, runtimeCall)
	defer cancel()
	logged, err := f.runtime.Logged(call)
	if err != nil {
		return err
	}
	containers, err := f.runtime.List(call)
	if err != nil {
		return err
	}
	for _, id := range logged {
		// The log of a stranger goes with it.
		stranger := slices.ContainsFunc(containers, func(c runtime.Container) bool { return c.ID == id })
		if known, _ := f.logState(id); known || stranger {
			continue
		}
		if err := errors.Join(f.runtime.RemoveLogs(call, id), f.runtime.RemoveVolumes(call, id)); err != nil {
			return err
		}
		f.log.Info("removed the log of a task that this node does not have", "task", id)
	}
	return nil
}

// loggedTask is a task of the node, with what its log takes.
type loggedTask struct {
	id      string
	ended   bool
	endedAt int64
	bytes   int64
}

// trimLogs removes the logs of ended tasks, the oldest first, until all logs together are within their share.
func (f *fleet) trimLogs(ctx context.Context) error {
	tasks, err := f.loggedTasks(ctx)
	if err != nil || len(tasks) == 0 {
		return err
	}
	limit := f.cfg.Limits.LogBytes
	if limit <= 0 {
		var disk unix.Statfs_t
		dir := filepath.Dir(f.cfg.LogDir(tasks[0].id))
		if err := unix.Statfs(dir, &disk); err != nil {
			return fmt.Errorf("read the size of the disk of %s: %w", dir, err)
		}
		limit = int64(disk.Blocks) / logShare * int64(disk.Bsize)
	}
	var total int64
	for i := range tasks {
		tasks[i].bytes = sizeOf(f.cfg.LogDir(tasks[i].id))
		total += tasks[i].bytes
	}
	slices.SortFunc(tasks, func(a, b loggedTask) int { return cmp.Compare(a.endedAt, b.endedAt) })
	var failed error // one log that cannot go is not in the way of the others
	for _, t := range tasks {
		if total <= limit {
			return failed
		}
		if !t.ended || t.bytes == 0 {
			continue
		}
		if err := f.runtime.RemoveLogs(ctx, t.id); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		f.log.Info("removed the log of an ended task to make room", "task", t.id, "bytes", t.bytes)
		total -= t.bytes
	}
	return failed
}

// loggedTasks also has those that only their logs are left of, as the oldest.
func (f *fleet) loggedTasks(ctx context.Context) ([]loggedTask, error) {
	select {
	case <-f.adopted:
	default:
		return nil, nil // it is not known yet what runs
	}
	logged, err := f.runtime.Logged(ctx)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []loggedTask
	for _, id := range logged {
		_, stranger := f.strangers[id]
		if f.tasks[id] == nil && !stranger {
			out = append(out, loggedTask{id: id, ended: true})
		}
	}
	for id, t := range f.tasks {
		// Until the container is gone its logger may still write.
		out = append(out, loggedTask{id: id, ended: t.status.GetState().Ended() && t.cleaned, endedAt: t.status.GetAt()})
	}
	return out, nil
}

// sizeOf is what the files of a log have in bytes; 0 for a log that is not there.
func sizeOf(dir string) int64 {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	var total int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
	}
	return total
}
