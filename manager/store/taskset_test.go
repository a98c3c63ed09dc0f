package store

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// TestTaskSet_AnyChanges_EveryVersionKeepsItsOwn holds every version against a sorted slice, once all are made. A
// task's number is its ordinal divided, so that many share one and the tie decides between them.
func TestTaskSet_AnyChanges_EveryVersionKeepsItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		share := rapid.SampledFrom([]uint32{1, 7, 100_000}).Draw(t, "tasks a number")
		number := func(ordinal uint32) uint64 { return uint64(ordinal / share) }
		type version struct {
			set  taskSet
			want []uint32
		}
		var last version
		versions := []version{last}
		for made := uint64(1); made <= 12; made++ {
			next := version{last.set, slices.Clone(last.want)}
			grow := rapid.IntRange(0, 4).Draw(t, "share of inserts")
			rising := rapid.Bool().Draw(t, "in order")
			for n := range rapid.Uint32Range(0, 150).Draw(t, "changes") {
				ordinal := rapid.Uint32Range(0, 2000).Draw(t, "ordinal")
				if rising {
					ordinal = 2000*uint32(made) + n
				}
				if grow == 0 && len(next.want) > 0 {
					ordinal = next.want[int(ordinal)%len(next.want)]
				}
				at, found := slices.BinarySearch(next.want, ordinal)
				switch {
				case !found && grow > 0:
					next.set.insert(made, number(ordinal), ordinal, byNumber(ordinal))
					next.want = slices.Insert(next.want, at, ordinal)
				case grow < 3:
					next.set.remove(made, number(ordinal), byNumber(ordinal))
					if found {
						next.want = slices.Delete(next.want, at, at+1)
					}
				}
			}
			versions, last = append(versions, next), next
		}
		probe := rapid.Uint32Range(0, 30_000).Draw(t, "probe")
		for _, v := range versions {
			if err := v.set.check(number, func(a, b uint32) int { return cmp.Compare(a, b) }); err != nil {
				t.Fatal(err)
			}
			if got := slices.Collect(v.set.all()); !slices.Equal(got, v.want) {
				t.Fatalf("got %v, want %v", got, v.want)
			}
			for _, ordinal := range append([]uint32{probe}, v.want...) {
				got, found := v.set.find(number(ordinal), byNumber(ordinal))
				if _, want := slices.BinarySearch(v.want, ordinal); found != want || (found && got != ordinal) {
					t.Fatalf("find %d: got %d, %v, want %v", ordinal, got, found, want)
				}
			}
			first, _ := slices.BinarySearchFunc(v.want, number(probe), func(ordinal uint32, number uint64) int {
				return cmp.Compare(uint64(ordinal/share), number)
			})
			if got := slices.Collect(v.set.from(number(probe))); !slices.Equal(got, v.want[first:]) {
				t.Fatalf("from %d: got %v, want %v", number(probe), got, v.want[first:])
			}
			var few []uint32
			for ordinal := range v.set.from(number(probe)) {
				if few = append(few, ordinal); len(few) == 3 {
					break
				}
			}
			if !slices.Equal(few, v.want[first:min(first+3, len(v.want))]) {
				t.Fatalf("from %d, stopped after 3: got %v", number(probe), few)
			}
		}
	})
}

// TestTaskSet_EmptiedAfterMany_StaysShallow: nodes that have become small are united, or a set that was once large
// would stay deep and sparse.
func TestTaskSet_EmptiedAfterMany_StaysShallow(t *testing.T) {
	var s taskSet
	const many = 50_000
	number := func(ordinal uint32) uint64 { return uint64(ordinal) }
	for n := range uint32(many) {
		s.insert(1, uint64(n), n, byNumber(n))
	}
	for n := range uint32(many) {
		if n%1000 != 0 {
			s.remove(2, uint64(n), byNumber(n))
		}
	}
	levels, err := s.root.check(number)
	if err != nil || s.count != many/1000 || levels > 3 {
		t.Fatalf("%d tasks in %d levels, want %d in at most 3; %v", s.count, levels, many/1000, err)
	}
}

// TestView_TasksBeyondOneNodeOfATree_AreListedInOrder: with hundreds of tasks, IDs that share their first eight bytes
// and many attempts in a slot.
func TestView_TasksBeyondOneNodeOfATree_AreListedInOrder(t *testing.T) {
	f := newFixture(t)
	var want []string
	for slot := range uint64(20) {
		var writes []*swarmpb.Write
		for attempt := range uint64(15) {
			// The order of IDs is not that of slots and attempts.
			id := fmt.Sprintf("same-first-bytes-%03d", (slot*15+attempt)*7%300)
			writes = append(writes, task(id, slot+1, attempt+1, 1, ""))
			want = append(want, id)
		}
		f.apply(writes...)
	}
	v := f.store.View()
	list := func(seq func(func(*swarmpb.Task) bool)) string {
		var ids []string
		for task := range seq {
			ids = append(ids, task.Id)
		}
		return strings.Join(ids, " ")
	}
	check := func(what, got string, want []string) {
		if got != strings.Join(want, " ") {
			t.Fatalf("%s: got %s, want %v", what, got, want)
		}
	}
	check("tasks of svc", list(v.TasksOf("svc")), want)
	check("unplaced", list(v.Unplaced()), want)
	check("from slot 7", list(v.TasksFrom("svc", 7)), want[6*15:])
	check("in slot 7", list(v.TasksIn("svc", 7)), want[6*15:7*15])
	check("all", list(v.Tasks()), slices.Sorted(slices.Values(want)))
	for i, id := range want {
		if got := v.Task(id); got.GetId() != id || got.GetSlot() != uint64(i/15+1) {
			t.Fatalf("task %s is %v", id, got)
		}
	}
	if v.Task("same-first-bytes-") != nil || v.Task("same-first-bytes-999") != nil {
		t.Fatal("a task is found that is not there")
	}
}
