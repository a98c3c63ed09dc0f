package replica

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

func TestHealth_LowSpace_IsSeenAndForgottenAboveTheWatermark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var free atomic.Uint64
		free.Store(10 << 30)
		c := newCluster(t, 1, func(m *member) {
			m.free = func(string) (uint64, error) { return free.Load(), nil }
		})
		m := c.leader()
		for _, step := range []struct {
			free uint64
			low  bool
		}{{256 << 20, false}, {256<<20 - 1, true}, {256 << 20, true}, {300 << 20, false}} {
			free.Store(step.free)
			<-time.After(2 * time.Second)
			if h := m.Health(); h.LowSpace != step.low || h.FreeBytes != step.free {
				t.Errorf("with %d bytes free: %+v", step.free, h)
			}
		}
	})
	if free, err := freeBytes(t.TempDir()); err != nil || free == 0 {
		t.Errorf("freeBytes = %d, %v", free, err)
	}
}

// hangDisk makes every write of the member hang until the function that it returns is called.
func (m *member) hangDisk() (release func()) {
	hang := make(chan struct{})
	m.logs.setStall(func() { <-hang })
	return sync.OnceFunc(func() {
		m.logs.setStall(func() {})
		close(hang)
	})
}

func TestHealth_StepDownsForAHungDisk_AreCountedForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		old := c.leader()
		for i := range 3 {
			c.transfer(old)
			release := old.hangDisk()
			c.follower().mustPropose(alarm("a", fmt.Sprint("r", i)))
			release()
			if n := old.Health().StepDowns; n != i+1 {
				t.Errorf("after %d hangs: %d step-downs", i+1, n)
			}
		}
		for _, m := range c.members {
			if n := m.Health().StepDowns; m != old && n != 0 {
				t.Errorf("%s, whose disk is well, has %d step-downs", m.id, n)
			}
		}
		<-time.After(time.Minute)
		if n := old.Health().StepDowns; n != 0 {
			t.Errorf("a minute later: %d step-downs", n)
		}
	})
}

// Whoever is up to date leads while one member's disk hangs, whatever that one was in the middle of.
func TestHungDisk_OthersElectAndWrite_TheMemberFollowsAfterwards(t *testing.T) {
	for _, n := range []int{3, 5} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, n, nil)
			hung := c.leader()
			release := hung.hangDisk()
			defer release()
			start := time.Now()
			var wg sync.WaitGroup
			for i, m := range c.members {
				if m != hung { // which cannot take note of the next leader: its clients go to another one
					wg.Go(func() { m.mustPropose(alarm(fmt.Sprint("w", i), fmt.Sprint("w", i))) })
				}
			}
			wg.Wait()
			// The deadline of the write that hangs, and no wait for heartbeats after it.
			if took, most := time.Since(start), hung.Replica.tuning.WriteDeadline+DefaultTuning().HeartbeatTimeout/2; took > most {
				t.Errorf("writes through the others took %s, more than %s", took, most)
			}
			if n == 5 {
				// The hung member knows of the new leader, whose loss makes it write another term.
				next := c.leader()
				c.net.partition(next.address, true)
				<-time.After(2 * time.Second)
				c.leader().mustPropose(alarm("second", "second"))
				c.net.partition(next.address, false)
			}
			if c.leader() == hung {
				t.Error("the member with the hung disk leads")
			}
			<-time.After(5 * time.Second)
			term := c.leader().node.Load().CurrentTerm()
			release()
			<-time.After(5 * time.Second)
			if now := c.leader().node.Load().CurrentTerm(); now != term {
				t.Errorf("its return moved the term from %d to %d", term, now)
			}
			for i, m := range c.members {
				if m == hung {
					continue
				}
				if _, err := hung.ReadIndex(t.Context()); err != nil || hung.count(fmt.Sprint("w", i)) != 1 {
					t.Errorf("write %d is there %d times: %v", i, hung.count(fmt.Sprint("w", i)), err)
				}
			}
		})
	}
}

func TestFullDisk_LeaderStepsDown_AndFollowsWhenThereIsSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		old := c.leader()
		var full atomic.Bool
		full.Store(true)
		old.logs.setFault(func() error {
			if full.Load() {
				return unix.ENOSPC
			}
			return nil
		})
		c.follower().mustPropose(alarm("a", "r"))
		if c.leader() == old {
			t.Fatal("the member with the full disk leads")
		}
		<-time.After(10 * time.Second)
		full.Store(false)
		if _, err := old.ReadIndex(t.Context()); err != nil || old.count("a") != 1 {
			t.Errorf("after there is space: %v, count %d", err, old.count("a"))
		}
		if n := old.Health().StepDowns; n != 0 {
			t.Errorf("a full disk counts as %d hangs", n)
		}
	})
}

// The real thing: a log on a file system that fills up.
func TestLog_FileSystemFull_FailsAndRecoversInPlace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "raft.db")
	l := openTestLog(t, path)
	entry := func(i uint64) *raft.Log {
		return &raft.Log{Index: i, Term: 1, Type: raft.LogCommand, Data: make([]byte, 10<<10)}
	}
	last := uint64(0)
	var err error
	for err == nil && last < 1000 {
		if err = l.StoreLog(entry(last + 1)); err == nil {
			last++
		}
	}
	if !errors.Is(err, unix.ENOSPC) || last == 0 {
		t.Fatalf("after %d entries: %v", last, err)
	}
	if err := l.StoreLog(entry(last + 1)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("again: %v", err)
	}
	if got, _ := l.LastIndex(); got != last {
		t.Errorf("last index %d, not %d", got, last)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := l.StoreLog(entry(last + 1)); err != nil {
			t.Fatalf("with space again: %v", err)
		}
		last++
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	l = openTestLog(t, path)
	defer l.close()
	if l.first != 1 || l.last != last {
		t.Errorf("opened again it holds %d to %d, not 1 to %d", l.first, l.last, last)
	}
}
