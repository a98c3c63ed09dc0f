package containerd_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/runtime"
)

// newSharedHost is newHost with shared shims.
func newSharedHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.config.Dir, h.config.RunDir = filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "run")
	h.config.SharedShim = true
	h.runtime, _ = open(t, h.config)
	return h
}

// shimsOf counts the containers of each shim.
func (h *host) shimsOf(pids []uint32) map[int]int {
	out := map[int]int{}
	for _, pid := range pids {
		out[parentOf(h.t, int(pid))]++
	}
	return out
}

func (h *host) runAll(prefix string, n int) []uint32 {
	h.t.Helper()
	pids := make([]uint32, n)
	var group errgroup.Group
	group.SetLimit(4)
	for i := range n {
		id := fmt.Sprintf("%s-%d", prefix, i)
		h.t.Cleanup(func() {
			if err := h.runtime.Remove(context.Background(), id); err != nil {
				h.t.Errorf("remove %s: %v", id, err)
			}
		})
		group.Go(func() (err error) {
			if err = h.runtime.Create(h.ctx, benchSpec(id)); err == nil {
				pids[i], err = h.runtime.Start(h.ctx, id)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		h.t.Fatal(err)
	}
	return pids
}

// The first containers of a group go before the others, and new ones come while they do.
func TestSharedShim_ContainersComeAndGo_OthersStay(t *testing.T) {
	h := newSharedHost(t)
	first := h.runAll("first", 20)
	shims := h.shimsOf(first)
	if len(shims) != 2 {
		t.Errorf("20 containers have shims %v, want two", shims)
	}
	var removals errgroup.Group
	for i := range 19 {
		removals.Go(func() error { return h.runtime.Remove(h.ctx, fmt.Sprintf("first-%d", i)) })
	}
	second := h.runAll("second", 10)
	if err := removals.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, pid := range append(second, first[19]) {
		if zombie(pid) {
			t.Errorf("container %d has ended", i)
		}
	}
	exit, err := h.runtime.Stop(h.ctx, "second-3", "SIGTERM", 30*time.Second)
	if err != nil || exit.Code != 143 {
		t.Errorf("stop: %+v, %v", exit, err)
	}
}

func TestSharedShim_ContainerdAway_ExitsAreNotLost(t *testing.T) {
	h := newSharedHost(t)
	pids := h.runAll("group", 3)
	if n := len(h.shimsOf(pids)); n != 1 {
		t.Fatalf("%d shims", n)
	}
	ctx, cancel := context.WithTimeout(h.ctx, 20*time.Second)
	defer cancel()
	if err := h.daemon.child.StopChild(ctx); err != nil {
		t.Fatal(err)
	}
	h.daemon.stop()
	<-h.daemon.ended
	if err := unix.Kill(int(pids[0]), unix.SIGKILL); err != nil { // the first of its group, whose bundle the shim lives in
		t.Fatal(err)
	}
	h.eventually("it has ended", func() bool { return zombie(pids[0]) })
	if err := h.daemon.startAgain(); err != nil {
		t.Fatal(err)
	}
	h.wantExit("group-0", 137)
	if zombie(pids[1]) || zombie(pids[2]) {
		t.Fatal("the others of its group have ended")
	}
	exit, err := h.runtime.Stop(h.ctx, "group-1", "SIGTERM", 30*time.Second)
	if err != nil || exit.Code != 143 {
		t.Errorf("stop: %+v, %v", exit, err)
	}
}

func TestSharedShim_Killed_ItsGroupEndsAndIsReplaced(t *testing.T) {
	h := newSharedHost(t)
	pids := h.runAll("group", 3)
	if err := unix.Kill(parentOf(t, int(pids[0])), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i, pid := range pids {
		exit, err := h.runtime.Wait(h.ctx, fmt.Sprintf("group-%d", i))
		if err != nil || exit.Code != 137 && !exit.Unknown {
			t.Errorf("wait: %+v, %v", exit, err)
		}
		h.eventually("its process is gone", func() bool { return zombie(pid) })
	}
	h.runAll("next", 2)
	if list, err := h.runtime.List(h.ctx); err != nil || running(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
}

func running(list []runtime.Container) (n int) {
	for _, c := range list {
		if c.State == runtime.Running {
			n++
		}
	}
	return n
}
