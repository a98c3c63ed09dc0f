package allocator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestBlocks_EachNumber_IsItsOwnSpan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"100.64.0.0/10", "10.1.0.0/16", "192.168.7.0/24", "fd00:1::/32", "0.0.0.0/0", "::/0"}).Draw(t, "pool")
		pool := netip.MustParsePrefix(text)
		b, err := NewBlocks(pool, rapid.IntRange(pool.Bits(), pool.Addr().BitLen()).Draw(t, "bits"))
		if err != nil {
			t.Fatal(err)
		}
		n := rapid.Uint64Range(0, b.Count()-1).Draw(t, "number")
		p := b.At(n)
		if !pool.Overlaps(p) || p.Masked() != p {
			t.Fatalf("block %d is %s", n, p)
		}
		if s, ok := b.Span(p); !ok || s != (Span{First: n, Last: n}) {
			t.Fatalf("block %d = %s has span %+v, %t", n, p, s, ok)
		}
	})
}

func TestBlocks_WiderPrefix_SpansAllItsBlocks(t *testing.T) {
	b, err := NewBlocks(netip.MustParsePrefix("10.0.0.0/8"), 24)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Span{
		"10.0.4.0/22":  {First: 4, Last: 7},
		"10.0.9.17/32": {First: 9, Last: 9},
		"0.0.0.0/0":    {First: 0, Last: 65535},
	} {
		if s, ok := b.Span(netip.MustParsePrefix(text)); !ok || s != want {
			t.Errorf("span of %s: %+v, %t, want %+v", text, s, ok, want)
		}
	}
	if _, ok := b.Span(netip.MustParsePrefix("11.0.0.0/24")); ok {
		t.Error("a prefix outside has a span")
	}
}

func TestBlocks_BadPool_SaysWhatIsWrong(t *testing.T) {
	pool := netip.MustParsePrefix("10.0.0.0/16")
	for _, bits := range []int{-1, 15, 33} {
		if _, err := NewBlocks(pool, bits); err == nil || !strings.Contains(err.Error(), "10.0.0.0/16") {
			t.Errorf("length %d: %v", bits, err)
		}
	}
	if _, err := NewBlocks(netip.Prefix{}, 24); err == nil {
		t.Error("no pool: no error")
	}
}

func TestPicker_AnySpans_GivesEveryFreeNumberOnceLowestFirst(t *testing.T) {
	now := time.Unix(1000, 0)
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.Uint64Range(0, 40).Draw(t, "count")
		spans := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Span {
			first := rapid.Uint64Range(0, 45).Draw(t, "first")
			s := Span{First: first, Last: first + rapid.Uint64Range(0, 5).Draw(t, "more")}
			if rest := rapid.IntRange(-3, 3).Draw(t, "rest"); rest != 0 {
				s.Until = now.Add(time.Duration(rest) * time.Second)
			}
			return s
		}), 0, 12).Draw(t, "spans")
		var want, got []uint64
		for n := range count {
			if !slices.ContainsFunc(spans, func(s Span) bool {
				return s.First <= n && n <= s.Last && (s.Until.IsZero() || s.Until.After(now))
			}) {
				want = append(want, n)
			}
		}
		p := NewPicker(count, spans, now)
		for n, ok := p.Next(); ok; n, ok = p.Next() {
			got = append(got, n)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

// cluster runs the reconciler against a store, as the driver does.
type cluster struct {
	tb interface {
		Helper()
		Fatal(...any)
		Fatalf(string, ...any)
	}
	store  *store.Store
	leader *store.LocalProposer
	now    time.Time
	watch  *store.Watch
	// told is the index up to which the reconciler was told of changes.
	told   uint64
	uplink Uplink
	// fails says of the next proposal whether it fails; nil = none does.
	fails func() bool
}

func newCluster(tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}, pool string, bits uint32) *cluster {
	tb.Helper()
	s := store.New()
	c := &cluster{tb: tb, store: s, leader: store.NewLocalProposer(s), now: time.Unix(1_700_000_000, 0)}
	var err error
	if c.watch, err = s.Watch(0, 0); err != nil {
		tb.Fatal(err)
	}
	c.propose(nil, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Cluster{
		Cluster: &swarmpb.Cluster{Id: "c", Spec: &swarmpb.ClusterSpec{FabricPool: pool, FabricBlockLength: bits}}}}}})
	return c
}

