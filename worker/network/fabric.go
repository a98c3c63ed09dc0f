package network

import (
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Fabric is the device that joins the nodes.
const Fabric = "swarm-fab"

// fabricVNI is below those of networks, which begin at 4096.
const fabricVNI = 1

// fabricPlace is this node's place in the fabric.
type fabricPlace struct {
	number  uint32
	address netip.Addr // packets between nodes come from here
	block   netip.Prefix
	prefix6 netip.Prefix // invalid: no IPv6
	port    uint16
	mask    uint32 // of marks
	mtu     int
}

// fabricPeer is what the kernel holds of another node.
type fabricPeer struct {
	mac     string
	address netip.Addr
	block   netip.Prefix
}

// fabric is the VXLAN device that carries what was translated from node to node, and the replies. For each peer it
// has an entry of the forwarding database, a permanent neighbour and a route a family; a change costs only its peer.
//
// How a reply finds the node that its client called: returnpath.go and docs/decisions/0006-return-path-over-the-fabric.md.
type fabric struct {
	place fabricPlace
	index int
	have  map[string]fabricPeer // node ID -> what is in the kernel
	apart map[string]netip.Addr // peers that cannot be reached, as their address is of the other family than this node's
}

// fabricMAC is the hardware address of a node's end of the fabric: the bytes of its mark are its last four.
func fabricMAC(number, mask uint32) net.HardwareAddr {
	m := markOf(number, mask)
	return net.HardwareAddr{0x02, 0x5d, byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}

// markOf is a number in the bits of the mask.
func markOf(number, mask uint32) uint32 {
	return number << bits.TrailingZeros32(mask) & mask
}

// openFabric makes the device and what replies need. A device that is right stays, with its entries.
func openFabric(place fabricPlace) (*fabric, error) {
	f := &fabric{place: place, have: map[string]fabricPeer{}, apart: map[string]netip.Addr{}}
	if err := f.makeDevice(); err != nil {
		return nil, err
	}
	if err := f.makeReturnPath(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *fabric) makeDevice() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = Fabric, f.place.mtu, fabricMAC(f.place.number, f.place.mask)
	want := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: fabricVNI, SrcAddr: f.place.address.AsSlice(), Port: int(f.place.port)}
	link, err := f.deviceLike(want)
	if err != nil {
		return err
	}
	f.index = link.Attrs().Index
	if link.Attrs().MTU != f.place.mtu {
		if err := netlink.LinkSetMTU(link, f.place.mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", Fabric, f.place.mtu, err)
		}
	}
	if err := setDeviceSysctls(Fabric, f.place.prefix6.IsValid()); err != nil {
		return err
	}
	// Without an address of its own no source is good enough for rp_filter. The gateway's does.
	if err := setAddresses(link, pair{v4: gatewayOf(f.place.block)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", Fabric, err)
	}
	return nil
}

// deviceLike finds the device as wanted, or makes it; one that differs in what cannot be changed is replaced.
func (f *fabric) deviceLike(want *netlink.Vxlan) (netlink.Link, error) {
	link, err := netlink.LinkByName(Fabric)
	if err == nil {
		is, ok := link.(*netlink.Vxlan)
		if !ok {
			return nil, fmt.Errorf("link %s exists and is not ours but a %s; remove or rename it", Fabric, link.Type())
		}
		if is.VxlanId == want.VxlanId && is.Port == want.Port && is.SrcAddr.Equal(want.SrcAddr) && !is.Learning &&
			is.HardwareAddr.String() == want.HardwareAddr.String() {
			return link, nil
		}
		if err := removeLink(Fabric); err != nil {
			return nil, err
		}
	}
	if err := netlink.LinkAdd(want); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make link %s: another VXLAN device of this host has VNI %d on port %d: %w", Fabric, want.VxlanId, want.Port, err)
		}
		return nil, fmt.Errorf("make link %s: %w", Fabric, err)
	}
	f.have = map[string]fabricPeer{}
	return netlink.LinkByName(Fabric)
}

