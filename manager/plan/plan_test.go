package plan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

func reserve(spec *swarmpb.ServiceSpec, cores int64) {
	spec.Task.Resources = &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: cores * 1e9}}
}

func TestPlan_CreateThatDoesNotFit_NamesTasksAndReasons(t *testing.T) {
	w := newWorld(t, 2)
	w.cores(4)
	answer := w.plan(w.create(6, func(spec *swarmpb.ServiceSpec) { reserve(spec, 2) }))
	want := []string{"web.5, web.6: no suitable node (insufficient resources on 2 nodes)"}
	if !slices.Equal(answer.Problems, want) || answer.Starts != 4 || answer.NoChange {
		t.Errorf("problems %q, %d starts", answer.Problems, answer.Starts)
	}
	if last(answer) == swarmpb.PlanAction_PLAN_ACTION_DONE {
		t.Error("a plan that does not fit ends as done")
	}
}

func TestPlan_ManyTasksThatDoNotFit_NamesAFewOfThem(t *testing.T) {
	w := newWorld(t, 2)
	w.cores(4)
	answer := w.plan(w.create(60, func(spec *swarmpb.ServiceSpec) { reserve(spec, 8) }))
	want := []string{"web.1, web.2, web.3 and 57 more: no suitable node (insufficient resources on 2 nodes)"}
	if !slices.Equal(answer.Problems, want) {
		t.Errorf("problems %q", answer.Problems)
	}
}

func TestPlan_UpdateThatDoesNotFit_SaysWhyAndStopsNoMoreThanTheLeaderWould(t *testing.T) {
	for _, order := range []swarmpb.UpdateOrder{swarmpb.UpdateOrder_UPDATE_ORDER_STOP_FIRST, swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST} {
		w := newWorld(t, 2)
		w.cores(4)
		w.create(2, func(spec *swarmpb.ServiceSpec) { reserve(spec, 2) })
		w.advance(time.Minute)
		answer := w.plan(w.update(func(spec *swarmpb.ServiceSpec) {
			reserve(spec, 8)
			spec.Update = &swarmpb.UpdateConfig{Order: order}
		}))
		// The reason comes first: what becomes of the update is only its consequence.
		if len(answer.Problems) == 0 || !strings.HasPrefix(answer.Problems[0], "web.1") ||
			!strings.HasSuffix(answer.Problems[0], ": no suitable node (insufficient resources on 2 nodes)") {
			t.Errorf("%s: problems %q", order.Name(), answer.Problems)
		}
		if done := w.reality(time.Hour); !slices.Equal(done, moves(answer)) {
			t.Errorf("%s: foretold %q, done %q", order.Name(), moves(answer), done)
		}
	}
}

func TestPlan_PausedUpdate_SaysHowItGoesOn(t *testing.T) {
	w := newWorld(t, 2)
	w.create(3, nil)
	w.advance(time.Minute)
	w.do("image", "v2", "failed", "after", "1s")
	w.do("update", "web", "image=v2")
	w.advance(time.Minute)
	answer, err := New(w.Now).Plan(t.Context(), w.View(), nil, "web")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(answer.Problems); n != 1 || !strings.Contains(answer.Problems[0], "update paused") ||
		!strings.HasSuffix(answer.Problems[0], "; `swarmctl service resume web` goes on") {
		t.Errorf("problems %q, steps %q", answer.Problems, text(answer))
	}
}

func TestPlan_OthersClaims_AreHonoured(t *testing.T) {
	w := newWorld(t, 2)
	w.cores(4)
	other := script.NewSpec(2)
	reserve(other, 3)
	if err := w.Create("other", other); err != nil {
		t.Fatal(err)
	}
	w.settle()
	answer := w.plan(w.create(1, func(spec *swarmpb.ServiceSpec) { reserve(spec, 2) }))
	want := []string{"web.1: no suitable node (insufficient resources on 2 nodes)"}
	if !slices.Equal(answer.Problems, want) || len(answer.Steps) != 0 {
		t.Errorf("problems %q, steps %q", answer.Problems, text(answer))
	}
}

func TestPlan_ConstraintThatNoNodeMeets_SaysSo(t *testing.T) {
	for constraint, want := range map[string]string{
		"node.labels.zone==nowhere": "web.1, web.2: no suitable node (scheduling constraints not satisfied on 3 nodes)",
		"node.unknown==x":           "web.1, web.2: ",
	} {
		w := newWorld(t, 3)
		answer := w.plan(w.create(2, func(spec *swarmpb.ServiceSpec) {
			spec.Task.Placement = &swarmpb.Placement{Constraints: []string{constraint}}
		}))
		if len(answer.Problems) != 1 || !strings.HasPrefix(answer.Problems[0], want) || answer.Starts != 0 {
			t.Errorf("%s: problems %q", constraint, answer.Problems)
		}
	}
}

