package scheduler

import "strings"

// tree orders the accepted nodes of a round. Each level is one spread preference, each branch one value of it
// (nodes without the attribute share the empty value); its leaves hold heaps of nodes. A branch without an
// accepted node is in no heap, but what runs in it still counts.
type tree struct {
	round    *round
	branches []branch // the root first
}

type branch struct {
	value  string
	hash   uint64
	count  int // the service's tasks in it
	parent int32
	pos    int32            // in the parent's heap; -1 = has no accepted node
	heap   []int32          // branches, or candidates in a leaf; the best first
	byName map[string]int32 // all children
}

func (t *tree) build(r *round, seed uint64) {
	t.round = r
	t.branches = append(make([]branch, 0, 1), branch{parent: -1, pos: -1})
	if len(r.req.Spread) == 0 {
		t.branches[0].heap = r.nodes.order[:0]
	}
	// A single task needs the best node of each branch alone.
	one := len(r.group.Tasks) == 1
	for i := range r.cands {
		c := &r.cands[i]
		for level, a := range r.req.Spread {
			c.leaf = t.child(c.leaf, a.Of(&r.nodes.nodes[i]), seed+uint64(level))
		}
		leaf := &t.branches[c.leaf]
		leaf.count += int(c.load &^ failing / oneOfService)
		if c.out != Accepted {
			continue
		}
		if one && len(leaf.heap) == 1 {
			if r.before(leaf.heap[0], int32(i)) {
				continue
			}
			r.cands[leaf.heap[0]].pos = -1
			leaf.heap = leaf.heap[:0]
		}
		c.pos = int32(len(leaf.heap))
		leaf.heap = append(leaf.heap, int32(i))
	}
	// Children come after their parents, so their counts and heaps are complete when it is their turn.
	for b := int32(len(t.branches)) - 1; b >= 0; b-- {
		at := &t.branches[b]
		for i := int32(len(at.heap))/2 - 1; i >= 0; i-- {
			t.down(b, i)
		}
		if at.parent < 0 {
			continue
		}
		parent := &t.branches[at.parent]
		parent.count += at.count
		if len(at.heap) > 0 {
			at.pos = int32(len(parent.heap))
			parent.heap = append(parent.heap, b)
		}
	}
}

func (t *tree) child(parent int32, value string, seed uint64) int32 {
	p := &t.branches[parent]
	if p.byName == nil {
		p.byName = make(map[string]int32)
	}
	b, ok := p.byName[value]
	if !ok {
		b = int32(len(t.branches))
		p.byName[value] = b
		t.branches = append(t.branches, branch{value: value, hash: mix(hashString(value) ^ seed), parent: parent, pos: -1})
	}
	return b
}

func (t *tree) isLeaf(b int32) bool { return t.branches[b].byName == nil }

// best is the node for the next task; -1 = none.
func (t *tree) best() int32 { return t.bestIn(0) }

// bestIn is the best node of a branch; -1 = none.
func (t *tree) bestIn(b int32) int32 {
	for {
		heap := t.branches[b].heap
		if len(heap) == 0 {
			return -1
		}
		if t.isLeaf(b) {
			return heap[0]
		}
		b = heap[0]
	}
}

// notWorse reports whether the service spreads at least as well over node i as over node j, the best one.
func (t *tree) notWorse(i, j int32) bool {
	a, b := t.round.cands[i].leaf, t.round.cands[j].leaf
	if a == b {
		return t.round.cands[i].load/oneOfService <= t.round.cands[j].load/oneOfService
	}
	for t.branches[a].parent != t.branches[b].parent { // all leaves are equally deep
		a, b = t.branches[a].parent, t.branches[b].parent
	}
	if t.branches[a].count > t.branches[b].count {
		return false
	}
	// Of branches that are equal, its own may have a better node than it.
	best := t.bestIn(a)
	return best < 0 || t.notWorse(i, best)
}

// moved counts a task that was just put on the node, and restores the order.
func (t *tree) moved(at int32) {
	c := &t.round.cands[at]
	b, pos := c.leaf, c.pos
	if c.out != Accepted && pos >= 0 {
		t.remove(b, pos)
		c.pos, pos = -1, -1
	}
	for {
		if pos >= 0 {
			t.down(b, t.up(b, pos)) // up: with binpack, a task more makes a node a better one
		}
		at := &t.branches[b]
		at.count++
		if at.parent < 0 {
			return
		}
		if len(at.heap) == 0 && at.pos >= 0 {
			t.remove(at.parent, at.pos)
			at.pos = -1
		}
		b, pos = at.parent, at.pos
	}
}

func (t *tree) remove(b, pos int32) {
	at := &t.branches[b]
	last := int32(len(at.heap)) - 1
	moved := at.heap[last]
	at.heap = at.heap[:last]
	if pos == last {
		return
	}
	t.set(b, pos, moved)
	t.up(b, pos)
	t.down(b, pos)
}

func (t *tree) set(b, pos, x int32) {
	t.branches[b].heap[pos] = x
	if t.isLeaf(b) {
		t.round.cands[x].pos = pos
	} else {
		t.branches[x].pos = pos
	}
}

func (t *tree) before(leaf bool, x, y int32) bool {
	if leaf {
		return t.round.before(x, y)
	}
	a, b := &t.branches[x], &t.branches[y]
	if a.count != b.count {
		return a.count < b.count
	}
	if a.hash != b.hash {
		return a.hash < b.hash
	}
	return strings.Compare(a.value, b.value) < 0
}

func (t *tree) down(b, pos int32) {
	heap, leaf := t.branches[b].heap, t.isLeaf(b)
	x := heap[pos]
	for {
		next := 2*pos + 1
		if next >= int32(len(heap)) {
			break
		}
		if next+1 < int32(len(heap)) && t.before(leaf, heap[next+1], heap[next]) {
			next++
		}
		if !t.before(leaf, heap[next], x) {
			break
		}
		t.set(b, pos, heap[next])
		pos = next
	}
	t.set(b, pos, x)
}

// up returns where it has got to.
func (t *tree) up(b, pos int32) int32 {
	heap, leaf := t.branches[b].heap, t.isLeaf(b)
	x := heap[pos]
	for pos > 0 {
		parent := (pos - 1) / 2
		if !t.before(leaf, x, heap[parent]) {
			break
		}
		t.set(b, pos, heap[parent])
		pos = parent
	}
	t.set(b, pos, x)
	return pos
}
