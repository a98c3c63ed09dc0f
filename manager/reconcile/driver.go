package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// lagPoll is how often an id looks again whose own writes the store does not show yet.
const lagPoll = 10 * time.Millisecond

// Driver runs one Reconciler. All its fields but the channels belong to the goroutine of loop.
type Driver struct {
	cfg    Config
	limits Limits
	log    *slog.Logger

	term     uint64
	items    map[ID]*item
	ready    queue
	alarms   alarmClock
	inFlight int
	paced    paces
	// troubled are the ids that wait after an error or in quarantine, by object.
	troubled map[string]map[ID]struct{}

	feed     chan news
	outcomes chan outcome // as many as may be in flight: a proposal never waits to say what became of it
	group    *errgroup.Group
}

// item is what the driver remembers of an id that is not at rest.
type item struct {
	queued   bool
	inFlight bool
	again    bool      // something changed while a proposal was in flight
	after    uint64    // the view must have reached this index
	wake     time.Time // zero = not before something changes
	// entry is the time of its newest entry in the alarm clock: the same time is not entered twice.
	entry time.Time
	// Until then changes do not wake it: it waits after an error.
	backoff                   time.Time
	errors, conflicts, panics int
	quarantined               bool
	// notice is the alarm's write that is to go out before anything else.
	notice *swarmpb.Write
	// alarmed: there is an alarm in the store that ends with the next success.
	alarmed bool
}

func (it *item) atRest() bool {
	return !it.queued && !it.inFlight && it.wake.IsZero() && it.errors == 0 && it.panics == 0 &&
		!it.quarantined && it.notice == nil && !it.alarmed
}

// outcome is what became of a proposal.
type outcome struct {
	id     ID
	plan   Plan
	notice bool
	index  uint64
	err    error
}

// Run drives until ctx ends, and then returns ctx's error, or until a proposal is refused because the term is
// over. It returns once everything it started has ended. A Driver runs once.
func (d *Driver) Run(ctx context.Context) error {
	d.term = d.cfg.Leader.Term()
	var group *errgroup.Group
	group, ctx = errgroup.WithContext(ctx)
	d.group = group
	group.Go(func() error { return d.watch(ctx) })
	group.Go(func() error { return d.loop(ctx) })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("reconcile %s: %w", d.cfg.Reconciler.Name(), err)
	}
	return nil
}

func (d *Driver) loop(ctx context.Context) error {
	d.adoptAlarms()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := d.cfg.Clock()
		d.wakeDue(now)
		if d.ready.len() > 0 && d.inFlight < d.limits.InFlight {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case news := <-d.feed:
				d.take(news)
			case o := <-d.outcomes:
				if err := d.settle(ctx, o); err != nil {
					return err
				}
			default:
				d.step(ctx, d.ready.pop())
			}
			continue
		}
		var due <-chan time.Time
		if at, ok := d.alarms.next(); ok {
			timer.Reset(at.Sub(now))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case news := <-d.feed:
			d.take(news)
		case o := <-d.outcomes:
			if err := d.settle(ctx, o); err != nil {
				return err
			}
		case <-due:
		}
	}
}

// adoptAlarms takes over the quarantine alarms of earlier leaders: the objects are tried anew.
func (d *Driver) adoptAlarms() {
	for alarm := range d.cfg.Store.View().Alarms() {
		if alarm.GetKind() != QuarantineAlarm {
			continue
		}
		if id, ok := alarmID(d.cfg.Reconciler.Name(), alarm.GetObject()); ok {
			d.item(id).alarmed = true
			d.enqueue(id)
		}
	}
}

