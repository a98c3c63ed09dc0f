package orchestrator_test

import (
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/store"
)

// A global service is looked at when what the cluster takes a node to be changes, and when the node says another thing of
// itself; not when it says the same again.
func TestGlobal_WhatANodeIsTakenToBeChanges_IsLookedAt(t *testing.T) {
	st := store.New()
	template := &swarmpb.Template{ServiceId: "s", Version: 1, Spec: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "i"}}}
	service := &swarmpb.Service{Id: "s", TemplateVersion: 1,
		Spec: &swarmpb.ServiceSpec{Name: "s", Task: template.Spec, Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Global{Global: &swarmpb.GlobalMode{}}}}}
	results := st.Apply(1, 1, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Term: 1, Writes: []*swarmpb.Write{
		{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Template{Template: template}}}},
		{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}}},
	}}}})
	if err := store.ResultError(results[0]); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"gpu": "yes"}
	says := func(labels map[string]string) *swarmpb.NodeStatus {
		return &swarmpb.NodeStatus{NodeId: "n", First: &swarmpb.NodeFacts{}, Description: &swarmpb.NodeDescription{Engine: &swarmpb.EngineDescription{Labels: labels}}}
	}
	accepts := func(labels map[string]string) *swarmpb.Node {
		return &swarmpb.Node{Id: "n", Spec: &swarmpb.NodeSpec{Accepted: &swarmpb.NodeFacts{EngineLabels: labels}}}
	}
	for name, c := range map[string]struct {
		change store.Change
		want   int
	}{
		"accepted":           {store.Change{Table: swarmpb.Table_TABLE_NODE, Old: accepts(nil), New: accepts(labels)}, 1},
		"accepted as before": {store.Change{Table: swarmpb.Table_TABLE_NODE, Old: accepts(labels), New: accepts(labels)}, 0},
		"said":               {store.Change{Table: swarmpb.Table_TABLE_NODE_STATUS, Old: says(nil), New: says(labels)}, 1},
		"said as before":     {store.Change{Table: swarmpb.Table_TABLE_NODE_STATUS, Old: says(labels), New: says(labels)}, 0},
	} {
		if got := (orchestrator.Global{}).Affects(st.View(), c.change); len(got) != c.want {
			t.Errorf("%s: %v, want %d services", name, got, c.want)
		}
	}
}
