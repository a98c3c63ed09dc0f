package reconcile

import (
	"maps"
	"time"

	"github.com/swarmd/swarmd/manager/store"
)

// maxPaces is how many ids may be remembered before those are dropped whose time is over.
const maxPaces = 1024

// paces is when ids may be looked at again, by a Paced reconciler.
type paces map[ID]time.Time

// begin notes that a look at id begins.
func (p paces) begin(r Reconciler, view *store.View, id ID, now time.Time) {
	paced, ok := r.(Paced)
	if !ok {
		return
	}
	pace := paced.Pace(view, id)
	if pace <= 0 {
		delete(p, id)
		return
	}
	if len(p) >= maxPaces {
		maps.DeleteFunc(p, func(_ ID, next time.Time) bool { return !now.Before(next) })
	}
	p[id] = now.Add(pace)
}
