package node_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/swarmd/swarmd/e2e/image"
)

// loadTrouble builds the image trouble:v1 around e2e/trouble and loads it on hosts. It also has a file that is no program.
func (c *cluster) loadTrouble(t *testing.T, hosts ...int) {
	t.Helper()
	dir := t.TempDir()
	binary, archive := filepath.Join(dir, "trouble"), filepath.Join(dir, "trouble.tar")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "../trouble")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build e2e/trouble: %v\n%s", err, out)
	}
	built, err := image.Build(image.Spec{
		Files: []image.File{
			{Path: "/trouble", Source: binary, Mode: 0o755},
			{Path: "/garbage", Content: []byte("\x7fELF, but no more than that"), Mode: 0o755},
			{Path: "/etc/passwd", Content: []byte("root:x:0:0:root:/:/trouble\n")},
		},
		Config: v1.Config{Entrypoint: []string{"/trouble"}, Cmd: []string{"sleep"}, Env: []string{"PATH=/"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := image.WriteArchive(archive, map[string]v1.Image{"docker.io/library/trouble:v1": built}); err != nil {
		t.Fatal(err)
	}
	for _, host := range hosts {
		c.ok(t, host, "image", "load", archive)
	}
}

// inspected is what `task inspect` says of a task's container.
type inspected struct {
	Status struct {
		State, Message, Error string
		Container             struct {
			ExitCode, LocalRestarts int
			LocalExitCodes          []int
			OomKilled               bool
			FinishedAt              string
		}
	}
}

func (c *cluster) inspectTask(t *testing.T, id string) inspected {
	t.Helper()
	out := c.ok(t, c.via, "task", "inspect", id)
	var all []struct{ inspected }
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		t.Fatalf("task inspect: %v\n%s", err, out)
	}
	return all[0].inspected
}

func TestContainers_ThatMakeTrouble_AreContainedAndToldInOneLine(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.loadTrouble(t, 1)
	c.create(t, "good", 1, "-p", "mode=host,published=8080,target=80")
	good := c.pids()
	for _, test := range []struct {
		name  string
		flags []string
		args  []string
		state string
		error string
		code  int // -1 = it never ran
	}{
		{"fork-bomb", []string{"--limit-pids", "60"}, []string{"bomb"}, "failed", "exit code 42", 42},
		{"memory-hog", []string{"--limit-memory", "32M"}, []string{"hog"}, "failed", "out of memory", 137},
		{"exit-code", nil, []string{"exit", "9"}, "failed", "exit code 9", 9},
		{"exec-format", []string{"--entrypoint", "/garbage"}, nil, "failed", "exec format error", 1},
		{"no-entrypoint", []string{"--entrypoint", "/nothing"}, nil, "rejected", "/nothing is not in the image", -1},
		{"no-user", []string{"--user", "stranger"}, nil, "rejected", "stranger", -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"service", "create", "--detach", "--name", test.name, "--restart-condition", "none"}, test.flags...)
			c.ok(t, 1, append(append(args, "trouble:v1"), test.args...)...)
			var x task
			until(t, func() error {
				tasks := c.tasks(t, test.name)
				if len(tasks) != 1 || tasks[0].State != test.state {
					return fmt.Errorf("want one task that is %s:\n%s", test.state, describe(tasks))
				}
				x = tasks[0]
				return nil
			})
			if !strings.Contains(x.Error, test.error) || strings.Contains(x.Error, "\n") || x.Node != "node-1" {
				t.Errorf("on %q the error is %q, want one line with %q", x.Node, x.Error, test.error)
			}
			if code := x.ExitCode; (test.code >= 0) != (code != nil) || code != nil && *code != test.code {
				t.Errorf("exit code %v, want %d", code, test.code)
			}
			ps := c.ok(t, 1, "service", "ps", "--no-trunc", test.name)
			if n := len(lines(ps)); n != 2 || !strings.Contains(ps, test.error) || !strings.Contains(ps, test.state) {
				t.Errorf("service ps says in %d lines:\n%s", n, ps)
			}
			c.remove(t, test.name)
			until(t, func() error {
				if now := c.pids(); len(now) != len(good) {
					return fmt.Errorf("containers %v, want %v", now, good)
				}
				return nil
			})
		})
	}
	t.Run("killed", func(t *testing.T) {
		c.ok(t, 1, "service", "create", "--name", "deaf", "--update-monitor", "100ms", "--stop-grace-period", "1s", "trouble:v1", "deaf")
		x := c.runningAre(t, "deaf", 1)[0]
		c.ok(t, 1, "service", "update", "--force", "deaf")
		const told = "killed: it did not end within its grace period of 1s"
		until(t, func() error {
			for _, now := range c.tasks(t, "deaf") {
				if now.ID == x.ID && now.State == "shutdown" && now.ExitCode != nil && *now.ExitCode == 137 && now.Error == told {
					return nil
				}
			}
			return fmt.Errorf("want it killed after its grace period:\n%s", describe(c.tasks(t, "deaf")))
		})
		if ps := lines(c.ok(t, 1, "service", "ps", "--no-trunc", "deaf")); len(ps) != 3 || !strings.Contains(ps[2], told) {
			t.Errorf("service ps says\n%s", strings.Join(ps, "\n"))
		}
		c.remove(t, "deaf")
	})
	t.Run("log-flood", func(t *testing.T) { logFlood(t, c) })
	c.get(t, fmt.Sprintf("http://%s:8080/", c.addr(1)))
	if now := c.runningAre(t, "good", 1); len(now) != 1 || fmt.Sprint(c.pids()) != fmt.Sprint(good) {
		t.Errorf("the good service had processes %v, has %v", good, c.pids())
	}
}

