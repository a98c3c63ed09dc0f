package worker

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// assignReached has the node run a task that connections are sent to.
func (h *host) assignReached(id string, grace time.Duration) {
	h.manager.assignSpec(id, stateRunning, &swarmpb.ContainerSpec{Image: "nginx:alpine", StopGracePeriod: durationpb.New(grace)})
}

// tell changes what the managers say of a task.
func (h *host) tell(id string, desired swarmpb.TaskState, drained bool) {
	h.manager.mu.Lock()
	t := swarmpb.Clone(h.manager.tasks[id])
	h.manager.mu.Unlock()
	t.DesiredState, t.Drained = desired, drained
	h.manager.change(taskChange(t))
}

func (h *host) wantMessage(id, want string) {
	h.Helper()
	if s := h.manager.status(id); s.GetMessage() != want || s.GetState() != stateRunning {
		h.Fatalf("task %s is reported %s with message %q, want %q", id, s.GetState().Name(), s.GetMessage(), want)
	}
}

func TestDrain_ReachedTask_StopsOnceDrainedAndItsConnectionsHaveEnded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.assignReached("a", time.Minute)
		h.settle(time.Second)
		h.net.SetEstablished("a", 3)
		h.tell("a", stateShutdown, false)
		h.settle(4 * time.Second)
		h.wantRunning("a")
		h.wantMessage("a", waitsForDrained)
		h.tell("a", stateShutdown, true)
		h.settle(time.Second)
		h.wantMessage("a", "draining: 3 connections left")
		h.net.SetEstablished("a", 1)
		h.settle(4 * time.Second)
		h.wantRunning("a")
		h.wantMessage("a", "draining: 1 connection left")
		h.net.SetEstablished("a", 0)
		h.settle(time.Second)
		h.wantRunning()
		h.wantState("a", stateShutdown, "")
		if !slices.Contains(h.net.Went(), "a") {
			t.Error("the network was not told that its process has ended")
		}
	})
}

func TestDrain_ConnectionsThatStay_AreCutWhenTheDrainTimeIsOver(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.assignReached("a", 20*time.Second)
		h.settle(time.Second)
		h.net.SetEstablished("a", 1)
		h.tell("a", stateShutdown, true)
		h.settle(19 * time.Second)
		h.wantRunning("a")
		h.settle(2 * time.Second)
		h.wantState("a", stateShutdown, "")
	})
}

func TestDrain_CountThatChangesAllTheTime_IsReportedOnceInAWhile(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.assignReached("a", 30*time.Second)
		h.settle(time.Second)
		h.manager.mu.Lock()
		before := len(h.manager.calls)
		h.manager.mu.Unlock()
		h.net.SetEstablished("a", 1)
		h.tell("a", stateShutdown, true)
		for i := range 200 {
			h.net.SetEstablished("a", 1000-i)
			h.settle(100 * time.Millisecond)
		}
		h.manager.mu.Lock()
		defer h.manager.mu.Unlock()
		if n := len(h.manager.calls) - before; n > 15 {
			t.Errorf("%d reports in 20 s", n)
		}
	})
}

func TestDrain_ManagersLost_GoesOnAfterFiveSeconds(t *testing.T) {
	for _, how := range []string{"cut", "mute", "restarted"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *host) {
				h.manager.networked()
				h.assignReached("a", 10*time.Second)
				h.settle(time.Second)
				h.tell("a", stateShutdown, false)
				h.settle(time.Second)
				switch how {
				case "cut":
					h.cut(true)
				case "mute":
					h.manager.setMute(true)
				case "restarted":
					h.cut(true)
					h.restart()
				}
				h.settle(3 * time.Second)
				h.wantRunning("a")
				h.settle(4 * time.Second)
				h.wantRunning()
			})
		})
	}
}

func TestDrain_ManagersThatNeverSayDrained_KeepNoTaskForEver(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.assignReached("a", 10*time.Second)
		h.settle(time.Second)
		h.tell("a", stateShutdown, false)
		h.settle(20 * time.Second)
		h.wantRunning("a")
		h.settle(20 * time.Second)
		h.wantState("a", stateShutdown, "")
	})
}

func TestDrain_ThatDoesNotApply_StopsAtOnce(t *testing.T) {
	for name, end := range map[string]func(h *host){
		"an older manager, which never says drained": func(h *host) {
			h.manager.change(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_NodeConfig{NodeConfig: &swarmpb.NodeConfig{UplinkBlock: "100.64.0.0/16"}}})
			h.net.SetEstablished("a", 0)
			h.tell("a", stateShutdown, false)
		},
		"removed":                      func(h *host) { h.manager.remove("a") },
		"of a service that is removed": func(h *host) { h.tell("a", swarmpb.TaskState_TASK_STATE_REMOVE, false) },
		"never reached": func(h *host) {
			h.tell("a", stateRunning, true)
			h.settle(time.Second)
			h.tell("a", stateShutdown, true)
		},
		"removed while it drains": func(h *host) {
			h.tell("a", stateShutdown, true)
			h.settle(3 * time.Second)
			h.wantRunning("a")
			h.manager.remove("a")
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *host) {
				h.manager.networked()
				h.assignReached("a", time.Hour)
				h.settle(time.Second)
				h.net.SetEstablished("a", 5)
				end(h)
				h.settle(time.Second)
				h.wantRunning()
			})
		})
	}
}

