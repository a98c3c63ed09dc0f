package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/proto/wire"
)

// Config is what New needs. Fields without a remark are required.
type Config struct {
	// Dir holds the sealed log (raft.db) and snapshots (snapshots/); made when absent, mode 0700.
	Dir string
	// NodeID and ClusterID name this member; every record on disk is bound to ClusterID.
	NodeID    string
	ClusterID string
	// Address is the host:port under which the other managers reach this one.
	Address string
	// Key seals everything on disk: 32 bytes, see LoadOrCreateKey.
	Key []byte

	// Listener yields the other managers' Raft connections; Run closes it. The peers behind it must already be
	// proven managers of this cluster.
	Listener net.Listener
	// Dial opens a Raft connection to a manager's address.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// DialManager opens a gRPC connection to a manager's address, for writes and reads passed on to the leader.
	DialManager func(address string) (*grpc.ClientConn, error)

	// Lead holds everything that only the leader does. It is called when this member has become leader and has
	// applied all that was committed before, its ctx ends when leadership does, and it has returned before it is
	// called again. An error before that hands leadership over. Nil: nothing to do.
	Lead func(ctx context.Context, leader store.Leader) error

	// Peer tells who calls the Replica service; nil: wire.Peer.
	Peer func(context.Context) (wire.PeerInfo, bool)
	// FreeBytes tells how much may still be written under a directory; nil: the file system is asked.
	FreeBytes func(dir string) (uint64, error)

	// Logger; nil discards.
	Logger *slog.Logger
	// Tuning; zero fields have the defaults of DefaultTuning.
	Tuning Tuning
}

// Tuning holds the times and thresholds that tests and operators may change.
type Tuning struct {
	// HeartbeatTimeout without a leader starts an election, ElectionTimeout without a winner another one;
	// a leader that has not heard a majority for LeaderLease steps down.
	HeartbeatTimeout time.Duration
	ElectionTimeout  time.Duration
	LeaderLease      time.Duration
	// WriteDeadline is how long one write of the log may take before it is an error, upon which a leader steps down.
	WriteDeadline time.Duration
	// ProposeTimeout bounds a proposal and a read index that find no leader or no majority.
	ProposeTimeout time.Duration
	// A snapshot is taken when SnapshotThreshold entries have come since the last, which is SnapshotInterval (to twice that) ago, or
	// SnapshotBytes of them; but not before the entries are as large as that snapshot, or maxThresholds times as many: so
	// snapshots take a bounded part of the work, however large the state is. The log reaches back to the snapshot before the
	// newest, and TrailingLogs entries at least, for followers that are behind.
	SnapshotInterval  time.Duration
	SnapshotThreshold uint64
	SnapshotBytes     uint64
	TrailingLogs      uint64
	// BeforeWrite is called before each write of the log, whose error is the write's: simulations of a disk that is
	// slow, hangs or fails. Nil: nothing.
	BeforeWrite func() error
	// LowSpaceBytes is the watermark under which Health says LowSpace.
	LowSpaceBytes uint64
}

// DefaultTuning is what was measured to fail over in about a second.
func DefaultTuning() Tuning {
	return Tuning{
		HeartbeatTimeout:  400 * time.Millisecond,
		ElectionTimeout:   400 * time.Millisecond,
		LeaderLease:       400 * time.Millisecond,
		WriteDeadline:     500 * time.Millisecond,
		ProposeTimeout:    5 * time.Second,
		SnapshotInterval:  30 * time.Second,
		SnapshotThreshold: 8192,
		SnapshotBytes:     128 << 20,
		TrailingLogs:      1024,
		LowSpaceBytes:     256 << 20,
	}
}

// Limits of the propose path. Group commit needs few entries in flight: while some are on their way to disk, the
// next one gathers.
const (
	maxProposalBytes     = 3 << 20 // under gRPC's 4 MiB, so that whatever is accepted here can also be forwarded
	maxEntryBytes        = 1 << 20 // an entry takes no further proposal past this; a larger one travels alone
	maxEntryProposals    = 512
	maxEntriesInFlight   = 4
	maxQueuedProposals   = 4096
	leadRestartDelay     = time.Second // after Lead failed and nobody else could take over
	transferTimeout      = 2 * time.Second
	finishTimeout        = 2 * time.Second // for calls under way when the replica stops
	drainTimeout         = 5 * time.Second
	transportTimeout     = 2 * time.Second // one Raft RPC; a snapshot gets this much per 256 KiB
	transportConnections = 3               // pooled per peer
	maxAppendEntries     = 64
	commitTimeout        = 20 * time.Millisecond // how late followers learn of a commit when no write follows it
	retryDelay           = 25 * time.Millisecond // between attempts to find a leader
	enqueueTimeout       = 2 * time.Second       // for Raft's loop to take an entry
	snapshotCheck        = time.Second
	maxThresholds        = 16
	maxQueuedTurns       = 64 // changes of leadership that wait for Lead to return
)

// snapshotDue tells whether to take a snapshot of so many entries, for which so much was written, after the last one of that size.
func (t Tuning) snapshotDue(age time.Duration, entries, written, size uint64) bool {
	old := age >= t.SnapshotInterval
	switch {
	case old && entries >= maxThresholds*t.SnapshotThreshold:
		return true
	case written < size:
		return false
	}
	return old && entries >= t.SnapshotThreshold || written >= t.SnapshotBytes
}

func (t Tuning) withDefaults() Tuning {
	d := DefaultTuning()
	for _, f := range []struct{ set, def *time.Duration }{
		{&t.HeartbeatTimeout, &d.HeartbeatTimeout},
		{&t.ElectionTimeout, &d.ElectionTimeout},
		{&t.LeaderLease, &d.LeaderLease},
		{&t.WriteDeadline, &d.WriteDeadline},
		{&t.ProposeTimeout, &d.ProposeTimeout},
		{&t.SnapshotInterval, &d.SnapshotInterval},
	} {
		if *f.set == 0 {
			*f.set = *f.def
		}
	}
	if t.SnapshotThreshold == 0 {
		t.SnapshotThreshold = d.SnapshotThreshold
	}
	if t.SnapshotBytes == 0 {
		t.SnapshotBytes = d.SnapshotBytes
	}
	if t.TrailingLogs == 0 {
		t.TrailingLogs = d.TrailingLogs
	}
	if t.LowSpaceBytes == 0 {
		t.LowSpaceBytes = d.LowSpaceBytes
	}
	return t
}

func (c *Config) validate() error {
	var errs []error
	require := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	require(c.Dir != "", "no Dir")
	require(c.NodeID != "", "no NodeID")
	require(c.ClusterID != "", "no ClusterID")
	require(len(c.Key) == KeySize, fmt.Sprintf("Key has %d bytes, not %d", len(c.Key), KeySize))
	require(c.Listener != nil, "no Listener")
	require(c.Dial != nil, "no Dial")
	require(c.DialManager != nil, "no DialManager")
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		errs = append(errs, fmt.Errorf("address is not host:port: %w", err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configure replica: %w", err)
	}
	return nil
}
