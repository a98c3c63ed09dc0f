package worker

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strconv"
	"sync"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/gossip"
)

// GossipConfig is what a node needs to take part in gossip.
type GossipConfig struct {
	// Keys, the primary one first; never empty.
	Keys [][]byte
	// Seeds are the managers, as host:port of gossip.
	Seeds []string
}

func (g GossipConfig) equal(o GossipConfig) bool {
	return slices.EqualFunc(g.Keys, o.Keys, bytes.Equal) && slices.Equal(g.Seeds, o.Seeds)
}

// teller tells the host what the cluster wants of it, newest only, from one goroutine and without any lock.
type teller struct {
	cfg  Config
	wake chan struct{}

	mu     sync.Mutex
	role   swarmpb.NodeRole
	gossip GossipConfig
}

func newTeller(cfg Config) *teller {
	return &teller{cfg: cfg, wake: make(chan struct{}, 1), gossip: GossipConfig{Seeds: seedsOf(cfg.Managers)}}
}

// seedsOf are the managers' gossip addresses.
func seedsOf(peers []*swarmpb.ManagerPeer) []string {
	var out []string
	for _, p := range peers {
		host, _, err := net.SplitHostPort(p.GetAddress())
		if err != nil {
			continue
		}
		if seed := net.JoinHostPort(host, strconv.Itoa(gossip.DefaultPort)); !slices.Contains(out, seed) {
			out = append(out, seed)
		}
	}
	slices.Sort(out)
	return out
}

// restored takes the keys and managers that a former process knew, so that there is gossip also while no manager can
// be reached. The role is left out: a node acts on that, and it may be an old one.
func (t *teller) restored(k kept) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gossip.Keys = k.config.GetGossipKeys()
	if len(k.managers) > 0 {
		t.gossip.Seeds = seedsOf(k.managers)
	}
	poke(t.wake)
}

// configured takes what a manager has said just now.
func (t *teller) configured(config *swarmpb.NodeConfig) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.role, t.gossip.Keys = config.GetRole(), config.GetGossipKeys()
	poke(t.wake)
}

// learned takes the managers.
func (t *teller) learned(peers []*swarmpb.ManagerPeer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gossip.Seeds = seedsOf(peers)
	poke(t.wake)
}

func (t *teller) run(ctx context.Context) error {
	var role swarmpb.NodeRole
	var told GossipConfig
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		}
		t.mu.Lock()
		newRole, newGossip := t.role, t.gossip
		t.mu.Unlock()
		if newRole != role && newRole != swarmpb.NodeRole_NODE_ROLE_UNSPECIFIED && t.cfg.Role != nil {
			t.cfg.Role(newRole)
			role = newRole
		}
		if len(newGossip.Keys) > 0 && !newGossip.equal(told) && t.cfg.Gossip != nil {
			t.cfg.Gossip(newGossip)
			told = newGossip
		}
	}
}
