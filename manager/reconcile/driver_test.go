package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// fake is a reconciler whose decisions a test makes; ids are nodes.
type fake struct {
	mu    sync.Mutex
	calls []call
	plan  func(view *store.View, id reconcile.ID, now time.Time, n int) (reconcile.Plan, error)
	// block, when set, holds Reconcile up.
	block   chan struct{}
	settled []error
}

type call struct {
	id reconcile.ID
	at time.Duration
}

func (f *fake) Name() string { return "fake" }

func (f *fake) Affects(_ *store.View, change store.Change) []reconcile.ID {
	if change.Table != swarmpb.Table_TABLE_NODE && change.Table != swarmpb.Table_TABLE_NODE_STATUS {
		return nil
	}
	if change.Key.ID == "affects-panics" {
		panic("affects")
	}
	return []reconcile.ID{{Object: change.Key.ID}, {Object: change.Key.ID}}
}

func (f *fake) All(view *store.View) []reconcile.ID {
	var ids []reconcile.ID
	for node := range view.Nodes() {
		ids = append(ids, reconcile.ID{Object: node.Id})
	}
	return ids
}

func (f *fake) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	if f.block != nil {
		<-f.block
	}
	f.mu.Lock()
	f.calls = append(f.calls, call{id, now.Sub(epoch)})
	n := 0
	for _, c := range f.calls {
		if c.id == id {
			n++
		}
	}
	f.mu.Unlock()
	if f.plan == nil {
		return reconcile.Plan{}, nil
	}
	return f.plan(view, id, now, n)
}

func (f *fake) Settled(_ reconcile.ID, _ reconcile.Plan, _ uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settled = append(f.settled, err)
}

// times are when an id was reconciled.
func (f *fake) times(object string) []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	var times []time.Duration
	for _, c := range f.calls {
		if c.id.Object == object {
			times = append(times, c.at)
		}
	}
	return times
}

// epoch is when a synctest bubble begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// slowLeader is a proposer that a test can delay and fail.
type slowLeader struct {
	store.Leader
	delay       time.Duration
	err         func(*swarmpb.Proposal) error
	mu          sync.Mutex
	inFlight    int
	maxInFlight int
}

func (l *slowLeader) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	l.mu.Lock()
	l.inFlight++
	l.maxInFlight = max(l.maxInFlight, l.inFlight)
	l.mu.Unlock()
	defer func() { l.mu.Lock(); l.inFlight--; l.mu.Unlock() }()
	if l.delay > 0 {
		select {
		case <-time.After(l.delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if l.err != nil {
		if err := l.err(p); err != nil {
			return nil, err
		}
	}
	return l.Leader.Propose(ctx, p)
}

// rig is a running driver.
type rig struct {
	t      *testing.T
	store  *store.Store
	leader *slowLeader
	fake   *fake
	stop   context.CancelFunc
	done   chan error
}

func start(t *testing.T, f *fake, limits reconcile.Limits, before ...string) *rig {
	t.Helper()
	s := store.New()
	r := &rig{t: t, store: s, leader: &slowLeader{Leader: store.NewLocalProposer(s)}, fake: f, done: make(chan error, 1)}
	for _, node := range before {
		r.touch(node)
	}
	r.run(limits)
	return r
}

func (r *rig) run(limits reconcile.Limits) {
	r.t.Helper()
	d, err := reconcile.New(reconcile.Config{
		Store: r.store, Leader: r.leader, Reconciler: r.fake, Limits: limits, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.done <- d.Run(ctx) }()
	synctest.Wait()
}

// end stops the driver, which must come to its end by itself.
func (r *rig) end() {
	r.t.Helper()
	r.stop()
	if err := <-r.done; !errors.Is(err, context.Canceled) {
		r.t.Errorf("Run ended with %v, want the context's error", err)
	}
}

// touch changes a node's own row, see changes its status. Both leave the driver alone afterwards.
func (r *rig) touch(node string) {
	r.write(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: node, Spec: &swarmpb.NodeSpec{
		Labels: map[string]string{"index": fmt.Sprint(r.store.View().Index())}}}}})
}

func (r *rig) see(node string) {
	r.write(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
		NodeId: node, Message: fmt.Sprint(r.store.View().Index())}}})
}

