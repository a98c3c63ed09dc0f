package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// parseNetwork reads a network that a service is attached to: back, or name=back,alias=db,alias=database.
func parseNetwork(s string) (*swarmpb.NetworkAttachment, error) {
	n := &swarmpb.NetworkAttachment{Network: s}
	if strings.Contains(s, "=") {
		fields, err := keyValues(s)
		if err != nil {
			return nil, err
		}
		n.Network = ""
		for _, f := range fields {
			switch f[0] {
			case "name":
				n.Network = f[1]
			case "alias":
				n.Aliases = append(n.Aliases, f[1])
			default:
				return nil, fmt.Errorf("%q is not known; use name and alias", f[0])
			}
		}
	}
	if n.Network == "" {
		return nil, errors.New("the network's name is missing; use NAME or name=NAME,alias=ALIAS")
	}
	return n, nil
}

// resolveNetworks finds the IDs of the networks that flags of update name; a spec holds IDs.
func (s *serviceFlags) resolveNetworks(ctx context.Context, c *client) error {
	s.networkIDs = map[string]string{}
	find := func(name string) error {
		r, err := c.GetNetwork(ctx, &swarmpb.GetNetworkRequest{Network: name})
		s.networkIDs[name] = r.GetNetwork().GetNetwork().GetId()
		return err
	}
	added, err := parseAll("network-add", s.lists["network"].add, parseNetwork)
	if err != nil {
		return err
	}
	names := slices.Clone(s.lists["network"].rm)
	for _, n := range added {
		names = append(names, n.Network)
	}
	return each(names, find)
}

// editNetworks detaches from networks and attaches to others, under the aliases that all of the command's get. ids has
// the networks by name; nil leaves the names to the cluster.
func editNetworks(flag string, l listFlag, aliases []string, ids map[string]string, t *swarmpb.TaskSpec) error {
	if len(aliases) > 0 && len(l.add) == 0 {
		return fmt.Errorf("--network-alias %q: it is a name in the networks of --%s, and none is given; give --%s NAME as well", aliases[0], flag, flag)
	}
	at := func(id string) int {
		return slices.IndexFunc(t.Networks, func(n *swarmpb.NetworkAttachment) bool { return n.Network == id })
	}
	for _, rm := range l.rm {
		i := at(ids[rm])
		if i < 0 {
			return fmt.Errorf("--network-rm %s: the service is not attached to that network", rm)
		}
		t.Networks = slices.Delete(t.Networks, i, i+1)
	}
	added, err := parseAll(flag, l.add, parseNetwork)
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, n := range added {
		name := n.Network
		if id, ok := ids[name]; ok {
			n.Network = id
		}
		if taken[n.Network] {
			return fmt.Errorf("--%s %s: the network is named twice; name each network once", flag, name)
		}
		taken[n.Network] = true
		for _, alias := range aliases {
			if !slices.Contains(n.Aliases, alias) {
				n.Aliases = append(n.Aliases, alias)
			}
		}
		if i := at(n.Network); i >= 0 {
			t.Networks[i] = n
		} else {
			t.Networks = append(t.Networks, n)
		}
	}
	return nil
}

// editResolver changes what a container asks for names.
func (s *serviceFlags) editResolver(c *swarmpb.ContainerSpec) error {
	dns := &swarmpb.DNSConfig{}
	if c.Dns != nil {
		dns = swarmpb.Clone(c.Dns)
	}
	err := errors.Join(
		editWords("dns", *s.lists["dns"], &dns.Nameservers), editWords("dns-search", *s.lists["dns-search"], &dns.Search),
		editWords("dns-option", *s.lists["dns-option"], &dns.Options),
	)
	if c.Dns = dns; proto.Size(dns) == 0 {
		c.Dns = nil
	}
	return err
}

// parseHost reads NAME:IP, or NAME=IP; an IPv6 address may stand in brackets.
func parseHost(s string) (name, line string, err error) {
	const want = "want NAME:IP, for example db:192.168.1.5"
	i := strings.IndexAny(s, ":=")
	if i <= 0 {
		return "", "", errors.New(want)
	}
	text := s[i+1:]
	if inner, ok := strings.CutPrefix(text, "["); ok {
		text = strings.TrimSuffix(inner, "]")
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return "", "", fmt.Errorf("%q is not an IP address; %s", s[i+1:], want)
	}
	return s[:i], address.String() + " " + s[:i], nil
}

