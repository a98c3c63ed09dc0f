package worker

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
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

// loggedTask is a task of the node, with what its log takes.
type loggedTask struct {
	id      string
	ended   bool
	endedAt int64
	bytes   int64
}

// trimLogs removes the logs of ended tasks, the oldest first, until all logs together are within their share.
func (f *fleet) trimLogs(ctx context.Context) error {
	tasks := f.loggedTasks()
	if len(tasks) == 0 {
		return nil
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
	for _, t := range tasks {
		if total <= limit {
			return nil
		}
		if !t.ended || t.bytes == 0 {
			continue
		}
		if err := f.runtime.RemoveLogs(ctx, t.id); err != nil {
			return err
		}
		f.log.Info("removed the log of an ended task to make room", "task", t.id, "bytes", t.bytes)
		total -= t.bytes
	}
	return nil
}

func (f *fleet) loggedTasks() []loggedTask {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []loggedTask
	for id, t := range f.tasks {
		// Until the container is gone its logger may still write.
		out = append(out, loggedTask{id: id, ended: t.status.GetState().Ended() && t.cleaned, endedAt: t.status.GetAt()})
	}
	return out
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
