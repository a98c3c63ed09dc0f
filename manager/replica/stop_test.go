package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// clients write through all members, each write under a request ID of its own, until stop. A member that refuses a write
// because it stops is left for the next one.
type clients struct {
	name    string
	wg      sync.WaitGroup
	done    chan struct{}
	mu      sync.Mutex
	written []uint64      // by client
	longest time.Duration // that a write took
}

func startClients(c *cluster, name string, n int) *clients {
	cl := &clients{name: name, done: make(chan struct{}), written: make([]uint64, n)}
	members := append([]*member(nil), c.members...)
	for w := range n {
		cl.wg.Go(func() {
			at := w
			for i := 0; ; i++ {
				select {
				case <-cl.done:
					return
				case <-time.After(30 * time.Millisecond):
				}
				write := alarm(fmt.Sprint(name, w), fmt.Sprintf("%s-%d-%d", name, w, i))
				start := time.Now()
				_, err := members[at%len(members)].Propose(context.Background(), write)
				for errors.Is(err, errStopping) {
					at++
					_, err = members[at%len(members)].Propose(context.Background(), write)
				}
				if err != nil {
					c.t.Errorf("write %s through %s: %v", write.RequestId, members[at%len(members)].id, err)
					return
				}
				cl.mu.Lock()
				cl.written[w]++
				cl.longest = max(cl.longest, time.Since(start))
				cl.mu.Unlock()
			}
		})
	}
	return cl
}

// stop waits for the clients and makes sure that each write was made once, on each of the members.
func (cl *clients) stop(c *cluster, members ...*member) {
	c.t.Helper()
	close(cl.done)
	cl.wg.Wait()
	for _, m := range members {
		if _, err := m.ReadIndex(context.Background()); err != nil {
			c.t.Fatalf("%s: %v", m.id, err)
		}
		for w, want := range cl.written {
			if n := m.count(fmt.Sprint(cl.name, w)); n != want || n == 0 {
				c.t.Errorf("%s: of client %d's %d writes %d were made", m.id, w, want, n)
			}
		}
	}
}

func (c *cluster) except(out *member) []*member {
	var members []*member
	for _, m := range c.members {
		if m != out {
			members = append(members, m)
		}
	}
	return members
}

func TestPlannedStop_OfTheLeaderUnderLoad_NoWriteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		old := c.leader()
		cl := startClients(c, "c", 12)
		<-time.After(time.Second)
		old.stop()
		<-time.After(time.Second)
		cl.stop(c, c.except(old)...)
		if cl.longest > 300*time.Millisecond {
			t.Errorf("a write took %s", cl.longest)
		}
	})
}

// A leader that vanishes does not close its connections: those whose writes it holds turn to the next leader.
func TestLeaderGoneMidWrite_ForwardedWritesAreMadeOnceByTheNext(t *testing.T) {
	for name, vanish := range map[string]func(*cluster, *member){
		"frozen": func(c *cluster, m *member) { c.net.freeze(m.address, true) },
		"killed": func(c *cluster, m *member) { c.net.partition(m.address, true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 3, nil)
				for round := range 2 {
					old := c.leader()
					rest := *c
					rest.members = c.except(old)
					cl := startClients(&rest, fmt.Sprint("round", round), 4)
					<-time.After(500 * time.Millisecond)
					vanish(c, old)
					<-time.After(3 * time.Second)
					cl.stop(&rest, rest.members...)
					if cl.longest > 4*time.Second {
						t.Errorf("a write took %s", cl.longest)
					}
					c.net.freeze(old.address, false)
					c.net.partition(old.address, false)
					if _, err := old.ReadIndex(t.Context()); err != nil {
						t.Fatal(err)
					}
					<-time.After(time.Second)
				}
			})
		})
	}
}

