package store

import (
	"iter"

	"github.com/tidwall/btree"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// nodeIndex is what is derived for one node. It belongs to the View that it was made or changed for; a later one
// copies it first.
type nodeIndex struct {
	// made is the index of the View that may still change it, and the others of those that may change the trees.
	made         uint64
	madePorts    uint64
	madeServices uint64

	nanoCPUs    int64
	memoryBytes int64
	claims      int
	// ports is host port (see portKey) -> claims that bind it.
	ports *btree.Map[uint32, int]
	// services is a service's number -> claims of its tasks.
	services *btree.Map[uint32, int]
	// tasks are all tasks placed on the node, in no order.
	tasks ordinals
}

// serviceIndex is what is derived for one service; the same rule of ownership.
type serviceIndex struct {
	made uint64

	// number stands for the service in the indexes of nodes, where its ID would cost much. It is given when the
	// service's first task comes, holds until its last has gone, and means nothing outside this store.
	number uint32
	// tasks are all tasks of the service, by slot and attempt.
	tasks taskSet
	// waiting are the tasks that wait for a node, by slot and attempt.
	waiting ordinals
	// unaddressed are the tasks that are NEW, by slot and attempt.
	unaddressed ordinals
	counts      []stateCount
}

// stateCount is the number of tasks of a template in an observed state; ordered by template, then state.
type stateCount struct {
	template uint64
	state    swarmpb.TaskState
	count    int
	// unready are those of them in RUNNING that are not ready for connections.
	unready int
}

// Usage is what the tasks placed on a node claim, from placement until they have ended. A task that replaces
// another on the same node counts as one task with it, and shares one claim, the larger resources and every host port
// once, unless it runs beside the other.
type Usage struct {
	NanoCPUs    int64
	MemoryBytes int64
	// Tasks is the number of claims.
	Tasks int
	ports *btree.Map[uint32, int]
}

// HasPort tells whether a claim binds the port of the host.
func (u Usage) HasPort(protocol swarmpb.Protocol, port uint32) bool {
	if u.ports == nil {
		return false
	}
	_, taken := u.ports.Get(portKey(protocol, port))
	return taken
}

// Ports are the host ports that claims bind, by protocol and number.
func (u Usage) Ports() iter.Seq2[swarmpb.Protocol, uint32] {
	return func(yield func(swarmpb.Protocol, uint32) bool) {
		if u.ports == nil {
			return
		}
		u.ports.Scan(func(key uint32, _ int) bool {
			return yield(swarmpb.Protocol(key>>16), key&0xffff)
		})
	}
}

// Usage is what is claimed on a node.
func (v *View) Usage(nodeID string) Usage {
	index, ok := v.perNode.Get(nodeID)
	if !ok {
		return Usage{}
	}
	return Usage{index.nanoCPUs, index.memoryBytes, index.claims, index.ports}
}

// TasksOnByService is the number of claims that a service's tasks hold on a node.
func (v *View) TasksOnByService(nodeID, serviceID string) int {
	index, ok := v.perNode.Get(nodeID)
	if !ok {
		return 0
	}
	service, ok := v.perService.Get(serviceID)
	if !ok {
		return 0
	}
	count, _ := index.services.Get(service.number)
	return count
}

// ClaimsOf counts a service's claims by node, without the nodes that have none. It reads whichever are fewer, the service's
// tasks or the nodes. The caller owns the answer.
func (v *View) ClaimsOf(serviceID string) map[string]int {
	service, ok := v.perService.Get(serviceID)
	if !ok {
		return map[string]int{}
	}
	if service.tasks.count >= v.perNode.Len() {
		counts := make(map[string]int, v.perNode.Len())
		v.perNode.Scan(func(node string, index *nodeIndex) bool {
			if n, _ := index.services.Get(service.number); n > 0 {
				counts[node] = n
			}
			return true
		})
		return counts
	}
	counts := make(map[string]int, service.tasks.count)
	for ordinal := range service.tasks.all() {
		node := v.rows.at(ordinal).nodeID()
		if _, done := counts[node]; done || node == "" {
			continue
		}
		if index, ok := v.perNode.Get(node); ok {
			if n, _ := index.services.Get(service.number); n > 0 {
				counts[node] = n
			}
		}
	}
	return counts
}

// Counts walks the observed states of a template's tasks with the number of tasks in each, lowest first. States
// without a task are left out.
func (v *View) Counts(serviceID string, templateVersion uint64) iter.Seq2[swarmpb.TaskState, int] {
	return func(yield func(swarmpb.TaskState, int) bool) {
		index, ok := v.perService.Get(serviceID)
		if !ok {
			return
		}
		for _, c := range index.counts {
			if c.template == templateVersion && !yield(c.state, c.count) {
				return
			}
		}
	}
}

// Count is the number of a template's tasks in an observed state.
func (v *View) Count(serviceID string, templateVersion uint64, state swarmpb.TaskState) int {
	for s, n := range v.Counts(serviceID, templateVersion) {
		if s == state {
			return n
		}
	}
	return 0
}

// Up is the number of a template's tasks that run and are ready for connections, whatever is desired of them and
// however their nodes are.
func (v *View) Up(serviceID string, templateVersion uint64) int {
	index, ok := v.perService.Get(serviceID)
	if !ok {
		return 0
	}
	at, found := index.find(templateVersion, swarmpb.TaskState_TASK_STATE_RUNNING)
	if !found {
		return 0
	}
	return index.counts[at].count - index.counts[at].unready
}

// TaskCountOf is the number of a service's tasks, of all templates and states.
func (v *View) TaskCountOf(serviceID string) int {
	index, ok := v.perService.Get(serviceID)
	if !ok {
		return 0
	}
	return index.tasks.count
}

// TaskCountIn is the number of a service's tasks in an observed state, of all templates.
func (v *View) TaskCountIn(serviceID string, state swarmpb.TaskState) int {
	index, ok := v.perService.Get(serviceID)
	if !ok {
		return 0
	}
	total := 0
	for _, c := range index.counts {
		if c.state == state {
			total += c.count
		}
	}
	return total
}

// portKey is a host port as a number; an unspecified protocol is tcp.
func portKey(protocol swarmpb.Protocol, port uint32) uint32 {
	if protocol == swarmpb.Protocol_PROTOCOL_UNSPECIFIED {
		protocol = swarmpb.Protocol_PROTOCOL_TCP
	}
	return uint32(protocol)<<16 | port&0xffff
}
