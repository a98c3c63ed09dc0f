package node_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/swarmd/swarmd/e2e/lab"
)

// cyclesEnv is the number of kills of swarmd in the test below; containerd is killed half as often. `make soak` sets it.
const cyclesEnv = "CYCLES"

func cycles(t *testing.T) int {
	n := 5
	if text := os.Getenv(cyclesEnv); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 {
			t.Fatalf("%s=%q is not a number of cycles", cyclesEnv, text)
		}
	}
	return n
}

func TestWorker_DaemonsKilledAgainAndAgain_NothingRestartsAndNothingLeaks(t *testing.T) {
	t.Parallel()
	const replicas = 20
	c := newCluster(t, 2)
	c.loadTrouble(t, 2)
	c.ok(t, 1, "service", "create", "--name", "many", "--replicas", fmt.Sprint(replicas), "--constraint", "node.hostname==node-2",
		"--restart-delay", "0s", "trouble:v1")
	c.runningAre(t, "many", replicas)
	h := c.host(2)
	before := inventoryOf(t, h)
	if before.containers != replicas || before.shims != replicas || before.loggers != replicas {
		t.Fatalf("at first: %+v", before)
	}
	n := cycles(t)
	began := time.Now()
	for i := range n {
		killAndLose(t, c, fmt.Sprintf("swarmd, cycle %d", i+1), i, h.KillSwarmd, func() { c.start(h) })
	}
	t.Logf("%d kills of swarmd took %s", n, time.Since(began).Round(time.Second))
	began = time.Now()
	for i := range (n + 1) / 2 {
		var old int
		killAndLose(t, c, fmt.Sprintf("containerd, cycle %d", i+1), i, func() error {
			if i%2 == 1 { // both at once
				if err := h.KillSwarmd(); err != nil {
					return err
				}
			}
			pids := h.Processes("containerd")
			if len(pids) != 1 {
				return fmt.Errorf("containerd is %v", pids)
			}
			old = pids[0]
			return syscall.Kill(old, syscall.SIGKILL)
		}, func() {
			if i%2 == 1 {
				c.start(h)
			}
			until(t, func() error {
				if pids := h.Processes("containerd"); len(pids) != 1 || pids[0] == old {
					return fmt.Errorf("containerd is %v", pids)
				}
				return nil
			})
		})
	}
	t.Logf("%d kills of containerd took %s", (n+1)/2, time.Since(began).Round(time.Second))
	// What a kill kept containerd from collecting, it collects at its next removal.
	killAndLose(t, c, "no kill", 0, func() error { return nil }, func() {})
	var after inventory
	until(t, func() error {
		if after = inventoryOf(t, h); after.leaks(before) != "" {
			return errors.New(after.leaks(before))
		}
		return nil
	})
	t.Logf("before: %+v", before)
	t.Logf("after:  %+v", after)
	c.remove(t, "many")
	until(t, func() error {
		if left := inventoryOf(t, h); left.containers+left.shims+left.loggers+left.namespaces+left.cgroups+left.records != 0 || left.snapshots != before.snapshots-replicas {
			return fmt.Errorf("left after the service: %+v", left)
		}
		return nil
	})
}

// lostCode is what trouble ends with on SIGUSR1.
const lostCode = 41

