package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

func TestAgent_PullHangs_OthersGoOnAndItIsGivenUp(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, name string) error {
			if op == runtimetest.OpPull && name == "slow:latest" {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
		h.manager.assignSpec("slow", stateRunning, &swarmpb.ContainerSpec{Image: "slow:latest"})
		h.manager.assign("quick", stateRunning)
		h.settle(time.Minute)
		h.wantRunning("quick")
		h.settle(30 * time.Minute)
		h.wantState("slow", stateRejected, "image slow:latest: no progress for 5 minutes (tried for 5m0s)")
	})
}

func TestAgent_PullOfOneImageByMany_IsOnePull(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, _ string) error {
			if op == runtimetest.OpPull && !sleep(ctx, 10*time.Second) {
				return ctx.Err()
			}
			return nil
		})
		for i := range 20 {
			h.manager.assign(fmt.Sprint("t", i), stateRunning)
		}
		h.settle(5 * time.Second)
		h.manager.desire("t0", stateShutdown) // one who leaves does not end the pull of the others
		h.settle(10 * time.Second)
		if n := h.runtime.Calls(runtimetest.OpPull); n != 1 || len(h.runtime.Running()) != 19 {
			t.Errorf("%d pulls, %d containers; want 1 and 19", n, len(h.runtime.Running()))
		}
		h.wantState("t0", stateShutdown, "")
	})
}

func TestAgent_PullFails_TriedAgainWhileThereIsHope(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.runtime.SetBefore(func(_ context.Context, op runtimetest.Op, name string) error {
			switch {
			case op != runtimetest.OpPull:
				return nil
			case strings.HasPrefix(name, "missing"):
				return fmt.Errorf("pull %s: %w", name, runtime.ErrNotFound)
			}
			return fmt.Errorf("pull %s: %w", name, errors.New("registry\nis down"))
		})
		h.manager.assignSpec("missing", stateRunning, &swarmpb.ContainerSpec{Image: "missing:v1"})
		h.manager.assignSpec("hopeless", stateRunning, &swarmpb.ContainerSpec{Image: "app:v1"})
		h.settle(time.Minute)
		h.wantState("missing", stateRejected, "image not found: missing:v1; check the name and tag, load it with `swarmctl image load` on this host, or name a plain-HTTP registry with `swarmd --insecure-registry`")
		preparing := swarmpb.TaskState_TASK_STATE_PREPARING
		if s := h.wantState("hopeless", preparing, "image app:v1: registry is down"); s.GetMessage() != "image app:v1: registry is down; trying again" {
			t.Errorf("status is %v", s)
		}
		h.settle(10 * time.Minute)
		h.wantState("hopeless", stateRejected, "image app:v1: registry is down (tried for 5m0s)")
		h.manager.assignSpec("later", stateRunning, &swarmpb.ContainerSpec{Image: "app:v2"})
		h.settle(time.Minute)
		h.wantState("later", preparing, "image app:v2: registry is down")
		h.runtime.SetBefore(nil)
		h.settle(time.Minute)
		h.wantRunning("later")
		h.wantState("later", stateRunning, "")
	})
}

func TestAgent_StartFails_RejectedOrTriedAgainThenFailed(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		gone := true
		h.runtime.SetBefore(func(_ context.Context, op runtimetest.Op, name string) error {
			switch {
			case op == runtimetest.OpStart && name == "invalid":
				return &runtime.ContainerError{Doing: "start", ID: name, Err: fmt.Errorf("exec /nothing: no such file: %w", runtime.ErrInvalid)}
			case op == runtimetest.OpStart && name == "gone" && gone:
				gone = false // another try makes it anew
				return fmt.Errorf("container %s: %w", name, runtime.ErrNotFound)
			case op == runtimetest.OpStart && name == "broken":
				return errors.New("shim broke")
			case op == runtimetest.OpStart && name == "panic":
				panic("unexpected")
			}
			return nil
		})
		for _, id := range []string{"invalid", "broken", "panic", "gone", "good"} {
			h.manager.assign(id, stateRunning)
		}
		h.settle(2 * time.Minute)
		h.wantState("invalid", stateRejected, "exec /nothing: no such file: invalid")
		h.wantState("broken", stateFailed, "shim broke")
		h.wantState("panic", stateFailed, "internal error: unexpected")
		h.wantContainers("gone", "good")
		h.wantRunning("gone", "good")
	})
}

