package dispatcher

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	stAssigned  = swarmpb.TaskState_TASK_STATE_ASSIGNED
	stRunning   = swarmpb.TaskState_TASK_STATE_RUNNING
	stReady     = swarmpb.TaskState_TASK_STATE_READY
	stFailed    = swarmpb.TaskState_TASK_STATE_FAILED
	stShutdown  = swarmpb.TaskState_TASK_STATE_SHUTDOWN
	stRemove    = swarmpb.TaskState_TASK_STATE_REMOVE
	stOrphaned  = swarmpb.TaskState_TASK_STATE_ORPHANED
	serviceWeb  = "0000000000000000000000web"
	clusterName = "c1"
)

// failer is what tests and rapid checks fail through.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// world is a store with a writer, and the rows that tests need.
type world struct {
	t        failer
	store    *store.Store
	proposer *store.LocalProposer
}

func newWorld(t failer, nodes ...string) *world {
	st := store.New()
	w := &world{t: t, store: st, proposer: store.NewLocalProposer(st)}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: clusterName, Spec: &swarmpb.ClusterSpec{FabricPool: "100.64.0.0/10"}}}})
	for _, id := range nodes {
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Role: swarmpb.NodeRole_NODE_ROLE_WORKER}}})
	}
	w.propose(w.template(1), &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
		Id: serviceWeb, Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: 1}}}}})
	return w
}

func (w *world) template(version uint64) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{
		ServiceId: serviceWeb, Version: version, Spec: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: fmt.Sprintf("web:%d", version)}},
	}}}}}
}

func (w *world) view() *store.View { return w.store.View() }

func (w *world) propose(writes ...*swarmpb.Write) {
	w.t.Helper()
	if _, err := w.proposer.Propose(context.Background(), &swarmpb.Proposal{Writes: writes}); err != nil {
		w.t.Fatalf("propose: %v", err)
	}
}

func (w *world) put(rows ...*swarmpb.Row) {
	w.t.Helper()
	var writes []*swarmpb.Write
	for _, row := range rows {
		writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}})
	}
	w.propose(writes...)
}

func (w *world) delete(key *swarmpb.RowKey) {
	w.t.Helper()
	w.propose(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: key}})
}

// task makes a task of web in a slot, placed on the node unless that is empty, and returns its ID.
func (w *world) task(slot uint64, node string) string {
	w.t.Helper()
	return w.taskOf(slot, 1, node, 1)
}

func (w *world) taskOf(slot, attempt uint64, node string, template uint64) string {
	w.t.Helper()
	id := swarmpb.TaskID(serviceWeb, slot, "", attempt)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
		Id: id, ServiceId: serviceWeb, Slot: slot, Attempt: attempt, TemplateVersion: template, DesiredState: stRunning}}})
	if node != "" {
		w.place(id, node)
	}
	return id
}

func (w *world) place(id, node string) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: id, NodeId: node}}})
}

func (w *world) desire(id string, state swarmpb.TaskState, draining bool) {
	w.t.Helper()
	w.propose(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{TaskId: id, DesiredState: state, Draining: draining}}})
}

func (w *world) status(id string, state swarmpb.TaskState) {
	w.t.Helper()
	w.propose(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{TaskId: id, State: state}}})
}

func (w *world) allocate(pool, address, owner string) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Allocation{Allocation: &swarmpb.Allocation{Pool: pool, Address: address, Owner: owner}}})
}

// holder is the worker's side of the assignments protocol: what a node holds after the messages that it got.
type holder struct {
	t         failer
	mu        sync.Mutex
	version   uint64
	tasks     map[string]*swarmpb.AssignedTask
	templates map[templateKey]bool
	config    *swarmpb.NodeConfig
	peers     map[string]*swarmpb.Peer
	networks  map[string]*swarmpb.AssignedNetwork
	services  map[string]*swarmpb.AssignedService
	endpoints map[string]*swarmpb.Endpoint
	pending   []*swarmpb.AssignmentChange
}

func newHolder(t failer) *holder { return &holder{t: t} }

// receive takes a message; it checks the chain and the order within a set, and applies whole sets.
func (h *holder) receive(m *swarmpb.AssignmentsResponse) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if m.GetBaseVersion() != 0 && m.GetBaseVersion() != h.version {
		h.t.Fatalf("base version %d does not follow %d", m.GetBaseVersion(), h.version)
	}
	if n := len(m.GetChanges()); n > maxChunkChanges {
		h.t.Fatalf("a chunk has %d changes", n)
	}
	h.pending = append(h.pending, m.GetChanges()...)
	if !m.GetLastChunk() {
		return
	}
	if m.GetBaseVersion() == 0 {
		h.tasks, h.templates, h.config = make(map[string]*swarmpb.AssignedTask), make(map[templateKey]bool), nil
		h.peers, h.networks = make(map[string]*swarmpb.Peer), make(map[string]*swarmpb.AssignedNetwork)
		h.services, h.endpoints = make(map[string]*swarmpb.AssignedService), make(map[string]*swarmpb.Endpoint)
	} else if m.GetVersion() <= h.version {
		h.t.Fatalf("version %d does not grow from %d", m.GetVersion(), h.version)
	}
	for _, change := range h.pending {
		h.apply(change)
	}
	h.pending, h.version = nil, m.GetVersion()
}

