package dispatcher

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	unknown      = swarmpb.NodeState_NODE_STATE_UNKNOWN
	ready        = swarmpb.NodeState_NODE_STATE_READY
	down         = swarmpb.NodeState_NODE_STATE_DOWN
	disconnected = swarmpb.NodeState_NODE_STATE_DISCONNECTED
)

// leaseWorld drives a lease table: nodes beat under keepers, which report, and judgements become states at once.
type leaseWorld struct {
	table  *leaseTable
	now    time.Time
	states map[string]swarmpb.NodeState
	order  []string
	// under is the keeper of each beating node; lastBeat is kept by the keeper.
	under    map[string]string
	lastBeat map[string]map[string]time.Time
	lost     map[string]bool
}

func newLeaseWorld(state swarmpb.NodeState, nodes ...string) *leaseWorld {
	w := &leaseWorld{
		now: time.Unix(1000, 0), states: make(map[string]swarmpb.NodeState), order: nodes,
		under: make(map[string]string), lastBeat: make(map[string]map[string]time.Time), lost: make(map[string]bool),
	}
	for _, id := range nodes {
		w.states[id] = state
	}
	w.elect()
	return w
}

// elect begins a new term.
func (w *leaseWorld) elect() { w.table = newLeaseTable(Limits{}.withDefaults(), w.now) }

func (w *leaseWorld) connect(keeper string, nodes ...string) {
	for _, id := range nodes {
		w.under[id] = keeper
	}
}

func (w *leaseWorld) silence(nodes ...string) {
	for _, id := range nodes {
		delete(w.under, id)
	}
}

func (w *leaseWorld) advance(d time.Duration) {
	const step = 250 * time.Millisecond
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(step)
		for id, keeper := range w.under {
			if w.lastBeat[keeper] == nil {
				w.lastBeat[keeper] = make(map[string]time.Time)
			}
			w.lastBeat[keeper][id] = w.now
		}
		for keeper, beats := range w.lastBeat {
			if w.lost[keeper] {
				continue
			}
			report := &Report{Keeper: keeper}
			for id, last := range beats {
				report.Beats = append(report.Beats, Beat{NodeID: id, SessionID: keeper + id, BootID: "b", Age: w.now.Sub(last), Ended: w.under[id] != keeper})
			}
			w.table.report(w.now, report)
		}
		var members []member
		for _, id := range w.order {
			members = append(members, member{id, w.states[id]})
		}
		for _, j := range w.table.judge(w.now, members) {
			w.states[j.id] = j.state
		}
	}
}

func (w *leaseWorld) expect(t *testing.T, state swarmpb.NodeState, nodes ...string) {
	t.Helper()
	for _, id := range nodes {
		if w.states[id] != state {
			t.Errorf("node %s is %s, want %s", id, w.states[id].Name(), state.Name())
		}
	}
}

func TestLease_FirstBeat_MakesReady(t *testing.T) {
	w := newLeaseWorld(unknown, "a", "b")
	w.connect("m", "a")
	w.advance(time.Second)
	w.expect(t, ready, "a")
	w.expect(t, unknown, "b")
	w.advance(time.Minute)
	w.expect(t, unknown, "b")
}

func TestLease_NodeSilent_DownAfterLeaseAndReadyAgain(t *testing.T) {
	w := newLeaseWorld(ready, "a", "b", "c", "d")
	w.connect("m", "a", "b", "c", "d")
	w.advance(time.Second)
	w.silence("a")
	w.advance(2750 * time.Millisecond)
	w.expect(t, ready, "a")
	w.advance(250 * time.Millisecond)
	w.expect(t, down, "a")
	w.advance(time.Minute)
	w.expect(t, down, "a")
	w.expect(t, ready, "b", "c", "d")
	w.connect("m", "a")
	w.advance(250 * time.Millisecond)
	w.expect(t, ready, "a")
}

func TestLease_NewLeader_GivesReconnectLease(t *testing.T) {
	w := newLeaseWorld(ready, "a", "b", "c", "d")
	w.connect("m", "b", "c", "d")
	w.advance(2750 * time.Millisecond)
	w.expect(t, ready, "a")
	w.advance(time.Second)
	w.expect(t, disconnected, "a")
	w.advance(11 * time.Second)
	w.expect(t, disconnected, "a")
	w.advance(time.Second)
	w.expect(t, down, "a")
}

