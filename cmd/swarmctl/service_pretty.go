package main

import (
	"fmt"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// prettyRollout is what became of the last update, or how far the one is that is under way.
func (a *app) prettyRollout(p printer, s *swarmpb.ServiceInfo) {
	u := s.GetProgress().GetUpdate()
	if u.GetState() == swarmpb.UpdateState_UPDATE_STATE_UNSPECIFIED {
		return
	}
	p.line("Last update", strings.TrimSuffix(updateStateWord(u.GetState())+": "+u.GetMessage(), ": "))
	if !u.Underway() {
		p.line("Ended", a.ago(u.GetCompletedAt()))
		return
	}
	view := &picture{service: s}
	fresh, stable := view.setNames(u)
	where := strategyText(u, s.GetService().GetSpec().GetUpdate())
	if u.GetPhase() != swarmpb.RolloutPhase_ROLLOUT_PHASE_UNSPECIFIED {
		text, _ := view.stage(u)
		where += text
		if since := u.GetPhaseSince(); since != 0 {
			where += " (for " + duration(a.now().Sub(time.Unix(0, since))) + ")"
		}
	}
	if u.Sets() {
		where += fmt.Sprintf("; %s has %s, %s the rest", fresh, trafficText(u.GetShare()), stable)
	}
	p.line("Rollout", where)
	lines, _ := setLines(s.GetSets(), u.Sets())
	p.lines("Set", lines)
	if m := s.GetMetric(); m != nil {
		text := m.GetMessage()
		if m.GetFailedSince() != 0 {
			text += ", out of its bounds for " + duration(a.now().Sub(time.Unix(0, m.GetFailedSince())))
		}
		p.line("Metric", text)
	}
}

// prettyUpdate is how a service gets from one version to another; of what is not said, nothing.
func prettyUpdate(p printer, name string, u *swarmpb.UpdateConfig) {
	if u == nil {
		return
	}
	p.line(name, updateText(u))
	if len(u.GetCanarySteps()) > 0 {
		p.line(name+" steps", canaryStepsText(u.GetCanarySteps()))
	}
	p.line(name+" metric", metricText(u.GetCanaryMetric()))
	var ports []string
	for _, port := range u.GetPreviewPorts() {
		ports = append(ports, strings.TrimPrefix(fmt.Sprintf("%d->%d/%s", port.GetPublishedPort(), port.GetTargetPort(), port.GetProtocol().Name()), "0->"))
	}
	p.line(name+" preview", strings.Join(ports, ", "))
}

// updateText says what differs from the defaults, beside the order and the like that every reader looks for.
func updateText(u *swarmpb.UpdateConfig) string {
	parallel := "1 at a time"
	if u.Parallelism != nil {
		parallel = fmt.Sprintf("%d at a time", u.GetParallelism())
		if u.GetParallelism() == 0 {
			parallel = "all at once"
		}
	}
	var parts []string
	switch strategy := u.StrategyOr(); {
	case strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING && u.GetStrategy() == swarmpb.UpdateStrategy_UPDATE_STRATEGY_UNSPECIFIED:
		parts = append(parts, parallel, u.GetOrder().Name())
	case strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING:
		parts = append(parts, strategy.Name(), parallel, u.GetOrder().Name())
	case strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_IN_PLACE:
		parts = append(parts, strategy.Name(), parallel)
	default:
		parts = append(parts, strategy.Name())
	}
	parts = append(parts, "on failure "+u.GetFailureAction().Name())
	if u.GetDelay() != nil {
		parts = append(parts, "pause "+span(u.GetDelay()))
	}
	if u.GetMonitor() != nil {
		parts = append(parts, "monitor "+span(u.GetMonitor()))
	}
	if u.GetMaxFailureRatio() > 0 {
		parts = append(parts, fmt.Sprintf("max failure ratio %g", u.GetMaxFailureRatio()))
	}
	if u.GetPromoteGrace() != nil {
		parts = append(parts, "grace "+span(u.GetPromoteGrace()))
	}
	if d := u.GetProgressDeadline(); d != nil && d.AsDuration() == 0 {
		parts = append(parts, "no progress deadline")
	} else if d != nil {
		parts = append(parts, "progress deadline "+span(d))
	}
	return strings.Join(parts, ", ")
}

// preStopText is what runs before the stop signal.
func preStopText(c *swarmpb.ContainerSpec) string {
	text := strings.Join(c.GetPreStop(), " ")
	if c.GetPreStopTimeout() != nil {
		text += " (at most " + span(c.GetPreStopTimeout()) + ")"
	}
	return text
}
