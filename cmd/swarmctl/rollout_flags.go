package main

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// updateFlags are the --update-... or --rollback-... flags.
type updateFlags struct {
	prefix                         string
	parallelism                    numberValue
	delay, monitor, deadline       spanValue
	strategy, failureAction, order string
	failureRatio                   boundValue
	trial                          *trialFlags // of an update alone
}

// trialFlags are those of the strategies that have a new set beside the old one.
type trialFlags struct {
	grace    spanValue
	preview  []string
	steps    string
	metric   string
	min, max boundValue
	interval spanValue
}

func (u *updateFlags) define(cmd *cobra.Command, prefix string, actions ...string) {
	u.prefix = prefix
	f := cmd.Flags()
	strategies := []string{"rolling", "in-place", "recreate"}
	if prefix == "update" {
		strategies = append(strategies, "blue-green", "canary")
	}
	orders := []string{"stop-first", "start-first"}
	f.StringVar(&u.strategy, prefix+"-strategy", "rolling", prefix+": "+strings.Join(strategies, ", "))
	valueFlag(f, &u.parallelism, prefix+"-parallelism", "1", prefix+": `replicas` replaced at a time; 0 for all")
	valueFlag(f, &u.delay, prefix+"-delay", "", prefix+": pause between batches")
	valueFlag(f, &u.monitor, prefix+"-monitor", "5s", prefix+": time after a start in which an end counts as a failure")
	f.StringVar(&u.failureAction, prefix+"-failure-action", "pause", prefix+": what too many failures lead to: "+strings.Join(actions, ", "))
	valueFlag(f, &u.failureRatio, prefix+"-max-failure-ratio", "", prefix+": `part` of the replicas that may fail, 0 to 1")
	f.StringVar(&u.order, prefix+"-order", "stop-first", prefix+": stop-first or start-first")
	valueFlag(f, &u.deadline, prefix+"-progress-deadline", "10m", prefix+": time without any progress after which it has failed; 0 for never")
	completeWords(cmd, prefix+"-strategy", strategies...)
	completeWords(cmd, prefix+"-failure-action", actions...)
	completeWords(cmd, prefix+"-order", orders...)
	if prefix == "update" {
		u.trial = &trialFlags{}
		u.trial.define(cmd)
	}
}

func (t *trialFlags) define(cmd *cobra.Command) {
	f := cmd.Flags()
	valueFlag(f, &t.grace, "promote-grace", "1m", "blue-green, canary: time for which the old replicas stay, without traffic, once the new ones have all of it")
	f.StringArrayVar(&t.preview, "preview-publish", nil, "blue-green: `port` that leads to the new replicas alone, as in 8081:80; may be repeated, '' for none")
	f.StringVar(&t.steps, "canary-steps", "", "canary: `steps` SHARE:WATCH[:manual],... of traffic and replicas, as in 5%:2m,25%:5m,50%:manual (default 10%:1m,50%:1m)")
	f.StringVar(&t.metric, "canary-metric", "", "canary: `URL` of an instant query of Prometheus whose value is watched, http://HOST:9090/api/v1/query?query=...")
	valueFlag(f, &t.min, "canary-metric-min", "", "canary: least `value` that is good")
	valueFlag(f, &t.max, "canary-metric-max", "", "canary: greatest `value` that is good")
	valueFlag(f, &t.interval, "canary-metric-interval", "10s", "canary: how often it is asked")
	completeWords(cmd, "canary-steps", "10%:1m,50%:1m", "5%:2m,25%:5m,50%:manual")
}

func (u *updateFlags) name(s string) string { return u.prefix + "-" + s }

// given are the flags of the configuration that were given.
func (u *updateFlags) given(f *pflag.FlagSet) []string {
	var names []string
	for _, s := range []string{"strategy", "parallelism", "delay", "monitor", "failure-action", "max-failure-ratio", "order", "progress-deadline"} {
		names = append(names, u.name(s))
	}
	if u.trial != nil {
		names = append(names, "promote-grace", "preview-publish", "canary-steps", "canary-metric", "canary-metric-min", "canary-metric-max", "canary-metric-interval")
	}
	return givenFlags(f, names)
}

