package node_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// badVersion is one that cannot become a service's.
type badVersion struct {
	name  string
	flags []string // of the update to it
	// why are words that whoever has updated reads, and words of the tasks' list.
	why, listed []string
	// unstarted: nothing of it can be started, so that nothing old is stopped; unplaced: not even a node is found. serves: it is
	// up for a while, so that requests are lost that it gets.
	unstarted, unplaced, serves bool
}

var badVersions = []badVersion{
	{name: "NeverHealthy", flags: []string{"--image", "whoami:sick"}, why: []string{"unhealthy", "503"}, listed: []string{"unhealthy", "503"}},
	{name: "Crashes", flags: []string{"--image", "whoami:crash"}, why: []string{"exit code 1"}, listed: []string{"exit code 1"}, serves: true},
	{name: "NoSuchImage", flags: []string{"--image", openRegistry + "/team/none:v1", "--no-resolve-image"}, why: []string{"team/none:v1"},
		listed: []string{"team/none:v1"}, unstarted: true},
	{name: "DoesNotFit", flags: []string{"--reserve-memory", "1000g", "--update-progress-deadline", "3s"}, why: []string{"insufficient resources on 3 nodes"},
		listed: []string{"insufficient resources"}, unstarted: true, unplaced: true},
}

// badWay is a service that bad versions come to.
type badWay struct {
	name   string
	flags  []string
	action string
	// spared are the old replicas that go on whatever becomes of the new ones.
	spared int
	// watched are those that go on if the new ones are up for a while before they fail; 0 = spared.
	watched int
	// sets: the new version has replicas of its own; apart: and no traffic until somebody says so.
	sets, apart bool

	port     int
	revision string // the good one
}

const (
	badReplicas = 3
	// openRegistry answers on the switch, and has no image.
	openRegistry = "10.77.0.254:5001"
)

func badWays() []*badWay {
	return []*badWay{
		{name: "bad-stop-first", action: "pause", spared: badReplicas - 1},
		{name: "bad-start-first", flags: []string{"--update-order", "start-first"}, action: "rollback", spared: badReplicas, watched: badReplicas - 1},
		{name: "bad-recreate", flags: []string{"--update-strategy", "recreate"}, action: "rollback"},
		{name: "bad-canary", flags: []string{"--update-strategy", "canary", "--canary-steps", "50%:4s"}, action: "rollback", spared: badReplicas, sets: true},
		{name: "bad-blue-green", flags: []string{"--update-strategy", "blue-green"}, action: "pause", spared: badReplicas, sets: true, apart: true},
	}
}

// badVersionsFail updates services of each kind to versions that are no good.
func badVersionsFail(t *testing.T, c *netCluster) {
	ways := badWays()
	for i, w := range ways {
		w.port = 8300 + i
		c.create(t, w.name, badReplicas, append([]string{"--detach", "-p", fmt.Sprintf("%d:80", w.port), "--drain-timeout", "1s", "--update-monitor", "4s",
			"--update-failure-action", w.action, "--rollback-monitor", "500ms", "--rollback-parallelism", "0", "--restart-delay", "500ms",
			"--health-http", ":80/healthz", "--health-interval", "500ms", "--health-retries", "2"}, w.flags...)...)
		w.revision = c.revision(t, w.name)
		defer c.remove(t, w.name)
	}
	for _, bad := range badVersions {
		t.Run(bad.name, func(t *testing.T) { c.comes(t, bad, ways) })
	}
}

func (c *netCluster) comes(t *testing.T, bad badVersion, ways []*badWay) {
	old := map[string][]string{}
	var asked []int
	for _, w := range ways {
		for _, x := range c.allOf(t, w.name, badReplicas, "whoami:v1") {
			old[w.name] = append(old[w.name], x.ID)
		}
		if bad.unstarted || w.apart || !bad.serves && w.spared > 0 {
			asked = append(asked, w.port)
			answers(t, c.clients[0].Dial, url4(c.host(1), w.port, "/tiny"))
		}
	}
	x := c.startTraffic(t, asked...)
	fewest, stop := c.fewestOf(old)
	defer stop()
	var begun []<-chan done
	for _, w := range ways {
		begun = append(begun, c.beside(c.via, slices.Concat([]string{"service", "update"}, bad.flags, []string{w.name})...))
	}
	for i, w := range ways {
		d := <-begun[i]
		t.Log(d.text())
		if d.code != 1 {
			t.Errorf("%s: exit code %d, want 1", w.name, d.code)
		}
		wantWords(t, d.errs, bad.why...)
		list := c.ok(t, c.via, "service", "ps", "--no-trunc", w.name)
		if bad.unplaced { // there are no tasks of the new version, and the list is of tasks
			list = c.ok(t, c.via, "service", "history", w.name)
		}
		wantWords(t, list, bad.listed...)
		if lines := strings.Count(list, "\n"); lines > 24 {
			t.Errorf("%s: the list of tasks has %d lines, more than a screen:\n%s", w.name, lines, list)
		}
		if w.action == "rollback" {
			wantWords(t, d.errs, "was rolled back")
			c.rolloutIs(t, w.name, "rollback_completed", "")
		} else {
			wantWords(t, d.errs, "is paused", "service resume", "service abort")
			c.rolloutIs(t, w.name, "paused", "")
		}
	}
	var back []<-chan done
	for _, w := range ways { // if it is not back yet
		args := []string{"service", "abort", w.name}
		if w.action == "rollback" {
			args = []string{"service", "rollback", "--to", w.revision, w.name}
		}
		back = append(back, c.beside(c.via, args...))
	}
	for i, w := range ways {
		if d := <-back[i]; d.code != 0 {
			t.Error(d.text())
		}
		c.allOf(t, w.name, badReplicas, "whoami:v1")
	}
	stop()
	x.flows(t, 20)
	x.stop(t, bad.name)
	for _, w := range ways {
		want := w.spared
		switch {
		case bad.unstarted:
			want = badReplicas
		case bad.serves && w.watched > 0:
			want = w.watched
		}
		if got := fewest()[w.name]; got < want {
			t.Errorf("%s: at one time %d old replicas of %d were left, want %d", w.name, got, badReplicas, want)
		}
	}
}

// fewestOf watches which of the tasks, by service, live on the hosts, until stop; fewest says how many there were at least.
func (c *netCluster) fewestOf(tasks map[string][]string) (fewest func() map[string]int, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	least := map[string]int{}
	for name, ids := range tasks {
		least[name] = len(ids)
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		for ; ctx.Err() == nil; pause(ctx, 200*time.Millisecond) {
			pids := c.pids()
			for name, ids := range tasks {
				n := 0
				for _, id := range ids {
					if len(pids[id]) > 0 {
						n++
					}
				}
				least[name] = min(least[name], n)
			}
		}
	})
	stop = func() { cancel(); watch.Wait() }
	return func() map[string]int { stop(); return least }, stop
}
