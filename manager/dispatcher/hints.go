package dispatcher

import (
	"context"
	"maps"
	"slices"
	"sort"
	"time"

	"golang.org/x/sync/errgroup"
)

// Hints are what gossip knows. They never decide alone, and only ever shorten the reconnect lease of a node whose
// keeper is lost: it is called down once gossip calls it dead and the leader's own probe of it fails.
type Hints interface {
	// Dead tells whether gossip calls the node dead. It answers at once.
	Dead(nodeID string) bool
	// Probe asks the node for a sign of life, directly; nil means that it answered this manager just now. It returns
	// when ctx ends. The address is the host that the node was last seen at, without a port.
	Probe(ctx context.Context, nodeID, address string) error
}

// probe is one that the leader made of a node, or is making.
type probe struct {
	began time.Time
	busy  bool
}

// probe begins the probes that hints ask for, as many as may run at a time. It does not wait for them: the result
// goes to the lease table, and a node that could not be reached is judged again at once.
func (l *leaderPart) probe(ctx context.Context, g *errgroup.Group) {
	if l.hints == nil {
		return
	}
	view, now := l.store().View(), time.Now()
	for _, id := range l.doubtful(now) {
		if !l.hints.Dead(id) || !l.startProbe(now, id) {
			continue
		}
		address := view.NodeStatus(id).GetAddress()
		g.Go(func() error {
			l.endProbe(ctx, id, l.probeNode(ctx, id, address))
			return nil
		})
	}
}

// doubtful are the nodes that a hint may be about, without those that were probed just now.
func (l *leaderPart) doubtful(now time.Time) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.probes, func(_ string, p probe) bool { return !p.busy && now.Sub(p.began) >= probeKept })
	var ids []string
	for _, m := range l.members {
		if _, asked := l.probes[m.id]; !asked && l.table.doubtful(now, m) {
			ids = append(ids, m.id)
		}
	}
	// Everyone gets a turn: on from where the last round had to stop.
	next := sort.SearchStrings(ids, l.probedLast)
	return slices.Concat(ids[next:], ids[:next])
}

func (l *leaderPart) startProbe(now time.Time, nodeID string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.probing == maxProbes {
		return false
	}
	l.probing++
	l.probedLast = nodeID
	l.probes[nodeID] = probe{began: now, busy: true}
	return true
}

func (l *leaderPart) probeNode(ctx context.Context, nodeID, address string) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return l.hints.Probe(ctx, nodeID, address)
}

func (l *leaderPart) endProbe(ctx context.Context, nodeID string, err error) {
	failed := err != nil && l.hints.Dead(nodeID)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.probing--
	l.probes[nodeID] = probe{began: l.probes[nodeID].began}
	if ctx.Err() != nil {
		return // the term is over: the probe failed for that
	}
	l.table.probed(time.Now(), nodeID, failed)
	if failed {
		poke(l.kick)
	}
}
