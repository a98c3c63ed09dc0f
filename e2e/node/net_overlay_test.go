package node_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOverlay_OnThreeHosts(t *testing.T) {
	t.Parallel()
	c := newNetCluster(t, 3, 1)
	outsideNames(t, c.cluster)
	t.Run("Names_EveryForm_AnswersWhatRuns", func(t *testing.T) { names(t, c) })
	t.Run("VIP_BalancesFromInside_AlsoToItself", func(t *testing.T) { vips(t, c) })
	t.Run("ResolverSettings_InTheContainer", func(t *testing.T) { resolverSettings(t, c) })
	t.Run("SameSubnetTwice_NoMixing", func(t *testing.T) { sameSubnet(t, c) })
	t.Run("Isolation_TriedOverOverlayAndUplink", func(t *testing.T) { isolation(t, c) })
	t.Run("Internal_NoWayOut", func(t *testing.T) { internal(t, c) })
	t.Run("IPv6Network_BothFamilies", func(t *testing.T) { bothFamilies(t, c) })
	t.Run("AddressesRunOut_ServiceSaysSo_AndGoesOn", func(t *testing.T) { poolFull(t, c) })
	t.Run("BadRequests_SayWhatToDo", func(t *testing.T) { badNetworks(t, c) })
	t.Run("NetworkAddedAndRemoved_TasksFollow", func(t *testing.T) { networkChanged(t, c) })
	t.Run("LastTaskGone_NothingOfTheNetworkIsLeft", func(t *testing.T) { networkGone(t, c) })
}

func (c *netCluster) network(t *testing.T, name string, flags ...string) {
	t.Helper()
	c.ok(t, c.via, append(append([]string{"network", "create"}, flags...), name)...)
}

func (c *netCluster) removeNetworks(t *testing.T, names ...string) {
	t.Helper()
	until(t, func() error {
		if out, errs, code := c.ctl(c.via, append([]string{"network", "rm"}, names...)...); code != 0 && !strings.Contains(errs, "not found") && !strings.Contains(errs, "no network") {
			return fmt.Errorf("network rm %v: %s%s", names, out, errs)
		}
		return nil
	})
}

// resolves waits until a name has the wanted addresses, in any order.
func resolves(t *testing.T, c *netCluster, in task, name string, want []string) {
	t.Helper()
	d := c.inTask(t, in)
	slices.Sort(want)
	until(t, func() error {
		got, err := lookup(d, name)
		if err != nil || !slices.Equal(got, want) {
			return fmt.Errorf("%s in %s: %v %v, want %v", name, in.Name, got, err, want)
		}
		return nil
	})
}

func (c *netCluster) addressesOf(t *testing.T, tasks []task) []string {
	t.Helper()
	var out []string
	for _, x := range tasks {
		for _, a := range c.overlayAddresses(t, x) {
			out = append(out, a.String())
		}
	}
	return out
}

