package swarmpb

import (
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestUpdateStatus_Sets_OnlyOfSetsUnderWay(t *testing.T) {
	ways := map[UpdateStrategy]bool{
		UpdateStrategy_UPDATE_STRATEGY_UNSPECIFIED: false,
		UpdateStrategy_UPDATE_STRATEGY_ROLLING:     false,
		UpdateStrategy_UPDATE_STRATEGY_IN_PLACE:    false,
		UpdateStrategy_UPDATE_STRATEGY_RECREATE:    false,
		UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN:  true,
		UpdateStrategy_UPDATE_STRATEGY_CANARY:      true,
	}
	under := map[UpdateState]bool{
		UpdateState_UPDATE_STATE_UNSPECIFIED:        false,
		UpdateState_UPDATE_STATE_UPDATING:           true,
		UpdateState_UPDATE_STATE_PAUSED:             true,
		UpdateState_UPDATE_STATE_COMPLETED:          false,
		UpdateState_UPDATE_STATE_ROLLBACK_STARTED:   true,
		UpdateState_UPDATE_STATE_ROLLBACK_PAUSED:    true,
		UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED: false,
	}
	if len(ways) != len(UpdateStrategy_name) || len(under) != len(UpdateState_name) {
		t.Fatal("a strategy or state is not in the table")
	}
	for way, sets := range ways {
		for state, underway := range under {
			status := &UpdateStatus{State: state, Strategy: way, TemplateVersion: 4, Share: 500, ReplicaShare: 500}
			if got := status.Underway(); got != underway {
				t.Errorf("%s %s: under way %v", way.Name(), state.Name(), got)
			}
			if got := status.Sets(); got != (sets && underway) {
				t.Errorf("%s %s: sets %v", way.Name(), state.Name(), got)
			}
			want := &Trial{Set: 4, Share: 500, Preview: true}
			if !(sets && underway) {
				want = nil
			}
			if got := status.Trial(); !proto.Equal(got, want) {
				t.Errorf("%s %s: trial %v, want %v", way.Name(), state.Name(), got, want)
			}
			if got := status.Replicas(10); (got == 10) != (want == nil) {
				t.Errorf("%s %s: %d of 10 replicas", way.Name(), state.Name(), got)
			}
		}
	}
	var none *UpdateStatus
	if none.Sets() || none.Trial() != nil || none.Replicas(3) != 3 || none.Paused() {
		t.Error("no update is taken for one of sets")
	}
}

func TestUpdateStatus_Replicas_RoundsUpAndNeverOverflows(t *testing.T) {
	for _, c := range []struct {
		all   uint64
		share uint32
		want  uint64
	}{
		{0, 5000, 0},
		{10, 0, 0},
		{10, 1, 1},
		{10, 500, 1},
		{10, 1000, 1},
		{10, 1001, 2},
		{3, 5000, 2},
		{3, 10000, 3},
		{3, 20000, 3},
		{12345, 3333, 4115},
		{math.MaxUint64, 10000, math.MaxUint64},
		{math.MaxUint64, 5000, math.MaxUint64/2 + 1},
	} {
		x := &UpdateStatus{State: UpdateState_UPDATE_STATE_UPDATING, Strategy: UpdateStrategy_UPDATE_STRATEGY_CANARY, ReplicaShare: c.share}
		if got := x.Replicas(c.all); got != c.want {
			t.Errorf("%d of %d replicas: %d, want %d", c.share, c.all, got, c.want)
		}
	}
}

func TestTaskStatus_Up_RunsAndIsReady(t *testing.T) {
	for state := range TaskState_name {
		status := &TaskStatus{State: TaskState(state)}
		if got := status.Up(); got != (TaskState(state) == TaskState_TASK_STATE_RUNNING) {
			t.Errorf("%s: up %v", TaskState(state).Name(), got)
		}
	}
	running := &TaskStatus{State: TaskState_TASK_STATE_RUNNING, Health: &HealthStatus{State: HealthState_HEALTH_STATE_HEALTHY}}
	if !running.Up() {
		t.Error("a healthy task is not up")
	}
	running.Health.NotReady = true
	if running.Up() {
		t.Error("a task that is not ready is up")
	}
	if (*TaskStatus)(nil).Up() {
		t.Error("a task of which nothing is known is up")
	}
}

func TestUpdateConfig_Defaults(t *testing.T) {
	var none *UpdateConfig
	if none.StrategyOr() != UpdateStrategy_UPDATE_STRATEGY_ROLLING || none.PromoteGraceOr() != time.Minute ||
		none.ProgressDeadlineOr() != 10*time.Minute || len(none.CanaryStepsOr()) != 2 {
		t.Error("defaults of no configuration are not those of the docs")
	}
	set := &UpdateConfig{
		Strategy: UpdateStrategy_UPDATE_STRATEGY_CANARY, PromoteGrace: durationpb.New(0), ProgressDeadline: durationpb.New(0),
		CanarySteps: []*CanaryStep{{Share: 100}},
	}
	if set.StrategyOr() != UpdateStrategy_UPDATE_STRATEGY_CANARY || set.PromoteGraceOr() != 0 || set.ProgressDeadlineOr() != 0 || len(set.CanaryStepsOr()) != 1 {
		t.Error("a configuration's own values are not taken")
	}
}

func TestRolloutNames_ParseIsTheInverse(t *testing.T) {
	inverse(t, UpdateStrategy_name, UpdateStrategy.Name, ParseUpdateStrategy)
	inverse(t, HealthState_name, HealthState.Name, ParseHealthState)
	inverse(t, RolloutPhase_name, RolloutPhase.Name, ParseRolloutPhase)
	inverse(t, RolloutAction_name, RolloutAction.Name, ParseRolloutAction)
	for s, want := range map[UpdateStrategy]string{0: "rolling", 1: "rolling", 2: "in-place", 3: "recreate", 4: "blue-green", 5: "canary", 99: "unknown(99)"} {
		if got := s.Name(); got != want {
			t.Errorf("strategy %d is %q, want %q", s, got, want)
		}
	}
}

func inverse[E interface {
	~int32
	comparable
}](t *testing.T, names map[int32]string, name func(E) string, parse func(string) (E, error)) {
	t.Helper()
	for n := range names {
		if n == 0 {
			continue
		}
		got, err := parse(name(E(n)))
		if err != nil || got != E(n) {
			t.Errorf("%q reads as %v, %v; want %v", name(E(n)), got, err, E(n))
		}
	}
	for _, bad := range []string{"", "unspecified", "nonsense"} {
		if got, err := parse(bad); err == nil {
			t.Errorf("%q reads as %v", bad, got)
		}
	}
}

func TestTrial_ShareOf_DividesBetweenItsSetAndTheOthers(t *testing.T) {
	one, two := &Endpoint{Set: 1}, &Endpoint{Set: 2}
	for _, c := range []struct {
		trial    *Trial
		one, two uint32
	}{
		{nil, 10000, 10000}, {&Trial{Set: 2}, 10000, 0}, {&Trial{Set: 2, Share: 500}, 9500, 500},
		{&Trial{Set: 2, Share: 10000}, 0, 10000}, {&Trial{Set: 2, Share: 20000}, 0, 10000},
	} {
		if a, b := c.trial.ShareOf(one), c.trial.ShareOf(two); a != c.one || b != c.two || c.trial.Has(one) || c.trial.Has(two) != (c.trial != nil) {
			t.Errorf("%v: shares %d and %d, want %d and %d", c.trial, a, b, c.one, c.two)
		}
	}
}
