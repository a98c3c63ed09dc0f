package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestTransport_SupportsPreVote(t *testing.T) {
	var transport any = observedTransport{}
	if _, ok := transport.(raft.WithPreVote); !ok {
		t.Fatal("Raft's transport does not implement WithPreVote: pre-vote would be off with only a warning")
	}
	if (&Replica{logger: slog.New(slog.DiscardHandler)}).raftConfig().PreVoteDisabled {
		t.Fatal("pre-vote is disabled")
	}
}

func TestSingleMember_WritesReadsAndKeepsAcrossRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, nil)
		m := c.leader()
		result := m.mustPropose(alarm("a", ""))
		index, err := m.ReadIndex(t.Context())
		if err != nil || index < result.Index {
			t.Fatalf("ReadIndex = %d, %v; the write was at %d", index, err, result.Index)
		}
		if _, err := m.Propose(t.Context(), &swarmpb.Proposal{Term: 99, Writes: alarm("b", "").Writes}); !errors.Is(err, store.ErrStaleTerm) {
			t.Fatalf("proposal of another term: %v", err)
		}
		m.stop()
		m.restart()
		c.leader()
		if _, err := m.ReadIndex(t.Context()); err != nil || m.count("a") != 1 {
			t.Fatalf("after restart: count %d, %v", m.count("a"), err)
		}
	})
}

func TestBootstrap_WithState_Refuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, nil)
		m := c.leader()
		m.stop()
		m.open()
		defer m.Close()
		if err := m.Bootstrap(); !errors.Is(err, wire.ErrExists) {
			t.Fatalf("Bootstrap = %v", err)
		}
	})
}

func TestFailover_KeepsAcknowledgedWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		old := c.leader()
		for i := range 50 {
			old.mustPropose(alarm(fmt.Sprint(i), ""))
		}
		c.net.partition(old.address, true)
		leader := c.leader()
		if leader == old {
			t.Fatal("the leader that was cut off still counts")
		}
		leader.mustPropose(alarm("after", ""))
		c.net.partition(old.address, false)
		for _, m := range c.members {
			if _, err := m.ReadIndex(t.Context()); err != nil {
				t.Fatalf("%s: %v", m.id, err)
			}
			for i := range 50 {
				if m.count(fmt.Sprint(i)) != 1 {
					t.Fatalf("%s: write %d is there %d times", m.id, i, m.count(fmt.Sprint(i)))
				}
			}
		}
	})
}

func TestFollower_ForwardsWritesAndReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		f := c.follower()
		result := f.mustPropose(alarm("a", ""))
		index, err := f.ReadIndex(t.Context())
		if err != nil || index < result.Index || f.count("a") != 1 {
			t.Fatalf("ReadIndex = %d, %v; count %d, written at %d", index, err, f.count("a"), result.Index)
		}
		var conflict *store.ConflictError
		_, err = f.Propose(t.Context(), &swarmpb.Proposal{
			Guards: []*swarmpb.Guard{{Key: &swarmpb.RowKey{Table: swarmpb.Table_TABLE_NODE, Id: "n"}, Version: 7}},
		})
		if !errors.As(err, &conflict) {
			t.Fatalf("guard that does not hold: %v", err)
		}
		if _, err := f.Propose(t.Context(), &swarmpb.Proposal{Term: 1}); !errors.Is(err, store.ErrStaleTerm) {
			t.Fatalf("proposal of a term on a follower: %v", err)
		}
	})
}

// Writers retry under request IDs while the leader is cut off again and again: each write is made exactly once.
func TestRequestID_RetriedThroughElections_AppliedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		var wg sync.WaitGroup
		const writers, each = 6, 20
		var failed atomic.Int64
		for w := range writers {
			wg.Go(func() {
				m := c.members[w%len(c.members)]
				for i := range each {
					name := fmt.Sprintf("%d-%d", w, i)
					for {
						_, err := m.Propose(t.Context(), alarm(name, "request-"+name))
						if err == nil {
							break
						}
						failed.Add(1)
						if !errors.Is(err, wire.ErrUnavailable) {
							t.Errorf("%s: %v", name, err)
							return
						}
					}
					<-time.After(100 * time.Millisecond)
				}
			})
		}
		for range 3 {
			<-time.After(700 * time.Millisecond)
			old := c.leader()
			c.net.partition(old.address, true)
			c.leader()
			<-time.After(300 * time.Millisecond)
			c.net.partition(old.address, false)
		}
		wg.Wait()
		for _, m := range c.members {
			if _, err := m.ReadIndex(t.Context()); err != nil {
				t.Fatal(err)
			}
			for w := range writers {
				for i := range each {
					if n := m.count(fmt.Sprintf("%d-%d", w, i)); n != 1 {
						t.Errorf("%s: write %d-%d was applied %d times", m.id, w, i, n)
					}
				}
			}
		}
	})
}

