package scheduler

import (
	"cmp"
	"math"
	"slices"
)

// Balance is a service as Rebalance sees it.
type Balance struct {
	Service      string
	Requirements *Requirements
	// OnNode is the number of the service's tasks by node.
	OnNode map[string]int
	// Movable are the nodes from which a task may be moved now, with one such task of each.
	Movable map[string]string
	// Avoid are the nodes that none is to be moved to.
	Avoid []map[string]bool
}

func (s *Balance) avoids(node string) bool {
	for _, nodes := range s.Avoid {
		if nodes[node] {
			return true
		}
	}
	return false
}

// Move is a task that would be better off elsewhere.
type Move struct {
	Service, Task, From, To string
}

// skew is how a move changes the sums of squares of what is to be even: the tasks in the branches of each spread
// preference, the service's tasks a node, and the tasks a node. A move is an improvement if the first of them that
// changes gets smaller. All of them are whole numbers that no sequence of improvements can lower for ever, so it ends.
type skew [maxLevels + 2]int

// maxLevels of spread preferences are looked at.
const maxLevels = 6

func (s skew) improves() bool {
	for _, d := range s {
		if d != 0 {
			return d < 0
		}
	}
	return false
}

// Rebalance proposes at most so many moves, at most one a service, in the order of the services. Each makes the
// placement more even by itself and after those before it; the nodes and OnNode count it as done.
// Services that pack tasks are left alone, and so are nodes that no filter accepts.
func (n *Nodes) Rebalance(services []Balance, most int) []Move {
	var out []Move
	for i := range services {
		if len(out) == most {
			break
		}
		s := &services[i]
		move, ok := n.Better(s)
		if !ok {
			continue
		}
		out = append(out, move)
		delete(s.Movable, move.From)
		n.shift(s, n.index[move.From], n.index[move.To])
	}
	return out
}

// Better is the move of one service that makes the placement most even, if any does. It counts nothing as done.
func (n *Nodes) Better(s *Balance) (Move, bool) {
	if s.Requirements.Binpack || len(s.Movable) == 0 || n.cannotBeEvener(s) {
		return Move{}, false
	}
	from, to, ok := n.move(s)
	if !ok {
		return Move{}, false
	}
	return Move{Service: s.Service, Task: s.Movable[n.nodes[from].ID], From: n.nodes[from].ID, To: n.nodes[to].ID}, true
}

// cannotBeEvener tells cheaply that no node is better: where there is nothing to spread over, that no node has two of the
// service's tasks, or two tasks more than any other.
func (n *Nodes) cannotBeEvener(s *Balance) bool {
	if len(s.Requirements.Spread) > 0 {
		return false
	}
	if !n.counted {
		n.counted, n.fewest = true, math.MaxInt
		for i := range n.nodes {
			if node := &n.nodes[i]; node.Ready {
				n.fewest = min(n.fewest, node.Tasks)
			}
		}
	}
	for id := range s.Movable {
		at, known := n.index[id]
		if known && (s.OnNode[id] > 1 || n.nodes[at].Tasks-n.fewest > 1) {
			return false
		}
	}
	return true
}

// shift counts a move as done.
func (n *Nodes) shift(s *Balance, from, to int32) {
	q := s.Requirements
	a, b := &n.nodes[from], &n.nodes[to]
	b.take(q.Reserve, q.Ports, 1)
	if len(q.Generic) > 0 {
		b.takeGeneric(q.Generic, nil)
	}
	a.take(Resources{NanoCPUs: -q.Reserve.NanoCPUs, MemoryBytes: -q.Reserve.MemoryBytes}, nil, -1)
	for _, p := range q.Ports {
		delete(a.Ports, p)
	}
	n.changed(from)
	n.changed(to)
	s.OnNode[a.ID]--
	s.OnNode[b.ID]++
}

// move finds the best improvement of one service; of equally good ones that from the fuller to the emptier node.
func (n *Nodes) move(s *Balance) (from, to int32, ok bool) {
	q := s.Requirements
	n.judge(q)
	e := n.newEvener(s)
	for i := range n.nodes {
		at, node := int32(i), &n.nodes[i]
		leaf := e.count(node)
		if s.Movable[node.ID] != "" {
			e.leaving(leaf, at)
		}
		if n.fixed(q, at) == Accepted && !s.avoids(node.ID) && q.variable(node, s.OnNode[node.ID]) == Accepted {
			e.taking(leaf, at)
		}
	}
	return e.best()
}

func less(a, b skew) bool { return slices.Compare(a[:], b[:]) < 0 }

// compare orders nodes by how full they are for the service.
func (n *Nodes) compare(s *Balance, i, j int32) int {
	a, b := &n.nodes[i], &n.nodes[j]
	return cmp.Or(cmp.Compare(s.OnNode[a.ID], s.OnNode[b.ID]), cmp.Compare(a.Tasks, b.Tasks),
		cmp.Compare(a.reserved, b.reserved), cmp.Compare(a.ID, b.ID))
}

// tie settles which of two equally good moves is made.
func (n *Nodes) tie(s *Balance, from, to, otherFrom, otherTo int32) int {
	return cmp.Or(n.compare(s, otherFrom, from), n.compare(s, to, otherTo))
}
