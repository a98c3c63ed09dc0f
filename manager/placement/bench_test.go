package placement

import (
	"fmt"
	"testing"
)

// BenchmarkPlan measures placement with the store but without Raft: from waiting tasks to rows.
func BenchmarkPlan(b *testing.B) {
	for _, c := range []struct{ nodes, services, tasks int }{{1_000, 1, 20_000}, {1_000, 2_000, 1}, {1_000, 20, 1_000}} {
		b.Run(fmt.Sprintf("nodes=%d/services=%d/tasks=%d", c.nodes, c.services, c.tasks), func(b *testing.B) {
			placed := 0
			for b.Loop() {
				b.StopTimer()
				w := newWorld(b)
				for i := range c.nodes {
					w.do("node", []string{fmt.Sprintf("n%05d", i), "cpu=64"})
				}
				for i := range c.services {
					id := fmt.Sprintf("s%05d", i)
					w.do("service", []string{id, "cpu=0.1"})
					w.do("tasks", []string{id, fmt.Sprint(c.tasks)})
				}
				b.StartTimer()
				w.planner.reset(w.store.View())
				for w.planner.waiting() {
					for _, d := range w.planner.plan(w.store.View(), w.now) {
						if err := w.propose(d); err != nil {
							b.Fatal(err)
						}
					}
				}
				placed += c.services * c.tasks
				if n := w.store.View().UnplacedCount(); n > 0 {
					b.Fatalf("%d tasks unplaced", n)
				}
			}
			b.ReportMetric(float64(placed)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}
