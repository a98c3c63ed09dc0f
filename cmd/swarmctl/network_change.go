package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// networkFlags are what `network create` makes a spec of.
type networkFlags struct {
	driver                                string
	subnets, gateways, ranges             []string
	ipv6, internal, attachable, encrypted bool
	options, labels                       []string
}

func (n *networkFlags) define(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&n.driver, "driver", "d", swarmpb.DriverOverlay, "`driver`; overlay is the only one")
	f.StringArrayVar(&n.subnets, "subnet", nil, "`network` in CIDR form that addresses come from; twice for one of IPv4 and one of IPv6 (default: chosen from the cluster's address pools)")
	f.StringArrayVar(&n.gateways, "gateway", nil, "`address` of the subnet that no task gets (default: its first); one for each subnet")
	f.StringArrayVar(&n.ranges, "ip-range", nil, "`part` of the subnet of IPv4, in CIDR form, that addresses are given from (default: all of it)")
	f.BoolVar(&n.ipv6, "ipv6", false, "give tasks an address of IPv6 as well")
	f.BoolVar(&n.internal, "internal", false, "no way out: a service in internal networks alone reaches nothing outside of them, and can publish no port")
	f.BoolVar(&n.attachable, "attachable", false, "let containers outside of services attach, with \"network connect\"")
	f.BoolVar(&n.encrypted, "encrypted", false, "encrypt what goes from host to host, with WireGuard; never in plain text")
	f.StringArrayVarP(&n.options, "opt", "o", nil, "`option` of the driver: mtu=BYTES; may be repeated")
	f.StringArrayVar(&n.labels, "label", nil, "label of the network, `NAME=VALUE`; may be repeated")
	completeWords(cmd, "driver", swarmpb.DriverOverlay)
	completeWords(cmd, "opt", "mtu=")
}

// Options as Docker's users know them.
const (
	dockerMTU       = "com.docker.network.driver.mtu"
	dockerEncrypted = "encrypted"
)

