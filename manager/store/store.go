// Package store holds the cluster's replicated state in memory, in versions.
//
// A View is one version: immutable, free to take, and readable from any goroutine for as long as it is kept.
// Apply makes the next one out of a log entry and is the only writer; it judges each proposal by its term, its
// guards and the rules of the tables, applies it whole or not at all, and comes to the same end on every
// replica, whatever the bytes: there is no clock, randomness or map order here, and no panic. Watch follows
// the changes.
//
// Everything that comes out is read-only and shared: clone to change. What goes into Apply belongs to the
// store from then on.
//
// The store alone writes every row's version and times, the requests and the derived rows: usage per node,
// counts per template and state, references to templates. Those are functions of the other rows, kept up to date
// by each write and rebuilt and compared when a snapshot is read.
package store

import (
	"sync"
	"sync/atomic"
)

// Store is the current View with its feed of changes.
type Store struct {
	// mu is held by Apply.
	mu      sync.Mutex
	current atomic.Pointer[View]
	feed    feed
	strings interner
}

// New makes an empty store.
func New() *Store {
	return newStore(newView())
}

func newStore(view *View) *Store {
	s := &Store{}
	s.feed.floor = view.index
	s.feed.view = view
	s.current.Store(view)
	return s
}

// View is the current version.
func (s *Store) View() *View {
	return s.current.Load()
}

// Close ends all watches with ErrOverflow: another store, restored from a snapshot, takes the place of this one.
// Its views stay readable.
func (s *Store) Close() {
	s.feed.close()
}

// maxInterned bounds the strings that an interner keeps.
const maxInterned = 4096

// interner lets rows share the strings that many of them hold, such as image digests. What it holds depends on
// the order of writes and is seen in memory use alone.
type interner struct {
	known map[string]string
}

func (in *interner) share(s string) string {
	if s == "" {
		return ""
	}
	if known, ok := in.known[s]; ok {
		return known
	}
	if in.known == nil || len(in.known) >= maxInterned {
		in.known = make(map[string]string)
	}
	in.known[s] = s
	return s
}
