package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// VirtualConfig is what a Virtual is made from.
type VirtualConfig struct {
	// Store is written to by nobody else.
	Store *store.Store
	// Now is the time at which it begins.
	Now time.Time
	// Reconcilers, those that go first before the others.
	Reconcilers []Reconciler
	// Written, when set, is asked after every write; its error becomes that of the write.
	Written func(*store.View) error
	// Twice makes every plan twice, and a difference an error: for tests of reconcilers that keep nothing.
	Twice bool
}

// Virtual runs reconcilers in a time of its own that passes when it is told to, one plan after the other, so that the same
// beginning always has the same end. It is what a Driver is in real time, without errors of the way to the log: those of
// a plan end what was being done. It is for one goroutine.
type Virtual struct {
	cfg    VirtualConfig
	leader store.Leader
	watch  *store.Watch
	now    time.Time
	loops  []*virtualLoop
}

// virtualLoop is one reconciler with what a driver would remember of it.
type virtualLoop struct {
	reconciler Reconciler
	queue      []ID
	queued     map[ID]struct{}
	wake       map[ID]time.Time
	paced      paces
}

// NewVirtual begins with the store as it is: what reconcilers are to look at before anything changes is the caller's to
// say, with Relist or Look.
func NewVirtual(cfg VirtualConfig) (*Virtual, error) {
	if cfg.Store == nil {
		return nil, errors.New("new virtual driver: no store")
	}
	watch, err := cfg.Store.Watch(cfg.Store.View().Index(), 0)
	if err != nil {
		return nil, fmt.Errorf("new virtual driver: %w", err)
	}
	v := &Virtual{cfg: cfg, leader: store.NewLocalProposer(cfg.Store), watch: watch, now: cfg.Now}
	for _, r := range cfg.Reconcilers {
		v.loops = append(v.loops, &virtualLoop{reconciler: r, queued: map[ID]struct{}{}, wake: map[ID]time.Time{}, paced: paces{}})
	}
	return v, nil
}

// Leader writes to the store as reconcilers do.
func (v *Virtual) Leader() store.Leader { return v.leader }

// View is the newest state.
func (v *Virtual) View() *store.View { return v.cfg.Store.View() }

// Now is the virtual time.
func (v *Virtual) Now() time.Time { return v.now }

// Propose writes a copy of the proposal, now and in whatever term it is.
func (v *Virtual) Propose(proposal *swarmpb.Proposal) (index uint64, err error) {
	result, err := v.leader.Propose(context.Background(), &swarmpb.Proposal{RequestId: proposal.GetRequestId(),
		Guards: proposal.GetGuards(), Writes: proposal.GetWrites(), Now: v.now.UnixNano()})
	if err == nil && v.cfg.Written != nil {
		err = v.cfg.Written(v.View())
	}
	return result.GetIndex(), err
}

// Look has every reconciler that of picks look at the ids that of names for it.
func (v *Virtual) Look(of func(Reconciler) []ID) {
	for _, l := range v.loops {
		for _, id := range of(l.reconciler) {
			l.add(id)
		}
	}
}

// Relist has every reconciler look at everything, as under a new leader.
func (v *Virtual) Relist() {
	for _, l := range v.loops {
		clear(l.wake)
	}
	v.Look(func(r Reconciler) []ID { return r.All(v.View()) })
}

// Step lets the first reconciler that has something to do take one id; false when none has.
func (v *Virtual) Step() (bool, error) {
	if err := v.collect(); err != nil {
		return false, err
	}
	for _, l := range v.loops {
		if len(l.queue) == 0 {
			continue
		}
		id := l.queue[0]
		l.queue = l.queue[1:]
		delete(l.queued, id)
		if err := v.reconcile(l, id); err != nil {
			return false, fmt.Errorf("%s of %s: %w", l.reconciler.Name(), id, err)
		}
		return true, nil
	}
	return false, nil
}

