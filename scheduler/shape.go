package scheduler

import "cmp"

// A shape is the nodes that suit tasks with certain requirements, of a service that has no task yet, best first. It is
// kept from group to group and brought up to date with the nodes that changed meanwhile, so a one-off task costs the
// logarithm of the nodes, however many services ask for the same.
type shape struct {
	req  *Requirements
	seed uint64
	heap []ranked
	pos  []int32 // of each node in the heap; -1 = it does not suit
	// seen is how much of the journal it knows; none is what was said when it was empty at that point.
	seen   int
	none   Rejections
	noneAt int
}

// ranked is a node with its rank as it was when the shape last looked: the heap holds together although nodes change.
type ranked struct {
	hash     uint64
	tasks    int
	reserved uint32
	at       int32
}

const (
	// maxShapes are kept; one more and all are made anew as they are needed.
	maxShapes = 64
	// maxJournal bounds how far a shape may lag behind, in numbers of nodes.
	maxJournal = 4
)

// placeFresh places a group whose tasks can all go to different nodes without a look at what the service has where:
// nothing anywhere, no successors, no preferences among several. It reports false when that is not so.
func (n *Nodes) placeFresh(g *Group, out []Assignment) bool {
	many := len(g.Tasks) > 1
	if len(g.Tasks) == 0 || len(g.OnNode) > 0 || len(g.Failing) > 0 || many && (len(g.Requirements.Spread) > 0 || g.Requirements.Binpack) {
		return false
	}
	for i := range g.Tasks {
		if g.Tasks[i].Node != "" || g.Tasks[i].Held != nil {
			return false
		}
	}
	s := n.shapeOf(g)
	if len(g.Tasks) > len(s.heap) {
		if !many {
			out[0].Rejections = s.rejections(n)
		}
		return !many
	}
	// Each takes the best node and leaves it out of the heap for the others: one more of the service there ranks last.
	for i := range g.Tasks {
		at := s.heap[0].at
		s.remove(0)
		node := &n.nodes[at]
		out[i].Node = node.ID
		node.take(s.req.Reserve, s.req.Ports, 1)
		if len(s.req.Generic) > 0 {
			out[i].Generic = node.takeGeneric(s.req.Generic, nil)
		}
		n.changed(at)
	}
	return true
}

// shapeOf finds or makes the shape of a group, up to date.
func (n *Nodes) shapeOf(g *Group) *shape {
	key := g.Requirements.likeness()
	s := n.shapes[key]
	if s == nil {
		if n.shapes == nil || len(n.shapes) == maxShapes {
			n.shapes, n.journal = make(map[string]*shape), n.journal[:0]
		}
		s = &shape{req: g.Requirements, seed: hashString(g.Service), pos: make([]int32, len(n.nodes)), heap: make([]ranked, 0, len(n.nodes)), noneAt: -1}
		n.shapes[key] = s
		s.fill(n)
		return s
	}
	if len(n.journal)-s.seen > len(n.nodes)/4+16 {
		s.fill(n)
		return s
	}
	for ; s.seen < len(n.journal); s.seen++ {
		s.refresh(n, n.journal[s.seen])
	}
	return s
}

// changed notes that what is free on a node has changed.
func (n *Nodes) changed(at int32) {
	n.counted = false
	if len(n.shapes) == 0 {
		return
	}
	if len(n.journal) >= maxJournal*len(n.nodes)+1024 {
		n.shapes, n.journal = nil, n.journal[:0]
		return
	}
	n.journal = append(n.journal, at)
}

func (s *shape) fill(n *Nodes) {
	s.heap = s.heap[:0]
	n.judge(s.req)
	for i := range s.pos {
		s.pos[i] = -1
	}
	for c := range n.classes {
		if verdict := n.verdicts[c]; verdict != Accepted {
			continue
		}
		for _, at := range n.classes[c].members {
			if n.fixed(s.req, at) == Accepted && s.req.variable(&n.nodes[at], 0) == Accepted {
				s.pos[at] = int32(len(s.heap))
				s.heap = append(s.heap, s.rank(n, at))
			}
		}
	}
	for i := int32(len(s.heap))/2 - 1; i >= 0; i-- {
		s.down(i)
	}
	s.seen, s.noneAt = len(n.journal), -1
}

// refresh puts a node that has changed where it belongs.
func (s *shape) refresh(n *Nodes, at int32) {
	suits := s.req.ofClass(n.classes[n.class[at]].like) == Accepted && s.own(n, at) && s.req.variable(&n.nodes[at], 0) == Accepted
	pos := s.pos[at]
	switch {
	case suits && pos < 0:
		s.heap = append(s.heap, s.rank(n, at))
		s.up(int32(len(s.heap)) - 1)
	case suits:
		s.heap[pos] = s.rank(n, at)
		s.down(s.up(pos))
	case pos >= 0:
		s.remove(pos)
	}
}

func (s *shape) rank(n *Nodes, at int32) ranked {
	node := &n.nodes[at]
	return ranked{hash: mix(n.hashes[at] ^ s.seed), tasks: node.Tasks, reserved: node.reserved, at: at}
}

func (s *shape) own(n *Nodes, at int32) bool {
	for i := range s.req.Constraints {
		if c := &s.req.Constraints[i]; c.own() && !c.Match(&n.nodes[at]) {
			return false
		}
	}
	return true
}

// rejections is why no node suits, counted once for as long as nothing changes.
func (s *shape) rejections(n *Nodes) Rejections {
	if s.noneAt == len(n.journal) {
		return s.none
	}
	n.judge(s.req)
	s.none, s.noneAt = Rejections{}, len(n.journal)
	for i := range n.nodes {
		out := n.fixed(s.req, int32(i))
		if out == Accepted {
			out = s.req.variable(&n.nodes[i], 0)
		}
		s.none[out]++
	}
	s.none[Accepted] = 0
	return s.none
}

// before is the order of Place for nodes without a task of the service.
func (s *shape) before(a, b *ranked) bool {
	if s.req.Binpack {
		if a.reserved != b.reserved {
			return a.reserved > b.reserved
		}
		if a.tasks != b.tasks {
			return a.tasks > b.tasks
		}
	}
	if a.tasks != b.tasks {
		return a.tasks < b.tasks
	}
	if a.reserved != b.reserved {
		return a.reserved < b.reserved
	}
	return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.at, b.at)) < 0
}

func (s *shape) set(pos int32, x ranked) { s.heap[pos], s.pos[x.at] = x, pos }

func (s *shape) remove(pos int32) {
	s.pos[s.heap[pos].at] = -1
	last := int32(len(s.heap)) - 1
	moved := s.heap[last]
	s.heap = s.heap[:last]
	if pos == last {
		return
	}
	s.set(pos, moved)
	s.down(s.up(pos))
}

func (s *shape) up(pos int32) int32 {
	x := s.heap[pos]
	for pos > 0 {
		parent := (pos - 1) / 2
		if !s.before(&x, &s.heap[parent]) {
			break
		}
		s.set(pos, s.heap[parent])
		pos = parent
	}
	s.set(pos, x)
	return pos
}

func (s *shape) down(pos int32) {
	x := s.heap[pos]
	for {
		next := 2*pos + 1
		if next >= int32(len(s.heap)) {
			break
		}
		if next+1 < int32(len(s.heap)) && s.before(&s.heap[next+1], &s.heap[next]) {
			next++
		}
		if !s.before(&s.heap[next], &x) {
			break
		}
		s.set(pos, s.heap[next])
		pos = next
	}
	s.set(pos, x)
}