// killAndLose kills a daemon, ends one container while it is away, mends it, and wants all other containers untouched, the
// one replaced, and its end told as it was. Each third time no container ends.
func killAndLose(t *testing.T, c *cluster, what string, i int, kill func() error, mend func()) {
	t.Helper()
	running := c.runningAre(t, "many", 20)
	before := c.pids()
	victim := running[i%len(running)]
	pid, host := c.pid(t, victim), c.hostOf(t, victim)
	if err := kill(); err != nil {
		t.Fatal(err)
	}
	from := time.Now()
	if i%3 != 2 {
		lose(t, host, victim, pid)
	}
	till := time.Now()
	mend()
	if i%3 != 2 {
		until(t, func() error {
			if slices.ContainsFunc(c.running(t, "many"), func(x task) bool { return x.ID == victim.ID }) {
				return fmt.Errorf("%s: the end of %s is not told", what, victim.Name)
			}
			return nil
		})
		delete(before, victim.ID)
	}
	c.runningAre(t, "many", 20)
	now := c.pids()
	for id, pids := range before {
		if !slices.Equal(now[id], pids) {
			t.Fatalf("%s: task %s had the processes %v, has %v", what, id, pids, now[id])
		}
	}
	if i%3 == 2 {
		if !maps.EqualFunc(now, before, slices.Equal) {
			t.Fatalf("%s: containers were %v, are %v", what, before, now)
		}
		return
	}
	got := c.inspectTask(t, victim.ID).Status
	// The shim's clock is the host's; the end is seen a little after the signal, never before it.
	box := got.Container
	at, err := time.Parse(time.RFC3339Nano, box.FinishedAt)
	if err != nil || box.ExitCode != lostCode || at.Before(from.Add(-time.Second)) || at.After(till.Add(time.Second)) || box.LocalRestarts != 0 {
		t.Errorf("%s: %s ended with %d at %s (%q), want %d between %s and %s", what, victim.Name, box.ExitCode, box.FinishedAt, got.Error, lostCode, from, till)
	}
}

// lose ends a task's process. A first process that has no handler yet is not reached by a signal.
func lose(t *testing.T, h *lab.Host, x task, pid int) {
	t.Helper()
	until(t, func() error {
		if !slices.Contains(h.Containers()[x.ID], pid) {
			return nil
		}
		_ = syscall.Kill(pid, syscall.SIGUSR1)
		return fmt.Errorf("%s still runs", x.Name)
	})
}

// inventory is what a host has of what leaks.
type inventory struct {
	containers, shims, loggers, processes, namespaces, mounts, links, cgroups, records, snapshots int
	containerdFiles, swarmdFiles, shimFiles, loggerFiles                                          int
}

