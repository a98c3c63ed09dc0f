package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// overlayBridge and overlayTunnel are links within an overlay's namespace.
	overlayBridge, overlayTunnel = "br0", "vx0"
	// portPrefix marks an overlay's end of a task's veth pair.
	portPrefix = "p-"
	// tunnelPrefix marks an overlay's VXLAN device while it is still in the host's namespace.
	tunnelPrefix = "swarm-x"
	// firstIndex is the index of the bridge; ports have the next ones. The kernel waits up to a second before it lets a port
	// with its peer's index, as it takes it for one that may flap, so they have others than links in tasks' namespaces.
	firstIndex = 1 << 16
	// vniWait bounds how long a VXLAN device waits for a former one of its number to be gone from the kernel, which
	// takes down namespaces in its own time; vniPause is between two looks.
	vniWait, vniPause = 5 * time.Second, 20 * time.Millisecond
)

// overlayPlace says how an overlay is made on this node.
type overlayPlace struct {
	id, name string
	vni      uint32
	local    netip.Addr // where its packets between nodes come from
	port     uint16
	mtu      int
	subnet   netip.Prefix
	subnet6  netip.Prefix // not valid: none
	// encrypted: the other nodes are reached within the tunnel.
	encrypted bool
}

// remote is what the kernel holds of an endpoint on another node.
type remote struct {
	node netip.Addr // where its packets go
	pair            // its addresses in the overlay
}

// overlay is a network on this node: a namespace with a bridge and a VXLAN device, which no address or route joins to the
// host. The device has an entry of the forwarding database and a neighbour a family for every remote endpoint, and
// answers for them (proxy); what is not known stays here. Learning is off, on the bridge too: a task can take nobody's
// place.
type overlay struct {
	place  overlayPlace
	path   string // of the namespace
	handle *netlink.Handle
	ns     netns.NsHandle
	bridge int
	tunnel int
	last   int               // index of the port made last
	have   map[string]remote // task -> what is in the kernel
	// guarded are the ports that have their rules: see guardPort.
	guarded map[string]bool
}

// openOverlay makes the overlay, or takes over one that is there and right, with its tasks.
func openOverlay(path string, place overlayPlace) (*overlay, error) {
	o := &overlay{place: place, path: path, have: map[string]remote{}, guarded: map[string]bool{}}
	if isNamespace(path) {
		err := o.adopt()
		if err == nil {
			return o, nil
		}
		o.close()
		if err := removeOverlay(path); err != nil {
			return nil, err
		}
	}
	if err := o.make(); err != nil {
		o.close()
		return nil, errors.Join(fmt.Errorf("make network %q: %w", place.name, err), removeOverlay(path), removeLink(o.temporary()))
	}
	return o, nil
}

func (o *overlay) temporary() string { return fmt.Sprintf("%s%06x", tunnelPrefix, o.place.vni) }

// enter opens the namespace and finds the links.
func (o *overlay) enter() error {
	var err error
	if o.ns, err = netns.GetFromPath(o.path); err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	if o.handle, err = netlink.NewHandleAt(o.ns, unix.NETLINK_ROUTE); err != nil {
		o.handle = nil
		return errors.Join(fmt.Errorf("enter namespace: %w", err), o.ns.Close())
	}
	return nil
}

func (o *overlay) close() {
	if o.handle != nil {
		o.handle.Close()
		o.handle = nil
		_ = o.ns.Close()
	}
}

// adopt takes over what a former process made; an error says that it is not as it has to be.
func (o *overlay) adopt() error {
	if err := o.enter(); err != nil {
		return err
	}
	return o.look()
}

// look compares the links with what they have to be, and reads which endpoints the kernel holds.
func (o *overlay) look() error {
	bridge, err := o.handle.LinkByName(overlayBridge)
	if err != nil {
		return fmt.Errorf("find %s: %w", overlayBridge, err)
	}
	link, err := o.handle.LinkByName(overlayTunnel)
	if err != nil {
		return fmt.Errorf("find %s: %w", overlayTunnel, err)
	}
	vx, ok := link.(*netlink.Vxlan)
	right := ok && vx.VxlanId == int(o.place.vni) && vx.Port == int(o.place.port) && vx.SrcAddr.Equal(o.place.local.AsSlice()) &&
		vx.Proxy && !vx.Learning && vx.MasterIndex == bridge.Attrs().Index && vx.MTU == o.place.mtu &&
		vx.Flags&net.FlagUp != 0 && bridge.Attrs().Flags&net.FlagUp != 0
	if !ok || !right {
		return fmt.Errorf("%s is not as this network needs it", overlayTunnel)
	}
	o.bridge, o.tunnel = bridge.Attrs().Index, vx.Index
	if err := o.readGuards(); err != nil {
		return err
	}
	return o.readEntries()
}

