package dispatcher

import (
	"fmt"
	"time"
)

// Limits are the times and bounds of sessions. The zero value of a field stands for its default.
type Limits struct {
	// BeatInterval is how often a worker beats.
	BeatInterval time.Duration
	// Lease is how long a node may be silent before it is down.
	Lease time.Duration
	// ReconnectLease is how long a node has to find another manager when the one that kept its session is
	// lost, and how long all nodes have under a new leader.
	ReconnectLease time.Duration
	// ReportInterval is how often a keeper reports the ages of its sessions to the leader.
	ReportInterval time.Duration
	// Merge is how long changes for a node, and statuses from nodes, are gathered.
	Merge time.Duration
}

// Bounds on what one message, request or table holds.
const (
	maxChunkChanges = 200
	// maxChunkBytes bounds what is put together into one message or proposal: what a server and the log take is a
	// multiple of it, and one thing alone is far smaller.
	maxChunkBytes = 1 << 20
	// maxOwed is how many of a node's tasks are remembered as changed; beyond it, all are looked at.
	maxOwed = 1000
	// maxStatuses bounds an UpdateStatus request and a proposal of merged statuses.
	maxStatuses = 500
	// maxPendingStatuses bounds what waits to be proposed; calls beyond it are refused for the moment.
	maxPendingStatuses = 20_000
	// maxReported bounds the sessions, and the refused claimants, of one call of a keeper's.
	maxReported = 2_000
	// earlyEvery is the part of the time, one in so many, that reports before their time may take.
	earlyEvery = 4
	// judgeRest is how long the leader rests between two judgements of all nodes, as a multiple of how long one takes.
	judgeRest = 10
	// maxManagers bounds the managers whose health the leader remembers, healthKept for how long.
	maxManagers = 64
	healthKept  = 5 * time.Second
	// maxAge bounds what a keeper may say of how long it has not heard a node.
	maxAge = 24 * time.Hour
	// maxProbes is how many nodes the leader probes at a time, each for at most probeTimeout; what came of it counts
	// for probeKept.
	maxProbes    = 16
	probeTimeout = 500 * time.Millisecond
	probeKept    = 2 * time.Second
	// maxWrites bounds a proposal of the leader's part.
	maxWrites = 500

	maxMessageBytes = 1 << 10
	maxNameBytes    = 255
	// maxLocalExits are the exit codes of a worker's own restarts that a status may have.
	maxLocalExits = 10
	maxLabels     = 64
	maxLabelBytes = 512
	maxHostPorts  = 256
	// What a node may say of its network.
	maxRoutes         = 256
	maxConflicts      = 256
	maxProblems       = 16
	maxHostAddresses  = 32
	wireguardKeyBytes = 32

	maxIDBytes       = 64
	helloTimeout     = 5 * time.Second
	readIndexTimeout = 5 * time.Second
	commitTimeout    = 10 * time.Second
)

// fitting is how many of the first items go together: limit at most, and no more than maxChunkBytes unless it is one.
func fitting[T any](items []T, limit int, size func(T) int) int {
	if len(items) <= 1 {
		return len(items)
	}
	n, total := 0, 0
	for n < min(len(items), limit) {
		if total += size(items[n]); n > 0 && total > maxChunkBytes {
			break
		}
		n++
	}
	return n
}

// What all sessions are told costs a manager some 40 us each. So a manager with many gathers more: what comes after a set for
// mergePerSession, other nodes for peersPerSession, at most maxPeersWait.
const (
	mergePerSession = 100 * time.Microsecond
	peersPerSession = time.Millisecond
	maxPeersWait    = 5 * time.Second
)

// missedBeats is the number of beat intervals after which a session no longer counts as beating: a second
// claimant may take its node ID, and the node counts as vanishing.
const missedBeats = 2

func (l Limits) withDefaults() Limits {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&l.BeatInterval, 500*time.Millisecond)
	def(&l.Lease, 3*time.Second)
	def(&l.ReconnectLease, 15*time.Second)
	def(&l.ReportInterval, 250*time.Millisecond)
	def(&l.Merge, 50*time.Millisecond)
	return l
}

func (l Limits) validate() error {
	switch {
	case l.BeatInterval < 0 || l.Lease < 0 || l.ReconnectLease < 0 || l.ReportInterval < 0 || l.Merge < 0:
		return fmt.Errorf("limits: negative duration in %+v", l)
	case l.Lease <= missedBeats*l.BeatInterval:
		return fmt.Errorf("limits: lease %s must be longer than %d beat intervals of %s", l.Lease, missedBeats, l.BeatInterval)
	case l.ReconnectLease < l.Lease:
		return fmt.Errorf("limits: reconnect lease %s is shorter than the lease %s", l.ReconnectLease, l.Lease)
	case l.ReportInterval > l.Lease:
		return fmt.Errorf("limits: report interval %s is longer than the lease %s", l.ReportInterval, l.Lease)
	}
	return nil
}

// beating is the age up to which a session counts as beating.
func (l Limits) beating() time.Duration { return missedBeats * l.BeatInterval }

// keeperLost is the silence after which a keeper no longer speaks for its nodes.
func (l Limits) keeperLost() time.Duration { return 4 * l.ReportInterval }

// forget is how long a keeper goes on reporting a session that has ended.
func (l Limits) forget() time.Duration { return 2 * l.ReconnectLease }