func (h *holder) apply(change *swarmpb.AssignmentChange) {
	h.t.Helper()
	switch c := change.GetChange().(type) {
	case *swarmpb.AssignmentChange_NodeConfig:
		h.config = c.NodeConfig
	case *swarmpb.AssignmentChange_Template:
		h.templates[templateKey{c.Template.GetServiceId(), c.Template.GetVersion()}] = true
	case *swarmpb.AssignmentChange_Task:
		if !h.templates[templateKey{c.Task.GetServiceId(), c.Task.GetTemplateVersion()}] {
			h.t.Fatalf("task %s comes before its template", c.Task.GetId())
		}
		h.tasks[c.Task.GetId()] = c.Task
	case *swarmpb.AssignmentChange_RemoveTask:
		take(h, h.tasks, c.RemoveTask)
	case *swarmpb.AssignmentChange_RemoveTemplate:
		take(h, h.templates, templateKey{c.RemoveTemplate.GetServiceId(), c.RemoveTemplate.GetVersion()})
	case *swarmpb.AssignmentChange_Peer:
		h.peers[c.Peer.GetNodeId()] = c.Peer
	case *swarmpb.AssignmentChange_RemovePeer:
		take(h, h.peers, c.RemovePeer)
	case *swarmpb.AssignmentChange_Network:
		h.networks[c.Network.GetId()] = c.Network
	case *swarmpb.AssignmentChange_RemoveNetwork:
		take(h, h.networks, c.RemoveNetwork)
	case *swarmpb.AssignmentChange_Service:
		h.services[c.Service.GetId()] = c.Service
	case *swarmpb.AssignmentChange_RemoveService:
		take(h, h.services, c.RemoveService)
		maps.DeleteFunc(h.endpoints, func(_ string, e *swarmpb.Endpoint) bool { return e.GetServiceId() == c.RemoveService })
	case *swarmpb.AssignmentChange_Endpoint:
		if h.services[c.Endpoint.GetServiceId()] == nil {
			h.t.Fatalf("endpoint %s comes before its service", c.Endpoint.GetTaskId())
		}
		h.endpoints[c.Endpoint.GetTaskId()] = c.Endpoint
	case *swarmpb.AssignmentChange_RemoveEndpoint:
		take(h, h.endpoints, c.RemoveEndpoint.GetTaskId())
	default:
		h.t.Fatalf("unknown change %v", change)
	}
}

// take removes what must be there.
func take[K comparable, V any](h *holder, from map[K]V, key K) {
	h.t.Helper()
	if _, ok := from[key]; !ok {
		h.t.Fatalf("%v is removed and was never there", key)
	}
	delete(from, key)
}

// expect compares what the node holds with the view: every task of its own that has not ended, as it is, and how tasks
// are reached.
func (h *holder) expect(view *store.View, node string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for task := range view.TasksOn(node) {
		held := h.tasks[task.GetId()]
		if view.Observed(task.GetId()).Ended() {
			continue
		}
		if held == nil || held.GetDesiredState() != task.GetDesiredState() || held.GetDraining() != task.GetDraining() {
			h.t.Fatalf("task %s is held as %v, want %v", task.GetId(), held, task)
		}
		if held.GetServiceName() != view.Service(task.GetServiceId()).GetSpec().GetName() || held.GetSlot() != task.GetSlot() ||
			!slices.EqualFunc(held.GetNetworks(), view.Addresses(task.GetId()).GetNetworks(),
				func(a, b *swarmpb.NetworkAddress) bool { return proto.Equal(a, b) }) {
			h.t.Fatalf("task %s is held as %v", task.GetId(), held)
		}
		if drained := view.Status(task.GetId()).GetDrainedAt() != 0; drained && !held.GetDrained() {
			h.t.Fatalf("task %s is held as not drained", task.GetId())
		}
	}
	for id := range h.tasks {
		if view.NodeID(id) != node {
			h.t.Fatalf("task %s is held and not on the node", id)
		}
	}
	if got, want := h.config.GetUplinkBlock(), configOf(view, node, 0).block; got != want {
		h.t.Fatalf("uplink block %q, want %q", got, want)
	}
	h.expectReach(view, node)
}

// at is the version that the node holds, and has tells whether it holds a task.
func (h *holder) at() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.version
}

func (h *holder) has(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tasks[id] != nil
}

func testWorld(t *testing.T, nodes ...string) *world {
	t.Helper()
	return newWorld(t, nodes...)
}
