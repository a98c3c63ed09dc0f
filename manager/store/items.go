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
	// ordinal stands for the task in the indexes: its place in the taskTable.
	ordinal uint32
	// lacks is whether an address is missing that the task is to get before it is placed.
	lacks     bool
	task      *swarmpb.Task
	placement *swarmpb.TaskPlacement
	addresses *swarmpb.TaskAddresses
	status    *swarmpb.TaskStatus
}

// observed derives the state that View.Observed documents.
func (r *taskRow) observed() swarmpb.TaskState {
	if state := r.status.GetState(); state >= swarmpb.TaskState_TASK_STATE_ACCEPTED {
		return state
	}
	if r.placement.GetNodeId() != "" {
		return swarmpb.TaskState_TASK_STATE_ASSIGNED
	}
	if r.lacks {
		return swarmpb.TaskState_TASK_STATE_NEW
	}
	return swarmpb.TaskState_TASK_STATE_PENDING
}

// claims tells whether the task holds resources on its node: from its placement until it has ended.
func (r *taskRow) claims() bool {
	return r != nil && r.placement.GetNodeId() != "" && !r.observed().Ended()
}

// unready tells whether the task runs and is not ready for connections.
func (r *taskRow) unready() bool {
	return r != nil && r.observed() == swarmpb.TaskState_TASK_STATE_RUNNING && !r.status.Up()
}

// isNew tells whether the task is to get addresses first.
func (r *taskRow) isNew() bool {
	return r != nil && r.lacks && r.observed() == swarmpb.TaskState_TASK_STATE_NEW
}

// waits tells whether the task is to be placed.
func (r *taskRow) waits() bool {
	if r == nil || r.placement.GetNodeId() != "" || !r.task.DesiredState.Wanted() {
		return false
	}
	state := r.observed()
	return state != swarmpb.TaskState_TASK_STATE_NEW && !state.Ended()
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

func (v *View) taskRow(id string) *taskRow {
	ordinal, ok := v.tasks.find(prefixOf(id), v.byID(id))
	if !ok {
		return nil
	}
	return v.rows.at(ordinal)
}

// byID is the tie between tasks in the set of all tasks, whose number is the prefix of the ID: that decides nearly
// every comparison without touching a row, and at a million tasks the cost of a look-up is cache misses.
func (v *View) byID(id string) func(ordinal uint32) int {
	return func(ordinal uint32) int { return strings.Compare(v.rows.at(ordinal).task.Id, id) }
}

// bySlot is the tie between tasks in the sets of a service, whose number is the slot.
func (v *View) bySlot(task *swarmpb.Task) func(ordinal uint32) int {
	return func(ordinal uint32) int { return compareBySlot(v.rows.at(ordinal).task, task) }
}

// compareBySlot is the order of a service's tasks.
func compareBySlot(a, b *swarmpb.Task) int {
	switch {
	case a.Slot != b.Slot:
		return cmp.Compare(a.Slot, b.Slot)
	case a.Attempt != b.Attempt:
		return cmp.Compare(a.Attempt, b.Attempt)
	default:
		return strings.Compare(a.Id, b.Id)
	}
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
