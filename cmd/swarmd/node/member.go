package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker"
)

// member is the node while it belongs to a cluster.
type member struct {
	node     *Node
	state    state
	creds    *wire.Credentials
	agent    *worker.Agent
	listener *wire.Listener   // managers only, as the two below
	server   *grpc.Server     //
	manager  *manager.Manager //
	// founded, unless nil, is closed once the cluster is there: before that the agent has nobody to speak with.
	founded chan struct{}

	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	refused error
}

// newMember opens everything; nothing works before start.
func (n *Node) newMember(id wire.Identity, st state) (*member, error) {
	m := &member{node: n, state: st, creds: wire.NewCredentials(), done: make(chan struct{})}
	m.creds.Set(id)
	if id.Role == swarmpb.NodeRole_NODE_ROLE_MANAGER {
		if err := m.openManager(); err != nil {
			return nil, n.explain(err)
		}
	}
	var err error
	if m.agent, err = n.newAgent(id.NodeID, st, m.creds, m.refuse); err != nil {
		return nil, errors.Join(n.explain(err), m.closeManager())
	}
	return m, nil
}

func (n *Node) newAgent(nodeID string, st state, creds *wire.Credentials, refused func(error)) (*worker.Agent, error) {
	return worker.New(worker.Config{
		NodeID: nodeID, ListenAddress: st.Advertise, Dir: n.workerDir(), Runtime: n.runtime, Network: n.network,
		Dial: func(_ context.Context, address string) (worker.Conn, error) {
			conn, err := wire.Dial(address, creds)
			if err != nil {
				return nil, err
			}
			return conn, nil
		},
		Managers: st.peers(), Version: n.cfg.Version, Refused: refused, Seed: rand.Uint64(),
		Logger: n.log.With("part", "worker"),
	})
}

func (m *member) openManager() error {
	n := m.node
	var err error
	if m.listener, err = wire.Listen(n.cfg.ListenAddr, m.creds); err != nil {
		return err
	}
	m.manager, err = manager.New(manager.Config{
		Dir: n.managerDir(), Credentials: m.creds, Address: m.state.Advertise, Raft: m.listener.Raft(), Logger: n.log,
	})
	if err != nil {
		return errors.Join(err, m.listener.Close())
	}
	m.server = wire.NewServer(wire.ServerConfig{Logger: n.log})
	m.manager.Register(m.server)
	if err := wire.CheckAccess(m.server); err != nil {
		return errors.Join(err, m.closeManager())
	}
	return nil
}

// closeManager gives up what openManager opened and start has not taken over.
func (m *member) closeManager() error {
	if m.manager == nil {
		return nil
	}
	return errors.Join(m.listener.Close(), m.manager.Close())
}

// start works in the background until stop, or until a part fails, which ended is told.
func (m *member) start(ctx context.Context, ended chan<- error) {
	ctx, m.cancel = context.WithCancel(ctx)
	go func() {
		defer close(m.done)
		err := m.run(ctx)
		if ctx.Err() == nil {
			ended <- fmt.Errorf("node ended: %w", err)
		}
	}()
}

func (m *member) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if m.manager != nil {
		g.Go(func() error { return m.listener.Run(ctx) })
		g.Go(func() error { return m.manager.Run(ctx) })
		g.Go(func() error { return m.server.Serve(m.listener.GRPC()) })
		g.Go(func() error {
			<-ctx.Done()
			m.server.Stop()
			return ctx.Err()
		})
	}
	g.Go(func() error {
		if m.founded != nil {
			select {
			case <-m.founded:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if m.node.child != nil {
			if err := m.node.child.Ready(ctx); err != nil {
				return err
			}
		}
		return m.agent.Run(ctx)
	})
	g.Go(func() error { return m.renewer().Run(ctx) })
	return g.Wait()
}

func (m *member) renewer() *wire.Renewer {
	r := &wire.Renewer{
		Credentials: m.creds, Dir: m.node.identityDir(), Managers: m.managerAddresses,
		Logger: m.node.log.With("part", "identity"),
	}
	if m.manager != nil {
		r.Self = m.manager.RenewCertificate
	}
	return r
}

// stop ends the work and waits until all of it has ended.
func (m *member) stop() {
	if m.cancel == nil {
		return
	}
	m.cancel()
	<-m.done
}

// managerAddresses are those to ask for a new certificate, the one that the session is with first.
func (m *member) managerAddresses() []string {
	var out []string
	if a := m.agent.ConnectedTo(); a != "" {
		out = append(out, a)
	}
	return append(out, m.state.Managers...)
}

// refuse remembers that the managers no longer want this node, or with nil that they do again.
func (m *member) refuse(err error) {
	if err != nil {
		m.node.log.Error("the managers refuse this node", "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refused = err
}

func (m *member) refusal() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refused == nil {
		return ""
	}
	return fmt.Sprintf("the managers refuse this node: %v; leave the cluster with `swarmctl leave --force`, then join it again", m.refused)
}

func (n *Node) identityDir() string { return filepath.Join(n.cfg.DataDir, "identity") }
func (n *Node) managerDir() string  { return filepath.Join(n.cfg.DataDir, "manager") }
func (n *Node) workerDir() string   { return filepath.Join(n.cfg.DataDir, "worker") }
