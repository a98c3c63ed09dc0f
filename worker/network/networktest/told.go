package networktest

import (
	"context"
	"maps"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Apply keeps the peers and endpoints of the changes, unless Refuse has said otherwise.
func (n *Fake) Apply(_ context.Context, full bool, changes []*swarmpb.AssignmentChange) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		return n.refuse
	}
	if n.endpoints == nil || full {
		n.endpoints, n.peers = map[string]*swarmpb.Endpoint{}, map[string]*swarmpb.Peer{}
	}
	for _, c := range changes {
		switch c := c.GetChange().(type) {
		case *swarmpb.AssignmentChange_Peer:
			n.peers[c.Peer.GetNodeId()] = c.Peer
		case *swarmpb.AssignmentChange_RemovePeer:
			delete(n.peers, c.RemovePeer)
		case *swarmpb.AssignmentChange_Endpoint:
			n.endpoints[c.Endpoint.GetTaskId()] = c.Endpoint
		case *swarmpb.AssignmentChange_RemoveEndpoint:
			delete(n.endpoints, c.RemoveEndpoint.GetTaskId())
		case *swarmpb.AssignmentChange_RemoveService:
			maps.DeleteFunc(n.endpoints, func(_ string, e *swarmpb.Endpoint) bool { return e.GetServiceId() == c.RemoveService })
		}
	}
	return nil
}

// Refuse has Apply fail with err from now on; nil: no more.
func (n *Fake) Refuse(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = err
}

// Endpoints are those that Apply has told of, by task.
func (n *Fake) Endpoints() map[string]*swarmpb.Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.endpoints)
}

// Peers are those that Apply has told of, by node.
func (n *Fake) Peers() map[string]*swarmpb.Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.peers)
}

// Gone notes the task, and takes its endpoint away.
func (n *Fake) Gone(_ context.Context, taskID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone = append(n.gone, taskID)
	delete(n.endpoints, taskID)
	return nil
}

// Went are the tasks that Gone was called for, in that order.
func (n *Fake) Went() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.gone)
}

// ListensWithin is how long a task is worth waiting for that does not listen yet.
const ListensWithin = 3 * time.Second

// Listening is true unless SetDeaf has said otherwise of the task.
func (n *Fake) Listening(taskID, _ string) (listens bool, within time.Duration, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.deaf[taskID], ListensWithin, nil
}

// SetDeaf says whether a task does not listen on its service's ports.
func (n *Fake) SetDeaf(taskID string, deaf bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.deaf == nil {
		n.deaf = map[string]bool{}
	}
	n.deaf[taskID] = deaf
}

// Established is what SetEstablished has said of the task, else 0.
func (n *Fake) Established(taskID string) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.established[taskID], nil
}

// SetEstablished says how many connections are established with a task.
func (n *Fake) SetEstablished(taskID string, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.established == nil {
		n.established = map[string]int{}
	}
	n.established[taskID] = count
}

// Hint keeps who is dead for Dead.
func (n *Fake) Hint(dead func(nodeID string) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hint = dead
	return nil
}

// Dead asks what Hint was last called with.
func (n *Fake) Dead(nodeID string) bool {
	n.mu.Lock()
	hint := n.hint
	n.mu.Unlock()
	return hint != nil && hint(nodeID)
}

// Status is what SetStatus has said; never nil.
func (n *Fake) Status() *swarmpb.NodeNetwork {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.status == nil {
		return &swarmpb.NodeNetwork{}
	}
	return swarmpb.Clone(n.status)
}

// SetStatus changes what Status says, and tells Changes.
func (n *Fake) SetStatus(status *swarmpb.NodeNetwork) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status = status
	select {
	case n.changed() <- struct{}{}:
	default:
	}
}

// Changes has an element when SetStatus was called since it was last read.
func (n *Fake) Changes() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed()
}

func (n *Fake) changed() chan struct{} {
	if n.changes == nil {
		n.changes = make(chan struct{}, 1)
	}
	return n.changes
}
