// Package script runs reconcilers against a real store in virtual time, one step after the other, so that tests of
// the manager's controllers can be written as plain text: what a user or a node does, and the task table that comes
// of it. It is for tests alone.
//
// A World is the cluster: a store with a proposer of its own, reconcilers, and, when told so, nodes that do what they
// are told at once. Nothing happens at the same time as anything else, so a script always ends the same way. Run
// plays scripts; package tests with other needs drive a World themselves.
package script

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// maxSteps is how many plans the world may take to come to rest.
const maxSteps = 100_000

// World is a cluster in virtual time.
type World struct {
	Store *store.Store
	// Check, when set, is asked after every write; its error is the world's.
	Check func(*store.View) error

	leader store.Leader
	now    time.Time
	start  time.Time
	loops  []*loop
	nodes  nodes
	// versions is how many templates each service has had beyond its first.
	versions map[string]uint64
}

// loop is one reconciler with what the driver would remember of it.
type loop struct {
	reconciler reconcile.Reconciler
	watch      *store.Watch
	ready      []reconcile.ID
	wake       map[reconcile.ID]time.Time
}

// New makes a world with a cluster row and nothing else.
func New(reconcilers ...reconcile.Reconciler) (*World, error) {
	s := store.New()
	start := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	w := &World{Store: s, leader: store.NewLocalProposer(s), now: start, start: start, versions: map[string]uint64{}}
	w.nodes.images = map[string]behaviour{}
	for _, r := range reconcilers {
		watch, err := s.Watch(0, 0)
		if err != nil {
			return nil, fmt.Errorf("new world: %w", err)
		}
		w.loops = append(w.loops, &loop{reconciler: r, watch: watch, wake: map[reconcile.ID]time.Time{}})
	}
	return w, w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: "cluster", Spec: &swarmpb.ClusterSpec{}}}}))
}

// Put is the write that makes or replaces a row.
func Put(row *swarmpb.Row) *swarmpb.Write { return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}} }

// View is the newest state.
func (w *World) View() *store.View { return w.Store.View() }

// Leader writes to the store as reconcilers do: for a test that runs real drivers in the world instead.
func (w *World) Leader() store.Leader { return w.leader }

// Now is the virtual time.
func (w *World) Now() time.Time { return w.now }

// Write proposes, as anybody but a reconciler would.
func (w *World) Write(writes ...*swarmpb.Write) error {
	return w.propose(&swarmpb.Proposal{Term: w.leader.Term(), Writes: writes, Now: w.now.UnixNano()})
}

// propose writes and checks what came of it.
func (w *World) propose(proposal *swarmpb.Proposal) error {
	if _, err := w.leader.Propose(context.Background(), proposal); err != nil {
		return err
	}
	if w.Check != nil {
		return w.Check(w.View())
	}
	return nil
}

// Settle lets reconcilers and nodes act until none has anything left to do at this time.
func (w *World) Settle() error {
	for range maxSteps {
		busy, err := w.step()
		if err != nil {
			return err
		}
		if !busy {
			if busy, err = w.nodes.act(w); err != nil {
				return err
			}
		}
		if !busy {
			return nil
		}
	}
	return fmt.Errorf("the cluster does not come to rest: %d steps were taken at %s", maxSteps, w.Clock())
}

// Advance moves the time on, stopping wherever somebody has asked to be woken.
func (w *World) Advance(d time.Duration) error {
	end := w.now.Add(d)
	for {
		if err := w.Settle(); err != nil {
			return err
		}
		next := end
		for _, l := range w.loops {
			for _, at := range l.wake {
				if at.Before(next) {
					next = at
				}
			}
		}
		if at, ok := w.nodes.next(w); ok && at.Before(next) {
			next = at
		}
		if !w.now.Before(end) {
			return nil
		}
		w.now = later(w.now, next)
		for _, l := range w.loops {
			l.wakeDue(w.now)
		}
	}
}

// Clock is the time since the world's beginning.
func (w *World) Clock() time.Duration { return w.now.Sub(w.start) }

// step lets the first reconciler that has something to do take one id. It answers whether any had.
func (w *World) step() (bool, error) {
	for _, l := range w.loops {
		if err := l.collect(); err != nil {
			return false, err
		}
		if len(l.ready) == 0 {
			continue
		}
		id := l.ready[0]
		l.ready = l.ready[1:]
		if err := w.reconcile(l, id); err != nil {
			return false, fmt.Errorf("%s of %s: %w", l.reconciler.Name(), id, err)
		}
		return true, nil
	}
	return false, nil
}

func (w *World) reconcile(l *loop, id reconcile.ID) error {
	delete(l.wake, id)
	view := w.View()
	plan, err := l.reconciler.Reconcile(view, id, w.now)
	if err != nil {
		return err
	}
	again, err := l.reconciler.Reconcile(view, id, w.now)
	if err != nil || !samePlan(plan, again) {
		return fmt.Errorf("the same view gave two plans: %v and then %v (error %v)", plan, again, err)
	}
	if !plan.At.IsZero() {
		if !plan.At.After(w.now) {
			return fmt.Errorf("plan asks to be woken at %s, which is not later than now", plan.At.Sub(w.start))
		}
		l.wake[id] = plan.At
	}
	for part, ok := plan, len(plan.Writes) > 0; ok; part, ok = part.Next() {
		proposal := &swarmpb.Proposal{Term: w.leader.Term(), Guards: part.Guards, Writes: part.Writes, Now: w.now.UnixNano()}
		if err := w.propose(proposal); err != nil {
			return err
		}
	}
	if plan.More {
		l.add(id)
	}
	return nil
}

func samePlan(a, b reconcile.Plan) bool {
	return a.More == b.More && a.At.Equal(b.At) && slices.EqualFunc(a.Rest, b.Rest, samePlan) &&
		slices.EqualFunc(a.Writes, b.Writes, func(x, y *swarmpb.Write) bool { return proto.Equal(x, y) }) &&
		slices.EqualFunc(a.Guards, b.Guards, func(x, y *swarmpb.Guard) bool { return proto.Equal(x, y) })
}

// Relist makes every reconciler look at everything, as a new leader would.
func (w *World) Relist() {
	for _, l := range w.loops {
		l.wake = map[reconcile.ID]time.Time{}
		for _, id := range l.reconciler.All(w.View()) {
			l.add(id)
		}
	}
}

// collect takes in what has changed.
func (l *loop) collect() error {
	for {
		batch, err := l.watch.Next(&poll{Context: context.Background()})
		if errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, change := range batch.Changes {
			for _, id := range l.reconciler.Affects(batch.View, change) {
				l.add(id)
			}
		}
	}
}

func (l *loop) add(id reconcile.ID) {
	if !slices.Contains(l.ready, id) {
		l.ready = append(l.ready, id)
	}
}

// wakeDue makes ready what has waited long enough, in an order that does not depend on the map.
func (l *loop) wakeDue(now time.Time) {
	var due []reconcile.ID
	for id, at := range l.wake {
		if !at.After(now) {
			due = append(due, id)
			delete(l.wake, id)
		}
	}
	slices.SortFunc(due, compareIDs)
	for _, id := range due {
		l.add(id)
	}
}

// poll is a context that ends as soon as somebody waits on it: Next then answers with what is there.
type poll struct {
	context.Context
	asked bool
}

func (p *poll) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

func (p *poll) Err() error {
	if !p.asked {
		p.asked = true
		return nil
	}
	return context.Canceled
}
