package scheduler

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func drawFacts(t *rapid.T, name string) *swarmpb.NodeFacts {
	some := func(what string, values ...string) string { return rapid.SampledFrom(values).Draw(t, name+what) }
	facts := &swarmpb.NodeFacts{
		Hostname: some("hostname", "a", "b", ""),
		Platform: &swarmpb.Platform{Os: some("os", "linux", "windows"), Architecture: some("arch", "amd64", "x86_64", "arm64")},
		Resources: &swarmpb.Resources{
			NanoCpus:    rapid.Int64Range(0, 4).Draw(t, name+"cpus"),
			MemoryBytes: rapid.Int64Range(0, 4).Draw(t, name+"memory"),
		},
	}
	for _, kind := range []string{"gpu", "disk"} {
		switch some(kind, "none", "count", "names") {
		case "count":
			facts.Resources.Generic = append(facts.Resources.Generic, &swarmpb.GenericResource{Kind: kind, Count: rapid.Int64Range(-1, 3).Draw(t, name+"count")})
		case "names":
			names := rapid.SliceOfN(rapid.SampledFrom([]string{"0", "1", "2", "3"}), 0, 5).Draw(t, name+"names")
			facts.Resources.Generic = append(facts.Resources.Generic, &swarmpb.GenericResource{Kind: kind, Instances: names})
		}
	}
	for _, key := range []string{"k", "l"} {
		if value := some(key, "none", "", "1", "2"); value != "none" {
			if facts.EngineLabels == nil {
				facts.EngineLabels = map[string]string{}
			}
			facts.EngineLabels[key] = value
		}
	}
	return facts
}

func describing(f *swarmpb.NodeFacts) *swarmpb.NodeDescription {
	return &swarmpb.NodeDescription{Hostname: f.Hostname, Platform: f.Platform, Resources: f.Resources,
		Engine: &swarmpb.EngineDescription{Labels: f.EngineLabels}}
}

// Whatever a node says of itself, it is accepted by no more constraints and has no more of anything than what was taken.
func TestNode_ItsOwnWord_NeverAttracts(t *testing.T) {
	var constraints []Constraint
	for _, key := range []string{"node.hostname", "node.platform.os", "node.platform.arch", "engine.labels.k", "engine.labels.l"} {
		for _, rest := range []string{"==%s", "!=%s", " in (%s, x)", " not in (%s, x)", "=~%s", "!~%s"} {
			for _, value := range []string{"a", "b", "linux", "amd64", "arm64", "1", "2"} {
				constraints = append(constraints, mustConstraint(t, key+fmt.Sprintf(rest, value)))
			}
		}
	}
	for _, rest := range []string{"<2", "<=1", ">1", ">=2"} {
		constraints = append(constraints, mustConstraint(t, "engine.labels.k"+rest))
	}
	rapid.Check(t, func(t *rapid.T) {
		took, said := drawFacts(t, "took "), drawFacts(t, "said ")
		row, status := &swarmpb.Node{Id: "n"}, &swarmpb.NodeStatus{State: swarmpb.NodeState_NODE_STATE_READY, Description: describing(said)}
		honest := NewNode(row, &swarmpb.NodeStatus{State: swarmpb.NodeState_NODE_STATE_READY, Description: describing(took)})
		if rapid.Bool().Draw(t, "accepted by a user") {
			row = &swarmpb.Node{Id: "n", Spec: &swarmpb.NodeSpec{Accepted: took}}
			status.First = drawFacts(t, "first ")
		} else {
			status.First = took
		}
		before := proto.Clone(status)
		n := NewNode(row, status)

		platforms := &Requirements{Platforms: []Platform{{OS: "linux", Arch: "arm64"}, {Arch: "amd64"}}[:rapid.IntRange(1, 2).Draw(t, "platforms")]}
		if platforms.Suits(&n) == Accepted && platforms.Suits(&honest) != Accepted {
			t.Errorf("the platform is taken: %+v, %+v", n, honest)
		}
		plain := NewNode(&swarmpb.Node{Id: "n"}, &swarmpb.NodeStatus{State: swarmpb.NodeState_NODE_STATE_READY, Description: describing(said)})
		for i := range constraints {
			c := &constraints[i]
			if got, want := c.Match(&n), c.Match(&honest) && c.Match(&plain); got != want {
				t.Errorf("%s: %t, taken %v, said %v", c.text, got, took, said)
			}
		}
		if n.Capacity.NanoCPUs != min(honest.Capacity.NanoCPUs, plain.Capacity.NanoCPUs) || n.Capacity.MemoryBytes != min(honest.Capacity.MemoryBytes, plain.Capacity.MemoryBytes) || n.Free != n.Capacity {
			t.Errorf("capacity %v of %v and %v", n.Capacity, honest.Capacity, plain.Capacity)
		}
		for _, g := range n.Generic {
			took, said := honest.generic(g.Kind), plain.generic(g.Kind)
			if took == nil || said == nil || g.left() > max(took.left(), 0) || g.left() > max(said.left(), 0) {
				t.Fatalf("%v out of %v and %v", g, took, said)
			}
			for _, name := range g.Names {
				if !slices.Contains(said.Names, name) || took.named && !slices.Contains(took.Names, name) {
					t.Errorf("%s of %s is not one of both: %v, %v", name, g.Kind, took, said)
				}
			}
		}
		if !proto.Equal(before, status) {
			t.Error("the rows were changed")
		}
		// What is told as not accepted is none once it has been accepted.
		row = &swarmpb.Node{Id: "n", Spec: &swarmpb.NodeSpec{Accepted: Said(status)}}
		if lines := NotAccepted(row, status); len(lines) > 0 {
			t.Errorf("after it was accepted: %q", lines)
		}
		if accepted := NewNode(row, status); !accepted.Same(&plain) || accepted.Capacity != plain.Capacity || accepted.says != nil {
			t.Errorf("accepted %+v, said %+v", accepted, plain)
		}
	})
}

