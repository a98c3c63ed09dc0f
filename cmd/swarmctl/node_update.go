package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	nodeUpdateLong = `Change whether a node takes tasks, its labels, and what the cluster takes of what it says of itself. Only the flags given
change anything.

  active   it takes tasks
  pause    it takes no new tasks; those that it has go on
  drain    it takes no new tasks, and those that it has are replaced on other nodes, as each service's update order says
           (start-first: the new one is up before the old one stops) and within its --max-unavailable. A manager that is
           drained stays a manager

With "drain" the command shows the progress, and what tasks wait for, and returns when no task is left. Exit codes: 0 drained,
1 somebody made the node something else meanwhile, or removed it, 124 --timeout was over before, 130 interrupted; after the
last two the drain goes on.

A node's hostname, platform, resources and engine labels attract tasks, so only what the cluster has taken of them counts: what
the node said when it first connected, without engine labels, until --accept takes what it says now. Less than was taken
counts at once. "node inspect --pretty" shows what is not accepted. Labels of --label-add are the cluster's own, and
no node can set them.`

	nodeUpdateExamples = `  swarmctl node update --availability drain node-2
  swarmctl node update --availability drain --timeout 10m node-2 && ssh node-2 reboot
  swarmctl node update --availability drain --detach node-2
  swarmctl node update --availability active node-2
  swarmctl node update --label-add disk=ssd --label-rm zone node-2
  swarmctl node update --accept node-2`
)

// nodeChange is what the flags of `node update` change.
type nodeChange struct {
	available string
	labels    listFlag
	accept    bool
	waiting
}

func (a *app) nodeUpdateCommand() *cobra.Command {
	var change nodeChange
	cmd := &cobra.Command{
		Use:                   "update [flags] NODE",
		Short:                 "Change whether a node takes tasks, its labels, and what counts of what it says of itself",
		Long:                  nodeUpdateLong,
		Example:               nodeUpdateExamples,
		DisableFlagsInUseLine: true,
		Args:                  oneArg("node"),
		ValidArgsFunction:     first(a.complete(nodeNames)),
	}
	f := cmd.Flags()
	f.StringVar(&change.available, "availability", "", "active, pause or drain")
	f.StringArrayVar(&change.labels.add, "label-add", nil, "add or change: label `NAME=VALUE`; may be repeated")
	f.StringArrayVar(&change.labels.rm, "label-rm", nil, "remove: label, by `NAME`; may be repeated")
	f.BoolVar(&change.accept, "accept", false, "take what the node says of itself now: hostname, platform, resources, engine labels")
	f.BoolVarP(&change.detach, "detach", "d", false, "drain: return at once instead of waiting until no task is left")
	f.BoolVarP(&change.quiet, "quiet", "q", false, "drain: wait without showing progress")
	f.DurationVar(&change.timeout, "timeout", 0, "drain: stop waiting after this time, with exit code 124 (default: wait until no task is left)")
	completeWords(cmd, "availability", "active", "pause", "drain")
	_ = cmd.RegisterFlagCompletionFunc("label-add", a.complete(labelWords))
	_ = cmd.RegisterFlagCompletionFunc("label-rm", a.complete(labelNames))
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return change.check(cmd) }
	cmd.RunE = a.call(func(ctx context.Context, c *client, args []string) error {
		n, effective, err := a.changeNode(ctx, c, args[0], change.accept, func(spec *swarmpb.NodeSpec) error { return change.edit(f, spec) })
		if err != nil {
			return err
		}
		text := args[0]
		switch {
		case change.accept:
			text += ": accepted: " + factsText(n.GetNode().GetSpec().GetAccepted())
		case !effective:
			text += ": nothing to change"
		}
		if f.Changed("availability") && n.GetNode().GetSpec().GetAvailability() == drained && !change.detach {
			if change.accept || !effective {
				if err := a.say("%s", text); err != nil {
					return err
				}
			}
			return a.awaitDrain(ctx, c, drainWait{id: n.GetNode().GetId(), name: nodeName(n), waiting: change.waiting}, n)
		}
		return a.say("%s", text)
	})
	return cmd
}

