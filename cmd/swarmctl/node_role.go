package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	roleManager = swarmpb.NodeRole_NODE_ROLE_MANAGER
	roleWorker  = swarmpb.NodeRole_NODE_ROLE_WORKER
	// roleTimeout is how long a promotion or demotion is waited for; it takes some seconds.
	roleTimeout = time.Minute
)

func (a *app) nodePromoteCommand() *cobra.Command {
	return a.roleCommand(roleManager, &cobra.Command{
		Use:   "promote NODE...",
		Short: "Make workers managers, without a restart",
		Long: `Make workers managers. A node must be ready. It gets a manager's certificate, starts its manager beside what it
runs, catches up with the others, and then has a vote; its containers do not notice. Use an odd number of managers: three
survive the loss of one, five of two.`,
		Example:           "  swarmctl node promote node-2 node-3",
		ValidArgsFunction: a.complete(nodesOf(roleWorker)),
	})
}

func (a *app) nodeDemoteCommand() *cobra.Command {
	return a.roleCommand(roleWorker, &cobra.Command{
		Use:   "demote NODE...",
		Short: "Make managers workers, without a restart",
		Long: `Make managers workers. One that leads hands leadership over first. A manager that is down can be demoted too, which
is how one that is lost for good is taken out of the count.

It is refused for the last manager, and where the managers that are left would have no majority that answers: bring the
others back, demote those that are down first, or promote another node.`,
		Example:           "  swarmctl node demote node-3",
		ValidArgsFunction: a.complete(nodesOf(roleManager)),
	})
}

// nodesOf completes to nodes that are to have the role.
func nodesOf(role swarmpb.NodeRole) names {
	return func(ctx context.Context, c *client) ([]cobra.Completion, error) {
		r, err := c.ListNodes(ctx, &swarmpb.ListNodesRequest{})
		var out []cobra.Completion
		for _, n := range r.GetNodes() {
			if name := n.GetStatus().GetDescription().GetHostname(); name != "" && desiredRole(n) == role {
				out = append(out, cobra.CompletionWithDesc(name, n.GetNode().GetId()))
			}
		}
		return out, err
	}
}

// roleCommand gives nodes a role, one after the other, and waits until they have it.
func (a *app) roleCommand(role swarmpb.NodeRole, cmd *cobra.Command) *cobra.Command {
	var (
		detach  bool
		timeout time.Duration
	)
	cmd.Args = someArgs("node")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return at once instead of waiting until it is done")
	cmd.Flags().DurationVar(&timeout, "timeout", roleTimeout, "stop waiting after this time, with exit code 124")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if timeout <= 0 {
			return usageError(cmd, "--timeout %s: want more than 0; use --detach in order not to wait", timeout)
		}
		return nil
	}
	cmd.RunE = a.call(func(ctx context.Context, c *client, args []string) error {
		effective := false
		err := each(args, func(name string) error {
			n, changed, err := a.changeNode(ctx, c, name, false, func(spec *swarmpb.NodeSpec) error { spec.DesiredRole = role; return nil })
			if err != nil {
				return err
			}
			w := roleWait{role: role, name: cmp.Or(n.GetStatus().GetDescription().GetHostname(), name), id: n.GetNode().GetId(), timeout: timeout}
			if stage := w.stage(n); stage == "" && !changed {
				return a.say("Node %s is a %s already.", w.name, role.Name())
			} else if detach {
				return a.say("Node %s is becoming a %s; `swarmctl node ls` shows when it is one.", w.name, role.Name())
			}
			effective = true
			return a.awaitRole(ctx, c, w, n)
		})
		if effective && err == nil {
			a.adviseManagers(ctx, c)
		}
		return err
	})
	return cmd
}

func (a *app) say(format string, args ...any) error {
	_, err := fmt.Fprintln(a.out, clean(fmt.Sprintf(format, args...)))
	return err
}

// roleWait is a node that is promoted or demoted.
type roleWait struct {
	role     swarmpb.NodeRole
	name, id string
	timeout  time.Duration
}

