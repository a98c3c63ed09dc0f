package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const advertiseHelp = "`address` or interface, with a port if it is not 2377, under which the other hosts reach this one (default: that of the default route)"

func (a *app) initCommand() *cobra.Command {
	var (
		advertise, pool       string
		blockLength, dataPort uint32
		settings              clusterFlags
		quiet                 bool
	)
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Found a cluster with this host as its first manager",
		Long: `Found a cluster with this host as its first manager, and print the command with which other hosts
join it. One manager is a cluster that stands still while that host is down; three go
on when one is lost, five when two are.`,
		Example: `  swarmctl init
  swarmctl init --advertise-addr 192.168.1.10
  swarmctl init --advertise-addr eth1 --fabric-pool 10.192.0.0/10
  swarmctl init --default-addr-pool 172.20.0.0/14 --default-addr-pool-mask-length 23`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.StringVar(&advertise, "advertise-addr", "", advertiseHelp)
	f.StringVar(&pool, "fabric-pool", "", "`network` that the nodes' blocks of container addresses come from (default "+swarmpb.DefaultFabricPool+")")
	f.Uint32Var(&blockLength, "fabric-block-length", 0, fmt.Sprintf("prefix `length` of one node's block (default %d: 253 containers a node)", swarmpb.DefaultFabricBlockLength))
	f.Uint32Var(&dataPort, "data-path-port", 0, fmt.Sprintf("UDP `port` of the traffic between the hosts' containers, VXLAN (default %d)", swarmpb.DefaultDataPathPort))
	settings.define(f, true)
	f.BoolVarP(&quiet, "quiet", "q", false, "print only the node's ID")
	cmd.RunE = a.call(func(ctx context.Context, c *client, _ []string) error {
		spec := &swarmpb.ClusterSpec{FabricPool: pool, FabricBlockLength: blockLength, DataPathPort: dataPort}
		if err := settings.apply(f, spec); err != nil {
			return fmt.Errorf("init: %w", err)
		}
		r, err := c.local.Init(ctx, &swarmpb.InitRequest{AdvertiseAddress: advertise, Spec: spec})
		if err != nil {
			return err
		}
		if quiet {
			_, err = fmt.Fprintln(a.out, r.NodeId)
			return err
		}
		_, err = fmt.Fprintf(a.out, `Cluster founded: this node (%s) is its manager.

To add a worker, run this on another host:

    %s

To add a manager, run "swarmctl join-token manager" here, and on another host what it prints; or promote a worker with
"swarmctl node promote". With three managers the cluster survives the loss of one.
`, r.NodeId, joinLine(r.GetTokens().GetWorker(), r.ManagerAddress))
		return err
	})
	return cmd
}

// joinLine is what a host is joined with.
func joinLine(token, address string) string {
	return fmt.Sprintf("swarmctl join --token %s %s", token, address)
}

func (a *app) joinCommand() *cobra.Command {
	var token, advertise string
	var managers []string
	cmd := &cobra.Command{
		Use:   "join --token TOKEN HOST[:PORT]...",
		Short: "Make this host a node of a cluster",
		Long: `Make this host a node of the cluster whose manager is at HOST. The token says whether it becomes a
worker or a manager; "swarmctl join-token worker|manager" on a manager prints the whole command. Several addresses are
tried in turn.`,
		Example: `  swarmctl join --token SWMTKN-1-... 192.168.1.10:2377`,
		Args: func(cmd *cobra.Command, args []string) error {
			if token == "" {
				return errors.New("join: --token is missing; `swarmctl join-token worker` on a manager prints the whole command")
			}
			if len(args) == 0 {
				return errors.New("join: no manager is named; use `swarmctl join --token TOKEN HOST:2377`")
			}
			for _, arg := range args {
				address, err := wire.CheckAddr(arg)
				if err != nil {
					return fmt.Errorf("join: %w", err)
				}
				managers = append(managers, address)
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			r, err := c.local.Join(ctx, &swarmpb.JoinRequest{Token: token, Managers: managers, AdvertiseAddress: advertise})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.out, "This host joined the cluster as a %s (node %s).\n", r.Role.Name(), r.NodeId)
			if err == nil && r.Role == swarmpb.NodeRole_NODE_ROLE_MANAGER {
				_, err = fmt.Fprintln(a.out, "It takes part in decisions once it has caught up; `swarmctl node ls` then shows it as Reachable.")
			}
			return err
		}),
	}
	cmd.Flags().StringVar(&token, "token", "", "join `token`")
	cmd.Flags().StringVar(&advertise, "advertise-addr", "", advertiseHelp)
	return cmd
}

