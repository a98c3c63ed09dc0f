package node

import (
	"context"
	"fmt"
	"strings"

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
	if _, trouble := m.now(); trouble != "" {
		out = append(out, "this host's manager does not work and is started again and again: "+trouble)
	}
	return out
}
