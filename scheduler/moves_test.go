package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func gpu(names ...string) func(*Node) {
	return func(n *Node) {
		n.Generic = newGeneric([]*swarmpb.GenericResource{{Kind: "gpu", Instances: names}, {Kind: "licence", Count: 3}})
	}
}

func TestPlace_GenericResources_AreClaimedByName(t *testing.T) {
	nodes := NewNodes([]Node{ready("a", gpu("u2", "u1", "u3")), ready("b")})
	g := group("s", 3, Requirements{Generic: []Want{{"gpu", 2}, {"licence", 1}}})
	as := nodes.Place(g)
	if as[0].Node != "a" || fmt.Sprint(as[0].Generic[0].Instances) != "[u1 u2]" || as[0].Generic[1].Count != 1 {
		t.Errorf("first: %v", as[0])
	}
	if as[1].Node != "" || as[1].Rejections.String() != "no suitable node (insufficient generic resources on 2 nodes)" {
		t.Errorf("second: %+v: %s", as[1], as[1].Rejections)
	}
	// Its successor in place takes them over; another one finds the third.
	old := &Claim{Node: "a", Generic: as[0].Generic}
	heir := group("s", 1, Requirements{Generic: []Want{{"gpu", 3}}})
	heir.OnNode["a"], heir.Tasks[0].Held = 1, old
	if as := nodes.Place(heir); as[0].Node != "a" || fmt.Sprint(as[0].Generic[0].Instances) != "[u1 u2 u3]" {
		t.Errorf("the successor: %v", as[0])
	}
	node := nodes.Node("a")
	if g := node.generic("gpu"); len(g.Names) != 0 {
		t.Errorf("left: %v", g.Names)
	}
	node.ClaimGeneric([]*swarmpb.GenericResource{{Kind: "licence", Count: 2}, {Kind: "unknown", Count: 2}})
	if g := node.generic("licence"); g.Count != 0 {
		t.Errorf("licences left: %d", g.Count)
	}
}

func TestPlace_EncryptedNetwork_NodesThatCannotAreRefused(t *testing.T) {
	g := group("s", 2, Requirements{Encrypted: true})
	as := NewNodes([]Node{ready("a"), ready("b", func(n *Node) { n.Encrypts = true })}).Place(g)
	if got := byNode(as); got["b"] != 2 {
		t.Errorf("placed %v", got)
	}
	as = NewNodes([]Node{ready("a")}).Place(g)
	if want := "no suitable node (no encryption of networks on 1 node)"; as[0].Rejections.String() != want {
		t.Errorf("%q, want %q", as[0].Rejections, want)
	}
}

func TestPlace_NodeOnWhichItFails_ComesLast(t *testing.T) {
	g := group("s", 3, Requirements{MaxPerNode: 2})
	g.Failing = map[string]bool{"a": true}
	g.OnNode["b"] = 1
	if got, want := byNode(NewNodes([]Node{ready("a"), ready("b", claims(1))}).Place(g)), (map[string]int{"b": 1, "a": 2}); !maps.Equal(got, want) {
		t.Errorf("placed %v, want %v", got, want)
	}
	g = group("s", 1, Requirements{})
	g.Failing = map[string]bool{"a": true}
	if got := byNode(NewNodes([]Node{ready("a"), ready("b", claims(1))}).Place(g)); got["b"] != 1 {
		t.Errorf("placed %v, want b", got)
	}
	g.Tasks[0].Held = &Claim{Node: "a"}
	g.OnNode["a"] = 1
	if got := byNode(NewNodes([]Node{ready("a", claims(1)), ready("b", claims(1))}).Place(g)); got["b"] != 1 {
		t.Errorf("the successor went %v, want b", got)
	}
}

