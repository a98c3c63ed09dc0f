package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// publishing is what a value of --publish says: one port, or one for each of a range.
type publishing struct {
	ports []*swarmpb.PortConfig
	// given are the keys that it named.
	given map[string]bool
}

// portRange is the ports first to last; the zero range has none.
type portRange struct{ first, last uint32 }

func (r portRange) count() uint32 {
	if r.first == 0 {
		return 0
	}
	return r.last - r.first + 1
}

func (r portRange) String() string {
	if r.first == r.last {
		return fmt.Sprint(r.first)
	}
	return fmt.Sprintf("%d-%d", r.first, r.last)
}

func parsePortRange(s string) (r portRange, err error) {
	from, to, ranged := strings.Cut(s, "-")
	if r.first, err = portNumber(from); err != nil {
		return portRange{}, err
	}
	if r.last = r.first; ranged {
		if r.last, err = portNumber(to); err != nil {
			return portRange{}, err
		}
	}
	switch {
	case r.last < r.first:
		return portRange{}, fmt.Errorf("the range %s ends before it begins; use %d-%d", s, r.last, r.first)
	case r.count() > swarmpb.MaxPorts:
		return portRange{}, fmt.Errorf("the range %s has %d ports; a service publishes at most %d", s, r.count(), swarmpb.MaxPorts)
	}
	return r, nil
}

func portNumber(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q is not between 1 and 65535", s)
	}
	return uint32(n), nil
}

// parsePublish reads published=8080,target=80,protocol=tcp and the like, or the short 8080:80/tcp. Ports may be ranges.
func parsePublish(s string) (publishing, error) {
	fields, err := publishFields(s)
	if err != nil {
		return publishing{}, err
	}
	p := &swarmpb.PortConfig{Protocol: swarmpb.Protocol_PROTOCOL_TCP, Mode: swarmpb.PublishMode_PUBLISH_MODE_INGRESS}
	out := publishing{given: map[string]bool{}}
	var published, target portRange
	for _, f := range fields {
		key := strings.TrimSuffix(f[0], "_port")
		switch key {
		case "target":
			target, err = parsePortRange(f[1])
		case "published":
			published, err = parsePortRange(f[1])
		case "protocol":
			p.Protocol, err = swarmpb.ParseProtocol(f[1])
		case "mode":
			p.Mode, err = swarmpb.ParsePublishMode(f[1])
		case "source":
			p.Source, err = swarmpb.ParsePublishSource(f[1])
		case "affinity":
			p.Affinity, err = swarmpb.ParseAffinity(f[1])
		case "name":
			p.Name = f[1]
		default:
			err = fmt.Errorf("%q is not known; use published, target, protocol, mode, source, affinity", f[0])
		}
		if err != nil {
			return publishing{}, err
		}
		out.given[key] = true
	}
	out.ports, err = pairPorts(p, published, target)
	return out, err
}

// publishFields are the keys and values of either form.
func publishFields(s string) ([][2]string, error) {
	if strings.Contains(s, "=") {
		return keyValues(s)
	}
	short, protocol, given := strings.Cut(s, "/")
	parts := strings.Split(short, ":")
	if len(parts) > 2 {
		return nil, errors.New("a published port is one of every node, on all its addresses; leave the address out, as in 8080:80")
	}
	fields := [][2]string{{"target", parts[len(parts)-1]}}
	if len(parts) == 2 && parts[0] != "" {
		fields = append(fields, [2]string{"published", parts[0]})
	}
	if given {
		fields = append(fields, [2]string{"protocol", protocol})
	}
	return fields, nil
}

