package allocator

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// Endpoints is the reconciler of what services are given: a VIP in each of their networks and the published ports of the
// ingress. They are one unit of work, since services want the same ports; a service that is gone is another, which lets
// go of what it had.
//
// VIPs come from the end of a network's range and the tasks' addresses from its beginning, so that the two never choose
// the same one at the same time.
type Endpoints struct{}

var _ reconcile.Reconciler = Endpoints{}

const endpointsID = "endpoints"

// Name stands in logs.
func (Endpoints) Name() string { return "endpoint-allocator" }

// Affects: services that are reached, and what those wait for that lack something.
func (Endpoints) Affects(view *store.View, c store.Change) []reconcile.ID {
	all := []reconcile.ID{{Object: endpointsID}}
	switch c.Table {
	case swarmpb.Table_TABLE_SERVICE:
		now, _ := c.New.(*swarmpb.Service)
		if now == nil {
			return []reconcile.ID{{Object: c.Key.ID}}
		}
		if now.GetSpec().Reached() || view.ServiceEndpoint(c.Key.ID) != nil {
			return all
		}
	case swarmpb.Table_TABLE_NETWORK_PROGRESS:
		if c.New != nil {
			return all
		}
	case swarmpb.Table_TABLE_ALLOCATION:
		// Only a VIP that could not be given waits for an address, and that raises an alarm.
		if pool := c.Key.ID; released(c) && (isPortPool(pool) || (isNetworkPool(pool) && view.Alarm(PoolFullAlarm, pool) != nil)) {
			return all
		}
	case swarmpb.Table_TABLE_ALARM:
		if c.Key.ID == PoolFullAlarm && isNetworkPool(c.Key.Name) && c.New != nil {
			return all
		}
	}
	return nil
}

// All are the services, and those that are gone and hold something.
func (Endpoints) All(view *store.View) []reconcile.ID {
	ids := []reconcile.ID{{Object: endpointsID}}
	for _, pool := range portPools() {
		for row := range view.Allocations(pool) {
			if owner := row.GetOwner(); owner != "" && view.Service(owner) == nil {
				ids = append(ids, reconcile.ID{Object: owner})
			}
		}
	}
	return ids
}

// Reconcile plans for all services, or for one that is gone.
func (Endpoints) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	b := &batch{view: view, now: now}
	if id.Object != endpointsID {
		if view.Service(id.Object) == nil {
			b.releaseAll(id.Object, func(pool string) bool { return isPortPool(pool) || isNetworkPool(pool) })
		}
		return b.done(), nil
	}
	p := &endpointPass{batch: b, ports: map[string]*numbers{}, vips: map[string]*numbers{}, taken: map[string]string{}, wanted: map[string]int{}}
	for _, pool := range portPools() {
		p.ports[pool] = b.numbers(pool, FirstPort, LastPort, false)
	}
	for service := range view.Services() {
		if p.plan.More {
			break
		}
		old := view.ServiceEndpoint(service.GetId())
		current := old.GetServiceVersion() == service.GetMeta().GetVersion() && old.GetMessage() == ""
		if (old != nil && current) || (old == nil && !service.GetSpec().Reached()) || service.GetRemoving() {
			continue
		}
		p.service(service, old)
	}
	for _, pool := range portPools() {
		if n := p.wanted[pool]; n > 0 {
			p.raise(pool, fmt.Sprintf("no published port of %d to %d is free for %s: %d more are wanted; choose other ports, or remove services that publish some",
				FirstPort, LastPort, strings.TrimPrefix(pool, portPrefix), n))
		} else if !p.plan.More {
			p.end(pool)
		}
		p.ports[pool].forget()
	}
	return p.done(), nil
}

// endpointPass is one Reconcile.
type endpointPass struct {
	*batch
	// ports and vips are what the pools have: of ports from 30000 on, of VIPs from the end of the network's range.
	ports, vips map[string]*numbers
	// taken is pool and port -> the service that this plan gives it to.
	taken map[string]string
	// wanted is how many ports of a pool were wanted and not given.
	wanted map[string]int
}