// setDeviceSysctls has the device take packets from addresses that are routed elsewhere: clients keep theirs.
func setDeviceSysctls(device string, ipv6 bool) error {
	errs := []error{setSysctl("net/ipv4/conf/"+device+"/rp_filter", "2"), setSysctl("net/ipv4/conf/"+device+"/send_redirects", "0")}
	if ipv6 {
		at := "net/ipv6/conf/" + device + "/"
		errs = append(errs, setSysctl(at+"disable_ipv6", "0"), setSysctl(at+"accept_ra", "0"), setSysctl(at+"accept_dad", "0"))
	}
	return errors.Join(errs...)
}

// peerOf is what the kernel is to hold of a peer; false: the peer cannot be reached yet, or is this node.
func (f *fabric) peerOf(p *swarmpb.Peer) (fabricPeer, bool) {
	address, err := netip.ParseAddr(p.GetAddress())
	block, err2 := netip.ParsePrefix(p.GetUplinkBlock())
	if err != nil || err2 != nil || p.GetNumber() == 0 || p.GetNumber() == f.place.number || !block.Addr().Is4() {
		return fabricPeer{}, false
	}
	return fabricPeer{mac: fabricMAC(p.GetNumber(), f.place.mask).String(), address: address.Unmap(), block: block.Masked()}, true
}

// set brings what the kernel holds of a node to what was told of it; nil: it is no peer any more. One that is apart has nothing.
func (f *fabric) set(nodeID string, p *swarmpb.Peer) error {
	want, ok := f.peerOf(p)
	delete(f.apart, nodeID)
	if ok && want.address.Is4() != f.place.address.Is4() {
		f.apart[nodeID] = want.address
		ok = false
	}
	have, had := f.have[nodeID]
	if ok && had && want == have {
		return nil
	}
	if had && (!ok || want.mac != have.mac || want.block != have.block) {
		if err := f.remove(nodeID, have); err != nil {
			return err
		}
	}
	if !ok {
		return nil
	}
	if err := f.put(want); err != nil {
		return fmt.Errorf("join node %s to the fabric: %w", nodeID, err)
	}
	f.have[nodeID] = want
	return nil
}

