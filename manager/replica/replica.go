// Package replica keeps the store the same on all managers: hashicorp/raft around store.Apply.
//
// It promises that what Propose acknowledged is on the disks of a majority and survives any crash of the others;
// that ReadIndex is linearizable; that everything under Config.Lead runs on one member per term and has
// ended before it starts there again; and that nothing on disk is in clear, believed unread or thrown away: each record of
// the log and each chunk of a snapshot is sealed, a snapshot counts only after it was read back, and a member whose
// data cannot be trusted does not start.
//
// It alone writes the directory that it is given, and it alone calls store.Apply. Any member takes writes and reads:
// one that does not lead passes them on to the leader, once.
package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/proto/wire"
)

// Replica is one member. It runs once: New, for the first member of a cluster Bootstrap, then Run.
type Replica struct {
	cfg       Config
	tuning    Tuning
	logger    *slog.Logger
	sealer    *sealer
	logs      *logStore
	snapshots *snapshotStore
	fsm       *fsm

	writes        chan *pendingWrite
	leaderReads   readRounds
	followerReads readRounds
	notify        chan bool // from Raft, in order
	forward       forwarder
	progress      progressTable
	health        health
	calls         callGate        // Propose and ReadIndex
	life          context.Context // ends with the loops; no call lasts longer
	endLife       context.CancelFunc
	outstanding   sync.WaitGroup // futures of Raft that are waited for

	transport raft.Transport // set by Run

	node     atomic.Pointer[raft.Raft] // nil before Run and after it
	readyAt  atomic.Uint64             // term in which this member leads and has applied what came before; 0: none
	stopping atomic.Bool               // leadership is handed over
	started  atomic.Bool
	closed   sync.Once
	closeErr error
}

// New opens what is in cfg.Dir, verifies all of it and restores the store from the newest snapshot that can be read.
// Damage that could cost an acknowledged write is a *DataError.
func New(cfg Config) (*Replica, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	logger := cfg.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	r := &Replica{
		cfg: cfg, tuning: cfg.Tuning.withDefaults(), logger: logger,
		writes:      make(chan *pendingWrite, maxQueuedProposals),
		leaderReads: make(readRounds), followerReads: make(readRounds),
		notify: make(chan bool, maxQueuedTurns),
	}
	r.life, r.endLife = context.WithCancel(context.Background())
	r.forward.dial = cfg.DialManager
	if r.cfg.Peer == nil {
		r.cfg.Peer = wire.Peer
	}
	if r.cfg.FreeBytes == nil {
		r.cfg.FreeBytes = freeBytes
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Replica) open() (err error) {
	if err := os.MkdirAll(r.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("open replica: %w", err)
	}
	if r.sealer, err = newSealer(r.cfg.Key, r.cfg.ClusterID); err != nil {
		return fmt.Errorf("open replica: %w", err)
	}
	var lost uint64
	r.snapshots, lost, err = openSnapshotStore(filepath.Join(r.cfg.Dir, "snapshots"), r.sealer, checkSnapshot, r.logger)
	if err != nil {
		return fmt.Errorf("open replica: %w", err)
	}
	var damage []logDamage
	r.logs, damage, err = openLogStore(filepath.Join(r.cfg.Dir, "raft.db"), r.sealer, r.tuning.WriteDeadline, r.logger)
	if errors.Is(err, errLogInUse) {
		return fmt.Errorf("open replica: %w", err)
	}
	if err != nil {
		return &DataError{Dir: r.cfg.Dir, Err: err}
	}
	if before := r.tuning.BeforeWrite; before != nil {
		r.logs.stall.Store(&before)
	}
	r.logs.retain, r.logs.ends = r.snapshots.retention, r.snapshots.ends
	r.snapshots.taken, r.snapshots.membership = r.logs.resetWritten, r.snapshotMembership
	r.logs.failed = r.appendFailed
	restored, err := r.restore(lost, damage)
	if err != nil {
		r.logs.close()
		return err
	}
	r.fsm = newFSM(restored, r.logger)
	return nil
}

// Store is the current store. A restored snapshot brings another one: then the old one's watches end with
// store.ErrOverflow, upon which a consumer asks here again.
func (r *Replica) Store() *store.Store { return r.fsm.current.Load() }

// Bootstrap makes this the first and only member of a new cluster. It is called before Run, and refuses when there is
// any state.
func (r *Replica) Bootstrap() error {
	if r.started.Load() {
		return errors.New("bootstrap replica: it runs already")
	}
	err := error(errHasState)
	if list, _ := r.snapshots.List(); len(list) == 0 {
		err = r.logs.bootstrap(raft.Configuration{Servers: []raft.Server{{
			Suffrage: raft.Voter, ID: raft.ServerID(r.cfg.NodeID), Address: raft.ServerAddress(r.cfg.Address),
		}}})
	}
	if errors.Is(err, errHasState) {
		return wire.Errorf(wire.CodeExists, "bootstrap replica: %s already holds a manager's state; start it as it is, or leave the cluster first", r.cfg.Dir)
	}
	if err != nil {
		return fmt.Errorf("bootstrap replica in %s: %w", r.cfg.Dir, err)
	}
	return nil
}

// Run takes part in the cluster until ctx ends, and returns ctx's error when everything has stopped. A leader hands
// leadership to another member first, when there is one; then what Propose and ReadIndex have begun is finished, through
// the next leader if need be, and what begins later is refused.
func (r *Replica) Run(ctx context.Context) error {
	if !r.started.CompareAndSwap(false, true) {
		return errors.New("run replica: it ran before")
	}
	defer r.Close()
	transport := observedTransport{progress: &r.progress, NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: newStreamLayer(&r.cfg), MaxPool: transportConnections, Timeout: transportTimeout, Logger: newRaftLogger(r.logger),
	})}
	r.transport = transport
	// Raft's start writes its term, and waits for a disk that takes it. The transport goes first: see stableStore.
	waiting := context.AfterFunc(ctx, func() {
		transport.Close()
		r.logs.interrupt()
	})
	node, err := raft.NewRaft(r.raftConfig(), r.fsm, r.logs, stableStore{r.logs}, r.snapshots, transport)
	waiting()
	if err != nil {
		transport.Close()
		return fmt.Errorf("run replica: %w", err)
	}
	r.node.Store(node)

	// The loops outlive ctx until leadership is handed over.
	loops, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, loops := errgroup.WithContext(loops)
	group.Go(func() error { r.followLeadership(loops); return nil })
	group.Go(func() error { r.commitWrites(loops); return nil })
	group.Go(func() error { r.leaderReads.run(loops, r.tuning.ProposeTimeout, r.confirm); return nil })
	group.Go(func() error { r.followerReads.run(loops, r.tuning.ProposeTimeout, r.askLeader); return nil })
	group.Go(func() error { r.takeSnapshots(loops); return nil })
	group.Go(func() error { r.watchSpace(loops); return nil })
	group.Go(func() error { r.followLeader(loops, node); return nil })

	<-ctx.Done()
	r.handOver()
	r.stopping.Store(true)
	r.calls.shut(finishTimeout)
	r.endLife()
	stop()
	group.Wait()
	r.drain()
	down := node.Shutdown()
	transport.Close()
	r.logs.interrupt()
	if err := down.Error(); err != nil {
		r.logger.Warn("Raft did not shut down cleanly", "error", err)
	}
	r.node.Store(nil)
	if err := r.Close(); err != nil {
		return err
	}
	return ctx.Err()
}

