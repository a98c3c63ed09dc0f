package worker

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/networktest"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

func TestAgent_FullSet_RunsAndReportsIt(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		for _, id := range []string{"a", "b", "c", "d"} {
			h.manager.assign(id, stateRunning)
		}
		h.settle(5 * time.Second)
		h.wantRunning("a", "b", "c", "d")
		s := h.wantState("a", stateRunning, "")
		if s.Container.GetPid() == 0 || s.Container.ContainerId != "a" || s.Container.StartedAt == 0 || !strings.HasPrefix(s.Container.ImageDigest, "sha256:") {
			t.Errorf("container of the status is %v", s.Container)
		}
		if !strings.HasPrefix(s.Address, "100.64.") {
			t.Errorf("address is %q", s.Address)
		}
		if h.manager.applied != h.manager.version {
			t.Errorf("version %d is acknowledged, want %d", h.manager.applied, h.manager.version)
		}
		if h.agent.ConnectedTo() != "192.0.2.9:2377" || h.agent.RunningContainers() != 4 || len(h.agent.Problems()) != 0 {
			t.Errorf("connected to %q, %d containers, problems %q", h.agent.ConnectedTo(), h.agent.RunningContainers(), h.agent.Problems())
		}
		hello := h.manager.hellos[0]
		if d := hello.Description; d.Hostname != "worker-1" || d.Resources.NanoCpus == 0 || d.Resources.MemoryBytes == 0 || d.Engine.OciRuntime == "" || hello.BootId == "" {
			t.Errorf("hello is %v", hello)
		}
		spec, _ := h.runtime.Spec("a")
		if spec.Labels["com.docker.swarm.task.name"] != "web.1.a" || spec.Labels["com.docker.swarm.node.id"] != "node-1" || spec.Hostname != "a" {
			t.Errorf("labels %v, hostname %q", spec.Labels, spec.Hostname)
		}
	})
}

func TestAgent_IncrementWithAGap_AsksAnewAndConverges(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.settle(time.Second)
		streams := h.manager.streams
		h.manager.mu.Lock()
		h.manager.spoil = true
		h.manager.mu.Unlock()
		h.manager.assign("b", stateRunning)
		h.settle(5 * time.Second)
		h.wantRunning("a", "b")
		if h.manager.streams != streams+1 {
			t.Errorf("%d streams were opened, want %d", h.manager.streams, streams+1)
		}
		if h.runtime.Starts("a") != 1 {
			t.Error("what ran was started again")
		}
	})
}

func TestAgent_TaskRemoved_IsStoppedAndLeavesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning, "print", "hello", "1h")
		h.manager.assign("b", stateRunning)
		h.settle(time.Second)
		if h.runtime.Logs("a") == "" {
			t.Fatal("no logs to begin with")
		}
		h.manager.remove("a")
		h.settle(time.Second)
		h.wantContainers("b")
		if got := h.net.Attached(); !slices.Equal(got, []string{"b"}) {
			t.Errorf("attached to the network: %q", got)
		}
		if h.runtime.Logs("a") != "" {
			t.Error("logs of a removed task are still there")
		}
		h.restart()
		h.wantRunning("b")
	})
}

func TestAgent_RemovedThenRestartedWithoutManagers_IsNotTakenUpAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning, "ignore-term")
		h.settle(time.Second)
		h.manager.remove("a")
		h.settle(2 * time.Second)
		h.wantRunning("a") // in its grace period
		h.cut(true)
		h.restart()
		h.settle(15 * time.Second)
		h.wantContainers()
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantState("a", stateShutdown, "killed: it did not end within its grace period of 10s")
	})
}

func TestAgent_SupersededWhileAway_StopsOnReturn(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.manager.assign("b", stateRunning)
		h.settle(time.Second)
		h.cut(true)
		h.manager.remove("a")
		h.manager.assign("c", stateRunning)
		h.settle(time.Minute)
		h.wantRunning("a", "b")
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantContainers("b", "c")
		if h.runtime.Starts("b") != 1 {
			t.Error("what ran was started again")
		}
	})
}