// readEntries fills have with entries under the names of their hardware addresses; fill forgets those that remain.
func (o *overlay) readEntries() error {
	o.have = map[string]remote{}
	entries, err := listed(func() ([]netlink.Neigh, error) { return o.handle.NeighList(o.tunnel, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list forwarding entries: %w", err)
	}
	for _, e := range entries {
		node, ok := netip.AddrFromSlice(e.IP)
		if e.Flags&netlink.NTF_SELF == 0 || !ok || node.IsUnspecified() || len(e.HardwareAddr) != 6 {
			continue
		}
		a := netip.AddrFrom4([4]byte(e.HardwareAddr[2:]))
		o.have[strayKey(a)] = remote{node: node.Unmap(), pair: pair{v4: a}}
	}
	neighbours, err := listed(func() ([]netlink.Neigh, error) { return o.handle.NeighList(o.tunnel, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	known := map[netip.Addr]bool{}
	for _, n := range neighbours {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && n.State&netlink.NUD_PERMANENT != 0 {
			known[ip.Unmap()] = true
		}
	}
	six := map[netip.Addr]netip.Addr{}
	if hasIPv6() {
		if neighbours, err = listed(func() ([]netlink.Neigh, error) { return o.handle.NeighList(o.tunnel, unix.AF_INET6) }); err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range neighbours {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
				six[netip.AddrFrom4([4]byte(n.HardwareAddr[2:]))] = ip
			}
		}
	}
	for key, r := range o.have {
		if r.v6 = six[r.v4]; !known[r.v4] {
			r.node = netip.Addr{} // half an entry: it is made anew
		}
		o.have[key] = r
	}
	return nil
}

// usable leaves IPv6 out where the network has none on this host, whatever the managers gave.
func (o *overlay) usable(p pair) pair {
	if !o.place.subnet6.IsValid() {
		p.v6 = netip.Addr{}
	}
	return p
}

func strayKey(a netip.Addr) string { return "?" + a.String() }

func (o *overlay) make() error {
	if err := makeNamespace(o.path, quietOverlay); err != nil {
		return err
	}
	if err := o.enter(); err != nil {
		return err
	}
	if err := o.makeTunnel(); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index, attrs.MTU, attrs.HardwareAddr = overlayBridge, firstIndex, o.place.mtu, net.HardwareAddr{2, 0x5d, 0, 0, 0, 0}
	off := false
	if err := o.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
		return fmt.Errorf("make %s: %w", overlayBridge, err)
	}
	bridge, err := o.handle.LinkByName(overlayBridge)
	if err != nil {
		return fmt.Errorf("find %s: %w", overlayBridge, err)
	}
	tunnel, err := o.handle.LinkByName(overlayTunnel)
	if err != nil {
		return fmt.Errorf("find %s: %w", overlayTunnel, err)
	}
	o.bridge, o.tunnel = bridge.Attrs().Index, tunnel.Attrs().Index
	if err := o.handle.LinkSetMasterByIndex(tunnel, o.bridge); err != nil {
		return fmt.Errorf("put %s into the bridge: %w", overlayTunnel, err)
	}
	if err := o.handle.LinkSetLearning(tunnel, false); err != nil {
		return fmt.Errorf("switch off learning: %w", err)
	}
	for _, l := range []netlink.Link{bridge, tunnel} {
		if err := o.handle.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring %s up: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// quietOverlay is the setup of an overlay's namespace: no firewall of bridges, and IPv6 for neighbours alone.
func quietOverlay() error {
	const bridge = "net/bridge/bridge-nf-call-"
	return errors.Join(setSysctlIfThere(bridge+"iptables", "0"), setSysctlIfThere(bridge+"ip6tables", "0"), setSysctlIfThere(bridge+"arptables", "0"),
		quietContainer())
}

// makeTunnel makes the VXLAN device in the host's namespace, where its packets have to come from, and moves it.
func (o *overlay) makeTunnel() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = o.temporary(), o.place.mtu
	if err := removeLink(attrs.Name); err != nil {
		return err
	}
	device := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(o.place.vni), SrcAddr: o.place.local.AsSlice(), Port: int(o.place.port), Proxy: true}
	err := netlink.LinkAdd(device)
	for deadline := time.Now().Add(vniWait); errors.Is(err, unix.EEXIST) && time.Now().Before(deadline); err = netlink.LinkAdd(device) {
		time.Sleep(vniPause)
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("another VXLAN device of this host has VNI %d on port %d: %w", o.place.vni, o.place.port, err)
	}
	if err != nil {
		return fmt.Errorf("make a VXLAN device: %w", err)
	}
	link, err := netlink.LinkByName(attrs.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", attrs.Name, err)
	}
	if err := netlink.LinkSetNsFd(link, int(o.ns)); err != nil {
		return fmt.Errorf("move %s: %w", attrs.Name, err)
	}
	if link, err = o.handle.LinkByName(attrs.Name); err != nil {
		return fmt.Errorf("find %s where it was moved: %w", attrs.Name, err)
	}
	if err := o.handle.LinkSetName(link, overlayTunnel); err != nil {
		return fmt.Errorf("rename %s: %w", attrs.Name, err)
	}
	return nil
}

// set brings what the kernel holds of a remote endpoint to want; a want without a node: it is gone.
func (o *overlay) set(taskID string, want remote) error {
	have, had := o.have[taskID]
	if !had && want.v4.IsValid() {
		if have, had = o.have[strayKey(want.v4)]; had { // a former process put it there
			delete(o.have, strayKey(want.v4))
			o.have[taskID] = have
		}
	}
	switch {
	case had && want == have:
		return nil
	case !want.node.IsValid() && !had:
		return nil
	case had && (!want.node.IsValid() || want.pair != have.pair):
		if err := o.forget(taskID, have); err != nil || !want.node.IsValid() {
			return err
		}
	}
	mac := macOf(want.v4)
	if err := o.handle.NeighSet(o.forwarding(want)); err != nil {
		return fmt.Errorf("network %q: set the forwarding entry of %s: %w", o.place.name, want.v4, err)
	}
	for _, a := range want.all() {
		if err := o.handle.NeighSet(&netlink.Neigh{LinkIndex: o.tunnel, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}); err != nil {
			return fmt.Errorf("network %q: set the neighbour %s: %w", o.place.name, a, err)
		}
	}
	o.have[taskID] = want
	return nil
}

func (o *overlay) forwarding(r remote) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: o.tunnel, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: r.node.AsSlice(), HardwareAddr: macOf(r.v4)}
}

// forget tolerates what is not there.
func (o *overlay) forget(taskID string, r remote) error {
	var errs []error
	if r.node.IsValid() {
		errs = append(errs, gone(o.handle.NeighDel(o.forwarding(r))))
	}
	for _, a := range r.all() {
		errs = append(errs, gone(o.handle.NeighDel(&netlink.Neigh{LinkIndex: o.tunnel, IP: a.AsSlice()})))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("network %q: remove %s: %w", o.place.name, r.v4, err)
	}
	delete(o.have, taskID)
	return nil
}

// plugging is how a namespace is joined to an overlay.
type plugging struct {
	taskID    string
	device    string // of the link there
	address   pair
	namespace netns.NsHandle
	inside    *netlink.Handle
	// prepare is called once the link is there, before it has addresses; nil: there is nothing to do.
	prepare func() error
}

// plug joins a task's namespace to the overlay by a link of the given name there.
func (o *overlay) plug(taskID, namespace, device string, address pair) error {
	p := plugging{taskID: taskID, device: device, address: address}
	leave, err := p.enter(namespace)
	if err != nil {
		return err
	}
	defer leave()
	if err := o.unplug(taskID); err != nil {
		return err
	}
	// One from a namespace that is gone goes in the kernel's own time.
	if stale, err := p.inside.LinkByName(device); err == nil {
		if err := p.inside.LinkDel(stale); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove the former %s: %w", device, err)
		}
	}
	return o.join(p)
}

