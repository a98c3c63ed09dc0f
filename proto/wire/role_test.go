package wire

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// demotable counts every manager but those of the set as what its certificate says.
type demotable struct {
	mu   sync.Mutex
	gone map[string]bool
}

func (d *demotable) role(node string, certified swarmpb.NodeRole) swarmpb.NodeRole {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone[node] {
		return workerRole
	}
	return certified
}

func (d *demotable) set(node string, gone bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone == nil {
		d.gone = make(map[string]bool)
	}
	d.gone[node] = gone
}

func TestSetRole_ManagerIsDemotedWhileConnected_CountsAsWorkerFromTheNextCall(t *testing.T) {
	ca := newTestCA(t, "c1")
	var d demotable
	var seen PeerInfo
	m1 := ca.credentials("m1", managerRole)
	m1.SetRole(d.role)
	p := startPort(t, m1, &everyService{do: func(ctx context.Context) error { seen, _ = Peer(ctx); return nil }})
	conn := client(t, p.addr, ca.credentials("m2", managerRole))
	asManager := func() error {
		_, err := swarmpb.NewReplicaClient(conn).ReadIndex(t.Context(), &swarmpb.ReadIndexRequest{})
		return err
	}
	if err := asManager(); err != nil || seen.Caller != swarmpb.Caller_CALLER_MANAGER {
		t.Fatalf("before: %v as %v", err, seen.Caller)
	}
	d.set("m2", true)
	if err := asManager(); CodeOf(err) != CodePermissionDenied || !strings.Contains(err.Error(), "worker m2 may not use it") {
		t.Errorf("a demoted manager's call: %v", err)
	}
	if err := renewCall(t.Context(), conn); err != nil || seen.Caller != swarmpb.Caller_CALLER_WORKER {
		t.Errorf("its renewal: %v as %v", err, seen.Caller)
	}
	d.set("m2", false)
	if err := asManager(); err != nil {
		t.Errorf("promoted again: %v", err)
	}
	// A role is never more than the certificate says.
	m1.SetRole(func(string, swarmpb.NodeRole) swarmpb.NodeRole { return managerRole })
	worker := client(t, p.addr, ca.credentials("w1", workerRole))
	if _, err := swarmpb.NewReplicaClient(worker).ReadIndex(t.Context(), &swarmpb.ReadIndexRequest{}); CodeOf(err) != CodePermissionDenied {
		t.Errorf("a worker that the hook calls a manager: %v", err)
	}
	m1.SetRole(nil)
	d.set("m2", true)
	if err := asManager(); err != nil {
		t.Errorf("without a hook the certificate counts: %v", err)
	}
}

func TestSetRole_StreamOfAManager_EndsWithItsRole(t *testing.T) {
	ca := newTestCA(t, "c1")
	var d demotable
	m1 := ca.credentials("m1", managerRole)
	m1.SetRole(d.role)
	l, err := Listen("127.0.0.1:0", m1)
	if err != nil {
		t.Fatal(err)
	}
	watch := &watchService{more: make(chan struct{})}
	server := NewServer(ServerConfig{})
	swarmpb.RegisterControlServer(server, watch)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	wg.Go(func() { server.Serve(l.GRPC()) })
	t.Cleanup(func() { cancel(); server.Stop(); wg.Wait() })

	stream, err := swarmpb.NewControlClient(client(t, l.Addr().String(), ca.credentials("m2", managerRole))).WatchService(t.Context(), &swarmpb.WatchServiceRequest{})
	if err != nil {
		t.Fatal(err)
	}
	watch.more <- struct{}{}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	d.set("m2", true)
	watch.more <- struct{}{}
	if _, err := stream.Recv(); CodeOf(err) != CodePermissionDenied {
		t.Errorf("after the demotion the stream gave %v", err)
	}
}

// watchService sends a message each time that it is told to.
type watchService struct {
	swarmpb.UnimplementedControlServer
	more chan struct{}
}

func (w *watchService) WatchService(_ *swarmpb.WatchServiceRequest, s grpc.ServerStreamingServer[swarmpb.WatchServiceResponse]) error {
	for {
		select {
		case <-w.more:
		case <-s.Context().Done():
			return s.Context().Err()
		}
		if err := s.Send(&swarmpb.WatchServiceResponse{}); err != nil {
			return err
		}
	}
}

