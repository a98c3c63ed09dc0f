package slots

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func endpoints(prefix string, n int) []Share {
	out := make([]Share, n)
	for i := range out {
		out[i] = Share{fmt.Sprintf("%s%03d", prefix, i), 100}
	}
	return out
}

func genSides(t *rapid.T, label string) Sides {
	share := rapid.OneOf(rapid.Uint32Range(0, Whole), rapid.SampledFrom([]uint32{0, 1, 100, 500, 2500, 5000, 9999, Whole})).Draw(t, label+" share")
	most := rapid.SampledFrom([]int{3, 20, 128}).Draw(t, label+" most")
	return Sides{Rest: endpoints("old", rapid.IntRange(0, most).Draw(t, label+" rest")), Trial: endpoints("new", rapid.IntRange(0, most).Draw(t, label+" trial")), Share: share}
}

// due is what part of all connections a side is to get: the rule of two sides, in other words than the code has.
func due(s Sides) (rest, trial float64) {
	share := float64(s.Share) / Whole
	switch {
	case share == 0 || len(s.Trial) == 0 && share < 1:
		trial = 0
		if len(s.Rest) > 0 {
			rest = 1
		}
	case share == 1 || len(s.Rest) == 0:
		if len(s.Trial) > 0 {
			trial = 1
		}
	default:
		rest, trial = 1-share, share
	}
	return rest, trial
}

// checkSides: each side has what is due to within a slot, and each of its endpoints an even part of it, rounded, to within so
// many slots and a part of it.
func checkSides(t *rapid.T, got []string, s Sides, slack, part float64) {
	t.Helper()
	have := count(got)
	rest, trial := due(s)
	if rest+trial == 0 {
		if have[""] != len(got) {
			t.Fatalf("slots though no side may have any: %v", have)
		}
		return
	}
	for _, side := range []struct {
		name   string
		shares []Share
		due    float64
	}{{"the rest", s.Rest, rest}, {"the trial", s.Trial, trial}} {
		sum := 0
		for _, e := range side.shares {
			sum += have[e.ID]
		}
		exact := side.due * float64(len(got))
		if math.Abs(float64(sum)-exact) > 1 || side.due == 0 && sum > 0 || side.due > 0 && sum == 0 {
			t.Fatalf("%s has %d slots of %d, want %.2f", side.name, sum, len(got), exact)
		}
		for _, e := range side.shares {
			even := float64(sum) / float64(len(side.shares))
			if n := float64(have[e.ID]); n < math.Floor(even-slack-part*even) || n > math.Ceil(even+slack+part*even) {
				t.Fatalf("%s has %v slots of its side's %d, want %.2f", e.ID, n, sum, even)
			}
			delete(have, e.ID)
		}
	}
	if len(have) > 0 {
		t.Fatalf("slots of none or of strangers: %v", have)
	}
}

func TestSides_AnyHistory_SharesAreWithinASlot_AndAsFewAsPossibleMove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var old []string
		for range rapid.IntRange(1, 5).Draw(t, "changes") {
			s := genSides(t, "sides")
			got := Next(old, s)
			checkSides(t, got, s, 0, 0)
			if len(got) < ClassFor(s) {
				t.Fatalf("%d slots, want at least %d", len(got), ClassFor(s))
			}
			shuffled := Sides{Rest: rapid.Permutation(s.Rest).Draw(t, "order"), Trial: rapid.Permutation(s.Trial).Draw(t, "order"), Share: s.Share}
			if !slices.Equal(got, Next(old, shuffled)) {
				t.Fatal("the order of the endpoints counts")
			}
			if len(old) == len(got) {
				moved, must := 0, 0
				now, before := count(got), count(old)
				for id, n := range now {
					must += max(0, n-before[id])
				}
				for i := range got {
					if got[i] != old[i] {
						moved++
					}
				}
				if moved != must {
					t.Fatalf("%d slots moved, %d had to", moved, must)
				}
			}
			old = got
		}
	})
}

// TestSides_ShareGrows_TheTrialTakesSlotsAndNothingElseMoves: by steps, and as it ends nothing moves at all.
func TestSides_ShareGrows_TheTrialTakesSlotsAndNothingElseMoves(t *testing.T) {
	s := Sides{Rest: endpoints("old", 10), Trial: endpoints("new", 3)}
	now := Next(Next(nil, s), Sides{Rest: s.Rest, Trial: s.Trial, Share: 500})
	for _, share := range []uint32{1000, 2500, 5000, 9000} {
		s.Share = share
		next := Next(now, s)
		if len(next) != len(now) {
			t.Fatalf("share %d: %d slots, before %d", share, len(next), len(now))
		}
		for i := range next {
			if next[i] != now[i] && (now[i][:3] != "old" || next[i][:3] != "new") {
				t.Fatalf("share %d: slot %d moved from %s to %s", share, i, now[i], next[i])
			}
		}
		now = next
	}
	s.Share = Whole
	all := Next(now, s)
	if ended := Next(all, One(s.Trial)); !slices.Equal(ended, all) {
		t.Error("slots move as the trial ends")
	}
	if ended := Next(all, Sides{Rest: s.Trial, Trial: s.Rest, Share: 0}); !slices.Equal(ended, all) {
		t.Error("slots move as the other set becomes the trial, without a share")
	}
}

