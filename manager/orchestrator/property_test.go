package orchestrator_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// watcher checks, after every write, what must hold at every moment.
type watcher struct {
	// seen is task ID -> slot and attempt, for as long as the world lasts.
	seen map[string]string
	// startFirst: the service has been updated start-first, so two tasks of a slot may run.
	startFirst bool
	// now is the time; started are the tasks that have been seen past READY.
	now     func() time.Time
	started map[string]bool
}

// exclusive checks that a task did not start while another one of its slot may still run on a node that is down, and
// would stop it by itself.
func (w *watcher) exclusive(view *store.View, task *swarmpb.Task) error {
	if state := view.Observed(task.Id); state <= swarmpb.TaskState_TASK_STATE_READY || state.Ended() || w.started[task.Id] {
		return nil
	}
	w.started[task.Id] = true
	for other := range view.TasksIn(task.ServiceId, task.Slot) {
		status := view.NodeStatus(view.NodeID(other.Id))
		wait, ok := view.Template(other.ServiceId, other.TemplateVersion).GetSpec().DisconnectWait()
		if !ok || !w.started[other.Id] || other.Id == task.Id || view.Observed(other.Id).Ended() ||
			status.GetState() != swarmpb.NodeState_NODE_STATE_DOWN {
			continue
		}
		if end := time.Unix(0, status.GetSince()).Add(wait); w.now().Before(end) {
			return fmt.Errorf("task %d#%d started %s before #%d must have stopped", task.Slot, task.Attempt, end.Sub(w.now()), other.Attempt)
		}
	}
	return nil
}

func (w *watcher) check(view *store.View) error {
	running := map[string]string{}
	for task := range view.Tasks() {
		slot := fmt.Sprintf("%s.%d", task.ServiceId, task.Slot)
		is := fmt.Sprintf("%s#%d v%d", slot, task.Attempt, task.TemplateVersion)
		if was, ok := w.seen[task.Id]; ok && was != is {
			return fmt.Errorf("ID %s was task %s and is now %s", task.Id, was, is)
		}
		w.seen[task.Id] = is
		if w.now != nil && !w.startFirst {
			if err := w.exclusive(view, task); err != nil {
				return err
			}
		}
		if w.startFirst || task.DesiredState != swarmpb.TaskState_TASK_STATE_RUNNING {
			continue
		}
		if state := view.Observed(task.Id); state > swarmpb.TaskState_TASK_STATE_READY && !state.Ended() {
			if other, ok := running[slot]; ok {
				return fmt.Errorf("tasks %s and %s of one slot are both past READY and meant to run", other, is)
			}
			running[slot] = is
		}
	}
	return nil
}

// settled checks what must hold once everything has come to rest and nothing is broken: as many slots as asked for,
// one task each that runs, of the template asked for.
func settled(view *store.View, name string) error {
	service := view.Service(name)
	slots := map[uint64]int{}
	for task := range view.TasksOf(name) {
		if task.DesiredState > swarmpb.TaskState_TASK_STATE_RUNNING {
			if state := view.Observed(task.Id); !state.Ended() && view.NodeStatus(view.NodeID(task.Id)).GetState() == swarmpb.NodeState_NODE_STATE_READY {
				return fmt.Errorf("task %d#%d is told to stop and is %s", task.Slot, task.Attempt, state.Name())
			}
			continue
		}
		slots[task.Slot]++
		state := view.Observed(task.Id)
		if task.DesiredState != swarmpb.TaskState_TASK_STATE_RUNNING || state != swarmpb.TaskState_TASK_STATE_RUNNING {
			return fmt.Errorf("task %d#%d is meant to be %s and is %s", task.Slot, task.Attempt, task.DesiredState.Name(), state.Name())
		}
		want := service.TemplateVersion
		if update := view.ServiceProgress(name).GetUpdate(); update.GetFailedTemplateVersion() == want {
			want = update.TemplateVersion
		}
		paused := view.ServiceProgress(name).GetUpdate().GetState() == swarmpb.UpdateState_UPDATE_STATE_PAUSED ||
			view.ServiceProgress(name).GetUpdate().GetState() == swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED
		if task.TemplateVersion != want && !paused {
			return fmt.Errorf("task %d#%d is of template %d, want %d", task.Slot, task.Attempt, task.TemplateVersion, want)
		}
	}
	if want := service.Spec.GetMode().GetReplicated().Replicas; uint64(len(slots)) != want {
		return fmt.Errorf("%d slots are in use, %d are asked for", len(slots), want)
	}
	for slot, n := range slots {
		if n != 1 {
			return fmt.Errorf("slot %d has %d live tasks", slot, n)
		}
	}
	return nil
}

const propertyNodes = 3

// newest is the newest live task of a slot, empty when there is none.
func newest(view *store.View, service string, slot uint64) (id string) {
	for task := range view.TasksIn(service, slot) {
		if view.NodeID(task.Id) != "" {
			id = task.Id
		}
	}
	return id
}

