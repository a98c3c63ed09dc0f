package worker

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/health"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// Managers keep the newest of what they were told of a task's health: what is not known of a container that was started again has to be newer
// than how the former one was.
func TestHealth_StartedAgainWithoutManagers_NotReadyIsNewerThanReady(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		slow := probe("check")
		slow.StartPeriod = durationpb.New(time.Minute)
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: slow})
		h.settle(2 * time.Second)
		before := h.manager.status("a").GetHealth().GetAt()
		h.cut(true)
		h.settle(5 * time.Second)
		in.set("check", 1, "loading")
		must(t, h.runtime.Exit("a", 1))
		h.settle(20 * time.Second)
		h.cut(false)
		h.settle(10 * time.Second) // within its start period, in which failures do not count
		h.wantRunning("a")
		h.wantHealth("a", healthStarting, true)
		if after := h.manager.status("a").GetHealth().GetAt(); after <= before {
			t.Errorf("its health is of %d, before that of the former container, %d", after, before)
		}
	})
}

func TestHealth_HostsClockWasSetBack_ChangesAreNewerAllTheSame(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		insideOf(h)
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("check")})
		h.settle(2 * time.Second)
		f := h.agent.fleet
		f.mu.Lock()
		task := f.tasks["a"]
		before := task.status.GetHealth().GetAt()
		f.mu.Unlock()
		f.noteHealth(task, health.State{Live: healthHealthy, WasReady: true, Output: "busy", At: time.Unix(0, before).Add(-time.Hour)})
		h.settle(time.Second)
		h.wantHealth("a", healthHealthy, true)
		if after := h.manager.status("a").GetHealth().GetAt(); after <= before {
			t.Errorf("the newer health is of %d, before %d", after, before)
		}
	})
}

// forgetStatus leaves the database as one whose last writes were lost.
func (h *host) forgetStatus(t *testing.T, status *swarmpb.TaskStatus) {
	t.Helper()
	h.stop()
	d := newDB(h.dir, slog.New(slog.DiscardHandler), newProblems())
	must(t, d.open())
	d.set(bucketStatuses, status.GetTaskId(), status)
	d.close()
}

func TestHealth_RecordOfTheStartIsLost_NotRunningBeforeItIsReady(t *testing.T) {
	for name, state := range map[string]swarmpb.TaskState{"ready": stateReady, "starting": stateStarting} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *host) {
				insideOf(h).set("check", 1, "not yet")
				h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("check")})
				h.settle(2 * time.Second)
				h.forgetStatus(t, &swarmpb.TaskStatus{TaskId: "a", State: state, At: time.Now().UnixNano()})
				h.start()
				h.settle(2 * time.Second)
				h.wantState("a", stateStarting, "")
				h.wantHealth("a", healthStarting, true)
			})
		})
	}
}

func TestHealth_OfTheImage_RecordOfTheStartIsLost_NotRunningBeforeItIsReady(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		insideOf(h).set("check", 1, "")
		image := runtimetest.FakeImage{Healthcheck: &runtime.Healthcheck{Test: []string{"CMD", "check"}, Interval: time.Second, StartPeriod: time.Minute}}
		must(t, h.runtime.AddImage("checked:v1", image))
		h.manager.assignSpec("a", stateRunning, &swarmpb.ContainerSpec{Image: "checked:v1", PullPolicy: swarmpb.PullPolicy_PULL_POLICY_NEVER})
		h.settle(2 * time.Second)
		h.forgetStatus(t, &swarmpb.TaskStatus{TaskId: "a", State: stateReady, At: time.Now().UnixNano()})
		h.start()
		h.settle(2 * time.Second)
		h.wantState("a", stateStarting, "")
	})
}

// observed has the managers say that they saw a task run.
func (h *host) observed(id string) {
	h.manager.mu.Lock()
	t := swarmpb.Clone(h.manager.tasks[id])
	h.manager.mu.Unlock()
	t.ObservedState = stateRunning
	h.manager.change(taskChange(t))
}

func TestHealth_LocalDatabaseLost_WhatIsFoundOutIsReported(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("live"), Ready: probe("ready")})
		h.settle(2 * time.Second)
		in.set("ready", 1, "busy")
		h.settle(5 * time.Second)
		h.wantHealth("a", healthHealthy, true)
		h.stop()
		must(t, (&db{path: h.dir + "/worker.db"}).wipe())
		in.set("ready", 0, "")
		h.observed("a")
		h.start()
		h.settle(20 * time.Second)
		h.wantHealth("a", healthHealthy, false) // which is what the managers do not know

		h.stop()
		must(t, (&db{path: h.dir + "/worker.db"}).wipe())
		in.set("ready", 1, "busy")
		h.observed("a")
		h.start()
		h.settle(20 * time.Second)
		h.wantHealth("a", healthHealthy, true)
	})
}

// Who removes a service while its tasks drain does not cut their pre-stop commands short.
func TestStop_RemovedWhileTheHookRuns_HookComesToItsEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		ended := false
		h.runtime.SetExec(func(ctx context.Context, _ string, _ runtime.ExecSpec) (runtime.ExecResult, error) {
			select {
			case <-time.After(4 * time.Second):
				ended = true
				return runtime.ExecResult{}, nil
			case <-ctx.Done():
				return runtime.ExecResult{}, ctx.Err()
			}
		})
		h.assignProbed("a", &swarmpb.ContainerSpec{PreStop: []string{"leave"}, PreStopTimeout: durationpb.New(time.Minute), StopGracePeriod: durationpb.New(time.Second)})
		h.settle(time.Second)
		h.manager.desire("a", stateShutdown)
		h.settle(time.Second)
		h.manager.remove("a")
		h.settle(time.Second)
		h.wantRunning("a")
		h.settle(10 * time.Second)
		h.wantContainers()
		if !ended {
			t.Error("the pre-stop command was cut short")
		}
	})
}

func TestHeirOf_OneThatIsNotWantedAnyMore_GetsNothing(t *testing.T) {
	heir := func(id string, desired swarmpb.TaskState) *task {
		return &task{
			id: id, status: &swarmpb.TaskStatus{TaskId: id, State: stateReady},
			assigned: &swarmpb.AssignedTask{Id: id, Replaces: "old", TakesVolumes: true, DesiredState: desired},
		}
	}
	f := &fleet{tasks: map[string]*task{"superseded": heir("superseded", stateShutdown), "heir": heir("heir", stateReady)}}
	for range 20 { // whatever the order
		if got := f.heirOf(&task{id: "old"}); got != "heir" {
			t.Fatalf("the heir is %q", got)
		}
	}
}
