// Package dispatcher is where workers meet the managers: it holds their sessions, streams to each node what it
// has to run, and takes their statuses.
//
// A Server runs on every manager and keeps sessions from its own replica of the store. Lead adds what only the
// leader does: the lease table that declares nodes READY, DISCONNECTED and DOWN, and the end of tasks on removed
// nodes. Every keeper reports the ages of its sessions to the leader's table, over the Keeper service.
//
// It promises: a node is called down only when its keeper has not heard a beat for a lease, or when it has not
// found another keeper within a reconnect lease, which a lease, gossip and the leader's own probe may cut short
// together; a beat is answered only while the leader counts this manager among those that live; statuses are
// answered once they are committed; a node sees its own tasks only; nothing that a worker sends stops a manager or
// grows its memory without bound.
//
// It alone writes NodeStatus and TaskStatus rows. Nothing that is unchanged enters the log.
package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Config is what a Server needs; all fields are required unless they say otherwise.
type Config struct {
	// NodeID is this manager's.
	NodeID string
	// Store returns the current store; a restore swaps it.
	Store func() *store.Store
	// Proposer commits merged statuses, from any manager.
	Proposer store.Proposer
	// ReadIndex returns once the local store has all that was committed before the call.
	ReadIndex func(context.Context) (uint64, error)
	// Managers returns the managers that workers may hold sessions with.
	Managers func() []*swarmpb.ManagerPeer
	// LeaderConn is the way to the leader and its node ID; an error when there is none or it is this manager. Its
	// caller closes nothing. Optional: without it, sessions are kept only while this manager leads.
	LeaderConn func() (*grpc.ClientConn, string, error)
	// Role is the role that the cluster's configuration gives a node, told to it as NodeConfig.role. It is asked for
	// every session every report interval, so it must be cheap. Optional: without it, the node's desired role is told.
	Role func(nodeID string) swarmpb.NodeRole
	// Health is what this manager tells the leader of itself. Optional.
	Health func() *swarmpb.ManagerHealth
	// Hints may shorten reconnect leases. Optional.
	Hints Hints
	// Peer tells who calls; the default is wire.Peer.
	Peer func(context.Context) (wire.PeerInfo, bool)
	// Limits may be zero.
	Limits Limits
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Server is the Dispatcher service of one manager, and its end of the Keeper service.
type Server struct {
	swarmpb.UnimplementedDispatcherServer
	swarmpb.UnimplementedKeeperServer

	cfg      Config
	limits   Limits
	log      *slog.Logger
	statuses *merger
	// managers is the list last seen, shared by all sessions and never changed in place.
	managers atomic.Pointer[managerList]
	// fanned is the index up to which changes have reached the sessions they concern.
	fanned atomic.Uint64
	// interrupt has the fan-out look up from its watch.
	interrupt atomic.Pointer[context.CancelFunc]
	// reach is how tasks are reached, made once for all sessions.
	reach *reach
	// awaited is the newest index at which a task became DRAINING here: the leader waits until nodes have applied it.
	// acks says that one may have.
	awaited atomic.Uint64
	acks    chan struct{}
	// hastening is the index whose acknowledgements are waited for here, hastened the last that the leader was told of.
	hastening, hastened atomic.Uint64
	// drains counts what the leader's part has drained.
	drains drainCounters
	// leaderDrains is what the leader last said of its own; nil = nothing is known.
	leaderDrains atomic.Pointer[swarmpb.DrainCounts]
	// report asks for a report to the leader before the next tick.
	report chan struct{}
	// contact is when the last report that a leader took was begun, or the last question whether this one leads.
	contact contact
	// scratch is the report that the keeper fills anew each time; it alone uses it.
	scratch Report

	mu       sync.Mutex
	sessions map[string]*session // by node ID; ended ones stay until they are forgotten
	refused  map[string]struct{} // node IDs of refused claimants since the last report
	behind   map[*session]uint64 // sessions that wait until reach is at an index
	// peersLater: the sessions will be woken for other nodes.
	peersLater bool
	leading    *leaderPart // nil on followers
	stopped    bool
}

// New makes a Server; Run must run for it to serve.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.NodeID == "":
		return nil, errors.New("dispatcher: node ID is required")
	case cfg.Store == nil || cfg.Proposer == nil || cfg.ReadIndex == nil || cfg.Managers == nil:
		return nil, errors.New("dispatcher: store, proposer, read index and managers are required")
	}
	if cfg.Peer == nil {
		cfg.Peer = wire.Peer
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	limits := cfg.Limits.withDefaults()
	if err := limits.validate(); err != nil {
		return nil, fmt.Errorf("dispatcher: %w", err)
	}
	s := &Server{
		cfg:      cfg,
		limits:   limits,
		log:      cfg.Logger,
		statuses: newMerger(cfg.Proposer, cfg.Store, limits.Merge),
		reach:    newReach(maxEvents),
		acks:     make(chan struct{}, 1),
		report:   make(chan struct{}, 1),
		sessions: make(map[string]*session),
		refused:  make(map[string]struct{}),
		behind:   make(map[*session]uint64),
		contact:  contact{base: time.Now()},
	}
	s.managers.Store(&managerList{})
	return s, nil
}

