package replica

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// fsm feeds committed entries to the store, and puts another store in its place when Raft restores a snapshot.
//
// "Applied" means the index of the current View: only entries with proposals reach the store, so an index that is
// waited for must be that of such an entry (see Replica.readIndex).
type fsm struct {
	logger  *slog.Logger
	current atomic.Pointer[store.Store]

	mu   sync.Mutex
	wake chan struct{} // closed when applied advances; nil when nobody waits
}

// undecodable is the response of an entry that is not an Entry.
type undecodable struct{ err error }

func newFSM(s *store.Store, logger *slog.Logger) *fsm {
	f := &fsm{logger: logger}
	f.current.Store(s)
	return f
}

// Apply implements raft.FSM.
func (f *fsm) Apply(entry *raft.Log) any { return f.ApplyBatch([]*raft.Log{entry})[0] }

// ApplyBatch implements raft.BatchingFSM. The response of an entry is its proposals' []*swarmpb.Result.
func (f *fsm) ApplyBatch(entries []*raft.Log) []any {
	responses := make([]any, len(entries))
	s := f.current.Load()
	for i, l := range entries {
		if l.Type != raft.LogCommand {
			continue
		}
		entry := new(swarmpb.Entry)
		if err := proto.Unmarshal(l.Data, entry); err != nil {
			// Every replica has the same bytes and comes to the same end: nothing is written at this index.
			f.logger.Error("Raft entry cannot be decoded and is skipped", "index", l.Index, "error", err)
			s.Apply(l.Index, l.Term, &swarmpb.Entry{})
			responses[i] = undecodable{err}
			continue
		}
		responses[i] = s.Apply(l.Index, l.Term, entry)
	}
	f.advanced()
	return responses
}

func (f *fsm) advanced() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
}

// wait returns when the store has applied index.
func (f *fsm) wait(ctx context.Context, index uint64) error {
	for {
		if f.current.Load().View().Index() >= index {
			return nil
		}
		f.mu.Lock()
		if f.wake == nil {
			f.wake = make(chan struct{})
		}
		wake := f.wake
		f.mu.Unlock()
		if f.current.Load().View().Index() >= index {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Snapshot implements raft.FSM: a View costs nothing to take.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return viewSnapshot{f.current.Load().View()}, nil }

// viewSnapshot is a View on its way to disk.
type viewSnapshot struct{ view *store.View }

// Persist implements raft.FSMSnapshot. Raft closes the sink.
func (v viewSnapshot) Persist(sink raft.SnapshotSink) error {
	if s, ok := sink.(*snapshotSink); ok {
		s.markLocal(v.view.WriteSnapshot)
	}
	return v.view.WriteSnapshot(sink)
}

// Release implements raft.FSMSnapshot.
func (viewSnapshot) Release() {}

// Restore implements raft.FSM: the new store takes the old one's place whole or not at all.
func (f *fsm) Restore(r io.ReadCloser) error {
	restored, err := readSnapshot(r)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	old := f.current.Swap(restored)
	old.Close()
	f.advanced()
	return nil
}

// readSnapshot reads a store and makes sure that nothing follows it.
func readSnapshot(r io.Reader) (*store.Store, error) {
	s, err := store.ReadSnapshot(r)
	if err != nil {
		return nil, err
	}
	return s, expectEnd(r)
}

func checkSnapshot(r io.Reader) error {
	_, err := store.ReadSnapshot(r)
	return err
}