func TestClassFor_TwoSides_AsFineAsTheShareNeeds(t *testing.T) {
	for _, c := range []struct {
		rest, trial int
		share       uint32
		want        int
	}{
		{3, 1, 0, 64}, {3, 1, Whole, 16}, {3, 0, 500, 64}, {0, 1, 500, 16}, // one side
		{3, 1, 5000, 256}, {3, 1, 2500, 256}, {3, 1, 500, 256}, {10, 1, 500, 256}, {40, 2, 500, 1024}, {3, 1, 100, 1024}, {3, 1, 1, 4096},
		{1, 3, 9900, 1024}, {100, 20, 500, 4096}, {200, 200, 5000, 4096},
	} {
		if got := ClassFor(Sides{Rest: endpoints("old", c.rest), Trial: endpoints("new", c.trial), Share: c.share}); got != c.want {
			t.Errorf("%d and %d at %d: class %d, want %d", c.rest, c.trial, c.share, got, c.want)
		}
	}
}

func TestAssignStable_TwoSides_SharesAreEvenAndDependOnTheSidesAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSides(t, "sides")
		got := AssignStable(s)
		checkSides(t, got, s, 2, 1./PerEndpoint)
		shuffled := Sides{Rest: rapid.Permutation(s.Rest).Draw(t, "order"), Trial: rapid.Permutation(s.Trial).Draw(t, "order"), Share: s.Share}
		if !slices.Equal(got, AssignStable(shuffled)) {
			t.Fatal("the order of the endpoints counts")
		}
	})
}

// TestAssignStable_ShareChanges_MovesAsManyClientsAsItHasTo: from any share to any other, in either direction, and from no
// trial to one and back. A client is a slot of the finest class.
func TestAssignStable_ShareChanges_MovesAsManyClientsAsItHasTo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int{3, 30, 128}).Draw(t, "most")
		s := Sides{Rest: endpoints("old", rapid.IntRange(1, most).Draw(t, "rest")), Trial: endpoints("new", rapid.IntRange(1, most).Draw(t, "trial"))}
		at := func(share uint32) []string {
			s.Share = share
			return expand(AssignStable(s))
		}
		one, other := rapid.Uint32Range(0, Whole).Draw(t, "one"), rapid.Uint32Range(0, Whole).Draw(t, "other")
		before, after := at(min(one, other)), at(max(one, other))
		moved, must := 0, 0
		for i := range before {
			if before[i] == after[i] {
				continue
			}
			if moved++; before[i][:3] != "old" || after[i][:3] != "new" {
				t.Fatalf("a client moved from %s to %s", before[i], after[i])
			}
		}
		for _, id := range before {
			if id[:3] == "old" {
				must++
			}
		}
		for _, id := range after {
			if id[:3] == "old" {
				must--
			}
		}
		if moved != must {
			t.Fatalf("%d clients moved, %d had to", moved, must)
		}
		if !slices.Equal(at(0), expand(AssignStable(One(s.Rest)))) || !slices.Equal(at(Whole), expand(AssignStable(One(s.Trial)))) {
			t.Fatal("clients move as a trial begins or ends")
		}
	})
}

func TestCandidates_TwoSides_EveryNodeHasSomeOfBoth_AndAllAreReachedEvenly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(t, "nodes")
		nodes := make([]string, n)
		for i := range nodes {
			nodes[i] = fmt.Sprintf("node%d", i)
		}
		some := func(prefix string, least, most int) (out []Candidate) {
			for i := range rapid.IntRange(least, most).Draw(t, prefix) {
				out = append(out, Candidate{fmt.Sprintf("%s%d", prefix, i), nodes[i*7%n], 100})
			}
			return out
		}
		c := Candidates{Rest: some("old", 1, 900), Trial: some("new", 1, 500), Share: rapid.Uint32Range(1, Whole-1).Draw(t, "share")}
		share := map[string]float64{}
		for _, self := range nodes {
			s := c.Subset("web", self, nodes, Limit)
			all := len(c.Rest) + len(c.Trial)
			if len(s.Rest) == 0 || len(s.Trial) == 0 || all <= Limit && len(s.Rest)+len(s.Trial) != all {
				t.Fatalf("%s chose %d and %d of %d and %d", self, len(s.Rest), len(s.Trial), len(c.Rest), len(c.Trial))
			}
			if most := Limit + len(c.Rest)/n + len(c.Trial)/n + 6; len(s.Rest)+len(s.Trial) > most {
				t.Fatalf("%s chose %d and %d, at most %d", self, len(s.Rest), len(s.Trial), most)
			}
			for _, side := range [][]Share{s.Rest, s.Trial} {
				var total float64
				for _, e := range side {
					total += float64(e.Weight)
				}
				for _, e := range side {
					share[e.ID] += float64(e.Weight) / total / float64(n)
				}
			}
		}
		for _, side := range [][]Candidate{c.Rest, c.Trial} {
			for _, e := range side {
				if even := 1 / float64(len(side)); math.Abs(share[e.ID]-even) > even/1000 {
					t.Fatalf("%s has %.6f of its side, even is %.6f", e.ID, share[e.ID], even)
				}
			}
		}
	})
}

// BenchmarkAssignStable: what a change of an endpoint costs a port with client affinity while there are two sides.
func BenchmarkAssignStable(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := Sides{Rest: endpoints("old", n), Trial: endpoints("new", n), Share: 5000}
			for range b.N {
				AssignStable(s)
			}
		})
	}
}