func names(t *testing.T, c *netCluster) {
	c.network(t, "back")
	defer c.removeNetworks(t, "back")
	web := c.create(t, "web", 3, "--network", "name=back,alias=www", "--network-alias", "site")
	defer c.remove(t, "web")
	rr := c.create(t, "rr", 2, "--network", "back", "--endpoint-mode", "dnsrr")
	defer c.remove(t, "rr")
	asks := c.on(t, 3, "asks", 1, "--network", "back", "-p", "8200:80", "--hostname", "h-{{.Task.Slot}}")[0]
	defer c.remove(t, "asks")
	d := c.inTask(t, asks)
	var vip []string
	until(t, func() (err error) { vip, err = lookup(d, "web"); return err })
	if all := c.addressesOf(t, web); len(vip) != 1 || slices.Contains(all, vip[0]) {
		t.Errorf("web is %v, want one address that is of none of its tasks %v", vip, all)
	}
	for _, name := range []string{"WEB", "www", "site", "web.back"} {
		resolves(t, c, asks, name, vip)
	}
	resolves(t, c, asks, "tasks.web", c.addressesOf(t, web))
	resolves(t, c, asks, "tasks.rr", c.addressesOf(t, rr))
	resolves(t, c, asks, "rr", c.addressesOf(t, rr))
	for _, x := range web {
		resolves(t, c, asks, x.Name, c.addressesOf(t, []task{x}))
		resolves(t, c, asks, hostnameOf(x), c.addressesOf(t, []task{x}))
	}
	if _, err := lookup(d, "nothing"); err == nil {
		t.Error("a name that is nobody's was answered")
	}
	if _, err := lookup(d, "web.9"); !notFound(err) {
		t.Errorf("web.9 is answered with %v, want not found", err)
	}
	// As a container's own program asks, through its resolv.conf.
	var body string
	until(t, func() (err error) {
		body, err = get(c.clients[0].Dial, url4(c.host(1), 8200, "/resolve?name=web"))
		return err
	})
	if strings.TrimSpace(body) != vip[0] {
		t.Errorf("a program in a container resolves web to %q, want %s", body, vip[0])
	}
	body, err := get(c.clients[0].Dial, url4(c.host(1), 8200, "/resolve?address="+c.addressesOf(t, web[:1])[0]))
	if err != nil || !strings.HasPrefix(body, web[0].Name) {
		t.Errorf("the name of %s's address is %q %v", web[0].Name, body, err)
	}
	c.ok(t, 1, "service", "scale", "web=1")
	resolves(t, c, asks, "tasks.web", c.addressesOf(t, c.runningAre(t, "web", 1)))
	c.ok(t, 1, "service", "scale", "rr=0")
	until(t, func() error {
		if got, err := lookup(d, "rr"); !notFound(err) {
			return fmt.Errorf("rr without tasks is %v %v", got, err)
		}
		return nil
	})
}

func vips(t *testing.T, c *netCluster) {
	c.network(t, "vips")
	defer c.removeNetworks(t, "vips")
	web := c.create(t, "web", 3, "--network", "vips")
	defer c.remove(t, "web")
	asks := c.on(t, 2, "asks", 1, "--network", "vips")[0]
	defer c.remove(t, "asks")
	for _, in := range append([]task{asks}, web...) { // a service that calls itself too
		d := c.inTask(t, in)
		var vip []string
		until(t, func() (err error) { vip, err = lookup(d, "web"); return err })
		c.serves(t, d.Dial, "http://"+vip[0]+"/tiny", web)
		got := answers(t, d.Dial, "http://"+vip[0]+"/tiny")
		if a := c.addressesOf(t, []task{in}); in.ID == asks.ID && got.Client != a[0] {
			t.Errorf("through the VIP a replica sees %s, want the caller's %v", got.Client, a)
		}
		until(t, func() error { _, err := echo(d.Dial, "udp", vip[0]+":80"); return err })
		refusedFrom(t, d.Dial, vip[0]+":81")
	}
	if body, err := get(c.inTask(t, asks).Dial, "http://127.0.0.1/call?url=http://web/"); err != nil || !strings.Contains(body, "Version: v1") {
		t.Errorf("a program that calls http://web/ is told %q %v", body, err)
	}
	d := c.inTask(t, asks)
	vip, err := lookup(d, "web")
	if err != nil {
		t.Fatal(err)
	}
	done := startLoad(t, 6000, []source{{name: "asks", dial: d.Dial}}, "http://"+vip[0]+"/tiny").wait()
	failures(t, done)
	even(t, done, 3, 0.10)
}

func refusedFrom(t *testing.T, dial dialer, addr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := dial(ctx, "tcp", addr)
	if err == nil {
		_ = conn.Close()
	}
	if err == nil || ctx.Err() != nil {
		t.Errorf("%s: %v, want a refusal at once", addr, err)
	}
}

