package ca

import (
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Founding is a new cluster before its first write: who its first manager is, and its first rows.
type Founding struct {
	Identity wire.Identity
	Tokens   *swarmpb.JoinTokens
	// Rows are the cluster's and the first manager's, to be written once that manager leads.
	Rows []*swarmpb.Write
	// Guards: the rows must not exist.
	Guards []*swarmpb.Guard
}

// Bootstrap makes a new cluster with one manager. The spec is checked and completed by the caller.
func Bootstrap(spec *swarmpb.ClusterSpec, now time.Time) (*Founding, error) {
	clusterID, nodeID := swarmpb.NewID(), swarmpb.NewID()
	root, err := NewRoot(clusterID, now)
	if err != nil {
		return nil, err
	}
	tokens, err := NewTokens(root)
	if err != nil {
		return nil, err
	}
	row, err := root.Row()
	if err != nil {
		return nil, err
	}
	key, err := wire.NewKey()
	if err != nil {
		return nil, fmt.Errorf("make the first manager's key: %w", err)
	}
	const role = swarmpb.NodeRole_NODE_ROLE_MANAGER
	chain, expires, err := root.Issue(&key.PublicKey, nodeID, role, now, nodeLife(spec))
	if err != nil {
		return nil, err
	}
	id, err := wire.IdentityFor(key, chain, root.PEM())
	if err != nil {
		return nil, fmt.Errorf("make the first manager's identity: %w", err)
	}
	gossip, err := newGossipKey(now)
	if err != nil {
		return nil, err
	}
	gossip.Primary = true
	cluster := &swarmpb.Cluster{
		Id: clusterID, Spec: swarmpb.Clone(spec), RootCa: row, JoinTokens: tokens, GossipKeys: []*swarmpb.GossipKey{gossip},
	}
	return &Founding{
		Identity: id,
		Tokens:   tokens,
		Rows: []*swarmpb.Write{
			put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}}),
			put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: newNode(nodeID, role, expires)}}),
		},
		Guards: []*swarmpb.Guard{{Key: swarmpb.ClusterKey(clusterID)}, {Key: swarmpb.NodeKey(nodeID)}},
	}, nil
}

func newNode(id string, role swarmpb.NodeRole, expires time.Time) *swarmpb.Node {
	return &swarmpb.Node{
		Id: id,
		Spec: &swarmpb.NodeSpec{
			DesiredRole: role, Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE,
		},
		Role:                 role,
		CertificateExpiresAt: expires.UnixNano(),
	}
}

func put(row *swarmpb.Row) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}}
}

// nodeLife is the life of a node's certificate by the cluster's settings.
func nodeLife(spec *swarmpb.ClusterSpec) time.Duration {
	d := spec.GetNodeCertExpiry()
	if d == nil || d.AsDuration() <= 0 {
		return DefaultNodeLife
	}
	return max(d.AsDuration(), MinNodeLife)
}
