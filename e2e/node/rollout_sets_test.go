package node_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"testing"
	"time"
)

// atOnce is how soon all new connections go where a verdict says.
const atOnce = time.Second

// sharesOf asks n times, each over a connection of its own, at all hosts in turns, and counts the versions that answer.
func (c *netCluster) sharesOf(t *testing.T, n, port int) map[string]int {
	t.Helper()
	const askers = 8
	results := make(chan map[string]int, askers)
	for i := range askers {
		go func() {
			client := newConnections(c.clients[i%len(c.clients)].Dial)
			got := map[string]int{}
			for j := range n / askers {
				a, err := ask(client, url4(c.host(1+(i+j)%len(c.lab.Hosts())), port, "/"))
				if err != nil {
					a.version = err.Error()
				}
				got[a.version]++
			}
			results <- got
		}()
	}
	all := map[string]int{}
	for range askers {
		for version, k := range <-results {
			all[version] += k
		}
	}
	return all
}

// onlyVersion wants that a port leads to one version alone, over new connections.
func (c *netCluster) onlyVersion(t *testing.T, what string, port int, version string) {
	t.Helper()
	if got := c.sharesOf(t, 400, port); len(got) != 1 || got[version] == 0 {
		t.Errorf("%s: port %d was answered by %v, want %s alone", what, port, got, version)
	}
}

// soonOnly waits until a port leads to one version alone, and to that from then on.
func (c *netCluster) soonOnly(t *testing.T, what string, port int, version string) {
	t.Helper()
	begun := time.Now()
	until(t, func() error {
		if got := c.sharesOf(t, 80, port); len(got) != 1 || got[version] == 0 {
			return fmt.Errorf("%s: port %d was answered by %v, want %s alone", what, port, got, version)
		}
		return nil
	})
	t.Logf("%s: %s alone answers %s later", what, version, time.Since(begun).Round(time.Millisecond))
	c.onlyVersion(t, what, port, version)
}

// keptConnection is a client with one connection that a version has answered.
func (c *netCluster) keptConnection(t *testing.T, port int, version string) (client *http.Client, url string, dials func() int) {
	t.Helper()
	n := 0
	url = url4(c.host(1), port, "/")
	until(t, func() error {
		client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			n++
			return c.clients[0].Dial(ctx, network, addr)
		}}}
		a, err := ask(client, url)
		if err == nil && a.version != version {
			client.CloseIdleConnections()
			err = fmt.Errorf("%s was answered by %s, want %s", url, a.version, version)
		}
		return err
	})
	t.Cleanup(client.CloseIdleConnections)
	n = 0
	return client, url, func() int { return n }
}

// canaryShares: the new version gets the share of new connections that the step says, and none once it is aborted.
func canaryShares(t *testing.T, c *netCluster) {
	const web, port, replicas = "canary-web", 8400, 4
	c.create(t, web, replicas, "-p", strconv.Itoa(port)+":80", "--drain-timeout", "5s", "--update-strategy", "canary",
		"--canary-steps", "5%:manual,25%:manual", "--promote-grace", "1s")
	defer c.remove(t, web)
	answers(t, c.clients[0].Dial, url4(c.host(1), port, "/tiny"))
	x := c.startTraffic(t, port)
	within := func(step string, share float64, n int) {
		got := c.sharesOf(t, n, port)
		all := got["v1"] + got["v2"]
		is := 100 * float64(got["v2"]) / float64(max(all, 1))
		t.Logf("%s: %.2f%% of %d new connections", step, is, all)
		if is < share-2 || is > share+2 || len(got) != 2 {
			t.Errorf("%s: %.2f%% of new connections, want %.0f%%: %v", step, is, share, got)
		}
	}
	wantWords(t, c.ok(t, 1, "service", "update", "--image", "whoami:v2", web), "waiting for promote", "5% of the traffic")
	if n := len(ofImage(c.running(t, web), "whoami:v2")); n != 1 {
		t.Errorf("%d replicas are new, want 1 of %d at 5%%", n, replicas)
	}
	within("5 %", 5, 4000)
	wantWords(t, c.ok(t, 1, "service", "promote", web), "waiting for promote", "25% of the traffic")
	within("25 %", 25, 8000)
	client, url, dials := c.keptConnection(t, port, "v2")
	c.ok(t, 1, "service", "abort", "--detach", web)
	aborted := time.Now()
	until(t, func() error { // established connections go on meanwhile
		if a, err := ask(client, url); err != nil || a.version != "v2" || dials() != 0 {
			t.Fatalf("%s after the abort the kept connection's request was answered by %q, over %d new connections: %v", time.Since(aborted), a.version, dials(), err)
		}
		if time.Since(aborted) < atOnce {
			return errors.New("not a second has passed")
		}
		return nil
	})
	c.onlyVersion(t, "a second after the abort", port, "v1")
	until(t, func() error { // until its task stops: not one request is lost then
		a, err := ask(client, url)
		if err != nil {
			t.Fatalf("%s after the abort: %v", time.Since(aborted), err)
		}
		if a.version != "v1" {
			return fmt.Errorf("%s still answers", a.version)
		}
		return nil
	})
	t.Logf("the kept connection's task stopped %s after the abort", time.Since(aborted).Round(time.Millisecond))
	c.allOf(t, web, replicas, "whoami:v1")
	x.stop(t, "canary, aborted")
}

