package dispatcher

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// cluster is one manager with its dispatcher behind real gRPC, in virtual time.
type cluster struct {
	*world
	t        *testing.T
	ctx      context.Context
	id       string
	server   *Server
	listener *bufconn.Listener
	client   swarmpb.DispatcherClient
	endLead  context.CancelFunc
	proposed atomic.Int64
	managers atomic.Pointer[[]*swarmpb.ManagerPeer]
	// refuse, when set, is asked before a proposal is applied.
	refuse       func() error
	refuseWrites atomic.Bool
}

// Propose counts what enters the log.
func (c *cluster) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	c.proposed.Add(1)
	if c.refuseWrites.Load() {
		return nil, errors.New("no quorum")
	}
	if c.refuse != nil {
		if err := c.refuse(); err != nil {
			return nil, err
		}
	}
	return c.proposer.Propose(ctx, p)
}

func (c *cluster) Term() uint64 { return c.proposer.Term() }

// callerOf is the node that a test's call names.
func callerOf(ctx context.Context) (wire.PeerInfo, bool) {
	md, _ := metadata.FromIncomingContext(ctx)
	if id := md.Get("node"); len(id) == 1 {
		return wire.PeerInfo{Caller: swarmpb.Caller_CALLER_WORKER, NodeID: id[0], Addr: "10.0.0.7:4711"}, true
	}
	return wire.PeerInfo{}, false
}

// startManager runs a manager; stop ends it and waits for it.
func startManager(t *testing.T, ctx context.Context, w *world, id string, adjust func(*Config)) (c *cluster, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	c = &cluster{world: w, t: t, ctx: ctx, id: id, listener: bufconn.Listen(1 << 20), endLead: func() {}}
	c.managers.Store(&[]*swarmpb.ManagerPeer{{NodeId: id, Address: "10.0.0.1:2377", Weight: 1}})
	cfg := Config{
		NodeID: id, Store: func() *store.Store { return c.store }, Proposer: c,
		ReadIndex: func(context.Context) (uint64, error) { return c.view().Index(), nil },
		Managers:  func() []*swarmpb.ManagerPeer { return *c.managers.Load() },
		Peer:      callerOf,
		Logger:    slog.New(slog.DiscardHandler),
	}
	if adjust != nil {
		adjust(&cfg)
	}
	server, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.server = server
	g := grpc.NewServer()
	server.Register(g)
	conn := c.dial(nil)
	c.client = swarmpb.NewDispatcherClient(conn)
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- g.Serve(c.listener) }()
	go func() { ran <- server.Run(ctx) }()
	return c, sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
		conn.Close()
		g.Stop()
		<-served
	})
}

// dial connects to the manager; intercept may be nil.
func (c *cluster) dial(intercept grpc.UnaryClientInterceptor) *grpc.ClientConn {
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.listener.DialContext(ctx) }),
	}
	if intercept != nil {
		options = append(options, grpc.WithUnaryInterceptor(intercept))
	}
	conn, err := grpc.NewClient("passthrough:///"+c.id, options...)
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// inCluster runs a test in a bubble, with a manager that leads.
func inCluster(t *testing.T, nodes []string, test func(t *testing.T, c *cluster)) {
	inClusterWith(t, nodes, nil, test)
}

// inClusterWith lets the test adjust the manager's configuration.
func inClusterWith(t *testing.T, nodes []string, adjust func(*Config), test func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := startManager(t, context.Background(), newWorld(t, nodes...), "m", adjust)
		defer stop()
		c.lead()
		defer func() { c.endLead() }()
		test(t, c)
	})
}

// lead begins a term; endLead ends it.
func (c *cluster) lead() {
	ctx, cancel := context.WithCancel(c.ctx)
	done := make(chan error, 1)
	go func() { done <- c.server.Lead(ctx, c) }()
	c.endLead = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("lead: %v", err)
		}
	})
	synctest.Wait()
}

func (c *cluster) state(node string) swarmpb.NodeState {
	return c.view().NodeStatus(node).GetState()
}

func (c *cluster) expectState(node string, state swarmpb.NodeState) {
	c.t.Helper()
	synctest.Wait()
	if got := c.state(node); got != state {
		c.t.Fatalf("node %s is %s, want %s", node, got.Name(), state.Name())
	}
}

