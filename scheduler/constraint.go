package scheduler

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
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

// Of is the attribute's value on a node, as the cluster takes it to be; empty when it has none.
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

// said is what the node itself says the value is, false where the cluster takes that.
func (a Attribute) said(n *Node) (string, bool) {
	if n.says == nil {
		return "", false
	}
	switch a.kind {
	case nodeHostname:
		return n.says.hostname, true
	case nodeOS:
		return n.says.os, true
	case nodeArch:
		return architecture(n.says.arch), true
	case engineLabel:
		return n.says.labels[a.label], true
	}
	return "", false
}

// Constraint compares an attribute of a node with values; case is ignored. A node without the attribute has the empty
// value, so it satisfies every !=, not in and !~, and no comparison of numbers.
type Constraint struct {
	attribute Attribute
	op        swarmpb.ConstraintOp
	not       bool
	values    []string
	prefixes  []netip.Prefix // node.ip
	number    float64
	regexp    *regexp.Regexp
	text      string
}

// NewConstraint makes a parsed constraint ready to be matched.
func NewConstraint(parsed swarmpb.Constraint) (Constraint, error) {
	c := Constraint{op: parsed.Op, values: slices.Clone(parsed.Values), text: parsed.String()}
	var err error
	if c.attribute, err = ParseAttribute(parsed.Key); err != nil {
		return c, fmt.Errorf("constraint: %w", err)
	}
	switch c.op {
	case swarmpb.ConstraintNotEqual, swarmpb.ConstraintNotIn, swarmpb.ConstraintNotMatch:
		c.not = true
	}
	switch c.op {
	case swarmpb.ConstraintMatch, swarmpb.ConstraintNotMatch:
		if c.regexp, err = parsed.Regexp(); err != nil {
			return c, fmt.Errorf("constraint %s: %w", parsed.Key, err)
		}
		return c, nil
	case swarmpb.ConstraintLess, swarmpb.ConstraintAtMost, swarmpb.ConstraintMore, swarmpb.ConstraintAtLeast:
		if c.number, err = strconv.ParseFloat(c.values[0], 64); err != nil {
			return c, fmt.Errorf("constraint %s: %w", parsed.Key, err)
		}
		return c, nil
	}
	for i, value := range c.values {
		switch c.attribute.kind {
		case nodeIP:
			prefix, err := parsePrefix(value)
			if err != nil {
				return c, fmt.Errorf("constraint %s: %w", parsed.Key, err)
			}
			c.prefixes = append(c.prefixes, prefix)
		case nodeArch:
			c.values[i] = architecture(value)
		}
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

// Match reports whether the node satisfies the constraint: by what the cluster takes it to be, and by what it says of
// itself. So its own word can keep tasks away, and attracts none.
func (c *Constraint) Match(n *Node) bool {
	if c.attribute.kind == nodeIP {
		return slices.ContainsFunc(c.prefixes, func(p netip.Prefix) bool { return p.Contains(n.Address) }) != c.not
	}
	if !c.holds(c.attribute.Of(n)) {
		return false
	}
	said, differs := c.attribute.said(n)
	return !differs || c.holds(said)
}

// holds compares a value.
func (c *Constraint) holds(value string) bool {
	switch c.op {
	case swarmpb.ConstraintMatch, swarmpb.ConstraintNotMatch:
		return c.regexp.MatchString(value) != c.not
	case swarmpb.ConstraintLess, swarmpb.ConstraintAtMost, swarmpb.ConstraintMore, swarmpb.ConstraintAtLeast:
		number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return false
		}
		switch c.op {
		case swarmpb.ConstraintLess:
			return number < c.number
		case swarmpb.ConstraintAtMost:
			return number <= c.number
		case swarmpb.ConstraintMore:
			return number > c.number
		default:
			return number >= c.number
		}
	}
	return slices.ContainsFunc(c.values, func(v string) bool { return strings.EqualFold(value, v) }) != c.not
}

// own tells whether nodes that are alike in everything else may differ in what the constraint looks at.
func (c *Constraint) own() bool {
	switch c.attribute.kind {
	case nodeID, nodeHostname, nodeIP:
		return true
	}
	return false
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
