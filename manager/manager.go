// Package manager assembles a manager: the replicated store, the services that every manager offers, and the
// loops that run only on the leader (leader.go).
//
// It promises that everything it starts has ended when Run returns, and that nothing of one term's leadership
// outlives that term.
package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager/ca"
	"github.com/swarmd/swarmd/manager/control"
	"github.com/swarmd/swarmd/manager/dispatcher"
	"github.com/swarmd/swarmd/manager/plan"
	"github.com/swarmd/swarmd/manager/registry"
	"github.com/swarmd/swarmd/manager/relay"
	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Config is what a Manager needs; all fields are required unless they say otherwise.
type Config struct {
	// Dir keeps the Raft log, the snapshots and the key that seals them.
	Dir string
	// Credentials hold the node's identity, a manager's.
	Credentials *wire.Credentials
	// Address is host:port under which the other nodes reach this one.
	Address string
	// Raft yields the other managers' connections.
	Raft net.Listener
	// Managers are addresses at which other managers may be reached; only Rejoin needs them.
	Managers []string
	// RegistryHosts is a directory that says how registries are spoken to, in containerd's form. Optional: without it no
	// registry is asked for digests.
	RegistryHosts string
	// Hints of gossip for the leader's failure detector. Optional.
	Hints dispatcher.Hints
	// Tuning of the replica, and the dispatcher's limits. Optional.
	Tuning replica.Tuning
	Limits dispatcher.Limits
	Logger *slog.Logger
}

// dialRaft opens a connection to the Raft of the manager at the address.
func (c *Config) dialRaft(ctx context.Context, address string) (net.Conn, error) {
	return wire.DialRaft(ctx, address, c.Credentials)
}

// dialManager returns a client of the manager at the address.
func (c *Config) dialManager(address string) (*grpc.ClientConn, error) {
	return wire.Dial(address, c.Credentials)
}

// Manager is one manager of a cluster.
type Manager struct {
	cfg        Config
	id         wire.Identity
	log        *slog.Logger
	replica    *replica.Replica
	control    *control.Server
	dispatcher *dispatcher.Server
	ca         *ca.Server
	relay      *relay.Server
}

// raftDir is below the manager's directory.
func raftDir(dir string) string { return filepath.Join(dir, "raft") }

// New opens what the manager has on disk. Run makes it work.
func New(cfg Config) (*Manager, error) {
	id, ok := cfg.Credentials.Identity()
	if !ok {
		return nil, errors.New("manager: the node has no identity")
	}
	key, err := replica.LoadOrCreateKey(cfg.Dir)
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, id: id, log: cfg.Logger}
	m.replica, err = replica.New(replica.Config{
		Dir: raftDir(cfg.Dir), NodeID: id.NodeID, ClusterID: id.ClusterID, Address: cfg.Address, Key: key,
		Listener: cfg.Raft,
		Dial:     m.cfg.dialRaft, DialManager: m.cfg.dialManager, Peer: wire.Peer,
		Lead:   m.lead,
		Tuning: cfg.Tuning,
		Logger: cfg.Logger.With("part", "replica"),
	})
	if err != nil {
		return nil, err
	}
	if err := m.services(); err != nil {
		return nil, errors.Join(err, m.replica.Close())
	}
	return m, nil
}

// drains are the leader's counts, as far as they are known here.
func (m *Manager) drains() *swarmpb.Drains {
	counts, known := m.dispatcher.LeaderDrains()
	if !known {
		return nil
	}
	return &swarmpb.Drains{Noted: counts.Noted, Late: counts.Late}
}

