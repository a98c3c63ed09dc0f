package manager

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/dispatcher"
	"github.com/swarmd/swarmd/manager/replica"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// host is a manager with its port on loopback, and a worker that holds a session and does nothing.
type host struct {
	t       testing.TB
	limits  dispatcher.Limits
	dir     string
	creds   *wire.Credentials
	addr    string
	manager *Manager
	stop    func()
}

func (h *host) id() string {
	id, _ := h.creds.Identity()
	return id.NodeID
}

func (h *host) config(raft *wire.Listener, others ...string) Config {
	return Config{Dir: h.dir, Credentials: h.creds, Address: h.addr, Raft: raft.Raft(), Managers: others, Limits: h.limits, Logger: slog.New(slog.DiscardHandler)}
}

// open makes the manager out of what is in its directory.
func (h *host) open(others ...string) (*wire.Listener, error) {
	h.t.Helper()
	l, err := wire.Listen(h.addr, h.creds)
	if err != nil {
		h.t.Fatal(err)
	}
	if addr := l.Addr().String(); addr != h.addr { // the others' workers read it while this one starts again
		h.addr = addr
	}
	if h.manager, err = New(h.config(l, others...)); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// run serves until stop; the worker reaches the managers of others.
func (h *host) run(l *wire.Listener, others ...*host) {
	server := wire.NewServer(wire.ServerConfig{Logger: slog.New(slog.DiscardHandler)})
	h.manager.Register(server)
	if err := wire.CheckAccess(server); err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	port, closePort := context.WithCancel(context.Background())
	var managing, serving sync.WaitGroup
	managing.Go(func() {
		if err := h.manager.Run(ctx); err != nil && ctx.Err() == nil {
			h.t.Errorf("manager %s: %v", h.id(), err)
		}
	})
	serving.Go(func() { l.Run(port) })
	serving.Go(func() { server.Serve(l.GRPC()) })
	managing.Go(func() { h.work(ctx, others) })
	h.stop = sync.OnceFunc(func() {
		cancel()
		managing.Wait()
		closePort()
		server.Stop()
		serving.Wait()
	})
	h.t.Cleanup(h.stop)
}

// work holds a session with whichever manager takes it.
func (h *host) work(ctx context.Context, others []*host) {
	for i := 0; ctx.Err() == nil; i++ {
		h.session(ctx, others[i%len(others)].addr)
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (h *host) session(ctx context.Context, addr string) {
	conn, err := wire.Dial(addr, h.creds)
	if err != nil {
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := swarmpb.NewDispatcherClient(conn).Session(ctx)
	if err != nil {
		return
	}
	hello := &swarmpb.SessionHello{BootId: "boot-" + h.id(), ListenAddress: h.addr, Description: &swarmpb.NodeDescription{Hostname: h.id()}}
	if stream.Send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Hello{Hello: hello}}) != nil {
		return
	}
	go func() { // what the manager says does not matter here, only that the session lives
		defer cancel()
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	}()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	for sequence := uint64(1); ; sequence++ {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if stream.Send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Beat{Beat: &swarmpb.SessionBeat{Sequence: sequence}}}) != nil {
			return
		}
	}
}

func (h *host) voters() []string { return voters(h.manager.Members()) }

// found makes a cluster of one manager.
func found(t testing.TB) (*host, *Founding) {
	t.Helper()
	spec := &swarmpb.ClusterSpec{}
	spec.SetDefaults()
	founding, err := Foundation(spec, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: t.TempDir(), creds: wire.NewCredentials(), addr: "127.0.0.1:0"}
	h.creds.Set(founding.Identity)
	l, err := h.open()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.manager.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	h.run(l, h)
	if err := h.manager.Found(t.Context(), founding); err != nil {
		t.Fatal(err)
	}
	return h, founding
}

// join makes another manager with a manager's token.
func join(t testing.TB, founding *Founding, others ...*host) *host {
	t.Helper()
	id, err := wire.Join(t.Context(), wire.JoinConfig{Managers: []string{others[0].addr}, Token: founding.Tokens.GetManager()})
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: t.TempDir(), creds: wire.NewCredentials(), addr: "127.0.0.1:0"}
	h.creds.Set(id)
	l, err := h.open()
	if err != nil {
		t.Fatal(err)
	}
	h.run(l, others...)
	return h
}