func (n *networkFlags) spec(name string) (*swarmpb.NetworkSpec, error) {
	spec := &swarmpb.NetworkSpec{
		Name: name, Driver: n.driver, Ipv6: n.ipv6, Internal: n.internal, Attachable: n.attachable, Encrypted: n.encrypted,
	}
	err := errors.Join(editPairs("label", listFlag{add: n.labels}, &spec.Labels), editPairs("opt", listFlag{add: n.options}, &spec.Options))
	if err != nil {
		return nil, err
	}
	if mtu, ok := spec.Options[dockerMTU]; ok {
		delete(spec.Options, dockerMTU)
		spec.Options[swarmpb.OptionMTU] = mtu
	}
	if text, ok := spec.Options[dockerEncrypted]; ok {
		delete(spec.Options, dockerEncrypted)
		on, err := strconv.ParseBool(text)
		if err != nil && text != "" {
			return nil, fmt.Errorf("--opt encrypted=%s: want true or false; --encrypted says the same", text)
		}
		spec.Encrypted = spec.Encrypted || on || text == ""
	}
	for _, subnet := range n.subnets {
		spec.Subnets = append(spec.Subnets, &swarmpb.NetworkSubnet{Subnet: subnet})
	}
	for _, gateway := range n.gateways {
		if err := place(spec, "gateway", gateway, func(s *swarmpb.NetworkSubnet) *string { return &s.Gateway }); err != nil {
			return nil, err
		}
	}
	for _, part := range n.ranges {
		if err := place(spec, "ip-range", part, func(s *swarmpb.NetworkSubnet) *string { return &s.IpRange }); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

// place gives a subnet its gateway or range. Where there is one subnet it is that one's, and the cluster checks it.
func place(spec *swarmpb.NetworkSpec, flag, value string, field func(*swarmpb.NetworkSubnet) *string) error {
	if len(spec.Subnets) == 0 {
		return fmt.Errorf("--%s %s: it belongs to a subnet, and none is given; give --subnet as well", flag, value)
	}
	address, _, _ := strings.Cut(value, "/")
	parsed, err := netip.ParseAddr(address)
	var to *swarmpb.NetworkSubnet
	for _, s := range spec.Subnets {
		prefix, badPrefix := netip.ParsePrefix(s.Subnet)
		if len(spec.Subnets) == 1 || err == nil && badPrefix == nil && prefix.Contains(parsed) {
			to = s
			break
		}
	}
	switch {
	case to == nil:
		return fmt.Errorf("--%s %s: it is in none of the subnets; give one that is part of a --subnet", flag, value)
	case *field(to) != "":
		return fmt.Errorf("--%s %s: subnet %s has %s already; give one for each subnet", flag, value, to.Subnet, *field(to))
	}
	*field(to) = value
	return nil
}

func (a *app) networkCreateCommand() *cobra.Command {
	var flags networkFlags
	cmd := &cobra.Command{
		Use:   "create [flags] NAME",
		Short: "Create a network that services find one another in",
		Long: `Create a network: an overlay over all nodes, with addresses of its own. It takes nothing on a node until a task of
it runs there.

The command prints the network's ID and returns when the cluster has given it its subnet, after 5 s at most. It exits with an
error, saying why, when it cannot have one; the network stays, and gets one as soon as there is one.

Networks may have the same subnet: they do not meet, as long as no service is in both. A subnet that a host reaches already is
refused, and the error names it and the node.

--encrypted costs throughput: little where the nodes' kernel has WireGuard, most of it where a process encrypts in its place.
The command warns of that, with the nodes. A node that can do neither refuses the tasks.`,
		Example: `  swarmctl network create back
  swarmctl network create --subnet 10.20.0.0/24 --gateway 10.20.0.1 --ip-range 10.20.0.128/25 back
  swarmctl network create --ipv6 --subnet 10.20.0.0/24 --subnet fd00:20::/64 back
  swarmctl network create --internal --encrypted --opt mtu=1400 --label team=shop db`,
		DisableFlagsInUseLine: true,
		Args:                  oneArg("network"),
		ValidArgsFunction:     cobra.NoFileCompletions,
	}
	flags.define(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec, err := flags.spec(args[0])
		if err != nil {
			return fmt.Errorf("network create: %w", err)
		}
		return a.call(func(ctx context.Context, c *client, _ []string) error {
			r, err := c.CreateNetwork(ctx, &swarmpb.CreateNetworkRequest{Spec: spec, RequestId: swarmpb.NewID()})
			if err != nil {
				return err
			}
			a.warn(r.Warnings)
			if _, err := fmt.Fprintln(a.out, r.Id); err != nil {
				return err
			}
			return a.awaitSubnet(ctx, c, spec.GetName(), r.Id)
		})(cmd, args)
	}
	return cmd
}

// poll looks again and again until look says that it is over or fails, or the app's patience is at its end.
func (a *app) poll(ctx context.Context, look func() (bool, error)) (bool, error) {
	for begun := time.Now(); ; {
		over, err := look()
		switch {
		case ctx.Err() != nil:
			return false, errInterrupted
		case over || err != nil:
			return over, err
		case !sleep(ctx, a.patience-time.Since(begun)):
			if ctx.Err() != nil {
				return false, errInterrupted
			}
			return false, nil
		}
	}
}

// awaitSubnet waits until the cluster has given a network what it needs, or has said why not.
func (a *app) awaitSubnet(ctx context.Context, c *client, name, id string) error {
	reason, missing := "", false
	ready, err := a.poll(ctx, func() (bool, error) {
		r, err := c.GetNetwork(ctx, &swarmpb.GetNetworkRequest{Network: id})
		if missing = errors.Is(err, wire.ErrNotFound); missing {
			return false, nil // a manager that has lost its leader may not know of it yet
		}
		reason = r.GetNetwork().GetProgress().GetMessage()
		return r.GetNetwork().GetProgress().GetVni() != 0 || reason != "", err
	})
	switch {
	case err != nil:
		return fmt.Errorf("network %s: it is made, but whether it has a subnet is not known: %w; see `swarmctl network inspect --pretty %s`", name, err, name)
	case reason != "":
		return fmt.Errorf("network %s: it is made, but has no subnet: %s; it gets one as soon as there is one, or remove it with `swarmctl network rm %s`", name, reason, name)
	case missing:
		return fmt.Errorf("network %s was removed meanwhile", name)
	case !ready:
		return fmt.Errorf("network %s: it is made, but the managers have given it no subnet yet; `swarmctl network inspect --pretty %s` shows when it has one", name, name)
	}
	return nil
}

func (a *app) networkRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NETWORK...", Aliases: []string{"remove"}, Short: "Remove networks that no service uses",
		Example: "  swarmctl network rm back front",
		Args:    someArgs("network"), ValidArgsFunction: a.complete(networkNames),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			return each(args, func(name string) error { return a.removeNetwork(ctx, c, name, name) })
		}),
	}
}

