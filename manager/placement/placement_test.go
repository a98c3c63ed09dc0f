package placement

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// checkCapacity fails when a node was given more than it has, or a host port twice.
func (w *world) checkCapacity() {
	w.tb.Helper()
	view := w.store.View()
	for n := range view.Nodes() {
		has, used := view.NodeStatus(n.GetId()).GetDescription().GetResources(), view.Usage(n.GetId())
		if used.NanoCPUs > has.GetNanoCpus() || used.MemoryBytes > has.GetMemoryBytes() {
			w.tb.Fatalf("node %s has %v and gave away %+v", n.GetId(), has, used)
		}
		slots := map[string]uint64{} // port and service -> the slot that has it: a pair is in one
		for t := range view.TasksOn(n.GetId()) {
			if view.Observed(t.GetId()).Ended() {
				continue
			}
			for _, p := range view.Template(t.GetServiceId(), t.GetTemplateVersion()).GetHostPorts() {
				key := fmt.Sprint(p.GetPublishedPort())
				slot, taken := slots[key]
				if id := t.GetSlot(); taken && slot != id {
					w.tb.Fatalf("port %s of node %s went to slots %d and %d", key, n.GetId(), slot, id)
				}
				slots[key] = t.GetSlot()
			}
		}
	}
}

func TestPlanner_AnyChangesAmidPlans_CapacityHoldsAndWhoFitsIsPlaced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			w.do("node", []string{fmt.Sprint("n", i), fmt.Sprint("cpu=", rapid.IntRange(1, 5).Draw(t, "cpu"))})
		}
		w.do("service", []string{"a", "cpu=1"})
		w.do("service", []string{"b", "cpu=2", "port=80"})
		w.planner.maxWrites = rapid.IntRange(1, 3).Draw(t, "writes")
		var underWay []*decision
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1:
				w.do("tasks", []string{rapid.SampledFrom([]string{"a", "b"}).Draw(t, "service"), fmt.Sprint(rapid.IntRange(1, 4).Draw(t, "count"))})
			case 2:
				w.onTask(t, "end")
			case 3:
				w.onTask(t, rapid.SampledFrom([]string{"stop", "remove"}).Draw(t, "what"))
			case 4:
				if rapid.Bool().Draw(t, "resized") {
					w.do("service", []string{"a", fmt.Sprint("cpu=", rapid.IntRange(1, 3).Draw(t, "cpu"))})
				}
				w.onTask(t, "replace", rapid.SampledFrom([]string{"stop-first", "start-first"}).Draw(t, "order"))
			case 5:
				id := rapid.SampledFrom([]string{"n0", "n1", "n2", "n3"}).Draw(t, "node")
				if w.store.View().Node(id) != nil {
					w.do(rapid.SampledFrom([]string{"down", "up", "pause", "active"}).Draw(t, "to"), []string{id})
				}
			case 6, 7:
				w.observe()
				if len(underWay) < 6 {
					underWay = append(underWay, w.planner.plan(w.store.View(), w.now)...)
				}
			case 8, 9:
				if len(underWay) > 0 { // in any order
					i := rapid.IntRange(0, len(underWay)-1).Draw(t, "proposal")
					_ = w.propose(underWay[i]) // a conflict is decided anew
					underWay = append(underWay[:i], underWay[i+1:]...)
				}
			}
			w.checkCapacity()
		}
		for _, d := range underWay {
			_ = w.propose(d)
		}
		w.place()
		w.checkCapacity()
		if len(w.planner.overlay) > 0 {
			w.planner.prune(w.store.View())
			if n := len(w.planner.overlay); n > 0 {
				t.Fatalf("%d decisions are still remembered", n)
			}
		}
		before := w.store.View().UnplacedCount()
		w.planner.reset(w.store.View())
		w.place()
		if after := w.store.View().UnplacedCount(); after != before {
			t.Fatalf("a fresh look placed %d of %d tasks that waited for nothing", before-after, before)
		}
	})
}

// onTask runs the command on one of the tasks that have not ended, if there is any. A task is replaced by one
// successor at a time, as the orchestrator does it.
func (w *world) onTask(t *rapid.T, command string, options ...string) {
	view := w.store.View()
	replaced := map[string]bool{}
	for task := range view.Tasks() {
		if !view.Observed(task.GetId()).Ended() {
			replaced[task.GetReplaces()] = true
		}
	}
	var ids []string
	for task := range view.Tasks() {
		switch id := task.GetId(); {
		case view.Observed(id).Ended(), command == "end" && view.NodeID(id) == "", command == "replace" && replaced[id]:
		default:
			ids = append(ids, id)
		}
	}
	if len(ids) > 0 {
		w.do(command, append([]string{rapid.SampledFrom(ids).Draw(t, "task")}, options...))
	}
}

