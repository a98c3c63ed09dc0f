package node_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/swarmd/swarmd/e2e/lab"
)

func TestContainers_ThatEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	t.Run("Killed_ReplacedAndTheOthersUntouched", func(t *testing.T) { killedContainer(t, c) })
	t.Run("EndAtOnce_BackOffAndKeepTheHistoryLimit", func(t *testing.T) { crashLoop(t, c) })
	t.Run("EndUnderARestartCondition_ReplacedOnlyAsItSays", func(t *testing.T) { restartConditions(t, c) })
}

func killedContainer(t *testing.T, c *cluster) {
	tasks := c.create(t, "web", 4)
	victim, others := tasks[0], tasks[1:]
	before := c.pids()
	c.signal(t, c.pid(t, victim), syscall.SIGKILL)
	until(t, func() error {
		if slices.ContainsFunc(c.running(t, "web"), func(x task) bool { return x.ID == victim.ID }) {
			return errors.New("the killed task still runs")
		}
		return nil
	})
	c.runningAre(t, "web", 4)
	for _, x := range others {
		if now := c.pids()[x.ID]; !slices.Equal(now, before[x.ID]) {
			t.Errorf("%s had processes %v, now %v", x.Name, before[x.ID], now)
		}
	}
	for _, x := range c.tasks(t, "web") {
		if x.ID == victim.ID && (x.State != "failed" || x.ExitCode == nil || *x.ExitCode != 137) {
			t.Errorf("the killed task is %+v, want failed with exit code 137", x)
		}
	}
	c.remove(t, "web")
}

// A whoami that cannot listen ends at once with code 1.
var crashing = []string{"-e", "PORT=none"}

func crashLoop(t *testing.T, c *cluster) {
	c.refused(t, 1, []string{"loop.1", "failed 3 times", "exit"},
		append(append([]string{"service", "create", "--name", "loop"}, crashing...), "whoami:v1")...)
	until(t, func() error {
		if n := len(c.tasks(t, "loop")); n < 6 {
			return fmt.Errorf("%d tasks, want the history to fill", n)
		}
		return nil
	})
	tasks := c.tasks(t, "loop")
	if len(tasks) > 7 { // five ended ones, the current one, and one that is being reaped
		t.Errorf("%d tasks are kept:\n%s", len(tasks), describe(tasks))
	}
	for _, x := range tasks {
		if x.State == "failed" && (x.ExitCode == nil || *x.ExitCode != 1 || x.Error == "") {
			t.Errorf("failed task without its exit code and error: %+v", x)
		}
	}
	c.remove(t, "loop")
}

func restartConditions(t *testing.T, c *cluster) {
	for _, test := range []struct {
		name  string
		flags []string
		ends  func(h *lab.Host) string
		tasks int
		state string
	}{
		{"none", []string{"--restart-condition", "none"}, exitPath(3), 1, "failed"},
		{"good-end", []string{"--restart-condition", "on-failure"}, exitPath(0), 1, "complete"},
		{"two-more", append([]string{"--restart-max-attempts", "2"}, crashing...), nil, 3, "failed"},
	} {
		args := append([]string{"service", "create", "--detach", "--name", test.name, "-p", "mode=host,published=9000,target=80"}, test.flags...)
		c.ok(t, 1, append(args, "whoami:v1")...)
		if test.ends != nil {
			x := c.runningAre(t, test.name, 1)[0]
			if _, err := get(c.lab.Dial, test.ends(c.hostOf(t, x))); err != nil {
				t.Log("its end came before its answer:", err)
			}
		}
		until(t, func() error {
			tasks := c.tasks(t, test.name)
			for _, x := range tasks {
				if x.State != test.state {
					return fmt.Errorf("%s:\n%s", test.name, describe(tasks))
				}
			}
			if len(tasks) != test.tasks {
				return fmt.Errorf("%s has %d tasks, want %d:\n%s", test.name, len(tasks), test.tasks, describe(tasks))
			}
			return nil
		})
	}
	// A service made and settled after them has given a wrong replacement its time to show.
	c.create(t, "after", 1)
	for name, want := range map[string]int{"none": 1, "good-end": 1, "two-more": 3} {
		if tasks := c.tasks(t, name); len(tasks) != want {
			t.Errorf("%s has %d tasks, want %d:\n%s", name, len(tasks), want, describe(tasks))
		}
		c.remove(t, name)
	}
	c.remove(t, "after")
}

func exitPath(code int) func(h *lab.Host) string {
	return func(h *lab.Host) string { return fmt.Sprintf("http://%s:9000/exit?code=%d", h.Addr, code) }
}

