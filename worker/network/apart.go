package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// A peer whose address is of the other family than this node's cannot be reached from here, by the fabric or by networks. It is
// reported, and its endpoints get connections only when there are no others, as those of a node that gossip calls dead; all
// others are served.

// isDead tells whether endpoints on a node are to get no connections while there are others. n.mu is held.
func (n *Network) isDead(nodeID string) bool {
	if n.fabric != nil && n.fabric.apart[nodeID].IsValid() {
		return true
	}
	return n.hint != nil && n.hint(nodeID)
}

// apart are the peers that cannot be reached, with their addresses.
func (n *Network) apart() map[string]netip.Addr {
	if n.fabric == nil {
		return nil
	}
	return maps.Clone(n.fabric.apart)
}

// tellApart has all follow when other peers are apart than before.
func (n *Network) tellApart(before map[string]netip.Addr) error {
	now := n.apart()
	if maps.Equal(before, now) {
		return nil
	}
	if line := apartLine(now, n.ownAddress()); line != "" {
		n.cfg.Logger.Warn("nodes cannot be reached", "reason", line)
	}
	return n.followHints()
}

// namedApart is how many peers a line names.
const namedApart = 4

// apartLine says which peers cannot be reached; empty: there are none.
func apartLine(apart map[string]netip.Addr, own netip.Addr) string {
	if len(apart) == 0 {
		return ""
	}
	var names []string
	for _, id := range slices.Sorted(maps.Keys(apart)) {
		names = append(names, fmt.Sprintf("%s (%s)", id, apart[id]))
	}
	if more := len(names) - namedApart; more > 0 {
		names = append(names[:namedApart], fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("tasks on node %s cannot be reached from this node, whose address is %s: the addresses of nodes have to be of one family; "+
		"join those that differ again with an --advertise-addr of the others' family", strings.Join(names, ", "), own)
}
