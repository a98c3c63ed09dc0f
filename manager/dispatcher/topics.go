package dispatcher

import (
	"maps"
	"sort"
	"sync"

	"github.com/tidwall/btree"
)

// everyone is the topic of what all nodes are told: peers, and the services that publish ports. The other topics are
// networks, by ID: the nodes that have a task in one are told of its services.
const everyone = ""

// maxEvents bounds the events that are remembered, over all topics. A session that has missed some of a topic of its own
// is told everything anew.
const maxEvents = 1 << 16

type eventKind uint8

const (
	peerEvent     eventKind = iota // a peer came, changed or went
	joinEvent                      // a service came into the topic
	leaveEvent                     // it left the topic
	serviceEvent                   // what is said of it has changed
	endpointEvent                  // an endpoint of it came, changed or went; id is the task's
)

// event says that something is no longer as it was, not what it is now: that is looked up when it is told.
type event struct {
	index       uint64
	kind        eventKind
	before      bool // endpoints: it was there before
	service, id string
	peer        *toldPeer
}

// topic is what is told to the same nodes.
type topic struct {
	// services that are told of, by ID.
	services btree.Map[string, *reachedService]
	// events, oldest first; what happened after floor is all there.
	events []event
	floor  uint64
}

// after are the events since an index.
func (t *topic) after(index uint64) []event {
	n := sort.Search(len(t.events), func(i int) bool { return t.events[i].index > index })
	return t.events[n:]
}

// topics are all topics, with a memory of events that is bounded over all of them, and who listens to them.
type topics struct {
	limit  int
	byName map[string]*topic
	// order has the topic's name of every remembered event, oldest first.
	order []string

	mu sync.Mutex
	// listeners are the sessions that are told of a network; everyone is not among them.
	listeners map[string]map[*session]struct{}
}

func newTopics(limit int) topics {
	return topics{limit: limit, byName: make(map[string]*topic), listeners: make(map[string]map[*session]struct{})}
}

// open is the topic of that name, made when it is not there. One that has listeners is never forgotten, so that all of
// its events since they began to listen are there, or floor says which are not.
func (s *topics) open(name string) *topic {
	t := s.byName[name]
	if t == nil {
		t = &topic{}
		s.byName[name] = t
	}
	return t
}

// add notes an event, and forgets the oldest ones beyond the limit.
func (s *topics) add(name string, e event) {
	t := s.open(name)
	t.events = append(t.events, e)
	s.order = append(s.order, name)
	for len(s.order) > s.limit {
		name, s.order = s.order[0], s.order[1:]
		oldest := s.byName[name]
		oldest.floor = oldest.events[0].index
		oldest.events[0] = event{}
		if oldest.events = oldest.events[1:]; len(oldest.events) == 0 {
			s.tidy(name)
		}
	}
}

// tidy forgets a topic in which nothing is told and which nobody listens to.
func (s *topics) tidy(name string) {
	t := s.byName[name]
	if t == nil || name == everyone || t.services.Len() > 0 || len(t.events) > 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.listeners[name]) == 0 {
		delete(s.byName, name)
	}
}

// listen has the session woken for other networks than before.
func (s *topics) listen(x *session, before, now networkSet) {
	same := func(*networkMessage, *networkMessage) bool { return true }
	if maps.EqualFunc(before, now, same) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range before {
		if _, still := now[name]; !still {
			delete(s.listeners[name], x)
			if len(s.listeners[name]) == 0 {
				delete(s.listeners, name)
			}
		}
	}
	for name := range now {
		if s.listeners[name] == nil {
			s.listeners[name] = make(map[*session]struct{})
		}
		s.listeners[name][x] = struct{}{}
	}
}

// wake wakes those that listen to a network.
func (s *topics) wake(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for x := range s.listeners[name] {
		x.notify(nothingOwn)
	}
}

// networkSet is the networks that a node has tasks in, each with what the node was told of it; nil = nothing yet.
type networkSet map[string]*networkMessage