// One writer alone: no later call of another one may be needed to notice.
func TestLeaderFrozen_SingleForwardedWrite_IsRetriedThroughTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		old, f := c.leader(), c.follower()
		f.mustPropose(alarm("warm", "warm"))
		c.net.freeze(old.address, true)
		start := time.Now()
		f.mustPropose(alarm("a", "r"))
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("it took %s", took)
		}
		f.mustPropose(alarm("a", "r"))
		if _, err := f.ReadIndex(t.Context()); err != nil || f.count("a") != 1 {
			t.Errorf("again: %v, made %d times", err, f.count("a"))
		}
		c.net.freeze(old.address, false)
	})
}

// Statuses have no request ID, and need none.
func TestLeaderFrozen_ForwardedStatuses_AreMadeThroughTheNext(t *testing.T) {
	status := &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
		TaskId: swarmpb.NewID(), State: swarmpb.TaskState_TASK_STATE_RUNNING}}}
	for _, tc := range []struct {
		name     string
		proposal *swarmpb.Proposal
		again    bool
	}{
		{"statuses", &swarmpb.Proposal{Writes: []*swarmpb.Write{status, status}}, true},
		{"statuses and another write", &swarmpb.Proposal{Writes: append(alarm("a", "").Writes, status)}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3, nil)
			old, f := c.leader(), c.follower()
			f.mustPropose(alarm("warm", "warm"))
			c.net.freeze(old.address, true)
			if _, err := f.Propose(t.Context(), tc.proposal); (err == nil) != tc.again || err != nil && !errors.Is(err, wire.ErrUnavailable) {
				t.Errorf("%s: %v", tc.name, err)
			}
			c.net.freeze(old.address, false)
		})
	}
}

func TestForwardedWrite_WithoutAMajority_FailsWithinTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		last := c.follower()
		for _, m := range c.except(last) {
			c.net.freeze(m.address, true)
		}
		for range 2 {
			start := time.Now()
			if _, err := last.Propose(t.Context(), alarm("a", "r")); !errors.Is(err, wire.ErrUnavailable) {
				t.Errorf("Propose = %v", err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		}
		for _, m := range c.members {
			c.net.freeze(m.address, false)
		}
		last.mustPropose(alarm("a", "r"))
		if _, err := last.ReadIndex(t.Context()); err != nil || last.count("a") != 1 {
			t.Errorf("afterwards: %v, made %d times", err, last.count("a"))
		}
	})
}

func TestPlannedStop_CallsUnderWay_AreFinishedAndLaterOnesRefused(t *testing.T) {
	for _, n := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, n, nil)
			m := c.leader()
			m.logs.setStall(func() { <-time.After(50 * time.Millisecond) })
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					<-time.After(time.Duration(i) * time.Millisecond)
					if _, err := m.Propose(context.Background(), alarm(fmt.Sprint(i), fmt.Sprint("r", i))); err != nil {
						t.Errorf("write %d of %d members: %v", i, n, err)
					}
				})
			}
			<-time.After(60 * time.Millisecond)
			m.stop()
			wg.Wait()
			start := time.Now()
			if _, err := m.Propose(t.Context(), alarm("late", "")); !errors.Is(err, wire.ErrUnavailable) || !errors.Is(err, errStopping) {
				t.Errorf("write after the stop: %v", err)
			}
			if _, err := m.ReadIndex(t.Context()); !errors.Is(err, wire.ErrUnavailable) || time.Since(start) != 0 {
				t.Errorf("read after the stop: %v, after %s", err, time.Since(start))
			}
		})
	}
}

func TestTransfer_HeirWithAHungDisk_TheNextOneTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		old := c.leader()
		for _, hung := range c.except(old) { // whichever is asked first
			release := hung.hangDisk()
			if err := old.TransferLeadership(t.Context(), hung.id); !errors.Is(err, wire.ErrUnavailable) {
				t.Errorf("to %s, whose disk hangs: %v", hung.id, err)
			}
			if err := old.TransferLeadership(t.Context(), ""); err != nil {
				t.Errorf("while the disk of %s hangs: %v", hung.id, err)
			}
			if next := c.leader(); next == hung || next == old {
				t.Errorf("%s leads", next.id)
			}
			release()
			<-time.After(2 * time.Second)
			c.transfer(old)
		}
	})
}
