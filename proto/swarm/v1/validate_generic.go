package swarmpb

import (
	"fmt"
	"regexp"
)

const (
	// MaxGenericKinds bounds the kinds of generic resources that a task reserves, MaxGenericCount how many of one.
	MaxGenericKinds = 32
	MaxGenericCount = 1_000_000
	// maxGenericKind bounds the name of a kind.
	maxGenericKind = 128
)

// genericKind is a word, or as CDI has it VENDOR/CLASS.
var genericKind = regexp.MustCompile(`^[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?(?:/[a-zA-Z0-9](?:[a-zA-Z0-9_.-]*[a-zA-Z0-9])?)?$`)

// generic checks the generic resources that a task reserves, and that it limits none.
func (p *problems) generic(r *ResourceRequirements) {
	const field = "generic resource"
	if len(r.GetLimits().GetGeneric()) > 0 {
		p.add(field, "it cannot be limited", "reserve it")
	}
	reserved := r.GetReservations().GetGeneric()
	if len(reserved) > MaxGenericKinds {
		p.addf(field, fmt.Sprintf("use at most %d", MaxGenericKinds), "%d kinds are too many", len(reserved))
	}
	seen := make(map[string]bool)
	for _, g := range reserved {
		named := fmt.Sprintf("%s %q", field, g.GetKind())
		switch kind := g.GetKind(); {
		case len(kind) > maxGenericKind || !genericKind.MatchString(kind):
			p.add(named, "it is not a kind", "use one such as gpu or example.com/gpu")
		case seen[kind]:
			p.add(named, "it is reserved twice", "add the counts up")
		case g.GetCount() < 1 || g.GetCount() > MaxGenericCount:
			p.addf(named, fmt.Sprintf("use 1 to %d", MaxGenericCount), "%d cannot be reserved", g.GetCount())
		case len(g.GetInstances()) > 0:
			p.add(named, "the cluster chooses the instances", "reserve a count")
		}
		seen[g.GetKind()] = true
	}
}