func TestPlan_NothingThatTasksAreMadeFrom_IsNoChange(t *testing.T) {
	w := newWorld(t, 3)
	w.create(3, nil)
	w.advance(time.Minute)
	answer := w.plan(w.update(func(spec *swarmpb.ServiceSpec) { spec.Labels = map[string]string{"a": "b"} }))
	if !answer.NoChange || len(answer.Steps) != 0 || answer.Starts != 0 || answer.Stops != 0 || len(answer.Problems) != 0 {
		t.Errorf("no change %t, steps %q, problems %q", answer.NoChange, text(answer), answer.Problems)
	}
}

func TestPlan_NodesThatDoNotAnswer_AreWhatItWaitsFor(t *testing.T) {
	w := newWorld(t, 2)
	w.create(2, nil)
	w.advance(time.Minute)
	w.do("node", "n1", "unknown")
	answer := w.plan(w.update(func(spec *swarmpb.ServiceSpec) {
		spec.Task.Container.Image = "v2"
		var all uint64
		spec.Update = &swarmpb.UpdateConfig{Parallelism: &all}
	}))
	if last(answer) == swarmpb.PlanAction_PLAN_ACTION_DONE || len(answer.Problems) == 0 {
		t.Errorf("problems %q, steps:\n%s", answer.Problems, strings.Join(text(answer), "\n"))
	}
}

func TestPlan_PublishedPortIsTaken_IsAProblem(t *testing.T) {
	w := newWorld(t, 2)
	w.do("service", "other", "publish=8080:80")
	answer := w.plan(w.create(1, func(spec *swarmpb.ServiceSpec) {
		spec.Endpoint = &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080,
			Protocol: swarmpb.Protocol_PROTOCOL_TCP, Mode: swarmpb.PublishMode_PUBLISH_MODE_INGRESS}}}
	}))
	if len(answer.Problems) != 1 || !strings.Contains(answer.Problems[0], "8080") {
		t.Errorf("problems %q", answer.Problems)
	}
}

func TestPlan_NetworkIsFull_IsAProblemOfItsTasks(t *testing.T) {
	w := newWorld(t, 2)
	w.do("network", "small", "subnet=10.9.0.0/29")
	answer := w.plan(w.create(20, func(spec *swarmpb.ServiceSpec) {
		spec.Task.Networks = []*swarmpb.NetworkAttachment{{Network: "small"}}
	}))
	if len(answer.Problems) == 0 || !strings.Contains(answer.Problems[0], " more: ") || answer.Starts == 0 || answer.Starts > 6 {
		t.Errorf("problems %q, %d starts", answer.Problems, answer.Starts)
	}
}

func TestPlan_ProposalThatTheStoreRefuses_IsItsError(t *testing.T) {
	w := newWorld(t, 1)
	c := w.create(1, nil)
	c.proposal.Guards = []*swarmpb.Guard{{Key: swarmpb.ServiceKey("web"), Version: 7}}
	_, err := New(w.Now).Plan(t.Context(), c.before, []*swarmpb.Proposal{c.proposal}, "web")
	var conflict *store.ConflictError
	if !errors.As(err, &conflict) {
		t.Errorf("error %v", err)
	}
}