func TestLease_NewLeader_TakesAgesFromLivingKeepers(t *testing.T) {
	w := newLeaseWorld(ready, "a", "b", "c", "d")
	w.connect("m", "a", "b", "c", "d")
	w.advance(time.Second)
	w.silence("a")
	w.advance(2 * time.Second)
	w.elect()
	w.advance(2 * time.Second)
	w.expect(t, ready, "a") // it may have been with the leader that is lost
	w.advance(time.Second)
	w.expect(t, down, "a")
}

// The leader is lost together with the session that a node has with it, while another manager remembers one that the node
// had there before.
func TestLease_LeaderLostWithASession_AnEarlierOneElsewhereSaysNothing(t *testing.T) {
	for _, ago := range []time.Duration{500 * time.Millisecond, 2 * time.Second, 4 * time.Second, 10 * time.Second} {
		t.Run(ago.String(), func(t *testing.T) {
			w := newLeaseWorld(ready, "a", "b", "c", "d")
			w.connect("m", "a", "b", "c", "d")
			w.advance(5 * time.Second)
			w.connect("leader", "a")
			w.advance(ago)
			w.lost["leader"] = true
			w.silence("a")
			w.advance(750 * time.Millisecond)
			w.elect()
			w.advance(2500 * time.Millisecond)
			w.expect(t, ready, "b", "c", "d")
			if w.states["a"] == down {
				t.Error("a node that looks for another manager is called down")
			}
			w.connect("n", "a")
			w.advance(time.Second)
			w.expect(t, ready, "a", "b", "c", "d")
		})
	}
}

func TestLease_KeeperLost_NodesMoveWithoutGoingDown(t *testing.T) {
	w := newLeaseWorld(ready, "a", "b", "c", "d")
	w.connect("m1", "a", "b")
	w.connect("m2", "c", "d")
	w.advance(time.Second)
	w.lost["m1"] = true
	w.silence("a", "b")
	w.advance(2 * time.Second)
	w.expect(t, ready, "a", "b")
	w.connect("m2", "a")
	w.advance(2 * time.Second)
	w.expect(t, ready, "a")
	w.expect(t, disconnected, "b")
	w.advance(15 * time.Second)
	w.expect(t, down, "b")
}

func TestLease_NodeMoves_OldKeeperDoesNotCallItDown(t *testing.T) {
	w := newLeaseWorld(ready, "a", "b", "c", "d")
	w.connect("m1", "a", "b", "c", "d")
	w.advance(time.Second)
	w.connect("m2", "a")
	w.advance(time.Minute)
	w.expect(t, ready, "a", "b", "c", "d")
}

func TestBrake_ThirdOfNodesVanish_Held(t *testing.T) {
	nodes := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	w := newLeaseWorld(ready, nodes...)
	w.connect("m", nodes...)
	w.advance(time.Second)
	w.silence("a", "b")
	w.advance(500 * time.Millisecond)
	w.silence("c")
	w.advance(10 * time.Second)
	w.expect(t, disconnected, "a", "b", "c")
	if held := w.table.heldNodes(); len(held) != 3 {
		t.Errorf("held %v, want 3 nodes", held)
	}
	w.advance(time.Hour)
	w.expect(t, disconnected, "a", "b", "c")
	w.connect("m", "a", "b", "c")
	w.advance(time.Second)
	w.expect(t, ready, nodes...)
	if held := w.table.heldNodes(); len(held) != 0 {
		t.Errorf("held %v after return", held)
	}
}

func TestBrake_TooFewOrTooSlow_Down(t *testing.T) {
	t.Run("two of three", func(t *testing.T) {
		w := newLeaseWorld(ready, "a", "b", "c")
		w.connect("m", "a", "b", "c")
		w.advance(time.Second)
		w.silence("a", "b")
		w.advance(4 * time.Second)
		w.expect(t, down, "a", "b")
	})
	t.Run("three of ten", func(t *testing.T) {
		nodes := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}
		w := newLeaseWorld(ready, nodes...)
		w.connect("m", nodes...)
		w.advance(time.Second)
		w.silence("a", "b", "c")
		w.advance(4 * time.Second)
		w.expect(t, down, "a", "b", "c")
	})
	t.Run("one after the other", func(t *testing.T) {
		w := newLeaseWorld(ready, "a", "b", "c", "d")
		w.connect("m", "a", "b", "c", "d")
		for _, id := range []string{"a", "b", "c"} {
			w.advance(5 * time.Second)
			w.silence(id)
		}
		w.advance(5 * time.Second)
		w.expect(t, down, "a", "b", "c")
	})
}