func (u *updateFlags) apply(f *pflag.FlagSet, to **swarmpb.UpdateConfig) (err error) {
	if len(u.given(f)) == 0 {
		return nil
	}
	c := orNew(to)
	if n := u.name("strategy"); f.Changed(n) {
		if c.Strategy, err = enumFlag(n, u.strategy, swarmpb.ParseUpdateStrategy); err != nil {
			return err
		}
		c.DropForeign()
	}
	set(f, u.name("parallelism"), &c.Parallelism, u.parallelism.n)
	set(f, u.name("delay"), &c.Delay, u.delay.Duration)
	set(f, u.name("monitor"), &c.Monitor, u.monitor.Duration)
	if f.Changed(u.name("max-failure-ratio")) {
		c.MaxFailureRatio = 0
		if u.failureRatio.n != nil {
			c.MaxFailureRatio = *u.failureRatio.n
		}
	}
	set(f, u.name("progress-deadline"), &c.ProgressDeadline, u.deadline.Duration)
	if n := u.name("failure-action"); f.Changed(n) {
		if c.FailureAction, err = enumFlag(n, u.failureAction, swarmpb.ParseFailureAction); err != nil {
			return err
		}
	}
	if n := u.name("order"); f.Changed(n) {
		if c.Order, err = enumFlag(n, u.order, swarmpb.ParseUpdateOrder); err != nil {
			return err
		}
	}
	if u.trial != nil {
		if err := u.trial.apply(f, c); err != nil {
			return err
		}
	}
	return u.contradictions(f, c)
}

func (t *trialFlags) apply(f *pflag.FlagSet, c *swarmpb.UpdateConfig) (err error) {
	set(f, "promote-grace", &c.PromoteGrace, t.grace.Duration)
	if f.Changed("preview-publish") {
		if c.PreviewPorts, err = parsePreview(t.preview); err != nil {
			return err
		}
	}
	if f.Changed("canary-steps") {
		if c.CanarySteps, err = parseCanarySteps(t.steps); err != nil {
			return flagged("canary-steps", err)
		}
	}
	bounds := givenFlags(f, []string{"canary-metric-min", "canary-metric-max", "canary-metric-interval"})
	switch {
	case f.Changed("canary-metric") && t.metric == "":
		if len(bounds) > 0 {
			return fmt.Errorf("--%s: with --canary-metric '' there is no metric that it could apply to; leave one of them out", bounds[0])
		}
		c.CanaryMetric = nil
		return nil
	case f.Changed("canary-metric"):
		orNew(&c.CanaryMetric).Url = t.metric
	case len(bounds) == 0:
		return nil
	case c.CanaryMetric.GetUrl() == "":
		return fmt.Errorf("--%s: the service has no metric that it could apply to; add --canary-metric URL", bounds[0])
	}
	m := c.CanaryMetric
	set(f, "canary-metric-min", &m.Min, t.min.n)
	set(f, "canary-metric-max", &m.Max, t.max.n)
	set(f, "canary-metric-interval", &m.Interval, t.interval.positive())
	if m.Min == nil && m.Max == nil {
		return errors.New("--canary-metric: no value of it would be bad; add --canary-metric-min or --canary-metric-max")
	}
	if m.Min != nil && m.Max != nil && *m.Min > *m.Max {
		return fmt.Errorf("--canary-metric-min %s is above --canary-metric-max %s: no value would be good; exchange them", number(*m.Min), number(*m.Max))
	}
	return nil
}

// parsePreview reads the values of --preview-publish: all that there are to be.
func parsePreview(values []string) ([]*swarmpb.PortConfig, error) {
	if len(values) == 1 && (values[0] == "" || values[0] == byDefault) {
		return nil, nil
	}
	published, err := parseAll("preview-publish", values, parsePublish)
	var out []*swarmpb.PortConfig
	for _, p := range published {
		out = append(out, p.ports...)
	}
	return out, err
}

// contradictions refuses flags that would have no effect beside the strategy that is in force.
func (u *updateFlags) contradictions(f *pflag.FlagSet, c *swarmpb.UpdateConfig) error {
	strategy := c.StrategyOr()
	refuse := func(flag, wants string) error {
		return fmt.Errorf("--%s has no effect with the strategy %s; leave it out, or use --%s %s", flag, strategy.Name(), u.name("strategy"), wants)
	}
	// Stop-first is what in-place and recreate do anyway.
	free := strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING || !strategy.Sets() && c.Order != swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST
	if order := u.name("order"); f.Changed(order) && c.Order != swarmpb.UpdateOrder_UPDATE_ORDER_UNSPECIFIED && !free {
		return refuse(order, "rolling")
	}
	if u.trial == nil {
		return nil
	}
	if f.Changed("promote-grace") && c.PromoteGrace != nil && !strategy.Sets() {
		return refuse("promote-grace", "blue-green (or canary)")
	}
	if f.Changed("preview-publish") && len(c.PreviewPorts) > 0 && strategy != swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN {
		return refuse("preview-publish", "blue-green")
	}
	if strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY {
		return nil
	}
	if f.Changed("canary-steps") && len(c.CanarySteps) > 0 {
		return refuse("canary-steps", "canary")
	}
	if metric := givenFlags(f, []string{"canary-metric", "canary-metric-min", "canary-metric-max", "canary-metric-interval"}); len(metric) > 0 && c.CanaryMetric != nil {
		return refuse(metric[0], "canary")
	}
	return nil
}

