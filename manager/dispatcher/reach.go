package dispatcher

import (
	"bytes"
	"slices"
	"sync"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// reach is how tasks are reached, at one view: peers, networks, services and endpoints as messages, made once for all
// sessions, and what of it changed when. It follows the store by its feed; whatever is told to a node, its own tasks
// too, is read from this view, so that a set is of one index.
type reach struct {
	// mu guards all but what the topics guard themselves.
	mu sync.RWMutex
	// view is what all of it was made of; nil before the first.
	view *store.View
	// epoch counts the times that an older view took the place of a newer one.
	epoch    uint64
	peers    btree.Map[string, *toldPeer]
	services map[string]*reachedService
	networks map[string]*networkMessage
	topics   topics
	// hosts are the addresses that peers are told with.
	hosts hostAddresses

	full fullList
}

// fullList is all that is told to everyone, for those who begin. It lives no longer than the view it was made of: many
// begin at once, or few at all.
type fullList struct {
	mu    sync.Mutex
	made  bool
	parts []message
}

// drop forgets the list. Call with reach's lock held for writing.
func (l *fullList) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.made, l.parts = false, nil
}

type networkMessage struct{ change message }

// toldPeer is what is told of a node, or that it is gone, and since when: of its events that one alone is news. came is the
// index from which on anything was told.
type toldPeer struct {
	said        message
	gone        bool
	came, since uint64
}

// toldEndpoint is what is told of a task.
type toldEndpoint struct {
	said     message
	draining bool
}

// reachedService is what a service is to those that reach it.
type reachedService struct {
	// assigned has the VIPs of all networks.
	assigned *swarmpb.AssignedService
	// topics are those whose nodes are told of it: its networks, and everyone's when it publishes ports. By name.
	topics []string
	// all says it with all VIPs, none without any.
	all, none message
	// endpoints are by task.
	endpoints *btree.Map[string, toldEndpoint]
}

func newReach(limit int) *reach {
	return &reach{services: make(map[string]*reachedService), networks: make(map[string]*networkMessage), topics: newTopics(limit), hosts: newHostAddresses()}
}

// isReached is as of the view; it only looks it up.
func (r *reach) isReached(serviceID string) bool {
	return r.services[serviceID] != nil || r.view.Service(serviceID).GetSpec().Reached()
}

// reached says of each of the services whether it is reached, before a step.
func (r *reach) reached(services map[string]struct{}) map[string]bool {
	if len(services) == 0 || r.view == nil {
		return nil
	}
	out := make(map[string]bool, len(services))
	for id := range services {
		out[id] = r.isReached(id)
	}
	return out
}

// touched is what may have changed between two views.
type touched struct {
	peers, services, networks map[string]struct{}
	// tasks are by ID, each with its service.
	tasks map[string]string
}

func newTouched() *touched {
	return &touched{peers: map[string]struct{}{}, services: map[string]struct{}{}, networks: map[string]struct{}{}, tasks: map[string]string{}}
}

// see adds what a change of a row may concern.
func (t *touched) see(view *store.View, c *store.Change) {
	switch c.Table {
	case swarmpb.Table_TABLE_SERVICE, swarmpb.Table_TABLE_SERVICE_ENDPOINT, swarmpb.Table_TABLE_TEMPLATE:
		t.services[c.Key.ID] = struct{}{}
	case swarmpb.Table_TABLE_SERVICE_PROGRESS:
		before, _ := c.Old.(*swarmpb.ServiceProgress)
		after, _ := c.New.(*swarmpb.ServiceProgress)
		// It changes with every step of an update; what nodes are told follows from the trial alone.
		if !proto.Equal(before.GetUpdate().Trial(), after.GetUpdate().Trial()) {
			t.services[c.Key.ID] = struct{}{}
		}
	case swarmpb.Table_TABLE_TASK:
		task, ok := c.New.(*swarmpb.Task)
		if !ok {
			task, _ = c.Old.(*swarmpb.Task)
		}
		t.tasks[c.Key.ID] = task.GetServiceId()
	case swarmpb.Table_TABLE_TASK_PLACEMENT, swarmpb.Table_TABLE_TASK_ADDRESSES, swarmpb.Table_TABLE_TASK_STATUS:
		// Of a task that is gone, the task's own row has changed too.
		if task := view.Task(c.Key.ID); task != nil {
			t.tasks[c.Key.ID] = task.GetServiceId()
		}
	case swarmpb.Table_TABLE_NETWORK, swarmpb.Table_TABLE_NETWORK_PROGRESS:
		t.networks[c.Key.ID] = struct{}{}
	case swarmpb.Table_TABLE_ALLOCATION:
		before, _ := c.Old.(*swarmpb.Allocation)
		after, _ := c.New.(*swarmpb.Allocation)
		if before.GetPool() == poolUplink || after.GetPool() == poolUplink {
			t.peers[before.GetOwner()] = struct{}{}
			t.peers[after.GetOwner()] = struct{}{}
		}
	case swarmpb.Table_TABLE_NODE:
		if c.Old == nil || c.New == nil {
			t.node(view, c.Key.ID)
		}
	case swarmpb.Table_TABLE_NODE_STATUS:
		before, _ := c.Old.(*swarmpb.NodeStatus)
		after, _ := c.New.(*swarmpb.NodeStatus)
		const down = swarmpb.NodeState_NODE_STATE_DOWN
		if (before.GetState() == down) != (after.GetState() == down) {
			t.node(view, c.Key.ID)
		}
		t.peers[c.Key.ID] = struct{}{}
	case swarmpb.Table_TABLE_CLUSTER:
		for node := range view.Nodes() {
			t.peers[node.GetId()] = struct{}{}
		}
	}
}

