package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// placementFlags say where replicas may run, what they need there, and when they may be moved.
type placementFlags struct {
	maxPerNode             uint64
	strategy               string
	priority               int32
	budget                 budgetValue
	noRebalance, rebalance bool
}

func (s *serviceFlags) definePlacement(cmd *cobra.Command, create bool) {
	f, p := cmd.Flags(), &s.placement
	s.list(f, create, "constraint", "", "`constraint` on the nodes, such as node.labels.disk==ssd, 'node.labels.zone in (a, b)', 'node.labels.cores>=16' or node.hostname=~^db", "`constraint`, as it was given")
	s.list(f, create, "placement-pref", "", "`preference`, such as spread=node.labels.zone; the first one counts most", "`preference`, as it was given")
	s.list(f, create, "generic-resource", "", "`KIND=COUNT` of what a node has to have free for a replica, such as gpu=1 or example.com/gpu=2", "by `KIND`")
	f.StringVar(&p.strategy, "placement-strategy", "spread", "spread: the least loaded node first; binpack: the most loaded one that has room")
	f.Uint64Var(&p.maxPerNode, "replicas-max-per-node", 0, "most `replicas` on one node (default: any number)")
	f.Int32Var(&p.priority, "priority", 0, "`number` that orders services: where nothing else fits, replicas of those with a lower one give way (-1000000 to 1000000, default 0)")
	valueFlag(f, &p.budget, "max-unavailable", "", "most `replicas` that may be down or on their way at a time while nodes are drained, their labels change or the load is evened out: a number, or such as 10% (default: 25%, at least one)")
	f.BoolVar(&p.noRebalance, "no-rebalance", false, "never move replicas only because another node has less to do")
	completeWords(cmd, "placement-strategy", "spread", "binpack")
	completeWords(cmd, "max-unavailable", "1", "10%", "25%", "50%")
	if !create {
		f.BoolVar(&p.rebalance, "rebalance", false, "move replicas to nodes that have less to do again")
	}
}

// completePlacement offers what nodes have: labels to constrain and to spread over, and kinds of generic resources.
func (s *serviceFlags) completePlacement(a *app, cmd *cobra.Command, create bool) {
	for list, offers := range map[string]names{"constraint": constraintWords, "placement-pref": spreadWords, "generic-resource": genericWords} {
		if create {
			_ = cmd.RegisterFlagCompletionFunc(list, a.complete(offers))
			continue
		}
		_ = cmd.RegisterFlagCompletionFunc(list+"-add", a.complete(offers))
		_ = cmd.RegisterFlagCompletionFunc(list+"-rm", func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 { // whose they are is not known yet
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.complete(placedBy(args[0], list))(cmd, args, word)
		})
	}
}

// placedBy lists what a service has of the values of a flag.
func placedBy(service, list string) names {
	return func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: service})
		task := r.GetService().GetService().GetSpec().GetTask()
		var out []cobra.Completion
		switch list {
		case "constraint":
			out = append(out, task.GetPlacement().GetConstraints()...)
		case "placement-pref":
			for _, p := range task.GetPlacement().GetPreferences() {
				out = append(out, preferenceText(p))
			}
		default:
			for _, g := range task.GetResources().GetReservations().GetGeneric() {
				out = append(out, g.GetKind())
			}
		}
		return out, err
	}
}

// nodeLabels are the labels of all nodes, by name, each with its values.
func nodeLabels(ctx context.Context, c *client) (map[string][]string, []*swarmpb.NodeInfo, error) {
	r, err := c.ListNodes(ctx, &swarmpb.ListNodesRequest{})
	out := map[string][]string{}
	for _, n := range r.GetNodes() {
		for k, v := range n.GetNode().GetSpec().GetLabels() {
			if !slices.Contains(out[k], v) {
				out[k] = append(out[k], v)
			}
		}
	}
	return out, r.GetNodes(), err
}

func constraintWords(ctx context.Context, c *client) ([]cobra.Completion, error) {
	labels, nodes, err := nodeLabels(ctx, c)
	out := []cobra.Completion{"node.role==worker", "node.role==manager"}
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		for _, value := range slices.Sorted(slices.Values(labels[name])) {
			out = append(out, "node.labels."+name+"=="+value)
		}
	}
	for _, n := range nodes {
		if name := n.GetStatus().GetDescription().GetHostname(); name != "" {
			out = append(out, "node.hostname=="+name)
		}
	}
	return out, err
}

func spreadWords(ctx context.Context, c *client) ([]cobra.Completion, error) {
	labels, _, err := nodeLabels(ctx, c)
	var out []cobra.Completion
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, "spread=node.labels."+k)
	}
	return out, err
}