// step reconciles one id and sends its proposal off.
func (d *Driver) step(ctx context.Context, id ID) {
	it := d.item(id)
	it.queued = false
	if it.inFlight {
		it.again = true
		return
	}
	d.setWake(id, it, time.Time{})
	view, now := d.cfg.Store.View(), d.cfg.Clock()
	switch {
	case view.Index() < it.after:
		d.setWake(id, it, now.Add(lagPoll))
		return
	case it.notice != nil:
		d.propose(ctx, id, it, Plan{Writes: []*swarmpb.Write{it.notice}}, true, now)
		return
	case it.quarantined:
		return
	case now.Before(d.paced[id]):
		d.setWake(id, it, d.paced[id])
		return
	}
	plan, panicked, err := d.reconcile(view, id, now)
	if err == nil {
		err = plan.check()
	}
	switch {
	case panicked:
		it.panics++
		d.fail(id, it, err)
		if it.panics >= d.limits.Panics {
			d.quarantine(id, it, err)
		}
		return
	case err != nil:
		it.panics = 0
		d.fail(id, it, err)
		return
	}
	it.panics = 0
	if len(plan.Writes) > 0 {
		d.propose(ctx, id, it, plan, false, now)
		return
	}
	d.succeeded(id, it)
	d.wakeBy(id, it, plan.At)
	d.also(plan)
	d.forget(id, it)
}

// reconcile is Reconcile with a panic turned into an error.
func (d *Driver) reconcile(view *store.View, id ID, now time.Time) (plan Plan, panicked bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			plan, panicked, err = Plan{}, true, fmt.Errorf("panic: %v", r)
			d.log.Error("panic while reconciling", "id", id.String(), "panic", r, "stack", string(debug.Stack()))
		}
	}()
	d.paced.begin(d.cfg.Reconciler, view, id, now)
	plan, err = d.cfg.Reconciler.Reconcile(view, id, now)
	return plan, false, err
}

func (d *Driver) propose(ctx context.Context, id ID, it *item, plan Plan, notice bool, now time.Time) {
	it.inFlight, it.again = true, false
	d.inFlight++
	proposal := &swarmpb.Proposal{Term: d.term, Guards: plan.Guards, Writes: plan.Writes, Now: now.UnixNano()}
	d.group.Go(func() error {
		result, err := d.cfg.Leader.Propose(ctx, proposal)
		d.outcomes <- outcome{id: id, plan: plan, notice: notice, index: result.GetIndex(), err: err}
		return nil
	})
}

// settle takes in what became of a proposal; its error ends the driver.
func (d *Driver) settle(ctx context.Context, o outcome) error {
	it := d.item(o.id)
	it.inFlight = false
	d.inFlight--
	it.after = max(it.after, o.index)
	if settler, ok := d.cfg.Reconciler.(Settler); ok && !o.notice {
		settler.Settled(o.id, o.plan, o.index, o.err)
	}
	var conflict *store.ConflictError
	switch {
	case o.err == nil && o.notice:
		it.notice = nil
		d.enqueue(o.id)
	case o.err == nil:
		if next, ok := o.plan.Next(); ok {
			again := it.again
			d.propose(ctx, o.id, it, next, false, d.cfg.Clock())
			it.again = again
			return nil
		}
		d.succeeded(o.id, it)
		if o.plan.More {
			delete(d.paced, o.id)
		}
		if o.plan.More || it.again {
			d.enqueue(o.id)
		} else {
			d.wakeBy(o.id, it, o.plan.At)
		}
		d.also(o.plan)
	case errors.Is(o.err, store.ErrStaleTerm):
		return o.err
	case errors.Is(o.err, context.Canceled):
		// Run is ending.
	case errors.As(o.err, &conflict) && it.conflicts < d.limits.Conflicts:
		it.conflicts++
		delete(d.paced, o.id)
		d.enqueue(o.id)
	default:
		d.fail(o.id, it, o.err)
	}
	d.forget(o.id, it)
	return nil
}

func (d *Driver) succeeded(id ID, it *item) {
	it.errors, it.conflicts, it.backoff = 0, 0, time.Time{}
	if ids := d.troubled[id.Object]; ids != nil {
		delete(ids, id)
		if len(ids) == 0 {
			delete(d.troubled, id.Object)
		}
	}
	if it.alarmed {
		it.alarmed = false
		it.notice = &swarmpb.Write{Op: &swarmpb.Write_Delete{
			Delete: swarmpb.AlarmKey(QuarantineAlarm, alarmObject(d.cfg.Reconciler.Name(), id))}}
		d.enqueue(id)
	}
}

