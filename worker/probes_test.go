package worker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const stateStarting = swarmpb.TaskState_TASK_STATE_STARTING

// inside plays the processes beside containers' own: each command has its answer, and is noted.
type inside struct {
	mu     sync.Mutex
	answer map[string]runtime.ExecResult
	hangs  map[string]bool
	ran    []string
}

func insideOf(h *host) *inside {
	in := &inside{answer: map[string]runtime.ExecResult{}, hangs: map[string]bool{}}
	h.runtime.SetExec(func(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.ExecResult, error) {
		in.mu.Lock()
		command := strings.Join(spec.Args, " ")
		in.ran = append(in.ran, command)
		answer, hangs := in.answer[command], in.hangs[command]
		in.mu.Unlock()
		if hangs {
			<-ctx.Done()
			return answer, ctx.Err()
		}
		return answer, nil
	})
	return in
}

func (in *inside) set(command string, code uint32, output string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.answer[command] = runtime.ExecResult{Code: code, Output: []byte(output)}
}

func (in *inside) times(command string) int {
	in.mu.Lock()
	defer in.mu.Unlock()
	n := 0
	for _, c := range in.ran {
		if c == command {
			n++
		}
	}
	return n
}

func probe(command string) *swarmpb.Probe {
	return &swarmpb.Probe{Kind: &swarmpb.Probe_Exec{Exec: &swarmpb.ExecProbe{Command: []string{command}}}, Interval: durationpb.New(time.Second), StartPeriod: durationpb.New(10 * time.Second)}
}

func (h *host) assignProbed(id string, c *swarmpb.ContainerSpec) {
	c.Image = "nginx:alpine"
	h.manager.assignSpec(id, stateRunning, c)
}

func (h *host) wantHealth(id string, state swarmpb.HealthState, notReady bool) {
	h.Helper()
	s := h.manager.status(id).GetHealth()
	if s.GetState() != state || s.GetNotReady() != notReady {
		h.Fatalf("task %s is reported %s, not ready %t, want %s, %t", id, s.GetState().Name(), s.GetNotReady(), state.Name(), notReady)
	}
}

const (
	healthStarting  = swarmpb.HealthState_HEALTH_STATE_STARTING
	healthHealthy   = swarmpb.HealthState_HEALTH_STATE_HEALTHY
	healthUnhealthy = swarmpb.HealthState_HEALTH_STATE_UNHEALTHY
)

func TestHealth_UntilReady_StartingAndThenRunning(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		in.set("check", 1, "not yet")
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("check")})
		h.settle(5 * time.Second)
		h.wantState("a", stateStarting, "")
		h.wantHealth("a", healthStarting, true)
		h.restart() // which makes neither a container nor a start period of it
		h.settle(2 * time.Second)
		h.wantState("a", stateStarting, "")
		in.set("check", 0, "fine")
		h.settle(2 * time.Second)
		h.wantState("a", stateRunning, "")
		h.wantHealth("a", healthHealthy, false)
		if n := h.runtime.Starts("a"); n != 1 {
			t.Errorf("started %d times", n)
		}
		reports := len(h.manager.calls)
		h.settle(time.Minute)
		if len(h.manager.calls) != reports {
			t.Error("probes that changed nothing were reported")
		}
	})
}

func TestHealth_NeverAlive_FailsWithTheProbesOutput(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		insideOf(h).set("check", 7, "no database")
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("check"), PreStop: []string{"leave"}})
		h.settle(12 * time.Second)
		h.wantState("a", stateStarting, "")
		h.settle(5 * time.Second)
		h.wantState("a", stateFailed, "unhealthy: cmd check: exit code 7: no database")
		h.wantContainers()
	})
}

func TestHealth_SickWhileRunning_HookRunsAndItFails(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("check"), PreStop: []string{"leave"}})
		h.settle(2 * time.Second)
		h.wantState("a", stateRunning, "")
		in.set("check", 1, "deadlock")
		h.settle(10 * time.Second)
		s := h.wantState("a", stateFailed, "unhealthy: cmd check: exit code 1: deadlock")
		if s.GetHealth().GetState() != healthUnhealthy || !s.GetHealth().GetNotReady() || in.times("leave") != 1 {
			t.Errorf("health %v, pre-stop command run %d times", s.GetHealth(), in.times("leave"))
		}
	})
}

func TestHealth_NotReady_ReportedBothWaysAndNoRestart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("live"), Ready: probe("ready")})
		h.settle(2 * time.Second)
		h.wantHealth("a", healthHealthy, false)
		in.set("ready", 1, "busy")
		h.settle(5 * time.Second)
		h.wantHealth("a", healthHealthy, true)
		h.settle(time.Minute)
		h.wantState("a", stateRunning, "")
		h.restart()
		h.settle(5 * time.Second)
		h.wantHealth("a", healthHealthy, true)
		in.set("ready", 0, "")
		h.settle(3 * time.Second)
		h.wantHealth("a", healthHealthy, false)
		if h.runtime.Starts("a") != 1 {
			t.Error("it was started again")
		}
	})
}