func TestPlace_Binpack_FillsTheFullestThatFits(t *testing.T) {
	nodes := []Node{ready("a", claims(2e9)), ready("b", claims(1e9)), ready("c")}
	q := Requirements{Reserve: Resources{NanoCPUs: 1e9}, Binpack: true}
	if got, want := byNode(NewNodes(nodes).Place(group("s", 6, q))), (map[string]int{"a": 2, "b": 3, "c": 1}); !maps.Equal(got, want) {
		t.Errorf("as a group: placed %v, want %v", got, want)
	}
	all, got := NewNodes([]Node{ready("a", claims(2e9)), ready("b", claims(1e9)), ready("c")}), map[string]int{}
	for i := range 6 {
		got[all.Place(group(fmt.Sprint("s", i), 1, q))[0].Node]++
	}
	if want := (map[string]int{"a": 2, "b": 3, "c": 1}); !maps.Equal(got, want) {
		t.Errorf("one by one: placed %v, want %v", got, want)
	}
}

// TestPlace_OneOffAfterAnything_GoesToTheBestNode: what is kept between groups is never out of date.
func TestPlace_OneOffAfterAnything_GoesToTheBestNode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t)
		for i := range nodes {
			nodes[i].Generic = newGeneric([]*swarmpb.GenericResource{{Kind: "gpu", Count: rapid.Int64Range(0, 3).Draw(t, "gpus")}})
		}
		all := NewNodes(nodes)
		shapes := []Requirements{{}, {Reserve: Resources{NanoCPUs: 2}}, {Reserve: Resources{NanoCPUs: 1}, Binpack: true}, {Generic: []Want{{"gpu", 1}}},
			{Ports: []Port{http}}, {Constraints: constraints(t, "node.labels.disk==ssd")}, {Constraints: constraints(t, "node.id!=n1")},
			{Spread: spread(t, "node.labels.zone")}}
		for step := range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0: // a group of another service
				all.Place(drawGroup(t, nodes))
			case 1: // a claim from without
				if len(nodes) > 0 {
					all.Node(rapid.SampledFrom(nodes).Draw(t, "node").ID).Claim(Resources{NanoCPUs: rapid.Int64Range(-1, 2).Draw(t, "claim")}, nil)
				}
			default:
				q := rapid.SampledFrom(shapes).Draw(t, "shape")
				count := rapid.IntRange(1, 3).Draw(t, "count")
				g := group(fmt.Sprint("x", step), count, q)
				before := slices.Clone(all.nodes)
				for i := range before {
					before[i].Ports, before[i].Generic = maps.Clone(before[i].Ports), slices.Clone(before[i].Generic)
				}
				as := all.Place(g)
				suits := 0
				for i := range before {
					all.judge(&q)
					if all.fixed(&q, int32(i)) == Accepted && q.variable(&before[i], 0) == Accepted {
						suits++
						if as[0].Node == "" {
							t.Fatalf("refused (%s), but %s suits", as[0].Rejections, before[i].ID)
						}
						got := &before[all.index[as[0].Node]]
						better := before[i].Tasks < got.Tasks || before[i].Tasks == got.Tasks && before[i].reserved < got.reserved
						if q.Binpack {
							better = before[i].reserved > got.reserved || before[i].reserved == got.reserved && before[i].Tasks > got.Tasks
						}
						if better && len(q.Spread) == 0 {
							t.Fatalf("went to %+v, but %+v is better", got, before[i])
						}
					} else if as[0].Node == before[i].ID {
						t.Fatalf("went to %s, which does not suit", as[0].Node)
					}
				}
				if want := min(count, suits); len(q.Ports) > 0 && count-byNode(as)[""] != want {
					t.Fatalf("%d of %d placed on %d nodes", count-byNode(as)[""], count, suits)
				}
			}
		}
	})
}

