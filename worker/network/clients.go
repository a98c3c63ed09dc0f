package network

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/swarmd/swarmd/worker/ingress"
	"github.com/swarmd/swarmd/worker/network/dns"
)

// vip is the address of a service in a network, and where it leads.
type vip struct {
	pair
	sides
}

// client is a task of this node that asks for names, and calls VIPs of its networks.
type client struct {
	namespace string
	networks  []string
	vips      *ingress.VIPs
	stale     bool // its table may not hold what it should
}

// names are what the tasks of this node reach by name and by VIP: one directory of names for the resolver, and a table of
// VIPs in each task's namespace. Both follow from one view, service by service. Not safe for concurrent use.
type names struct {
	log       *slog.Logger
	resolver  *dns.Resolver
	directory directory
	vips      map[string]map[string]vip // network -> service
	clients   map[string]*client        // by task
	removed   []string                  // networks that the resolver has to forget
}

func newNames(log *slog.Logger) *names {
	return &names{
		log: log, resolver: dns.New(dns.Config{Upstream: dns.HostUpstream(hostResolvConf), Logger: log}),
		directory: directory{}, vips: map[string]map[string]vip{}, clients: map[string]*client{},
	}
}

// inNetwork names a service in a network.
type inNetwork struct{ network, service string }

// follow brings names and VIPs to what the view says of the services. When it returns, neither answers what is gone.
func (n *names) follow(v view, changed map[inNetwork]bool) error {
	updates := map[string]*ingress.VIPUpdate{} // by network
	for c := range changed {
		n.directory.set(c.network, c.service, v.names(c.network, c.service))
		n.vipUpdate(v, c, updates)
	}
	n.tell()
	var errs []error
	alike := map[string][]*client{} // by the one network that has changed for them
	for task, c := range n.clients {
		if id, one := c.concerned(updates); one {
			alike[id] = append(alike[id], c)
		} else {
			errs = append(errs, n.push(task, c, updates))
		}
	}
	for id, clients := range alike {
		errs = append(errs, n.pushAlike(id, clients, *updates[id]))
	}
	return errors.Join(errs...)
}

// concerned is the network whose update is all that a client needs; false: there is none or more than one, or it needs all.
func (c *client) concerned(updates map[string]*ingress.VIPUpdate) (network string, one bool) {
	if c.vips == nil || c.stale {
		return "", false
	}
	for _, id := range c.networks {
		if updates[id] == nil {
			continue
		}
		if network != "" {
			return "", false
		}
		network = id
	}
	return network, network != ""
}

// pushAlike gives many clients the same update, which is worked out once.
func (n *names) pushAlike(network string, clients []*client, u ingress.VIPUpdate) error {
	tables := make([]*ingress.VIPs, len(clients))
	for i, c := range clients {
		tables[i] = c.vips
	}
	err := ingress.ApplyVIPs(tables, u)
	for _, c := range clients {
		c.stale = err != nil
	}
	if err != nil {
		return fmt.Errorf("VIPs of network %s: %w", network, err)
	}
	return nil
}

// vipUpdate adds to the network's update what has changed of a service's VIP.
func (n *names) vipUpdate(v view, c inNetwork, updates map[string]*ingress.VIPUpdate) {
	was, had := n.vips[c.network][c.service]
	address, has := v.vipOf(c.network, c.service)
	now := vip{pair: address}
	if has {
		now.sides = v.sides(c.network, c.service)
	}
	if had == has && was.pair == now.pair && was.sides.equal(now.sides) {
		return
	}
	u := updates[c.network]
	if u == nil {
		u = &ingress.VIPUpdate{}
		updates[c.network] = u
	}
	if had && (!has || was.pair != now.pair) {
		u.Removed = append(u.Removed, was.all()...)
	}
	if !has {
		delete(n.vips[c.network], c.service)
		if len(n.vips[c.network]) == 0 {
			delete(n.vips, c.network)
		}
		return
	}
	if n.vips[c.network] == nil {
		n.vips[c.network] = map[string]vip{}
	}
	n.vips[c.network][c.service] = now
	u.VIPs = append(u.VIPs, now.vips(now.pair)...)
}

// push gives a client what concerns it of the networks' updates; all, if it may not hold what it should.
func (n *names) push(task string, c *client, updates map[string]*ingress.VIPUpdate) error {
	if c.vips == nil {
		return nil
	}
	var u ingress.VIPUpdate
	if c.stale {
		u = n.everything(c)
	} else {
		for _, id := range c.networks {
			if of := updates[id]; of != nil {
				u.VIPs, u.Removed = append(u.VIPs, of.VIPs...), append(u.Removed, of.Removed...)
			}
		}
		if len(u.VIPs)+len(u.Removed) == 0 {
			return nil
		}
	}
	if err := c.vips.Apply(u); err != nil {
		c.stale = true
		return fmt.Errorf("VIPs of task %s: %w", task, err)
	}
	c.stale = false
	return nil
}

func (n *names) everything(c *client) ingress.VIPUpdate {
	u := ingress.VIPUpdate{Full: true}
	for _, id := range c.networks {
		for _, v := range n.vips[id] {
			u.VIPs = append(u.VIPs, v.vips(v.pair)...)
		}
	}
	return u
}

