package network

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/dns"
)

// shortID is the length of the hostname that a container has by default: the beginning of its task's ID.
const shortID = 12

// backend is a task that a service's address leads to, or its name stands for.
type backend struct {
	pair
	weight uint32
	trial  bool // of the trial's set
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

// active are the endpoints of a service in a network that are ready, those of the lowest task first, whatever their share of
// connections. Endpoints on nodes that gossip calls dead get none, unless nothing else is left.
func (v view) active(networkID, serviceID string) []backend {
	return v.usable(networkID, serviceID, func(*swarmpb.Trial, *swarmpb.Endpoint) bool { return true })
}

// usable are those of them that takes says take part.
func (v view) usable(networkID, serviceID string, takes func(*swarmpb.Trial, *swarmpb.Endpoint) bool) []backend {
	trial := v.services[serviceID].GetTrial()
	var alive, dead []backend
	for _, e := range v.sorted(serviceID) {
		if e.GetState() != swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE || v.gone[e.GetTaskId()] || !takes(trial, e) {
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
		if b := (backend{p, weight, trial.Has(e)}); v.dead[e.GetNodeId()] {
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
// connections, by the shares of their sets), tasks.NAME (all that are ready), preview.NAME (those of a trial's set, which
// without a trial does not exist), and each task's container name and short ID. A task that starts, drains or is not ready
// has its own names still; of several in one slot, those that are ready have the container's name.
// The service's names are there without any task, with no address: nobody outside of the cluster is asked for them.
func (v view) names(networkID, serviceID string) map[string]given {
	s := v.services[serviceID]
	joined := slices.IndexFunc(s.GetNetworks(), func(a *swarmpb.NetworkAttachment) bool { return a.GetNetwork() == networkID })
	if s == nil || joined < 0 {
		return nil
	}
	out := map[string]given{}
	service := calledIn(s, joined)
	var stands given
	if vip, ok := v.vipOf(networkID, serviceID); ok {
		stands.addrs = vip.all()
	} else {
		stands = v.sides(networkID, serviceID).given()
	}
	out[service] = stands
	for _, alias := range s.GetNetworks()[joined].GetAliases() {
		out[strings.ToLower(alias)] = stands
	}
	out["tasks."+service] = given{addrs: addressesOf(v.active(networkID, serviceID))}
	out["preview."+service] = v.preview(networkID, serviceID)
	v.taskNames(networkID, s, service, out)
	return out
}

// calledIn is a service's name in one of its networks. One that stands for a guest is named after network and guest, and called by
// its first alias.
func calledIn(s *swarmpb.AssignedService, joined int) string {
	name, aliases := s.GetName(), s.GetNetworks()[joined].GetAliases()
	if strings.Contains(name, "/") && len(aliases) > 0 {
		name = aliases[0]
	}
	return strings.ToLower(name)
}

func (v view) taskNames(networkID string, s *swarmpb.AssignedService, service string, out map[string]given) {
	served := map[string]bool{} // container names that a task with connections has
	for _, e := range v.sorted(s.GetId()) {
		p, ok := pairOf(addressIn(e.GetNetworks(), networkID))
		if !ok || v.gone[e.GetTaskId()] {
			continue
		}
		node := ""
		if e.GetGlobal() {
			node = e.GetNodeId()
		}
		name := strings.ToLower(swarmpb.TaskName(service, e.GetSlot(), node))
		own := given{addrs: p.all()}
		out[name+"."+e.GetTaskId()] = own
		out[e.GetTaskId()[:min(shortID, len(e.GetTaskId()))]] = own
		active := e.GetState() == swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE
		switch {
		case active && !served[name]:
			served[name], out[name] = true, own
		case active == served[name]:
			out[name] = given{addrs: append(slices.Clone(out[name].addrs), own.addrs...)}
		}
	}
}

// directory is what every network's names stand for, as the services in it give them: several may give one name, which
// then stands for the addresses of them all.
type directory map[string]*networkNames

type networkNames struct {
	given   map[string]map[string]given // service -> name
	givers  map[string]map[string]bool  // name -> services
	unsaid  map[string]bool             // names that have changed since the resolver was told
	renewed bool                        // the resolver has to be told all
	name    string
	subnets []netip.Prefix
}

// network has an entry for a network, new ones with nothing in it.
func (d directory) network(id string) *networkNames {
	if d[id] == nil {
		d[id] = &networkNames{given: map[string]map[string]given{}, givers: map[string]map[string]bool{}, unsaid: map[string]bool{}, renewed: true}
	}
	return d[id]
}

// set takes over what a service gives a network; nil: nothing.
func (d directory) set(networkID, serviceID string, names map[string]given) {
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
	for name, now := range names {
		if old, there := was[name]; there && old.equal(now) {
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

// say adds what the resolver is to be told of a name, which may stand for no address for now.
func (n *networkNames) say(name string, u *dns.NetworkNames) {
	if len(n.givers[name]) == 0 {
		u.Removed = append(u.Removed, name)
		return
	}
	var addrs []netip.Addr
	absent := true
	for _, service := range slices.Sorted(maps.Keys(n.givers[name])) {
		g := n.given[service][name]
		absent = absent && g.absent
		for _, a := range g.addrs {
			if !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
		if g.divided.Share > 0 {
			if u.Divided == nil {
				u.Divided = map[string][]dns.Division{}
			}
			u.Divided[name] = append(u.Divided[name], g.divided)
		}
	}
	if absent {
		u.Absent = append(u.Absent, name)
		return
	}
	u.Set[name] = addrs
}
