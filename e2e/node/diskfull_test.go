package node_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/swarmd/swarmd/e2e/image"
	"github.com/swarmd/swarmd/e2e/lab"
)

// TestNode_DiskFullOfImages: on a disk that is really full, the longest unused images go, by themselves, until there is room;
// what is used stays, also on disk, nothing that runs is touched, and the node takes tasks again.
func TestNode_DiskFullOfImages_UnusedOnesGoAndItTakesTasksAgain(t *testing.T) {
	t.Parallel()
	origin := newMirror(registryHost)
	c := newBareHosts(t, 2, "--insecure-registry", registryHost)
	h := c.host(2)
	if err := h.OwnDisk(256); err != nil {
		t.Fatal(err)
	}
	for _, h := range c.lab.Hosts() {
		c.start(h)
	}
	c.form(t, 2)
	origin.start(t, c)
	// In containerd an image takes its size twice, packed and unpacked: 13 % of the disk each.
	for i, tag := range []string{"used", "oldest", "older", "newest"} {
		content := make([]byte, 16<<20)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(content)
		spec := whoami(t, "v1")
		spec.Files = append(spec.Files, image.File{Path: "/ballast", Content: content})
		origin.push(t, c, tag, spec)
	}
	ref := func(tag string) string { return registryHost + "/team/app:" + tag }
	c.ok(t, 1, "service", "create", "--name", "web", "--update-monitor", "500ms", "--constraint", "node.hostname==node-2", ref("used"))
	c.runningAre(t, "web", 1)
	for _, tag := range []string{"newest", "older", "oldest"} {
		c.ok(t, 2, "image", "pull", ref(tag))
	}
	before := c.pids()
	whileStopped(t, c, h, 2, func(store *bbolt.DB) error {
		return errors.Join(pulledAgo(store, ref("used"), 9*time.Hour), pulledAgo(store, ref("oldest"), 3*time.Hour),
			pulledAgo(store, ref("older"), 2*time.Hour), pulledAgo(store, ref("newest"), time.Hour))
	})
	out, _, err := h.Run("/bin/sh", "-c", "dd if=/dev/zero of=/var/lib/swarmd/ballast bs=64k; sync")
	if err != nil || !strings.Contains(out, "No space left") {
		t.Fatalf("the disk is not full: %v\n%s", err, out)
	}
	until(t, func() error {
		images := c.ok(t, 2, "image", "ls", "--format", "json")
		for tag, stays := range map[string]bool{"used": true, "oldest": false, "older": false, "newest": true} {
			if strings.Contains(images, tag) != stays {
				return fmt.Errorf("want used and newest left:\n%s", images)
			}
		}
		return nil
	})
	c.ok(t, 1, "service", "scale", "web=2")
	c.runningAre(t, "web", 2)
	until(t, func() error {
		if out := c.ok(t, 1, "node", "ls", "--format", "{{.Message}}"); strings.Contains(out, "disk") {
			return errors.New("node ls says " + out)
		}
		return nil
	})
	now := c.pids()
	for id, pids := range before {
		if !slices.Equal(now[id], pids) {
			t.Errorf("task %s had the processes %v, has %v", id, pids, now[id])
		}
	}
}

// whileStopped ends the daemons of a host, but no container, lets fn change containerd's own store, and starts them again.
func whileStopped(t *testing.T, c *cluster, h *lab.Host, nodes int, fn func(store *bbolt.DB) error) {
	t.Helper()
	if err := h.KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range h.Processes("containerd") {
		c.signal(t, pid, syscall.SIGKILL)
	}
	path := fmt.Sprintf("/proc/%d/root/var/lib/swarmd/containerd/root/io.containerd.metadata.v1.bolt/meta.db", h.Pid())
	store, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: patience}) // until containerd is gone
	if err != nil {
		t.Fatalf("open %s: %v", filepath.Base(path), err)
	}
	if err := errors.Join(fn(store), store.Close()); err != nil {
		t.Fatal(err)
	}
	c.start(h)
	c.nodesReady(t, nodes)
}

// pulledAgo makes an image, under all its names, one that was pulled so long ago.
func pulledAgo(store *bbolt.DB, ref string, age time.Duration) error {
	stamp, err := time.Now().Add(-age).UTC().MarshalBinary()
	if err != nil {
		return err
	}
	return store.Update(func(tx *bbolt.Tx) error {
		found := 0
		err := tx.Bucket([]byte("v1")).ForEachBucket(func(namespace []byte) error {
			images := tx.Bucket([]byte("v1")).Bucket(namespace).Bucket([]byte("images"))
			if images == nil || images.Bucket([]byte(ref)) == nil {
				return nil
			}
			target := images.Bucket([]byte(ref)).Bucket([]byte("target")).Get([]byte("digest"))
			return images.ForEachBucket(func(name []byte) error {
				b := images.Bucket(name)
				if !slices.Equal(b.Bucket([]byte("target")).Get([]byte("digest")), target) {
					return nil
				}
				found++
				return b.Put([]byte("createdat"), stamp)
			})
		})
		if err == nil && found == 0 {
			err = fmt.Errorf("containerd's store has no image %s", ref)
		}
		return err
	})
}
