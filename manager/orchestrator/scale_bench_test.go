package orchestrator_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
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

// parts are the units of work of a look at the balance of a cluster, with a time at which it is the turn of each.
func parts(tb testing.TB, view *store.View, now time.Time) map[reconcile.ID]time.Time {
	plan := func(id reconcile.ID, at time.Time) reconcile.Plan {
		plan, err := (orchestrator.Moves{}).Reconcile(view, id, at)
		if err != nil {
			tb.Fatal(err)
		}
		return plan
	}
	whole := orchestrator.Moves{}.All(view)[0]
	looks := plan(whole, now).Also
	if len(looks) == 0 {
		looks = []reconcile.Look{{ID: whole}}
	}
	out := map[reconcile.ID]time.Time{}
	for _, look := range looks {
		if out[look.ID] = now; len(looks) > 1 {
			out[look.ID] = plan(look.ID, now.Add(-time.Hour)).At
		}
	}
	return out
}

// cpu is what the process has used.
func cpu(tb testing.TB) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkBalanceWide: one look at the balance of a large cluster in which nothing is to be moved, and what a user's request
// would move there.
func BenchmarkBalanceWide(b *testing.B) {
	for _, size := range wideSizes {
		b.Run(fmt.Sprintf("nodes=%d/services=%d/replicas=%d", size.nodes, size.services, size.replicas), func(b *testing.B) {
			c := wide(b, size.nodes, size.services, size.replicas)
			view := c.store.View()
			b.Run("look", func(b *testing.B) {
				looks, longest := 0, time.Duration(0)
				for b.Loop() {
					looks = 0
					for id, at := range parts(b, view, c.now.Add(time.Hour)) {
						begun := cpu(b)
						plan, err := (orchestrator.Moves{}).Reconcile(view, id, at)
						if err != nil || len(plan.Writes) > 0 {
							b.Fatal(err, len(plan.Writes))
						}
						longest = max(longest, cpu(b)-begun)
						looks++
					}
				}
				b.ReportMetric(float64(looks), "parts")
				b.ReportMetric(float64(longest.Microseconds())/1000, "longest-cpu-ms")
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
			for name, id := range map[string]reconcile.ID{"service": {Object: "s00000"}, "service-on-node": {Object: "s00000", Node: nodeOf(0)}} {
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						if plan, err := (orchestrator.Moves{}).Reconcile(view, id, c.now); err != nil || len(plan.Writes) > 0 {
							b.Fatal(err, len(plan.Writes))
						}
					}
				})
			}
		})
	}
}
