package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// last is a plan's last step.
func last(answer *swarmpb.PlanServiceResponse) swarmpb.PlanAction {
	if len(answer.Steps) == 0 {
		return 0
	}
	return answer.Steps[len(answer.Steps)-1].Action
}

// checkReality lets the world act on the change, and compares what it does with what was foretold.
func checkReality(t *testing.T, w *world, answer *swarmpb.PlanServiceResponse) {
	t.Helper()
	if len(answer.Problems) > 0 || answer.Truncated {
		t.Fatalf("problems %q, truncated %t, steps:\n%s", answer.Problems, answer.Truncated, strings.Join(text(answer), "\n"))
	}
	foretold := moves(answer)
	// Long enough for whatever would follow after the end that was foretold.
	done := w.reality(time.Duration(answer.AtLeast) + time.Hour)
	if !slices.Equal(foretold, done) {
		t.Errorf("foretold:\n%s\ndone:\n%s", strings.Join(text(answer), "\n"), strings.Join(done, "\n"))
	}
	starts, stops := 0, 0
	for _, line := range done {
		switch {
		case strings.Contains(line, " start "):
			starts++
		case strings.Contains(line, " stop "):
			stops++
		}
	}
	if int(answer.Starts) != starts || int(answer.Stops) != stops {
		t.Errorf("%d starts and %d stops foretold, %d and %d done", answer.Starts, answer.Stops, starts, stops)
	}
}

func TestPlan_UpdateByAnyStrategy_IsWhatThenHappens(t *testing.T) {
	strategies := []swarmpb.UpdateStrategy{
		swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING, swarmpb.UpdateStrategy_UPDATE_STRATEGY_IN_PLACE,
		swarmpb.UpdateStrategy_UPDATE_STRATEGY_RECREATE, swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN,
		swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY,
	}
	orders := []swarmpb.UpdateOrder{swarmpb.UpdateOrder_UPDATE_ORDER_STOP_FIRST, swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST}
	for _, strategy := range strategies {
		for _, order := range orders {
			for _, replicas := range []uint64{1, 3, 10} {
				for _, parallelism := range []uint64{0, 1, 2} {
					name := fmt.Sprintf("%s/%s/%d-by-%d", strategy.Name(), order.Name(), replicas, parallelism)
					t.Run(name, func(t *testing.T) {
						w := newWorld(t, 4)
						w.create(replicas, func(spec *swarmpb.ServiceSpec) {
							spec.Update = &swarmpb.UpdateConfig{Strategy: strategy, Order: order, Parallelism: &parallelism,
								Monitor: seconds(2), Delay: seconds(3)}
						})
						w.advance(time.Minute)
						c := w.update(func(spec *swarmpb.ServiceSpec) { spec.Task.Container.Image = "v2" })
						answer := w.plan(c)
						if end := last(answer); end != swarmpb.PlanAction_PLAN_ACTION_DONE && end != swarmpb.PlanAction_PLAN_ACTION_WAIT {
							t.Errorf("the plan ends with %v", end)
						}
						if answer.Strategy != strategy || answer.NoChange || answer.Starts != replicas {
							t.Errorf("strategy %s, no change %t, %d starts", answer.Strategy.Name(), answer.NoChange, answer.Starts)
						}
						checkReality(t, w, answer)
					})
				}
			}
		}
	}
}

func TestPlan_Create_IsWhatThenHappens(t *testing.T) {
	w := newWorld(t, 3)
	answer := w.plan(w.create(5, nil))
	if answer.Starts != 5 || answer.Stops != 0 || answer.AtLeast != 0 || last(answer) != swarmpb.PlanAction_PLAN_ACTION_DONE {
		t.Errorf("steps:\n%s", strings.Join(text(answer), "\n"))
	}
	checkReality(t, w, answer)
}

func TestPlan_Scale_IsWhatThenHappens(t *testing.T) {
	for _, replicas := range []uint64{0, 2, 9} {
		w := newWorld(t, 3)
		w.create(5, nil)
		w.advance(time.Minute)
		answer := w.plan(w.update(func(spec *swarmpb.ServiceSpec) { spec.GetMode().GetReplicated().Replicas = replicas }))
		checkReality(t, w, answer)
	}
}

func TestPlan_Rollback_IsWhatThenHappens(t *testing.T) {
	w := newWorld(t, 3)
	w.create(4, nil)
	w.advance(time.Minute)
	w.do("update", "web", "image=v2")
	w.advance(time.Hour)
	answer := w.plan(w.write(func() error { return w.Rollback("web") }))
	if answer.Starts != 4 || answer.Stops != 4 || last(answer) != swarmpb.PlanAction_PLAN_ACTION_DONE {
		t.Errorf("steps:\n%s", strings.Join(text(answer), "\n"))
	}
	checkReality(t, w, answer)
}

func TestPlan_WhileAnUpdateIsUnderWay_IsWhatThenHappens(t *testing.T) {
	for _, order := range []string{"stop-first", "start-first"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(t, 3)
			w.create(6, nil)
			w.advance(time.Minute)
			w.do("update", "web", "image=v2", "order="+order, "monitor=5s")
			w.advance(7 * time.Second)
			answer := w.plan(w.update(func(spec *swarmpb.ServiceSpec) { spec.Task.Container.Image = "v3" }))
			checkReality(t, w, answer)
		})
	}
}

func TestPlan_SameSpecWhileAnUpdateIsUnderWay_TellsHowItGoesOn(t *testing.T) {
	w := newWorld(t, 3)
	w.create(4, nil)
	w.advance(time.Minute)
	w.do("update", "web", "image=v2", "monitor=5s")
	w.advance(7 * time.Second)
	view := w.View()
	answer, err := New(w.Now).Plan(t.Context(), view, nil, "web")
	if err != nil {
		t.Fatal(err)
	}
	if answer.NoChange || answer.Starts == 0 || answer.Starts > 3 {
		t.Errorf("steps:\n%s", strings.Join(text(answer), "\n"))
	}
	checkReality(t, w, answer)
}
