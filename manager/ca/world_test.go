package ca

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	workerRole  = swarmpb.NodeRole_NODE_ROLE_WORKER
	managerRole = swarmpb.NodeRole_NODE_ROLE_MANAGER
)

// world is a cluster of one manager, whose CA is reached over real TLS on loopback.
type world struct {
	t        *testing.T
	store    *store.Store
	proposer *store.LocalProposer
	server   *Server
	founding *Founding
	creds    *wire.Credentials
	addr     string

	mu     sync.Mutex
	before func() error // called by Propose
	offset time.Duration
}

func (w *world) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	w.mu.Lock()
	before := w.before
	w.mu.Unlock()
	if before != nil {
		if err := before(); err != nil {
			return nil, err
		}
	}
	return w.proposer.Propose(ctx, p)
}

func (w *world) setBefore(f func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before = f
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.offset)
}

func newWorld(t *testing.T, limits Limits) *world {
	t.Helper()
	spec := &swarmpb.ClusterSpec{NodeCertExpiry: durationpb.New(2 * time.Hour)}
	// Founded long ago, so that certificates may have expired long ago.
	founding, err := Bootstrap(spec, time.Now().Add(-300*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	root, err := ParseRoot(founding.Rows[0].GetPut().GetCluster().GetRootCa())
	if err != nil {
		t.Fatal(err)
	}
	key := founding.Identity.Key()
	chain, _, err := root.Issue(&key.PublicKey, founding.Identity.NodeID, managerRole, time.Now(), 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if founding.Identity, err = wire.IdentityFor(key, chain, root.PEM()); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: store.New(), founding: founding, creds: wire.NewCredentials()}
	w.proposer = store.NewLocalProposer(w.store)
	w.write(founding.Rows, founding.Guards)
	w.creds.Set(founding.Identity)
	w.creds.SetStanding(func(node string, _ swarmpb.NodeRole) wire.Standing {
		if w.store.View().Node(node) == nil {
			return wire.StandingRemoved
		}
		return wire.StandingMember
	})
	w.server, err = New(Config{
		Store: func() *store.Store { return w.store }, Proposer: w,
		ReadIndex: func(context.Context) (uint64, error) { return w.store.View().Index(), nil },
		Logger:    slog.New(slog.DiscardHandler), Limits: limits, Now: w.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.serve()
	return w
}

func (w *world) serve() {
	l, err := wire.Listen("127.0.0.1:0", w.creds)
	if err != nil {
		w.t.Fatal(err)
	}
	server := wire.NewServer(wire.ServerConfig{Logger: slog.New(slog.DiscardHandler)})
	w.server.Register(server)
	if err := wire.CheckAccess(server); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	wg.Go(func() { server.Serve(l.GRPC()) })
	wg.Go(func() { w.server.Run(ctx) })
	w.t.Cleanup(func() { cancel(); server.Stop(); wg.Wait() })
	w.addr = l.Addr().String()
}

func (w *world) write(writes []*swarmpb.Write, guards []*swarmpb.Guard) {
	w.t.Helper()
	_, err := w.proposer.Propose(context.Background(), &swarmpb.Proposal{Writes: writes, Guards: guards, Now: time.Now().UnixNano()})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) putNode(n *swarmpb.Node) {
	w.t.Helper()
	w.write([]*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: n}})}, nil)
}

func (w *world) removeNode(id string) {
	w.t.Helper()
	w.write([]*swarmpb.Write{{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(id)}}}, nil)
}

func (w *world) setReady(id string, state swarmpb.NodeState) {
	w.t.Helper()
	row := &swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id, State: state}}}
	w.write([]*swarmpb.Write{put(row)}, nil)
}

func (w *world) rotate(role swarmpb.NodeRole) string {
	w.t.Helper()
	token, err := wire.NewToken(w.cluster().GetRootCa().GetCert())
	if err != nil {
		w.t.Fatal(err)
	}
	cluster := swarmpb.Clone(w.cluster())
	if role == managerRole {
		cluster.JoinTokens.Manager = token
	} else {
		cluster.JoinTokens.Worker = token
	}
	w.write([]*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})}, nil)
	return token
}

func (w *world) cluster() *swarmpb.Cluster { return w.store.View().Cluster() }

func (w *world) join(token string) (wire.Identity, error) {
	return wire.Join(w.t.Context(), wire.JoinConfig{Managers: []string{w.addr}, Token: token})
}

func (w *world) mustJoin(role swarmpb.NodeRole) wire.Identity {
	w.t.Helper()
	token := w.founding.Tokens.GetWorker()
	if role == managerRole {
		token = w.founding.Tokens.GetManager()
	}
	id, err := w.join(token)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func credentials(id wire.Identity) *wire.Credentials {
	c := wire.NewCredentials()
	c.Set(id)
	return c
}

// expired makes the identity that a node has once its certificate is over.
func (w *world) expired(id wire.Identity, over time.Duration) wire.Identity {
	w.t.Helper()
	root, err := ParseRoot(w.cluster().GetRootCa())
	if err != nil {
		w.t.Fatal(err)
	}
	key := id.Key()
	chain, _, err := root.Issue(&key.PublicKey, id.NodeID, id.Role, time.Now().Add(-over-2*time.Hour), 2*time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	old, err := wire.IdentityFor(key, chain, root.PEM())
	if err != nil {
		w.t.Fatal(err)
	}
	return old
}