func (a *app) joinTokenCommand() *cobra.Command {
	var quiet, rotate bool
	var role swarmpb.NodeRole
	cmd := &cobra.Command{
		Use:       "join-token worker|manager",
		Short:     "Print the command with which hosts join, or make a new token",
		Example:   "  swarmctl join-token worker\n  swarmctl join-token -q manager\n  swarmctl join-token --rotate worker",
		ValidArgs: []string{"worker", "manager"},
		Args: func(cmd *cobra.Command, args []string) error {
			if err := oneArg("role, worker or manager")(cmd, args); err != nil {
				return err
			}
			var err error
			if role, err = swarmpb.ParseNodeRole(args[0]); err != nil {
				return fmt.Errorf("join-token: %w", err)
			}
			return nil
		},
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			tokens, address, err := joinTokens(ctx, c, role, rotate)
			if err != nil {
				return err
			}
			token := tokens.GetWorker()
			if role == swarmpb.NodeRole_NODE_ROLE_MANAGER {
				token = tokens.GetManager()
			}
			if quiet {
				_, err = fmt.Fprintln(a.out, token)
				return err
			}
			if rotate {
				_, _ = fmt.Fprintf(a.out, "The old %s token is no longer accepted; nodes that have joined stay.\n\n", role.Name())
			}
			_, err = fmt.Fprintf(a.out, "To add a %s, run this on another host:\n\n    %s\n", role.Name(), joinLine(token, address))
			return err
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the token")
	cmd.Flags().BoolVar(&rotate, "rotate", false, "make a new token; the old one is no longer accepted")
	return cmd
}

func joinTokens(ctx context.Context, c *client, role swarmpb.NodeRole, rotate bool) (*swarmpb.JoinTokens, string, error) {
	if rotate {
		r, err := c.RotateJoinToken(ctx, &swarmpb.RotateJoinTokenRequest{Role: role, RequestId: swarmpb.NewID()})
		return r.GetTokens(), r.GetManagerAddress(), err
	}
	r, err := c.GetJoinTokens(ctx, &swarmpb.GetJoinTokensRequest{})
	return r.GetTokens(), r.GetManagerAddress(), err
}

func (a *app) leaveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this host out of its cluster",
		Long: `Take this host out of its cluster: its containers are stopped and removed, and it forgets the
cluster. Volumes and images stay. "swarmctl node rm" on a manager then removes it from the list of nodes.

A manager demotes itself first, and hands leadership over if it leads. That is refused for the last manager, and where
the managers that are left would have no majority that answers: promote another node, or bring the others back, first.
With --force it goes without a word to the others. They then count it as a manager that is down: demote it there with
"swarmctl node demote", and remove it. A last manager that leaves by force takes the cluster with it.`,
		Example:           "  swarmctl leave",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			if _, err := c.local.Leave(ctx, &swarmpb.LeaveRequest{Force: force}); err != nil {
				return err
			}
			_, err := fmt.Fprintln(a.out, "This host left the cluster.")
			if err == nil && !force {
				_, err = fmt.Fprintln(a.out, "`swarmctl node rm` on a manager takes it off the list of nodes, once it is down there.")
			}
			return err
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "leave though the cluster loses its last manager or its majority, or no manager can be reached")
	return cmd
}
