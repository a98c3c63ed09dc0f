package store

import (
	"cmp"
	"fmt"
	"iter"
)

// nodeSize is the most that a node of a taskSet holds. A write copies a node a level: small ones save the collector's
// work, until there are so many levels that look-ups cost more.
const nodeSize = 16

// taskSet is tasks in an order, by their ordinals: a copy-on-write B+ tree without strings or pointers in its leaves, so
// that a million tasks are little for the collector to follow. A number that goes with a task decides nearly every
// comparison; between equal numbers the caller's tie does, which is told an ordinal and answers whether that task comes
// before (negative) or after the one that is meant. Like ordinals, it is changed for the newest version alone.
type taskSet struct {
	root  *setNode
	count int
}

// setNode belongs to the View of index made, which may change it. Entries up to length are in order; in a branch
// each is the first entry of the child beside it, and no child is empty.
type setNode struct {
	made     uint64
	length   int
	numbers  [nodeSize]uint64
	ordinals [nodeSize]uint32
	// children is nil in a leaf.
	children *[nodeSize]*setNode
}

// search is the number of entries that come before the one meant, and whether the next is that one.
func (n *setNode) search(number uint64, tie func(uint32) int) (at int, found bool) {
	low, high := 0, n.length
	for low < high {
		middle := int(uint(low+high) >> 1)
		before := n.numbers[middle] < number
		if n.numbers[middle] == number {
			c := tie(n.ordinals[middle])
			if c == 0 {
				return middle, true
			}
			before = c < 0
		}
		if before {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, false
}

// child is where an entry belongs in a branch.
func (n *setNode) child(number uint64, tie func(uint32) int) int {
	at, found := n.search(number, tie)
	if found {
		return at
	}
	return max(0, at-1)
}

// find is the ordinal of the task for which tie is zero.
func (s *taskSet) find(number uint64, tie func(uint32) int) (ordinal uint32, ok bool) {
	n := s.root
	if n == nil {
		return 0, false
	}
	for n.children != nil {
		n = n.children[n.child(number, tie)]
	}
	at, ok := n.search(number, tie)
	if !ok {
		return 0, false
	}
	return n.ordinals[at], true
}

// all walks the set in order.
func (s *taskSet) all() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		if s.root != nil {
			s.root.walk(yield)
		}
	}
}

func (n *setNode) walk(yield func(uint32) bool) bool {
	for i := range n.length {
		if n.children != nil {
			if !n.children[i].walk(yield) {
				return false
			}
		} else if !yield(n.ordinals[i]) {
			return false
		}
	}
	return true
}

// from walks the set from the first task with that number, or a higher one, on.
func (s *taskSet) from(number uint64) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		if s.root != nil {
			s.root.walkFrom(number, yield)
		}
	}
}

func (n *setNode) walkFrom(number uint64, yield func(uint32) bool) bool {
	first := func(uint32) int { return 1 }
	at, _ := n.search(number, first)
	if n.children == nil {
		for ; at < n.length; at++ {
			if !yield(n.ordinals[at]) {
				return false
			}
		}
		return true
	}
	if at > 0 && !n.children[at-1].walkFrom(number, yield) {
		return false
	}
	for ; at < n.length; at++ {
		if !n.children[at].walk(yield) {
			return false
		}
	}
	return true
}

// insert adds a task that is not there.
func (s *taskSet) insert(made, number uint64, ordinal uint32, tie func(uint32) int) {
	s.count++
	if s.root == nil {
		s.root = &setNode{made: made}
	}
	right := insertInto(&s.root, made, number, ordinal, tie)
	if right == nil {
		return
	}
	left := s.root
	s.root = &setNode{made: made, children: new([nodeSize]*setNode)}
	s.root.put(0, left.numbers[0], left.ordinals[0], left)
	s.root.put(1, right.numbers[0], right.ordinals[0], right)
}

// insertInto adds an entry below a node. When it had to be split, right is its new neighbour.
func insertInto(at **setNode, made, number uint64, ordinal uint32, tie func(uint32) int) (right *setNode) {
	n := ownNode(at, made)
	if n.children == nil {
		i, _ := n.search(number, tie)
		return n.add(i, number, ordinal, nil)
	}
	i := n.child(number, tie)
	added := insertInto(&n.children[i], made, number, ordinal, tie)
	n.refresh(i)
	if added == nil {
		return nil
	}
	return n.add(i+1, added.numbers[0], added.ordinals[0], added)
}

func ownNode(at **setNode, made uint64) *setNode {
	if (*at).made == made {
		return *at
	}
	next := new(setNode)
	*next = **at
	next.made = made
	if next.children != nil {
		children := *next.children
		next.children = &children
	}
	*at = next
	return next
}

