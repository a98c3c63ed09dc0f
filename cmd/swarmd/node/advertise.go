package node

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/swarmd/swarmd/proto/wire"
)

// anyAddr is the default of --listen-addr.
const anyAddr = "0.0.0.0:2377"

// advertise turns what the user gave (an address or an interface, with or without a port, or nothing) into host:port
// under which the other hosts reach this one.
func (n *Node) advertise(given string) (string, error) {
	_, listenPort, err := net.SplitHostPort(n.cfg.ListenAddr)
	if err != nil {
		return "", wire.Errorf(wire.CodeInvalid, "listen address %q: want host:port", n.cfg.ListenAddr)
	}
	host, port := given, listenPort
	if h, p, err := net.SplitHostPort(given); err == nil {
		host, port = h, p
		if v, err := strconv.ParseUint(p, 10, 16); err != nil || v == 0 {
			return "", wire.Errorf(wire.CodeInvalid, "advertise address %q: port %q is not between 1 and 65535", given, p)
		}
	}
	if host == "" {
		addr, err := defaultAddress()
		if err != nil {
			return "", err
		}
		return net.JoinHostPort(addr.String(), port), nil
	}
	if addr, ok := interfaceAddress(host); ok {
		return net.JoinHostPort(addr.String(), port), nil
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return "", wire.Errorf(wire.CodeInvalid, "advertise address %q: neither an IP address nor an interface of this host (%s)", given, strings.Join(localAddresses(), ", "))
	}
	if addr.IsUnspecified() || addr.IsMulticast() {
		return "", wire.Errorf(wire.CodeInvalid, "advertise address %s: other hosts cannot reach that; give one of this host's addresses (%s)", addr, strings.Join(localAddresses(), ", "))
	}
	if n.cfg.ListenAddr == anyAddr && !isLocal(addr) {
		return "", wire.Errorf(wire.CodeInvalid,
			"advertise address %s: this host does not have it; it has %s (behind address translation, start swarmd with an explicit --listen-addr)",
			addr, strings.Join(localAddresses(), ", "))
	}
	return net.JoinHostPort(addr.String(), port), nil
}

// defaultAddress is that of the default route's link, or the only one there is.
func defaultAddress() (netip.Addr, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			if addr, ok := interfaceAddress(link.Attrs().Name); ok {
				return addr, nil
			}
		}
	}
	all := localAddresses()
	if len(all) == 1 {
		if _, s, ok := strings.Cut(all[0], " "); ok {
			return netip.ParseAddr(s)
		}
	}
	return netip.Addr{}, wire.Errorf(wire.CodeInvalid,
		"this host has no default route to take its address from; choose one with --advertise-addr (%s)", strings.Join(all, ", "))
}

// interfaceAddress is the first global address of the interface of that name, IPv4 before IPv6.
func interfaceAddress(name string) (netip.Addr, bool) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, false
	}
	var found netip.Addr
	for _, a := range addressesOf(*i) {
		if !found.IsValid() || a.Is4() && !found.Is4() {
			found = a
		}
	}
	return found, found.IsValid()
}

func addressesOf(i net.Interface) []netip.Addr {
	var out []netip.Addr
	addrs, _ := i.Addrs()
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}

// localAddresses lists "interface address" of what other hosts might reach.
func localAddresses() []string {
	var out []string
	all, _ := net.Interfaces()
	for _, i := range all {
		for _, a := range addressesOf(i) {
			out = append(out, i.Name+" "+a.String())
		}
	}
	return out
}

func isLocal(addr netip.Addr) bool {
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr.Unmap() {
			return true
		}
	}
	return false
}
