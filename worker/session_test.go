package worker

import (
	"bytes"
	"slices"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	firstManager  = "192.0.2.9:2377"
	secondManager = "192.0.2.8:2377"
	thirdManager  = "192.0.2.7:2377"
)

func peersAt(addresses ...string) []*swarmpb.ManagerPeer {
	var out []*swarmpb.ManagerPeer
	for _, a := range addresses {
		out = append(out, &swarmpb.ManagerPeer{NodeId: "m" + a, Address: a, Weight: 1})
	}
	return out
}

// threeManagers gives the host three managers that know each other, and a session with one of them.
func threeManagers(h *host) map[string]*dispatcher {
	h.stop()
	h.managers = peersAt(firstManager, secondManager, thirdManager)
	all := map[string]*dispatcher{firstManager: h.manager, secondManager: h.addManager(secondManager).dispatcher, thirdManager: h.addManager(thirdManager).dispatcher}
	for _, d := range all {
		d.setPeers(h.managers...)
	}
	h.start()
	h.settle(5 * time.Second)
	return all
}

func (h *host) dialed() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.dials {
		n += k
	}
	return n
}

func TestSession_ManagerStopsAnswering_AnotherIsTried(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		all := threeManagers(h)
		at := h.agent.ConnectedTo()
		all[at].setMute(true)
		h.settle(2 * time.Second)
		if h.agent.ConnectedTo() != at {
			t.Error("it was given up too early")
		}
		h.settle(3 * time.Second)
		if now := h.agent.ConnectedTo(); now == at || now == "" {
			t.Errorf("connected to %q, which answers no more", now)
		}
	})
}

// A manager that is cut off from the others waits for a leader before it opens a session; the lease is 3 s.
func TestSession_OneManagerHangs_AnotherIsReachedWithinTheLease(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		all := threeManagers(h)
		at := h.agent.ConnectedTo()
		h.stop()
		all[at].mu.Lock()
		all[at].hangs = true
		all[at].mu.Unlock()
		before := h.dials[at]
		h.start() // it draws the same one first
		h.settle(2900 * time.Millisecond)
		if h.dials[at] == before {
			t.Fatal("the manager that hangs was not tried: this shows nothing")
		}
		if now := h.agent.ConnectedTo(); now == at || now == "" {
			t.Errorf("connected to %q", now)
		}
	})
}

func TestSession_NoManagerHasALeader_TriesAreFew(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		all := threeManagers(h)
		for _, d := range all {
			d.setMute(true)
		}
		before := h.dialed()
		h.settle(5 * time.Minute)
		if n := h.dialed() - before; n < 3 || n > 100 || len(h.dials) != 3 {
			t.Errorf("%d tries of %d managers in 5 minutes", n, len(h.dials))
		}
		for _, d := range all {
			d.setMute(false)
		}
		h.settle(10 * time.Second)
		before = h.dialed()
		h.settle(5 * time.Minute)
		if h.dialed() != before || h.agent.ConnectedTo() == "" {
			t.Error("no lasting session with managers that answer again")
		}
	})
}

func TestSession_ManagersThatEndSessionsAtOnce_AreTriedWithGrowingPauses(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		for _, d := range threeManagers(h) {
			d.setMute(true)
			close(d.stop)
		}
		before := h.dialed()
		h.settle(5 * time.Minute)
		if n := h.dialed() - before; n < 30 || n > 200 {
			t.Errorf("%d tries in 5 minutes", n)
		}
	})
}

func TestSession_OlderManagerNeverAnswers_IsKept(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.stop()
		h.manager.setMute(true)
		h.start()
		before := h.dialed()
		h.settle(10 * time.Minute)
		if h.dialed() != before || h.agent.ConnectedTo() != firstManager {
			t.Error("a manager that never answered was given up")
		}
	})
}

func TestSession_ManagerIsReplacedByAnOlderOne_IsKeptAfterOneTry(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.settle(5 * time.Second)
		h.manager.setMute(true)
		h.settle(time.Minute)
		before := h.dialed()
		h.settle(10 * time.Minute)
		if h.dialed() != before || h.agent.ConnectedTo() != firstManager {
			t.Error("no lasting session with an older manager")
		}
	})
}

func TestSession_ManagerStopsOrIsLost_AnotherIsReachedWithinAnInstant(t *testing.T) {
	for name, lose := range map[string]func(h *host, d *dispatcher){
		"planned": func(_ *host, d *dispatcher) { close(d.stop) },
		"lost": func(h *host, _ *dispatcher) {
			h.cut(true)
			h.cut(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *host) {
				all := threeManagers(h)
				at, before := h.agent.ConnectedTo(), h.dialed()
				lose(h, all[at])
				h.settle(150 * time.Millisecond)
				if now := h.agent.ConnectedTo(); now == at || now == "" || h.dialed() != before+1 {
					t.Errorf("connected to %q after %q, with %d tries", now, at, h.dialed()-before)
				}
				if p := h.agent.Problems(); len(p) != 0 {
					t.Errorf("problems are %q", p)
				}
			})
		})
	}
}

