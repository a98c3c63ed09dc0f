package network

import (
	"context"
	"errors"
	"maps"
	"net/netip"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress"
)

// Apply takes what the node is told of peers, networks, services and endpoints; other changes are ignored. It returns
// once resolvers and kernel hold it, in that nothing that is gone is answered any more. Before Configure it only
// remembers. An error says what is not in the kernel; Check tries again, and so does the next Apply, whatever it is called
// with: nil means that all is there.
func (n *Network) Apply(_ context.Context, full bool, changes []*swarmpb.AssignmentChange) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.told.merge(full, changes)
	if n.unheld {
		d.widen(n.told.everything()) // what the kernel did not take before
	}
	maps.DeleteFunc(n.gone, func(task string, _ bool) bool { return n.told.endpoints[task] == nil && n.attached[task] == nil })
	update := n.ingressUpdate(full, d)
	err := n.bring(d)
	if full || len(update.Services)+len(update.RemovedServices)+len(update.Endpoints)+len(update.RemovedEndpoints) > 0 {
		err = errors.Join(err, n.ingress.Apply(update))
	}
	n.unheld = err != nil
	return err
}

// ingressUpdate is what worker/ingress is told of a delta.
func (n *Network) ingressUpdate(full bool, d *delta) ingress.Update {
	u := ingress.Update{Full: full}
	if full {
		d = n.told.everything()
	}
	for id := range d.services {
		if s := n.told.services[id]; s != nil {
			u.Services = append(u.Services, s)
		} else {
			u.RemovedServices = append(u.RemovedServices, id)
		}
	}
	for id := range d.endpoints {
		if e := n.told.endpoints[id]; e != nil {
			u.Endpoints = append(u.Endpoints, e)
		} else {
			u.RemovedEndpoints = append(u.RemovedEndpoints, id)
		}
	}
	return u
}

// bring brings kernel and resolver from what was told before to what is told now, as far as the delta says. First comes
// what makes endpoints reachable, then names and VIPs, last what makes endpoints unreachable. n.mu is held.
func (n *Network) bring(d *delta) error {
	if !n.configured {
		return nil
	}
	var errs []error
	errs = append(errs, n.bringFabric(d))
	for task := range d.endpoints {
		if e := n.told.endpoints[task]; e != nil && n.isDead(e.GetNodeId()) {
			n.dead[e.GetNodeId()] = true
		}
	}
	errs = append(errs, n.bringOverlays(d)...)
	for task := range d.endpoints {
		if n.told.endpoints[task] != nil {
			errs = append(errs, n.bringEndpoint(task, d.endpoints[task]))
		}
	}
	errs = append(errs, n.names.follow(n.view(), n.affected(d)))
	errs = append(errs, n.endLostUDP(d))
	for task, was := range d.endpoints {
		if n.told.endpoints[task] == nil {
			errs = append(errs, n.endFlows(was), n.bringEndpoint(task, was))
		}
	}
	return errors.Join(errs...)
}

func (n *Network) view() view { return view{told: n.told, gone: n.gone, dead: n.dead} }

// affected are the services whose names and VIPs may have changed, in the networks that this node has tasks in.
func (n *Network) affected(d *delta) map[inNetwork]bool {
	out := map[inNetwork]bool{}
	add := func(service string) {
		for id := range n.overlays {
			out[inNetwork{id, service}] = true
		}
	}
	for id := range d.services {
		add(id)
	}
	for task, was := range d.endpoints {
		for _, e := range []*swarmpb.Endpoint{was, n.told.endpoints[task]} {
			for _, a := range e.GetNetworks() {
				if n.overlays[a.GetNetworkId()] != nil {
					out[inNetwork{a.GetNetworkId(), e.GetServiceId()}] = true
				}
			}
		}
	}
	return out
}

// endFlows ends what this node's tasks have open with an endpoint that is gone.
func (n *Network) endFlows(was *swarmpb.Endpoint) error {
	if was == nil || n.gone[was.GetTaskId()] {
		return nil
	}
	var errs []error
	for _, a := range was.GetNetworks() {
		if p, ok := pairOf(a); ok {
			errs = append(errs, n.flush(flow{a.GetNetworkId(), p, false}))
		}
	}
	return errors.Join(errs...)
}

// flow is what has to end of this node's tasks: all with an address of a network, or their UDP alone.
type flow struct {
	network string
	pair
	udpAlone bool
}

// maxUnended bounds what is remembered to be ended later; what is beyond it times out.
const maxUnended = 1024

// flush ends flows; what fails is done again by Check.
func (n *Network) flush(f flow) error {
	err := n.names.flush(f.network, f.pair, f.udpAlone)
	if err != nil && len(n.unended) < maxUnended {
		n.unended = append(n.unended, f)
	}
	return err
}

// flushAgain ends what could not be ended before.
func (n *Network) flushAgain() error {
	again := n.unended
	n.unended = nil
	var errs []error
	for _, f := range again {
		errs = append(errs, n.flush(f))
	}
	return errors.Join(errs...)
}