// stepManual is the word for a step that waits for `service promote`.
const stepManual = "manual"

// parseCanarySteps reads 5%:2m,25%:5m,50%:5m:manual. Nothing, or "default", are the steps that are in force when none are given.
func parseCanarySteps(s string) ([]*swarmpb.CanaryStep, error) {
	if s == "" || s == byDefault {
		return nil, nil
	}
	var steps []*swarmpb.CanaryStep
	before := uint32(0)
	for _, text := range strings.Split(s, ",") {
		step, err := parseCanaryStep(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		if step.Share <= before {
			return nil, fmt.Errorf("%q: the share does not grow; %s comes after %s", text, percent(step.Share), percent(before))
		}
		before, steps = step.Share, append(steps, step)
	}
	return steps, nil
}

func parseCanaryStep(s string) (*swarmpb.CanaryStep, error) {
	const want = "want SHARE:WATCH, SHARE:manual or SHARE:WATCH:manual, as in 5%:2m"
	parts := strings.Split(s, ":")
	share, err := parsePercent(parts[0])
	if err != nil {
		return nil, fmt.Errorf("%q: %w; %s", s, err, want)
	}
	step := &swarmpb.CanaryStep{Share: share}
	parts = parts[1:]
	if n := len(parts); n > 0 && parts[n-1] == stepManual {
		step.Manual, parts = true, parts[:n-1]
	}
	if len(parts) > 1 || len(parts) == 0 && !step.Manual {
		return nil, fmt.Errorf("%q: %s", s, want)
	}
	if len(parts) == 1 {
		watch, err := time.ParseDuration(parts[0])
		if err != nil || watch < 0 || watch == 0 && !step.Manual {
			return nil, fmt.Errorf("%q: %q is no time to watch for, such as 90s or 5m; %s", s, parts[0], want)
		}
		if watch > 0 {
			step.Watch = durationpb.New(watch)
		}
	}
	return step, nil
}

// parsePercent reads a share of more than nothing and less than all, with up to two decimals; hundredths of a percent.
func parsePercent(s string) (uint32, error) {
	digits, ok := strings.CutSuffix(s, "%")
	r, valid := new(big.Rat), false
	if ok && digits != "" && strings.Trim(digits, "0123456789.") == "" {
		_, valid = r.SetString(digits)
	}
	if !valid {
		return 0, fmt.Errorf("%q is no share in percent", s)
	}
	r.Mul(r, big.NewRat(100, 1))
	switch {
	case !r.IsInt():
		return 0, fmt.Errorf("%s has more than two decimals", s)
	case r.Sign() == 0 || r.Cmp(big.NewRat(swarmpb.WholeShare, 1)) >= 0:
		return 0, fmt.Errorf("%s is not between 0.01%% and 99.99%%; all of it comes after the last step by itself", s)
	}
	return uint32(r.Num().Uint64()), nil
}

// percent is a share in hundredths of a percent, for people: 2.5%.
func percent(share uint32) string {
	text := fmt.Sprintf("%d.%02d", share/100, share%100)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".") + "%"
}

// canaryStepsText is steps as the flag has them.
func canaryStepsText(steps []*swarmpb.CanaryStep) string {
	var out []string
	for _, s := range steps {
		text := percent(s.GetShare())
		if s.GetWatch() != nil || !s.GetManual() {
			text += ":" + orSpan(exactSpan(s.GetWatch()), "0s")
		}
		if s.GetManual() {
			text += ":" + stepManual
		}
		out = append(out, text)
	}
	return strings.Join(out, ",")
}

// exactSpan is a duration as it reads back, without zeros that say nothing.
func exactSpan(d *durationpb.Duration) string {
	if d == nil || d.AsDuration()%time.Millisecond == 0 {
		return span(d)
	}
	return d.AsDuration().String()
}

func number(n float64) string { return (&boundValue{&n}).String() }

// metricText is a canary's metric for people.
func metricText(m *swarmpb.CanaryMetric) string {
	if m == nil {
		return ""
	}
	var bounds []string
	if m.Min != nil {
		bounds = append(bounds, "at least "+number(m.GetMin()))
	}
	if m.Max != nil {
		bounds = append(bounds, "at most "+number(m.GetMax()))
	}
	return fmt.Sprintf("%s, every %s, of %s", strings.Join(bounds, " and "), spell(m.IntervalOr()), m.GetUrl())
}

// flagged puts the flag before an error about its value.
func flagged(flag string, err error) error { return fmt.Errorf("--%s: %w", flag, err) }