func genericWords(ctx context.Context, c *client) ([]cobra.Completion, error) {
	r, err := c.ListNodes(ctx, &swarmpb.ListNodesRequest{})
	kinds := map[string]bool{}
	for _, n := range r.GetNodes() {
		for _, g := range n.GetStatus().GetDescription().GetResources().GetGeneric() {
			kinds[g.GetKind()] = true
		}
	}
	var out []cobra.Completion
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		out = append(out, kind+"=1")
	}
	return out, err
}

// apply changes what of the spec is not a list.
func (p *placementFlags) apply(f *pflag.FlagSet, spec *swarmpb.ServiceSpec) error {
	set(f, "priority", &spec.Priority, p.priority)
	set(f, "max-unavailable", &spec.MaxUnavailable, p.budget.DisruptionBudget)
	if f.Changed("no-rebalance") && f.Changed("rebalance") {
		return errors.New("--rebalance and --no-rebalance contradict one another; leave one of them out")
	}
	set(f, "no-rebalance", &spec.NoRebalance, p.noRebalance)
	set(f, "rebalance", &spec.NoRebalance, !p.rebalance)
	if f.Changed("placement-strategy") {
		strategy, err := enumFlag("placement-strategy", p.strategy, swarmpb.ParsePlacementStrategy)
		if err != nil {
			return err
		}
		orNew(&spec.Task.Placement).Strategy = strategy
	}
	if f.Changed("replicas-max-per-node") {
		orNew(&spec.Task.Placement).MaxReplicasPerNode = p.maxPerNode
	}
	return nil
}

// applyPlacement changes the lists of the spec that say where replicas may run.
func (s *serviceFlags) applyPlacement(t *swarmpb.TaskSpec) error {
	var errs []error
	if l := s.lists["constraint"]; len(l.add)+len(l.rm) > 0 {
		errs = append(errs, editConstraints(s.adds("constraint"), *l, &orNew(&t.Placement).Constraints))
	}
	if l := s.lists["placement-pref"]; len(l.add)+len(l.rm) > 0 {
		errs = append(errs, editPreferences(s.adds("placement-pref"), *l, orNew(&t.Placement)))
	}
	if l := s.lists["generic-resource"]; len(l.add)+len(l.rm) > 0 {
		errs = append(errs, editGeneric(s.adds("generic-resource"), *l, &orNew(&orNew(&t.Resources).Reservations).Generic))
	}
	return errors.Join(errs...)
}

// sameConstraint is a constraint in one of the ways in which it can be written.
func sameConstraint(text string) string {
	if c, err := swarmpb.ParseConstraint(text); err == nil {
		return c.String()
	}
	return strings.TrimSpace(text)
}

// editConstraints adds and removes constraints; spaces and the case of keys make no other ones.
func editConstraints(adds string, l listFlag, to *[]string) error {
	at := func(text string) int {
		return slices.IndexFunc(*to, func(has string) bool { return sameConstraint(has) == sameConstraint(text) })
	}
	for _, rm := range l.rm {
		i := at(rm)
		if i < 0 {
			return fmt.Errorf("--constraint-rm %q: the service has no such one; it has %s", rm, orNone(*to))
		}
		*to = slices.Delete(*to, i, i+1)
	}
	for _, add := range l.add {
		if _, err := swarmpb.ParseConstraint(add); err != nil {
			return flagged(adds, err)
		}
		if at(add) < 0 {
			*to = append(*to, add)
		}
	}
	return nil
}

// preferenceText is a preference as a user writes it.
func preferenceText(p *swarmpb.PlacementPreference) string {
	return "spread=" + p.GetSpread().GetDescriptor_()
}

func editPreferences(adds string, l listFlag, p *swarmpb.Placement) error {
	descriptor := func(flag, s string) (string, error) {
		kind, d, ok := strings.Cut(s, "=")
		if !ok || kind != "spread" || d == "" {
			return "", fmt.Errorf("--%s %q: want spread=node.labels.NAME", flag, s)
		}
		return d, nil
	}
	for _, rm := range l.rm {
		d, err := descriptor("placement-pref-rm", rm)
		if err != nil {
			return err
		}
		before := len(p.Preferences)
		p.Preferences = slices.DeleteFunc(p.Preferences, func(x *swarmpb.PlacementPreference) bool { return x.GetSpread().GetDescriptor_() == d })
		if len(p.Preferences) == before {
			return fmt.Errorf("--placement-pref-rm %s: the service has no such preference", rm)
		}
	}
	for _, add := range l.add {
		d, err := descriptor(adds, add)
		if err != nil {
			return err
		}
		p.Preferences = append(p.Preferences, &swarmpb.PlacementPreference{Spread: &swarmpb.SpreadOver{Descriptor_: d}})
	}
	return nil
}