func mustConstraint(t *testing.T, text string) Constraint {
	t.Helper()
	parsed, err := swarmpb.ParseConstraint(text)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewConstraint(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNode_SaysMoreThanWasTaken_IsToldLineByLine(t *testing.T) {
	took := &swarmpb.NodeFacts{Hostname: "db", Platform: &swarmpb.Platform{Os: "linux", Architecture: "x86_64"},
		Resources: &swarmpb.Resources{NanoCpus: 8e9, MemoryBytes: 8 << 30, Generic: []*swarmpb.GenericResource{
			{Kind: "example.com/gpu", Instances: []string{"0"}}, {Kind: "lanes", Count: 2}}},
		EngineLabels: map[string]string{"disk": "hdd"}}
	said := &swarmpb.NodeFacts{Hostname: "web", Platform: &swarmpb.Platform{Os: "linux", Architecture: "amd64"},
		Resources: &swarmpb.Resources{NanoCpus: 16e9, MemoryBytes: 16 << 30, Generic: []*swarmpb.GenericResource{
			{Kind: "example.com/gpu", Instances: []string{"2", "0", "1"}}, {Kind: "lanes", Count: 4}, {Kind: "fpga", Count: 1}}},
		EngineLabels: map[string]string{"disk": "ssd", "gpu": "yes"}}
	status := &swarmpb.NodeStatus{First: took, Description: describing(said)}
	want := []string{
		"hostname web, db is taken", "16 CPUs, 8 are taken", "16384 MiB of memory, 8192 MiB are taken",
		"example.com/gpu: 1, 2", "1 of fpga", "4 of lanes, 2 are taken", `engine label disk=ssd, "hdd" is taken`, "engine label gpu=yes",
	}
	if got := NotAccepted(&swarmpb.Node{}, status); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := NotAccepted(nil, &swarmpb.NodeStatus{Description: describing(said)}); got != nil {
		t.Errorf("a node of which nothing was taken: %q", got)
	}
	n := NewNode(&swarmpb.Node{Id: "n"}, status)
	n.Claim(Resources{NanoCPUs: 3e9}, nil)
	n.ClaimGeneric([]*swarmpb.GenericResource{{Kind: "lanes", Count: 3}})
	left := &swarmpb.Resources{NanoCpus: 5e9, MemoryBytes: 8 << 30, Generic: []*swarmpb.GenericResource{
		{Kind: "example.com/gpu", Instances: []string{"0"}}, {Kind: "lanes", Count: -1}}}
	if got := n.Left(); !proto.Equal(got, left) {
		t.Errorf("left %v, want %v", got, left)
	}
}

// What refuses a node whose word was not taken is said, with what the user can do.
func TestExplain_NotAccepted_SaysSo(t *testing.T) {
	row := &swarmpb.Node{Id: "n"}
	status := &swarmpb.NodeStatus{State: swarmpb.NodeState_NODE_STATE_READY, First: &swarmpb.NodeFacts{Hostname: "a"},
		Description: describing(&swarmpb.NodeFacts{Hostname: "b", EngineLabels: map[string]string{"gpu": "yes"}})}
	nodes := NewNodes([]Node{NewNode(row, status)})
	for text, want := range map[string]string{
		"engine.labels.gpu==yes": "engine.labels.gpu==yes: the node says \"yes\" of itself, which is not accepted (`swarmctl node update --accept`)",
		"engine.labels.gpu!=yes": `engine.labels.gpu!=yes: the node says "yes" of itself`,
		"engine.labels.gpu==no":  "engine.labels.gpu==no: the node has none",
		"node.hostname==b":       "node.hostname==b: the node says \"b\" of itself, which is not accepted (`swarmctl node update --accept`)",
	} {
		q := &Requirements{Constraints: []Constraint{mustConstraint(t, text)}}
		v := nodes.Explain(&Group{Requirements: q})
		if v[0].Filter != Constrained || v[0].Detail != want {
			t.Errorf("%s: %q, want %q", text, v[0].Detail, want)
		}
	}
}

// Nodes that say different things of themselves are not of one class, whatever was taken.
func TestPlace_NodesThatSayDifferentThings_AreToldApart(t *testing.T) {
	status := func(label string) *swarmpb.NodeStatus {
		return &swarmpb.NodeStatus{State: swarmpb.NodeState_NODE_STATE_READY, First: &swarmpb.NodeFacts{},
			Description: describing(&swarmpb.NodeFacts{EngineLabels: map[string]string{"broken": label}})}
	}
	nodes := NewNodes([]Node{NewNode(&swarmpb.Node{Id: "a"}, status("yes")), NewNode(&swarmpb.Node{Id: "b"}, status("no"))})
	q := &Requirements{Constraints: []Constraint{mustConstraint(t, "engine.labels.broken!=yes")}}
	got := nodes.Place(&Group{Service: "s", Requirements: q, Tasks: []Task{{ID: "1"}, {ID: "2"}}})
	for _, a := range got {
		if a.Node != "b" {
			t.Errorf("%+v", a)
		}
	}
}

func TestSuits_PlatformsOfTheImage_AreThoseThatTheNodeRuns(t *testing.T) {
	for _, c := range []struct {
		image []Platform
		arch  string
		want  bool
	}{
		{nil, "riscv64", true},
		{[]Platform{{OS: "linux", Arch: "arm64"}, {OS: "linux", Arch: "amd64"}}, "x86_64", true},
		{[]Platform{{OS: "linux", Arch: "arm64"}}, "amd64", false},
		{[]Platform{{OS: "windows", Arch: "amd64"}}, "amd64", false},
		{[]Platform{{OS: "linux", Arch: "386"}}, "amd64", true},
		{[]Platform{{OS: "linux", Arch: "arm"}}, "aarch64", true},
		{[]Platform{{OS: "linux", Arch: "amd64"}}, "386", false},
	} {
		q := &Requirements{Platforms: c.image}
		if got := q.Suits(&Node{OS: "linux", Arch: c.arch}) == Accepted; got != c.want {
			t.Errorf("an image for %v on %s: %t", c.image, c.arch, got)
		}
	}
}
