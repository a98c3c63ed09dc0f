package replica

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

const (
	snapshotsKept  = 2
	snapshotSuffix = ".snapshot"
	partialSuffix  = ".partial"
	damagedSuffix  = ".damaged" // set aside, removed when two good ones are there again
)

// snapshotStore is Raft's snapshot store: sealed files, of which the two newest are kept. A snapshot counts, and Raft
// may compact its log, only after it was read back from disk and passed check.
type snapshotStore struct {
	dir    string
	sealer *sealer
	logger *slog.Logger
	check  func(io.Reader) error
	taken  func()                  // a snapshot has come to count
	remove func(path string) error // os.Remove; tests: a disk that hangs
	// membership is what a snapshot that ends there must hold, where this member knows better than Raft; see memberships.
	membership func(index, term uint64) (membership, bool)

	mu    sync.Mutex
	known []snapshotInfo // newest first
}

type snapshotInfo struct {
	raft.SnapshotMeta
	// received from a leader: the log before it need not lead up to it.
	received bool
}

// openSnapshotStore lists the snapshots whose meta opens and sets the others aside; lost is the highest index among
// all that were set aside. What is in a snapshot is not read yet.
func openSnapshotStore(dir string, s *sealer, check func(io.Reader) error, logger *slog.Logger) (_ *snapshotStore, lost uint64, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, 0, fmt.Errorf("open snapshots: %w", err)
	}
	ss := &snapshotStore{dir: dir, sealer: s, logger: logger, check: check, remove: os.Remove}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, fmt.Errorf("open snapshots: %w", err)
	}
	for _, file := range files {
		if strings.HasSuffix(file.Name(), partialSuffix) {
			if err := os.Remove(filepath.Join(dir, file.Name())); err != nil {
				return nil, 0, fmt.Errorf("remove partial snapshot: %w", err)
			}
			continue
		}
		if strings.HasSuffix(file.Name(), damagedSuffix) {
			lost = max(lost, snapshotIndex(file.Name()))
			continue
		}
		id, ok := strings.CutSuffix(file.Name(), snapshotSuffix)
		if !ok {
			continue
		}
		r, err := openSnapshotFile(ss.path(id), id, s)
		if err != nil {
			lost = max(lost, snapshotIndex(id))
			ss.setAside(id, err)
			continue
		}
		r.Close()
		ss.known = append(ss.known, snapshotInfo{SnapshotMeta: r.meta})
	}
	ss.sort()
	return ss, lost, nil
}

func (ss *snapshotStore) path(id string) string { return filepath.Join(ss.dir, id+snapshotSuffix) }

// newSnapshotID and snapshotIndex: an ID tells the index even when the file does not open.
func newSnapshotID(index, term uint64) string {
	unique := make([]byte, 8)
	rand.Read(unique)
	return fmt.Sprintf("%d-%d-%s", index, term, hex.EncodeToString(unique))
}

func snapshotIndex(id string) uint64 {
	text, _, _ := strings.Cut(id, "-")
	index, _ := strconv.ParseUint(text, 10, 64)
	return index
}

func (ss *snapshotStore) sort() {
	slices.SortStableFunc(ss.known, func(a, b snapshotInfo) int {
		return cmp.Or(cmp.Compare(b.Index, a.Index), cmp.Compare(b.Term, a.Term))
	})
}

// setAside takes a damaged snapshot out of use; the file stays for whoever wants to look at it.
func (ss *snapshotStore) setAside(id string, reason error) {
	ss.logger.Error("snapshot cannot be read and is set aside", "snapshot", ss.path(id), "error", reason)
	if err := os.Rename(ss.path(id), ss.path(id)+damagedSuffix); err != nil {
		ss.logger.Error("cannot set the snapshot aside", "snapshot", ss.path(id), "error", err)
	}
	ss.known = slices.DeleteFunc(ss.known, func(s snapshotInfo) bool { return s.ID == id })
}

// reject sets aside a snapshot whose content turned out to be damaged.
func (ss *snapshotStore) reject(id string, reason error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.setAside(id, reason)
}

// retention is what the log must keep: all after the older snapshot, so that it can stand in for the newest. With one
// snapshot alone that is everything, and after one that came from a leader nothing.
func (ss *snapshotStore) retention() (keep, newest uint64) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	switch {
	case len(ss.known) == 0:
		return 0, 0
	case ss.known[0].received:
		return ss.known[0].Index, ss.known[0].Index
	case len(ss.known) == 1:
		return 0, ss.known[0].Index
	}
	return ss.known[1].Index, ss.known[0].Index
}

// ends returns the term of the newest snapshot if it ends at index.
func (ss *snapshotStore) ends(index uint64) (term uint64, ok bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if len(ss.known) == 0 || ss.known[0].Index != index {
		return 0, false
	}
	return ss.known[0].Term, true
}

// List implements raft.SnapshotStore.
func (ss *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	list := make([]*raft.SnapshotMeta, len(ss.known))
	for i, s := range ss.known {
		list[i] = &s.SnapshotMeta
	}
	return list, nil
}

// Open implements raft.SnapshotStore.
func (ss *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	r, err := openSnapshotFile(ss.path(id), id, ss.sealer)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", ss.path(id), err)
	}
	return &r.meta, r, nil
}

// fullCheckBytes is the size of a snapshot up to which a store is made of it to see that it is good: of a larger one that
// would take as much memory as the state, and longer than all else. One that this process wrote is compared then with what
// was to be written, byte by byte.
const fullCheckBytes = 64 << 20

