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

func (c controlSwitch) manager() (swarmpb.ControlServer, error) {
	m := c.node.current()
	switch {
	case m == nil:
		return nil, wire.Errorf(wire.CodeFailedPrecondition,
			"this host belongs to no cluster: found one with `swarmctl init`, or join one with `swarmctl join`")
	case m.manager == nil:
		return nil, wire.NotManager()
	}
	return m.manager.Control(), nil
}

// call passes a request on to the manager's server.
func call[Req, Resp any](c controlSwitch, ctx context.Context, req Req, method func(swarmpb.ControlServer, context.Context, Req) (Resp, error)) (Resp, error) {
	m, err := c.manager()
	if err != nil {
		var none Resp
		return none, err
	}
	return method(m, ctx, req)
}

func (c controlSwitch) GetCluster(ctx context.Context, r *swarmpb.GetClusterRequest) (*swarmpb.GetClusterResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetCluster)
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

func (c controlSwitch) GetTask(ctx context.Context, r *swarmpb.GetTaskRequest) (*swarmpb.GetTaskResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.GetTask)
}

func (c controlSwitch) ListTasks(ctx context.Context, r *swarmpb.ListTasksRequest) (*swarmpb.ListTasksResponse, error) {
	return call(c, ctx, r, swarmpb.ControlServer.ListTasks)
}

func (c controlSwitch) WatchService(r *swarmpb.WatchServiceRequest, stream grpc.ServerStreamingServer[swarmpb.WatchServiceResponse]) error {
	m, err := c.manager()
	if err != nil {
		return err
	}
	return m.WatchService(r, stream)
}
