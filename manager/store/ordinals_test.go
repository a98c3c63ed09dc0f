package store

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func byNumber(n uint32) func(uint32) int {
	return func(other uint32) int { return cmp.Compare(other, n) }
}

// sequence is a version of ordinals with what must be in it.
type sequence struct {
	kept ordinals
	want []uint32
}

func (s sequence) check(t *rapid.T) {
	if err := s.kept.check(); err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(s.kept.all()); !slices.Equal(got, s.want) {
		t.Fatalf("got %v, want %v", got, s.want)
	}
}

// versions runs random changes, several a version, and holds every version against a plain slice, once all are made.
func versions(t *rapid.T, change func(s *sequence, made uint64, n uint32)) {
	all := []sequence{{}}
	for made := uint64(1); made <= 30; made++ {
		next := sequence{all[made-1].kept, slices.Clone(all[made-1].want)}
		// Runs of one kind let the sequence grow beyond a few chunks and shrink again.
		for n := range rapid.Uint32Range(0, 60).Draw(t, "changes") {
			change(&next, made, uint32(made)*1000+n)
		}
		all = append(all, next)
	}
	for _, version := range all {
		version.check(t)
	}
}

func TestOrdinals_AsAQueueWithHoles_EveryVersionKeepsItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		versions(t, func(s *sequence, made uint64, n uint32) {
			switch op := rapid.IntRange(0, 9).Draw(t, "op"); {
			case op < 6 || len(s.want) == 0:
				s.kept.push(made, n)
				s.want = append(s.want, n)
			case op < 8:
				if got := s.kept.pop(made); got != s.want[0] {
					t.Fatalf("popped %d, want %d", got, s.want[0])
				}
				s.want = s.want[1:]
			default:
				// Often the last one, whose place earlier versions may still see.
				i := rapid.SampledFrom([]int{len(s.want) - 1, len(s.want) / 2, 0}).Draw(t, "place")
				s.kept.discard(made, s.want[i])
				s.want = slices.Delete(s.want, i, i+1)
			}
		})
	})
}

func TestOrdinals_InOrder_EveryVersionKeepsItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		versions(t, func(s *sequence, made uint64, _ uint32) {
			n := rapid.Uint32Range(0, 600).Draw(t, "ordinal")
			at, found := slices.BinarySearch(s.want, n)
			switch {
			case !found:
				s.kept.insert(made, n, byNumber(n))
				s.want = slices.Insert(s.want, at, n)
			case rapid.Bool().Draw(t, "remove"):
				s.kept.remove(made, n, byNumber(n))
				s.want = slices.Delete(s.want, at, at+1)
			}
		})
	})
}

func TestOrdinals_NotThere_NothingIsRemoved(t *testing.T) {
	var s ordinals
	s.remove(1, 7, byNumber(7))
	s.discard(1, 7)
	s.push(1, 3)
	s.remove(1, 7, byNumber(7))
	s.discard(1, 7)
	if err := s.check(); err != nil || s.count != 1 {
		t.Fatalf("%d ordinals are left, want 1; %v", s.count, err)
	}
}

