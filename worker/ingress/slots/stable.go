package slots

import "slices"

// AssignStable is Assign for client affinity, in the class that it needs: the outcome depends on the sides alone, so all
// nodes that know the same endpoints send a client to the same one. It moves more slots than Assign does when an endpoint
// comes or goes. The kernel takes a client's slot from the high bits of its hash, so a slot is the same clients as its part
// of a finer class.
//
// While there are two sides a slot leads to where it would if there were the rest alone, or to where it would if there were the
// trial alone. Slots go over from the one to the other in an order that does not depend on the share. So a share that
// changes moves just as many clients as it has to, and the beginning and the end of a trial move none.
func AssignStable(s Sides) []string {
	s = s.used()
	if !s.both() {
		return maglev(classOf(s.only()), s.only())
	}
	rest, trial := expand(maglev(classOf(s.Rest), s.Rest)), expand(maglev(classOf(s.Trial), s.Trial))
	for _, slot := range crossing(rest, trial, s.slotsOfTrial(finest)) {
		rest[slot] = trial[slot]
	}
	return rest
}

// maglev has the endpoints take turns in choosing the next free slot from an order of their own (Maglev hashing). Shares are
// sorted, with a weight.
func maglev(class int, sorted []Share) []string {
	quota := map[string]int{}
	quotas(quota, class, sorted, nil)
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

// expand is the same in the finest class.
func expand(slots []string) []string {
	out := make([]string, finest)
	for i := range out {
		out[i] = slots[i*len(slots)/finest]
	}
	return out
}

// crossing are the first n slots that go over from the rest to the trial. Next is always a slot of the endpoint of the trial
// that is furthest behind its part of what has gone over; of these, one of the endpoint of the rest that is. So both sides stay
// even.
func crossing(rest, trial []string, n int) []int {
	type losing struct {
		from  int
		slots []int // that have not gone over
	}
	from, size := number(rest)
	to, wants := number(trial)
	lost, got := make([]int, len(size)), make([]int, len(wants))
	of := make([][]losing, len(wants)) // by endpoint of the trial: whose slots lead to it
	for slot := range rest {
		l := of[to[slot]]
		i := slices.IndexFunc(l, func(p losing) bool { return p.from == from[slot] })
		if i < 0 {
			i, l = len(l), append(l, losing{from: from[slot]})
		}
		l[i].slots = append(l[i].slots, slot)
		of[to[slot]] = l
	}
	out := make([]int, 0, n)
	for k := 1; k <= n; k++ {
		getting := furthest(len(wants), func(i int) (int, bool) { return k*wants[i] - got[i]*len(trial), got[i] < wants[i] })
		l := of[getting]
		giving := &l[furthest(len(l), func(i int) (int, bool) {
			return k*size[l[i].from] - lost[l[i].from]*len(rest), len(l[i].slots) > 0
		})]
		out = append(out, giving.slots[0])
		giving.slots = giving.slots[1:]
		lost[giving.from]++
		got[getting]++
	}
	return out
}

// furthest is the first of n that is behind most, of those that are still to be taken from. There is one.
func furthest(n int, behind func(i int) (by int, open bool)) int {
	best, most := -1, 0
	for i := range n {
		if by, open := behind(i); open && (best < 0 || by > most) {
			best, most = i, by
		}
	}
	return best
}

// number gives the IDs in slots numbers in the order in which they come, and counts the slots of each.
func number(slots []string) (of, size []int) {
	known := map[string]int{}
	for _, id := range slots {
		n, ok := known[id]
		if !ok {
			n = len(size)
			known[id], size = n, append(size, 0)
		}
		of = append(of, n)
		size[n]++
	}
	return of, size
}
