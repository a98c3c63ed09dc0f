package node

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker/network/networktest"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// host is a daemon's directories, and a runtime and a network in memory. Its containerd never answers.
type host struct {
	dir     string
	cfg     Config
	runtime *runtimetest.Fake
	downs   *[]string // what of the membership was on disk at each teardown
}

func newHost(t *testing.T) *host { return newHostAt(t, "127.0.0.1") }

func newHostAt(t *testing.T, ip string) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "node") // short: a socket lives below it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	runc := filepath.Join(dir, "runc")
	if err := os.WriteFile(runc, []byte("#!/bin/sh\necho runc version 1.0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return &host{dir: dir, downs: new([]string), runtime: runtimetest.NewFake(runtimetest.FakeConfig{}), cfg: Config{
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), Containerd: filepath.Join(dir, "none.sock"), OCIRuntime: runc,
		ListenAddr: freeAddress(t, ip), GossipAddr: freeAddress(t, ip), CgroupParent: "/swarmd-test", Version: "test",
		Logger: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelInfo})).With("host", ip),
	}}
}

// freeAddress is one of that IP that nothing listens on.
func freeAddress(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// testLog shows a daemon's log when the test fails.
type testLog struct{ t *testing.T }

func (l testLog) Write(line []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(line))
	return len(line), nil
}

// start runs the daemon until stop, which returns its error.
func (h *host) start(t *testing.T) (n *Node, local swarmpb.LocalClient, stop func()) {
	t.Helper()
	n, err := New(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.network.Close()
	n.engine, n.network = h.runtime, &fakeNetwork{host: h}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	conn, err := wire.DialLocal(n.Socket())
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return n, swarmpb.NewLocalClient(conn), stop
}

// fakeNetwork leaves this machine's network alone.
type fakeNetwork struct {
	networktest.Fake
	host    *host
	running atomic.Bool
}

func (f *fakeNetwork) Close() {}

func (f *fakeNetwork) Run(ctx context.Context) error {
	f.running.Store(true)
	defer f.running.Store(false)
	<-ctx.Done()
	return nil
}

// Doctor finds one thing.
func (f *fakeNetwork) Doctor(_ context.Context, tell func(*swarmpb.DoctorResponse) error) error {
	return tell(&swarmpb.DoctorResponse{Check: "kernel vxlan", Finding: swarmpb.Finding_FINDING_OK, Detail: "works"})
}

func (f *fakeNetwork) Teardown(ctx context.Context) error {
	var left []string
	for _, name := range []string{"identity", "node.json", "manager", "worker"} {
		if _, err := os.Stat(filepath.Join(f.host.cfg.DataDir, name)); err == nil {
			left = append(left, name)
		}
	}
	*f.host.downs = append(*f.host.downs, strings.Join(left, " "))
	return f.Fake.Teardown(ctx)
}

// eventually calls until the daemon answers on its socket.
func eventually[Resp any](t *testing.T, call func(context.Context) (Resp, error)) (Resp, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		resp, err := call(ctx)
		if wire.CodeOf(err) != wire.CodeUnavailable || ctx.Err() != nil {
			return resp, err
		}
	}
}

func initCall(local swarmpb.LocalClient) func(context.Context) (*swarmpb.InitResponse, error) {
	return func(ctx context.Context) (*swarmpb.InitResponse, error) {
		return local.Init(ctx, &swarmpb.InitRequest{AdvertiseAddress: "127.0.0.1"})
	}
}

func TestInit_RightAfterARestart_DoesNotWipeTheCluster(t *testing.T) {
	h := newHost(t)
	_, local, stop := h.start(t)
	founded, err := eventually(t, initCall(local))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	_, local, _ = h.start(t)
	if _, err := eventually(t, initCall(local)); wire.CodeOf(err) != wire.CodeFailedPrecondition {
		t.Errorf("a second init: %v", err)
	}
	id, err := wire.LoadIdentity(filepath.Join(h.cfg.DataDir, "identity"))
	if err != nil || id.ClusterID != founded.ClusterId {
		t.Errorf("cluster %s, %v; want %s", id.ClusterID, err, founded.ClusterId)
	}
}

func TestInit_AgentStartsOnceTheClusterIsThere(t *testing.T) {
	h := newHost(t)
	n, local, _ := h.start(t)
	if _, err := eventually(t, func(ctx context.Context) (*swarmpb.GetInfoResponse, error) {
		return local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
	}); err != nil {
		t.Fatal(err)
	}
	spec := &swarmpb.ClusterSpec{}
	spec.SetDefaults()
	founding, err := manager.Foundation(spec, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.found(ctx, state{Advertise: h.cfg.ListenAddr, Managers: []string{h.cfg.ListenAddr}}, founding); err == nil {
		t.Fatal("founded a cluster in no time")
	}
	if _, err := os.Stat(n.workerDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the agent ran before there was a cluster: %v", err)
	}
	if _, err := eventually(t, initCall(local)); err != nil {
		t.Fatal(err)
	}
	if _, err := eventually(t, func(context.Context) (any, error) {
		if n.current().agent.ConnectedTo() == "" {
			return nil, wire.Errorf(wire.CodeUnavailable, "the agent has no session")
		}
		return nil, nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestLeave_IdentityGoesBeforeAnythingElse(t *testing.T) {
	h := newHost(t)
	_, local, _ := h.start(t)
	if _, err := eventually(t, initCall(local)); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Leave(t.Context(), &swarmpb.LeaveRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	for _, left := range *h.downs {
		if left != "node.json manager worker" {
			t.Errorf("at the teardown there was still %q", left)
		}
	}
	if len(*h.downs) == 0 {
		t.Error("the network was not torn down")
	}
	for _, name := range []string{"identity", "node.json", "manager", "worker"} {
		if _, err := os.Stat(filepath.Join(h.cfg.DataDir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
}

func TestStart_AfterALeaveThatWasCutShort_EndsIt(t *testing.T) {
	h := newHost(t)
	_, local, stop := h.start(t)
	if _, err := eventually(t, initCall(local)); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := os.RemoveAll(filepath.Join(h.cfg.DataDir, "identity")); err != nil {
		t.Fatal(err)
	}
	n, local, _ := h.start(t)
	if _, err := eventually(t, func(ctx context.Context) (*swarmpb.GetInfoResponse, error) {
		return local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
	}); err != nil {
		t.Fatal(err)
	}
	n.changing.Lock() // held from before the first answer until it is done
	defer n.changing.Unlock()
	if n.hasTraces() || len(*h.downs) == 0 {
		t.Errorf("traces: %v, teardowns: %d", n.hasTraces(), len(*h.downs))
	}
}

func TestRenewer_OfAManager_AsksItsOwnCA(t *testing.T) {
	h := newHost(t)
	n, local, _ := h.start(t)
	if _, err := eventually(t, initCall(local)); err != nil {
		t.Fatal(err)
	}
	m := n.current()
	id, _ := m.creds.Identity()
	key, err := wire.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := wire.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	self := m.renewer().Self
	if self == nil {
		t.Fatal("a manager would ask only others for its certificate")
	}
	inside := wire.WithPeer(t.Context(), wire.PeerInfo{Caller: swarmpb.Caller_CALLER_MANAGER, NodeID: id.NodeID, ClusterID: id.ClusterID})
	resp, err := self(inside, &swarmpb.RenewCertificateRequest{Csr: csr})
	if err != nil || resp.GetRole() != swarmpb.NodeRole_NODE_ROLE_MANAGER {
		t.Errorf("renewed to %v, %v", resp.GetRole(), err)
	}
}