func TestAgent_ContainerEnds_IsReportedWithWhy(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("done", stateRunning, "exit", "0", "2s")
		h.manager.assign("failed", stateRunning, "exit", "3", "2s")
		h.manager.assign("killed", stateRunning)
		h.manager.assign("oom", stateRunning)
		h.manager.assign("lost", stateRunning)
		h.settle(time.Second)
		must(t, h.runtime.Exit("killed", 137))
		must(t, h.runtime.OOM("oom"))
		must(t, h.runtime.LoseExit("lost"))
		h.settle(3 * time.Second)
		h.wantState("done", stateComplete, "")
		s := h.wantState("failed", stateFailed, "exit code 3")
		if s.Container.ExitCode != 3 || s.Container.FinishedAt == 0 || s.Container.Pid != 0 {
			t.Errorf("container of the status is %v", s.Container)
		}
		h.wantState("killed", stateFailed, "killed by signal 9")
		if s := h.wantState("oom", stateFailed, "out of memory"); !s.Container.OomKilled {
			t.Error("not marked as killed for memory")
		}
		h.wantState("lost", stateFailed, "it ended while nobody watched; its exit code is not known")
		h.wantContainers() // ended and on the disk: they are cleaned
		if got := h.net.Attached(); len(got) != 0 {
			t.Errorf("attached to the network: %q", got)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAgent_Restarted_AdoptsWithoutTouching(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		for _, id := range []string{"a", "b", "c"} {
			h.manager.assign(id, stateRunning)
		}
		h.settle(time.Second)
		h.stop()
		must(t, h.runtime.Exit("b", 7))
		time.Sleep(time.Minute)
		h.start()
		h.settle(2 * time.Second)
		h.wantRunning("a", "c")
		h.wantState("b", stateFailed, "exit code 7")
		for _, id := range []string{"a", "b", "c"} {
			if n := h.runtime.Starts(id); n != 1 {
				t.Errorf("%s was started %d times", id, n)
			}
		}
		if a, b := h.manager.hellos[0].BootId, h.manager.hellos[1].BootId; a == b {
			t.Error("both processes have the same boot ID")
		}
		must(t, h.runtime.Exit("c", 8)) // adopted ones are watched
		h.settle(time.Second)
		h.wantState("c", stateFailed, "exit code 8")
	})
}

func TestAgent_HostRebooted_WhatHadRunIsReportedAndNotStartedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("gone", stateRunning)
		h.manager.assign("dead", stateRunning)
		h.manager.assign("fresh", stateRunning)
		h.settle(time.Second)
		h.stop()
		must(t, h.runtime.Remove(t.Context(), "gone"))
		spec, _ := h.runtime.Spec("fresh") // as containerd shows one whose process a reboot took: as if never started
		must(t, h.runtime.Remove(t.Context(), "fresh"))
		must(t, h.runtime.Create(t.Context(), spec))
		h.runtime.Reboot()
		h.start()
		h.settle(5 * time.Second)
		h.wantState("gone", stateFailed, "its container is gone")
		h.wantState("fresh", stateFailed, "its container is gone")
		h.wantState("dead", stateFailed, "it ended while nobody watched; its exit code is not known")
		h.wantContainers()
		if h.runtime.Starts("gone") != 1 || h.runtime.Starts("fresh") != 1 || h.runtime.Starts("dead") != 1 {
			t.Error("a task that had run was started again")
		}
	})
}

func TestAgent_ManagersSayItRanButNothingIsHere_FailedNotStarted(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.manager.mu.Lock()
		task := swarmpb.Clone(h.manager.tasks["a"])
		h.manager.mu.Unlock()
		task.Id, task.ObservedState = "b", stateRunning
		h.manager.change(taskChange(task))
		h.settle(2 * time.Second)
		h.wantRunning("a")
		h.wantState("b", stateFailed, "its container is gone")
		if h.runtime.Starts("b") != 0 {
			t.Error("it was started")
		}
	})
}

func TestAgent_LocalDatabaseLost_AdoptsByTheManagersWord(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("ours", stateRunning)
		h.manager.assign("superseded", stateRunning)
		h.settle(time.Second)
		h.stop()
		must(t, (&db{path: h.dir + "/worker.db"}).wipe())
		h.cut(true)
		h.start()
		h.settle(time.Minute)
		h.wantRunning("ours", "superseded") // no manager has said otherwise
		h.manager.remove("superseded")
		h.cut(false)
		h.settle(15 * time.Second)
		h.wantContainers("ours")
		if h.runtime.Starts("ours") != 1 {
			t.Error("it was started again")
		}
		must(t, h.runtime.Exit("ours", 2))
		h.settle(time.Second)
		h.wantState("ours", stateFailed, "exit code 2")
	})
}

