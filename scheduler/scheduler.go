// Package scheduler decides which node gets which task.
//
// Place is pure: its answer depends on the nodes and the group it is given and on nothing else. There is no
// I/O, clock, goroutine or randomness here, and no result depends on the order of a map or of the nodes.
//
// Tasks come in groups of one service and one template, because they ask the same of a node. A node must pass every
// filter; those that only look at what it is are run once for a class of nodes that are alike:
//
//   - it is ready and takes new tasks
//   - it satisfies the constraints and the platform, and can encrypt where a network is encrypted
//   - what is free covers the reservations, and the generic resources, which are claimed by instance
//   - its host ports that the group wants are free
//   - it stays within the service's greatest number of replicas a node
//
// Those that pass are ranked, for every task anew: nodes on which the service fails again and again last; the branch of
// the spread preferences with the fewest tasks of the service, level by level; then the node with the fewest tasks of the
// service, the fewest tasks, the smallest reserved share (or, to pack, the greatest); then a hash of service and node, so
// that services do not all begin on the same one of several equal nodes. Heaps keep that order, so that a task costs the
// logarithm of the nodes; the one for services without any task is kept between groups that ask the same.
//
// A task that replaces another under stop-first takes over its predecessor's claim if it stays on that node.
// The predecessor no longer counts in the ranking, and on equal terms the successor stays where it was: a
// balanced service is updated in place, and an unbalanced one evens out.
//
// When no node is left, Rejections says how many nodes each filter refused, in Docker's words; Explain says it node by
// node, Preempt which tasks of lower priority would have to go, and Better which would be better off elsewhere.
package scheduler

