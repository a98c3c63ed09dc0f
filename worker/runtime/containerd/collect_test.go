package containerd_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

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