func TestAgent_CutOff_KeepsEverythingAcrossARestartAndReportsLater(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.manager.assign("b", stateRunning)
		h.assignPolicy("c", &swarmpb.RestartPolicy{Condition: swarmpb.RestartCondition_RESTART_CONDITION_NONE})
		h.settle(time.Second)
		h.cut(true)
		h.settle(time.Second)
		must(t, h.runtime.Exit("b", 9))
		h.settle(5 * time.Second) // not long enough for the node to see to it itself
		h.restart()
		must(t, h.runtime.Exit("c", 9)) // its policy wants no restart
		h.settle(time.Second)
		h.restart()
		h.settle(3 * time.Second)
		h.wantRunning("a")
		h.wantState("b", stateRunning, "")
		if p := h.agent.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "managers: ") {
			t.Errorf("problems are %q", p)
		}
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantState("b", stateFailed, "exit code 9")
		h.wantState("c", stateFailed, "exit code 9")
		h.wantRunning("a")
		if h.runtime.Starts("a") != 1 || len(h.agent.Problems()) != 0 {
			t.Errorf("a started %d times; problems %q", h.runtime.Starts("a"), h.agent.Problems())
		}
	})
}

func TestAgent_DesiredReady_PullsAndWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateReady)
		h.settle(time.Minute)
		h.wantContainers()
		h.wantState("a", stateReady, "")
		h.manager.desire("a", stateRunning)
		h.settle(time.Second)
		h.wantRunning("a")
		h.wantState("a", stateRunning, "")
	})
}

func TestAgent_ClockBehindTheManagers_StartsWhenTheySayRunning(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateReady)
		h.manager.mu.Lock()
		task := swarmpb.Clone(h.manager.tasks["a"])
		h.manager.mu.Unlock()
		task.DesiredState, task.StartNotBefore = stateRunning, time.Now().Add(time.Hour).UnixNano()
		h.manager.change(taskChange(task))
		h.settle(time.Second)
		h.wantRunning("a")
	})
}

func TestAgent_ShutdownBeforeStart_NothingIsStarted(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateReady)
		h.settle(time.Second)
		h.manager.desire("a", stateShutdown)
		h.settle(time.Second)
		h.wantState("a", stateShutdown, "")
		h.wantContainers()
		if len(h.net.Attached()) != 0 || h.runtime.Starts("a") != 0 {
			t.Error("it left something, or was started")
		}
	})
}

func TestAgent_Shutdown_StopsWithSignalAndGrace(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("polite", stateRunning)
		h.manager.assign("stubborn", stateRunning, "ignore-term")
		h.settle(time.Second)
		h.manager.desire("polite", stateShutdown)
		h.manager.desire("stubborn", stateShutdown)
		h.settle(9 * time.Second)
		if s := h.wantState("polite", stateShutdown, ""); s.Container.ExitCode != 143 {
			t.Errorf("exit code is %d, want 143", s.Container.ExitCode)
		}
		h.wantState("stubborn", stateRunning, "")
		h.settle(2 * time.Second)
		if s := h.wantState("stubborn", stateShutdown, "killed: it did not end within its grace period of 10s"); s.Container.ExitCode != 137 {
			t.Errorf("exit code is %d, want 137", s.Container.ExitCode)
		}
		h.wantContainers()
	})
}

func TestAgent_HostPorts_AreReportedAsBound(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assignSpec("a", stateRunning, &swarmpb.ContainerSpec{Image: "nginx"}, &swarmpb.PortConfig{TargetPort: 80})
		h.settle(time.Second)
		s := h.wantState("a", stateRunning, "")
		if len(s.HostPorts) != 1 || s.HostPorts[0].PublishedPort != 32848 {
			t.Errorf("host ports are %v", s.HostPorts)
		}
	})
}

