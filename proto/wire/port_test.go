package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func renewCall(ctx context.Context, conn *grpc.ClientConn) error {
	_, err := swarmpb.NewCAClient(conn).RenewCertificate(ctx, &swarmpb.RenewCertificateRequest{})
	return err
}

func TestPort_CallsByEachKindOfPeer_AreKnownAndJudged(t *testing.T) {
	ca := newTestCA(t, "c1")
	var seen PeerInfo
	svc := &everyService{do: func(ctx context.Context) error { seen, _ = Peer(ctx); return nil }}
	p := startPort(t, ca.credentials("m1", managerRole), svc)

	worker := client(t, p.addr, ca.credentials("w1", workerRole))
	if err := renewCall(t.Context(), worker); err != nil {
		t.Fatal(err)
	}
	if seen.Caller != swarmpb.Caller_CALLER_WORKER || seen.NodeID != "w1" || seen.ClusterID != "c1" || seen.Host() != "127.0.0.1" {
		t.Errorf("the worker is seen as %+v", seen)
	}
	if _, err := swarmpb.NewReplicaClient(worker).ReadIndex(t.Context(), &swarmpb.ReadIndexRequest{}); CodeOf(err) != CodePermissionDenied {
		t.Errorf("a worker's ReadIndex: %v", err)
	}
	manager := client(t, p.addr, ca.credentials("m2", managerRole))
	if _, err := swarmpb.NewReplicaClient(manager).ReadIndex(t.Context(), &swarmpb.ReadIndexRequest{}); err != nil {
		t.Errorf("a manager's ReadIndex: %v", err)
	}
	for _, root := range []bool{false, true} {
		pin := ca.cert
		if !root {
			pin = nil
		}
		anyone, err := DialAnonymous(p.addr, pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer anyone.Close()
		if _, err := swarmpb.NewCAClient(anyone).GetRootCertificate(t.Context(), &swarmpb.GetRootCertificateRequest{}); err != nil {
			t.Errorf("root by anyone: %v", err)
		}
		if seen.Caller != swarmpb.Caller_CALLER_ANYONE || seen.NodeID != "" {
			t.Errorf("anyone is seen as %+v", seen)
		}
		if err := renewCall(t.Context(), anyone); CodeOf(err) != CodeUnauthenticated {
			t.Errorf("renewal by anyone: %v", err)
		}
	}
}

func TestPort_PeersThatMustNotGetIn_AreRefused(t *testing.T) {
	ca, other := newTestCA(t, "c1"), newTestCA(t, "c2")
	imposter := newTestCA(t, "c1")
	m1 := ca.credentials("m1", managerRole)
	m1.SetStanding(func(node string, _ swarmpb.NodeRole) Standing { return removedIf(node == "gone") })
	p := startPort(t, m1, &everyService{})

	expired := NewCredentials()
	expired.Set(ca.identityUntil("w1", workerRole, time.Now().Add(-time.Minute)))
	// Trusts this cluster's root, and shows a certificate of another's.
	mixed := NewCredentials()
	id := other.identity("w1", workerRole)
	id.Roots, id.ClusterID = ca.identity("x", workerRole).Roots, "c1"
	mixed.Set(id)
	for name, creds := range map[string]*Credentials{
		"expired": expired, "other cluster": other.credentials("w1", workerRole), "same name, other root": imposter.credentials("w1", workerRole),
		"other cluster's certificate": mixed, "removed": ca.credentials("gone", workerRole), "no identity": NewCredentials(),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err := renewCall(ctx, client(t, p.addr, creds))
		cancel()
		if err == nil {
			t.Errorf("%s: got in", name)
		} else if CodeOf(err) == CodeDeadline {
			t.Errorf("%s: was left hanging: %v", name, err)
		}
	}
}

func removedIf(removed bool) Standing {
	if removed {
		return StandingRemoved
	}
	return StandingMember
}

// TestPort_PeerIsNotKnown_TriesAgainAndElsewhere: one that was removed is told so; one of whom the manager cannot tell must not
// believe it, and may get in with the next manager.
func TestPort_PeerIsNotKnown_TriesAgainAndElsewhere(t *testing.T) {
	ca := newTestCA(t, "c1")
	behind, leader, w1 := ca.credentials("m1", managerRole), ca.credentials("m2", managerRole), ca.credentials("w1", workerRole)
	var standing atomic.Int32
	behind.SetStanding(func(string, swarmpb.NodeRole) Standing { return Standing(standing.Load()) })
	p := startPort(t, behind, &everyService{})
	other := startPort(t, leader, &everyService{})
	for want, code := range map[Standing]Code{StandingMember: 0, StandingRemoved: CodePermissionDenied, StandingUnknown: CodeUnavailable} {
		standing.Store(int32(want))
		if err := renewCall(t.Context(), client(t, p.addr, w1)); CodeOf(err) != code {
			t.Errorf("standing %d: %v", want, err)
		}
		behind.CloseNode("w1")
	}
	standing.Store(int32(StandingUnknown))
	answered := errors.New("it answers")
	_, err := tryAll(t.Context(), "call", []string{p.addr, other.addr}, func(ctx context.Context, addr string) (Identity, error) {
		if err := renewCall(ctx, client(t, addr, w1)); err != nil {
			return Identity{}, err
		}
		return Identity{}, answered
	})
	if !errors.Is(err, answered) {
		t.Errorf("the next manager was not asked: %v", err)
	}
	if _, err := DialRaft(t.Context(), other.addr, behind); CodeOf(err) != CodeUnavailable {
		t.Errorf("Raft to one that is not known: %v", err)
	}
}

func TestDial_PeerIsNotTheOneMeant_IsRefusedByTheClient(t *testing.T) {
	ca := newTestCA(t, "c1")
	p := startPort(t, ca.credentials("w1", workerRole), &everyService{})
	me := ca.credentials("w2", workerRole)
	if err := renewCall(t.Context(), client(t, p.addr, me)); err == nil || !strings.Contains(err.Error(), "must be a swarm-manager") {
		t.Errorf("a worker posed as manager: %v", err)
	}
	for node, ok := range map[string]bool{"w1": true, "w3": false} {
		conn, err := DialNode(p.addr, me, node)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := renewCall(t.Context(), conn); (err == nil) != ok {
			t.Errorf("node %s: %v", node, err)
		}
	}
	anyone, err := DialAnonymous(p.addr, ca.cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer anyone.Close()
	_, err = swarmpb.NewCAClient(anyone).GetRootCertificate(t.Context(), &swarmpb.GetRootCertificateRequest{})
	if err == nil || !strings.Contains(err.Error(), "not a manager") {
		t.Errorf("a worker posed as manager to a joiner: %v", err)
	}
}

func TestPort_SplitByALPN_RaftIsForManagers(t *testing.T) {
	ca := newTestCA(t, "c1")
	p := startPort(t, ca.credentials("m1", managerRole), &everyService{})
	go func() {
		for {
			conn, err := p.Raft().Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	conn, err := DialRaft(t.Context(), p.addr, ca.credentials("m2", managerRole))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "hello" {
		t.Fatalf("echo %q, %v", buf, err)
	}

	worker, err := DialRaft(t.Context(), p.addr, ca.credentials("w1", workerRole))
	if err == nil {
		defer worker.Close()
		if _, err = worker.Read(buf); err == nil {
			t.Error("a worker reached Raft")
		}
	}
	for _, alpn := range []string{ALPNRaft, "http/1.1", ""} {
		config := &tls.Config{InsecureSkipVerify: true}
		if alpn != "" {
			config.NextProtos = []string{alpn}
		}
		conn, err := tls.Dial("tcp", p.addr, config)
		if err == nil {
			defer conn.Close()
			if _, err = conn.Read(buf); err == nil {
				t.Errorf("without a certificate, ALPN %q got in", alpn)
			}
		}
	}
	old := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNGRPC}, MaxVersion: tls.VersionTLS12}
	if conn, err := tls.Dial("tcp", p.addr, old); err == nil {
		conn.Close()
		t.Error("TLS 1.2 got in")
	}
}

func TestPort_GarbageAndSilence_DoNotKeepOthersOut(t *testing.T) {
	ca := newTestCA(t, "c1")
	p := startPort(t, ca.credentials("m1", managerRole), &everyService{})
	// More silent connections than handshakes there may be: the oldest go when their grace is over.
	for range MaxHandshakes + 10 {
		rawConn(t, p.addr)
	}
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x00", "\x16\x03\x01\xff\xff", strings.Repeat("x", 70000)} {
		io.WriteString(rawConn(t, p.addr), garbage)
	}
	if err := renewCall(t.Context(), client(t, p.addr, ca.credentials("w1", workerRole))); err != nil {
		t.Fatal(err)
	}
	if out := p.log.String(); out != "" {
		t.Errorf("strangers fill the log: %s", out)
	}
}

func TestPort_TooManyAnonymous_AreCutAndReleased(t *testing.T) {
	ca := newTestCA(t, "c1")
	p := startPort(t, ca.credentials("m1", managerRole), &everyService{})
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{ALPNGRPC}}
	var open []*tls.Conn
	for range MaxAnonymousPerHost {
		conn, err := tls.Dial("tcp", p.addr, config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The server's first bytes show that it counts this connection.
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
	}
	extra, err := tls.Dial("tcp", p.addr, config)
	if err == nil {
		defer extra.Close()
		if _, err := extra.Read(make([]byte, 1)); err == nil {
			t.Error("one more than the limit got in")
		}
	}
	if err := renewCall(t.Context(), client(t, p.addr, ca.credentials("w1", workerRole))); err != nil {
		t.Errorf("a node was kept out by strangers: %v", err)
	}
	for _, c := range open {
		c.Close()
	}
	for try := 0; ; try++ {
		conn, err := tls.Dial("tcp", p.addr, config)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil {
			break
		}
		if try > 10000 {
			t.Fatal("room never came back")
		}
	}
}

func TestCloseNode_LiveConnections_EndAndCannotReturn(t *testing.T) {
	testClosed(t, func(m1 *Credentials) int { return m1.CloseNode("w1") })
}

func TestCloseRevoked_LiveConnections_ThoseOfRevokedNodesEnd(t *testing.T) {
	testClosed(t, (*Credentials).CloseRevoked)
}

// testClosed removes one of two connected nodes and then has its connections closed.
func testClosed(t *testing.T, closeThem func(*Credentials) int) {
	t.Helper()
	ca := newTestCA(t, "c1")
	m1 := ca.credentials("m1", managerRole)
	removed := make(chan struct{})
	m1.SetStanding(func(node string, _ swarmpb.NodeRole) Standing {
		select {
		case <-removed:
			return removedIf(node == "w1")
		default:
			return StandingMember
		}
	})
	inside := make(chan struct{})
	p := startPort(t, m1, &everyService{do: func(ctx context.Context) error {
		if who, _ := Peer(ctx); who.NodeID == "w2" {
			return nil
		}
		close(inside)
		<-ctx.Done()
		return ctx.Err()
	}})
	w1, w2 := client(t, p.addr, ca.credentials("w1", workerRole)), client(t, p.addr, ca.credentials("w2", workerRole))
	result := make(chan error, 1)
	if err := renewCall(t.Context(), w2); err != nil {
		t.Fatal(err)
	}
	go func() { result <- renewCall(t.Context(), w1) }()
	<-inside
	close(removed)
	if n := closeThem(m1); n != 1 {
		t.Errorf("closed %d connections", n)
	}
	if err := <-result; err == nil {
		t.Error("the call went on")
	}
	if err := renewCall(t.Context(), w1); err == nil {
		t.Error("the removed node came back")
	}
	if n := m1.Connections("w1"); n != 0 {
		t.Errorf("%d connections left", n)
	}
	if err := renewCall(t.Context(), w2); err != nil {
		t.Errorf("the other node: %v", err)
	}
}

func TestPort_PeersCertificateEnds_ConnectionEnds(t *testing.T) {
	ca := newTestCA(t, "c1")
	m1 := ca.credentials("m1", managerRole)
	p := startPort(t, m1, &everyService{do: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	brief := NewCredentials()
	brief.Set(ca.identityUntil("w1", workerRole, time.Now().Add(2*time.Second)))
	if err := renewCall(t.Context(), client(t, p.addr, brief)); err == nil {
		t.Error("the call outlived the caller's certificate")
	}
}

func TestCredentials_RenewedWhileConnected_GoOn(t *testing.T) {
	ca := newTestCA(t, "c1")
	m1 := ca.credentials("m1", managerRole)
	p := startPort(t, m1, &everyService{})
	mine := ca.credentials("w1", workerRole)
	conn := client(t, p.addr, mine)
	for range 3 {
		if err := renewCall(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		mine.Set(ca.identity("w1", workerRole))
		m1.Set(ca.identity("m1", managerRole))
	}
	if m1.Connections("w1") != 1 {
		t.Errorf("%d connections; renewal must not cut", m1.Connections("w1"))
	}
	mine.Clear()
	if _, ok := mine.Identity(); ok || mine.Connections("m1") != 0 {
		t.Error("leaving keeps an identity or connections")
	}
}

func TestServer_HandlerFails_CallerGetsAnErrorAndTheServerLives(t *testing.T) {
	ca := newTestCA(t, "c1")
	var do func(context.Context) error
	svc := &everyService{do: func(ctx context.Context) error { return do(ctx) }}
	p := startPort(t, ca.credentials("m1", managerRole), svc)
	conn := client(t, p.addr, ca.credentials("w1", workerRole))
	do = func(context.Context) error { panic("boom") }
	if err := renewCall(t.Context(), conn); CodeOf(err) != CodeInternal || strings.Contains(err.Error(), "boom") {
		t.Errorf("panic gave %v", err)
	}
	if out := p.log.String(); !strings.Contains(out, "boom") || !strings.Contains(out, "RenewCertificate") {
		t.Errorf("the log has %q", out)
	}
	do = func(context.Context) error { return Errorf(CodeInUse, "port 80 is taken") }
	if err := renewCall(t.Context(), conn); !errors.Is(err, ErrInUse) || err.Error() != "port 80 is taken" {
		t.Errorf("got %v", err)
	}
}

func TestServer_RequestTooLarge_IsRefused(t *testing.T) {
	ca := newTestCA(t, "c1")
	p := startPort(t, ca.credentials("m1", managerRole), &everyService{})
	conn := client(t, p.addr, ca.credentials("w1", workerRole))
	_, err := swarmpb.NewCAClient(conn).RenewCertificate(t.Context(), &swarmpb.RenewCertificateRequest{Csr: make([]byte, MaxRequestBytes+1)})
	if CodeOf(err) != CodeResourceExhausted {
		t.Errorf("got %v", err)
	}
}

func TestDial_NobodyThere_SaysWhatToDo(t *testing.T) {
	ca := newTestCA(t, "c1")
	l, err := Listen("127.0.0.1:0", NewCredentials())
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if _, err := Listen(addr, NewCredentials()); CodeOf(err) != CodeInUse || !strings.Contains(err.Error(), "--listen-addr") {
		t.Errorf("a taken port: %v", err)
	}
	l.Close()
	err = renewCall(t.Context(), client(t, addr, ca.credentials("w1", workerRole)))
	if CodeOf(err) != CodeUnavailable || !strings.HasPrefix(err.Error(), "cannot reach manager at "+addr+": connection refused; check") {
		t.Errorf("got %v", err)
	}
	if _, err := DialRaft(t.Context(), addr, ca.credentials("m1", managerRole)); CodeOf(err) != CodeUnavailable {
		t.Errorf("raft: %v", err)
	}
	if _, err := Dial("no port:", NewCredentials()); CodeOf(err) != CodeInvalid {
		t.Errorf("bad address: %v", err)
	}
}

func TestLocalSocket_Listened_IsTheAdministratorsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	conn, err := DialLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	info := func() error {
		_, err := swarmpb.NewLocalClient(conn).GetInfo(t.Context(), &swarmpb.GetInfoRequest{})
		return err
	}
	if err := info(); CodeOf(err) != CodeUnavailable || !strings.Contains(err.Error(), "no such socket; start swarmd") {
		t.Errorf("got %v", err)
	}
	// What a daemon that was killed leaves behind.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenLocal(path); CodeOf(err) != CodeInvalid {
		t.Errorf("over a file: %v", err)
	}
	os.Remove(path)
	for range 2 {
		l, err := ListenLocal(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ListenLocal(path); CodeOf(err) != CodeInUse {
			t.Errorf("a second daemon: %v", err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi, err)
		}
		server := NewServer(ServerConfig{Local: true})
		local := &localService{}
		swarmpb.RegisterLocalServer(server, local)
		done := make(chan error, 1)
		go func() { done <- server.Serve(l) }()
		fresh, err := DialLocal(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := swarmpb.NewLocalClient(fresh).GetInfo(t.Context(), &swarmpb.GetInfoRequest{}); err != nil {
			t.Error(err)
		}
		if local.peer.Caller != swarmpb.Caller_CALLER_LOCAL {
			t.Errorf("seen as %+v", local.peer)
		}
		if err := renewCall(t.Context(), fresh); CodeOf(err) != CodeUnimplemented {
			t.Errorf("an unknown service: %v", err)
		}
		_, err = swarmpb.NewControlClient(fresh).ListNodes(t.Context(), &swarmpb.ListNodesRequest{})
		if CodeOf(err) != CodeNotManager {
			t.Errorf("control on a worker: %v", err)
		}
		fresh.Close()
		server.Stop()
		<-done
	}
}

type localService struct {
	swarmpb.UnimplementedLocalServer
	peer PeerInfo
}

func (l *localService) GetInfo(ctx context.Context, _ *swarmpb.GetInfoRequest) (*swarmpb.GetInfoResponse, error) {
	l.peer, _ = Peer(ctx)
	return &swarmpb.GetInfoResponse{}, nil
}
