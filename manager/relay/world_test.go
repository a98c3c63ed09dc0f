package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// world is managers with one store, and nodes that serve them, on connections in memory.
type world struct {
	t       testing.TB
	store   *store.Store
	local   *store.LocalProposer
	service string

	mu       sync.Mutex
	managers map[string]*testManager // by ID, which is the address too
}

type testManager struct {
	*Server
	grpc     *grpc.Server
	listener *bufconn.Listener
}

func newWorld(t testing.TB, managers ...string) *world {
	st := store.New()
	w := &world{t: t, store: st, local: store.NewLocalProposer(st), managers: map[string]*testManager{}}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: "c1", Spec: &swarmpb.ClusterSpec{}}}})
	for _, id := range managers {
		w.manager(id)
	}
	t.Cleanup(func() {
		for _, id := range w.ids() {
			w.stop(id)
		}
	})
	w.service = swarmpb.NewID()
	spec := &swarmpb.ServiceSpec{Name: "web", Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: 1}}},
		Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "web:1"}}}
	w.put(
		&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: w.service, Version: 1, Spec: spec.Task}}},
		&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: w.service, Spec: spec, TemplateVersion: 1}}},
	)
	return w
}

func (w *world) put(rows ...*swarmpb.Row) {
	w.t.Helper()
	var writes []*swarmpb.Write
	for _, row := range rows {
		writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}})
	}
	if _, err := w.local.Propose(context.Background(), &swarmpb.Proposal{Now: 1, Writes: writes}); err != nil {
		w.t.Fatalf("put: %v", err)
	}
}

func (w *world) node(id string) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}})
	w.put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
		NodeId: id, State: swarmpb.NodeState_NODE_STATE_READY, Description: &swarmpb.NodeDescription{Hostname: id}}}})
}

// task makes one that is on a node and has the state.
func (w *world) task(slot, attempt uint64, node string, state swarmpb.TaskState) string {
	w.t.Helper()
	id := swarmpb.TaskID(w.service, slot, "", attempt)
	w.put(
		&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: id, ServiceId: w.service, Slot: slot, Attempt: attempt, TemplateVersion: 1,
			DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING}}},
		&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: id, NodeId: node}}},
	)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_TaskStatus{TaskStatus: &swarmpb.TaskStatus{TaskId: id, State: state, At: int64(attempt)}}})
	return id
}

const (
	running = swarmpb.TaskState_TASK_STATE_RUNNING
	failed  = swarmpb.TaskState_TASK_STATE_FAILED
)

func (w *world) manager(id string) {
	w.t.Helper()
	server, err := New(Config{
		NodeID: id, Store: func() *store.Store { return w.store }, ReadIndex: func(context.Context) (uint64, error) { return 0, nil },
		Managers: func() (out []*swarmpb.ManagerPeer) {
			for _, id := range w.ids() {
				out = append(out, &swarmpb.ManagerPeer{NodeId: id, Address: id})
			}
			return out
		},
		DialManager: func(address string) (*grpc.ClientConn, error) { return w.dial(address, id) },
		Find: func(view *store.View, ref string) (*swarmpb.Service, *swarmpb.Task, error) {
			if task := view.Task(ref); task != nil {
				return view.Service(task.GetServiceId()), task, nil
			}
			if service := view.ServiceByName(ref); service != nil {
				return service, nil, nil
			}
			return nil, nil, wire.Errorf(wire.CodeNotFound, "%q: not found", ref)
		},
		Peer: func(ctx context.Context) (wire.PeerInfo, bool) {
			md, _ := metadata.FromIncomingContext(ctx)
			if v := md.Get("node"); len(v) == 1 {
				return wire.PeerInfo{NodeID: v[0]}, true
			}
			return wire.PeerInfo{}, false
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	m := &testManager{Server: server, grpc: grpc.NewServer(grpc.StreamInterceptor(
		func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return wire.ToStatus(handle(srv, ss))
		})), listener: bufconn.Listen(1 << 20)}
	m.Register(m.grpc)
	go m.grpc.Serve(m.listener)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.managers[id] = m
}

func (w *world) ids() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.managers))
}

func (w *world) at(id string) *testManager {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.managers[id]
}

func (w *world) stop(id string) {
	w.mu.Lock()
	m := w.managers[id]
	delete(w.managers, id)
	w.mu.Unlock()
	m.Close()
	m.grpc.Stop()
}

// dial is a connection of a node to a manager.
func (w *world) dial(manager, as string) (*grpc.ClientConn, error) {
	m := w.at(manager)
	if m == nil {
		return nil, errors.New("there is no such manager")
	}
	return grpc.NewClient("passthrough:///"+manager, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return m.listener.DialContext(ctx) }),
		grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, o ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(metadata.AppendToOutgoingContext(ctx, "node", as), d, cc, method, o...)
		}))
}

// fakeNode serves one manager. Its logs are lines by task; a position is a number of lines.
type fakeNode struct {
	w      *world
	id     string
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	logs   map[string][]string
	ended  map[string]bool
	silent bool // it takes requests and says nothing
	// answer, unless nil, is what it does instead.
	answer func(ctx context.Context, req *swarmpb.RelayRequest, client swarmpb.RelayClient)
	asked  int
	sent   int
}

func (w *world) serve(id, manager string) *fakeNode {
	w.t.Helper()
	n := &fakeNode{w: w, id: id, logs: map[string][]string{}, ended: map[string]bool{}}
	w.node(id)
	n.connect(manager)
	return n
}

