package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// maxCertificateBytes bounds an expired certificate that is sent as proof.
const maxCertificateBytes = 8 << 10

// issued is a certificate about to be answered, once its row is committed.
type issued struct {
	nodeID, clusterID string
	role              swarmpb.NodeRole
	chain             []byte
}

// IssueCertificate makes a node of whoever holds a join token, or lets a node come back that proves the key of
// its expired certificate.
func (s *Server) IssueCertificate(ctx context.Context, req *swarmpb.IssueCertificateRequest) (*swarmpb.IssueCertificateResponse, error) {
	if err := s.limit(ctx); err != nil {
		return nil, err
	}
	key, err := wire.ParseCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	var out *issued
	switch {
	case req.GetToken() != "" && len(req.GetExpiredCertificate()) > 0:
		return nil, wire.Errorf(wire.CodeInvalid, "issue certificate: give a token or an expired certificate, not both")
	case len(req.GetExpiredCertificate()) > 0:
		out, err = s.readmit(ctx, req, key)
	default:
		out, err = s.admit(ctx, req, key)
	}
	if err != nil {
		return nil, err
	}
	return &swarmpb.IssueCertificateResponse{
		NodeId: out.nodeID, ClusterId: out.clusterID, Role: out.role, CertificateChain: out.chain,
	}, nil
}

// RenewCertificate gives the calling node a new certificate, in the role that its row asks for; a manager that is to be
// a worker gets a manager's until it is out of Raft.
func (s *Server) RenewCertificate(ctx context.Context, req *swarmpb.RenewCertificateRequest) (*swarmpb.RenewCertificateResponse, error) {
	p, ok := s.cfg.Peer(ctx)
	if !ok || p.NodeID == "" {
		return nil, wire.Errorf(wire.CodeUnauthenticated, "renew certificate: the caller is no node")
	}
	key, err := wire.ParseCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	out, err := s.renew(ctx, p.NodeID, key)
	if err != nil {
		return nil, err
	}
	return &swarmpb.RenewCertificateResponse{Role: out.role, CertificateChain: out.chain}, nil
}

// admit makes a new node. Its ID follows from the signing request, which holds a random signature: the same
// request, sent again because its answer was lost, is the same node.
func (s *Server) admit(ctx context.Context, req *swarmpb.IssueCertificateRequest, key *ecdsa.PublicKey) (*issued, error) {
	token, err := wire.ParseToken(req.GetToken())
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(req.GetCsr())
	nodeID := swarmpb.DerivedID("node", hex.EncodeToString(digest[:]))
	joining := s.joining.Add(1)
	defer s.joining.Add(-1)
	var out *issued
	err = s.propose(ctx, func(view *store.View, cluster *swarmpb.Cluster) (*swarmpb.Proposal, error) {
		role, err := tokenRole(cluster, token)
		if err != nil {
			return nil, err
		}
		old := view.Node(nodeID)
		if old != nil && (old.GetRole() != role || old.GetSpec().GetDesiredRole() != role || everReady(view, nodeID)) {
			return nil, wire.Errorf(wire.CodeExists, "node %s: it has joined with this signing request already; join with a new one", nodeID)
		}
		if old == nil {
			if err := s.checkNeverReady(view, joining); err != nil {
				return nil, err
			}
		}
		var expires time.Time
		if out, expires, err = s.sign(cluster, key, nodeID, role); err != nil {
			return nil, err
		}
		return &swarmpb.Proposal{
			// The cluster's row too: a token rotated meanwhile is not good any more.
			Guards: []*swarmpb.Guard{
				{Key: swarmpb.ClusterKey(cluster.GetId()), Version: cluster.GetMeta().GetVersion()},
				{Key: swarmpb.NodeKey(nodeID), Version: old.GetMeta().GetVersion()},
			},
			Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: newNode(nodeID, role, expires)}})},
		}, nil
	})
	if err != nil {
		return nil, err
	}
	s.cfg.Logger.Info("a node has joined", "node", nodeID, "role", out.role.Name(), "address", s.peerHost(ctx))
	return out, nil
}

// readmit lets a node back in by its expired certificate.
func (s *Server) readmit(ctx context.Context, req *swarmpb.IssueCertificateRequest, key *ecdsa.PublicKey) (*issued, error) {
	cert, err := parseCertificate(req.GetExpiredCertificate())
	if err != nil {
		return nil, err
	}
	_, cluster, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	nodeID, err := s.checkExpired(cluster, cert)
	if err != nil {
		return nil, err
	}
	if !wire.VerifyProof(cert, req.GetCsr(), req.GetExpiredSignature()) {
		return nil, wire.Errorf(wire.CodePermissionDenied, "node %s: the signing request is not signed by the key of its expired certificate", nodeID)
	}
	out, err := s.renew(ctx, nodeID, key)
	if err != nil {
		return nil, err
	}
	s.cfg.Logger.Info("a node is back with an expired certificate", "node", nodeID, "address", s.peerHost(ctx))
	return out, nil
}