// enter opens the namespace; leave closes it.
func (p *plugging) enter(path string) (leave func(), err error) {
	if p.namespace, err = netns.GetFromPath(path); err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	if p.inside, err = netlink.NewHandleAt(p.namespace, unix.NETLINK_ROUTE); err != nil {
		return nil, errors.Join(fmt.Errorf("enter namespace: %w", err), p.namespace.Close())
	}
	return func() { p.inside.Close(); _ = p.namespace.Close() }, nil
}

// join makes the link and all that belongs to it.
func (o *overlay) join(p plugging) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = portName(p.taskID), o.place.mtu, o.bridge
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: p.device, PeerHardwareAddr: macOf(p.address.v4), PeerNamespace: netlink.NsFd(p.namespace)}
	if err := o.addPort(veth); err != nil {
		return fmt.Errorf("make %s: %w", p.device, err)
	}
	port, err := o.handle.LinkByName(attrs.Name)
	if err != nil {
		return fmt.Errorf("find %s: %w", attrs.Name, err)
	}
	if err := o.handle.LinkSetLearning(port, false); err != nil {
		return fmt.Errorf("switch off learning: %w", err)
	}
	if err := o.handle.LinkSetFlood(port, false); err != nil {
		return fmt.Errorf("switch off flooding: %w", err)
	}
	entry := &netlink.Neigh{LinkIndex: port.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER, State: netlink.NUD_NOARP, HardwareAddr: macOf(p.address.v4)}
	if err := o.handle.NeighSet(entry); err != nil {
		return fmt.Errorf("set the forwarding entry of %s: %w", p.address.v4, err)
	}
	if err := o.guardPort(attrs.Name, p.address); err != nil {
		return err
	}
	if p.prepare != nil {
		if err := p.prepare(); err != nil {
			return err
		}
	}
	if err := o.configureTask(p.inside, p.device, p.address); err != nil {
		return err
	}
	// Last: a port that is up is one that is whole.
	if err := o.handle.LinkSetUp(port); err != nil {
		return fmt.Errorf("bring %s up: %w", attrs.Name, err)
	}
	return nil
}

