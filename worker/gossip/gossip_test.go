package gossip

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// patience is how long a test waits for what takes seconds on an idle machine.
const patience = 90 * time.Second

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func testID(i int) string { return swarmpb.DerivedID("gossip", fmt.Sprint(i)) }

// ring is nodes at loopback addresses of one port.
type ring struct {
	t    *testing.T
	port int
	keys [][]byte
}

func newRing(t *testing.T) *ring {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return &ring{t: t, port: l.Addr().(*net.TCPAddr).Port, keys: [][]byte{key(1)}}
}

func (r *ring) address(i int) string { return fmt.Sprintf("127.0.77.%d:%d", i, r.port) }

func (r *ring) seeds() []string { return []string{r.address(1), r.address(2)} }

type member struct {
	*Gossip
	stop func()
}

// start begins node i at an address; crash has it end without a farewell.
func (r *ring) start(i int, address string, crash bool, keys ...[]byte) *member {
	r.t.Helper()
	g, err := New(Config{NodeID: testID(i), BindAddress: address, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		r.t.Fatal(err)
	}
	if len(keys) == 0 {
		keys = r.keys
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !crash {
			if err := g.Run(ctx); err != nil {
				r.t.Errorf("run: %v", err)
			}
			return
		}
		if list, _ := g.open(ctx); list != nil {
			g.gather(ctx, list)
			_ = list.Shutdown()
		}
	}()
	g.Configure(keys, r.seeds())
	m := &member{Gossip: g, stop: func() { cancel(); <-done }}
	r.t.Cleanup(m.stop)
	return m
}

func (m *member) ids() []string {
	var out []string
	for _, x := range m.Members() {
		out = append(out, x.NodeID)
	}
	return out
}

func (r *ring) converged(nodes map[int]*member) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("all %d know each other", len(nodes)), func() bool {
		for i, m := range nodes {
			var want []string
			for j := range nodes {
				if j != i {
					want = append(want, testID(j))
				}
			}
			slices.Sort(want)
			if !slices.Equal(m.ids(), want) {
				return false
			}
		}
		return true
	})
}

func probe(t *testing.T, m *member, i int, address string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return m.Probe(ctx, testID(i), address)
}

func TestGossip_NodeDiesAndComesBackElsewhere_IsDeadAndThenNot(t *testing.T) {
	r := newRing(t)
	a, b, c := r.start(1, r.address(1), false), r.start(2, r.address(2), false), r.start(3, r.address(3), true)
	r.converged(map[int]*member{1: a, 2: b, 3: c})
	if a.Dead(testID(3)) || a.Dead(testID(9)) {
		t.Error("a living or an unknown node is called dead")
	}
	eventually(t, "a probe is answered", func() bool { return probe(t, a, 3, "127.0.77.3:2377") == nil })
	if err := probe(t, a, 3, "127.0.77.2"); err == nil {
		t.Error("another node answered for it")
	}
	for len(a.Changes()) > 0 {
		<-a.Changes()
	}
	c.stop()
	eventually(t, "both others call it dead", func() bool { return a.Dead(testID(3)) && b.Dead(testID(3)) })
	<-a.Changes()
	if err := probe(t, a, 3, "127.0.77.3:2377"); err == nil {
		t.Error("a dead node answered a probe")
	}
	c = r.start(3, r.address(4), false)
	r.converged(map[int]*member{1: a, 2: b, 3: c})
	if a.Dead(testID(3)) || b.Dead(testID(3)) {
		t.Error("it came back and is called dead")
	}
	if m := a.Members()[slices.Index(a.ids(), testID(3))]; m.Address.Addr() != netip.MustParseAddr("127.0.77.4") {
		t.Errorf("it is known at %s", m.Address)
	}
}

func TestGossip_ProbeOfANodeThatIsCalledDead_IsAnsweredByIt(t *testing.T) {
	r := newRing(t)
	a, b := r.start(1, r.address(1), false), r.start(2, r.address(2), false)
	r.converged(map[int]*member{1: a, 2: b})
	a.roster.NotifyLeave(&memberlist.Node{Name: testID(2)})
	if !a.Dead(testID(2)) {
		t.Fatal("it is not called dead")
	}
	eventually(t, "a probe is answered", func() bool { return probe(t, a, 2, "127.0.77.2:2377") == nil })
}

func TestGossip_PlannedStop_IsNotDeath(t *testing.T) {
	r := newRing(t)
	a, b, c := r.start(1, r.address(1), false), r.start(2, r.address(2), false), r.start(3, r.address(3), false)
	r.converged(map[int]*member{1: a, 2: b, 3: c})
	c.stop()
	eventually(t, "the others know that it is gone", func() bool { return len(a.ids()) == 1 && len(b.ids()) == 1 })
	if a.Dead(testID(3)) || b.Dead(testID(3)) {
		t.Error("a node that left is called dead")
	}
	c = r.start(3, r.address(3), false)
	r.converged(map[int]*member{1: a, 2: b, 3: c})
}

