package allocator

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// slowLog is a leader whose proposals take a while and overtake one another.
type slowLog struct {
	store.Leader
	mu        sync.Mutex
	random    *rand.Rand
	conflicts int
}

func (l *slowLog) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	l.mu.Lock()
	delay := time.Duration(l.random.IntN(20)) * time.Millisecond
	l.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	result, err := l.Leader.Propose(ctx, p)
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		l.conflicts++
	}
	return result, err
}

// lead runs the allocator's loops until the function that it answers is called.
func lead(l *lab, leader store.Leader, clock func() time.Time) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	for _, r := range Reconcilers() {
		driver, err := reconcile.New(reconcile.Config{
			Store: l.Store, Leader: leader, Reconciler: r, Clock: clock, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			l.Fatal(err)
		}
		group.Go(func() error { return driver.Run(ctx) })
	}
	return func() {
		cancel()
		_ = group.Wait() // what it was doing shows in the rows
	}
}

// TestDrivers_SlowLogAndRestartedLeaders_RowsAndOwnersAgree runs the real loops side by side: users, the orchestrator and
// workers do not wait for them, their proposals overtake one another, and leaders come and go.
func TestDrivers_SlowLogAndRestartedLeaders_RowsAndOwnersAgree(t *testing.T) {
	conflicts, histories := 0, 0
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			// Without the deadline of the time outside: it draws histories for a day of this one.
			rapid.Check(struct{ testing.TB }{t}, func(t *rapid.T) {
				conflicts += live(t)
				histories++
			})
		})
	}
	if t.Logf("%d histories, %d conflicts", histories, conflicts); histories < 50 {
		t.Errorf("%d histories were lived through, too few", histories)
	}
	if conflicts == 0 {
		t.Error("no two proposals ever met: the test does not test what it is for")
	}
}

// live lives through one history and answers how many conflicts there were.
func live(t *rapid.T) int {
	world, err := script.New()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{tb: t, World: world, tasks: map[string]int{}}
	l.write(putRow(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: "cluster", Spec: &swarmpb.ClusterSpec{
		DefaultAddrPools: []string{"10.0.0.0/27"}, DefaultAddrPoolMaskLength: 28,
	}}}}))
	log := &slowLog{Leader: world.Leader(), random: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "delays"), 1))}
	offset := time.Until(l.Now())
	clock := func() time.Time { return time.Now().Add(offset) }
	pass := func(d time.Duration) {
		time.Sleep(d)
		synctest.Wait()
		l.advance(clock().Sub(l.Now()))
	}
	stop := lead(l, log, clock)
	defer func() { stop() }()
	for range rapid.IntRange(1, 40).Draw(t, "steps") {
		l.step(t)
		switch rapid.IntRange(0, 9).Draw(t, "then") {
		case 0:
			stop()
			stop = lead(l, log, clock)
		case 1:
			pass(time.Duration(rapid.IntRange(30, 300).Draw(t, "seconds")) * time.Second)
			l.check()
		case 2, 3, 4:
		default:
			pass(time.Duration(rapid.IntRange(1, 50).Draw(t, "milliseconds")) * time.Millisecond)
		}
	}
	pass(time.Minute)
	l.check()
	l.removeAll(pass)
	return log.conflicts
}
