package orchestrator_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// slowLog is a leader whose proposals take a while, each another while, so that they overtake one another.
type slowLog struct {
	store.Leader
	view  func() *store.View
	check func(*store.View) error

	mu        sync.Mutex
	random    *rand.Rand
	conflicts int
	broken    error
}

func (l *slowLog) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	l.mu.Lock()
	delay := time.Duration(l.random.IntN(50)) * time.Millisecond
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
	l.broken = errors.Join(l.broken, l.check(l.view()))
	return result, err
}

// TestDrivers_SlowLogAndRestartedLeaders_ServiceIsAsAskedFor runs the real loops side by side, with proposals that
// overtake one another and leaders that come and go, until everything is quiet.
func TestDrivers_SlowLogAndRestartedLeaders_ServiceIsAsAskedFor(t *testing.T) {
	conflicts := 0
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) { conflicts += history(t, seed) })
	}
	if conflicts == 0 {
		t.Error("no two proposals ever met: the test does not test what it is for")
	}
}

// history lives through one history of faults and answers how many conflicts there were.
func history(t *testing.T, seed uint64) int {
	random := rand.New(rand.NewPCG(seed, 1))
	w, err := script.New()
	if err != nil {
		t.Fatal(err)
	}
	guard := &watcher{seen: map[string]string{}}
	log := &slowLog{Leader: w.Leader(), view: w.View, check: guard.check, random: rand.New(rand.NewPCG(seed, 2))}
	offset := time.Until(w.Now())
	clock := func() time.Time { return time.Now().Add(offset) }

	pass := func(d time.Duration) {
		for range d / (100 * time.Millisecond) {
			if err := w.Advance(100 * time.Millisecond); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
	}
	do := func(words ...string) {
		if _, err := w.Do(words...); err != nil {
			t.Fatalf("%v: %v", words, err)
		}
	}
	stop := lead(t, w, log, clock)
	do("auto", "on")
	for i := range propertyNodes {
		do("node", nodeName(i), "ready")
	}
	do("service", "web", "replicas=6", "parallelism=2", "failure-action=rollback")
	for i := range 30 {
		pass(time.Duration(random.IntN(20)) * 100 * time.Millisecond)
		node := nodeName(random.IntN(propertyNodes))
		switch random.IntN(11) {
		case 0:
			do("scale", "web", fmt.Sprint(1+random.IntN(12)))
		case 1:
			do("force", "web")
		case 2:
			image := fmt.Sprintf("bad%d", i)
			do("image", image, "failed", "after", "1s")
			do("update", "web", "image="+image)
		case 3:
			do("node", node, "down")
		case 4:
			do("node", node, "ready")
		case 5:
			do("node", node, []string{"active", "drain"}[random.IntN(2)])
		case 6:
			if id := newest(w.View(), "web", uint64(1+random.IntN(6))); id != "" {
				if err := w.Report(id, swarmpb.TaskState_TASK_STATE_FAILED); err != nil {
					t.Fatal(err)
				}
			}
		case 8:
			do("update", "web", "strategy="+strategies[random.IntN(len(strategies))], "steps=20%:1s,50%:1s", "grace=1s", "monitor=1s")
		case 9:
			do([]string{"pause", "resume", "promote", "promote-fully"}[random.IntN(4)], "web")
		case 10:
			if w.View().Service("web").PreviousSpec != nil {
				do("abort", "web")
			}
		case 7:
			stop()
			stop = lead(t, w, log, clock)
		}
	}
	for i := range propertyNodes {
		do("node", nodeName(i), "ready")
		do("node", nodeName(i), "active")
	}
	do("update", "web", "image=good")
	pass(4 * time.Minute)
	for range 3 {
		do("resume", "web")
		pass(time.Minute)
		do("promote-fully", "web")
		pass(time.Minute)
	}
	stop()
	if log.broken != nil {
		t.Errorf("seed %d: %v", seed, log.broken)
	}
	if err := settled(w.View(), "web"); err != nil {
		table, _ := w.Do("tasks")
		status, _ := w.Do("status", "web")
		t.Errorf("seed %d: %v\n%s%s", seed, err, table, status)
	}
	return log.conflicts
}

// lead runs every loop until the function that it answers is called.
func lead(t *testing.T, w *script.World, leader store.Leader, clock func() time.Time) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var group errgroup.Group
	for _, r := range orchestrator.Reconcilers() {
		driver, err := reconcile.New(reconcile.Config{
			Store: w.Store, Leader: leader, Reconciler: r, Clock: clock, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() error { return driver.Run(ctx) })
	}
	return func() {
		cancel()
		if err := group.Wait(); !errors.Is(err, context.Canceled) {
			t.Errorf("a driver ended with %v", err)
		}
	}
}