func TestGossip_KeyRotation_NoOneIsLost(t *testing.T) {
	r := newRing(t)
	nodes := map[int]*member{}
	for i := range 4 {
		nodes[i+1] = r.start(i+1, r.address(i+1), false)
	}
	r.converged(nodes)
	for _, keys := range [][][]byte{{key(1), key(2)}, {key(2), key(1)}, {key(2)}} {
		for _, m := range nodes { // one after the other, as it is in life
			m.Configure(keys, r.seeds())
			<-time.After(3 * gossipInterval)
		}
		<-time.After(2 * probeInterval)
		for i, m := range nodes {
			for j := range nodes {
				if m.Dead(testID(j)) {
					t.Fatalf("with %d keys node %d calls %d dead", len(keys), i, j)
				}
			}
			if !slices.EqualFunc(m.ring.GetKeys(), keys, bytes.Equal) {
				t.Fatalf("node %d holds other keys", i)
			}
		}
		r.converged(nodes)
	}
	r.keys = [][]byte{key(2)}
	nodes[5] = r.start(5, r.address(5), false)
	r.converged(nodes)
}

func TestGossip_WrongKey_NeverGetsIn(t *testing.T) {
	r := newRing(t)
	a, b := r.start(1, r.address(1), false), r.start(2, r.address(2), false)
	r.converged(map[int]*member{1: a, 2: b})
	stranger := r.start(3, r.address(3), false, key(9))
	eventually(t, "the stranger has come up", func() bool { return stranger.running() != nil })
	<-time.After(2 * alonePause)
	if len(stranger.ids()) != 0 || slices.Contains(a.ids(), testID(3)) || slices.Contains(b.ids(), testID(3)) {
		t.Error("a node with another key got in")
	}
	if err := probe(t, a, 3, "127.0.77.3"); err == nil {
		t.Error("a node with another key answered a probe")
	}
	stranger.Configure(r.keys, r.seeds()) // the managers have told it the right one
	r.converged(map[int]*member{1: a, 2: b, 3: stranger})
}

func TestGossip_WithoutAKey_IsSilent(t *testing.T) {
	r := newRing(t)
	g, err := New(Config{NodeID: testID(1), BindAddress: r.address(1), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	g.Configure(nil, []string{r.address(2)})
	g.Configure([][]byte{{1, 2, 3}}, nil)
	<-time.After(50 * time.Millisecond)
	if conn, err := net.Dial("tcp", r.address(1)); err == nil {
		conn.Close()
		t.Error("it listens without a key")
	}
	if err := g.Probe(t.Context(), testID(2), "127.0.77.2"); err == nil {
		t.Error("it probes without a key")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if err := g.Run(t.Context()); err == nil {
		t.Error("it was run twice")
	}
}

func TestGossip_PortTaken_IsSaidAndTriedAgain(t *testing.T) {
	r := newRing(t)
	taken, err := net.Listen("tcp", r.address(1))
	if err != nil {
		t.Fatal(err)
	}
	a := r.start(1, r.address(1), false)
	eventually(t, "it says why", func() bool { return a.Err() != nil && strings.Contains(a.Err().Error(), r.address(1)) })
	taken.Close()
	eventually(t, "it is tried again", func() bool { return a.Err() == nil && a.running() != nil })
}

func TestGossip_Stopped_LeavesNoGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	r := newRing(t)
	nodes := map[int]*member{1: r.start(1, r.address(1), false), 2: r.start(2, r.address(2), false)}
	r.converged(nodes)
	idle, err := net.Dial("tcp", r.address(1)) // a stream that never says anything
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	for _, m := range nodes {
		m.stop()
	}
	eventually(t, "its goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

func TestNew_BadConfig_IsRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"no ID":              {BindAddress: "127.0.0.1:7946"},
		"a name":             {NodeID: testID(1), BindAddress: "localhost:7946"},
		"port 0":             {NodeID: testID(1), BindAddress: "127.0.0.1:0"},
		"nothing to say":     {NodeID: testID(1), BindAddress: "0.0.0.0:7946"},
		"advertises nothing": {NodeID: testID(1), BindAddress: "127.0.0.1", AdvertiseAddress: "::"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	g, err := New(Config{NodeID: testID(1), BindAddress: ":", AdvertiseAddress: "192.0.2.1"})
	if err == nil {
		t.Errorf("an empty port became %s", g.bind)
	}
	if g, err = New(Config{NodeID: testID(1), BindAddress: "0.0.0.0", AdvertiseAddress: "192.0.2.1"}); err != nil || g.advertise.String() != "192.0.2.1:7946" {
		t.Errorf("%v, %v", g, err)
	}
}
