package control

import (
	"context"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Placing answers what placement and the orchestrator think of a view, through the code that they decide with. It writes nothing.
type Placing interface {
	// Explain judges every member for one more task of the service's present template, by hostname, then ID.
	Explain(view *store.View, serviceID string) ([]*swarmpb.NodeVerdict, error)
	// Rebalance is the moves that would be made, one after another, at most so many, and why services are left alone, a line each.
	// A move changes what those after it see.
	Rebalance(view *store.View, most int) (moves []*swarmpb.ProposedMove, leftAlone []string, err error)
}

// ExplainService tells for each node whether it would take one more task of the service.
func (s *Server) ExplainService(context.Context, *swarmpb.ExplainServiceRequest) (*swarmpb.ExplainServiceResponse, error) {
	return nil, wire.Errorf(wire.CodeUnimplemented, "not built yet")
}

// RebalanceCluster asks for tasks to be moved for balance.
func (s *Server) RebalanceCluster(context.Context, *swarmpb.RebalanceClusterRequest) (*swarmpb.RebalanceClusterResponse, error) {
	return nil, wire.Errorf(wire.CodeUnimplemented, "not built yet")
}
