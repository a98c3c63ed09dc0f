package worker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const (
	never     = swarmpb.RestartCondition_RESTART_CONDITION_NONE
	onFailure = swarmpb.RestartCondition_RESTART_CONDITION_ON_FAILURE
)

// assignPolicy has the node run a task with a restart policy.
func (h *host) assignPolicy(id string, policy *swarmpb.RestartPolicy) {
	service := "service-of-" + id
	spec := &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "nginx:alpine"}, Restart: policy}
	h.manager.change(
		templateChange(&swarmpb.AssignedTemplate{ServiceId: service, Version: 1, Spec: spec}),
		taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: service, ServiceName: "web", Slot: 1, TemplateVersion: 1, DesiredState: stateRunning}),
	)
}

func TestRestartPolicy_Next_CountsAndPausesAsTheManagersDo(t *testing.T) {
	failed, done := runtime.Exit{Code: 1}, runtime.Exit{}
	const long = 2 * time.Minute
	type end struct {
		exit  runtime.Exit
		ran   time.Duration
		after time.Duration // since the end before
		want  time.Duration // pause before the restart; -1 = none
	}
	for _, c := range []struct {
		name   string
		policy *swarmpb.RestartPolicy
		ends   []end
	}{
		{"none given", nil, []end{{failed, 0, 0, 0}, {done, 0, 0, 500 * time.Millisecond}, {failed, 0, 0, time.Second}, {failed, long, long, 0}}},
		{"never", &swarmpb.RestartPolicy{Condition: never}, []end{{failed, 0, 0, -1}}},
		{"on failure", &swarmpb.RestartPolicy{Condition: onFailure}, []end{{failed, 0, 0, 0}, {runtime.Exit{Unknown: true}, 0, 0, 500 * time.Millisecond}, {done, 0, 0, -1}}},
		{"own delay", &swarmpb.RestartPolicy{Delay: durationpb.New(5 * time.Second)}, []end{{failed, 0, 0, 5 * time.Second}, {failed, 0, 0, 5 * time.Second}}},
		{"attempts", &swarmpb.RestartPolicy{MaxAttempts: 2, Delay: durationpb.New(0)}, []end{{failed, 0, 0, 0}, {failed, 0, long, 0}, {failed, 0, long, -1}}},
		{"attempts a window", &swarmpb.RestartPolicy{MaxAttempts: 1, Delay: durationpb.New(0), Window: durationpb.New(time.Minute)},
			[]end{{failed, 0, 0, 0}, {failed, long, long, 0}, {failed, 0, time.Second, -1}}},
	} {
		var record comeback
		now := time.Unix(1_700_000_000, 0)
		for i, e := range c.ends {
			now = now.Add(e.after)
			next, ok := restartPolicy{c.policy}.next(record, e.exit, e.ran, now)
			if ok != (e.want >= 0) || ok && next.notBefore.Sub(now) != e.want {
				t.Errorf("%s, end %d: restarted %v after %s, want %s", c.name, i+1, ok, next.notBefore.Sub(now), e.want)
			}
			if ok {
				record = next.started()
			}
		}
	}
}

