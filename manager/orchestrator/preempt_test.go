package orchestrator_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/allocator"
	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/placement"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// once gives a world, which asks for every plan twice, the plan of placement again.
type once struct {
	*placement.Virtual
	index uint64
	plan  reconcile.Plan
}

func (o *once) Reconcile(view *store.View, id reconcile.ID, now time.Time) (plan reconcile.Plan, err error) {
	if o.index != view.Index() {
		o.index = view.Index()
		o.plan, err = o.Virtual.Reconcile(view, id, now)
	}
	return o.plan, err
}

// newPlacedWorld is a world with the real placement.
func newPlacedWorld() (*script.World, error) {
	w, err := script.New(slices.Concat(orchestrator.Reconcilers(), allocator.Reconcilers(),
		[]reconcile.Reconciler{&once{Virtual: placement.NewVirtual("")}})...)
	if err == nil {
		w.PlacedByReconciler()
	}
	return w, err
}

func TestScriptsPlaced_Played_PrintWhatTheySay(t *testing.T) {
	script.Run(t, "testdata/placed", *update, newPlacedWorld)
}

// wanted tells whether a task is to run.
func wanted(task *swarmpb.Task) bool {
	return task.DesiredState < swarmpb.TaskState_TASK_STATE_SHUTDOWN
}

// yielding checks that only tasks of lower priority ever give way, that each has a successor in the same write, and that
// nobody else stops: nothing in its world asks for that.
type yielding struct{ before *store.View }

func (y *yielding) check(view *store.View) error {
	before := y.before
	y.before = view
	if before == nil {
		return nil
	}
	highest := map[string]int32{} // by node, of those that wait for others to give way there
	for task := range before.Unplaced() {
		if row := before.Placement(task.Id); row.GetPreemptsOn() != "" {
			mine := before.Service(task.ServiceId).GetSpec().GetPriority()
			if had, ok := highest[row.PreemptsOn]; !ok || mine > had {
				highest[row.PreemptsOn] = mine
			}
		}
	}
	for task := range view.Tasks() {
		old := before.Task(task.Id)
		if old == nil || !wanted(old) || wanted(task) || forBalance(view, task) {
			continue
		}
		mine := before.Service(task.ServiceId).GetSpec().GetPriority()
		if above, ok := highest[before.NodeID(task.Id)]; !ok || above <= mine {
			return fmt.Errorf("task %s.%d of priority %d was stopped on %s, where the highest that waits has %d (%t)",
				task.ServiceId, task.Slot, mine, before.NodeID(task.Id), above, ok)
		}
		heirs := 0
		for other := range view.TasksIn(task.ServiceId, task.Slot) {
			if wanted(other) {
				heirs++
			}
		}
		if heirs != 1 {
			return fmt.Errorf("task %s.%d gave way, and has %d successors", task.ServiceId, task.Slot, heirs)
		}
	}
	return nil
}

// forBalance tells whether a task was stopped since one is up that followed it for balance, or was to follow one so.
func forBalance(view *store.View, task *swarmpb.Task) bool {
	const balance = swarmpb.MoveReason_MOVE_REASON_REBALANCE
	for other := range view.TasksIn(task.ServiceId, task.Slot) {
		if other.Move == balance && other.Replaces == task.Id && view.Status(other.Id).Up() ||
			task.Move == balance && task.Replaces == other.Id && wanted(other) {
			return true
		}
	}
	return false
}

// TestPreemption_RandomClusters_NoEqualIsStopped fills small clusters beyond what they hold. In the end no task waits while
// lower ones have the room that it needs.
func TestPreemption_RandomClusters_NoEqualIsStopped(t *testing.T) {
	stopped := 0
	rapid.Check(t, func(t *rapid.T) {
		w, err := newPlacedWorld()
		if err != nil {
			t.Fatal(err)
		}
		w.Check = (&yielding{}).check
		do := func(words ...string) {
			if _, err := w.Do(words...); err != nil {
				t.Fatal(words, err)
			}
			if err := w.Settle(); err != nil {
				t.Fatal(words, err)
			}
		}
		do("auto", "on")
		if rapid.Bool().Draw(t, "slow stop") {
			do("image", "v1", "stops", "in", "3s")
		}
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			node := fmt.Sprint("n", i)
			do("node", node, "ready")
			do("node", node, "cpus", fmt.Sprint(rapid.IntRange(1, 6).Draw(t, "cpus")))
		}
		for i := range rapid.IntRange(1, 6).Draw(t, "services") {
			do("service", fmt.Sprint("s", i), fmt.Sprint("replicas=", rapid.IntRange(1, 4).Draw(t, "replicas")),
				fmt.Sprint("cpus=", rapid.IntRange(1, 3).Draw(t, "each")), fmt.Sprint("priority=", rapid.IntRange(-1, 2).Draw(t, "priority")))
			if rapid.Bool().Draw(t, "later") {
				if err := w.Advance(2 * time.Second); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 3).Draw(t, "leader") == 0 {
				do("relist")
			}
		}
		if err := w.Advance(time.Minute); err != nil {
			t.Fatal(err)
		}
		stopped += unjust(t, w.View())
	})
	if stopped == 0 {
		t.Error("nobody ever gave way: the test does not test what it is for")
	}
}

