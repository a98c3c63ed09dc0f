package dispatcher

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// gossip is what a test says that gossip knows.
type gossip struct {
	mu          sync.Mutex
	dead        map[string]bool
	answers     map[string]bool
	probes      map[string]int
	busy, most  int
	hangs       bool
	lastAddress string
}

func newGossip() *gossip {
	return &gossip{dead: make(map[string]bool), answers: make(map[string]bool), probes: make(map[string]int)}
}

func (g *gossip) call(dead bool, nodes ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range nodes {
		g.dead[id] = dead
	}
}

func (g *gossip) hang() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hangs = true
}

func (g *gossip) Dead(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dead[id]
}

func (g *gossip) Probe(ctx context.Context, id, address string) error {
	g.mu.Lock()
	g.probes[id]++
	g.busy++
	g.most = max(g.most, g.busy)
	g.lastAddress = address
	answers, hangs := g.answers[id], g.hangs
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		g.busy--
		g.mu.Unlock()
	}()
	switch {
	case hangs:
		<-ctx.Done()
		return ctx.Err()
	case answers:
		return nil
	}
	return errors.New("no answer")
}

func (g *gossip) probed(id string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.probes[id]
}

// eight nodes are enough that one or two lost ones are no third.
var eight = []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"}

// afterLoss loses m2, the keeper of some nodes, of which the last returns elsewhere at once; the rest are under m3.
func afterLoss(t *testing.T, g *gossip, lost int, test func(t *testing.T, f *fleet)) {
	inFleet(t, []string{"m1", "m2", "m3"}, append([]string{}, eight...), g, func(t *testing.T, f *fleet) {
		for i, id := range eight {
			keeper := "m3"
			if i <= lost {
				keeper = "m2"
			}
			f.managers[keeper].mustConnect(id, "b")
		}
		time.Sleep(2 * time.Second)
		f.kill("m2")
		f.managers["m3"].mustConnect(eight[lost], "b")
		test(t, f)
	})
}

func TestHints_KeeperLostAndNodeDead_DownAfterALease(t *testing.T) {
	g := newGossip()
	afterLoss(t, g, 1, func(t *testing.T, f *fleet) {
		g.call(true, eight...) // those that a keeper hears included
		g.hang()               // a probe that gets no answer lasts as long as it may
		time.Sleep(2500 * time.Millisecond)
		f.managers["m1"].expectState("n1", ready)
		time.Sleep(1500 * time.Millisecond)
		f.managers["m1"].expectState("n1", down)
		time.Sleep(20 * time.Second)
		for _, id := range eight[1:] {
			f.managers["m1"].expectState(id, ready)
			if g.probed(id) > 0 {
				t.Errorf("node %s is probed while a keeper hears it", id)
			}
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.lastAddress != "10.0.0.7" {
			t.Errorf("probed at %q", g.lastAddress)
		}
	})
}

func TestHints_HalfAHint_ReconnectLeaseRuns(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(*gossip)
	}{
		{"dead by gossip alone", func(g *gossip) { g.call(true, "n1"); g.answers["n1"] = true }},
		{"alive by gossip", func(*gossip) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGossip()
			tc.set(g)
			afterLoss(t, g, 1, func(t *testing.T, f *fleet) {
				time.Sleep(13 * time.Second)
				f.managers["m1"].expectState("n1", disconnected)
				if n := g.probed("n1"); (n > 0) != g.Dead("n1") || n > 8 {
					t.Errorf("%d probes", n)
				}
				time.Sleep(3 * time.Second)
				f.managers["m1"].expectState("n1", down)
			})
		})
	}
}

func TestHints_ManyDead_BrakeHolds(t *testing.T) {
	g := newGossip()
	afterLoss(t, g, 4, func(t *testing.T, f *fleet) {
		g.call(true, eight[:4]...)
		time.Sleep(13 * time.Second)
		for _, id := range eight[:4] {
			f.managers["m1"].expectState(id, disconnected)
		}
		time.Sleep(10 * time.Second)
		f.managers["m1"].expectState("n1", disconnected)
		if f.view().Alarm(AlarmNodesHeld, alarmCluster) == nil {
			t.Error("there is no alarm")
		}
	})
}

