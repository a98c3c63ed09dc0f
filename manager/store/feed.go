package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

var (
	// ErrCompacted: the feed no longer holds the changes after the asked index. List, then watch from the
	// index of the View that was listed.
	ErrCompacted = errors.New("changes are no longer held")
	// ErrOverflow: the watcher is further behind than it may be, or the store was replaced. List again from
	// the current store and watch anew.
	ErrOverflow = errors.New("watch overflowed")
)

// Key names a row within its table; it is the RowKey's fields without the table, as a map key.
type Key struct {
	ID     string
	Number uint64
	Name   string
}

// Change is one row made, changed or deleted. Old and New are read-only and of the table's message type.
type Change struct {
	Table swarmpb.Table
	Key   Key
	// Old is nil when the row was made.
	Old proto.Message
	// New is nil when the row was deleted.
	New   proto.Message
	Index uint64
}

// RowKey is the changed row's key.
func (c Change) RowKey() *swarmpb.RowKey {
	return &swarmpb.RowKey{Table: c.Table, Id: c.Key.ID, Number: c.Key.Number, Name: c.Key.Name}
}

// Batch is what happened since the batch before.
type Batch struct {
	// View holds exactly what Changes led to: the changes of the next batch are those after View.Index().
	View *View
	// Changes are all changes up to View.Index(), in the order they were made.
	Changes []Change
}

// feed is the bounded memory of changes. Segments are whole indexes: a watcher never sees half an entry.
type feed struct {
	mu       sync.Mutex
	segments []segment
	// size is the number of changes in segments.
	size int
	// floor is the highest index whose changes are not held.
	floor  uint64
	view   *View
	wake   chan struct{}
	closed bool
}

type segment struct {
	index   uint64
	changes []Change
}

// publish makes view current and hands on what led to it.
func (f *feed) publish(view *View, changes []Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.view = view
	if len(changes) > 0 {
		f.segments = append(f.segments, segment{view.index, changes})
		f.size += len(changes)
		f.trim()
	}
	f.wakeAll()
}

// trim drops the oldest segments, but never the newest: one entry may be larger than the feed.
func (f *feed) trim() {
	drop := 0
	for f.size > MaxFeedChanges && drop < len(f.segments)-1 {
		f.size -= len(f.segments[drop].changes)
		f.floor = f.segments[drop].index
		f.segments[drop] = segment{}
		drop++
	}
	f.segments = f.segments[drop:]
}

func (f *feed) wakeAll() {
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
}

func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.wakeAll()
}

// after collects the changes above index, or returns the channel that ends with the next publication.
func (f *feed) after(index uint64, limit int) (Batch, <-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return Batch{}, nil, fmt.Errorf("%w: the store was replaced", ErrOverflow)
	}
	if index < f.floor {
		return Batch{}, nil, fmt.Errorf("%w: changes up to index %d are gone, the watch stands at %d", ErrOverflow, f.floor, index)
	}
	first, total := len(f.segments), 0
	for first > 0 && f.segments[first-1].index > index {
		first--
		total += len(f.segments[first].changes)
	}
	if total == 0 {
		if f.wake == nil {
			f.wake = make(chan struct{})
		}
		return Batch{}, f.wake, nil
	}
	if total > limit {
		return Batch{}, nil, fmt.Errorf("%w: %d changes wait, at most %d may", ErrOverflow, total, limit)
	}
	if first == len(f.segments)-1 {
		return Batch{f.view, f.segments[first].changes}, nil, nil
	}
	changes := make([]Change, 0, total)
	for _, s := range f.segments[first:] {
		changes = append(changes, s.changes...)
	}
	return Batch{f.view, changes}, nil, nil
}

// Watch follows the changes of a store. It is for one goroutine.
type Watch struct {
	feed  *feed
	index uint64
	limit int
	done  chan struct{}
	once  sync.Once
}

// Watch starts after an index: its batches hold every change with a higher one, none twice. limit is the most
// changes that may wait for a slow watcher before Next answers ErrOverflow; 0 means MaxFeedChanges. The error
// is ErrCompacted when the feed no longer holds what follows the index.
func (s *Store) Watch(after uint64, limit int) (*Watch, error) {
	if limit <= 0 || limit > MaxFeedChanges {
		limit = MaxFeedChanges
	}
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	if after < s.feed.floor {
		return nil, fmt.Errorf("watch after index %d: %w: the oldest are of index %d", after, ErrCompacted, s.feed.floor+1)
	}
	return &Watch{feed: &s.feed, index: after, limit: limit, done: make(chan struct{})}, nil
}

// Next waits for changes. Its error is ErrOverflow, the context's, or context.Canceled after Close.
func (w *Watch) Next(ctx context.Context) (Batch, error) {
	for {
		select {
		case <-w.done:
			return Batch{}, fmt.Errorf("watch is closed: %w", context.Canceled)
		default:
		}
		if err := ctx.Err(); err != nil {
			return Batch{}, err
		}
		batch, wake, err := w.feed.after(w.index, w.limit)
		if err != nil {
			return Batch{}, err
		}
		if wake == nil {
			w.index = batch.View.Index()
			return batch, nil
		}
		select {
		case <-wake:
		case <-w.done:
		case <-ctx.Done():
		}
	}
}

// Reached is the newest version when nothing has changed since the batch before: entries without changes are no batch.
// It is nil when Next has something to return.
func (w *Watch) Reached() *View {
	w.feed.mu.Lock()
	defer w.feed.mu.Unlock()
	segments := w.feed.segments
	if w.feed.closed || w.feed.view == nil || w.index < w.feed.floor || len(segments) > 0 && segments[len(segments)-1].index > w.index {
		return nil
	}
	return w.feed.view
}

// Close ends the watch: a waiting Next returns.
func (w *Watch) Close() {
	w.once.Do(func() { close(w.done) })
}
