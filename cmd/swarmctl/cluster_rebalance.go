package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// rebalancing is what a rebalance comes to.
type rebalancing struct {
	DryRun bool           `json:"dryRun"`
	Moves  []proposedMove `json:"moves"` // in the order in which they are made
	// Truncated: there are more moves.
	Truncated bool     `json:"truncated"`
	LeftAlone []string `json:"leftAlone"` // why services are, one line each
}

// proposedMove is a task that would be better off elsewhere, with the service's tasks on both nodes before it.
type proposedMove struct {
	TaskID     string `json:"taskId"`
	Task       string `json:"task"`
	Service    string `json:"service"`
	From       string `json:"from"`
	FromNodeID string `json:"fromNodeId"`
	To         string `json:"to"`
	ToNodeID   string `json:"toNodeId"`
	TasksFrom  uint32 `json:"tasksFrom"`
	TasksTo    uint32 `json:"tasksTo"`
}

func newRebalancing(dry bool, r *swarmpb.RebalanceClusterResponse) *rebalancing {
	v := &rebalancing{DryRun: dry, Moves: []proposedMove{}, Truncated: r.GetTruncated(), LeftAlone: append([]string{}, r.GetLeftAlone()...)}
	for _, m := range r.GetMoves() {
		v.Moves = append(v.Moves, proposedMove{
			TaskID: m.GetTaskId(), Task: m.GetTaskName(), Service: m.GetServiceName(),
			From: cmp.Or(m.GetFromHostname(), m.GetFromNodeId()), FromNodeID: m.GetFromNodeId(), To: cmp.Or(m.GetToHostname(), m.GetToNodeId()), ToNodeID: m.GetToNodeId(),
			TasksFrom: m.GetTasksFrom(), TasksTo: m.GetTasksTo(),
		})
	}
	return v
}

func (a *app) clusterRebalanceCommand() *cobra.Command {
	var (
		f   format
		dry bool
	)
	cmd := &cobra.Command{
		Use: "rebalance", Short: "Move tasks so that the load is more even, a few at a time",
		Long: `Move tasks so that the load is more even: first what spread preferences ask for, then each service's tasks a node, then
all tasks a node. It prints the moves, in brackets the service's tasks on the node before each, and why services are left
alone. The command does not wait for them.

A move starts the new task first, and stops the old one when that is up: one of a service at a time, and five in the cluster.
A service is left alone while something of it is not up or under way, with --no-rebalance and --placement-strategy binpack,
if it may have data on its nodes (volumes, directories that it writes to), and if its tasks must not run twice
(--update-strategy recreate and in-place, --stop-after-disconnect).

The cluster does the same by itself 10 s after a node has joined or returned, unless "cluster update --no-rebalance" says
that it is not to.`,
		Example: `  swarmctl cluster rebalance --dry-run
  swarmctl cluster rebalance
  swarmctl cluster rebalance --dry-run --format json | jq '.moves | length'`,
		Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			r, err := c.RebalanceCluster(ctx, &swarmpb.RebalanceClusterRequest{DryRun: dry, RequestId: swarmpb.NewID()})
			if err != nil {
				return err
			}
			v := newRebalancing(dry, r)
			switch f.kind {
			case formatJSON:
				return printJSON(a.out, v)
			case formatTemplate:
				return f.execute(a.out, fieldsOf[*rebalancing](), []any{v})
			}
			return a.printRebalancing(v)
		}),
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show which tasks would move, and move none")
	f.define(cmd, "text", formatJSON)
	return cmd
}

func (a *app) printRebalancing(v *rebalancing) error {
	on := func(node string, tasks uint32) string { return fmt.Sprintf("%s (%d)", node, tasks) }
	if len(v.Moves) > 0 {
		err := printRows(a.out, a.width, listing{format: format{kind: formatTable}}, v.Moves, table[proposedMove]{columns: []column[proposedMove]{
			{"TASK", func(m proposedMove) string { return m.Task }, false},
			{"FROM", func(m proposedMove) string { return on(m.From, m.TasksFrom) }, true},
			{"TO", func(m proposedMove) string { return on(m.To, m.TasksTo) }, true},
		}})
		if err != nil {
			return err
		}
		if v.Truncated {
			_, _ = fmt.Fprintf(a.out, "and so on: the first %s are shown\n", count(len(v.Moves), "move"))
		}
		_, _ = fmt.Fprintln(a.out)
	}
	tasks := count(len(v.Moves), "task")
	if v.Truncated {
		tasks = "more than " + tasks
	}
	switch {
	case len(v.Moves) == 0 && len(v.LeftAlone) == 0:
		_, _ = fmt.Fprintln(a.out, "Nothing to move: the load is as even as it can be.")
	case len(v.Moves) == 0:
		_, _ = fmt.Fprintln(a.out, "Nothing to move.")
	case v.DryRun:
		_, _ = fmt.Fprintf(a.out, "%s would move.\n", capital(tasks))
	default:
		_, _ = fmt.Fprintf(a.out, "%s to move, a few at a time; `swarmctl service ps` shows them go.\n", capital(tasks))
	}
	if len(v.LeftAlone) == 0 {
		return nil
	}
	_, err := fmt.Fprintln(a.out, "Left alone:")
	for _, line := range v.LeftAlone {
		_, err = fmt.Fprintln(a.out, clean("  "+line))
	}
	return err
}