func TestMinorityLeader_StepsDownAndFailsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended atomic.Int64
		c := newCluster(t, 3, func(m *member) {
			m.lead = func(ctx context.Context, _ store.Leader) error {
				<-ctx.Done()
				ended.Add(1)
				return nil
			}
		})
		old := c.leader()
		c.net.partition(old.address, true)
		start := time.Now()
		if _, err := old.Propose(t.Context(), alarm("a", "")); !errors.Is(err, ErrLeadershipLost) {
			t.Fatalf("write without request ID: %v", err)
		}
		if _, err := old.Propose(t.Context(), alarm("a", "id")); !errors.Is(err, wire.ErrUnavailable) {
			t.Fatalf("write with request ID: %v", err)
		}
		if _, err := old.ReadIndex(t.Context()); !errors.Is(err, wire.ErrUnavailable) {
			t.Fatalf("read: %v", err)
		}
		if took := time.Since(start); took > 12*time.Second {
			t.Fatalf("the three took %s", took)
		}
		if ended.Load() != 1 || old.readyAt.Load() != 0 {
			t.Fatalf("Lead ended %d times, ready in term %d", ended.Load(), old.readyAt.Load())
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := old.Propose(ctx, alarm("a", "")); !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled: %v", err)
		}
	})
}

func TestNoLeaderEver_FailsWithAClearError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, net: newMemNet()}
		m := &member{cluster: c, id: "m1", address: "m1:2377", dir: t.TempDir()}
		m.open()
		m.run()
		start := time.Now()
		_, err := m.Propose(t.Context(), alarm("a", ""))
		if !errors.Is(err, wire.ErrUnavailable) || !strings.Contains(err.Error(), "most managers") {
			t.Fatalf("Propose = %v", err)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Fatalf("it took %s", took)
		}
		m.stop()
		if _, err := m.Propose(t.Context(), alarm("a", "")); !errors.Is(err, wire.ErrUnavailable) {
			t.Fatalf("after the stop: %v", err)
		}
	})
}

func TestPlannedStop_HandsLeadershipOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		old := c.leader()
		other := c.follower()
		other.mustPropose(alarm("warm", ""))
		stopped := make(chan struct{})
		go func() { old.stop(); close(stopped) }()
		start := time.Now()
		for i := range 20 {
			other.mustPropose(alarm(fmt.Sprint(i), fmt.Sprint("r", i)))
		}
		if took := time.Since(start); took > 300*time.Millisecond {
			t.Errorf("writes stood still for %s although leadership was handed over", took)
		}
		<-stopped
	})
}

// Members may overlap for as long as a lease lasts: their terms tell them apart.
func TestLead_EndsBeforeItStartsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		counts := map[*Replica]*atomic.Int64{}
		running := func(r *Replica) *atomic.Int64 {
			mu.Lock()
			defer mu.Unlock()
			if counts[r] == nil {
				counts[r] = new(atomic.Int64)
			}
			return counts[r]
		}
		terms := map[uint64]bool{}
		lead := func(ctx context.Context, l store.Leader) error {
			running := running(l.(leader).replica)
			if running.Add(1) != 1 {
				t.Error("Lead runs twice")
			}
			defer running.Add(-1)
			mu.Lock()
			if terms[l.Term()] {
				t.Errorf("Lead runs a second time in term %d", l.Term())
			}
			terms[l.Term()] = true
			mu.Unlock()
			if _, err := l.Propose(ctx, &swarmpb.Proposal{Term: l.Term(), Writes: alarm("lead", "").Writes}); err != nil && ctx.Err() == nil {
				t.Errorf("Propose in term %d: %v", l.Term(), err)
			}
			<-ctx.Done()
			if _, err := l.Propose(context.Background(), alarm("late", "")); !errors.Is(err, store.ErrStaleTerm) && !errors.Is(err, wire.ErrUnavailable) && err != nil {
				t.Errorf("Propose after the end: %v", err)
			}
			return ctx.Err()
		}
		c := newCluster(t, 3, func(m *member) { m.lead = lead })
		for range 4 {
			if err := c.leader().node.Load().LeadershipTransfer().Error(); err != nil {
				t.Fatal(err)
			}
			<-time.After(time.Second)
		}
		last := c.leader()
		l := leader{last.Replica, last.readyAt.Load() - 1}
		if _, err := l.Propose(t.Context(), alarm("stale", "")); !errors.Is(err, store.ErrStaleTerm) {
			t.Errorf("leader of an older term: %v", err)
		}
	})
}

