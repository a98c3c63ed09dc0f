package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// hostInfo is what info shows.
type hostInfo struct {
	Membership         string       `json:"membership"`
	NodeID             string       `json:"nodeId"`
	ClusterID          string       `json:"clusterId"`
	Role               string       `json:"role"`
	Hostname           string       `json:"hostname"`
	Address            string       `json:"address"`
	ConnectedTo        string       `json:"connectedTo"`
	Containers         uint32       `json:"containers"`
	CPUs               float64      `json:"cpus"`
	MemoryBytes        int64        `json:"memoryBytes"`
	CertificateExpires string       `json:"certificateExpires"`
	Version            string       `json:"version"`
	Containerd         string       `json:"containerd"`
	OCIRuntime         string       `json:"ociRuntime"`
	DataDir            string       `json:"dataDir"`
	RunDir             string       `json:"runDir"`
	Problems           []string     `json:"problems"`
	Cluster            *clusterInfo `json:"cluster,omitempty"` // managers only

	certificateExpires int64
	nanoCPUs           int64
}

type clusterInfo struct {
	Leader     string `json:"leader"`
	Managers   uint32 `json:"managers"`
	Reachable  uint32 `json:"reachableManagers"`
	Nodes      uint32 `json:"nodes"`
	Services   uint32 `json:"services"`
	Tasks      uint32 `json:"tasks"`
	RootDigest string `json:"rootDigest"`
	FabricPool string `json:"fabricPool"`
	// AddressPools are what subnets of networks are chosen from, each SubnetLength long.
	AddressPools []string    `json:"addressPools"`
	SubnetLength uint32      `json:"subnetLength"`
	DataPathPort uint32      `json:"dataPathPort"`
	Drains       *drainInfo  `json:"drains"` // null: not known
	Alarms       []alarmInfo `json:"alarms"`
}

// drainInfo counts tasks that were taken from all balancers before they stopped, since the leader's process began.
type drainInfo struct {
	Noted uint64 `json:"noted"`
	Late  uint64 `json:"late"` // a node had not said so in time
}

type alarmInfo struct {
	Kind    string `json:"kind"`
	Object  string `json:"object"`
	Message string `json:"message"`
	Since   string `json:"since"`
	Count   uint64 `json:"count"`

	since int64
}

func (a *app) infoCommand() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:               "info",
		Short:             "Show this host, its cluster and what is wrong with either",
		Example:           "  swarmctl info\n  swarmctl info --format '{{.NodeID}}'",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			info, err := gatherInfo(ctx, c)
			if err != nil {
				return err
			}
			switch f.kind {
			case formatJSON:
				return printJSON(a.out, info)
			case formatTemplate:
				return f.execute(a.out, fieldsOf[*hostInfo](), []any{info})
			}
			a.printInfo(info)
			return nil
		}),
	}
	f.define(cmd, "text", formatJSON)
	a.reading(cmd)
	return cmd
}

// gatherInfo asks the host, and its cluster when it is a manager. A cluster that cannot answer is a problem to show.
func gatherInfo(ctx context.Context, c *client) (*hostInfo, error) {
	r, err := c.local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
	if err != nil {
		return nil, err
	}
	d := r.GetDescription()
	nano := d.GetResources().GetNanoCpus()
	info := &hostInfo{
		Membership: membership(r.Membership), NodeID: r.NodeId, ClusterID: r.ClusterId, Hostname: d.GetHostname(),
		Address: r.AdvertiseAddress, ConnectedTo: r.ConnectedTo, Containers: r.RunningContainers,
		CPUs: float64(nano) / 1e9, nanoCPUs: nano, MemoryBytes: d.GetResources().GetMemoryBytes(),
		CertificateExpires: stamp(r.CertificateExpiresAt), certificateExpires: r.CertificateExpiresAt,
		Version: r.Version, Containerd: r.ContainerdAddress, OCIRuntime: d.GetEngine().GetOciRuntime(), DataDir: r.DataDir, RunDir: r.RunDir,
		Problems: append([]string{}, r.Problems...),
	}
	if r.Role != swarmpb.NodeRole_NODE_ROLE_UNSPECIFIED {
		info.Role = r.Role.Name()
	}
	if r.Role != swarmpb.NodeRole_NODE_ROLE_MANAGER {
		return info, nil
	}
	cluster, err := c.GetCluster(ctx, &swarmpb.GetClusterRequest{})
	if err != nil {
		info.Problems = append(info.Problems, "cluster: "+err.Error())
		return info, nil
	}
	info.Cluster = &clusterInfo{
		Leader: cluster.Leader, Managers: cluster.Managers, Reachable: cluster.ReachableManagers, Nodes: cluster.Nodes, Services: cluster.Services, Tasks: cluster.Tasks,
		RootDigest: cluster.RootDigest, FabricPool: cluster.GetSpec().GetFabricPool(), Alarms: []alarmInfo{},
	}
	spec := swarmpb.Clone(cluster.GetSpec())
	spec.SetDefaults() // a cluster that was founded by an older version lacks some
	info.Cluster.AddressPools, info.Cluster.SubnetLength, info.Cluster.DataPathPort = spec.DefaultAddrPools, spec.DefaultAddrPoolMaskLength, spec.DataPathPort
	if d := cluster.GetDrains(); d != nil {
		info.Cluster.Drains = &drainInfo{d.Noted, d.Late}
	}
	for _, m := range cluster.Alarms {
		info.Cluster.Alarms = append(info.Cluster.Alarms, alarmInfo{
			Kind: m.Kind, Object: m.Object, Message: m.Message, Since: stamp(m.Since), Count: m.Count, since: m.Since,
		})
	}
	return info, nil
}

