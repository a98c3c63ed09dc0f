// Package worker is the agent of a host: it holds a session with some manager, takes what the node has to run,
// brings the host's containers there through a runtime.Runtime, and reports what it sees.
//
// It promises: at most one container a task, and none that is not assigned once the managers have said so; a task
// that has run is never started again, but under its restart policy while no manager can be reached; a task's state
// only grows; what runs goes on without managers, without this process, and without its local database; every state
// is reported until a manager has acknowledged it.
//
// It alone decides when a container starts and ends, and alone writes the local database under Config.Dir. What
// it is told is in assigned.go, the decision for one task in machine.go, its steps in steps.go, its restarts
// without managers in comeback.go.
//
// A task with stop_after_disconnect ends when the node has had no contact with managers for so long (contact.go,
// leash.go). It is this process that ends it: while it does not run, nothing does; it goes on counting when it is back.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/devices"
	"github.com/swarmd/swarmd/worker/network"
	"github.com/swarmd/swarmd/worker/runtime"
)

// Network is what the agent needs of *network.Network; every method is idempotent.
type Network interface {
	Configure(ctx context.Context, cfg *swarmpb.NodeConfig) error
	// Apply takes what the node is told of peers, networks, services and endpoints; the rest of the changes is ignored.
	// When it returns, nothing that is gone is answered any more; an error says what is not in the kernel yet.
	Apply(ctx context.Context, full bool, changes []*swarmpb.AssignmentChange) error
	// Attach fails with network.ErrNotConfigured until the node has its block, and knows the networks of the task.
	Attach(ctx context.Context, req network.Request) (network.Attachment, error)
	// Publish binds the task's host ports; network.ErrPortTaken when one is not free.
	Publish(ctx context.Context, taskID string, ports []*swarmpb.PortConfig) ([]*swarmpb.PortConfig, error)
	// AwaitGuest returns once a guest that is attached (Request.Guest) has gone, and says why; Guests are the tasks of all of them.
	AwaitGuest(ctx context.Context, taskID string) (why string, err error)
	Guests() []string
	// Gone takes a task whose process has ended out of this node's balancers and names, and resets its connections.
	Gone(ctx context.Context, taskID string) error
	// Listening tells whether a task listens where its service's clients will connect to, and within what time after its start it
	// is to be waited for.
	Listening(taskID, serviceID string) (listens bool, within time.Duration, err error)
	// Established counts the connections that are established with a task.
	Established(taskID string) (int, error)
	// Dial connects to a port of a task, from inside its namespace.
	Dial(ctx context.Context, taskID string, port uint16) (net.Conn, error)
	// Hint is called when gossip's view of who is dead has changed.
	Hint(dead func(nodeID string) bool) error
	// Status is what the managers are told of the node's network; Changes has an element when it may have changed.
	Status() *swarmpb.NodeNetwork
	Changes() <-chan struct{}
	Detach(ctx context.Context, taskID string) error
	// Sweep detaches every task that is not in keep.
	Sweep(ctx context.Context, keep []string) error
	// Teardown removes everything, also what all tasks share.
	Teardown(ctx context.Context) error
}

var _ Network = (*network.Network)(nil)

// Devices are what the agent needs of *devices.Set.
type Devices interface {
	// Look looks for changes, and tells whether there are some of what follows.
	Look() bool
	// Resources are not to be changed.
	Resources() []*swarmpb.GenericResource
	Problems() []string
}

var _ Devices = (*devices.Set)(nil)

// Conn is a connection to a manager; *grpc.ClientConn is one.
type Conn interface {
	grpc.ClientConnInterface
	Close() error
}