// fail makes the id wait, longer with each error in a row.
func (d *Driver) fail(id ID, it *item, err error) {
	pause := d.limits.BackoffMax
	if it.errors < 32 {
		pause = min(pause, d.limits.BackoffMin<<it.errors)
	}
	it.errors++
	it.backoff = d.cfg.Clock().Add(pause)
	d.setWake(id, it, it.backoff)
	if d.troubled[id.Object] == nil {
		d.troubled[id.Object] = map[ID]struct{}{}
	}
	d.troubled[id.Object][id] = struct{}{}
	d.log.Warn("reconcile failed, will try again", "id", id.String(), "errors", it.errors, "pause", pause, "error", err)
}

// quarantine leaves an id alone until its object changes, and says so in an alarm.
func (d *Driver) quarantine(id ID, it *item, cause error) {
	d.log.Error("object quarantined after panics; it is left alone until it is changed", "id", id.String(), "panics", it.panics)
	it.quarantined, it.alarmed, it.panics, it.errors = true, true, 0, 0
	it.backoff = time.Time{}
	it.notice = d.alarm(id, fmt.Errorf("%w; it is left alone until it is changed: update it, and report this as a bug", cause))
	d.setWake(id, it, time.Time{})
	d.enqueue(id)
}

func (d *Driver) alarm(id ID, cause error) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{
		Kind: QuarantineAlarm, Object: alarmObject(d.cfg.Reconciler.Name(), id),
		Message: fmt.Sprintf("%s of %s: %v", d.cfg.Reconciler.Name(), id, cause),
	}}}
}

// item finds or makes what is remembered of id.
func (d *Driver) item(id ID) *item {
	it := d.items[id]
	if it == nil {
		it = &item{}
		d.items[id] = it
	}
	return it
}

// forget drops what need not be remembered, so that memory follows the work and not the cluster.
func (d *Driver) forget(id ID, it *item) {
	if it.atRest() && d.cfg.Store.View().Index() >= it.after {
		delete(d.items, id)
	}
}

// enqueue makes id ready, once.
func (d *Driver) enqueue(id ID) {
	it := d.item(id)
	switch {
	case it.inFlight:
		it.again = true
	case !it.queued:
		it.queued = true
		d.ready.push(id)
	}
}

func (d *Driver) setWake(id ID, it *item, at time.Time) {
	it.wake = at
	if !at.IsZero() && !it.entry.Equal(at) {
		it.entry = at
		d.alarms.set(at, id)
	}
}

// wakeBy has id looked at by a time, unless it is to be looked at before; zero = no matter when.
func (d *Driver) wakeBy(id ID, it *item, at time.Time) {
	if !at.IsZero() && (it.wake.IsZero() || at.Before(it.wake)) {
		d.setWake(id, it, at)
	}
}

// also has the other ids looked at that a plan names.
func (d *Driver) also(plan Plan) {
	for _, look := range plan.Also {
		if look.At.IsZero() {
			d.changed(look.ID)
		} else if it := d.item(look.ID); !it.quarantined && it.backoff.IsZero() {
			d.wakeBy(look.ID, it, look.At)
		}
	}
}

// wakeDue makes ready what has waited long enough. An entry whose item has another time by now is stale.
func (d *Driver) wakeDue(now time.Time) {
	for {
		id, at, ok := d.alarms.due(now)
		if !ok {
			return
		}
		it := d.items[id]
		if it == nil {
			continue
		}
		if it.entry.Equal(at) {
			it.entry = time.Time{}
		}
		if it.wake.Equal(at) {
			it.wake, it.backoff = time.Time{}, time.Time{}
			d.enqueue(id)
		}
	}
}
