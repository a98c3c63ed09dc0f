package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

const (
	cacheEntries  = 4096     // recent entries kept in memory for followers and for Apply
	cacheBytes    = 32 << 20 // and their size at most
	deleteChunk   = 1024     // entries a compaction removes in one transaction, so that appends are not held up
	lockWait      = time.Second
	closeWait     = 2 * time.Second
	stableBackoff = 50 * time.Millisecond
	logFillRatio  = 0.9 // keys only ever come at the end
	newFileTx     = 1   // bbolt's newest transaction in a file that was never written to
)

var (
	bucketLog    = []byte("log")
	bucketStable = []byte("stable")
	keyTerm      = []byte("CurrentTerm") // Raft's name for it
)

var errLogInUse = errors.New("another process has it open")

// retention says what compaction must leave: nothing above keep may go as long as it is not above newest, the index
// of the newest snapshot.
type retention func() (keep, newest uint64)

// logStore is Raft's log and stable store in one bbolt file, each record sealed. It holds one run of indexes without
// a gap. A write that passes the deadline is an error although its outcome is not known; until it returns every
// other write fails too, and then the bounds are read again from disk.
//
// A flipped bit in a page can make bbolt forget elements without a word. So each bucket's sequence, which lies in
// another page than its records, says what must be there: the log's last index (0: empty), and how many stable values.
//
// Appending at an index replaces everything from there on. So what a late write left behind is overwritten, and
// Raft's removal of a conflicting suffix, which it always follows with an append at the same place, happens in the
// append's transaction: a removal without its append would leave Raft believing in entries that are gone.
type logStore struct {
	path     string
	db       *bbolt.DB
	sealer   *sealer
	logger   *slog.Logger
	deadline time.Duration
	retain   retention
	ends     func(index uint64) (term uint64, ok bool) // the newest snapshot's, if it ends there
	closing  chan struct{}                             // by interrupt
	writing  chan struct{}                             // holds the one write under way
	failed   func(error)                               // an append failed
	stall    atomic.Pointer[func() error]              // tests: a disk that hangs or fails

	closeOnce sync.Once

	mu          sync.Mutex
	first, last uint64 // 0: empty
	emptied     uint64 // while empty: the last index that was removed
	cache       []raft.Log
	cached      int    // bytes in cache
	written     uint64 // bytes appended since resetWritten
	hung        int    // writes past their deadline that have not returned
	memberships memberships
}

// logDamage is a stretch of the log that cannot be read.
type logDamage struct {
	first, last uint64
	err         error
}

// openLogStore opens the file at path, having read every record once, and reports the damage it found, if any. An
// error means that the file as a whole cannot be used.
func openLogStore(path string, s *sealer, deadline time.Duration, logger *slog.Logger) (*logStore, []logDamage, error) {
	l := &logStore{
		path: path, sealer: s, deadline: deadline, logger: logger,
		closing: make(chan struct{}), writing: make(chan struct{}, 1),
	}
	// All is read before it is opened for writing: see checkPages.
	var damage []logDamage
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		err := openGuarded(path, true, func(db *bbolt.DB) (err error) {
			if err = checkPages(path); err == nil {
				damage, err = l.check(db)
			}
			return errors.Join(err, db.Close())
		})
		if err != nil {
			return nil, nil, fmt.Errorf("open Raft log %s: %w", path, err)
		}
	}
	err := openGuarded(path, false, func(db *bbolt.DB) error {
		l.db = db
		return db.Update(func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucketIfNotExists(bucketLog)
			if err != nil {
				return err
			}
			_, err = tx.CreateBucketIfNotExists(bucketStable)
			return err
		})
	})
	if err != nil {
		return nil, nil, fmt.Errorf("open Raft log %s: %w", path, err)
	}
	return l, damage, nil
}

