// Package slots decides which slot of a balancer leads to which endpoint. A connection takes a slot by chance or by its
// client's address, so an endpoint's share of the slots is its share of the connections.
//
// A balancer has one side, or two while a rollout has two sets of endpoints: then the slots are divided between the sides
// first, and each side's among its endpoints.
//
// It is pure: no clock, no randomness, no I/O. Shares are those of the largest-remainder method: each endpoint has its
// exact share of its side's slots, rounded up or down.
package slots

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// Classes are the numbers of slots that a balancer may have, all powers of two.
var Classes = [...]int{16, 64, 256, 1024, 4096}

const (
	// PerEndpoint is the least number of slots an endpoint that a class is planned with, so that shares are within a tenth of
	// even.
	PerEndpoint = 16
	// perDivided is that where two sides differ in what an endpoint gets: the one with the least would cost the others slots.
	perDivided = 8
	// fineClass is the least class for unequal weights, and for two sides: a share is then right to within 0.4 points, and the
	// sides' to within 0.2.
	fineClass = 256
	// finest is the class with the most slots.
	finest = 4096
)

// Share is an endpoint and its share in proportion to the others' of its side. One of weight 0 gets no slot.
type Share struct {
	ID     string
	Weight uint32
}

// ClassFor is the number of slots for the sides. Beyond 256 endpoints, and for a very small share of many, they have fewer than
// PerEndpoint each.
func ClassFor(s Sides) int { return s.used().class() }

// class is ClassFor, of sides that are used.
func (s Sides) class() int {
	if !s.both() {
		return classOf(s.only())
	}
	least := max(fineClass, classOf(s.Rest), classOf(s.Trial))
	for _, c := range Classes {
		trial := s.slotsOfTrial(c)
		if c >= least && trial >= perDivided*len(s.Trial) && c-trial >= perDivided*len(s.Rest) {
			return c
		}
	}
	return finest
}

// classOf is the number of slots for one side.
func classOf(shares []Share) int {
	n, least := 0, 0
	var weight uint32
	for _, s := range shares {
		if s.Weight == 0 {
			continue
		}
		if n++; n > 1 && s.Weight != weight {
			least = fineClass
		}
		weight = s.Weight
	}
	for _, c := range Classes {
		if c >= least && c >= n*PerEndpoint {
			return c
		}
	}
	return finest
}

// Next is Assign with a class that is enough: the one that the sides need, or the old one where that is finer and two sides
// are moving in it, or nothing would move. So a share that grows moves what it must alone, and what serves as it should stays.
func Next(old []string, s Sides) []string {
	s = s.used()
	class := s.class()
	if len(old) > class && slices.Contains(Classes[:], len(old)) {
		if now := s.assign(len(old), old); s.both() || slices.Equal(now, old) {
			return now
		}
	}
	return s.assign(class, old)
}

// Assign gives every slot of the class an endpoint's ID, or none ("") when no share has a weight. IDs must be unique, over
// both sides. It moves as few of the old slots as the new shares allow; old ones of another class count as none.
func Assign(class int, old []string, s Sides) []string { return s.used().assign(class, old) }

// assign is Assign, of sides that are used.
func (s Sides) assign(class int, old []string) []string {
	if len(old) != class {
		old = make([]string, class)
	}
	held := map[string]int{}
	for _, id := range old {
		held[id]++
	}
	trial := s.slotsOfTrial(class)
	quota := make(map[string]int, len(s.Rest)+len(s.Trial))
	quotas(quota, class-trial, s.Rest, held)
	quotas(quota, trial, s.Trial, held)
	sorted := s.Rest
	if len(s.Trial) > 0 {
		sorted = slices.Concat(s.Rest, s.Trial)
	}
	out := make([]string, class)
	for i, id := range old {
		if id != "" && quota[id] > 0 {
			quota[id]--
			out[i] = id
		}
	}
	next := 0
	for i, id := range out {
		if id != "" {
			continue
		}
		for next < len(sorted) && quota[sorted[next].ID] == 0 {
			next++
		}
		if next == len(sorted) {
			break // no share has a weight
		}
		quota[sorted[next].ID]--
		out[i] = sorted[next].ID
	}
	return out
}

// sortedShares are those with a weight, by ID.
func sortedShares(shares []Share) []Share {
	out := slices.DeleteFunc(slices.Clone(shares), func(s Share) bool { return s.Weight == 0 })
	slices.SortFunc(out, func(a, b Share) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// quotas divides so many slots among the shares by the largest remainder; of equal remainders, those who hold more than their
// whole part already come first, then by ID.
func quotas(quota map[string]int, slotsOf int, sorted []Share, held map[string]int) {
	var total uint64
	for _, s := range sorted {
		total += uint64(s.Weight)
	}
	type rest struct {
		id        string
		remainder uint64
		holds     bool
	}
	if len(sorted) == 0 {
		return
	}
	rests := make([]rest, 0, len(sorted))
	left := slotsOf
	for _, s := range sorted {
		whole := int(uint64(slotsOf) * uint64(s.Weight) / total)
		quota[s.ID] = whole
		left -= whole
		rests = append(rests, rest{s.ID, uint64(slotsOf) * uint64(s.Weight) % total, held[s.ID] > whole})
	}
	slices.SortFunc(rests, func(a, b rest) int {
		if c := cmp.Compare(b.remainder, a.remainder); c != 0 {
			return c
		}
		if a.holds != b.holds {
			if a.holds {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.id, b.id)
	})
	for i := 0; i < left && i < len(rests); i++ {
		quota[rests[i].id]++
	}
}

func hash32(kind, s string) uint32 {
	h := hash64(kind, s)
	return uint32(h>>32) ^ uint32(h)
}

// hash64 is FNV-1a with a final mix, as FNV's high bits depend little on the last characters.
func hash64(kind, s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(kind))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(s))
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
