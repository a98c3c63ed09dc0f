package slots

import (
	"cmp"
	"slices"
)

// Limit is how many endpoints of a service a node sends connections to, as a rule: Subset says when there are more.
const Limit = 256

// Candidate is an endpoint, the node that it is on, and its weight.
type Candidate struct {
	ID, Node string
	Weight   uint32
}

// leastOfSide is how many of the limit a side gets at least: a node's connections are not to hang on one or two.
const leastOfSide = 16

// Candidates are all endpoints of a balancer, as Sides are those that a node has chosen of them.
type Candidates struct {
	Rest, Trial []Candidate
	Share       uint32
}

// Subset chooses about limit of the candidates of both sides together, of each in proportion to its share.
func (c Candidates) Subset(seed, self string, nodes []string, limit int) Sides {
	forRest, forTrial := limit, limit
	if c.Share > 0 && c.Share < Whole && len(c.Rest) > 0 && len(c.Trial) > 0 {
		forTrial = min(max(limit*int(c.Share)/Whole, leastOfSide), limit-leastOfSide)
		forRest = limit - min(forTrial, len(c.Trial))
		forTrial = limit - min(forRest, len(c.Rest))
	}
	return Sides{
		Rest: Subset(seed, self, nodes, c.Rest, forRest), Trial: Subset(seed, self, nodes, c.Trial, forTrial), Share: c.Share,
	}
}

// All are the candidates, whatever their number.
func (c Candidates) All() Sides {
	shares := func(all []Candidate) []Share {
		out := make([]Share, len(all))
		for i, c := range all {
			out[i] = Share{c.ID, c.Weight}
		}
		return out
	}
	return Sides{Rest: shares(c.Rest), Trial: shares(c.Trial), Share: c.Share}
}

// Subset chooses about limit of the candidates for the balancer of the node self, one of nodes, all of which choose among
// the same candidates. Over all nodes each candidate gets exactly its share.
//
// Choosing by a hash a pair of node and candidate would spread the number of times that a candidate is chosen as chance
// does: with 100 nodes and 1,000 candidates by a fifth of it. Instead the candidates lie on a ring, sorted by their nodes,
// each as long as its weight; the arcs of the nodes begin at equal distances and are as long as a whole number of those, so
// every point of the ring is in equally many arcs. Where candidates are spread evenly a node's arc begins with its own. A candidate
// at the end of an arc gets the part of its weight that is within. Each is in at least one arc, so there are more
// than limit when the nodes together could not reach all otherwise.
func Subset(seed, self string, nodes []string, all []Candidate, limit int) []Share {
	all = slices.DeleteFunc(slices.Clone(all), func(c Candidate) bool { return c.Weight == 0 })
	if len(all) <= limit {
		out := make([]Share, len(all))
		for i, c := range all {
			out[i] = Share{c.ID, c.Weight}
		}
		return out
	}
	place := ring(seed, nodes, all)
	slices.SortFunc(all, func(a, b Candidate) int {
		return cmp.Or(cmp.Compare(place[a.Node], place[b.Node]), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
	known := slices.Clone(nodes)
	if !slices.Contains(known, self) {
		known = append(known, self)
	}
	begin := 0 // self's place among the nodes
	for _, n := range known {
		if h, own := hash64(seed, n), hash64(seed, self); h < own || (h == own && n < self) {
			begin++
		}
	}
	around := float64(len(known)) // the ring's length: the distance between two arcs' beginnings is 1
	length := float64(max(1, limit*len(known)/len(all)))
	total := 0.0
	for _, c := range all {
		total += float64(c.Weight)
	}
	var out []Share
	passed := 0.0
	for _, c := range all {
		from := passed / total * around
		passed += float64(c.Weight)
		to := passed / total * around
		if in := overlap(from, to, float64(begin), length, around); in > 0 {
			// In units of the arc: the sum over the candidates is about the same in every subset.
			if w := uint32(in / length * (1 << 30)); w > 0 {
				out = append(out, Share{c.ID, w})
			}
		}
	}
	return out
}

// ring is the place of each node that is known or has candidates.
func ring(seed string, nodes []string, all []Candidate) map[string]uint64 {
	place := make(map[string]uint64, len(nodes))
	for _, n := range nodes {
		place[n] = hash64(seed, n)
	}
	for _, c := range all {
		if _, ok := place[c.Node]; !ok {
			place[c.Node] = hash64(seed, c.Node)
		}
	}
	return place
}

// overlap is the length of [from, to) that lies in the arc, on a ring of the length around.
func overlap(from, to, begin, length, around float64) float64 {
	if length >= around {
		return to - from
	}
	straight := func(begin, end float64) float64 { return max(0, min(to, end)-max(from, begin)) }
	return straight(begin, begin+length) + straight(begin-around, begin+length-around)
}