func TestAgent_HostPortTaken_StartsOnceItIsFreeOrIsRejected(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		port := &swarmpb.PortConfig{TargetPort: 80, PublishedPort: 8080}
		h.manager.assignSpec("old", stateRunning, &swarmpb.ContainerSpec{Image: "nginx"}, port)
		h.settle(time.Second)
		h.manager.assignSpec("new", stateRunning, &swarmpb.ContainerSpec{Image: "nginx"}, port)
		h.manager.assignSpec("third", stateRunning, &swarmpb.ContainerSpec{Image: "nginx"}, port)
		h.manager.desire("third", stateReady)
		h.settle(2 * time.Second)
		h.wantRunning("old")
		h.wantState("new", swarmpb.TaskState_TASK_STATE_STARTING, "publish 8080: port is taken by old")
		h.runtime.SetBefore(func(ctx context.Context, op runtimetest.Op, _ string) error {
			if op == runtimetest.OpRemove { // a port is free when its task has ended, not when all of it is gone
				sleep(ctx, time.Minute)
			}
			return nil
		})
		h.manager.desire("old", stateShutdown)
		h.settle(5 * time.Second)
		h.wantRunning("new")
		h.wantState("new", stateRunning, "")
		h.manager.desire("third", stateRunning)
		h.settle(time.Minute)
		h.wantState("third", stateRejected, "publish 8080: port is taken by new")
	})
}

func TestAgent_Templates_AreFilledInOrRejected(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assignSpec("good", stateRunning, &swarmpb.ContainerSpec{
			Image: "nginx", Hostname: "{{.Service.Name}}-{{ .Task.Slot }}", Env: []string{"NODE={{.Node.Hostname}}"},
		})
		h.manager.assignSpec("bad", stateRunning, &swarmpb.ContainerSpec{Image: "nginx", Env: []string{"X={{.Secret}}"}})
		h.settle(time.Second)
		spec, _ := h.runtime.Spec("good")
		if spec.Hostname != "web-1" || spec.Container.Env[0] != "NODE=worker-1" {
			t.Errorf("hostname %q, environment %q", spec.Hostname, spec.Container.Env)
		}
		if s := h.manager.status("bad"); s.GetState() != stateRejected || !strings.Contains(s.GetError(), "{{.Secret}}: no such field; use one of") {
			t.Errorf("status is %v", s)
		}
	})
}

func TestAgent_NodeBlockComesLater_TasksWaitForIt(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.stop()
		h.manager.config = &swarmpb.NodeConfig{}
		h.net = &networktest.Fake{}
		must(t, (&db{path: h.dir + "/worker.db"}).wipe())
		h.start()
		h.manager.assign("a", stateRunning)
		h.settle(10 * time.Minute)
		if s := h.manager.status("a"); s.GetState() != swarmpb.TaskState_TASK_STATE_PREPARING || s.GetMessage() != "waiting for the node's address block" {
			t.Fatalf("status is %v", s)
		}
		h.manager.change(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_NodeConfig{NodeConfig: &swarmpb.NodeConfig{UplinkBlock: "100.64.9.0/24"}}})
		h.settle(time.Second)
		h.wantRunning("a")
	})
}

func TestAgent_RemoveAll_GracePeriodLongerThanItsTime_LeavesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assignSpec("a", stateRunning, &swarmpb.ContainerSpec{
			Image: runtimetest.ImageName, Args: []string{"ignore-term"}, StopGracePeriod: durationpb.New(time.Hour),
		})
		h.settle(time.Second)
		h.wantRunning("a")
		agent := h.agent
		h.stop()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		must(t, agent.RemoveAll(ctx))
		h.wantContainers()
	})
}

func TestAgent_RemoveAll_LeavesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning, "ignore-term")
		h.manager.assign("b", stateRunning)
		h.settle(time.Second)
		if err := h.agent.RemoveAll(t.Context()); err == nil {
			t.Error("removed all under a running agent")
		}
		agent := h.agent
		h.stop()
		must(t, agent.RemoveAll(t.Context()))
		h.wantContainers()
		if !h.net.TornDown() {
			t.Error("the network is still there")
		}
		h.manager.remove("a")
		h.manager.remove("b")
		h.start()
		h.settle(time.Second)
		h.wantContainers()
	})
}
