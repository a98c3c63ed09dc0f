package containerd

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// racers is how many start and remove at the same time.
const racers = 8

// shims counts what containerd's do: the tasks in the shim of each group, which ends with its last.
type shims struct {
	mu    sync.Mutex
	tasks map[string]int
	ended map[string]bool
}

func (s *shims) create(t *testing.T, group string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended[group] {
		t.Errorf("%s got a task after its end", group)
	}
	s.tasks[group]++
	if s.tasks[group] > maxGroup+racers { // a place is free before its task has ended
		t.Errorf("%s has %d tasks", group, s.tasks[group])
	}
}

func (s *shims) remove(group string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tasks[group]--
	s.ended[group] = s.tasks[group] == 0
}

func TestGroups_StartsAndEndsAtOnce_NoneJoinsAShimThatEnds(t *testing.T) {
	g := newGroups()
	s := &shims{tasks: map[string]int{}, ended: map[string]bool{}}
	var work sync.WaitGroup
	var regrouped atomic.Int64
	for worker := range racers {
		work.Go(func() {
			var running [][2]string // container, group
			end := func() {
				id, name := running[0][0], running[0][1]
				running = running[1:]
				g.leave(id)
				s.remove(name)
				g.leave(id) // a second try of a removal
			}
			for i := range 500 {
				id := fmt.Sprintf("%d-%d", worker, i)
				name := g.assign(id)
				runtime.Gosched()
				for !g.begin(id) {
					name = g.assign(id)
					regrouped.Add(1)
				}
				if i%5 == 0 {
					g.settle(id, false)
					g.leave(id)
					continue
				}
				s.create(t, name)
				runtime.Gosched()
				g.settle(id, true)
				running = append(running, [2]string{id, name})
				for len(running) > i%7 {
					end()
				}
			}
			for len(running) > 0 {
				end()
			}
		})
	}
	work.Wait()
	if len(g.of) > 0 || len(g.open) > 0 {
		t.Errorf("%d containers and %d groups are left", len(g.of), len(g.open))
	}
	t.Logf("%d groups, %d containers were given another", g.made, regrouped.Load())
}

func TestGroups_OfAFormerProcess_AreNotJoined(t *testing.T) {
	g := newGroups()
	if g.begin("made before") {
		t.Error("it has joined a group that is not known")
	}
	g.leave("made before")
	if g.assign("made before") == newGroups().assign("made before") {
		t.Error("two processes have given a group the same name")
	}
}
