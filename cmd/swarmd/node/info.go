package node

import (
	"context"
	"fmt"
	"strings"

	"github.com/swarmd/swarmd/proto/registries"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// GetInfo describes this host.
func (s *localServer) GetInfo(ctx context.Context, _ *swarmpb.GetInfoRequest) (*swarmpb.GetInfoResponse, error) {
	n := s.node
	info := &swarmpb.GetInfoResponse{
		Membership: swarmpb.Membership_MEMBERSHIP_NONE, Version: n.cfg.Version, DataDir: n.cfg.DataDir, RunDir: n.cfg.RunDir,
		ContainerdAddress: n.runtime.Address, Problems: n.problems(),
	}
	m := n.current()
	if m == nil {
		return info, nil
	}
	id, _ := m.creds.Identity()
	info.Membership = swarmpb.Membership_MEMBERSHIP_ACTIVE
	info.NodeId, info.ClusterId, info.Role = id.NodeID, id.ClusterID, id.Role
	info.AdvertiseAddress, info.ConnectedTo = m.advertise, m.agent.ConnectedTo()
	info.CertificateExpiresAt = id.Expires.UnixNano()
	info.RunningContainers = uint32(m.agent.RunningContainers())
	info.Description = m.agent.Description(ctx)
	p, _ := m.now()
	if info.ConnectedTo == "" || id.Role == roleManager && (p == nil || p.manager.Leader() == "") {
		info.Membership = swarmpb.Membership_MEMBERSHIP_DISCONNECTED
	}
	return info, nil
}

// problems are what does not work on this host, one line each.
func (n *Node) problems() []string {
	var out []string
	if n.child != nil && !n.child.Answered() {
		out = append(out, "containerd does not answer yet: no container can start before it does; its log is "+n.child.LogFile())
	}
	n.mu.Lock()
	if err := n.registryProblem; err != nil {
		out = append(out, fmt.Sprintf("registries are spoken to as before the last change of %s: %v", registries.FileName, err))
	}
	n.mu.Unlock()
	if m := n.current(); m != nil {
		out = append(out, m.agent.Problems()...)
		out = append(out, m.problems()...)
	}
	for i := range out {
		out[i] = strings.ReplaceAll(strings.TrimSpace(out[i]), "\n", "; ")
	}
	return out
}

// problems are those of this host's part in the cluster.
func (m *member) problems() []string {
	var out []string
	if err := m.refusal(); err != nil {
		out = append(out, fmt.Sprintf("the managers refuse this node: %v; leave the cluster with `swarmctl leave --force`, then join it again", err))
	}
	if err := m.gossipProblem(); err != nil {
		out = append(out, fmt.Sprintf("this node takes no part in gossip, so that its loss, or what it sees of others, counts later: %v; "+
			"another address is chosen with --gossip-addr", err))
	}
	return append(out, m.managerProblems()...)
}

// managerProblems are those of this host's manager.
func (m *member) managerProblems() []string {
	p, trouble := m.now()
	if trouble != "" {
		return []string{"this host's manager does not work and is started again and again: " + trouble}
	}
	if !m.isManager() || p == nil {
		return nil
	}
	id, _ := m.creds.Identity()
	for _, member := range p.manager.Members() {
		switch {
		case member.ID != id.NodeID:
		case member.Voter:
			return nil
		default:
			return []string{"this manager has not caught up yet: until it has, it does not count for the managers' majority"}
		}
	}
	m.mu.Lock()
	leaving := m.wanted == roleWorker
	m.mu.Unlock()
	if leaving {
		return []string{"this manager is to be a worker, and waits for a worker's certificate"}
	}
	return []string{"this manager takes no part in Raft yet: the leader adds it once some manager has a session with this node"}
}
