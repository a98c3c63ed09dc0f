package scheduler

import (
	"math"
	"slices"
)

// Balance is a service as Better sees it.
type Balance struct {
	Service      string
	Requirements *Requirements
	// OnNode is the number of the service's tasks by node.
	OnNode map[string]int
	// From, when set, is the only node that a task may leave; none may leave those that Stays has.
	From  string
	Stays map[string]bool
	// Avoid are the nodes that none is to be moved to.
	Avoid []map[string]bool
}

// leaves tells whether a task may leave the node.
func (s *Balance) leaves(node string) bool {
	return (s.From == "" || s.From == node) && !s.Stays[node]
}

func (s *Balance) avoids(node string) bool {
	for _, nodes := range s.Avoid {
		if nodes[node] {
			return true
		}
	}
	return false
}

// Move is one task of a service that would be better off elsewhere.
type Move struct {
	Service, From, To string
	// Load: it is for nothing but how many tasks the nodes have, which are FromTasks and ToTasks before it.
	Load               bool
	FromTasks, ToTasks int
}

// skew is how a move changes the sums of squares of what is to be even: the tasks in the branches of each spread
// preference, the service's tasks a node, and the tasks a node. A move is an improvement if the first of them that
// changes gets smaller. All of them are whole numbers that no sequence of improvements can lower for ever, so it ends.
type skew [maxLevels + 2]int

// load tells whether only the tasks a node change.
func (s skew) load() bool { return s[maxLevels+1] != 0 && s == skew{maxLevels + 1: s[maxLevels+1]} }

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

// Better is the move of one service that makes the placement most even, if any does. It counts nothing as done. A service
// that packs its tasks is left alone, and so are nodes that no filter accepts. One that is for load alone is the answer only
// where none is for more than that, and it is from the fullest to the emptiest node.
func (n *Nodes) Better(s *Balance) (Move, bool) {
	if s.Requirements.Binpack || n.cannotBeEvener(s) {
		return Move{}, false
	}
	from, to, d, ok := n.move(s)
	if !ok {
		return Move{}, false
	}
	a, b := &n.nodes[from], &n.nodes[to]
	return Move{Service: s.Service, From: a.ID, To: b.ID, Load: d.load(), FromTasks: a.Tasks, ToTasks: b.Tasks}, true
}

// Made counts a move of the service as done, in the nodes and in OnNode: what is asked for next is to be better after it.
func (n *Nodes) Made(s *Balance, m Move) { n.shift(s, n.index[m.From], n.index[m.To]) }

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
	for id, of := range s.OnNode {
		if of < 1 || !s.leaves(id) {
			continue
		}
		if at, known := n.index[id]; known && (of > 1 || n.nodes[at].Tasks-n.fewest > 1) {
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
func (n *Nodes) move(s *Balance) (from, to int32, d skew, ok bool) {
	q := s.Requirements
	n.judge(q)
	e := n.newEvener(s)
	for i := range n.nodes {
		at, node := int32(i), &n.nodes[i]
		of := s.OnNode[node.ID]
		leaf := e.count(at, of)
		if of > 0 && s.leaves(node.ID) {
			e.leaving(leaf, at)
		}
		if n.fixed(q, at) == Accepted && !s.avoids(node.ID) && q.variable(node, of) == Accepted {
			e.taking(leaf, at)
		}
	}
	return e.best()
}

func less(a, b skew) bool { return slices.Compare(a[:], b[:]) < 0 }
