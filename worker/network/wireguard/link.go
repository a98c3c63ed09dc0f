package wireguard

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	ipv6 = "/proc/sys/net/ipv6"
	// throughMetric is of the route through the tunnel, refuseMetric of the one that is left when it has gone.
	throughMetric, refuseMetric = 512, 1 << 20
	// refuseProtocol marks the latter as ours, for a process that never knew the range.
	refuseProtocol = 0x5c
)

// needIPv6 fails where the kernel has it not. Switched off by sysctl is no obstacle: the device has a setting of its own.
func needIPv6() error {
	if _, err := os.Stat(ipv6); err != nil {
		return fmt.Errorf("%w: the kernel has no IPv6, which the tunnel's addresses are of; boot it without ipv6.disable=1", ErrUnsupported)
	}
	return nil
}

// raise brings the link up, without addresses that the kernel would give it.
func raise(port uint16) error {
	link, err := netlink.LinkByName(Link)
	if err != nil {
		return fmt.Errorf("find %s: %w", Link, err)
	}
	if link.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	for setting, value := range map[string]string{"disable_ipv6": "0", "addr_gen_mode": "1", "accept_ra": "0"} {
		path := filepath.Join(ipv6, "conf", Link, setting)
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set %s: %w", setting, err)
		}
	}
	err = netlink.LinkSetUp(link)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("bring %s up: UDP port %d is taken; free it: %w", Link, port, err)
	}
	if err != nil {
		return fmt.Errorf("bring %s up: %w", Link, err)
	}
	return nil
}

// place gives the link its address, its MTU and the route of the range; the route that refuses the range is first, so that
// there is no moment without one of them.
func place(address netip.Prefix, mtu int, port uint16) error {
	if err := guard(address.Masked()); err != nil {
		return err
	}
	if err := raise(port); err != nil {
		return err
	}
	link, err := netlink.LinkByName(Link)
	if err != nil {
		return fmt.Errorf("find %s: %w", Link, err)
	}
	if link.Attrs().MTU != mtu {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", Link, mtu, err)
		}
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", Link, err)
	}
	there := false
	for _, a := range addrs {
		if have, _ := netip.AddrFromSlice(a.IP); have == address.Addr() {
			there = true
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove the address %s of %s: %w", a.IP, Link, err)
		}
	}
	if !there {
		one := &netlink.Addr{IPNet: netOf(netip.PrefixFrom(address.Addr(), 128)), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, one); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give %s the address %s: %w", Link, address.Addr(), err)
		}
	}
	through := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: netOf(address.Masked()), Priority: throughMetric}
	if err := netlink.RouteReplace(through); err != nil {
		return fmt.Errorf("route %s through %s: %w", address.Masked(), Link, err)
	}
	return nil
}

// guard refuses what goes to the tunnel's range when there is no tunnel.
func guard(all netip.Prefix) error {
	if err := netlink.RouteReplace(refusal(all)); err != nil {
		return fmt.Errorf("refuse %s outside of the tunnel: %w", all, err)
	}
	return nil
}

// unguard removes the routes of a range.
func unguard(all netip.Prefix) error {
	for _, route := range []*netlink.Route{{Dst: netOf(all), Priority: throughMetric}, refusal(all)} {
		if err := netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route of %s: %w", all, err)
		}
	}
	return nil
}

func refusal(all netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: netOf(all), Type: unix.RTN_UNREACHABLE, Priority: refuseMetric, Protocol: refuseProtocol}
}

// removeRefusals removes the routes that refuse, of whatever range.
func removeRefusals() error {
	if _, err := os.Stat(ipv6); err != nil {
		return nil // without IPv6 there are none
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: refuseProtocol, Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route of %s: %w", r.Dst, err))
		}
	}
	return errors.Join(errs...)
}

// removeLink tolerates a link that is not there.
func removeLink() error {
	link, err := netlink.LinkByName(Link)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", Link, err)
	}
	return nil
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
