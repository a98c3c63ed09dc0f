package swarmpb

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
)

// Limits of networks and of what services ask of them.
const (
	// MaxTaskNetworks bounds the networks of one service, MaxAliases the aliases in one of them.
	MaxTaskNetworks = 32
	MaxAliases      = 64
	// MaxPorts bounds the ports that one service publishes.
	MaxPorts = 1000
	// MaxNetworkSpecBytes bounds a network's spec in its wire form.
	MaxNetworkSpecBytes = 64 << 10
	// MinMTU is IPv4's least, MinMTU6 IPv6's, MaxMTU what fits a packet with its envelope.
	MinMTU, MinMTU6, MaxMTU = 576, 1280, 65000
	// MaxSubnetBits leaves room for a gateway and addresses; MinSubnetBits bounds what one network may take.
	MinSubnetBits, MaxSubnetBits = 8, 29
	// MaxSubnetBits6 leaves room for every host number of an IPv4 subnet.
	MaxSubnetBits6 = 96
	// OptionMTU is the driver option that this version knows.
	OptionMTU = "mtu"
	// DriverOverlay is the only driver.
	DriverOverlay = "overlay"

	maxNameservers = 16
	maxSearch      = 32
	maxHosts       = 256
	clusterPort    = 2377
	gossipPort     = 7946
)

// reservedNetworks mean something else to the tools that users come from.
var reservedNetworks = []string{"host", "none", "bridge", "ingress", "default"}