func TestTaskTable_ReplacedAndReleased_EveryVersionKeepsItsRows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			table taskTable
			want  map[uint32]*taskRow
		}
		last := version{want: make(map[uint32]*taskRow)}
		versions := []version{last}
		var taken []uint32
		for made := uint64(1); made <= 8; made++ {
			next := version{table: last.table, want: make(map[uint32]*taskRow)}
			for ordinal, row := range last.want {
				next.want[ordinal] = row
			}
			put := func(ordinal uint32) {
				row := &taskRow{ordinal: ordinal}
				next.table.set(made, ordinal, row)
				next.want[ordinal] = row
			}
			for range rapid.SampledFrom([]int{0, 1, 20, 1500}).Draw(t, "new tasks") {
				ordinal := next.table.take(made)
				if next.want[ordinal] != nil {
					t.Fatalf("ordinal %d is taken", ordinal)
				}
				taken = append(taken, ordinal)
				put(ordinal)
			}
			for range min(len(taken), rapid.IntRange(0, 40).Draw(t, "changes")) {
				i := rapid.IntRange(0, len(taken)-1).Draw(t, "task")
				if rapid.Bool().Draw(t, "replace") {
					put(taken[i])
					continue
				}
				next.table.release(made, taken[i])
				delete(next.want, taken[i])
				taken = slices.Delete(taken, i, i+1)
				if len(taken) == 0 {
					break
				}
			}
			versions, last = append(versions, next), next
		}
		for i, v := range versions {
			for ordinal := range v.table.next {
				if v.table.find(ordinal) != v.want[ordinal] {
					t.Fatalf("version %d: ordinal %d has another row", i, ordinal)
				}
			}
			if v.table.free.count != int(v.table.next)-len(v.want) {
				t.Fatalf("version %d: %d ordinals are free of %d, with %d rows", i, v.table.free.count, v.table.next, len(v.want))
			}
		}
	})
}

// TestVerify_WrongLists_AreFound breaks, one at a time, what the lists of ordinals must hold.
func TestVerify_WrongLists_AreFound(t *testing.T) {
	for name, spoil := range map[string]func(v *View, node *nodeIndex, service *serviceIndex){
		"node list lacks a task":     func(_ *View, node *nodeIndex, _ *serviceIndex) { node.tasks.pop(9) },
		"node list has one twice":    func(_ *View, node *nodeIndex, _ *serviceIndex) { node.tasks.chunks[0][1] = node.tasks.chunks[0][0] },
		"node list has another's":    func(v *View, node *nodeIndex, s *serviceIndex) { node.tasks.chunks[0][1] = s.waiting.chunks[0][0] },
		"node list miscounts":        func(_ *View, node *nodeIndex, _ *serviceIndex) { node.tasks.count++ },
		"waiting list lacks a task":  func(_ *View, _ *nodeIndex, s *serviceIndex) { s.waiting.pop(9) },
		"waiting list has a placed":  func(_ *View, n *nodeIndex, s *serviceIndex) { s.waiting.chunks[0][1] = n.tasks.chunks[0][0] },
		"waiting list out of order":  func(_ *View, _ *nodeIndex, s *serviceIndex) { slices.Reverse(s.waiting.chunks[0]) },
		"waiting service not listed": func(v *View, _ *nodeIndex, _ *serviceIndex) { v.waiting.Delete("svc") },
		"service without a task":     func(v *View, _ *nodeIndex, _ *serviceIndex) { v.waiting.Set("none", struct{}{}) },
		"waiting tasks miscounted":   func(v *View, _ *nodeIndex, _ *serviceIndex) { v.unplaced-- },
		"free ordinal lost":          func(v *View, _ *nodeIndex, _ *serviceIndex) { v.rows.free.pop(9) },
		"free ordinal has a task":    func(v *View, n *nodeIndex, _ *serviceIndex) { v.rows.free.chunks[0][0] = n.tasks.chunks[0][0] },
		"row under another ordinal":  func(v *View, n *nodeIndex, s *serviceIndex) { v.rows.set(9, n.tasks.chunks[0][0], v.taskRow("w1")) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			for i := range 3 {
				f.apply(task(fmt.Sprintf("t%d", i), uint64(i+1), 1, 1, ""), placement(fmt.Sprintf("t%d", i), "n1"))
				f.apply(task(fmt.Sprintf("w%d", i), uint64(i+10), 1, 1, ""))
			}
			f.apply(task("gone", 20, 1, 1, ""))
			f.apply(deletion(swarmpb.TaskKey("gone")))
			v := f.store.View()
			if err := v.Verify(); err != nil {
				t.Fatal(err)
			}
			node, _ := v.perNode.Get("n1")
			service, _ := v.perService.Get("svc")
			spoil(v, node, service)
			if v.Verify() == nil {
				t.Fatal("it was not found")
			}
		})
	}
}
