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
	// before is the state before the last write.
	before *store.View
}

// rollouts checks what an update may never do.
func (w *watcher) rollouts(view *store.View) error {
	before := w.before
	w.before = view
	if before == nil {
		return nil
	}
	for service := range view.Services() {
		update, was := view.ServiceProgress(service.Id).GetUpdate(), before.ServiceProgress(service.Id).GetUpdate()
		if err := heldBack(before, view, service.Id, update); err != nil {
			return err
		}
		if !update.Sets() {
			continue
		}
		want := service.Spec.GetMode().GetReplicated().Replicas
		// Traffic goes to a new set only when its tasks are up, and to one that is there already when it is whole.
		if share := update.Share; was.GetTemplateVersion() == update.TemplateVersion && share > was.GetShare() &&
			update.Phase != swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING {
			if up := live(view, service.Id, update.TemplateVersion, true, true); up < update.Replicas(want) {
				return fmt.Errorf("the new set has %d tasks up and gets %d of the traffic", up, share)
			}
		}
		if update.StableEnds && !was.GetStableEnds() {
			if n := live(view, service.Id, update.TemplateVersion, true, false); n < want {
				return fmt.Errorf("the other set goes, and this one has %d of %d tasks", n, want)
			}
		}
		// The old set is left alone as long as it may be gone back to.
		if was.GetStartedAt() == update.StartedAt && was.TemplateVersion == update.TemplateVersion && !update.StableEnds && service.TemplateVersion == update.TemplateVersion {
			n, had := live(view, service.Id, update.TemplateVersion, false, false), live(before, service.Id, update.TemplateVersion, false, false)
			if n < had && n < want {
				return fmt.Errorf("the old set had %d of %d tasks and has %d", had, want, n)
			}
		}
	}
	return nil
}

// heldBack: no task of a recreate's goal is let start before all others have stopped.
func heldBack(before, view *store.View, service string, update *swarmpb.UpdateStatus) error {
	was := before.ServiceProgress(service).GetUpdate()
	if was.GetStrategy() != swarmpb.UpdateStrategy_UPDATE_STRATEGY_RECREATE || was.GetState() != swarmpb.UpdateState_UPDATE_STATE_UPDATING ||
		was.GetStartedAt() != update.GetStartedAt() || was.State != update.State ||
		was.Phase != swarmpb.RolloutPhase_ROLLOUT_PHASE_PREPARING && was.Phase != swarmpb.RolloutPhase_ROLLOUT_PHASE_ENDING {
		return nil
	}
	for task := range view.TasksOf(service) {
		old := before.Task(task.Id)
		if task.TemplateVersion == was.TemplateVersion && task.DesiredState == swarmpb.TaskState_TASK_STATE_RUNNING &&
			(old == nil || old.DesiredState < task.DesiredState) {
			return fmt.Errorf("task %d#%d of the new version is let start while the old one is there", task.Slot, task.Attempt)
		}
	}
	return nil
}

// live counts the slots whose newest task that is meant to run is of a template, or is not; up: and that are up.
func live(view *store.View, service string, template uint64, of, up bool) (n uint64) {
	newest := map[uint64]*swarmpb.Task{}
	for task := range view.TasksOf(service) {
		if task.DesiredState <= swarmpb.TaskState_TASK_STATE_RUNNING {
			newest[task.Slot] = task
		}
	}
	for _, task := range newest {
		if (task.TemplateVersion == template) == of && (!up || view.Status(task.Id).Up()) {
			n++
		}
	}
	return n
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
	if err := w.rollouts(view); err != nil {
		return err
	}
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
			"strategy="+rapid.SampledFrom(strategies).Draw(t, "strategy"), "steps=20%:5s,50%:5s:manual", "grace=10s",
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
		toTheEnd(t, w)
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

// toTheEnd has the service's user bring its update to an end: what waits goes on, and is ready.
func toTheEnd(t *rapid.T, w *script.World) {
	for range 5 {
		for task := range w.View().TasksOf("web") {
			if status := w.View().Status(task.Id); status.GetState() == swarmpb.TaskState_TASK_STATE_RUNNING && !status.Up() {
				must(t, w.Ready(task.Id, true))
			}
		}
		do(t, w, "resume", "web")
		must(t, w.Advance(10*time.Minute))
		do(t, w, "promote-fully", "web")
		must(t, w.Advance(10*time.Minute))
		if !w.View().ServiceProgress("web").GetUpdate().Underway() {
			return
		}
	}
	status, _ := w.Do("status", "web")
	table, _ := w.Do("tasks")
	t.Fatalf("the update does not come to an end:\n%s%s", status, table)
}

var strategies = []string{"rolling", "in-place", "recreate", "blue-green", "canary"}

// rolloutEvent lets a user or a probe do something about an update.
func rolloutEvent(t *rapid.T, w *script.World) {
	switch rapid.IntRange(0, 4).Draw(t, "rollout event") {
	case 0:
		do(t, w, "update", "web", "strategy="+rapid.SampledFrom(strategies).Draw(t, "strategy"),
			"rollback-strategy="+rapid.SampledFrom(strategies[:3]).Draw(t, "rollback strategy"))
	case 1:
		do(t, w, rapid.SampledFrom([]string{"pause", "resume", "promote", "promote-fully"}).Draw(t, "command"), "web")
	case 2:
		do(t, w, "metric", "web", rapid.SampledFrom([]string{"fine", "failing"}).Draw(t, "metric"))
	case 3:
		slot := uint64(rapid.IntRange(1, 8).Draw(t, "slot"))
		if id := newest(w.View(), "web", slot); id != "" && w.View().Observed(id) == swarmpb.TaskState_TASK_STATE_RUNNING {
			must(t, w.Ready(id, rapid.Bool().Draw(t, "ready")))
			must(t, w.Settle())
		}
	case 4:
		if w.View().Service("web").PreviousSpec != nil {
			do(t, w, "abort", "web")
		}
	}
}

// event lets one thing happen to the cluster.
func event(t *rapid.T, w *script.World, guard *watcher, image *int) {
	node := nodeName(rapid.IntRange(0, propertyNodes-1).Draw(t, "node"))
	switch rapid.IntRange(0, 15).Draw(t, "event") {
	case 12, 13, 14, 15:
		rolloutEvent(t, w)
	case 0:
		do(t, w, "scale", "web", fmt.Sprint(rapid.IntRange(0, 6).Draw(t, "replicas")))
	case 1:
		*image++
		name := fmt.Sprintf("v%d", *image)
		acts := rapid.SampledFrom([][]string{{"runs"}, {"rejected"}, {"failed", "after", "2s"}, {"complete", "after", "9s"},
			{"unready", "after", "4s"}, {"pulls", "in", "3s", "starts", "in", "2s", "stops", "in", "2s"}}).Draw(t, "acts")
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
func do(t rapid.TB, w *script.World, words ...string) {
	if _, err := w.Do(words...); err != nil {
		t.Fatalf("%v: %v", words, err)
	}
	must(t, w.Settle())
}

func must(t rapid.TB, err error) {
	if err != nil {
		t.Fatal(err)
	}
}
