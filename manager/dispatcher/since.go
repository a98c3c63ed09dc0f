package dispatcher

import (
	"maps"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// What follows brings a node from what it was told to what reach holds now. Call with r.mu held for reading.

// beyondShared is what a node with tasks in these networks is told when nothing was, after what everyone is told.
func (r *reach) beyondShared(networks networkSet) []message {
	changes := r.networkChanges(nil, networks)
	listed := make(map[string]struct{})
	for _, name := range slices.Sorted(maps.Keys(networks)) {
		t := r.topics.byName[name]
		if t == nil {
			continue
		}
		t.services.Scan(func(id string, s *reachedService) bool {
			if _, twice := listed[id]; twice {
				return true
			}
			listed[id] = struct{}{}
			changes = append(changes, s.saidTo(networks)) // of one that everyone was told of, with the VIPs now
			if !slices.Contains(s.topics, everyone) {
				changes = appendAll(changes, s)
			}
			return true
		})
	}
	return changes
}

func appendAll(changes []message, s *reachedService) []message {
	s.endpoints.Scan(func(_ string, e toldEndpoint) bool { changes = append(changes, e.said); return true })
	return changes
}

// shared are all peers, and the services that everyone is told of, without VIPs, with their endpoints.
func (r *reach) shared() []message {
	r.full.mu.Lock()
	defer r.full.mu.Unlock()
	if r.full.made {
		return r.full.parts
	}
	changes := make([]message, 0, r.peers.Len())
	r.peers.Scan(func(_ string, peer *toldPeer) bool { changes = append(changes, peer.said); return true })
	if t := r.topics.byName[everyone]; t != nil {
		t.services.Scan(func(_ string, s *reachedService) bool {
			changes = appendAll(append(changes, s.none), s)
			return true
		})
	}
	r.full.made, r.full.parts = true, changes
	return changes
}

// since is what a node is told that was told everything up to an index, when it had tasks in the networks before and has
// them in those of now; it is false when too much has been forgotten since: all has to be told anew.
func (r *reach) since(index uint64, before, now networkSet) ([]message, bool) {
	m := missed{r: r, index: index, before: before, now: now}
	if !m.gather(everyone) {
		return nil, false
	}
	for name := range before {
		if !m.gather(name) {
			return nil, false
		}
	}
	m.gatherMoved()
	return m.tell(), true
}

// missed is what happened in the topics of a session since its index.
type missed struct {
	r           *reach
	index       uint64
	before, now networkSet
	peers       []message
	services    map[string]*missedService
}

// missedService is what happened to a service.
type missedService struct {
	changed bool
	// moves has, for each topic that it came into or left, whether it was in it at the index.
	moves map[string]bool
	// endpoints are by task: the first event of each.
	endpoints map[string]event
}

func (m *missed) service(id string) *missedService {
	if m.services == nil {
		m.services = make(map[string]*missedService)
	}
	s := m.services[id]
	if s == nil {
		s = &missedService{}
		m.services[id] = s
	}
	return s
}

// gather takes in the events of a topic; false: some are forgotten.
func (m *missed) gather(name string) bool {
	t := m.r.topics.byName[name]
	if t == nil {
		return true
	}
	if t.floor > m.index {
		return false
	}
	for _, e := range t.after(m.index) {
		switch e.kind {
		case peerEvent:
			// All nodes are told of all others: no more is done here than must be.
			if e.peer.since == e.index && !(e.peer.gone && e.peer.came > m.index) {
				m.peers = append(m.peers, e.peer.said)
			}
		case joinEvent, leaveEvent:
			s := m.service(e.service)
			if s.moves == nil {
				s.moves = make(map[string]bool)
			}
			if _, ok := s.moves[name]; !ok {
				s.moves[name] = e.kind == leaveEvent
			}
			s.changed = true // it may have come with other ports or VIPs
		case serviceEvent:
			m.service(e.service).changed = true
		case endpointEvent:
			s := m.service(e.service)
			if s.endpoints == nil {
				s.endpoints = make(map[string]event)
			}
			if first, ok := s.endpoints[e.id]; !ok || e.index < first.index {
				s.endpoints[e.id] = e
			}
		}
	}
	return true
}

// gatherMoved takes in the services of networks that the node has come into or left: what it is told of them, and their
// VIPs, is another thing though nothing has happened to them.
func (m *missed) gatherMoved() {
	for _, sets := range [][2]networkSet{{m.before, m.now}, {m.now, m.before}} {
		for name := range sets[0] {
			if _, both := sets[1][name]; both {
				continue
			}
			if t := m.r.topics.byName[name]; t != nil {
				t.services.Scan(func(id string, _ *reachedService) bool { m.service(id).changed = true; return true })
			}
		}
	}
}

// told says whether the node was told of the service at the index, and whether it has seen everything of it since: it was
// all the time in one topic that the node listened to, and still does.
func (m *missed) told(id string, s *missedService) (was, kept bool) {
	now := m.r.services[id]
	look := func(name string, stays bool) {
		in := now != nil && slices.Contains(now.topics, name)
		if then, moved := s.moves[name]; moved {
			was = was || then
		} else if in {
			was = true
			kept = kept || stays
		}
	}
	look(everyone, true)
	for name := range m.before {
		_, stays := m.now[name]
		look(name, stays)
	}
	return was, kept
}

// tell makes the changes.
func (m *missed) tell() []message {
	r := m.r
	changes := append(m.peers, r.networkChanges(m.before, m.now)...)
	for _, id := range slices.Sorted(maps.Keys(m.services)) {
		changes = m.tellService(changes, id, m.services[id])
	}
	return append(changes, r.networkRemovals(m.before, m.now)...)
}

func (m *missed) tellService(changes []message, id string, s *missedService) []message {
	service := m.r.services[id]
	was, kept := m.told(id, s)
	is := service.in(m.now)
	if was && !(is && kept) {
		changes = append(changes, encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveService{RemoveService: id}}))
	}
	switch {
	case !is:
		return changes
	case !was || !kept:
		return appendAll(append(changes, service.saidTo(m.now)), service)
	case s.changed:
		changes = append(changes, service.saidTo(m.now))
	}
	for _, task := range slices.Sorted(maps.Keys(s.endpoints)) {
		endpoint, ok := service.endpoints.Get(task)
		switch {
		case ok:
			changes = append(changes, endpoint.said)
		case s.endpoints[task].before:
			changes = append(changes, encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveEndpoint{
				RemoveEndpoint: &swarmpb.RemoveEndpoint{TaskId: task}}}))
		}
	}
	return changes
}

// networkChanges tells of the networks of now that the node does not hold as they are, and notes that it was told.
func (r *reach) networkChanges(before, now networkSet) (changes []message) {
	for _, id := range slices.Sorted(maps.Keys(now)) {
		network := r.networks[id]
		now[id] = network
		if network != nil && before[id] != network {
			changes = append(changes, network.change)
		}
	}
	return changes
}

// networkRemovals come last: what refers to the networks has gone then.
func (r *reach) networkRemovals(before, now networkSet) (changes []message) {
	for _, id := range slices.Sorted(maps.Keys(before)) {
		if before[id] != nil && now[id] == nil {
			changes = append(changes, encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveNetwork{RemoveNetwork: id}}))
		}
	}
	return changes
}
