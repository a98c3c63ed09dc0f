package node_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/swarmd/swarmd/e2e/lab"
)

const (
	// deadHost and deadTask are how long new connections may still go to a host, or a container, after its kill -9.
	deadHost = 3 * time.Second
	deadTask = time.Second
)

func TestFaults_OnFiveHosts(t *testing.T) {
	t.Parallel()
	c := newNetCluster(t, 5, 2)
	c.network(t, "back")
	t.Run("ContainerKilled_NoNewConnectionAfterASecond", func(t *testing.T) { containerKilled(t, c) })
	t.Run("DevicesAndTablesDeleted_ComeBack", func(t *testing.T) { deletedByHand(t, c) })
	t.Run("DaemonKilledAndStarted_NothingStrays", func(t *testing.T) { daemonRestarted(t, c) })
	t.Run("HostKilled_NoNewConnectionAfterThreeSeconds", func(t *testing.T) { hostKilled(t, c, 5) })
	t.Run("AllManagersDead_TrafficGoesOn_DeadHostLeftOut", func(t *testing.T) {
		c.create(t, "web", 6, "-p", "8301:80")
		c.serves(t, c.clients[0].Dial, url4(c.host(2), 8301, "/tiny"), c.running(t, "web"))
		if err := c.host(1).KillSwarmd(); err != nil {
			t.Fatal(err)
		}
		urls := []string{url4(c.host(1), 8301, "/tiny"), url4(c.host(2), 8301, "/tiny"), url4(c.host(3), 8301, "/tiny")}
		l := startLoad(t, 0, c.outside(), urls...)
		l.passes(t, 500)
		died := time.Now()
		if err := c.host(4).PowerOff(); err != nil {
			t.Fatal(err)
		}
		until(t, func() error { return past(died.Add(deadHost)) })
		l.passes(t, 1000)
		// A request that began before may wait for as long as its client does.
		failures(t, l.stop(), window{from: died, to: died.Add(deadHost)})
	})
}

func past(at time.Time) error {
	if time.Now().Before(at) {
		return errors.New("it is not time yet")
	}
	return nil
}

func containerKilled(t *testing.T, c *netCluster) {
	c.create(t, "web", 5, "-p", "8300:80", "--network", "back", "--restart-delay", "5s")
	defer c.remove(t, "web")
	asks := c.on(t, 1, "asks", 1, "--network", "back")[0]
	defer c.remove(t, "asks")
	d := c.inTask(t, asks)
	var vip []string
	until(t, func() (err error) { vip, err = lookup(d, "web"); return err })
	c.settle(t, c.outside(), c.everywhere(8300))
	outside := startLoad(t, 0, c.outside(), c.everywhere(8300)...)
	inside := startLoad(t, 0, []source{{name: "asks", dial: d.Dial}}, "http://"+vip[0]+"/tiny")
	inside.passes(t, 200)
	for range 3 {
		tasks := c.running(t, "web")
		victim := tasks[len(tasks)-1]
		killed := time.Now()
		c.signal(t, c.pid(t, victim), 9)
		until(t, func() error { return past(killed.Add(2 * deadTask)) })
		outside.allow(killed, deadTask)
		inside.allow(killed, deadTask)
		c.runningAre(t, "web", 5)
		outside.passes(t, 200)
	}
	failures(t, outside.stop(), outside.allowed...)
	failures(t, inside.stop(), inside.allowed...)
}

func hostKilled(t *testing.T, c *netCluster, victim int) {
	c.create(t, "web", 5, "-p", "8302:80", "--network", "back", "--replicas-max-per-node", "1")
	defer c.remove(t, "web")
	asks := c.on(t, 2, "asks", 1, "--network", "back")[0]
	defer c.remove(t, "asks")
	d := c.inTask(t, asks)
	var vip []string
	until(t, func() (err error) { vip, err = lookup(d, "web"); return err })
	urls := c.everywhere(8302)[:victim-1]
	c.settle(t, c.outside(), urls)
	outside := startLoad(t, 0, c.outside(), urls...)
	inside := startLoad(t, 0, []source{{name: "asks", dial: d.Dial}}, "http://"+vip[0]+"/tiny")
	inside.passes(t, 200)
	died := time.Now()
	if err := c.host(victim).PowerOff(); err != nil {
		t.Fatal(err)
	}
	until(t, func() error { return past(died.Add(deadHost)) })
	outside.passes(t, 1000)
	inside.passes(t, 300)
	for _, l := range []*load{outside, inside} {
		failures(t, l.stop(), window{from: died, to: died.Add(deadHost)})
	}
	if err := c.host(victim).PowerOn(); err != nil {
		t.Fatal(err)
	}
	c.start(c.host(victim))
	c.nodeIs(t, c.host(victim).Name, "ready")
	c.runningAre(t, "web", 5)
	for _, h := range c.lab.Hosts() {
		c.serves(t, c.clients[0].Dial, url4(h, 8302, "/tiny"), c.running(t, "web"))
	}
}

