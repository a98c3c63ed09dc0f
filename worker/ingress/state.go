package ingress

import (
	"maps"
	"net/netip"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress/slots"
)

// defaultWeight is that of an endpoint which names none.
const defaultWeight = 100

// service is what was told of one service, and the slots that its endpoints have here.
type service struct {
	id        string
	ports     []*swarmpb.PortConfig
	trial     *swarmpb.Trial
	preview   []*swarmpb.PortConfig        // ports that lead to the trial's set alone
	endpoints map[string]*swarmpb.Endpoint // by task
	random    []string                     // endpoint of each slot; what moves as little as possible
	shown     []string                     // that of the preview ports
}

// state is what the managers told, and what is known here besides. Its messages are read-only.
type state struct {
	services map[string]*service
	tasks    map[string]string // task -> service
	// gone are tasks whose process has ended here, until the managers have taken the endpoint back.
	gone map[string]bool
	// held is how many endpoints have an address, but for those that are gone. An address that another one has is in use: it was given
	// again before the managers took the former one's endpoint back.
	held map[netip.Addr]int
	// handed are those of gone whose flows another replica on this node takes, as long as nobody else has their address.
	handed map[string]bool
	// dead is gossip's view of the nodes that endpoints are on.
	dead map[string]bool
	hint func(nodeID string) bool
	self string
	// nodes are all members, sorted.
	nodes []string
	// claims are the ports that services publish. More than one service claims a port only while one takes it over from another.
	claims  map[portKey]map[string]*balance
	portsOf map[string][]portKey // which a service claims
}

func newState() *state {
	return &state{
		services: map[string]*service{}, tasks: map[string]string{}, gone: map[string]bool{}, held: map[netip.Addr]int{}, handed: map[string]bool{}, dead: map[string]bool{},
		hint: func(string) bool { return false }, claims: map[portKey]map[string]*balance{}, portsOf: map[string][]portKey{},
	}
}

// leaving are addresses whose connections end with a change: all of them, or those of UDP.
type leaving struct{ all, udp map[netip.Addr]bool }

func newLeaving() leaving { return leaving{map[netip.Addr]bool{}, map[netip.Addr]bool{}} }

func (s *state) service(id string) *service {
	v := s.services[id]
	if v == nil {
		v = &service{id: id, endpoints: map[string]*swarmpb.Endpoint{}}
		s.services[id] = v
	}
	return v
}

// take merges an update and tells which services it touched and whose connections end.
func (s *state) take(u Update) (map[string]bool, leaving) {
	touched, out := map[string]bool{}, newLeaving()
	if u.Full {
		s.forgetAllBut(u, touched, out)
	}
	for _, m := range u.Services {
		s.setService(s.service(m.GetId()), m, out)
		touched[m.GetId()] = true
	}
	for _, task := range u.RemovedEndpoints { // first, as one that comes may have the address of one that goes
		s.removeEndpoint(task, touched, out)
	}
	for _, e := range u.Endpoints {
		s.setEndpoint(e, touched, out)
	}
	for _, id := range u.RemovedServices {
		if v := s.services[id]; v != nil {
			s.setService(v, nil, out)
			touched[id] = true
		}
	}
	return touched, out
}

// forgetAllBut removes what a full update does not name.
func (s *state) forgetAllBut(u Update, touched map[string]bool, out leaving) {
	keep := map[string]bool{}
	for _, e := range u.Endpoints {
		keep[e.GetTaskId()] = true
	}
	for _, task := range slices.Sorted(maps.Keys(s.tasks)) {
		if !keep[task] {
			s.removeEndpoint(task, touched, out)
		}
	}
	clear(keep)
	for _, m := range u.Services {
		keep[m.GetId()] = true
	}
	for id, v := range s.services {
		if !keep[id] && (v.ports != nil || v.trial != nil || v.preview != nil) {
			s.setService(v, nil, out)
			touched[id] = true
		}
	}
	maps.DeleteFunc(s.gone, func(task string, _ bool) bool { return s.tasks[task] == "" })
}

func (s *state) setEndpoint(e *swarmpb.Endpoint, touched map[string]bool, out leaving) {
	if was, ok := s.tasks[e.GetTaskId()]; ok && was != e.GetServiceId() {
		s.removeEndpoint(e.GetTaskId(), touched, out)
	}
	v := s.service(e.GetServiceId())
	before := v.endpoints[e.GetTaskId()]
	v.endpoints[e.GetTaskId()] = e
	s.tasks[e.GetTaskId()] = e.GetServiceId()
	s.dead[e.GetNodeId()] = s.hint(e.GetNodeId())
	touched[e.GetServiceId()] = true
	now, has := uplinkAddress(e)
	if a, had := uplinkAddress(before); (had != has || a != now) && !s.gone[e.GetTaskId()] {
		if had {
			s.release(a, out)
		}
		if has {
			s.held[now]++
		}
	}
	if has && v.loses(before, e) && v.takesUDP() {
		out.udp[now] = true
	}
}

func (s *state) removeEndpoint(task string, touched map[string]bool, out leaving) {
	id, ok := s.tasks[task]
	if !ok {
		return
	}
	v := s.services[id]
	if a, ok := uplinkAddress(v.endpoints[task]); ok && !s.gone[task] {
		s.release(a, out)
	}
	delete(v.endpoints, task)
	delete(s.tasks, task)
	delete(s.gone, task)
	delete(s.handed, task)
	touched[id] = true
}

