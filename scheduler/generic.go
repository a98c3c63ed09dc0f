package scheduler

import (
	"slices"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Generic is what a node has left of a generic resource: a count or, where its instances have names, those.
type Generic struct {
	Kind  string
	Count int64
	// Names in order; nil = the instances have none.
	Names []string
	named bool
}

// newGeneric reads what a node says it has. A kind that comes twice counts once, a count below 0 is none.
func newGeneric(has []*swarmpb.GenericResource) []Generic {
	var out []Generic
	for _, g := range has {
		if slices.ContainsFunc(out, func(o Generic) bool { return o.Kind == g.GetKind() }) {
			continue
		}
		if len(g.GetInstances()) > 0 {
			names := slices.Clone(g.GetInstances())
			slices.Sort(names)
			out = append(out, Generic{Kind: g.GetKind(), Names: slices.Compact(names), named: true})
		} else {
			out = append(out, Generic{Kind: g.GetKind(), Count: max(g.GetCount(), 0)})
		}
	}
	slices.SortFunc(out, func(a, b Generic) int { return strings.Compare(a.Kind, b.Kind) })
	return out
}

func (g *Generic) left() int64 {
	if g.named {
		return int64(len(g.Names))
	}
	return g.Count
}

func (n *Node) generic(kind string) *Generic { return find(n.Generic, kind) }

func find(of []Generic, kind string) *Generic {
	for i := range of {
		if of[i].Kind == kind {
			return &of[i]
		}
	}
	return nil
}

// hasGeneric reports whether what is left, together with what is held, covers the wants.
func (n *Node) hasGeneric(wants []Want, held []*swarmpb.GenericResource) bool {
	for _, w := range wants {
		have := amount(held, w.Kind)
		if g := n.generic(w.Kind); g != nil {
			have += max(g.left(), 0)
		}
		if have < w.Count {
			return false
		}
	}
	return true
}

func amount(of []*swarmpb.GenericResource, kind string) int64 {
	for _, g := range of {
		if g.GetKind() == kind {
			return max(g.GetCount(), int64(len(g.GetInstances())))
		}
	}
	return 0
}

// ClaimGeneric takes what a task holds out of what is left. What the node does not have (any more) is passed over for
// instances, and makes a count negative.
func (n *Node) ClaimGeneric(held []*swarmpb.GenericResource) {
	for _, h := range held {
		g := n.generic(h.GetKind())
		switch {
		case g == nil:
		case g.named:
			g.Names = without(g.Names, h.GetInstances())
		default:
			g.Count -= amount(held, h.GetKind())
		}
	}
}

// takeGeneric chooses what a task gets, first out of what it holds already, and takes the rest out of what is left.
func (n *Node) takeGeneric(wants []Want, held []*swarmpb.GenericResource) []*swarmpb.GenericResource {
	var out []*swarmpb.GenericResource
	for _, w := range wants {
		got := &swarmpb.GenericResource{Kind: w.Kind, Count: w.Count}
		out = append(out, got)
		g := n.generic(w.Kind)
		if g == nil {
			continue
		}
		if !g.named {
			g.Count -= max(0, w.Count-amount(held, w.Kind))
			continue
		}
		for _, h := range held {
			if h.GetKind() == w.Kind {
				got.Instances = append(got.Instances, h.GetInstances()[:min(int(w.Count), len(h.GetInstances()))]...)
			}
		}
		more := min(max(0, int(w.Count)-len(got.Instances)), len(g.Names))
		got.Instances = append(got.Instances, g.Names[:more]...)
		g.Names = slices.Clone(g.Names[more:])
	}
	return out
}

// Beyond is what is in claim and not in held.
func Beyond(claim, held []*swarmpb.GenericResource) []*swarmpb.GenericResource {
	var out []*swarmpb.GenericResource
	for _, c := range claim {
		more := &swarmpb.GenericResource{Kind: c.GetKind(), Count: max(0, c.GetCount()-amount(held, c.GetKind())), Instances: c.GetInstances()}
		for _, h := range held {
			if h.GetKind() == c.GetKind() {
				more.Instances = without(more.Instances, h.GetInstances())
			}
		}
		out = append(out, more)
	}
	return out
}

func without(names, gone []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(gone, name) })
}