// tell gives the resolver the names that have changed since it was told.
func (n *names) tell() {
	u := dns.Update{Networks: map[string]dns.NetworkNames{}, RemovedNetworks: n.removed}
	for id, of := range n.directory {
		if len(of.unsaid) == 0 && !of.renewed {
			continue
		}
		said := dns.NetworkNames{Full: of.renewed, Set: map[string][]netip.Addr{}, Name: of.name, Subnets: of.subnets}
		for name := range of.unsaid {
			of.say(name, &said)
		}
		u.Networks[id] = said
		clear(of.unsaid)
		of.renewed = false
	}
	if len(u.Networks)+len(u.RemovedNetworks) > 0 {
		n.resolver.Apply(u)
	}
	n.removed = nil
}

// describe tells of a network that this node has from now on.
func (n *names) describe(id string, place overlayPlace) {
	of := n.directory.network(id)
	of.name, of.subnets, of.renewed = place.name, []netip.Prefix{place.subnet}, true
	if place.subnet6.IsValid() {
		of.subnets = append(of.subnets, place.subnet6)
	}
	for name := range of.givers {
		of.unsaid[name] = true
	}
}

// own tells of prefixes whose addresses nobody outside can name; those that are not valid are left out.
func (n *names) own(prefixes []netip.Prefix) {
	n.resolver.Apply(dns.Update{Own: slices.DeleteFunc(prefixes, func(p netip.Prefix) bool { return !p.IsValid() })})
}

// forgetNetwork drops what is known of a network that no task of this node is in any more.
func (n *names) forgetNetwork(id string) {
	delete(n.vips, id)
	if n.directory[id] != nil {
		delete(n.directory, id)
		n.removed = append(n.removed, id)
	}
}

// openGuest is open for a namespace that is not ours, named as the kernel does, with the networks of all that is attached there.
func (n *names) openGuest(name, namespace string, networks []string) error {
	if c := n.clients[name]; c != nil && (c.namespace != namespace || !slices.Equal(c.networks, networks)) {
		n.closeClient(name)
	}
	return n.answerIn(name, namespace, networks, dns.Client{Networks: networks}, true)
}

// open has the resolver answer in the task's namespace and loads the table of VIPs. It is idempotent.
func (n *names) open(task, namespace string, networks []string, ask dns.Client) error {
	return n.answerIn(task, namespace, networks, ask, false)
}

func (n *names) answerIn(task, namespace string, networks []string, ask dns.Client, guest bool) error {
	if c := n.clients[task]; c != nil {
		if c.stale {
			return n.push(task, c, nil)
		}
		return nil
	}
	udp, tcp, err := n.resolver.Listen(task, namespace, ask)
	if err != nil {
		return fmt.Errorf("answer names: %w", err)
	}
	table, err := ingress.OpenVIPs(namespace, ingress.VIPConfig{Logger: n.log, ResolverUDP: udp, ResolverTCP: tcp, Guest: guest})
	if err != nil {
		n.resolver.Close(task)
		return fmt.Errorf("load VIPs: %w", err)
	}
	c := &client{namespace: namespace, networks: networks, vips: table, stale: true}
	// A socket that asked a former process would go on being led to its port.
	if err := table.Flush(ingress.ResolverAddress, true); err != nil {
		n.log.Warn("a task's program that keeps its socket may get no answers about names", "task", task, "error", err)
	}
	if err := n.push(task, c, nil); err != nil {
		n.resolver.Close(task)
		table.Close()
		return err
	}
	n.clients[task] = c
	return nil
}

// closeClient tolerates a task that is none.
func (n *names) closeClient(task string) {
	if c := n.clients[task]; c != nil {
		n.resolver.Close(task)
		c.vips.Close()
		delete(n.clients, task)
	}
}

// flush ends the flows of this node's tasks to an address of a network: all, or those of UDP.
func (n *names) flush(networkID string, a pair, udpAlone bool) error {
	var errs []error
	for task, c := range n.clients {
		if !slices.Contains(c.networks, networkID) {
			continue
		}
		for _, address := range a.all() {
			if err := c.vips.Flush(address, udpAlone); err != nil {
				errs = append(errs, fmt.Errorf("end connections of task %s: %w", task, err))
			}
		}
	}
	return errors.Join(errs...)
}

// flushUDP ends the UDP flows of this node's tasks to addresses of a network.
func (n *names) flushUDP(networkID string, to []pair) error {
	var addrs []netip.Addr
	for _, p := range to {
		addrs = append(addrs, p.all()...)
	}
	var errs []error
	for task, c := range n.clients {
		if !slices.Contains(c.networks, networkID) {
			continue
		}
		if err := c.vips.FlushUDP(addrs); err != nil {
			errs = append(errs, fmt.Errorf("end connections of task %s: %w", task, err))
		}
	}
	return errors.Join(errs...)
}

// check compares the tables of VIPs with what they should hold, and repairs.
func (n *names) check() error {
	var errs []error
	for task, c := range n.clients {
		if err := c.vips.Check(); err != nil {
			c.stale = true
			errs = append(errs, fmt.Errorf("VIPs of task %s: %w", task, err))
		}
		errs = append(errs, n.push(task, c, nil))
	}
	return errors.Join(errs...)
}

func (n *names) close() {
	for task := range n.clients {
		n.closeClient(task)
	}
}

// forgetAll is close, and nothing is known any more.
func (n *names) forgetAll() {
	n.close()
	for id := range n.directory {
		n.forgetNetwork(id)
	}
	clear(n.vips)
	n.tell()
}