func TestSetRole_DemotedManager_IsRefusedOnRaftAndItsConnectionsThereEnd(t *testing.T) {
	ca := newTestCA(t, "c1")
	var d demotable
	m1, m2 := ca.credentials("m1", managerRole), ca.credentials("m2", managerRole)
	m1.SetRole(d.role)
	p := startPort(t, m1, &everyService{})
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			conn, err := p.Raft().Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	other := startPort(t, m2, &everyService{})
	go func() {
		for {
			conn, err := other.Raft().Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(io.Discard, conn) }()
		}
	}()

	in, err := DialRaft(t.Context(), p.addr, m2)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	served := <-accepted
	defer served.Close()
	out, err := DialRaft(t.Context(), other.addr, m1)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	session := client(t, p.addr, m2)
	if err := renewCall(t.Context(), session); err != nil {
		t.Fatal(err)
	}

	if n := m1.CloseRevoked(); n != 0 {
		t.Fatalf("%d connections closed while all are managers", n)
	}
	d.set("m2", true)
	if n := m1.CloseRevoked(); n != 2 {
		t.Errorf("%d connections closed, of Raft there are 2", n)
	}
	for name, conn := range map[string]net.Conn{"accepted": served, "opened": out, "the peer's": in} {
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: still open", name)
		}
	}
	if m1.Connections("m2") == 0 {
		t.Error("its session was closed too")
	}
	if err := renewCall(t.Context(), session); err != nil {
		t.Errorf("its session: %v", err)
	}
	// A new one: neither in nor out.
	if conn, err := DialRaft(t.Context(), p.addr, m2); err == nil {
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err = conn.Read(make([]byte, 1)); err == nil {
			t.Error("a demoted manager reached Raft")
		}
	}
	select {
	case <-accepted:
		t.Error("Raft was handed a connection of a demoted manager")
	default:
	}
	if _, err := DialRaft(t.Context(), other.addr, m1); err == nil || !strings.Contains(err.Error(), "a manager no longer") {
		t.Errorf("Raft to a demoted manager: %v", err)
	}
	if err := renewCall(t.Context(), client(t, other.addr, m1)); err == nil || !strings.Contains(err.Error(), "a manager no longer") {
		t.Errorf("a call to a demoted manager: %v", err)
	}
}

func TestCloseRevoked_CheckThatNeedsAConnection_DoesNotBlockItself(t *testing.T) {
	ca := newTestCA(t, "c1")
	m1 := ca.credentials("m1", managerRole)
	var asked atomic.Int32
	// The check of w1 asks whether there are connections, as one that asks the leader opens one.
	m1.SetStanding(func(node string, _ swarmpb.NodeRole) Standing {
		asked.Add(1)
		return removedIf(m1.Connections(node) > 100)
	})
	p := startPort(t, m1, &everyService{})
	for range 3 {
		if err := renewCall(t.Context(), client(t, p.addr, ca.credentials("w1", workerRole))); err != nil {
			t.Fatal(err)
		}
	}
	before := asked.Load()
	if n := m1.CloseRevoked(); n != 0 {
		t.Errorf("%d connections closed", n)
	}
	if n := asked.Load() - before; n != 1 {
		t.Errorf("one node was judged %d times", n)
	}
}

func TestListener_ClosedWithConnectionsOpen_ItsPortServesAnewAtOnce(t *testing.T) {
	ca := newTestCA(t, "c1")
	m1, m2 := ca.credentials("m1", managerRole), ca.credentials("m2", managerRole)
	addr := "127.0.0.1:0"
	for round := range 5 {
		l, err := Listen(addr, m1)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		addr = l.Addr().String()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		conn, err := DialRaft(t.Context(), addr, m2)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		defer conn.Close()
		served, err := l.Raft().Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer served.Close()
		text := fmt.Sprint("round ", round)
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(served, got); err != nil || string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-done
		if _, err := l.Raft().Accept(); err == nil {
			t.Fatal("a closed port yields connections")
		}
	}
}
