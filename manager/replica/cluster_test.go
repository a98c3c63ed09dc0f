package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const testCluster = "cluster1"

// memNet is a network in memory. A member that is cut off keeps its connections, which end, and gets no new ones.
type memNet struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	cut       map[string]bool
	frozen    map[string]bool
	conns     map[net.Conn][2]string
}

func newMemNet() *memNet {
	return &memNet{listeners: map[string]*memListener{}, cut: map[string]bool{}, frozen: map[string]bool{}, conns: map[net.Conn][2]string{}}
}

type memListener struct {
	net  *memNet
	name string
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func (n *memNet) listen(name string) *memListener {
	l := &memListener{net: n, name: name, ch: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[name] = l
	return l
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *memListener) Addr() net.Addr { return advertised(l.name) }

// dial connects the member from to a service ("raft" or "grpc") of the member at address.
func (n *memNet) dial(ctx context.Context, from, service, address string) (net.Conn, error) {
	for n.isFrozen(from) || n.isFrozen(address) {
		if !sleep(ctx, 100*time.Millisecond) {
			return nil, fmt.Errorf("dial %s: %w", address, ctx.Err())
		}
	}
	n.mu.Lock()
	l := n.listeners[service+"/"+address]
	if l == nil || n.cut[from] || n.cut[address] {
		n.mu.Unlock()
		return nil, fmt.Errorf("dial %s: unreachable", address)
	}
	one, two := net.Pipe()
	a, b := &memConn{one, n, from, address}, &memConn{two, n, from, address}
	n.conns[a], n.conns[b] = [2]string{from, address}, [2]string{from, address}
	n.mu.Unlock()
	select {
	case l.ch <- b:
		return a, nil
	case <-l.done:
	case <-ctx.Done():
	}
	a.Close()
	return nil, fmt.Errorf("dial %s: refused", address)
}

// partition cuts the member at address off, or joins it again.
func (n *memNet) partition(address string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[address] = cut
	for c, ends := range n.conns {
		if cut && (ends[0] == address || ends[1] == address) {
			c.Close()
			delete(n.conns, c)
		}
	}
}

// memConn loses what is written while one of its ends is frozen.
type memConn struct {
	net.Conn
	net       *memNet
	from, dst string
}

func (c *memConn) Write(p []byte) (int, error) {
	c.net.mu.Lock()
	frozen := c.net.frozen[c.from] || c.net.frozen[c.dst]
	c.net.mu.Unlock()
	if frozen {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (n *memNet) isFrozen(address string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.frozen[address]
}

// freeze makes the member at address silent without closing its connections, as when its process is stopped or its
// machine is gone; they end when it is back.
func (n *memNet) freeze(address string, frozen bool) {
	n.mu.Lock()
	n.frozen[address] = frozen
	n.mu.Unlock()
	if !frozen {
		n.partition(address, true)
		n.partition(address, false)
	}
}

// member is one replica of a test cluster, that can be stopped and started again on its files.
type member struct {
	*Replica
	cluster *cluster
	id      string
	address string
	dir     string
	lead    func(context.Context, store.Leader) error
	tuning  Tuning
	free    func(dir string) (uint64, error)

	cancel context.CancelFunc
	done   chan error
	server *grpc.Server
}

type cluster struct {
	t       testing.TB
	net     *memNet
	members []*member
}

func testKey() []byte { return []byte("0123456789abcdef0123456789abcdef") }

// newCluster starts n members, of which the first is bootstrapped and the others are added, and stops them at the end.
func newCluster(t testing.TB, n int, edit func(*member)) *cluster {
	t.Helper()
	c := &cluster{t: t, net: newMemNet()}
	for i := range n {
		id := fmt.Sprintf("m%d", i+1)
		m := &member{cluster: c, id: id, address: id + ":2377", dir: filepath.Join(t.TempDir(), id)}
		if edit != nil {
			edit(m)
		}
		c.members = append(c.members, m)
	}
	first := c.members[0]
	first.open()
	if err := first.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	first.run()
	for _, m := range c.members[1:] {
		m.open()
		m.run()
	}
	c.leader()
	for _, m := range c.members[1:] {
		c.join(m)
	}
	return c
}

// join makes a member that runs a voter.
func (c *cluster) join(m *member) {
	c.t.Helper()
	c.add(m)
	eventually(c.t, m.id+" to be a voter", func() bool { return c.leader().MakeVoter(context.Background(), m.id) == nil })
}

// add makes a member that runs one without a vote.
func (c *cluster) add(m *member) {
	c.t.Helper()
	if err := c.leader().AddMember(context.Background(), m.id, m.address); err != nil {
		c.t.Fatal(err)
	}
}

// start runs a new member that belongs to no cluster yet.
func (c *cluster) start(id string) *member {
	c.t.Helper()
	m := &member{cluster: c, id: id, address: id + ":2377", dir: filepath.Join(c.t.TempDir(), id)}
	m.restart()
	c.members = append(c.members, m)
	return m
}

// transfer has the member lead.
func (c *cluster) transfer(to *member) {
	c.t.Helper()
	eventually(c.t, to.id+" to lead", func() bool {
		leader := c.leader()
		return leader == to || leader.TransferLeadership(context.Background(), to.id) == nil && c.leader() == to
	})
}

func (m *member) config() Config {
	n := m.cluster.net
	return Config{
		Dir: m.dir, NodeID: m.id, ClusterID: testCluster, Address: m.address, Key: testKey(),
		Listener: n.listen("raft/" + m.address),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return n.dial(ctx, m.address, "raft", address)
		},
		DialManager: func(address string) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithPerRPCCredentials(testCaller(m.id)),
				grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
					return n.dial(ctx, m.address, "grpc", address)
				}))
		},
		Lead: m.lead, Tuning: m.tuning, FreeBytes: m.free, Logger: testLogger(m.id),
		Peer: func(ctx context.Context) (wire.PeerInfo, bool) {
			md, _ := metadata.FromIncomingContext(ctx)
			return wire.PeerInfo{NodeID: strings.Join(md.Get("caller"), "")}, true
		},
	}
}

