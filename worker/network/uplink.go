package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// routeProtocol marks routes and rules as ours: they are found again by a process that never knew the block.
const routeProtocol = 0x5d

// pair is an address of IPv4 and its twin of IPv6, which is not valid where there is no IPv6.
type pair struct{ v4, v6 netip.Addr }

// all are the valid ones.
func (p pair) all() []netip.Addr {
	if p.v6.IsValid() {
		return []netip.Addr{p.v4, p.v6}
	}
	return []netip.Addr{p.v4}
}

// enableForwarding has the host route for its containers.
func enableForwarding(ipv6 bool) error {
	if err := setSysctl("net/ipv4/ip_forward", "1"); err != nil || !ipv6 {
		return err
	}
	if now, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding"); err == nil && strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	// A host that forwards ignores the router advertisements it may live by, unless told 2.
	links, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, path := range links {
		if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == "1" {
			if err := os.WriteFile(path, []byte("2"), 0o644); err != nil {
				return fmt.Errorf("keep router advertisements: %w", err)
			}
		}
	}
	return setSysctl("net/ipv6/conf/all/forwarding", "1")
}

// underlayMTU is what packets between nodes may hold: the MTU of the link that has the node's own address, else of the
// default route's link, else 1500, less what VXLAN takes.
func underlayMTU(own netip.Addr) (int, error) {
	overhead := overheadOf(own)
	link, err := linkOf(own)
	if err != nil || link == nil {
		return 1500 - overhead, err
	}
	return link.Attrs().MTU - overhead, nil
}

// linkOf is the link that has an address, or that of the default route; nil when there is neither.
func linkOf(own netip.Addr) (netlink.Link, error) {
	if own.IsValid() {
		addrs, err := listed(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == own {
				return netlink.LinkByIndex(a.LinkIndex)
			}
		}
	}
	family := netlink.FAMILY_V4
	if own.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := listed(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				return link, nil
			}
		}
	}
	return nil, nil
}

// makeUplink makes the link that holds the gateway's addresses (a bridge without ports: overlays need that module
// anyway), and makes the rest of the blocks unreachable, so that a packet for a container that is gone is refused here
// instead of leaving by the default route. A block of IPv6 that is not valid is none.
func makeUplink(gateway pair, blocks []netip.Prefix, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = Uplink, mtu
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make link %s: %w", Uplink, err)
	}
	link, err := netlink.LinkByName(Uplink)
	if err != nil {
		return fmt.Errorf("find link %s: %w", Uplink, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("link %s exists and is not ours but a %s; remove or rename it", Uplink, link.Type())
	}
	if gateway.v6.IsValid() {
		if err := quietIPv6(Uplink); err != nil {
			return err
		}
	}
	if err := setAddresses(link, gateway); err != nil {
		return err
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s: %w", Uplink, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", Uplink, err)
	}
	for _, block := range blocks {
		if err := netlink.RouteReplace(unreachable(block)); err != nil {
			return fmt.Errorf("make the rest of %s unreachable: %w", block, err)
		}
	}
	return removeUnreachable(blocks)
}

// quietIPv6 has a link use IPv6 without asking whom else has its addresses, and without router advertisements.
func quietIPv6(link string) error {
	at := "net/ipv6/conf/" + link + "/"
	return errors.Join(setSysctl(at+"disable_ipv6", "0"), setSysctl(at+"accept_ra", "0"), setSysctl(at+"accept_dad", "0"))
}

// setAddresses gives the link the addresses, and takes others but the link-local ones.
func setAddresses(link netlink.Link, want pair) error {
	have, err := listed(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	missing := map[string]*netlink.Addr{}
	for _, a := range want.all() {
		n := single(a)
		missing[n.String()] = &netlink.Addr{IPNet: n, Flags: noDAD(a)}
	}
	for _, a := range have {
		if missing[a.IPNet.String()] != nil {
			delete(missing, a.IPNet.String())
		} else if !a.IP.IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove address of %s: %w", link.Attrs().Name, err)
			}
		}
	}
	for _, a := range missing {
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("give %s the address %s: %w", link.Attrs().Name, a.IPNet, err)
		}
	}
	return nil
}

// single is the prefix of one address.
func single(a netip.Addr) *net.IPNet {
	return netOf(netip.PrefixFrom(a, a.BitLen()))
}