// openGuarded opens the file for use. bbolt panics on pages that make no sense, and a sector that cannot be read
// faults in its map: both are errors here, and leave the file closed.
func openGuarded(path string, readOnly bool, use func(*bbolt.DB) error) (err error) {
	var file *os.File
	options := &bbolt.Options{
		Timeout: lockWait, ReadOnly: readOnly, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, NoStatistics: true,
		OpenFile: func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
			file, err = os.OpenFile(name, flag, mode)
			return file, err
		},
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("its pages are damaged: %v", p)
		}
		if err != nil && file != nil {
			// The map that bbolt leaves behind would keep the lock. A second close does no harm.
			_ = unix.Flock(int(file.Fd()), unix.LOCK_UN)
			file.Close()
		}
	}()
	db, err := bbolt.Open(path, 0o600, options)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%w; stop the other swarmd", errLogInUse)
	}
	if err != nil {
		return err
	}
	return use(db)
}

// check opens every record and sets the bounds.
func (l *logStore) check(db *bbolt.DB) ([]logDamage, error) {
	var damage []logDamage
	err := db.View(func(tx *bbolt.Tx) error {
		entries, values := tx.Bucket(bucketLog), tx.Bucket(bucketStable)
		if entries == nil || values == nil {
			if tx.ID() > newFileTx {
				return errors.New("its buckets are missing")
			}
			return nil // made, and then power was lost
		}
		err := entries.ForEach(func(k, v []byte) error {
			if len(k) != 8 {
				return fmt.Errorf("it has a key of %d bytes", len(k))
			}
			index := binary.BigEndian.Uint64(k)
			if l.first == 0 {
				l.first = index
			} else if index != l.last+1 {
				damage = append(damage, logDamage{l.last + 1, index - 1, errors.New("missing")})
			}
			l.last = index
			var entry raft.Log
			if err := l.sealer.openLog(index, v, &entry); err != nil {
				damage = append(damage, logDamage{index, index, err})
			} else {
				l.memberships.append(&entry)
			}
			return nil
		})
		if err != nil {
			return err
		}
		switch end := entries.Sequence(); {
		case end > l.last:
			damage = append(damage, logDamage{l.last + 1, end, errors.New("missing")})
		case end < l.last:
			return fmt.Errorf("it goes on to entry %d after its end at %d", l.last, end)
		}
		count := uint64(0)
		err = values.ForEach(func(k, v []byte) error {
			count++
			if _, err := l.sealer.openStable(string(k), v); err != nil {
				return fmt.Errorf("value %q: %w", k, err)
			}
			return nil
		})
		if err == nil && count != values.Sequence() {
			err = fmt.Errorf("it holds %d of Raft's values instead of %d", count, values.Sequence())
		}
		return err
	})
	return damage, err
}

// IsMonotonic implements raft.MonotonicLogStore: after a snapshot from the leader Raft removes the log before it
// instead of leaving a gap and entries that may never have been committed.
func (l *logStore) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (l *logStore) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, nil
}

// LastIndex implements raft.LogStore. A log that was emptied does not begin at 0 again: Raft counts the entries since
// its last snapshot by it, and would snapshot without end.
func (l *logStore) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.last, l.emptied), nil
}

// GetLog implements raft.LogStore.
func (l *logStore) GetLog(index uint64, entry *raft.Log) error {
	l.mu.Lock()
	if n := len(l.cache); n > 0 && index >= l.cache[0].Index && index <= l.cache[n-1].Index {
		*entry = l.cache[index-l.cache[0].Index]
		l.mu.Unlock()
		return nil
	}
	within := l.first != 0 && index >= l.first && index <= l.last
	l.mu.Unlock()
	if !within {
		return l.snapshotEntry(index, entry)
	}
	return l.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucketLog).Get(indexKey(index))
		if v == nil {
			return raft.ErrLogNotFound
		}
		if err := l.sealer.openLog(index, v, entry); err != nil {
			return fmt.Errorf("read entry %d of Raft log %s: %w", index, l.path, err)
		}
		return nil
	})
}

// snapshotEntry stands in for the entry at which a snapshot ends, when the log begins after it. A follower that has
// entries beyond its snapshot is asked for that entry's term, and Raft does not think of the snapshot then: without an
// answer the leader would send the snapshot again and again. It is never sent on as an entry: for that the one before
// would have to be there too.
func (l *logStore) snapshotEntry(index uint64, entry *raft.Log) error {
	if l.ends != nil {
		if term, ok := l.ends(index); ok {
			*entry = raft.Log{Index: index, Term: term, Type: raft.LogNoop}
			return nil
		}
	}
	return raft.ErrLogNotFound
}

