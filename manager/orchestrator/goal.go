package orchestrator

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// goal is where a service is to go.
type goal struct {
	template uint64
	// rollback: it goes back, so the rollback settings hold and a failure is never rolled back again.
	rollback bool
	// failed is the template that is left because it failed; 0 when the user's spec is what the service goes to.
	failed uint64
}

// goalOf is the template that the spec names, unless an update to it has been rolled back by itself. A spec that
// names an earlier template than the spec before it is a rollback by hand.
func goalOf(view *store.View, service *swarmpb.Service, update *swarmpb.UpdateStatus) goal {
	if failed := update.GetFailedTemplateVersion(); failed != 0 && failed == service.TemplateVersion &&
		view.Template(service.Id, update.TemplateVersion) != nil {
		return goal{template: update.TemplateVersion, rollback: true, failed: failed}
	}
	g := goal{template: service.TemplateVersion, rollback: service.PreviousTemplateVersion > service.TemplateVersion}
	if g.reachedBy(update) {
		g.rollback = rollsBack(update) // as it began, whatever the spec's other fields have become since
	}
	return g
}

// reachedBy tells whether the update is, or was, one to this goal.
func (g goal) reachedBy(update *swarmpb.UpdateStatus) bool {
	return update.GetState() != swarmpb.UpdateState_UPDATE_STATE_UNSPECIFIED &&
		update.GetTemplateVersion() == g.template && update.GetFailedTemplateVersion() == g.failed
}

// active: the update is moving.
func active(update *swarmpb.UpdateStatus) bool {
	switch update.GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_UPDATING, swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED:
		return true
	default:
		return false
	}
}

func rollsBack(update *swarmpb.UpdateStatus) bool {
	return update.GetState() >= swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED
}

// settings are an update's, with their defaults.
type settings struct {
	strategy swarmpb.UpdateStrategy
	// parallelism is how many slots may be under way; 0 = all.
	parallelism    uint64
	delay, monitor time.Duration
	action         swarmpb.FailureAction
	maxFailures    float64
	order          swarmpb.UpdateOrder
	steps          []*swarmpb.CanaryStep
	grace          time.Duration
	// deadline is how long the update may make no progress; 0 = for ever.
	deadline time.Duration
}

func settingsOf(service *swarmpb.Service, rollback bool) settings {
	config := service.GetSpec().GetUpdate()
	if rollback {
		config = service.GetSpec().GetRollback()
	}
	s := settings{
		strategy:    config.StrategyOr(),
		parallelism: DefaultParallelism,
		delay:       max(0, config.GetDelay().AsDuration()),
		monitor:     DefaultMonitor,
		action:      config.GetFailureAction(),
		maxFailures: config.GetMaxFailureRatio(),
		order:       config.GetOrder(),
		steps:       config.CanaryStepsOr(),
		grace:       max(0, config.PromoteGraceOr()),
		deadline:    max(0, config.ProgressDeadlineOr()),
	}
	if config != nil && config.Parallelism != nil {
		s.parallelism = *config.Parallelism
	}
	if config.GetMonitor() != nil {
		s.monitor = max(0, config.GetMonitor().AsDuration())
	}
	return s
}

// startFirst tells whether the new task of a slot runs before the old one stops.
func (s settings) startFirst() bool {
	return s.strategy == rolling && s.order == swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST
}

// window is how many slots may have a successor that waits at READY for its turn. One that is to run beside the old task
// takes room of its own, so there are no more of those than can be of use next; 0 = all.
func (s settings) window() uint64 {
	if s.strategy == recreate || s.parallelism == 0 {
		return 0
	}
	if s.startFirst() {
		return s.parallelism
	}
	return max(s.parallelism, PrepareAhead)
}
