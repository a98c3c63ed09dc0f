package swarmpb

import (
	"fmt"
	"math"
	"net/url"
	"strconv"
	"time"
)

// Limits of how a service is updated.
const (
	// MaxCanarySteps bounds the steps of a canary.
	MaxCanarySteps = 20
	// MinMetricInterval and MaxMetricInterval bound how often a canary's metric is asked for.
	MinMetricInterval = time.Second
	MaxMetricInterval = time.Hour
	// MaxRolloutTime bounds each wait of an update.
	MaxRolloutTime = 30 * 24 * time.Hour

	maxMetricURL = 4096
)

// SharePercent is a share in a user's words: 12.5% for 1250 hundredths of a percent.
func SharePercent(share uint32) string {
	return strconv.FormatFloat(float64(share)/100, 'f', -1, 64) + "%"
}

// strategy checks how an update goes from one version to another; field is update or rollback.
func (p *problems) strategy(field string, c *UpdateConfig) {
	strategy := c.StrategyOr()
	known(p, field+" strategy", strategy, UpdateStrategy_name)
	named := fmt.Sprintf("%s strategy %s", field, strategy.Name())
	if field == "rollback" && strategy.Sets() {
		p.add(named, "a rollback has no set of its own", "use rolling, in-place or recreate; an update of strategy "+strategy.Name()+" goes back to its old set as long as that is there")
	}
	p.order(field, strategy, c.Order)
	p.canarySteps(field, strategy, c.CanarySteps)
	p.canaryMetric(field, strategy, c.CanaryMetric)
	p.previewPorts(field, strategy, c.PreviewPorts)
	if c.PromoteGrace != nil && !strategy.Sets() {
		p.add(field+" promote grace", "strategy "+strategy.Name()+" has no old set that could stay", "leave it out, or use strategy blue-green or canary")
	}
	p.span(field+" promote grace", c.PromoteGrace, 0, MaxRolloutTime, DefaultPromoteGrace.String())
	p.span(field+" progress deadline", c.ProgressDeadline, 0, MaxRolloutTime, DefaultProgressDeadline.String())
}

// order refuses what a strategy leaves no choice in.
func (p *problems) order(field string, strategy UpdateStrategy, order UpdateOrder) {
	named := fmt.Sprintf("%s order %s", field, order.Name())
	switch {
	case order == UpdateOrder_UPDATE_ORDER_START_FIRST && strategy == UpdateStrategy_UPDATE_STRATEGY_IN_PLACE:
		p.add(named, "in-place needs the old task's node and volumes, which it gives up by stopping", "leave the order out, or use strategy rolling")
	case order == UpdateOrder_UPDATE_ORDER_START_FIRST && strategy == UpdateStrategy_UPDATE_STRATEGY_RECREATE:
		p.add(named, "recreate stops all old tasks before it starts a new one", "leave the order out, or use strategy rolling")
	case order == UpdateOrder_UPDATE_ORDER_STOP_FIRST && strategy.Sets():
		p.addf(named, "leave the order out, or use strategy rolling", "%s starts the new tasks beside the old ones", strategy.Name())
	}
}

func (p *problems) canarySteps(field string, strategy UpdateStrategy, steps []*CanaryStep) {
	field += " canary steps"
	if len(steps) > 0 && strategy != UpdateStrategy_UPDATE_STRATEGY_CANARY {
		p.add(field, "strategy "+strategy.Name()+" has no steps", "leave them out, or use strategy canary")
		return
	}
	if len(steps) > MaxCanarySteps {
		p.addf(field, fmt.Sprintf("use at most %d", MaxCanarySteps), "%d are too many", len(steps))
	}
	last := uint32(0)
	for i, step := range steps {
		named := fmt.Sprintf("%s: step %d (%s)", field, i+1, SharePercent(step.GetShare()))
		switch share := step.GetShare(); {
		case share == 0 || share >= WholeShare:
			p.add(named, "it is not a part of the connections", "use more than 0% and less than 100%, which follows the last step by itself")
		case share <= last:
			p.addf(named, "let the shares grow from step to step", "it is not more than the %s before it", SharePercent(last))
		default:
			last = share
		}
		p.span(named+" watch", step.GetWatch(), 0, MaxRolloutTime, "none")
	}
}

