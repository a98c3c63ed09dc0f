package plan

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/allocator"
	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/placement"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// world is a cluster in which what was planned is done: a script's, with its own workers, but the real placement.
type world struct {
	*script.World
	t testing.TB
}

// once gives a world, which asks for every plan twice, the plan of placement again.
type once struct {
	*placement.Virtual
	index uint64
	plan  reconcile.Plan
}

func (o *once) Reconcile(view *store.View, id reconcile.ID, now time.Time) (plan reconcile.Plan, err error) {
	if o.index != view.Index() {
		o.index = view.Index()
		o.plan, err = o.Virtual.Reconcile(view, id, now)
	}
	return o.plan, err
}

func newWorld(t testing.TB, nodes int) *world {
	t.Helper()
	reconcilers := slices.Concat(orchestrator.Reconcilers(), allocator.Reconcilers(),
		[]reconcile.Reconciler{&once{Virtual: placement.NewVirtual("")}})
	inner, err := script.New(reconcilers...)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{inner, t}
	inner.PlacedByReconciler()
	// What is moved for balance, in a service that is as it should be, is no part of a plan.
	cluster := swarmpb.Clone(w.View().Cluster())
	cluster.Spec.NoRebalance = true
	if err := w.Write(script.Put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})); err != nil {
		t.Fatal(err)
	}
	w.do("auto", "on")
	for i := range nodes {
		w.do("node", fmt.Sprint("n", i+1), "ready")
	}
	return w
}

func (w *world) do(words ...string) {
	w.t.Helper()
	if _, err := w.Do(words...); err != nil {
		w.t.Fatal(err)
	}
	w.settle()
}

func (w *world) settle() {
	w.t.Helper()
	if err := w.Settle(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) advance(d time.Duration) {
	w.t.Helper()
	if err := w.Advance(d); err != nil {
		w.t.Fatal(err)
	}
}

// resources gives all nodes so many cores.
func (w *world) cores(n int64) {
	w.t.Helper()
	for node := range w.View().Nodes() {
		status := swarmpb.Clone(w.View().NodeStatus(node.Id))
		status.Description = &swarmpb.NodeDescription{Resources: &swarmpb.Resources{NanoCpus: n * 1e9, MemoryBytes: 1 << 34}}
		if err := w.Write(script.Put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}})); err != nil {
			w.t.Fatal(err)
		}
	}
	w.settle()
}

// change is a user's write to service web that nobody has acted on yet.
type change struct {
	before   *store.View
	proposal *swarmpb.Proposal
}

// write makes the user's write, and gives it back as control would propose it.
func (w *world) write(user func() error) change {
	w.t.Helper()
	before := w.View()
	if err := user(); err != nil {
		w.t.Fatal(err)
	}
	after := w.View()
	proposal := &swarmpb.Proposal{Now: w.Now().UnixNano()}
	for template := range after.TemplatesOf("web") {
		if before.Template("web", template.Version) == nil {
			proposal.Writes = append(proposal.Writes, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: template}}))
		}
	}
	proposal.Writes = append(proposal.Writes, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: after.Service("web")}}))
	return change{before, proposal}
}

func (w *world) update(change func(spec *swarmpb.ServiceSpec)) change {
	w.t.Helper()
	return w.write(func() error {
		return w.Update("web", func(spec *swarmpb.ServiceSpec) error { change(spec); return nil })
	})
}

func (w *world) create(replicas uint64, with func(spec *swarmpb.ServiceSpec)) change {
	w.t.Helper()
	spec := script.NewSpec(replicas)
	if with != nil {
		with(spec)
	}
	return w.write(func() error { return w.Create("web", spec) })
}

// plan foretells a change on the view from before it, which stays as it is.
func (w *world) plan(c change) *swarmpb.PlanServiceResponse {
	w.t.Helper()
	before := proto.CloneOf(c.proposal)
	answer, err := New(w.Now).Plan(w.t.Context(), c.before, []*swarmpb.Proposal{c.proposal}, "web")
	if err != nil {
		w.t.Fatal(err)
	}
	if !proto.Equal(before, c.proposal) {
		w.t.Error("planning changed the proposal")
	}
	if err := c.before.Verify(); err != nil {
		w.t.Errorf("planning changed the view: %v", err)
	}
	return answer
}

// reality lets the world act on what was written, for so long, and lists the starts and stops of tasks.
func (w *world) reality(d time.Duration) []string {
	w.t.Helper()
	start := w.Now()
	watch, err := w.Store.Watch(w.View().Index(), 0)
	if err != nil {
		w.t.Fatal(err)
	}
	w.advance(d)
	type event struct {
		index uint64
		task  *swarmpb.Task
		line  string
	}
	var events []event
	for watch.Reached() == nil {
		batch, err := watch.Next(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		tasks, nodes := map[string]*swarmpb.Task{}, map[string]string{}
		for _, c := range batch.Changes { // they may be deleted by now
			switch old := c.Old.(type) {
			case *swarmpb.Task:
				tasks[old.Id] = old
			case *swarmpb.TaskPlacement:
				nodes[old.TaskId] = old.NodeId
			}
		}
		for _, c := range batch.Changes {
			old, _ := c.Old.(*swarmpb.TaskStatus)
			status, ok := c.New.(*swarmpb.TaskStatus)
			if !ok || old.GetState() == status.State {
				continue
			}
			task := cmp.Or(batch.View.Task(status.TaskId), tasks[status.TaskId])
			verb := ""
			switch {
			case status.State == stateRunning:
				verb = "start"
			case status.State.Ended() && old.GetState() < swarmpb.TaskState_TASK_STATE_STARTING:
				verb = "call off"
			case status.State.Ended():
				verb = "stop"
			default:
				continue
			}
			events = append(events, event{c.Index, task, fmt.Sprintf("%s %s %s of %d on %s",
				time.Duration(status.At-start.UnixNano()), verb, swarmpb.TaskName("web", task.Slot, task.NodeId), task.TemplateVersion, cmp.Or(batch.View.NodeID(task.Id), nodes[task.Id]))})
		}
	}
	slices.SortStableFunc(events, func(a, b event) int { // workers act at the same time
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.task.Slot, b.task.Slot), cmp.Compare(a.task.Attempt, b.task.Attempt))
	})
	var lines []string
	for _, e := range events {
		lines = append(lines, e.line)
	}
	return lines
}

// moves are the starts and stops of a plan, as reality lists them.
func moves(answer *swarmpb.PlanServiceResponse) (lines []string) {
	verbs := map[swarmpb.PlanAction]string{
		swarmpb.PlanAction_PLAN_ACTION_START: "start", swarmpb.PlanAction_PLAN_ACTION_STOP: "stop"}
	for _, s := range answer.Steps {
		verb := verbs[s.Action]
		if s.Message != "" {
			verb = "call off"
		}
		if s.TaskName != "" && verb != "" {
			lines = append(lines, fmt.Sprintf("%s %s %s of %d on %s", time.Duration(s.At), verb, s.TaskName, s.TemplateVersion, s.NodeId))
		}
	}
	return lines
}

// text is all steps of a plan.
func text(answer *swarmpb.PlanServiceResponse) (lines []string) {
	for _, s := range answer.Steps {
		line := fmt.Sprint(time.Duration(s.At), " ", s.Action.Name())
		for _, more := range []string{s.TaskName, s.NodeId, s.Message} {
			if more != "" {
				line += " " + more
			}
		}
		lines = append(lines, line)
	}
	return lines
}

func seconds(n int64) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Second) }
