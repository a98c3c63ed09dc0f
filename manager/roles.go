package manager

import (
	"github.com/swarmd/swarmd/manager/control"
	"github.com/swarmd/swarmd/manager/replica"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Weights by which workers choose a manager: the loss of the leader should seldom be that of a keeper too.
const (
	followerWeight = 4
	leaderWeight   = 1
)

// Members are the managers in Raft's configuration, as this one knows it.
func (m *Manager) Members() []replica.Member { return m.replica.Members() }

func (m *Manager) controlMembers() []control.Member {
	members := m.replica.Members()
	out := make([]control.Member, len(members))
	for i, member := range members {
		out[i] = control.Member(member)
	}
	return out
}

// inRaft says whether a node takes part in Raft.
func (m *Manager) inRaft(nodeID string) bool {
	for _, member := range m.replica.Members() {
		if member.ID == nodeID {
			return true
		}
	}
	return false
}

// role is what a node should be now, by its configuration: a manager that is to be a worker stays one until it is out
// of Raft.
func (m *Manager) role(nodeID string) swarmpb.NodeRole {
	const worker, manager = swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeRole_NODE_ROLE_MANAGER
	node := m.replica.Store().View().Node(nodeID)
	switch {
	case node.GetSpec().GetDesiredRole() == manager:
		return manager
	case node.GetRole() != manager: // so it is not in Raft, and was not asked about there
		return worker
	case m.inRaft(nodeID):
		return manager
	}
	return worker
}

// peers are the managers that workers may hold sessions with: those that vote. None before Raft has any: workers then
// go on with those that they know.
func (m *Manager) peers() []*swarmpb.ManagerPeer {
	leader, _ := m.replica.Leader()
	var peers []*swarmpb.ManagerPeer
	for _, member := range m.replica.Members() {
		if !member.Voter {
			continue
		}
		weight := uint32(followerWeight)
		if member.ID == leader {
			weight = leaderWeight
		}
		peers = append(peers, &swarmpb.ManagerPeer{NodeId: member.ID, Address: member.Address, Weight: weight})
	}
	return peers
}

// health is what this manager tells of itself.
func (m *Manager) health() *swarmpb.ManagerHealth {
	h := m.replica.Health()
	return &swarmpb.ManagerHealth{LowSpace: h.LowSpace, FreeBytes: h.FreeBytes, StepDowns: uint32(max(h.StepDowns, 0))}
}

// healthOf is, on the leader, what a manager told of itself.
func (m *Manager) healthOf(managerID string) (*swarmpb.ManagerHealth, bool) {
	if managerID == m.id.NodeID {
		return m.health(), true
	}
	return m.dispatcher.Health(managerID)
}
