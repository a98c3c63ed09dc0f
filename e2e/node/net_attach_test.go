package node_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/e2e/lab"
)

// A container that something else made: a program in a network of its own on a host, with an eth0 and a default route there.
type outsider struct {
	*lab.Dialer
	host *lab.Host
	// outer is its process as the test sees it, pid as its host does.
	outer, pid int
}

// outsider starts one that serves as the demo image does.
func (c *netCluster) outsider(t *testing.T, host int, name string) *outsider {
	t.Helper()
	h := c.host(host)
	before := h.Processes("whoami")
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal("unshare is not installed; it is part of util-linux")
	}
	if err := h.Start(name, unshare, "--net", artifact(t, "build/whoami")); err != nil {
		t.Fatal(err)
	}
	o := &outsider{host: h}
	until(t, func() error {
		now := slices.DeleteFunc(h.Processes("whoami"), func(pid int) bool { return slices.Contains(before, pid) })
		if len(now) != 1 {
			return fmt.Errorf("%d new programs run on %s", len(now), h.Name)
		}
		o.outer = now[0]
		return nil
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", o.outer))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if pids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			words := strings.Fields(pids)
			_, _ = fmt.Sscan(words[len(words)-1], &o.pid)
		}
	}
	o.Dialer = lab.NewDialer(fmt.Sprintf("/proc/%d/ns/net", o.outer))
	t.Cleanup(o.Close)
	if err := o.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", TxQLen: -1}, PeerName: "outside"}); err != nil {
			return err
		}
		for _, name := range []string{"outside", "eth0"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if name == "eth0" {
				if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(172, 30, 0, 2), Mask: net.CIDRMask(24, 32)}}); err != nil {
					return err
				}
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
		}
		return netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(172, 30, 0, 1)})
	}); err != nil {
		t.Fatal(err)
	}
	return o
}

