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
	DesiredRole  string `json:"desiredRole"` // it differs from the role while a node is promoted or demoted
	Leader       bool   `json:"leader"`
	// ManagerStatus is leader, reachable, unreachable, joining, or unknown where no leader says; empty for a node without
	// a part in Raft.
	ManagerStatus string `json:"managerStatus"`
	Address       string `json:"address"`
	Tasks         uint32 `json:"tasks"`
	Version       string `json:"version"`
}

func (a *app) nodeCommand() *cobra.Command {
	return group("node", "See, change and remove nodes", nodeListCommand(a), a.nodeInspectCommand(), a.nodePsCommand(),
		a.nodeUpdateCommand(), a.nodePromoteCommand(), a.nodeDemoteCommand(), a.nodeRemoveCommand(), a.nodeDoctorCommand())
}

func nodeState(n *swarmpb.NodeInfo) string {
	s := n.GetStatus().GetState()
	if s == swarmpb.NodeState_NODE_STATE_UNSPECIFIED {
		s = swarmpb.NodeState_NODE_STATE_UNKNOWN
	}
	return s.Name()
}

// nodeMessage is what the managers, and a connected node itself, have to say of the node.
func nodeMessage(n *swarmpb.NodeInfo) string {
	status := n.GetStatus()
	message := status.GetMessage()
	if why := status.GetDescription().GetTakesNoTasks(); why != "" && status.GetState() == swarmpb.NodeState_NODE_STATE_READY {
		message = strings.TrimPrefix(message+"; takes no new tasks: "+why, "; ")
	}
	return message
}

func availability(n *swarmpb.NodeInfo) string {
	v := n.GetNode().GetSpec().GetAvailability()
	if v == swarmpb.NodeAvailability_NODE_AVAILABILITY_UNSPECIFIED {
		v = swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE
	}
	return v.Name()
}

// managerStatus is a node's part in Raft, in one word; empty when it has none.
func managerStatus(n *swarmpb.NodeInfo) string {
	switch m := n.GetManager(); {
	case m == nil:
		return ""
	case m.GetLeader():
		return "leader"
	case !m.GetVoter():
		return "joining"
	case m.GetReachable():
		return "reachable"
	}
	return "unreachable"
}

