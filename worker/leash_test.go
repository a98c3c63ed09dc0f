package worker

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const noContact = "stopped: no contact with any manager for 30s"

// assignTied has the node take a task that is not to go on for 30 s without contact.
func (d *dispatcher) assignTied(id string, desired swarmpb.TaskState, args ...string) {
	d.change(
		templateChange(&swarmpb.AssignedTemplate{ServiceId: "s-" + id, Version: 1, Spec: &swarmpb.TaskSpec{
			Container: &swarmpb.ContainerSpec{Image: "nginx:alpine", Args: args}, StopAfterDisconnect: durationpb.New(30 * time.Second),
		}}),
		taskChange(&swarmpb.AssignedTask{Id: id, ServiceId: "s-" + id, ServiceName: "db", Slot: 1, TemplateVersion: 1, DesiredState: desired}),
	)
}

// tiedHost runs a tied task and another one.
func tiedHost(t *testing.T, h *host, args ...string) {
	t.Helper()
	h.manager.assignTied("tied", stateRunning, args...)
	h.manager.assign("free", stateRunning)
	h.settle(5 * time.Second)
	h.wantRunning("free", "tied")
}

func (h *host) wantStops(n int) {
	h.Helper()
	if got := h.runtime.Calls(runtimetest.OpStop); got != n {
		h.Fatalf("%d stops, want %d", got, n)
	}
}

func TestLeash_CutOffForLess_NothingHappens(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		tiedHost(t, h)
		for range 5 {
			h.cut(true)
			h.settle(10 * time.Second)
			h.cut(false)
			h.settle(10 * time.Second)
		}
		h.wantRunning("free", "tied")
		h.wantStops(0)
		h.wantState("tied", stateRunning, "")
	})
}

func TestLeash_CutOffForLonger_StopsOnceAndSaysWhy(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		tiedHost(t, h)
		h.cut(true)
		h.settle(29 * time.Second)
		h.wantRunning("free", "tied")
		h.settle(2 * time.Second)
		h.wantRunning("free")
		h.settle(5 * time.Minute)
		h.wantStops(1)
		if s := h.manager.status("tied"); s.GetState() != stateRunning {
			t.Fatalf("the managers know more than they can: %v", s)
		}
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantState("tied", stateShutdown, noContact)
		h.wantRunning("free")
		h.wantStops(1)
		if h.runtime.Starts("tied") != 1 {
			t.Error("it was started again")
		}
	})
}

func TestLeash_ManagerWithoutALeader_IsNoContact(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		tiedHost(t, h)
		h.manager.setMute(true)
		h.settle(32 * time.Second)
		h.wantRunning("free")
		h.wantStops(1)
		h.settle(10 * time.Second)
		h.wantState("tied", stateShutdown, noContact)
	})
}

func TestLeash_ManagerAnswersJustBefore_GoesOnAndCountsAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.stop()
		h.limits.ReconnectMax = 200 * time.Millisecond
		h.start()
		tiedHost(t, h)
		h.cut(true)
		h.settle(29 * time.Second)
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantRunning("free", "tied")
		h.cut(true)
		h.settle(29 * time.Second)
		h.wantRunning("free", "tied")
		h.settle(2 * time.Second)
		h.wantRunning("free")
		h.wantStops(1)
	})
}

func TestLeash_AgentRestartsMeanwhile_TheRestOfTheTimeCounts(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		tiedHost(t, h)
		h.cut(true)
		h.settle(10 * time.Second)
		h.stop()
		h.settle(10 * time.Second)
		h.start() // takes a second
		h.settle(7 * time.Second)
		h.wantRunning("free", "tied")
		h.settle(4 * time.Second)
		h.wantRunning("free")
		h.restart()
		h.settle(time.Minute)
		h.wantStops(1)
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantState("tied", stateShutdown, noContact)
	})
}

func TestLeash_AgentDownForLonger_StopsAtItsStart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		tiedHost(t, h)
		h.cut(true)
		h.stop()
		h.settle(time.Minute)
		h.start()
		h.wantRunning("free")
		h.wantStops(1)
	})
}

