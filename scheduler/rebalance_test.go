package scheduler

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// TestBetter_AnyCluster_NoOtherMoveIsBetter: of all moves from a node that a task may leave to one that takes it.
func TestBetter_AnyCluster_NoOtherMoveIsBetter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		few := func(what string, most int) int { return rapid.IntRange(0, most).Draw(t, what) }
		s := &Balance{Service: "s", Requirements: &Requirements{}, OnNode: map[string]int{}, Stays: map[string]bool{}}
		levels := []string{"node.labels.a", "node.labels.b", "node.labels.c"}[:few("levels", 3)]
		s.Requirements.Spread = spread(t, levels...)
		var nodes []Node
		avoid := map[string]bool{}
		for i := range few("nodes", 12) {
			id := fmt.Sprintf("n%02d", i)
			n := ready(id, func(n *Node) {
				n.Labels = map[string]string{"a": fmt.Sprint(few("a", 2)), "b": fmt.Sprint(few("b", 2)), "c": fmt.Sprint(few("c", 1))}
				n.Tasks = few("tasks", 3)
				n.Free.NanoCPUs -= int64(few("reserved", 2))
			})
			s.OnNode[id], s.Stays[id] = few("own", 3), few("movable", 3) == 0
			avoid[id] = few("avoided", 3) == 0
			nodes = append(nodes, n)
		}
		s.Avoid = []map[string]bool{avoid}
		all := NewNodes(nodes)
		move, ok := all.Better(s)
		e := all.newEvener(s)
		leaf := make([]int32, len(all.nodes))
		for i := range all.nodes {
			leaf[i] = e.count(int32(i), s.OnNode[all.nodes[i].ID])
		}
		var best skew
		from, to, found := int32(0), int32(0), false
		for f := range int32(len(all.nodes)) {
			for at := range int32(len(all.nodes)) {
				if s.OnNode[all.nodes[f].ID] == 0 || s.Stays[all.nodes[f].ID] || f == at || avoid[all.nodes[at].ID] {
					continue
				}
				d := e.gain(end{leaf: leaf[f], node: f}, end{leaf: leaf[at], node: at})
				if d.improves() && (!found || less(d, best) || d == best && e.tie(f, at, from, to) < 0) {
					from, to, best, found = f, at, d, true
				}
			}
		}
		if ok && move.Load != (best == skew{maxLevels + 1: best[maxLevels+1]}) {
			t.Fatalf("%v is for %v", move, best)
		}
		if ok != found || ok && (move.From != all.nodes[from].ID || move.To != all.nodes[to].ID) {
			t.Fatalf("%v %v, the best of all is %v: %s to %s, %v", ok, move, found, all.nodes[from].ID, all.nodes[to].ID, best)
		}
	})
}

// rebalance makes at most so many moves, at most one a service, in the order of the services, as if any task could be moved.
func (n *Nodes) rebalance(services []Balance, most int) (out []Move) {
	for i := range services {
		if len(out) == most {
			break
		}
		if move, ok := n.Better(&services[i]); ok {
			out = append(out, move)
			n.Made(&services[i], move)
		}
	}
	return out
}

// TestBetter_EachNodeIsABranch_AllNodesAreLookedAtOnce: a service may be spread over the names of nodes.
func TestBetter_EachNodeIsABranch_AllNodesAreLookedAtOnce(t *testing.T) {
	const size = 50_000 // for which all pairs would take an hour
	var nodes []Node
	s := &Balance{Service: "s", Requirements: &Requirements{Spread: spread(t, "node.hostname")}, OnNode: map[string]int{}, Stays: map[string]bool{}}
	for i := range size {
		id := fmt.Sprintf("n%05d", i)
		nodes = append(nodes, ready(id, func(n *Node) { n.Hostname = id }))
		if i > 0 {
			s.OnNode[id] = 1
		}
	}
	s.OnNode["n00007"] = 2
	if move, ok := NewNodes(nodes).Better(s); !ok || move.From != "n00007" || move.To != "n00000" {
		t.Errorf("%v %v", move, ok)
	}
}

// BenchmarkBetter: a service with a task on every second node looks for a better place, with nothing to spread over, and over
// branches of as many nodes.
func BenchmarkBetter(b *testing.B) {
	for _, size := range []int{1000, 10_000} {
		for _, branch := range []int{0, 100, 1} {
			b.Run(fmt.Sprintf("nodes=%d/branch=%d", size, branch), func(b *testing.B) {
				var nodes []Node
				s := &Balance{Service: "s", Requirements: &Requirements{}, OnNode: map[string]int{}, Stays: map[string]bool{}}
				if branch > 0 {
					s.Requirements.Spread = spread(b, "node.labels.at")
				}
				for i := range size {
					id := fmt.Sprintf("n%05d", i)
					nodes = append(nodes, ready(id, func(n *Node) { n.Labels = map[string]string{"at": fmt.Sprint(i / max(1, branch))}; n.Tasks = 100 }))
					if i%2 == 0 {
						s.OnNode[id] = 1
					}
				}
				all := NewNodes(nodes)
				for b.Loop() {
					all.Better(s)
				}
			})
		}
	}
}
