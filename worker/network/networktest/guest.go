package networktest

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network"
)

// attachGuest is Attach for a guest, which has no address on the uplink. n.mu is held.
func (n *Fake) attachGuest(req network.Request) network.Attachment {
	if n.left == nil {
		n.left = map[string]chan struct{}{}
	}
	if n.attached == nil {
		n.attached, n.networks = map[string]netip.Addr{}, map[string][]*swarmpb.NetworkAddress{}
	}
	if n.left[req.TaskID] == nil {
		n.left[req.TaskID] = make(chan struct{})
	}
	n.attached[req.TaskID], n.networks[req.TaskID] = netip.Addr{}, req.Networks
	return network.Attachment{Networks: req.Networks}
}

// Guests are the tasks of the guests that are attached.
func (n *Fake) Guests() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.left))
}

// AwaitGuest returns once Leave was called for the task.
func (n *Fake) AwaitGuest(ctx context.Context, taskID string) (string, error) {
	n.mu.Lock()
	left := n.left[taskID]
	n.mu.Unlock()
	if left == nil {
		return "it is not attached", nil
	}
	select {
	case <-left:
		return "process 7 has ended", nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Leave has a guest go.
func (n *Fake) Leave(taskID string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.left[taskID])
}