// stage says what is still to happen; empty: nothing.
func (w roleWait) stage(n *swarmpb.NodeInfo) string {
	m := n.GetManager()
	switch {
	case w.role == roleWorker && m == nil:
		return ""
	case w.role == roleWorker && m.GetLeader():
		return "handing leadership over"
	case w.role == roleWorker:
		return "leaving the managers"
	case m.GetVoter():
		return ""
	case n.GetStatus().GetState() != swarmpb.NodeState_NODE_STATE_READY:
		return "waiting for the node, which is " + nodeState(n)
	case n.GetNode().GetRole() != roleManager:
		return "getting a manager's certificate"
	case m == nil:
		return "starting its manager"
	}
	return "catching up with the other managers"
}

// awaitRole shows progress until the node has its role.
func (a *app) awaitRole(ctx context.Context, c *client, w roleWait, n *swarmpb.NodeInfo) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(w.timeout, func() { cancel(context.DeadlineExceeded) })
	defer timer.Stop()
	tick, stop := a.ticks(redraw)
	defer stop()
	for last := ""; ; {
		stage := w.stage(n)
		if desired := desiredRole(n); desired != w.role {
			return fmt.Errorf("node %s: somebody else made it a %s meanwhile; see `swarmctl node ls`", w.name, desired.Name())
		}
		if stage == "" && w.role == roleWorker && n.GetNode().GetRole() == roleManager && n.GetStatus().GetState() != swarmpb.NodeState_NODE_STATE_READY {
			return a.say("Node %s is none of the managers any more; it is %s, and becomes a worker when it is back.", w.name, nodeState(n))
		} else if stage == "" {
			return a.say("Node %s is a %s now.", w.name, w.role.Name())
		}
		if stage != last {
			last = stage
			if err := a.say("%s: %s", w.name, stage); err != nil {
				return err
			}
		}
		for n = nil; n == nil; {
			select {
			case <-tick:
			case <-ctx.Done():
				return w.interrupted(ctx, stage)
			}
			r, err := c.GetNode(ctx, &swarmpb.GetNodeRequest{Node: w.id})
			switch n = r.GetNode(); {
			case err == nil:
			case ctx.Err() != nil:
				return w.interrupted(ctx, stage)
			case errors.Is(err, wire.ErrNotManager) && w.role == roleWorker && a.isSelf(ctx, c, w.id):
				return a.say("Node %s is a %s now.", w.name, w.role.Name())
			case errors.Is(err, wire.ErrNotFound):
				return fmt.Errorf("node %s was removed from the cluster meanwhile", w.name)
			case !errors.Is(err, wire.ErrUnavailable): // a leader that goes is not the end of it
				return fmt.Errorf("node %s: %w", w.name, err)
			}
		}
	}
}

// isSelf tells whether this host is the node.
func (a *app) isSelf(ctx context.Context, c *client, id string) bool {
	info, err := c.local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
	return err == nil && info.GetNodeId() == id
}

// interrupted is the end of a wait that did not see the end.
func (w roleWait) interrupted(ctx context.Context, stage string) error {
	const hint = "the cluster goes on, see `swarmctl node ls`"
	if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return timedOut(fmt.Errorf("node %s has not become a %s within %s (%s); %s; the log of the leader's swarmd says what it waits for",
			w.name, w.role.Name(), w.timeout, stage, hint))
	}
	return fmt.Errorf("%w; %s", errInterrupted, hint)
}

// adviseManagers warns of a number of managers that is worth no more than one less.
func (a *app) adviseManagers(ctx context.Context, c *client) {
	r, err := c.GetCluster(ctx, &swarmpb.GetClusterRequest{})
	n := r.GetManagers()
	if err != nil || n == 0 || n%2 != 0 {
		return
	}
	lost := "one of them"
	if n > 4 {
		lost = fmt.Sprint((n-1)/2, " of them")
	}
	text := fmt.Sprintf("%d managers survive the loss of %s, as %d would; use an odd number", n, lost, n-1)
	if n == 2 {
		text = "with 2 managers the loss of either one stops all decisions; promote a third"
	}
	a.warn([]string{text})
}