// pairPorts makes the ports of two ranges: pair by pair, all to one target, or, with none published, each to be chosen.
func pairPorts(of *swarmpb.PortConfig, published, target portRange) ([]*swarmpb.PortConfig, error) {
	switch {
	case target.count() == 0:
		return nil, errors.New("the container's port is missing; use 8080:80 or published=8080,target=80")
	case published.count() > 1 && target.count() > 1 && published.count() != target.count(),
		published.count() == 1 && target.count() > 1:
		return nil, fmt.Errorf("%s published for %s of the container: the ranges differ in length; give two of one length, or one port of the container",
			count(published.count(), "port"), count(target.count(), "port"))
	}
	var out []*swarmpb.PortConfig
	for i := range max(published.count(), target.count()) {
		p := swarmpb.Clone(of)
		p.TargetPort = target.first + min(i, target.count()-1)
		if published.count() > 0 {
			p.PublishedPort = published.first + i
		}
		out = append(out, p)
	}
	return out, nil
}

// editPorts removes and adds published ports, those of the flag that is named.
func editPorts(flag string, l listFlag, spec *swarmpb.ServiceSpec) error {
	if len(l.add)+len(l.rm) == 0 {
		return nil
	}
	e := orNew(&spec.Endpoint)
	for _, rm := range l.rm {
		which, err := parsePublish(rm)
		if err != nil {
			return fmt.Errorf("--publish-rm %s: name the container's port: %w", rm, err)
		}
		before := len(e.Ports)
		e.Ports = slices.DeleteFunc(e.Ports, which.names)
		if len(e.Ports) == before {
			return fmt.Errorf("--publish-rm %s: the service does not publish that port; it publishes %s", rm, orNone(portTexts(e.Ports, false)))
		}
	}
	added, err := parseAll(flag, l.add, parsePublish)
	if err != nil {
		return err
	}
	for _, more := range added {
		e.Ports = slices.DeleteFunc(e.Ports, more.replaces)
	}
	for _, more := range added {
		e.Ports = append(e.Ports, more.ports...)
	}
	return nil
}

// names tells whether p is a port that this one names, by the container's port and what else is given.
func (x publishing) names(p *swarmpb.PortConfig) bool {
	return slices.ContainsFunc(x.ports, func(q *swarmpb.PortConfig) bool {
		return p.TargetPort == q.TargetPort &&
			(!x.given["published"] || p.PublishedPort == q.PublishedPort) &&
			(!x.given["protocol"] || p.Protocol.Name() == q.Protocol.Name()) &&
			(!x.given["mode"] || p.Mode.Name() == q.Mode.Name())
	})
}

// replaces tells whether p is published at a port that this one takes.
func (x publishing) replaces(p *swarmpb.PortConfig) bool {
	return slices.ContainsFunc(x.ports, func(q *swarmpb.PortConfig) bool {
		return p.PublishedPort != 0 && p.PublishedPort == q.PublishedPort && p.Protocol.Name() == q.Protocol.Name()
	})
}

// portsText is published ports as people write them; those of a task are its node's in any case.
func portsText(ports []*swarmpb.PortConfig, task bool) string {
	return strings.Join(portTexts(ports, task), ", ")
}

// portTexts is a text for each port, or for each range of them.
func portTexts(ports []*swarmpb.PortConfig, task bool) []string {
	var out []string
	for i := 0; i < len(ports); {
		n := 1
		for i+n < len(ports) && follows(ports[i], ports[i+n], uint32(n)) {
			n++
		}
		out = append(out, portText(ports[i], uint32(n), task))
		i += n
	}
	return out
}

// follows tells whether q is the n-th port after p in one range.
func follows(p, q *swarmpb.PortConfig, n uint32) bool {
	next := swarmpb.Clone(p)
	next.PublishedPort += n
	next.TargetPort += n
	return p.PublishedPort != 0 && proto.Equal(next, q)
}

// portText is n ports from p on. A port of the mesh is one of every node: *:8080.
func portText(p *swarmpb.PortConfig, n uint32, task bool) string {
	ingress := p.GetMode() != swarmpb.PublishMode_PUBLISH_MODE_HOST && !task
	published := "*"
	switch {
	case p.GetPublishedPort() != 0:
		published = portRange{p.GetPublishedPort(), p.GetPublishedPort() + n - 1}.String()
	case ingress:
		published = "?" // none is chosen yet
	}
	if ingress {
		published = "*:" + published
	}
	text := fmt.Sprintf("%s->%s/%s", published, portRange{p.GetTargetPort(), p.GetTargetPort() + n - 1}, p.GetProtocol().Name())
	if !task && !ingress {
		text += " (host)"
	}
	return text
}

