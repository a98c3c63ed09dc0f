package ca

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// keyWorld is a cluster whose keys rotate in virtual time; it must be made in a bubble.
type keyWorld struct {
	t      *testing.T
	store  *store.Store
	server *Server
	leader *keyLeader

	mu    sync.Mutex
	acks  map[string]uint64 // nodes that are not in it have no session
	stuck map[string]bool   // nodes that acknowledge nothing new
}

// keyLeader proposes in a term and can be made to fail.
type keyLeader struct {
	*store.LocalProposer
	term uint64
	mu   sync.Mutex
	err  error
}

func (l *keyLeader) Term() uint64 { return l.term }

func (l *keyLeader) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	l.mu.Lock()
	err := l.err
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	p = swarmpb.Clone(p)
	if p.GetTerm() != l.term {
		return nil, errors.New("a proposal without the leader's term")
	}
	p.Term = l.LocalProposer.Term()
	return l.LocalProposer.Propose(ctx, p)
}

func (l *keyLeader) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func newKeyWorld(t *testing.T, nodes ...string) *keyWorld {
	w := &keyWorld{t: t, store: store.New(), acks: make(map[string]uint64), stuck: make(map[string]bool)}
	w.leader = &keyLeader{LocalProposer: store.NewLocalProposer(w.store), term: 1}
	var err error
	w.server, err = New(Config{
		Store: func() *store.Store { return w.store }, Proposer: w.leader.LocalProposer,
		ReadIndex: func(context.Context) (uint64, error) { return w.store.View().Index(), nil },
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{
		Id: "c1", Spec: &swarmpb.ClusterSpec{GossipKeyRotation: durationpb.New(2 * time.Hour)},
	}}})
	for _, id := range nodes {
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}})
		w.state(id, swarmpb.NodeState_NODE_STATE_READY)
		w.acks[id] = 0
	}
	return w
}

func (w *keyWorld) put(row *swarmpb.Row) {
	w.t.Helper()
	_, err := w.leader.LocalProposer.Propose(w.t.Context(), &swarmpb.Proposal{Writes: []*swarmpb.Write{put(row)}, Now: time.Now().UnixNano()})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *keyWorld) state(id string, state swarmpb.NodeState) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id, State: state}}})
}

// acked acknowledges at once, except for nodes that are stuck.
func (w *keyWorld) acked(id string) (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.acks[id]; ok && !w.stuck[id] {
		w.acks[id] = w.store.View().Index()
	}
	index, ok := w.acks[id]
	return index, ok
}

func (w *keyWorld) setStuck(id string, stuck bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stuck[id] = stuck
}

func (w *keyWorld) lead() (end func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.server.Lead(ctx, w.leader, w.acked) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("Lead ended with %v", err)
		}
		w.leader.term++
	}
}

// keys are the keys of the row, and which is primary.
func (w *keyWorld) keys() (keys []string, primary int) {
	w.t.Helper()
	primary = -1
	for i, key := range w.store.View().Cluster().GetGossipKeys() {
		if len(key.GetKey()) != GossipKeySize {
			w.t.Fatalf("a key of %d bytes", len(key.GetKey()))
		}
		keys = append(keys, string(key.GetKey()))
		if key.GetPrimary() {
			if primary >= 0 {
				w.t.Fatal("two primary keys")
			}
			primary = i
		}
	}
	if len(keys) > MaxGossipKeys || len(keys) > 0 && primary < 0 {
		w.t.Fatalf("%d keys, primary %d", len(keys), primary)
	}
	return keys, primary
}

func (w *keyWorld) expect(when string, count, primary int) []string {
	w.t.Helper()
	keys, got := w.keys()
	if len(keys) != count || got != primary {
		w.t.Fatalf("%s: %d keys, primary %d; want %d, %d", when, len(keys), got, count, primary)
	}
	return keys
}

func TestBootstrap_ItsCluster_HasAGossipKey(t *testing.T) {
	founding, err := Bootstrap(&swarmpb.ClusterSpec{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keys := founding.Rows[0].GetPut().GetCluster().GetGossipKeys()
	if len(keys) != 1 || len(keys[0].GetKey()) != GossipKeySize || !keys[0].GetPrimary() || keys[0].GetSince() == 0 {
		t.Errorf("%d keys", len(keys))
	}
	if step := keyStep(founding.Rows[0].GetPut().GetCluster(), time.Now()); step != keyNone {
		t.Errorf("the first step is %q", step)
	}
}

func TestLead_NodeIsSlow_RotationWaitsForItAtEachStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newKeyWorld(t, "n1", "n2")
		defer w.lead()()
		time.Sleep(2 * rotateEvery)
		first := w.expect("a cluster without keys", 1, 0)
		time.Sleep(2*time.Hour - 4*rotateEvery)
		w.expect("before the interval has passed", 1, 0)

		w.setStuck("n2", true)
		time.Sleep(time.Minute)
		added := w.expect("added, one node does not have it", 2, 0)
		if added[0] != first[0] {
			t.Fatal("the first key was replaced")
		}
		w.setStuck("n2", false)
		w.acked("n2")
		w.setStuck("n2", true)
		time.Sleep(2 * rotateEvery)
		w.expect("primary, one node does not know", 2, 1)
		time.Sleep(time.Hour)
		w.expect("still", 2, 1)
		w.setStuck("n2", false)
		time.Sleep(2 * rotateEvery)
		if keys := w.expect("the old key is gone", 1, 0); keys[0] != added[1] {
			t.Error("the wrong key was removed")
		}
	})
}