// removeNetwork removes a network, named by ref, and waits until its name is free again.
func (a *app) removeNetwork(ctx context.Context, c *client, name, ref string) error {
	r, err := c.RemoveNetwork(ctx, &swarmpb.RemoveNetworkRequest{Network: ref, RequestId: swarmpb.NewID()})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(a.out, name); err != nil {
		return err
	}
	gone, err := a.poll(ctx, func() (bool, error) {
		_, err := c.GetNetwork(ctx, &swarmpb.GetNetworkRequest{Network: r.Id})
		if errors.Is(err, wire.ErrNotFound) {
			return true, nil
		}
		return false, err
	})
	if err == nil && !gone {
		a.warn([]string{fmt.Sprintf("network %s is still being removed; its name is free when `swarmctl network ls` does not show it any more", name)})
	}
	return err
}

func (a *app) networkPruneCommand() *cobra.Command {
	force, f := false, newNetworkFilter()
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove all networks that no service uses",
		Long: `Remove all networks that no service uses. The command names them and asks, unless --force is given, and prints the names of
those that went.`,
		Example: "  swarmctl network prune\n  swarmctl network prune --force --filter label=team=shop",
		Args:    noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			rows, err := listNetworks(ctx, c, f)
			if err != nil {
				return err
			}
			var idle []networkRow
			var names []string
			for _, r := range rows {
				if r.idle() {
					idle, names = append(idle, r), append(names, r.Name)
				}
			}
			if len(idle) == 0 {
				_, err := fmt.Fprintln(a.err, "Nothing to remove: no network is without a service.")
				return err
			}
			if !force {
				if err := a.confirm(ctx, fmt.Sprintf("This removes all networks that no service uses: %s.\nGo on? [y/N] ", strings.Join(names, ", "))); err != nil {
					return fmt.Errorf("network prune: %w", err)
				}
			}
			var errs []error
			for _, r := range idle {
				err := a.removeNetwork(ctx, c, r.Name, r.ID)
				if errors.Is(err, wire.ErrInUse) || errors.Is(err, wire.ErrNotFound) {
					continue // somebody has taken it into use, or removed it, meanwhile
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().Var(f, "filter", "of them only networks with `key=value`: id, name, driver or label; may be repeated")
	return cmd
}

// confirm asks, and fails unless the answer is yes. Ctrl-C is an answer too, though the reading goes on.
func (a *app) confirm(ctx context.Context, question string) error {
	_, _ = fmt.Fprint(a.err, question)
	answers := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if err != nil {
			_, _ = fmt.Fprintln(a.err) // nobody pressed Enter
		}
		answers <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case answer := <-answers:
		if answer != "y" && answer != "yes" {
			return errors.New("nothing was removed, because nobody confirmed it; answer y, or give --force")
		}
		return nil
	case <-ctx.Done():
		return errInterrupted
	}
}
