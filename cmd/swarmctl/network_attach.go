package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// attachmentRow is a container outside of services in a network.
type attachmentRow struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Aliases  []string `json:"aliases"`
	Node     string   `json:"node"`
	PID      uint32   `json:"pid"`   // 0: it is named by netns
	Netns    string   `json:"netns"` // empty: by pid
	Address  string   `json:"address"`
	Address6 string   `json:"address6"`
	State    string   `json:"state"`
	Message  string   `json:"message"` // what its owner should know, or why it is not attached
}

func newAttachmentRow(a *swarmpb.Attachment) attachmentRow {
	r := attachmentRow{
		ID: a.GetId(), Name: a.GetName(), Aliases: append([]string{}, a.GetAliases()...), Node: a.GetNodeHostname(), PID: a.GetGuest().GetPid(), Netns: a.GetGuest().GetNetns(),
		Address: a.GetAddress(), Address6: a.GetAddress6(), State: a.GetState().Name(), Message: a.GetMessage(),
	}
	if r.Node == "" {
		r.Node = short(a.GetGuest().GetNodeId())
	}
	if a.GetError() != "" {
		r.Message = a.GetError()
	}
	if a.GetRemoving() {
		r.Message = "is being disconnected"
	}
	return r
}

// addresses are both, in one word each.
func (r attachmentRow) addresses() string { return strings.TrimSpace(r.Address + " " + r.Address6) }

// text is the attachment in a line.
func (r attachmentRow) text() string {
	what := r.Netns
	if r.PID != 0 {
		what = fmt.Sprintf("process %d", r.PID)
	}
	out := fmt.Sprintf("%s  %s on %s (%s)", r.Name, r.State, r.Node, what)
	if r.addresses() != "" {
		out += "  " + r.addresses()
	}
	if r.Message != "" && r.Message != "attached" {
		out += "  " + r.Message
	}
	return out
}

// connectFlags name what is to be attached.
type connectFlags struct {
	node, netns, name string
	pid               uint32
	aliases           []string
}