// worker is a client of a session that beats until it is told to stop.
type worker struct {
	c      *cluster
	node   string
	ctx    context.Context
	cut    context.CancelFunc
	stream grpc.BidiStreamingClient[swarmpb.SessionRequest, swarmpb.SessionResponse]
	id     string
	mu     sync.Mutex // held while sending
	mute   atomic.Bool
	acked  atomic.Uint64
	peers  atomic.Int64
	// sequence counts the beats; answered is the newest that was answered, answers how often. Without counting, the
	// worker is an old one.
	counting bool
	// atOnce: it acknowledges without waiting for the next beat.
	atOnce             atomic.Bool
	sequence, answered atomic.Uint64
	answers            atomic.Int64
	ended              chan error
}

func asNode(ctx context.Context, node string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "node", node)
}

func hello(boot string) *swarmpb.SessionRequest {
	return &swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Hello{Hello: &swarmpb.SessionHello{
		Description: &swarmpb.NodeDescription{Hostname: "host-" + boot}, BootId: boot, ListenAddress: "0.0.0.0:2377"}}}
}

func beat(version uint64) *swarmpb.SessionRequest {
	return &swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Beat{Beat: &swarmpb.SessionBeat{AppliedVersion: version}}}
}

// connect opens a session of a worker that counts its beats; the error is that of the first answer.
func (c *cluster) connect(node, boot string) (*worker, error) { return c.open(node, boot, true) }

func (c *cluster) open(node, boot string, counting bool) (*worker, error) {
	ctx, cut := context.WithCancel(asNode(c.ctx, node))
	w := &worker{c: c, node: node, ctx: ctx, cut: cut, counting: counting, ended: make(chan error, 1)}
	stream, err := c.client.Session(ctx)
	if err == nil {
		err = stream.Send(hello(boot))
	}
	if err != nil {
		cut()
		return nil, err
	}
	w.stream = stream
	first, err := stream.Recv()
	if err != nil {
		cut()
		return nil, err
	}
	w.id = first.GetSessionId()
	w.peers.Store(int64(len(first.GetManagers())))
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				w.ended <- err
				cut()
				return
			}
			w.peers.Store(int64(len(m.GetManagers())))
			if n := m.GetHeardSequence(); n > 0 {
				w.answered.Store(n)
				w.answers.Add(1)
			}
		}
	}()
	go func() {
		ticker := time.NewTicker(time.Duration(first.GetBeatInterval()))
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				m := beat(w.acked.Load())
				if w.counting {
					m.GetBeat().Sequence = w.sequence.Add(1)
				}
				if !w.mute.Load() && w.send(m) != nil {
					return
				}
			}
		}
	}()
	return w, nil
}

func (w *worker) send(m *swarmpb.SessionRequest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stream.Send(m)
}

// close ends the worker's side of the stream, as a daemon that stops does.
func (w *worker) close() error {
	w.mute.Store(true)
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stream.CloseSend()
}

func (c *cluster) mustConnect(node, boot string) *worker {
	c.t.Helper()
	w, err := c.connect(node, boot)
	if err != nil {
		c.t.Fatalf("connect %s: %v", node, err)
	}
	return w
}

// assignments keeps the worker's holder up to date, and acknowledges.
func (w *worker) assignments() *holder {
	h := newHolder(w.c.t)
	stream, err := w.c.client.Assignments(w.ctx, &swarmpb.AssignmentsRequest{SessionId: w.id})
	if err != nil {
		w.c.t.Fatal(err)
	}
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			h.receive(m)
			w.acked.Store(h.at())
			if w.atOnce.Load() && w.send(beat(h.at())) != nil {
				return
			}
		}
	}()
	synctest.Wait()
	return h
}

func (w *worker) update(statuses ...*swarmpb.TaskStatus) error {
	_, err := w.c.client.UpdateStatus(w.ctx, &swarmpb.UpdateStatusRequest{SessionId: w.id, Statuses: statuses})
	return err
}

func expectCode(t *testing.T, err error, code wire.Code, part string) {
	t.Helper()
	err = wire.FromStatus(err)
	if wire.CodeOf(err) != code || !strings.Contains(err.Error(), part) {
		t.Fatalf("error %v (%v), want %v with %q", err, wire.CodeOf(err), code, part)
	}
}

// incoming is the context in which a server sees a node's call.
func incoming(node string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs("node", node))
}
