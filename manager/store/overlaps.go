package store

import (
	"fmt"
	"net/netip"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// RouteOverlap is a route of a host that leads under addresses of a network: the network's tasks there do not reach what it leads to.
type RouteOverlap struct {
	// Network and Node by ID.
	Network, Node string
	// Name of the network, and hostname.
	NetworkName, NodeName string
	Subnet, Route         netip.Prefix
}

// Text says it in one line, with what to do.
func (o RouteOverlap) Text() string {
	return fmt.Sprintf("node %s reaches %s by a route of its own, which overlaps subnet %s of network %q: containers in the network do not reach there what that route leads to; "+
		"take the route away, or make the network anew with another --subnet", o.NodeName, o.Route, o.Subnet, o.NetworkName)
}

// RouteOverlaps are the overlaps of all networks with what their nodes say of their routes: the first route of each node with each
// network, by network and node, at most limit.
func (v *View) RouteOverlaps(limit int) []RouteOverlap {
	var out []RouteOverlap
	hosts := v.hostRoutes()
	for network := range v.Networks() {
		out = v.routeOverlaps(out, network, hosts, limit)
	}
	return out
}

// RouteOverlapsOf are those of one network.
func (v *View) RouteOverlapsOf(networkID string, limit int) []RouteOverlap {
	network := v.Network(networkID)
	if network == nil {
		return nil
	}
	return v.routeOverlaps(nil, network, v.hostRoutes(), limit)
}

// routesOfHost are a node's routes but for default ones, which lead where nothing else does.
type routesOfHost struct {
	node   string
	routes []netip.Prefix
}

func (v *View) hostRoutes() []routesOfHost {
	var out []routesOfHost
	for node := range v.Nodes() {
		host := routesOfHost{node: node.GetId()}
		for _, text := range v.NodeStatus(node.GetId()).GetDescription().GetNetwork().GetRoutes() {
			if route, err := netip.ParsePrefix(text); err == nil && route.Bits() > 0 {
				host.routes = append(host.routes, route)
			}
		}
		if len(host.routes) > 0 {
			out = append(out, host)
		}
	}
	return out
}

func (v *View) routeOverlaps(out []RouteOverlap, network *swarmpb.Network, hosts []routesOfHost, limit int) []RouteOverlap {
	progress := v.NetworkProgress(network.GetId())
	var subnets []netip.Prefix
	for _, text := range []string{progress.GetSubnet(), progress.GetSubnet6()} {
		if subnet, err := netip.ParsePrefix(text); err == nil {
			subnets = append(subnets, subnet)
		}
	}
	for _, host := range hosts {
		if len(out) >= limit || len(subnets) == 0 {
			break
		}
		if subnet, route, overlaps := firstOverlap(subnets, host.routes); overlaps {
			out = append(out, RouteOverlap{
				Network: network.GetId(), Node: host.node, NetworkName: network.GetSpec().GetName(), NodeName: v.NodeName(host.node), Subnet: subnet, Route: route,
			})
		}
	}
	return out
}

func firstOverlap(subnets, routes []netip.Prefix) (subnet, route netip.Prefix, overlaps bool) {
	for _, subnet := range subnets {
		for _, route := range routes {
			if route.Overlaps(subnet) {
				return subnet, route, true
			}
		}
	}
	return netip.Prefix{}, netip.Prefix{}, false
}
