package sim

import (
	"cmp"
	"slices"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// play does to the cluster what the schedule says, from begin on, and undoes all of it. It is called by the bubble's
// first goroutine: whenever it acts, everybody else waits for something.
func (w *world) play(s *schedule, begin time.Time) {
	type act struct {
		at time.Duration
		do func()
	}
	var acts []act
	for _, f := range s.faults {
		undo := func() {}
		acts = append(acts, act{f.at, func() { undo = w.inflict(f) }})
		if f.until != forGood {
			acts = append(acts, act{f.until, func() { undo() }})
		}
	}
	for at := time.Duration(0); at < calm; at += 2 * time.Second {
		acts = append(acts, act{at, w.compare}, act{at, w.comeBack})
	}
	slices.SortStableFunc(acts, func(a, b act) int { return cmp.Compare(a.at, b.at) })
	for _, a := range acts {
		time.Sleep(time.Until(begin.Add(a.at)))
		synctest.Wait()
		a.do()
	}
}

// inflict does a fault and returns what undoes it.
func (w *world) inflict(f fault) (undo func()) {
	nothing := func() {}
	switch f.kind {
	case partition, deaf:
		ways := w.between(f)
		w.net.cut(1, ways...)
		return func() { w.net.cut(-1, ways...) }
	case slowNet:
		w.net.setSlow(f.amount)
		return func() { w.net.setSlow(0) }
	case hold:
		return w.hold()
	case even:
		w.operators.Go(w.even)
		return nothing
	case blackout:
		return w.switchOff(powerOff, w.managers()...)
	}
	name := f.machine
	if name == "leader" {
		if name, _ = w.checks.leader(); name == "" {
			name = "m1"
		}
	}
	m := w.machine(name)
	switch f.kind {
	case kill, stop, powerOff:
		return w.switchOff(f.kind, m)
	case pause:
		ways := m.ways()
		w.net.cut(1, ways...)
		return func() { w.net.cut(-1, ways...) }
	case reset:
		if l := m.life(); l != nil {
			l.card.drop()
		}
	case slowDisk:
		m.disk.slow.Store(int64(f.amount))
		return func() { m.disk.slow.Store(0) }
	case hungDisk:
		m.disk.hung.Add(1)
		return func() { m.disk.hung.Add(-1) }
	case fullDisk:
		m.disk.full.Add(1)
		return func() { m.disk.full.Add(-1) }
	case slowPulls:
		m.weather.pulls.Store(int64(f.amount))
		return func() { m.weather.pulls.Store(0) }
	case failing:
		m.weather.failing.Add(1)
		return func() { m.weather.failing.Add(-1) }
	case drained:
		return w.available(m, swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN)
	case emptied:
		w.available(m, swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN)
	case paused:
		return w.available(m, swarmpb.NodeAvailability_NODE_AVAILABILITY_PAUSE)
	case relabel:
		w.operators.Go(func() { w.setZone(m, "") })
	case leave:
		return w.leave(m)
	case crash:
		for _, id := range m.fake.Running() {
			if err := m.fake.Exit(id, 1); err != nil {
				w.checks.violate("crash of container %s: %v", id, err)
			}
		}
	}
	return nothing
}

// between are the ways that a partition cuts.
func (w *world) between(f fault) (ways []way) {
	for _, a := range f.sides[0] {
		for _, b := range f.sides[1] {
			if ways = append(ways, way{a, b}); f.kind == partition {
				ways = append(ways, way{b, a})
			}
		}
	}
	return ways
}

// switchOff ends the swarmd of machines in some way, at once; undone, each starts unless another fault keeps it from that.
func (w *world) switchOff(how faultKind, machines ...*machine) (undo func()) {
	var ways []way
	for _, m := range machines {
		m.offs++
		if how == powerOff {
			ways = append(ways, m.ways()...)
		}
	}
	w.net.cut(1, ways...)
	if how == stop {
		for _, m := range machines {
			m.stop()
		}
	} else {
		killAll(machines)
	}
	if how == powerOff {
		for _, m := range machines {
			m.fake.Reboot()
			m.net.reset()
		}
	}
	return func() {
		w.net.cut(-1, ways...)
		for _, m := range machines {
			if m.offs--; m.offs > 0 {
				continue
			}
			if err := m.start(nil); err != nil {
				w.checks.violate("start swarmd on %s: %v", m.name, err)
			}
		}
	}
}