// editHosts changes lines of /etc/hosts. A name may stand in several.
func editHosts(l listFlag, c *swarmpb.ContainerSpec) error {
	for _, rm := range l.rm {
		name, address := rm, ""
		if strings.ContainsAny(rm, ":=") {
			host, line, err := parseHost(rm)
			if err != nil {
				return fmt.Errorf("--host-rm %q: %w", rm, err)
			}
			name = host
			address, _, _ = strings.Cut(line, " ")
		}
		found := false
		var kept []string
		for _, line := range c.Hosts {
			words := strings.Fields(line)
			if i := slices.Index(words, name); i > 0 && (address == "" || words[0] == address) {
				found = true
				if words = slices.Delete(words, i, i+1); len(words) == 1 {
					continue
				}
				line = strings.Join(words, " ")
			}
			kept = append(kept, line)
		}
		if !found {
			return fmt.Errorf("--host-rm %s: the service has no such host; it has %s", rm, orNone(c.Hosts))
		}
		c.Hosts = kept
	}
	for _, add := range l.add {
		_, line, err := parseHost(add)
		if err != nil {
			return fmt.Errorf("--host-add %q: %w", add, err)
		}
		if !slices.Contains(c.Hosts, line) {
			c.Hosts = append(c.Hosts, line)
		}
	}
	return nil
}

// hostValue is --host where it also means a host of the containers, as docker has it. The socket of swarmd, which --host
// names everywhere, is told by its scheme.
type hostValue struct {
	socket *string // nil: it is not meant
	hosts  *[]string
}

func (*hostValue) Type() string   { return "NAME:IP" }
func (*hostValue) String() string { return "" }

// Set takes either.
func (v *hostValue) Set(s string) error {
	if v.socket != nil && (strings.Contains(s, "://") || s == "") {
		*v.socket = s
		return nil
	}
	if _, _, err := parseHost(s); err != nil {
		return err
	}
	*v.hosts = append(*v.hosts, s)
	return nil
}

// networkTexts is the networks of a service, by name.
func networkTexts(s *swarmpb.ServiceInfo) []string {
	var out []string
	for _, n := range s.GetService().GetSpec().GetTask().GetNetworks() {
		text := networkName(n.GetNetwork(), s.GetNetworkNames())
		if len(n.GetAliases()) > 0 {
			text += " (also as " + strings.Join(n.GetAliases(), ", ") + ")"
		}
		out = append(out, text)
	}
	return out
}

func networkName(id string, names map[string]string) string {
	if name := names[id]; name != "" {
		return name
	}
	return id
}

// addressText is an address with the name of its network.
func addressText(a *swarmpb.NetworkAddress, names map[string]string) string {
	text := a.GetAddress()
	if a.GetAddress6() != "" {
		text += ", " + a.GetAddress6()
	}
	return text + " in " + networkName(a.GetNetworkId(), names)
}

// defineNetwork adds the flags of what reaches a service and what it reaches.
func (s *serviceFlags) defineNetwork(cmd *cobra.Command, create bool) {
	f := cmd.Flags()
	s.list(f, create, "publish", "p", "`port` to publish on every node, 8080:80 or published=8080,target=80"+
		"[,protocol=tcp|udp|sctp][,mode=ingress|host][,source=client|nat][,affinity=none|client-ip]; ranges as in 8000-8010:80-90", "published port, by the container's `port`")
	s.list(f, create, "network", "", "`network` to attach the replicas to, NAME or name=NAME,alias=ALIAS", "`network`")
	f.StringArrayVar(&s.networkAliases, "network-alias", nil, "`name`, beside the service's own, that stands for it in the networks of --"+s.adds("network")+"; may be repeated")
	f.StringVar(&s.endpointMode, "endpoint-mode", "vip", "`mode`: what the service's name stands for, vip, one address that is balanced over the replicas, or dnsrr, those of the replicas")
	completeWords(cmd, "endpoint-mode", "vip", "dnsrr")
	s.list(f, create, "dns", "", "`address` of a name server for names outside of the cluster", "name server, by its `address`")
	s.list(f, create, "dns-search", "", "search `domain`", "search `domain`")
	s.list(f, create, "dns-option", "", "resolver `option`, such as ndots:2", "resolver `option`, as it was given")
	if !create {
		s.list(f, create, "host", "", "line of the containers' /etc/hosts, `NAME:IP`", "line of the containers' /etc/hosts, by `NAME` or NAME:IP")
		return
	}
	l := &listFlag{}
	s.lists["host"] = l
	f.Var(&hostValue{socket: s.socket, hosts: &l.add}, "host", "line of the containers' /etc/hosts, `NAME:IP`; may be repeated (unix:///PATH is the socket of swarmd, as everywhere)")
	f.Var(&hostValue{hosts: &l.add}, "add-host", "the same as --host `NAME:IP`")
}