func (a *app) networkConnectCommand() *cobra.Command {
	var flags connectFlags
	cmd := &cobra.Command{
		Use:   "connect (--pid PID | --netns FILE) [flags] NETWORK",
		Short: "Attach a container outside of services to a network",
		Long: `Attach a container that docker, podman, nerdctl or a shell made on a node to a network that was created with --attachable. It
reaches the services of the network by name and by address, and all of their tasks reach it by its name and address, on every node.

It is named by a process of it, or by the file of its network namespace. The command prints its name and address once it is
attached, and exits with an error, saying why, when it cannot be; nothing is left of it then. Beside what it has, the container
gets a link named swarm0 (or the next that is free), and nothing of its own is changed: where it reaches something under the
network's addresses already, it is refused. It can be in several networks.

Names are answered at 127.0.0.11 in its namespace, which its loopback has to be up for. Its programs ask there when its
/etc/resolv.conf says

  nameserver 127.0.0.11
  options ndots:0

for example with "docker run --dns 127.0.0.11 --dns-option ndots:0" on Docker's default bridge. On other networks of Docker's
that address is Docker's own; there ask 127.0.0.12.

The attachment ends when the process ends or the file is gone, with "swarmctl network disconnect", and when the node leaves the
cluster. It goes on while swarmd is restarted.`,
		Example: `  swarmctl network connect --pid $(docker inspect -f '{{.State.Pid}}' db) --name db back
  swarmctl network connect --netns /run/netns/tools --alias debug --node w2 back`,
		DisableFlagsInUseLine: true,
		Args:                  oneArg("network"),
		ValidArgsFunction:     a.complete(networkNames),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Uint32Var(&flags.pid, "pid", 0, "`process` of the container, as the node has it; the attachment ends with it")
	f.StringVar(&flags.netns, "netns", "", "`file` of the container's network namespace on the node; the attachment ends when it is gone")
	f.StringVar(&flags.name, "name", "", "`name` in the network (default: one is made up)")
	f.StringArrayVar(&flags.aliases, "alias", nil, "further `name` in the network, which others may have too; may be repeated")
	f.StringVar(&flags.node, "node", "", "`node` that the container is on (default: this one)")
	_ = cmd.RegisterFlagCompletionFunc("node", a.complete(nodeNames)) // fails only for a flag that is not there
	cmd.RunE = a.call(func(ctx context.Context, c *client, args []string) error { return a.connect(ctx, c, flags, args[0]) })
	return cmd
}

func (f connectFlags) guest() (*swarmpb.Guest, error) {
	g := &swarmpb.Guest{Pid: f.pid, Netns: f.netns}
	if err := g.Validate(); err != nil {
		return nil, fmt.Errorf("network connect: %w", err)
	}
	if f.node == "" {
		g.Namespace = namespaceOf(g)
	}
	return g, nil
}

// namespaceOf is the kernel's name of the namespace that this host has there now, so that no other one is attached should a process
// come in place of the one that is meant; empty where it cannot be seen.
func namespaceOf(g *swarmpb.Guest) string {
	path := g.GetNetns()
	if g.GetPid() != 0 {
		path = fmt.Sprintf("/proc/%d/ns/net", g.GetPid())
	}
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("net:[%d]", stat.Ino)
}

// connect attaches, and waits for what comes of it; what cannot be attached is taken away again.
func (a *app) connect(ctx context.Context, c *client, flags connectFlags, network string) error {
	guest, err := flags.guest()
	if err != nil {
		return err
	}
	r, err := c.ConnectNetwork(ctx, &swarmpb.ConnectNetworkRequest{
		Network: network, Node: flags.node, Guest: guest, Name: flags.name, Aliases: flags.aliases, RequestId: swarmpb.NewID(),
	})
	if err != nil {
		return err
	}
	var made *swarmpb.Attachment
	over, err := a.poll(ctx, func() (bool, error) {
		if made, err = findAttachment(ctx, c, network, r.Id); err != nil || made == nil {
			return false, err
		}
		return made.GetState() >= swarmpb.TaskState_TASK_STATE_RUNNING, nil
	})
	inspect := fmt.Sprintf("`swarmctl network inspect --pretty %s` shows what becomes of it", network)
	switch {
	case err != nil:
		return fmt.Errorf("attachment %s: it is asked for, but whether it is attached is not known: %w; %s", r.Name, err, inspect)
	case over && made.GetState() == swarmpb.TaskState_TASK_STATE_RUNNING:
		row := newAttachmentRow(made)
		_, err := fmt.Fprintln(a.out, row.Name, row.addresses())
		if row.Message != "" && row.Message != "attached" {
			a.warn([]string{strings.TrimPrefix(row.Message, "attached; ")})
		}
		return err
	case over:
		_, gone := c.DisconnectNetwork(ctx, &swarmpb.DisconnectNetworkRequest{Network: network, Attachment: r.Id, RequestId: swarmpb.NewID()})
		if errors.Is(gone, wire.ErrNotFound) {
			gone = nil
		}
		return errors.Join(fmt.Errorf("attachment %s: %s", r.Name, endOf(made)), gone)
	case made != nil && made.GetError() != "":
		return fmt.Errorf("attachment %s: not attached yet: %s; %s", r.Name, made.GetError(), inspect)
	}
	return fmt.Errorf("attachment %s: not attached yet; %s", r.Name, inspect)
}

// endOf is why an attachment has ended.
func endOf(made *swarmpb.Attachment) string {
	for _, text := range []string{made.GetError(), made.GetMessage()} {
		if text != "" {
			return text
		}
	}
	return "it has ended"
}

// findAttachment is the attachment of that ID; nil: there is none, or this manager does not know of it yet.
func findAttachment(ctx context.Context, c *client, network, id string) (*swarmpb.Attachment, error) {
	r, err := c.GetNetwork(ctx, &swarmpb.GetNetworkRequest{Network: network})
	for _, made := range r.GetNetwork().GetAttachments() {
		if made.GetId() == id {
			return made, err
		}
	}
	return nil, err
}

func (a *app) networkDisconnectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "disconnect NETWORK NAME", Short: "End the attachment of a container outside of services",
		Long: `End the attachment of a container outside of services, named by its name in the network or its ID. The command returns once
nothing of the network is left in the container's namespace.`,
		Example: "  swarmctl network disconnect back db",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError(cmd, "name the network and the attachment")
			}
			return nil
		},
		ValidArgsFunction: a.complete(networkNames),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			return a.disconnect(ctx, c, args[0], args[1])
		}),
	}
}

func (a *app) disconnect(ctx context.Context, c *client, network, name string) error {
	r, err := c.DisconnectNetwork(ctx, &swarmpb.DisconnectNetworkRequest{Network: network, Attachment: name, RequestId: swarmpb.NewID()})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(a.out, name); err != nil {
		return err
	}
	gone, err := a.poll(ctx, func() (bool, error) {
		made, err := findAttachment(ctx, c, network, r.GetId())
		return made == nil, err
	})
	if err == nil && !gone {
		a.warn([]string{fmt.Sprintf("attachment %s is still being disconnected; its node may be out of reach", name)})
	}
	return err
}