func (p *problems) canaryMetric(field string, strategy UpdateStrategy, metric *CanaryMetric) {
	if metric == nil {
		return
	}
	field += " canary metric"
	if strategy != UpdateStrategy_UPDATE_STRATEGY_CANARY {
		p.add(field, "strategy "+strategy.Name()+" looks at no metric", "leave it out, or use strategy canary")
		return
	}
	u, err := url.Parse(metric.Url)
	switch {
	case metric.Url == "" || err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		p.add(fmt.Sprintf("%s %.80q", field, metric.Url), "it is not the address of a query", "use one such as http://prometheus:9090/api/v1/query?query=...")
	case len(metric.Url) > maxMetricURL:
		p.addf(field, fmt.Sprintf("use at most %d", maxMetricURL), "the address has %d bytes", len(metric.Url))
	case u.User != nil:
		p.add(field, "its address holds a user or password, which everybody who looks at the service would see", "let the managers ask without one, for example through a proxy")
	}
	switch least, most := metric.GetMin(), metric.GetMax(); {
	case metric.Min == nil && metric.Max == nil:
		p.add(field, "it has no bounds, so that any value is good", "give a least or a greatest value")
	case math.IsNaN(least) || math.IsNaN(most):
		p.add(field, "a bound is not a number", "give a number")
	case metric.Min != nil && metric.Max != nil && least > most:
		p.addf(field, "swap the bounds", "no value is at least %v and at most %v", least, most)
	}
	p.span(field+" interval", metric.Interval, MinMetricInterval, MaxMetricInterval, DefaultMetricInterval.String())
}

func (p *problems) previewPorts(field string, strategy UpdateStrategy, ports []*PortConfig) {
	if len(ports) == 0 {
		return
	}
	const what = "preview publish"
	if strategy != UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN {
		p.add(field+" "+what, "strategy "+strategy.Name()+" has no set to look at before it is promoted", "leave it out, or use strategy blue-green")
		return
	}
	p.ports(what, ports)
	for _, port := range ports {
		if port.GetMode() == PublishMode_PUBLISH_MODE_HOST {
			p.add(fmt.Sprintf("%s %d", what, port.GetPublishedPort()), "a port of mode host belongs to one task, not to a set of them", "leave mode=host out")
		}
	}
}

// trial checks a strategy that has two sets against the rest of the spec.
func (p *problems) trial(x *ServiceSpec) {
	strategy := x.GetUpdate().StrategyOr()
	if _, replicated := x.GetMode().GetMode().(*ServiceMode_Replicated); strategy.Sets() && !replicated && x.GetMode().GetMode() != nil {
		p.add("update strategy "+strategy.Name(), "only a service of mode replicated can have two sets of tasks", "use rolling, in-place or recreate")
	}
	taken := make(map[publishedPort]bool)
	for _, port := range x.GetEndpoint().GetPorts() {
		taken[publishedPort{port.GetPublishedPort(), port.GetProtocol().Name()}] = true
	}
	for _, port := range x.GetUpdate().GetPreviewPorts() {
		if n := port.GetPublishedPort(); n != 0 && taken[publishedPort{n, port.GetProtocol().Name()}] {
			p.add(fmt.Sprintf("preview publish %d", n), "the service publishes the port itself", "choose another port for the preview")
		}
	}
}

// DropForeign takes out of the configuration what belongs to another strategy than its own, for one whose strategy was
// just changed: the steps and the metric of a canary, preview ports of blue-green, the grace of both, and an order
// that the strategy does not leave open.
func (x *UpdateConfig) DropForeign() {
	if x == nil {
		return
	}
	strategy := x.StrategyOr()
	if strategy != UpdateStrategy_UPDATE_STRATEGY_CANARY {
		x.CanarySteps, x.CanaryMetric = nil, nil
	}
	if strategy != UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN {
		x.PreviewPorts = nil
	}
	if !strategy.Sets() {
		x.PromoteGrace = nil
	}
	if strategy != UpdateStrategy_UPDATE_STRATEGY_ROLLING {
		x.Order = UpdateOrder_UPDATE_ORDER_UNSPECIFIED
	}
}
