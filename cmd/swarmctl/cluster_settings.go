package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// clusterFlags are the settings of a cluster that can be changed at any time; init founds one with them.
type clusterFlags struct {
	certExpiry, keyRotation time.Duration
	history, maskLength     uint32
	pools                   []string
	noRebalance, rebalance  bool
}

var clusterFlagNames = []string{
	"default-addr-pool", "default-addr-pool-mask-length", "cert-expiry", "gossip-key-rotation", "task-history-limit", "no-rebalance", "rebalance",
}

func (s *clusterFlags) define(f *pflag.FlagSet, create bool) {
	more := ""
	if !create {
		more = ", for networks made from now on; all that there are to be"
	}
	f.StringArrayVar(&s.pools, "default-addr-pool", nil, "`network` that the subnets of \"network create\" are chosen from"+more+"; may be repeated (default "+swarmpb.DefaultAddrPool+")")
	f.Uint32Var(&s.maskLength, "default-addr-pool-mask-length", 0, fmt.Sprintf("prefix `length` of a subnet that is chosen (default %d)", swarmpb.DefaultAddrPoolMaskLength))
	f.DurationVar(&s.certExpiry, "cert-expiry", 0, fmt.Sprintf("life of the nodes' certificates (default %.0fh, at least 1h)", swarmpb.DefaultNodeCertExpiry.Hours()))
	f.DurationVar(&s.keyRotation, "gossip-key-rotation", 0, fmt.Sprintf("how often the key that encrypts gossip is replaced (default %.0fh, at least 1h)", swarmpb.DefaultGossipKeyRotation.Hours()))
	f.Uint32Var(&s.history, "task-history-limit", 0, fmt.Sprintf("ended tasks kept a replica (default %d, at most %d)", swarmpb.DefaultTaskHistoryLimit, swarmpb.MaxTaskHistory))
	f.BoolVar(&s.noRebalance, "no-rebalance", false, "move tasks for balance only when \"cluster rebalance\" asks for it")
	if !create {
		f.BoolVar(&s.rebalance, "rebalance", false, "move tasks for balance when a node has joined or returned")
		hideDefaults(f)
	}
}

// apply changes the settings by the flags that were given.
func (s *clusterFlags) apply(f *pflag.FlagSet, spec *swarmpb.ClusterSpec) error {
	if f.Changed("no-rebalance") && f.Changed("rebalance") {
		return errors.New("--rebalance and --no-rebalance contradict one another; leave one of them out")
	}
	set(f, "default-addr-pool", &spec.DefaultAddrPools, s.pools)
	set(f, "default-addr-pool-mask-length", &spec.DefaultAddrPoolMaskLength, s.maskLength)
	set(f, "cert-expiry", &spec.NodeCertExpiry, durationpb.New(s.certExpiry))
	set(f, "gossip-key-rotation", &spec.GossipKeyRotation, durationpb.New(s.keyRotation))
	set(f, "task-history-limit", &spec.TaskHistoryLimit, &s.history)
	set(f, "no-rebalance", &spec.NoRebalance, s.noRebalance)
	set(f, "rebalance", &spec.NoRebalance, !s.rebalance)
	return nil
}

func (a *app) clusterCommand() *cobra.Command {
	return group("cluster", "See and change what holds for the whole cluster", a.clusterInspectCommand(), a.clusterUpdateCommand(), a.clusterRebalanceCommand())
}

func (a *app) clusterInspectCommand() *cobra.Command {
	var (
		f      format
		pretty bool
	)
	cmd := &cobra.Command{
		Use: "inspect", Short: "Show the cluster's settings, and how much there is in it", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  swarmctl cluster inspect --pretty\n  swarmctl cluster inspect -f '{{.Spec.TaskHistoryLimit}}'",
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			r, err := c.GetCluster(ctx, &swarmpb.GetClusterRequest{})
			if err != nil {
				return err
			}
			if r.Spec == nil {
				r.Spec = &swarmpb.ClusterSpec{}
			}
			r.Spec.SetDefaults() // a cluster that was founded by an older version lacks some
			return printInspected(a.out, f, pretty, []inspected{{message: r, pretty: func(w io.Writer) { a.prettyCluster(w, r) }}})
		}),
	}
	f.define(cmd, formatJSON)
	a.reading(cmd)
	prettyFlag(cmd, &pretty)
	return cmd
}

