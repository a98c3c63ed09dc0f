package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func (a *app) nodeUpdateCommand() *cobra.Command {
	var (
		available string
		labels    listFlag
	)
	cmd := &cobra.Command{
		Use:   "update [flags] NODE",
		Short: "Change whether a node takes tasks, and its labels",
		Long: `Change whether a node takes tasks, and its labels. Only the flags given change anything.

  active   it takes tasks
  pause    it takes no new tasks; those that it has go on
  drain    it takes no new tasks, and those that it has are replaced on other nodes; "swarmctl node ps" shows them go

A manager that is drained stays a manager.`,
		Example: `  swarmctl node update --availability drain node-2
  swarmctl node update --availability active node-2
  swarmctl node update --label-add disk=ssd --label-rm zone node-2`,
		DisableFlagsInUseLine: true,
		Args:                  oneArg("node"),
		ValidArgsFunction:     first(a.complete(nodeNames)),
	}
	f := cmd.Flags()
	f.StringVar(&available, "availability", "", "active, pause or drain")
	f.StringArrayVar(&labels.add, "label-add", nil, "add or change: label `NAME=VALUE`; may be repeated")
	f.StringArrayVar(&labels.rm, "label-rm", nil, "remove: label, by `NAME`; may be repeated")
	completeWords(cmd, "availability", "active", "pause", "drain")
	edit := func(spec *swarmpb.NodeSpec) error {
		if f.Changed("availability") {
			value, err := swarmpb.ParseNodeAvailability(available)
			if err != nil {
				return fmt.Errorf("--availability: %w", err)
			}
			spec.Availability = value
		}
		return editLabels(labels, &spec.Labels)
	}
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if !changed(f, "availability", "label-add", "label-rm") {
			return usageError(cmd, "say what to change, with --availability, --label-add or --label-rm")
		}
		if err := edit(&swarmpb.NodeSpec{Labels: assumed(labels.rm)}); err != nil { // wrong of whatever node
			return fmt.Errorf("node update: %w", err)
		}
		return nil
	}
	cmd.RunE = a.call(func(ctx context.Context, c *client, args []string) error {
		_, effective, err := a.changeNode(ctx, c, args[0], edit)
		if err != nil {
			return err
		}
		text := args[0]
		if !effective {
			text += ": nothing to change"
		}
		_, err = fmt.Fprintln(a.out, text)
		return err
	})
	return cmd
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

// changeNode reads a node, edits its spec and writes it back; effective: the spec is not what it was.
func (a *app) changeNode(ctx context.Context, c *client, name string, edit func(*swarmpb.NodeSpec) error) (n *swarmpb.NodeInfo, effective bool, err error) {
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
		if proto.Equal(spec, before) {
			return r.GetNode(), false, nil
		}
		changed, err := c.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{
			Node: node.GetId(), Version: node.GetMeta().GetVersion(), Spec: spec, RequestId: swarmpb.NewID(),
		})
		if err == nil {
			return changed.GetNode(), true, nil
		}
		if !errors.Is(err, wire.ErrConflict) || try == changeTries {
			return nil, false, err
		}
	}
}
