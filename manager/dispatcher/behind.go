package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/swarmd/swarmd/manager/store"
)

// AlarmNodeBehind: the node that is the object does not take over in time that tasks are to stop, so that each of them waits
// for it. It ends when the node has caught up, or is not READY any more.
const AlarmNodeBehind = "node-behind"

// maxBehind bounds the alarms of nodes that are behind at a time.
const maxBehind = 10

func anyBehind(view *store.View) bool {
	for a := range view.Alarms() {
		if a.GetKind() == AlarmNodeBehind {
			return true
		}
	}
	return false
}

// lacking are the nodes that are READY and have not applied an index.
func (d *drainer) lacking(now time.Time, index uint64) (out []string) {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	for _, id := range d.ready {
		if d.appliedBy(now, id) < index && len(out) < maxBehind {
			out = append(out, id)
		}
	}
	return out
}

// alarm raises and ends the alarms of nodes that are behind.
func (d *drainer) alarm(ctx context.Context, view *store.View, now time.Time) error {
	var out []decision
	for _, id := range d.behind {
		if view.Alarm(AlarmNodeBehind, id) == nil {
			name := view.NodeName(id)
			out = append(out, raiseAlarm(AlarmNodeBehind, id, fmt.Sprintf("node %s had not taken over after %s that a task is to stop: it may send "+
				"connections to tasks that are gone, and every task that stops waits for it; see `swarmctl node inspect %s` and its log", name, drainTimeout, name)))
		}
	}
	d.behind = nil
	if d.alarmed {
		out = append(out, d.caughtUp(view, now)...)
	}
	if len(out) == 0 {
		return nil
	}
	err := d.l.propose(ctx, out)
	if errors.Is(err, store.ErrStaleTerm) || ctx.Err() != nil {
		return err
	}
	if err != nil { // whoever is late next raises it, and the next report ends it
		d.l.log.Warn("writing alarms of nodes that are behind failed", "error", err)
	}
	return nil
}

// caughtUp ends the alarms of nodes that have applied all that there was when it was raised, or are not waited for any more.
func (d *drainer) caughtUp(view *store.View, now time.Time) (out []decision) {
	d.list(view)
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	for a := range view.Alarms() {
		if id := a.GetObject(); a.GetKind() == AlarmNodeBehind && (!slices.Contains(d.ready, id) || d.appliedBy(now, id) >= a.GetVersion()) {
			out = append(out, clearAlarm(AlarmNodeBehind, id))
		}
	}
	return out
}
