package worker

import (
	"math/rand/v2"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// managers is the list of those to hold a session with.
type managers struct {
	mu      sync.Mutex
	random  *rand.Rand
	given   []*swarmpb.ManagerPeer // by the configuration
	learned []*swarmpb.ManagerPeer
	// failed counts tries in a row that led to no session; last is the address of the last.
	failed int
	last   string
}

func newManagers(given []*swarmpb.ManagerPeer, seed uint64) *managers {
	return &managers{given: given, random: rand.New(rand.NewPCG(seed, 0x73776172))}
}

// learn takes the list that a manager told. An empty one is no news. It reports whether the list changed.
func (m *managers) learn(peers []*swarmpb.ManagerPeer) bool {
	peers = slices.DeleteFunc(slices.Clone(peers), func(p *swarmpb.ManagerPeer) bool { return p.GetAddress() == "" })
	m.mu.Lock()
	defer m.mu.Unlock()
	same := slices.EqualFunc(m.learned, peers, func(a, b *swarmpb.ManagerPeer) bool { return proto.Equal(a, b) })
	if len(peers) == 0 || same {
		return false
	}
	m.learned = peers
	return true
}

// pick chooses by weight, not the one that failed last if there is another. Those of the configuration count
// while nothing was learned, and once all that was learned may have failed.
func (m *managers) pick() (address string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	candidates := slices.Clone(m.learned)
	if m.failed >= len(m.learned) {
		candidates = append(candidates, m.given...)
	}
	others := slices.DeleteFunc(slices.Clone(candidates), func(p *swarmpb.ManagerPeer) bool { return p.GetAddress() == m.last })
	if m.failed > 0 && len(others) > 0 {
		candidates = others
	}
	if len(candidates) == 0 {
		return "", false
	}
	var total uint64
	for _, p := range candidates {
		total += weight(p)
	}
	at := m.random.Uint64N(total)
	for _, p := range candidates {
		if w := weight(p); at >= w {
			at -= w
			continue
		}
		m.last = p.GetAddress()
		break
	}
	return m.last, true
}

// weight 0 is as good as 1: a manager is never out of reach for being unwanted.
func weight(p *swarmpb.ManagerPeer) uint64 { return max(1, uint64(p.GetWeight())) }

func (m *managers) outcome(connected bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if connected {
		m.failed = 0
		return
	}
	m.failed++
}

func (m *managers) jitter() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.random.Float64()
}
