package scheduler

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const gib = 1 << 30

func ready(id string, change ...func(*Node)) Node {
	has := Resources{NanoCPUs: 4e9, MemoryBytes: 8 * gib}
	n := Node{ID: id, Ready: true, OS: "linux", Arch: "amd64", Capacity: has, Free: has}
	for _, c := range change {
		c(&n)
	}
	return n
}

func label(key, value string) func(*Node) {
	return func(n *Node) { n.Labels = map[string]string{key: value} }
}

func claims(cpus int64, ports ...Port) func(*Node) {
	return func(n *Node) { n.Claim(Resources{NanoCPUs: cpus}, ports) }
}

func down(n *Node) { n.Ready = false }

func group(service string, count int, q Requirements) *Group {
	g := &Group{Service: service, Requirements: &q, OnNode: map[string]int{}}
	for i := range count {
		g.Tasks = append(g.Tasks, Task{ID: fmt.Sprintf("%s.%d", service, i+1)})
	}
	return g
}

func constraints(t interface{ Fatal(...any) }, texts ...string) []Constraint {
	var out []Constraint
	for _, s := range texts {
		c, err := constraint(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

func spread(t interface{ Fatal(...any) }, names ...string) []Attribute {
	var out []Attribute
	for _, s := range names {
		a, err := ParseAttribute(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, a)
	}
	return out
}

func byNode(as []Assignment) map[string]int {
	m := map[string]int{}
	for _, a := range as {
		m[a.Node]++
	}
	return m
}

var http = Port{swarmpb.Protocol_PROTOCOL_TCP, 80}

func TestPlace_OneGroup_NodesGetWhatFits(t *testing.T) {
	cpu := Requirements{Reserve: Resources{NanoCPUs: 1e9}}
	for _, c := range []struct {
		name  string
		nodes []Node
		group *Group
		want  map[string]int // "" = not placed
		why   string
	}{
		{name: "no nodes", group: group("s", 2, cpu), want: map[string]int{"": 2}, why: "no suitable node"},
		{name: "no tasks", nodes: []Node{ready("a")}, group: group("s", 0, cpu), want: map[string]int{}},
		{name: "equal nodes share", nodes: []Node{ready("a"), ready("b"), ready("c")}, group: group("s", 3, cpu),
			want: map[string]int{"a": 1, "b": 1, "c": 1}},
		{name: "down node", nodes: []Node{ready("a", down), ready("b")}, group: group("s", 2, cpu), want: map[string]int{"b": 2}},
		{name: "all down", nodes: []Node{ready("a", down), ready("b", down)}, group: group("s", 1, cpu),
			want: map[string]int{"": 1}, why: "no suitable node (2 nodes not available for new tasks)"},
		{name: "resources run out", nodes: []Node{ready("a", claims(3e9)), ready("b", claims(3e9))}, group: group("s", 3, cpu),
			want: map[string]int{"a": 1, "b": 1, "": 1}, why: "no suitable node (insufficient resources on 2 nodes)"},
		{name: "memory alone", nodes: []Node{ready("a")}, group: group("s", 2, Requirements{Reserve: Resources{MemoryBytes: 5 * gib}}),
			want: map[string]int{"a": 1, "": 1}, why: "no suitable node (insufficient resources on 1 node)"},
		{name: "nothing reserved fits an overcommitted node", nodes: []Node{ready("a", claims(9e9))}, group: group("s", 2, Requirements{}),
			want: map[string]int{"a": 2}},
		{name: "reservation of everything there is", nodes: []Node{ready("a")}, want: map[string]int{"": 1},
			group: group("s", 1, Requirements{Reserve: Resources{NanoCPUs: math.MaxInt64, MemoryBytes: math.MaxInt64}}),
			why:   "no suitable node (insufficient resources on 1 node)"},
		{name: "host port once a node", nodes: []Node{ready("a"), ready("b", claims(0, http))}, group: group("s", 2, Requirements{Ports: []Port{http}}),
			want: map[string]int{"a": 1, "": 1}, why: "no suitable node (host-mode port already in use on 2 nodes)"},
		{name: "other protocol", nodes: []Node{ready("a", claims(0, http))}, want: map[string]int{"a": 1},
			group: group("s", 1, Requirements{Ports: []Port{{swarmpb.Protocol_PROTOCOL_UDP, 80}}})},
		{name: "constraint", nodes: []Node{ready("a", label("d", "ssd")), ready("b"), ready("c")}, want: map[string]int{"a": 3},
			group: group("s", 3, Requirements{Constraints: constraints(t, "node.labels.d==ssd")})},
		{name: "max replicas", nodes: []Node{ready("a"), ready("b")}, group: group("s", 3, Requirements{MaxPerNode: 1}),
			want: map[string]int{"a": 1, "b": 1, "": 1}, why: "no suitable node (max replicas per node limit exceeded on 2 nodes)"},
		{name: "platform", nodes: []Node{ready("a"), ready("b", func(n *Node) { n.Arch = "aarch64" })}, want: map[string]int{"b": 2},
			group: group("s", 2, Requirements{Platforms: []Platform{{OS: "linux", Arch: "arm64"}}})},
		{name: "no platform", nodes: []Node{ready("a")}, want: map[string]int{"": 1},
			group: group("s", 1, Requirements{Platforms: []Platform{{Arch: "riscv64"}}}), why: "no suitable node (unsupported platform on 1 node)"},
		{name: "every filter", nodes: []Node{ready("a", claims(4e9)), ready("b", claims(4e9)), ready("c", label("x", "y"))},
			group: group("s", 1, Requirements{Reserve: Resources{NanoCPUs: 1}, Constraints: constraints(t, "node.labels.x!=y")}),
			want:  map[string]int{"": 1},
			why:   "no suitable node (insufficient resources on 2 nodes; scheduling constraints not satisfied on 1 node)"},
		{name: "the emptier node first", nodes: []Node{ready("a", claims(1)), ready("b")}, group: group("s", 1, cpu), want: map[string]int{"b": 1}},
		{name: "as many tasks: the smaller share", nodes: []Node{ready("a", claims(2e9)), ready("b", claims(1e9))}, group: group("s", 1, cpu),
			want: map[string]int{"b": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			as := NewNodes(c.nodes).Place(c.group)
			if got := byNode(as); !maps.Equal(got, c.want) {
				t.Errorf("placed %v, want %v", got, c.want)
			}
			for _, a := range as {
				if a.Node == "" && a.Rejections.String() != c.why {
					t.Errorf("%s: %q, want %q", a.Task, a.Rejections, c.why)
				}
			}
		})
	}
}

func TestPlace_ServiceThereAlready_OtherNodesFirst(t *testing.T) {
	g := group("s", 3, Requirements{})
	g.OnNode["a"] = 2
	if got, want := byNode(NewNodes([]Node{ready("a"), ready("b", claims(1), claims(1), claims(1))}).Place(g)), (map[string]int{"a": 1, "b": 2}); got["b"] < 2 || got["a"]+got["b"] != 3 {
		t.Errorf("placed %v, want %v or all on b", got, want)
	}
}

func TestPlace_SpreadPreference_BalancesZonesBeforeNodes(t *testing.T) {
	nodes := []Node{
		ready("a1", label("zone", "a")), ready("a2", label("zone", "a")), ready("a3", label("zone", "a")),
		ready("b1", label("zone", "b")), ready("none"),
	}
	got := byNode(NewNodes(nodes).Place(group("s", 9, Requirements{Spread: spread(t, "node.labels.zone")})))
	if want := (map[string]int{"a1": 1, "a2": 1, "a3": 1, "b1": 3, "none": 3}); !maps.Equal(got, want) {
		t.Errorf("placed %v, want %v", got, want)
	}
}

func TestPlace_NestedSpread_BalancesEachLevel(t *testing.T) {
	var nodes []Node
	for _, n := range []string{"a-1-x", "a-2-x", "a-2-y", "b-1-x"} {
		parts := strings.Split(n, "-")
		nodes = append(nodes, ready(n, func(n *Node) { n.Labels = map[string]string{"zone": parts[0], "rack": parts[1]} }))
	}
	got := byNode(NewNodes(nodes).Place(group("s", 8, Requirements{Spread: spread(t, "node.labels.zone", "node.labels.rack")})))
	if want := (map[string]int{"a-1-x": 2, "a-2-x": 1, "a-2-y": 1, "b-1-x": 4}); !maps.Equal(got, want) {
		t.Errorf("placed %v, want %v", got, want)
	}
}

func TestPlace_ZoneFull_OthersTakeTheRest(t *testing.T) {
	nodes := []Node{ready("a", label("zone", "a"), claims(3e9)), ready("b", label("zone", "b"))}
	got := byNode(NewNodes(nodes).Place(group("s", 5, Requirements{Reserve: Resources{NanoCPUs: 1e9}, Spread: spread(t, "node.labels.zone")})))
	if want := (map[string]int{"a": 1, "b": 4}); !maps.Equal(got, want) {
		t.Errorf("placed %v, want %v", got, want)
	}
}

func TestPlace_GlobalTasks_GoToTheirNodesAlone(t *testing.T) {
	g := group("s", 4, Requirements{Ports: []Port{http}})
	for i, n := range []string{"b", "a", "c", "gone"} {
		g.Tasks[i].Node = n
	}
	as := NewNodes([]Node{ready("a"), ready("b"), ready("c", claims(0, http))}).Place(g)
	for i, want := range []string{"b", "a", "", ""} {
		if as[i].Node != want {
			t.Errorf("task %d on %q, want %q", i, as[i].Node, want)
		}
	}
	if got, want := as[2].Rejections.String(), "no suitable node (host-mode port already in use on 1 node)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := as[3].Rejections.String(), "no suitable node (1 node not available for new tasks)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPlace_SuccessorOnFullNode_TakesOverTheClaim(t *testing.T) {
	q := Requirements{Reserve: Resources{NanoCPUs: 4e9}, Ports: []Port{http}}
	nodes := NewNodes([]Node{ready("a", claims(4e9, http)), ready("b", claims(1))})
	g := group("s", 2, q)
	g.OnNode["a"] = 1
	g.Tasks[0].Held = &Claim{Node: "a", Resources: q.Reserve, Ports: q.Ports}
	as := nodes.Place(g)
	if as[0].Node != "a" || as[1].Node != "" {
		t.Errorf("placed %v, want the successor alone on a", as)
	}
	if free := nodes.Node("a").Free.NanoCPUs; free != 0 {
		t.Errorf("free on a: %d, want 0: the pair is one claim", free)
	}
}

func TestPlace_TwoSuccessorsOfOneTask_OneTakesOverTheClaim(t *testing.T) {
	q := Requirements{Reserve: Resources{NanoCPUs: 4e9}}
	held := &Claim{Node: "a", Resources: q.Reserve}
	g := group("s", 2, q)
	g.OnNode["a"], g.Tasks[0].Held, g.Tasks[1].Held = 1, held, held
	if got, want := byNode(NewNodes([]Node{ready("a", claims(4e9))}).Place(g)), (map[string]int{"a": 1, "": 1}); !maps.Equal(got, want) {
		t.Errorf("placed %v, want %v", got, want)
	}
}

func TestPlace_LargerSuccessor_NeedsOnlyTheDifference(t *testing.T) {
	for _, c := range []struct {
		want int64
		node string
	}{{want: 4e9, node: "a"}, {want: 4e9 + 1, node: ""}} {
		nodes := NewNodes([]Node{ready("a", claims(3e9))})
		g := group("s", 1, Requirements{Reserve: Resources{NanoCPUs: c.want}, MaxPerNode: 1})
		g.OnNode["a"] = 1
		g.Tasks[0].Held = &Claim{Node: "a", Resources: Resources{NanoCPUs: 3e9}}
		if as := nodes.Place(g); as[0].Node != c.node {
			t.Errorf("%d on %q, want %q", c.want, as[0].Node, c.node)
		}
	}
}

func TestPlace_SuccessorsOfBalancedService_StayWhereTheyWere(t *testing.T) {
	g := group("s", 6, Requirements{})
	for i := range g.Tasks {
		node := string(rune('a' + i%3))
		g.Tasks[i].Held = &Claim{Node: node}
		g.OnNode[node]++
	}
	for i, a := range NewNodes([]Node{ready("a"), ready("b"), ready("c")}).Place(g) {
		if a.Node != g.Tasks[i].Held.Node {
			t.Errorf("%s went from %s to %s", a.Task, g.Tasks[i].Held.Node, a.Node)
		}
	}
}

func TestPlace_SuccessorsOfLopsidedService_EvenOut(t *testing.T) {
	g := group("s", 4, Requirements{})
	for i := range g.Tasks {
		g.Tasks[i].Held = &Claim{Node: "a"}
	}
	g.OnNode["a"] = 4
	got := byNode(NewNodes([]Node{ready("a", claims(0), claims(0), claims(0), claims(0)), ready("b")}).Place(g))
	if want := (map[string]int{"a": 2, "b": 2}); !maps.Equal(got, want) {
		t.Errorf("placed %v, want %v", got, want)
	}
}

// Zones that are equal do not keep a successor on a node that is not the best one of its own zone.
func TestPlace_SuccessorsOfLopsidedZone_EvenOutWithinItToo(t *testing.T) {
	for seed := range 20 { // services begin in different zones
		g := group(fmt.Sprint("s", seed), 4, Requirements{Spread: spread(t, "node.labels.zone")})
		for i := range g.Tasks {
			g.Tasks[i].Held = &Claim{Node: "b1"}
		}
		g.OnNode["b1"] = 4
		got := byNode(NewNodes([]Node{ready("a1", label("zone", "a")), ready("b1", label("zone", "b"), claims(0), claims(0), claims(0), claims(0)),
			ready("b2", label("zone", "b"))}).Place(g))
		if want := (map[string]int{"a1": 2, "b1": 1, "b2": 1}); !maps.Equal(got, want) {
			t.Errorf("service %d: placed %v, want %v", seed, got, want)
		}
	}
}

func TestPlace_PredecessorsNodeUnsuitable_MovesAway(t *testing.T) {
	g := group("s", 1, Requirements{})
	g.OnNode["a"], g.Tasks[0].Held = 1, &Claim{Node: "a"}
	if as := NewNodes([]Node{ready("a", down), ready("b")}).Place(g); as[0].Node != "b" {
		t.Errorf("placed on %q, want b", as[0].Node)
	}
}

func TestPlace_OneOffServicesOnEqualNodes_DoNotAllBeginOnOne(t *testing.T) {
	first := map[string]int{}
	for i := range 300 {
		as := NewNodes([]Node{ready("a"), ready("b"), ready("c")}).Place(group(fmt.Sprint("s", i), 1, Requirements{}))
		first[as[0].Node]++
	}
	for _, n := range []string{"a", "b", "c"} {
		if first[n] < 50 {
			t.Errorf("of 300 services %d began on %s: %v", first[n], n, first)
		}
	}
}

// drawn is a cluster and a group with tasks of every kind.
func drawNodes(t *rapid.T) []Node {
	count := rapid.IntRange(0, 8).Draw(t, "nodes")
	nodes := make([]Node, count)
	for i := range nodes {
		has := Resources{NanoCPUs: rapid.Int64Range(0, 10).Draw(t, "cpus"), MemoryBytes: rapid.Int64Range(0, 10).Draw(t, "memory")}
		nodes[i] = Node{
			ID: fmt.Sprint("n", i), Ready: rapid.IntRange(0, 4).Draw(t, "ready") > 0, Capacity: has, Free: has,
			Labels: map[string]string{"zone": rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone"),
				"disk": rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")},
		}
		for range rapid.IntRange(0, 3).Draw(t, "others") {
			nodes[i].Claim(Resources{NanoCPUs: rapid.Int64Range(0, 3).Draw(t, "used")}, nil)
		}
		if rapid.IntRange(0, 4).Draw(t, "port") == 0 {
			nodes[i].Claim(Resources{}, []Port{http})
		}
	}
	return nodes
}

func drawGroup(t *rapid.T, nodes []Node) *Group {
	q := Requirements{
		Reserve:    Resources{NanoCPUs: rapid.Int64Range(0, 3).Draw(t, "cpu"), MemoryBytes: rapid.Int64Range(0, 3).Draw(t, "mem")},
		MaxPerNode: rapid.SampledFrom([]uint64{0, 0, 1, 2}).Draw(t, "max"),
	}
	if rapid.IntRange(0, 3).Draw(t, "wants port") == 0 {
		q.Ports = []Port{http}
	}
	if rapid.Bool().Draw(t, "constrained") {
		q.Constraints = constraints(t, "node.labels.disk==ssd")
	}
	q.Spread = spread(t, rapid.SampledFrom([][]string{nil, {"node.labels.zone"}, {"node.labels.zone", "node.labels.disk"}}).Draw(t, "spread")...)
	g := group("s", rapid.IntRange(0, 30).Draw(t, "tasks"), q)
	for i := range g.Tasks {
		if len(nodes) > 0 && rapid.IntRange(0, 5).Draw(t, "global") == 0 {
			g.Tasks[i].Node = rapid.SampledFrom(nodes).Draw(t, "node").ID
		}
	}
	for _, n := range nodes {
		g.OnNode[n.ID] = rapid.IntRange(0, 2).Draw(t, "of service")
	}
	return g
}

func TestPlace_AnyClusterAndGroup_NoFilterIsEverViolated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := drawNodes(t)
		g := drawGroup(t, before)
		q := g.Requirements
		as := NewNodes(before).Place(g)
		placed := byNode(as)
		for _, n := range before {
			k := int64(placed[n.ID])
			if k == 0 {
				continue
			}
			switch {
			case !n.Ready:
				t.Fatalf("%s is not ready", n.ID)
			case len(q.Constraints) > 0 && n.Labels["disk"] != "ssd":
				t.Fatalf("%s does not satisfy the constraint", n.ID)
			case q.Reserve.NanoCPUs > 0 && k*q.Reserve.NanoCPUs > n.Free.NanoCPUs, q.Reserve.MemoryBytes > 0 && k*q.Reserve.MemoryBytes > n.Free.MemoryBytes:
				t.Fatalf("%s has %+v free and got %d tasks of %+v", n.ID, n.Free, k, q.Reserve)
			case len(q.Ports) > 0 && (k > 1 || n.Ports[http]):
				t.Fatalf("port twice on %s", n.ID)
			case q.MaxPerNode > 0 && g.OnNode[n.ID]+int(k) > int(q.MaxPerNode):
				t.Fatalf("%d of the service on %s", g.OnNode[n.ID]+int(k), n.ID)
			}
		}
		for i, a := range as {
			if want := g.Tasks[i].Node; a.Node != "" && want != "" && a.Node != want {
				t.Fatalf("%s is for %s and went to %s", a.Task, want, a.Node)
			}
		}
		// Whoever was refused would not fit now: a node that would take it counts in no filter.
		again := NewNodes(before)
		again.Place(g)
		left := group("s", 1, *q)
		for _, n := range before {
			left.OnNode[n.ID] = g.OnNode[n.ID] + placed[n.ID]
		}
		for i, a := range as {
			if a.Node == "" && g.Tasks[i].Node == "" && byNode(again.Place(left))[""] == 0 {
				t.Fatalf("%s was refused (%s) though a node has room", a.Task, a.Rejections)
			}
		}
	})
}

func TestPlace_OrderOfNodes_MakesNoDifference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t)
		g := drawGroup(t, nodes)
		clone := func(in []Node) []Node {
			out := slices.Clone(in)
			for i := range out {
				out[i].Ports = maps.Clone(out[i].Ports)
			}
			return out
		}
		a := NewNodes(clone(nodes)).Place(g)
		b := NewNodes(clone(rapid.Permutation(nodes).Draw(t, "order"))).Place(g)
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("%v\nbut in another order\n%v", a, b)
		}
	})
}