func noDAD(a netip.Addr) int {
	if a.Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

func unreachable(block netip.Prefix) *netlink.Route {
	const last = 1 << 20 // behind every other route to the block
	return &netlink.Route{Dst: netOf(block), Type: unix.RTN_UNREACHABLE, Priority: last, Protocol: routeProtocol}
}

// removeUnreachable removes the unreachable routes of all blocks but keep.
func removeUnreachable(keep []netip.Prefix) error {
	kept := map[string]bool{}
	for _, block := range keep {
		kept[block.String()] = true
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if family == netlink.FAMILY_V6 && !hasIPv6() {
			continue
		}
		ours := &netlink.Route{Protocol: routeProtocol, Type: unix.RTN_UNREACHABLE}
		routes, err := listed(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, ours, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil && kept[r.Dst.String()] {
				continue
			}
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove the route to %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

func removeUplink() error {
	return errors.Join(removeUnreachable(nil), removeLink(Uplink))
}

// uplinkPlace is how a task is on the uplink.
type uplinkPlace struct {
	namespace, link  string // the host's end
	address, gateway pair
	mtu              int
	// closed: the host's end stays down, so that nothing goes in or out.
	closed bool
}

// plugIn makes the veth pair: eth0 in the namespace; on the host a link of the uplink group with a route to the one
// address behind it. Both ends know the other's hardware address for ever, as they are derived from addresses.
func plugIn(p uplinkPlace) error {
	ns, err := netns.GetFromPath(p.namespace)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	defer inside.Close()
	if err := removeLink(p.link); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group, attrs.HardwareAddr = p.link, p.mtu, uplinkGroup, macOf(p.gateway.v4)
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: macOf(p.address.v4), PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s: %w", p.link, err)
	}
	link, err := netlink.LinkByName(p.link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", p.link, err)
	}
	if !p.closed {
		if p.address.v6.IsValid() {
			if err := quietIPv6(p.link); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring %s up: %w", p.link, err)
		}
	}
	if err := configureInside(inside, p); err != nil {
		return err
	}
	if !p.closed {
		if err := leadTo(link, p); err != nil {
			return err
		}
	}
	// Last: what a crash leaves half made is known by it.
	if err := netlink.LinkSetAlias(link, wholeAlias); err != nil {
		return fmt.Errorf("mark %s as whole: %w", p.link, err)
	}
	return nil
}

// wholeAlias is the alias of a task's link that all has been done for.
const wholeAlias = "task of swarmd"

// plugged tells whether a task's link is there and whole.
func plugged(name string) bool {
	link, err := netlink.LinkByName(name)
	return err == nil && link.Attrs().Alias == wholeAlias
}

// leadTo makes the host's routes and neighbours of a task.
func leadTo(link netlink.Link, p uplinkPlace) error {
	index := link.Attrs().Index
	for i, a := range p.address.all() {
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: macOf(p.address.v4)}); err != nil {
			return fmt.Errorf("add neighbour %s: %w", a, err)
		}
		to := &netlink.Route{LinkIndex: index, Dst: single(a), Src: p.gateway.all()[i].AsSlice(), Protocol: routeProtocol}
		if a.Is4() {
			to.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(to); err != nil {
			return fmt.Errorf("add the route to %s: %w", a, err)
		}
	}
	return nil
}

func configureInside(h *netlink.Handle, p uplinkPlace) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := h.LinkSetMTU(eth0, p.mtu); err != nil {
		return fmt.Errorf("set the MTU of eth0: %w", err)
	}
	for _, a := range p.address.all() {
		if err := h.AddrAdd(eth0, &netlink.Addr{IPNet: single(a), Flags: noDAD(a)}); err != nil {
			return fmt.Errorf("give eth0 the address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("bring eth0 up: %w", err)
	}
	if p.closed {
		return nil
	}
	return leadOut(h, eth0, p)
}

// leadOut makes a task's routes over the gateway.
func leadOut(h *netlink.Handle, eth0 netlink.Link, p uplinkPlace) error {
	index := eth0.Attrs().Index
	for i, gateway := range p.gateway.all() {
		neigh := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gateway.AsSlice(), HardwareAddr: macOf(p.gateway.v4)}
		if err := h.NeighSet(neigh); err != nil {
			return fmt.Errorf("add neighbour %s: %w", gateway, err)
		}
		to := &netlink.Route{LinkIndex: index, Dst: single(gateway), Src: p.address.all()[i].AsSlice()}
		if gateway.Is4() {
			to.Scope = netlink.SCOPE_LINK
		}
		if err := h.RouteAdd(to); err != nil {
			return fmt.Errorf("add the route to the gateway %s: %w", gateway, err)
		}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: gateway.AsSlice()}); err != nil {
			return fmt.Errorf("add the default route by %s: %w", gateway, err)
		}
	}
	return nil
}

// quietContainer is the setup of a task's namespace: no router advertisements, nor asking whom else has its addresses. It
// takes back what a new namespace inherits from a host that forwards: a task in two networks would join them for whoever
// sends to its hardware address, and one on a host with route_localnet would open its loopback.
func quietContainer() error {
	var errs []error
	for _, which := range []string{"all", "default"} {
		for _, setting := range []string{"forwarding", "route_localnet"} {
			errs = append(errs, setSysctl("net/ipv4/conf/"+which+"/"+setting, "0"))
		}
		at := "net/ipv6/conf/" + which + "/"
		errs = append(errs, setSysctlIfThere(at+"disable_ipv6", "0"), setSysctlIfThere(at+"accept_ra", "0"), setSysctlIfThere(at+"accept_dad", "0"),
			setSysctlIfThere(at+"forwarding", "0"))
	}
	return errors.Join(errs...)
}
