package worker

import (
	"sync"
	"testing"
	"time"
)

// rumours are what gossip says.
type rumours struct {
	mu      sync.Mutex
	dead    map[string]bool
	changed chan struct{}
}

func (r *rumours) Dead(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dead[id]
}

func (r *rumours) Changes() <-chan struct{} { return r.changed }

func (r *rumours) say(id string, dead bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead[id] = dead
	poke(r.changed)
}

// withRumours runs a test with a host that hears of nodes 2 and 3.
func withRumours(t *testing.T, test func(t *testing.T, h *host, r *rumours)) {
	inBubble(t, func(t *testing.T, h *host) {
		r := &rumours{dead: map[string]bool{}, changed: make(chan struct{}, 1)}
		h.hints = r
		h.restart()
		h.manager.networked()
		h.manager.change(peerRow("node-1", 1), peerRow("node-2", 2), peerRow("node-3", 3))
		h.settle(time.Second)
		test(t, h, r)
	})
}

func TestHints_NodeThatLooksDead_IsToldWithin100ms(t *testing.T) {
	withRumours(t, func(t *testing.T, h *host, r *rumours) {
		for _, dead := range []bool{true, false, true} {
			r.say("node-2", dead)
			h.settle(100 * time.Millisecond)
			if h.net.Dead("node-2") != dead || h.net.Dead("node-3") {
				t.Errorf("the network takes node 2 for dead: %v, want %v; node 3: %v", h.net.Dead("node-2"), dead, h.net.Dead("node-3"))
			}
		}
		r.say("node-4", true) // known to gossip first
		h.settle(time.Second)
		h.manager.change(peerRow("node-4", 4))
		h.settle(200 * time.Millisecond)
		if !h.net.Dead("node-4") {
			t.Error("a node that is told of later is not dead")
		}
	})
}

func TestHints_ManagersKnowBetter_TheirWordCounts(t *testing.T) {
	withRumours(t, func(t *testing.T, h *host, r *rumours) {
		r.say("node-2", true)
		r.say("node-1", true) // that is this node
		h.settle(15 * time.Second)
		if !h.net.Dead("node-2") || h.net.Dead("node-1") {
			t.Fatal("gossip is not believed, or believed of this node itself")
		}
		h.settle(10 * time.Second)
		if h.net.Dead("node-2") {
			t.Fatal("gossip is still believed, though the managers have kept the node for 25 s")
		}
		h.cut(true) // what they said last counts
		h.settle(time.Minute)
		if h.net.Dead("node-2") {
			t.Error("gossip is believed again without anything new")
		}
		r.say("node-2", false)
		h.settle(time.Second)
		r.say("node-2", true)
		r.say("node-3", true)
		h.settle(time.Hour)
		if !h.net.Dead("node-2") || !h.net.Dead("node-3") {
			t.Error("without managers gossip is not believed")
		}
		h.cut(false) // they need their time to see what gossip sees
		h.settle(10 * time.Second)
		if !h.net.Dead("node-2") {
			t.Error("gossip is not believed as soon as managers are back")
		}
		h.settle(30 * time.Second)
		if h.net.Dead("node-2") || h.net.Dead("node-3") {
			t.Error("gossip is still believed, though the managers have kept the nodes")
		}
	})
}