// node adds a node with its tasks.
func (t *touched) node(view *store.View, id string) {
	t.peers[id] = struct{}{}
	for task := range view.TasksOn(id) {
		t.tasks[task.GetId()] = task.GetServiceId()
	}
}

// everything is what may have changed when nobody knows.
func (r *reach) everything(view *store.View) *touched {
	t := newTouched()
	r.peers.Scan(func(id string, _ *toldPeer) bool { t.peers[id] = struct{}{}; return true })
	for node := range view.Nodes() {
		t.peers[node.GetId()] = struct{}{}
	}
	for id := range r.networks {
		t.networks[id] = struct{}{}
	}
	for network := range view.Networks() {
		t.networks[network.GetId()] = struct{}{}
	}
	for id, service := range r.services {
		t.services[id] = struct{}{}
		service.endpoints.Scan(func(task string, _ toldEndpoint) bool { t.tasks[task] = id; return true })
		for task := range view.TasksOf(id) {
			t.tasks[task.GetId()] = id
		}
	}
	for service := range view.Services() {
		t.services[service.GetId()] = struct{}{}
	}
	return t
}

// news is what came of a step: the topics in which something is new, and whether a task is DRAINING that was not.
type news struct {
	topics map[string]struct{}
	// peers: nodes came, changed or went.
	peers   bool
	drained bool
}

// step brings all to the view. Call with mu held.
func (r *reach) step(view *store.View, t *touched) news {
	if r.view != nil && view.Index() < r.view.Index() {
		// Another store's view, older than what was told: what was told before counts no more.
		r.epoch++
	}
	n := news{topics: make(map[string]struct{})}
	note := func(name string, e event) {
		if e.kind == peerEvent {
			n.peers = true
		} else {
			n.topics[name] = struct{}{}
		}
		if r.view != nil { // before the first view nobody was told anything
			e.index = view.Index()
			r.topics.add(name, e)
		}
	}
	r.hosts.follow(view, t)
	for id := range t.peers {
		r.stepPeer(view, id, note)
	}
	for id := range t.networks {
		r.stepNetwork(view, id, n.topics)
	}
	made := make(map[string]struct{})
	for id := range t.services {
		if r.stepService(view, id, note) {
			made[id] = struct{}{}
		}
	}
	for id, service := range t.tasks {
		if _, whole := made[service]; whole {
			continue
		}
		if s := r.services[service]; s != nil && s.stepEndpoint(view, id, note) {
			n.drained = true
		}
	}
	r.view = view
	r.full.drop()
	return n
}

func (r *reach) stepPeer(view *store.View, id string, note func(string, event)) {
	if id == "" {
		return
	}
	told, was := r.peers.Get(id)
	peer := peerOf(view, id, &r.hosts)
	if peer == nil && !was {
		return
	}
	if !was {
		told = &toldPeer{came: view.Index()}
	}
	said := encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Peer{Peer: peer}})
	switch {
	case peer == nil:
		said = encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemovePeer{RemovePeer: id}})
		r.peers.Delete(id)
		told.gone = true
	case bytes.Equal(told.said, said):
		return
	case !was:
		r.peers.Set(id, told)
	}
	told.said, told.since = said, view.Index()
	note(everyone, event{kind: peerEvent, peer: told})
}

