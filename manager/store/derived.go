package store

import (
	"cmp"
	"slices"

	"github.com/tidwall/btree"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// setTaskRow puts the row (nil: none) in place of the one that the task has, and brings up to date everything that
// is derived from tasks. Whatever it derives is a function of the rows alone, so that putting the old row back
// undoes it.
func (t *tx) setTaskRow(old, next *taskRow) {
	// Others share what it holds, or what a task before it holds, as long as it is there.
	moved := old == nil || next == nil || old.claims() != next.claims() || (old.claims() && old.placement.NodeId != next.placement.NodeId)
	var heirs []string
	if moved {
		heirs = t.affected(cmp.Or(next, old))
		t.count(old, heirs, -1)
	}
	if next != nil {
		t.rows.set(t.index, next.ordinal, next)
	}
	if asked, asks := old.asks(), next.asks(); asked != asks {
		if t.asking--; asks {
			t.asking += 2
		}
	}
	t.indexTask(old, next)
	switch {
	case old == nil:
		t.tasks.insert(t.index, prefixOf(next.task.Id), next.ordinal, t.byID(next.task.Id))
	case next == nil:
		t.tasks.remove(t.index, prefixOf(old.task.Id), t.byID(old.task.Id))
	}
	if moved {
		t.indexHeir(old, next)
		t.count(next, heirs, +1)
	}
	if next == nil {
		t.rows.release(t.index, old.ordinal)
	}
}

// affected are the tasks whose part in a node's usage may change, beside its own, when a task or its claim comes or goes: those
// of its slot that replace others.
func (t *tx) affected(row *taskRow) (ids []string) {
	if t.heirs == 0 {
		return nil
	}
	for task := range t.TasksIn(row.task.ServiceId, row.task.Slot) {
		if task.Replaces != "" && task.Id != row.task.Id && t.taskRow(task.Id).claims() {
			ids = append(ids, task.Id)
		}
	}
	return ids
}

// indexTask keeps the secondary indexes: each is touched only when the task's key in it changes.
func (t *tx) indexTask(old, next *taskRow) {
	row := cmp.Or(next, old)
	if old.unready() {
		t.ownService(row.task.ServiceId).addUnready(row.task.TemplateVersion, -1)
	}
	t.indexState(old, next)
	if next.unready() {
		t.ownService(row.task.ServiceId).addUnready(row.task.TemplateVersion, +1)
	}
}

// indexState keeps all of them but the count of tasks that are not ready.
func (t *tx) indexState(old, next *taskRow) {
	if old != nil && next != nil && old.observed() == next.observed() && old.waits() == next.waits() && old.nodeID() == next.nodeID() {
		return
	}
	row := cmp.Or(next, old)
	if old.waits() && !next.waits() {
		t.unwait(row)
	}
	if old.isNew() && !next.isNew() {
		t.ownService(row.task.ServiceId).unaddressed.remove(t.index, row.ordinal, t.bySlot(row.task))
	}
	switch {
	case old == nil:
		service := t.ownService(row.task.ServiceId)
		service.tasks.insert(t.index, row.task.Slot, row.ordinal, t.bySlot(row.task))
		t.refer(row.task.ServiceId, row.task.TemplateVersion, +1)
		service.add(row.task.TemplateVersion, next.observed(), +1)
	case next == nil:
		service := t.ownService(row.task.ServiceId)
		service.tasks.remove(t.index, row.task.Slot, t.bySlot(row.task))
		t.refer(row.task.ServiceId, row.task.TemplateVersion, -1)
		service.add(row.task.TemplateVersion, old.observed(), -1)
		if service.tasks.count == 0 {
			t.perService.Delete(row.task.ServiceId)
		}
	case old.observed() != next.observed():
		service := t.ownService(row.task.ServiceId)
		service.add(row.task.TemplateVersion, old.observed(), -1)
		service.add(row.task.TemplateVersion, next.observed(), +1)
	}

	if next.waits() && !old.waits() {
		t.wait(row)
	}
	if next.isNew() && !old.isNew() {
		t.ownService(row.task.ServiceId).unaddressed.insert(t.index, row.ordinal, t.bySlot(row.task))
	}
	was, is := old.nodeID(), next.nodeID()
	if was == is {
		return
	}
	if was != "" {
		index := t.ownNode(was)
		index.tasks.discard(t.index, row.ordinal)
		if index.tasks.count == 0 {
			t.perNode.Delete(was)
		}
	}
	if is != "" {
		t.ownNode(is).tasks.push(t.index, row.ordinal)
	}
}

// wait puts a task among those of its service that wait for a node.
func (t *tx) wait(row *taskRow) {
	service := t.ownService(row.task.ServiceId)
	service.waiting.insert(t.index, row.ordinal, t.bySlot(row.task))
	t.unplaced++
	if service.waiting.count == 1 {
		t.waiting.Set(row.task.ServiceId, struct{}{})
	}
}

// unwait takes it away.
func (t *tx) unwait(row *taskRow) {
	service := t.ownService(row.task.ServiceId)
	service.waiting.remove(t.index, row.ordinal, t.bySlot(row.task))
	t.unplaced--
	if service.waiting.count == 0 {
		t.waiting.Delete(row.task.ServiceId)
	}
}

// asks tells whether the task waits for a node and has asked others to give way.
func (r *taskRow) asks() bool { return r != nil && len(r.placement.GetPreempts()) > 0 && r.waits() }

func (r *taskRow) nodeID() string {
	if r == nil {
		return ""
	}
	return r.placement.GetNodeId()
}

func (t *tx) indexHeir(old, next *taskRow) {
	if old.claims() && old.task.Replaces != "" {
		t.heirs--
	}
	if next.claims() && next.task.Replaces != "" {
		t.heirs++
	}
}

// refer counts a reference to a template up or down. What falls to zero is collected when the proposal ends.
func (t *tx) refer(service string, version uint64, n int) {
	if version == 0 {
		return
	}
	pivot := reference{service: service, version: version}
	current, ok := t.references.Get(pivot)
	if !ok {
		current = pivot
	}
	current.count += n
	if current.count == 0 {
		t.references.Delete(pivot)
		t.loose = append(t.loose, pivot)
		return
	}
	t.references.Set(current)
}

// claim is a task's part in the usage of its node.
type claim struct {
	node    string
	service string
	// nanoCPUs and memoryBytes may be less than the task's reservation, and claims 0: see claimOf.
	nanoCPUs    int64
	memoryBytes int64
	claims      int
	ports       []uint32
}

// claimOf is what a task adds to its node. A task that replaces another one on the same node adds only what it
// needs beyond that: the pair holds one claim. So does one that replaces a task which holds nothing, on the node of the one
// before that. One that runs beside the other needs all of its own resources and ports
// and makes the pair one task all the same, since one of the two is about to go. Of several tasks that replace the same one, that of the lowest attempt
// shares the claim and the others count in full: a later successor never takes it from an earlier one.
func (v *View) claimOf(row *taskRow) (claim, bool) {
	if !row.claims() {
		return claim{}, false
	}
	c := claim{node: row.placement.NodeId, service: row.task.ServiceId, claims: 1}
	reserved, ports := v.needs(row.task)
	c.nanoCPUs, c.memoryBytes, c.ports = reserved.GetNanoCpus(), reserved.GetMemoryBytes(), ports
	replaced, beside := v.sharedWith(row)
	if replaced == nil {
		return c, true
	}
	c.claims = 0
	if beside {
		return c, true
	}
	held, heldPorts := v.needs(replaced.task)
	c.nanoCPUs = max(0, c.nanoCPUs-held.GetNanoCpus())
	c.memoryBytes = max(0, c.memoryBytes-held.GetMemoryBytes())
	c.ports = slices.DeleteFunc(slices.Clone(ports), func(port uint32) bool { return slices.Contains(heldPorts, port) })
	return c, true
}

// sharedWith is the task that row shares its claim with, if any, and whether it runs beside that one.
func (v *View) sharedWith(row *taskRow) (base *taskRow, beside bool) {
	base, beside = v.baseOf(row.task, nil)
	if base == nil || base.placement.NodeId != row.placement.NodeId {
		return nil, false
	}
	for task := range v.TasksIn(row.task.ServiceId, row.task.Slot) {
		if task.Id == row.task.Id {
			break // those before it come first
		}
		if task.Replaces == "" || task.Attempt <= base.task.Attempt {
			continue
		}
		if other := v.taskRow(task.Id); other.claims() && other.placement.NodeId == row.placement.NodeId {
			if its, _ := v.baseOf(task, nil); its == base {
				return nil, false
			}
		}
	}
	return base, beside
}

// baseOf is the task whose place another one is to take: of those that it replaces, one after the other, the first that holds a
// claim, if that is in the same slot; beside: it runs beside that, or one between does. The order of attempts keeps tasks from
// replacing each other in a ring. claimed, when set, tells the tasks that hold a claim which the view does not show: none is
// looked for beyond one.
func (v *View) baseOf(task *swarmpb.Task, claimed func(id string) bool) (base *taskRow, beside bool) {
	for at := task; at.Replaces != ""; {
		beside = beside || at.Beside
		before := v.taskRow(at.Replaces)
		if before == nil || before.task.ServiceId != at.ServiceId || before.task.Slot != at.Slot || before.task.Attempt >= at.Attempt {
			return nil, false
		}
		if before.claims() {
			return before, beside
		}
		if claimed != nil && claimed(before.task.Id) {
			return nil, false
		}
		at = before.task
	}
	return nil, false
}

// Base is the task whose place another one is to take, with its rows: of those that it replaces, one after the other, the first
// that holds a claim on a node, without one none. beside: it runs beside that, or one between does. claimed, when set, tells the
// tasks that hold a claim which the view does not show: none is looked for beyond one.
func (v *View) Base(task *swarmpb.Task, claimed func(id string) bool) (base TaskRows, beside bool) {
	row, beside := v.baseOf(task, claimed)
	if row == nil {
		return TaskRows{}, false
	}
	return TaskRows{row.task, row.placement, row.addresses, row.status, row.observed()}, beside
}

// needs are a task's reservation and fixed host ports, from its template.
func (v *View) needs(task *swarmpb.Task) (*swarmpb.Resources, []uint32) {
	template := v.Template(task.ServiceId, task.TemplateVersion)
	var ports []uint32
	for _, port := range template.GetHostPorts() {
		if port.GetPublishedPort() != 0 {
			ports = append(ports, portKey(port.GetProtocol(), port.GetPublishedPort()))
		}
	}
	return template.GetSpec().GetResources().GetReservations(), ports
}

// count adds (+1) or takes away (-1) what a task and those of the IDs claim as the rows stand.
func (t *tx) count(row *taskRow, ids []string, sign int) {
	t.countOne(row, sign)
	for _, id := range ids {
		t.countOne(t.taskRow(id), sign)
	}
}

func (t *tx) countOne(row *taskRow, sign int) {
	c, ok := t.claimOf(row)
	if !ok {
		return
	}
	index := t.ownNode(c.node)
	index.nanoCPUs += int64(sign) * c.nanoCPUs
	index.memoryBytes += int64(sign) * c.memoryBytes
	index.claims += sign * c.claims
	if c.claims != 0 {
		if index.madeServices != t.index {
			index.services, index.madeServices = copyMap(index.services), t.index
		}
		service, _ := t.perService.Get(c.service) // there is one as long as the service has a task
		bump(index.services, service.number, sign*c.claims)
	}
	if len(c.ports) > 0 && index.madePorts != t.index {
		index.ports, index.madePorts = copyMap(index.ports), t.index
	}
	for _, port := range c.ports {
		bump(index.ports, port, sign)
	}
}

// bump changes a count; one that reaches zero goes.
func bump(counts *btree.Map[uint32, int], key uint32, n int) {
	current, _ := counts.Get(key)
	if current+n == 0 {
		counts.Delete(key)
		return
	}
	counts.Set(key, current+n)
}

// ownNode is the node's index, copied if an earlier View holds it.
func (t *tx) ownNode(id string) *nodeIndex {
	current, ok := t.perNode.Get(id)
	if ok && current.made == t.index {
		return current
	}
	var next *nodeIndex
	if ok {
		clone := *current
		next = &clone
		if current.made <= t.forked {
			next.tasks.shared = true
		}
	} else {
		next = &nodeIndex{
			ports:    btree.NewMap[uint32, int](degree),
			services: btree.NewMap[uint32, int](degree),
		}
		next.madePorts, next.madeServices = t.index, t.index
	}
	next.made = t.index
	t.perNode.Set(id, next)
	return next
}

// ownService is the service's index, copied if an earlier View holds it.
func (t *tx) ownService(id string) *serviceIndex {
	current, ok := t.perService.Get(id)
	if ok && current.made == t.index {
		return current
	}
	var next *serviceIndex
	if ok {
		clone := *current
		next = &clone
		next.counts = slices.Clone(current.counts)
		if current.made <= t.forked {
			next.waiting.shared, next.unaddressed.shared = true, true
		}
	} else {
		t.lastNumber++
		next = &serviceIndex{number: t.lastNumber}
	}
	next.made = t.index
	t.perService.Set(id, next)
	return next
}

// find is where the count of a template's tasks in a state is, or belongs.
func (s *serviceIndex) find(template uint64, state swarmpb.TaskState) (at int, found bool) {
	return slices.BinarySearchFunc(s.counts, stateCount{template: template, state: state}, func(a, b stateCount) int {
		return cmp.Or(cmp.Compare(a.template, b.template), cmp.Compare(a.state, b.state))
	})
}

// addUnready changes the number of a template's tasks that run and are not ready. They are counted as running then.
func (s *serviceIndex) addUnready(template uint64, n int) {
	if at, found := s.find(template, swarmpb.TaskState_TASK_STATE_RUNNING); found {
		s.counts[at].unready += n
	}
}

// add changes the number of a template's tasks in a state; a count that reaches zero goes.
func (s *serviceIndex) add(template uint64, state swarmpb.TaskState, n int) {
	at, found := s.find(template, state)
	switch {
	case !found:
		s.counts = slices.Insert(s.counts, at, stateCount{template: template, state: state, count: n})
	case s.counts[at].count+n == 0:
		s.counts = slices.Delete(s.counts, at, at+1)
	default:
		s.counts[at].count += n
	}
}
