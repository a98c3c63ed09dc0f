package gossip

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// metaLeaving is a node's announcement that it stops on purpose.
	metaLeaving = "leaving"
	// maxMeta bounds what a node says of itself, in bytes; a later version may say more than this one.
	maxMeta = 64
	// buried is how long the library itself keeps a dead node at least, which is longer the more nodes are alive.
	buried = 30 * time.Second
)

// roster is who takes part, alive or dead. The library calls it with its own lock held, and also after it has been shut
// down: it calls nothing back.
type roster struct {
	self    string
	limit   int
	changed chan struct{}

	mu     sync.Mutex
	living int
	nodes  map[string]*peer // without this node
	// full is until when no dead node can be forgotten, so that no one need look.
	full time.Time
}

type peer struct {
	address netip.AddrPort
	// alive, or else dead unless it has left.
	alive, left bool
	since       time.Time
}

var (
	_ memberlist.AliveDelegate = (*roster)(nil)
	_ memberlist.EventDelegate = (*roster)(nil)
)

func newRoster(self string, limit int) *roster {
	return &roster{self: self, limit: limit, changed: make(chan struct{}, 1), nodes: map[string]*peer{}}
}

// NotifyAlive decides whether a node is let in; the library ignores its message after an error.
func (r *roster) NotifyAlive(n *memberlist.Node) error {
	switch {
	case !swarmpb.ValidID(n.Name):
		return errors.New("its name is no node's ID")
	case len(n.Addr) != 4 && len(n.Addr) != 16, n.Addr.IsUnspecified(), n.Addr.IsMulticast(), n.Port == 0:
		return errors.New("its address is not one")
	case len(n.Meta) > maxMeta:
		return fmt.Errorf("it says %d bytes of itself", len(n.Meta))
	// One node that claims to understand nothing else than what the others do not would end all comparing of states.
	case n.PMin > memberlist.ProtocolVersion2Compatible, n.PMax < memberlist.ProtocolVersion2Compatible,
		n.PCur != memberlist.ProtocolVersion2Compatible, n.DMin != 0, n.DCur != 0:
		return errors.New("its protocol is not this version's")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n.Name == r.self || r.nodes[n.Name] != nil || len(r.nodes) < r.limit || r.forget() {
		return nil
	}
	return fmt.Errorf("there are %d members already", r.limit)
}

// forget makes room for one more out of those that the library has forgotten by now as well: it does when it has
// probed every living node once. False when there is none.
func (r *roster) forget() bool {
	now := time.Now()
	if now.Before(r.full) {
		return false
	}
	keep := buried + time.Duration(r.living+1)*2*probeInterval
	oldest, since := "", now
	for id, p := range r.nodes {
		if !p.alive && p.since.Before(since) {
			oldest, since = id, p.since
		}
	}
	if oldest == "" || now.Sub(since) < keep {
		r.full = now.Add(time.Second)
		return false
	}
	delete(r.nodes, oldest)
	return true
}

// NotifyJoin is told of a node that is alive, for the first time or again.
func (r *roster) NotifyJoin(n *memberlist.Node) {
	if n.Name == r.self {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.nodes[n.Name]
	if p == nil {
		p = &peer{}
		r.nodes[n.Name] = p
	}
	if !p.alive {
		r.living++
	}
	p.address, p.alive, p.left, p.since = addressOf(n), true, string(n.Meta) == metaLeaving, time.Now()
	poke(r.changed)
}

// NotifyUpdate is told of a node that says something else of itself.
func (r *roster) NotifyUpdate(n *memberlist.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.nodes[n.Name]; p != nil {
		p.address, p.left = addressOf(n), string(n.Meta) == metaLeaving
	}
}

// NotifyLeave is told of a node that died or left.
func (r *roster) NotifyLeave(n *memberlist.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.nodes[n.Name]; p != nil && p.alive {
		r.living--
		p.alive, p.since = false, time.Now()
		p.left = p.left || string(n.Meta) == metaLeaving
		poke(r.changed)
	}
}

func (r *roster) dead(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.nodes[id]
	return p != nil && !p.alive && !p.left
}

func (r *roster) alive() []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Member
	for id, p := range maps.All(r.nodes) {
		if p.alive {
			out = append(out, Member{NodeID: id, Address: p.address})
		}
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.NodeID, b.NodeID) })
	return out
}

func addressOf(n *memberlist.Node) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(n.Addr)
	return netip.AddrPortFrom(addr.Unmap(), n.Port)
}
