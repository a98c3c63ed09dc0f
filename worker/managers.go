package worker

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// managers is the list of those to hold a session with.
type managers struct {
	mu      sync.Mutex
	random  *rand.Rand
	given   []*swarmpb.ManagerPeer // by the configuration
	learned []*swarmpb.ManagerPeer
	// last is the address of the last try, tried those that have been tried since a session was of use.
	last  string
	tried map[string]bool
	// answering says of addresses whether the manager there answers beats: one of an older version never does.
	answering map[string]bool
}

func newManagers(given []*swarmpb.ManagerPeer, seed uint64) *managers {
	return &managers{
		given: given, random: rand.New(rand.NewPCG(seed, 0x73776172)), tried: map[string]bool{}, answering: map[string]bool{},
	}
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
	for address := range m.answering {
		if !has(peers, address) && !has(m.given, address) {
			delete(m.answering, address)
		}
	}
	return true
}

// listed says whether the managers' own list has the address.
func (m *managers) listed(address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return has(m.learned, address)
}

func has(peers []*swarmpb.ManagerPeer, address string) bool {
	return slices.ContainsFunc(peers, func(p *swarmpb.ManagerPeer) bool { return p.GetAddress() == address })
}

// pick chooses by weight among those that were not tried yet. Those of the configuration count while nothing was
// learned, and once all that was learned has failed; when all have, it begins anew, with another one than the last.
func (m *managers) pick() (address string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	untried := func(p *swarmpb.ManagerPeer) bool { return !m.tried[p.GetAddress()] }
	candidates := filter(m.learned, untried)
	if len(candidates) == 0 {
		candidates = filter(m.given, untried)
	}
	if len(candidates) == 0 {
		clear(m.tried)
		all := slices.Concat(m.learned, m.given)
		candidates = filter(all, func(p *swarmpb.ManagerPeer) bool { return p.GetAddress() != m.last })
		if len(candidates) == 0 {
			candidates = all
		}
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

// patience is how long the manager that was picked may take to open a session: while another was not tried a quarter of the
// limit, so that one that hangs does not cost the node its lease.
func (m *managers) patience(limit time.Duration) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range slices.Concat(m.learned, m.given) {
		if a := p.GetAddress(); a != m.last && !m.tried[a] {
			return limit / 4
		}
	}
	return limit
}

func filter(peers []*swarmpb.ManagerPeer, keep func(*swarmpb.ManagerPeer) bool) []*swarmpb.ManagerPeer {
	var out []*swarmpb.ManagerPeer
	for _, p := range peers {
		if keep(p) {
			out = append(out, p)
		}
	}
	return out
}

// weight 0 is as good as 1: a manager is never out of reach for being unwanted.
func weight(p *swarmpb.ManagerPeer) uint64 { return max(1, uint64(p.GetWeight())) }

// outcome notes that the last try, or the session that came of it, is over: the others come first now.
func (m *managers) outcome(ofUse bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ofUse {
		clear(m.tried)
	}
	m.tried[m.last] = true
}

// answers notes whether the manager at an address answers beats.
func (m *managers) answers(address string, is bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answering[address] = is
}

// expects says whether the manager at an address is to answer beats: it does, or it was not tried and others do.
func (m *managers) expects(address string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if is, known := m.answering[address]; known {
		return is
	}
	for _, is := range m.answering {
		if is {
			return true
		}
	}
	return false
}

func (m *managers) jitter() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.random.Float64()
}