func TestPlanner_NodeGoesDownMeanwhile_DecisionIsRefusedAndMadeAnew(t *testing.T) {
	w := newWorld(t)
	w.do("node", []string{"n1", "cpu=1"})
	w.do("service", []string{"web", "cpu=1"})
	w.do("tasks", []string{"web", "1"})
	w.observe()
	decisions := w.planner.plan(w.store.View(), w.now)
	w.do("down", []string{"n1"})
	w.do("node", []string{"n2", "cpu=1"})
	var conflict *store.ConflictError
	if err := w.propose(decisions[0]); !errors.As(err, &conflict) || conflict.Key.GetTable() != swarmpb.Table_TABLE_NODE_STATUS {
		t.Fatalf("error %v, want a conflict on the node's status", err)
	}
	w.place()
	if node := w.store.View().NodeID("web.1"); node != "n2" {
		t.Errorf("task is on %q, want n2", node)
	}
}

func TestPlanner_DecisionWithdrawn_ThoseThatItKeptOutAreTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.do("node", []string{"n1", "cpu=1"})
	w.do("service", []string{"a", "cpu=1"})
	w.do("service", []string{"b", "cpu=1"})
	w.do("tasks", []string{"a", "1"})
	w.observe()
	first := w.planner.plan(w.store.View(), w.now)
	w.do("tasks", []string{"b", "1"})
	w.observe()
	for _, d := range w.planner.plan(w.store.View(), w.now) {
		if err := w.propose(d); err != nil {
			t.Fatal(err)
		}
	}
	w.do("stop", []string{"a.1"})
	if err := w.propose(first[0]); err == nil {
		t.Fatal("a task that is to stop was placed")
	}
	w.place()
	if node := w.store.View().NodeID("b.1"); node != "n1" {
		t.Errorf("b.1 is on %q, want n1: nobody else is", node)
	}
}

func TestPlanner_ChanceWhileReasonIsUnderWay_IsNotMissed(t *testing.T) {
	w := newWorld(t)
	w.do("service", []string{"web", "cpu=1"})
	w.do("tasks", []string{"web", "1"})
	w.observe()
	decisions := w.planner.plan(w.store.View(), w.now)
	w.do("node", []string{"n1", "cpu=1"})
	w.observe()
	if more := w.planner.plan(w.store.View(), w.now); len(more) > 0 {
		t.Fatal("decided about a task whose decision is under way")
	}
	if err := w.propose(decisions[0]); err != nil {
		t.Fatal(err)
	}
	w.place()
	if node := w.store.View().NodeID("web.1"); node != "n1" {
		t.Errorf("task is on %q, want n1", node)
	}
}

func TestPlanner_StuckServiceIsRemoved_IsForgotten(t *testing.T) {
	for name, look := range map[string]func(*world){
		"seen":   (*world).observe,
		"missed": func(w *world) { w.planner.reset(w.store.View()) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, id := range []string{"web", "stays"} {
				w.do("service", []string{id, "constraint=node.labels.zone==a"})
				w.do("tasks", []string{id, "1"})
			}
			w.place()
			w.do("replace", []string{"web.1"})
			w.place() // web.1.2 waits for the node of web.1 too
			if len(w.planner.stuck) != 2 || len(w.planner.successors) != 1 {
				t.Fatalf("stuck are %v, waiting for a predecessor's node %v", w.planner.stuck, w.planner.successors)
			}
			w.do("remove", []string{"web.1.2"})
			w.do("remove", []string{"web.1"})
			w.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.ServiceKey("web")}})
			look(w)
			if _, stays := w.planner.stuck["stays"]; !stays || len(w.planner.stuck) != 1 || len(w.planner.successors) != 0 {
				t.Errorf("stuck are %v, waiting for a predecessor's node %v", w.planner.stuck, w.planner.successors)
			}
		})
	}
}

func TestPlanner_LargeAndSmallService_SmallOneDoesNotWaitForAll(t *testing.T) {
	w := newWorld(t)
	w.do("node", []string{"n1"})
	w.do("service", []string{"large"})
	w.do("service", []string{"small"})
	w.do("tasks", []string{"large", fmt.Sprint(roundTasks + 10)})
	w.do("tasks", []string{"small", "1"})
	w.observe()
	writes := 0
	for range 2 {
		for _, d := range w.planner.plan(w.store.View(), w.now) {
			if len(d.writes) > store.MaxWrites || len(d.guards) > store.MaxGuards {
				t.Fatalf("decision with %d writes and %d guards", len(d.writes), len(d.guards))
			}
			writes += len(d.writes)
		}
	}
	if w.planner.overlay["small.1"] == nil || writes != roundTasks+11 {
		t.Errorf("two rounds made %d writes; small.1 decided: %t", writes, w.planner.overlay["small.1"] != nil)
	}
}

