package dispatcher

import (
	"net/netip"
	"slices"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// hostAddresses are the addresses that nodes say their hosts have, and those that they were seen at. A node's word counts for
// no address that another node was seen at, nor for one that containers have: replies to its owner would be led to the node.
type hostAddresses struct {
	// seen is the address of each node, owners the nodes of each such address.
	seen   map[string]netip.Addr
	owners map[netip.Addr]map[string]struct{}
	// claims are the nodes that say they have an address.
	claims map[netip.Addr]map[string]struct{}
	said   map[string][]netip.Addr
	// subnets are what networks were given.
	subnets map[string][]netip.Prefix
}

func newHostAddresses() hostAddresses {
	return hostAddresses{
		seen: map[string]netip.Addr{}, owners: map[netip.Addr]map[string]struct{}{},
		claims: map[netip.Addr]map[string]struct{}{}, said: map[string][]netip.Addr{}, subnets: map[string][]netip.Prefix{},
	}
}

// follow brings it to the view, and adds the nodes of whose addresses others count now to those that are touched.
func (h *hostAddresses) follow(view *store.View, t *touched) {
	concerned := map[string]struct{}{}
	for id := range t.peers {
		for _, a := range h.followNode(view, id) {
			for node := range h.claims[a] {
				concerned[node] = struct{}{}
			}
		}
	}
	var changed []netip.Prefix
	for id := range t.networks {
		now := subnetsOf(view, id)
		if was := h.subnets[id]; !slices.Equal(was, now) {
			changed = append(append(changed, was...), now...)
			if h.subnets[id] = now; len(now) == 0 {
				delete(h.subnets, id)
			}
		}
	}
	if len(changed) > 0 {
		for a, nodes := range h.claims {
			if within(changed, a) {
				for node := range nodes {
					concerned[node] = struct{}{}
				}
			}
		}
	}
	for node := range concerned {
		t.peers[node] = struct{}{}
	}
}

// followNode answers the addresses that have another owner now.
func (h *hostAddresses) followNode(view *store.View, id string) (changed []netip.Addr) {
	var seen netip.Addr
	var said []netip.Addr
	if view.Node(id) != nil {
		status := view.NodeStatus(id)
		if a, err := netip.ParseAddr(status.GetAddress()); err == nil {
			seen = a.Unmap().WithZone("")
		}
		for _, text := range status.GetDescription().GetNetwork().GetAddresses() {
			if a, err := netip.ParseAddr(text); err == nil {
				said = append(said, a.Unmap())
			}
		}
	}
	if was := h.seen[id]; was != seen {
		dropNode(h.owners, was, id)
		addNode(h.owners, seen, id)
		if h.seen[id] = seen; !seen.IsValid() {
			delete(h.seen, id)
		}
		changed = []netip.Addr{was, seen}
	}
	if was := h.said[id]; !slices.Equal(was, said) {
		for _, a := range was {
			dropNode(h.claims, a, id)
		}
		for _, a := range said {
			addNode(h.claims, a, id)
		}
		if h.said[id] = said; len(said) == 0 {
			delete(h.said, id)
		}
	}
	return changed
}

func addNode(of map[netip.Addr]map[string]struct{}, a netip.Addr, node string) {
	if !a.IsValid() {
		return
	}
	if of[a] == nil {
		of[a] = map[string]struct{}{}
	}
	of[a][node] = struct{}{}
}

func dropNode(of map[netip.Addr]map[string]struct{}, a netip.Addr, node string) {
	if delete(of[a], node); len(of[a]) == 0 {
		delete(of, a)
	}
}

// of are the further addresses of a node's host, as far as its word counts; main is the one that it is reached at.
func (h *hostAddresses) of(nodeID string, main netip.Addr, containers []netip.Prefix) (out []string) {
	for _, a := range h.said[nodeID] {
		if a == main || !a.IsGlobalUnicast() || within(containers, a) || h.isOthers(a, nodeID) {
			continue
		}
		inNetwork := false
		for _, subnets := range h.subnets {
			inNetwork = inNetwork || within(subnets, a)
		}
		if text := a.String(); !inNetwork && !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// isOthers tells whether another node was seen at the address.
func (h *hostAddresses) isOthers(a netip.Addr, nodeID string) bool {
	for owner := range h.owners[a] {
		if owner != nodeID {
			return true
		}
	}
	return false
}

// containerPrefixes are what the cluster gives its containers on the uplink.
func containerPrefixes(cluster *swarmpb.Cluster, pool string) (out []netip.Prefix) {
	if p, err := netip.ParsePrefix(pool); err == nil {
		out = append(out, p)
	}
	if p := swarmpb.FabricPrefix6(cluster.GetId()); p.IsValid() {
		out = append(out, p)
	}
	return out
}

func subnetsOf(view *store.View, networkID string) (out []netip.Prefix) {
	progress := view.NetworkProgress(networkID)
	for _, text := range []string{progress.GetSubnet(), progress.GetSubnet6()} {
		if p, err := netip.ParsePrefix(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
