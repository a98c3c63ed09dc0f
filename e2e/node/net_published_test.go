package node_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/swarmd/swarmd/e2e/lab"
	"github.com/swarmd/swarmd/e2e/sctp"
)

func TestPublished_OnFourHosts(t *testing.T) {
	t.Parallel()
	c := newNetCluster(t, 4, 2)
	t.Run("EveryNodeAnswers_ClientAddressKept_OnEveryPath", func(t *testing.T) { everyPath(t, c) })
	t.Run("SourceNAT_ReplicaSeesTheNode", func(t *testing.T) { sourceNAT(t, c) })
	t.Run("Affinity_OneClientOneReplica", func(t *testing.T) { affinity(t, c) })
	t.Run("DynamicPort_OfTheRangeAndShown", func(t *testing.T) { dynamicPort(t, c) })
	t.Run("PortRange_EachPortAnswers", func(t *testing.T) { portRange(t, c) })
	t.Run("PortTaken_ByAServiceOrAListener_IsNamed", func(t *testing.T) { portsTaken(t, c) })
	t.Run("ManyReplicas_EvenlyUsed", func(t *testing.T) { evenly(t, c) })
	t.Run("UDP_FollowsTheReplicas", func(t *testing.T) { udpFollows(t, c) })
	t.Run("SCTP_AssociatesThroughEveryNode", func(t *testing.T) { sctpEverywhere(t, c) })
	t.Run("NoReplica_RefusedAtOnce", func(t *testing.T) { noReplica(t, c) })
	t.Run("PublishAddedAndRemoved_FollowsOnEveryNode", func(t *testing.T) { publishChanged(t, c) })
	t.Run("ManyServicesAtOnce_AllAnswer", func(t *testing.T) { manyServices(t, c) })
}

// everyPath has replicas on hosts 2 and 3 alone.
func everyPath(t *testing.T, c *netCluster) {
	tasks := c.create(t, "web", 2, "--replicas-max-per-node", "1", "--constraint", "node.hostname!=node-1", "--constraint", "node.hostname!=node-4", "-p", "8080:80", "-p", "8080:80/udp")
	defer c.remove(t, "web")
	client := c.clients[0]
	for _, h := range c.lab.Hosts() {
		for _, at := range []struct{ url, udp, want string }{
			{url4(h, 8080, "/tiny"), netip.AddrPortFrom(h.Addr, 8080).String(), client.Addr.String()},
			{url6(h, 8080, "/tiny"), netip.AddrPortFrom(h.Addr6, 8080).String(), client.Addr6.String()},
		} {
			c.serves(t, client.Dial, at.url, tasks)
			if got := answers(t, client.Dial, at.url); got.Client != at.want {
				t.Errorf("%s: the replica sees %s, want the client's own %s", at.url, got.Client, at.want)
			}
			for range 8 {
				var got who
				until(t, func() (err error) { got, err = echo(client.Dial, "udp", at.udp); return err })
				if got.Client != at.want {
					t.Errorf("udp %s: the replica sees %s, want the client's own %s", at.udp, got.Client, at.want)
				}
			}
			c.serves(t, from(h), at.url, tasks) // the node itself
			for _, other := range c.lab.Hosts() {
				if other != h {
					c.serves(t, from(other), at.url, tasks)
				}
			}
		}
		c.serves(t, from(h), "http://127.0.0.1:8080/tiny", tasks)
		c.serves(t, from(h), "http://[::1]:8080/tiny", tasks)
	}
	// Out of a task: its own node's port, where a replica may be itself, and the other nodes'.
	for _, x := range tasks {
		d := c.inTask(t, x)
		for _, h := range c.lab.Hosts() {
			c.serves(t, d.Dial, url4(h, 8080, "/tiny"), tasks)
			c.serves(t, d.Dial, url6(h, 8080, "/tiny"), tasks)
		}
	}
	// And as its programs do it.
	h := c.hostOf(t, tasks[0])
	if body, err := get(client.Dial, url4(h, 8080, "/call?url="+url4(c.host(1), 8080, "/"))); err != nil || !strings.Contains(body, "Version: v1") {
		t.Errorf("a task that calls a published port is told %q %v", body, err)
	}
}

func sourceNAT(t *testing.T, c *netCluster) {
	x := c.on(t, 2, "nat", 1, "-p", "published=8081,target=80,source=nat")
	defer c.remove(t, "nat")
	for _, h := range c.lab.Hosts() {
		c.serves(t, c.clients[0].Dial, url4(h, 8081, "/tiny"), x)
		if got := answers(t, c.clients[0].Dial, url4(h, 8081, "/tiny")); got.Client == c.clients[0].Addr.String() {
			t.Errorf("through %s the replica sees the client's own address, though source=nat", h.Name)
		}
	}
}