func TestHealth_AgentRestarts_NothingIsReportedAndTheStartPeriodIsOver(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("check")})
		h.settle(2 * time.Second)
		var told []string
		h.manager.mu.Lock()
		h.manager.hear = func(s *swarmpb.TaskStatus) { told = append(told, s.String()) }
		h.manager.mu.Unlock()
		h.restart()
		h.settle(5 * time.Second)
		for _, s := range told {
			if strings.Contains(s, "not_ready") {
				t.Errorf("reported after a restart: %s", s)
			}
		}
		in.set("check", 1, "gone bad")
		h.settle(8 * time.Second) // less than the start period
		h.wantState("a", stateFailed, "unhealthy: cmd check: exit code 1: gone bad")
	})
}

func TestHealth_AgentDiesWhileItStopsASickTask_TheNextOneGoesOn(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, _ string) error {
			if op != runtimetest.OpStop {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		})
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("check")})
		h.settle(2 * time.Second)
		in.set("check", 1, "deadlock")
		h.settle(5 * time.Second)
		h.wantRunning("a")
		in.set("check", 0, "fine again, too late")
		h.stop()
		h.runtime.SetBefore(nil)
		h.start()
		h.settle(15 * time.Second)
		h.wantState("a", stateFailed, "unhealthy: cmd check: exit code 1: deadlock")
	})
}

func TestHealth_SickWithoutManagers_StartedAgainHere(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		h.assignProbed("a", &swarmpb.ContainerSpec{Health: probe("check")})
		h.settle(2 * time.Second)
		h.cut(true)
		h.settle(5 * time.Second)
		in.set("check", 1, "deadlock")
		h.settle(5 * time.Second)
		in.set("check", 0, "fine")
		h.settle(20 * time.Second)
		h.wantRunning("a")
		if n := h.runtime.Starts("a"); n != 2 {
			t.Errorf("started %d times, want 2", n)
		}
		h.cut(false)
		h.settle(10 * time.Second)
		s := h.wantState("a", stateRunning, "")
		h.wantHealth("a", healthHealthy, false)
		if s.GetContainer().GetLocalRestarts() != 1 {
			t.Errorf("reported %v", s.GetContainer())
		}
	})
}

func TestHealth_OfTheImage_IsHonouredUnlessSwitchedOff(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		in.set("check", 1, "")
		image := runtimetest.FakeImage{Healthcheck: &runtime.Healthcheck{Test: []string{"CMD", "check"}, Interval: time.Second, Retries: 2}}
		if err := h.runtime.AddImage("checked:v1", image); err != nil {
			t.Fatal(err)
		}
		never := swarmpb.PullPolicy_PULL_POLICY_NEVER
		h.manager.assignSpec("a", stateRunning, &swarmpb.ContainerSpec{Image: "checked:v1", PullPolicy: never})
		h.manager.assignSpec("b", stateRunning, &swarmpb.ContainerSpec{Image: "checked:v1", PullPolicy: never, NoHealthcheck: true})
		h.settle(10 * time.Second)
		h.wantState("a", stateFailed, "unhealthy: cmd check: exit code 1:")
		h.wantState("b", stateRunning, "")
		if h.manager.status("b").GetHealth() != nil {
			t.Error("one that nobody asks has a health")
		}
	})
}

func TestHealth_EndsBeforeItIsReady_NeverRunning(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		insideOf(h).set("check", 1, "")
		var states []swarmpb.TaskState
		h.manager.mu.Lock()
		h.manager.hear = func(s *swarmpb.TaskStatus) { states = append(states, s.GetState()) }
		h.manager.mu.Unlock()
		h.assignProbed("a", &swarmpb.ContainerSpec{Args: []string{"exit", "3", "2s"}, Health: probe("check")})
		h.settle(6 * time.Second)
		h.wantState("a", stateFailed, "exit code 3")
		for _, s := range states {
			if s == stateRunning {
				t.Error("it was reported to run")
			}
		}
	})
}

