package containerd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"go.etcd.io/bbolt"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// TestContainerd_DiedBetweenARemovalAndItsCollection_NoFileSystemIsLeft: containerd has forgotten the file system of a removed
// container and died before it removed the files. Without a removal after it they would stay.
func TestContainerd_DiedBetweenARemovalAndItsCollection_NoFileSystemIsLeft(t *testing.T) {
	h := newHost(t)
	if err := h.runtime.Create(h.ctx, runtime.Spec{ID: "gone", Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"exit", "0"}}}); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(h.daemon.root, "data", "root")
	files := func() int {
		dirs, err := filepath.Glob(filepath.Join(data, "io.containerd.snapshotter.v1.*", "snapshots", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(dirs)
	}
	with := files()
	if err := h.daemon.child.StopChild(h.ctx); err != nil {
		t.Fatal(err)
	}
	h.daemon.stop()
	<-h.daemon.ended
	forget(t, filepath.Join(data, "io.containerd.metadata.v1.bolt", "meta.db"), "gone")
	if err := h.daemon.startAgain(); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(30 * time.Second); files() >= with; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%d file systems are left, and there were %d with that of the removed container", files(), with)
		}
	}
	if err := h.runtime.Remove(h.ctx, "gone"); err != nil {
		t.Error(err)
	}
}

// TestRemove_WhileContainerdCollects_NoFileSystemIsLeft: containerd takes no notice of a removal that comes while it still removes
// files of a collection. Without another removal after it the file system would stay.
func TestRemove_WhileContainerdCollects_NoFileSystemIsLeft(t *testing.T) {
	h := newHost(t)
	for files := 10_000; ; files *= 2 {
		before := h.fileSystems()
		if err := h.runtime.Create(h.ctx, runtime.Spec{ID: "gone", Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"exit", "0"}}}); err != nil {
			t.Fatal(err)
		}
		collecting := h.collectLong(files)
		h.eventually("a collection removes files", collecting)
		if err := h.runtime.Remove(h.ctx, "gone"); err != nil {
			t.Fatal(err)
		}
		long := collecting() // or the removal came after the collection
		h.eventually("the file system of the removed container is removed", func() bool { return h.fileSystems() <= before })
		if long {
			return
		}
	}
}

// fileSystems is how many containerd has of the tests' snapshotter.
func (h *host) fileSystems() int {
	h.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(h.daemon.root, "data", "root", "io.containerd.snapshotter.v1.overlayfs", "snapshots", "*"))
	if err != nil {
		h.t.Fatal(err)
	}
	return len(dirs)
}

// collectLong has containerd collect a file system, of the other snapshotter, of so many files; what it gives says whether it is at it.
func (h *host) collectLong(files int) func() bool {
	h.t.Helper()
	client, err := client.New(h.daemon.child.Address())
	if err != nil {
		h.t.Fatal(err)
	}
	defer client.Close()
	ctx := namespaces.WithNamespace(h.ctx, "others")
	other := client.SnapshotService("native")
	mounts, err := other.Prepare(ctx, "large", "", snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "x"}))
	if err != nil {
		h.t.Fatal(err)
	}
	for i := range files {
		if err := os.WriteFile(filepath.Join(mounts[0].Source, fmt.Sprint(i)), nil, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := other.Remove(ctx, "large"); err != nil {
		h.t.Fatal(err)
	}
	return func() bool {
		removed, err := filepath.Glob(filepath.Join(filepath.Dir(mounts[0].Source), "rm-*"))
		if err != nil {
			h.t.Fatal(err)
		}
		return len(removed) > 0
	}
}

// forget takes a file system out of what containerd, which does not run, knows.
func forget(t *testing.T, path, id string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte("v1"))
		for _, name := range []string{containerd.Namespace, "snapshots"} {
			if bucket = bucket.Bucket([]byte(name)); bucket == nil {
				return fmt.Errorf("no bucket %s", name)
			}
		}
		name, _ := bucket.Cursor().First() // the one snapshotter that is used
		bucket = bucket.Bucket(name)
		parent := bucket.Bucket([]byte(id)).Get([]byte("parent"))
		if children := bucket.Bucket(parent).Bucket([]byte("children")); children != nil {
			if err := children.Delete([]byte(id)); err != nil {
				return err
			}
		}
		return bucket.DeleteBucket([]byte(id))
	})
	if err != nil {
		t.Fatal(err)
	}
}
