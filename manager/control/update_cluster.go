package control

import (
	"cmp"
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// UpdateCluster replaces the cluster's settings: the life of certificates, the history, the rotation of gossip keys and
// rebalancing hold from then on, address pools for the networks that are made from then on. What the cluster was founded
// on is for life, and may be left out. Settings that say the same change nothing.
func (s *Server) UpdateCluster(ctx context.Context, req *swarmpb.UpdateClusterRequest) (*swarmpb.UpdateClusterResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	if req.GetSpec() == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "cluster: the spec is missing")
	}
	var response *swarmpb.UpdateClusterResponse
	err = s.rewrite(ctx, func(view *store.View) error {
		cluster := view.Cluster()
		spec, err := clusterSpec(cluster.GetSpec(), req.GetSpec())
		if err != nil {
			return err
		}
		if proto.Equal(cluster.GetSpec(), spec) {
			response = &swarmpb.UpdateClusterResponse{Spec: spec, Meta: cluster.GetMeta()}
			return nil
		}
		next := swarmpb.Clone(cluster)
		next.Spec = spec
		if err := s.changeCluster(ctx, request, cmp.Or(req.GetVersion(), cluster.GetMeta().GetVersion()), next); err != nil {
			return err
		}
		s.log.Info("cluster updated")
		response = s.updatedCluster(ctx, next)
		return nil
	}, func(*store.ConflictError) bool { return req.GetVersion() != 0 })
	if err != nil {
		return nil, conflictError(err, "the cluster")
	}
	return response, nil
}

// changeCluster writes the cluster's row, made from the one of the version.
func (s *Server) changeCluster(ctx context.Context, request string, version uint64, next *swarmpb.Cluster) error {
	return s.write(ctx, request, &swarmpb.Proposal{
		Guards: []*swarmpb.Guard{guard(swarmpb.ClusterKey(next.GetId()), version)},
		Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: next}})},
	})
}

// updatedCluster answers with the row as it is by now; where no leader answers any more, with what was acknowledged.
func (s *Server) updatedCluster(ctx context.Context, written *swarmpb.Cluster) *swarmpb.UpdateClusterResponse {
	if view, err := s.fresh(ctx); err == nil {
		written = view.Cluster()
	}
	return &swarmpb.UpdateClusterResponse{Spec: written.GetSpec(), Meta: written.GetMeta()}
}

// clusterSpec is the spec that was asked for, made whole and checked.
func clusterSpec(now, asked *swarmpb.ClusterSpec) (*swarmpb.ClusterSpec, error) {
	spec, now := swarmpb.Clone(asked), swarmpb.Clone(now)
	now.SetDefaults()
	for _, f := range []struct {
		name, why string
		unset     bool
		was, asks any
	}{
		{"fabric pool", "the nodes have their blocks of it", spec.GetFabricPool() == "", now.GetFabricPool(), spec.GetFabricPool()},
		{"fabric block length", "the nodes have blocks of that length", spec.GetFabricBlockLength() == 0, now.GetFabricBlockLength(), spec.GetFabricBlockLength()},
		{"data path port", "the nodes reach each other's networks through it", spec.GetDataPathPort() == 0, now.GetDataPathPort(), spec.GetDataPathPort()},
	} {
		if !f.unset && f.was != f.asks {
			return nil, wire.Errorf(wire.CodeInvalid, "cluster: the %s is %v for the cluster's life, because %s; leave it as it is, or found a new cluster with %v",
				f.name, f.was, f.why, f.asks)
		}
	}
	spec.FabricPool, spec.FabricBlockLength, spec.DataPathPort = now.GetFabricPool(), now.GetFabricBlockLength(), now.GetDataPathPort()
	spec.SetDefaults()
	if err := spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "cluster: %w", err)
	}
	return spec, nil
}