func TestStop_Hook_RunsBetweenDrainedAndConnections(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		in.set("leave", 1, "cannot\nreach the registry")
		h.manager.networked()
		h.assignProbed("a", &swarmpb.ContainerSpec{PreStop: []string{"leave"}, DrainTimeout: durationpb.New(3 * time.Second), StopGracePeriod: durationpb.New(time.Minute)})
		h.settle(time.Second)
		h.net.SetEstablished("a", 1)
		h.tell("a", stateShutdown, false)
		h.settle(2 * time.Second)
		if in.times("leave") != 0 {
			t.Error("the pre-stop command was run while connections may come")
		}
		h.tell("a", stateShutdown, true)
		h.settle(2 * time.Second)
		if in.times("leave") != 1 {
			t.Errorf("the pre-stop command was run %d times", in.times("leave"))
		}
		h.wantRunning("a")
		h.settle(2 * time.Second) // the drain time, not the grace period
		if s := h.wantState("a", stateShutdown, ""); !strings.Contains(s.GetMessage(), "pre-stop command failed with exit code 1: cannot reach the registry") {
			t.Errorf("message %q", s.GetMessage())
		}
	})
}

func TestStop_HookHangs_IsBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		in.hangs["leave"] = true
		h.assignProbed("a", &swarmpb.ContainerSpec{PreStop: []string{"leave"}, PreStopTimeout: durationpb.New(4 * time.Second)})
		h.settle(time.Second)
		h.manager.desire("a", stateShutdown)
		h.settle(3 * time.Second)
		h.wantRunning("a")
		h.settle(3 * time.Second)
		if s := h.wantState("a", stateShutdown, ""); !strings.Contains(s.GetMessage(), "did not end within 4s") {
			t.Errorf("message %q", s.GetMessage())
		}
	})
}

func TestStop_HookUnderALeash_IsCutWithIt(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		in := insideOf(h)
		in.hangs["leave"] = true
		spec := &swarmpb.TaskSpec{
			Container:           &swarmpb.ContainerSpec{Image: "nginx:alpine", PreStop: []string{"leave"}, PreStopTimeout: durationpb.New(time.Hour)},
			StopAfterDisconnect: durationpb.New(5 * time.Second),
		}
		task := &swarmpb.AssignedTask{Id: "a", ServiceId: "s", ServiceName: "web", Slot: 1, TemplateVersion: 1, DesiredState: stateRunning}
		h.manager.change(templateChange(&swarmpb.AssignedTemplate{ServiceId: "s", Version: 1, Spec: spec}), taskChange(task))
		h.settle(2 * time.Second)
		h.manager.desire("a", stateShutdown)
		h.settle(time.Minute)
		h.wantRunning("a") // in touch, it has its time
		h.cut(true)
		h.settle(10 * time.Second)
		h.wantRunning()
	})
}

// The heir has what its forebear has left in its anonymous volumes, wherever the agent dies on the way.
func TestInPlace_Volumes_GoToTheHeir(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		inBubble(t, func(t *testing.T, h *host) {
			h.runtime = runtimetest.NewFake(runtimetest.FakeConfig{Dir: t.TempDir()})
			h.restart()
			mounts := []*swarmpb.Mount{{Type: swarmpb.MountType_MOUNT_TYPE_VOLUME, Target: "/v"}}
			h.assignProbed("old", &swarmpb.ContainerSpec{Mounts: mounts})
			h.settle(time.Second)
			if err := os.WriteFile(filepath.Join(h.runtime.VolumeOf("old", "/v"), "kept"), []byte("data"), 0o600); err != nil {
				t.Fatal(err)
			}
			spec := &swarmpb.ContainerSpec{Image: "nginx:alpine", Mounts: mounts}
			heir := &swarmpb.AssignedTask{
				Id: "heir", ServiceId: "service-of-old", ServiceName: "web", Slot: 1, TemplateVersion: 2, DesiredState: stateReady, Replaces: "old", TakesVolumes: true,
			}
			h.manager.change(templateChange(&swarmpb.AssignedTemplate{ServiceId: "service-of-old", Version: 2, Spec: &swarmpb.TaskSpec{Container: spec}}), taskChange(heir))
			h.settle(time.Second)
			h.manager.desire("old", stateShutdown)
			h.settle(2 * time.Second)
			h.wantContainers()
			if restarts {
				h.restart()
			}
			h.manager.desire("heir", stateRunning)
			h.settle(2 * time.Second)
			h.wantRunning("heir")
			if body, err := os.ReadFile(filepath.Join(h.runtime.VolumeOf("heir", "/v"), "kept")); err != nil || string(body) != "data" {
				t.Errorf("after restarts %t: %q, %v", restarts, body, err)
			}
			h.manager.desire("heir", stateShutdown)
			h.settle(time.Second)
			volume := h.runtime.Inherited("heir")["/v"]
			h.manager.remove("heir")
			h.settle(time.Second)
			if _, err := os.Stat(volume); volume == "" || !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the volume %q of a task that is gone: %v", volume, err)
			}
		})
	}
}
