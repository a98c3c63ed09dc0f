package worker

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestClock_Measured_MidpointOfTheMostExactAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		if _, _, ok := c.read(); ok || c.problem() != nil {
			t.Error("compared without an answer")
		}
		answer := func(takes, managerAhead time.Duration) {
			beat := time.Now()
			time.Sleep(takes / 2)
			sent := time.Now().Add(managerAhead).UnixNano()
			time.Sleep(takes / 2)
			c.measure(beat, sent)
		}
		answer(100*time.Millisecond, time.Hour)
		if ahead, within, ok := c.read(); !ok || ahead != -time.Hour || within != 50*time.Millisecond {
			t.Errorf("ahead %s within %s, %v; want an hour behind within 50ms", ahead, within, ok)
		}
		if err := c.problem(); err == nil || !strings.Contains(err.Error(), "1h0m0s behind") {
			t.Errorf("problem: %v", err)
		}
		answer(4*time.Second, 3*time.Hour) // less exact, and no news yet
		if ahead, _, _ := c.read(); ahead != -time.Hour {
			t.Errorf("ahead %s", ahead)
		}
		answer(50*time.Millisecond, -500*time.Millisecond)
		if ahead, within, _ := c.read(); ahead != 500*time.Millisecond || within != 25*time.Millisecond || c.problem() != nil {
			t.Errorf("ahead %s within %s, problem %v", ahead, within, c.problem())
		}
		time.Sleep(time.Minute)
		answer(4*time.Second, time.Second) // that is 3 s at most, but may be none
		if ahead, _, ok := c.read(); !ok || ahead != -time.Second || c.problem() != nil {
			t.Errorf("ahead %s, %v, problem %v", ahead, ok, c.problem())
		}
		time.Sleep(10 * time.Minute)
		if _, _, ok := c.read(); ok {
			t.Error("an old answer still counts")
		}
	})
}

func TestClock_ManagersClockDiffers_IsAProblemOfTheHost(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.mu.Lock()
		h.manager.clock = -5 * time.Second
		h.manager.mu.Unlock()
		h.settle(5 * time.Second)
		if got := strings.Join(h.agent.Problems(), "\n"); !strings.Contains(got, "clock: this host is 5s ahead of the manager") {
			t.Errorf("problems are %q", got)
		}
		h.manager.mu.Lock()
		h.manager.clock = 0
		h.manager.mu.Unlock()
		h.settle(time.Minute)
		if got := h.agent.Problems(); len(got) != 0 {
			t.Errorf("problems are %q", got)
		}
	})
}