// demand is one service in the pass: what it gets, and the writes for that.
type demand struct {
	service *swarmpb.Service
	old     *swarmpb.ServiceEndpoint
	next    *swarmpb.ServiceEndpoint
	// held is what the service has and nothing asked for yet, by pool and address; what is left over is released.
	held     []*swarmpb.Allocation
	takes    []step
	problems []string
}

// step is a write with what it rests on.
type step struct {
	write  *swarmpb.Write
	guards []*swarmpb.Guard
}

func (d *demand) problem(format string, args ...any) {
	d.problems = append(d.problems, fmt.Sprintf(format, args...))
}

// take gives an address to the service.
func (d *demand) take(pool, address string, version uint64, more ...*swarmpb.Guard) {
	d.takes = append(d.takes, step{
		allocation(pool, address, d.service.GetId()), append(more, guard(swarmpb.AllocationKey(pool, address), version)),
	})
}

// keep tells whether the service has the address already, and keeps it then.
func (d *demand) keep(pool, address string) bool {
	before := len(d.held)
	d.held = slices.DeleteFunc(d.held, func(row *swarmpb.Allocation) bool { return row.GetPool() == pool && row.GetAddress() == address })
	return len(d.held) < before
}

// spare is something of a pool that the service has without need, and keeps for another: what a plan before this one
// took, or what it no longer uses.
func (d *demand) spare(pool string, first, last uint64) (uint64, bool) {
	for _, row := range d.held {
		if n, ok := store.AddressNumber(row.GetAddress()); ok && row.GetPool() == pool && n >= first && n <= last {
			return n, d.keep(pool, row.GetAddress())
		}
	}
	return 0, false
}

func (p *endpointPass) service(service *swarmpb.Service, old *swarmpb.ServiceEndpoint) {
	d := &demand{
		service: service, old: old,
		next: &swarmpb.ServiceEndpoint{ServiceId: service.GetId(), ServiceVersion: service.GetMeta().GetVersion()},
	}
	for row := range p.view.AllocationsOf(service.GetId()) {
		if isPortPool(row.GetPool()) || isNetworkPool(row.GetPool()) {
			d.held = append(d.held, row)
		}
	}
	if hasVIPs(service) {
		for _, network := range service.GetSpec().GetTask().GetNetworks() {
			if p.view.Network(network.GetNetwork()) != nil && p.view.NetworkProgress(network.GetNetwork()) == nil {
				return // it is about to get one
			}
			p.vip(d, network.GetNetwork())
		}
	}
	p.publish(d)
	d.next.Message = strings.Join(d.problems, "; ")
	p.write(d)
}

func hasVIPs(service *swarmpb.Service) bool {
	return service.GetSpec().GetEndpoint().GetMode() != swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR
}

// vip gives the service its address in a network.
func (p *endpointPass) vip(d *demand, networkID string) {
	network, progress := p.view.Network(networkID), p.view.NetworkProgress(networkID)
	name := network.GetSpec().GetName()
	if network == nil || network.GetRemoving() {
		d.problem("network %s: it is gone", networkID)
		return
	}
	if progress.GetSubnet() == "" {
		d.problem("network %s has no addresses: %s", name, progress.GetMessage())
		return
	}
	space, err := spaceOf(progress)
	if err != nil {
		d.problem("network %s: %v", name, err)
		return
	}
	if had := find(d.old.GetVips(), networkID); had != nil && d.keep(space.pool, had.GetAddress()) {
		d.next.Vips = append(d.next.Vips, swarmpb.Clone(had))
		return
	}
	if n, ok := d.spare(space.pool, space.first, space.last); ok {
		d.next.Vips = append(d.next.Vips, space.address(networkID, n))
		return
	}
	pool := p.vips[networkID]
	if pool == nil {
		pool = p.numbers(space.pool, space.first, space.last, true)
		p.vips[networkID] = pool
	}
	n, version, ok := pool.next(nil)
	if !ok {
		d.problem("network %s (%s) is full: no address is left for the service's own; scale something down there, or attach the service to a network "+
			"with a larger subnet", name, space.subnet)
		return
	}
	vip := space.address(networkID, n)
	d.next.Vips = append(d.next.Vips, vip)
	d.take(space.pool, vip.GetAddress(), version, guard(swarmpb.NetworkKey(networkID), network.GetMeta().GetVersion()))
}