// deletedByHand deletes what the product owns in a host's kernel, one thing after the other.
func deletedByHand(t *testing.T, c *netCluster) {
	tasks := c.create(t, "web", 4, "-p", "8303:80", "--network", "back", "--constraint", "node.hostname!=node-5")
	defer c.remove(t, "web")
	asks := c.on(t, 2, "asks", 1, "--network", "back")[0]
	defer c.remove(t, "asks")
	d := c.inTask(t, asks)
	var vip []string
	until(t, func() (err error) { vip, err = lookup(d, "web"); return err })
	h := c.host(2)
	works := func() {
		t.Helper()
		c.serves(t, c.clients[0].Dial, url4(h, 8303, "/tiny"), tasks)
		c.serves(t, c.clients[0].Dial, url4(c.host(5), 8303, "/tiny"), tasks)
		c.serves(t, d.Dial, "http://"+vip[0]+"/tiny", tasks)
	}
	works()
	for _, x := range []struct {
		what   string
		delete func() error
	}{
		{"the fabric", func() error { return h.Inside(func() error { return deleteLink("swarm-fab") }) }},
		{"the host's table", func() error { return h.Inside(deleteTables) }},
		{"the task's table", func() error { return d.Do(deleteTables) }},
		{"the gateway", func() error { return h.Inside(func() error { return deleteLink("swarm-up") }) }},
	} {
		if err := x.delete(); err != nil {
			t.Errorf("delete %s: %v", x.what, err)
			continue
		}
		t.Log("deleted:", x.what)
		works()
	}
}

func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

func deleteTables() error {
	k, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := k.ListTables()
	if err != nil {
		return err
	}
	if len(tables) == 0 {
		return errors.New("there are no tables")
	}
	for _, table := range tables {
		if strings.HasPrefix(table.Name, "swarmd") {
			k.DelTable(table)
		}
	}
	return k.Flush()
}

// daemonRestarted compares what the kernel has before a kill -9 of the daemon with what it has after its next start.
func daemonRestarted(t *testing.T, c *netCluster) {
	tasks := c.create(t, "web", 5, "-p", "8304:80", "--network", "back", "--replicas-max-per-node", "1")
	defer c.remove(t, "web")
	h := c.host(3)
	c.serves(t, c.clients[0].Dial, url4(h, 8304, "/tiny"), tasks)
	before := state(t, h)
	l := startLoad(t, 0, c.outside(), c.everywhere(8304)...)
	l.passes(t, 200)
	if err := h.KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	l.passes(t, 200)
	c.start(h)
	c.nodeIs(t, h.Name, "ready")
	l.passes(t, 500)
	failures(t, l.stop())
	until(t, func() error { return sameState(before, state(t, h)) })
}

