package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile/script"
)

// amend changes the rows of a node.
func (w *world) amend(id string, change func(*swarmpb.NodeSpec, *swarmpb.NodeStatus)) {
	w.t.Helper()
	node, status := swarmpb.Clone(w.View().Node(id)), swarmpb.Clone(w.View().NodeStatus(id))
	if node.Spec == nil {
		node.Spec = &swarmpb.NodeSpec{}
	}
	if status.Description == nil {
		status.Description = &swarmpb.NodeDescription{}
	}
	change(node.Spec, status)
	if err := w.Write(script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}),
		script.Put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}})); err != nil {
		w.t.Fatal(err)
	}
}

func TestExplain_EachNode_AcceptedOrTheFilterWithWhatIsAndWhatIsAsked(t *testing.T) {
	const (
		pause, drain = swarmpb.NodeAvailability_NODE_AVAILABILITY_PAUSE, swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
		down         = swarmpb.NodeState_NODE_STATE_DOWN
	)
	w := newWorld(t, 9)
	w.cores(4)
	for i, change := range []func(*swarmpb.NodeSpec, *swarmpb.NodeStatus){
		func(*swarmpb.NodeSpec, *swarmpb.NodeStatus) {},
		func(spec *swarmpb.NodeSpec, _ *swarmpb.NodeStatus) { spec.Availability = drain },
		func(spec *swarmpb.NodeSpec, _ *swarmpb.NodeStatus) { spec.Availability = pause },
		func(_ *swarmpb.NodeSpec, status *swarmpb.NodeStatus) {
			status.State, status.Message = down, "no heartbeat for 3s"
		},
		func(_ *swarmpb.NodeSpec, status *swarmpb.NodeStatus) {
			status.State = swarmpb.NodeState_NODE_STATE_UNKNOWN
		},
		func(_ *swarmpb.NodeSpec, status *swarmpb.NodeStatus) {
			status.Description.TakesNoTasks = "the disk is full"
		},
		func(spec *swarmpb.NodeSpec, _ *swarmpb.NodeStatus) { spec.Labels = map[string]string{"zone": "c"} },
		func(_ *swarmpb.NodeSpec, status *swarmpb.NodeStatus) {
			status.Description.Resources.NanoCpus = 1e9
		},
		func(spec *swarmpb.NodeSpec, _ *swarmpb.NodeStatus) { // it has 4, and is taken to have 1
			spec.Accepted = &swarmpb.NodeFacts{Resources: &swarmpb.Resources{NanoCpus: 1e9, MemoryBytes: 1 << 34}}
		},
	} {
		w.amend(fmt.Sprint("n", i+1), change)
	}
	spec := script.NewSpec(1)
	reserve(spec, 2)
	spec.Task.Placement = &swarmpb.Placement{Constraints: []string{"node.labels.zone!=c"}}
	if err := w.Create("web", spec); err != nil {
		t.Fatal(err)
	}
	w.settle()
	verdicts, err := New(w.Now).Explain(w.View(), "web")
	if err != nil {
		t.Fatal(err)
	}
	want := []struct{ filter, detail string }{
		{"", ""}, {"availability", "drained"}, {"availability", "paused"}, {"availability", "it is down: no heartbeat for 3s"},
		{"availability", "not connected yet"}, {"availability", "it takes no new tasks: the disk is full"},
		{"constraint", "node.labels.zone"}, {"resources", "needs 2 CPUs, 1 of 1 free"}, {"resources", "needs 2 CPUs, 1 of 1 free"},
	}
	if len(verdicts) != len(want) {
		t.Fatalf("%d verdicts, want %d", len(verdicts), len(want))
	}
	for i, v := range verdicts {
		if v.NodeId != fmt.Sprint("n", i+1) || v.Accepted != (want[i].filter == "") || v.Filter != want[i].filter || !strings.Contains(v.Detail, want[i].detail) {
			t.Errorf("%s: accepted %t, filter %q, %q; want %q, %q", v.NodeId, v.Accepted, v.Filter, v.Detail, want[i].filter, want[i].detail)
		}
		if tasks := uint32(map[bool]int{true: 1}[i == 0]); v.ServiceTasks != tasks || v.Tasks != tasks {
			t.Errorf("%s: %d tasks of the service, %d in all, want %d", v.NodeId, v.ServiceTasks, v.Tasks, tasks)
		}
	}
	if got := verdicts[0].Hostname; got != w.View().NodeName("n1") {
		t.Errorf("hostname %q", got)
	}
}

func TestExplain_EveryFilter_HasAName(t *testing.T) {
	names := map[string]bool{}
	for filter, name := range filterNames {
		if name == "" || names[name] {
			t.Errorf("filter %d: name %q", filter, name)
		}
		names[name] = true
	}
	if len(names) != 8 {
		t.Errorf("%d filters have names", len(names))
	}
}

func TestExplain_ServiceThatIsNotThere_IsAnError(t *testing.T) {
	if _, err := New(time.Now).Explain(newWorld(t, 1).View(), "gone"); err == nil {
		t.Error("no error")
	}
}