func TestPlanner_ManyNodes_DecisionKeepsWithinTheGuards(t *testing.T) {
	w := newWorld(t)
	for i := range 600 {
		w.do("node", []string{fmt.Sprintf("n%03d", i), "cpu=1"})
	}
	w.do("service", []string{"web", "cpu=1"})
	w.do("tasks", []string{"web", "600"})
	if n := w.place(); n < 2 || w.store.View().UnplacedCount() > 0 {
		t.Errorf("%d proposals, %d tasks unplaced", n, w.store.View().UnplacedCount())
	}
}

// flaky fails proposals before or after it applies them.
type flaky struct {
	*store.LocalProposer
	mu   sync.Mutex
	errs []error // each for one proposal; nil = as it is
	late bool    // the errors come though the proposal was applied
}

func (f *flaky) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	f.mu.Lock()
	var err error
	if len(f.errs) > 0 {
		err, f.errs = f.errs[0], f.errs[1:]
	}
	f.mu.Unlock()
	if err == nil || f.late {
		if result, failed := f.LocalProposer.Propose(ctx, p); err == nil {
			return result, failed
		}
	}
	return nil, err
}

// running is a Placer at work in a bubble; stop ends it and returns its error.
func running(t *testing.T, w *world, leader store.Leader) (stop func() error) {
	p, err := New(Config{Store: w.store, Leader: leader, Logger: slog.New(slog.DiscardHandler), Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	return func() error { cancel(); return <-done }
}

func TestRun_TasksBeforeAndAfterTheStart_ArePlaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.do("node", []string{"n1"})
		w.do("service", []string{"web"})
		w.do("tasks", []string{"web", "1200"})
		stop := running(t, w, w.leader)
		synctest.Wait()
		w.do("tasks", []string{"web", "1"})
		synctest.Wait()
		if n := w.store.View().UnplacedCount(); n > 0 {
			t.Errorf("%d tasks unplaced", n)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("run ended with %v", err)
		}
	})
}

func TestRun_ProposalsFail_TriedAgainAfterAPause(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied=%t", late), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.do("node", []string{"n1", "cpu=3"})
				w.do("service", []string{"web", "cpu=1"})
				w.do("tasks", []string{"web", "5"})
				lost := errors.New("connection lost")
				stop := running(t, w, &flaky{LocalProposer: w.leader, errs: []error{lost, lost, lost}, late: late})
				time.Sleep(time.Minute) // of the bubble's time
				synctest.Wait()
				if n := w.store.View().UnplacedCount(); n != 2 {
					t.Errorf("%d tasks unplaced, want 2", n)
				}
				w.checkCapacity()
				_ = stop()
			})
		})
	}
}

func TestRun_TermOver_Ends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.do("service", []string{"web"})
		w.do("tasks", []string{"web", "1"})
		stop := running(t, w, &flaky{LocalProposer: w.leader, errs: []error{store.ErrStaleTerm}})
		synctest.Wait()
		if err := stop(); !errors.Is(err, store.ErrStaleTerm) {
			t.Errorf("run ended with %v", err)
		}
	})
}

func TestRun_FeedOverrun_LooksAtEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.do("node", []string{"n1"})
		w.do("service", []string{"web"})
		stop := running(t, w, w.leader)
		synctest.Wait()
		// More changes in one entry than the feed holds for a watcher.
		entry := &swarmpb.Entry{}
		for i := range store.MaxFeedChanges/store.MaxWrites + 2 {
			p := &swarmpb.Proposal{Term: 1, Now: 1}
			for j := range store.MaxWrites {
				slot := uint64(i*store.MaxWrites + j + 1)
				p.Writes = append(p.Writes, put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
					Id: fmt.Sprint("web.", slot), ServiceId: "web", Slot: slot, Attempt: slot, TemplateVersion: 1,
					DesiredState: swarmpb.TaskState_TASK_STATE_SHUTDOWN,
				}}}))
			}
			entry.Proposals = append(entry.Proposals, p)
		}
		entry.Proposals[7].Writes[7].GetPut().GetTask().DesiredState = swarmpb.TaskState_TASK_STATE_RUNNING
		w.store.Apply(w.store.View().Index()+1, 1, entry)
		synctest.Wait()
		if n := w.store.View().UnplacedCount(); n > 0 {
			t.Errorf("%d tasks unplaced", n)
		}
		_ = stop()
	})
}

func TestNew_WithoutNeeds_SaysWhich(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no store: no error")
	}
	if _, err := New(Config{Store: store.New(), Clock: time.Now}); err == nil {
		t.Error("no leader: no error")
	}
}
