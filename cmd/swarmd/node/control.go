package node

import (
	"context"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// controlSwitch serves the user's API on the local socket: by this host's manager, while there is one.
type controlSwitch struct {
	swarmpb.UnsafeControlServer
	node *Node
}

func (c controlSwitch) manager() (*part, error) {
	m := c.node.current()
	if m == nil {
		return nil, wire.Errorf(wire.CodeFailedPrecondition,
			"this host belongs to no cluster: found one with `swarmctl init`, or join one with `swarmctl join`")
	}
	return m.serving()
}

// call passes a request on to the manager's server.
func call[Req, Resp any](c controlSwitch, ctx context.Context, req Req, method func(swarmpb.ControlServer, context.Context, Req) (Resp, error)) (Resp, error) {
	p, err := c.manager()
	if err != nil {
		var none Resp
		return none, err
	}
	resp, err := method(p.manager.Control(), ctx, req)
	return resp, p.whileStopping(err)
}

// whileStopping is the error of a call that a manager which has stopped meanwhile did not do.
func (p *part) whileStopping(err error) error {
	switch wire.CodeOf(err) {
	case wire.CodeUnavailable, wire.CodeCanceled, wire.CodeDeadline:
		if p.stopped() {
			return errStopping()
		}
	}
	return err
}

func (c controlSwitch) GetCluster(ctx context.Context, r *swarmpb.GetClusterRequest) (*swarmpb.GetClusterResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetCluster)
}

func (c controlSwitch) UpdateCluster(ctx context.Context, r *swarmpb.UpdateClusterRequest) (*swarmpb.UpdateClusterResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.UpdateCluster)
}

func (c controlSwitch) GetJoinTokens(ctx context.Context, r *swarmpb.GetJoinTokensRequest) (*swarmpb.GetJoinTokensResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetJoinTokens)
}

func (c controlSwitch) RotateJoinToken(ctx context.Context, r *swarmpb.RotateJoinTokenRequest) (*swarmpb.RotateJoinTokenResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.RotateJoinToken)
}

func (c controlSwitch) ListNodes(ctx context.Context, r *swarmpb.ListNodesRequest) (*swarmpb.ListNodesResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.ListNodes)
}

func (c controlSwitch) GetNode(ctx context.Context, r *swarmpb.GetNodeRequest) (*swarmpb.GetNodeResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetNode)
}

func (c controlSwitch) UpdateNode(ctx context.Context, r *swarmpb.UpdateNodeRequest) (*swarmpb.UpdateNodeResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.UpdateNode)
}

func (c controlSwitch) RemoveNode(ctx context.Context, r *swarmpb.RemoveNodeRequest) (*swarmpb.RemoveNodeResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.RemoveNode)
}

func (c controlSwitch) CreateService(ctx context.Context, r *swarmpb.CreateServiceRequest) (*swarmpb.CreateServiceResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.CreateService)
}

func (c controlSwitch) UpdateService(ctx context.Context, r *swarmpb.UpdateServiceRequest) (*swarmpb.UpdateServiceResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.UpdateService)
}

func (c controlSwitch) RemoveService(ctx context.Context, r *swarmpb.RemoveServiceRequest) (*swarmpb.RemoveServiceResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.RemoveService)
}

func (c controlSwitch) GetService(ctx context.Context, r *swarmpb.GetServiceRequest) (*swarmpb.GetServiceResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetService)
}

func (c controlSwitch) ListServices(ctx context.Context, r *swarmpb.ListServicesRequest) (*swarmpb.ListServicesResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.ListServices)
}

func (c controlSwitch) CreateNetwork(ctx context.Context, r *swarmpb.CreateNetworkRequest) (*swarmpb.CreateNetworkResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.CreateNetwork)
}

func (c controlSwitch) RemoveNetwork(ctx context.Context, r *swarmpb.RemoveNetworkRequest) (*swarmpb.RemoveNetworkResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.RemoveNetwork)
}

func (c controlSwitch) GetNetwork(ctx context.Context, r *swarmpb.GetNetworkRequest) (*swarmpb.GetNetworkResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetNetwork)
}

func (c controlSwitch) ListNetworks(ctx context.Context, r *swarmpb.ListNetworksRequest) (*swarmpb.ListNetworksResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.ListNetworks)
}

func (c controlSwitch) ConnectNetwork(ctx context.Context, r *swarmpb.ConnectNetworkRequest) (*swarmpb.ConnectNetworkResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.ConnectNetwork)
}

func (c controlSwitch) DisconnectNetwork(ctx context.Context, r *swarmpb.DisconnectNetworkRequest) (*swarmpb.DisconnectNetworkResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.DisconnectNetwork)
}

func (c controlSwitch) RollbackService(ctx context.Context, r *swarmpb.RollbackServiceRequest) (*swarmpb.RollbackServiceResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.RollbackService)
}

func (c controlSwitch) CommandRollout(ctx context.Context, r *swarmpb.CommandRolloutRequest) (*swarmpb.CommandRolloutResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.CommandRollout)
}

func (c controlSwitch) GetServiceHistory(ctx context.Context, r *swarmpb.GetServiceHistoryRequest) (*swarmpb.GetServiceHistoryResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetServiceHistory)
}

func (c controlSwitch) PlanService(ctx context.Context, r *swarmpb.PlanServiceRequest) (*swarmpb.PlanServiceResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.PlanService)
}

func (c controlSwitch) ExplainService(ctx context.Context, r *swarmpb.ExplainServiceRequest) (*swarmpb.ExplainServiceResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.ExplainService)
}

func (c controlSwitch) RebalanceCluster(ctx context.Context, r *swarmpb.RebalanceClusterRequest) (*swarmpb.RebalanceClusterResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.RebalanceCluster)
}

func (c controlSwitch) GetTask(ctx context.Context, r *swarmpb.GetTaskRequest) (*swarmpb.GetTaskResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetTask)
}

func (c controlSwitch) ListTasks(ctx context.Context, r *swarmpb.ListTasksRequest) (*swarmpb.ListTasksResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.ListTasks)
}

func (c controlSwitch) WatchService(r *swarmpb.WatchServiceRequest, stream grpc.ServerStreamingServer[swarmpb.WatchServiceResponse]) error {
	p, err := c.manager()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-p.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	return p.whileStopping(p.manager.Control().WatchService(r, watchStream{stream, ctx}))
}

// watchStream is a stream that ends with its manager: what that still has of the cluster is old.
type watchStream struct {
	grpc.ServerStreamingServer[swarmpb.WatchServiceResponse]
	ctx context.Context
}

func (s watchStream) Context() context.Context { return s.ctx }
