package slots

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestSubset_AnyPlacement_EveryReplicaIsReachedAndSharesAreEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 120).Draw(t, "nodes")
		r := rapid.IntRange(Limit+1, 2000).Draw(t, "replicas")
		spread := rapid.Bool().Draw(t, "spread")
		nodes := make([]string, n)
		for i := range nodes {
			nodes[i] = fmt.Sprintf("node%d", i)
		}
		all := make([]Candidate, r)
		for i := range all {
			on := i % n
			if !spread {
				on = rapid.IntRange(0, n-1).Draw(t, "on")
			}
			all[i] = Candidate{fmt.Sprintf("task%d", i), nodes[on], 100}
		}
		backwards := slices.Clone(all)
		slices.Reverse(backwards)
		if !slices.Equal(Subset("web", nodes[0], nodes, all, Limit), Subset("web", nodes[0], nodes, backwards, Limit)) {
			t.Fatal("the order of the candidates counts")
		}
		share, reached := map[string]float64{}, map[string]int{}
		for _, self := range nodes {
			chosen := Subset("web", self, nodes, all, Limit)
			if len(chosen) > max(Limit, r/n)+3 {
				t.Fatalf("%s chose %d of %d", self, len(chosen), r)
			}
			var total float64
			for _, c := range chosen {
				total += float64(c.Weight)
			}
			for _, c := range chosen {
				share[c.ID] += float64(c.Weight) / total / float64(n)
				reached[c.ID]++
			}
		}
		coverage := max(1, Limit*n/r)
		for _, c := range all {
			if reached[c.ID] < min(coverage, n) {
				t.Fatalf("%s is in %d subsets, want at least %d", c.ID, reached[c.ID], coverage)
			}
			if even := 1 / float64(r); math.Abs(share[c.ID]-even) > even/1000 {
				t.Fatalf("%s gets %.3f of an even share", c.ID, share[c.ID]/even)
			}
		}
	})
}

// The whole way: subsets, then slots, as the kernels of all nodes hold them.
func TestSubset_ThenSlots_ClusterWideShareIsWithinATenthOfEven(t *testing.T) {
	for _, c := range []struct{ nodes, replicas int }{{3, 300}, {5, 1000}, {10, 2000}, {50, 1000}, {100, 1000}, {100, 5000}} {
		nodes := make([]string, c.nodes)
		for i := range nodes {
			nodes[i] = fmt.Sprintf("node%d", i)
		}
		all := make([]Candidate, c.replicas)
		for i := range all {
			all[i] = Candidate{fmt.Sprintf("task%d", i), nodes[i%c.nodes], 100}
		}
		share := map[string]float64{}
		local := 0
		for _, self := range nodes {
			chosen := Subset("web", self, nodes, all, Limit)
			class := ClassFor(One(chosen))
			for _, id := range Assign(class, nil, One(chosen)) {
				share[id] += float64(c.replicas) / float64(class) / float64(c.nodes)
			}
			for _, a := range all {
				if a.Node == self && slices.ContainsFunc(chosen, func(s Share) bool { return s.ID == a.ID }) {
					local++
				}
			}
		}
		least, most := math.Inf(1), 0.0
		for _, a := range all {
			least, most = min(least, share[a.ID]), max(most, share[a.ID])
		}
		t.Logf("%d nodes, %d replicas: shares of %.3f to %.3f of even; %d of the local ones are chosen", c.nodes, c.replicas, least, most, local)
		if least < 0.9 || most > 1.1 {
			t.Errorf("%d nodes, %d replicas: shares of %.3f to %.3f of even", c.nodes, c.replicas, least, most)
		}
		if local < c.replicas*9/10 {
			t.Errorf("%d nodes, %d replicas: only %d local ones are chosen on their own node", c.nodes, c.replicas, local)
		}
	}
}

func TestSubset_Weights_AreKeptOverAllNodes(t *testing.T) {
	nodes := []string{"a", "b", "c", "d", "e"}
	var all []Candidate
	total := 0.0
	for i := range 600 {
		w := uint32(100)
		if i%20 == 0 {
			w = 10
		}
		total += float64(w)
		all = append(all, Candidate{fmt.Sprint(i), nodes[i%5], w})
	}
	share := map[string]float64{}
	for _, self := range nodes {
		chosen, sum := Subset("web", self, nodes, all, Limit), 0.0
		for _, c := range chosen {
			sum += float64(c.Weight)
		}
		for _, c := range chosen {
			share[c.ID] += float64(c.Weight) / sum / 5
		}
	}
	for _, c := range all {
		if want := float64(c.Weight) / total; math.Abs(share[c.ID]-want) > want/1000 {
			t.Errorf("%s of weight %d gets %.3f of its share", c.ID, c.Weight, share[c.ID]/want)
		}
	}
}