// testCaller tells who calls, where no certificate does.
type testCaller string

func (c testCaller) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"caller": string(c)}, nil
}
func (testCaller) RequireTransportSecurity() bool { return false }

// testLogger writes to stderr when REPLICA_LOG is set.
func testLogger(id string) *slog.Logger {
	if os.Getenv("REPLICA_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("member", id)
}

func (m *member) open() {
	m.cluster.t.Helper()
	r, err := New(m.config())
	if err != nil {
		m.cluster.t.Fatal(err)
	}
	m.Replica = r
}

func (m *member) run() {
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel, m.done = cancel, make(chan error, 1)
	m.server = grpc.NewServer()
	m.Register(m.server)
	server, listener, r, done := m.server, m.cluster.net.listen("grpc/"+m.address), m.Replica, m.done
	go server.Serve(listener)
	go func() { done <- r.Run(ctx) }()
	m.cluster.t.Cleanup(func() { m.stop() })
}

// stop is a planned stop. It may be called again.
func (m *member) stop() {
	if m.cancel == nil {
		return
	}
	m.cancel()
	if err := <-m.done; !errors.Is(err, context.Canceled) {
		m.cluster.t.Errorf("%s: Run returned %v", m.id, err)
	}
	m.server.Stop()
	m.cancel = nil
}

// restart opens and runs a stopped member again.
func (m *member) restart() {
	m.cluster.t.Helper()
	m.open()
	m.run()
}

// leader waits for a member that leads and is ready.
func (c *cluster) leader() *member {
	c.t.Helper()
	var found *member
	eventually(c.t, "a leader", func() bool {
		for _, m := range c.members {
			if m.Replica != nil && m.cancel != nil && !c.net.isCut(m.address) && m.leads(m.readyAt.Load()) {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func (n *memNet) isCut(address string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[address] || n.frozen[address]
}

// follower is a member that runs and is not the leader.
func (c *cluster) follower() *member {
	c.t.Helper()
	leader := c.leader()
	for _, m := range c.members {
		if m != leader && m.cancel != nil {
			return m
		}
	}
	c.t.Fatal("no follower")
	return nil
}

// eventually polls; under synctest the time that passes is virtual.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		timer := time.NewTimer(5 * time.Millisecond)
		<-timer.C
	}
}

// alarm is a proposal whose count tells how often it was applied.
func alarm(object, request string) *swarmpb.Proposal {
	return &swarmpb.Proposal{RequestId: request, Now: 1, Writes: []*swarmpb.Write{{
		Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: "test", Object: object, Message: "m"}},
	}}}
}

func (m *member) count(object string) uint64 {
	return m.Store().View().Alarm("test", object).GetCount()
}

func (m *member) mustPropose(p *swarmpb.Proposal) *swarmpb.Result {
	m.cluster.t.Helper()
	result, err := m.Propose(context.Background(), p)
	if err != nil {
		m.cluster.t.Fatalf("%s: %v", m.id, err)
	}
	return result
}
