package worker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network"
)

// assignGuest has the node attach process 7 to a network.
func (h *host) assignGuest(id string) {
	h.manager.change(
		templateChange(&swarmpb.AssignedTemplate{ServiceId: "service-of-" + id, Version: 1, Spec: &swarmpb.TaskSpec{
			Guest:   &swarmpb.Guest{NodeId: "node-1", Pid: 7, Namespace: "net:[8]"},
			Restart: &swarmpb.RestartPolicy{Condition: swarmpb.RestartCondition_RESTART_CONDITION_NONE}}}),
		taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: "service-of-" + id, ServiceName: "back/db", Slot: 1, TemplateVersion: 1, DesiredState: stateRunning,
			Networks: []*swarmpb.NetworkAddress{{NetworkId: "back", Address: "10.0.4.9"}}}),
	)
}

func (h *host) wantGuests(ids ...string) {
	h.Helper()
	if got := h.net.Guests(); !slices.Equal(got, ids) {
		h.Fatalf("guests are %q, want %q", got, ids)
	}
}

func TestGuest_Attached_RunsUntilItHasGone(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignGuest("a")
		h.settle(time.Second)
		s := h.wantState("a", stateRunning, "")
		if s.GetMessage() != "attached" || s.GetAddress() != "" || s.GetContainer().GetPid() != 7 {
			t.Errorf("status is %v", s)
		}
		if got := h.net.Request("a"); *got.Guest != (network.Guest{PID: 7, Namespace: "net:[8]"}) || len(got.Networks) != 1 {
			t.Errorf("asked to attach %v", got)
		}
		h.settle(time.Hour)
		h.wantState("a", stateRunning, "")
		h.net.Leave("a")
		h.settle(time.Second)
		if s := h.wantState("a", stateComplete, ""); s.GetMessage() != "process 7 has ended" {
			t.Errorf("message is %q", s.GetMessage())
		}
		h.wantGuests()
		h.wantContainers()
	})
}

func TestGuest_AgentRestarts_GoesOnAttached(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignGuest("a")
		h.settle(time.Second)
		h.restart()
		h.settle(time.Minute)
		if s := h.wantState("a", stateRunning, ""); s.GetContainer().GetPid() != 7 || s.GetContainer().GetContainerId() != "" {
			t.Errorf("after a restart it is %v", s.GetContainer())
		}
		h.wantGuests("a")
		h.manager.remove("a")
		h.settle(time.Second)
		h.wantGuests()
	})
}

// The record of an attachment is written before anything is made: one that a former process did not come to the end of is made again.
func TestGuest_AgentDiesWhileItAttaches_TheNextOneGoesOn(t *testing.T) {
	for _, state := range []swarmpb.TaskState{stateReady, stateStarting} {
		inBubble(t, func(t *testing.T, h *host) {
			h.assignGuest("a")
			h.settle(time.Second)
			h.forgetStatus(t, &swarmpb.TaskStatus{TaskId: "a", State: state, At: time.Now().UnixNano()})
			h.start()
			h.settle(time.Second)
			if s := h.wantState("a", stateRunning, ""); s.GetMessage() != "attached" || s.GetContainer().GetPid() != 7 {
				t.Errorf("after a death at %s it is %v", state.Name(), s)
			}
			h.wantGuests("a")
		})
	}
}

func TestGuest_Disconnected_OrStopped_IsLetGo(t *testing.T) {
	for _, how := range []string{"removed", "stopped"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *host) {
				h.manager.networked()
				h.assignGuest("a")
				h.settle(time.Second)
				if how == "removed" {
					h.manager.remove("a")
				} else {
					h.tell("a", stateShutdown, false)
				}
				h.settle(time.Second)
				h.wantGuests()
				if how == "stopped" {
					h.wantState("a", stateShutdown, "")
				}
			})
		})
	}
}

func TestGuest_ThatCannotBeAttached_IsRejectedWithTheReason(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.net.RefuseAttach("a", fmt.Errorf("%w: there is no process 7 on this node", network.ErrUnsuited))
		h.assignGuest("a")
		h.settle(time.Second)
		h.wantState("a", swarmpb.TaskState_TASK_STATE_REJECTED, "it cannot be attached: there is no process 7 on this node")
		h.wantGuests()
	})
}

// What a former process attached for a task that is not this node's any more is let go.
func TestGuest_RecordsLost_IsLetGo(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.assignGuest("a")
		h.settle(time.Second)
		h.stop()
		h.dir = t.TempDir()
		h.manager.remove("a")
		h.start()
		h.settle(time.Minute)
		h.wantGuests()
	})
}
