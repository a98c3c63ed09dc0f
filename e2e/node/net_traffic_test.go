package node_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// inFlight is how long after a kill -9 a request may still come to what was killed: until its node has seen it end.
const inFlight = time.Second

// drainTime is how long connections that are kept stay with a replica that is to stop.
const drainTime = "3s"

func TestTraffic_ScaledKilledDrained_NothingFails(t *testing.T) {
	t.Parallel()
	c := newNetCluster(t, 5, 3)
	c.network(t, "back")
	t.Run("ThroughEveryNode", func(t *testing.T) {
		c.create(t, "web", 3, "-p", "8080:80", "--stop-grace-period", drainTime)
		defer c.remove(t, "web")
		changed(t, c, "web", c.outside(), c.everywhere(8080))
	})
	t.Run("ThroughAVIP", func(t *testing.T) {
		c.create(t, "vip", 3, "--network", "back", "--stop-grace-period", drainTime)
		defer c.remove(t, "vip")
		asks := c.on(t, 1, "asks", 3, "--network", "back")
		defer c.remove(t, "asks")
		var sources []source
		for _, x := range asks {
			sources = append(sources, source{name: x.Name, dial: c.inTask(t, x).Dial, seen: c.overlayAddresses(t, x)[0].String()})
		}
		d := c.inTask(t, asks[0])
		var vip []string
		until(t, func() (err error) { vip, err = lookup(d, "vip"); return err })
		changed(t, c, "vip", sources, []string{"http://" + vip[0] + "/tiny"})
	})
	t.Run("ByNamesOfReplicas", func(t *testing.T) {
		c.create(t, "rr", 3, "--network", "back", "--endpoint-mode", "dnsrr", "--stop-grace-period", drainTime)
		defer c.remove(t, "rr")
		asks := c.on(t, 1, "calls", 2, "--network", "back")
		defer c.remove(t, "calls")
		var sources []source
		for _, x := range asks {
			sources = append(sources, source{name: x.Name, dial: resolving(c.inTask(t, x))})
		}
		changed(t, c, "rr", sources, []string{"http://rr/tiny"})
	})
	t.Run("SlowRequest_OutlivesScaleDownAndUpdate", func(t *testing.T) { slowRequest(t, c) })
}

// changed scales a service from 3 to 10 and to 2, kills a replica and drains a worker while requests are sent.
func changed(t *testing.T, c *netCluster, name string, sources []source, urls []string) {
	c.settle(t, sources, urls)
	per := sized(1000, 12_000)
	l := startLoad(t, 0, sources, urls...)
	l.passes(t, per)
	says := func(what string) { t.Logf("%s %s", time.Now().Format("15:04:05.000"), what) }
	says("scaled to 10")
	c.ok(t, 1, "service", "scale", name+"=10")
	c.runningAre(t, name, 10)
	l.passes(t, per)
	victim := c.running(t, name)[0]
	says("killed " + hostnameOf(victim) + " on " + victim.Node)
	killed := window{from: time.Now(), to: time.Now().Add(inFlight)}
	c.signal(t, c.pid(t, victim), 9)
	l.passes(t, per)
	c.runningAre(t, name, 10)
	l.passes(t, per)
	drained := "node-3"
	says("drained " + drained)
	c.ok(t, 1, "node", "update", "--availability", "drain", drained)
	defer c.ok(t, 1, "node", "update", "--availability", "active", drained)
	until(t, func() error {
		for _, x := range c.tasks(t, name) {
			if x.Node == drained && !strings.Contains("complete shutdown failed", x.State) {
				return fmt.Errorf("%s of %s is %s", x.Name, drained, x.State)
			}
		}
		return nil
	})
	c.runningAre(t, name, 10)
	l.passes(t, per)
	says("scaled to 2")
	c.ok(t, 1, "service", "scale", name+"=2")
	left := c.runningAre(t, name, 2)
	says("2 are left")
	begun := time.Now()
	l.passes(t, per)
	if more := sized(10_000, 100_000) - l.count(); more > 0 && name == "web" {
		l.passesSlowly(t, more)
	}
	done := l.stop()
	failures(t, done, killed)
	for _, r := range done {
		if r.err == nil && r.began.After(begun) && r.Task != hostnameOf(left[0]) && r.Task != hostnameOf(left[1]) {
			t.Errorf("after the scaling %s answered, which is gone", r.Task)
		}
	}
}

// settle waits until every URL answers every source.
func (c *netCluster) settle(t *testing.T, sources []source, urls []string) {
	t.Helper()
	for _, s := range sources {
		for _, u := range urls {
			answers(t, s.dial, u)
		}
	}
}

// slowRequest has requests under way while their replica is told to stop.
func slowRequest(t *testing.T, c *netCluster) {
	c.create(t, "slow", 4, "-p", "8091:80", "--stop-grace-period", "20s", "--network", "back")
	defer c.remove(t, "slow")
	c.settle(t, c.outside(), c.everywhere(8091))
	ask := func() []chan error {
		var out []chan error
		for i := range 16 {
			done := make(chan error, 1)
			out = append(out, done)
			go func() {
				_, err := get(c.clients[i%len(c.clients)].Dial, url4(c.host(1+i%5), 8091, "/?wait=3s"))
				done <- err
			}()
		}
		return out
	}
	for _, change := range [][]string{{"service", "scale", "slow=1"}, {"service", "update", "--force", "slow"}} {
		requests := ask()
		time.Sleep(500 * time.Millisecond) // they are under way
		c.ok(t, 1, change...)
		for i, r := range requests {
			if err := <-r; err != nil {
				t.Errorf("%v: request %d: %v", change, i, err)
			}
		}
		c.runningAre(t, "slow", 1)
	}
}