func (r *rig) write(rows ...*swarmpb.Row) {
	r.t.Helper()
	p := &swarmpb.Proposal{}
	for _, row := range rows {
		p.Writes = append(p.Writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}})
	}
	if _, err := r.leader.Leader.Propose(context.Background(), p); err != nil {
		r.t.Fatal(err)
	}
}

// alarm is a harmless write.
func alarm(kind, object string) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: kind, Object: object, Message: "m"}}}
}

func (r *rig) quarantined(object string) *swarmpb.Alarm {
	return r.store.View().Alarm(reconcile.QuarantineAlarm, "fake/"+object+"/0")
}

func wantTimes(t *testing.T, f *fake, object string, want ...time.Duration) {
	t.Helper()
	if got := f.times(object); !slices.Equal(got, want) {
		t.Errorf("%s was reconciled at %v, want %v", object, got, want)
	}
}

func TestStart_ObjectsAreThere_EachIsReconciledOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		r := start(t, f, reconcile.Limits{}, "a", "b", "a")
		defer r.end()
		wantTimes(t, f, "a", 0)
		wantTimes(t, f, "b", 0)
	})
}

func TestChanges_ManyOfOneObject_AreReconciledTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{block: make(chan struct{})}
		r := start(t, f, reconcile.Limits{}, "a")
		for range 100 {
			r.see("a")
		}
		f.block <- struct{}{} // the first look, begun before the changes
		synctest.Wait()
		close(f.block)
		synctest.Wait()
		r.end()
		if n := len(f.times("a")); n > 4 {
			t.Errorf("100 changes gave %d reconciliations", n)
		}
	})
}

func TestPlanAt_NothingChanges_IsLookedAtThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, _ reconcile.ID, now time.Time, n int) (reconcile.Plan, error) {
			if n > 2 {
				return reconcile.Plan{}, nil
			}
			return reconcile.Plan{At: now.Add(time.Minute)}, nil
		}}
		r := start(t, f, reconcile.Limits{}, "a")
		defer r.end()
		time.Sleep(time.Hour)
		wantTimes(t, f, "a", 0, time.Minute, 2*time.Minute)
	})
}

func TestPlanAt_MovedByALaterPlan_OnlyTheLaterOneCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, _ reconcile.ID, now time.Time, n int) (reconcile.Plan, error) {
			switch n {
			case 1:
				return reconcile.Plan{At: now.Add(time.Minute)}, nil
			case 2:
				return reconcile.Plan{At: now.Add(time.Hour)}, nil
			default:
				return reconcile.Plan{}, nil
			}
		}}
		r := start(t, f, reconcile.Limits{}, "a")
		defer r.end()
		time.Sleep(time.Second)
		r.see("a")
		time.Sleep(2 * time.Hour)
		wantTimes(t, f, "a", 0, time.Second, time.Hour+time.Second)
	})
}

func TestError_InARow_WaitsLongerEachTimeUpToTheMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, _ reconcile.ID, _ time.Time, n int) (reconcile.Plan, error) {
			if n < 6 {
				return reconcile.Plan{}, errors.New("no")
			}
			return reconcile.Plan{}, nil
		}}
		r := start(t, f, reconcile.Limits{BackoffMin: time.Second, BackoffMax: 5 * time.Second}, "a")
		defer r.end()
		r.see("a") // does not cut the wait short
		time.Sleep(time.Hour)
		wantTimes(t, f, "a", 0, 1*time.Second, 3*time.Second, 7*time.Second, 12*time.Second, 17*time.Second)
	})
}

func TestError_ItsObjectIsChanged_IsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, _ reconcile.ID, _ time.Time, n int) (reconcile.Plan, error) {
			if n == 1 {
				return reconcile.Plan{}, errors.New("no")
			}
			return reconcile.Plan{}, nil
		}}
		r := start(t, f, reconcile.Limits{BackoffMin: time.Minute, BackoffMax: time.Minute}, "a")
		defer r.end()
		time.Sleep(time.Second)
		r.touch("a")
		time.Sleep(time.Hour)
		wantTimes(t, f, "a", 0, time.Second)
	})
}