func TestLead_NodesAreDown_RotationGoesOnWithoutThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newKeyWorld(t, "n1", "down", "lost")
		w.setStuck("down", true)
		w.state("down", swarmpb.NodeState_NODE_STATE_DOWN)
		w.setStuck("lost", true)
		w.state("lost", swarmpb.NodeState_NODE_STATE_DISCONNECTED)
		defer w.lead()()
		time.Sleep(2 * rotateEvery)
		first := w.expect("a cluster without keys", 1, 0)
		time.Sleep(2*time.Hour + 4*rotateEvery)
		if keys := w.expect("rotated", 1, 0); keys[0] == first[0] {
			t.Error("the key is the same")
		}
		// A node that is READY without a session counts: it may be there in a moment.
		w.mu.Lock()
		delete(w.acks, "n1")
		w.mu.Unlock()
		time.Sleep(2*time.Hour + time.Minute)
		w.expect("a node without a session", 2, 0)
	})
}

func TestLead_LeaderChangesAfterEachStep_TheNextOneGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newKeyWorld(t, "n1")
		w.setStuck("n1", true)
		// Each term is long enough for one step; the node acknowledges what there is before it alone.
		term := func(d time.Duration) ([]string, int) {
			end := w.lead()
			time.Sleep(d)
			end()
			keys, primary := w.keys()
			w.setStuck("n1", false)
			w.acked("n1")
			w.setStuck("n1", true)
			return keys, primary
		}
		before, primary := term(time.Minute)
		for round := range 4 {
			added, p := term(2*time.Hour + time.Minute)
			if len(before) != 1 || primary != 0 || len(added) != 2 || p != 0 || added[0] != before[0] {
				t.Fatalf("round %d: a term before the other node knows: %d keys, primary %d", round, len(added), p)
			}
			promoted, p := term(time.Minute)
			if !slices.Equal(promoted, added) || p != 1 {
				t.Fatalf("round %d: the second term did not promote: %d keys, primary %d", round, len(promoted), p)
			}
			before, primary = term(time.Minute)
			if !slices.Equal(before, added[1:]) {
				t.Fatalf("round %d: the third term did not retire: %d keys", round, len(before))
			}
		}
	})
}

func TestLead_WritesFailOrAreOvertaken_IsTriedAgainAndEndsWithTheTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newKeyWorld(t, "n1")
		w.leader.fail(errors.New("no majority"))
		end := w.lead()
		time.Sleep(10 * time.Minute)
		if n := len(w.store.View().Cluster().GetGossipKeys()); n != 0 {
			t.Fatalf("%d keys", n)
		}
		w.leader.fail(&store.ConflictError{})
		time.Sleep(2 * rotateRetryMax)
		w.leader.fail(nil)
		time.Sleep(2 * rotateRetryMax)
		w.expect("after the errors", 1, 0)
		end()

		w.leader.fail(store.ErrStaleTerm)
		done := make(chan error, 1)
		go func() { done <- w.server.Lead(t.Context(), w.leader, w.acked) }()
		time.Sleep(3 * time.Hour)
		if err := <-done; !errors.Is(err, store.ErrStaleTerm) {
			t.Errorf("in a term that is over Lead ended with %v", err)
		}
	})
}

func TestKeyStep_RowsFromElsewhere_LeadBackToOneKey(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	key := func(primary bool, since time.Time) *swarmpb.GossipKey {
		return &swarmpb.GossipKey{Key: []byte{byte(since.Unix())}, Primary: primary, Since: since.UnixNano()}
	}
	for name, tc := range map[string]struct {
		keys []*swarmpb.GossipKey
		want rotationStep
	}{
		"none":                      {nil, keyFirst},
		"young":                     {[]*swarmpb.GossipKey{key(true, now.Add(-time.Hour))}, keyNone},
		"of age":                    {[]*swarmpb.GossipKey{key(true, now.Add(-24*time.Hour))}, keyAdd},
		"by a clock an hour ahead":  {[]*swarmpb.GossipKey{key(true, now.Add(time.Hour))}, keyNone},
		"by a clock a year ahead":   {[]*swarmpb.GossipKey{key(true, now.Add(365*24*time.Hour))}, keyAdd},
		"three, the middle primary": {[]*swarmpb.GossipKey{key(false, now), key(true, now), key(false, now)}, keyPromote},
		"three, the last primary":   {[]*swarmpb.GossipKey{key(false, now), key(false, now), key(true, now)}, keyRetire},
		"none primary":              {[]*swarmpb.GossipKey{key(false, now), key(false, now)}, keyPromote},
	} {
		if got := keyStep(&swarmpb.Cluster{GossipKeys: tc.keys}, now); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
		cluster := &swarmpb.Cluster{GossipKeys: tc.keys}
		for i := 0; ; i++ {
			step := keyStep(cluster, now)
			if step == keyNone {
				break
			}
			var err error
			if cluster.GossipKeys, err = step.apply(cluster.GossipKeys, now); err != nil || i > 3 || len(cluster.GossipKeys) > MaxGossipKeys {
				t.Fatalf("%s: after %d steps %d keys, %v", name, i, len(cluster.GossipKeys), err)
			}
		}
		if len(cluster.GossipKeys) != 1 || !cluster.GossipKeys[0].GetPrimary() {
			t.Errorf("%s: ends with %d keys", name, len(cluster.GossipKeys))
		}
	}
}