// Register adds the services of workers and of keepers to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	swarmpb.RegisterDispatcherServer(r, s)
	swarmpb.RegisterKeeperServer(r, s)
}

// Run serves until ctx ends; then every session ends, and workers look for another manager.
func (s *Server) Run(ctx context.Context) error {
	s.contact.mark(time.Now())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.fanOut(ctx) })
	g.Go(func() error { return s.keep(ctx) })
	g.Go(func() error { return s.reports(ctx) })
	g.Go(func() error { return s.confirm(ctx) })
	g.Go(func() error { return s.hasten(ctx) })
	g.Go(func() error { return s.statuses.run(ctx) })
	err := g.Wait()
	s.stop()
	return err
}

// stop ends all sessions, for good.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	for _, session := range s.sessions {
		session.end(errStopping())
	}
}

// Acked returns the index up to which the node has applied everything that concerns it. On the leader it knows
// the sessions of all managers, elsewhere those of this one; false without a live session.
func (s *Server) Acked(nodeID string) (uint64, bool) {
	s.mu.Lock()
	session, leading := s.sessions[nodeID], s.leading
	s.mu.Unlock()
	if leading != nil {
		// A session here may be the half-open rest of one that lives elsewhere: the table knows.
		keeper, id, applied, ok := leading.acked(time.Now(), nodeID)
		if !ok || keeper != s.cfg.NodeID || session == nil || session.id != id {
			return applied, ok
		}
	}
	if session == nil || session.isEnded() {
		return 0, false
	}
	return session.applied(s.fanned.Load()), true
}

// Health is what a manager's keeper last reported of that manager; on the leader alone, and false once it has been
// silent for healthKept.
func (s *Server) Health(managerID string) (*swarmpb.ManagerHealth, bool) {
	leading := s.leads()
	if leading == nil {
		return nil, false
	}
	return leading.healthOf(time.Now(), managerID)
}

// view is the current state of the store.
func (s *Server) view() *store.View { return s.cfg.Store().View() }

// freshView is a view with all that was committed when it was called.
func (s *Server) freshView(ctx context.Context) (*store.View, error) {
	ctx, cancel := context.WithTimeout(ctx, readIndexTimeout)
	defer cancel()
	if _, err := s.cfg.ReadIndex(ctx); err != nil {
		return nil, wire.Errorf(wire.CodeUnavailable, "this manager has no contact with a leader; try again or try another manager: %w", err)
	}
	return s.view(), nil
}

func errStopping() error {
	return wire.Errorf(wire.CodeUnavailable, "this manager stops; connect to another one")
}