func resolverSettings(t *testing.T, c *netCluster) {
	c.network(t, "dns")
	defer c.removeNetworks(t, "dns")
	x := c.create(t, "set", 1, "--network", "dns", "--dns-search", "corp.example", "--dns-option", "ndots:2", "--add-host", "db:192.168.1.5", "--hostname", "h-{{.Task.Slot}}")[0]
	defer c.remove(t, "set")
	read := func(x task, file string) string {
		data, err := os.ReadFile(filepath.Join(c.root(t, x), file))
		if err != nil {
			t.Error(err)
		}
		return string(data)
	}
	wantWords(t, read(x, "etc/resolv.conf"), "nameserver 127.0.0.11", "search corp.example", "ndots:2")
	wantWords(t, read(x, "etc/hosts"), "192.168.1.5\tdb", "h-1")
	if strings.TrimSpace(read(x, "etc/hostname")) != "h-1" {
		t.Errorf("hostname is %q", read(x, "etc/hostname"))
	}
	resolves(t, c, x, "www.outside.example", []string{outsideAddress})
	// A name server of the user's own is asked for what is outside.
	l, err := c.lab.ListenPacket("udp", "10.77.0.254:53")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go answerAll(l, "", netip.MustParseAddr("192.0.2.9"))
	y := c.create(t, "asks", 1, "--network", "dns", "--dns", "10.77.0.254")[0]
	defer c.remove(t, "asks")
	resolves(t, c, y, "www.outside.example", []string{"192.0.2.9"})
	z := c.create(t, "bare", 1, "--dns", "10.77.0.254")[0]
	defer c.remove(t, "bare")
	wantWords(t, read(z, "etc/resolv.conf"), "nameserver 10.77.0.254")
}

func sameSubnet(t *testing.T, c *netCluster) {
	for _, n := range []string{"red", "blue"} {
		c.network(t, n, "--subnet", "10.90.0.0/24")
		defer c.removeNetworks(t, n)
	}
	var tasks []task
	for i, n := range []string{"red", "blue"} {
		tasks = append(tasks, c.on(t, 2, n+"-a", 1, "--network", n)[0], c.on(t, 3, n+"-b", 1, "--network", n)[0])
		defer c.remove(t, n+"-a")
		defer c.remove(t, n+"-b")
		_ = i
	}
	for i := 0; i < 4; i += 2 {
		a, b := tasks[i], tasks[i+1]
		d := c.inTask(t, a)
		url := "http://" + c.overlayAddresses(t, b)[0].String() + "/tiny"
		for range 20 {
			if got := answers(t, d.Dial, url); got.Task != hostnameOf(b) {
				t.Errorf("%s calls %s and %s answers", a.Name, b.Name, got.Task)
			}
		}
	}
	if a, b := c.overlayAddresses(t, tasks[0])[0], c.overlayAddresses(t, tasks[2])[0]; a != b {
		t.Logf("the networks' first tasks have %s and %s", a, b)
	}
	if got, err := lookup(c.inTask(t, tasks[0]), "blue-b"); !notFound(err) {
		t.Errorf("a name of the other network is %v %v", got, err)
	}
	c.refused(t, 1, []string{"red", "blue"}, "service", "create", "--name", "both", "--network", "red", "--network", "blue", "whoami:v1")
}

func isolation(t *testing.T, c *netCluster) {
	for _, n := range []string{"left", "right"} {
		c.network(t, n)
		defer c.removeNetworks(t, n)
	}
	l := c.on(t, 2, "l", 1, "--network", "left", "-p", "8210:80")[0]
	defer c.remove(t, "l")
	for _, x := range []task{c.on(t, 2, "near", 1, "--network", "right")[0], c.on(t, 3, "far", 1, "--network", "right")[0], c.on(t, 3, "bare", 1)[0]} {
		defer c.remove(t, strings.Split(x.Name, ".")[0])
		d := c.inTask(t, l)
		for _, a := range append(c.overlayAddresses(t, x), c.uplinkAddress(t, x)) {
			closed(t, l.Name+" calls "+x.Name, d.Dial, netip.AddrPortFrom(a, 80).String())
		}
		back := c.inTask(t, x)
		for _, a := range append(c.overlayAddresses(t, l), c.uplinkAddress(t, l)) {
			closed(t, x.Name+" calls "+l.Name, back.Dial, netip.AddrPortFrom(a, 80).String())
		}
		// The way in that is open: the published port.
		answers(t, back.Dial, url4(c.host(1), 8210, "/tiny"))
	}
	// A client outside, with a route to the tasks' addresses through a node, is nobody either.
	if err := c.clients[0].RouteVia(netip.PrefixFrom(c.uplinkAddress(t, l), 32), c.host(2).Addr); err != nil {
		t.Fatal(err)
	}
	closed(t, "a client with a route", c.clients[0].Dial, netip.AddrPortFrom(c.uplinkAddress(t, l), 80).String())
}

