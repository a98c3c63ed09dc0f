package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// networkRow is a network in a listing.
type networkRow struct {
	ID             string            `json:"id"`
	Name           string            `json:"name"`
	Driver         string            `json:"driver"`
	VNI            uint32            `json:"vni"`    // 0: none yet
	Subnet         string            `json:"subnet"` // empty: none yet
	Subnet6        string            `json:"subnet6"`
	Gateway        string            `json:"gateway"`
	IPv6           bool              `json:"ipv6"`
	Internal       bool              `json:"internal"`
	Attachable     bool              `json:"attachable"`
	Encrypted      bool              `json:"encrypted"`
	Labels         map[string]string `json:"labels"`
	Services       []string          `json:"services"`
	Attachments    []attachmentRow   `json:"attachments"` // containers outside of services
	Overlaps       []string          `json:"overlaps"`    // routes of hosts that lead under its addresses
	Tasks          uint32            `json:"tasks"`
	AddressesUsed  uint64            `json:"addressesUsed"`
	AddressesTotal uint64            `json:"addressesTotal"`
	Removing       bool              `json:"removing"`
	Message        string            `json:"message"` // why it has no subnet
}

func newNetworkRow(n *swarmpb.NetworkInfo) networkRow {
	network, spec, progress := n.GetNetwork(), n.GetNetwork().GetSpec(), n.GetProgress()
	r := networkRow{
		ID: network.GetId(), Name: spec.GetName(), Driver: spec.GetDriver(), VNI: progress.GetVni(), Subnet: progress.GetSubnet(), Subnet6: progress.GetSubnet6(),
		Gateway: progress.GetGateway(), IPv6: spec.GetIpv6(), Internal: spec.GetInternal(), Attachable: spec.GetAttachable(), Encrypted: spec.GetEncrypted(),
		Labels: map[string]string{}, Services: append([]string{}, n.GetServices()...), Tasks: n.GetTasks(),
		Attachments: []attachmentRow{}, Overlaps: append([]string{}, n.GetOverlaps()...),
		AddressesUsed: n.GetAddressesUsed(), AddressesTotal: n.GetAddressesTotal(), Removing: network.GetRemoving(), Message: progress.GetMessage(),
	}
	for name, value := range spec.GetLabels() {
		r.Labels[name] = value
	}
	for _, attachment := range n.GetAttachments() {
		r.Attachments = append(r.Attachments, newAttachmentRow(attachment))
	}
	return r
}

// traits are what is special about a network.
func (r networkRow) traits() string {
	var out []string
	for _, t := range []struct {
		has  bool
		word string
	}{{r.IPv6, "ipv6"}, {r.Internal, "internal"}, {r.Attachable, "attachable"}, {r.Encrypted, "encrypted"}} {
		if t.has {
			out = append(out, t.word)
		}
	}
	return strings.Join(out, ", ")
}

// idle tells whether nothing uses the network.
func (r networkRow) idle() bool {
	return len(r.Services)+len(r.Attachments) == 0 && r.Tasks == 0 && !r.Removing
}

func newNetworkFilter() *filter[networkRow] {
	return &filter[networkRow]{
		keys: map[string]func(networkRow, string) bool{
			"id":     func(r networkRow, v string) bool { return strings.HasPrefix(r.ID, v) },
			"name":   func(r networkRow, v string) bool { return strings.Contains(r.Name, v) },
			"driver": func(r networkRow, v string) bool { return r.Driver == v },
			"label":  func(r networkRow, v string) bool { return hasLabel(r.Labels, v) },
		},
		every: []string{"label"},
		want:  "id=, name=, driver= or label= and a value, for example label=team=shop",
	}
}

func defineNetworkFilter(cmd *cobra.Command, f *filter[networkRow]) {
	cmd.Flags().VarP(f, "filter", "f", "only networks with `key=value`: id, name (or a part of it), driver or label (label=NAME or label=NAME=VALUE); may be repeated")
	completeWords(cmd, "filter", "name=", "driver=overlay", "label=", "id=")
}

func (a *app) networkCommand() *cobra.Command {
	cmd := group("network", "Create, see and remove networks of services", a.networkCreateCommand(), networkListCommand(a), a.networkInspectCommand(),
		a.networkRemoveCommand(), a.networkPruneCommand(), a.networkConnectCommand(), a.networkDisconnectCommand())
	cmd.Long = `Create, see and remove networks of services.

Services that share a network find one another by name there and reach each other on all ports, on whatever nodes their
replicas run; services that share none do not. A service is attached with "service create --network", to as many networks
as it needs. Containers that others made are attached with "network connect", to networks created with --attachable.`
	return cmd
}

