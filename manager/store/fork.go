package store

import "github.com/tidwall/btree"

// Fork is a store of its own that begins with this version: what is applied to it is seen in it alone, and what is
// applied to the store of this view is not seen in it. Its index goes on from here, and its feed holds what comes after.
//
// The two share their memory and copy what they write, so a fork costs the same at any number of rows, and is free to
// use beside a store that is written to. It is for trying out what would become of a proposal; nobody else keeps it.
func (v *View) Fork() *Store {
	next := v.fork()
	next.forked = v.index
	next.rows.free.shared = true
	return newStore(next)
}

// copyMap and copyTree are the trees' own Copy without its write to the original: that is published, and several
// goroutines may copy it at the same time. Nobody writes to the original any more, so it needs no new identity.
func copyMap[K string | uint32 | uint64, V any](m *btree.Map[K, V]) *btree.Map[K, V] {
	original := *m
	return original.Copy()
}

func copyTree[T any](tree *btree.BTreeG[T]) *btree.BTreeG[T] {
	original := *tree
	return original.Copy()
}