func internal(t *testing.T, c *netCluster) {
	c.network(t, "inside", "--internal")
	defer c.removeNetworks(t, "inside")
	a := c.on(t, 2, "a", 1, "--network", "inside")[0]
	defer c.remove(t, "a")
	b := c.on(t, 3, "b", 1, "--network", "inside")[0]
	defer c.remove(t, "b")
	out, err := c.lab.Listen("tcp", "10.77.0.254:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	d := c.inTask(t, a)
	answers(t, d.Dial, "http://"+c.overlayAddresses(t, b)[0].String()+"/tiny")
	resolves(t, c, a, "tasks.b", c.addressesOf(t, []task{b}))
	for _, addr := range []string{"10.77.0.254:9000", netip.AddrPortFrom(c.host(2).Addr, 2377).String(), netip.AddrPortFrom(c.host(1).Addr, 2377).String()} {
		closed(t, "a task of an internal network", d.Dial, addr)
	}
	open := c.create(t, "open", 1)[0]
	defer c.remove(t, "open")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := c.inTask(t, open).Dial(ctx, "tcp", "10.77.0.254:9000")
	if err != nil {
		t.Error("a task without a network gets nowhere either:", err)
	} else {
		_ = conn.Close()
	}
	c.refused(t, 1, []string{"8211", "internal"}, "service", "create", "--name", "p", "--network", "inside", "-p", "8211:80", "whoami:v1")
}

func bothFamilies(t *testing.T, c *netCluster) {
	c.network(t, "six", "--ipv6")
	defer c.removeNetworks(t, "six")
	web := c.create(t, "web", 2, "--network", "six")
	defer c.remove(t, "web")
	asks := c.on(t, 1, "asks", 1, "--network", "six")[0]
	defer c.remove(t, "asks")
	d := c.inTask(t, asks)
	resolves(t, c, asks, "tasks.web", c.addressesOf(t, web))
	var vips []string
	until(t, func() (err error) {
		if vips, err = lookup(d, "web"); err == nil && len(vips) != 2 {
			err = fmt.Errorf("web is %v, want an address of each family", vips)
		}
		return err
	})
	for _, a := range append(vips, c.addressesOf(t, web)...) {
		url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(a), 80).String() + "/tiny"
		answers(t, d.Dial, url)
		if slices.Contains(vips, a) {
			c.serves(t, d.Dial, url, web)
		}
	}
}