func (r *reach) stepNetwork(view *store.View, id string, changed map[string]struct{}) {
	before, network := r.networks[id], networkOf(view, id)
	said := encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Network{Network: network}})
	switch {
	case network == nil && before == nil, network != nil && before != nil && bytes.Equal(before.change, said):
		return
	case network == nil:
		delete(r.networks, id)
		for name := range r.topics.byName {
			r.topics.tidy(name)
		}
	default:
		r.networks[id] = &networkMessage{said}
	}
	changed[id] = struct{}{} // a session compares the message with the one that it was told
}

// stepService tells whether the service is new here, so that all of its endpoints were made.
func (r *reach) stepService(view *store.View, id string, note func(string, event)) (made bool) {
	before, now := r.services[id], serviceOf(view, id)
	switch {
	case before == nil && now == nil:
		return false
	case now == nil:
		delete(r.services, id)
		now = &reachedService{} // in no topic
	case before == nil:
		before, made = &reachedService{}, true // in no topic
		now.messages()
		now.complete(view)
		r.services[id] = now
	default:
		now.endpoints = before.endpoints
		if proto.Equal(before.assigned, now.assigned) && slices.Equal(before.topics, now.topics) {
			return false
		}
		now.messages()
		r.services[id] = now
	}
	for _, name := range before.topics {
		if !slices.Contains(now.topics, name) {
			r.topics.open(name).services.Delete(id)
			note(name, event{kind: leaveEvent, service: id})
		}
	}
	for _, name := range now.topics {
		r.topics.open(name).services.Set(id, now)
		kind := joinEvent
		if slices.Contains(before.topics, name) {
			kind = serviceEvent
		}
		note(name, event{kind: kind, service: id})
	}
	return made
}

// messages makes what is said of the service itself.
func (s *reachedService) messages() {
	s.all, s.none = s.with(s.assigned.GetVips()), s.with(nil)
}

// with says it with these VIPs alone.
func (s *reachedService) with(vips []*swarmpb.NetworkAddress) message {
	part := swarmpb.Clone(s.assigned)
	part.Vips = vips
	return encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Service{Service: part}})
}

// complete makes all endpoints.
func (s *reachedService) complete(view *store.View) {
	s.endpoints = &btree.Map[string, toldEndpoint]{}
	for task := range view.TasksOf(s.assigned.GetId()) {
		if e := endpointOf(view, task.GetId()); e != nil {
			s.endpoints.Set(e.GetTaskId(), tellEndpoint(e))
		}
	}
}

func tellEndpoint(e *swarmpb.Endpoint) toldEndpoint {
	return toldEndpoint{
		said:     encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Endpoint{Endpoint: e}}),
		draining: e.GetState() == swarmpb.EndpointState_ENDPOINT_STATE_DRAINING,
	}
}

// stepEndpoint tells whether the task is DRAINING now and was not.
func (s *reachedService) stepEndpoint(view *store.View, id string, note func(string, event)) (drained bool) {
	before, was := s.endpoints.Get(id)
	endpoint := endpointOf(view, id)
	var now toldEndpoint
	switch {
	case endpoint != nil:
		if now = tellEndpoint(endpoint); was && bytes.Equal(before.said, now.said) {
			return false
		}
		s.endpoints.Set(id, now)
	case was:
		s.endpoints.Delete(id)
	default:
		return false
	}
	for _, name := range s.topics {
		note(name, event{kind: endpointEvent, service: s.assigned.GetId(), id: id, before: was})
	}
	return now.draining && !before.draining
}

// saidTo is what a node with tasks in these networks is told of the service: the VIPs of these networks alone.
func (s *reachedService) saidTo(networks networkSet) message {
	var vips []*swarmpb.NetworkAddress
	for _, vip := range s.assigned.GetVips() {
		if _, ok := networks[vip.GetNetworkId()]; ok {
			vips = append(vips, vip)
		}
	}
	switch len(vips) {
	case len(s.assigned.GetVips()):
		return s.all
	case 0:
		return s.none
	}
	return s.with(vips)
}

// in tells whether a node with tasks in these networks is told of the service at all.
func (s *reachedService) in(networks networkSet) bool {
	return s != nil && slices.ContainsFunc(s.topics, func(name string) bool {
		_, ok := networks[name]
		return ok || name == everyone
	})
}