// Config of an Agent. Fields without a remark are required.
type Config struct {
	NodeID string
	// Hostname of the node; empty = the host's.
	Hostname string
	// ListenAddress is host:port of the node's cluster port, told to the managers.
	ListenAddress string
	// Dir keeps the local database.
	Dir     string
	Runtime runtime.Runtime
	Network Network
	// Dial connects to a manager at host:port. It need not wait for the connection.
	Dial func(ctx context.Context, address string) (Conn, error)
	// Managers to begin with; those learned later are kept in the local database and tried as well.
	Managers []*swarmpb.ManagerPeer
	// Learned is told of the managers that the cluster has, when they are first known and when they change. It must be
	// quick. May be nil.
	Learned func([]*swarmpb.ManagerPeer)
	// Role is told what role the managers want the node to have, once one of them has said so, and when it changes. It
	// may take its time: it is told the newest after that. May be nil.
	Role func(swarmpb.NodeRole)
	// Gossip is told the keys and seeds of gossip in the same way, and at the start those that a former process knew.
	// May be nil.
	Gossip func(GossipConfig)
	// Hints of gossip on which nodes look dead. May be nil.
	Hints Hints
	// LogDir is where a task's log is, for worker/runtime/logs. Nil: the managers can read none.
	LogDir func(taskID string) string
	// Version of this program, told to the managers.
	Version string
	// Labels of the engine, told to the managers.
	Labels map[string]string
	// Generic resources of the host beside Devices, told to the managers.
	Generic []*swarmpb.GenericResource
	// Devices of the host, told to the managers as generic resources. May be nil.
	Devices Devices
	// Refused is told once that the managers refuse this node for good, with the reason, and with nil once one takes
	// it again. The agent leaves the containers alone and goes on trying. May be nil.
	Refused func(error)
	// Disk is asked about the file system of Dir; nil = the kernel.
	Disk func(dir string) (Disk, error)
	// Seed of the choice among managers and of jitter.
	Seed uint64
	// Limits may be left zero.
	Limits Limits
	Logger *slog.Logger
}

// Agent runs what a node is assigned.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	db      *db
	fleet   *fleet
	reports *reporter
	session *link
	issues  *problems
	space   *space

	mu      sync.Mutex
	running bool
}

// New makes an agent; nothing happens before Run.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.NodeID == "":
		return nil, errors.New("worker: Config.NodeID is empty")
	case cfg.Dir == "":
		return nil, errors.New("worker: Config.Dir is empty")
	case cfg.Runtime == nil || cfg.Network == nil || cfg.Dial == nil:
		return nil, errors.New("worker: Config.Runtime, Network and Dial are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("worker: read the host's name: %w", err)
		}
		cfg.Hostname = name
	}
	cfg.Limits = cfg.Limits.withDefaults()
	a := &Agent{cfg: cfg, log: cfg.Logger, issues: newProblems()}
	a.db = newDB(cfg.Dir, cfg.Logger, a.issues)
	a.reports = newReporter(cfg.Limits, cfg.Logger, a.issues)
	a.fleet = newFleet(cfg, a.db, a.reports, a.issues)
	a.session = newLink(cfg, a.db, a.fleet, a.reports, a.issues)
	a.space = newSpace(cfg, a.issues)
	a.session.space = a.space
	a.fleet.reach.held = a.session.acknowledge
	return a, nil
}

// Run adopts what a former process left, then works until ctx ends. Containers go on when it returns.
func (a *Agent) Run(ctx context.Context) error {
	if err := a.enter(); err != nil {
		return err
	}
	defer a.leave()
	if err := a.db.open(); err != nil {
		return err
	}
	defer a.db.close()

	kept := a.db.load()
	a.reports.restore(kept)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.db.run(ctx) })
	group.Go(func() error { return a.fleet.tell.run(ctx) })
	a.fleet.begin(ctx, kept)
	group.Go(func() error { return a.fleet.run(ctx) })
	a.space.look() // the first session says it already
	group.Go(func() error { a.space.run(ctx, func() { poke(a.session.described) }); return nil })
	group.Go(func() error { return a.session.run(ctx, kept) })
	group.Go(func() error { return a.fleet.reach.run(ctx) })
	group.Go(func() error { return newHints(a.fleet).run(ctx) })
	group.Go(func() error { a.watchNetwork(ctx); return nil })
	group.Go(func() error { a.watchDevices(ctx); return nil })
	group.Go(func() error { return a.fleet.boundLogs(ctx) })
	group.Go(func() error { return a.fleet.boundImages(ctx, a.space) })
	return group.Wait()
}

