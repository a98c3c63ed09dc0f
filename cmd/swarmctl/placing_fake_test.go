package main

import (
	"context"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// placing is what the fake says of placement, and what it was asked to change of the cluster.
type placing struct {
	explained  *swarmpb.ExplainServiceResponse
	rebalanced *swarmpb.RebalanceClusterResponse
	rebalances []*swarmpb.RebalanceClusterRequest
	settings   []*swarmpb.ClusterSpec
}

func (c *fakeControl) ExplainService(ctx context.Context, req *swarmpb.ExplainServiceRequest) (*swarmpb.ExplainServiceResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: req.Service})
	if err != nil {
		return nil, err
	}
	if c.explained == nil {
		return &swarmpb.ExplainServiceResponse{ServiceId: r.Service.Service.Id, ServiceName: r.Service.Service.Spec.Name}, nil
	}
	return c.explained, nil
}

func (c *fakeControl) RebalanceCluster(ctx context.Context, req *swarmpb.RebalanceClusterRequest) (*swarmpb.RebalanceClusterResponse, error) {
	c.rebalances = append(c.rebalances, req)
	return c.rebalanced, c.answer(ctx)
}

// UpdateCluster does as the managers do: what is for the cluster's life stays.
func (c *fakeControl) UpdateCluster(ctx context.Context, req *swarmpb.UpdateClusterRequest) (*swarmpb.UpdateClusterResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	if c.conflicts > 0 {
		c.conflicts--
		return nil, wire.Errorf(wire.CodeConflict, "the cluster was changed by somebody else at the same time")
	}
	spec := swarmpb.Clone(req.Spec)
	spec.SetDefaults()
	if err := spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "cluster: %w", err)
	}
	c.settings, c.cluster.Spec = append(c.settings, spec), spec
	return &swarmpb.UpdateClusterResponse{Spec: spec, Meta: c.cluster.Meta}, nil
}
