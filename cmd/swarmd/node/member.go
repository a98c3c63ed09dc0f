package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/swarmd/swarmd/manager"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker"
	"github.com/swarmd/swarmd/worker/gossip"
)

const (
	roleWorker  = swarmpb.NodeRole_NODE_ROLE_WORKER
	roleManager = swarmpb.NodeRole_NODE_ROLE_MANAGER
)

// member is the node while it belongs to a cluster: a worker at all times, and a manager beside it while the identity
// on disk is a manager's. Everything it does ends with stop.
type member struct {
	node      *Node
	advertise string
	creds     *wire.Credentials
	agent     *worker.Agent
	gossip    *gossip.Gossip // nil when it cannot work here: see gossipErr
	// founded, unless nil, is closed once the cluster is there: before that the agent has nobody to speak with.
	founded chan struct{}
	// wake has the certificate renewed at once.
	wake chan struct{}

	cancel context.CancelFunc
	done   chan struct{}

	mu sync.Mutex
	// news is closed and replaced when something below changes.
	news chan struct{}
	// role is that of the identity on disk, wanted what the managers say that it should be; unspecified = not told yet.
	role, wanted swarmpb.NodeRole
	// part is the manager, from when it is opened until it has stopped.
	part *part
	// clearing: there may be something of a former manager on this host, which has to be gone before the next one.
	clearing bool
	// resumed: it was a manager when swarmd started, so that one without data has lost it.
	resumed bool
	// trouble is why the manager does not work; empty = it does, or there should be none.
	trouble string
	// managers are the addresses of those that the cluster is known to have.
	managers  []string
	refused   error
	gossipErr error
}

// newMember opens everything; nothing works before start.
func (n *Node) newMember(id wire.Identity, st state) (*member, error) {
	m := &member{
		node: n, advertise: st.Advertise, creds: wire.NewCredentials(), done: make(chan struct{}),
		wake: make(chan struct{}), news: make(chan struct{}),
		role: id.Role, clearing: id.Role != roleManager, managers: st.Managers,
	}
	m.creds.Set(id)
	var err error
	if m.gossip, err = n.newGossip(id.NodeID, st.Advertise); err != nil {
		m.gossip, m.gossipErr = nil, err
	}
	if m.agent, err = n.newAgent(id.NodeID, st, m); err != nil {
		return nil, n.explain(err)
	}
	return m, nil
}

// newAgent makes the worker, which tells m, unless it is nil, what it hears from the managers.
func (n *Node) newAgent(nodeID string, st state, m *member) (*worker.Agent, error) {
	cfg := worker.Config{
		NodeID: nodeID, ListenAddress: st.Advertise, Dir: n.workerDir(), Runtime: n.engine, Network: n.network, LogDir: n.runtime.LogDir,
		Managers: st.peers(), Version: n.cfg.Version, Labels: n.cfg.EngineLabels, Generic: n.cfg.Generic, Seed: rand.Uint64(), Logger: n.log.With("part", "worker"),
		Dial: func(context.Context, string) (worker.Conn, error) {
			return nil, errors.New("this host belongs to no cluster")
		},
	}
	if n.devices != nil {
		cfg.Devices = n.devices
	}
	if m != nil {
		cfg.Dial = func(_ context.Context, address string) (worker.Conn, error) {
			conn, err := wire.Dial(address, m.creds)
			if err != nil {
				return nil, err
			}
			return conn, nil
		}
		cfg.Refused, cfg.Learned, cfg.Role, cfg.Gossip = m.refuse, m.learn, m.want, m.gossipWith
		if m.gossip != nil {
			cfg.Hints = m.gossip
		}
	}
	return worker.New(cfg)
}

// open opens this host's manager.
func (m *member) open() (*part, error) {
	n := m.node
	p, err := n.openPart(m.creds, m.managerConfig())
	if err != nil {
		return nil, n.explain(err)
	}
	m.update(func() { m.part = p })
	return p, nil
}

func (m *member) managerConfig() manager.Config {
	cfg := manager.Config{Dir: m.node.managerDir(), Credentials: m.creds, Address: m.advertise, Managers: m.state().Managers, Logger: m.node.log,
		RegistryHosts: m.node.runtime.RegistriesDir()}
	if m.gossip != nil {
		cfg.Hints = m.gossip
	}
	return cfg
}

// closePart gives up a manager that was opened, in place of start.
func (m *member) closePart() error {
	p, _ := m.now()
	return p.close()
}

// start works in the background until stop, or until the worker fails, which ended is told.
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
	g.Go(func() error { return m.manage(ctx) })
	g.Go(func() error { return m.work(ctx) })
	g.Go(func() error { return m.followRole(ctx) })
	g.Go(func() error { return m.remember(ctx) })
	g.Go(func() error { return m.gossipRun(ctx) })
	g.Go(func() error { return m.renewer().Run(ctx) })
	return g.Wait()
}

// work is the worker.
func (m *member) work(ctx context.Context) error {
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
}

// stop ends the work and waits until all of it has ended.
func (m *member) stop() {
	if m.cancel == nil {
		return
	}
	m.cancel()
	<-m.done
}

// update changes what mu guards.
func (m *member) update(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
	close(m.news)
	m.news = make(chan struct{})
}

// now is the manager, nil without one, and why there is none though there should be one.
func (m *member) now() (*part, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.part, m.trouble
}

// await waits until cond, which is called with mu held, is true. Once ctx has ended the error is its, whatever cond says.
func (m *member) await(ctx context.Context, cond func() bool) error {
	for ctx.Err() == nil {
		m.mu.Lock()
		ok, news := cond(), m.news
		m.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// refuse remembers that the managers no longer want this node, or with nil that they do again.
func (m *member) refuse(err error) {
	if err != nil {
		m.node.log.Error("the managers refuse this node", "error", err)
	}
	m.update(func() { m.refused = err })
}

func (m *member) refusal() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refused
}

// learn takes the managers that the cluster has.
func (m *member) learn(peers []*swarmpb.ManagerPeer) {
	var addresses []string
	for _, p := range peers {
		if p.GetAddress() != "" && len(addresses) < maxManagers {
			addresses = append(addresses, p.GetAddress())
		}
	}
	if len(addresses) == 0 {
		return
	}
	slices.Sort(addresses)
	m.update(func() { m.managers = slices.Compact(addresses) })
}

// state is what node.json should say.
func (m *member) state() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	return state{Advertise: m.advertise, Managers: slices.Clone(m.managers)}
}

func (n *Node) identityDir() string { return filepath.Join(n.cfg.DataDir, "identity") }
func (n *Node) managerDir() string  { return filepath.Join(n.cfg.DataDir, "manager") }
func (n *Node) workerDir() string   { return filepath.Join(n.cfg.DataDir, "worker") }