func (c *cluster) propose(guards []*swarmpb.Guard, writes ...*swarmpb.Write) {
	c.tb.Helper()
	p := &swarmpb.Proposal{Term: c.leader.Term(), Guards: guards, Writes: writes, Now: c.now.UnixNano()}
	if _, err := c.leader.Propose(context.Background(), p); err != nil {
		c.tb.Fatal(err)
	}
}

func (c *cluster) add(node string) {
	c.tb.Helper()
	c.propose(nil, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: node}}}}})
}

func (c *cluster) remove(node string) {
	c.tb.Helper()
	c.propose(nil, remove(swarmpb.NodeKey(node)))
}

// settle reconciles until nothing is left to write, and returns when to look again.
func (c *cluster) settle() time.Time {
	c.tb.Helper()
	id := reconcile.ID{Object: UplinkPool}
	for range 50 {
		for c.told < c.store.View().Index() {
			batch, err := c.watch.Next(context.Background())
			if err != nil {
				c.tb.Fatal(err)
			}
			for _, change := range batch.Changes {
				c.uplink.Affects(batch.View, change)
			}
			c.told = batch.View.Index()
		}
		plan, err := c.uplink.Reconcile(c.store.View(), id, c.now)
		if err != nil {
			c.tb.Fatal(err)
		}
		if len(plan.Writes) == 0 {
			return plan.At
		}
		if c.fails != nil && c.fails() {
			c.uplink.Settled(id, plan, 0, errors.New("no leader"))
			continue
		}
		c.propose(plan.Guards, plan.Writes...)
		c.uplink.Settled(id, plan, c.store.View().Index(), nil)
	}
	c.tb.Fatal("the reconciler never comes to rest")
	return time.Time{}
}

// owned is the owner of each block, and fails when a node has two or a block two.
func (c *cluster) owned() map[string]string {
	c.tb.Helper()
	byOwner, byBlock := map[string]string{}, map[string]string{}
	for row := range c.store.View().Allocations(UplinkPool) {
		if row.GetOwner() == "" {
			continue
		}
		if other := byOwner[row.GetOwner()]; other != "" {
			c.tb.Fatalf("node %s has %s and %s", row.GetOwner(), other, row.GetAddress())
		}
		byOwner[row.GetOwner()], byBlock[row.GetAddress()] = row.GetAddress(), row.GetOwner()
	}
	return byBlock
}

func TestUplink_NodesJoin_GetTheLowestBlocks(t *testing.T) {
	c := newCluster(t, "", 0)
	c.add("b")
	c.settle()
	c.add("a")
	if at := c.settle(); !at.IsZero() {
		t.Errorf("looks again at %s, want never", at)
	}
	if got, want := c.owned(), map[string]string{"100.64.0.0/24": "b", "100.64.1.0/24": "a"}; !maps.Equal(got, want) {
		t.Errorf("blocks %v, want %v", got, want)
	}
}

func TestUplink_NodeRemoved_BlockRestsBeforeItIsGivenAgain(t *testing.T) {
	c := newCluster(t, "10.0.0.0/23", 24)
	c.add("a")
	c.settle()
	c.remove("a")
	wake := c.settle()
	if want := c.now.Add(Rest); !wake.Equal(want) {
		t.Errorf("looks again at %s, want %s", wake, want)
	}
	c.add("b")
	c.settle()
	if got, want := c.owned(), map[string]string{"10.0.1.0/24": "b"}; !maps.Equal(got, want) {
		t.Errorf("while a's block rests: blocks %v, want %v", got, want)
	}
	c.now = wake
	c.settle()
	if c.store.View().Allocation(UplinkPool, "10.0.0.0/24") != nil {
		t.Error("the row of a block that has rested is still there")
	}
	c.add("c")
	c.settle()
	if got, want := c.owned(), map[string]string{"10.0.0.0/24": "c", "10.0.1.0/24": "b"}; !maps.Equal(got, want) {
		t.Errorf("after the rest: blocks %v, want %v", got, want)
	}
}