func (a *app) prettyCluster(w io.Writer, r *swarmpb.GetClusterResponse) {
	spec := r.GetSpec()
	p := printer{w: w, width: len("Encrypted gossip:")}
	p.line("ID", r.GetId())
	p.line("Founded", a.ago(r.GetMeta().GetCreatedAt()))
	p.line("Changed", a.ago(r.GetMeta().GetUpdatedAt()))
	p.line("Leader", r.GetLeader())
	p.line("Managers", fmt.Sprintf("%d (%d reachable)", r.GetManagers(), r.GetReachableManagers()))
	p.line("Nodes", fmt.Sprint(r.GetNodes()))
	p.line("Services", fmt.Sprint(r.GetServices()))
	p.line("Tasks", fmt.Sprint(r.GetTasks()))
	rebalance := "when a node has joined or returned, a few tasks at a time"
	if spec.GetNoRebalance() {
		rebalance = "only when `swarmctl cluster rebalance` asks for it"
	}
	p.line("Rebalance", rebalance)
	p.line("Task history", count(spec.GetTaskHistoryLimit(), "ended task")+" a replica")
	p.line("Certificates", "for "+span(spec.GetNodeCertExpiry()))
	p.line("Encrypted gossip", "a new key every "+span(spec.GetGossipKeyRotation()))
	p.line("Fabric pool", fmt.Sprintf("%s, a /%d for each node", spec.GetFabricPool(), spec.GetFabricBlockLength()))
	p.line("Subnets", fmt.Sprintf("/%d of %s", spec.GetDefaultAddrPoolMaskLength(), strings.Join(spec.GetDefaultAddrPools(), ", ")))
	p.line("Data path", fmt.Sprintf("port %d/udp", spec.GetDataPathPort()))
	p.line("Root digest", r.GetRootDigest())
	for _, m := range r.GetAlarms() {
		p.line("ALARM", fmt.Sprintf("%s %s: %s (%s, first %s)", m.GetKind(), m.GetObject(), m.GetMessage(), count(m.GetCount(), "time"), a.ago(m.GetSince())))
	}
}

func (a *app) clusterUpdateCommand() *cobra.Command {
	var flags clusterFlags
	cmd := &cobra.Command{
		Use: "update", Short: "Change the cluster's settings",
		Long: `Change the cluster's settings. Only the flags given change anything, and it prints what changed. The life of certificates
counts from their next renewal, pools for networks that are made from then on, all else at once. The fabric pool and the
data path port are for the cluster's life; "swarmctl init" sets them.`,
		Example: `  swarmctl cluster update --no-rebalance
  swarmctl cluster update --task-history-limit 2 --cert-expiry 720h
  swarmctl cluster update --default-addr-pool 172.20.0.0/14 --default-addr-pool-mask-length 23`,
		Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	flags.define(f, false)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if !changed(f, clusterFlagNames...) {
			return usageError(cmd, "say what to change")
		}
		if err := flags.apply(f, &swarmpb.ClusterSpec{}); err != nil {
			return fmt.Errorf("cluster update: %w", err)
		}
		return nil
	}
	cmd.RunE = a.call(func(ctx context.Context, c *client, _ []string) error {
		changes, err := changeCluster(ctx, c, func(spec *swarmpb.ClusterSpec) error { return flags.apply(f, spec) })
		if err == nil && len(changes) == 0 {
			return a.say("nothing to change")
		}
		for _, change := range changes {
			switch change.Change {
			case fieldChanged:
				err = a.say("%s: %s, was %s", change.Field, change.After, change.Before)
			case fieldAdded:
				err = a.say("%s: %s", change.Field, change.After)
			default:
				err = a.say("%s: no longer %s", change.Field, change.Before)
			}
		}
		return err
	})
	return cmd
}

// changeCluster reads the settings, edits them and writes them back; it returns what has changed.
func changeCluster(ctx context.Context, c *client, edit func(*swarmpb.ClusterSpec) error) ([]fieldChange, error) {
	for try := 1; ; try++ {
		r, err := c.GetCluster(ctx, &swarmpb.GetClusterRequest{})
		if err != nil {
			return nil, err
		}
		before := swarmpb.Clone(r.GetSpec())
		if before == nil {
			before = &swarmpb.ClusterSpec{}
		}
		before.SetDefaults()
		spec := swarmpb.Clone(before)
		if err := edit(spec); err != nil {
			return nil, err
		}
		done, err := c.UpdateCluster(ctx, &swarmpb.UpdateClusterRequest{Version: r.GetMeta().GetVersion(), Spec: spec, RequestId: swarmpb.NewID()})
		if err == nil {
			return diffFields(specFields(before), specFields(done.GetSpec())), nil
		}
		if !errors.Is(err, wire.ErrConflict) || try == changeTries {
			return nil, err
		}
	}
}
