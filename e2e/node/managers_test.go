package node_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

func grpcHeader(md *metadata.MD) grpc.CallOption { return grpc.Header(md) }

// newManagers makes a cluster of so many managers and workers after them, the demo image on each.
func newManagers(t *testing.T, managers, workers int, prepare func(*cluster)) *cluster {
	t.Helper()
	c := newBareHosts(t, managers+workers)
	if prepare != nil {
		prepare(c)
	}
	for _, h := range c.lab.Hosts() {
		c.start(h)
	}
	c.ok(t, 1, "init", "--no-rebalance", "--advertise-addr", c.addr(1))
	token := strings.TrimSpace(c.ok(t, 1, "join-token", "-q", "manager"))
	for i := 2; i <= managers; i++ {
		c.ok(t, i, "join", "--token", token, c.addr(1)+":"+port)
	}
	for i := managers + 1; i <= managers+workers; i++ {
		c.join(t, i)
	}
	for i := range c.lab.Hosts() {
		c.load(t, i+1)
	}
	c.nodesReady(t, managers+workers)
	c.voters(t, managers)
	return c
}

// nodeRow is one of `node ls --format json`.
type nodeRow struct {
	Hostname, State, Role, Availability, ManagerStatus string
	Leader                                             bool
}

func (c *cluster) nodeRows(t *testing.T) map[string]nodeRow {
	t.Helper()
	var list []nodeRow
	if err := json.Unmarshal([]byte(c.ok(t, c.via, "node", "ls", "--format", "json")), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]nodeRow{}
	for _, r := range list {
		out[r.Hostname] = r
	}
	return out
}

// voters waits until so many managers answer, one of them as the leader.
func (c *cluster) voters(t *testing.T, n int) {
	t.Helper()
	until(t, func() error {
		answer, leaders := 0, 0
		rows := c.nodeRows(t)
		for _, r := range rows {
			if r.ManagerStatus == "leader" || r.ManagerStatus == "reachable" {
				answer++
			}
			if r.Leader {
				leaders++
			}
		}
		if answer != n || leaders != 1 {
			return fmt.Errorf("%d managers answer and %d lead, want %d and one: %+v", answer, leaders, n, rows)
		}
		return nil
	})
}

