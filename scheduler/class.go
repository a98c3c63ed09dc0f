package scheduler

import (
	"maps"
	"strings"
)

// A class is the nodes that no filter can tell apart but by their ID, name and address, and by what is free on them.
// What such filters say of one node of a class holds for all of them.
type class struct {
	like    *Node // one of them
	members []int32
}

// classify gives each node its class, in the order of the nodes.
func (n *Nodes) classify() {
	n.class = make([]int32, len(n.nodes))
	byHash := map[uint64][]int32{}
	for i := range n.nodes {
		node := &n.nodes[i]
		h := node.likeness()
		found := int32(-1)
		for _, c := range byHash[h] {
			if alike(n.classes[c].like, node) {
				found = c
				break
			}
		}
		if found < 0 {
			found = int32(len(n.classes))
			n.classes = append(n.classes, class{like: node})
			byHash[h] = append(byHash[h], found)
		}
		n.class[i] = found
		n.classes[found].members = append(n.classes[found].members, int32(i))
	}
	n.verdicts = make([]Filter, len(n.classes))
}

// likeness hashes what makes a class, in any order of the labels.
func (n *Node) likeness() uint64 {
	h := uint64(n.Role) << 2
	if n.Ready {
		h |= 1
	}
	if n.Encrypts {
		h |= 2
	}
	h = mix(h) + hashString(strings.ToLower(n.OS)) + 3*hashString(architecture(n.Arch))
	for key, value := range n.Labels {
		h += mix(hashString(key) ^ 5*hashString(value))
	}
	for key, value := range n.EngineLabels {
		h += mix(hashString(key) ^ 7*hashString(value))
	}
	if n.says != nil {
		h = mix(h) + hashString(n.says.os) + 3*hashString(n.says.arch)
		for key, value := range n.says.labels {
			h += mix(hashString(key) ^ 11*hashString(value))
		}
	}
	return h
}

func alike(a, b *Node) bool {
	return a.Ready == b.Ready && a.Role == b.Role && a.Encrypts == b.Encrypts && strings.EqualFold(a.OS, b.OS) &&
		strings.EqualFold(architecture(a.Arch), architecture(b.Arch)) &&
		maps.Equal(a.Labels, b.Labels) && maps.Equal(a.EngineLabels, b.EngineLabels) && alikeBySelf(a.says, b.says)
}

// alikeBySelf compares what nodes say of themselves, but for their names.
func alikeBySelf(a, b *self) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.os == b.os && a.arch == b.arch && maps.Equal(a.labels, b.labels)
}

// judge runs the filters that classes decide about, once a class; the answers are in verdicts until the next call.
func (n *Nodes) judge(q *Requirements) {
	for c := range n.classes {
		n.verdicts[c] = q.ofClass(n.classes[c].like)
	}
}

// fixed is what no task can change for a node: its class's verdict, and what its own name and address say.
func (n *Nodes) fixed(q *Requirements, at int32) Filter {
	verdict := n.verdicts[n.class[at]]
	if verdict == Accepted || verdict > Constrained {
		for i := range q.Constraints {
			if c := &q.Constraints[i]; c.own() && !c.Match(&n.nodes[at]) {
				return Constrained
			}
		}
	}
	return verdict
}
