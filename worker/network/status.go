package network

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/network/wireguard"
)

// maxRoutes bounds what a node tells of the host's own prefixes.
const maxRoutes = 256

// maxProblems bounds the lines of problems that a node tells.
const maxProblems = 16

// maxAddresses bounds what a node tells of the host's own addresses.
const maxAddresses = 32

// hostAddresses are the host's own addresses that others may see it under; not those of our links. Sorted.
func hostAddresses() []string {
	ours, err := ourLinks()
	if err != nil {
		return nil
	}
	addrs, _ := listed(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	found := map[netip.Addr]bool{}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !ours[a.LinkIndex] && addr.IsGlobalUnicast() {
			found[addr.Unmap()] = true
		}
	}
	out := slices.SortedFunc(maps.Keys(found), netip.Addr.Compare)
	text := make([]string, 0, maxAddresses)
	for _, a := range out[:min(len(out), maxAddresses)] {
		text = append(text, a.String())
	}
	return text
}

// ourLinks are the indexes of the links that this package has made.
func ourLinks() (map[int]bool, error) {
	ours := map[int]bool{}
	links, err := listed(func() ([]netlink.Link, error) { return netlink.LinkList() })
	for _, l := range links {
		a := l.Attrs()
		ours[a.Index] = a.Name == Uplink || a.Name == Fabric || a.Name == wireguard.Link || a.Group == uplinkGroup || strings.HasPrefix(a.Name, tunnelPrefix)
	}
	return ours, err
}

// hostRoutes are the prefixes of the host's own addresses and routes, but for what is ours and what no network can
// overlap: loopback, link-local, multicast and default routes. Sorted; at most maxRoutes, the widest first.
func hostRoutes() []string {
	ours, err := ourLinks()
	if err != nil {
		return nil
	}
	found := map[netip.Prefix]bool{}
	add := func(p netip.Prefix) {
		a := p.Addr()
		if p.IsValid() && p.Bits() > 0 && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() {
			found[p.Masked()] = true
		}
	}
	addrs, _ := listed(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	for _, a := range addrs {
		if !ours[a.LinkIndex] {
			add(prefixOf(a.IPNet.IP, a.IPNet.Mask))
		}
	}
	routes, _ := listed(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	for _, r := range routes {
		if r.Dst != nil && r.Protocol != routeProtocol && !ours[r.LinkIndex] {
			add(prefixOf(r.Dst.IP, r.Dst.Mask))
		}
	}
	out := slices.SortedFunc(maps.Keys(found), func(a, b netip.Prefix) int {
		if a.Bits() != b.Bits() {
			return a.Bits() - b.Bits()
		}
		return a.Addr().Compare(b.Addr())
	})
	out = out[:min(len(out), maxRoutes)]
	text := make([]string, len(out))
	for i, p := range out {
		text[i] = p.String()
	}
	slices.Sort(text)
	return text
}

func prefixOf(ip net.IP, mask net.IPMask) netip.Prefix {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Prefix{}
	}
	bits, size := mask.Size()
	if a.Is4In6() && size == 128 {
		bits -= 96
	}
	return netip.PrefixFrom(a.Unmap(), bits)
}
