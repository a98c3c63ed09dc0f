package network

import (
	"context"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Apply takes what the node is told of peers, networks, services and endpoints; other changes are ignored. It returns
// once resolvers and kernel hold it, in that nothing that is gone is answered any more. Before Configure it only
// remembers. An error says what is not in the kernel; Check tries again.
func (n *Network) Apply(_ context.Context, full bool, changes []*swarmpb.AssignmentChange) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told.merge(full, changes)
	return nil
}

// Gone takes a task whose process has ended out of this node's maps and names.
func (n *Network) Gone(_ context.Context, taskID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone[taskID] = true
	return nil
}

// Hint has endpoints on nodes that gossip calls dead take no new connections, unless nothing else is left.
func (n *Network) Hint(dead func(nodeID string) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.told.peers {
		n.dead[id] = dead(id)
	}
	return nil
}

// Status is what the managers are told of the node's network.
func (n *Network) Status() *swarmpb.NodeNetwork { return &swarmpb.NodeNetwork{} }

// Changes has an element when Status may have changed.
func (n *Network) Changes() <-chan struct{} { return n.changes }

// Check compares the kernel with what was told, and repairs.
func (n *Network) Check(context.Context) error { return nil }

// Run checks at the start, every 10 s, and when the kernel tells of something of ours that has gone.
func (n *Network) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Doctor looks at all that networks and published ports need on this host.
func (n *Network) Doctor(context.Context, func(*swarmpb.DoctorResponse) error) error { return nil }