func inventoryOf(t *testing.T, h *lab.Host) inventory {
	t.Helper()
	var v inventory
	v.containers = len(h.Containers())
	for name, pids := range h.Programs() {
		v.processes += len(pids)
		for _, pid := range pids {
			line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			args := bytes.Split(line, []byte{0})
			switch {
			case strings.HasPrefix(name, "logger-"):
				v.loggers++
				v.loggerFiles += files(pid)
			case name == "containerd":
				v.containerdFiles += files(pid)
			case len(args) > 1 && string(args[1]) == "-namespace":
				v.shims++
				v.shimFiles += files(pid)
			case name == lab.Daemon:
				v.swarmdFiles += files(pid)
			}
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", h.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	v.mounts = bytes.Count(mounts, []byte("\n"))
	if err := h.Inside(func() error {
		for range 5 { // the kernel says when it changed meanwhile
			links, err := netlink.LinkList()
			v.links = len(links)
			if !errors.Is(err, netlink.ErrDumpInterrupted) {
				return err
			}
		}
		return netlink.ErrDumpInterrupted
	}); err != nil {
		t.Fatal(err)
	}
	v.cgroups = len(slices.DeleteFunc(h.Cgroups(), func(dir string) bool { return strings.Contains(dir, "/freezer/") && len(filepath.Base(dir)) < 25 }))
	v.namespaces = entries(h, "run/network/netns")
	v.records = entries(h, "data/containers")
	v.snapshots = entries(h, "data/containerd/root/io.containerd.snapshotter.v1.overlayfs/snapshots")
	return v
}

func files(pid int) int {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(list)
}

func entries(h *lab.Host, dir string) int {
	list, _ := os.ReadDir(filepath.Join(h.Dir, dir))
	return len(list)
}

// leaks says what there is more of than before; processes may hold a few files more at one moment than at another.
func (v inventory) leaks(before inventory) string {
	const breath = 12
	most := before
	for _, f := range []struct{ now, then *int }{
		{&v.containerdFiles, &most.containerdFiles}, {&v.swarmdFiles, &most.swarmdFiles},
		{&v.shimFiles, &most.shimFiles}, {&v.loggerFiles, &most.loggerFiles},
	} {
		if *f.now <= *f.then+breath {
			*f.now = *f.then
		}
	}
	if v == most {
		return ""
	}
	return fmt.Sprintf("there was %+v, there is %+v", before, v)
}

func TestWorker_ManagersDead_RestartsWhatFailsAlsoAcrossItsOwnRestart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.loadTrouble(t, 2)
	c.ok(t, 1, "service", "create", "--name", "fails", "--replicas", "2", "--constraint", "node.hostname==node-2", "trouble:v1")
	tasks := c.runningAre(t, "fails", 2)
	h := c.host(2)
	if err := c.host(1).KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	comesBack := func(x task) {
		t.Helper()
		var pid int
		until(t, func() error { // it may have been killed in the middle of its start
			pids := h.Containers()[x.ID]
			if len(pids) == 0 {
				return fmt.Errorf("%s does not run", x.Name)
			}
			pid = slices.Min(pids)
			return nil
		})
		lose(t, h, x, pid)
		until(t, func() error {
			if now := h.Containers()[x.ID]; len(now) == 0 || slices.Min(now) == pid {
				return fmt.Errorf("%s has the processes %v", x.Name, now)
			}
			return nil
		})
	}
	comesBack(tasks[0])
	if err := h.KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	c.start(h)
	comesBack(tasks[0])
	other := h.Containers()[tasks[1].ID]
	c.start(c.host(1))
	c.nodesReady(t, 2)
	now := c.runningAre(t, "fails", 2)
	until(t, func() error {
		got := c.inspectTask(t, tasks[0].ID).Status
		if got.State != "running" || got.Container.LocalRestarts != 2 || !slices.Equal(got.Container.LocalExitCodes, []int{lostCode, lostCode}) {
			return fmt.Errorf("status is %+v, want two restarts after %d", got, lostCode)
		}
		return nil
	})
	for _, x := range now {
		if x.ID != tasks[0].ID && x.ID != tasks[1].ID {
			t.Errorf("%s was replaced", x.Name)
		}
	}
	if !slices.Equal(h.Containers()[tasks[1].ID], other) {
		t.Errorf("%s had processes %v, has %v", tasks[1].Name, other, h.Containers()[tasks[1].ID])
	}
}

func TestNode_DiskFull_TakesNoTasksUntilThereIsRoom(t *testing.T) {
	t.Parallel()
	c := newBareHosts(t, 2)
	if err := c.host(2).OwnDisk(512); err != nil {
		t.Fatal(err)
	}
	for _, h := range c.lab.Hosts() {
		c.start(h)
	}
	c.form(t, 2)
	c.ok(t, 1, "service", "create", "--name", "web", "--constraint", "node.hostname==node-2", "whoami:v1")
	c.runningAre(t, "web", 1)
	before := c.pids()
	fill := func(script string) {
		t.Helper()
		if out, code, err := c.host(2).Run("/bin/sh", "-c", script); err != nil {
			t.Fatalf("%s: exit %d, %v\n%s", script, code, err, out)
		}
	}
	fill("dd if=/dev/zero of=/var/lib/swarmd/ballast bs=1M; true")
	messageHas := func(word string) {
		t.Helper()
		until(t, func() error {
			out := c.ok(t, 1, "node", "ls", "--format", "{{.Hostname}}={{.Message}}")
			if strings.Contains(out, word) == (word != "") && (word != "" || !strings.Contains(out, "disk")) || word == "" && !strings.Contains(out, "disk") {
				return nil
			}
			return fmt.Errorf("node ls says:\n%s", out)
		})
	}
	messageHas("node-2=takes no new tasks: its disk is full")
	c.ok(t, 1, "service", "scale", "--detach", "web=2")
	until(t, func() error {
		for _, x := range c.tasks(t, "web") {
			if x.State == "pending" && strings.Contains(x.Error+x.Message, "not available for new tasks") {
				return nil
			}
		}
		return fmt.Errorf("no task says why it waits:\n%s", describe(c.tasks(t, "web")))
	})
	for id, pids := range before {
		if !slices.Equal(c.pids()[id], pids) {
			t.Errorf("task %s had the processes %v, has %v", id, pids, c.pids()[id])
		}
	}
	fill("rm /var/lib/swarmd/ballast")
	messageHas("")
	c.runningAre(t, "web", 2)
}