func (n *fakeNode) connect(manager string) {
	n.w.t.Helper()
	conn, err := n.w.dial(manager, n.id)
	if err != nil {
		n.w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.cancel, n.done = cancel, done
	client := swarmpb.NewRelayClient(conn)
	stream, err := client.Serve(ctx, &swarmpb.RelayServeRequest{})
	if err != nil {
		n.w.t.Fatal(err)
	}
	go func() {
		defer close(done)
		defer conn.Close()
		var work sync.WaitGroup
		defer work.Wait()
		for {
			req, err := stream.Recv()
			if err != nil {
				cancel()
				return
			}
			work.Go(func() { n.serve(ctx, req, client) })
		}
	}()
	until(n.w.t, func() bool { return n.w.at(manager).serves(n.id) })
}

func (n *fakeNode) disconnect() {
	n.cancel()
	<-n.done
}

func (n *fakeNode) write(task string, lines ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.logs[task] = append(n.logs[task], lines...)
}

func (n *fakeNode) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *fakeNode) serve(ctx context.Context, req *swarmpb.RelayRequest, client swarmpb.RelayClient) {
	n.mu.Lock()
	n.asked++
	answer := n.answer
	n.mu.Unlock()
	if answer != nil {
		answer(ctx, req, client)
		return
	}
	if n.isSilent() {
		<-ctx.Done()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Answer(ctx)
	if err != nil {
		return
	}
	_ = stream.Send(&swarmpb.RelayFrame{RequestId: req.GetId()})
	credit := make(chan uint32, 1000)
	go func() {
		defer cancel()
		for {
			c, err := stream.Recv()
			if err != nil {
				return
			}
			credit <- c.GetFrames()
		}
	}()
	q := req.GetLogs()
	at, frames := int(q.GetAfter().GetOffset()), uint32(0)
	beat := time.NewTicker(time.Second)
	defer beat.Stop()
	for ctx.Err() == nil {
		n.mu.Lock()
		lines, ended, silent := n.logs[q.GetTaskId()], n.ended[q.GetTaskId()], n.silent
		n.mu.Unlock()
		if silent {
			<-ctx.Done()
			return
		}
		if at < len(lines) {
			if frames == 0 {
				select {
				case c := <-credit:
					frames += c
				case <-ctx.Done():
				}
				continue
			}
			frame := &swarmpb.LogFrame{Records: []byte(lines[at]), Position: &swarmpb.LogPosition{File: "f", Offset: uint64(at + 1)}}
			if stream.Send(&swarmpb.RelayFrame{Kind: &swarmpb.RelayFrame_Logs{Logs: frame}}) != nil {
				return
			}
			n.set(func() { n.sent++ })
			at++
			frames--
			continue
		}
		if !q.GetFollow() || ended {
			_ = stream.CloseSend()
			<-ctx.Done()
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-beat.C:
			_ = stream.Send(&swarmpb.RelayFrame{})
		case <-ctx.Done():
		}
	}
}

func (n *fakeNode) isSilent() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.silent
}

// record is a line at a second of the hour.
func record(second int, text string) string {
	return fmt.Sprintf("2026-01-02T15:%02d:%02d.000000000Z stdout F %s\n", second/60, second%60, text)
}

// user is a call to Stream and what came of it.
type user struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error

	mu      sync.Mutex
	lines   []string // "web.1@node: text"
	notices []string
	sources map[uint32]*swarmpb.LogSource
	// gate, unless nil, is waited for before each message is taken.
	gate chan struct{}
}

func (w *world) read(manager string, req *swarmpb.LogsStreamRequest) *user {
	return w.readGated(manager, req, nil)
}

func (w *world) readGated(manager string, req *swarmpb.LogsStreamRequest, gate chan struct{}) *user {
	ctx, cancel := context.WithCancel(context.Background())
	u := &user{cancel: cancel, done: make(chan struct{}), sources: map[uint32]*swarmpb.LogSource{}, gate: gate}
	m := w.at(manager)
	go func() {
		defer close(u.done)
		u.err = m.Stream(req, &userStream{ctx: ctx, user: u})
	}()
	return u
}

type userStream struct {
	grpc.ServerStreamingServer[swarmpb.LogsStreamResponse]
	ctx  context.Context
	user *user
}

func (s *userStream) Context() context.Context { return s.ctx }

func (s *userStream) Send(m *swarmpb.LogsStreamResponse) error {
	u := s.user
	if u.gate != nil {
		select {
		case <-u.gate:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if src := m.GetSource(); src != nil {
		u.sources[src.GetNumber()] = src
	}
	if n := m.GetNotice(); n != nil {
		u.notices = append(u.notices, n.GetText())
	}
	for _, r := range m.GetBatch().GetRecords() {
		src := u.sources[r.GetSource()]
		for line := range strings.Lines(string(r.GetRecords())) {
			u.lines = append(u.lines, fmt.Sprintf("%s@%s: %s", src.GetTaskName(), src.GetNodeHostname(), strings.TrimSpace(line[recordHead:])))
		}
	}
	return nil
}

func (u *user) has() (lines, notices []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.lines...), append([]string(nil), u.notices...)
}

// until waits in virtual time.
func until(t testing.TB, cond func() bool) {
	t.Helper()
	for range 6000 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("not within a minute")
}