// membership in words: none, active or disconnected.
func membership(m swarmpb.Membership) string {
	return strings.ToLower(strings.TrimPrefix(m.String(), "MEMBERSHIP_"))
}

func (a *app) printInfo(i *hostInfo) {
	p := printer{w: a.out, width: len("Session with:")}
	member := i.NodeID != ""
	if member {
		p.line("Cluster", i.Membership)
	} else {
		p.line("Cluster", "none; found one with `swarmctl init` or join one with `swarmctl join`")
	}
	p.line("Cluster ID", i.ClusterID)
	p.line("Node ID", i.NodeID)
	p.line("Hostname", i.Hostname)
	p.line("Role", i.Role)
	p.line("Address", i.Address)
	p.line("Session with", i.ConnectedTo)
	if member {
		p.line("Containers", fmt.Sprintf("%d running", i.Containers))
	}
	if i.nanoCPUs > 0 {
		p.line("CPUs", cpus(i.nanoCPUs))
		p.line("Memory", memory(i.MemoryBytes))
	}
	p.line("Certificate", a.until(i.certificateExpires))
	p.line("Version", i.Version)
	p.line("containerd", i.Containerd)
	p.line("OCI runtime", i.OCIRuntime)
	p.line("Data", i.DataDir)
	p.line("Run", i.RunDir)
	if c := i.Cluster; c != nil {
		_, _ = fmt.Fprintln(a.out)
		p.line("Leader", cmp.Or(c.Leader, "none: nothing can be changed until most managers are up and reach each other"))
		managers := fmt.Sprintf("%d (%d reachable)", c.Managers, c.Reachable)
		if c.Leader == "" {
			managers = fmt.Sprintf("%d (how many are reachable is not known without a leader)", c.Managers)
		}
		p.line("Managers", managers)
		p.line("Nodes", fmt.Sprint(c.Nodes))
		p.line("Services", fmt.Sprint(c.Services))
		p.line("Tasks", fmt.Sprint(c.Tasks))
		p.line("Fabric pool", c.FabricPool)
		p.line("Subnets", fmt.Sprintf("/%d of %s", c.SubnetLength, strings.Join(c.AddressPools, ", ")))
		p.line("Data path", fmt.Sprintf("port %d/udp", c.DataPathPort))
		if c.Drains != nil {
			p.line("Drained", fmt.Sprintf("%s since the leader began, %d late", count(c.Drains.Noted, "task"), c.Drains.Late))
		}
		p.line("Root digest", c.RootDigest)
		for _, m := range c.Alarms {
			p.line("ALARM", fmt.Sprintf("%s %s: %s (%s, first %s)", m.Kind, m.Object, m.Message, count(m.Count, "time"), a.ago(m.since)))
		}
	}
	p.lines("PROBLEM", i.Problems)
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Show the versions of swarmctl and of this host's swarmd",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, _ = fmt.Fprintf(a.out, "swarmctl  %s\n", version)
			return a.call(func(ctx context.Context, c *client, _ []string) error {
				r, err := c.local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
				if err == nil {
					_, err = fmt.Fprintf(a.out, "swarmd    %s\n", r.Version)
				}
				return err
			})(cmd, args)
		},
	}
}