// servicePorts are the ports of a service, those too that the cluster chose.
func servicePorts(s *swarmpb.ServiceInfo) []*swarmpb.PortConfig {
	spec := s.GetService().GetSpec().GetEndpoint().GetPorts()
	named := func(p *swarmpb.PortConfig) bool {
		return slices.ContainsFunc(spec, func(q *swarmpb.PortConfig) bool {
			return q.GetMode() != swarmpb.PublishMode_PUBLISH_MODE_HOST && p.GetPublishedPort() == q.GetPublishedPort() && p.GetProtocol().Name() == q.GetProtocol().Name()
		})
	}
	chosen := slices.DeleteFunc(slices.Clone(s.GetEndpoint().GetPorts()), named)
	var out []*swarmpb.PortConfig
	for _, p := range spec {
		if p.GetPublishedPort() == 0 && p.GetMode() != swarmpb.PublishMode_PUBLISH_MODE_HOST {
			i := slices.IndexFunc(chosen, func(q *swarmpb.PortConfig) bool {
				return q.GetTargetPort() == p.GetTargetPort() && q.GetProtocol().Name() == p.GetProtocol().Name()
			})
			if i >= 0 {
				p = chosen[i]
				chosen = slices.Delete(chosen, i, i+1)
			}
		}
		out = append(out, p)
	}
	return out
}

// publishedTexts is the ports of a service with what is special about each.
func publishedTexts(s *swarmpb.ServiceInfo) []string {
	ports := servicePorts(s)
	var out []string
	for len(ports) > 0 {
		n := 1
		for n < len(ports) && follows(ports[0], ports[n], uint32(n)) {
			n++
		}
		text := portText(ports[0], uint32(n), false)
		if ports[0].GetSource() == swarmpb.PublishSource_PUBLISH_SOURCE_NAT {
			text += ", source=nat"
		}
		if ports[0].GetAffinity() == swarmpb.Affinity_AFFINITY_CLIENT_IP {
			text += ", affinity=client-ip"
		}
		out, ports = append(out, text), ports[n:]
	}
	return out
}

// conflictText says who has a published port on a node, and what follows from that.
func conflictText(c *swarmpb.NodePortConflict) string {
	port := fmt.Sprint(c.GetConflict().GetPort())
	if protocol := c.GetConflict().GetProtocol(); protocol.Name() != "tcp" {
		port += "/" + protocol.Name()
	}
	who, node := c.GetConflict().GetProcess(), c.GetHostname()
	if who == "" {
		who = "another program"
	}
	if node == "" {
		node = c.GetNodeId()
	}
	return fmt.Sprintf("port %s on node %s is taken by %s: clients of that node reach it instead; stop it or publish another port", port, node, who)
}

// serviceNotes is what keeps clients from services, and why their last updates went back.
func serviceNotes(ctx context.Context, c *client, services []string) ([]string, error) {
	var out []string
	err := each(services, func(name string) error {
		r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: name})
		if errors.Is(err, wire.ErrNotFound) {
			return nil // the listing has said so
		}
		if err != nil {
			return err
		}
		prefix := ""
		if len(services) > 1 {
			prefix = r.GetService().GetService().GetSpec().GetName() + ": "
		}
		if message := r.GetService().GetEndpoint().GetMessage(); message != "" {
			out = append(out, prefix+message)
		}
		for _, conflict := range r.GetService().GetConflicts() {
			out = append(out, prefix+conflictText(conflict))
		}
		if why := wentBack(r.GetService()); why != "" {
			out = append(out, prefix+why)
		}
		return nil
	})
	return out, err
}