// capital is a word as the value of a column.
func capital(s string) string {
	if s == "" {
		return ""
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// desiredRole is what the node is to be; what it is where nobody has said.
func desiredRole(n *swarmpb.NodeInfo) swarmpb.NodeRole {
	if role := n.GetNode().GetSpec().GetDesiredRole(); role != swarmpb.NodeRole_NODE_ROLE_UNSPECIFIED {
		return role
	}
	return n.GetNode().GetRole()
}

// roleText is the role for people.
func roleText(role, desired string) string {
	if role != desired {
		return role + " (to be " + desired + ")"
	}
	return role
}

func newNodeRow(n *swarmpb.NodeInfo, self string) nodeRow {
	status := n.GetStatus()
	return nodeRow{
		ID: n.GetNode().GetId(), Hostname: status.GetDescription().GetHostname(), Self: n.GetNode().GetId() == self,
		State: nodeState(n), Message: nodeMessage(n), Availability: availability(n), Role: n.GetNode().GetRole().Name(),
		DesiredRole: desiredRole(n).Name(), ManagerStatus: managerStatus(n),
		Leader: n.GetLeader(), Address: status.GetAddress(), Tasks: n.GetTasks(), Version: status.GetDescription().GetEngine().GetVersion(),
	}
}

// forgetReach leaves out who is reachable where there is no leader to know: it would be as it was before the managers
// were lost, under the eyes of one who looks for those that are.
func forgetReach(rows []nodeRow) {
	for i, r := range rows {
		if !r.Self && (r.ManagerStatus == "reachable" || r.ManagerStatus == "unreachable") {
			rows[i].ManagerStatus = "unknown"
		}
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
		{"ROLE", func(r nodeRow) string { return roleText(r.Role, r.DesiredRole) }, false},
		{"MANAGER STATUS", func(r nodeRow) string { return capital(r.ManagerStatus) }, false},
		{"TASKS", func(r nodeRow) string { return fmt.Sprint(r.Tasks) }, false},
		{"ADDRESS", func(r nodeRow) string { return r.Address }, false},
		{"MESSAGE", func(r nodeRow) string { return r.Message }, true},
	}}
	list := listCommand(a, "List the nodes", "  swarmctl node ls\n  swarmctl node ls --format '{{.Hostname}} {{.State}}'", nodes,
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
			if !slices.ContainsFunc(rows, func(r nodeRow) bool { return r.Leader }) {
				forgetReach(rows)
			}
			slices.SortFunc(rows, func(x, y nodeRow) int {
				return cmp.Or(strings.Compare(x.Hostname, y.Hostname), strings.Compare(x.ID, y.ID))
			})
			return rows, err
		})
	list.Long = `List the nodes. MANAGER STATUS is empty for a worker; else it is

  Leader        it decides
  Reachable     it has a vote, and its node is ready
  Unreachable   it has a vote, and its node is not ready: with most of them like this, nothing can be changed
  Joining       it has no vote yet and catches up
  Unknown       no leader answers, which alone knows whom it reaches`
	a.reading(list)
	return list
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
	p.line("Role", roleText(node.GetRole().Name(), desiredRole(n).Name()))
	if m := n.GetManager(); m != nil {
		p.line("Manager", strings.TrimSuffix(capital(managerStatus(n))+", "+m.GetAddress(), ", "))
	}
	p.line("Availability", availability(n))
	p.line("State", strings.TrimSpace(nodeState(n)+" "+a.ago(status.GetSince())))
	p.line("Message", nodeMessage(n))
	p.line("Labels", pairs(node.GetSpec().GetLabels()))
	p.line("Joined", a.ago(node.GetMeta().GetCreatedAt()))
	p.line("Address", status.GetAddress())
	p.line("Uplink block", n.GetUplinkBlock())
	p.line("Platform", strings.Trim(d.GetPlatform().GetOs()+"/"+d.GetPlatform().GetArchitecture(), "/"))
	p.line("Version", d.GetEngine().GetVersion())
	p.line("containerd", d.GetEngine().GetContainerdVersion())
	p.line("OCI runtime", d.GetEngine().GetOciRuntime())
	p.line("Encrypts in", encrypter(d.GetNetwork()))
	p.line("Tasks", fmt.Sprint(n.GetTasks()))
	if has := d.GetResources(); has != nil {
		taken := n.GetReserved()
		p.line("CPUs", share(has.GetNanoCpus(), taken.GetNanoCpus(), cpus))
		p.line("Memory", share(has.GetMemoryBytes(), taken.GetMemoryBytes(), memory))
	}
	p.line("Certificate", a.until(node.GetCertificateExpiresAt()))
	p.lines("PROBLEM", d.GetNetwork().GetProblems())
	for _, c := range d.GetNetwork().GetConflicts() {
		p.line("CONFLICT", conflictText(&swarmpb.NodePortConflict{NodeId: node.GetId(), Hostname: d.GetHostname(), Conflict: c}))
	}
}

// encrypter is what encrypts networks on a node; empty where nothing can.
func encrypter(n *swarmpb.NodeNetwork) string {
	switch n.GetWireguard() {
	case "kernel":
		return "the kernel"
	case "userspace":
		return "a process"
	}
	return n.GetWireguard()
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
connections are closed, and its tasks run elsewhere. A manager must be demoted first, with "swarmctl node demote": that
works for one that is down too, as long as most of the managers are up.`,
		Example: "  swarmctl node rm node-4\n  swarmctl node rm --force node-4",
		Args:    someArgs("node"), ValidArgsFunction: a.complete(nodeNames),
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
