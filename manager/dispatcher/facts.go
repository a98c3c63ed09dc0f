package dispatcher

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// cleanText makes a text of a worker's fit to be kept and printed: one line, printable, bounded.
func cleanText(s string, limit int) string {
	if clean := strings.Map(printable, s); clean != s {
		s = strings.TrimSpace(clean)
	}
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for len(s) > 0 {
		if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size > 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s
}

func printable(r rune) rune {
	switch {
	case r == utf8.RuneError:
		return '?'
	case unicode.IsPrint(r):
		return r
	case unicode.IsSpace(r):
		return ' '
	}
	return -1
}

// cleanDescription copies what a node says of itself, bounded and printable; what makes no sense is refused.
func cleanDescription(d *swarmpb.NodeDescription) (*swarmpb.NodeDescription, error) {
	if d == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "description: required")
	}
	r := d.GetResources()
	if r.GetNanoCpus() < 0 || r.GetMemoryBytes() < 0 {
		return nil, wire.Errorf(wire.CodeInvalid, "description: resources must not be negative")
	}
	hostname := cleanText(d.GetHostname(), maxNameBytes)
	if hostname == "" {
		return nil, wire.Errorf(wire.CodeInvalid, "description: hostname is empty")
	}
	labels, err := cleanLabels(d.GetEngine().GetLabels())
	if err != nil {
		return nil, err
	}
	return &swarmpb.NodeDescription{
		Hostname: hostname,
		Platform: &swarmpb.Platform{
			Os:           cleanText(d.GetPlatform().GetOs(), maxNameBytes),
			Architecture: cleanText(d.GetPlatform().GetArchitecture(), maxNameBytes),
		},
		Resources: &swarmpb.Resources{NanoCpus: r.GetNanoCpus(), MemoryBytes: r.GetMemoryBytes(), Generic: cleanGeneric(r.GetGeneric())},
		Engine: &swarmpb.EngineDescription{
			Version:           cleanText(d.GetEngine().GetVersion(), maxNameBytes),
			ContainerdVersion: cleanText(d.GetEngine().GetContainerdVersion(), maxNameBytes),
			OciRuntime:        cleanText(d.GetEngine().GetOciRuntime(), maxNameBytes),
			Labels:            labels,
		},
		TakesNoTasks: cleanText(d.GetTakesNoTasks(), maxNameBytes),
		Network:      cleanNetwork(d.GetNetwork()),
	}, nil
}

// firstFacts is what the cluster takes of a node that it sees for the first time. Engine labels are left for a user to accept.
func firstFacts(d *swarmpb.NodeDescription) *swarmpb.NodeFacts {
	return &swarmpb.NodeFacts{Hostname: d.GetHostname(), Platform: swarmpb.Clone(d.GetPlatform()), Resources: swarmpb.Clone(d.GetResources())}
}

// cleanGeneric copies generic resources within bounds, each kind and name once, by kind. What cannot be one, or is too
// much, is left out: the node has the rest nevertheless.
func cleanGeneric(in []*swarmpb.GenericResource) []*swarmpb.GenericResource {
	var out []*swarmpb.GenericResource
	left := swarmpb.MaxGenericInstances
	seen := make(map[string]bool)
	for _, g := range in[:min(len(in), 4*swarmpb.MaxGenericKinds)] {
		if len(out) == swarmpb.MaxGenericKinds || seen[g.GetKind()] || !swarmpb.ValidGenericKind(g.GetKind()) {
			continue
		}
		seen[g.GetKind()] = true
		clean := &swarmpb.GenericResource{Kind: g.GetKind()}
		if len(g.GetInstances()) == 0 {
			clean.Count = min(max(g.GetCount(), 0), swarmpb.MaxGenericCount)
			out = append(out, clean)
			continue
		}
		names := slices.Clone(g.GetInstances()[:min(len(g.GetInstances()), 4*swarmpb.MaxGenericInstances)])
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if left > 0 && swarmpb.ValidGenericInstance(name) {
				clean.Instances = append(clean.Instances, name)
				left--
			}
		}
		if len(clean.Instances) > 0 {
			out = append(out, clean)
		}
	}
	slices.SortFunc(out, func(a, b *swarmpb.GenericResource) int { return strings.Compare(a.GetKind(), b.GetKind()) })
	return out
}