// unjust fails when a task waits though it would fit on a node without the lower ones there; it answers how many have given way.
func unjust(t *rapid.T, view *store.View) (gaveWay int) {
	reserves := func(task *swarmpb.Task) int64 {
		return view.Template(task.ServiceId, task.TemplateVersion).GetSpec().GetResources().GetReservations().GetNanoCpus()
	}
	priority := func(task *swarmpb.Task) int32 { return view.Service(task.ServiceId).GetSpec().GetPriority() }
	for waits := range view.Unplaced() {
		if !wanted(waits) {
			continue
		}
		for node := range view.Nodes() {
			room := view.NodeStatus(node.Id).GetDescription().GetResources().GetNanoCpus()
			for task := range view.TasksOn(node.Id) {
				if !view.Observed(task.Id).Ended() && priority(task) >= priority(waits) {
					room -= reserves(task)
				}
			}
			if room >= reserves(waits) {
				t.Fatalf("%s.%d of priority %d waits, and lower ones have its room on %s: %v",
					waits.ServiceId, waits.Slot, priority(waits), node.Id, view.Placement(waits.Id))
			}
		}
	}
	for task := range view.Tasks() {
		if !wanted(task) {
			gaveWay++
		}
	}
	return gaveWay
}

// TestPreemption_AmongUpdatesAndLostNodes_ComesToRest lets tasks give way while all else happens too. It comes to rest, only
// lower ones have given way, and in the end every service has as many slots in use as it asks for.
func TestPreemption_AmongUpdatesAndLostNodes_ComesToRest(t *testing.T) {
	gaveWay := 0
	rapid.Check(t, func(t *rapid.T) {
		w, err := newPlacedWorld()
		if err != nil {
			t.Fatal(err)
		}
		before := w.View()
		w.Check = func(view *store.View) error {
			was := before
			before = view
			for service := range view.Services() {
				for slot := range view.SlotsOf(service.Id) {
					to := was.Task(slot.GaveWayTo)
					if to == nil || was.SlotProgress(service.Id, slot.Slot).GetGaveWayTo() == slot.GaveWayTo {
						continue
					}
					gaveWay++
					if mine, its := service.Spec.Priority, was.Service(to.ServiceId).Spec.Priority; mine >= its {
						return fmt.Errorf("%s.%d of priority %d gives way to %s of priority %d", service.Id, slot.Slot, mine, to.ServiceId, its)
					}
				}
			}
			return nil
		}
		do := func(words ...string) {
			if _, err := w.Do(words...); err != nil {
				t.Fatal(words, err)
			}
			if err := w.Settle(); err != nil {
				t.Fatal(words, err)
			}
		}
		do("auto", "on")
		do("image", "v1", "pulls", "in", "1s", "stops", "in", "2s")
		do("image", "v2", "pulls", "in", "2s", "starts", "in", "1s")
		for i := range 3 {
			do("node", fmt.Sprint("n", i), "ready")
			do("node", fmt.Sprint("n", i), "cpus", "4")
		}
		for i := range 4 {
			do("service", fmt.Sprint("s", i), fmt.Sprint("replicas=", rapid.IntRange(1, 4).Draw(t, "replicas")),
				fmt.Sprint("cpus=", rapid.IntRange(1, 2).Draw(t, "each")), fmt.Sprint("priority=", rapid.IntRange(0, 2).Draw(t, "priority")),
				"order="+rapid.SampledFrom([]string{"start-first", "stop-first"}).Draw(t, "order"),
				"strategy="+rapid.SampledFrom([]string{"rolling", "in-place", "recreate", "blue-green"}).Draw(t, "strategy"), "grace=1s")
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			service, node := fmt.Sprint("s", rapid.IntRange(0, 3).Draw(t, "service")), fmt.Sprint("n", rapid.IntRange(0, 2).Draw(t, "node"))
			switch rapid.IntRange(0, 6).Draw(t, "what") {
			case 0:
				do("update", service, "image="+rapid.SampledFrom([]string{"v1", "v2"}).Draw(t, "image"))
			case 1:
				do("update", service, fmt.Sprint("priority=", rapid.IntRange(0, 2).Draw(t, "priority")))
			case 2:
				do("scale", service, fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "scale")))
			case 3:
				do("node", node, rapid.SampledFrom([]string{"down", "ready"}).Draw(t, "state"))
			case 4:
				do("node", node, rapid.SampledFrom([]string{"drain", "active"}).Draw(t, "availability"))
			case 5:
				do("relist")
			case 6:
				if err := w.Advance(time.Duration(rapid.IntRange(1, 5).Draw(t, "seconds")) * time.Second); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i := range 3 {
			do("node", fmt.Sprint("n", i), "ready")
			do("node", fmt.Sprint("n", i), "active")
		}
		if err := w.Advance(10 * time.Minute); err != nil {
			t.Fatal(err)
		}
		for service := range w.View().Services() {
			slots := map[uint64]bool{}
			for task := range w.View().TasksOf(service.Id) {
				if wanted(task) {
					slots[task.Slot] = true
				}
			}
			if want := service.Spec.GetMode().GetReplicated().Replicas; !w.View().ServiceProgress(service.Id).GetUpdate().Sets() && uint64(len(slots)) != want {
				t.Fatalf("%s has %d of %d slots in use", service.Id, len(slots), want)
			}
		}
	})
	if gaveWay == 0 {
		t.Error("nobody ever gave way: the test does not test what it is for")
	}
}
