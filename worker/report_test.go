package worker

import (
	"fmt"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestReporter_ContainerDiesAfterAQuietTime_ManagersKnowAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assign("a", stateRunning)
		h.settle(5 * time.Second)
		if err := h.runtime.Exit("a", 3); err != nil {
			t.Fatal(err)
		}
		h.settle(h.agent.cfg.Limits.StatusDelay / 10)
		if got := h.manager.status("a").GetState(); got != stateFailed {
			t.Errorf("task is reported %s, want failed", got.Name())
		}
	})
}

// To take its links away lasts, and all that while the other nodes would send to it.
func TestReporter_ContainerDies_ManagersKnowBeforeItsNetworkIsAway(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.net.SlowDetach(time.Second)
		h.manager.assign("a", stateRunning)
		h.manager.assignSpec("b", stateRunning, &swarmpb.ContainerSpec{Image: "nginx:alpine"}, &swarmpb.PortConfig{TargetPort: 80, PublishedPort: 8080})
		h.settle(5 * time.Second)
		for _, id := range []string{"a", "b"} {
			if err := h.runtime.Exit(id, 3); err != nil {
				t.Fatal(err)
			}
		}
		h.settle(h.agent.cfg.Limits.StatusDelay)
		if got := h.manager.status("a").GetState(); got != stateFailed || len(h.net.Attached()) != 2 {
			t.Errorf("task is reported %s while %q are attached, want failed at once", got.Name(), h.net.Attached())
		}
		for ended := time.Now(); h.manager.status("b").GetState() != stateFailed; h.settle(h.agent.cfg.Limits.StatusDelay) {
			if time.Since(ended) > 5*time.Second {
				t.Fatal("the task with a host port is never reported to have ended")
			}
		}
		if ports := h.net.Ports(); len(ports) > 0 {
			t.Errorf("it is reported to have ended while it has ports %v, which its successor wants", ports)
		}
		h.settle(5 * time.Second)
		if left := h.net.Attached(); len(left) > 0 {
			t.Errorf("%q are still attached", left)
		}
	})
}

func TestReporter_ManyContainersDieOneByOne_CallsStayBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		const tasks = 50
		for i := range tasks {
			h.manager.assign(fmt.Sprint("t", i), stateRunning)
		}
		h.settle(10 * time.Second)
		h.manager.mu.Lock()
		before := len(h.manager.calls)
		h.manager.mu.Unlock()
		for i := range tasks {
			if err := h.runtime.Exit(fmt.Sprint("t", i), 1); err != nil {
				t.Fatal(err)
			}
			h.settle(10 * time.Millisecond)
		}
		h.settle(time.Second)
		h.manager.mu.Lock()
		calls := len(h.manager.calls) - before
		h.manager.mu.Unlock()
		if limit := tasks*10/100 + 2; calls > limit {
			t.Errorf("%d calls in half a second, want at most %d", calls, limit)
		}
		h.wantState("t49", stateFailed, "exit code 1")
	})
}
