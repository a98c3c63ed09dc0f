package manager

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/swarmd/swarmd/manager/allocator"
	"github.com/swarmd/swarmd/manager/dispatcher"
	"github.com/swarmd/swarmd/manager/metrics"
	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/placement"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// lead is everything that only the leader does. It returns when ctx ends, with nothing left running; an error of
// any part ends all of them and hands leadership over.
func (m *Manager) lead(ctx context.Context, leader store.Leader) error {
	log := m.log.With("term", leader.Term())
	log.Info("leading")
	st := m.replica.Store()
	members := newMembership(st, m.replica, m.id.NodeID, m.cfg.Address, log.With("part", "membership"))
	health := &healthWatch{
		store: st, leader: leader, raft: m.replica, self: m.id.NodeID, health: m.healthOf, log: log.With("part", "health"),
	}
	err := Lead(ctx, st, leader, m.dispatcher, log, members.run, health.run,
		func(ctx context.Context) error { return m.ca.Lead(ctx, leader, m.dispatcher.Acked) })
	log.Info("no longer leading")
	return err
}

// Lead runs the leader's loops on a store, and the others given, until ctx ends or one of them fails. Nothing of it
// runs when it returns.
func Lead(ctx context.Context, st *store.Store, leader store.Leader, sessions *dispatcher.Server, log *slog.Logger,
	others ...func(context.Context) error) error {
	var loops []func(context.Context) error
	for _, r := range append(orchestrator.Reconcilers(), allocator.Reconcilers()...) {
		driver, err := reconcile.New(reconcile.Config{Store: st, Leader: leader, Reconciler: r, Clock: time.Now, Logger: log.With("part", r.Name())})
		if err != nil {
			return err
		}
		loops = append(loops, driver.Run)
	}
	place, err := placement.New(placement.Config{Store: st, Leader: leader, Clock: time.Now, Logger: log.With("part", "placement")})
	if err != nil {
		return err
	}
	asker, err := metrics.New(metrics.Config{Store: st, Leader: leader, Logger: log.With("part", "metrics")})
	if err != nil {
		return err
	}
	loops = append(loops, place.Run, asker.Run, func(ctx context.Context) error { return sessions.Lead(ctx, leader) })
	loops = append(loops, others...)
	// Nothing starts before everything is made: an error above leaves no loop behind.
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range loops {
		g.Go(func() error { return run(ctx) })
	}
	return g.Wait()
}
