package lab

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NetworkState is what the kernel has for the host's network, one line each, sorted: links, addresses, routes, rules and tables of
// rules. What it makes and learns by itself (link-local addresses and their routes, anycast and multicast routes, neighbours) is left out.
func (h *Host) NetworkState() ([]string, error) {
	var out []string
	err := h.Inside(func() error {
		for _, read := range []func() ([]string, error){linkState, routeState, ruleState, tableState} {
			lines, err := read()
			if err != nil {
				return err
			}
			out = append(out, lines...)
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}

func linkState() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []string
	for _, l := range links {
		out = append(out, fmt.Sprintf("link %s %s", l.Attrs().Name, l.Type()))
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() {
				continue
			}
			out = append(out, fmt.Sprintf("address %s %s", l.Attrs().Name, a.IPNet))
		}
	}
	return out, nil
}

func routeState() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Type == unix.RTN_ANYCAST || r.Type == unix.RTN_MULTICAST || r.Dst != nil && r.Dst.IP.IsLinkLocalUnicast() {
				continue
			}
			out = append(out, fmt.Sprintf("route %v table %d type %d via %v link %s protocol %d", r.Dst, r.Table, r.Type, r.Gw, names[r.LinkIndex], r.Protocol))
		}
	}
	return out, nil
}

func ruleState() ([]string, error) {
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for _, r := range rules {
			out = append(out, "rule "+r.String())
		}
	}
	return out, nil
}

func tableState() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	var out []string
	for _, t := range tables {
		out = append(out, fmt.Sprintf("table %d %s", t.Family, t.Name))
		chains, err := c.ListChainsOfTableFamily(t.Family)
		if err != nil {
			return nil, fmt.Errorf("list chains: %w", err)
		}
		for _, chain := range chains {
			if chain.Table.Name != t.Name {
				continue
			}
			out = append(out, fmt.Sprintf("chain %d %s %s", t.Family, t.Name, chain.Name))
		}
	}
	return out, nil
}

// Tracked are the flows that the host's connection tracking has and the filter takes, both directions of each in one line.
func (h *Host) Tracked(take func(*netlink.ConntrackFlow) bool) ([]string, error) {
	var out []string
	err := h.Inside(func() error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return fmt.Errorf("list flows: %w", err)
			}
			for _, f := range flows {
				if take(f) {
					out = append(out, f.String())
				}
			}
		}
		return nil
	})
	return out, err
}

// Namespaces are the files under swarmd's run directory that hold network namespaces.
func (h *Host) Namespaces() []string {
	root := fmt.Sprintf("/proc/%d/root/run/swarmd", h.node.pid)
	var out []string
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if dir := filepath.Base(filepath.Dir(path)); dir == "netns" || dir == "overlays" {
			out = append(out, path[len(root):])
		}
		return nil
	})
	return out
}

// ListenPacket listens on the switch: hosts reach it at .254.
func (l *Lab) ListenPacket(network, addr string) (net.PacketConn, error) {
	var out net.PacketConn
	err := l.inSwitch(func() (err error) {
		out, err = (&net.ListenConfig{}).ListenPacket(context.Background(), network, addr)
		return err
	})
	return out, err
}

// RouteVia has the client send what is for a prefix to a host.
func (c *Client) RouteVia(prefix netip.Prefix, via netip.Addr) error {
	return c.Do(func() error {
		dst := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
		return netlink.RouteReplace(&netlink.Route{Dst: dst, Gw: via.AsSlice()})
	})
}