import (
	"cmp"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Resources is an amount of what tasks reserve: billionths of a core and bytes.
type Resources struct {
	NanoCPUs, MemoryBytes int64
}

// Port is a port on a node's address.
type Port struct {
	Protocol swarmpb.Protocol
	Number   uint32
}

// Group is a number of tasks of one service and one template, to be placed together.
type Group struct {
	// Service is the service's ID; it seeds the order among equal nodes.
	Service      string
	Requirements *Requirements
	// Tasks are placed in this order: where not all fit, the first ones win.
	Tasks []Task
	// OnNode is the number of the service's tasks by node ID, with those that group's tasks replace.
	OnNode map[string]int
	// Failing are nodes on which the service has failed again and again of late: they come last.
	Failing map[string]bool
}

// Task is one task of a group.
type Task struct {
	ID string
	// Node, when set, is the only node that the task may run on: a global service's tasks have theirs.
	Node string
	// Held, when set, is the claim of the task that it replaces, which it may take over.
	Held *Claim
}

// Claim is what a task occupies on a node. Successors of one task share one *Claim: the first that stays takes
// it over, the others need room of their own.
type Claim struct {
	Node      string
	Resources Resources
	Ports     []Port
	Generic   []*swarmpb.GenericResource
	taken     bool
}

// Assignment is the answer for one task.
type Assignment struct {
	Task string
	// Node is empty when no node suits.
	Node string
	// Rejections says why not, when Node is empty.
	Rejections Rejections
	// Generic is what it gets of the generic resources that it wants.
	Generic []*swarmpb.GenericResource
}

// Place chooses a node for each task of the group and takes what it assigned out of what is free on the nodes,
// so that a group placed next sees it. It answers in the order of the group's tasks.
func (n *Nodes) Place(group *Group) []Assignment {
	out := make([]Assignment, len(group.Tasks))
	for i := range group.Tasks {
		out[i].Task = group.Tasks[i].ID
	}
	if n.placeFresh(group, out) {
		return out
	}
	r := newRound(n, group)
	var none Rejections
	full := false
	for i := range group.Tasks {
		t := &group.Tasks[i]
		r.out = &out[i]
		if t.Node != "" {
			out[i].Node, out[i].Rejections = r.placeOn(t)
			continue
		}
		if at := r.choose(t); at >= 0 {
			out[i].Node = n.nodes[at].ID
			continue
		}
		if !full { // only tasks that hold a claim can be placed from here on
			none, full = r.rejections(), true
		}
		out[i].Rejections = none
	}
	return out
}

// round is one run of Place: the candidates' state for the group at hand.
type round struct {
	nodes *Nodes
	group *Group
	req   *Requirements
	cands []candidate // by index of the node
	tree  tree
	out   *Assignment // of the task at hand
}

// candidate is a node in the eyes of one group.
type candidate struct {
	// load ranks: the service's tasks on the node (without those being replaced) above all of its tasks.
	load  uint64
	hash  uint64
	share uint32 // the greatest reserved part of a resource, of 1<<20
	pos   int32  // in the heap of its leaf; -1 = refused by out
	all   int32  // the service's tasks, with those being replaced
	leaf  int32
	out   Filter
}

const (
	oneOfService = 1 << 32
	// failing is above any number of tasks.
	failing = 1 << 62
)

func newRound(n *Nodes, g *Group) *round {
	r := &round{nodes: n, group: g, req: g.Requirements, cands: n.scratch}
	seed := hashString(g.Service)
	n.judge(r.req)
	for i := range n.nodes {
		node := &n.nodes[i]
		of := 0
		if len(g.OnNode) > 0 {
			of = max(g.OnNode[node.ID], 0)
		}
		c := &r.cands[i]
		*c = candidate{
			load: uint64(of)*oneOfService + uint64(max(node.Tasks, 0)), hash: mix(n.hashes[i] ^ seed),
			share: node.reserved, all: int32(of), pos: -1,
		}
		if len(g.Failing) > 0 && g.Failing[node.ID] {
			c.load += failing
		}
		if c.out = n.fixed(r.req, int32(i)); c.out == Accepted {
			c.out = r.req.variable(node, int(c.all))
		}
	}
	var last *Claim
	for i := range g.Tasks {
		if held := g.Tasks[i].Held; held != nil && held != last {
			last = held
			if at, ok := n.index[held.Node]; ok && r.cands[at].load&^failing >= oneOfService {
				r.cands[at].load -= oneOfService
			}
		}
	}
	r.tree.build(r, seed)
	return r
}

// choose picks the best node for a task that may run anywhere, and claims it; -1 = none.
func (r *round) choose(t *Task) int32 {
	best := r.tree.best()
	if t.Held != nil {
		at, ok := r.nodes.index[t.Held.Node]
		if ok && r.takesOver(at, t.Held) && (best < 0 || r.tree.notWorse(at, best)) {
			r.claimHeld(at, t.Held)
			return at
		}
	}
	if best >= 0 {
		r.claim(best)
	}
	return best
}

// placeOn puts a task on the one node that it is for.
func (r *round) placeOn(t *Task) (string, Rejections) {
	var why Rejections
	at, ok := r.nodes.index[t.Node]
	if !ok {
		why[NotReady]++
		return "", why
	}
	if t.Held != nil && t.Held.Node == t.Node && r.takesOver(at, t.Held) {
		r.claimHeld(at, t.Held)
		return t.Node, why
	}
	if out := r.cands[at].out; out != Accepted {
		why[out]++
		return "", why
	}
	r.claim(at)
	return t.Node, why
}

// takesOver reports whether a task fits on the node in the place of the one that holds the claim.
func (r *round) takesOver(at int32, held *Claim) bool {
	c := &r.cands[at]
	if held.taken || c.out > Accepted && c.out < Insufficient {
		return false
	}
	node := &r.nodes.nodes[at]
	return node.hasGeneric(r.req.Generic, held.Generic) && covers(node.Free, beyond(r.req.Reserve, held.Resources)) &&
		!slices.ContainsFunc(r.req.Ports, func(p Port) bool { return node.Ports[p] && !slices.Contains(held.Ports, p) }) &&
		(r.req.MaxPerNode == 0 || uint64(c.all) <= r.req.MaxPerNode)
}

func (r *round) claim(at int32) {
	c := &r.cands[at]
	node := &r.nodes.nodes[at]
	node.take(r.req.Reserve, r.req.Ports, 1)
	if len(r.req.Generic) > 0 {
		r.out.Generic = node.takeGeneric(r.req.Generic, nil)
	}
	c.load++
	c.all++
	r.claimed(at)
}

func (r *round) claimHeld(at int32, held *Claim) {
	held.taken = true
	node := &r.nodes.nodes[at]
	node.take(beyond(r.req.Reserve, held.Resources), r.req.Ports, 0)
	if len(r.req.Generic) > 0 {
		r.out.Generic = node.takeGeneric(r.req.Generic, held.Generic)
	}
	r.claimed(at)
}

// claimed counts one more of the service on the node and puts the node where it now ranks.
func (r *round) claimed(at int32) {
	c, node := &r.cands[at], &r.nodes.nodes[at]
	c.load += oneOfService
	c.share = node.reserved
	if c.out == Accepted {
		c.out = r.req.variable(node, int(c.all))
	}
	r.nodes.changed(at)
	r.tree.moved(at)
}

// rejections counts the refused nodes by filter. Nodes that still take tasks are not counted.
func (r *round) rejections() Rejections {
	var why Rejections
	for i := range r.cands {
		if out := r.cands[i].out; out != Accepted {
			why[out]++
		}
	}
	return why
}

// before is the order among the nodes of one branch.
func (r *round) before(i, j int32) bool {
	a, b := &r.cands[i], &r.cands[j]
	if r.req.Binpack {
		if x, y := a.load&failing, b.load&failing; x != y {
			return x < y
		}
		return fuller(&r.nodes.nodes[i], &r.nodes.nodes[j], cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(i, j)) < 0)
	}
	if a.load != b.load {
		return a.load < b.load
	}
	if a.share != b.share {
		return a.share < b.share
	}
	return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(i, j)) < 0
}

// fuller is the order of binpack: what is reserved more first, then what has more tasks.
func fuller(a, b *Node, otherwise bool) bool {
	if a.reserved != b.reserved {
		return a.reserved > b.reserved
	}
	if a.Tasks != b.Tasks {
		return a.Tasks > b.Tasks
	}
	return otherwise
}

// beyond is what must still be free when a claim of size held becomes one of the larger of both.
func beyond(want, held Resources) Resources {
	return Resources{
		NanoCPUs:    max(want.NanoCPUs-max(held.NanoCPUs, 0), 0),
		MemoryBytes: max(want.MemoryBytes-max(held.MemoryBytes, 0), 0),
	}
}

// covers reports whether free is enough. Who wants nothing fits even where too much is given away.
func covers(free, want Resources) bool {
	return (want.NanoCPUs <= 0 || want.NanoCPUs <= free.NanoCPUs) &&
		(want.MemoryBytes <= 0 || want.MemoryBytes <= free.MemoryBytes)
}
