// Package placement gives every waiting task a node: it watches the store, asks scheduler.Place, and writes
// TaskPlacement rows. It is their only writer.
//
// What it promises: a task is placed once; no node is given more than it has; a decision that rests on a
// node or a task that has changed meanwhile is refused by the store and made anew. A task that no node suits
// gets a row without a node that says why, written when the reason changes, and is tried again when something
// has changed that could help (a node that takes tasks came or changed, a claim was released) and only then.
//
// The planner decides, from a view and what it has decided already, without I/O; Placer is the thin loop
// around it. Decisions of many services go into one proposal and proposals are pipelined, so the planner
// remembers what is under way: the overlay, whose claims count until the view shows them. It ends with Run,
// that is with the term. A conflict drops everything that was not yet proposed.
package placement

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

const (
	// maxInFlight is how many proposals may be under way at a time.
	maxInFlight = 8
	// maxConflicts in a row are answered at once; after each further one there is a short pause.
	maxConflicts = 5 * maxInFlight
	// planRest is how long there is no further plan, as a multiple of how long the last one took: in a large cluster reading the
	// nodes costs more than placing, so that tasks which come one after another are placed together.
	planRest = 4
	// maxPlanRest bounds it, for a host that has no time for a plan.
	maxPlanRest = 250 * time.Millisecond
	// The pause after an error doubles from the one to the other.
	backoffMin, backoffMax = 50 * time.Millisecond, 5 * time.Second
)

// Config is what a Placer is made from.
type Config struct {
	Store  *store.Store
	Leader store.Leader
	// Clock is the manager's.
	Clock func() time.Time
	// Logger; nil = slog.Default.
	Logger *slog.Logger
}

// Placer places tasks for one term.
type Placer struct {
	cfg     Config
	planner *planner

	// What follows belongs to the goroutine of loop.
	term      uint64
	decided   []*decision // not yet proposed
	inFlight  int
	conflicts int // in a row, as errors
	errors    int
	pause     time.Time // no plan before

	feed     chan news
	outcomes chan outcome // as many as may be in flight, so that a proposal never waits to report
}

// news is a batch of changes; all: changes were missed, or nothing has been seen yet.
type news struct {
	all     bool
	view    *store.View
	changes []store.Change
}

type outcome struct {
	decision *decision
	index    uint64
	err      error
}

// New checks the configuration.
func New(cfg Config) (*Placer, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("new placement: no store")
	case cfg.Leader == nil:
		return nil, errors.New("new placement: no leader to propose to")
	case cfg.Clock == nil:
		return nil, errors.New("new placement: no clock")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Placer{
		cfg: cfg, planner: newPlanner(),
		feed: make(chan news), outcomes: make(chan outcome, maxInFlight),
	}, nil
}

// Run places tasks until ctx ends, and then returns ctx's error, or until the term is over. It returns once
// everything it started has ended. A Placer runs once.
func (p *Placer) Run(ctx context.Context) error {
	p.term = p.cfg.Leader.Term()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.watch(ctx) })
	group.Go(func() error { return p.loop(ctx, group) })
	if err := group.Wait(); err != nil {
		return fmt.Errorf("placement: %w", err)
	}
	return nil
}

// watch hands every change to the loop, in order; after a gap it says that everything must be looked at.
func (p *Placer) watch(ctx context.Context) error {
	for {
		view := p.cfg.Store.View()
		watch, err := p.cfg.Store.Watch(view.Index(), 0)
		if errors.Is(err, store.ErrCompacted) {
			continue // the store has moved on between the two calls
		}
		if err != nil {
			return err
		}
		err = p.follow(ctx, watch, news{all: true, view: view})
		watch.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (p *Placer) follow(ctx context.Context, watch *store.Watch, next news) error {
	for {
		select {
		case p.feed <- next:
		case <-ctx.Done():
			return ctx.Err()
		}
		batch, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		next = news{view: batch.View, changes: batch.Changes}
	}
}

func (p *Placer) loop(ctx context.Context, group *errgroup.Group) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		p.decide()
		for len(p.decided) > 0 && p.inFlight < maxInFlight {
			d := p.decided[0]
			p.decided = p.decided[1:]
			p.propose(ctx, group, d)
		}
		var resume <-chan time.Time
		if !p.pause.IsZero() {
			timer.Reset(p.pause.Sub(p.cfg.Clock()))
			resume = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case n := <-p.feed:
			if n.all {
				p.planner.reset(n.view)
			}
			p.planner.observe(n.view, n.changes)
		case o := <-p.outcomes:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := p.settle(o); err != nil {
				return err
			}
		case <-resume:
		}
	}
}

// decide plans when everything decided before is under way.
func (p *Placer) decide() {
	now := p.cfg.Clock()
	if now.Before(p.pause) {
		return
	}
	p.pause = time.Time{}
	for len(p.decided) == 0 && p.planner.waiting() {
		p.decided = p.planner.plan(p.cfg.Store.View(), now)
		if done := p.cfg.Clock(); done.After(now) {
			p.pause = done.Add(min(planRest*done.Sub(now), maxPlanRest))
		}
	}
}

func (p *Placer) propose(ctx context.Context, group *errgroup.Group, d *decision) {
	p.inFlight++
	proposal := &swarmpb.Proposal{Term: p.term, Guards: d.guards, Writes: d.writes, Now: d.now.UnixNano()}
	group.Go(func() error {
		result, err := p.cfg.Leader.Propose(ctx, proposal)
		p.outcomes <- outcome{decision: d, index: result.GetIndex(), err: err}
		return nil
	})
}

// settle takes in what became of a proposal; its error ends the loop.
func (p *Placer) settle(o outcome) error {
	p.inFlight--
	var conflict *store.ConflictError
	pause := time.Duration(0)
	switch {
	case o.err == nil:
		p.conflicts, p.errors = 0, 0
		p.planner.applied(o.decision, o.index)
		return nil
	case errors.Is(o.err, store.ErrStaleTerm):
		return o.err
	case errors.As(o.err, &conflict):
		p.planner.refused(o.decision)
		if p.conflicts++; p.conflicts > maxConflicts {
			pause = backoffMin
		}
	default:
		p.planner.withdrawn(o.decision)
		pause = min(backoffMin<<min(p.errors, 16), backoffMax)
		p.errors++
	}
	for _, d := range p.decided {
		p.planner.withdrawn(d)
	}
	p.decided = nil
	if pause > 0 {
		p.pause = p.cfg.Clock().Add(pause)
		p.cfg.Logger.Warn("placements were not written, will decide anew",
			"tasks", len(o.decision.entries), "pause", pause, "error", o.err)
	}
	return nil
}
