package dispatcher

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// slowLog commits to a world's store, which takes a while, and remembers when proposals began and what they had.
type slowLog struct {
	w     *world
	takes time.Duration
	began time.Time

	mu        sync.Mutex
	proposals []string
}

func (l *slowLog) Propose(_ context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	at := time.Since(l.began)
	time.Sleep(l.takes)
	l.w.propose(p.GetWrites()...)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range p.GetWrites() {
		l.proposals = append(l.proposals, fmt.Sprintf("%v %s", at, w.GetMergeStatus().GetState().Name()))
	}
	return &swarmpb.Result{}, nil
}

func TestMerger_FirstAfterAQuietTimeGoesAtOnce_OthersOnceInAnInterval(t *testing.T) {
	const interval = 50 * time.Millisecond
	type report struct {
		at    time.Duration
		slot  uint64
		state swarmpb.TaskState
	}
	for _, c := range []struct {
		name    string
		takes   time.Duration
		reports []report
		want    []string
	}{
		{"a quiet cluster", 0, []report{{0, 1, stRunning}, {time.Second, 1, stFailed}}, []string{"0s running", "1s failed"}},
		{"right after another", 0, []report{{0, 1, stRunning}, {10 * time.Millisecond, 2, stFailed}}, []string{"0s running", "50ms failed"}},
		{"a burst is one proposal, with a task's newest state alone", 0,
			[]report{{0, 1, stRunning}, {time.Millisecond, 2, stRunning}, {2 * time.Millisecond, 3, stRunning}, {3 * time.Millisecond, 2, stFailed}},
			[]string{"0s running", "50ms failed", "50ms running"}},
		{"commits that take longer than the interval follow one another", 80 * time.Millisecond,
			[]report{{0, 1, stRunning}, {10 * time.Millisecond, 2, stFailed}}, []string{"0s running", "80ms failed"}},
		{"commits that take a part of it", 30 * time.Millisecond,
			[]report{{0, 1, stRunning}, {10 * time.Millisecond, 2, stFailed}}, []string{"0s running", "50ms failed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &slowLog{w: newWorld(t, "n1"), takes: c.takes, began: time.Now()}
				m := newMerger(log, func() *store.Store { return log.w.store }, interval)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				defer func() { cancel(); <-done }()
				go func() { done <- m.run(ctx) }()
				for slot := range uint64(3) {
					log.w.task(slot+1, "n1")
				}
				for _, r := range c.reports {
					time.Sleep(time.Until(log.began.Add(r.at)))
					go func() {
						st := &swarmpb.TaskStatus{TaskId: swarmpb.TaskID(serviceWeb, r.slot, "", 1), State: r.state}
						if err := m.merge(ctx, nil, []*swarmpb.TaskStatus{st}); err != nil {
							t.Error(err)
						}
					}()
					synctest.Wait()
				}
				time.Sleep(time.Second)
				log.mu.Lock()
				defer log.mu.Unlock()
				if got := fmt.Sprint(log.proposals); got != fmt.Sprint(c.want) {
					t.Errorf("proposed %s, want %v", got, c.want)
				}
			})
		})
	}
}

func TestMerger_MoreThanAProposalHolds_FollowsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, log := newWorld(t, "n1"), &largest{}
		m := newMerger(log, func() *store.Store { return w.store }, time.Hour)
		var statuses []*swarmpb.TaskStatus
		for i := range uint64(maxStatuses + 1) {
			statuses = append(statuses, &swarmpb.TaskStatus{TaskId: w.task(i+1, "n1"), State: stRunning})
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.run(ctx) }()
		began := time.Now()
		if err := m.merge(ctx, nil, statuses); err != nil || time.Since(began) > 0 || log.writes != len(statuses) {
			t.Errorf("%d of %d statuses are written after %v: %v", log.writes, len(statuses), time.Since(began), err)
		}
		cancel()
		<-done
	})
}