func TestAgent_ShutdownBetweenTriesToStart_Ends(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.runtime.SetBefore(func(_ context.Context, op runtimetest.Op, _ string) error {
			if op == runtimetest.OpStart || op == runtimetest.OpStop {
				return errors.New("it has not been started")
			}
			return nil
		})
		h.manager.assign("a", stateRunning)
		h.settle(2 * time.Second)
		h.wantContainers("a")
		h.manager.desire("a", stateShutdown)
		h.settle(time.Second)
		h.wantState("a", stateShutdown, "")
		h.wantContainers()
	})
}

func TestAgent_StopSignalUnknown_StopsAllTheSame(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assignSpec("a", stateRunning, &swarmpb.ContainerSpec{Image: "nginx", StopSignal: "SIGNONSENSE"})
		h.settle(time.Second)
		h.manager.desire("a", stateShutdown)
		h.settle(2 * time.Second)
		h.wantState("a", stateShutdown, "")
	})
}

func TestAgent_ImageRemovedBeforeStart_IsFetchedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateReady)
		h.settle(time.Second)
		_, err := h.runtime.RemoveImage(t.Context(), "nginx:alpine", false)
		must(t, err)
		h.manager.desire("a", stateRunning)
		h.settle(time.Second)
		h.wantRunning("a")
	})
}

func TestAgent_ManyStartsAndRemovals_AreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		var mu sync.Mutex
		now, most := map[runtimetest.Op]int{}, map[runtimetest.Op]int{}
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, _ string) error {
			mu.Lock()
			now[op]++
			most[op] = max(most[op], now[op])
			mu.Unlock()
			if op == runtimetest.OpStart || op == runtimetest.OpRemove {
				time.Sleep(time.Second)
			}
			mu.Lock()
			now[op]--
			mu.Unlock()
			return nil
		})
		var changes []*swarmpb.AssignmentChange
		h.manager.assign("t0", stateRunning)
		for i := range 40 {
			task := swarmpb.Clone(h.manager.tasks["t0"])
			task.Id = fmt.Sprint("t", i)
			changes = append(changes, taskChange(task))
		}
		h.manager.change(changes...)
		h.settle(20 * time.Second)
		if len(h.runtime.Running()) != 40 || most[runtimetest.OpStart] != 4 {
			t.Errorf("%d run; at most %d starts at once, want 4", len(h.runtime.Running()), most[runtimetest.OpStart])
		}
		for i := range 40 {
			h.manager.remove(fmt.Sprint("t", i))
		}
		h.settle(30 * time.Second)
		h.wantContainers()
		if most[runtimetest.OpRemove] != 4 {
			t.Errorf("at most %d removals at once, want 4", most[runtimetest.OpRemove])
		}
	})
}

func TestAgent_ManyStatuses_AreCoalescedInBoundedCalls(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("t0", stateReady)
		var changes []*swarmpb.AssignmentChange
		for i := range 1200 {
			task := swarmpb.Clone(h.manager.tasks["t0"])
			task.Id = fmt.Sprint("t", i)
			changes = append(changes, taskChange(task))
		}
		h.settle(time.Second)
		h.manager.mu.Lock()
		h.manager.calls = nil
		h.manager.mu.Unlock()
		h.manager.change(changes...)
		h.settle(5 * time.Second)
		h.manager.mu.Lock()
		defer h.manager.mu.Unlock()
		total := 0
		for _, n := range h.manager.calls {
			total += n
			if n > maxStatuses {
				t.Errorf("a call had %d statuses", n)
			}
		}
		if len(h.manager.statuses) != 1200 || total > 2000 {
			t.Errorf("%d tasks reported with %d statuses in %d calls", len(h.manager.statuses), total, len(h.manager.calls))
		}
	})
}

func TestAgent_StateChangesWhileItIsReported_TheNewerIsReportedToo(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.mu.Lock()
		h.manager.slow = 3 * time.Second
		h.manager.mu.Unlock()
		h.manager.assign("a", stateRunning, "exit", "3", "2s")
		h.settle(20 * time.Second)
		h.wantState("a", stateFailed, "exit code 3")
	})
}