// blueGreenPreview: until it is promoted only the preview leads to the new version, and within the grace one word takes all back.
func blueGreenPreview(t *testing.T, c *netCluster) {
	const web, port, preview, replicas = "bg-web", 8410, 8411, 2
	c.network(t, "bg-back")
	c.create(t, web, replicas, "-p", strconv.Itoa(port)+":80", "--network", "bg-back", "--drain-timeout", "1s")
	asker := c.create(t, "bg-asker", 1, "--network", "bg-back")[0]
	defer c.remove(t, "bg-asker")
	defer c.remove(t, web)
	answers(t, c.clients[0].Dial, url4(c.host(1), port, "/tiny"))
	d := c.inTask(t, asker)
	byName := func(name string) map[string]int {
		got := map[string]int{}
		client := newConnections(resolving(d))
		for range 20 {
			a, err := ask(client, "http://"+name+"/")
			if err != nil {
				a.version = err.Error()
			}
			got[a.version]++
		}
		return got
	}
	only := func(name, version string) {
		t.Helper()
		if got := byName(name); len(got) != 1 || got[version] == 0 {
			t.Errorf("%s was answered by %v, want %s alone", name, got, version)
		}
	}
	if _, err := lookup(d, "preview."+web); !notFound(err) {
		t.Errorf("preview.%s before any update: %v, want no such name", web, err)
	}
	x := c.startTraffic(t, port)
	wantWords(t, c.ok(t, 1, "service", "update", "--image", "whoami:v2", "--update-strategy", "blue-green", "--promote-grace", "1m",
		"--preview-publish", strconv.Itoa(preview)+":80", web), "waiting for promote", "no traffic")
	old, fresh := ofImage(c.running(t, web), "whoami:v1"), ofImage(c.running(t, web), "whoami:v2")
	if len(old) != replicas || len(fresh) != replicas {
		t.Fatalf("%d old and %d new replicas, want %d of each", len(old), len(fresh), replicas)
	}
	c.onlyVersion(t, "before the promotion", port, "v1")
	c.onlyVersion(t, "the preview", preview, "v2")
	only(web, "v1")
	only("preview."+web, "v2")
	wantWords(t, c.ok(t, 1, "service", "promote", web), "promoted: ", "service abort")
	c.soonOnly(t, "after the promotion", port, "v2")
	only(web, "v2")
	back := c.beside(1, "service", "abort", web)
	c.soonOnly(t, "after the abort", port, "v1")
	if d := <-back; d.code != 0 {
		t.Error(d.text())
	}
	left := c.allOf(t, web, replicas, "whoami:v1")
	for _, now := range left {
		if !slices.ContainsFunc(old, func(x task) bool { return x.ID == now.ID }) {
			t.Errorf("%s was started for the way back; the old ones were there", now.Name)
		}
	}
	until(t, func() error { // the preview is over
		if _, err := tiny(c.clients[0].Dial, url4(c.host(1), preview, "/tiny")); err == nil {
			return errors.New("the preview port still answers")
		}
		if _, err := lookup(d, "preview."+web); !notFound(err) {
			return fmt.Errorf("preview.%s: %v, want no such name", web, err)
		}
		return nil
	})
	x.stop(t, "blue-green, promoted and aborted")
}