func TestProposalFails_IsDecidedAnewAfterAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(view *store.View, id reconcile.ID, _ time.Time, _ int) (reconcile.Plan, error) {
			if view.Alarm("k", id.Object) != nil {
				return reconcile.Plan{}, nil
			}
			return reconcile.Plan{Writes: []*swarmpb.Write{alarm("k", id.Object)}}, nil
		}}
		s := store.New()
		r := &rig{t: t, store: s, leader: &slowLeader{Leader: store.NewLocalProposer(s)}, fake: f, done: make(chan error, 1)}
		tries := 0
		r.leader.err = func(*swarmpb.Proposal) error {
			if tries++; tries < 3 {
				return errors.New("leader is away")
			}
			return nil
		}
		r.touch("a")
		r.run(reconcile.Limits{BackoffMin: time.Second})
		defer r.end()
		time.Sleep(time.Hour)
		if got := r.store.View().Alarm("k", "a").GetCount(); got != 1 {
			t.Errorf("the plan was applied %d times, want once", got)
		}
		wantTimes(t, f, "a", 0, time.Second, 3*time.Second)
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.settled) != 3 || f.settled[0] == nil || f.settled[2] != nil {
			t.Errorf("the reconciler was told %v", f.settled)
		}
	})
}

func TestConflict_FirstOnes_AreRetriedAtOnceThenWithAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, id reconcile.ID, _ time.Time, n int) (reconcile.Plan, error) {
			version := uint64(1 << 40)
			if n == 5 {
				return reconcile.Plan{}, nil
			}
			return reconcile.Plan{Writes: []*swarmpb.Write{alarm("k", id.Object)},
				Guards: []*swarmpb.Guard{{Key: swarmpb.NodeKey(id.Object), Version: version}}}, nil
		}}
		r := start(t, f, reconcile.Limits{Conflicts: 2, BackoffMin: time.Second}, "a")
		defer r.end()
		time.Sleep(time.Hour)
		wantTimes(t, f, "a", 0, 0, 0, time.Second, 3*time.Second)
	})
}

func TestPlanOfParts_PartIsRefused_TheRestIsDroppedAndDecidedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		part := func(kind string, version uint64) reconcile.Plan {
			return reconcile.Plan{Writes: []*swarmpb.Write{alarm(kind, "x")},
				Guards: []*swarmpb.Guard{{Key: swarmpb.NodeKey("b"), Version: version}}}
		}
		f := &fake{plan: func(view *store.View, _ reconcile.ID, _ time.Time, n int) (reconcile.Plan, error) {
			plan := part("one", 0)
			switch n {
			case 1:
				plan.Rest = []reconcile.Plan{part("two", 7), part("three", 0)}
			case 2:
				plan.Rest = []reconcile.Plan{part("four", 0)}
				plan.More = true
			default:
				return reconcile.Plan{}, nil
			}
			return plan, nil
		}}
		r := start(t, f, reconcile.Limits{}, "a")
		defer r.end()
		view := r.store.View()
		for kind, want := range map[string]uint64{"one": 2, "two": 0, "three": 0, "four": 1} {
			if got := view.Alarm(kind, "x").GetCount(); got != want {
				t.Errorf("part %s was applied %d times, want %d", kind, got, want)
			}
		}
		wantTimes(t, f, "a", 0, 0, 0)
	})
}

func TestPlan_TooLarge_IsNotProposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(*store.View, reconcile.ID, time.Time, int) (reconcile.Plan, error) {
			return reconcile.Plan{Writes: slices.Repeat([]*swarmpb.Write{alarm("k", "x")}, reconcile.MaxWrites+1)}, nil
		}}
		r := start(t, f, reconcile.Limits{}, "a")
		r.end()
		if len(f.settled) != 0 || r.store.View().Alarm("k", "x") != nil {
			t.Errorf("a plan of too many writes was proposed: %v", f.settled)
		}
	})
}

