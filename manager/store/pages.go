package store

import "slices"

// pageBits gives the size of a page: small ones save copies, at the cost of levels to look through.
const (
	pageBits = 4
	pageSize = 1 << pageBits
	pageMask = pageSize - 1
)

// page is a node of a taskTable. The View of index made may change it; a later one copies it first.
type page[T any] struct {
	made  uint64
	slots [pageSize]*T
}

// taskTable is the rows of all tasks by ordinal, a small number that stands for a task wherever its ID would cost much. A
// task has its ordinal for as long as it is there; the number means nothing outside this store. To replace a row is to
// copy three pages at most, fewer when the transaction has copied them already.
type taskTable struct {
	// made is the index of the View that owns roots.
	made  uint64
	roots []*page[page[page[taskRow]]]
	// next is the lowest ordinal that no task has had, and free are those that may be given again.
	next uint32
	free ordinals
}

// at is the row of an ordinal that a task has.
func (t *taskTable) at(ordinal uint32) *taskRow {
	return t.roots[ordinal>>(3*pageBits)].slots[ordinal>>(2*pageBits)&pageMask].slots[ordinal>>pageBits&pageMask].slots[ordinal&pageMask]
}

// find is at for an ordinal that nobody may have; nil when no task has it.
func (t *taskTable) find(ordinal uint32) *taskRow {
	if ordinal >= t.next {
		return nil
	}
	return t.at(ordinal)
}

// set puts a row (nil: none) under its ordinal.
func (t *taskTable) set(made uint64, ordinal uint32, row *taskRow) {
	if t.made != made {
		t.roots, t.made = slices.Clone(t.roots), made
	}
	root := int(ordinal >> (3 * pageBits))
	if root == len(t.roots) {
		t.roots = append(t.roots, nil)
	}
	leaf := ownPage(&ownPage(&ownPage(&t.roots[root], made).slots[ordinal>>(2*pageBits)&pageMask], made).slots[ordinal>>pageBits&pageMask], made)
	leaf.slots[ordinal&pageMask] = row
}

func ownPage[T any](at **page[T], made uint64) *page[T] {
	if *at != nil && (*at).made == made {
		return *at
	}
	next := new(page[T])
	if *at != nil {
		*next = **at
	}
	next.made = made
	*at = next
	return next
}

// take gives an ordinal to a new task.
func (t *taskTable) take(made uint64) uint32 {
	if t.free.count > 0 {
		return t.free.pop(made)
	}
	t.next++
	return t.next - 1
}

// release takes back the ordinal of a task that is gone.
func (t *taskTable) release(made uint64, ordinal uint32) {
	t.set(made, ordinal, nil)
	t.free.push(made, ordinal)
}