// verify reads the snapshot from disk and has its content checked. again writes once more what was written; nil: nobody can.
func (ss *snapshotStore) verify(id string, again func(io.Writer) error) error {
	meta, r, err := ss.Open(id)
	if err != nil {
		return err
	}
	defer r.Close()
	if again != nil && meta.Size > fullCheckBytes {
		err = again(&comparer{with: r})
	} else {
		err = ss.check(r)
	}
	if err == nil {
		err = expectEnd(r)
	}
	if err != nil {
		return fmt.Errorf("verify snapshot %s: %w", ss.path(id), err)
	}
	return nil
}

// comparer compares what is written to it with what a reader has.
type comparer struct {
	with io.Reader
	buf  []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	c.buf = slices.Grow(c.buf[:0], len(p))[:len(p)]
	if _, err := io.ReadFull(c.with, c.buf); err != nil {
		return 0, fmt.Errorf("it ends too early: %w", err)
	}
	if !bytes.Equal(c.buf, p) {
		return 0, errors.New("it is not what was to be written")
	}
	return len(p), nil
}

// expectEnd authenticates the end of a snapshot whose content was read.
func expectEnd(r io.Reader) error {
	n, err := io.Copy(io.Discard, r)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d bytes follow its last row", n)
	}
	return err
}

// Create implements raft.SnapshotStore.
func (ss *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	if ss.membership != nil {
		if m, ok := ss.membership(index, term); ok {
			configuration, configurationIndex = raft.Configuration{Servers: m.servers}, m.index
		}
	}
	meta := raft.SnapshotMeta{
		Version: version, ID: newSnapshotID(index, term), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}
	partial := filepath.Join(ss.dir, meta.ID+partialSuffix)
	f, err := os.OpenFile(partial, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	w, err := newSnapshotWriter(f, ss.sealer, &meta)
	if err != nil {
		f.Close()
		os.Remove(partial)
		return nil, fmt.Errorf("create snapshot %s: %w", partial, err)
	}
	return &snapshotSink{store: ss, info: snapshotInfo{SnapshotMeta: meta, received: true}, file: f, w: w}, nil
}

// snapshotSink is one snapshot being written. One that the FSM writes is marked so by markLocal.
type snapshotSink struct {
	store *snapshotStore
	info  snapshotInfo
	file  *os.File
	w     *snapshotWriter
	// again writes the content once more, for one that the FSM writes.
	again func(io.Writer) error
	done  bool
	err   error
}

func (s *snapshotSink) ID() string                  { return s.info.ID }
func (s *snapshotSink) Write(p []byte) (int, error) { return s.w.Write(p) }

// markLocal says that the FSM writes it, and how it does.
func (s *snapshotSink) markLocal(again func(io.Writer) error) {
	s.info.received, s.again = false, again
}

// Cancel implements raft.SnapshotSink.
func (s *snapshotSink) Cancel() error {
	if s.done {
		return nil
	}
	s.done, s.err = true, errors.New("snapshot was cancelled")
	return errors.Join(s.file.Close(), os.Remove(s.file.Name()))
}

// Close implements raft.SnapshotSink: an error means that there is no such snapshot.
func (s *snapshotSink) Close() error {
	if s.done {
		return s.err
	}
	s.done = true
	s.err = s.commit()
	if s.err != nil {
		os.Remove(s.file.Name())
		os.Remove(s.store.path(s.info.ID))
		s.err = fmt.Errorf("finish snapshot %s: %w", s.info.ID, s.err)
	}
	return s.err
}

func (s *snapshotSink) commit() error {
	err := s.w.finish()
	if err == nil {
		err = s.file.Sync()
	}
	if err == nil {
		// So that verify reads the disk and not the page cache; where this is not possible it reads what there is.
		_ = unix.Fadvise(int(s.file.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	if closeErr := s.file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(s.file.Name(), s.store.path(s.info.ID))
	}
	if err == nil {
		err = syncDir(s.store.dir)
	}
	if err == nil {
		err = s.store.verify(s.info.ID, s.again)
	}
	if err != nil {
		return err
	}
	s.info.Size = s.w.size
	s.store.add(s.info)
	return nil
}

// add makes a verified snapshot count and removes what is no longer needed.
func (ss *snapshotStore) add(info snapshotInfo) {
	old := ss.count(info)
	// Both without the lock: the log asks for it under its own, and a removal takes as long as the disk hangs.
	if ss.taken != nil {
		ss.taken()
	}
	for _, id := range old {
		if err := ss.remove(ss.path(id)); err != nil {
			ss.logger.Warn("cannot remove old snapshot", "snapshot", ss.path(id), "error", err)
		}
	}
	if list, _ := ss.List(); len(list) == snapshotsKept {
		damaged, _ := filepath.Glob(filepath.Join(ss.dir, "*"+damagedSuffix))
		for _, path := range damaged {
			ss.remove(path)
		}
	}
}

// count enters a snapshot, and returns the IDs of those that count no more.
func (ss *snapshotStore) count(info snapshotInfo) (old []string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	// First among equals: a leader may send what this member has already, and Raft opens what has just come.
	ss.known = slices.Insert(ss.known, 0, info)
	ss.sort()
	for len(ss.known) > snapshotsKept {
		old = append(old, ss.known[len(ss.known)-1].ID)
		ss.known = ss.known[:len(ss.known)-1]
	}
	return old
}
