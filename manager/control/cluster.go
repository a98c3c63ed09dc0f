package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// GetCluster returns the cluster with what it holds. Tasks that have ended are not counted.
func (s *Server) GetCluster(ctx context.Context, _ *swarmpb.GetClusterRequest) (*swarmpb.GetClusterResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	cluster := view.Cluster()
	response := &swarmpb.GetClusterResponse{
		Id:         cluster.GetId(),
		Meta:       cluster.GetMeta(),
		Spec:       cluster.GetSpec(),
		RootDigest: rootDigest(cluster.GetRootCa().GetCert()),
		Nodes:      uint32(view.NodeCount()),
		Services:   uint32(services(view)),
		Leader:     s.cfg.Leader(),
		Drains:     s.cfg.Drains(),
	}
	for _, m := range s.cfg.Members() {
		response.Managers++
		if m.Voter && reachable(view, m.ID) {
			response.ReachableManagers++
		}
	}
	for service := range view.Services() {
		live := view.TaskCountOf(service.GetId())
		for state := range swarmpb.TaskState_name {
			if swarmpb.TaskState(state).Ended() {
				live -= view.TaskCountIn(service.GetId(), swarmpb.TaskState(state))
			}
		}
		response.Tasks += uint32(max(live, 0))
	}
	for alarm := range view.Alarms() {
		response.Alarms = append(response.Alarms, alarm)
	}
	return response, nil
}

// rootDigest is the digest of the root certificate as tools show it: of its DER form.
func rootDigest(cert []byte) string {
	if block, _ := pem.Decode(cert); block != nil {
		cert = block.Bytes
	}
	sum := sha256.Sum256(cert)
	return hex.EncodeToString(sum[:])
}

// GetJoinTokens returns both tokens and where to use them.
func (s *Server) GetJoinTokens(ctx context.Context, _ *swarmpb.GetJoinTokensRequest) (*swarmpb.GetJoinTokensResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return &swarmpb.GetJoinTokensResponse{Tokens: view.Cluster().GetJoinTokens(), ManagerAddress: s.cfg.ManagerAddress()}, nil
}

// RotateJoinToken replaces the token of a role; the old one is worth nothing from then on. A repeated request does
// not rotate again: it gets the tokens as they are.
func (s *Server) RotateJoinToken(ctx context.Context, req *swarmpb.RotateJoinTokenRequest) (*swarmpb.RotateJoinTokenResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	role := req.GetRole()
	if role != swarmpb.NodeRole_NODE_ROLE_WORKER && role != swarmpb.NodeRole_NODE_ROLE_MANAGER {
		return nil, wire.Errorf(wire.CodeInvalid, "join token: role %d is not known; use worker or manager", role)
	}
	if err := s.rewrite(ctx, func(view *store.View) error { return s.rotate(ctx, view, request, role) }, nil); err != nil {
		return nil, conflictError(err, "the cluster")
	}
	view, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	return &swarmpb.RotateJoinTokenResponse{Tokens: view.Cluster().GetJoinTokens(), ManagerAddress: s.cfg.ManagerAddress()}, nil
}

func (s *Server) rotate(ctx context.Context, view *store.View, request string, role swarmpb.NodeRole) error {
	cluster := swarmpb.Clone(view.Cluster())
	token, err := s.cfg.NewJoinToken(cluster.GetRootCa().GetCert())
	if err != nil {
		return wire.Errorf(wire.CodeInternal, "make join token: %w", err)
	}
	if cluster.JoinTokens == nil {
		cluster.JoinTokens = &swarmpb.JoinTokens{}
	}
	if role == swarmpb.NodeRole_NODE_ROLE_MANAGER {
		cluster.JoinTokens.Manager = token
	} else {
		cluster.JoinTokens.Worker = token
	}
	return s.write(ctx, request, &swarmpb.Proposal{
		Guards: []*swarmpb.Guard{guard(swarmpb.ClusterKey(cluster.GetId()), cluster.GetMeta().GetVersion())},
		Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})},
	})
}
