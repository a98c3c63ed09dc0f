package replica

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

const (
	healthInterval    = time.Second
	stepDownWindow    = time.Minute
	maxStepDowns      = 100 // counted within the window
	spaceReturnsParts = 8   // space counts as back at the watermark and an eighth of it, so that it does not flap
)

// Health is the state of this member's disk.
type Health struct {
	// LowSpace: less than Tuning.LowSpaceBytes are free.
	LowSpace bool
	// FreeBytes that this process may still write; 0 before the first look.
	FreeBytes uint64
	// StepDowns is how often within the last minute this member lost leadership because a write of the log passed its
	// deadline.
	StepDowns int
}

type health struct {
	mu        sync.Mutex
	free      uint64
	low       bool
	stepDowns []time.Time // oldest first
}

// Health is looked at once a second while Run runs.
func (r *Replica) Health() Health {
	r.health.mu.Lock()
	defer r.health.mu.Unlock()
	h := Health{LowSpace: r.health.low, FreeBytes: r.health.free}
	for _, at := range r.health.stepDowns {
		if time.Since(at) < stepDownWindow {
			h.StepDowns++
		}
	}
	return h
}

// watchSpace looks at the free space until ctx ends.
func (r *Replica) watchSpace(ctx context.Context) {
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for warned := false; ; {
		free, err := r.cfg.FreeBytes(r.cfg.Dir)
		if err == nil {
			r.noteSpace(free)
		} else if !warned {
			r.logger.Warn("cannot tell how much space is free", "dir", r.cfg.Dir, "error", err)
		}
		warned = err != nil
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (r *Replica) noteSpace(free uint64) {
	watermark := r.tuning.LowSpaceBytes
	r.health.mu.Lock()
	defer r.health.mu.Unlock()
	was := r.health.low
	r.health.free = free
	r.health.low = free < watermark || was && free < watermark+watermark/spaceReturnsParts
	switch {
	case r.health.low && !was:
		r.logger.Error("the disk of this manager's data is nearly full; free some space", "dir", r.cfg.Dir, "free", free, "watermark", watermark)
	case was && !r.health.low:
		r.logger.Info("the disk of this manager's data has space again", "dir", r.cfg.Dir, "free", free)
	}
}

// appendFailed is called from Raft's loop. A leader gives up leadership upon it.
func (r *Replica) appendFailed(err error) {
	node := r.node.Load()
	if node == nil || node.State() != raft.Leader {
		return
	}
	term := node.CurrentTerm()
	if r.calls.enter() { // a stop waits for it
		go func() {
			defer r.calls.leave()
			r.summonHeir(term)
		}()
	}
	if !errors.Is(err, errWriteDeadline) && !errors.Is(err, errWriteHung) {
		return
	}
	r.health.mu.Lock()
	defer r.health.mu.Unlock()
	r.health.stepDowns = append(r.health.stepDowns, time.Now())
	r.health.stepDowns = r.health.stepDowns[max(0, len(r.health.stepDowns)-maxStepDowns):]
}

// freeBytes asks the file system; it does not wait for the disk.
func freeBytes(dir string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return s.Bavail * uint64(s.Bsize), nil
}
