package swarmpb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Constraint is one condition on the nodes that a task may run on.
type Constraint struct {
	// Key is in lower case, but for the name of a label, which is as written.
	Key string
	// Equal is true for ==, false for !=.
	Equal bool
	Value string
}

// Keys of constraints.
const (
	ConstraintNodeID       = "node.id"
	ConstraintHostname     = "node.hostname"
	ConstraintIP           = "node.ip"
	ConstraintRole         = "node.role"
	ConstraintOS           = "node.platform.os"
	ConstraintArchitecture = "node.platform.arch"
	// Prefixes, before the name of a label.
	ConstraintNodeLabel   = "node.labels."
	ConstraintEngineLabel = "engine.labels."
)

var (
	constraintKeys = []string{
		ConstraintNodeID, ConstraintHostname, ConstraintIP, ConstraintRole, ConstraintOS, ConstraintArchitecture,
	}
	constraintPrefixes = []string{ConstraintNodeLabel, ConstraintEngineLabel}
)

// ParseConstraint reads key==value or key!=value. Its error is a *FieldError.
func ParseConstraint(s string) (Constraint, error) {
	field := fmt.Sprintf("constraint %q", s)
	at, equal := strings.Index(s, "=="), true
	if i := strings.Index(s, "!="); i >= 0 && (at < 0 || i < at) {
		at, equal = i, false
	}
	if at < 0 {
		return Constraint{}, &FieldError{field, "it has neither == nor !=", "use key==value or key!=value"}
	}
	key, value := strings.TrimSpace(s[:at]), strings.TrimSpace(s[at+2:])
	known, ok := constraintKey(key)
	if !ok {
		return Constraint{}, &FieldError{field, fmt.Sprintf("the key %q is not known", key),
			"use " + strings.Join(constraintKeys, ", ") + ", node.labels.NAME or engine.labels.NAME"}
	}
	if value == "" || strings.HasPrefix(value, "=") {
		return Constraint{}, &FieldError{field, "it has no value", "use key==value or key!=value"}
	}
	switch known {
	case ConstraintIP:
		if _, err := netip.ParsePrefix(value); err != nil {
			if a, err := netip.ParseAddr(value); err != nil || a.Zone() != "" {
				return Constraint{}, &FieldError{field, fmt.Sprintf("%q is neither an address nor a network", value),
					"use one such as 192.168.1.10 or 192.168.1.0/24"}
			}
		}
	case ConstraintRole:
		if _, err := ParseNodeRole(value); err != nil {
			return Constraint{}, &FieldError{field, fmt.Sprintf("there is no role %q", value), "use worker or manager"}
		}
	}
	return Constraint{Key: known, Equal: equal, Value: value}, nil
}

// constraintKey is a key in its known form.
func constraintKey(key string) (string, bool) {
	lower := strings.ToLower(key)
	if slices.Contains(constraintKeys, lower) {
		return lower, true
	}
	for _, prefix := range constraintPrefixes {
		if strings.HasPrefix(lower, prefix) && len(key) > len(prefix) {
			return prefix + key[len(prefix):], true
		}
	}
	return "", false
}