// addPort makes a port with the next index that is free; a former process's ports have some.
func (o *overlay) addPort(veth *netlink.Veth) error {
	for {
		o.last = max(o.last, firstIndex) + 1
		veth.Index = o.last
		err := o.handle.LinkAdd(veth)
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EEXIST) {
			return err
		}
		if _, err := o.handle.LinkByIndex(o.last); err != nil {
			return err
		}
	}
}

func (o *overlay) configureTask(inside *netlink.Handle, device string, address pair) error {
	link, err := inside.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	if err := inside.LinkSetMTU(link, o.place.mtu); err != nil {
		return fmt.Errorf("set the MTU of %s: %w", device, err)
	}
	subnets := []netip.Prefix{o.place.subnet, o.place.subnet6}
	for i, a := range address.all() {
		bits := a.BitLen()
		if subnets[i].IsValid() {
			bits = subnets[i].Bits()
		}
		if err := inside.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: noDAD(a)}); err != nil {
			return fmt.Errorf("give %s the address %s: %w", device, a, err)
		}
	}
	if err := inside.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", device, err)
	}
	return nil
}

// plugged tells whether a task is joined, wholly.
func (o *overlay) plugged(taskID string) bool {
	link, err := o.handle.LinkByName(portName(taskID))
	return err == nil && link.Attrs().MasterIndex == o.bridge && link.Attrs().Flags&net.FlagUp != 0 && o.guarded[portName(taskID)]
}

// unplug tolerates a task that is not joined.
func (o *overlay) unplug(taskID string) error {
	link, err := o.handle.LinkByName(portName(taskID))
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return o.unguardPort(portName(taskID))
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", portName(taskID), err)
	}
	if err := o.handle.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", portName(taskID), err)
	}
	return o.unguardPort(portName(taskID))
}

func portName(taskID string) string { return portPrefix + taskID[:min(len(taskID), 13)] }

// removeOverlay takes an overlay's namespace away with all in it. The device goes first: its number is free at once.
func removeOverlay(path string) error {
	if isNamespace(path) {
		if ns, err := netns.GetFromPath(path); err == nil {
			if h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err == nil {
				if link, err := h.LinkByName(overlayTunnel); err == nil {
					_ = h.LinkDel(link) // it goes with the namespace all the same
				}
				h.Close()
			}
			_ = ns.Close()
		}
	}
	return removeNamespace(path)
}

// removeStrayOverlays removes the overlays that are not in keep, and what a crash has left of one half made.
func removeStrayOverlays(dir string, keep map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read overlays: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !keep[e.Name()] {
			errs = append(errs, removeOverlay(filepath.Join(dir, e.Name())))
		}
	}
	links, err := listed(func() ([]netlink.Link, error) { return netlink.LinkList() })
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("list links: %w", err))...)
	}
	for _, l := range links {
		if l.Type() == "vxlan" && strings.HasPrefix(l.Attrs().Name, tunnelPrefix) {
			errs = append(errs, removeLink(l.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}