// release has the connections to an address end, unless another endpoint has it.
func (s *state) release(a netip.Addr, out leaving) {
	if s.held[a]--; s.held[a] > 0 {
		return
	}
	delete(s.held, a)
	out.all[a] = true
}

// tidy drops services of which nothing is left to know, and what is known of nodes without endpoints.
func (s *state) tidy(touched map[string]bool) {
	for id := range touched {
		if v := s.services[id]; v != nil && len(v.ports)+len(v.preview)+len(v.endpoints) == 0 {
			delete(s.services, id)
		}
	}
}

// hinted takes over gossip's view and tells which services it touches.
func (s *state) hinted(dead func(string) bool) map[string]bool {
	s.hint = dead
	touched, now := map[string]bool{}, map[string]bool{}
	for id, v := range s.services {
		for _, e := range v.endpoints {
			n := e.GetNodeId()
			is, ok := now[n]
			if !ok {
				is = dead(n)
				now[n] = is
			}
			if is != s.dead[n] {
				touched[id] = true
			}
		}
	}
	s.dead = now
	return touched
}

// addresses are those of all endpoints.
func (s *state) addresses() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, v := range s.services {
		for _, e := range v.endpoints {
			if a, ok := uplinkAddress(e); ok {
				out[a] = true
			}
		}
	}
	return out
}

func uplinkAddress(e *swarmpb.Endpoint) (netip.Addr, bool) {
	a, err := netip.ParseAddr(e.GetAddress())
	return a, err == nil && a.Is4()
}

// claim brings the claims of the services up to date and tells which ports that concerns.
func (s *state) claim(touched map[string]bool) map[portKey]bool {
	ports := map[portKey]bool{}
	for id := range touched {
		for _, k := range s.portsOf[id] {
			ports[k] = true
			delete(s.claims[k], id)
		}
		delete(s.portsOf, id)
	}
	for _, id := range slices.Sorted(maps.Keys(touched)) {
		v := s.services[id]
		if v == nil {
			continue
		}
		for k, b := range s.balances(v) {
			if s.claims[k] == nil {
				s.claims[k] = map[string]*balance{}
			}
			s.claims[k][id] = b
			s.portsOf[id] = append(s.portsOf[id], k)
			ports[k] = true
		}
	}
	for k := range ports {
		if len(s.claims[k]) == 0 {
			delete(s.claims, k)
		}
	}
	return ports
}

// claimed is what a port should be; nil: no service publishes it.
func (s *state) claimed(k portKey) *balance {
	by := s.claims[k]
	if len(by) == 0 {
		return nil
	}
	return by[slices.Min(slices.Collect(maps.Keys(by)))]
}

// balances are what the service's ports should be in the kernel.
func (s *state) balances(v *service) map[portKey]*balance {
	out := map[portKey]*balance{}
	if len(v.ports) > 0 {
		s.balance(out, v, v.ports, &v.random, s.candidates(v))
	}
	if len(v.preview) > 0 {
		s.balance(out, v, v.preview, &v.shown, s.previewed(v))
	}
	return out
}

// balance adds ports that share their endpoints. Those of their slots that are taken by chance are in random.
func (s *state) balance(out map[portKey]*balance, v *service, ports []*swarmpb.PortConfig, random *[]string, all slots.Candidates) {
	var chance, stable []string
	assigned := func(kind byte) []string {
		if kind == byClient {
			if stable == nil {
				stable = slots.AssignStable(all.All()) // the same on every node that knows the same endpoints, so without a subset
			}
			return stable
		}
		if chance == nil {
			chance = slots.Next(*random, all.Subset(v.id, s.self, s.nodes, slots.Limit))
			*random = chance
		}
		return chance
	}
	for _, p := range ports {
		b := &balance{kind: byChance, sourceNAT: p.GetSource() == swarmpb.PublishSource_PUBLISH_SOURCE_NAT}
		if p.GetAffinity() == swarmpb.Affinity_AFFINITY_CLIENT_IP {
			b.kind = byClient
		}
		if len(all.Rest)+len(all.Trial) > 0 {
			ids := assigned(b.kind)
			b.backends = make([]netip.AddrPort, len(ids))
			for i, id := range ids {
				a, _ := uplinkAddress(v.endpoints[id])
				b.backends[i] = netip.AddrPortFrom(a, uint16(p.GetTargetPort()))
			}
		}
		if key := (portKey{protocolNumber(p.GetProtocol()), uint16(p.GetPublishedPort())}); key.port != 0 {
			out[key] = b
		}
	}
}

// recall gives a service without slots those that a former process gave it, as far as its endpoints still have the
// addresses, so that they move as little as after any change.
func (v *service) recall(b *balance) {
	if v.random != nil || b == nil || b.kind != byChance || len(b.backends) == 0 {
		return
	}
	byAddress := map[netip.Addr]string{}
	for task, e := range v.endpoints {
		if a, ok := uplinkAddress(e); ok {
			byAddress[a] = task
		}
	}
	v.random = make([]string, len(b.backends))
	for i, a := range b.backends {
		v.random[i] = byAddress[a.Addr()]
	}
}
