package containerd_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// What containerd has and our directory does not know is removed at the start, and nothing else is: neither what others
// made in our namespace, nor another namespace.
func TestRun_StartsWithLeftovers_RemovesOursAndTouchesNothingElse(t *testing.T) {
	h := newHost(t)
	client, err := client.New(h.daemon.child.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ours := namespaces.WithNamespace(h.ctx, containerd.Namespace)
	others := namespaces.WithNamespace(h.ctx, "others")
	snapshotter := client.SnapshotService("overlayfs")
	before := actives(t, ours, snapshotter)

	runs := runtime.Spec{ID: "runs", Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"sleep"}}}
	config := h.config // of a swarmd that has gone
	made, stop := start(t, config)
	var pid uint32
	for _, id := range []string{"runs", "snapshot"} {
		spec := runs
		spec.ID = id
		if err := made.Create(h.ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	if pid, err = made.Start(h.ctx, "runs"); err != nil {
		t.Fatal(err)
	}
	stays := h.run("stays", "sleep")
	stop()
	if err := client.ContainerService().Delete(ours, "snapshot"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"runs", "snapshot"} {
		if err := os.RemoveAll(filepath.Join(config.Dir, "containers", id)); err != nil {
			t.Fatal(err)
		}
	}
	for _, ctx := range []context.Context{ours, others} {
		label := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "x"}) // or containerd itself collects it
		if _, err := snapshotter.Prepare(ctx, "foreign/1", "", label); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := snapshotter.Remove(ctx, "foreign/1"); err != nil {
				t.Error(err)
			}
		}()
	}
	again, _ := open(t, config)
	h.eventually("what is left is removed", func() bool {
		return slices.Equal(actives(t, ours, snapshotter), append(slices.Clone(before), "foreign/1", "stays"))
	})
	h.eventually("the process without a task is gone", func() bool { return zombie(pid) })
	if got := actives(t, others, snapshotter); !slices.Equal(got, []string{"foreign/1"}) {
		t.Errorf("another namespace has %q", got)
	}
	list, err := again.List(h.ctx)
	if err != nil || len(list) != 1 || list[0].ID != "stays" || list[0].Pid != stays || list[0].State != runtime.Running {
		t.Errorf("list is %+v, %v", list, err)
	}
}

// What a process that died had asked of containerd may be done only after the next one has looked for what was left.
func TestRun_LeftoverComesAfterTheFirstLook_IsRemovedAtTheNext(t *testing.T) {
	h := newHost(t)
	client, err := client.New(h.daemon.child.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ours := namespaces.WithNamespace(h.ctx, containerd.Namespace)
	snapshotter := client.SnapshotService("overlayfs")
	stays := h.run("stays", "sleep")
	config := configure(t, h.daemon.child) // of a swarmd that has gone; it did not see the one above
	config.Dir = h.config.Dir
	made, stop := start(t, config)
	if err := made.Create(h.ctx, runtime.Spec{ID: "late", Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"sleep"}}}); err != nil {
		t.Fatal(err)
	}
	late, err := made.Start(h.ctx, "late")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	config.SweepEvery = 50 * time.Millisecond
	again, _ := open(t, config)
	if list, err := again.List(h.ctx); err != nil || len(list) != 2 {
		t.Fatalf("list is %+v, %v", list, err)
	}
	if err := os.RemoveAll(filepath.Join(config.Dir, "containers", "late")); err != nil {
		t.Fatal(err)
	}
	h.eventually("what came late is removed", func() bool {
		return zombie(late) && slices.Equal(actives(t, ours, snapshotter), []string{"stays"})
	})
	if list, err := again.List(h.ctx); err != nil || len(list) != 1 || list[0].Pid != stays || list[0].State != runtime.Running {
		t.Errorf("list is %+v, %v", list, err)
	}
}

// actives are the names of writable snapshots.
func actives(t *testing.T, ctx context.Context, s snapshots.Snapshotter) []string {
	t.Helper()
	var names []string
	if err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindActive {
			names = append(names, info.Name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func TestNew_KilledWhileItLookedIntoAnImage_ViewIsUnmounted(t *testing.T) {
	requireRoot(t)
	dir := t.TempDir()
	view := filepath.Join(dir, "run", "views", "containerd-mount1")
	if err := os.MkdirAll(view, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", view, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(view, "file"), []byte("in it"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := containerd.Config{Address: filepath.Join(dir, "none.sock"), Dir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), CgroupParent: cgroupParent}
	_, stop := start(t, config)
	defer stop()
	if _, err := os.Stat(view); !os.IsNotExist(err) {
		t.Errorf("the view is left: %v", err)
	}
}
