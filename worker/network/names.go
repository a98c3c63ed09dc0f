package network

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// shortID is the length of the hostname that a container has by default: the beginning of its task's ID.
const shortID = 12

// backend is a task that a service's address leads to, or its name stands for.
type backend struct {
	pair
	weight uint32
}

// defaultWeight is the share of an endpoint that says none.
const defaultWeight = 100

// view is what names and VIPs are derived from.
type view struct {
	*told
	gone map[string]bool // tasks of this node whose process has ended
	dead map[string]bool // nodes that gossip calls dead
}

// pairOf parses the addresses that a task or a service has in a network.
func pairOf(a *swarmpb.NetworkAddress) (pair, bool) {
	v4, err := netip.ParseAddr(a.GetAddress())
	if err != nil || !v4.Is4() {
		return pair{}, false
	}
	p := pair{v4: v4}
	if v6, err := netip.ParseAddr(a.GetAddress6()); err == nil && v6.Is6() {
		p.v6 = v6
	}
	return p, true
}

// active are the endpoints of a service in a network that get connections, those of the lowest task first. Endpoints on
// nodes that gossip calls dead get none, unless nothing else is left.
func (v view) active(networkID, serviceID string) []backend {
	var alive, dead []backend
	for _, e := range v.sorted(serviceID) {
		if e.GetState() != swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE || v.gone[e.GetTaskId()] {
			continue
		}
		p, ok := pairOf(addressIn(e.GetNetworks(), networkID))
		if !ok {
			continue
		}
		weight := e.GetWeight()
		if weight == 0 {
			weight = defaultWeight
		}
		if b := (backend{p, weight}); v.dead[e.GetNodeId()] {
			dead = append(dead, b)
		} else {
			alive = append(alive, b)
		}
	}
	if len(alive) == 0 {
		return dead
	}
	return alive
}

func (v view) sorted(serviceID string) []*swarmpb.Endpoint {
	of := v.ofService[serviceID]
	out := make([]*swarmpb.Endpoint, 0, len(of))
	for _, id := range slices.Sorted(maps.Keys(of)) {
		out = append(out, of[id])
	}
	return out
}

// vipOf is the address that a service has in a network; false: its name stands for its tasks' addresses.
func (v view) vipOf(networkID, serviceID string) (pair, bool) {
	s := v.services[serviceID]
	if s == nil || s.GetMode() == swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR {
		return pair{}, false
	}
	return pairOf(addressIn(s.GetVips(), networkID))
}

// names are what a service stands for in a network: its own name and its aliases (the VIP, or all that get
// connections), tasks.NAME (all that get connections), and each task's container name and short ID. A task that starts
// or drains has its own names still; of several in one slot, those that get connections have the container's name.
// The service's names are there without any task, with no address: nobody outside of the cluster is asked for them.
func (v view) names(networkID, serviceID string) map[string][]netip.Addr {
	s := v.services[serviceID]
	joined := slices.IndexFunc(s.GetNetworks(), func(a *swarmpb.NetworkAttachment) bool { return a.GetNetwork() == networkID })
	if s == nil || joined < 0 {
		return nil
	}
	out := map[string][]netip.Addr{}
	var all []netip.Addr
	for _, b := range v.active(networkID, serviceID) {
		all = append(all, b.all()...)
	}
	service := strings.ToLower(s.GetName())
	stands := all
	if vip, ok := v.vipOf(networkID, serviceID); ok {
		stands = vip.all()
	}
	out[service] = stands
	for _, alias := range s.GetNetworks()[joined].GetAliases() {
		out[strings.ToLower(alias)] = stands
	}
	out["tasks."+service] = all
	v.taskNames(networkID, s, out)
	return out
}

func (v view) taskNames(networkID string, s *swarmpb.AssignedService, out map[string][]netip.Addr) {
	served := map[string]bool{} // container names that a task with connections has
	for _, e := range v.sorted(s.GetId()) {
		p, ok := pairOf(addressIn(e.GetNetworks(), networkID))
		if !ok || v.gone[e.GetTaskId()] {
			continue
		}
		name := strings.ToLower(swarmpb.TaskName(s.GetName(), e.GetSlot(), e.GetNodeId()))
		out[name+"."+e.GetTaskId()] = p.all()
		out[e.GetTaskId()[:min(shortID, len(e.GetTaskId()))]] = p.all()
		active := e.GetState() == swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE
		switch {
		case active && !served[name]:
			served[name], out[name] = true, p.all()
		case active == served[name]:
			out[name] = append(slices.Clone(out[name]), p.all()...)
		}
	}
}

// directory is what every network's names stand for, as the services in it give them: several may give one name, which
// then stands for the addresses of them all.
type directory map[string]*networkNames

type networkNames struct {
	given   map[string]map[string][]netip.Addr // service -> name -> addresses
	givers  map[string]map[string]bool         // name -> services
	unsaid  map[string]bool                    // names that have changed since the resolver was told
	renewed bool                               // the resolver has to be told all
	name    string
	subnets []netip.Prefix
}

// network has an entry for a network, new ones with nothing in it.
func (d directory) network(id string) *networkNames {
	if d[id] == nil {
		d[id] = &networkNames{given: map[string]map[string][]netip.Addr{}, givers: map[string]map[string]bool{}, unsaid: map[string]bool{}, renewed: true}
	}
	return d[id]
}

// set takes over what a service gives a network; nil: nothing.
func (d directory) set(networkID, serviceID string, names map[string][]netip.Addr) {
	n := d.network(networkID)
	was := n.given[serviceID]
	for name := range was {
		if _, stays := names[name]; !stays {
			n.unsaid[name] = true
			delete(n.givers[name], serviceID)
			if len(n.givers[name]) == 0 {
				delete(n.givers, name)
			}
		}
	}
	for name, addrs := range names {
		if old, there := was[name]; there && slices.Equal(old, addrs) {
			continue
		}
		n.unsaid[name] = true
		if n.givers[name] == nil {
			n.givers[name] = map[string]bool{}
		}
		n.givers[name][serviceID] = true
	}
	if n.given[serviceID] = names; len(names) == 0 {
		delete(n.given, serviceID)
	}
}

// answer is what a name stands for, which may be no address for now; false: it is nobody's.
func (n *networkNames) answer(name string) ([]netip.Addr, bool) {
	var out []netip.Addr
	for _, service := range slices.Sorted(maps.Keys(n.givers[name])) {
		for _, a := range n.given[service][name] {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out, len(n.givers[name]) > 0
}
