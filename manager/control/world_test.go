package control

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	self   = "0000000000000000000000mgr"
	nodeA  = "000000000000000000000na11"
	nodeA2 = "000000000000000000000na22"
	nodeB  = "0000000000000000000000nb1"
)

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// world is a control server on a store of its own.
type world struct {
	t        failer
	store    *store.Store
	local    *store.LocalProposer
	server   *Server
	closed   []string
	proposes int
	// fail, when set, is what Propose and ReadIndex answer.
	fail error
	// members is Raft's configuration, leader who leads, contact how long ago one was heard of; -1: never.
	members []Member
	leader  atomic.Value // string
	contact time.Duration
	// placing is what the server asks about placement.
	placing *fakePlacing
	// before runs once before the next proposal: what somebody else does at the same time.
	before func()
}

func (w *world) leads() string { return w.leader.Load().(string) }

// readIndex fails with fail; without a leader it waits for one, as a replica does.
func (w *world) readIndex(ctx context.Context) (uint64, error) {
	if w.leads() == "" {
		<-ctx.Done()
		return 0, fmt.Errorf("linearizable read: %w", ctx.Err())
	}
	return w.store.View().Index(), w.fail
}

func (w *world) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	if w.fail != nil {
		return nil, w.fail
	}
	if w.leads() == "" {
		<-ctx.Done()
		return nil, fmt.Errorf("write: %w", ctx.Err())
	}
	w.proposes++
	if before := w.before; before != nil {
		w.before = nil
		before()
	}
	return w.local.Propose(ctx, p)
}

func newWorld(t failer) *world {
	st := store.New()
	w := &world{t: t, store: st, local: store.NewLocalProposer(st), members: []Member{{ID: self, Address: "10.0.0.1:2377", Voter: true}}}
	w.leader.Store(self)
	w.placing = &fakePlacing{}
	tokens := 0
	server, err := New(Config{
		NodeID: self, Store: func() *store.Store { return st }, Proposer: w,
		ReadIndex:      w.readIndex,
		Leader:         w.leads,
		Members:        func() []Member { return w.members },
		LastContact:    func() (time.Duration, bool) { return max(w.contact, 0), w.contact >= 0 },
		ManagerAddress: func() string { return "10.0.0.1:2377" },
		NewJoinToken: func(root []byte) (string, error) {
			tokens++
			return fmt.Sprintf("token-%s-%d", root, tokens), nil
		},
		Placing:   w.placing,
		CloseNode: func(id string) { w.closed = append(w.closed, id) },
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatalf("new: %v", err)
	}
	w.server = server
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{
		Id: "c1", Spec: &swarmpb.ClusterSpec{}, RootCa: &swarmpb.RootCA{Cert: []byte("root"), Key: []byte("secret")},
		JoinTokens: &swarmpb.JoinTokens{Worker: "w0", Manager: "m0"}}}})
	w.node(self, "boss", swarmpb.NodeRole_NODE_ROLE_MANAGER, swarmpb.NodeState_NODE_STATE_READY)
	return w
}

func (w *world) view() *store.View { return w.store.View() }

func (w *world) put(rows ...*swarmpb.Row) {
	w.t.Helper()
	for _, row := range rows {
		if _, err := w.local.Propose(context.Background(), &swarmpb.Proposal{Now: 1, Writes: []*swarmpb.Write{put(row)}}); err != nil {
			w.t.Fatalf("put: %v", err)
		}
	}
}

func (w *world) delete(key *swarmpb.RowKey) {
	w.t.Helper()
	if _, err := w.local.Propose(context.Background(), &swarmpb.Proposal{Writes: []*swarmpb.Write{{Op: &swarmpb.Write_Delete{Delete: key}}}}); err != nil {
		w.t.Fatalf("delete: %v", err)
	}
}

// node makes a node; with state UNKNOWN it has no status yet.
func (w *world) node(id, hostname string, role swarmpb.NodeRole, state swarmpb.NodeState) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Role: role}}})
	if state != swarmpb.NodeState_NODE_STATE_UNKNOWN {
		w.nodeState(id, hostname, state)
	}
}

// manager makes a node that is a manager, and a voter.
func (w *world) manager(id, hostname string, state swarmpb.NodeState) {
	w.t.Helper()
	w.node(id, hostname, swarmpb.NodeRole_NODE_ROLE_MANAGER, swarmpb.NodeState_NODE_STATE_UNKNOWN)
	w.nodeState(id, hostname, state)
	w.members = append(w.members, Member{ID: id, Address: hostname + ":2377", Voter: true})
}

func (w *world) nodeState(id, hostname string, state swarmpb.NodeState) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
		NodeId: id, State: state, Description: &swarmpb.NodeDescription{Hostname: hostname}}}})
}

func spec(name, image string, replicas uint64) *swarmpb.ServiceSpec {
	return &swarmpb.ServiceSpec{
		Name: name,
		Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: image}},
		Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: replicas}}},
	}
}

// create makes a service through the API and returns its ID.
func (w *world) create(name string, replicas uint64) string {
	w.t.Helper()
	r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: spec(name, "web:1", replicas)})
	if err != nil {
		w.t.Fatalf("create %s: %v", name, err)
	}
	return r.GetId()
}

// task makes a task of the service's current template.
func (w *world) task(service string, slot, attempt uint64, node string) string {
	w.t.Helper()
	id := swarmpb.TaskID(service, slot, "", attempt)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
		Id: id, ServiceId: service, Slot: slot, Attempt: attempt, DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING,
		TemplateVersion: w.view().Service(service).GetTemplateVersion()}}})
	if node != "" {
		w.place(id, node, "")
	}
	return id
}

func (w *world) place(id, node, message string) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: id, NodeId: node, Message: message, At: 7}}})
}

func (w *world) status(st *swarmpb.TaskStatus) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_TaskStatus{TaskStatus: st}})
}

func (w *world) desire(id string, state swarmpb.TaskState) {
	w.t.Helper()
	_, err := w.local.Propose(context.Background(), &swarmpb.Proposal{Writes: []*swarmpb.Write{
		{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{TaskId: id, DesiredState: state}}}}})
	if err != nil {
		w.t.Fatalf("desire: %v", err)
	}
}

// expectError checks the code of an error and that its text has all parts.
func expectError(t *testing.T, err error, code wire.Code, parts ...string) {
	t.Helper()
	if wire.CodeOf(err) != code {
		t.Fatalf("error %v (%v), want %v", err, wire.CodeOf(err), code)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}