func TestComeback_CutOff_FailedOnesRunAgainAndAllIsReportedOnReturn(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignPolicy("crashes", nil)
		h.assignPolicy("once", &swarmpb.RestartPolicy{MaxAttempts: 1})
		h.assignPolicy("fails", &swarmpb.RestartPolicy{Condition: onFailure})
		h.assignPolicy("stays", nil)
		h.settle(time.Second)
		h.cut(true)
		h.settle(5 * time.Second)
		for _, id := range []string{"crashes", "once"} {
			must(t, h.runtime.Exit(id, 7))
		}
		must(t, h.runtime.Exit("fails", 0))
		h.settle(3 * time.Second)
		h.wantRunning("stays") // it may be that managers come back
		h.settle(5 * time.Second)
		h.wantRunning("crashes", "once", "stays")
		must(t, h.runtime.Exit("once", 8))
		must(t, h.runtime.Exit("crashes", 9))
		h.settle(time.Second)
		h.wantRunning("crashes", "stays")
		h.restart() // its counts are on the disk
		must(t, h.runtime.Exit("crashes", 10))
		h.settle(15 * time.Second)
		h.wantRunning("crashes", "stays")
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantRunning("crashes", "stays")
		s := h.wantState("crashes", stateRunning, "")
		if c := s.GetContainer(); c.GetLocalRestarts() != 3 || !slices.Equal(c.GetLocalExitCodes(), []int32{7, 9, 10}) || c.GetPid() == 0 || c.GetImageDigest() == "" {
			t.Errorf("container of the status is %v, want three restarts after 7, 9 and 10", c)
		}
		if want := "started again 3 times without managers, the last time after exit code 10"; s.GetMessage() != want {
			t.Errorf("message is %q, want %q", s.GetMessage(), want)
		}
		if c := h.wantState("once", stateFailed, "exit code 8").GetContainer(); c.GetLocalRestarts() != 1 || c.GetExitCode() != 8 {
			t.Errorf("container of the status is %v, want one restart, and 8", c)
		}
		h.wantState("fails", stateComplete, "")
		if h.manager.status("stays").GetContainer().GetLocalRestarts() != 0 || h.runtime.Starts("stays") != 1 {
			t.Error("what did not end was started again")
		}
		must(t, h.runtime.Exit("crashes", 3)) // with managers it is theirs
		h.settle(time.Second)
		h.wantState("crashes", stateFailed, "exit code 3")
		if len(h.manager.went) != 0 {
			t.Errorf("states went back: %q", h.manager.went)
		}
	})
}

func TestComeback_ManagersReturnInTime_TheyDecide(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignPolicy("a", nil)
		h.settle(time.Second)
		h.cut(true)
		h.settle(time.Second)
		must(t, h.runtime.Exit("a", 4))
		h.settle(4 * time.Second)
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantState("a", stateFailed, "exit code 4")
		h.wantContainers()
		if h.runtime.Starts("a") != 1 {
			t.Error("it was started again")
		}
	})
}

func TestComeback_SupersededMeanwhile_StopsOnReturn(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignPolicy("a", nil)
		h.assignPolicy("b", &swarmpb.RestartPolicy{Delay: durationpb.New(time.Hour)})
		h.settle(time.Second)
		h.cut(true)
		h.settle(time.Second)
		must(t, h.runtime.Exit("a", 4))
		must(t, h.runtime.Exit("b", 4))
		h.settle(20 * time.Second)
		h.wantRunning("a")
		h.manager.remove("a")
		h.manager.remove("b")
		h.cut(false)
		h.settle(20 * time.Second)
		h.wantContainers()
	})
}

func TestComeback_QuorumLost_CountsAsWithoutManagers(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignPolicy("a", nil)
		h.settle(time.Second)
		h.manager.setMute(true)
		h.settle(30 * time.Second)
		must(t, h.runtime.Exit("a", 4))
		h.settle(10 * time.Second)
		h.wantRunning("a")
	})
}

// A crash at each point of a restart: the next process goes on from there, with one container and the right count.
func TestComeback_KilledAtAnyStep_GoesOnWithoutALossOrASecondContainer(t *testing.T) {
	for _, at := range []string{"removed", "created", "started", "ended again"} {
		t.Run(strings.ReplaceAll(at, " ", "_"), func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *host) {
				h.assignPolicy("a", nil)
				h.settle(time.Second)
				h.cut(true)
				h.settle(time.Second)
				must(t, h.runtime.Exit("a", 4))
				h.settle(time.Second)
				h.killDuringRestart(t, "a", at)
				h.start()
				h.settle(30 * time.Second)
				h.wantContainers("a")
				h.wantRunning("a")
				h.cut(false)
				h.settle(10 * time.Second)
				want := []int32{4}
				if at == "ended again" {
					want = append(want, 5)
				}
				if c := h.wantState("a", stateRunning, "").GetContainer(); !slices.Equal(c.GetLocalExitCodes(), want) {
					t.Errorf("restarts after %v, want %v", c.GetLocalExitCodes(), want)
				}
			})
		})
	}
}