func TestAccount_TasksWithGenericResources_ReservedAndFreeByInstance(t *testing.T) {
	w := newWorld(t, 1)
	w.cores(4)
	gpus := &swarmpb.GenericResource{Kind: "gpu", Instances: []string{"g0", "g1", "g2", "g3"}}
	w.amend("n1", func(spec *swarmpb.NodeSpec, status *swarmpb.NodeStatus) {
		has := status.Description.Resources
		has.Generic = []*swarmpb.GenericResource{{Kind: "fpga", Count: 5}, gpus}
		accepted := swarmpb.Clone(has)
		accepted.Generic[1].Instances = []string{"g0", "g1", "g2"}
		accepted.NanoCpus = 3e9
		spec.Accepted = &swarmpb.NodeFacts{Resources: accepted}
	})
	account := func() (reserved, free *swarmpb.Resources, notAccepted []string) {
		return New(w.Now).Account(w.View(), w.View().Node("n1"))
	}
	reserved, free, _ := account()
	if !proto.Equal(reserved, &swarmpb.Resources{}) || free.NanoCpus != 3e9 || len(free.Generic) != 2 {
		t.Errorf("of an empty node reserved %v, free %v", reserved, free)
	}
	spec := script.NewSpec(2)
	spec.Task.Resources = &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 2e9, MemoryBytes: 1 << 30,
		Generic: []*swarmpb.GenericResource{{Kind: "gpu", Count: 1}, {Kind: "fpga", Count: 2}}}}
	if err := w.Create("web", spec); err != nil {
		t.Fatal(err)
	}
	w.settle()
	reserved, free, more := account()
	want := &swarmpb.Resources{NanoCpus: 2e9, MemoryBytes: 1 << 30, Generic: []*swarmpb.GenericResource{
		{Kind: "fpga", Count: 2}, {Kind: "gpu", Instances: []string{"g0"}}}}
	if !proto.Equal(reserved, want) {
		t.Errorf("reserved %v,\n want %v", reserved, want)
	}
	want = &swarmpb.Resources{NanoCpus: 1e9, MemoryBytes: 1<<34 - 1<<30, Generic: []*swarmpb.GenericResource{
		{Kind: "fpga", Count: 3}, {Kind: "gpu", Instances: []string{"g1", "g2"}}}}
	if !proto.Equal(free, want) {
		t.Errorf("free %v,\n want %v", free, want)
	}
	if !slices.ContainsFunc(more, func(line string) bool { return strings.Contains(line, "4 CPUs, 3 are taken") }) ||
		!slices.ContainsFunc(more, func(line string) bool { return strings.Contains(line, "gpu: g3") }) {
		t.Errorf("not accepted %q", more)
	}
}

func TestRebalance_NodeHasCome_TellsTheMovesOneAfterAnother(t *testing.T) {
	w := newWorld(t, 2)
	for name, packs := range map[string]bool{"web": false, "pack": true} {
		spec := script.NewSpec(6)
		if packs {
			spec.Task.Placement = &swarmpb.Placement{Strategy: swarmpb.PlacementStrategy_PLACEMENT_STRATEGY_BINPACK}
		}
		if err := w.Create(name, spec); err != nil {
			t.Fatal(err)
		}
	}
	w.settle()
	w.advance(time.Minute)
	w.do("node", "n3", "ready")
	before := w.View().Index()
	planner := New(w.Now)
	moves, more, alone := planner.Rebalance(w.View(), 10)
	if len(moves) != 2 || more || len(alone) != 1 || !strings.HasPrefix(alone[0], "pack: ") {
		t.Fatalf("moves %v, left alone %q", moves, alone)
	}
	for i, move := range moves {
		if move.ServiceName != "web" || move.ToNodeId != "n3" || move.TasksFrom != 3 || move.TasksTo != uint32(i) || !strings.HasPrefix(move.TaskName, "web.") {
			t.Errorf("move %v", move)
		}
	}
	if moves, more, _ = planner.Rebalance(w.View(), 1); len(moves) != 1 || !more {
		t.Errorf("%d moves, more %t; at most 1 was asked for, and there are 2", len(moves), more)
	}
	if w.View().Index() != before {
		t.Error("something was written")
	}
}

func TestHeld_DrainWithinABudget_SaysWhatItWaitsFor(t *testing.T) {
	w := newWorld(t, 1)
	spec := script.NewSpec(3)
	spec.MaxUnavailable = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: 1}}
	if err := w.Create("web", spec); err != nil {
		t.Fatal(err)
	}
	w.settle()
	planner := New(w.Now)
	if text := planner.Held(w.View(), "web"); text != "" {
		t.Errorf("nothing is to move: %q", text)
	}
	w.do("node", "n1", "drain")
	w.advance(time.Minute)
	if text := planner.Held(w.View(), "web"); !strings.HasPrefix(text, "web: 2 tasks wait") || !strings.Contains(text, "max unavailable") {
		t.Errorf("held by %q", text)
	}
}
