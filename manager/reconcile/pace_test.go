package reconcile_test

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// dear is a reconciler whose looks are to be a minute apart.
type dear struct{ *fake }

func (dear) Pace(*store.View, reconcile.ID) time.Duration { return time.Minute }

func startDear(t *testing.T, f *fake) *rig {
	t.Helper()
	s := store.New()
	r := &rig{t: t, store: s, leader: &slowLeader{Leader: store.NewLocalProposer(s)}, fake: f, done: make(chan error, 1)}
	r.touch("a")
	d, err := reconcile.New(reconcile.Config{Store: s, Leader: r.leader, Reconciler: dear{f}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.done <- d.Run(ctx) }()
	synctest.Wait()
	return r
}

func TestPace_ManyChanges_LooksAreThatFarApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		r := startDear(t, f)
		defer r.end()
		for range 300 {
			time.Sleep(time.Second / 2)
			r.see("a")
			synctest.Wait()
		}
		time.Sleep(time.Hour)
		wantTimes(t, f, "a", 0, time.Minute, 2*time.Minute, 3*time.Minute)
	})
}

func TestPace_MoreToDoOrAConflict_GoesOnAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, _ reconcile.ID, _ time.Time, n int) (reconcile.Plan, error) {
			switch n {
			case 1:
				return reconcile.Plan{Writes: []*swarmpb.Write{alarm("a", "b")}, More: true}, nil
			case 2:
				return reconcile.Plan{Writes: []*swarmpb.Write{alarm("a", "b")}, Guards: []*swarmpb.Guard{{Key: swarmpb.NodeKey("none"), Version: 7}}}, nil
			default:
				return reconcile.Plan{}, nil
			}
		}}
		r := startDear(t, f)
		defer r.end()
		time.Sleep(time.Hour)
		wantTimes(t, f, "a", 0, 0, 0)
	})
}

func TestAlso_OtherIDs_AreLookedAtAtTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{plan: func(_ *store.View, id reconcile.ID, now time.Time, n int) (reconcile.Plan, error) {
			if id.Object != "a" || n > 2 {
				return reconcile.Plan{}, nil
			}
			plan := reconcile.Plan{Also: []reconcile.Look{{ID: reconcile.ID{Object: "b"}}, {ID: reconcile.ID{Object: "c"}, At: now.Add(time.Minute)}}}
			if n == 2 {
				plan.Writes = []*swarmpb.Write{alarm("a", "b")}
			}
			return plan, nil
		}}
		r := start(t, f, reconcile.Limits{}, "a")
		defer r.end()
		time.Sleep(time.Second)
		r.see("a")
		time.Sleep(time.Hour)
		wantTimes(t, f, "a", 0, time.Second)
		wantTimes(t, f, "b", 0, time.Second)
		wantTimes(t, f, "c", time.Minute) // a later wish does not put it off
	})
}