// bringFabric makes the fabric when the node's own address is known, or another, and joins the peers that have changed.
func (n *Network) bringFabric(d *delta) error {
	own := n.ownAddress()
	if !own.IsValid() || n.fabric != nil && len(d.peers) == 0 {
		return nil
	}
	mtu, err := n.measureMTU()
	if err != nil {
		return err
	}
	var errs []error
	changed, apart := d.peers, n.apart()
	place := fabricPlace{number: n.place.number, address: own, block: n.place.block, prefix6: n.place.prefix6, port: n.place.port, mask: n.cfg.MarkMask, mtu: mtu}
	if n.fabric == nil || n.fabric.place != place {
		if err := n.makeHost(); err != nil { // the MTU may have changed with the address
			return err
		}
		// Without the fabric networks work still: they have devices of their own.
		if n.fabric, err = openFabric(place); err != nil {
			n.fabric = nil
			errs = append(errs, err)
		}
		changed = n.told.everything().peers
	}
	if len(changed) == 0 {
		return errors.Join(errs...)
	}
	for id := range changed {
		if n.fabric != nil {
			errs = append(errs, n.fabric.set(id, n.told.peers[id]))
		}
	}
	errs = append(errs, n.setNodes(), n.setUpTunnel(), n.tellApart(apart))
	for id := range changed {
		for task, e := range n.told.onNode[id] {
			errs = append(errs, n.bringEndpoint(task, e))
		}
	}
	return errors.Join(errs...)
}

func (n *Network) setNodes() error {
	var nodes []ingress.Node
	for id, p := range n.told.peers {
		if address, err := netip.ParseAddr(p.GetAddress()); err == nil && p.GetNumber() != 0 {
			node := ingress.Node{ID: id, Number: p.GetNumber(), Address: address.Unmap(), MAC: fabricMAC(p.GetNumber(), n.cfg.MarkMask)}
			for _, text := range p.GetOtherAddresses() {
				if other, err := netip.ParseAddr(text); err == nil {
					node.Others = append(node.Others, other)
				}
			}
			nodes = append(nodes, node)
		}
	}
	return n.ingress.SetNodes(nodes)
}

// bringEndpoint brings the overlays to where an endpoint is; was is what was told of it before.
func (n *Network) bringEndpoint(task string, was *swarmpb.Endpoint) error {
	now := n.told.endpoints[task]
	var errs []error
	for _, e := range []*swarmpb.Endpoint{was, now} {
		for _, a := range e.GetNetworks() {
			if o := n.overlays[a.GetNetworkId()]; o != nil {
				errs = append(errs, o.set(task, n.remoteOf(o, now)))
			}
		}
	}
	return errors.Join(errs...)
}

// remoteOf is what an overlay holds of an endpoint; nothing of one on this node, or on one that is not known.
func (n *Network) remoteOf(o *overlay, e *swarmpb.Endpoint) remote {
	p := n.told.peers[e.GetNodeId()]
	address, ok := pairOf(addressIn(e.GetNetworks(), o.place.id))
	if p == nil || !ok || p.GetNumber() == n.place.number {
		return remote{}
	}
	address = o.usable(address)
	if o.place.encrypted {
		peer, ok := n.tunnelPeer(p)
		if !ok {
			return remote{}
		}
		return remote{node: peer.Address, pair: address}
	}
	node, err := netip.ParseAddr(p.GetAddress())
	if err != nil || node.Unmap().Is4() != o.place.local.Is4() {
		return remote{}
	}
	return remote{node: node.Unmap(), pair: address}
}

// Gone takes a task whose process has ended out of this node's maps and names, and ends its connections, without waiting
// for the managers. Attach takes it in again.
func (n *Network) Gone(_ context.Context, taskID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.gone[taskID] {
		return nil
	}
	was := n.told.endpoints[taskID]
	if was == nil && n.attached[taskID] == nil {
		return nil
	}
	err := n.endFlows(was)
	n.gone[taskID] = true
	if n.configured {
		err = errors.Join(n.names.follow(n.view(), n.affectedBy(taskID)), err)
	}
	return errors.Join(err, n.ingress.Gone(taskID))
}

func (n *Network) affectedBy(taskID string) map[inNetwork]bool {
	d := newDelta()
	d.endpoints[taskID] = n.told.endpoints[taskID]
	return n.affected(d)
}

// back takes a task in again that was gone: it is started anew.
func (n *Network) back(taskID string) error {
	if !n.gone[taskID] {
		return nil
	}
	delete(n.gone, taskID)
	e := n.told.endpoints[taskID]
	if e == nil {
		return nil
	}
	again := ingress.Update{RemovedEndpoints: []string{taskID}}
	return errors.Join(n.ingress.Apply(again), n.ingress.Apply(ingress.Update{Endpoints: []*swarmpb.Endpoint{e}}),
		n.names.follow(n.view(), n.affectedBy(taskID)))
}

// Hint has endpoints on nodes that gossip calls dead take no new connections, unless nothing else is left. It is called
// again when gossip's view has changed; until then the function is asked for endpoints that come.
func (n *Network) Hint(dead func(nodeID string) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hint = dead
	return n.followHints()
}

// followHints has names, VIPs and balancers follow what isDead says now.
func (n *Network) followHints() error {
	d := newDelta()
	now := map[string]bool{}
	for node, endpoints := range n.told.onNode {
		if n.isDead(node) {
			now[node] = true
		}
		if now[node] != n.dead[node] {
			maps.Copy(d.endpoints, endpoints)
		}
	}
	n.dead = now
	var err error
	if n.configured {
		err = n.names.follow(n.view(), n.affected(d))
	}
	return errors.Join(err, n.ingress.Hint(n.isDead))
}