func desire(t *testing.T, at *host, nodeID string, role swarmpb.NodeRole) {
	t.Helper()
	node := at.manager.replica.Store().View().Node(nodeID)
	spec := swarmpb.Clone(node.GetSpec())
	spec.DesiredRole = role
	_, err := at.manager.Control().UpdateNode(t.Context(), &swarmpb.UpdateNodeRequest{Node: nodeID, Spec: spec, RequestId: swarmpb.NewID()})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCluster_ManagersJoinAndTheLeaderIsDemoted_VotersFollowAndItsRightsEnd(t *testing.T) {
	m1, founding := found(t)
	m2 := join(t, founding, m1)
	m3 := join(t, founding, m1, m2)
	three := []string{m1.id(), m2.id(), m3.id()}
	slices.Sort(three)
	for _, h := range []*host{m1, m2, m3} {
		eventually(t, "three voters", func() bool { return slices.Equal(h.voters(), three) })
	}
	eventually(t, "weights of a leader and followers", func() bool {
		weights := map[uint32]int{}
		for _, p := range m2.manager.peers() {
			weights[p.GetWeight()]++
		}
		return weights[leaderWeight] == 1 && weights[followerWeight] == 2
	})

	desire(t, m2, m1.id(), workerRole)
	left := slices.DeleteFunc(slices.Clone(three), func(id string) bool { return id == m1.id() })
	for _, h := range []*host{m2, m3} {
		eventually(t, "the demoted leader is out", func() bool { return slices.Equal(h.voters(), left) && slices.Contains(left, h.manager.Leader()) })
	}
	m1.stop()
	renewed, err := wire.Renew(t.Context(), m1.creds, []string{m2.addr})
	if err != nil || renewed.Role != workerRole {
		t.Fatalf("its renewal: %v, %v", renewed.Role, err)
	}
	// Its old certificate still says manager, and counts as a worker's.
	if conn, err := wire.DialRaft(t.Context(), m2.addr, m1.creds); err == nil {
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("it reached Raft")
		}
		conn.Close()
	}
	if err := readIndexBy(t, m1, m2); wire.CodeOf(err) != wire.CodePermissionDenied {
		t.Errorf("a manager's call: %v", err)
	}

	// It goes on as a worker: a node that is away cannot be promoted.
	m1.creds.Set(renewed)
	working, rest := context.WithCancel(t.Context())
	var worker sync.WaitGroup
	worker.Go(func() { m1.work(working, []*host{m2, m3}) })
	eventually(t, "it is ready", func() bool {
		return m2.manager.replica.Store().View().NodeStatus(m1.id()).GetState() == swarmpb.NodeState_NODE_STATE_READY
	})
	desire(t, m2, m1.id(), managerRole)
	rest()
	worker.Wait()
	if renewed, err = wire.Renew(t.Context(), m1.creds, []string{m2.addr}); err != nil || renewed.Role != managerRole {
		t.Fatalf("its renewal: %v, %v", renewed.Role, err)
	}
	m1.creds.Set(renewed)
	if err := os.RemoveAll(m1.dir); err != nil {
		t.Fatal(err)
	}
	l, err := m1.open()
	if err != nil {
		t.Fatal(err)
	}
	m1.run(l, m2, m3)
	for _, h := range []*host{m1, m2, m3} {
		eventually(t, "promoted again", func() bool { return slices.Equal(h.voters(), three) })
	}
	eventually(t, "its calls count as a manager's", func() bool {
		err := readIndexBy(t, m1, m2) // which only the leader answers
		return err == nil || errors.Is(err, wire.ErrNotLeader)
	})
}

func readIndexBy(t *testing.T, from, to *host) error {
	t.Helper()
	conn, err := wire.Dial(to.addr, from.creds)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = swarmpb.NewReplicaClient(conn).ReadIndex(t.Context(), &swarmpb.ReadIndexRequest{})
	return err
}

func TestRejoin_DataIsDamaged_BeginsAgainFromTheOthersAndVotesAgain(t *testing.T) {
	m1, founding := found(t)
	m2 := join(t, founding, m1)
	m3 := join(t, founding, m1, m2)
	for _, h := range []*host{m1, m2, m3} {
		eventually(t, "three voters", func() bool { return len(h.voters()) == 3 })
	}
	m3.stop()
	if err := os.WriteFile(filepath.Join(raftDir(m3.dir), "raft.db"), []byte("no log at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	var damage *replica.DataError
	if _, err := m3.open(); !errors.As(err, &damage) {
		t.Fatalf("with a damaged log New gave %v", err)
	}
	l, err := wire.Listen(m3.addr, m3.creds)
	if err != nil {
		t.Fatal(err)
	}
	if err := Rejoin(t.Context(), m3.config(l, m3.addr, m2.addr, m1.addr)); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if l, err = m3.open(); err != nil {
		t.Fatal(err)
	}
	m3.run(l, m1, m2)
	for _, h := range []*host{m1, m2, m3} {
		eventually(t, "three voters again", func() bool { return len(h.voters()) == 3 })
	}
	eventually(t, "it has the cluster's state", func() bool { return m3.manager.replica.Store().View().NodeCount() == 3 })
}