// has is what there is in its network: links with their addresses, routes, tables, and sockets that wait for datagrams.
func (o *outsider) has(t *testing.T) []string {
	t.Helper()
	var out []string
	err := o.Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprint("link ", l.Attrs().Name, " ", addrs))
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if r.Type == unix.RTN_UNICAST {
				out = append(out, fmt.Sprint("route ", r.Dst, " ", r.Gw))
			}
		}
		k, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := k.ListTables()
		for _, table := range tables {
			out = append(out, "table "+table.Name)
		}
		if err != nil {
			return err
		}
		udp, err := os.ReadFile("/proc/thread-self/net/udp")
		for line := range strings.Lines(string(udp)) {
			if f := strings.Fields(line); len(f) > 1 {
				out = append(out, "socket "+f[1])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// attachment is one as `network inspect` tells.
type attachment struct {
	Name, Address, NodeHostname, State, Error string
}

func (c *netCluster) attachments(t *testing.T, network string) []attachment {
	t.Helper()
	var out []struct{ Attachments []attachment }
	if err := json.Unmarshal([]byte(c.ok(t, c.via, "network", "inspect", network)), &out); err != nil || len(out) != 1 {
		t.Fatalf("network inspect: %v", err)
	}
	return out[0].Attachments
}

// connected attaches and returns the address that it was told.
func (c *netCluster) connected(t *testing.T, args ...string) netip.Addr {
	t.Helper()
	words := strings.Fields(c.ok(t, c.via, append([]string{"network", "connect"}, args...)...))
	if len(words) < 2 {
		t.Fatalf("network connect says %q", words)
	}
	a, err := netip.ParseAddr(words[1])
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// reachedBy wants that tasks find the outsider by a name and reach it.
func (c *netCluster) reachedBy(t *testing.T, tasks []task, name string, at netip.Addr) {
	t.Helper()
	for _, x := range tasks {
		resolves(t, c, x, name, []string{at.String()})
		answers(t, c.inTask(t, x).Dial, "http://"+at.String()+"/tiny")
	}
}

func TestAttachable_ContainersOutsideOfServices(t *testing.T) {
	t.Parallel()
	c := newNetCluster(t, 3, 0)
	c.network(t, "back", "--attachable")
	c.network(t, "closed")
	web := c.on(t, 3, "web", 2, "--network", "back")
	near, far := c.on(t, 2, "near", 1, "--network", "back"), c.on(t, 1, "far", 1, "--network", "back")
	all := slices.Concat(web, near, far)

	o := c.outsider(t, 2, "db")
	before := o.has(t)
	pid := fmt.Sprint(o.pid)
	at := c.connected(t, "--node", "node-2", "--pid", pid, "--name", "db", "--alias", "sql", "back")
	reaches := func() {
		t.Helper()
		var vip []string
		until(t, func() (err error) { vip, err = lookup(o.Dialer, "web"); return err })
		c.serves(t, o.Dial, "http://"+vip[0]+"/tiny", web)
		for _, a := range c.addressesOf(t, far) {
			if got := answers(t, o.Dial, "http://"+a+"/tiny"); got.Client != at.String() {
				t.Errorf("the far task sees %s, want %s", got.Client, at)
			}
		}
		c.reachedBy(t, all, "db", at)
		c.reachedBy(t, far, "sql", at)
	}
	reaches()
	if got := c.attachments(t, "back"); len(got) != 1 || got[0] != (attachment{Name: "db", Address: at.String(), NodeHostname: "node-2", State: "running"}) {
		t.Errorf("attachments are %+v", got)
	}
	if services := c.ok(t, 1, "service", "ls"); strings.Contains(services, "db") {
		t.Errorf("the attachment is listed as a service:\n%s", services)
	}
	t.Run("Refusals_SayWhatToDo", func(t *testing.T) { attachmentRefusals(t, c, o) })
	t.Run("DaemonKilled_GoesOn", func(t *testing.T) {
		had := o.has(t)
		if err := c.host(2).KillSwarmd(); err != nil {
			t.Fatal(err)
		}
		answers(t, c.inTask(t, far[0]).Dial, "http://"+at.String()+"/tiny")
		c.start(c.host(2))
		c.nodeIs(t, "node-2", "ready")
		reaches()
		links := func(all []string) []string {
			return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return strings.HasPrefix(s, "socket ") })
		}
		if now := o.has(t); !slices.Equal(links(now), links(had)) {
			t.Errorf("the namespace had %q and has %q", had, now)
		}
	})
	t.Run("Disconnected_NothingIsLeft", func(t *testing.T) {
		c.ok(t, 1, "network", "disconnect", "back", "db")
		if now := o.has(t); !slices.Equal(now, before) {
			t.Errorf("the namespace had %q and has %q", before, now)
		}
		for _, x := range far {
			d := c.inTask(t, x)
			until(t, func() error {
				if got, err := lookup(d, "db"); err == nil { // nobody outside knows it either
					return fmt.Errorf("db is %v %v", got, err)
				}
				return nil
			})
		}
	})
	t.Run("ProcessEnds_AttachmentEnds", func(t *testing.T) {
		gone := c.outsider(t, 1, "gone")
		at := c.connected(t, "--netns", fmt.Sprintf("/proc/%d/ns/net", gone.pid), "--name", "db", "back") // on the manager's own host
		c.reachedBy(t, all, "db", at)
		if err := syscall.Kill(gone.outer, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, func() error {
			if got := c.attachments(t, "back"); len(got) > 0 {
				return fmt.Errorf("attachments are %+v", got)
			}
			return nil
		})
	})
	t.Run("NodeLeaves_NothingIsLeft", func(t *testing.T) {
		c.connected(t, "--node", "node-2", "--pid", pid, "--name", "db", "back")
		c.ok(t, 2, "leave")
		if now := o.has(t); !slices.Equal(now, before) {
			t.Errorf("the namespace had %q and has %q", before, now)
		}
		c.ok(t, 1, "node", "rm", "--force", "node-2")
		until(t, func() error {
			if got := c.attachments(t, "back"); len(got) > 0 {
				return fmt.Errorf("attachments are %+v", got)
			}
			return nil
		})
	})
}

func attachmentRefusals(t *testing.T, c *netCluster, o *outsider) {
	busy := c.outsider(t, 2, "busy")
	subnet := fmt.Sprint(dig(c.inspected(t, "network", "back"), "progress", "subnet"))
	if err := busy.Do(func() error {
		_, to, err := net.ParseCIDR(subnet)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: to, Gw: net.IPv4(172, 30, 0, 1)})
	}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		args []string
		want []string
	}{
		{[]string{"connect", "--node", "node-2", "--pid", fmt.Sprint(o.pid), "closed"}, []string{`network "closed"`, "--attachable"}},
		{[]string{"connect", "--node", "node-2", "--pid", fmt.Sprint(o.pid), "--name", "db", "back"}, []string{`attachment "db" on node node-2`}},
		{[]string{"connect", "--node", "node-2", "--pid", fmt.Sprint(o.pid), "--name", "web", "back"}, []string{`service "web"`}},
		{[]string{"connect", "--node", "node-2", "--pid", fmt.Sprint(busy.pid), "back"}, []string{"reaches " + subnet + " already, through eth0", "--subnet"}},
		{[]string{"connect", "--node", "node-2", "--pid", fmt.Sprint(o.pid), "--name", "twice", "back"}, []string{"through swarm0"}},
		{[]string{"connect", "--node", "node-2", "--pid", "1", "back"}, []string{"network of the host itself"}},
		{[]string{"connect", "--node", "node-2", "--pid", "4000000", "back"}, []string{"no process 4000000"}},
		{[]string{"connect", "--netns", "/etc/passwd", "back"}, []string{"/etc/passwd is not the file of a network namespace"}},
		{[]string{"connect", "--netns", "/nonexistent", "back"}, []string{"there is no /nonexistent"}},
		{[]string{"disconnect", "back", "web"}, []string{"--network-rm back web"}},
		{[]string{"rm", "back"}, []string{"web"}},
	} {
		out, errs, code := c.ctl(1, append([]string{"network"}, x.args...)...)
		if code == 0 {
			t.Errorf("%q is done: %s", x.args, out)
		}
		wantWords(t, errs, x.want...)
	}
	if _, errs, code := c.ctl(1, "service", "scale", "back/db=2"); code == 0 || !strings.Contains(errs, "network disconnect") {
		t.Errorf("an attachment is scaled: %s", errs)
	}
	until(t, func() error {
		if got := c.attachments(t, "back"); len(got) != 1 || got[0].Name != "db" {
			return fmt.Errorf("attachments are %+v", got)
		}
		return nil
	})
}
