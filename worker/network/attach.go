package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress"
	"github.com/swarmd/swarmd/worker/network/dns"
)

// Attach makes the task's namespace with eth0 on the uplink, and eth1 and on in its networks. Its ports come with
// Publish. A task that is attached in the same way already keeps its place; what has gone of it is made again. It returns once the links
// take packets, or after a while; ctx ends that wait alone.
func (n *Network) Attach(ctx context.Context, req Request) (Attachment, error) {
	n.mu.Lock()
	at, err := n.attach(req)
	var links []ends
	if err == nil {
		links = n.endsOf(n.attached[req.TaskID])
	}
	n.mu.Unlock()
	awaitCarrier(ctx, links) // changes of others do not wait for this one's links
	return at, err
}

func (n *Network) attach(req Request) (Attachment, error) {
	taskID := req.TaskID
	if err := n.ready(req); err != nil {
		return Attachment{}, fmt.Errorf("attach task %s: %w", taskID, err)
	}
	if req.Guest != nil {
		return n.attachGuest(req)
	}
	if r, ok := n.attached[taskID]; ok && r.fits(req) && n.place.block.Contains(r.Address) && isNamespace(n.namespacePath(taskID)) {
		if err := errors.Join(n.back(taskID), n.repair(r)); err == nil {
			return n.attachment(r)
		}
	}
	if err := n.detach(taskID); err != nil {
		return Attachment{}, err
	}
	addr, err := n.freeAddress()
	if err != nil {
		return Attachment{}, err
	}
	r := &record{TaskID: taskID, Address: addr, Networks: req.Networks, DNS: req.DNS, Internal: n.internal(req.Networks)}
	// The record comes first: what a crash leaves half made is found and removed by it.
	n.attached[taskID] = r
	if err := r.write(n.cfg.records()); err != nil {
		return Attachment{}, errors.Join(err, n.detach(taskID))
	}
	if err := n.plug(r); err != nil {
		return Attachment{}, errors.Join(fmt.Errorf("attach task %s: %w", taskID, err), n.detach(taskID))
	}
	return n.attachment(r)
}

// ready says what is missing for a task to be attached.
func (n *Network) ready(req Request) error {
	if !n.configured {
		return fmt.Errorf("%w: its uplink block", ErrNotConfigured)
	}
	var joined []*swarmpb.AssignedNetwork
	for _, a := range req.Networks {
		net := n.told.networks[a.GetNetworkId()]
		if net.GetProgress().GetVni() == 0 {
			return fmt.Errorf("%w: network %s", ErrNotConfigured, a.GetNetworkId())
		}
		if !n.ownAddress().IsValid() {
			return fmt.Errorf("%w: its own address", ErrNotConfigured)
		}
		if _, ok := pairOf(a); !ok {
			return fmt.Errorf("network %q: the task's address %q is none of IPv4", net.GetSpec().GetName(), a.GetAddress())
		}
		if net.GetSpec().GetEncrypted() && n.tunnel == nil {
			return fmt.Errorf("network %q is encrypted, which this node cannot do: %w", net.GetSpec().GetName(), n.tunnelErr)
		}
		joined = append(joined, net)
	}
	return overlap(joined)
}

// overlap refuses networks of one task whose subnets overlap: an address would stand for two tasks.
func overlap(joined []*swarmpb.AssignedNetwork) error {
	for i, a := range joined {
		for _, b := range joined[:i] {
			for _, of := range []func(*swarmpb.NetworkProgress) string{(*swarmpb.NetworkProgress).GetSubnet, (*swarmpb.NetworkProgress).GetSubnet6} {
				one, err := netip.ParsePrefix(of(a.GetProgress()))
				two, err2 := netip.ParsePrefix(of(b.GetProgress()))
				if err == nil && err2 == nil && one.Overlaps(two) {
					return fmt.Errorf("networks %q (%s) and %q (%s) overlap, so a task cannot be in both; choose another --subnet for one of them",
						b.GetSpec().GetName(), two, a.GetSpec().GetName(), one)
				}
			}
		}
	}
	return nil
}