func TestDrain_ReachedOnlyLater_ItsConnectionsAreWaitedFor(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.assignReached("a", time.Minute)
		h.tell("a", stateRunning, true)
		h.settle(time.Second)
		h.tell("a", stateRunning, false) // its service has a port now
		h.settle(time.Second)
		h.net.SetEstablished("a", 5)
		h.tell("a", stateShutdown, true)
		h.settle(10 * time.Second)
		h.wantRunning("a")
	})
}

func TestDrain_EndsByItself_IsSeenAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.assignReached("a", time.Hour)
		h.settle(time.Second)
		h.net.SetEstablished("a", 5)
		for _, drained := range []bool{false, true} {
			h.tell("a", stateShutdown, drained)
			h.settle(time.Second)
		}
		must(t, h.runtime.Exit("a", 3))
		h.settle(time.Second)
		if s := h.wantState("a", stateShutdown, ""); s.GetContainer().GetExitCode() != 3 {
			t.Errorf("container of the status is %v", s.GetContainer())
		}
		if got := h.net.Went(); !slices.Contains(got, "a") {
			t.Errorf("the network was told of %q", got)
		}
	})
}

func TestDrain_RestartInTheMiddle_GoesOnDraining(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.assignReached("a", 20*time.Second)
		h.settle(time.Second)
		h.net.SetEstablished("a", 2)
		h.tell("a", stateShutdown, true)
		h.settle(5 * time.Second)
		h.cut(true)
		h.restart()
		h.settle(10 * time.Second)
		h.wantRunning("a")
		h.net.SetEstablished("a", 0)
		h.settle(time.Second)
		h.wantRunning()
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantState("a", stateShutdown, "")
	})
}

func TestDrain_LeashRunsOut_IsStoppedAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		spec := &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "nginx:alpine", StopGracePeriod: durationpb.New(time.Hour)},
			StopAfterDisconnect: durationpb.New(8 * time.Second)}
		h.manager.change(
			templateChange(&swarmpb.AssignedTemplate{ServiceId: "s", Version: 1, Spec: spec}),
			taskChange(&swarmpb.AssignedTask{Id: "a", ServiceId: "s", ServiceName: "web", Slot: 1, TemplateVersion: 1, DesiredState: stateRunning}),
		)
		h.settle(3 * time.Second)
		h.net.SetEstablished("a", 1)
		h.tell("a", stateShutdown, true)
		h.settle(time.Second)
		h.cut(true)
		h.settle(6 * time.Second)
		h.wantRunning("a")
		h.settle(3 * time.Second)
		h.wantRunning()
	})
}

func TestGone_ProcessEnds_NetworkIsToldBeforeTheManagers(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		for _, id := range []string{"fails", "completes", "stops", "vanishes", "cut"} {
			h.manager.change(endpointRow(id, "service-of-"+id, "node-1"))
			h.assignPolicy(id, nil)
		}
		h.settle(time.Second)
		var early []string
		h.manager.mu.Lock()
		h.manager.hear = func(s *swarmpb.TaskStatus) {
			if s.GetState() > stateRunning && !slices.Contains(h.net.Went(), s.GetTaskId()) {
				early = append(early, s.GetTaskId())
			}
		}
		h.manager.mu.Unlock()
		must(t, h.runtime.Exit("fails", 1))
		must(t, h.runtime.Exit("completes", 0))
		h.manager.desire("stops", stateShutdown)
		h.settle(time.Minute)
		h.cut(true)
		h.settle(time.Second)
		must(t, h.runtime.Exit("cut", 2))
		h.settle(time.Second)
		if !slices.Contains(h.net.Went(), "cut") {
			t.Error("without managers the network was not told")
		}
		h.stop()
		must(t, h.runtime.Remove(context.Background(), "vanishes"))
		h.start()
		h.cut(false)
		h.settle(time.Minute)
		for _, id := range []string{"fails", "completes", "stops", "vanishes", "cut"} {
			if !h.manager.status(id).GetState().Ended() || !slices.Contains(h.net.Went(), id) {
				t.Errorf("%s is %s; the network was told of %q", id, h.manager.status(id).GetState().Name(), h.net.Went())
			}
		}
		if len(early) > 0 {
			t.Errorf("the managers were told of %q before the network", early)
		}
	})
}

func TestDrain_ManyAtOnce_AllEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, _ string) error { return ctx.Err() })
		for i := range 50 {
			h.assignReached(fmt.Sprint("t", i), 10*time.Second)
		}
		h.settle(5 * time.Second)
		for i := range 50 {
			h.net.SetEstablished(fmt.Sprint("t", i), i%3)
			h.tell(fmt.Sprint("t", i), stateShutdown, i%2 == 0)
		}
		h.settle(3 * time.Second)
		for i := range 50 {
			h.tell(fmt.Sprint("t", i), stateShutdown, true)
		}
		h.settle(15 * time.Second)
		h.wantContainers()
	})
}