func (f *fabric) put(p fabricPeer) error {
	mac, err := net.ParseMAC(p.mac)
	if err != nil {
		return err
	}
	entry := &netlink.Neigh{LinkIndex: f.index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: p.address.AsSlice(), HardwareAddr: mac}
	if err := netlink.NeighSet(entry); err != nil {
		return fmt.Errorf("set forwarding entry: %w", err)
	}
	for _, r := range f.routesTo(p) {
		neigh := &netlink.Neigh{LinkIndex: f.index, State: netlink.NUD_PERMANENT, IP: r.Gw, HardwareAddr: mac}
		if err := netlink.NeighSet(neigh); err != nil {
			return fmt.Errorf("set neighbour %s: %w", r.Gw, err)
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("set the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

// routesTo lead to a peer's block through its gateway's address, which is what the permanent neighbours are for.
func (f *fabric) routesTo(p fabricPeer) []*netlink.Route {
	gateway := gatewayOf(p.block)
	routes := []*netlink.Route{{LinkIndex: f.index, Dst: ipNet(p.block.Addr(), p.block.Bits()), Gw: gateway.AsSlice(), Src: gatewayOf(f.place.block).AsSlice()}}
	if p6 := f.place.prefix6; p6.IsValid() {
		routes = append(routes, &netlink.Route{LinkIndex: f.index, Dst: netOf(block6(p6, p.block)),
			Gw: swarmpb.Address6(p6, gateway).AsSlice(), Src: swarmpb.Address6(p6, gatewayOf(f.place.block)).AsSlice()})
	}
	for _, r := range routes {
		r.Flags, r.Protocol = int(netlink.FLAG_ONLINK), routeProtocol
	}
	return routes
}

// remove tolerates what is not there.
func (f *fabric) remove(nodeID string, p fabricPeer) error {
	mac, err := net.ParseMAC(p.mac)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range f.routesTo(p) {
		r.Src = nil
		errs = append(errs, gone(netlink.RouteDel(r)), gone(netlink.NeighDel(&netlink.Neigh{LinkIndex: f.index, IP: r.Gw})))
	}
	errs = append(errs, gone(netlink.NeighDel(&netlink.Neigh{LinkIndex: f.index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: p.address.AsSlice(), HardwareAddr: mac})))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take node %s out of the fabric: %w", nodeID, err)
	}
	delete(f.have, nodeID)
	return nil
}

// gone is err, unless it says that what was to go is not there.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// block6 is the twin of a block in IPv6.
func block6(prefix6, block netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(swarmpb.Address6(prefix6, block.Addr()), 96+block.Bits()).Masked()
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// look compares the kernel with what it is to hold: an error says that the device is not as it has to be; entries that are
// missing are no longer in have, and those of nobody are removed.
func (f *fabric) look() error {
	link, err := netlink.LinkByName(Fabric)
	if err != nil {
		return fmt.Errorf("find %s: %w", Fabric, err)
	}
	if link.Attrs().Index != f.index || link.Attrs().Flags&net.FlagUp == 0 || link.Attrs().MTU != f.place.mtu {
		return fmt.Errorf("%s is another, down, or of another MTU", Fabric)
	}
	if err := errors.Join(setDeviceSysctls(Fabric, f.place.prefix6.IsValid()), setAddresses(link, pair{v4: gatewayOf(f.place.block)})); err != nil {
		return err
	}
	entries, err := listed(func() ([]netlink.Neigh, error) { return netlink.NeighList(f.index, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("list forwarding entries: %w", err)
	}
	forwards := map[string]netip.Addr{}
	for _, e := range entries {
		if a, ok := netip.AddrFromSlice(e.IP); ok {
			forwards[e.HardwareAddr.String()] = a.Unmap()
		}
	}
	routes, neighbours := map[string]string{}, map[string]string{}
	for _, family := range families(f.place.prefix6.IsValid()) {
		of, err := listed(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{LinkIndex: f.index, Protocol: routeProtocol}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range of {
			if r.Dst != nil {
				routes[r.Dst.String()] = r.Gw.String()
			}
		}
		known, err := listed(func() ([]netlink.Neigh, error) { return netlink.NeighList(f.index, family) })
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, e := range known {
			neighbours[e.IP.String()] = e.HardwareAddr.String()
		}
	}
	if intact, err := f.returnPathIntact(); err != nil || !intact {
		return errors.Join(err, f.makeReturnPath())
	}
	f.compare(forwards, routes, neighbours)
	return f.removeStrays(forwards, routes)
}

// compare drops from have what is not whole, and from forwards and routes what is somebody's.
func (f *fabric) compare(forwards map[string]netip.Addr, routes, neighbours map[string]string) {
	for id, p := range f.have {
		whole := forwards[p.mac] == p.address
		for _, r := range f.routesTo(p) {
			whole = whole && routes[r.Dst.String()] == r.Gw.String() && neighbours[r.Gw.String()] == p.mac
			delete(routes, r.Dst.String())
		}
		delete(forwards, p.mac)
		if !whole {
			delete(f.have, id)
		}
	}
}

func (f *fabric) removeStrays(forwards map[string]netip.Addr, routes map[string]string) error {
	var errs []error
	for mac, a := range forwards {
		hardware, err := net.ParseMAC(mac)
		if err != nil || a.IsUnspecified() {
			continue
		}
		errs = append(errs, gone(netlink.NeighDel(&netlink.Neigh{LinkIndex: f.index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: a.AsSlice(), HardwareAddr: hardware})))
	}
	for dst := range routes {
		p, err := netip.ParsePrefix(dst)
		if err != nil {
			continue
		}
		errs = append(errs, gone(netlink.RouteDel(&netlink.Route{LinkIndex: f.index, Dst: netOf(p), Protocol: routeProtocol})))
	}
	return errors.Join(errs...)
}