// publish gives the service its ports, those first that the user named, and then those that it had before a spare one.
func (p *endpointPass) publish(d *demand) {
	ports, previews := p.named(d, d.service.GetSpec().GetEndpoint().GetPorts()), p.named(d, d.service.GetSpec().GetUpdate().GetPreviewPorts())
	p.keepChosen(d, ports, d.old.GetPorts())
	p.keepChosen(d, previews, d.old.GetPreviewPorts())
	d.next.Ports, d.next.PreviewPorts = p.chosen(d, ports), p.chosen(d, previews)
}

// named are copies of the ingress ports of a list, with those given that the user named; what cannot be given is left out.
func (p *endpointPass) named(d *demand, list []*swarmpb.PortConfig) []*swarmpb.PortConfig {
	ports := ingressPorts(list)
	ports = slices.DeleteFunc(ports, func(port *swarmpb.PortConfig) bool { return !p.known(d, port) })
	return slices.DeleteFunc(ports, func(port *swarmpb.PortConfig) bool { return port.GetPublishedPort() != 0 && !p.given(d, port) })
}

// chosen fills in the ports of a list that are still open; where there is none it is left out.
func (p *endpointPass) chosen(d *demand, ports []*swarmpb.PortConfig) []*swarmpb.PortConfig {
	return slices.DeleteFunc(ports, func(port *swarmpb.PortConfig) bool { return port.GetPublishedPort() == 0 && !p.choose(d, port) })
}

// known refuses a protocol of a later version.
func (p *endpointPass) known(d *demand, port *swarmpb.PortConfig) bool {
	if p.ports[PortPool(port.GetProtocol())] != nil {
		return true
	}
	d.problem("publish %d: this version does not know the protocol; upgrade the managers", port.GetPublishedPort())
	return false
}

// ingressPorts are copies of those ports that the ingress serves.
func ingressPorts(list []*swarmpb.PortConfig) (ports []*swarmpb.PortConfig) {
	for _, port := range list {
		if port.GetMode() != swarmpb.PublishMode_PUBLISH_MODE_HOST {
			ports = append(ports, swarmpb.Clone(port))
		}
	}
	return ports
}

func portText(port uint32, protocol swarmpb.Protocol) string {
	if protocol <= swarmpb.Protocol_PROTOCOL_TCP {
		return fmt.Sprint(port)
	}
	return fmt.Sprintf("%d/%s", port, protocol.Name())
}

// given takes the port that the user named, unless another service has it.
func (p *endpointPass) given(d *demand, port *swarmpb.PortConfig) bool {
	pool, address := PortPool(port.GetProtocol()), fmt.Sprint(port.GetPublishedPort())
	if d.keep(pool, address) {
		return true
	}
	row := p.view.Allocation(pool, address)
	owner := row.GetOwner()
	if owner == "" {
		owner = p.taken[pool+" "+address]
	}
	if owner != "" {
		p.refuse(d, port, owner)
		return false
	}
	// A user's own choice does not wait for the end of a rest.
	p.taken[pool+" "+address] = d.service.GetId()
	p.ports[pool].taken[address] = true
	d.take(pool, address, row.GetVersion())
	return true
}

func (p *endpointPass) refuse(d *demand, port *swarmpb.PortConfig, owner string) {
	text := portText(port.GetPublishedPort(), port.GetProtocol())
	other := p.view.Service(owner)
	switch {
	case owner == d.service.GetId():
		d.problem("publish %s: the service publishes it twice; remove one of the two", text)
	case other == nil:
		d.problem("publish %s: a service that was removed has just had the port; it is given in a moment", text)
	case other.GetRemoving():
		d.problem("publish %s: service %q, which is being removed, still has the port; it is given as soon as that is done", text, other.GetSpec().GetName())
	default:
		d.problem("publish %s: the port is already published by service %q; choose another port or remove it there", text, other.GetSpec().GetName())
	}
}

