package store

import (
	"cmp"
	"encoding/binary"
	"strings"

	"github.com/tidwall/btree"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// taskRow is a task with the rows beside it: one look-up, and one tree instead of four. It is never changed,
// but replaced.
type taskRow struct {
	// key is that of the indexes. Its ID shares the task's string, as every other mention does.
	key       *taskKey
	task      *swarmpb.Task
	placement *swarmpb.TaskPlacement
	addresses *swarmpb.TaskAddresses
	status    *swarmpb.TaskStatus
}

// observed derives the state that View.Observed documents. No task needs addresses from the allocator in this
// version, so that a task is PENDING as soon as it is there.
func (r *taskRow) observed() swarmpb.TaskState {
	if state := r.status.GetState(); state >= swarmpb.TaskState_TASK_STATE_ACCEPTED {
		return state
	}
	if r.placement.GetNodeId() != "" {
		return swarmpb.TaskState_TASK_STATE_ASSIGNED
	}
	return swarmpb.TaskState_TASK_STATE_PENDING
}

// claims tells whether the task holds resources on its node: from its placement until it has ended.
func (r *taskRow) claims() bool {
	return r != nil && r.placement.GetNodeId() != "" && !r.observed().Ended()
}

// waits tells whether the task is to be placed.
func (r *taskRow) waits() bool {
	return r != nil && r.placement.GetNodeId() == "" && !r.observed().Ended() &&
		r.task.DesiredState <= swarmpb.TaskState_TASK_STATE_RUNNING
}

// taskItem is a task's place in the tree by ID, which is touched when tasks come and go alone. The prefix decides
// nearly every comparison without touching the key: at a million tasks the cost of a look-up is cache misses.
type taskItem struct {
	prefix uint64
	key    *taskKey
}

func taskAt(key *taskKey) taskItem {
	return taskItem{prefixOf(key.id), key}
}

// prefixOf is the first eight bytes of an ID, in the ID's own order.
func prefixOf(id string) uint64 {
	if len(id) >= 8 {
		return uint64(id[7]) | uint64(id[6])<<8 | uint64(id[5])<<16 | uint64(id[4])<<24 |
			uint64(id[3])<<32 | uint64(id[2])<<40 | uint64(id[1])<<48 | uint64(id[0])<<56
	}
	var padded [8]byte
	copy(padded[:], id)
	return binary.BigEndian.Uint64(padded[:])
}

func lessTask(a, b taskItem) bool {
	if a.prefix != b.prefix {
		return a.prefix < b.prefix
	}
	return a.key.id < b.key.id
}

func (v *View) taskRow(id string) *taskRow {
	pivot := v.pivots.Get().(*taskKey)
	row := v.findTask(id, pivot)
	pivot.id = ""
	v.pivots.Put(pivot)
	return row
}

// findTask looks a task up with a pivot, which escapes: a new one each time would be garbage.
func (v *View) findTask(id string, pivot *taskKey) *taskRow {
	pivot.id = id
	item, ok := v.tasks.Get(taskItem{prefixOf(id), pivot})
	if !ok {
		return nil
	}
	return v.rows.at(item.key.ordinal)
}

// taskKey is a task in the indexes. It is made once a task, shared by all of them, and never changed.
type taskKey struct {
	id      string
	slot    uint64
	attempt uint64
	// ordinal is the row's place in the taskTable.
	ordinal uint32
}

func compareBySlot(a, b *taskKey) int {
	switch {
	case a.slot != b.slot:
		return cmp.Compare(a.slot, b.slot)
	case a.attempt != b.attempt:
		return cmp.Compare(a.attempt, b.attempt)
	default:
		return strings.Compare(a.id, b.id)
	}
}

func lessBySlot(a, b *taskKey) bool { return compareBySlot(a, b) < 0 }

// heirItem says that the task heir, which holds a claim, names the task replaced.
type heirItem struct {
	replaced string
	attempt  uint64
	heir     string
}

func heirAt(row *taskRow) heirItem {
	return heirItem{row.task.Replaces, row.key.attempt, row.key.id}
}

func lessHeir(a, b heirItem) bool {
	if c := strings.Compare(a.replaced, b.replaced); c != 0 {
		return c < 0
	}
	if a.attempt != b.attempt {
		return a.attempt < b.attempt
	}
	return a.heir < b.heir
}

// ownerItem is an allocation by its owner.
type ownerItem struct {
	owner   string
	pool    string
	address string
}

func lessOwner(a, b ownerItem) bool {
	return cmp.Or(strings.Compare(a.owner, b.owner), strings.Compare(a.pool, b.pool), strings.Compare(a.address, b.address)) < 0
}

// reference counts the rows that refer to a template.
type reference struct {
	service string
	version uint64
	count   int
}

func lessReference(a, b reference) bool {
	if c := strings.Compare(a.service, b.service); c != 0 {
		return c < 0
	}
	return a.version < b.version
}

// request is a remembered answer with its age.
type request struct {
	order  uint64
	result *swarmpb.Result
}

// templateItem is a template under its key.
type templateItem struct {
	service  string
	version  uint64
	template *swarmpb.Template
}

func lessTemplate(a, b templateItem) bool {
	if c := strings.Compare(a.service, b.service); c != 0 {
		return c < 0
	}
	return a.version < b.version
}

func lessSlot(a, b *swarmpb.SlotProgress) bool {
	if c := strings.Compare(a.ServiceId, b.ServiceId); c != 0 {
		return c < 0
	}
	return a.Slot < b.Slot
}

func lessAllocation(a, b *swarmpb.Allocation) bool {
	if c := strings.Compare(a.Pool, b.Pool); c != 0 {
		return c < 0
	}
	return a.Address < b.Address
}

func lessAlarm(a, b *swarmpb.Alarm) bool {
	if c := strings.Compare(a.Kind, b.Kind); c != 0 {
		return c < 0
	}
	return a.Object < b.Object
}

// newTree makes a tree without locks: a published one is only read, and Apply is the only writer.
func newTree[T any](less func(a, b T) bool) *btree.BTreeG[T] {
	return btree.NewBTreeGOptions(less, btree.Options{NoLocks: true, Degree: degree})
}

// degree is half of what a tree's node holds. A write copies a node a level, and a copy is garbage by the next
// write: small nodes save much of the collector's work, until there are so many levels that look-ups cost more. The
// trees' slices double as they grow: 15 items and 16 children leave no room unused.
const degree = 8
