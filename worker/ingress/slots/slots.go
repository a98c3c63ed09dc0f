// Package slots decides which slot of a balancer leads to which endpoint. A connection takes a slot by chance or by its
// client's address, so an endpoint's share of the slots is its share of the connections.
//
// It is pure: no clock, no randomness, no I/O. Shares are those of the largest-remainder method: each endpoint has its
// exact share of the class's slots, rounded up or down.
package slots

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// Classes are the numbers of slots that a balancer may have, all powers of two.
var Classes = [...]int{16, 64, 256, 1024, 4096}

// PerEndpoint is the least number of slots an endpoint that ClassFor plans with, so that shares are within a tenth of even.
const PerEndpoint = 16

// fineClass is the least class for unequal weights: a share is then right to within 0.4 points.
const fineClass = 256

// Share is an endpoint and its share in proportion to the others'. One of weight 0 gets no slot.
type Share struct {
	ID     string
	Weight uint32
}

// ClassFor is the number of slots for the shares. Beyond 256 endpoints they have fewer than PerEndpoint each.
func ClassFor(shares []Share) int {
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
	return Classes[len(Classes)-1]
}

// Assign gives every slot of the class an endpoint's ID, or none ("") when no share has a weight. IDs must be unique. It
// moves as few of the old slots as the new shares allow; old ones of another class count as none.
func Assign(class int, old []string, shares []Share) []string {
	if len(old) != class {
		old = make([]string, class)
	}
	held := map[string]int{}
	for _, id := range old {
		held[id]++
	}
	sorted := sortedShares(shares)
	quota := quotas(class, sorted, held)
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

// AssignStable is Assign for client affinity: the outcome depends on the shares alone, so all nodes that know the same
// endpoints send a client to the same one. It moves more slots on a change than Assign does: the endpoints take turns in
// choosing the next free slot from an order of their own (Maglev hashing).
func AssignStable(class int, shares []Share) []string {
	sorted := sortedShares(shares)
	quota := quotas(class, sorted, nil)
	type chooser struct {
		id         string
		next, step uint32
		left       int
	}
	choosers := make([]chooser, len(sorted))
	for i, s := range sorted {
		// An odd step visits every slot of a power of two.
		choosers[i] = chooser{s.ID, hash32("offset", s.ID), hash32("step", s.ID) | 1, quota[s.ID]}
	}
	out := make([]string, class)
	for left := class; left > 0 && len(choosers) > 0; {
		for i := range choosers {
			c := &choosers[i]
			for c.left > 0 {
				slot := c.next % uint32(class)
				c.next += c.step
				if out[slot] == "" {
					out[slot] = c.id
					c.left--
					left--
					break
				}
			}
		}
		choosers = slices.DeleteFunc(choosers, func(c chooser) bool { return c.left == 0 })
	}
	return out
}

// sortedShares are those with a weight, by ID.
func sortedShares(shares []Share) []Share {
	out := slices.DeleteFunc(slices.Clone(shares), func(s Share) bool { return s.Weight == 0 })
	slices.SortFunc(out, func(a, b Share) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// quotas divides the slots by the largest remainder; of equal remainders, those who hold more than their whole part
// already come first, then by ID.
func quotas(class int, sorted []Share, held map[string]int) map[string]int {
	var total uint64
	for _, s := range sorted {
		total += uint64(s.Weight)
	}
	type rest struct {
		id        string
		remainder uint64
		holds     bool
	}
	quota := make(map[string]int, len(sorted))
	rests := make([]rest, 0, len(sorted))
	left := class
	for _, s := range sorted {
		whole := int(uint64(class) * uint64(s.Weight) / total)
		quota[s.ID] = whole
		left -= whole
		rests = append(rests, rest{s.ID, uint64(class) * uint64(s.Weight) % total, held[s.ID] > whole})
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
	return quota
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
