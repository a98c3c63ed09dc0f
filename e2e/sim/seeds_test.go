package sim

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const (
	defaultSeeds = 40
	// convergence is how long a cluster without faults may take to be as its services say. A task whose containers
	// or images failed waits that long for its next try.
	convergence = 4 * time.Minute
	// evenness is how long it may take until no task is to move for balance.
	evenness = 10 * time.Minute
	// standstill is for how long, in real time, no second of virtual time may pass, however busy the host is. It stands still
	// for good when somebody holds a lock and waits.
	standstill = 5 * time.Minute
)

// number from the environment: `make sim SEEDS=500 SEED=1234`.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: not a number", name, text)
	}
	return n
}

// TestSeeds lives through a storm of faults for each seed. What failed is told with what the seed stands for, and the
// command that plays the same faults again.
func TestSeeds(t *testing.T) {
	count := number(t, "SIM_SEEDS", defaultSeeds)
	first := number(t, "SIM_SEED", 1)
	if testing.Short() {
		count = min(count, 5)
	}
	for seed := first; seed < first+count; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			storms(t, newSchedule(seed))
		})
	}
}

// storms plays one schedule.
func storms(t *testing.T, s *schedule) {
	var c *clients
	finished := false
	defer func() {
		if t.Failed() || !finished {
			t.Logf("play it again with: make sim SEED=%d\n%s", s.seed, s)
		}
	}()
	var seconds atomic.Int64 // of virtual time, that have passed
	defer watchSeconds(&seconds, s)()
	dir := scratch(t)
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		defer close(ended)
		go func() {
			for tick := time.NewTicker(time.Second); ; seconds.Add(1) {
				select {
				case <-tick.C:
				case <-ended:
					tick.Stop()
					return
				}
			}
		}()
		w := newWorld(t, dir, s.seed, s.managers, s.workers)
		defer func() {
			w.end()
			for _, violation := range w.checks.failed() {
				t.Error(violation)
			}
		}()
		c = newClients(w)
		if err := c.found(); err != nil {
			t.Fatal(err)
		}
		if s.modes {
			w.zones()
		}
		begin := w.begin()
		working := c.work(s, begin)
		w.play(s, begin)
		working.Wait()
		w.operators.Wait()
		if !w.await("the cluster is as it should be", convergence, w.converged) {
			t.Logf("tasks:\n%s", w.table())
		} else if s.modes {
			w.rest()
		}
		w.operators.Wait()
		c.settle()
		w.compare()
		w.verify()
		t.Logf("%s; answers to users: %d good, %d refused, %d stale, %d lost", w.checks.seen(), c.good.Load(), c.refused.Load(), c.stale.Load(), c.lost.Load())
	})
	if c != nil {
		if err := c.history.Check(time.Minute); err != nil {
			t.Errorf("what clients saw of the registers: %v", err)
		}
	}
	finished = true
}

// watchSeconds panics with all stacks when time stands still.
func watchSeconds(seconds *atomic.Int64, s *schedule) (stop func()) {
	ended := make(chan struct{})
	go func() {
		for last := int64(-1); ; {
			select {
			case <-ended:
				return
			case <-time.After(standstill):
			}
			now := seconds.Load()
			if now == last {
				debug.SetTraceback("all")
				panic(fmt.Sprintf("it stands still: make sim SEED=%d\n%s", s.seed, s))
			}
			last = now
		}
	}()
	return func() { close(ended) }
}