func listNetworks(ctx context.Context, c *client, f *filter[networkRow]) ([]networkRow, error) {
	r, err := c.ListNetworks(ctx, &swarmpb.ListNetworksRequest{})
	var rows []networkRow
	for _, n := range r.GetNetworks() {
		rows = append(rows, newNetworkRow(n))
	}
	slices.SortFunc(rows, func(x, y networkRow) int { return strings.Compare(x.Name, y.Name) })
	return slices.DeleteFunc(rows, f.drops), err
}

func networkListCommand(a *app) *cobra.Command {
	f := newNetworkFilter()
	networks := table[networkRow]{func(r networkRow) string { return r.ID }, []column[networkRow]{
		{"ID", func(r networkRow) string { return short(r.ID) }, false},
		{"NAME", func(r networkRow) string { return r.Name }, false},
		{"DRIVER", func(r networkRow) string { return r.Driver }, false},
		{"SUBNET", func(r networkRow) string { return strings.TrimSuffix(r.Subnet+", "+r.Subnet6, ", ") }, false},
		{"OPTIONS", networkRow.traits, true},
		{"SERVICES", func(r networkRow) string { return fmt.Sprint(len(r.Services)) }, false},
		{"TASKS", func(r networkRow) string { return fmt.Sprint(r.Tasks) }, false},
		{"MESSAGE", func(r networkRow) string {
			if r.Removing {
				return "is being removed"
			}
			return r.Message
		}, true},
	}}
	list := listCommand(a, "List the networks", "  swarmctl network ls\n  swarmctl network ls --filter label=team=shop\n  swarmctl network ls --format '{{.Name}} {{.Subnet}}'", networks,
		func(ctx context.Context, c *client) ([]networkRow, error) { return listNetworks(ctx, c, f) })
	defineNetworkFilter(list, f)
	a.reading(list)
	return list
}

func (a *app) networkInspectCommand() *cobra.Command {
	return a.inspectCommand("network", `Show all about networks, named by ID, name or prefix of the ID: what was asked for, what the cluster gave them, and
who uses them: services, and containers outside of services with node, address and state. Of the addresses some are in use by
tasks, each service's own, and the gateway.`,
		"  swarmctl network inspect --pretty back\n  swarmctl network inspect -f '{{.Progress.Subnet}} {{join .Services `,`}}' back", networkNames,
		func(ctx context.Context, c *client, arg string) (inspected, error) {
			r, err := c.GetNetwork(ctx, &swarmpb.GetNetworkRequest{Network: arg})
			return inspected{r.GetNetwork(), []string{"network"}, func(w io.Writer) { a.prettyNetwork(w, r.GetNetwork()) }}, err
		})
}

func (a *app) prettyNetwork(w io.Writer, n *swarmpb.NetworkInfo) {
	network, spec, progress := n.GetNetwork(), n.GetNetwork().GetSpec(), n.GetProgress()
	r := newNetworkRow(n)
	p := printer{w: w, width: len("Gateway IPv6:")}
	p.line("ID", r.ID)
	p.line("Name", r.Name)
	p.line("Driver", r.Driver)
	p.line("Labels", pairs(spec.GetLabels()))
	p.line("Properties", r.traits())
	p.line("Options", pairs(spec.GetOptions()))
	p.line("Created", a.ago(network.GetMeta().GetCreatedAt()))
	if r.Removing {
		p.line("Removing", "yes")
	}
	if r.Subnet == "" {
		for _, s := range spec.GetSubnets() {
			p.line("Asked for", s.GetSubnet())
		}
	}
	p.line("Subnet", r.Subnet)
	p.line("Gateway", r.Gateway)
	if progress.GetIpRange() != r.Subnet {
		p.line("Range", progress.GetIpRange())
	}
	p.line("Subnet IPv6", r.Subnet6)
	p.line("Gateway IPv6", progress.GetGateway6())
	if r.VNI != 0 {
		p.line("VNI", fmt.Sprint(r.VNI))
		p.line("Addresses", fmt.Sprintf("%d used, %d free", r.AddressesUsed, r.AddressesTotal-min(r.AddressesUsed, r.AddressesTotal)))
	}
	p.line("Services", strings.Join(r.Services, ", "))
	p.line("Tasks", fmt.Sprint(r.Tasks))
	for _, attachment := range r.Attachments {
		p.line("Attached", attachment.text())
	}
	for _, overlap := range r.Overlaps {
		p.line("OVERLAP", overlap)
	}
	p.line("PROBLEM", r.Message)
}