// keepChosen gives the ports that the user left open the numbers that were chosen for the same targets before.
func (p *endpointPass) keepChosen(d *demand, ports, had []*swarmpb.PortConfig) {
	had = slices.Clone(had)
	for _, port := range ports {
		if port.GetPublishedPort() != 0 {
			continue
		}
		pool := PortPool(port.GetProtocol())
		for i, before := range had {
			number := before.GetPublishedPort()
			if before.GetTargetPort() == port.GetTargetPort() && PortPool(before.GetProtocol()) == pool &&
				number >= FirstPort && number <= LastPort && d.keep(pool, fmt.Sprint(number)) {
				had = slices.Delete(had, i, i+1)
				port.PublishedPort = number
				break
			}
		}
	}
}

// choose gives a port that the user left open, and that the service has not had before: one that it has to spare, or the
// lowest that is free.
func (p *endpointPass) choose(d *demand, port *swarmpb.PortConfig) bool {
	pool := PortPool(port.GetProtocol())
	if n, ok := d.spare(pool, FirstPort, LastPort); ok {
		port.PublishedPort = uint32(n)
		return true
	}
	n, version, ok := p.ports[pool].next(func(address string) bool { return p.taken[pool+" "+address] != "" || p.own(pool, address) })
	if !ok {
		d.problem("publish: no port of %d to %d is free for %s port %d; choose one with published=PORT, or remove services that publish some",
			FirstPort, LastPort, port.GetProtocol().Name(), port.GetTargetPort())
		p.wanted[pool]++
		return false
	}
	port.PublishedPort = uint32(n)
	p.taken[pool+" "+fmt.Sprint(n)] = d.service.GetId()
	d.take(pool, fmt.Sprint(n), version)
	return true
}

// own tells whether a port is the cluster's own: that of the traffic between the hosts, where that is among those to choose from.
func (p *endpointPass) own(pool, address string) bool {
	return pool == PortPool(swarmpb.Protocol_PROTOCOL_UDP) && address == fmt.Sprint(p.view.Cluster().GetSpec().GetDataPathPort())
}

// write adds what the service gets to the plan: all of it at once, unless no plan has room for it.
func (p *endpointPass) write(d *demand) {
	key := swarmpb.ServiceEndpointKey(d.service.GetId())
	guards := []*swarmpb.Guard{
		guard(swarmpb.ServiceKey(d.service.GetId()), d.service.GetMeta().GetVersion()),
		guard(key, d.old.GetMeta().GetVersion()),
	}
	steps := d.takes
	for _, row := range d.held {
		w, g := free(row, p.now)
		steps = append(steps, step{w, []*swarmpb.Guard{g}})
	}
	if len(steps) >= reconcile.MaxWrites {
		p.writePart(d, key, steps, guards)
		return
	}
	var writes []*swarmpb.Write
	for _, s := range steps {
		writes, guards = append(writes, s.write), append(guards, s.guards...)
	}
	if w := p.row(d, key); w != nil {
		writes = append(writes, w)
	}
	if len(writes) > 0 {
		p.add(writes, guards...)
	}
}

// writePart fills a plan of its own with what fits: first all that the service gets, then its row, marked to be looked at
// again, with what it lets go of. A service that takes something always has a row, by which it is found should it ask for
// nothing any more.
func (p *endpointPass) writePart(d *demand, key *swarmpb.RowKey, steps []step, guards []*swarmpb.Guard) {
	alone := len(p.plan.Writes) == 0
	p.plan.More = p.plan.More || !alone
	if !alone || !p.add(nil, guards...) {
		return
	}
	if d.next.ServiceVersion = 0; len(d.takes) < reconcile.MaxWrites {
		if w := p.row(d, key); w != nil {
			p.add([]*swarmpb.Write{w})
		}
	} else if d.old == nil {
		p.add([]*swarmpb.Write{putRow(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{ServiceId: d.service.GetId()}}})})
	}
	for _, s := range steps {
		if !p.add([]*swarmpb.Write{s.write}, s.guards...) {
			return
		}
	}
	p.plan.More = true
}

// row is the write that makes the service's row what it is to be; nil when it is that already.
func (p *endpointPass) row(d *demand, key *swarmpb.RowKey) *swarmpb.Write {
	if !d.service.GetSpec().Reached() {
		if d.old == nil {
			return nil
		}
		return remove(key)
	}
	if d.old != nil {
		d.next.Meta = d.old.GetMeta()
		if proto.Equal(d.old, d.next) {
			return nil
		}
	}
	return putRow(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: d.next}})
}