func TestLeash_ManagersComeBackDuringTheGracePeriod_ItEndsAllTheSame(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		tiedHost(t, h, "ignore-term")
		h.cut(true)
		h.settle(31 * time.Second)
		h.wantRunning("free", "tied")
		h.cut(false)
		h.settle(5 * time.Second)
		if s := h.manager.status("tied"); s.GetState() != stateRunning || s.GetMessage() != "stopping: no contact with any manager for 30s" {
			t.Errorf("status is %v", s)
		}
		h.settle(10 * time.Second)
		h.wantRunning("free")
		h.wantState("tied", stateShutdown, noContact)
		h.wantStops(1)
	})
}

func TestLeash_NeverAnyContact_IsPreparedAndNotStarted(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.stop()
		h.manager.setMute(true)
		must(t, (&db{path: h.dir + "/worker.db"}).wipe())
		h.start()
		h.manager.assignTied("tied", stateRunning)
		h.manager.assign("free", stateRunning)
		h.settle(2 * time.Minute)
		h.wantRunning("free")
		if s := h.wantState("tied", stateReady, ""); s.GetMessage() != waitsForContact {
			t.Errorf("status is %v", s)
		}
		h.manager.setMute(false)
		h.settle(2 * time.Second)
		h.wantRunning("free", "tied")
		h.wantState("tied", stateRunning, "")
	})
}

func TestLeash_CutOffBeforeItsStart_IsNotStartedAnyMore(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.assignTied("late", stateReady)
		h.settle(5 * time.Second)
		h.wantState("late", stateReady, "")
		h.cut(true)
		h.settle(time.Minute)
		h.manager.desire("late", stateRunning)
		h.manager.setMute(true) // a manager without a leader streams what it has
		h.cut(false)
		h.settle(10 * time.Second)
		h.wantContainers()
		h.manager.setMute(false)
		h.settle(10 * time.Second)
		h.wantRunning("late")
	})
}

func TestContact_Restore_TakesTheLongerTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, host := thisMoment(), bootID()
		if host == "" {
			t.Skip("this host has no boot ID")
		}
		for name, c := range map[string]struct {
			record contactRecord
			age    time.Duration
			known  bool
		}{
			"both clocks say 5 s":          {contactRecord{host, now.boot - 5*time.Second, now.at.Add(-5 * time.Second).UnixNano()}, 5 * time.Second, true},
			"wall clock was put forward":   {contactRecord{host, now.boot - 5*time.Second, now.at.Add(-time.Hour).UnixNano()}, time.Hour, true},
			"wall clock was put back":      {contactRecord{host, now.boot - 5*time.Second, now.at.Add(time.Hour).UnixNano()}, 5 * time.Second, true},
			"both say the future":          {contactRecord{host, now.boot + time.Hour, now.at.Add(time.Hour).UnixNano()}, 0, true},
			"the host was started anew":    {contactRecord{"another", now.boot, now.at.UnixNano()}, 0, false},
			"a record without the boot ID": {contactRecord{"", now.boot, now.at.UnixNano()}, 0, false},
		} {
			value, err := json.Marshal(c.record)
			must(t, err)
			x := newContact()
			x.restore(value)
			// The second clock goes on in real time.
			if age, known := x.age(); known != c.known || age < c.age || age > c.age+time.Minute {
				t.Errorf("%s: contact %s ago, known %v; want %s, %v", name, age, known, c.age, c.known)
			}
		}
		x := newContact()
		x.restore([]byte("not JSON"))
		if _, known := x.age(); known {
			t.Error("a contact out of nothing")
		}
	})
}

func TestContact_Record_IsNeverLaterThanTheTruthAndSeldomWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, written := newContact(), 0
		if c.record(contactEvery) != nil {
			t.Error("a record without a contact")
		}
		for range 600 {
			m := thisMoment()
			time.Sleep(100 * time.Millisecond)
			if !c.touch(m) || c.touch(m) {
				t.Fatal("a moment is news, once")
			}
			value := c.record(contactEvery)
			if value == nil {
				continue
			}
			written++
			var r contactRecord
			must(t, json.Unmarshal(value, &r))
			if r.Wall > m.at.UnixNano() || r.Boot > m.boot {
				t.Fatal("the record is later than the contact")
			}
		}
		if written < 29 || written > 31 {
			t.Errorf("%d records in a minute, want one in 2 s", written)
		}
	})
}
