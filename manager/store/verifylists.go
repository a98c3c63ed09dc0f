package store

import (
	"fmt"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// verifyLists checks the sets and lists of ordinals: each leads to a task that belongs there, none is there twice, and
// they are in order. Their lengths, which compare holds against the rows, make them whole.
func (v *View) verifyLists() error {
	if err := v.verifyOrdinals(); err != nil {
		return err
	}
	if err := v.verifyNodeLists(); err != nil {
		return err
	}
	return v.verifyServiceLists()
}

// verifyOrdinals checks that each ordinal is either a task's, once, or free.
func (v *View) verifyOrdinals() error {
	if kept := int(v.rows.next) - v.rows.free.count; kept != v.tasks.count {
		return fmt.Errorf("%d ordinals are taken by %d tasks", kept, v.tasks.count)
	}
	for ordinal := range v.tasks.all() {
		if row := v.rows.find(ordinal); row == nil || row.ordinal != ordinal {
			return fmt.Errorf("ordinal %d leads to no task, or to another's", ordinal)
		}
	}
	prefix := func(ordinal uint32) uint64 { return prefixOf(v.rows.at(ordinal).task.Id) }
	err := v.tasks.check(prefix, func(a, b uint32) int {
		return strings.Compare(v.rows.at(a).task.Id, v.rows.at(b).task.Id)
	})
	if err != nil {
		return fmt.Errorf("tasks by ID: %w", err)
	}
	if err := v.rows.free.check(); err != nil {
		return fmt.Errorf("free ordinals: %w", err)
	}
	seen := make([]bool, v.rows.next)
	for ordinal := range v.rows.free.all() {
		if ordinal >= v.rows.next || seen[ordinal] || v.rows.find(ordinal) != nil {
			return fmt.Errorf("ordinal %d is not free", ordinal)
		}
		seen[ordinal] = true
	}
	return nil
}

func (v *View) verifyNodeLists() error {
	var err error
	seen := make([]bool, v.rows.next)
	v.perNode.Scan(func(id string, index *nodeIndex) bool {
		if wrong := index.tasks.check(); wrong != nil {
			err = fmt.Errorf("tasks on node %s: %w", id, wrong)
			return false
		}
		for ordinal := range index.tasks.all() {
			if row := v.rows.find(ordinal); row == nil || row.nodeID() != id || seen[ordinal] {
				err = fmt.Errorf("node %s: ordinal %d is not a task of it, or there twice", id, ordinal)
				return false
			}
			seen[ordinal] = true
		}
		return true
	})
	return err
}

func (v *View) verifyServiceLists() error {
	var err error
	services, unplaced := 0, 0
	v.perService.Scan(func(id string, index *serviceIndex) bool {
		if err = v.verifyService(id, index); err != nil {
			err = fmt.Errorf("service %s: %w", id, err)
			return false
		}
		if index.waiting.count > 0 {
			services++
		}
		unplaced += index.waiting.count
		return true
	})
	if err == nil && (services != v.waiting.Len() || unplaced != v.unplaced) {
		err = fmt.Errorf("%d tasks of %d services are listed as unplaced, %d of %d counted", unplaced, services, v.unplaced, v.waiting.Len())
	}
	return err
}

func (v *View) verifyService(id string, index *serviceIndex) error {
	for ordinal := range index.tasks.all() {
		if row := v.rows.find(ordinal); row == nil || row.task.ServiceId != id {
			return fmt.Errorf("ordinal %d is not a task of it", ordinal)
		}
	}
	slot := func(ordinal uint32) uint64 { return v.rows.at(ordinal).task.Slot }
	err := index.tasks.check(slot, func(a, b uint32) int { return compareBySlot(v.rows.at(a).task, v.rows.at(b).task) })
	if err != nil {
		return err
	}
	if _, listed := v.waiting.Get(id); listed != (index.waiting.count > 0) {
		return fmt.Errorf("%d tasks wait for a node, listed: %t", index.waiting.count, listed)
	}
	var last *swarmpb.Task
	for ordinal := range index.waiting.all() {
		row := v.rows.find(ordinal)
		if !row.waits() || row.task.ServiceId != id || (last != nil && compareBySlot(last, row.task) >= 0) {
			return fmt.Errorf("ordinal %d is not a task of it that waits for a node, or out of order", ordinal)
		}
		last = row.task
	}
	if err := index.waiting.check(); err != nil {
		return err
	}
	return v.verifyUnaddressed(id, index)
}

func (v *View) verifyUnaddressed(id string, index *serviceIndex) error {
	var last *swarmpb.Task
	for ordinal := range index.unaddressed.all() {
		row := v.rows.find(ordinal)
		if !row.isNew() || row.task.ServiceId != id || (last != nil && compareBySlot(last, row.task) >= 0) {
			return fmt.Errorf("ordinal %d is not a task of it that is new, or out of order", ordinal)
		}
		last = row.task
	}
	counted := 0
	for _, c := range index.counts {
		if c.state == swarmpb.TaskState_TASK_STATE_NEW {
			counted += c.count
		}
	}
	if counted != index.unaddressed.count {
		return fmt.Errorf("%d tasks are listed as new, %d counted", index.unaddressed.count, counted)
	}
	return index.unaddressed.check()
}