func (a *Agent) enter() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running {
		return errors.New("worker: the agent is already running")
	}
	a.running = true
	return nil
}

func (a *Agent) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = false
}

// RemoveAll stops and removes all containers, their logs and networks, and forgets everything: the node leaves
// its cluster. It is called after Run has returned.
func (a *Agent) RemoveAll(ctx context.Context) error {
	if err := a.enter(); err != nil {
		return fmt.Errorf("remove all containers: %w", err)
	}
	defer a.leave()
	if err := a.db.open(); err != nil {
		return err
	}
	kept := a.db.load()
	a.db.close()
	if err := a.fleet.removeAll(ctx, kept); err != nil {
		return fmt.Errorf("remove all containers: %w", err)
	}
	return a.db.wipe()
}

// ConnectedTo is the address of the manager that the session is with; empty without one.
func (a *Agent) ConnectedTo() string { return a.session.connectedTo() }

// RunningContainers is the number of tasks whose container runs.
func (a *Agent) RunningContainers() int { return a.fleet.running() }

// Problems says what does not work on this host, one line each: the agent's, sorted, the network's, and the devices'.
func (a *Agent) Problems() []string {
	return slices.Concat(a.issues.list(), networkProblems(a.cfg.Network.Status()), deviceProblems(a.cfg.Devices))
}

// Clock compares this host's clock with that of the manager which the session is with: how far it is ahead (negative:
// behind), give or take within; false when there is nothing to compare with.
func (a *Agent) Clock() (ahead, within time.Duration, ok bool) { return a.session.clock.read() }

// Peers are the nodes of the cluster that the managers have told of, this one too.
func (a *Agent) Peers() []*swarmpb.Peer { return a.fleet.reach.peers() }

// Description is what the managers are told of this host.
func (a *Agent) Description(ctx context.Context) *swarmpb.NodeDescription {
	return a.session.describe(ctx)
}

// Limits bound the agent. A zero field has the default that its comment says.
type Limits struct {
	// Starts at once; 2 for each core.
	Starts int
	// Removals at once, of containers that end; 2 for each core.
	Removals int
	// Pulls at once; 4.
	Pulls int
	// StatusDelay is how long statuses are gathered before they are sent; 100 ms.
	StatusDelay time.Duration
	// PullFor is how long a pull that fails for a passing reason is tried again before the task is rejected; 5 min.
	PullFor time.Duration
	// StartFor is the same for a failing start; 15 s.
	StartFor time.Duration
	// RetryMin and RetryMax bound the pause between tries; 500 ms and 30 s.
	RetryMin, RetryMax time.Duration
	// ReconnectMin and ReconnectMax bound the pause between tries to reach a manager; 100 ms and 5 s.
	ReconnectMin, ReconnectMax time.Duration
	// Connect is how long a manager has to answer the begin of a session; 5 s.
	Connect time.Duration
	// Answer is how long a manager may leave beats unanswered before another one is tried; 3 s.
	Answer time.Duration
	// Alone is how long no manager has been in reach when the node begins to start containers that end again by itself,
	// under their services' restart policies; 10 s.
	Alone time.Duration
	// ApplyFor is how long a set of assignments waits for the kernel to hold what it says of networks and ports before its
	// tasks are gone on with; 5 s.
	ApplyFor time.Duration
	// Undrained is how long a task that is to stop waits for the managers' word that it gets no new connections when none
	// of them can be reached, and Undrainable the same when they can; 5 s and 30 s.
	Undrained, Undrainable time.Duration
	// Overrule is how long gossip may call a node dead that the managers, which can be reached, do not; 20 s.
	Overrule time.Duration
	// Leave is the longest that the session with a manager that is none any more goes on; 3 s.
	Leave time.Duration
	// History is the number of ended tasks that the node remembers, with their logs; 500.
	History int
	// LogBytes is what the logs may take, beyond which those of ended tasks go, the oldest first; a tenth of their disk.
	LogBytes int64
}
