package plan

import (
	"slices"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestRecorder_SharesOfACanary_AreStepsInWords(t *testing.T) {
	r := recorder{}
	update := func(state swarmpb.UpdateState, share uint32) *swarmpb.UpdateStatus {
		return &swarmpb.UpdateStatus{State: state, Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY,
			TemplateVersion: 7, Revision: 3, Share: share}
	}
	const moving, completed = swarmpb.UpdateState_UPDATE_STATE_UPDATING, swarmpb.UpdateState_UPDATE_STATE_COMPLETED
	rows := []*swarmpb.UpdateStatus{nil,
		{State: moving, Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING, TemplateVersion: 5, Share: 5000}, // no sets, no shares
		update(moving, 0), update(moving, 1000), update(moving, 1000), update(moving, 3333), update(moving, 0),
		update(moving, 10000), update(completed, 10000), update(moving, 0), {State: moving, TemplateVersion: 8,
			Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN}}
	for i := 1; i < len(rows); i++ {
		r.progress(rows[i-1], rows[i], time.Unix(0, int64(i)))
	}
	var got []string
	for _, step := range r.steps {
		if step.Action != swarmpb.PlanAction_PLAN_ACTION_SHIFT || step.TemplateVersion != 7 {
			t.Errorf("step %v", step)
		}
		got = append(got, step.Message)
	}
	want := []string{"10% of new connections to version 3", "33.33% of new connections to version 3",
		"no new connections to version 3", "all new connections to version 3"}
	if !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
}

func TestBounded_MoreProblemsThanAnAnswerHolds_CountsTheRest(t *testing.T) {
	var many []string
	for range MaxProblems + 5 {
		many = append(many, "x")
	}
	if got := bounded(many); len(got) != MaxProblems+1 || got[MaxProblems] != "and 5 more" {
		t.Errorf("%d problems, the last %q", len(got), got[len(got)-1])
	}
	if got := bounded(many[:MaxProblems]); len(got) != MaxProblems {
		t.Errorf("%d problems", len(got))
	}
}
