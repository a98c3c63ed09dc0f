package scheduler

import (
	"fmt"
	"net/netip"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Attribute names something about a node that constraints compare and preferences spread over.
type Attribute struct {
	kind  attributeKind
	label string // case counts, as it does where the label is set
}

type attributeKind uint8

const (
	nodeID attributeKind = iota
	nodeHostname
	nodeIP
	nodeRole
	nodeOS
	nodeArch
	nodeLabel
	engineLabel
)

const attributeHelp = "use node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, node.labels.NAME or engine.labels.NAME"

// ParseAttribute reads a name such as node.labels.zone; the case of all but a label's own name is ignored.
func ParseAttribute(name string) (Attribute, error) {
	name = strings.TrimSpace(name)
	switch strings.ToLower(name) {
	case "node.id":
		return Attribute{kind: nodeID}, nil
	case "node.hostname":
		return Attribute{kind: nodeHostname}, nil
	case "node.ip":
		return Attribute{kind: nodeIP}, nil
	case "node.role":
		return Attribute{kind: nodeRole}, nil
	case "node.platform.os":
		return Attribute{kind: nodeOS}, nil
	case "node.platform.arch":
		return Attribute{kind: nodeArch}, nil
	}
	if label, ok := cutPrefixFold(name, "node.labels."); ok {
		return Attribute{kind: nodeLabel, label: label}, nil
	}
	if label, ok := cutPrefixFold(name, "engine.labels."); ok {
		return Attribute{kind: engineLabel, label: label}, nil
	}
	return Attribute{}, fmt.Errorf("unknown node attribute %q: %s", name, attributeHelp)
}

// cutPrefixFold is CutPrefix without regard to case, for a prefix that something must follow.
func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) <= len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return s[len(prefix):], true
}

// Of is the attribute's value on a node, empty when it has none.
func (a Attribute) Of(n *Node) string {
	switch a.kind {
	case nodeID:
		return n.ID
	case nodeHostname:
		return n.Hostname
	case nodeIP:
		if n.Address.IsValid() {
			return n.Address.String()
		}
	case nodeRole:
		switch n.Role {
		case swarmpb.NodeRole_NODE_ROLE_MANAGER:
			return "manager"
		case swarmpb.NodeRole_NODE_ROLE_WORKER:
			return "worker"
		}
	case nodeOS:
		return n.OS
	case nodeArch:
		return architecture(n.Arch)
	case nodeLabel:
		return n.Labels[a.label]
	case engineLabel:
		return n.EngineLabels[a.label]
	}
	return ""
}

// Constraint compares an attribute of a node with a value; case is ignored. A node without the attribute has
// the empty value, so it satisfies every !=.
type Constraint struct {
	attribute Attribute
	not       bool
	value     string
	prefix    netip.Prefix // node.ip
}

// NewConstraint makes a parsed constraint ready to be matched.
func NewConstraint(parsed swarmpb.Constraint) (Constraint, error) {
	c := Constraint{not: !parsed.Equal, value: parsed.Value}
	var err error
	if c.attribute, err = ParseAttribute(parsed.Key); err != nil {
		return c, fmt.Errorf("constraint: %w", err)
	}
	switch c.attribute.kind {
	case nodeIP:
		if c.prefix, err = parsePrefix(c.value); err != nil {
			return c, fmt.Errorf("constraint %s: %w", parsed.Key, err)
		}
	case nodeArch:
		c.value = architecture(c.value)
	}
	return c, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		return p.Masked(), err
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// Match reports whether the node satisfies the constraint.
func (c *Constraint) Match(n *Node) bool {
	if c.attribute.kind == nodeIP {
		return c.prefix.Contains(n.Address) != c.not
	}
	return strings.EqualFold(c.attribute.Of(n), c.value) != c.not
}

// architecture gives the one name for what uname and Go call differently.
func architecture(s string) string {
	switch strings.ToLower(s) {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return s
}
