package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Uplink is the link that holds the gateway's address on every node.
const Uplink = "swarm-up"

// uplinkGroup is the device group of the host's ends of the tasks' veth pairs: what the rules match.
const uplinkGroup = 0x5d17

// linkPrefix marks the host's end of a task's veth pair.
const linkPrefix = "u-"

// fabricOverhead is what VXLAN over IPv4 takes from the underlay's MTU.
const fabricOverhead = 50

// linkName fits IFNAMSIZ; 13 characters of a random base36 ID do not meet twice on one host.
func linkName(taskID string) string {
	return linkPrefix + taskID[:min(len(taskID), 13)]
}

func enableForwarding() error {
	const path = "/proc/sys/net/ipv4/ip_forward"
	if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == "1" {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("enable IPv4 forwarding: %w", err)
	}
	return nil
}

// underlayMTU is that of the default route's link, or 1500 where there is none, less the fabric's overhead.
func underlayMTU() (int, error) {
	mtu := 1500
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			mtu = link.Attrs().MTU
			break
		}
	}
	return mtu - fabricOverhead, nil
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, 32)}
}

// macOf derives a link's address from its IP address, so that a neighbour entry is right for ever.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x5d, b[0], b[1], b[2], b[3]}
}

// makeUplink makes the link that holds the gateway's address (a bridge without ports: overlays need that module anyway), and makes the rest of the block unreachable, so that
// a packet for a container that is gone is refused here instead of leaving by the default route.
func makeUplink(gateway netip.Addr, block netip.Prefix, mtu int) error {
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
	want := ipNet(gateway, 32)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", Uplink, err)
	}
	for _, a := range addrs {
		if a.IPNet.String() != want.String() {
			if err := netlink.AddrDel(link, &a); err != nil {
				return fmt.Errorf("remove address of %s: %w", Uplink, err)
			}
		}
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: want}); err != nil {
		return fmt.Errorf("give %s its address: %w", Uplink, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", Uplink, err)
	}
	if err := netlink.RouteReplace(unreachable(block)); err != nil {
		return fmt.Errorf("make the rest of %s unreachable: %w", block, err)
	}
	return removeUnreachable(block)
}

func unreachable(block netip.Prefix) *netlink.Route {
	const last = 1 << 20 // behind every other route to the block
	return &netlink.Route{Dst: ipNet(block.Addr(), block.Bits()), Type: unix.RTN_UNREACHABLE, Priority: last, Protocol: routeProtocol}
}

// routeProtocol marks routes as ours: a block's is found again by a process that never knew the block.
const routeProtocol = 0x5d

// removeUnreachable removes the unreachable routes of all blocks but keep.
func removeUnreachable(keep netip.Prefix) error {
	ours := &netlink.Route{Protocol: routeProtocol, Type: unix.RTN_UNREACHABLE}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, ours, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if keep.IsValid() && r.Dst != nil && r.Dst.String() == keep.String() {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

func removeUplink() error {
	return errors.Join(removeUnreachable(netip.Prefix{}), removeLink(Uplink))
}

// plugIn makes the veth pair: eth0 in the namespace; on the host a link of the uplink group with a route to the
// one address behind it.
func plugIn(nsPath, host string, addr, gateway netip.Addr, mtu int) error {
	ns, err := netns.GetFromPath(nsPath)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	defer inside.Close()
	if err := removeLink(host); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group = host, mtu, uplinkGroup
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: macOf(addr), PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make link %s: %w", host, err)
	}
	link, err := netlink.LinkByName(host)
	if err != nil {
		return fmt.Errorf("find link %s: %w", host, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", host, err)
	}
	if err := configureInside(inside, addr, gateway, mtu); err != nil {
		return err
	}
	to := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(addr, 32), Src: gateway.AsSlice(), Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteReplace(to); err != nil {
		return fmt.Errorf("add the route to %s: %w", addr, err)
	}
	return nil
}

func configureInside(h *netlink.Handle, addr, gateway netip.Addr, mtu int) error {
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
	if err := h.LinkSetMTU(eth0, mtu); err != nil {
		return fmt.Errorf("set the MTU of eth0: %w", err)
	}
	if err := h.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(addr, 32)}); err != nil {
		return fmt.Errorf("give eth0 its address: %w", err)
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("bring eth0 up: %w", err)
	}
	toGateway := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: ipNet(gateway, 32), Scope: netlink.SCOPE_LINK, Src: addr.AsSlice()}
	if err := h.RouteAdd(toGateway); err != nil {
		return fmt.Errorf("add the route to the gateway: %w", err)
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	return nil
}

func linkExists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	// It may go by itself meanwhile: a veth pair goes with the namespace of either end, some time after that.
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// removeStrayLinks removes links of the uplink group that carry a task's name but are not in keep.
func removeStrayLinks(keep map[string]bool) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		a := l.Attrs()
		if a.Group == uplinkGroup && strings.HasPrefix(a.Name, linkPrefix) && !keep[a.Name] {
			errs = append(errs, removeLink(a.Name))
		}
	}
	return errors.Join(errs...)
}
