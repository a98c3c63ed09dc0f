package containerd

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/swarmd/swarmd/worker/runtime"
)

const (
	// collectAfter gathers removals, so that many of them cost one collection.
	collectAfter = time.Second
	// collectWithin is when what a collection needs goes by itself, should we die in the middle.
	collectWithin = time.Minute
)

// sweep removes what a crash in the middle of Create, Start or Remove, or the loss of our directory, has left. It looks at the start
// and, as containerd may do only then what a process that died has asked of it, again every SweepEvery.
func (r *Runtime) sweep(ctx context.Context) {
	for wait := retryFirst; ; {
		ids, err := r.leftovers(ctx)
		if err != nil { // most likely containerd is away
			if ctx.Err() == nil {
				r.log.Debug("look for what a crash has left", "error", err)
			}
			if !sleep(ctx, wait) {
				return
			}
			wait = min(2*wait, retryLast)
			continue
		}
		for id := range ids {
			if err := r.sweepOne(ctx, id); err != nil && ctx.Err() == nil {
				r.log.Warn("remove what a crash has left", "task", id, "error", err)
			}
		}
		r.sweepPins(ctx)
		if err := r.adopt(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("find running containers", "error", err)
		}
		if !sleep(ctx, r.SweepEvery) {
			return
		}
		wait = retryFirst
	}
}

// leftovers are the IDs of all that we and containerd have of containers, in whole or in part.
func (r *Runtime) leftovers(ctx context.Context) (map[string]bool, error) {
	known, err := r.known()
	if err != nil {
		return nil, err
	}
	records, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, translate("list containers", err)
	}
	running, err := r.runningTasks(ctx)
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for id := range running {
		ids[id] = true
	}
	for _, record := range records {
		ids[record.ID] = true
	}
	for _, id := range known {
		ids[id] = true
	}
	return ids, r.eachSnapshot(ctx, func(id string) { ids[id] = true })
}

// eachSnapshot gives the IDs whose containers have, or had, a file system. An image's and those that others make are told
// apart by the label.
func (r *Runtime) eachSnapshot(ctx context.Context, do func(id string)) error {
	name, err := r.snapshotterName(ctx)
	if err != nil {
		return err
	}
	err = r.client.SnapshotService(name).Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive && info.Labels[gcRoot] != "" && checkID(info.Name) == nil {
			do(info.Name)
		}
		return nil
	})
	return translate("list file systems of containers", err)
}

// sweepOne removes all of a container without a whole state. Its lock is held while it is made, so that one in the making has one.
func (r *Runtime) sweepOne(ctx context.Context, id string) error {
	defer r.ids.lock(id)()
	if _, err := r.readState(id); !errors.Is(err, runtime.ErrNotFound) {
		return err
	}
	return r.remove(ctx, id)
}

// collectSoon has a collection follow a removal, which only has containerd forget a file system.
func (r *Runtime) collectSoon() {
	select {
	case r.uncollected <- struct{}{}:
	default: // one is to come anyway
	}
}

// collect has containerd collect what it was told to forget. By itself it does so a moment after a removal, but not when it died in
// between, nor when the removal came while it was still at the files of a collection before: then they would stay until another
// removal, however far that is.
func (r *Runtime) collect(ctx context.Context) {
	for wait := collectAfter; ; {
		select {
		case <-r.uncollected:
		case <-ctx.Done():
			return
		}
		if !sleep(ctx, wait) {
			return
		}
		select {
		case <-r.uncollected: // what was removed meanwhile is collected as well
		default:
		}
		if err := r.collectNow(ctx); err != nil {
			if ctx.Err() == nil {
				r.log.Debug("have containerd collect file systems", "error", err)
			}
			r.collectSoon()
			wait = min(2*wait, collectWithin)
			continue
		}
		wait = collectAfter
	}
}

// collectNow returns when a collection has ended that began after the call. A file system that nothing refers to makes it
// one of file systems; the end of a lease is what can be waited for.
func (r *Runtime) collectNow(ctx context.Context) error {
	name, err := r.snapshotterName(ctx)
	if err != nil {
		return err
	}
	key := "collect-" + rand.Text()
	if _, err := r.client.SnapshotService(name).Prepare(ctx, key, ""); err != nil {
		return translate("prepare a file system", err)
	}
	manager := r.client.LeasesService()
	lease, err := manager.Create(ctx, leases.WithID(key), leases.WithExpiration(collectWithin))
	if err != nil {
		return translate("make a lease", err)
	}
	return translate("collect", manager.Delete(ctx, lease, leases.SynchronousDelete))
}