// poolFull wants more addresses than there are, of a network as small as may be and of a /24.
func poolFull(t *testing.T, c *netCluster) {
	c.network(t, "small", "--subnet", "10.91.0.0/29")
	defer c.removeNetworks(t, "small")
	c.ok(t, 1, "service", "create", "--detach", "--name", "crowd", "--replicas", "8", "--network", "small", "whoami:v1")
	defer c.remove(t, "crowd")
	until(t, func() error {
		if n := len(c.running(t, "crowd")); n < 3 || n > 5 {
			return fmt.Errorf("%d tasks run in a /29, of which the gateway and the VIP have one each", n)
		}
		out, errs, _ := c.ctl(1, "service", "ps", "crowd")
		if !strings.Contains(out+errs, "full") && !strings.Contains(out+errs, "no address") {
			return fmt.Errorf("service ps does not say that the network is full:\n%s%s", out, errs)
		}
		return nil
	})
	n := len(c.running(t, "crowd"))
	c.ok(t, 1, "service", "scale", "--detach", fmt.Sprintf("crowd=%d", n-1))
	c.runningAre(t, "crowd", n-1)
	// 260 addresses of a /24: no task is placed, so only addresses are counted.
	c.network(t, "full24", "--subnet", "10.92.0.0/24")
	defer c.removeNetworks(t, "full24")
	c.ok(t, 1, "service", "create", "--detach", "--name", "c260", "--replicas", "260", "--network", "full24", "--constraint", "node.hostname==nowhere", "whoami:v1")
	defer c.remove(t, "c260")
	until(t, func() error {
		out, errs, _ := c.ctl(1, "service", "ps", "c260")
		if !strings.Contains(out+errs, "full") && !strings.Contains(out+errs, "no address") {
			return fmt.Errorf("service ps does not say that the network is full:\n%.2000s%s", out, errs)
		}
		used := fmt.Sprint(dig(c.inspected(t, "network", "full24"), "addressesUsed"))
		if used != "254" && used != "254.0" {
			return fmt.Errorf("%s addresses are used, want 254: 252 tasks, the VIP and the gateway", used)
		}
		return nil
	})
}

func badNetworks(t *testing.T, c *netCluster) {
	c.network(t, "used")
	defer c.removeNetworks(t, "used")
	c.create(t, "user", 1, "--network", "used")
	defer c.remove(t, "user")
	for _, x := range []struct {
		words []string
		args  []string
	}{
		{[]string{"10.20.0.0/240"}, []string{"network", "create", "--subnet", "10.20.0.0/240", "bad"}},
		{[]string{"10.20.0.5/24", "10.20.0.0/24"}, []string{"network", "create", "--subnet", "10.20.0.5/24", "bad"}},
		{[]string{"10.21.0.1", "10.20.0.0/24"}, []string{"network", "create", "--subnet", "10.20.0.0/24", "--gateway", "10.21.0.1", "bad"}},
		{[]string{"10.77.0.0/24", "node-"}, []string{"network", "create", "--subnet", "10.77.0.0/24", "bad"}},
		{[]string{"used", "user"}, []string{"network", "rm", "used"}},
		{[]string{"nowhere"}, []string{"service", "create", "--name", "lost", "--network", "nowhere", "whoami:v1"}},
		{[]string{"used"}, []string{"network", "create", "used"}},
	} {
		c.refused(t, 1, x.words, x.args...)
	}
	if got := c.running(t, "user"); len(got) != 1 {
		t.Errorf("after the refused removal: %s", describe(got))
	}
	if out, _, code := c.ctl(1, "network", "inspect", "bad"); code == 0 {
		t.Errorf("a network that was refused is there:\n%s", out)
		c.removeNetworks(t, "bad")
	}
}

func networkChanged(t *testing.T, c *netCluster) {
	c.network(t, "more")
	defer c.removeNetworks(t, "more")
	c.create(t, "joins", 2)
	defer c.remove(t, "joins")
	asks := c.create(t, "asks", 1, "--network", "more")[0]
	defer c.remove(t, "asks")
	c.ok(t, 1, "service", "update", "--network-add", "more", "joins")
	resolves(t, c, asks, "tasks.joins", c.addressesOf(t, c.runningAre(t, "joins", 2)))
	c.ok(t, 1, "service", "update", "--network-rm", "more", "joins")
	c.runningAre(t, "joins", 2)
	d := c.inTask(t, asks)
	until(t, func() error {
		if got, err := lookup(d, "joins"); !notFound(err) {
			return fmt.Errorf("joins has left and is %v %v", got, err)
		}
		return nil
	})
}

// networkGone runs last: no service is left.
func networkGone(t *testing.T, c *netCluster) {
	until(t, func() error {
		for _, h := range c.lab.Hosts() {
			if left := h.Namespaces(); len(left) > 0 {
				return fmt.Errorf("namespaces on %s: %v", h.Name, left)
			}
		}
		return nil
	})
	if out := strings.TrimSpace(c.ok(t, 1, "network", "ls", "-q")); out != "" {
		t.Errorf("networks are left: %q", out)
	}
}