func TestLead_Fails_LeadershipMovesOrLeadRunsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failures atomic.Int64
		c := newCluster(t, 3, func(m *member) {
			m.lead = func(ctx context.Context, _ store.Leader) error {
				if m.id == "m1" && failures.Add(1) <= 3 {
					<-time.After(2 * time.Second)
					return errors.New("broken")
				}
				<-ctx.Done()
				return ctx.Err()
			}
		})
		eventually(t, "leadership to move", func() bool { return c.leader().id != "m1" })
	})
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		newCluster(t, 1, func(m *member) {
			m.lead = func(ctx context.Context, _ store.Leader) error {
				if calls.Add(1) < 3 {
					return errors.New("broken")
				}
				<-ctx.Done()
				return ctx.Err()
			}
		})
		eventually(t, "Lead to run again", func() bool { return calls.Load() == 3 })
	})
}

func TestHungDisk_LeaderStepsDownAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		old, other := c.leader(), c.follower()
		hang := make(chan struct{})
		var hung atomic.Bool
		hung.Store(true)
		old.logs.setStall(func() {
			if hung.Load() {
				<-hang
			}
		})
		start := time.Now()
		if _, err := other.Propose(t.Context(), alarm("hung", "r")); err != nil {
			t.Fatalf("write with a request ID while the leader's disk hangs: %v", err)
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("first write after %s", took)
		}
		next := c.leader()
		if next == old {
			t.Fatal("the member with the hung disk leads")
		}
		next.mustPropose(alarm("more", ""))
		hung.Store(false)
		close(hang)
		if _, err := old.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, m := range c.members {
			if _, err := m.ReadIndex(t.Context()); err != nil || m.count("hung") != 1 || m.count("more") != 1 {
				t.Errorf("%s: hung %d, more %d, %v", m.id, m.count("hung"), m.count("more"), err)
			}
		}
	})
}

func TestLaggingFollower_GetsASnapshotAndWatchersListAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, func(m *member) {
			m.tuning = Tuning{SnapshotThreshold: 20, SnapshotInterval: 100 * time.Millisecond, TrailingLogs: 1}
		})
		f := c.follower()
		f.mustPropose(alarm("before", ""))
		if _, err := f.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := f.Store()
		watch, err := before.Watch(before.View().Index(), 0)
		if err != nil {
			t.Fatal(err)
		}
		c.net.partition(f.address, true)
		leader := c.leader()
		for i := range 200 {
			leader.mustPropose(alarm(fmt.Sprint(i%10), ""))
			if i%20 == 0 {
				<-time.After(300 * time.Millisecond)
			}
		}
		c.net.partition(f.address, false)
		if _, err := f.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f.count("3") != 20 || f.Store() == before {
			t.Fatalf("count %d, store replaced: %v", f.count("3"), f.Store() != before)
		}
		for err == nil {
			_, err = watch.Next(t.Context())
		}
		if !errors.Is(err, store.ErrOverflow) {
			t.Errorf("the old store's watch ended with %v", err)
		}
		f.stop()
		f.restart()
		if _, err := f.ReadIndex(t.Context()); err != nil || f.count("3") != 20 {
			t.Errorf("after restart: count %d, %v", f.count("3"), err)
		}
	})
}

func TestReadIndex_AfterEntriesOfRaftAlone_DoesNotWaitForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		for _, m := range c.members {
			if _, err := m.ReadIndex(t.Context()); err != nil {
				t.Errorf("%s, before any write: %v", m.id, err)
			}
		}
		result := c.leader().mustPropose(alarm("a", ""))
		if err := c.leader().node.Load().LeadershipTransfer().Error(); err != nil {
			t.Fatal(err)
		}
		for _, m := range c.members {
			if index, err := m.ReadIndex(t.Context()); err != nil || index != result.Index {
				t.Errorf("%s: %d, %v; the last write is %d", m.id, index, err, result.Index)
			}
		}
	})
}

func TestRun_Returns_LeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 3 {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3, nil)
			c.follower().mustPropose(alarm("a", ""))
			for _, m := range c.members {
				m.stop()
			}
			synctest.Wait()
		})
	}
	eventually(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestConfig_Bad_NamesEveryFault(t *testing.T) {
	_, err := New(Config{Address: "nowhere", Key: []byte("short")})
	for _, want := range []string{"no Dir", "no NodeID", "no ClusterID", "5 bytes", "no Listener", "no Dial", "host:port"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %q", err, want)
		}
	}
}