// add puts an entry at a place; into a full node after splitting it. Half of the node goes to the right, or nothing when the
// entry is its last: what comes in order fills the nodes.
func (n *setNode) add(at int, number uint64, ordinal uint32, child *setNode) (right *setNode) {
	if n.length < nodeSize {
		n.put(at, number, ordinal, child)
		return nil
	}
	right = &setNode{made: n.made}
	if n.children != nil {
		right.children = new([nodeSize]*setNode)
	}
	if at == nodeSize {
		right.put(0, number, ordinal, child)
		return right
	}
	right.append(n, nodeSize/2)
	if n.children != nil {
		clear(n.children[nodeSize/2:])
	}
	n.length = nodeSize / 2
	if at <= n.length {
		n.put(at, number, ordinal, child)
	} else {
		right.put(at-n.length, number, ordinal, child)
	}
	return right
}

// put makes room for an entry, of which there must be some.
func (n *setNode) put(at int, number uint64, ordinal uint32, child *setNode) {
	copy(n.numbers[at+1:n.length+1], n.numbers[at:n.length])
	copy(n.ordinals[at+1:n.length+1], n.ordinals[at:n.length])
	n.numbers[at], n.ordinals[at] = number, ordinal
	if n.children != nil {
		copy(n.children[at+1:n.length+1], n.children[at:n.length])
		n.children[at] = child
	}
	n.length++
}

// cut takes an entry away.
func (n *setNode) cut(at int) {
	copy(n.numbers[at:], n.numbers[at+1:n.length])
	copy(n.ordinals[at:], n.ordinals[at+1:n.length])
	n.length--
	if n.children != nil {
		copy(n.children[at:], n.children[at+1:n.length+1])
		n.children[n.length] = nil
	}
}

// append adds the entries of another node from a place on, for which there must be room.
func (n *setNode) append(other *setNode, from int) {
	copy(n.numbers[n.length:], other.numbers[from:other.length])
	copy(n.ordinals[n.length:], other.ordinals[from:other.length])
	if n.children != nil {
		copy(n.children[n.length:], other.children[from:other.length])
	}
	n.length += other.length - from
}

// refresh repeats a child's first entry.
func (n *setNode) refresh(at int) {
	n.numbers[at], n.ordinals[at] = n.children[at].numbers[0], n.children[at].ordinals[0]
}

// remove takes away the task for which tie is zero, if it is there.
func (s *taskSet) remove(made, number uint64, tie func(uint32) int) {
	if _, ok := s.find(number, tie); !ok {
		return
	}
	s.count--
	removeFrom(&s.root, made, number, tie)
	for s.root.children != nil && s.root.length == 1 {
		s.root = s.root.children[0]
	}
	if s.root.length == 0 {
		s.root = nil
	}
}

func removeFrom(at **setNode, made, number uint64, tie func(uint32) int) {
	n := ownNode(at, made)
	if n.children == nil {
		if i, found := n.search(number, tie); found {
			n.cut(i)
		}
		return
	}
	i := n.child(number, tie)
	removeFrom(&n.children[i], made, number, tie)
	if n.children[i].length == 0 {
		n.cut(i)
		return
	}
	n.refresh(i)
	if n.children[i].length <= nodeSize/4 {
		n.join(i, made)
	}
}

// join unites a child that has become small with a neighbour, if the two leave room for more.
func (n *setNode) join(at int, made uint64) {
	for _, left := range [...]int{at - 1, at} {
		if left < 0 || left+1 >= n.length || n.children[left].length+n.children[left+1].length > nodeSize*3/4 {
			continue
		}
		ownNode(&n.children[left], made).append(n.children[left+1], 0)
		n.cut(left + 1)
		return
	}
}

// check is for Verify: the nodes are as they must be, the count is right, and the tasks are in order by number and
// compare, which is given the ordinals of two tasks with the same number.
func (s *taskSet) check(number func(uint32) uint64, compare func(a, b uint32) int) error {
	total, last := 0, uint32(0)
	for ordinal := range s.all() {
		if total > 0 && cmp.Or(cmp.Compare(number(last), number(ordinal)), compare(last, ordinal)) >= 0 {
			return fmt.Errorf("ordinals %d and %d are out of order", last, ordinal)
		}
		last = ordinal
		total++
	}
	if total != s.count {
		return fmt.Errorf("%d tasks are counted, %d are there", s.count, total)
	}
	if s.root == nil {
		return nil
	}
	_, err := s.root.check(number)
	return err
}

// check answers the number of levels, which is the same everywhere below a node.
func (n *setNode) check(number func(uint32) uint64) (levels int, err error) {
	if n.length < 1 || n.length > nodeSize {
		return 0, fmt.Errorf("a node has %d entries", n.length)
	}
	for i := range n.length {
		if n.numbers[i] != number(n.ordinals[i]) {
			return 0, fmt.Errorf("ordinal %d stands under another number", n.ordinals[i])
		}
		if n.children == nil {
			continue
		}
		child := n.children[i]
		below, err := child.check(number)
		switch {
		case err != nil:
			return 0, err
		case child.ordinals[0] != n.ordinals[i]:
			return 0, fmt.Errorf("a branch names ordinal %d, its child begins with %d", n.ordinals[i], child.ordinals[0])
		case i > 0 && below != levels:
			return 0, fmt.Errorf("a branch has children of %d and %d levels", below, levels)
		}
		levels = below
	}
	return levels + 1, nil
}
