package store

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// applyAll applies copies of entries with the indexes that follow.
func applyAll(s *Store, entries []*swarmpb.Entry) {
	for _, entry := range entries {
		s.Apply(s.View().Index()+1, 1, proto.CloneOf(entry))
	}
}

func TestFork_BothGoOnAtTheSameTime_EachIsWhatItsOwnEntriesMake(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := drawEntries(t, 1, 20)
		after := [3][]*swarmpb.Entry{}
		for i := range after {
			for range rapid.IntRange(0, 10).Draw(t, "entries") {
				after[i] = append(after[i], drawEntry(t))
			}
		}
		original := New()
		applyAll(original, before)
		frozen := original.View()
		snapshot := snapshotOf(t, frozen)
		stores := [3]*Store{original, frozen.Fork(), frozen.Fork()}
		var group sync.WaitGroup
		for i, s := range stores {
			group.Go(func() { applyAll(s, after[i]) })
		}
		group.Wait()
		if !bytes.Equal(snapshot, snapshotOf(t, frozen)) {
			t.Fatal("the version that was forked changed")
		}
		for i, s := range stores {
			if err := s.View().Verify(); err != nil {
				t.Fatalf("store %d: %v", i, err)
			}
			alone := New()
			applyAll(alone, before)
			applyAll(alone, after[i])
			if !bytes.Equal(snapshotOf(t, s.View()), snapshotOf(t, alone.View())) {
				t.Fatalf("store %d is not what its entries make", i)
			}
		}
	})
}

// crowd makes tasks of one service on one node from a slot on, so many that the indexes have to append much, and ends and
// removes every third.
func crowd(from, n uint64, attempt uint64) []*swarmpb.Entry {
	var entries []*swarmpb.Entry
	for slot := from; slot < from+n; slot++ {
		id := fmt.Sprintf("task-%d-%d", slot, attempt)
		writes := []*swarmpb.Write{task(id, slot, attempt, 1, "")}
		if slot%2 == 0 {
			writes = append(writes, placement(id, "n1"))
		}
		entries = append(entries, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Writes: writes}}})
		if slot%3 == 0 {
			entries = append(entries, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Writes: []*swarmpb.Write{deletion(swarmpb.TaskKey(id))}}}})
		}
	}
	return entries
}