// Next is when the first reconciler wants to look again; false when none does.
func (v *Virtual) Next() (next time.Time, ok bool) {
	for _, l := range v.loops {
		for _, at := range l.wake {
			if !ok || at.Before(next) {
				next, ok = at, true
			}
		}
	}
	return next, ok
}

// Pass lets the time be what is given, or stay where it is if that is over.
func (v *Virtual) Pass(to time.Time) {
	if to.After(v.now) {
		v.now = to
	}
	for _, l := range v.loops {
		l.wakeDue(v.now)
	}
}

// collect takes in what has changed.
func (v *Virtual) collect() error {
	for v.watch.Reached() == nil {
		batch, err := v.watch.Next(context.Background())
		if err != nil {
			return err
		}
		for _, l := range v.loops {
			for _, change := range batch.Changes {
				for _, id := range l.reconciler.Affects(batch.View, change) {
					l.add(id)
				}
			}
		}
	}
	return nil
}

func (v *Virtual) reconcile(l *virtualLoop, id ID) error {
	delete(l.wake, id)
	if next := l.paced[id]; v.now.Before(next) {
		l.wake[id] = next
		return nil
	}
	l.paced.begin(l.reconciler, v.View(), id, v.now)
	plan, err := l.plan(v.View(), id, v.now, v.cfg.Twice)
	if err != nil {
		return err
	}
	if err := plan.check(); err != nil {
		return err
	}
	if !plan.At.IsZero() {
		if !plan.At.After(v.now) {
			return fmt.Errorf("plan asks to be woken at %s, which is not later than now, %s", plan.At, v.now)
		}
		l.wake[id] = plan.At
	}
	settler, _ := l.reconciler.(Settler)
	for part, ok := plan, len(plan.Writes) > 0; ok; part, ok = part.Next() {
		index, err := v.Propose(&swarmpb.Proposal{Guards: part.Guards, Writes: part.Writes})
		if settler != nil {
			settler.Settled(id, part, index, err)
		}
		if err != nil {
			return err
		}
	}
	if plan.More {
		delete(l.paced, id)
		l.add(id)
	}
	for _, look := range plan.Also {
		if wake, waits := l.wake[look.ID]; look.At.IsZero() {
			l.add(look.ID)
		} else if !waits || look.At.Before(wake) {
			l.wake[look.ID] = look.At
		}
	}
	return nil
}

func (l *virtualLoop) plan(view *store.View, id ID, now time.Time, twice bool) (Plan, error) {
	plan, err := l.reconciler.Reconcile(view, id, now)
	if err != nil || !twice {
		return plan, err
	}
	again, err := l.reconciler.Reconcile(view, id, now)
	if err != nil || !samePlan(plan, again) {
		return Plan{}, fmt.Errorf("the same view gave two plans: %v and then %v (error %v)", plan, again, err)
	}
	return plan, nil
}

func samePlan(a, b Plan) bool {
	sameLook := func(x, y Look) bool { return x.ID == y.ID && x.At.Equal(y.At) }
	return a.More == b.More && a.At.Equal(b.At) && slices.EqualFunc(a.Also, b.Also, sameLook) && slices.EqualFunc(a.Rest, b.Rest, samePlan) &&
		slices.EqualFunc(a.Writes, b.Writes, func(x, y *swarmpb.Write) bool { return proto.Equal(x, y) }) &&
		slices.EqualFunc(a.Guards, b.Guards, func(x, y *swarmpb.Guard) bool { return proto.Equal(x, y) })
}

func (l *virtualLoop) add(id ID) {
	if _, there := l.queued[id]; !there {
		l.queued[id] = struct{}{}
		l.queue = append(l.queue, id)
	}
}

// wakeDue makes ready what has waited long enough, in an order that does not depend on the map.
func (l *virtualLoop) wakeDue(now time.Time) {
	var due []ID
	for id, at := range l.wake {
		if !at.After(now) {
			due = append(due, id)
			delete(l.wake, id)
		}
	}
	slices.SortFunc(due, ID.compare)
	for _, id := range due {
		l.add(id)
	}
}