// killDuringRestart leaves the database and the runtime as a process does that dies in the middle of a restart.
func (h *host) killDuringRestart(t *testing.T, id, at string) {
	t.Helper()
	h.agent.fleet.mu.Lock()
	c := h.agent.fleet.tasks[id].comeback
	h.agent.fleet.mu.Unlock()
	if c.Ended == nil {
		t.Fatal("no restart is pending")
	}
	h.stop()
	c.Begun = true
	d := newDB(h.dir, slog.New(slog.DiscardHandler), newProblems())
	must(t, d.open())
	f := &fleet{db: d}
	f.setComeback(&task{id: id}, c)
	d.close()
	spec, _ := h.runtime.Spec(id)
	must(t, h.runtime.Remove(t.Context(), id))
	if at == "removed" {
		return
	}
	must(t, h.runtime.Create(t.Context(), spec))
	if at == "created" {
		return
	}
	_, err := h.runtime.Start(t.Context(), id)
	must(t, err)
	if at == "ended again" {
		time.Sleep(time.Second) // it ran for a while
		must(t, h.runtime.Exit(id, 5))
	}
}

// Without managers nobody would replace a task that is given up.
func TestComeback_StartFailsForLong_IsTriedUntilItWorksOrManagersReturn(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignPolicy("a", nil)
		h.settle(time.Second)
		h.cut(true)
		h.settle(time.Second)
		h.runtime.SetBefore(func(_ context.Context, op runtimetest.Op, _ string) error {
			if op == runtimetest.OpStart {
				return errors.New("containerd is away")
			}
			return nil
		})
		must(t, h.runtime.Exit("a", 4))
		h.settle(10 * time.Minute)
		h.runtime.SetBefore(nil)
		h.settle(time.Minute)
		h.wantRunning("a")
		h.cut(false)
		h.settle(10 * time.Second)
		if c := h.wantState("a", stateRunning, "").GetContainer(); !slices.Equal(c.GetLocalExitCodes(), []int32{4}) {
			t.Errorf("restarts after %v", c.GetLocalExitCodes())
		}
	})
}

func TestComeback_AgentRestartsDuringTheDelay_ItIsKept(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignPolicy("a", &swarmpb.RestartPolicy{Delay: durationpb.New(time.Hour)})
		h.settle(time.Second)
		h.cut(true)
		h.settle(time.Second)
		must(t, h.runtime.Exit("a", 4))
		h.settle(time.Second)
		h.restart()
		h.settle(50 * time.Minute)
		h.wantRunning()
		h.settle(15 * time.Minute)
		h.wantRunning("a")
	})
}

// Between its container's removal and the next one's start only the record knows how it ended.
func TestComeback_ShutDownBetweenTwoContainers_ExitCodeIsTold(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignPolicy("a", nil)
		h.settle(time.Second)
		h.cut(true)
		h.settle(time.Second)
		h.runtime.SetBefore(func(_ context.Context, op runtimetest.Op, _ string) error {
			if op == runtimetest.OpCreate {
				return errors.New("no")
			}
			return nil
		})
		must(t, h.runtime.Exit("a", 4))
		h.settle(12 * time.Second)
		h.wantContainers()
		h.manager.desire("a", stateShutdown)
		h.cut(false)
		h.settle(10 * time.Second)
		if c := h.wantState("a", stateShutdown, "").GetContainer(); c.GetExitCode() != 4 || c.GetFinishedAt() == 0 {
			t.Errorf("container of the status is %v", c)
		}
	})
}