func affinity(t *testing.T, c *netCluster) {
	c.create(t, "sticky", 4, "-p", "published=8082,target=80,affinity=client-ip")
	defer c.remove(t, "sticky")
	for _, client := range c.clients {
		var first who
		until(t, func() error { // until every node has all four
			first = answers(t, client.Dial, url4(c.host(1), 8082, "/tiny"))
			for _, h := range c.lab.Hosts() {
				for range 20 {
					got, err := tiny(client.Dial, url4(h, 8082, "/tiny"))
					if err != nil || got.Task != first.Task {
						return fmt.Errorf("%s through %s came to %s %v, before to %s", client.Name, h.Name, got.Task, err, first.Task)
					}
				}
			}
			return nil
		})
	}
}

func dynamicPort(t *testing.T, c *netCluster) {
	x := c.on(t, 3, "dyn", 1, "-p", "80")
	defer c.remove(t, "dyn")
	var port int
	until(t, func() error {
		out := c.ok(t, 1, "service", "inspect", "--pretty", "dyn")
		_, rest, _ := strings.Cut(out, "*:")
		number, _, _ := strings.Cut(rest, "->")
		var err error
		if port, err = strconv.Atoi(number); err != nil || port < 30000 || port > 32767 {
			return fmt.Errorf("service inspect shows no port of 30000 to 32767:\n%s", out)
		}
		return nil
	})
	c.serves(t, c.clients[0].Dial, url4(c.host(1), port, "/tiny"), x)
}

func portRange(t *testing.T, c *netCluster) {
	x := c.on(t, 2, "range", 1, "-p", "8100-8104:80")
	defer c.remove(t, "range")
	for p := 8100; p <= 8104; p++ {
		c.serves(t, c.clients[0].Dial, url4(c.host(4), p, "/tiny"), x)
	}
}

