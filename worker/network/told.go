package network

import (
	"maps"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// told is what the managers have told the node of peers, networks, services and endpoints, merged. Its messages are
// read-only. Indices: every endpoint is in ofService, and in inNetwork and onNode where it names such.
type told struct {
	peers     map[string]*swarmpb.Peer
	networks  map[string]*swarmpb.AssignedNetwork
	services  map[string]*swarmpb.AssignedService
	endpoints map[string]*swarmpb.Endpoint

	ofService, inNetwork, onNode map[string]map[string]*swarmpb.Endpoint
}

func newTold() *told {
	return &told{
		peers: map[string]*swarmpb.Peer{}, networks: map[string]*swarmpb.AssignedNetwork{},
		services: map[string]*swarmpb.AssignedService{}, endpoints: map[string]*swarmpb.Endpoint{},
		ofService: map[string]map[string]*swarmpb.Endpoint{}, inNetwork: map[string]map[string]*swarmpb.Endpoint{},
		onNode: map[string]map[string]*swarmpb.Endpoint{},
	}
}

// delta names what has changed. Endpoints keep what was there before, as that says where they have to go from.
type delta struct {
	peers, networks, services map[string]bool
	endpoints                 map[string]*swarmpb.Endpoint // task -> as it was; nil: new
	trials                    map[string]*swarmpb.Trial    // service -> as it was; nil: none
}

func newDelta() *delta {
	return &delta{peers: map[string]bool{}, networks: map[string]bool{}, services: map[string]bool{}, endpoints: map[string]*swarmpb.Endpoint{}, trials: map[string]*swarmpb.Trial{}}
}

// everything is a delta of all there is.
func (t *told) everything() *delta {
	d := newDelta()
	for id := range t.peers {
		d.peers[id] = true
	}
	for id := range t.networks {
		d.networks[id] = true
	}
	for id := range t.services {
		d.services[id] = true
	}
	for id, e := range t.endpoints {
		d.endpoints[id] = e
	}
	return d
}

// widen adds what another delta names. What both name stays.
func (d *delta) widen(o *delta) {
	maps.Copy(d.peers, o.peers)
	maps.Copy(d.networks, o.networks)
	maps.Copy(d.services, o.services)
	for service, was := range o.trials {
		if _, known := d.trials[service]; !known {
			d.trials[service] = was
		}
	}
	for task, was := range o.endpoints {
		if _, known := d.endpoints[task]; !known {
			d.endpoints[task] = was
		}
	}
}

// merge takes the changes of a set and says what they have changed. A full set is compared with what was there:
// what is in both costs nothing further.
func (t *told) merge(full bool, changes []*swarmpb.AssignmentChange) *delta {
	d := newDelta()
	if !full {
		for _, c := range changes {
			t.change(c, d)
		}
		return d
	}
	next, all := newTold(), newDelta()
	for _, c := range changes {
		next.change(c, all)
	}
	differ(t.peers, next.peers, func(id string, _ *swarmpb.Peer) { d.peers[id] = true })
	differ(t.networks, next.networks, func(id string, _ *swarmpb.AssignedNetwork) { d.networks[id] = true })
	differ(t.services, next.services, func(id string, was *swarmpb.AssignedService) {
		d.services[id], d.trials[id] = true, was.GetTrial()
	})
	differ(t.endpoints, next.endpoints, func(id string, was *swarmpb.Endpoint) { d.endpoints[id] = was })
	*t = *next
	return d
}

// differ calls for every key whose values are not the same, with the old value.
func differ[M proto.Message](old, next map[string]M, changed func(id string, was M)) {
	for id, was := range old {
		if now, ok := next[id]; !ok || !proto.Equal(was, now) {
			changed(id, was)
		}
	}
	for id := range next {
		if _, ok := old[id]; !ok {
			var none M
			changed(id, none)
		}
	}
}

func (t *told) change(c *swarmpb.AssignmentChange, d *delta) {
	switch c := c.GetChange().(type) {
	case *swarmpb.AssignmentChange_Peer:
		t.peers[c.Peer.GetNodeId()] = c.Peer
		d.peers[c.Peer.GetNodeId()] = true
	case *swarmpb.AssignmentChange_RemovePeer:
		delete(t.peers, c.RemovePeer)
		d.peers[c.RemovePeer] = true
	case *swarmpb.AssignmentChange_Network:
		t.networks[c.Network.GetId()] = c.Network
		d.networks[c.Network.GetId()] = true
	case *swarmpb.AssignmentChange_RemoveNetwork:
		delete(t.networks, c.RemoveNetwork)
		d.networks[c.RemoveNetwork] = true
	case *swarmpb.AssignmentChange_Service:
		if _, known := d.trials[c.Service.GetId()]; !known {
			d.trials[c.Service.GetId()] = t.services[c.Service.GetId()].GetTrial()
		}
		t.services[c.Service.GetId()] = c.Service
		d.services[c.Service.GetId()] = true
	case *swarmpb.AssignmentChange_RemoveService:
		delete(t.services, c.RemoveService)
		d.services[c.RemoveService] = true
		for id := range t.ofService[c.RemoveService] {
			t.setEndpoint(id, nil, d)
		}
	case *swarmpb.AssignmentChange_Endpoint:
		t.setEndpoint(c.Endpoint.GetTaskId(), c.Endpoint, d)
	case *swarmpb.AssignmentChange_RemoveEndpoint:
		t.setEndpoint(c.RemoveEndpoint.GetTaskId(), nil, d)
	}
}

// setEndpoint puts an endpoint in place of the one of its task; nil: it is gone.
func (t *told) setEndpoint(taskID string, e *swarmpb.Endpoint, d *delta) {
	was := t.endpoints[taskID]
	if _, known := d.endpoints[taskID]; !known {
		d.endpoints[taskID] = was
	}
	if was != nil {
		delete(t.endpoints, taskID)
		unindex(t.ofService, was.GetServiceId(), taskID)
		unindex(t.onNode, was.GetNodeId(), taskID)
		for _, a := range was.GetNetworks() {
			unindex(t.inNetwork, a.GetNetworkId(), taskID)
		}
	}
	if e == nil {
		return
	}
	t.endpoints[taskID] = e
	index(t.ofService, e.GetServiceId(), taskID, e)
	index(t.onNode, e.GetNodeId(), taskID, e)
	for _, a := range e.GetNetworks() {
		index(t.inNetwork, a.GetNetworkId(), taskID, e)
	}
}

func index(m map[string]map[string]*swarmpb.Endpoint, key, taskID string, e *swarmpb.Endpoint) {
	if m[key] == nil {
		m[key] = map[string]*swarmpb.Endpoint{}
	}
	m[key][taskID] = e
}

func unindex(m map[string]map[string]*swarmpb.Endpoint, key, taskID string) {
	delete(m[key], taskID)
	if len(m[key]) == 0 {
		delete(m, key)
	}
}

// addressIn is the endpoint's address in a network; nil without one.
func addressIn(addresses []*swarmpb.NetworkAddress, networkID string) *swarmpb.NetworkAddress {
	for _, a := range addresses {
		if a.GetNetworkId() == networkID {
			return a
		}
	}
	return nil
}
