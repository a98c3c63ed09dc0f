package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// nodeRow is a node in a listing.
type nodeRow struct {
	ID           string `json:"id"`
	Hostname     string `json:"hostname"`
	Self         bool   `json:"self"`
	State        string `json:"state"`
	Message      string `json:"message"`
	Availability string `json:"availability"`
	Role         string `json:"role"`
	Leader       bool   `json:"leader"`
	Address      string `json:"address"`
	Tasks        uint32 `json:"tasks"`
	Version      string `json:"version"`
}

func (a *app) nodeCommand() *cobra.Command {
	return group("node", "See and remove nodes", nodeListCommand(a), a.nodeInspectCommand(), a.nodePsCommand(), a.nodeRemoveCommand())
}

func nodeState(n *swarmpb.NodeInfo) string {
	s := n.GetStatus().GetState()
	if s == swarmpb.NodeState_NODE_STATE_UNSPECIFIED {
		s = swarmpb.NodeState_NODE_STATE_UNKNOWN
	}
	return s.Name()
}

func availability(n *swarmpb.NodeInfo) string {
	v := n.GetNode().GetSpec().GetAvailability()
	if v == swarmpb.NodeAvailability_NODE_AVAILABILITY_UNSPECIFIED {
		v = swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE
	}
	return v.Name()
}

func newNodeRow(n *swarmpb.NodeInfo, self string) nodeRow {
	status := n.GetStatus()
	return nodeRow{
		ID: n.GetNode().GetId(), Hostname: status.GetDescription().GetHostname(), Self: n.GetNode().GetId() == self,
		State: nodeState(n), Message: status.GetMessage(), Availability: availability(n), Role: n.GetNode().GetRole().Name(),
		Leader: n.GetLeader(), Address: status.GetAddress(), Tasks: n.GetTasks(), Version: status.GetDescription().GetEngine().GetVersion(),
	}
}

func nodeListCommand(a *app) *cobra.Command {
	nodes := table[nodeRow]{func(r nodeRow) string { return r.ID }, []column[nodeRow]{
		{"ID", func(r nodeRow) string {
			if r.Self {
				return short(r.ID) + " *"
			}
			return short(r.ID)
		}, false},
		{"HOSTNAME", func(r nodeRow) string { return r.Hostname }, true},
		{"STATE", func(r nodeRow) string { return r.State }, false},
		{"AVAILABILITY", func(r nodeRow) string { return r.Availability }, false},
		{"ROLE", func(r nodeRow) string {
			if r.Leader {
				return r.Role + " (leader)"
			}
			return r.Role
		}, false},
		{"TASKS", func(r nodeRow) string { return fmt.Sprint(r.Tasks) }, false},
		{"ADDRESS", func(r nodeRow) string { return r.Address }, false},
		{"VERSION", func(r nodeRow) string { return r.Version }, true},
		{"MESSAGE", func(r nodeRow) string { return r.Message }, true},
	}}
	return listCommand(a, "List the nodes", "  swarmctl node ls\n  swarmctl node ls --format '{{.Hostname}} {{.State}}'", nodes,
		func(ctx context.Context, c *client) ([]nodeRow, error) {
			r, err := c.ListNodes(ctx, &swarmpb.ListNodesRequest{})
			if err != nil {
				return nil, err
			}
			self, err := c.local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
			var rows []nodeRow
			for _, n := range r.Nodes {
				rows = append(rows, newNodeRow(n, self.GetNodeId()))
			}
			slices.SortFunc(rows, func(x, y nodeRow) int {
				return cmp.Or(strings.Compare(x.Hostname, y.Hostname), strings.Compare(x.ID, y.ID))
			})
			return rows, err
		})
}

func (a *app) nodeInspectCommand() *cobra.Command {
	return a.inspectCommand("node", `Show all about nodes, named by ID, hostname or prefix of the ID; "self" is this manager.`,
		"  swarmctl node inspect --pretty self\n  swarmctl node inspect -f '{{.Status.Address}}' n1", nodeNames,
		func(ctx context.Context, c *client, arg string) (inspected, error) {
			r, err := c.GetNode(ctx, &swarmpb.GetNodeRequest{Node: arg})
			return inspected{r.GetNode(), []string{"node"}, func(w io.Writer) { a.prettyNode(w, r.GetNode()) }}, err
		})
}

func (a *app) prettyNode(w io.Writer, n *swarmpb.NodeInfo) {
	node, status := n.GetNode(), n.GetStatus()
	d := status.GetDescription()
	p := printer{w: w, width: len("Uplink block:")}
	p.line("ID", node.GetId())
	p.line("Hostname", d.GetHostname())
	role := node.GetRole().Name()
	if n.GetLeader() {
		role += " (leader)"
	}
	p.line("Role", role)
	p.line("Availability", availability(n))
	p.line("State", strings.TrimSpace(nodeState(n)+" "+a.ago(status.GetSince())))
	p.line("Message", status.GetMessage())
	p.line("Labels", pairs(node.GetSpec().GetLabels()))
	p.line("Joined", a.ago(node.GetMeta().GetCreatedAt()))
	p.line("Address", status.GetAddress())
	p.line("Uplink block", n.GetUplinkBlock())
	p.line("Platform", strings.Trim(d.GetPlatform().GetOs()+"/"+d.GetPlatform().GetArchitecture(), "/"))
	p.line("Version", d.GetEngine().GetVersion())
	p.line("containerd", d.GetEngine().GetContainerdVersion())
	p.line("OCI runtime", d.GetEngine().GetOciRuntime())
	p.line("Tasks", fmt.Sprint(n.GetTasks()))
	if has := d.GetResources(); has != nil {
		taken := n.GetReserved()
		p.line("CPUs", share(has.GetNanoCpus(), taken.GetNanoCpus(), cpus))
		p.line("Memory", share(has.GetMemoryBytes(), taken.GetMemoryBytes(), memory))
	}
	p.line("Certificate", a.until(node.GetCertificateExpiresAt()))
}

// share says how much of something is taken; a node may have shrunk below what is.
func share(has, taken int64, text func(int64) string) string {
	return fmt.Sprintf("%s, %s reserved, %s free", text(has), text(taken), text(max(has-taken, 0)))
}

func (a *app) nodeRemoveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NODE...", Aliases: []string{"remove"}, Short: "Remove nodes from the cluster",
		Long: `Remove nodes from the cluster. A node must be down; with --force one that is up is removed too: its
connections are closed, and its tasks run elsewhere.`,
		Args: someArgs("node"), ValidArgsFunction: a.complete(nodeNames),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			return each(args, func(arg string) error {
				r, err := c.RemoveNode(ctx, &swarmpb.RemoveNodeRequest{Node: arg, Force: force, RequestId: swarmpb.NewID()})
				if err == nil {
					_, err = fmt.Fprintln(a.out, r.Id)
				}
				return err
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove a node that is up")
	return cmd
}