func (m *Manager) services() error {
	var err error
	var resolver control.Resolver
	if m.cfg.RegistryHosts != "" {
		resolver = registry.New(registry.Config{HostDir: m.cfg.RegistryHosts})
	}
	planner := plan.New(time.Now)
	m.control, err = control.New(control.Config{
		NodeID: m.id.NodeID, Store: m.replica.Store, Proposer: m.replica, ReadIndex: m.replica.ReadIndex,
		Leader:         m.Leader,
		ManagerAddress: func() string { return m.cfg.Address },
		Members:        m.controlMembers,
		LastContact:    m.replica.LastContact,
		NewJoinToken:   wire.NewToken,
		Resolver:       resolver,
		Planner:        planner,
		Placing:        planner,
		CloseNode:      func(nodeID string) { m.cfg.Credentials.CloseNode(nodeID) },
		Drains:         m.drains,
		Logger:         m.log.With("part", "control"),
	})
	if err != nil {
		return err
	}
	m.dispatcher, err = dispatcher.New(dispatcher.Config{
		NodeID: m.id.NodeID, Store: m.replica.Store, Proposer: m.replica, ReadIndex: m.replica.ReadIndex,
		Managers: m.peers, LeaderConn: m.replica.LeaderConn, Role: m.role, Health: m.health,
		Hints: m.cfg.Hints, Peer: wire.Peer, Limits: m.cfg.Limits,
		Logger: m.log.With("part", "dispatcher"),
	})
	if err != nil {
		return err
	}
	m.relay, err = relay.New(relay.Config{
		NodeID: m.id.NodeID, Store: m.replica.Store, ReadIndex: m.replica.ReadIndex,
		Managers: m.peers, DialManager: m.cfg.dialManager, Find: control.Find, Peer: wire.Peer,
		Logger: m.log.With("part", "relay"),
	})
	if err != nil {
		return err
	}
	m.ca, err = ca.New(ca.Config{
		Store: m.replica.Store, Proposer: m.replica, ReadIndex: m.replica.ReadIndex,
		InRaft: m.inRaft, Peer: wire.Peer,
		Logger: m.log.With("part", "ca"),
	})
	return err
}

// Store is the replicated state as this manager has it, to be read; a snapshot from the leader swaps it.
func (m *Manager) Store() *store.Store { return m.replica.Store() }

// Register adds the services that other nodes call to a server of the cluster port.
func (m *Manager) Register(r grpc.ServiceRegistrar) {
	m.control.Register(r)
	m.dispatcher.Register(r)
	m.ca.Register(r)
	m.replica.Register(r)
	m.relay.Register(r)
}

// Control is the user's API, for the local socket.
func (m *Manager) Control() swarmpb.ControlServer { return m.control }

// Logs is the user's API of logs, for the local socket.
func (m *Manager) Logs() swarmpb.LogsServer { return m.relay }

// RenewCertificate is the CA's call within this process: a manager whose certificate has expired can still renew it.
func (m *Manager) RenewCertificate(ctx context.Context, req *swarmpb.RenewCertificateRequest) (*swarmpb.RenewCertificateResponse, error) {
	return m.ca.RenewCertificate(ctx, req)
}

// Run works until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	defer m.guard()() // until leadership is handed over: the port is open so long
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.replica.Run(ctx) })
	g.Go(func() error { return m.dispatcher.Run(ctx) })
	g.Go(func() error { return m.ca.Run(ctx) })
	g.Go(func() error { return m.relay.Run(ctx) })
	g.Go(func() error { return m.revoke(ctx) })
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("manager: %w", err)
	}
	return nil
}

// Bootstrap makes this the first manager of a new cluster. It is called before Run.
func (m *Manager) Bootstrap() error { return m.replica.Bootstrap() }

// Founding is a new cluster before its first write.
type Founding = ca.Founding

// Foundation makes a new cluster with one manager out of checked settings.
func Foundation(spec *swarmpb.ClusterSpec, now time.Time) (*Founding, error) {
	return ca.Bootstrap(spec, now)
}

// Found writes the cluster's first rows, once Run works.
func (m *Manager) Found(ctx context.Context, f *Founding) error {
	proposal := &swarmpb.Proposal{RequestId: "found-" + m.id.ClusterID, Guards: f.Guards, Writes: f.Rows, Now: time.Now().UnixNano()}
	if _, err := m.replica.Propose(ctx, proposal); err != nil {
		return fmt.Errorf("write the cluster's first rows: %w", err)
	}
	return nil
}

// Leader is the node ID of the leader, empty while there is none.
func (m *Manager) Leader() string {
	id, _ := m.replica.Leader()
	return id
}

// Close gives up what New opened, in place of Run.
func (m *Manager) Close() error { return m.replica.Close() }