func TestUplink_PoolFull_AlarmUntilABlockIsFree(t *testing.T) {
	c := newCluster(t, "10.0.0.0/24", 24)
	c.add("a")
	c.add("b")
	c.settle()
	alarm := c.store.View().Alarm(PoolFullAlarm, "uplink/b")
	for _, want := range []string{"node b", "10.0.0.0/24", "swarmctl node rm"} {
		if !strings.Contains(alarm.GetMessage(), want) {
			t.Errorf("alarm %q does not say %q", alarm.GetMessage(), want)
		}
	}
	c.remove("a")
	wake := c.settle()
	if len(c.owned()) != 0 {
		t.Error("a block was given before it had rested")
	}
	if n := c.store.View().Alarm(PoolFullAlarm, "uplink/b").GetCount(); n != 1 {
		t.Errorf("alarm was raised %d times, want once", n)
	}
	c.now = wake
	c.settle()
	if got, want := c.owned(), map[string]string{"10.0.0.0/24": "b"}; !maps.Equal(got, want) {
		t.Errorf("blocks %v, want %v", got, want)
	}
	if c.store.View().Alarm(PoolFullAlarm, "uplink/b") != nil {
		t.Error("the alarm outlives its cause")
	}
}

func TestUplink_FullNodeRemoved_AlarmEnds(t *testing.T) {
	c := newCluster(t, "10.0.0.0/24", 24)
	c.add("a")
	c.add("b")
	c.settle()
	c.remove("b")
	c.settle()
	if c.store.View().Alarm(PoolFullAlarm, "uplink/b") != nil {
		t.Error("the alarm outlives its node")
	}
}

func TestUplink_ManyNodesAtOnce_GetBlocksInSeveralPlans(t *testing.T) {
	c := newCluster(t, "10.0.0.0/8", 24)
	for i := range 1200 {
		c.add(fmt.Sprintf("n%04d", i))
	}
	c.settle()
	if n := len(c.owned()); n != 1200 {
		t.Fatalf("%d blocks given, want 1200", n)
	}
	for i := range 1200 {
		c.remove(fmt.Sprintf("n%04d", i))
	}
	if wake := c.settle(); wake.IsZero() || len(c.owned()) != 0 {
		t.Fatalf("%d blocks owned, looks again at %s", len(c.owned()), wake)
	}
}

func TestUplink_BadPool_ErrorNamesIt(t *testing.T) {
	c := newCluster(t, "nonsense", 24)
	_, err := (&Uplink{}).Reconcile(c.store.View(), reconcile.ID{}, c.now)
	if err == nil || !strings.Contains(err.Error(), `"nonsense"`) {
		t.Errorf("error %v", err)
	}
}

func TestUplink_NoCluster_DoesNothing(t *testing.T) {
	plan, err := (&Uplink{}).Reconcile(store.New().View(), reconcile.ID{}, time.Unix(1, 0))
	if err != nil || len(plan.Writes) > 0 {
		t.Errorf("plan %v, error %v", plan, err)
	}
}

func TestUplink_AnyJoinsAndLeaves_RowsAndOwnersOneToOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newCluster(t, "10.0.0.0/21", 24) // 8 blocks
		c.fails = func() bool { return rapid.IntRange(0, 4).Draw(t, "fails") == 4 }
		live := map[string]bool{}
		freed := map[string]time.Time{}
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			before := c.owned()
			switch {
			case len(live) > 0 && rapid.Bool().Draw(t, "leave"):
				id := rapid.SampledFrom(slices.Sorted(maps.Keys(live))).Draw(t, "node")
				delete(live, id)
				c.remove(id)
			default:
				for i := range rapid.IntRange(1, 3).Draw(t, "join") {
					id := fmt.Sprintf("n%02d-%d", step, i)
					live[id] = true
					c.add(id)
				}
			}
			c.settle()
			after := c.owned()
			for block, owner := range after {
				if !live[owner] {
					t.Fatalf("%s belongs to %s, which is gone", block, owner)
				}
				if before[block] != owner && c.now.Before(freed[block].Add(Rest)) && !freed[block].IsZero() {
					t.Fatalf("%s went to %s after %s of rest", block, owner, c.now.Sub(freed[block]))
				}
			}
			for block := range before {
				if after[block] == "" {
					freed[block] = c.now
				}
			}
			if len(after) < min(len(live), 8) && len(after)+resting(c) < 8 {
				t.Fatalf("%d nodes, %d blocks given, %d rest: one is free", len(live), len(after), resting(c))
			}
			c.now = c.now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "seconds")) * time.Second)
			c.settle()
		}
	})
}

func resting(c *cluster) (n int) {
	for row := range c.store.View().Allocations(UplinkPool) {
		if row.GetOwner() == "" {
			n++
		}
	}
	return n
}
