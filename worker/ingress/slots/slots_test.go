package slots

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func genShares(t *rapid.T, label string) []Share {
	n := rapid.IntRange(0, 300).Draw(t, label)
	equal := rapid.Bool().Draw(t, label+" equal")
	out := make([]Share, 0, n)
	for i := range n {
		w := uint32(100)
		if !equal {
			w = rapid.Uint32Range(0, 1000).Draw(t, "weight")
		}
		out = append(out, Share{fmt.Sprintf("t%03d", i), w})
	}
	return out
}

func count(slots []string) map[string]int {
	out := map[string]int{}
	for _, id := range slots {
		out[id]++
	}
	return out
}

func checkShares(t *rapid.T, class int, got []string, shares []Share) {
	if len(got) != class {
		t.Fatalf("%d slots of %d", len(got), class)
	}
	var total float64
	for _, s := range shares {
		total += float64(s.Weight)
	}
	have := count(got)
	if total == 0 {
		if have[""] != class {
			t.Fatalf("slots without a share: %v", have)
		}
		return
	}
	for _, s := range shares {
		exact := float64(s.Weight) / total * float64(class)
		if n := float64(have[s.ID]); n < math.Floor(exact) || n > math.Ceil(exact) || (s.Weight == 0 && n > 0) {
			t.Fatalf("%s of weight %d has %v slots of %d, want %.2f", s.ID, s.Weight, n, class, exact)
		}
		delete(have, s.ID)
	}
	if len(have) > 0 {
		t.Fatalf("slots of none or of strangers: %v", have)
	}
}

func TestAssign_AnyHistory_SharesAreExactAndAsFewAsPossibleMove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var old []string
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			shares := genShares(t, "endpoints")
			class := ClassFor(One(shares))
			if rapid.Bool().Draw(t, "another class") {
				class = rapid.SampledFrom(Classes[:]).Draw(t, "class")
			}
			got := Assign(class, old, One(shares))
			checkShares(t, class, got, shares)
			shuffled := rapid.Permutation(shares).Draw(t, "order")
			if !slices.Equal(got, Assign(class, old, One(shuffled))) {
				t.Fatal("the order of the shares counts")
			}
			if len(old) == class {
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

func TestAssign_OneEndpointComesOrGoes_OnlyItsSlotsMove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 60).Draw(t, "endpoints")
		shares := make([]Share, n)
		for i := range shares {
			shares[i] = Share{fmt.Sprintf("t%03d", i), 100}
		}
		const class = 1024
		one := rapid.IntRange(0, n-1).Draw(t, "one")
		without := slices.Delete(slices.Clone(shares), one, one+1)
		fewer := Assign(class, nil, One(without))
		more := Assign(class, fewer, One(shares))
		again := Assign(class, more, One(without))
		for i := range more {
			if more[i] != fewer[i] && more[i] != shares[one].ID {
				t.Fatalf("slot %d moved from %s to %s as %s came", i, fewer[i], more[i], shares[one].ID)
			}
			if again[i] != more[i] && more[i] != shares[one].ID {
				t.Fatalf("slot %d moved from %s to %s as %s went", i, more[i], again[i], shares[one].ID)
			}
		}
	})
}

func TestAssignStable_SharesAreExact_AndDependOnTheSetAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shares := genShares(t, "endpoints")
		class := ClassFor(One(shares))
		got := AssignStable(One(shares))
		checkShares(t, class, got, shares)
		if !slices.Equal(got, AssignStable(One(rapid.Permutation(shares).Draw(t, "order")))) {
			t.Fatal("the order of the shares counts")
		}
	})
}

func TestAssignStable_OneOfTenGoes_MostClientsStay(t *testing.T) {
	var shares []Share
	for i := range 10 {
		shares = append(shares, Share{fmt.Sprintf("t%03d", i), 100})
	}
	before := AssignStable(One(shares))
	for one := range shares {
		after := AssignStable(One(slices.Delete(slices.Clone(shares), one, one+1)))
		moved := 0
		for i := range after {
			if after[i] != before[i] && before[i] != shares[one].ID {
				moved++
			}
		}
		if moved > 256/4 {
			t.Errorf("%s goes: %d of the others' slots move", shares[one].ID, moved)
		}
	}
}

func TestClassFor_SixteenSlotsAnEndpoint_FineForWeights(t *testing.T) {
	shares := func(n int) []Share {
		out := make([]Share, n)
		for i := range out {
			out[i] = Share{fmt.Sprint(i), 100}
		}
		return out
	}
	for n, want := range map[int]int{0: 16, 1: 16, 2: 64, 4: 64, 5: 256, 16: 256, 17: 1024, 64: 1024, 65: 4096, 256: 4096, 5000: 4096} {
		if got := ClassFor(One(shares(n))); got != want {
			t.Errorf("%d endpoints: class %d, want %d", n, got, want)
		}
	}
	if got := ClassFor(One([]Share{{"a", 95}, {"b", 5}, {"c", 0}})); got != 256 {
		t.Errorf("a canary: class %d, want 256", got)
	}
	if got := ClassFor(One([]Share{{"a", 100}, {"b", 0}})); got != 16 {
		t.Errorf("one endpoint and one of weight 0: class %d, want 16", got)
	}
}