// renew issues to a member, in the role that its row asks for.
func (s *Server) renew(ctx context.Context, nodeID string, key *ecdsa.PublicKey) (*issued, error) {
	var out *issued
	err := s.propose(ctx, func(view *store.View, cluster *swarmpb.Cluster) (*swarmpb.Proposal, error) {
		old := view.Node(nodeID)
		if old == nil {
			return nil, wire.Errorf(wire.CodePermissionDenied, "node %s was removed from the cluster; run `swarmctl leave` on it and join again", nodeID)
		}
		role := s.roleFor(old)
		var expires time.Time
		var err error
		if out, expires, err = s.sign(cluster, key, nodeID, role); err != nil {
			return nil, err
		}
		node := swarmpb.Clone(old)
		node.Role, node.CertificateExpiresAt = role, expires.UnixNano()
		return &swarmpb.Proposal{
			Guards: []*swarmpb.Guard{{Key: swarmpb.NodeKey(nodeID), Version: old.GetMeta().GetVersion()}},
			Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}})},
		}, nil
	})
	return out, err
}

// roleFor is the role of a member's next certificate.
func (s *Server) roleFor(node *swarmpb.Node) swarmpb.NodeRole {
	const manager = swarmpb.NodeRole_NODE_ROLE_MANAGER
	desired := node.GetSpec().GetDesiredRole()
	switch {
	case wire.RoleOU(desired) == "":
		return node.GetRole()
	case desired != manager && node.GetRole() == manager && s.cfg.InRaft(node.GetId()):
		return manager
	}
	return desired
}

func (s *Server) sign(cluster *swarmpb.Cluster, key *ecdsa.PublicKey, nodeID string, role swarmpb.NodeRole) (*issued, time.Time, error) {
	root, err := ParseRoot(cluster.GetRootCa())
	if err != nil {
		return nil, time.Time{}, err
	}
	chain, expires, err := root.Issue(key, nodeID, role, s.cfg.Now(), nodeLife(cluster.GetSpec()))
	if err != nil {
		return nil, time.Time{}, err
	}
	return &issued{nodeID: nodeID, clusterID: cluster.GetId(), role: role, chain: chain}, expires, nil
}

// tokenRole is the role that a token stands for. Both comparisons are made whatever the first says.
func tokenRole(cluster *swarmpb.Cluster, token wire.Token) (swarmpb.NodeRole, error) {
	digest, err := wire.RootDigest(cluster.GetRootCa().GetCert())
	if err != nil {
		return 0, err
	}
	if digest != token.RootDigest {
		return 0, wire.Errorf(wire.CodeInvalid, "the join token is of another cluster than this manager; use the token that "+
			"`swarmctl join-token worker` prints here")
	}
	manager := matches(token, cluster.GetJoinTokens().GetManager())
	worker := matches(token, cluster.GetJoinTokens().GetWorker())
	switch {
	case manager:
		return swarmpb.NodeRole_NODE_ROLE_MANAGER, nil
	case worker:
		return swarmpb.NodeRole_NODE_ROLE_WORKER, nil
	}
	return 0, wire.Errorf(wire.CodePermissionDenied, "the join token is not valid: it was rotated or mistyped; "+
		"`swarmctl join-token worker` on a manager prints the present one")
}

func matches(token wire.Token, want string) bool {
	t, err := wire.ParseToken(want)
	return err == nil && token.Equal(t)
}

// checkNeverReady bounds what a leaked token can fill the store with. A node has a status from the first time on that it was
// ready.
func (s *Server) checkNeverReady(view *store.View, joining int64) error {
	waiting := int(joining) - 1 + view.NodeCount() - view.NodeStatusCount()
	if waiting >= s.cfg.Limits.NeverReady {
		return wire.Errorf(wire.CodeResourceExhausted, "%d nodes have joined and never become ready, the most that may; "+
			"start swarmd on them or remove them with `swarmctl node rm`, then join again", waiting)
	}
	return nil
}

// everReady goes by the node's status: a node that has never connected has none, or an unknown one.
func everReady(view *store.View, nodeID string) bool {
	switch view.NodeStatus(nodeID).GetState() {
	case swarmpb.NodeState_NODE_STATE_UNSPECIFIED, swarmpb.NodeState_NODE_STATE_UNKNOWN:
		return false
	}
	return true
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	if len(text) > maxCertificateBytes {
		return nil, wire.Errorf(wire.CodeInvalid, "expired certificate: longer than %d bytes", maxCertificateBytes)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, wire.Errorf(wire.CodeInvalid, "expired certificate: not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "expired certificate: %w", err)
	}
	return cert, nil
}

// checkExpired returns the node of a certificate that this cluster issued, and that is not over for too long.
func (s *Server) checkExpired(cluster *swarmpb.Cluster, cert *x509.Certificate) (string, error) {
	nodeID, err := wire.VerifyIssued(cert, cluster.GetRootCa().GetCert())
	if err != nil {
		return "", wire.Errorf(wire.CodePermissionDenied, "expired certificate: it is not of this cluster: %w", err)
	}
	if over := s.cfg.Now().Sub(cert.NotAfter); over > s.cfg.Limits.ExpiredFor {
		return "", wire.Errorf(wire.CodePermissionDenied, "node %s: its certificate expired %d days ago, more than the %d that are allowed; "+
			"run `swarmctl leave` on it and join again with a token", nodeID, int(over.Hours()/24), int(s.cfg.Limits.ExpiredFor.Hours()/24))
	}
	return nodeID, nil
}

func (s *Server) peerHost(ctx context.Context) string {
	p, _ := s.cfg.Peer(ctx)
	return p.Host()
}