func TestPanic_ThreeInARow_QuarantinesTheObjectAloneUntilItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		healed := false
		f := &fake{plan: func(_ *store.View, id reconcile.ID, _ time.Time, _ int) (reconcile.Plan, error) {
			if id.Object == "bad" && !healed {
				panic("cannot")
			}
			return reconcile.Plan{}, nil
		}}
		r := start(t, f, reconcile.Limits{BackoffMin: time.Second}, "bad", "good")
		defer r.end()
		time.Sleep(time.Hour)
		wantTimes(t, f, "bad", 0, time.Second, 3*time.Second)
		found := r.quarantined("bad")
		if found == nil || !strings.Contains(found.Message, "cannot") {
			t.Fatalf("alarm is %v, want one that names the panic", found)
		}
		r.see("bad") // not a change of the object itself
		r.see("good")
		time.Sleep(time.Hour)
		if got := len(f.times("bad")); got != 3 {
			t.Errorf("a quarantined object was reconciled %d times, want 3", got)
		}
		if got := len(f.times("good")); got != 2 {
			t.Errorf("the other object was reconciled %d times, want 2", got)
		}
		healed = true
		r.touch("bad")
		synctest.Wait()
		if got := len(f.times("bad")); got < 4 {
			t.Errorf("a changed object was not reconciled")
		}
		if found := r.quarantined("bad"); found != nil {
			t.Errorf("the alarm stayed: %v", found)
		}
	})
}

func TestPanic_AlarmOfAnEarlierLeader_EndsWithASuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		s := store.New()
		r := &rig{t: t, store: s, leader: &slowLeader{Leader: store.NewLocalProposer(s)}, fake: f, done: make(chan error, 1)}
		for _, object := range []string{"fake/gone/0", "other/gone/0"} {
			if _, err := r.leader.Propose(t.Context(), &swarmpb.Proposal{Writes: []*swarmpb.Write{alarm(reconcile.QuarantineAlarm, object)}}); err != nil {
				t.Fatal(err)
			}
		}
		r.run(reconcile.Limits{})
		defer r.end()
		if r.quarantined("gone") != nil {
			t.Error("the alarm stayed though its object was reconciled")
		}
		if r.store.View().Alarm(reconcile.QuarantineAlarm, "other/gone/0") == nil {
			t.Error("another reconciler's alarm is gone")
		}
	})
}

func TestPanic_InAffects_CostsTheChangeAndRaisesAnAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, id reconcile.ID, _ time.Time, _ int) (reconcile.Plan, error) {
			if id.Object == "affects-panics" {
				return reconcile.Plan{}, errors.New("no")
			}
			return reconcile.Plan{}, nil
		}}
		r := start(t, f, reconcile.Limits{})
		defer r.end()
		r.touch("affects-panics")
		synctest.Wait()
		if r.quarantined("affects-panics") == nil {
			t.Error("no alarm was raised")
		}
		r.touch("a")
		synctest.Wait()
		wantTimes(t, f, "a", 0)
	})
}

func TestWatch_Overflows_EverythingIsListedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{block: make(chan struct{})}
		r := start(t, f, reconcile.Limits{Watch: 4}, "a")
		for i := range 50 {
			r.touch(fmt.Sprintf("n%02d", i))
		}
		close(f.block)
		synctest.Wait()
		r.end()
		for i := range 50 {
			if node := fmt.Sprintf("n%02d", i); len(f.times(node)) == 0 {
				t.Errorf("%s was missed", node)
			}
		}
	})
}

func TestProposals_SlowLeader_AreBoundedAndOneAtATimePerObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(view *store.View, id reconcile.ID, _ time.Time, n int) (reconcile.Plan, error) {
			if got := view.Alarm("k", id.Object).GetCount(); got != uint64(min(n-1, 3)) {
				t.Errorf("look %d at %s sees %d of its own writes", n, id, got)
			}
			if n > 3 {
				return reconcile.Plan{}, nil
			}
			return reconcile.Plan{Writes: []*swarmpb.Write{alarm("k", id.Object)}, More: true}, nil
		}}
		s := store.New()
		r := &rig{t: t, store: s, leader: &slowLeader{Leader: store.NewLocalProposer(s), delay: time.Second}, fake: f, done: make(chan error, 1)}
		for i := range 20 {
			r.touch(fmt.Sprintf("n%02d", i))
		}
		r.run(reconcile.Limits{InFlight: 5})
		defer r.end()
		for range 30 {
			time.Sleep(time.Second)
			r.see("n00")
		}
		if r.leader.maxInFlight != 5 {
			t.Errorf("%d proposals were under way at a time, want 5", r.leader.maxInFlight)
		}
		for i := range 20 {
			if got := r.store.View().Alarm("k", fmt.Sprintf("n%02d", i)).GetCount(); got != 3 {
				t.Errorf("n%02d was written %d times, want 3", i, got)
			}
		}
	})
}