func TestBrake_NewLeaderFindsNobody_Held(t *testing.T) {
	w := newLeaseWorld(ready, "a", "b", "c", "d")
	w.connect("m", "a")
	w.advance(20 * time.Second)
	w.expect(t, ready, "a")
	w.expect(t, disconnected, "b", "c", "d")
	w.elect()
	for _, id := range []string{"b", "c", "d"} {
		w.table.hold(id)
	}
	w.connect("m", "b", "c")
	w.advance(time.Hour)
	w.expect(t, ready, "a", "b", "c")
	w.expect(t, disconnected, "d")
}

func TestBrake_HeldNodeRemoved_Forgotten(t *testing.T) {
	w := newLeaseWorld(ready, "a", "b", "c", "d")
	w.connect("m", "a")
	w.advance(20 * time.Second)
	w.order = []string{"a"}
	w.advance(time.Second)
	if held := w.table.heldNodes(); len(held) != 0 {
		t.Errorf("held %v after removal", held)
	}
}

// TestContend_CloneUnderAnotherKeeper_RefusedWhileHolderBeats covers what one keeper cannot see alone.
func TestContend_CloneUnderAnotherKeeper_RefusedWhileHolderBeats(t *testing.T) {
	start := time.Unix(1000, 0)
	table := newLeaseTable(Limits{}.withDefaults(), start)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	report := func(ms int, keeper, session, boot string) *Verdict {
		return table.report(at(ms), &Report{Keeper: keeper, Beats: []Beat{{NodeID: "n", SessionID: session, BootID: boot}}})
	}
	report(0, "m1", "s1", "b1")
	if v := report(100, "m2", "s2", "b2"); len(v.End) != 0 {
		t.Fatalf("the claimant is refused before the holder could beat: %v", v.End)
	}
	report(500, "m1", "s1", "b1")
	if v := report(600, "m2", "s2", "b2"); v.End["s2"] == "" {
		t.Fatal("the clone is not refused")
	}
	// The same process on a new connection, or a restart once the holder has missed its beats, takes over.
	if v := report(700, "m2", "s3", "b1"); len(v.End) != 0 || table.nodes["n"].session != "s3" {
		t.Fatalf("reconnect: verdict %v, holder %s", v.End, table.nodes["n"].session)
	}
	if v := report(1800, "m1", "s4", "b4"); len(v.End) != 0 || table.nodes["n"].session != "s4" {
		t.Fatalf("restart: verdict %v, holder %s", v.End, table.nodes["n"].session)
	}
}

// TestLease_RandomHistory_LiveNodesAreReady: whatever comes and goes, a node that beats under a living keeper is
// never called down, and every node that has been silent for long is not READY.
func TestLease_RandomHistory_LiveNodesAreReady(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "nodes")
		var nodes []string
		for i := range n {
			nodes = append(nodes, fmt.Sprintf("n%d", i))
		}
		w := newLeaseWorld(unknown, nodes...)
		quiet := make(map[string]time.Duration)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			id := rapid.SampledFrom(nodes).Draw(t, "node")
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				if keeper := rapid.SampledFrom([]string{"m1", "m2"}).Draw(t, "keeper"); !w.lost[keeper] {
					w.connect(keeper, id)
				}
			case 2:
				w.silence(id)
			case 3:
				w.elect()
			case 4:
				keeper := rapid.SampledFrom([]string{"m1", "m2"}).Draw(t, "lost")
				w.lost[keeper] = !w.lost[keeper]
				for id, k := range w.under {
					if k == keeper && w.lost[keeper] {
						w.silence(id)
					}
				}
			}
			d := time.Duration(rapid.IntRange(1, 100).Draw(t, "quarters")) * 250 * time.Millisecond
			w.advance(d)
			for _, id := range nodes {
				keeper, beats := w.under[id]
				if beats && !w.lost[keeper] {
					quiet[id] = 0
					if w.states[id] != ready {
						t.Fatalf("node %s beats under %s and is %s", id, keeper, w.states[id].Name())
					}
					continue
				}
				if quiet[id] += d; quiet[id] > 40*time.Second && w.states[id] == ready {
					t.Fatalf("node %s is silent for %s and READY", id, quiet[id])
				}
			}
		}
	})
}
