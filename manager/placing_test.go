package manager

import (
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// A manager answers what its users ask about placement with the code that places.
func TestManager_AskedAboutPlacement_Answers(t *testing.T) {
	h, _ := found(t)
	control := h.manager.Control()
	eventually(t, "the node is ready", func() bool {
		r, err := control.GetNode(t.Context(), &swarmpb.GetNodeRequest{Node: "self"})
		return err == nil && r.GetNode().GetStatus().GetState() == swarmpb.NodeState_NODE_STATE_READY && r.GetNode().GetFree() != nil
	})
	if _, err := control.CreateService(t.Context(), &swarmpb.CreateServiceRequest{NoResolveImage: true, Spec: &swarmpb.ServiceSpec{
		Name: "web", Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "web:1"},
			Placement: &swarmpb.Placement{Constraints: []string{"node.labels.zone==a"}}},
		Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: 2}}}}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both tasks wait for a node, and one is judged", func() bool {
		r, err := control.ExplainService(t.Context(), &swarmpb.ExplainServiceRequest{Service: "web"})
		return err == nil && r.GetPendingTotal() == 2 && len(r.GetNodes()) == 1 && r.GetNodes()[0].GetFilter() == "constraint"
	})
	if r, err := control.RebalanceCluster(t.Context(), &swarmpb.RebalanceClusterRequest{DryRun: true}); err != nil || len(r.GetMoves()) > 0 {
		t.Errorf("moves %v, error %v", r.GetMoves(), err)
	}
}
