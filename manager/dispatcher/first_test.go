package dispatcher

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func described(hostname string, cpus int64, label string, generic ...*swarmpb.GenericResource) *swarmpb.NodeDescription {
	return &swarmpb.NodeDescription{
		Hostname: hostname, Platform: &swarmpb.Platform{Os: "linux", Architecture: "amd64"},
		Resources: &swarmpb.Resources{NanoCpus: cpus, MemoryBytes: 1 << 30, Generic: generic},
		Engine:    &swarmpb.EngineDescription{Labels: map[string]string{"disk": label}},
	}
}

// What a node says when it first connects is kept, but for its engine labels; nothing that it says later changes that.
func TestFirst_NodeDescribesItselfAnew_StaysAsItFirstWas(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		c.expectState("n1", ready)
		row := c.view().NodeStatus("n1")
		if got := row.GetFirst(); got.GetHostname() != "host-b1" || len(got.GetEngineLabels()) > 0 || !proto.Equal(got.GetResources(), row.GetDescription().GetResources()) {
			t.Fatalf("first %v", got)
		}
		for cpus := range int64(3) {
			d := described("web", (cpus+1)*1e9, "ssd", &swarmpb.GenericResource{Kind: "gpu", Count: cpus})
			if err := w.send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Description{Description: d}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			now := c.view().NodeStatus("n1")
			if !proto.Equal(now.GetDescription().GetResources(), d.GetResources()) || !proto.Equal(now.GetFirst(), row.GetFirst()) {
				t.Errorf("after it said %v: %v", d, now)
			}
		}
	})
}

// A node from before this was kept gets it though it says nothing new.
func TestFirst_RowFromBefore_IsFilledIn(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		c.mustConnect("n1", "b1")
		c.expectState("n1", ready)
		old := swarmpb.Clone(c.view().NodeStatus("n1"))
		first := old.GetFirst()
		old.First = nil
		c.put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: old}})
		time.Sleep(3 * time.Second)
		if got := c.view().NodeStatus("n1").GetFirst(); first == nil || !proto.Equal(got, first) {
			t.Errorf("first %v, want %v", got, first)
		}
		before := c.proposed.Load()
		time.Sleep(time.Minute)
		if n := c.proposed.Load() - before; n != 0 {
			t.Errorf("%d proposals after it was filled in", n)
		}
	})
}

// What swarmd takes as an option no manager refuses.
func TestDescription_EngineLabels_BoundsAreThoseOfTheOption(t *testing.T) {
	if maxLabels != swarmpb.MaxEngineLabels || maxLabelBytes != swarmpb.MaxEngineLabelBytes {
		t.Errorf("%d labels of %d bytes, the option takes %d of %d", maxLabels, maxLabelBytes, swarmpb.MaxEngineLabels, swarmpb.MaxEngineLabelBytes)
	}
}

func TestDescription_GenericResources_AreBounded(t *testing.T) {
	many := &swarmpb.GenericResource{Kind: "many"}
	for i := range 2 * swarmpb.MaxGenericInstances {
		many.Instances = append(many.Instances, fmt.Sprint(i))
	}
	in := []*swarmpb.GenericResource{
		{Kind: "gpu", Instances: []string{"1", "0", "1", "a,b", "", strings.Repeat("x", 500)}}, {Kind: "gpu", Count: 4}, {Kind: "lanes", Count: -3},
		{Kind: "seats", Count: 1 << 62}, {Kind: "no kind"}, {Kind: "x\n"}, {Kind: "empty", Instances: []string{"\x00"}}, many,
	}
	for i := range 10 * swarmpb.MaxGenericKinds {
		in = append(in, &swarmpb.GenericResource{Kind: fmt.Sprintf("k%04d", i), Count: 1})
	}
	d, err := cleanDescription(&swarmpb.NodeDescription{Hostname: "h", Resources: &swarmpb.Resources{Generic: in}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*swarmpb.GenericResource{}
	instances := 0
	for _, g := range d.GetResources().GetGeneric() {
		got[g.GetKind()] = g
		instances += len(g.GetInstances())
	}
	if len(got) != swarmpb.MaxGenericKinds || len(d.GetResources().GetGeneric()) != len(got) || instances > swarmpb.MaxGenericInstances {
		t.Errorf("%d kinds, %d instances", len(d.GetResources().GetGeneric()), instances)
	}
	if !slices.Equal(got["gpu"].GetInstances(), []string{"0", "1"}) || got["gpu"].GetCount() != 0 || got["lanes"].GetCount() != 0 ||
		got["seats"].GetCount() != swarmpb.MaxGenericCount || got["no kind"] != nil || got["x\n"] != nil || got["empty"] != nil {
		t.Errorf("%v", got)
	}
}

// A task's own of the generic resources goes along with its assignment.
func TestAssignments_TaskWithGenericResources_IsToldOfThem(t *testing.T) {
	w := testWorld(t, "n1")
	id := w.taskOf(1, 1, "", 1)
	has := &swarmpb.GenericResource{Kind: "example.com/gpu", Count: 2, Instances: []string{"0", "3"}}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: id, NodeId: "n1", Generic: []*swarmpb.GenericResource{has}}}})
	if got := decode(t, []message{taskChange(w.view(), w.view().Task(id), taskMark{})})[0].GetTask().GetGeneric(); len(got) != 1 || !proto.Equal(got[0], has) {
		t.Errorf("told %v", got)
	}
}