func TestAgent_OneBadStatus_DoesNotHoldTheOthersUp(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.mu.Lock()
		h.manager.bad = "b"
		h.manager.mu.Unlock()
		for _, id := range []string{"a", "b", "c", "d"} {
			h.manager.assign(id, stateRunning)
		}
		h.settle(10 * time.Second)
		for _, id := range []string{"a", "c", "d"} {
			h.wantState(id, stateRunning, "")
		}
	})
}

func TestAgent_LocalDatabaseFails_ContainersGoOnAndItIsSaid(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.settle(time.Second)
		bolt := h.agent.db.bolt
		must(t, bolt.Close()) // every write fails from now on
		h.manager.assign("b", stateRunning, "exit", "3", "1s")
		h.settle(10 * time.Second)
		h.wantRunning("a")
		h.wantState("b", stateFailed, "exit code 3")
		h.wantContainers("a", "b") // the container is the only lasting witness of its end
		if p := h.agent.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "local database: ") {
			t.Errorf("problems are %q", p)
		}
		must(t, h.agent.db.tryOpen())
		h.settle(10 * time.Second)
		h.wantContainers("a")
		if p := h.agent.Problems(); len(p) != 0 {
			t.Errorf("problems are %q", p)
		}
	})
}

func TestAgent_LocalDatabaseBroken_IsMovedAside(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.settle(time.Second)
		h.stop()
		must(t, os.WriteFile(h.dir+"/worker.db", []byte(strings.Repeat("not a database", 1000)), 0o600))
		h.start()
		h.settle(5 * time.Second)
		h.wantRunning("a")
		if h.runtime.Starts("a") != 1 {
			t.Error("it was started again")
		}
		if _, err := os.Stat(h.dir + "/worker.db.broken"); err != nil {
			t.Error(err)
		}
	})
}

// An error of the system, such as a full disk, says nothing against the file.
func TestDB_SystemRefusesToOpenIt_IsNotTakenForBroken(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/worker.db", 0o700)) // stands for a file that cannot be opened now
	d := newDB(dir, slog.New(slog.DiscardHandler), newProblems())
	must(t, d.open())
	if p := d.issues.list(); len(p) != 1 || !strings.HasPrefix(p[0], "local database: ") {
		t.Errorf("problems are %q", p)
	}
	if _, err := os.Stat(dir + "/worker.db"); err != nil {
		t.Errorf("it was moved aside: %v", err)
	}
}

func TestAgent_RuntimeDoesNotAnswer_WaitsForIt(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.settle(time.Second)
		h.stop()
		h.runtime.SetBefore(func(context.Context, runtimetest.Op, string) error { return errors.New("connection refused") })
		h.start()
		h.settle(time.Minute)
		if p := h.agent.Problems(); len(p) != 1 || p[0] != "container runtime: connection refused" {
			t.Errorf("problems are %q", p)
		}
		if h.agent.ConnectedTo() == "" {
			t.Error("no session without a runtime: the node would be called down")
		}
		h.runtime.SetBefore(nil)
		h.manager.assign("b", stateRunning)
		h.settle(time.Minute)
		h.wantRunning("a", "b")
		if h.runtime.Starts("a") != 1 {
			t.Error("it was started again")
		}
	})
}

func TestAgent_RuntimeGoesAwayWhileWatching_ExitIsStillSeen(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.runtime.SetBefore(func(_ context.Context, op runtimetest.Op, _ string) error {
			if op == runtimetest.OpWait {
				return errors.New("connection reset")
			}
			return nil
		})
		h.manager.assign("a", stateRunning)
		h.settle(10 * time.Second)
		must(t, h.runtime.Exit("a", 5))
		h.runtime.SetBefore(nil)
		h.settle(2 * time.Second)
		h.wantState("a", stateFailed, "exit code 5")
	})
}

func TestAgent_NodeRemoved_IsToldOnceAndKeepsContainers_AndWhenItIsOver(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.settle(time.Second)
		h.cut(true)
		h.manager.mu.Lock()
		h.manager.refuse = wire.Errorf(wire.CodePermissionDenied, "node was removed")
		h.manager.mu.Unlock()
		h.cut(false)
		h.settle(5 * time.Minute)
		if len(h.refused) != 1 || !strings.Contains(h.refused[0].Error(), "node was removed") {
			t.Errorf("told %v", h.refused)
		}
		h.wantRunning("a")
		h.manager.mu.Lock()
		h.manager.refuse = nil
		h.manager.mu.Unlock()
		h.settle(5 * time.Minute)
		if len(h.refused) != 2 || h.refused[1] != nil {
			t.Errorf("taken again, and told %v", h.refused)
		}
	})
}