// leader is the number of the host that leads, as the managers among hosts see it; c.via becomes another of them.
func (c *cluster) leader(t *testing.T, managers int) (leader, other int) {
	t.Helper()
	until(t, func() error {
		for name, r := range c.nodeRows(t) {
			if r.Leader {
				if _, err := fmt.Sscanf(name, "node-%d", &leader); err != nil {
					return err
				}
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	other = leader%managers + 1
	c.via = other
	return leader, other
}

// TestManagers_OneIsLost: whatever becomes of the leader, the others go on, lose nothing, and what runs is not touched.
func TestManagers_OneIsLost(t *testing.T) {
	t.Parallel()
	c := newManagers(t, 3, 1, func(c *cluster) {
		for i := 1; i <= 3; i++ {
			if err := c.host(i).OwnDisk(1024); err != nil {
				t.Fatal(err)
			}
		}
	})
	c.ok(t, 1, "service", "create", "--name", "web", "--replicas", "4", "--constraint", "node.role==worker", "whoami:v1")
	c.runningAre(t, "web", 4)
	containers := c.pids()
	writers := newClients(t, c, 1, 2, 3)
	for _, fault := range []struct {
		name       string
		begin, end func(leader int) error
	}{
		{"Killed", func(i int) error { return c.host(i).KillSwarmd() }, c.restart},
		{"Stopped", c.stop, c.restart},
		{"Paused", func(i int) error { return c.host(i).SignalSwarmd(syscall.SIGSTOP) },
			func(i int) error { return c.host(i).SignalSwarmd(syscall.SIGCONT) }},
		{"DiskHangs", func(i int) error { _, err := c.host(i).HangDisk(); return err },
			func(i int) error { return c.host(i).ReleaseDisk() }},
		{"CutOff", func(i int) error { return c.host(i).Cut() }, func(i int) error { return c.host(i).Mend() }},
	} {
		t.Run("Leader"+fault.name+"_OthersGoOn_NothingThatRunsIsTouched", func(t *testing.T) {
			old, other := c.leader(t, 3)
			if err := fault.begin(old); err != nil {
				t.Fatal(err)
			}
			until(t, func() error {
				for name, r := range c.nodeRows(t) {
					if r.Leader && name != c.host(old).Name {
						return nil
					}
				}
				return errors.New("no other manager leads")
			})
			before := writers.acknowledged.Load()
			until(t, func() error {
				if writers.acknowledged.Load() < before+5 {
					return errors.New("no writes are acknowledged")
				}
				return nil
			})
			c.ok(t, other, "service", "update", "--detach", "--label-add", "fault="+fault.name, "web")
			if err := fault.end(old); err != nil {
				t.Fatal(err)
			}
			c.voters(t, 3)
			c.nodesReady(t, 4)
			until(t, func() error { // the one that was lost serves again, with what was written meanwhile
				out, errs, code := c.ctl(old, "service", "inspect", "web")
				if code != 0 || !strings.Contains(out, fault.name) {
					return fmt.Errorf("service inspect through %s: exit %d %s", c.host(old).Name, code, errs)
				}
				return nil
			})
			if now := c.pids(); !maps.EqualFunc(now, containers, slices.Equal) {
				t.Errorf("containers were %v, are %v", containers, now)
			}
		})
	}
	writers.check(t)
	c.runningAre(t, "web", 4)
	t.Run("DisksNearlyFull_LeadershipMoves_AndWithoutARoomyManagerNothingGrows", func(t *testing.T) { disksFill(t, c) })
}

// fill leaves a host's disk less than the watermark's 256 MiB; empty undoes it.
func (c *cluster) fill(t *testing.T, host int) {
	t.Helper()
	c.shell(t, host, "avail=$(df -m --output=avail /var/lib/swarmd | tail -1) && fallocate -l $((avail - 200))M /var/lib/swarmd/fill")
}

func (c *cluster) empty(t *testing.T, host int) {
	t.Helper()
	c.shell(t, host, "rm -f /var/lib/swarmd/fill")
}

func (c *cluster) shell(t *testing.T, host int, script string) {
	t.Helper()
	if out, code, err := c.host(host).Run("/bin/sh", "-c", script); err != nil || code != 0 {
		t.Fatalf("on %s: %s: exit %d %s %v", c.host(host).Name, script, code, out, err)
	}
}

func disksFill(t *testing.T, c *cluster) {
	old, _ := c.leader(t, 3)
	name := c.host(old).Name
	c.fill(t, old)
	until(t, func() error {
		if c.nodeRows(t)[name].Leader {
			return errors.New("the manager with a full disk still leads")
		}
		if info := c.ok(t, c.via, "info"); !strings.Contains(info, "low-space") || !strings.Contains(info, name) {
			return errors.New("info does not tell of the full disk:\n" + info)
		}
		return nil
	})
	c.create(t, "grown", 1)
	for i := 1; i <= 3; i++ {
		if i != old {
			c.fill(t, i)
		}
	}
	replicas := 1
	until(t, func() error { // until the alarm is there it may grow
		replicas++
		_, errs, code := c.ctl(c.via, "service", "scale", "--detach", fmt.Sprintf("grown=%d", replicas))
		if code != 1 || !strings.Contains(errs, "space") {
			return fmt.Errorf("grown on a full disk: exit %d %s", code, errs)
		}
		return nil
	})
	c.refused(t, c.via, []string{"space"}, "service", "create", "--detach", "--name", "more", "whoami:v1")
	c.remove(t, "grown")
	for i := 1; i <= 3; i++ {
		c.empty(t, i)
	}
	until(t, func() error {
		if info := c.ok(t, c.via, "info"); strings.Contains(info, "low-space") {
			return errors.New("the alarm stays:\n" + info)
		}
		return nil
	})
	c.create(t, "grown", 2)
}

// restart starts a daemon again.
func (c *cluster) restart(host int) error {
	return errors.Join(c.host(host).StartSwarmd(c.flags...), c.host(host).Ready(patience))
}

func TestManagers_MajorityIsLost(t *testing.T) {
	t.Parallel()
	c := newManagers(t, 3, 1, nil)
	c.create(t, "web", 4, "-p", "mode=host,published=8080,target=80")
	containers := c.pids()
	t.Run("TwoKilled_WhatRunsGoesOn_ReadsSayThatTheyAreStale_WritesFail", func(t *testing.T) {
		leader, other := c.leader(t, 3)
		for i := 1; i <= 3; i++ {
			if i != other {
				if err := c.host(i).KillSwarmd(); err != nil {
					t.Fatal(err)
				}
			}
		}
		out, errs, code := c.ctl(other, "service", "ls")
		if code != 0 || !strings.Contains(out, "web") {
			t.Errorf("service ls without a majority: exit %d\n%s%s", code, out, errs)
		}
		wantWords(t, errs, "out of date")
		c.refused(t, other, []string{"leader"}, "service", "scale", "--detach", "web=5")
		for i := 1; i <= 4; i++ {
			c.get(t, fmt.Sprintf("http://%s:8080/", c.addr(i)))
		}
		for i := 1; i <= 3; i++ {
			if i != other {
				if err := c.restart(i); err != nil {
					t.Fatal(err)
				}
			}
		}
		c.voters(t, 3)
		c.nodesReady(t, 4)
		_, errs, _ = c.ctl(leader, "service", "ls")
		if errs != "" {
			t.Errorf("with a majority: %s", errs)
		}
		if now := c.pids(); !maps.EqualFunc(now, containers, slices.Equal) {
			t.Errorf("containers were %v, are %v", containers, now)
		}
	})
	t.Run("AllKilledAtOnce_EverythingAcknowledgedIsThere_WorkersComeBack", func(t *testing.T) {
		var names []string
		for i := range 5 {
			name := fmt.Sprintf("acked-%d", i)
			c.ok(t, 1+i%3, "service", "create", "--detach", "--no-resolve-image", "--replicas", "0", "--name", name, "whoami:v1")
			names = append(names, name)
		}
		for i := 1; i <= 3; i++ {
			if err := c.host(i).SignalSwarmd(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		for i := 1; i <= 3; i++ {
			if _, err := c.host(i).WaitSwarmd(); err != nil {
				t.Fatal(err)
			}
		}
		for i := 1; i <= 3; i++ {
			if err := c.restart(i); err != nil {
				t.Fatal(err)
			}
		}
		c.voters(t, 3)
		c.nodesReady(t, 4)
		list := c.ok(t, 2, "service", "ls")
		for _, name := range append(names, "web") {
			if !strings.Contains(list, name) {
				t.Errorf("%s is not there:\n%s", name, list)
			}
		}
		c.runningAre(t, "web", 4)
		if now := c.pids(); !maps.EqualFunc(now, containers, slices.Equal) {
			t.Errorf("containers were %v, are %v", containers, now)
		}
	})
}

func TestManagers_ComeAndGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.create(t, "web", 3, "--constraint", "node.hostname==node-4")
	containers := c.pids()
	untouched := func(t *testing.T) {
		t.Helper()
		if now := c.pids(); !maps.EqualFunc(now, containers, slices.Equal) {
			t.Errorf("containers were %v, are %v", containers, now)
		}
	}
	t.Run("WorkersPromoted_TheyVoteAndServe", func(t *testing.T) {
		c.ok(t, 1, "node", "promote", "node-2", "node-3")
		c.voters(t, 3)
		for i := 2; i <= 3; i++ {
			wantWords(t, c.ok(t, i, "service", "ls"), "web")
			wantWords(t, c.ok(t, i, "info"), "manager")
		}
		c.ok(t, 3, "service", "update", "--detach", "--label-add", "by=node-3", "web")
		untouched(t)
	})
	t.Run("MajorityWouldBreak_DemotionIsRefused", func(t *testing.T) {
		if err := c.host(3).KillSwarmd(); err != nil {
			t.Fatal(err)
		}
		c.nodeIs(t, "node-3", "down")
		c.refused(t, 1, []string{"node-2", "majority"}, "node", "demote", "node-2")
		c.refused(t, 2, []string{"majority"}, "leave")
		c.ok(t, 1, "node", "demote", "node-3") // the dead one may go
		c.voters(t, 2)
		if err := c.restart(3); err != nil {
			t.Fatal(err)
		}
		c.nodesReady(t, 4)
		until(t, func() error {
			if r := c.nodeRows(t)["node-3"]; r.Role != "worker" || r.ManagerStatus != "" {
				return fmt.Errorf("node-3 is %+v", r)
			}
			if _, errs, code := c.ctl(3, "service", "ls"); code != 1 || !strings.Contains(errs, "manager") {
				return fmt.Errorf("it still serves as a manager: exit %d %s", code, errs)
			}
			return nil
		})
		untouched(t)
	})
	t.Run("LeaderDemoted_AnotherLeads", func(t *testing.T) {
		c.ok(t, 2, "node", "promote", "node-3")
		c.voters(t, 3)
		c.via = 2
		c.ok(t, 2, "node", "demote", "node-1")
		c.voters(t, 2)
		c.ok(t, 3, "service", "update", "--detach", "--label-add", "after=demotion", "web")
		until(t, func() error {
			if r := c.nodeRows(t)["node-1"]; r.Role != "worker" || r.State != "ready" {
				return fmt.Errorf("node-1 is %+v", r)
			}
			return nil
		})
		untouched(t)
	})
	t.Run("ManagerLeaves_AndTheLastIsRefused", func(t *testing.T) {
		c.ok(t, 3, "leave")
		nothingLeft(t, c, 3)
		c.voters(t, 1)
		c.nodeIs(t, "node-3", "down")
		c.ok(t, 2, "node", "rm", "node-3")
		c.refused(t, 2, []string{"last manager"}, "node", "demote", "node-2")
		c.refused(t, 2, []string{"last manager", "--force"}, "leave")
		c.refused(t, 2, []string{"nobody"}, "node", "promote", "nobody")
	})
}

func TestNode_Drained_ItsTasksGoElsewhere_AndItTakesNoneUntilItIsActive(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.create(t, "web", 4)
	c.ok(t, 1, "node", "update", "--availability", "drain", "node-2")
	only := func(host string) error {
		running := c.running(t, "web")
		if len(running) != 4 || slices.ContainsFunc(running, func(x task) bool { return x.Node != host }) {
			return fmt.Errorf("not all on %s:\n%s", host, describe(c.tasks(t, "web")))
		}
		return nil
	}
	until(t, func() error { return only("node-1") })
	c.runningAre(t, "web", 4)
	c.ok(t, 1, "service", "scale", "web=5")
	until(t, func() error {
		if len(c.host(2).Containers()) > 0 {
			return errors.New("containers on the drained node")
		}
		return nil
	})
	c.ok(t, 1, "node", "update", "--availability", "pause", "node-2")
	c.ok(t, 1, "service", "scale", "web=6")
	if len(c.host(2).Containers()) > 0 {
		t.Error("a paused node got a task")
	}
	c.ok(t, 1, "node", "update", "--availability", "active", "node-2")
	c.ok(t, 1, "service", "scale", "web=10")
	until(t, func() error {
		if len(c.host(2).Containers()) == 0 {
			return errors.New("the active node gets no tasks")
		}
		return nil
	})
	c.refused(t, 1, []string{"availability", "asleep"}, "node", "update", "--availability", "asleep", "node-2")
}

// A task that must not run twice stops by itself on a node that is cut off, before its replacement starts.
func TestSingleton_NodeCutOff_StopsBeforeItsReplacementStarts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.create(t, "one", 1, "--stop-after-disconnect", "2s", "--stop-grace-period", "1s", "--constraint", "node.role==worker")
	old := c.running(t, "one")[0]
	h := c.hostOf(t, old)
	if err := h.Cut(); err != nil {
		t.Fatal(err)
	}
	var overlap bool
	until(t, func() error {
		here, elsewhere := len(h.Containers()), 0
		for _, other := range c.lab.Hosts() {
			if other != h {
				elsewhere += len(other.Containers())
			}
		}
		overlap = overlap || here > 0 && elsewhere > 0
		if here > 0 || elsewhere != 1 {
			return fmt.Errorf("%d containers on the host that is cut off, %d elsewhere", here, elsewhere)
		}
		return nil
	})
	if overlap {
		t.Error("it ran twice")
	}
	if err := h.Mend(); err != nil {
		t.Fatal(err)
	}
	c.nodesReady(t, 3)
	c.runningAre(t, "one", 1)
}
