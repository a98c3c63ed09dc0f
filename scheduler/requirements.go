package scheduler

import (
	"fmt"
	"slices"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Requirements is what a task asks of its node. It is read-only once made.
type Requirements struct {
	Reserve Resources
	// Ports are the fixed host ports; one that the node is to choose conflicts with nothing.
	Ports       []Port
	Constraints []Constraint
	// Platforms that the image is there for; empty = not known, so any.
	Platforms []Platform
	// Spread is what to spread over, outermost first.
	Spread []Attribute
	// MaxPerNode tasks of the service on one node; 0 = no limit.
	MaxPerNode uint64
	// Generic resources, each kind once.
	Generic []Want
	// Encrypted: one of its networks is, so the node must be able to encrypt.
	Encrypted bool
	// Binpack puts tasks where most is reserved already; else where least is.
	Binpack bool
	// alike is the same for requirements that ask the same; empty = not known yet.
	alike string
}

// Want is an amount of a generic resource.
type Want struct {
	Kind  string
	Count int64
}

// Platform is an operating system and an architecture; an empty one stands for any.
type Platform struct {
	OS, Arch string
}

// runsOn tells whether one of the platforms is that, or the same of 32 bits, whose images its nodes run too.
func (q *Requirements) runsOn(os, arch string) bool {
	return len(q.Platforms) == 0 || slices.ContainsFunc(q.Platforms, func(p Platform) bool {
		if p.OS != "" && !strings.EqualFold(p.OS, os) {
			return false
		}
		wants, has := strings.ToLower(architecture(p.Arch)), strings.ToLower(architecture(arch))
		return wants == "" || wants == has || wants == "386" && has == "amd64" || wants == "arm" && has == "arm64"
	})
}

// NewRequirements reads a template. The error names the constraint or preference that cannot be understood.
func NewRequirements(t *swarmpb.Template) (*Requirements, error) {
	reserve := t.GetSpec().GetResources().GetReservations()
	q := &Requirements{
		Reserve:    Resources{NanoCPUs: max(reserve.GetNanoCpus(), 0), MemoryBytes: max(reserve.GetMemoryBytes(), 0)},
		Ports:      HostPorts(t.GetHostPorts()),
		MaxPerNode: t.GetSpec().GetPlacement().GetMaxReplicasPerNode(),
		Generic:    wants(reserve.GetGeneric()),
		Binpack:    t.GetSpec().GetPlacement().GetStrategy() == swarmpb.PlacementStrategy_PLACEMENT_STRATEGY_BINPACK,
	}
	for _, p := range t.GetSpec().GetPlacement().GetPlatforms() {
		q.Platforms = append(q.Platforms, Platform{OS: p.GetOs(), Arch: p.GetArchitecture()})
	}
	for _, s := range t.GetSpec().GetPlacement().GetConstraints() {
		parsed, err := swarmpb.ParseConstraint(s)
		if err != nil {
			return nil, err
		}
		c, err := NewConstraint(parsed)
		if err != nil {
			return nil, err
		}
		q.Constraints = append(q.Constraints, c)
	}
	for _, p := range t.GetSpec().GetPlacement().GetPreferences() {
		a, err := ParseAttribute(p.GetSpread().GetDescriptor_())
		if err != nil {
			return nil, fmt.Errorf("spread preference: %w", err)
		}
		q.Spread = append(q.Spread, a)
	}
	q.alike = q.likeness()
	return q, nil
}

func wants(reserved []*swarmpb.GenericResource) []Want {
	var out []Want
	for _, g := range reserved {
		if g.GetCount() > 0 {
			out = append(out, Want{Kind: g.GetKind(), Count: g.GetCount()})
		}
	}
	return out
}

// Encrypt asks for a node that can encrypt networks; before the requirements are used.
func (q *Requirements) Encrypt() {
	q.Encrypted, q.alike = true, ""
	q.alike = q.likeness()
}

// likeness tells requirements apart that do not ask the same.
func (q *Requirements) likeness() string {
	if q.alike != "" {
		return q.alike
	}
	b := fmt.Appendf(nil, "%d %d %d %t %t %v %v %v", q.Reserve.NanoCPUs, q.Reserve.MemoryBytes, q.MaxPerNode, q.Encrypted, q.Binpack, q.Ports, q.Platforms, q.Generic)
	for i := range q.Constraints {
		b = fmt.Appendf(b, " %q", q.Constraints[i].text)
	}
	return string(b)
}

// HostPorts picks the ports that a task binds on its node's address under a number of the user's choice.
func HostPorts(ports []*swarmpb.PortConfig) []Port {
	var out []Port
	for _, p := range ports {
		if p.GetPublishedPort() == 0 || p.GetMode() == swarmpb.PublishMode_PUBLISH_MODE_INGRESS {
			continue
		}
		protocol := p.GetProtocol()
		if protocol == swarmpb.Protocol_PROTOCOL_UNSPECIFIED {
			protocol = swarmpb.Protocol_PROTOCOL_TCP
		}
		out = append(out, Port{Protocol: protocol, Number: p.GetPublishedPort()})
	}
	return out
}