func TestFork_OriginalIsBeingAppliedTo_BothVerifyAndKeepTheirTasks(t *testing.T) {
	f := newFixture(t)
	applyAll(f.store, crowd(1, 300, 1))
	const forks = 3
	var stores [forks]*Store
	var group sync.WaitGroup
	group.Go(func() { applyAll(f.store, crowd(1001, 400, 2)) })
	for i := range forks {
		group.Go(func() {
			stores[i] = f.store.View().Fork()
			applyAll(stores[i], crowd(2001, 400, uint64(3+i)))
		})
	}
	group.Wait()
	check := func(name string, v *View, attempt uint64) {
		t.Helper()
		if err := v.Verify(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for task := range v.Tasks() {
			if task.Attempt > 2 && task.Attempt != attempt {
				t.Fatalf("%s has task %s of another store", name, task.Id)
			}
		}
	}
	check("original", f.store.View(), 2)
	for i, s := range stores {
		check(fmt.Sprint("fork ", i), s.View(), uint64(3+i))
	}
	if got := f.store.View().TaskCount(); got != 467 { // 300 and 400, without every third
		t.Errorf("the original has %d tasks", got)
	}
}

func TestFork_Watched_TellsOfItsOwnChangesAlone(t *testing.T) {
	f := newFixture(t)
	fork := f.store.View().Fork()
	if fork.View().Index() != f.store.View().Index() {
		t.Errorf("the fork is at index %d, the view at %d", fork.View().Index(), f.store.View().Index())
	}
	if _, err := fork.Watch(f.store.View().Index()-1, 0); err == nil {
		t.Error("the fork's feed holds what was before it")
	}
	watch, err := fork.Watch(fork.View().Index(), 0)
	if err != nil {
		t.Fatal(err)
	}
	f.apply(task("here", 1, 1, 1, ""))
	if watch.Reached() == nil {
		t.Error("the fork sees a change of the original")
	}
	applyAll(fork, crowd(1, 1, 1))
	batch, err := watch.Next(t.Context())
	if err != nil || len(batch.Changes) != 1 || batch.Changes[0].Key.ID != "task-1-1" {
		t.Errorf("the fork's change is %v (error %v)", batch.Changes, err)
	}
}

// BenchmarkFork has a store of 100,000 tasks: a fork, and a fork with one write.
func BenchmarkFork(b *testing.B) {
	f := newFixture(&testing.T{})
	const perEntry = 500
	for first := uint64(0); first < 100_000; first += perEntry {
		proposal := &swarmpb.Proposal{}
		for slot := first + 1; slot <= first+perEntry/2; slot++ {
			id := fmt.Sprintf("task-%d", slot)
			proposal.Writes = append(proposal.Writes, task(id, slot, 1, 1, ""), placement(id, "n1"))
			other := fmt.Sprintf("other-%d", slot)
			proposal.Writes = append(proposal.Writes, task(other, slot+1_000_000, 1, 1, ""), placement(other, "n2"))
		}
		for part := range 2 {
			half := &swarmpb.Proposal{Writes: proposal.Writes[part*perEntry : (part+1)*perEntry]}
			f.store.Apply(f.store.View().Index()+1, 1, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{half}})
		}
	}
	view := f.store.View()
	if view.TaskCount() != 100_000 {
		b.Fatalf("%d tasks", view.TaskCount())
	}
	b.Run("fork", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			view.Fork()
		}
	})
	b.Run("fork-and-write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			applyAll(view.Fork(), []*swarmpb.Entry{{Proposals: []*swarmpb.Proposal{{Writes: []*swarmpb.Write{task("new", 1, 2, 1, "")}}}}})
		}
	})
}

func TestFork_BothAppendBehindWhatTheyShare_NeitherOverwritesTheOther(t *testing.T) {
	f := newFixture(t)
	f.apply(service("other", "db"),
		put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf("other", 1)}}),
		put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf("other", 2)}}))
	for slot := uint64(1); slot <= 20; slot++ {
		id := fmt.Sprint("t", slot)
		f.apply(task(id, slot, 1, 1, ""))
		if slot <= 5 {
			f.apply(placement(id, "n1"))
		}
	}
	for _, id := range []string{"t6", "t7", "t8"} { // their numbers are free to be given again
		f.apply(deletion(swarmpb.TaskKey(id)))
	}
	fork := f.store.View().Fork()
	// The next places in memory get other tasks in each: among those that wait, on the node, among the free numbers.
	f.apply(task("a1", 30, 1, 1, ""))
	f.apply(placement("t9", "n1"), deletion(swarmpb.TaskKey("t10")))
	other := task("b0", 1, 1, 1, "")
	other.GetPut().GetTask().ServiceId = "other"
	for _, writes := range [][]*swarmpb.Write{
		{other, task("b1", 40, 1, 1, "")},
		{placement("t11", "n1"), deletion(swarmpb.TaskKey("t12")), deletion(swarmpb.TaskKey("t13"))},
	} {
		applyAll(fork, []*swarmpb.Entry{{Proposals: []*swarmpb.Proposal{{Writes: writes}}}})
	}
	for name, s := range map[string]*Store{"original": f.store, "fork": fork} {
		if err := s.View().Verify(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	on := func(v *View) (ids []string) {
		for task := range v.TasksOn("n1") {
			ids = append(ids, task.Id)
		}
		return ids
	}
	if got := on(f.store.View()); !slices.Equal(got, []string{"t1", "t2", "t3", "t4", "t5", "t9"}) {
		t.Errorf("the original's node has %v", got)
	}
	if got := on(fork.View()); !slices.Equal(got, []string{"t1", "t11", "t2", "t3", "t4", "t5"}) {
		t.Errorf("the fork's node has %v", got)
	}
}