func TestExplain_EachFilter_SaysWhatIsAskedAndWhatThereIs(t *testing.T) {
	nodes := NewNodes([]Node{
		ready("a", label("zone", "b")), ready("b", label("zone", "a"), claims(35e8)), ready("c", down), ready("d", label("zone", "a")),
	})
	g := group("s", 1, Requirements{Reserve: Resources{NanoCPUs: 1e9}, Constraints: constraints(t, "node.labels.zone == a")})
	var lines []string
	for _, v := range nodes.Explain(g) {
		lines = append(lines, v.Node+" "+v.Detail)
	}
	want := []string{`a node.labels.zone==a: the node has "b"`, "b needs 1 CPU, 0.5 of 4 free", "c is down, or takes no new tasks", "d suits"}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestPreempt_FewestAndLowestGo(t *testing.T) {
	running := map[string][]Running{
		"a": {{Task: "a1", Priority: 1, Resources: Resources{NanoCPUs: 2e9}}, {Task: "a2", Priority: 1, Resources: Resources{NanoCPUs: 2e9}}},
		"b": {{Task: "b1", Priority: 5, Resources: Resources{NanoCPUs: 1e9}}, {Task: "b2", Priority: 2, Resources: Resources{NanoCPUs: 3e9}}},
		"c": {{Task: "c1", Priority: 10, Resources: Resources{NanoCPUs: 4e9}}},
		"d": {{Task: "d1", Priority: 3, Resources: Resources{NanoCPUs: 4e9}}},
	}
	full := func() *Nodes {
		return NewNodes([]Node{ready("a", claims(2e9), claims(2e9)), ready("b", claims(1e9), claims(3e9)), ready("c", claims(4e9)), ready("d", claims(4e9))})
	}
	on := func(node string) []Running { return running[node] }
	for _, c := range []struct {
		cpu      int64
		priority int32
		node     string
		victims  string
	}{
		{3e9, 10, "b", "[b2]"}, // one goes on b and on d: the lower
		{4e9, 10, "d", "[d1]"}, // two would go on a and b
		{4e9, 3, "a", "[a1 a2]"},
		{4e9, 1, "", "[]"}, // equals stay
		{5e9, 99, "", "[]"},
	} {
		g := group("new", 1, Requirements{Reserve: Resources{NanoCPUs: c.cpu}})
		node, victims, ok := full().Preempt(g, c.priority, on)
		if node != c.node || fmt.Sprint(victims) != c.victims || ok != (c.node != "") {
			t.Errorf("%d at %d: %s %v", c.cpu, c.priority, node, victims)
		}
	}
}

func TestPreempt_Any_NeverAnEqualAndItFitsThen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		running, priority := map[string][]Running{}, map[string]int32{}
		var nodes []Node
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			n := ready(fmt.Sprint("n", i))
			for j := range rapid.IntRange(0, 5).Draw(t, "tasks") {
				r := Running{Task: fmt.Sprint(n.ID, "-", j), Priority: rapid.Int32Range(-2, 2).Draw(t, "priority"),
					Resources: Resources{NanoCPUs: rapid.Int64Range(0, 4).Draw(t, "cpu") * 1e9}}
				if rapid.Bool().Draw(t, "port") && !n.Ports[http] {
					r.Ports = []Port{http}
				}
				n.Claim(r.Resources, r.Ports)
				running[n.ID], priority[r.Task] = append(running[n.ID], r), r.Priority
			}
			nodes = append(nodes, n)
		}
		q := Requirements{Reserve: Resources{NanoCPUs: rapid.Int64Range(0, 4).Draw(t, "want") * 1e9}}
		if rapid.Bool().Draw(t, "wants port") {
			q.Ports = []Port{http}
		}
		mine := rapid.Int32Range(-2, 2).Draw(t, "mine")
		node, victims, ok := NewNodes(nodes).Preempt(group("s", 1, q), mine, func(id string) []Running { return running[id] })
		if !ok {
			return
		}
		n := nodes[slices.IndexFunc(nodes, func(n Node) bool { return n.ID == node })]
		left := ready(node)
		for _, r := range running[node] {
			if !slices.Contains(victims, r.Task) {
				left.Claim(r.Resources, r.Ports)
			}
		}
		for _, v := range victims {
			if priority[v] >= mine {
				t.Fatalf("%s of priority %d goes for one of %d", v, priority[v], mine)
			}
			again := left
			again.Ports = maps.Clone(left.Ports)
			for _, r := range running[node] {
				if r.Task == v {
					again.Claim(r.Resources, r.Ports)
				}
			}
			if q.variable(&again, 0) == Accepted {
				t.Fatalf("%s goes for nothing", v)
			}
		}
		if q.variable(&left, 0) != Accepted {
			t.Fatalf("it does not fit %+v without %v", n, victims)
		}
	})
}