// TestHints_OthersReturnLate_DeadOneIsNotHeld: one dead node among many that are on their way back waits for them, and
// is down once they are there.
func TestHints_OthersReturnLate_DeadOneIsNotHeld(t *testing.T) {
	g := newGossip()
	afterLoss(t, g, 4, func(t *testing.T, f *fleet) {
		g.call(true, "n1")
		time.Sleep(5 * time.Second)
		f.managers["m1"].expectState("n1", disconnected)
		for _, id := range eight[1:4] {
			f.managers["m3"].mustConnect(id, "b")
		}
		time.Sleep(3 * time.Second)
		f.managers["m1"].expectState("n1", down)
		if f.view().Alarm(AlarmNodesHeld, alarmCluster) != nil {
			t.Error("nodes are held")
		}
	})
}

func TestHints_ManyProbes_BoundedAndJudgementGoesOn(t *testing.T) {
	g := newGossip()
	g.hangs = true
	synctest.Test(t, func(t *testing.T) {
		var nodes []string
		for i := range 100 {
			nodes = append(nodes, swarmpb.DerivedID("node", string(rune('a'+i/26)), string(rune('a'+i%26))))
		}
		c, stop := startManager(t, context.Background(), newWorld(t, nodes...), "m", func(cfg *Config) { cfg.Hints = g })
		defer stop()
		for _, id := range nodes {
			c.put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id, State: ready}}})
		}
		g.call(true, nodes[1:]...)
		c.lead()
		time.Sleep(5 * time.Second)
		c.mustConnect(nodes[0], "b")
		synctest.Wait()
		c.expectState(nodes[0], ready)
		most, probed := 0, 0
		for deadline := time.Now().Add(10 * time.Second); probed < 99 && time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
			g.mu.Lock()
			most, probed = g.most, len(g.probes)
			g.mu.Unlock()
		}
		if most != maxProbes || probed < 99 {
			t.Errorf("%d probes at a time, of %d nodes", most, probed)
		}
		c.endLead()
		if g.busy != 0 {
			t.Error("a probe outlives the term")
		}
	})
}

// TestLease_Probed_OnlyForAMomentAndNotForTheHeard: the table's part in hints.
func TestLease_Probed_OnlyForAMomentAndNotForTheHeard(t *testing.T) {
	type lost struct{ keeper, probed, answered bool }
	for _, tc := range []struct {
		name string
		lost
		at, judged time.Duration // the probe, and the judgement, since the loss
		want       swarmpb.NodeState
	}{
		{"keeper lives", lost{keeper: false, probed: true}, 4 * time.Second, 4 * time.Second, ready},
		{"no probe", lost{keeper: true}, 0, 4 * time.Second, disconnected},
		{"before a lease is over", lost{keeper: true, probed: true}, 2 * time.Second, 2 * time.Second, ready},
		{"failed", lost{keeper: true, probed: true}, 4 * time.Second, 4 * time.Second, down},
		{"failed a while ago", lost{keeper: true, probed: true}, 4 * time.Second, 7 * time.Second, disconnected},
		{"answered later", lost{keeper: true, probed: true, answered: true}, 4 * time.Second, 4 * time.Second, disconnected},
	} {
		t.Run(tc.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			table := newLeaseTable(Limits{}.withDefaults(), start)
			beats := func(at time.Time) {
				table.report(at, &Report{Keeper: "m", Beats: []Beat{{NodeID: "n", SessionID: "s", BootID: "b"}}})
			}
			beats(start)
			if !tc.keeper {
				beats(start.Add(tc.judged))
			}
			if tc.probed {
				table.probed(start.Add(tc.at), "n", true)
			}
			if tc.answered {
				table.probed(start.Add(tc.at), "n", false)
			}
			got := ready
			for _, j := range table.judge(start.Add(tc.judged), []member{{"n", ready}}) {
				got = j.state
			}
			if got != tc.want {
				t.Errorf("the node is %s, want %s", got.Name(), tc.want.Name())
			}
		})
	}
}
