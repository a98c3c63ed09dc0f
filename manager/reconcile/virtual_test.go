package reconcile

import (
	"errors"
	"slices"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// scripted is a reconciler that does as a test says.
type scripted struct {
	name    string
	affects func(store.Change) []ID
	plan    func(view *store.View, id ID, now time.Time) (Plan, error)
	settled []error
}

func (s *scripted) Name() string { return s.name }
func (s *scripted) Affects(_ *store.View, c store.Change) []ID {
	if s.affects == nil {
		return nil
	}
	return s.affects(c)
}
func (s *scripted) All(*store.View) []ID { return []ID{{Object: "all"}} }
func (s *scripted) Reconcile(view *store.View, id ID, now time.Time) (Plan, error) {
	return s.plan(view, id, now)
}
func (s *scripted) Settled(_ ID, _ Plan, _ uint64, err error) { s.settled = append(s.settled, err) }

func alarmed(kind string) Plan {
	return Plan{Writes: []*swarmpb.Write{{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: kind, Object: "o"}}}}}
}

func newVirtual(t *testing.T, reconcilers ...Reconciler) *Virtual {
	t.Helper()
	v, err := NewVirtual(VirtualConfig{Store: store.New(), Now: time.Unix(100, 0), Reconcilers: reconcilers, Twice: true})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// run steps until nobody has anything to do.
func run(t *testing.T, v *Virtual) {
	t.Helper()
	for range 100 {
		busy, err := v.Step()
		if err != nil {
			t.Fatal(err)
		}
		if !busy {
			return
		}
	}
	t.Fatal("it does not come to rest")
}

func TestVirtual_SeveralHaveWork_TheFirstGoesFirst(t *testing.T) {
	var order []string
	note := func(name string) *scripted {
		return &scripted{name: name, plan: func(_ *store.View, id ID, _ time.Time) (Plan, error) {
			if len(order) == 0 || order[len(order)-1] != name+" "+id.Object {
				order = append(order, name+" "+id.Object)
			}
			return Plan{}, nil
		}}
	}
	first, second := note("first"), note("second")
	// What the second one writes is work for the first one.
	second.plan = func(_ *store.View, id ID, _ time.Time) (Plan, error) {
		if len(second.settled) > 0 {
			return Plan{}, nil
		}
		return alarmed("from-second"), nil
	}
	first.affects = func(c store.Change) []ID { return []ID{{Object: c.Key.ID}, {Object: c.Key.ID}} }
	v := newVirtual(t, first, second)
	v.Relist()
	run(t, v)
	if want := []string{"first all", "first from-second"}; !slices.Equal(order, want) {
		t.Errorf("order %q, want %q", order, want)
	}
	if len(second.settled) != 1 || second.settled[0] != nil {
		t.Errorf("settled %v", second.settled)
	}
}

func TestVirtual_WantsToLookAgain_IsAskedWhenTimeHasPassed(t *testing.T) {
	var asked []int64
	r := &scripted{name: "r", plan: func(_ *store.View, _ ID, now time.Time) (Plan, error) {
		if n := len(asked); n == 0 || asked[n-1] != now.Unix() {
			asked = append(asked, now.Unix())
		}
		if now.Unix() >= 130 {
			return Plan{}, nil
		}
		return Plan{At: now.Add(15 * time.Second)}, nil
	}}
	v := newVirtual(t, r)
	v.Relist()
	run(t, v)
	v.Pass(time.Unix(110, 0)) // too early
	run(t, v)
	for next, ok := v.Next(); ok; next, ok = v.Next() {
		v.Pass(next)
		run(t, v)
	}
	if want := []int64{100, 115, 130}; !slices.Equal(asked, want) {
		t.Errorf("asked at %v, want %v", asked, want)
	}
}

func TestVirtual_PartIsRefused_EndsAndTellsTheReconciler(t *testing.T) {
	r := &scripted{name: "r", plan: func(*store.View, ID, time.Time) (Plan, error) {
		plan := alarmed("one")
		plan.Rest = []Plan{alarmed("two"), alarmed("three")}
		plan.Rest[0].Guards = []*swarmpb.Guard{{Key: swarmpb.ServiceKey("none"), Version: 3}}
		return plan, nil
	}}
	v := newVirtual(t, r)
	v.Relist()
	_, err := v.Step()
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) || len(r.settled) != 2 || r.settled[0] != nil || !errors.As(r.settled[1], &conflict) {
		t.Errorf("error %v, settled %v", err, r.settled)
	}
	if v.View().Alarm("one", "o") == nil || v.View().Alarm("three", "o") != nil {
		t.Error("the parts before are not written, or those after are")
	}
}

func TestVirtual_ReconcilerContradictsItself_IsAnError(t *testing.T) {
	calls := 0
	v := newVirtual(t, &scripted{name: "r", plan: func(*store.View, ID, time.Time) (Plan, error) {
		calls++
		return alarmed(string(rune('a' + calls))), nil
	}})
	v.Relist()
	if _, err := v.Step(); err == nil {
		t.Error("two plans for one view are taken")
	}
}

// pacedScript is a scripted reconciler whose looks are to be a minute apart.
type pacedScript struct{ *scripted }

func (pacedScript) Pace(*store.View, ID) time.Duration { return time.Minute }

func TestVirtual_PacedAndAlso_AsADriverDoes(t *testing.T) {
	looks := map[string][]int64{}
	r := &scripted{name: "r"}
	r.plan = func(_ *store.View, id ID, now time.Time) (Plan, error) {
		at := now.Unix()
		if seen := looks[id.Object]; len(seen) == 0 || seen[len(seen)-1] != at {
			looks[id.Object] = append(seen, at)
		}
		if id.Object != "all" || at > 165 {
			return Plan{}, nil
		}
		return Plan{At: now.Add(time.Second), Also: []Look{{ID: ID{Object: "all"}}, {ID: ID{Object: "other", Node: "n"}, At: now.Add(10 * time.Second)}}}, nil
	}
	v := newVirtual(t, pacedScript{r})
	v.Relist()
	run(t, v)
	for next, ok := v.Next(); ok; next, ok = v.Next() {
		v.Pass(next)
		run(t, v)
	}
	if want := []int64{100, 160, 220}; !slices.Equal(looks["all"], want) {
		t.Errorf("looked at %v, want %v", looks["all"], want)
	}
	if want := []int64{110, 170}; !slices.Equal(looks["other"], want) {
		t.Errorf("the other one was looked at at %v, want %v", looks["other"], want)
	}
}
