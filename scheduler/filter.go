package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Filter names what refused a node. A node counts for the first filter that refuses it, those first that
// nothing running on the node can change.
type Filter uint8

const (
	Accepted Filter = iota
	NotReady
	Constrained
	WrongPlatform
	CannotEncrypt
	Insufficient
	NoGeneric
	PortInUse
	TooManyReplicas
	filters
)

var filterWords = [filters]struct{ one, many string }{
	NotReady:        {"1 node not available for new tasks", "%d nodes not available for new tasks"},
	Constrained:     {"scheduling constraints not satisfied on 1 node", "scheduling constraints not satisfied on %d nodes"},
	WrongPlatform:   {"unsupported platform on 1 node", "unsupported platform on %d nodes"},
	Insufficient:    {"insufficient resources on 1 node", "insufficient resources on %d nodes"},
	CannotEncrypt:   {"no encryption of networks on 1 node", "no encryption of networks on %d nodes"},
	NoGeneric:       {"insufficient generic resources on 1 node", "insufficient generic resources on %d nodes"},
	PortInUse:       {"host-mode port already in use on 1 node", "host-mode port already in use on %d nodes"},
	TooManyReplicas: {"max replicas per node limit exceeded on 1 node", "max replicas per node limit exceeded on %d nodes"},
}

// Rejections is the number of nodes that each filter refused.
type Rejections [filters]int

// Crowded reports whether some node would suit but for what is on it now.
func (r Rejections) Crowded() bool {
	return r[Insufficient]+r[NoGeneric]+r[PortInUse]+r[TooManyReplicas] > 0
}

// String is the reason that a user sees, the most frequent first:
// no suitable node (insufficient resources on 2 nodes; scheduling constraints not satisfied on 1 node).
func (r Rejections) String() string {
	var used []Filter
	for f := NotReady; f < filters; f++ {
		if r[f] > 0 {
			used = append(used, f)
		}
	}
	if len(used) == 0 {
		return "no suitable node"
	}
	slices.SortStableFunc(used, func(a, b Filter) int { return cmp.Compare(r[b], r[a]) })
	parts := make([]string, len(used))
	for i, f := range used {
		if parts[i] = filterWords[f].one; r[f] > 1 {
			parts[i] = fmt.Sprintf(filterWords[f].many, r[f])
		}
	}
	return "no suitable node (" + strings.Join(parts, "; ") + ")"
}

// ofClass runs the filters whose answer is the same for a class of nodes, and stays so while tasks are being placed.
func (q *Requirements) ofClass(n *Node) Filter {
	if !n.Ready {
		return NotReady
	}
	for i := range q.Constraints {
		if c := &q.Constraints[i]; !c.own() && !c.Match(n) {
			return Constrained
		}
	}
	if !q.runsOn(n.OS, n.Arch) || n.says != nil && !q.runsOn(n.says.os, n.says.arch) {
		return WrongPlatform
	}
	if q.Encrypted && !n.Encrypts {
		return CannotEncrypt
	}
	return Accepted
}

// variable runs the filters on what is free, for a node that holds `of` of the service's tasks.
func (q *Requirements) variable(n *Node, of int) Filter {
	if !covers(n.Free, q.Reserve) {
		return Insufficient
	}
	if len(q.Generic) > 0 && !n.hasGeneric(q.Generic, nil) {
		return NoGeneric
	}
	for _, p := range q.Ports {
		if n.Ports[p] {
			return PortInUse
		}
	}
	if q.MaxPerNode > 0 && uint64(of) >= q.MaxPerNode {
		return TooManyReplicas
	}
	return Accepted
}
