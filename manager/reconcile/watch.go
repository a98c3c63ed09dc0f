package reconcile

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// news is what the watch hands to the loop: a batch of changes, or that everything is to be listed.
type news struct {
	batch store.Batch
	// list is the view to list from; nil for a batch.
	list *store.View
}

// watch feeds the loop: first the list, then changes; the list again whenever changes were lost.
func (d *Driver) watch(ctx context.Context) error {
	for {
		view := d.cfg.Store.View()
		watch, err := d.cfg.Store.Watch(view.Index(), d.limits.Watch)
		if errors.Is(err, store.ErrCompacted) {
			continue // the feed has moved on since the view was taken
		}
		if err != nil {
			return fmt.Errorf("watch store: %w", err)
		}
		err = d.follow(ctx, watch, view)
		watch.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
		d.log.Info("watch fell behind, listing everything again", "index", view.Index())
	}
}

func (d *Driver) follow(ctx context.Context, watch *store.Watch, view *store.View) error {
	next := news{list: view}
	for {
		select {
		case d.feed <- next:
		case <-ctx.Done():
			return ctx.Err()
		}
		batch, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		next = news{batch: batch}
	}
}

// take turns news into ready ids.
func (d *Driver) take(n news) {
	if n.list != nil {
		for _, id := range d.all(n.list) {
			d.changed(id)
		}
		return
	}
	for _, change := range n.batch.Changes {
		if object := specOf(change); object != "" {
			d.lift(object)
		}
		for _, id := range d.affects(n.batch.View, change) {
			d.changed(id)
		}
	}
}

// changed makes id ready unless it waits after an error or in quarantine.
func (d *Driver) changed(id ID) {
	if it := d.items[id]; it != nil && (it.quarantined || !it.backoff.IsZero()) {
		return
	}
	d.enqueue(id)
}

// lift ends the waits of an object that a user has changed: their cause may be gone.
func (d *Driver) lift(object string) {
	for id := range d.troubled[object] {
		it := d.item(id)
		it.quarantined, it.backoff, it.errors, it.panics = false, time.Time{}, 0, 0
		d.enqueue(id)
	}
	delete(d.troubled, object)
}

// specOf names the object whose own row, the one that users write, has changed; empty for other rows.
func specOf(change store.Change) string {
	switch change.Table {
	case swarmpb.Table_TABLE_CLUSTER, swarmpb.Table_TABLE_NODE, swarmpb.Table_TABLE_SERVICE:
		return change.Key.ID
	default:
		return ""
	}
}

// affects is Affects; a panic in it costs the one change, with an alarm: its ids are missed until the next list.
func (d *Driver) affects(view *store.View, change store.Change) (ids []ID) {
	defer func() {
		if r := recover(); r != nil {
			d.log.Error("panic while judging a change", "row", change.RowKey().Describe(), "panic", r, "stack", string(debug.Stack()))
			ids = nil
			d.suspect(ID{Object: change.Key.ID}, r)
		}
	}()
	return d.cfg.Reconciler.Affects(view, change)
}

// all is All; after a panic in it the driver goes on with the changes alone, with an alarm.
func (d *Driver) all(view *store.View) (ids []ID) {
	defer func() {
		if r := recover(); r != nil {
			d.log.Error("panic while listing", "panic", r, "stack", string(debug.Stack()))
			ids = nil
			d.suspect(ID{}, r)
		}
	}()
	return d.cfg.Reconciler.All(view)
}

// suspect raises the alarm for a panic outside Reconcile; it ends when the id is next reconciled well.
func (d *Driver) suspect(id ID, cause any) {
	it := d.item(id)
	it.alarmed = true
	it.notice = d.alarm(id, fmt.Errorf("panic while changes were judged: %v", cause))
	d.enqueue(id)
}
