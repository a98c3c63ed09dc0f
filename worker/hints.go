package worker

import (
	"context"
	"maps"
	"time"
)

// Hints is gossip, as the agent needs it: who looks dead. It is believed in what it costs little to be wrong in: nodes
// that look dead get no new connections from this one.
type Hints interface {
	Dead(nodeID string) bool
	// Changes has an element after who is dead has changed; the agent alone reads it.
	Changes() <-chan struct{}
}

const (
	// hintEvery is how often who looks dead is compared with what the network was told.
	hintEvery = time.Second
	// hintRest is the least time between two hints, so that many changes at once make few of them.
	hintRest = 50 * time.Millisecond
)

// hints hands gossip's view to the network. The managers' word ends it: a node that they have called neither down nor
// gone for Limits.Overrule, while they could be reached, is alive whatever gossip says.
type hints struct {
	f *fleet
	// since is when gossip began to call a node dead; overruled are those of which the managers know better.
	since     map[string]time.Time
	overruled map[string]bool
	// contact is since when managers have been in reach without a break; zero = they are not.
	contact time.Time
	told    map[string]bool // dead, as the network was told last
	stale   bool            // the network may not have taken that
}

func newHints(f *fleet) *hints {
	return &hints{f: f, since: map[string]time.Time{}, overruled: map[string]bool{}}
}

// run hands on what changes until ctx ends.
func (h *hints) run(ctx context.Context) error {
	if h.f.cfg.Hints == nil {
		return nil
	}
	ticker := time.NewTicker(hintEvery)
	defer ticker.Stop()
	for {
		h.look()
		if !sleep(ctx, hintRest) {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-h.f.cfg.Hints.Changes():
		case <-h.f.hinted:
		case <-ticker.C:
		}
	}
}

// look tells the network who is dead, if that is news.
func (h *hints) look() {
	now := time.Now()
	if age, known := h.f.contact.age(); !known || age >= h.f.cfg.Limits.Answer {
		h.contact = time.Time{}
	} else if h.contact.IsZero() {
		h.contact = now
	}
	dead := map[string]bool{}
	since, overruled := map[string]time.Time{}, map[string]bool{}
	for _, p := range h.f.reach.peers() {
		id := p.GetNodeId()
		if id == h.f.cfg.NodeID || !h.f.cfg.Hints.Dead(id) {
			continue
		}
		since[id] = now
		if was, ok := h.since[id]; ok {
			since[id] = was
		}
		if h.overruled[id] || h.overrules(now, since[id]) {
			if overruled[id] = true; !h.overruled[id] {
				h.f.log.Warn("gossip calls a node dead that the managers know to be alive; is UDP and TCP port 7946 open between the nodes?", "node", id)
			}
			continue
		}
		dead[id] = true
	}
	h.since, h.overruled = since, overruled
	if !h.stale && maps.Equal(dead, h.told) {
		return
	}
	err := h.f.cfg.Network.Hint(func(id string) bool { return dead[id] })
	if h.f.issues.set(aboutReach+": nodes that look dead", err) && err != nil {
		h.f.log.Warn("cannot keep new connections from nodes that look dead", "error", err)
	}
	h.told, h.stale = dead, err != nil
}

func (h *hints) overrules(now, since time.Time) bool {
	after := h.f.cfg.Limits.Overrule
	return !h.contact.IsZero() && now.Sub(h.contact) >= after && now.Sub(since) >= after
}
