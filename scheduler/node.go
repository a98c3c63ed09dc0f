package scheduler

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Node is a node as the scheduler sees it.
type Node struct {
	ID, Hostname string
	// Ready: it is connected, and available for new tasks.
	Ready bool
	Role  swarmpb.NodeRole
	// Address is invalid when unknown.
	Address  netip.Addr
	OS, Arch string
	// Labels are the operator's, EngineLabels the node's own, as far as the cluster has taken them.
	Labels, EngineLabels map[string]string
	// says is what the node says of itself where the cluster has not taken that; constraints must hold for both.
	says *self
	// Capacity is what the node has, Free what no task has reserved: less than 0 where too much was given away.
	Capacity, Free Resources
	// Tasks that claim something there.
	Tasks int
	// Ports in use. Place adds to it.
	Ports map[Port]bool
	// Generic is what is left of the generic resources, by kind.
	Generic []Generic
	// Encrypts: it can take tasks of encrypted networks.
	Encrypts bool
	// reserved is share(), kept since the division is what ranking would cost most.
	reserved uint32
}

// NewNode makes an empty node out of its rows; a node without a status has never connected. What the node says of
// itself counts as far as the cluster has taken it, see Taken.
func NewNode(node *swarmpb.Node, status *swarmpb.NodeStatus) Node {
	d := status.GetDescription()
	address, _ := netip.ParseAddr(status.GetAddress())
	n := Node{
		ID:       node.GetId(),
		Ready:    TakesTasks(node, status),
		Role:     node.GetRole(),
		Address:  address.Unmap(),
		Labels:   node.GetSpec().GetLabels(),
		Encrypts: len(d.GetNetwork().GetWireguardKey()) > 0,
	}
	n.apply(taken(node, status), d)
	return n
}

// TakesTasks reports whether a node is connected, available for new tasks, and able to take them by its own word.
func TakesTasks(node *swarmpb.Node, status *swarmpb.NodeStatus) bool {
	switch node.GetSpec().GetAvailability() {
	case swarmpb.NodeAvailability_NODE_AVAILABILITY_UNSPECIFIED, swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE:
		return status.GetState() == swarmpb.NodeState_NODE_STATE_READY && status.GetDescription().GetTakesNoTasks() == ""
	}
	return false
}

// Claim takes what a task occupies out of what is free, and counts the task.
func (n *Node) Claim(r Resources, ports []Port) { n.take(r, ports, 1) }

// Release gives back what a Claim without ports took.
func (n *Node) Release(r Resources) {
	n.take(Resources{NanoCPUs: -r.NanoCPUs, MemoryBytes: -r.MemoryBytes}, nil, -1)
}

// Extend enlarges the claim of a task by its successor's, which takes it over.
func (n *Node) Extend(held, successor Resources, ports []Port) {
	n.take(beyond(successor, held), ports, 0)
}

func (n *Node) take(r Resources, ports []Port, tasks int) {
	n.Free.NanoCPUs -= r.NanoCPUs
	n.Free.MemoryBytes -= r.MemoryBytes
	n.Tasks += tasks
	if len(ports) > 0 && n.Ports == nil {
		n.Ports = make(map[Port]bool, len(ports))
	}
	for _, p := range ports {
		n.Ports[p] = true
	}
	n.reserved = n.share()
}

// share is the greater of the reserved parts of CPU and memory, of 1<<20.
func (n *Node) share() uint32 {
	return max(part(n.Capacity.NanoCPUs, n.Free.NanoCPUs), part(n.Capacity.MemoryBytes, n.Free.MemoryBytes))
}

func part(capacity, free int64) uint32 {
	const whole = 1 << 20
	if capacity <= 0 || free >= capacity {
		return 0
	}
	if free <= 0 {
		return whole
	}
	high, low := bits.Mul64(uint64(capacity-free), whole)
	q, _ := bits.Div64(high, low, uint64(capacity)) // below whole, as capacity-free < capacity
	return uint32(q)
}

// Nodes are the nodes of a cluster, for any number of groups one after another. It is not safe for
// concurrent use.
type Nodes struct {
	nodes  []Node // by ID
	hashes []uint64
	index  map[string]int32
	// classes of nodes, and each node's; verdicts are the present group's, by class.
	class    []int32
	classes  []class
	verdicts []Filter
	// shapes are the nodes in the order in which tasks of a kind want them; journal is which nodes have changed since
	// the first of them was made.
	shapes  map[string]*shape
	journal []int32
	// fewest is the least number of tasks on a node that takes some, for Better, if counted.
	fewest  int
	counted bool
	// Space that rounds use one after another.
	scratch []candidate
	order   []int32
}

// NewNodes takes over the nodes, in any order; their IDs must differ.
func NewNodes(nodes []Node) *Nodes {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	n := &Nodes{
		nodes: nodes, hashes: make([]uint64, len(nodes)), index: make(map[string]int32, len(nodes)),
		scratch: make([]candidate, len(nodes)), order: make([]int32, 0, len(nodes)),
	}
	for i := range nodes {
		n.hashes[i] = hashString(nodes[i].ID)
		nodes[i].reserved = nodes[i].share()
		n.index[nodes[i].ID] = int32(i)
	}
	n.classify()
	return n
}

// Node returns a node with what is left on it, or nil. Before the next call of Place its methods that claim may be
// called; what makes its class is not to be changed.
func (n *Nodes) Node(id string) *Node {
	if at, ok := n.index[id]; ok {
		n.changed(at)
		return &n.nodes[at]
	}
	return nil
}

// hashString is FNV-1a, mixed.
func hashString(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finaliser of SplitMix64.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
