package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

// Errors of a log that cannot write. Raft answers both by giving up leadership.
var (
	errWriteDeadline = errors.New("write of the Raft log passed its deadline")
	errWriteHung     = errors.New("an earlier write of the Raft log still hangs")
	errLogClosed     = errors.New("the Raft log is closed")
)

// write runs fn in a transaction. Past the deadline (0: none) it returns errWriteDeadline and leaves the write to
// itself; see logStore.
func (l *logStore) write(deadline time.Duration, fn func(*bbolt.Tx) error) error {
	l.mu.Lock()
	hung := l.hung
	l.mu.Unlock()
	if hung > 0 {
		return errWriteHung
	}
	var finished, abandoned bool // under l.mu
	done := make(chan error, 1)
	go func() {
		l.writing <- struct{}{}
		err := l.stalled()
		if err == nil {
			err = l.db.Update(fn)
		}
		<-l.writing
		l.mu.Lock()
		defer l.mu.Unlock()
		if finished = true; abandoned {
			l.hung--
			l.reload()
			l.logger.Warn("hung write of the Raft log has returned", "path", l.path, "error", err)
		}
		done <- err
	}()
	var expired <-chan time.Time
	if deadline > 0 {
		timer := time.NewTimer(deadline)
		defer timer.Stop()
		expired = timer.C
	}
	reason := errWriteDeadline
	select {
	case err := <-done:
		return err
	case <-l.closing:
		reason = errLogClosed
	case <-expired:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if finished {
		return <-done
	}
	abandoned = true
	l.hung++
	if reason == errWriteDeadline {
		l.logger.Error("write of the Raft log hangs; check the disk", "path", l.path, "deadline", deadline)
	}
	return reason
}

// stalled is where tests make the disk hang or fail.
func (l *logStore) stalled() error {
	if stall := l.stall.Load(); stall != nil {
		return (*stall)()
	}
	return nil
}

// reload reads the bounds from disk after a write of unknown outcome. l.mu is held.
func (l *logStore) reload() {
	l.cache, l.cached = nil, 0
	err := l.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketLog).Cursor()
		l.first, l.last = 0, 0
		if k, _ := c.First(); k != nil {
			l.first = binary.BigEndian.Uint64(k)
		}
		if k, _ := c.Last(); k != nil {
			l.last = binary.BigEndian.Uint64(k)
		}
		return nil
	})
	if err != nil { // only when it is closed
		l.logger.Warn("cannot read the Raft log's bounds", "path", l.path, "error", err)
	}
}

// writtenBytes is what was appended since the last resetWritten.
func (l *logStore) writtenBytes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written
}

func (l *logStore) resetWritten() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written = 0
}

// interrupt ends all waiting for writes, so that Raft's loop can end. The transport must be closed: see stableStore.
func (l *logStore) interrupt() { l.closeOnce.Do(func() { close(l.closing) }) }

// close closes the file. A write that still hangs then is left to end by itself, and the file with it.
func (l *logStore) close() error {
	l.interrupt()
	closeFile := func() error {
		defer func() { <-l.writing }()
		return l.db.Close()
	}
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	select {
	case l.writing <- struct{}{}:
		if err := closeFile(); err != nil {
			return fmt.Errorf("close Raft log %s: %w", l.path, err)
		}
		return nil
	case <-timer.C:
		go func() { l.writing <- struct{}{}; closeFile() }()
		return fmt.Errorf("close Raft log %s: %w", l.path, errWriteHung)
	}
}
