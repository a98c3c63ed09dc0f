package worker

import (
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/networktest"
)

func TestStart_DoesNotListenYet_RunsOnceItDoes(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.net.SetDeaf("a", true)
		h.assignReached("a", time.Minute)
		h.settle(time.Second)
		h.wantState("a", swarmpb.TaskState_TASK_STATE_STARTING, "")
		h.net.SetDeaf("a", false)
		h.settle(time.Second)
		h.wantState("a", stateRunning, "")
	})
}

func TestStart_NeverListens_RunsAllTheSame(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.networked()
		h.net.SetDeaf("a", true)
		h.assignReached("a", time.Minute)
		h.settle(networktest.ListensWithin + time.Second)
		h.wantState("a", stateRunning, "")
	})
}
