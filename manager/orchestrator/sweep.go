package orchestrator

import (
	"hash/fnv"
	"time"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// The units of work that see to the balance of the whole cluster, or of a part of its services: the first is what changes lead
// to, and the second what skew of nothing but the nodes' load leads to that the first has seen.
const (
	balanceObject = "cluster balance"
	loadObject    = "cluster load"
)

var balanceID = reconcile.ID{Object: balanceObject}

func forBalance(id reconcile.ID) bool { return id.Object == balanceObject || id.Object == loadObject }

const (
	// partClaims is as many claims as the look at one part of the services reads, about: it takes a few hundredths of a second.
	partClaims = 32 << 10
	// maxParts bounds the number of parts.
	maxParts = 256
	// stepClaims is how many claims or nodes a look reads for each second between two looks, so that looks take about a hundredth
	// of the time whatever happens.
	stepClaims = 10_000
	// smallSweep is as many claims and nodes as can be read at any time.
	smallSweep = 1000
)

// sweep is how a look at all services is divided: into parts, each of which has its turn once in a cycle, a step after the one
// before. A cluster of some ten thousand tasks is one part.
type sweep struct {
	parts uint64 // a power of two
	step  time.Duration
	small bool
}

func sweepOf(view *store.View) sweep {
	claims := uint64(min(view.TaskCount(), view.NodeCount()*view.ServiceCount()))
	w := sweep{parts: 1, small: claims+uint64(view.NodeCount()) <= smallSweep}
	for w.parts < maxParts && claims > w.parts*partClaims {
		w.parts *= 2
	}
	w.step = time.Second * time.Duration(1+(claims/w.parts+uint64(view.NodeCount()))/stepClaims)
	return w
}

func (w sweep) cycle() time.Duration { return time.Duration(w.parts) * w.step }

// ids are those of all parts, from the one of the whole. The number of a part says of how many: they are looked at anew when
// that has changed.
func (w sweep) ids(whole string) (looks []reconcile.Look) {
	for part := range w.parts {
		looks = append(looks, reconcile.Look{ID: reconcile.ID{Object: whole, Slot: w.parts + part}})
	}
	return looks
}

// part is the one of an id; false when it is of a division that does not hold any more.
func (w sweep) part(id reconcile.ID) (part uint64, ok bool) {
	if id.Slot == 0 {
		return 0, w.parts == 1
	}
	return id.Slot % w.parts, id.Slot/w.parts == 1
}

// has tells whether a service is in a part.
func (w sweep) has(part uint64, serviceID string) bool {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(serviceID))
	return w.parts == 1 || hash.Sum64()%w.parts == part
}

// turn is when the next turn of a part begins, unless it is now: then wait is false.
func (w sweep) turn(part uint64, now time.Time) (at time.Time, wait bool) {
	cycle, late := w.cycle(), w.step
	if w.parts == 1 {
		late /= 4
	}
	begun := now.Truncate(cycle).Add(time.Duration(part) * w.step)
	switch since := now.Sub(begun); {
	case since < 0:
		return begun, true
	case since >= late:
		return begun.Add(cycle), true
	default:
		return time.Time{}, false
	}
}

// Pace keeps looks at the balance of the cluster apart, so that a part is looked at once in its turn.
func (Moves) Pace(view *store.View, id reconcile.ID) time.Duration {
	if !forBalance(id) {
		return 0
	}
	w := sweepOf(view)
	if _, ok := w.part(id); !ok || w.small {
		return 0
	}
	return w.cycle() / 2
}
