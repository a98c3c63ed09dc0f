package plan

import (
	"slices"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile/script"
)

// runs makes a spec a job's.
func runs(total, atATime uint64) func(spec *swarmpb.ServiceSpec) {
	return func(spec *swarmpb.ServiceSpec) {
		spec.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_ReplicatedJob{
			ReplicatedJob: &swarmpb.ReplicatedJobMode{Total: total, MaxConcurrent: atATime}}}
		spec.Update, spec.Rollback = nil, nil
	}
}

// ends is what a plan ends with.
func ends(answer *swarmpb.PlanServiceResponse) string {
	if last(answer) != swarmpb.PlanAction_PLAN_ACTION_DONE {
		return "not done: " + strings.Join(text(answer), "; ")
	}
	return answer.Steps[len(answer.Steps)-1].Message
}

// day sets the world's clock to a day's noon, UTC.
func (w *world) day() time.Time {
	w.t.Helper()
	noon := w.Now().UTC().Truncate(24 * time.Hour).Add(36 * time.Hour)
	w.advance(noon.Sub(w.Now()))
	return noon
}

func TestPlan_Job_RunsAllItsTasksOnce(t *testing.T) {
	w := newWorld(t, 3)
	answer := w.plan(w.create(0, runs(20, 4)))
	if answer.Starts != 20 || answer.Stops != 0 || answer.NoChange || len(answer.Problems) > 0 {
		t.Errorf("%d starts, %d stops, no change %t, problems %q", answer.Starts, answer.Stops, answer.NoChange, answer.Problems)
	}
	if got, want := ends(answer), "run 1: 20 tasks, 4 at a time; how long they take is not known"; got != want {
		t.Errorf("it ends with %q, want %q", got, want)
	}
	slots := map[uint64]bool{}
	for _, step := range answer.Steps[:len(answer.Steps)-1] {
		if step.Action != swarmpb.PlanAction_PLAN_ACTION_START || slots[step.Slot] || step.NodeId == "" {
			t.Errorf("step %v", step)
		}
		slots[step.Slot] = true
	}
}

func TestPlan_JobThatDoesNotFit_SaysWhichTasksWaitAndWhy(t *testing.T) {
	w := newWorld(t, 2)
	w.cores(4)
	answer := w.plan(w.create(0, func(spec *swarmpb.ServiceSpec) { runs(2, 0)(spec); reserve(spec, 8) }))
	want := []string{"web.1, web.2: no suitable node (insufficient resources on 2 nodes)"}
	if !slices.Equal(answer.Problems, want) || answer.Starts != 0 {
		t.Errorf("problems %q, %d starts", answer.Problems, answer.Starts)
	}
}

func TestPlan_UpdateOfAJob_StopsTheRunAndBeginsAnother(t *testing.T) {
	w := newWorld(t, 2)
	w.create(0, runs(2, 0))
	w.advance(time.Second)
	answer := w.plan(w.update(func(spec *swarmpb.ServiceSpec) { spec.Task.Container.Image = "v2" }))
	if answer.Starts != 2 || answer.Stops != 2 || ends(answer) != "run 2: 2 tasks; how long they take is not known" {
		t.Errorf("%d starts, %d stops, it ends with %q", answer.Starts, answer.Stops, ends(answer))
	}
}

func TestPlan_Schedule_SaysWhenRunsBegin(t *testing.T) {
	cron := func(schedule *swarmpb.Schedule) func(spec *swarmpb.ServiceSpec) {
		return func(spec *swarmpb.ServiceSpec) { runs(2, 0)(spec); spec.Schedule = schedule }
	}
	for name, c := range map[string]struct {
		schedule *swarmpb.Schedule
		want     func(noon time.Time) string
	}{
		"every five minutes": {&swarmpb.Schedule{Cron: "*/5 * * * *"}, func(noon time.Time) string {
			at := func(m int) string { return noon.Add(time.Duration(m) * time.Minute).Format(time.RFC3339) }
			return "runs begin at " + at(5) + ", " + at(10) + " and " + at(15)
		}},
		"in a time zone": {&swarmpb.Schedule{Cron: "0 7 * * *", Timezone: "Asia/Seoul"}, func(noon time.Time) string {
			seoul, err := time.LoadLocation("Asia/Seoul")
			if err != nil {
				t.Fatal(err)
			}
			at := func(days int) string {
				return noon.In(seoul).Add(10*time.Hour).AddDate(0, 0, days).Format(time.RFC3339)
			}
			return "runs begin at " + at(0) + ", " + at(1) + " and " + at(2)
		}},
		"suspended": {&swarmpb.Schedule{Cron: "*/5 * * * *", Suspended: true}, func(time.Time) string {
			return "the schedule is suspended: no run begins until it goes on"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			noon := w.day()
			answer := w.plan(w.create(0, cron(c.schedule)))
			if got, want := ends(answer), c.want(noon); got != want {
				t.Errorf("it ends with %q, want %q", got, want)
			}
			if answer.NoChange || answer.Starts != 0 || len(answer.Problems) > 0 || len(answer.Warnings) > 0 || answer.Truncated {
				t.Errorf("no change %t, %d starts, problems %q, warnings %q, truncated %t", answer.NoChange, answer.Starts, answer.Problems, answer.Warnings, answer.Truncated)
			}
		})
	}
}