// parseGeneric reads KIND=COUNT; a KIND alone is one of it.
func parseGeneric(s string) (*swarmpb.GenericResource, error) {
	kind, text, valued := strings.Cut(s, "=")
	if kind == "" {
		return nil, errors.New("want KIND=COUNT, such as gpu=1")
	}
	g := &swarmpb.GenericResource{Kind: kind, Count: 1}
	if !valued {
		return g, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return nil, errors.New("want KIND=COUNT with a count of 1 or more, such as gpu=1; which instances a replica gets the cluster chooses")
	}
	g.Count = n
	return g, nil
}

// editGeneric adds, changes and removes reservations of generic resources.
func editGeneric(adds string, l listFlag, to *[]*swarmpb.GenericResource) error {
	at := func(kind string) int {
		return slices.IndexFunc(*to, func(g *swarmpb.GenericResource) bool { return g.GetKind() == kind })
	}
	for _, rm := range l.rm {
		kind, _, _ := strings.Cut(rm, "=")
		i := at(kind)
		if i < 0 {
			var has []string
			for _, g := range *to {
				has = append(has, genericText(g))
			}
			if len(has) == 0 {
				return fmt.Errorf("--generic-resource-rm %s: the service reserves no generic resources", rm)
			}
			return fmt.Errorf("--generic-resource-rm %s: the service reserves none of it; it reserves %s", rm, strings.Join(has, ", "))
		}
		*to = slices.Delete(*to, i, i+1)
	}
	added, err := parseAll(adds, l.add, parseGeneric)
	if err != nil {
		return err
	}
	for i, g := range added {
		switch at := at(g.Kind); {
		case slices.ContainsFunc(added[:i], func(before *swarmpb.GenericResource) bool { return before.Kind == g.Kind }):
			return fmt.Errorf("--%s %s: it is given twice; add the counts up", adds, g.Kind)
		case at >= 0:
			(*to)[at] = g
		default:
			*to = append(*to, g)
		}
	}
	return nil
}

// genericText is how many there are of a kind, as a user writes it.
func genericText(g *swarmpb.GenericResource) string {
	return fmt.Sprintf("%s=%d", g.GetKind(), max(g.GetCount(), int64(len(g.GetInstances()))))
}

// budgetValue is a number of replicas, a part of them in percent, or "default".
type budgetValue struct {
	*swarmpb.DisruptionBudget // nil = default
}

func (v *budgetValue) String() string { return budgetText(v.DisruptionBudget) }
func (*budgetValue) Type() string     { return "budget" }

// Set reads the flag.
func (v *budgetValue) Set(s string) error {
	v.DisruptionBudget = nil
	if s == byDefault {
		return nil
	}
	wrong := errors.New("want a number of replicas such as 2, 1% to 100% of them, or default")
	if text, ok := strings.CutSuffix(s, "%"); ok {
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil || n < 1 || n > 100 {
			return wrong
		}
		v.DisruptionBudget = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Percent{Percent: uint32(n)}}
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n < 1 {
		return wrong
	}
	v.DisruptionBudget = &swarmpb.DisruptionBudget{Most: &swarmpb.DisruptionBudget_Count{Count: n}}
	return nil
}

// budgetText is a budget as a user writes it; empty for none.
func budgetText(b *swarmpb.DisruptionBudget) string {
	switch most := b.GetMost().(type) {
	case *swarmpb.DisruptionBudget_Count:
		return strconv.FormatUint(most.Count, 10)
	case *swarmpb.DisruptionBudget_Percent:
		return fmt.Sprintf("%d%%", most.Percent)
	}
	return ""
}

// prettyPlacement is where a service's replicas may run, and when they may be moved.
func prettyPlacement(p printer, spec *swarmpb.ServiceSpec) {
	placement := spec.GetTask().GetPlacement()
	var platforms []string
	for _, platform := range placement.GetPlatforms() {
		platforms = append(platforms, platformText(platform))
	}
	p.line("Platforms", strings.Join(platforms, ", "))
	p.lines("Constraint", placement.GetConstraints())
	for _, preference := range placement.GetPreferences() {
		p.line("Preference", preferenceText(preference))
	}
	if s := placement.GetStrategy(); s != swarmpb.PlacementStrategy_PLACEMENT_STRATEGY_UNSPECIFIED {
		p.line("Strategy", s.Name())
	}
	if n := placement.GetMaxReplicasPerNode(); n > 0 {
		p.line("At most", count(n, "replica")+" a node")
	}
	if n := spec.GetPriority(); n != 0 {
		p.line("Priority", strconv.Itoa(int(n)))
	}
	p.line("Max unavailable", budgetText(spec.GetMaxUnavailable()))
	if spec.GetNoRebalance() {
		p.line("Rebalance", "never, unless its nodes are drained or do not suit any more")
	}
}

// platformText is a platform as images name it: linux/amd64.
func platformText(p *swarmpb.Platform) string {
	return strings.Trim(p.GetOs()+"/"+p.GetArchitecture(), "/")
}
