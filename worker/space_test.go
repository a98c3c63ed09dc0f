package worker

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestSpace_Look_FullBelowTheLeastAndRoomOnlyWellAboveIt(t *testing.T) {
	const gib = 1 << 30
	disk := Disk{}
	s := newSpace(Config{Dir: "/data", Disk: func(string) (Disk, error) { return disk, nil }}, newProblems())
	for i, c := range []struct {
		disk Disk
		full bool
	}{
		{Disk{Free: gib, Size: 100 * gib}, false},
		{Disk{Free: lowSpace, Size: 100 * gib}, false},
		{Disk{Free: lowSpace - 1, Size: 100 * gib}, true},
		{Disk{Free: lowSpace + 1, Size: 100 * gib}, true}, // not yet
		{Disk{Free: lowSpace * 3 / 2, Size: 100 * gib}, false},
		{Disk{Free: 5 << 20, Size: 64 << 20}, false}, // a small one has less
		{Disk{Free: 3 << 20, Size: 64 << 20}, true},
		{Disk{Free: gib, Size: 100 * gib, Files: 0}, false}, // without a bound on files
		{Disk{Free: gib, Size: 100 * gib, Files: 999, Counted: true}, true},
		{Disk{Free: gib, Size: 100 * gib, Files: 1500, Counted: true}, false},
	} {
		disk = c.disk
		s.look()
		why := s.takesNone()
		if (why != "") != c.full || c.full && !strings.Contains(why, "/data") || len(s.issues.list()) != btoi(c.full) {
			t.Errorf("look %d, %+v: %q with problems %q, want full: %v", i, c.disk, why, s.issues.list(), c.full)
		}
	}
}

func TestStatDisk_OfADirectory_AndOfNone(t *testing.T) {
	d, err := statDisk(t.TempDir())
	if err != nil || d.Size == 0 || d.Free > d.Size {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := statDisk(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error for a directory that is not there")
	}
}

func TestAgent_DiskFull_ManagersKnowUntilThereIsRoom(t *testing.T) {
	inBubble(t, func(t *testing.T, h *host) {
		var full atomic.Bool
		h.stop()
		h.disk = func(string) (Disk, error) {
			if full.Load() {
				return Disk{Free: 1, Size: 1 << 40}, nil
			}
			return Disk{Free: 1 << 39, Size: 1 << 40}, nil
		}
		h.start()
		h.manager.assign("a", stateRunning)
		h.settle(time.Second)
		said := func() string {
			h.manager.mu.Lock()
			defer h.manager.mu.Unlock()
			return h.manager.described.GetTakesNoTasks()
		}
		full.Store(true)
		h.settle(6 * time.Second)
		if !strings.Contains(said(), "disk is full") {
			t.Errorf("the managers were told %q", said())
		}
		h.wantRunning("a")
		h.restart() // the new session says so from its start
		if !strings.Contains(said(), "disk is full") {
			t.Errorf("after a restart the managers were told %q", said())
		}
		full.Store(false)
		h.settle(6 * time.Second)
		if said() != "" {
			t.Errorf("with room again the managers were told %q", said())
		}
	})
}
