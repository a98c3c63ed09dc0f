package manager

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// healthWorld has three managers that say how they are; n1 leads.
type healthWorld struct {
	t      *testing.T
	store  *store.Store
	raft   *fakeRaft
	mu     sync.Mutex
	health map[string]*swarmpb.ManagerHealth
}

func newHealthWorld(t *testing.T) *healthWorld {
	w := &healthWorld{t: t, store: store.New(), health: make(map[string]*swarmpb.ManagerHealth)}
	w.raft = &fakeRaft{members: []replica.Member{voterAt("n1", "10.0.0.1:1"), voterAt("n2", "10.0.0.2:1"), voterAt("n3", "10.0.0.3:1")}}
	putRows(t, w.store, map[string]row{"n1": managerAt(""), "n2": managerAt(""), "n3": managerAt("")})
	status := &swarmpb.NodeStatus{NodeId: "n2", State: nodeReady, Description: &swarmpb.NodeDescription{Hostname: "host-two"}}
	write := &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}}}}
	if _, err := store.NewLocalProposer(w.store).Propose(t.Context(), &swarmpb.Proposal{Writes: []*swarmpb.Write{write}, Now: 1}); err != nil {
		t.Fatal(err)
	}
	w.say("n1", &swarmpb.ManagerHealth{})
	w.say("n2", &swarmpb.ManagerHealth{})
	return w
}

func (w *healthWorld) say(id string, h *swarmpb.ManagerHealth) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.health[id] = h
}

func (w *healthWorld) of(id string) (*swarmpb.ManagerHealth, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h, ok := w.health[id]
	return h, ok
}

func (w *healthWorld) lead() (end func()) {
	h := &healthWatch{store: w.store, leader: store.NewLocalProposer(w.store), raft: w.raft, self: "n1", health: w.of, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- h.run(ctx) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("it ended with %v", err)
		}
	}
}

func (w *healthWorld) alarms() string {
	var all []string
	for a := range w.store.View().Alarms() {
		all = append(all, a.GetKind()+" "+a.GetObject())
	}
	return strings.Join(all, ", ")
}

func TestHealth_ManagersSayWhatIsWrong_AlarmsFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newHealthWorld(t)
		end := w.lead()
		expect := func(when, want string) {
			t.Helper()
			time.Sleep(2 * healthEvery)
			if got := w.alarms(); got != want {
				t.Fatalf("%s: alarms %q, want %q", when, got, want)
			}
		}
		expect("all is well", "")
		w.say("n2", &swarmpb.ManagerHealth{StepDowns: 2})
		expect("two step-downs", "")
		w.say("n2", &swarmpb.ManagerHealth{StepDowns: 3, LowSpace: true, FreeBytes: 100 << 20})
		expect("a bad disk", "disk-hangs n2, low-space n2")
		for kind, text := range map[string]string{AlarmDiskHangs: "3 times within a minute", AlarmLowSpace: "100 MiB"} {
			message := w.store.View().Alarm(kind, "n2").GetMessage()
			if !strings.Contains(message, "manager host-two") || !strings.Contains(message, text) {
				t.Errorf("%s says %q", kind, message)
			}
		}
		// The figures change all the time; an alarm is not written for that.
		index := w.store.View().Index()
		w.say("n2", &swarmpb.ManagerHealth{StepDowns: 4, LowSpace: true, FreeBytes: 99 << 20})
		expect("still bad", "disk-hangs n2, low-space n2")
		if w.store.View().Index() != index {
			t.Error("an alarm that stands was written again")
		}
		end()
		end = w.lead() // another leader
		w.say("n2", &swarmpb.ManagerHealth{StepDowns: 1, LowSpace: true})
		expect("one step-down is still in the minute", "disk-hangs n2, low-space n2")
		w.say("n2", &swarmpb.ManagerHealth{})
		expect("well again", "")

		w.say("n3", &swarmpb.ManagerHealth{LowSpace: true})
		expect("another one", "low-space n3")
		w.mu.Lock()
		delete(w.health, "n3")
		w.mu.Unlock()
		expect("it is silent", "low-space n3")
		w.raft.set(func() { w.raft.members = w.raft.members[:2] })
		expect("it is a manager no longer", "")
		end()
	})
}

func TestHealth_LeaderWithoutSpace_HandsOverToOneThatHasSome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newHealthWorld(t)
		defer w.lead()()
		w.say("n1", &swarmpb.ManagerHealth{LowSpace: true})
		w.say("n2", &swarmpb.ManagerHealth{LowSpace: true}) // and n3 says nothing
		time.Sleep(time.Minute)
		if w.raft.wentTo() != "" || w.alarms() != "low-space n1, low-space n2" {
			t.Fatalf("handed over to %q; alarms %s", w.raft.wentTo(), w.alarms())
		}
		w.raft.set(func() { w.raft.behind = map[string]bool{"n3": true} })
		w.say("n3", &swarmpb.ManagerHealth{})
		time.Sleep(time.Minute)
		if w.raft.wentTo() != "" {
			t.Fatalf("handed over to %q, which does not answer", w.raft.wentTo())
		}
		w.raft.set(func() {
			w.raft.behind = nil
			w.raft.fail = func(string) error { return errors.New("it did not work") }
		})
		time.Sleep(time.Minute)
		if n := w.raft.count("hand over to n3"); n < 3 || n > 7 {
			t.Errorf("%d attempts in a minute", n)
		}
		w.raft.set(func() { w.raft.fail = nil })
		time.Sleep(2 * handOverPause)
		if w.raft.wentTo() != "n3" {
			t.Errorf("leadership went to %q", w.raft.wentTo())
		}
	})
}