func TestPlace_NothingElseBinds_SpreadWithinOneOfTheOptimum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []Node
		for i := range rapid.IntRange(1, 9).Draw(t, "nodes") {
			nodes = append(nodes, ready(fmt.Sprint("n", i), claims(rapid.Int64Range(0, 4e9).Draw(t, "load"))))
		}
		for i := range nodes {
			nodes[i].Labels = map[string]string{"zone": rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "zone")}
		}
		zones := rapid.Bool().Draw(t, "zones")
		q := Requirements{}
		if zones {
			q.Spread = spread(t, "node.labels.zone")
		}
		all := NewNodes(nodes)
		total := map[string]int{}
		for range rapid.IntRange(1, 4).Draw(t, "groups") { // one service, scaled up again and again
			g := group("s", rapid.IntRange(0, 20).Draw(t, "tasks"), q)
			g.OnNode = maps.Clone(total)
			for n, k := range byNode(all.Place(g)) {
				total[n] += k
			}
		}
		within := func(what string, counts map[string]int) {
			lo, hi := math.MaxInt, 0
			for _, k := range counts {
				lo, hi = min(lo, k), max(hi, k)
			}
			if hi-lo > 1 {
				t.Fatalf("%s: %v", what, counts)
			}
		}
		perZone, inZone := map[string]int{}, map[string]map[string]int{}
		for _, n := range nodes {
			zone := ""
			if zones {
				zone = n.Labels["zone"]
			}
			if inZone[zone] == nil {
				inZone[zone] = map[string]int{}
			}
			perZone[zone] += total[n.ID]
			inZone[zone][n.ID] = total[n.ID]
		}
		within("zones", perZone)
		for zone, counts := range inZone {
			within("nodes of zone "+zone, counts)
		}
	})
}

