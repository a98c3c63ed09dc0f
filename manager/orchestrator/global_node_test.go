package orchestrator_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// TestGlobal_AnyNodesChange_EachIsJudgedAsTheLookAtAllDoes: a change of a node costs a look at that node, which finds something
// to do exactly where the look at all nodes would do something about one.
func TestGlobal_AnyNodesChange_EachIsJudgedAsTheLookAtAllDoes(t *testing.T) {
	acted := 0
	rapid.Check(t, func(rt *rapid.T) {
		c := newCluster(t)
		spec := &swarmpb.ServiceSpec{Name: "g", Task: script.NewSpec(1).Task, Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Global{Global: &swarmpb.GlobalMode{}}}}
		spec.Task.Placement = &swarmpb.Placement{Constraints: []string{"node.labels.kind != other"}}
		c.write(t,
			script.Put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: "g", Version: 1, Spec: spec.Task}}}),
			script.Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: "g", Spec: spec, TemplateVersion: 1}}}))
		all := reconcile.ID{Object: "g"}
		change := func() (changes []store.Change) {
			watch, err := c.store.Watch(c.store.View().Index(), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer watch.Close()
			for range rapid.IntRange(1, 3).Draw(rt, "changes") {
				id := nodeOf(rapid.IntRange(0, 4).Draw(rt, "node"))
				node, status := c.store.View().Node(id), c.store.View().NodeStatus(id)
				what := rapid.IntRange(0, 3).Draw(rt, "what")
				if node == nil || status == nil {
					node, status = &swarmpb.Node{Id: id, Spec: &swarmpb.NodeSpec{}}, &swarmpb.NodeStatus{NodeId: id}
				} else {
					node, status = swarmpb.Clone(node), swarmpb.Clone(status)
				}
				switch what {
				case 0:
					node.Spec.Availability = rapid.SampledFrom([]swarmpb.NodeAvailability{1, 2, 3}).Draw(rt, "availability")
				case 1:
					node.Spec.Labels = map[string]string{"kind": rapid.SampledFrom([]string{"this", "other"}).Draw(rt, "kind")}
				case 2:
					status.State = rapid.SampledFrom([]swarmpb.NodeState{1, 2, 3, 4}).Draw(rt, "state")
				case 3:
					if c.store.View().Node(id) != nil {
						c.write(t, &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(id)}})
						continue
					}
				}
				c.write(t, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}), script.Put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}}))
			}
			for watch.Reached() == nil {
				batch, err := watch.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				changes = append(changes, batch.Changes...)
			}
			return changes
		}
		for range rapid.IntRange(1, 4).Draw(rt, "rounds") {
			c.reconcile(t, orchestrator.Global{}, all)
			var amiss []string
			for _, row := range change() {
				for _, id := range (orchestrator.Global{}).Affects(c.store.View(), row) {
					plan, err := orchestrator.Global{}.Reconcile(c.store.View(), id, c.now)
					if err != nil || len(plan.Writes) > 0 || id.Node == "" {
						rt.Fatalf("%s: %v, %d writes", id, err, len(plan.Writes))
					}
					if len(plan.Also) > 0 && plan.Also[0].ID == all && !slices.Contains(amiss, id.Node) {
						amiss = append(amiss, id.Node)
					}
				}
			}
			plan, err := orchestrator.Global{}.Reconcile(c.store.View(), all, c.now)
			if err != nil || len(plan.Writes) > 0 != (len(amiss) > 0) {
				rt.Fatalf("%d writes (%v), but something is to be done about %v", len(plan.Writes), err, amiss)
			}
			acted += len(amiss)
		}
	})
	if acted == 0 {
		t.Error("nothing was ever to be done")
	}
}

// Of thousands of nodes that join one after another those that came meanwhile are looked at together.
func TestGlobal_ManyNodes_LooksAtAllOfThemKeepADistance(t *testing.T) {
	c := newCluster(t)
	of := func(id reconcile.ID) time.Duration { return orchestrator.Global{}.Pace(c.store.View(), id) }
	if got := of(reconcile.ID{Object: "g"}); got != 0 {
		t.Errorf("%v in a small cluster", got)
	}
	for i := benchNodes; i < 2000; i++ {
		c.join(t, nodeOf(i))
	}
	if got := of(reconcile.ID{Object: "g"}); got == 0 {
		t.Error("no distance in a large cluster")
	}
	if got := of(reconcile.ID{Object: "g", Node: "n"}); got != 0 {
		t.Errorf("%v for one node", got)
	}
}
