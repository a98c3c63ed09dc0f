package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

const existingConfig = `version = 3
root = "/var/lib/existing/root"
state = "/run/existing/state"
[grpc]
address = "/run/existing/containerd.sock"
`

func TestContainerd_ThatExists_RunsServicesAndOutlivesALeave(t *testing.T) {
	t.Parallel()
	c := newBareHosts(t, 1, "--containerd", "/run/existing/containerd.sock")
	h := c.host(1)
	bin := filepath.Join(h.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2"} { // one binary: swarmd is all three
		if err := os.Symlink(artifact(t, "bin/swarmd"), filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(h.Dir, "existing.toml")
	if err := os.WriteFile(config, []byte(existingConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("NotYetRunning_InfoOrImagesSaySo", func(t *testing.T) {
		c.start(h)
		c.refused(t, 1, []string{"/run/existing/containerd.sock"}, "image", "ls")
	})
	// Its root is the host's own: overlayfs cannot lie on the overlay that the machine may have.
	start := fmt.Sprintf("mkdir -p /run/existing %[1]s/root && PATH=%[2]s:$PATH exec %[2]s/containerd --config %[3]s --root %[1]s/root", h.Dir, bin, config)
	if err := h.Start("existing", "/bin/sh", "-c", start); err != nil {
		t.Fatal(err)
	}
	until(t, func() error {
		if _, errs, code := c.ctl(1, "image", "ls"); code != 0 {
			return errors.New(errs)
		}
		return nil
	})
	c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	c.load(t, 1)
	c.nodesReady(t, 1)
	existing := h.Processes("containerd")
	c.create(t, "web", 2)
	if err := h.KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	before := c.pids()
	c.start(h)
	c.nodesReady(t, 1)
	c.runningAre(t, "web", 2)
	if now := c.pids(); fmt.Sprint(now) != fmt.Sprint(before) {
		t.Errorf("containers were %v, are %v", before, now)
	}
	c.ok(t, 1, "leave", "--force")
	nothingLeft(t, c, 1)
	if now := h.Processes("containerd"); len(now) != 1 || now[0] != existing[0] {
		t.Errorf("the existing containerd was %v, is %v", existing, now)
	}
}