// TestRebalance_AnyCluster_ComesToRestAndNothingIsViolated: moves end, capacity and constraints hold, and the rest is even
// where nothing else binds.
func TestRebalance_AnyCluster_ComesToRestAndNothingIsViolated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t)
		if len(nodes) == 0 {
			return
		}
		var services []Balance
		free := rapid.Bool().Draw(t, "nothing binds")
		where := map[string]map[string][]string{} // service, node: tasks
		for i := range nodes {
			nodes[i].Ports, nodes[i].Tasks = nil, 0
			if free {
				nodes[i].Ready = true
			}
		}
		for i := range rapid.IntRange(1, 4).Draw(t, "services") {
			q := &Requirements{}
			if !free {
				q.Reserve.NanoCPUs = rapid.Int64Range(0, 2).Draw(t, "cpu")
				q.MaxPerNode = rapid.SampledFrom([]uint64{0, 0, 2}).Draw(t, "max")
			}
			q.Spread = spread(t, rapid.SampledFrom([][]string{nil, {"node.labels.zone"}, {"node.labels.zone", "node.labels.disk"}}).Draw(t, "spread")...)
			s := Balance{Service: fmt.Sprint("s", i), Requirements: q, OnNode: map[string]int{}}
			where[s.Service] = map[string][]string{}
			for j := range rapid.IntRange(0, 12).Draw(t, "tasks") {
				n := &nodes[rapid.IntRange(0, len(nodes)-1).Draw(t, "node")]
				n.Claim(q.Reserve, nil)
				s.OnNode[n.ID]++
				where[s.Service][n.ID] = append(where[s.Service][n.ID], fmt.Sprint(s.Service, "-", j))
			}
			services = append(services, s)
		}
		all := NewNodes(nodes)
		for round := 0; ; round++ {
			if round > 2000 {
				t.Fatal("it never comes to rest")
			}
			moves := all.rebalance(services, 3)
			if len(moves) == 0 {
				break
			}
			for _, m := range moves {
				from := where[m.Service][m.From]
				if len(from) == 0 || m.From == m.To {
					t.Fatalf("%+v is no move", m)
				}
				where[m.Service][m.From] = from[1:]
				where[m.Service][m.To] = append(where[m.Service][m.To], from[0])
				n := &all.nodes[all.index[m.To]]
				q := services[slices.IndexFunc(services, func(s Balance) bool { return s.Service == m.Service })].Requirements
				if !n.Ready || q.Reserve.NanoCPUs > 0 && n.Free.NanoCPUs < 0 {
					t.Fatalf("%+v: to a node that is down or full", m)
				}
			}
		}
		if !free {
			return
		}
		for _, s := range services {
			if len(s.Requirements.Spread) > 0 {
				continue
			}
			lo, hi := 1<<30, 0
			for i := range nodes {
				lo, hi = min(lo, s.OnNode[nodes[i].ID]), max(hi, s.OnNode[nodes[i].ID])
			}
			if hi-lo > 1 {
				t.Fatalf("%s at rest: %v", s.Service, s.OnNode)
			}
		}
	})
}

func TestRebalance_NodeJoins_GetsItsShareAFewAtATime(t *testing.T) {
	nodes := []Node{ready("a"), ready("b"), ready("c")}
	var services []Balance
	for i := range 6 { // one task each, all on a and b
		on := nodes[i%2].ID
		nodes[i%2].Claim(Resources{}, nil)
		services = append(services, Balance{Service: fmt.Sprint("s", i), Requirements: &Requirements{},
			OnNode: map[string]int{on: 1}})
	}
	all := NewNodes(nodes)
	moves := all.rebalance(services, 1)
	if len(moves) != 1 || moves[0].To != "c" {
		t.Fatalf("moves %v", moves)
	}
	moves = append(moves, all.rebalance(services, 5)...)
	if len(moves) != 2 || all.nodes[2].Tasks != 2 {
		t.Fatalf("moves %v", moves)
	}
	if more := all.rebalance(services, 5); len(more) > 0 {
		t.Fatalf("more: %v", more)
	}
}