func state(t *testing.T, h *lab.Host) []string {
	t.Helper()
	lines, err := h.NetworkState()
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func sameState(want, got []string) error {
	var errs []error
	for _, x := range got {
		if !slices.Contains(want, x) {
			errs = append(errs, fmt.Errorf("strays: %s", x))
		}
	}
	for _, x := range want {
		if !slices.Contains(got, x) {
			errs = append(errs, fmt.Errorf("is gone: %s", x))
		}
	}
	return errors.Join(errs...)
}

func TestLeave_NothingOfTheNetworkIsLeft(t *testing.T) {
	t.Parallel()
	c := newHosts(t, 2)
	worker := c.host(2)
	before := state(t, worker)
	c.form(t, 2)
	n := withClients(t, c, 1)
	n.network(t, "back", "--ipv6")
	tasks := n.create(t, "web", 4, "-p", "8080:80", "-p", "8080:80/udp", "--network", "back")
	n.serves(t, n.clients[0].Dial, url4(worker, 8080, "/tiny"), tasks)
	n.serves(t, n.clients[0].Dial, url6(worker, 8080, "/tiny"), tasks)
	n.remove(t, "web")
	n.removeNetworks(t, "back")
	c.ok(t, 2, "leave")
	until(t, func() error {
		if err := sameState(before, state(t, worker)); err != nil {
			return err
		}
		if left := worker.Namespaces(); len(left) > 0 {
			return fmt.Errorf("namespaces: %v", left)
		}
		flows, err := worker.Tracked(func(f *netlink.ConntrackFlow) bool {
			pool := &net.IPNet{IP: net.IPv4(100, 64, 0, 0).To4(), Mask: net.CIDRMask(10, 32)}
			return pool.Contains(f.Forward.DstIP) || pool.Contains(f.Forward.SrcIP) || pool.Contains(f.Reverse.SrcIP)
		})
		if err == nil && len(flows) > 0 {
			err = fmt.Errorf("flows are tracked: %v", flows)
		}
		return err
	})
}

func TestDockerOnTheHosts_EverythingWorks(t *testing.T) {
	t.Parallel()
	c := newBareHosts(t, 2)
	for _, h := range c.lab.Hosts() {
		if err := h.DockerFirewall(); err != nil {
			t.Fatal(err)
		}
		c.start(h)
	}
	c.form(t, 2)
	n := withClients(t, c, 1)
	n.network(t, "back")
	tasks := n.create(t, "web", 2, "-p", "8080:80", "--network", "back", "--replicas-max-per-node", "1")
	for _, h := range c.lab.Hosts() {
		n.serves(t, n.clients[0].Dial, url4(h, 8080, "/tiny"), tasks)
		n.serves(t, n.clients[0].Dial, url6(h, 8080, "/tiny"), tasks)
	}
	d := n.inTask(t, tasks[0])
	var vip []string
	until(t, func() (err error) { vip, err = lookup(d, "web"); return err })
	n.serves(t, d.Dial, "http://"+vip[0]+"/tiny", tasks)
	// Docker starts anew and writes its chains again.
	if err := c.host(2).DockerFirewall(); err != nil {
		t.Fatal(err)
	}
	n.serves(t, n.clients[0].Dial, url4(c.host(2), 8080, "/tiny"), tasks)
}

// Big transfers on every path with wires that carry 1400 bytes, in a plain and in an encrypted network.
func TestMTU1400_BigTransfersOnEveryPath(t *testing.T) {
	t.Parallel()
	c := newHostsWith(t, lab.Config{Hosts: 2, MTU: 1400})
	for _, h := range c.lab.Hosts() {
		c.start(h)
	}
	c.form(t, 2)
	n := withClients(t, c, 1)
	n.network(t, "plain")
	n.network(t, "secret", "--encrypted")
	for _, network := range []string{"plain", "secret"} {
		x := n.on(t, 2, network, 1, "--network", network, "-p", map[string]string{"plain": "8080:80", "secret": "8081:80"}[network])[0]
		y := n.on(t, 1, "asks-"+network, 1, "--network", network)[0]
		d := n.inTask(t, y)
		var vip []string
		until(t, func() (err error) { vip, err = lookup(d, network); return err })
		bothWays(t, network+" through its VIP", d.Dial, "http://"+vip[0])
		bothWays(t, network+" at its own address", d.Dial, "http://"+n.overlayAddresses(t, x)[0].String())
	}
	for _, h := range c.lab.Hosts() {
		bothWays(t, "published, through "+h.Name, n.clients[0].Dial, url4(h, 8080, ""))
		bothWays(t, "published, IPv6, through "+h.Name, n.clients[0].Dial, url6(h, 8080, ""))
	}
}

// bothWays moves 8 MB each way.
func bothWays(t *testing.T, what string, dial dialer, url string) {
	t.Helper()
	const size = 8 << 20
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 30 * time.Second}
	until(t, func() error { _, err := askTiny(client, url+"/tiny"); return err })
	r, err := client.Get(fmt.Sprintf("%s/bytes?n=%d", url, size))
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	n, err := io.Copy(io.Discard, r.Body)
	_ = r.Body.Close()
	if err != nil || n != size {
		t.Errorf("%s: %d bytes came, %v", what, n, err)
	}
	r, err = client.Post(url+"/count", "application/octet-stream", io.LimitReader(endless{}, size))
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	body, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil || strings.TrimSpace(string(body)) != fmt.Sprint(size) {
		t.Errorf("%s: %q bytes went, %v", what, body, err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestEncrypted_NothingInPlainTextOnTheWire(t *testing.T) {
	t.Parallel()
	c := newNetCluster(t, 2, 1)
	const secret = "the-words-that-nobody-may-read"
	seen := func(network string) bool {
		c.network(t, network, map[string][]string{"open": nil, "shut": {"--encrypted"}}[network]...)
		x := c.on(t, 2, network, 1, "--network", network)[0]
		d := c.inTask(t, c.on(t, 1, "asks-"+network, 1, "--network", network)[0])
		addr := c.overlayAddresses(t, x)[0].String()
		answers(t, d.Dial, "http://"+addr+"/tiny")
		wire, err := c.lab.Capture([]byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if _, err := get(d.Dial, "http://"+addr+"/?"+secret); err != nil {
				t.Error(err)
			}
		}
		packets, found := wire.Close()
		if packets < 20 {
			t.Errorf("%d packets were seen on the wire", packets)
		}
		return found > 0
	}
	if !seen("open") {
		t.Error("the words of a plain network are not seen on the wire: this test sees nothing")
	}
	if seen("shut") {
		t.Error("the words of an encrypted network are on the wire")
	}
}