// logFlood lets a container write as fast as it can: its log is bounded on the disk, can be read, and the container be removed.
func logFlood(t *testing.T, c *cluster) {
	const most = 3*10<<20 + 1<<20 // the sizes of the files that are kept, and a breath
	c.ok(t, 1, "service", "create", "--name", "flood", "--update-monitor", "100ms", "trouble:v1", "flood")
	x := c.runningAre(t, "flood", 1)[0]
	dir := filepath.Join(c.host(1).Dir, "data/logs", x.ID)
	var first os.FileInfo
	rotated := 0
	until(t, func() error {
		var size int64
		list, err := os.ReadDir(dir)
		for _, entry := range list {
			if info, err := entry.Info(); err == nil {
				size += info.Size()
			}
		}
		if size > most {
			t.Fatalf("the log has %d MB in %d files", size>>20, len(list))
		}
		info, err2 := os.Stat(filepath.Join(dir, "current.log"))
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if first == nil || !os.SameFile(first, info) {
			first = info
			rotated++
		}
		if rotated < 6 { // what was written first is long gone
			return fmt.Errorf("%d files were begun, %d MB are there", rotated, size>>20)
		}
		return nil
	})
	if out := c.ok(t, 1, "service", "logs", "--raw", "--tail", "2", "flood"); strings.Count(out, "full disk") != 6 {
		t.Errorf("the last two lines are %q", out)
	}
	c.remove(t, "flood")
	c.runningAre(t, "flood", 0)
}

// TestServicePS_TellsHowEachAttemptOfAReplicaEnded: exit code, signal, memory and image, with node and time, newest first.
func TestServicePS_TellsHowEachAttemptOfAReplicaEnded(t *testing.T) {
	t.Parallel()
	c := newHosts(t, 1, "--insecure-registry", registryHost)
	c.registry(t)
	c.form(t, 1)
	c.loadTrouble(t, 1)
	replaced := func(x task) task {
		t.Helper()
		now := task{}
		until(t, func() error {
			running := c.running(t, "story")
			if len(running) != 1 || running[0].ID == x.ID {
				return errors.New("it is not replaced:\n" + describe(c.tasks(t, "story")))
			}
			now = running[0]
			return nil
		})
		return now
	}
	ended := func(state, why string) {
		t.Helper()
		until(t, func() error {
			if !slices.ContainsFunc(c.tasks(t, "story"), func(x task) bool { return x.State == state && strings.Contains(x.Error, why) }) {
				return fmt.Errorf("no task is %s with %q:\n%s", state, why, describe(c.tasks(t, "story")))
			}
			return nil
		})
	}
	c.ok(t, 1, "service", "create", "--name", "story", "--update-monitor", "100ms", "--restart-delay", "0s", "trouble:v1")
	x := c.runningAre(t, "story", 1)[0]
	lose(t, c.host(1), x, c.pid(t, x))
	x = replaced(x)
	c.signal(t, c.pid(t, x), syscall.SIGKILL)
	replaced(x)
	c.ok(t, 1, "service", "update", "--detach", "--args", "hog", "--limit-memory", "32M", "--restart-delay", "1h", "story")
	ended("failed", "out of memory")
	c.ok(t, 1, "service", "update", "--detach", "--image", registryHost+"/demo/whoami:v9", "story")
	ended("rejected", "image not found")
	out := c.ok(t, 1, "service", "ps", "--no-trunc", "story")
	t.Log(out)
	at := len(out)
	for _, end := range [][]string{{"failed", "exit code 41"}, {"failed", "killed by signal 9"}, {"failed", "out of memory"}, {"rejected", "image not found: " + registryHost}} {
		i := slices.IndexFunc(lines(out), func(line string) bool {
			return !slices.ContainsFunc(append(end, "node-1", "story.1", " ago"), func(word string) bool { return !strings.Contains(line, word) })
		})
		if i < 0 || i >= at {
			t.Errorf("no line with %q on node-1 above the older ones:\n%s", end, out)
		}
		at = i
	}
}

func TestProtection_FromTheOOMKiller_DaemonsHaveItAndContainersDoNot(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.create(t, "web", 2)
	h := c.host(1)
	if err := protected(); err != nil {
		t.Skip("this machine's root may not lower OOM scores:", err)
	}
	score := func(pid int) string {
		body, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(body))
	}
	for name, want := range map[string][]string{"swarmd": {"-500", "-998"}, "containerd": {"-999"}} { // swarmd is also the shims
		for _, pid := range h.Processes(name) {
			if !slices.Contains(want, score(pid)) {
				t.Errorf("process %d, %s, has the score %s", pid, name, score(pid))
			}
		}
	}
	for id, pids := range c.pids() {
		for _, pid := range pids {
			if got := score(pid); got != "0" {
				t.Errorf("process %d of task %s has the score %s", pid, id, got)
			}
		}
	}
}

// protected lowers the score of a process of its own, as swarmd does.
func protected() error {
	return exec.Command("/bin/sh", "-c", "echo -500 > /proc/self/oom_score_adj").Run()
}