func TestSession_ManagerLeavesTheList_WorkerMovesOnAndComesBack(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		all := threeManagers(h)
		for _, d := range all {
			d.assign("a", stateRunning)
		}
		h.settle(time.Second)
		gone := h.agent.ConnectedTo()
		left := slices.DeleteFunc(slices.Clone(h.managers), func(p *swarmpb.ManagerPeer) bool { return p.Address == gone })
		for _, d := range all {
			d.setPeers(left...)
		}
		h.settle(4 * time.Second)
		now := h.agent.ConnectedTo()
		if now == gone || now == "" {
			t.Fatalf("connected to %q, which is no manager any more", now)
		}
		h.wantRunning("a")
		// The list shrinks to the one that was left, and grows again.
		for _, d := range all {
			d.setPeers(peersAt(gone)...)
		}
		h.settle(5 * time.Second)
		if got := h.agent.ConnectedTo(); got != gone {
			t.Errorf("connected to %q, want %q, the only manager", got, gone)
		}
		before := h.dialed()
		for _, d := range all {
			d.setPeers(h.managers...)
		}
		h.settle(time.Minute)
		if h.dialed() != before {
			t.Error("a session was given up though its manager is one")
		}
	})
}

func TestSession_ManagerUnderAnotherName_IsNotLeft(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		h.manager.setPeers(peersAt("10.0.0.1:2377")...) // as it calls itself
		before := h.dialed()
		h.settle(5 * time.Minute)
		if h.dialed() != before || h.agent.ConnectedTo() != firstManager {
			t.Error("the session was given up for the manager's address")
		}
	})
}

func TestSession_ManyWorkersLeaveAManager_NotAllAtOnce(t *testing.T) {
	times := map[time.Duration]bool{}
	for seed := range uint64(8) {
		m := newManagers(nil, seed)
		times[time.Duration(m.jitter()*float64(Limits{}.withDefaults().Leave)).Round(100*time.Millisecond)] = true
	}
	if len(times) < 4 {
		t.Errorf("eight workers leave at %d moments", len(times))
	}
}

func TestSpread_LargeCluster_TakesLongerButIsNotMissed(t *testing.T) {
	const atLeast, beat = 100 * time.Millisecond, 500 * time.Millisecond
	for nodes, want := range map[int]time.Duration{0: atLeast, 3: atLeast, 125: atLeast, 1000: 800 * time.Millisecond, 10_000: 1500 * time.Millisecond} {
		if got := spread(nodes, atLeast, beat); got != want {
			t.Errorf("%d nodes: %s, want %s", nodes, got, want)
		}
	}
	if got := spread(1000, atLeast, 0); got != atLeast {
		t.Errorf("before the first session: %s", got)
	}
}

func TestTell_RoleAndGossip_NewestFromManagersAndKeysFromTheDisk(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		config := func(role swarmpb.NodeRole, keys ...byte) {
			c := &swarmpb.NodeConfig{UplinkBlock: "100.64.3.0/24", Role: role}
			for _, k := range keys {
				c.GossipKeys = append(c.GossipKeys, bytes.Repeat([]byte{k}, 32))
			}
			h.manager.change(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_NodeConfig{NodeConfig: c}})
			h.settle(time.Second)
		}
		wantLast := func(role swarmpb.NodeRole, roles, gossips int, key byte, seeds ...string) {
			t.Helper()
			if len(h.role) != roles || len(h.gossip) != gossips {
				t.Fatalf("told %d roles and %d of gossip, want %d and %d", len(h.role), len(h.gossip), roles, gossips)
			}
			last := h.gossip[gossips-1]
			if roles > 0 && h.role[roles-1] != role || last.Keys[0][0] != key || !slices.Equal(last.Seeds, seeds) {
				t.Fatalf("told %v, %v", h.role, last)
			}
		}
		worker, manager := swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeRole_NODE_ROLE_MANAGER
		if len(h.role)+len(h.gossip) != 0 {
			t.Fatal("told what no one has said")
		}
		config(worker, 1)
		wantLast(worker, 1, 1, 1, "192.0.2.9:7946")
		config(worker, 1, 2)
		wantLast(worker, 1, 2, 1, "192.0.2.9:7946")
		h.manager.setPeers(peersAt(secondManager, firstManager)...)
		h.settle(time.Second)
		wantLast(worker, 1, 3, 1, "192.0.2.8:7946", "192.0.2.9:7946")
		config(manager, 2, 1)
		wantLast(manager, 2, 4, 2, "192.0.2.8:7946", "192.0.2.9:7946")

		h.cut(true)
		h.role, h.gossip = nil, nil
		h.restart()
		wantLast(manager, 0, 1, 2, "192.0.2.8:7946", "192.0.2.9:7946")
		h.cut(false)
		h.settle(10 * time.Second)
		wantLast(manager, 1, 1, 2, "192.0.2.8:7946", "192.0.2.9:7946")
	})
}
