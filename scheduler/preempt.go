package scheduler

import (
	"slices"
	"strings"
)

// Running is a task that holds something on a node, in the eyes of one that may need its place.
type Running struct {
	Task      string
	Priority  int32
	Resources Resources
	Ports     []Port
	// Of the service that the group is of: it counts against MaxPerNode.
	Same bool
}

// Preempt finds the node on which the fewest tasks must end for one task of the group to fit, all of a priority below
// its own: among as few, those whose highest priority is lowest, then the node that Place would prefer. A group of one task
// that is for a node looks there alone. on lists what runs on a node. It changes nothing; false: no node can be made to suit.
//
// Generic resources are not freed by preemption: a node that lacks them is passed over.
func (n *Nodes) Preempt(g *Group, priority int32, on func(node string) []Running) (node string, victims []string, ok bool) {
	q := g.Requirements
	n.judge(q)
	seed := hashString(g.Service)
	only := ""
	if len(g.Tasks) == 1 {
		only = g.Tasks[0].Node
	}
	var best []Running
	bestAt := int32(-1)
	for i := range n.nodes {
		at := int32(i)
		if only != "" && n.nodes[at].ID != only {
			continue
		}
		if n.fixed(q, at) != Accepted || len(q.Generic) > 0 && !n.nodes[at].hasGeneric(q.Generic, nil) {
			continue
		}
		out, fits := q.evict(&n.nodes[at], g.OnNode[n.nodes[at].ID], priority, on(n.nodes[at].ID))
		if !fits {
			continue
		}
		if bestAt < 0 || fewer(out, best) || !fewer(best, out) && n.preferred(at, bestAt, seed) {
			best, bestAt = out, at
		}
	}
	if bestAt < 0 {
		return "", nil, false
	}
	for _, r := range best {
		victims = append(victims, r.Task)
	}
	slices.Sort(victims)
	return n.nodes[bestAt].ID, victims, true
}

// evict is the least that must go from a node: all that may go, without those that need not, the highest first.
func (q *Requirements) evict(n *Node, of int, priority int32, running []Running) (out []Running, fits bool) {
	lower := slices.DeleteFunc(slices.Clone(running), func(r Running) bool { return r.Priority >= priority })
	slices.SortFunc(lower, func(a, b Running) int {
		if a.Priority != b.Priority {
			return int(max(-1, min(1, int64(b.Priority)-int64(a.Priority))))
		}
		// Of equals the small ones are spared first, so that few large ones go rather than many small ones.
		if a.Resources != b.Resources {
			if a.Resources.NanoCPUs != b.Resources.NanoCPUs {
				return sign(a.Resources.NanoCPUs - b.Resources.NanoCPUs)
			}
			return sign(a.Resources.MemoryBytes - b.Resources.MemoryBytes)
		}
		return strings.Compare(a.Task, b.Task)
	})
	gone := make([]bool, len(lower))
	for i := range gone {
		gone[i] = true
	}
	if !q.fitsWithout(n, of, lower, gone) {
		return nil, false
	}
	for i := range lower {
		gone[i] = false
		if !q.fitsWithout(n, of, lower, gone) {
			gone[i] = true
			out = append(out, lower[i])
		}
	}
	return out, true
}

func sign(x int64) int { return int(max(-1, min(1, x))) }

// fitsWithout reports whether a task fits on the node when the marked ones have gone.
func (q *Requirements) fitsWithout(n *Node, of int, running []Running, gone []bool) bool {
	free := n.Free
	for i, r := range running {
		if gone[i] {
			free.NanoCPUs += r.Resources.NanoCPUs
			free.MemoryBytes += r.Resources.MemoryBytes
			if r.Same {
				of--
			}
		}
	}
	if !covers(free, q.Reserve) || q.MaxPerNode > 0 && of >= int(q.MaxPerNode) {
		return false
	}
	for _, p := range q.Ports {
		if n.Ports[p] && !slices.ContainsFunc(running, func(r Running) bool {
			return slices.Contains(r.Ports, p) && gone[slices.IndexFunc(running, func(o Running) bool { return o.Task == r.Task })]
		}) {
			return false
		}
	}
	return true
}

func fewer(a, b []Running) bool {
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	highest := func(rs []Running) int32 {
		h := rs[0].Priority
		for _, r := range rs {
			h = max(h, r.Priority)
		}
		return h
	}
	return len(a) > 0 && highest(a) < highest(b)
}

// preferred is the order of Place among nodes that are alike otherwise.
func (n *Nodes) preferred(i, j int32, seed uint64) bool {
	a, b := &n.nodes[i], &n.nodes[j]
	if a.Tasks != b.Tasks {
		return a.Tasks < b.Tasks
	}
	return mix(n.hashes[i]^seed) < mix(n.hashes[j]^seed)
}
