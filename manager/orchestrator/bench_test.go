package orchestrator_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// cluster is a store with services whose tasks all run, and no loops.
type cluster struct {
	store  *store.Store
	leader store.Leader
	now    time.Time
}

const benchNodes = 100

func newCluster(tb testing.TB) *cluster {
	s := store.New()
	c := &cluster{store: s, leader: store.NewLocalProposer(s), now: time.Unix(1_900_000_000, 0)}
	for i := range benchNodes {
		id := fmt.Sprintf("n%02d", i)
		c.write(tb,
			script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Spec: &swarmpb.NodeSpec{}}}}),
			script.Put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
				NodeId: id, State: swarmpb.NodeState_NODE_STATE_READY}}}))
	}
	return c
}

func (c *cluster) write(tb testing.TB, writes ...*swarmpb.Write) {
	c.apply(tb, reconcile.Plan{Writes: writes})
}

func (c *cluster) apply(tb testing.TB, plan reconcile.Plan) {
	tb.Helper()
	_, err := c.leader.Propose(context.Background(), &swarmpb.Proposal{
		Term: c.leader.Term(), Writes: plan.Writes, Guards: plan.Guards, Now: c.now.UnixNano()})
	if err != nil {
		tb.Fatal(err)
	}
}

// reconcile plans and applies until an id has nothing more to do; it answers the number of plans.
func (c *cluster) reconcile(tb testing.TB, r reconcile.Reconciler, id reconcile.ID) int {
	tb.Helper()
	for n := 1; ; n++ {
		plan, err := r.Reconcile(c.store.View(), id, c.now)
		if err != nil {
			tb.Fatal(err)
		}
		for part, ok := plan, len(plan.Writes) > 0; ok; part, ok = part.Next() {
			c.apply(tb, part)
		}
		if !plan.More {
			return n
		}
	}
}

// create makes a service.
func (c *cluster) create(tb testing.TB, id string, replicas uint64) {
	spec := script.NewSpec(replicas)
	spec.Name = id
	c.write(tb,
		script.Put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: id, Version: 1, Spec: spec.Task}}}),
		script.Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: id, Spec: spec, TemplateVersion: 1}}}))
}

// start places every task of a service and lets it run.
func (c *cluster) start(tb testing.TB, id string) {
	var writes []*swarmpb.Write
	i := 0
	for task := range c.store.View().TasksOf(id) {
		writes = append(writes,
			script.Put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{
				TaskId: task.Id, NodeId: fmt.Sprintf("n%02d", i%benchNodes)}}}),
			c.report(task.Id, swarmpb.TaskState_TASK_STATE_RUNNING))
		if i++; len(writes) >= reconcile.MaxWrites {
			c.write(tb, writes...)
			writes = nil
		}
	}
	if len(writes) > 0 {
		c.write(tb, writes...)
	}
}

func (c *cluster) report(task string, state swarmpb.TaskState) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
		TaskId: task, State: state, At: c.now.UnixNano(),
		Container: &swarmpb.ContainerStatus{StartedAt: c.now.Add(-time.Hour).UnixNano()}}}}
}

// sizes are the two shapes of a large cluster.
var sizes = []struct {
	services int
	replicas uint64
}{{1000, 10}, {1, 100_000}}

func filled(b testing.TB, services int, replicas uint64) *cluster {
	c := newCluster(b)
	for i := range services {
		id := fmt.Sprintf("s%04d", i)
		c.create(b, id, replicas)
		c.reconcile(b, orchestrator.Replicated{}, reconcile.ID{Object: id})
		c.start(b, id)
	}
	return c
}

// BenchmarkOrchestratorChangedTask: a task ends; its slot is judged and its successor written.
func BenchmarkOrchestratorChangedTask(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("services=%d/replicas=%d", size.services, size.replicas), func(b *testing.B) {
			c := filled(b, size.services, size.replicas)
			watch, err := c.store.Watch(c.store.View().Index(), 0)
			if err != nil {
				b.Fatal(err)
			}
			loops := orchestrator.Reconcilers()
			i := 0
			for b.Loop() {
				service := fmt.Sprintf("s%04d", i%size.services)
				slot := uint64(i/size.services)%size.replicas + 1
				i++
				task := ""
				for t := range c.store.View().TasksIn(service, slot) {
					task = t.Id
				}
				c.write(b, c.report(task, swarmpb.TaskState_TASK_STATE_FAILED))
				batch, err := watch.Next(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				for _, loop := range loops {
					for _, change := range batch.Changes {
						for _, id := range loop.Affects(batch.View, change) {
							c.reconcile(b, loop, id)
						}
					}
				}
			}
		})
	}
}

// BenchmarkOrchestratorCreate: from a new service to all its tasks written, per task.
func BenchmarkOrchestratorCreate(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("services=%d/replicas=%d", size.services, size.replicas), func(b *testing.B) {
			for b.Loop() {
				c := newCluster(b)
				for i := range size.services {
					id := fmt.Sprintf("s%04d", i)
					c.create(b, id, size.replicas)
					c.reconcile(b, orchestrator.Replicated{}, reconcile.ID{Object: id})
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(uint64(size.services)*size.replicas), "us/task")
		})
	}
}

// BenchmarkOrchestratorAll: what a new leader asks at first, per task.
func BenchmarkOrchestratorAll(b *testing.B) {
	for _, size := range sizes {
		b.Run(fmt.Sprintf("services=%d/replicas=%d", size.services, size.replicas), func(b *testing.B) {
			c := filled(b, size.services, size.replicas)
			for b.Loop() {
				orchestrator.Replicated{}.All(c.store.View())
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(uint64(size.services)*size.replicas), "us/task")
		})
	}
}

// BenchmarkOrchestratorRolloutStep: a slot of a running update is done, and the next one begins.
func BenchmarkOrchestratorRolloutStep(b *testing.B) {
	const service, replicas = "s0000", 100_000
	c := filled(b, 1, replicas)
	old := c.store.View().Service(service)
	next := swarmpb.Clone(old)
	next.TemplateVersion, next.PreviousTemplateVersion, next.PreviousSpec = 2, 1, swarmpb.Clone(old.Spec)
	next.Spec.Task.ForceUpdate++
	c.write(b,
		script.Put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: service, Version: 2, Spec: next.Spec.Task}}}),
		script.Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: next}}))
	id := reconcile.ID{Object: service}
	c.reconcile(b, orchestrator.Rollout{}, id)
	slot := uint64(1)
	for b.Loop() {
		if slot == replicas {
			b.Skip("the service is updated")
		}
		newest := ""
		for t := range c.store.View().TasksIn(service, slot) {
			newest = t.Id
		}
		for _, state := range []swarmpb.TaskState{swarmpb.TaskState_TASK_STATE_READY, swarmpb.TaskState_TASK_STATE_RUNNING} {
			c.write(b, c.report(newest, state))
			c.reconcile(b, orchestrator.Replicated{}, reconcile.ID{Object: service, Slot: slot})
			for t := range c.store.View().TasksIn(service, slot) {
				if t.Id != newest && !c.store.View().Observed(t.Id).Ended() {
					c.write(b, c.report(t.Id, swarmpb.TaskState_TASK_STATE_SHUTDOWN))
				}
			}
			c.reconcile(b, orchestrator.Replicated{}, reconcile.ID{Object: service, Slot: slot})
		}
		c.now = c.now.Add(time.Minute)
		c.reconcile(b, orchestrator.Rollout{}, id)
		slot++
	}
}