// StoreLog implements raft.LogStore.
func (l *logStore) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore: the entries go to disk in one transaction, in place of all from the first on.
func (l *logStore) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	from := entries[0].Index
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	if last != 0 && from > last+1 {
		return fmt.Errorf("append entry %d to Raft log %s: its last is %d", from, l.path, last)
	}
	records, size := make([][]byte, len(entries)), 0
	for i, e := range entries {
		if e.Index != from+uint64(i) {
			return fmt.Errorf("append entries to Raft log %s: %d does not follow %d", l.path, e.Index, from+uint64(i)-1)
		}
		records[i] = l.sealer.sealLog(e)
		size += len(records[i])
	}
	err := l.write(l.deadline, func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketLog)
		b.FillPercent = logFillRatio
		for index := from + uint64(len(entries)); index <= last; index++ {
			if err := b.Delete(indexKey(index)); err != nil {
				return err
			}
		}
		for i, record := range records {
			if err := b.Put(indexKey(from+uint64(i)), record); err != nil {
				return err
			}
		}
		return b.SetSequence(from + uint64(len(entries)) - 1)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.memberships.fail(entries)
		if l.failed != nil {
			l.failed(err)
		}
		return fmt.Errorf("append entries %d to %d to Raft log: %w", from, from+uint64(len(entries))-1, err)
	}
	l.memberships.cut(from)
	for _, e := range entries {
		l.memberships.append(e)
	}
	if l.first == 0 || from < l.first {
		l.first = from
	}
	l.last, l.emptied = from+uint64(len(entries))-1, 0
	l.written += uint64(size)
	l.remember(entries)
	return nil
}

// remember keeps entries in the cache, whose indexes are without a gap. l.mu is held.
func (l *logStore) remember(entries []*raft.Log) {
	from := entries[0].Index
	if n := len(l.cache); n > 0 && (from < l.cache[0].Index || from > l.cache[n-1].Index+1) {
		l.cache, l.cached = nil, 0
	}
	for n := len(l.cache); n > 0 && l.cache[n-1].Index >= from; n-- {
		l.cached -= len(l.cache[n-1].Data)
		l.cache = l.cache[:n-1]
	}
	for _, e := range entries {
		l.cache = append(l.cache, *e)
		l.cached += len(e.Data)
	}
	drop := 0
	for len(l.cache)-drop > cacheEntries || l.cached > cacheBytes && len(l.cache)-drop > 1 {
		l.cached -= len(l.cache[drop].Data)
		l.cache[drop] = raft.Log{}
		drop++
	}
	l.cache = l.cache[drop:]
}

// DeleteRange implements raft.LogStore. What it leaves: see logStore and retention.
func (l *logStore) DeleteRange(from, to uint64) error {
	var keep, newest uint64
	if l.retain != nil {
		keep, newest = l.retain()
	}
	l.mu.Lock()
	first, last := l.first, l.last
	l.mu.Unlock()
	switch {
	case to <= newest:
		to = min(to, keep)
	case from > first:
		return nil // a conflicting suffix: goes with the append that replaces it
	}
	from, to = max(from, first), min(to, last)
	for first != 0 && from <= to {
		end := min(to, from+deleteChunk-1)
		if err := l.deleteChunk(from, end); err != nil {
			return fmt.Errorf("remove entries %d to %d from Raft log: %w", from, end, err)
		}
		from = end + 1
	}
	return nil
}

// deleteChunk removes the entries from..to, which are the log's first.
func (l *logStore) deleteChunk(from, to uint64) error {
	err := l.write(0, func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketLog)
		for index := from; index <= to; index++ {
			if err := b.Delete(indexKey(index)); err != nil {
				return err
			}
		}
		if to >= b.Sequence() {
			return b.SetSequence(0)
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first = to + 1; l.first > l.last {
		l.first, l.last = 0, 0
		if l.emptied = to; l.retain != nil {
			_, newest := l.retain()
			l.emptied = max(to, newest)
		}
	}
	for len(l.cache) > 0 && l.cache[0].Index <= to {
		l.cached -= len(l.cache[0].Data)
		l.cache = l.cache[1:]
	}
	return nil
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }
