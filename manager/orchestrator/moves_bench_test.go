package orchestrator_test

import (
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
)

// BenchmarkMoves: one look at a service of 100,000 tasks, a hundredth of them on a node that is drained: with room for moves
// (begin), without (held), and when none has to move (quiet). And one look at the balance of that cluster.
func BenchmarkMoves(b *testing.B) {
	for _, name := range []string{"quiet", "begin", "held", "balance"} {
		b.Run(name, func(b *testing.B) {
			c := filled(b, 1, 100_000)
			service := swarmpb.Clone(c.store.View().Service("s0000"))
			service.Spec.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: 1}}
			if name == "begin" {
				service.Spec.MaxUnavailable = nil
			}
			c.write(b, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}))
			id := reconcile.ID{Object: "s0000"}
			if name == "balance" {
				id = orchestrator.Moves{}.All(c.store.View())[0]
			} else if name != "quiet" {
				node := swarmpb.Clone(c.store.View().Node("n00"))
				node.Spec.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
				c.write(b, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}))
				if name == "held" {
					c.reconcile(b, orchestrator.Moves{}, id)
				}
			}
			view := c.store.View()
			for b.Loop() {
				if _, err := (orchestrator.Moves{}).Reconcile(view, id, c.now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRebalance: the moves to be expected where one service of many is uneven.
func BenchmarkRebalance(b *testing.B) {
	c := filled(b, 200, 200)
	c.create(b, "uneven", 100)
	c.reconcile(b, orchestrator.Replicated{}, reconcile.ID{Object: "uneven"})
	for task := range c.store.View().TasksOf("uneven") {
		c.write(b, script.Put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: task.Id, NodeId: "n00"}}}),
			c.report(task.Id, swarmpb.TaskState_TASK_STATE_RUNNING))
	}
	view := c.store.View()
	for b.Loop() {
		if moves, _ := orchestrator.Rebalance(view, c.now, 1000); len(moves) != 99 {
			b.Fatalf("%d moves", len(moves))
		}
	}
}
