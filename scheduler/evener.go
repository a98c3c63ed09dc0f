package scheduler

import (
	"cmp"
	"slices"
)

// evener finds the move that makes a service's tasks most even, in a tree of the branches of its spread preferences. Two nodes
// part at one branch, below which their counts are different ones: so of all moves that part there the best is from the
// fullest to the emptiest node below it, each judged by itself. That takes one look at each branch, and not one at each pair.
type evener struct {
	n *Nodes
	s *Balance
	// of is how many of the service's tasks each node has.
	of       []int
	levels   int
	branches []evenBranch // the first is the root; each comes after the one that it is a part of
	index    map[evenKey]int32
}

type evenKey struct {
	parent int32
	value  string
}

// evenBranch are the nodes of which the spread preferences down to a level have the same values.
type evenBranch struct {
	parent int32
	count  int // of the service's tasks
	// path are the counts of the branches from the root down to this one, without the root.
	path [maxLevels]int
	// from are the fullest node that a task may leave and the fullest in another part of the branch, to the emptiest nodes that
	// may take one.
	from, to [2]end
}

// end of a move.
type end struct {
	known bool
	// part of the branch that the node is in, leaf the last branch that it is in.
	part, leaf int32
	node       int32
}

func (n *Nodes) newEvener(s *Balance) *evener {
	return &evener{n: n, s: s, of: make([]int, len(n.nodes)), levels: min(len(s.Requirements.Spread), maxLevels), branches: make([]evenBranch, 1), index: map[evenKey]int32{}}
}

// count enters how many of the service's tasks a node has, and answers with its last branch.
func (e *evener) count(node int32, tasks int) int32 {
	at := int32(0)
	e.of[node] = tasks
	for l := range e.levels {
		key := evenKey{at, e.s.Requirements.Spread[l].Of(&e.n.nodes[node])}
		next, known := e.index[key]
		if !known {
			next = int32(len(e.branches))
			e.index[key] = next
			e.branches = append(e.branches, evenBranch{parent: at})
		}
		at = next
		e.branches[at].count += tasks
	}
	return at
}

// leaving and taking enter a node at one end of a move.
func (e *evener) leaving(leaf, node int32) {
	if b := &e.branches[leaf].from[0]; !b.known || e.fuller(node, b.node) > 0 {
		*b = end{true, leaf, leaf, node}
	}
}

func (e *evener) taking(leaf, node int32) {
	if b := &e.branches[leaf].to[0]; !b.known || e.fuller(node, b.node) < 0 {
		*b = end{true, leaf, leaf, node}
	}
}

// compare orders nodes by how full they and their branches are.
func (e *evener) compare(a, b end) int {
	if x, y := &e.branches[a.leaf].path, &e.branches[b.leaf].path; *x != *y {
		return slices.Compare(x[:], y[:])
	}
	return e.fuller(a.node, b.node)
}

// fuller orders nodes by how full they are for the service.
func (e *evener) fuller(i, j int32) int {
	a, b := &e.n.nodes[i], &e.n.nodes[j]
	return cmp.Or(cmp.Compare(e.of[i], e.of[j]), cmp.Compare(a.Tasks, b.Tasks), cmp.Compare(a.reserved, b.reserved), cmp.Compare(a.ID, b.ID))
}

// tie settles which of two equally good moves is made.
func (e *evener) tie(from, to, otherFrom, otherTo int32) int {
	return cmp.Or(e.fuller(otherFrom, from), e.fuller(to, otherTo))
}

// best is the best move and what it changes, if one is an improvement.
func (e *evener) best() (from, to int32, best skew, ok bool) {
	e.setPaths()
	try := func(f, t end) {
		if !f.known || !t.known || f.node == t.node {
			return
		}
		d := e.gain(f, t)
		if d.improves() && (!ok || less(d, best) || d == best && e.tie(f.node, t.node, from, to) < 0) {
			from, to, best, ok = f.node, t.node, d, true
		}
	}
	for i := len(e.branches) - 1; i >= 0; i-- {
		b := &e.branches[i]
		if f, t := b.from, b.to; f[0].part != t[0].part || f[0].leaf == int32(i) {
			try(f[0], t[0])
		} else {
			try(f[0], t[1])
			try(f[1], t[0])
		}
		if i > 0 {
			e.offer(int32(i))
		}
	}
	return from, to, best, ok
}

// setPaths fills in the counts along the way to each branch.
func (e *evener) setPaths() {
	depth := make([]int, len(e.branches))
	for i := range e.branches[1:] {
		b := &e.branches[i+1]
		b.path = e.branches[b.parent].path
		b.path[depth[b.parent]] = b.count
		depth[i+1] = depth[b.parent] + 1
	}
}

// offer tells the branch above of the best ends in one of its parts.
func (e *evener) offer(part int32) {
	b := &e.branches[part]
	above := &e.branches[b.parent]
	enter := func(ends *[2]end, one end, better int) {
		one.part = part
		switch {
		case !one.known:
		case !ends[0].known || e.compare(one, ends[0])*better > 0:
			ends[0], ends[1] = one, ends[0]
		case !ends[1].known || e.compare(one, ends[1])*better > 0:
			ends[1] = one
		}
	}
	enter(&above.from, b.from[0], 1)
	enter(&above.to, b.to[0], -1)
}

// gain is how a move changes the sums of squares.
func (e *evener) gain(from, to end) skew {
	var d skew
	if from.leaf != to.leaf {
		a, b := from.leaf, to.leaf
		for l := e.levels - 1; l >= 0 && a != b; l-- {
			d[l] = 2*(e.branches[b].count-e.branches[a].count) + 2
			a, b = e.branches[a].parent, e.branches[b].parent
		}
	}
	d[maxLevels] = 2*(e.of[to.node]-e.of[from.node]) + 2
	d[maxLevels+1] = 2*(e.n.nodes[to.node].Tasks-e.n.nodes[from.node].Tasks) + 2
	return d
}
