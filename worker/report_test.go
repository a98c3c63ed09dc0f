package worker

import (
	"fmt"
	"testing"
	"time"
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