// internal tells whether a task of these networks has no way out: it is in networks, and all of them are internal.
func (n *Network) internal(networks []*swarmpb.NetworkAddress) bool {
	return len(networks) > 0 && !slices.ContainsFunc(networks, func(a *swarmpb.NetworkAddress) bool {
		return !n.told.networks[a.GetNetworkId()].GetSpec().GetInternal()
	})
}

// plug makes all of a task's network.
func (n *Network) plug(r *record) error {
	if err := makeNamespace(n.namespacePath(r.TaskID), quietContainer); err != nil {
		return err
	}
	return n.repair(r)
}

// repair makes what is missing of a task's network; its namespace is there.
func (n *Network) repair(r *record) error {
	path := n.namespacePath(r.TaskID)
	if !plugged(linkName(r.TaskID)) {
		mtu, err := n.mtu()
		if err != nil {
			return err
		}
		place := uplinkPlace{namespace: path, link: linkName(r.TaskID), address: n.place.pair(r.Address), gateway: n.place.gateway(), mtu: mtu, closed: r.Internal}
		if err := plugIn(place); err != nil {
			return err
		}
	}
	if err := n.ingress.SetPods(n.pods()); err != nil {
		return fmt.Errorf("let the task use the uplink: %w", err)
	}
	for i, a := range r.Networks {
		o, err := n.ensureOverlay(a.GetNetworkId())
		if err != nil {
			return err
		}
		address, ok := pairOf(a)
		if !ok {
			return fmt.Errorf("network %q: the task's address %q is none of IPv4", o.place.name, a.GetAddress())
		}
		if o.plugged(r.TaskID) {
			continue
		}
		if err := o.plug(r.TaskID, path, fmt.Sprintf("eth%d", i+1), o.usable(address)); err != nil {
			return fmt.Errorf("network %q: %w", o.place.name, err)
		}
	}
	return n.openClient(r)
}

// openClient has names and VIPs answered in the task's namespace, if it asks here.
func (n *Network) openClient(r *record) error {
	host := readResolvers(hostResolvConf)
	if !host.answeredHere(r) {
		return nil
	}
	var networks []string
	for _, a := range r.Networks {
		networks = append(networks, a.GetNetworkId())
	}
	return n.names.open(r.TaskID, n.namespacePath(r.TaskID), networks, dns.Client{
		Networks: networks, Nameservers: serversOf(r.DNS.GetNameservers()), Isolated: r.Internal,
	})
}

// Publish binds host-mode ports and sends them to the task, and returns them as bound: a published port of 0 is
// chosen from the host's ephemeral range. A port that something else has is ErrPortTaken, and none is published.
func (n *Network) Publish(_ context.Context, taskID string, ports []*swarmpb.PortConfig) ([]*swarmpb.PortConfig, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.attached[taskID]
	if r == nil || !n.configured {
		return nil, fmt.Errorf("publish ports of task %s: %w", taskID, ErrNotConfigured)
	}
	if len(r.Ports) == len(ports) {
		return r.Ports, nil
	}
	if r.Internal {
		return nil, fmt.Errorf("publish ports of task %s: all its networks are internal, from which no port can be published; add a network that is not", taskID)
	}
	var wanted []ingress.Forward
	bound := make([]*swarmpb.PortConfig, len(ports))
	for i, p := range ports {
		bound[i] = proto.CloneOf(p)
		if p.GetProtocol() == swarmpb.Protocol_PROTOCOL_UNSPECIFIED {
			bound[i].Protocol = swarmpb.Protocol_PROTOCOL_TCP
		}
		wanted = append(wanted, forwardOf(r.Address, bound[i]))
	}
	got, err := n.ingress.AddForwards(wanted)
	if err != nil {
		return nil, err
	}
	for i := range bound {
		bound[i].PublishedPort = uint32(got[i].Port)
	}
	r.Ports = bound
	if err := r.write(n.cfg.records()); err != nil {
		r.Ports = nil
		return nil, errors.Join(fmt.Errorf("publish ports of task %s: %w", taskID, err), n.ingress.RemoveForwards(got))
	}
	return bound, nil
}