func TestRandomEvents_ThenQuiet_ServiceIsAsAskedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, err := newWorld()
		must(t, err)
		guard := &watcher{seen: map[string]string{}, now: w.Now, started: map[string]bool{}}
		w.Check = guard.check
		do(t, w, "auto", "on")
		for i := range propertyNodes {
			do(t, w, "node", nodeName(i), "ready")
		}
		do(t, w, "service", "web", "replicas="+fmt.Sprint(rapid.IntRange(0, 6).Draw(t, "replicas")),
			"stop-after-disconnect="+rapid.SampledFrom([]string{"0s", "20s"}).Draw(t, "disconnect"),
			"failure-action="+rapid.SampledFrom([]string{"pause", "continue", "rollback"}).Draw(t, "action"),
			"parallelism="+fmt.Sprint(rapid.IntRange(0, 3).Draw(t, "parallelism")))
		image := 1
		for range rapid.IntRange(1, 25).Draw(t, "events") {
			event(t, w, guard, &image)
		}
		// The faults end: every node is back, every image runs, whatever was wrong is mended.
		for i := range propertyNodes {
			do(t, w, "node", nodeName(i), "ready")
			do(t, w, "node", nodeName(i), "active")
		}
		for i := range image + 1 {
			do(t, w, "image", fmt.Sprintf("v%d", i), "runs")
		}
		do(t, w, "auto", "on")
		must(t, w.Advance(time.Hour))
		if err := settled(w.View(), "web"); err != nil {
			table, _ := w.Do("tasks")
			status, _ := w.Do("status", "web")
			t.Fatalf("%v\n%s%s", err, table, status)
		}
		before, _ := w.Do("tasks")
		w.Relist()
		must(t, w.Advance(time.Hour))
		if after, _ := w.Do("tasks"); after != before {
			t.Fatalf("a new leader changed what was settled:\n%s\nand then\n%s", before, after)
		}
		do(t, w, "remove", "web")
		if w.View().Service("web") != nil || w.View().TaskCount() != 0 {
			t.Fatalf("a removed service is still there, with %d tasks", w.View().TaskCount())
		}
	})
}

// event lets one thing happen to the cluster.
func event(t *rapid.T, w *script.World, guard *watcher, image *int) {
	node := nodeName(rapid.IntRange(0, propertyNodes-1).Draw(t, "node"))
	switch rapid.IntRange(0, 11).Draw(t, "event") {
	case 0:
		do(t, w, "scale", "web", fmt.Sprint(rapid.IntRange(0, 6).Draw(t, "replicas")))
	case 1:
		*image++
		name := fmt.Sprintf("v%d", *image)
		acts := rapid.SampledFrom([][]string{{"runs"}, {"rejected"}, {"failed", "after", "2s"}, {"complete", "after", "9s"}}).Draw(t, "acts")
		do(t, w, append([]string{"image", name}, acts...)...)
		do(t, w, "update", "web", "image="+name)
	case 2:
		do(t, w, "force", "web")
	case 3:
		if w.View().Service("web").PreviousSpec != nil {
			do(t, w, "rollback", "web")
		}
	case 4:
		do(t, w, "node", node, "down")
	case 5:
		do(t, w, "node", node, "ready")
	case 6:
		do(t, w, "node", node, rapid.SampledFrom([]string{"active", "pause", "drain"}).Draw(t, "availability"))
	case 7:
		slot := uint64(rapid.IntRange(1, 6).Draw(t, "slot"))
		state := rapid.SampledFrom([]swarmpb.TaskState{swarmpb.TaskState_TASK_STATE_FAILED, swarmpb.TaskState_TASK_STATE_COMPLETE,
			swarmpb.TaskState_TASK_STATE_REJECTED, swarmpb.TaskState_TASK_STATE_SHUTDOWN}).Draw(t, "state")
		if id := newest(w.View(), "web", slot); id != "" {
			must(t, w.Report(id, state))
			must(t, w.Settle())
		}
	case 8:
		do(t, w, "auto", rapid.SampledFrom([]string{"on", "off"}).Draw(t, "auto"))
	case 9:
		must(t, w.Advance(time.Duration(rapid.IntRange(1, 90_000).Draw(t, "ms"))*time.Millisecond))
	case 10:
		w.Relist()
		must(t, w.Settle())
	case 11:
		order := rapid.SampledFrom([]string{"stop-first", "start-first"}).Draw(t, "order")
		guard.startFirst = guard.startFirst || order == "start-first"
		do(t, w, "update", "web", "order="+order)
	}
}

func nodeName(i int) string { return fmt.Sprintf("n%d", i) }

// do runs a script's command and lets everything settle.
func do(t *rapid.T, w *script.World, words ...string) {
	if _, err := w.Do(words...); err != nil {
		t.Fatalf("%v: %v", words, err)
	}
	must(t, w.Settle())
}

func must(t *rapid.T, err error) {
	if err != nil {
		t.Fatal(err)
	}
}
