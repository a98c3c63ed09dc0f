package node_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/swarmd/swarmd/e2e/lab"
)

// secondBuild builds swarmd again, with another version and another logger.
func secondBuild(t *testing.T, path string) {
	t.Helper()
	packed, err := filepath.Abs("../../worker/runtime/logger/bin/logger-" + runtime.GOARCH + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	overlay, other := filepath.Join(t.TempDir(), "overlay.json"), filepath.Join(t.TempDir(), "logger.gz")
	config, err1 := json.Marshal(map[string]map[string]string{"Replace": {packed: other}})
	if err := errors.Join(err1, os.WriteFile(overlay, config, 0o600), os.WriteFile(other, otherLogger(t, packed), 0o600)); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-overlay", overlay, "-ldflags", "-s -w -X main.version=second", "-o", path, "../../cmd/swarmd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
}

// otherLogger does what the logger of the build does, with other bytes: nothing reads what follows the program in its file.
func otherLogger(t *testing.T, packed string) []byte {
	t.Helper()
	body, err := os.ReadFile(packed)
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err1 := io.Copy(w, r)
	_, err2 := w.Write([]byte("second"))
	if err := errors.Join(err1, err2, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	body, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, body, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The new build takes the old one's place as packages are upgraded: under its path, by a rename, so that what runs of the old
// one has lost its file.
func TestSwarmd_ReplacedByAnotherBuild_ServesWhatTheOldOneStarted(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "swb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, second := filepath.Join(dir, "swarmd"), filepath.Join(dir, "second")
	copyFile(t, program, artifact(t, "bin/swarmd"))
	secondBuild(t, second)
	c := newHostsOf(t, 1, program)
	h := c.host(1)
	c.start(h)
	c.form(t, 1)
	c.loadTrouble(t, 1)
	c.ok(t, 1, "service", "create", "--name", "many", "--replicas", "4", "--restart-delay", "0s", "trouble:v1")
	old := c.runningAre(t, "many", 4)
	before, containerd, loggers := c.pids(), h.Processes("containerd"), loggersOf(h)
	if err := h.KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(second, program); err != nil {
		t.Fatal(err)
	}
	c.start(h)
	c.nodesReady(t, 1)
	c.runningAre(t, "many", 4)
	if version := c.ok(t, 1, "info", "--format", "{{.Version}}"); strings.TrimSpace(version) != "second" {
		t.Errorf("version is %s", version)
	}
	if now := c.pids(); !maps.EqualFunc(now, before, slices.Equal) || !slices.Equal(h.Processes("containerd"), containerd) {
		t.Fatalf("containers were %v, are %v; containerd was %v, is %v", before, now, containerd, h.Processes("containerd"))
	}
	ends := func(x task) {
		t.Helper()
		lose(t, h, x, c.pid(t, x))
		until(t, func() error {
			if box := c.inspectTask(t, x.ID).Status.Container; box.ExitCode != lostCode {
				return fmt.Errorf("exit code of %s is %d", x.Name, box.ExitCode)
			}
			return nil
		})
		c.runningAre(t, "many", 4)
	}
	ends(old[0]) // under the old containerd
	c.signal(t, containerd[0], syscall.SIGKILL)
	until(t, func() error { // the new build's, with shims of the old one and of the new one
		if now := h.Processes("containerd"); len(now) != 1 || now[0] == containerd[0] {
			return fmt.Errorf("containerd is %v", now)
		}
		return nil
	})
	ends(old[1])
	now := c.pids()
	for _, x := range old[2:] {
		if !slices.Equal(now[x.ID], before[x.ID]) {
			t.Errorf("%s had processes %v, has %v", x.Name, before[x.ID], now[x.ID])
		}
	}
	mixedLogs(t, c, loggers)
	// What the old build's shims hold goes like what the new one's hold.
	c.remove(t, "many")
	c.runningAre(t, "many", 0)
	until(t, func() error {
		if left := inventoryOf(t, h); left.shims+left.loggers+left.namespaces+left.cgroups+left.records != 0 {
			return fmt.Errorf("left after the service: %+v", left)
		}
		return nil
	})
}

// loggersOf are the loggers of a host, by their program's name, which has the hash of its content.
func loggersOf(h *lab.Host) map[string][]int {
	return maps.Collect(func(yield func(string, []int) bool) {
		for name, pids := range h.Programs() {
			if strings.HasPrefix(name, "logger-") && !yield(name, pids) {
				return
			}
		}
	})
}

// mixedLogs wants containers of both builds beside each other, each with its build's logger, and what all say in the logs.
func mixedLogs(t *testing.T, c *cluster, old map[string][]int) {
	t.Helper()
	now := loggersOf(c.host(1))
	if len(old) != 1 || len(now) != 2 {
		t.Fatalf("loggers were %v, are %v; want those of one build, then of two", old, now)
	}
	for name, pids := range old {
		if len(pids) != 4 || len(now[name]) != 2 {
			t.Errorf("of the old build's loggers there were %v, there are %v, want 4, then 2", pids, now[name])
		}
	}
	for _, x := range c.running(t, "many") {
		c.say(t, x, 1, "said by "+x.ID)
		until(t, func() error {
			if out := c.ok(t, 1, "service", "logs", "--raw", x.ID); !strings.Contains(out, "said by "+x.ID) {
				return fmt.Errorf("the log of %s is %q", x.Name, out)
			}
			return nil
		})
	}
}