func TestPlan_CallerIsGone_Ends(t *testing.T) {
	w := newWorld(t, 1)
	c := w.create(1, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(w.Now).Plan(ctx, c.before, []*swarmpb.Proposal{c.proposal}, "web"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestPlan_PanicWithin_IsAnError(t *testing.T) {
	p := New(time.Now)
	if _, err := p.Plan(t.Context(), nil, nil, "web"); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Errorf("error %v", err)
	}
	if len(p.slots) != 0 {
		t.Error("a panic keeps its turn")
	}
}

func TestPlan_MoreThanItMayDo_CountsTheRestByEstimate(t *testing.T) {
	w := newWorld(t, 4)
	w.create(300, func(spec *swarmpb.ServiceSpec) {
		spec.Update = &swarmpb.UpdateConfig{Monitor: seconds(1)}
	})
	w.advance(time.Minute)
	c := w.update(func(spec *swarmpb.ServiceSpec) { spec.Task.Container.Image = "v2" })
	p := New(w.Now)
	p.work = 1500
	answer, err := p.Plan(t.Context(), c.before, []*swarmpb.Proposal{c.proposal}, "web")
	if err != nil {
		t.Fatal(err)
	}
	if !answer.Truncated || len(answer.Warnings) != 1 || len(answer.Problems) != 0 {
		t.Errorf("truncated %t, warnings %q, problems %q", answer.Truncated, answer.Warnings, answer.Problems)
	}
	if answer.Starts != 300 || answer.Stops != 300 {
		t.Errorf("%d starts and %d stops", answer.Starts, answer.Stops)
	}
	whole, err := New(w.Now).Plan(t.Context(), c.before, []*swarmpb.Proposal{c.proposal}, "web")
	if err != nil {
		t.Fatal(err)
	}
	if whole.Starts != 300 || whole.Stops != 300 || len(whole.Warnings) != 0 {
		t.Errorf("%d starts and %d stops, warnings %q", whole.Starts, whole.Stops, whole.Warnings)
	}
	if n := len(answer.Steps); n == 0 || n > len(whole.Steps) || !slices.EqualFunc(answer.Steps, whole.Steps[:n], equalSteps) {
		t.Errorf("a plan that was cut short begins in another way")
	}
}

func equalSteps(a, b *swarmpb.PlanStep) bool { return proto.Equal(a, b) }

func TestPlan_MoreStepsThanAnAnswerHolds_AreCountedAllTheSame(t *testing.T) {
	w := newWorld(t, 4)
	answer := w.plan(w.create(MaxSteps+500, nil))
	if len(answer.Steps) != MaxSteps || !answer.Truncated || answer.Starts != MaxSteps+500 || len(answer.Warnings) != 0 {
		t.Errorf("%d steps, truncated %t, %d starts, warnings %q", len(answer.Steps), answer.Truncated, answer.Starts, answer.Warnings)
	}
}

func TestPlan_StoreGoesOnMeanwhile_SameViewSamePlan(t *testing.T) {
	w := newWorld(t, 3)
	w.create(20, nil)
	w.advance(time.Minute)
	c := w.update(func(spec *swarmpb.ServiceSpec) { spec.Task.Container.Image = "v2" })
	now := w.Now()
	var group sync.WaitGroup
	answers := make([]*swarmpb.PlanServiceResponse, 4)
	p := New(func() time.Time { return now })
	for i := range answers {
		group.Go(func() {
			answer, err := p.Plan(context.Background(), c.before, []*swarmpb.Proposal{c.proposal}, "web")
			if err != nil {
				t.Error(err)
			}
			answers[i] = answer
		})
	}
	w.advance(time.Hour) // the leader acts on the same rows at the same time
	group.Wait()
	for _, answer := range answers[1:] {
		if !proto.Equal(answer, answers[0]) {
			t.Error("the same view has two plans")
		}
	}
	for name, view := range map[string]*store.View{"before": c.before, "after": w.View()} {
		if err := view.Verify(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// BenchmarkPlan has a service of 10 replicas in a cluster of 1,000 nodes and 30,000 other tasks.
func BenchmarkPlan(b *testing.B) {
	w := newWorld(b, 1000)
	for i := range 30 {
		if err := w.Create(fmt.Sprint("other", i), script.NewSpec(1000)); err != nil {
			b.Fatal(err)
		}
	}
	w.settle()
	w.create(10, nil)
	w.advance(time.Minute)
	c := w.update(func(spec *swarmpb.ServiceSpec) { spec.Task.Container.Image = "v2" })
	p := New(w.Now)
	b.ReportAllocs()
	for b.Loop() {
		answer, err := p.Plan(b.Context(), c.before, []*swarmpb.Proposal{c.proposal}, "web")
		if err != nil || answer.Starts != 10 {
			b.Fatalf("%d starts, error %v", answer.GetStarts(), err)
		}
	}
}

// BenchmarkPlan100k is the creation of a service of 100,000 tasks: bounded, whatever is asked.
func BenchmarkPlan100k(b *testing.B) {
	w := newWorld(b, 1000)
	c := w.create(100_000, nil)
	p := New(w.Now)
	b.ReportAllocs()
	for b.Loop() {
		answer, err := p.Plan(b.Context(), c.before, []*swarmpb.Proposal{c.proposal}, "web")
		if err != nil || answer.Starts != 100_000 {
			b.Fatalf("%d starts, error %v", answer.GetStarts(), err)
		}
	}
}