// cleanNetwork copies what a node says of its network: what makes sense of it, within bounds, in canonical form. A node
// with more routes than that, or odd ones, is a node nevertheless.
func cleanNetwork(n *swarmpb.NodeNetwork) *swarmpb.NodeNetwork {
	if n == nil {
		return nil
	}
	clean := &swarmpb.NodeNetwork{}
	seen := make(map[string]bool)
	for _, route := range n.GetRoutes()[:min(len(n.GetRoutes()), 4*maxRoutes)] {
		prefix, err := netip.ParsePrefix(route)
		if text := prefix.Masked().String(); err == nil && !seen[text] && len(clean.Routes) < maxRoutes {
			seen[text] = true
			clean.Routes = append(clean.Routes, text)
		}
	}
	for _, c := range n.GetConflicts()[:min(len(n.GetConflicts()), 4*maxConflicts)] {
		if c.GetPort() < 1 || c.GetPort() > 65535 || swarmpb.Protocol_name[int32(c.GetProtocol())] == "" || len(clean.Conflicts) == maxConflicts {
			continue
		}
		clean.Conflicts = append(clean.Conflicts, &swarmpb.PortConflict{
			Protocol: c.GetProtocol(), Port: c.GetPort(), Process: cleanText(c.GetProcess(), maxNameBytes)})
	}
	for _, problem := range n.GetProblems()[:min(len(n.GetProblems()), maxProblems)] {
		clean.Problems = append(clean.Problems, cleanText(problem, maxMessageBytes))
	}
	for _, text := range n.GetAddresses()[:min(len(n.GetAddresses()), maxHostAddresses)] {
		if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && a.IsGlobalUnicast() {
			clean.Addresses = append(clean.Addresses, a.Unmap().String())
		}
	}
	if len(n.GetWireguardKey()) == wireguardKeyBytes {
		clean.WireguardKey = slices.Clone(n.GetWireguardKey())
		clean.Wireguard = cleanText(n.GetWireguard(), maxIDBytes)
	}
	return clean
}

func cleanLabels(labels map[string]string) (map[string]string, error) {
	if len(labels) > maxLabels {
		return nil, wire.Errorf(wire.CodeInvalid, "description: %d engine labels; at most %d are allowed", len(labels), maxLabels)
	}
	var out map[string]string
	for key, value := range labels {
		if key == "" || len(key) > maxLabelBytes || len(value) > maxLabelBytes || cleanText(key, maxLabelBytes) != key {
			return nil, wire.Errorf(wire.CodeInvalid, "description: engine label %.40q: keys and values are printable text of at most %d bytes", key, maxLabelBytes)
		}
		if out == nil {
			out = make(map[string]string, len(labels))
		}
		out[key] = cleanText(value, maxLabelBytes)
	}
	return out, nil
}

// cleanHello checks the first message of a session.
func cleanHello(hello *swarmpb.SessionHello, peer string) (*Facts, error) {
	if hello == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "session: the first message must be a hello")
	}
	if boot := hello.GetBootId(); boot == "" || len(boot) > maxIDBytes || cleanText(boot, maxIDBytes) != boot {
		return nil, wire.Errorf(wire.CodeInvalid, "session: boot ID must be printable text of 1 to %d bytes", maxIDBytes)
	}
	listen := hello.GetListenAddress()
	if listen != "" {
		if _, _, err := net.SplitHostPort(listen); err != nil || len(listen) > maxNameBytes || cleanText(listen, maxNameBytes) != listen {
			return nil, wire.Errorf(wire.CodeInvalid, "session: listen address %.80q is not host:port", listen)
		}
	}
	description, err := cleanDescription(hello.GetDescription())
	if err != nil {
		return nil, err
	}
	return &Facts{Description: description, Address: addressOf(peer, listen), ListenAddress: listen}, nil
}

// addressOf is the host that a node is reached at: as the connection shows it, unless that is a loopback
// address, which means nothing elsewhere, and the node names a better one.
func addressOf(peer, listen string) string {
	address := hostOf(peer)
	if ip := net.ParseIP(address); ip == nil || !ip.IsLoopback() {
		return address
	}
	if ip := net.ParseIP(hostOf(listen)); ip != nil && !ip.IsUnspecified() {
		return ip.String()
	}
	return address
}

// hostOf cuts the port from an address; an address without one is returned as it is.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return cleanText(addr, maxNameBytes)
	}
	return cleanText(host, maxNameBytes)
}

// managerAddress is where a manager's cluster port is reached from elsewhere: a listen address that names no
// host stands for the address that the node was seen under.
func (f *Facts) managerAddress(role swarmpb.NodeRole) string {
	if f == nil || role != swarmpb.NodeRole_NODE_ROLE_MANAGER || f.ListenAddress == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(f.ListenAddress)
	if err != nil {
		return ""
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = f.Address
	}
	return net.JoinHostPort(host, port)
}
