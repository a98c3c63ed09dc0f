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
	// Draining: the node is drained and has tasks still, DrainLeft of them; DrainMoving have a successor on its way.
	Draining    bool     `json:"draining"`
	DrainLeft   uint32   `json:"drainLeft"`
	DrainMoving uint32   `json:"drainMoving"`
	DrainWaits  []string `json:"drainWaits"` // why others wait
	// NotAccepted is what the node says of itself beyond what the cluster takes.
	NotAccepted []string `json:"notAccepted"`
	Version     string   `json:"version"`
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
		Draining: n.GetDrain().GetLeft() > 0, DrainLeft: n.GetDrain().GetLeft(), DrainMoving: n.GetDrain().GetMoving(),
		DrainWaits: append([]string{}, n.GetDrain().GetWaits()...), NotAccepted: append([]string{}, n.GetNotAccepted()...),
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

// shownAvailability has how far a drain is.
func (r nodeRow) shownAvailability() string {
	if r.Draining {
		return fmt.Sprintf("%s, %d left", r.Availability, r.DrainLeft)
	}
	return r.Availability
}

// attention is what an operator is to know of the node, or to do about it.
func (r nodeRow) attention() string {
	parts := slices.DeleteFunc([]string{r.Message}, func(s string) bool { return s == "" })
	if r.Draining && len(r.DrainWaits) > 0 {
		parts = append(parts, "drain waits: "+someOf(r.DrainWaits))
	}
	if len(r.NotAccepted) > 0 {
		parts = append(parts, "not accepted: "+someOf(r.NotAccepted))
	}
	return strings.Join(parts, "; ")
}

// someOf is the first of a few things, and how many there are besides.
func someOf(words []string) string {
	if len(words) > 1 {
		return fmt.Sprintf("%s, and %d more", words[0], len(words)-1)
	}
	return words[0]
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
		{"AVAILABILITY", nodeRow.shownAvailability, false},
		{"ROLE", func(r nodeRow) string { return roleText(r.Role, r.DesiredRole) }, false},
		{"MANAGER STATUS", func(r nodeRow) string { return capital(r.ManagerStatus) }, false},
		{"TASKS", func(r nodeRow) string { return fmt.Sprint(r.Tasks) }, false},
		{"ADDRESS", func(r nodeRow) string { return r.Address }, false},
		{"MESSAGE", nodeRow.attention, true},
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
  Unknown       no leader answers, which alone knows whom it reaches

AVAILABILITY says how many tasks a drain has left. MESSAGE has what needs attention: why a node is down or takes no tasks, what
a drain waits for, and what a node says of itself that counts for nothing until "swarmctl node update --accept NODE".`
	a.reading(list)
	return list
}

func (a *app) nodeInspectCommand() *cobra.Command {
	return a.inspectCommand("node", `Show all about nodes, named by ID, hostname or prefix of the ID; "self" is this manager.`,
		"  swarmctl node inspect --pretty self\n  swarmctl node inspect -f '{{.Free.NanoCPUs}} {{.Drain.Left}}' n1\n  swarmctl node inspect -f '{{.Status.Address}}' n1", nodeNames,
		func(ctx context.Context, c *client, arg string) (inspected, error) {
			r, err := c.GetNode(ctx, &swarmpb.GetNodeRequest{Node: arg})
			return inspected{r.GetNode(), []string{"node"}, func(w io.Writer) { a.prettyNode(w, r.GetNode()) }}, err
		})
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
