package swarmpb

import (
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Constraint is one condition on the nodes that a task may run on.
type Constraint struct {
	// Key is in lower case, but for the name of a label, which is as written.
	Key string
	Op  ConstraintOp
	// Values are one, or for in and not in at least one.
	Values []string
}

// ConstraintOp is how a constraint compares a node's value with its own.
type ConstraintOp string

// Operators. The first two are Swarm's.
const (
	ConstraintEqual    ConstraintOp = "=="
	ConstraintNotEqual ConstraintOp = "!="
	ConstraintIn       ConstraintOp = "in"
	ConstraintNotIn    ConstraintOp = "not in"
	// Numbers, of labels.
	ConstraintLess    ConstraintOp = "<"
	ConstraintAtMost  ConstraintOp = "<="
	ConstraintMore    ConstraintOp = ">"
	ConstraintAtLeast ConstraintOp = ">="
	// A regular expression (RE2), anywhere in the value.
	ConstraintMatch    ConstraintOp = "=~"
	ConstraintNotMatch ConstraintOp = "!~"
)

// maxConstraintValue bounds a value, and with it the cost of a regular expression.
const maxConstraintValue = 256

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

// symbols are the operators that stand between key and value, the longer ones first.
var symbols = []ConstraintOp{
	ConstraintEqual, ConstraintNotEqual, ConstraintMatch, ConstraintNotMatch, ConstraintAtMost, ConstraintAtLeast, ConstraintLess, ConstraintMore,
}

// words are those that a list in brackets follows. \s keeps a label such as node.labels.in apart.
var words = regexp.MustCompile(`(?i)^(\S+)\s+(not\s+)?in\s*\((.*)\)$`)

const constraintUse = "use key==value, key!=value, key in (a, b), key not in (a, b), key=~regexp, key!~regexp, or <, <=, >, >= with the number of a label"

// ParseConstraint reads one such as node.role==worker or node.labels.zone in (a, b). Its error is a *FieldError.
func ParseConstraint(s string) (Constraint, error) {
	field := fmt.Sprintf("constraint %q", s)
	key, op, values, ok := splitConstraint(strings.TrimSpace(s))
	if !ok {
		return Constraint{}, &FieldError{field, "it has no operator", constraintUse}
	}
	known, ok := constraintKey(key)
	if !ok {
		return Constraint{}, &FieldError{field, fmt.Sprintf("the key %q is not known", key),
			"use " + strings.Join(constraintKeys, ", ") + ", node.labels.NAME or engine.labels.NAME"}
	}
	c := Constraint{Key: known, Op: op, Values: values}
	for _, value := range values {
		if value == "" || op == ConstraintEqual && strings.HasPrefix(value, "=") {
			return Constraint{}, &FieldError{field, "it has no value", constraintUse}
		}
		if len(value) > maxConstraintValue {
			return Constraint{}, &FieldError{field, fmt.Sprintf("a value is longer than %d characters", maxConstraintValue), "shorten it"}
		}
		if problem, fix := c.check(value); problem != "" {
			return Constraint{}, &FieldError{field, problem, fix}
		}
	}
	return c, nil
}

// splitConstraint finds the first operator.
func splitConstraint(s string) (key string, op ConstraintOp, values []string, ok bool) {
	at := -1
	for _, symbol := range symbols {
		if i := strings.Index(s, string(symbol)); i >= 0 && (at < 0 || i < at || i == at && len(symbol) > len(op)) {
			at, op = i, symbol
		}
	}
	// A bracket that comes before any symbol makes it a list, whose values may hold symbols.
	if m := words.FindStringSubmatch(s); m != nil && (at < 0 || at > len(m[1])) {
		op = ConstraintIn
		if m[2] != "" {
			op = ConstraintNotIn
		}
		for value := range strings.SplitSeq(m[3], ",") {
			values = append(values, strings.TrimSpace(value))
		}
		return m[1], op, values, true
	}
	if at < 0 {
		return "", "", nil, false
	}
	return strings.TrimSpace(s[:at]), op, []string{strings.TrimSpace(s[at+len(op):])}, true
}

// check says what is wrong with a value for the key and the operator, and what to do.
func (c Constraint) check(value string) (problem, fix string) {
	switch c.Op {
	case ConstraintMatch, ConstraintNotMatch:
		if c.Key == ConstraintIP || c.Key == ConstraintRole {
			return fmt.Sprintf("%s is not compared with regular expressions", c.Key), "use ==, !=, in or not in"
		}
		if _, err := c.Regexp(); err != nil {
			return fmt.Sprintf("%q is no regular expression: %v", value, err), "see https://github.com/google/re2/wiki/Syntax"
		}
		return "", ""
	case ConstraintLess, ConstraintAtMost, ConstraintMore, ConstraintAtLeast:
		if !strings.HasPrefix(c.Key, ConstraintNodeLabel) && !strings.HasPrefix(c.Key, ConstraintEngineLabel) {
			return fmt.Sprintf("%s is no number", c.Key), "compare labels with " + string(c.Op)
		}
		if n, err := strconv.ParseFloat(value, 64); err != nil || math.IsNaN(n) || math.IsInf(n, 0) {
			return fmt.Sprintf("%q is no number", value), "use one such as 4 or 2.5"
		}
		return "", ""
	}
	switch c.Key {
	case ConstraintIP:
		if _, err := netip.ParsePrefix(value); err != nil {
			if a, err := netip.ParseAddr(value); err != nil || a.Zone() != "" {
				return fmt.Sprintf("%q is neither an address nor a network", value), "use one such as 192.168.1.10 or 192.168.1.0/24"
			}
		}
	case ConstraintRole:
		if _, err := ParseNodeRole(value); err != nil {
			return fmt.Sprintf("there is no role %q", value), "use worker or manager"
		}
	}
	return "", ""
}

// Regexp is what =~ and !~ look for; without regard to case, as all values are compared.
func (c Constraint) Regexp() (*regexp.Regexp, error) {
	return regexp.Compile("(?i)" + c.Values[0])
}

// String is the constraint as a user writes it.
func (c Constraint) String() string {
	if c.Op == ConstraintIn || c.Op == ConstraintNotIn {
		return fmt.Sprintf("%s %s (%s)", c.Key, c.Op, strings.Join(c.Values, ", "))
	}
	return c.Key + string(c.Op) + strings.Join(c.Values, "")
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
