package swarmpb

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
)

// WholeShare is all of a service's connections, or replicas: shares are in hundredths of a percent.
const WholeShare = 10000

// What an update does when its configuration does not say.
const (
	DefaultPromoteGrace     = time.Minute
	DefaultProgressDeadline = 10 * time.Minute
	DefaultMetricInterval   = 10 * time.Second
)

// Underway tells whether the update has begun and not ended: a paused one is under way.
func (x *UpdateStatus) Underway() bool {
	switch x.GetState() {
	case UpdateState_UPDATE_STATE_UPDATING, UpdateState_UPDATE_STATE_PAUSED,
		UpdateState_UPDATE_STATE_ROLLBACK_STARTED, UpdateState_UPDATE_STATE_ROLLBACK_PAUSED:
		return true
	}
	return false
}

// Paused tells whether the update is under way and moves nothing until it is told to.
func (x *UpdateStatus) Paused() bool {
	return x.GetState() == UpdateState_UPDATE_STATE_PAUSED || x.GetState() == UpdateState_UPDATE_STATE_ROLLBACK_PAUSED
}

// Sets tells whether the update is under way with two sets of tasks beside one another: blue-green, canary, or the way
// back of one.
func (x *UpdateStatus) Sets() bool {
	return x.Underway() && x.GetStrategy().Sets()
}

// Trial is how nodes divide the service's new connections; nil unless Sets().
func (x *UpdateStatus) Trial() *Trial {
	if !x.Sets() {
		return nil
	}
	return &Trial{Set: x.GetTemplateVersion(), Share: min(x.GetShare(), WholeShare), Preview: true}
}

// Has tells whether the endpoint is of the trial's set; nobody is without a trial.
func (x *Trial) Has(e *Endpoint) bool {
	return x != nil && e.GetSet() == x.GetSet()
}

// ShareOf is the share of new connections that the endpoint's side gets, in hundredths of a percent: all of them without a
// trial.
func (x *Trial) ShareOf(e *Endpoint) uint32 {
	switch share := min(x.GetShare(), WholeShare); {
	case x == nil:
		return WholeShare
	case x.Has(e):
		return share
	default:
		return WholeShare - share
	}
}

// Replicas is how many of a service's replicas the new set should have, rounded up; all of them unless Sets().
func (x *UpdateStatus) Replicas(all uint64) uint64 {
	if !x.Sets() {
		return all
	}
	share := uint64(min(x.GetReplicaShare(), WholeShare))
	// In two parts, so that no number of replicas overflows.
	return all/WholeShare*share + (all%WholeShare*share+WholeShare-1)/WholeShare
}

// Up tells whether the task runs and is ready for connections.
func (x *TaskStatus) Up() bool {
	return x.GetState() == TaskState_TASK_STATE_RUNNING && !x.GetHealth().GetNotReady()
}

// Sets tells whether the new version's tasks run in a set of their own beside the old ones, instead of taking their slots.
func (x UpdateStrategy) Sets() bool {
	return x == UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN || x == UpdateStrategy_UPDATE_STRATEGY_CANARY
}

// StrategyOr is the strategy, rolling when none is given.
func (x *UpdateConfig) StrategyOr() UpdateStrategy {
	if s := x.GetStrategy(); s != UpdateStrategy_UPDATE_STRATEGY_UNSPECIFIED {
		return s
	}
	return UpdateStrategy_UPDATE_STRATEGY_ROLLING
}

// CanaryStepsOr are the steps of a canary, 10% and 50% for a minute each when none are given.
func (x *UpdateConfig) CanaryStepsOr() []*CanaryStep {
	if steps := x.GetCanarySteps(); len(steps) > 0 {
		return steps
	}
	return []*CanaryStep{
		{Share: WholeShare / 10, Watch: durationpb.New(time.Minute)},
		{Share: WholeShare / 2, Watch: durationpb.New(time.Minute)},
	}
}

// PromoteGraceOr is how long the old set stays once the new one has all connections.
func (x *UpdateConfig) PromoteGraceOr() time.Duration {
	return durationOr(x.GetPromoteGrace(), DefaultPromoteGrace)
}

// ProgressDeadlineOr is how long an update may make no progress; 0 = for ever.
func (x *UpdateConfig) ProgressDeadlineOr() time.Duration {
	return durationOr(x.GetProgressDeadline(), DefaultProgressDeadline)
}

// IntervalOr is how often the metric is asked for.
func (x *CanaryMetric) IntervalOr() time.Duration {
	return durationOr(x.GetInterval(), DefaultMetricInterval)
}

func durationOr(d *durationpb.Duration, unset time.Duration) time.Duration {
	if d == nil {
		return unset
	}
	return d.AsDuration()
}

// Name is the strategy in the user's words: rolling, in-place, recreate, blue-green or canary. Unspecified means rolling.
func (x UpdateStrategy) Name() string {
	if x == UpdateStrategy_UPDATE_STRATEGY_UNSPECIFIED {
		return "rolling"
	}
	return nameOf(UpdateStrategy_name, int32(x), "UPDATE_STRATEGY_")
}

// ParseUpdateStrategy reads rolling, in-place, recreate, blue-green or canary.
func ParseUpdateStrategy(s string) (UpdateStrategy, error) {
	return parseName[UpdateStrategy]("update strategy", s, UpdateStrategy_value, "UPDATE_STRATEGY_", UpdateStrategy_name)
}

// Name is the state in the user's words: starting, healthy or unhealthy; none without a probe.
func (x HealthState) Name() string {
	if x == HealthState_HEALTH_STATE_UNSPECIFIED {
		return "none"
	}
	return nameOf(HealthState_name, int32(x), "HEALTH_STATE_")
}

// ParseHealthState reads starting, healthy or unhealthy.
func ParseHealthState(s string) (HealthState, error) {
	return parseName[HealthState]("health", s, HealthState_value, "HEALTH_STATE_", HealthState_name)
}

// Name is the phase in the user's words, for example watching; unspecified, where slots are replaced, is replacing.
func (x RolloutPhase) Name() string {
	if x == RolloutPhase_ROLLOUT_PHASE_UNSPECIFIED {
		return "replacing"
	}
	return nameOf(RolloutPhase_name, int32(x), "ROLLOUT_PHASE_")
}

// ParseRolloutPhase reads preparing, starting, watching, waiting, grace, ending or returning.
func ParseRolloutPhase(s string) (RolloutPhase, error) {
	return parseName[RolloutPhase]("rollout phase", s, RolloutPhase_value, "ROLLOUT_PHASE_", RolloutPhase_name)
}

// Name is the action in the user's words: pause, resume, promote or promote-fully.
func (x RolloutAction) Name() string {
	return nameOf(RolloutAction_name, int32(x), "ROLLOUT_ACTION_")
}

// ParseRolloutAction reads pause, resume, promote or promote-fully.
func ParseRolloutAction(s string) (RolloutAction, error) {
	return parseName[RolloutAction]("rollout action", s, RolloutAction_value, "ROLLOUT_ACTION_", RolloutAction_name)
}

// Name is the action in the user's words: prepare, start, stop, shift, wait or done.
func (x PlanAction) Name() string {
	return nameOf(PlanAction_name, int32(x), "PLAN_ACTION_")
}