var hostLabels = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?\.?$`)

// ValidateNetworkName checks the name of a network.
func ValidateNetworkName(name string) error {
	var p problems
	p.networkName(name)
	return p.err()
}

func (p *problems) networkName(name string) {
	field := fmt.Sprintf("name %q", name)
	switch {
	case name == "":
		p.add("name", "it is empty", "give the network a name")
	case len(name) > MaxNameLength:
		p.addf(field, fmt.Sprintf("use at most %d", MaxNameLength), "it has %d characters", len(name))
	case slices.Contains(reservedNetworks, name):
		p.add(field, "it is reserved", "choose another name")
	case !serviceName.MatchString(name):
		p.add(field, "it is not a valid network name",
			"use letters, digits, dashes and underscores, with a letter or digit first and last")
	}
}

// Validate checks the spec as a user wrote it. The error holds a *FieldError for each thing that is wrong.
func (x *NetworkSpec) Validate() error {
	var p problems
	if x == nil {
		p.add("network", "it has no spec", "give at least a name")
		return p.err()
	}
	p.networkName(x.Name)
	p.labels("label", x.Labels)
	if x.Driver != "" && x.Driver != DriverOverlay {
		p.add(fmt.Sprintf("driver %q", x.Driver), "there is no such driver", "use overlay, or leave it out")
	}
	p.networkOptions(x)
	p.subnets(x)
	if size := proto.Size(x); size > MaxNetworkSpecBytes {
		p.addf("network", fmt.Sprintf("at most %d are taken", MaxNetworkSpecBytes), "the spec has %d bytes", size)
	}
	return p.err()
}

func (p *problems) networkOptions(x *NetworkSpec) {
	for _, key := range slices.Sorted(maps.Keys(x.Options)) {
		if key != OptionMTU {
			p.add(fmt.Sprintf("option %q", key), "there is no such option", "use mtu=BYTES")
		}
	}
	if text, ok := x.Options[OptionMTU]; ok {
		least := MinMTU
		if x.Ipv6 {
			least = MinMTU6
		}
		if mtu, err := strconv.Atoi(text); err != nil || mtu < least || mtu > MaxMTU {
			p.addf("option mtu", fmt.Sprintf("use %d to %d, or leave it out to have it follow the hosts' network", least, MaxMTU), "%q is not a packet size", text)
		}
	}
}

// MTU is what the user set; 0 = nothing.
func (x *NetworkSpec) MTU() int {
	mtu, _ := strconv.Atoi(x.GetOptions()[OptionMTU])
	return mtu
}

func (p *problems) subnets(x *NetworkSpec) {
	var v4, v6 int
	for _, s := range x.Subnets {
		prefix := p.subnet(x, s)
		switch {
		case !prefix.IsValid() && s.GetSubnet() != "":
		case prefix.IsValid() && prefix.Addr().Is6():
			v6++
		default:
			v4++
		}
	}
	if v4 > 1 || v6 > 1 {
		p.add("subnet", "a network has one subnet of IPv4 and at most one of IPv6", "make several networks, and attach the service to all of them")
	}
}

// subnet checks one; the prefix is invalid when it is to be chosen, or wrong.
func (p *problems) subnet(x *NetworkSpec, s *NetworkSubnet) (prefix netip.Prefix) {
	field := fmt.Sprintf("subnet %q", s.GetSubnet())
	if s.GetSubnet() == "" {
		for _, part := range [][2]string{{"gateway", s.GetGateway()}, {"ip range", s.GetIpRange()}} {
			if part[1] != "" {
				p.add(fmt.Sprintf("%s %q", part[0], part[1]), "it belongs to a subnet, and none is given", "give --subnet as well")
			}
		}
		return prefix
	}
	prefix, err := netip.ParsePrefix(s.GetSubnet())
	const example = "use a network such as 10.20.0.0/24 or fd00:20::/64"
	switch {
	case err != nil || prefix.Addr().Is4In6():
		p.add(field, "it is not a network in CIDR form", example)
		return netip.Prefix{}
	case prefix.Masked() != prefix:
		p.add(field, "it has bits set beyond its length", "use "+prefix.Masked().String())
		return netip.Prefix{}
	case prefix.Addr().IsLoopback() || prefix.Addr().IsMulticast() || prefix.Addr().IsLinkLocalUnicast() || prefix.Addr().IsUnspecified():
		p.add(field, "containers cannot have such addresses", example)
	case prefix.Addr().Is4() && (prefix.Bits() < MinSubnetBits || prefix.Bits() > MaxSubnetBits):
		p.addf(field, "use one such as 10.20.0.0/24", "its length must be %d to %d", MinSubnetBits, MaxSubnetBits)
	case prefix.Addr().Is6() && prefix.Bits() > MaxSubnetBits6:
		p.addf(field, "use one such as fd00:20::/64", "its length must be at most %d", MaxSubnetBits6)
	case prefix.Addr().Is6() && !x.Ipv6:
		p.add(field, "it is of IPv6, and the network has none", "give --ipv6 as well")
	}
	if g := s.GetGateway(); g != "" {
		addr, err := netip.ParseAddr(g)
		if err != nil || !prefix.Contains(addr) || addr == prefix.Addr() || addr == broadcast(prefix) {
			p.addf(fmt.Sprintf("gateway %q", g), "leave it out, or use an address of the subnet", "it is not an address that a host of %s can have", prefix)
		}
	}
	if r := s.GetIpRange(); r != "" {
		inner, err := netip.ParsePrefix(r)
		switch {
		case prefix.Addr().Is6():
			p.add(fmt.Sprintf("ip range %q", r), "addresses of IPv6 follow those of IPv4", "give the range for the subnet of IPv4")
		case err != nil || inner.Masked() != inner || inner.Bits() < prefix.Bits() || !prefix.Contains(inner.Addr()):
			p.addf(fmt.Sprintf("ip range %q", r), "use a part of it in CIDR form", "it is not a part of %s", prefix)
		case inner.Bits() > 30:
			p.add(fmt.Sprintf("ip range %q", r), "it is too small", "use a length of at most 30")
		}
	}
	return prefix
}

// broadcast is the last address of a subnet of IPv4, which no host can have; those of IPv6 have none.
func broadcast(prefix netip.Prefix) netip.Addr {
	if !prefix.Addr().Is4() {
		return netip.Addr{}
	}
	raw := prefix.Masked().Addr().As4()
	binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(raw[:])|1<<(32-prefix.Bits())-1)
	return netip.AddrFrom4(raw)
}

// networks checks what a template is attached to. Which networks there are is control's to know.
func (p *problems) networks(list []*NetworkAttachment) {
	if len(list) > MaxTaskNetworks {
		p.addf("network", fmt.Sprintf("use at most %d", MaxTaskNetworks), "%d are too many", len(list))
	}
	seen := make(map[string]bool)
	for _, n := range list {
		field := fmt.Sprintf("network %q", n.GetNetwork())
		switch {
		case n.GetNetwork() == "":
			p.add("network", "it has no name", "name one; `swarmctl network ls` shows them")
		case seen[n.GetNetwork()]:
			p.add(field, "it is named twice", "name each network once")
		}
		seen[n.GetNetwork()] = true
		if len(n.GetAliases()) > MaxAliases {
			p.addf(field, fmt.Sprintf("use at most %d", MaxAliases), "%d aliases are too many", len(n.GetAliases()))
		}
		for _, alias := range n.GetAliases() {
			if len(alias) > MaxNameLength || !serviceName.MatchString(alias) {
				p.add(fmt.Sprintf("%s alias %q", field, alias), "it is not a host name", "use letters, digits, dashes and underscores")
			}
		}
	}
}

func (p *problems) resolver(c *ContainerSpec) {
	dns := c.GetDns()
	if n := len(dns.GetNameservers()); n > maxNameservers {
		p.addf("dns", fmt.Sprintf("use at most %d", maxNameservers), "%d are too many", n)
	}
	for _, a := range dns.GetNameservers() {
		if _, err := netip.ParseAddr(a); err != nil {
			p.add(fmt.Sprintf("dns %q", a), "it is not an IP address", "use one such as 192.168.1.1")
		}
	}
	if n := len(dns.GetSearch()); n > maxSearch {
		p.addf("dns search", fmt.Sprintf("use at most %d", maxSearch), "%d are too many", n)
	}
	for _, domain := range dns.GetSearch() {
		if domain != "." && (len(domain) > 253 || !hostLabels.MatchString(domain)) {
			p.add(fmt.Sprintf("dns search %q", domain), "it is not a domain", "use one such as example.org, or . for none")
		}
	}
	for _, option := range dns.GetOptions() {
		if option == "" || strings.ContainsAny(option, " \t\n\x00") {
			p.add(fmt.Sprintf("dns option %q", option), "it is not one word", "use one such as ndots:2; resolv.conf(5) lists them")
		}
	}
	if len(c.GetHosts()) > maxHosts {
		p.addf("host", fmt.Sprintf("use at most %d", maxHosts), "%d are too many", len(c.GetHosts()))
	}
	for _, line := range c.GetHosts() {
		words := strings.Fields(line)
		bad := len(words) < 2 || strings.ContainsAny(line, "\n\x00#")
		if !bad {
			_, err := netip.ParseAddr(words[0])
			bad = err != nil || slices.ContainsFunc(words[1:], func(name string) bool { return !hostLabels.MatchString(name) })
		}
		if bad {
			p.add(fmt.Sprintf("host %q", line), "it is not an address and names", "use HOST:IP, for example db:192.168.1.5")
		}
	}
}

// ownPort tells which part of swarmd a host's port belongs to; empty = none.
func ownPort(port uint32, protocol Protocol, dataPath uint32) string {
	tcp, udp := protocol <= Protocol_PROTOCOL_TCP, protocol == Protocol_PROTOCOL_UDP
	switch {
	case port == clusterPort && tcp:
		return "the cluster's own calls"
	case port == gossipPort && (tcp || udp):
		return "the hosts' gossip"
	case port == dataPath && udp:
		return "the traffic between the hosts"
	case (port == TunnelPort || port == TunnelVXLANPort) && udp:
		return "encrypted networks between the hosts"
	}
	return ""
}

// addressPools checks where the subnets of networks are chosen from.
func (p *problems) addressPools(pools []string, length uint32) {
	const example = "use an IPv4 network such as 10.0.0.0/8"
	var all []netip.Prefix
	for _, text := range pools {
		field := fmt.Sprintf("default address pool %q", text)
		prefix, err := netip.ParsePrefix(text)
		switch {
		case err != nil || !prefix.Addr().Is4():
			p.add(field, "it is not an IPv4 network in CIDR form", example)
			continue
		case prefix.Masked() != prefix:
			p.add(field, "it has bits set beyond its length", "use "+prefix.Masked().String())
		case prefix.Addr().IsLoopback() || prefix.Addr().IsMulticast() || prefix.Addr().IsLinkLocalUnicast():
			p.add(field, "containers cannot have such addresses", example)
		case prefix.Bits() > MaxSubnetBits:
			p.addf(field, example, "no subnet fits in it; its length must be at most %d", MaxSubnetBits)
		case length != 0 && int(length) < prefix.Bits():
			p.addf(field, "use a longer mask length or a shorter prefix", "subnets of length %d do not fit in it", length)
		}
		for _, other := range all {
			if other.Overlaps(prefix) {
				p.addf(field, "give pools that do not overlap", "it overlaps %s", other)
			}
		}
		all = append(all, prefix)
	}
	if length != 0 && (length < MinSubnetBits || length > MaxSubnetBits) {
		p.addf(fmt.Sprintf("default address pool mask length %d", length), "use one such as 24", "it must be %d to %d", MinSubnetBits, MaxSubnetBits)
	}
}

func (p *problems) dataPathPort(port uint32) {
	if port == 0 {
		return
	}
	field := fmt.Sprintf("data path port %d", port)
	if port < 1024 || port > 49151 {
		p.add(field, "it is outside 1024 to 49151", "leave it out for 4789, or use another of that range")
	} else if owner := ownPort(port, Protocol_PROTOCOL_UDP, 0); owner != "" {
		p.add(field, "it is that of "+owner, "use another")
	}
}