// aheadLeader answers with an index that the store does not show yet.
type aheadLeader struct{ store.Leader }

func (l aheadLeader) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	result, err := l.Leader.Propose(ctx, p)
	if result != nil {
		result.Index += 3
	}
	return result, err
}

func TestView_BehindOwnWrite_IsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		applied := uint64(0)
		f := &fake{plan: func(view *store.View, id reconcile.ID, _ time.Time, n int) (reconcile.Plan, error) {
			if id.Object == "a" && n == 1 {
				applied = view.Index() + 4
				return reconcile.Plan{Writes: []*swarmpb.Write{alarm("k", id.Object)}, More: true}, nil
			}
			if id.Object == "a" && view.Index() < applied {
				t.Errorf("look %d is at index %d, before the write at %d", n, view.Index(), applied)
			}
			return reconcile.Plan{}, nil
		}}
		s := store.New()
		r := &rig{t: t, store: s, leader: &slowLeader{Leader: aheadLeader{store.NewLocalProposer(s)}}, fake: f, done: make(chan error, 1)}
		r.touch("a")
		r.run(reconcile.Limits{})
		defer r.end()
		for range 3 {
			time.Sleep(time.Minute)
			wantTimes(t, f, "a", 0)
			r.touch("b")
		}
		time.Sleep(time.Minute)
		if n := len(f.times("a")); n != 2 {
			t.Errorf("looked %d times, want again once the store has caught up", n)
		}
	})
}

func TestTermIsOver_RunEndsWithTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, id reconcile.ID, _ time.Time, _ int) (reconcile.Plan, error) {
			return reconcile.Plan{Writes: []*swarmpb.Write{alarm("k", id.Object)}}, nil
		}}
		s := store.New()
		r := &rig{t: t, store: s, leader: &slowLeader{Leader: store.NewLocalProposer(s)}, fake: f, done: make(chan error, 1)}
		r.leader.err = func(p *swarmpb.Proposal) error {
			if p.Term != 1 || p.Now != time.Now().UnixNano() {
				t.Errorf("proposal has term %d and time %d", p.Term, p.Now)
			}
			return fmt.Errorf("propose: %w", store.ErrStaleTerm)
		}
		r.touch("a")
		r.run(reconcile.Limits{})
		if err := <-r.done; !errors.Is(err, store.ErrStaleTerm) || !strings.Contains(err.Error(), "fake") {
			t.Errorf("Run ended with %v, want the stale term and the reconciler's name", err)
		}
		r.stop()
	})
}

func TestStop_ProposalIsUnderWay_RunEndsAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, id reconcile.ID, _ time.Time, _ int) (reconcile.Plan, error) {
			return reconcile.Plan{Writes: []*swarmpb.Write{alarm("k", id.Object)}}, nil
		}}
		s := store.New()
		r := &rig{t: t, store: s, leader: &slowLeader{Leader: store.NewLocalProposer(s), delay: time.Hour}, fake: f, done: make(chan error, 1)}
		r.touch("a")
		r.run(reconcile.Limits{})
		r.end()
		if r.leader.inFlight != 0 {
			t.Error("Run ended before its proposal")
		}
	})
}

func TestNew_ConfigIsIncomplete_SaysWhat(t *testing.T) {
	s := store.New()
	whole := reconcile.Config{Store: s, Leader: store.NewLocalProposer(s), Reconciler: &fake{}}
	for want, change := range map[string]func(*reconcile.Config){
		"no store":          func(c *reconcile.Config) { c.Store = nil },
		"no leader":         func(c *reconcile.Config) { c.Leader = nil },
		"no reconciler":     func(c *reconcile.Config) { c.Reconciler = nil },
		"limit is negative": func(c *reconcile.Config) { c.Limits.InFlight = -1 },
	} {
		cfg := whole
		change(&cfg)
		if _, err := reconcile.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one that says %q", err, want)
		}
	}
}