// Close releases the files of a replica that does not Run; Run does it at its end.
func (r *Replica) Close() error {
	r.closed.Do(func() {
		r.endLife()
		r.forward.close()
		r.closeErr = r.logs.close()
	})
	return r.closeErr
}

func (r *Replica) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(r.cfg.NodeID)
	c.HeartbeatTimeout = r.tuning.HeartbeatTimeout
	c.ElectionTimeout = r.tuning.ElectionTimeout
	c.LeaderLeaseTimeout = r.tuning.LeaderLease
	c.CommitTimeout = commitTimeout
	c.MaxAppendEntries = maxAppendEntries
	c.SnapshotThreshold = math.MaxUint64 // see takeSnapshots
	c.TrailingLogs = r.tuning.TrailingLogs
	c.ShutdownOnRemove = false
	c.NoSnapshotRestoreOnStart = true // New has restored it
	c.NoLegacyTelemetry = true        // with no sink configured, go-metrics drops what is left at once
	c.NotifyCh = r.notify
	c.Logger = newRaftLogger(r.logger)
	return c
}

// await waits for one of Raft's futures. Raft answers each as long as it runs, and drain waits for that; but a Raft
// that is shut down forgets some.
func (r *Replica) await(ctx context.Context, future raft.Future) error {
	done := make(chan error, 1)
	r.outstanding.Go(func() { done <- future.Error() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drain waits until Raft has answered all it was asked: an entry without a majority is answered when the lease ends.
func (r *Replica) drain() {
	done := make(chan struct{})
	go func() { r.outstanding.Wait(); close(done) }()
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		r.logger.Warn("Raft did not answer all that it was asked before the stop")
	}
}

// takeSnapshots takes a snapshot whenever one is due, until ctx ends.
func (r *Replica) takeSnapshots(ctx context.Context) {
	check := min(snapshotCheck, r.tuning.SnapshotInterval)
	ticker := time.NewTicker(check)
	defer ticker.Stop()
	// A while later, each member another one: so they do not all write at once.
	later := func() time.Time { return time.Now().Add(rand.N(r.tuning.SnapshotInterval)) }
	last := later()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !r.snapshotDue(time.Since(last)) {
			continue
		}
		err := r.await(ctx, r.node.Load().Snapshot())
		if err != nil && ctx.Err() == nil {
			r.logger.Error("snapshot failed; the Raft log keeps growing", "error", err)
			ticker.Reset(r.tuning.SnapshotInterval)
			continue
		}
		last = later()
		ticker.Reset(check)
	}
}

// snapshotDue tells whether to take one, age after the last or the start.
func (r *Replica) snapshotDue(age time.Duration) bool {
	known, _ := r.snapshots.List()
	index, size := uint64(0), uint64(0)
	if len(known) > 0 {
		index, size = known[0].Index, uint64(known[0].Size)
	}
	applied := r.node.Load().AppliedIndex()
	return applied > index && r.tuning.snapshotDue(age, applied-index, r.logs.writtenBytes(), size)
}