func TestNode_FromRows_ReadsWhatCounts(t *testing.T) {
	n := NewNode(
		&swarmpb.Node{Id: "a", Role: swarmpb.NodeRole_NODE_ROLE_MANAGER, Spec: &swarmpb.NodeSpec{Labels: map[string]string{"k": "v"}}},
		&swarmpb.NodeStatus{State: swarmpb.NodeState_NODE_STATE_READY, Address: "::ffff:10.0.0.1", Description: &swarmpb.NodeDescription{
			Hostname: "h", Platform: &swarmpb.Platform{Os: "linux", Architecture: "amd64"},
			Resources: &swarmpb.Resources{NanoCpus: 2, MemoryBytes: 3}, Engine: &swarmpb.EngineDescription{Labels: map[string]string{"e": "f"}},
		}})
	if !n.Ready || n.Hostname != "h" || n.Address.String() != "10.0.0.1" || n.Free != (Resources{2, 3}) || n.EngineLabels["e"] != "f" {
		t.Errorf("node %+v", n)
	}
	for _, a := range []swarmpb.NodeAvailability{swarmpb.NodeAvailability_NODE_AVAILABILITY_PAUSE, swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN} {
		if TakesTasks(&swarmpb.Node{Spec: &swarmpb.NodeSpec{Availability: a}}, &swarmpb.NodeStatus{State: swarmpb.NodeState_NODE_STATE_READY}) {
			t.Errorf("a node in %s takes tasks", a.Name())
		}
	}
	full := &swarmpb.NodeStatus{State: swarmpb.NodeState_NODE_STATE_READY, Description: &swarmpb.NodeDescription{TakesNoTasks: "its disk is full"}}
	if TakesTasks(&swarmpb.Node{}, full) {
		t.Error("a node that says it takes no tasks takes them")
	}
	if NewNode(&swarmpb.Node{Id: "a"}, nil).Ready {
		t.Error("a node that never connected is ready")
	}
}
