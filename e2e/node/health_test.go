package node_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// healthOf is what `task ls --format json` says of a task's health.
type healthOf struct {
	ID, State, DesiredState, Error, Message, Health, HealthOutput string
	Ready                                                         bool
}

func (c *cluster) healths(t *testing.T, service string) []healthOf {
	t.Helper()
	var all []struct {
		healthOf
		Service string
	}
	if err := json.Unmarshal([]byte(c.ok(t, c.via, "task", "ls", "--format", "json")), &all); err != nil {
		t.Fatal(err)
	}
	var out []healthOf
	for _, x := range all {
		if x.Service == service {
			out = append(out, x.healthOf)
		}
	}
	return out
}

// healthIs waits until a task's health, and whether it is ready, are as given.
func (c *cluster) healthIs(t *testing.T, service, id, health string, ready bool) {
	t.Helper()
	until(t, func() error {
		for _, x := range c.healths(t, service) {
			if x.ID == id && x.Health == health && x.Ready == ready {
				return nil
			}
		}
		return fmt.Errorf("%s is not %s with ready %t: %+v", id, health, ready, c.healths(t, service))
	})
}

// tells asks a task's own server, from inside its namespace.
func (c *netCluster) tells(t *testing.T, x task, path string) string {
	t.Helper()
	body, err := get(c.inTask(t, x).Dial, "http://127.0.0.1"+path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestHealth_Probes(t *testing.T) {
	t.Parallel()
	c := newNetCluster(t, 1, 1)
	t.Run("OfEachKind_ReadyAndReplacedWhenUnhealthy", func(t *testing.T) { eachKind(t, c) })
	t.Run("OfTheImage_HonouredAndSwitchedOff", func(t *testing.T) { imagesOwn(t, c) })
	t.Run("NeverHealthy_NeverRunning", func(t *testing.T) { neverHealthy(t, c) })
	t.Run("NotReady_NoTrafficAndNoRestart", func(t *testing.T) { notReady(t, c) })
	t.Run("ThatHangFloodOrLeak_DoNoHarm", func(t *testing.T) { harmless(t, c) })
	t.Run("PreStop_BeforeTheStopSignal", func(t *testing.T) { preStop(t, c) })
	t.Run("SwarmdKilled_GoesOnWhereItWas", func(t *testing.T) { healthSurvives(t, c) })
}

func eachKind(t *testing.T, c *netCluster) {
	kinds := map[string][]string{
		"exec":  {"--health-cmd", `["/whoami","get","/healthz"]`},
		"shell": {"--health-cmd", "whoami get /healthz"},
		"http":  {"--health-http", ":80/healthz"},
		"grpc":  {"--health-grpc", ":80/live"},
	}
	for name, flags := range kinds {
		c.create(t, "kind-"+name, 1, append(flags, "--health-interval", "300ms", "--health-retries", "2")...)
	}
	for name := range kinds {
		service := "kind-" + name
		x := c.running(t, service)[0]
		c.healthIs(t, service, x.ID, "healthy", true)
		c.tells(t, x, "/unhealthy")
		until(t, func() error {
			for _, h := range c.healths(t, service) {
				if h.ID == x.ID && h.State == "failed" {
					wantWords(t, h.Error, "unhealthy: ")
					return nil
				}
			}
			return errors.New("it has not failed")
		})
		if after := c.runningAre(t, service, 1); after[0].ID == x.ID {
			t.Errorf("%s: the unhealthy task was not replaced", name)
		}
		c.remove(t, service)
	}
	x := c.create(t, "kind-tcp", 1, "-e", "LISTEN_AFTER=1s", "--health-tcp", ":80", "--health-interval", "500ms", "--health-start-period", "20s")[0]
	c.healthIs(t, "kind-tcp", x.ID, "healthy", true)
	c.remove(t, "kind-tcp")
}

func imagesOwn(t *testing.T, c *netCluster) {
	c.ok(t, 1, "service", "create", "--name", "own", "whoami:health")
	c.ok(t, 1, "service", "create", "--name", "off", "--no-healthcheck", "-e", "HEALTHY_AFTER=never", "whoami:health")
	x, off := c.runningAre(t, "own", 1)[0], c.runningAre(t, "off", 1)[0]
	c.healthIs(t, "own", x.ID, "healthy", true)
	c.healthIs(t, "off", off.ID, "", true)
	c.tells(t, x, "/unhealthy")
	until(t, func() error {
		if all := c.running(t, "own"); len(all) != 1 || all[0].ID == x.ID {
			return fmt.Errorf("not replaced:\n%s", describe(c.tasks(t, "own")))
		}
		return nil
	})
	c.remove(t, "own")
	c.remove(t, "off")
}

func neverHealthy(t *testing.T, c *netCluster) {
	c.refused(t, 1, []string{"sick.1", "unhealthy", "503"}, "service", "create", "--name", "sick", "--health-http", ":80/healthz",
		"--health-interval", "200ms", "--health-retries", "2", "whoami:sick")
	for _, x := range c.healths(t, "sick") {
		if x.State == "running" {
			t.Errorf("a task that was never healthy runs: %+v", x)
		}
	}
	c.remove(t, "sick")
}

func notReady(t *testing.T, c *netCluster) {
	tasks := c.create(t, "busy", 2, "-p", "8090:80", "--ready-http", ":80/readyz", "--ready-interval", "200ms", "--ready-retries", "2")
	before := c.pids()
	c.tells(t, tasks[0], "/unready")
	c.healthIs(t, "busy", tasks[0].ID, "not ready", false)
	url := url4(c.host(1), 8090, "/tiny")
	until(t, func() error {
		for range 20 {
			who, err := tiny(c.clients[0].Dial, url)
			if err != nil {
				return err
			}
			if strings.HasPrefix(tasks[0].ID, who.Task) {
				return errors.New("a task that is not ready still gets connections")
			}
		}
		return nil
	})
	c.tells(t, tasks[0], "/ready")
	c.healthIs(t, "busy", tasks[0].ID, "healthy", true)
	until(t, func() error {
		who, err := tiny(c.clients[0].Dial, url)
		if err == nil && !strings.HasPrefix(tasks[0].ID, who.Task) {
			err = errors.New("the task that is ready again gets no connections")
		}
		return err
	})
	for _, x := range tasks {
		if now := c.pids()[x.ID]; !slices.Equal(now, before[x.ID]) {
			t.Errorf("%s had processes %v, now %v", x.Name, before[x.ID], now)
		}
	}
	c.remove(t, "busy")
}

func harmless(t *testing.T, c *netCluster) {
	// A probe that leaks succeeds; those that hang and flood fail only after many retries, so that they go on all the time.
	patient := []string{"--health-interval", "100ms", "--health-timeout", "500ms", "--health-retries", "1000"}
	leaks := c.create(t, "leaks", 1, append(patient, "--health-cmd", `["/whoami","leak"]`)...)
	x := c.create(t, "well", 1, "--health-cmd", `["/whoami","get","/healthz"]`, "--health-interval", "300ms")[0]
	for _, bad := range []string{"hang", "flood"} {
		c.ok(t, 1, append(append([]string{"service", "create", "--detach", "--name", bad, "--replicas", "4", "--health-cmd", `["/whoami","` + bad + `"]`}, patient...), "whoami:v1")...)
	}
	for _, bad := range []string{"hang", "flood"} {
		until(t, func() error {
			started := 0
			for _, x := range c.healths(t, bad) {
				if x.State == "starting" && x.Health == "starting" {
					started++
				}
			}
			if started != 4 {
				return fmt.Errorf("%d tasks of %s are being started, want 4: %+v", started, bad, c.healths(t, bad))
			}
			return nil
		})
	}
	// The one that is well is asked all the same.
	c.tells(t, x, "/unhealthy")
	until(t, func() error {
		if all := c.running(t, "well"); len(all) != 1 || all[0].ID == x.ID {
			return errors.New("an unhealthy task beside them was not replaced")
		}
		return nil
	})
	until(t, func() error { // now and then there is nothing but the container's own process
		if pids := c.pids()[leaks[0].ID]; len(pids) != 1 {
			return fmt.Errorf("processes %v in the container whose probe leaks", pids)
		}
		return nil
	})
	if now := c.runningAre(t, "leaks", 1); now[0].ID != leaks[0].ID {
		t.Error("the task whose probe leaks was replaced")
	}
	for _, service := range []string{"leaks", "well", "hang", "flood"} {
		c.remove(t, service)
	}
}

func preStop(t *testing.T, c *netCluster) {
	x := c.create(t, "leaver", 1, "--pre-stop", "/whoami get /note?text=leaving")[0]
	c.ok(t, 1, "service", "update", "--force", "leaver")
	until(t, func() error {
		_, log, _ := c.ctl(1, "service", "logs", "leaver") // of what it writes to its standard error
		leaving, term := strings.Index(log, `note: "leaving"`), strings.Index(log, "SIGTERM")
		if leaving < 0 || term < leaving {
			return fmt.Errorf("the log of %s has the note at %d, SIGTERM at %d:\n%s", x.ID, leaving, term, log)
		}
		return nil
	})
	c.remove(t, "leaver")
}

// healthSurvives kills swarmd in the middle of all that health does.
func healthSurvives(t *testing.T, c *netCluster) {
	probe := []string{"--health-http", ":80/healthz", "--health-interval", "300ms", "--health-retries", "3"}
	good := c.create(t, "good", 1, append(probe, "--health-start-period", "10m")...)[0]
	late := []string{"service", "create", "--detach", "--name", "late", "-e", "HEALTHY_AFTER=8s", "--health-start-period", "5m"}
	c.ok(t, 1, append(append(late, probe...), "whoami:v1")...)
	bad := c.create(t, "bad", 1, probe...)[0]
	c.healthIs(t, "bad", bad.ID, "healthy", true)
	until(t, func() error {
		if all := c.healths(t, "late"); len(all) != 1 || all[0].State != "starting" {
			return fmt.Errorf("%+v, want one that is starting", all)
		}
		return nil
	})
	lateID := c.healths(t, "late")[0].ID
	pids := c.pids()
	c.tells(t, bad, "/unhealthy")
	if err := c.host(1).KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	c.start(c.host(1))
	until(t, func() error {
		if all := c.running(t, "bad"); len(all) != 1 || all[0].ID == bad.ID {
			return fmt.Errorf("the unhealthy one is not replaced:\n%s", describe(c.tasks(t, "bad")))
		}
		return nil
	})
	c.healthIs(t, "late", lateID, "healthy", true)
	c.healthIs(t, "good", good.ID, "healthy", true)
	for _, id := range []string{good.ID, lateID} {
		if now := c.pids()[id]; !slices.Contains(now, slices.Min(pids[id])) {
			t.Errorf("%s had processes %v, now %v", id, pids[id], now)
		}
	}
	// The start period was over with the first success, before the restart.
	c.tells(t, good, "/unhealthy")
	until(t, func() error {
		if all := c.running(t, "good"); len(all) != 1 || all[0].ID == good.ID {
			return errors.New("one that falls ill after the restart is not replaced")
		}
		return nil
	})
	for _, service := range []string{"good", "late", "bad"} {
		c.remove(t, service)
	}
}
