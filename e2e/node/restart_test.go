package node_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSwarmd_ThatStops(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.create(t, "web", 3, "-p", "mode=host,published=8080,target=80")
	token := c.token(t)
	for _, test := range []struct {
		name string
		host int
		stop func(host int) error
	}{
		{"ManagersKilled", 1, func(i int) error { return c.host(i).KillSwarmd() }},
		{"WorkersKilled", 2, func(i int) error { return c.host(i).KillSwarmd() }},
		{"ManagersStopped", 1, c.stop},
		{"WorkersStopped", 3, c.stop},
	} {
		t.Run(test.name+"_NothingThatRunsIsTouched_AndAllIsThereAgain", func(t *testing.T) {
			h := c.host(test.host)
			containers, containerd := c.pids(), h.Processes("containerd")
			if len(containers) != 3 || len(containerd) != 1 {
				t.Fatalf("containers %v, containerd %v", containers, containerd)
			}
			if err := test.stop(test.host); err != nil {
				t.Fatal(err)
			}
			c.get(t, fmt.Sprintf("http://%s:8080/", h.Addr)) // answers without its swarmd
			c.start(h)
			c.refused(t, test.host, []string{"already in cluster"}, "init")
			c.nodesReady(t, 3)
			c.runningAre(t, "web", 3)
			if now := c.pids(); !maps.EqualFunc(now, containers, slices.Equal) {
				t.Errorf("containers were %v, are %v", containers, now)
			}
			if now := h.Processes("containerd"); !slices.Equal(now, containerd) {
				t.Errorf("containerd was %v, is %v", containerd, now)
			}
			if now := c.token(t); now != token {
				t.Errorf("the join token was %s, is %s", token, now)
			}
			c.get(t, fmt.Sprintf("http://%s:8080/", h.Addr))
		})
	}
	t.Run("AfterAll_ServicesCanBeMadeAndRemoved", func(t *testing.T) {
		c.create(t, "more", 3)
		c.remove(t, "more")
		c.remove(t, "web")
		c.runningAre(t, "web", 0)
	})
}

// stop asks swarmd to end and wants it to end well.
func (c *cluster) stop(host int) error {
	if err := c.host(host).SignalSwarmd(syscall.SIGTERM); err != nil {
		return err
	}
	code, err := c.host(host).WaitSwarmd()
	if err == nil && code != 0 {
		err = fmt.Errorf("swarmd ended with code %d", code)
	}
	return err
}

func TestSwarmd_KilledAtAnyMomentOfInitAndJoin_TheyWorkOnTheNextTry(t *testing.T) {
	t.Parallel()
	c := newHosts(t, 2)
	command := []string{"init", "--no-rebalance", "--advertise-addr", c.addr(1)}
	for host := 1; host <= 2; host++ {
		for _, after := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond, 200 * time.Millisecond} {
			h := c.host(host)
			done := make(chan int, 1)
			go func() {
				_, _, code := c.ctl(host, command...)
				done <- code
			}()
			select {
			case <-time.After(after): // whatever it is doing at this moment
			case code := <-done:
				done <- code
			}
			if err := h.KillSwarmd(); err != nil {
				t.Fatal(err)
			}
			code := <-done
			c.start(h)
			if c.membership(t, host) != "none" {
				t.Logf("node-%d was a member when it was killed after %s; it leaves to try again", host, after)
				c.ok(t, host, "leave", "--force")
			} else if code == 0 {
				t.Errorf("node-%d: %s succeeded, and was forgotten", host, command[0])
			}
		}
		c.ok(t, host, command...)
		if host == 1 {
			command = []string{"join", "--token", c.token(t), c.addr(1) + ":" + port}
		}
	}
	c.nodeIs(t, "node-1", "ready")
	until(t, func() error {
		if out := c.ok(t, 1, "node", "ls", "--format", "{{.Hostname}} {{.State}}"); !slices.Contains(lines(out), "node-2 ready") {
			return fmt.Errorf("node-2 is not ready:\n%s", out)
		}
		return nil
	})
}

func TestSwarmctl_KilledDuringServiceCreate_ServiceIsWholeOrNotThere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	for i, after := range []time.Duration{0, 5 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		name := fmt.Sprintf("s%d", i)
		c.killedCreate(after, name)
		out := c.ok(t, 1, "service", "ls", "--format", "{{.Name}}")
		if slices.Contains(lines(out), name) {
			c.runningAre(t, name, 2)
		} else {
			c.create(t, name, 2)
		}
		c.remove(t, name)
	}
}

// killedCreate kills swarmctl a while after it began to create a service.
func (c *cluster) killedCreate(after time.Duration, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	c.run(ctx, 1, "service", "create", "--name", name, "--replicas", "2", "whoami:v1")
}

func lines(text string) []string { return strings.Split(strings.TrimSpace(text), "\n") }

// membership of a host: none, active or disconnected.
func (c *cluster) membership(t *testing.T, host int) string {
	t.Helper()
	return strings.TrimSpace(c.ok(t, host, "info", "--format", "{{.Membership}}"))
}