func TestHosts_ThatFail(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.create(t, "web", 3, "-p", "mode=host,published=8080,target=80", "-e", "NODE={{.Node.Hostname}}")
	c.create(t, "free", 3)
	t.Run("PoweredOff_ReplicasRunElsewhere_AndNoMoreThanAskedForOnceItIsBack", func(t *testing.T) {
		h := c.host(3)
		before := inventoryOf(t, h)
		lost(t, c, h.PowerOff)
		c.runningAre(t, "free", 3)
		if err := h.PowerOn(); err != nil {
			t.Fatal(err)
		}
		c.start(h)
		back(t, c)
		clean(t, h, before)
	})
	t.Run("CutFromTheNetwork_ReplicasRunElsewhere_SupersededOnesStopOnceItIsBack", func(t *testing.T) {
		h := c.host(2)
		stale := h.Containers()
		if len(stale) == 0 {
			t.Fatal("nothing ran on the host that is to be cut")
		}
		lost(t, c, h.Cut)
		if now := h.Containers(); len(now) < len(stale) {
			t.Errorf("a cut host stopped its containers: %v, were %v", now, stale)
		}
		if err := h.Mend(); err != nil {
			t.Fatal(err)
		}
		back(t, c)
	})
	t.Run("Paused_ReplicasRunElsewhere_SupersededOnesStopOnceItIsBack", func(t *testing.T) {
		h := c.host(2)
		if len(h.Containers()) == 0 {
			t.Fatal("nothing ran on the host that is to be paused")
		}
		lost(t, c, h.Pause)
		if err := h.Resume(); err != nil {
			t.Fatal(err)
		}
		back(t, c)
	})
	t.Run("AllPoweredOffAtOnce_EverythingIsAsItWasAskedForOnceTheyAreBack", func(t *testing.T) { outage(t, c) })
}

// outage powers all hosts off at once, the only manager too, and on again.
func outage(t *testing.T, c *cluster) {
	t.Helper()
	c.runningAre(t, "web", 3)
	before := c.pids()
	var had []inventory
	for _, h := range c.lab.Hosts() {
		had = append(had, inventoryOf(t, h))
		if err := h.PowerOff(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range c.lab.Hosts() {
		if err := h.PowerOn(); err != nil {
			t.Fatal(err)
		}
		if list, err := os.ReadDir(filepath.Join(h.Dir, "run")); err != nil || len(list) > 0 {
			t.Fatalf("the run directory of %s is not that of a boot: %v %v", h.Name, list, err)
		}
		c.start(h)
	}
	back(t, c)
	for i, h := range c.lab.Hosts() {
		clean(t, h, had[i])
	}
	for id := range c.pids() {
		if before[id] != nil {
			t.Errorf("task %s runs again: what a power cut ended is replaced", id)
		}
	}
	for _, x := range c.allTasks(t) {
		if before[x.ID] != nil && x.State == "failed" {
			t.Logf("%s on %s: %s", x.Name, x.Node, x.Error)
		}
		if before[x.ID] != nil && (!slices.Contains([]string{"failed", "shutdown", "orphaned"}, x.State) || x.State == "failed" && x.Error == "") {
			t.Errorf("%s on %s is %s with %q, after the power was cut", x.Name, x.Node, x.State, x.Error)
		}
	}
}

// clean waits until a host has exactly what its containers need, and besides what it had before: nothing of what a power cut
// ended is left.
func clean(t *testing.T, h *lab.Host, before inventory) {
	t.Helper()
	until(t, func() error {
		v := inventoryOf(t, h)
		if v.shims != v.containers || v.loggers != v.containers || v.namespaces != v.containers || v.records != v.containers {
			return fmt.Errorf("%s has %+v", h.Name, v)
		}
		more := v.containers - before.containers
		if v.links != before.links+more || v.snapshots != before.snapshots+more {
			return fmt.Errorf("%s had %+v, has %+v", h.Name, before, v)
		}
		return nil
	})
}

// lost makes a host fail and waits until the others have taken over what can run there.
func lost(t *testing.T, c *cluster, fail func() error) {
	t.Helper()
	before := c.nodes(t)
	if err := fail(); err != nil {
		t.Fatal(err)
	}
	var down string
	until(t, func() error {
		for name, state := range c.nodes(t) {
			if state == "down" && before[name] == "ready" {
				down = name
				return nil
			}
		}
		return fmt.Errorf("no node is down: %v", c.nodes(t))
	})
	until(t, func() error {
		running := c.running(t, "free")
		if len(running) != 3 || slices.ContainsFunc(running, func(x task) bool { return x.Node == down }) {
			return fmt.Errorf("free does not run elsewhere than on %s:\n%s", down, describe(c.tasks(t, "free")))
		}
		return nil
	})
	for _, x := range c.running(t, "web") { // its port is taken on both others: two replicas go on
		if answer := c.get(t, fmt.Sprintf("http://%s:8080/", c.hostOf(t, x).Addr)); x.Node != down && answer["Node"] != x.Node {
			t.Errorf("%s on %s answered %v", x.Name, x.Node, answer)
		}
	}
}

// back waits until all nodes are ready and everything is as it was asked for, with no container too many.
func back(t *testing.T, c *cluster) {
	t.Helper()
	c.nodesReady(t, 3)
	c.runningAre(t, "free", 3)
	for _, x := range c.runningAre(t, "web", 3) {
		if answer := c.get(t, fmt.Sprintf("http://%s:8080/", c.hostOf(t, x).Addr)); answer["Node"] != x.Node {
			t.Errorf("%s on %s answered %v", x.Name, x.Node, answer)
		}
	}
	until(t, func() error { // containers of tasks whose history is gone count too
		n := 0
		for _, h := range c.lab.Hosts() {
			n += len(h.Containers())
		}
		if n != 6 {
			return fmt.Errorf("%d containers on all hosts, want 6: %v", n, c.pids())
		}
		return nil
	})
}