// Detach takes the task's ports, links and namespace away. A task that is not attached is no error.
func (n *Network) Detach(_ context.Context, taskID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.detach(taskID)
}

func (n *Network) detach(taskID string) error {
	var errs []error
	r := n.attached[taskID]
	if r != nil {
		errs = append(errs, n.ingress.RemoveForwards(r.forwards()))
	}
	n.names.closeClient(taskID)
	errs = append(errs, n.leaveGuest(taskID), removeLink(linkName(taskID)))
	for _, o := range n.overlays {
		errs = append(errs, o.unplug(taskID))
	}
	errs = append(errs, removeNamespace(n.namespacePath(taskID)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach task %s: %w", taskID, err)
	}
	delete(n.attached, taskID)
	if r != nil {
		errs = append(errs, n.closeIdleOverlays())
		if n.configured {
			errs = append(errs, n.ingress.SetPods(n.pods()))
		}
	}
	return errors.Join(append(errs, removeRecord(n.cfg.records(), taskID))...)
}

// Sweep detaches every task that is not in keep, also one of which only a trace in the kernel is left.
func (n *Network) Sweep(_ context.Context, keep []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := map[string]bool{}
	names := map[string]bool{}
	for _, id := range keep {
		wanted[id] = true
		names[linkName(id)] = true
	}
	var errs []error
	for _, id := range n.known() {
		if !wanted[id] {
			errs = append(errs, n.detach(id))
		}
	}
	errs = append(errs, removeStrayLinks(names), removeStrayOverlays(n.cfg.overlays(), n.wantedOverlays()))
	return errors.Join(errs...)
}

// known lists the tasks that have a record or a namespace.
func (n *Network) known() []string {
	var ids []string
	for id := range n.attached {
		ids = append(ids, id)
	}
	for _, dir := range []string{n.cfg.namespaces(), n.cfg.guests()} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if n.attached[e.Name()] == nil {
				ids = append(ids, e.Name())
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (n *Network) attachment(r *record) (Attachment, error) {
	address := n.place.pair(r.Address)
	return Attachment{
		Namespace: n.namespacePath(r.TaskID), Address: r.Address, Gateway: gatewayOf(n.place.block), Address6: address.v6,
		Networks: r.Networks, Ports: r.Ports, ResolvConf: readResolvers(hostResolvConf).confOf(r),
	}, nil
}

func (n *Network) namespacePath(taskID string) string {
	return filepath.Join(n.cfg.namespaces(), taskID)
}

// freeAddress picks the next address after the one given last, past the network's own and the gateway, short of broadcast.
func (n *Network) freeAddress() (netip.Addr, error) {
	block := n.place.block
	used := map[netip.Addr]bool{gatewayOf(block): true}
	for _, r := range n.attached {
		used[r.Address] = true
	}
	first := gatewayOf(block)
	last := lastOf(block)
	a := n.cursor
	if !block.Contains(a) {
		a = first
		for _, r := range n.attached {
			if block.Contains(r.Address) && a.Less(r.Address) {
				a = r.Address
			}
		}
	}
	for range 1 << (32 - block.Bits()) {
		if a = a.Next(); !a.Less(last) {
			a = first
			continue
		}
		if !used[a] {
			n.cursor = a
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all %d addresses of %s are in use on this node; run fewer tasks here or choose a shorter fabric block length at init",
		ErrBlockFull, len(used)-1, block)
}

func gatewayOf(block netip.Prefix) netip.Addr { return block.Masked().Addr().Next() }

// lastOf is the broadcast address.
func lastOf(block netip.Prefix) netip.Addr {
	b := block.Masked().Addr().As4()
	host := uint32(1)<<(32-block.Bits()) - 1
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]) | host
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}