// What comes due while tasks wait changes nothing for them, and a plan does not go through the times of a year.
func TestPlan_ScheduledRunThatFindsNoNode_IsAProblemAtOnce(t *testing.T) {
	w := newWorld(t, 2)
	w.cores(4)
	w.day()
	w.create(0, func(spec *swarmpb.ServiceSpec) {
		runs(2, 0)(spec)
		reserve(spec, 8)
		spec.Schedule = &swarmpb.Schedule{Cron: "*/5 * * * *"}
	})
	w.advance(6 * time.Minute)
	answer := w.plan(w.update(func(spec *swarmpb.ServiceSpec) { spec.Labels = map[string]string{"a": "b"} }))
	if len(answer.Problems) != 1 || !strings.Contains(answer.Problems[0], "no suitable node (insufficient resources on 2 nodes)") || answer.Truncated {
		t.Errorf("problems %q, truncated %t", answer.Problems, answer.Truncated)
	}
}

func TestPlan_Global_OneTaskOnEachNodeThatSuits(t *testing.T) {
	w := newWorld(t, 4)
	w.do("node", "n2", "drain")
	answer := w.plan(w.create(0, func(spec *swarmpb.ServiceSpec) {
		spec.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Global{Global: &swarmpb.GlobalMode{}}}
		spec.Task.Placement = &swarmpb.Placement{Constraints: []string{"node.id!=n4"}}
	}))
	var nodes []string
	for _, step := range answer.Steps {
		if step.Action == swarmpb.PlanAction_PLAN_ACTION_START {
			nodes = append(nodes, step.NodeId)
		}
	}
	slices.Sort(nodes)
	if !slices.Equal(nodes, []string{"n1", "n3"}) || answer.Starts != 2 {
		t.Errorf("starts on %q, %d in all", nodes, answer.Starts)
	}
	checkReality(t, w, answer)
}

func TestPlan_HigherPriority_NamesWhoGivesWay(t *testing.T) {
	w := newWorld(t, 2)
	w.cores(4)
	low := script.NewSpec(2)
	reserve(low, 3)
	if err := w.Create("low", low); err != nil {
		t.Fatal(err)
	}
	w.settle()
	w.advance(time.Minute)
	before := w.View()
	answer := w.plan(w.create(1, func(spec *swarmpb.ServiceSpec) { reserve(spec, 2); spec.Priority = 10 }))
	if answer.Starts != 1 || answer.Stops != 0 || len(answer.Problems) > 0 {
		t.Errorf("%d starts, %d stops, problems %q", answer.Starts, answer.Stops, answer.Problems)
	}
	if len(answer.Steps) != 3 || !strings.HasPrefix(answer.Steps[0].TaskName, "low.") || answer.Steps[0].Message != "gives way to web.1" ||
		answer.Steps[0].Action != swarmpb.PlanAction_PLAN_ACTION_STOP || answer.Steps[1].TaskName != "web.1" || answer.Steps[1].NodeId != answer.Steps[0].NodeId {
		t.Errorf("steps:\n%s", strings.Join(text(answer), "\n"))
	}
	if len(answer.Warnings) != 1 || !strings.Contains(answer.Warnings[0], "of services with a lower priority, low.") {
		t.Errorf("warnings %q", answer.Warnings)
	}
	if before.TaskCountIn("low", stateRunning) != 2 {
		t.Error("the view has changed")
	}
	w.advance(time.Minute)
	if n := w.View().TaskCountIn("low", stateRunning); n != 1 {
		t.Errorf("%d tasks of the other service run then, one was foretold to give way", n)
	}
}

// Whatever becomes of an update that nothing suits, the reason why comes first.
func TestPlan_UpdateThatNothingSuits_ReasonComesBeforeItsConsequence(t *testing.T) {
	actions := []swarmpb.FailureAction{swarmpb.FailureAction_FAILURE_ACTION_PAUSE, swarmpb.FailureAction_FAILURE_ACTION_CONTINUE,
		swarmpb.FailureAction_FAILURE_ACTION_ROLLBACK}
	unplaceable := map[string]func(spec *swarmpb.ServiceSpec){
		"resources": func(spec *swarmpb.ServiceSpec) { reserve(spec, 8) },
		"constraints": func(spec *swarmpb.ServiceSpec) {
			spec.Task.Placement = &swarmpb.Placement{Constraints: []string{"node.labels.zone==nowhere"}}
		},
	}
	for s := range swarmpb.UpdateStrategy_name {
		for _, action := range actions {
			for what, change := range unplaceable {
				strategy := swarmpb.UpdateStrategy(s)
				t.Run(strategy.Name()+"/"+action.Name()+"/"+what, func(t *testing.T) {
					w := newWorld(t, 2)
					w.cores(4)
					w.create(2, func(spec *swarmpb.ServiceSpec) { reserve(spec, 1) })
					w.advance(time.Minute)
					answer := w.plan(w.update(func(spec *swarmpb.ServiceSpec) {
						change(spec)
						spec.Update = &swarmpb.UpdateConfig{Strategy: strategy, FailureAction: action, ProgressDeadline: seconds(30)}
					}))
					if len(answer.Problems) == 0 || !strings.Contains(answer.Problems[0], ": no suitable node (") || strings.Contains(answer.Problems[0], "after ") {
						t.Errorf("problems %q", answer.Problems)
					}
				})
			}
		}
	}
}
