package orchestrator_test

import (
	"fmt"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
)

// wide is a balanced cluster of many nodes, with services whose tasks all run.
func wide(tb testing.TB, nodes, services int, replicas uint64) *cluster {
	c := newCluster(tb)
	for i := benchNodes; i < nodes; i++ {
		c.join(tb, nodeOf(i))
	}
	at := 0
	for i := range services {
		id := fmt.Sprintf("s%05d", i)
		c.create(tb, id, replicas)
		c.reconcile(tb, orchestrator.Replicated{}, reconcile.ID{Object: id})
		var writes []*swarmpb.Write
		for task := range c.store.View().TasksOf(id) {
			writes = append(writes,
				script.Put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: task.Id, NodeId: nodeOf(at % nodes)}}}),
				c.report(task.Id, swarmpb.TaskState_TASK_STATE_RUNNING))
			if at++; len(writes) >= reconcile.MaxWrites {
				c.write(tb, writes...)
				writes = nil
			}
		}
		if len(writes) > 0 {
			c.write(tb, writes...)
		}
	}
	return c
}

// nodeOf is a node's name by number; the first ones are those of newCluster.
func nodeOf(i int) string { return fmt.Sprintf("n%02d", i) }

func (c *cluster) join(tb testing.TB, id string) {
	c.write(tb,
		script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Spec: &swarmpb.NodeSpec{}}}}),
		script.Put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
			NodeId: id, State: swarmpb.NodeState_NODE_STATE_READY, Description: &swarmpb.NodeDescription{
				Hostname: id, Platform: &swarmpb.Platform{Os: "linux", Architecture: "amd64"},
				Resources: &swarmpb.Resources{NanoCpus: 64e9, MemoryBytes: 256 << 30},
			}}}}))
}

// wideSizes are clusters of 10,000 nodes and up to 1,000,000 tasks.
var wideSizes = []struct {
	nodes, services int
	replicas        uint64
}{{10_000, 100, 1000}, {10_000, 100, 10_000}, {10_000, 10_000, 100}}

// BenchmarkBalanceWide: one look at the balance of a large cluster in which nothing is to be moved, and what a user's request
// would move there.
func BenchmarkBalanceWide(b *testing.B) {
	for _, size := range wideSizes {
		b.Run(fmt.Sprintf("nodes=%d/services=%d/replicas=%d", size.nodes, size.services, size.replicas), func(b *testing.B) {
			c := wide(b, size.nodes, size.services, size.replicas)
			view := c.store.View()
			id := orchestrator.Moves{}.All(view)[0]
			b.Run("look", func(b *testing.B) {
				for b.Loop() {
					plan, err := (orchestrator.Moves{}).Reconcile(view, id, c.now.Truncate(1_000_000_000_000))
					if err != nil || len(plan.Writes) > 0 {
						b.Fatal(err, len(plan.Writes))
					}
				}
			})
			b.Run("request", func(b *testing.B) {
				for b.Loop() {
					if moves, _ := orchestrator.Rebalance(view, c.now, 1000); len(moves) > 0 {
						b.Fatalf("%d moves", len(moves))
					}
				}
			})
			b.Run("claims", func(b *testing.B) {
				for b.Loop() {
					claims.Of(view)
				}
			})
			b.Run("service", func(b *testing.B) {
				for b.Loop() {
					_, _ = (orchestrator.Moves{}).Reconcile(view, reconcile.ID{Object: "s00000"}, c.now)
				}
			})
		})
	}
}