func portsTaken(t *testing.T, c *netCluster) {
	c.on(t, 2, "first", 1, "-p", "8083:80")
	defer c.remove(t, "first")
	c.refused(t, 1, []string{"8083", `"first"`}, "service", "create", "--name", "second", "-p", "8083:80", "whoami:v1")

	var l net.Listener
	if err := c.host(4).Inside(func() (err error) { l, err = net.Listen("tcp", ":8084"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x := c.on(t, 2, "shadowed", 1, "-p", "8084:80")
	defer c.remove(t, "shadowed")
	until(t, func() error {
		if out, errs, _ := c.ctl(1, "service", "ps", "shadowed"); !strings.Contains(out+errs, "8084") || !strings.Contains(out+errs, "node-4") {
			return fmt.Errorf("service ps does not say that node-4 has another listener on 8084:\n%s%s", out, errs)
		}
		return nil
	})
	c.serves(t, c.clients[0].Dial, url4(c.host(1), 8084, "/tiny"), x)
	_ = l.Close()
	c.serves(t, c.clients[0].Dial, url4(c.host(4), 8084, "/tiny"), x) // it takes the port once that is free
	until(t, func() error {
		if out, errs, _ := c.ctl(1, "service", "ps", "shadowed"); strings.Contains(out+errs, "node-4 is taken") {
			return fmt.Errorf("service ps still says so:\n%s%s", out, errs)
		}
		return nil
	})
}

func evenly(t *testing.T, c *netCluster) {
	tasks := c.create(t, "wide", 5, "-p", "8085:80")
	defer c.remove(t, "wide")
	for _, h := range c.lab.Hosts() {
		c.serves(t, c.clients[0].Dial, url4(h, 8085, "/tiny"), tasks)
	}
	done := startLoad(t, 3000*len(tasks), c.outside(), c.everywhere(8085)...).wait()
	failures(t, done)
	even(t, done, len(tasks), 0.10)
}

func udpFollows(t *testing.T, c *netCluster) {
	c.create(t, "udp", 2, "-p", "8086:80/udp")
	defer c.remove(t, "udp")
	client := c.clients[0]
	addr := netip.AddrPortFrom(c.host(4).Addr, 8086).String()
	conn, err := client.Dial(context.Background(), "udp", addr) // one flow, always from the same port
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func() (who, error) {
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return who{}, err
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			return who{}, err
		}
		buf := make([]byte, 1500)
		n, err := conn.Read(buf)
		if err != nil {
			return who{}, err
		}
		return parseEcho(string(buf[:n]))
	}
	var before who
	until(t, func() (err error) { before, err = ask(); return err })
	c.ok(t, 1, "service", "update", "--force", "udp")
	tasks := c.runningAre(t, "udp", 2)
	until(t, func() error {
		now, err := ask()
		if err != nil || (now.Task != hostnameOf(tasks[0]) && now.Task != hostnameOf(tasks[1])) {
			return fmt.Errorf("a flow that went to %s goes to %s %v", before.Task, now.Task, err)
		}
		return nil
	})
}

func sctpEverywhere(t *testing.T, c *netCluster) {
	tasks := c.on(t, 2, "sctp", 1, "-p", "8087:80/sctp", "-e", "SCTP=1")
	defer c.remove(t, "sctp")
	client := c.clients[0]
	for i, h := range c.lab.Hosts() {
		for j, at := range []struct{ to, seen netip.Addr }{{h.Addr, client.Addr}, {h.Addr6, client.Addr6}} {
			var got who
			until(t, func() error {
				var conn net.PacketConn
				if err := client.Do(func() (err error) { conn, err = sctp.Open(at.to); return err }); err != nil {
					return err
				}
				defer conn.Close()
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				defer cancel()
				out, err := sctp.Ask(ctx, conn, uint16(20000+10*i+j), netip.AddrPortFrom(at.to, 8087), []byte("hello"))
				if err == nil {
					got, err = parseEcho(string(out))
				}
				return err
			})
			if got.Task != hostnameOf(tasks[0]) || got.Client != at.seen.String() {
				t.Errorf("sctp through %s at %s: %+v, want the client as %s", h.Name, at.to, got, at.seen)
			}
		}
	}
}

func noReplica(t *testing.T, c *netCluster) {
	x := c.on(t, 2, "none", 1, "-p", "8088:80")
	defer c.remove(t, "none")
	c.serves(t, c.clients[0].Dial, url4(c.host(3), 8088, "/tiny"), x)
	c.ok(t, 1, "service", "scale", "none=0")
	for _, h := range c.lab.Hosts() {
		for _, dial := range []dialer{c.clients[0].Dial, from(h)} {
			until(t, func() error {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				conn, err := dial(ctx, "tcp", netip.AddrPortFrom(h.Addr, 8088).String())
				if err == nil {
					_ = conn.Close()
					return fmt.Errorf("%s answers port 8088, and there is no replica", h.Name)
				}
				if ctx.Err() != nil {
					return fmt.Errorf("%s is silent at port 8088: %w", h.Name, err)
				}
				return nil
			})
		}
	}
}

func publishChanged(t *testing.T, c *netCluster) {
	c.on(t, 2, "moves", 1, "-p", "8089:80")
	defer c.remove(t, "moves")
	for _, h := range c.lab.Hosts() {
		answers(t, c.clients[0].Dial, url4(h, 8089, "/tiny"))
	}
	before := c.running(t, "moves")[0].ID
	c.ok(t, 1, "service", "update", "--publish-add", "8090:80", "--publish-rm", "8089:80", "moves")
	for _, h := range c.lab.Hosts() {
		answers(t, c.clients[0].Dial, url4(h, 8090, "/tiny"))
		until(t, func() error {
			if _, err := tiny(c.clients[0].Dial, url4(h, 8089, "/tiny")); err == nil {
				return fmt.Errorf("%s still answers port 8089", h.Name)
			}
			return nil
		})
	}
	if now := c.running(t, "moves"); len(now) != 1 || now[0].ID != before {
		t.Errorf("a changed port of the mesh has replaced the task: %s", describe(now))
	}
}

// manyServices publishes many at once, all but a few without replicas.
func manyServices(t *testing.T, c *netCluster) {
	const n, with = 200, 4
	spec := func(i int) []string {
		replicas := "0"
		if i%(n/with) == 0 {
			replicas = "1"
		}
		return []string{"service", "create", "--detach", "--name", fmt.Sprintf("many-%d", i), "--replicas", replicas, "-p", fmt.Sprintf("%d:80", 20000+i), "whoami:v1"}
	}
	limit := make(chan struct{}, 4)
	done := make(chan error, n)
	for i := range n {
		go func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			out, errs, code := c.ctl(1, spec(i)...)
			if code != 0 {
				done <- fmt.Errorf("create many-%d: %s%s", i, out, errs)
				return
			}
			done <- nil
		}()
	}
	var names []string
	for i := range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
		names = append(names, fmt.Sprintf("many-%d", i))
	}
	defer c.ok(t, 1, append([]string{"service", "rm"}, names...)...)
	for i := 0; i < n; i += n / with {
		x := c.runningAre(t, fmt.Sprintf("many-%d", i), 1)
		for _, h := range c.lab.Hosts() {
			c.serves(t, c.clients[0].Dial, url4(h, 20000+i, "/tiny"), x)
		}
	}
	refusedAtOnce(t, c.clients[0], netip.AddrPortFrom(c.host(3).Addr, 20000+n-1))
}

func refusedAtOnce(t *testing.T, client *lab.Client, addr netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := client.Dial(ctx, "tcp", addr.String())
	if err == nil {
		_ = conn.Close()
	}
	if err == nil || ctx.Err() != nil {
		t.Errorf("%s: %v, want a refusal at once", addr, err)
	}
}