// check refuses what is wrong of whatever node.
func (change *nodeChange) check(cmd *cobra.Command) error {
	f := cmd.Flags()
	if !changed(f, "availability", "label-add", "label-rm", "accept") {
		return usageError(cmd, "say what to change, with --availability, --label-add, --label-rm or --accept")
	}
	if err := change.edit(f, &swarmpb.NodeSpec{Labels: assumed(change.labels.rm)}); err != nil {
		return fmt.Errorf("node update: %w", err)
	}
	if waits := givenFlags(f, []string{"detach", "quiet", "timeout"}); len(waits) > 0 && change.available != drained.Name() {
		return usageError(cmd, "--%s is for --availability drain, which alone is waited for; leave it out", waits[0])
	}
	if change.timeout < 0 {
		return usageError(cmd, "--timeout %s: want more than 0; use --detach in order not to wait", change.timeout)
	}
	return nil
}

func (change *nodeChange) edit(f *pflag.FlagSet, spec *swarmpb.NodeSpec) error {
	if f.Changed("availability") {
		value, err := swarmpb.ParseNodeAvailability(change.available)
		if err != nil {
			return fmt.Errorf("--availability: %w", err)
		}
		spec.Availability = value
	}
	return editLabels(change.labels, &spec.Labels)
}

// factsText is what the cluster takes a node to be, on one line.
func factsText(facts *swarmpb.NodeFacts) string {
	parts := []string{
		facts.GetHostname(), platformText(facts.GetPlatform()), resourcesText(facts.GetResources(), 0),
	}
	if labels := pairs(facts.GetEngineLabels()); labels != "" {
		parts = append(parts, "engine labels "+labels)
	}
	return orNone(slices.DeleteFunc(parts, func(s string) bool { return s == "" }))
}

// assumed is a node's labels as far as what is to be removed from them must be there.
func assumed(names []string) map[string]string {
	out := map[string]string{}
	for _, name := range names {
		out[name] = ""
	}
	return out
}

// editLabels changes a node's labels.
func editLabels(l listFlag, to *map[string]string) error {
	for _, name := range l.rm {
		if _, ok := (*to)[name]; !ok {
			return fmt.Errorf("--label-rm %q: the node has no such label; `swarmctl node inspect --pretty` shows them", name)
		}
		delete(*to, name)
	}
	for _, add := range l.add {
		name, value, _ := strings.Cut(add, "=")
		if name == "" {
			return fmt.Errorf("--label-add %q: want NAME=VALUE", add)
		}
		if *to == nil {
			*to = map[string]string{}
		}
		(*to)[name] = value
	}
	return nil
}

// changeNode reads a node, edits its spec and writes it back; effective: the spec is not what it was. With accept, what the
// node says of itself becomes a part of it.
func (a *app) changeNode(ctx context.Context, c *client, name string, accept bool, edit func(*swarmpb.NodeSpec) error) (n *swarmpb.NodeInfo, effective bool, err error) {
	for try := 1; ; try++ {
		r, err := c.GetNode(ctx, &swarmpb.GetNodeRequest{Node: name})
		if err != nil {
			return nil, false, err
		}
		node := r.GetNode().GetNode()
		before := node.GetSpec()
		if before == nil {
			before = &swarmpb.NodeSpec{}
		}
		spec := swarmpb.Clone(before)
		if err := edit(spec); err != nil {
			return nil, false, fmt.Errorf("node %s: %w", name, err)
		}
		if !accept && proto.Equal(spec, before) {
			return r.GetNode(), false, nil
		}
		changed, err := c.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{
			Node: node.GetId(), Version: node.GetMeta().GetVersion(), Spec: spec, Accept: accept, RequestId: swarmpb.NewID(),
		})
		if err == nil {
			return changed.GetNode(), true, nil
		}
		if !errors.Is(err, wire.ErrConflict) || try == changeTries {
			return nil, false, err
		}
	}
}
