package slots

// Whole is all of a service's connections: shares of sides are in hundredths of a percent.
const Whole = 10000

// Sides are the endpoints of a balancer. While there is a trial, its endpoints together get Share of Whole and the rest what
// is left: with 0 the trial gets none and with Whole the rest, whatever becomes of the other. A side that has a share and no
// endpoint leaves it to the other. Without a trial all endpoints are in Rest, and Share is 0.
type Sides struct {
	Rest, Trial []Share
	Share       uint32
}

// One is the only side.
func One(shares []Share) Sides { return Sides{Rest: shares} }

// Empty tells whether nobody gets a slot: neither side has both a share and an endpoint with a weight.
func (s Sides) Empty() bool {
	s = s.used()
	return len(s.Rest)+len(s.Trial) == 0
}

// used is the sides by what gets slots: endpoints with a weight, by ID, and none on a side without a share.
func (s Sides) used() Sides {
	out := Sides{Share: min(s.Share, Whole)}
	if s.Share < Whole {
		out.Rest = sortedShares(s.Rest)
	}
	if s.Share > 0 {
		out.Trial = sortedShares(s.Trial)
	}
	return out
}

// both tells whether two sides get slots, of sides that are used.
func (s Sides) both() bool { return len(s.Rest) > 0 && len(s.Trial) > 0 }

// only is the side that gets all slots, of sides that are used and not both.
func (s Sides) only() []Share {
	if len(s.Trial) > 0 {
		return s.Trial
	}
	return s.Rest
}

// slotsOfTrial is how many of a class's slots the trial gets, of sides that are used: its share, rounded, and at least one for
// each of two sides.
func (s Sides) slotsOfTrial(class int) int {
	switch {
	case len(s.Trial) == 0:
		return 0
	case len(s.Rest) == 0:
		return class
	}
	return min(max((class*int(s.Share)+Whole/2)/Whole, 1), class-1)
}