func TestAgent_ManagerLagsBehind_NothingIsStopped(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("old", stateRunning)
		h.settle(time.Second)
		h.manager.assign("new", stateRunning)
		h.settle(time.Second)
		h.cut(true)
		rewind := func(task *swarmpb.AssignedTask, by int) {
			h.manager.mu.Lock()
			defer h.manager.mu.Unlock()
			h.manager.version -= uint64(by)
			h.manager.log = h.manager.log[:h.manager.version]
			if task != nil {
				delete(h.manager.tasks, task.Id)
			}
		}
		task := h.manager.tasks["new"]
		rewind(task, 2)
		h.cut(false)
		h.settle(5 * time.Second)
		h.wantRunning("old", "new")
		h.manager.change(templateChange(h.manager.template[templateKey{"service-of-new", 1}]), taskChange(task)) // it has caught up
		h.settle(10 * time.Second)
		h.wantRunning("old", "new")
		if h.runtime.Starts("new") != 1 {
			t.Error("it was started again")
		}
		h.cut(true)
		rewind(task, 2) // and now it is lost for good
		h.cut(false)
		h.settle(40 * time.Second)
		h.wantRunning("old")
	})
}

func TestAgent_ManagersLearned_AreUsedAfterARestart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.mu.Lock()
		h.manager.peers = []*swarmpb.ManagerPeer{{NodeId: "m2", Address: "192.0.2.2:2377", Weight: 3}}
		h.manager.mu.Unlock()
		h.restart()
		h.restart()
		if got := h.agent.ConnectedTo(); got != "192.0.2.2:2377" {
			t.Errorf("connected to %q", got)
		}
	})
}

func TestAgent_HostileAssignments_DoNoHarm(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.change(
			taskChange(&swarmpb.AssignedTask{Id: "../../etc", DesiredState: stateRunning}),
			taskChange(&swarmpb.AssignedTask{}),
			taskChange(&swarmpb.AssignedTask{Id: "orphan", ServiceName: "web", DesiredState: stateRunning, TemplateVersion: 4}),
			taskChange(&swarmpb.AssignedTask{Id: "odd", DesiredState: 77, ObservedState: -5}),
			templateChange(&swarmpb.AssignedTemplate{ServiceId: "s", Version: 1}),
			taskChange(&swarmpb.AssignedTask{Id: "empty", ServiceId: "s", TemplateVersion: 1, DesiredState: stateRunning}),
			templateChange(&swarmpb.AssignedTemplate{}),
			&swarmpb.AssignmentChange{},
		)
		h.manager.assign("good", stateRunning)
		h.settle(5 * time.Second)
		h.wantContainers("good")
		h.wantState("orphan", stateRejected, "the managers sent no template 4 of service web")
		h.wantState("empty", stateRejected, "the service's template 1 names no image")
	})
}

func TestAgent_EndedTasksBeyondTheHistory_AreForgotten(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.stop()
		h.limits.History = 3
		h.start()
		for i := range 6 {
			h.manager.assign(fmt.Sprint("t", i), stateRunning, "print", "hello")
			h.settle(time.Second)
		}
		h.manager.assign("last", stateRunning)
		h.settle(time.Second)
		for i := range 6 {
			if got, want := h.runtime.Logs(fmt.Sprint("t", i)) != "", i >= 3; got != want {
				t.Errorf("logs of t%d are there: %v, want %v", i, got, want)
			}
		}
	})
}

// A database on a full disk is read all the same: opening it writes nothing.
func TestDB_Opened_WritesNothingBeforeThereIsSomethingNew(t *testing.T) {
	d := newDB(t.TempDir(), slog.New(slog.DiscardHandler), newProblems())
	must(t, d.open())
	d.set(bucketTasks, "a", &swarmpb.AssignedTask{Id: "a"})
	d.close()
	before, err := os.ReadFile(d.path)
	must(t, err)
	must(t, d.open())
	if k := d.load(); k.tasks["a"] == nil || k.unread {
		t.Errorf("it holds %v", k.tasks)
	}
	d.close()
	after, err := os.ReadFile(d.path)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the file is another one after it was opened and closed")
	}
}
