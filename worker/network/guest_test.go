package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress"
)

// outsider is a namespace as another tool makes it: with an eth0, a default route, and settings of its own.
func outsider(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "foreign")
	must(t, makeNamespace(path, nil))
	t.Cleanup(func() { must(t, removeNamespace(path)) })
	must(t, in(path, func() error {
		up(t, "lo")
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 1500, TxQLen: -1}, PeerName: "outside"}))
		addAddr(t, "eth0", netip.MustParseAddr("172.30.0.2"))
		up(t, "outside")
		up(t, "eth0")
		must(t, netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(172, 30, 0, 1)}))
		must(t, setSysctl("net/ipv6/conf/all/disable_ipv6", "1"))
		return setSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	}))
	return path
}

// inventory is all that a namespace has: links with their addresses, routes, tables of nftables, and sockets.
func inventory(t testing.TB, path string) string {
	t.Helper()
	var out []string
	must(t, in(path, func() error {
		links, err := netlink.LinkList()
		must(t, err)
		for _, l := range links {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			must(t, err)
			out = append(out, fmt.Sprint("link ", l.Attrs().Name, " ", l.Attrs().Alias, " ", l.Attrs().MTU, " ", addrs))
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
			must(t, err)
			for _, r := range routes {
				if r.Type == unix.RTN_UNICAST {
					out = append(out, fmt.Sprint("route ", r.Dst, " ", r.Gw, " ", r.LinkIndex))
				}
			}
		}
		for _, table := range []string{"tcp", "udp", "tcp6", "udp6"} {
			data, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			for _, line := range strings.Split(string(data), "\n")[min(1, len(data)):] {
				if f := strings.Fields(line); len(f) > 3 && (f[3] == tcpListen || strings.HasPrefix(table, "udp")) {
					out = append(out, fmt.Sprint("socket ", table, " ", f[1]))
				}
			}
		}
		return nil
	}))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	conn, err := nftables.New(nftables.WithNetNSFd(int(f.Fd())))
	must(t, err)
	tables, err := conn.ListTables()
	must(t, err)
	for _, table := range tables {
		out = append(out, "table "+table.Name)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// guest attaches a namespace to a node.
func (n *node) guest(t testing.TB, id string, g Guest, networks ...*swarmpb.NetworkAddress) Attachment {
	t.Helper()
	var a Attachment
	n.do(t, func() (err error) {
		a, err = n.Attach(t.Context(), Request{TaskID: id, Networks: networks, Guest: &g})
		return err
	})
	return a
}

func (n *node) detach(t testing.TB, id string) {
	t.Helper()
	n.do(t, func() error { return n.Detach(context.Background(), id) })
}

// guestService is how the managers tell of an attachment.
func guestService(net *swarmpb.AssignedNetwork, name string) *swarmpb.AssignedService {
	return &swarmpb.AssignedService{Id: "svc" + name, Name: net.Spec.Name + "/" + name, Mode: swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR,
		Networks: []*swarmpb.NetworkAttachment{{Network: net.Id, Aliases: []string{name}}}}
}

const (
	web1, db1, db2 = "web1taskaaaaaaaaaaaaaaaaaa", "guest1aaaaaaaaaaaaaaaaaaaa", "guest2aaaaaaaaaaaaaaaaaaaa"
)

func TestGuest_Attached_ReachesAndIsReachedByNameAndAddress_AndNothingIsLeft(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red), setService(web(red)), setService(guestService(red, "db")))
	w := c.nodes[1].task(t, web1, at(red, 5))
	answer(t, w.Namespace, "web")
	ns := outsider(t)
	before := inventory(t, ns)
	a := c.nodes[0].guest(t, db1, Guest{Path: ns}, at(red, 9))
	answer(t, ns, "db")
	c.tell(t, false, setEndpoint(c.nodes[1].endpoint("websvc", web1, 1, w)), setEndpoint(c.nodes[0].endpoint("svcdb", db1, 1, a)))

	named(t, ns, "web", "10.0.4.100")
	wants(t, ns, "10.0.4.100:80", "web 10.0.4.9")
	wants(t, ns, "10.0.4.5:80", "web 10.0.4.9")
	wants(t, ns, port80(at(red, 5).Address6), "web "+at(red, 9).Address6) // though IPv6 is off for links that others make
	named(t, w.Namespace, "db", "10.0.4.9")
	named(t, w.Namespace, "db.1", "10.0.4.9")
	unnamed(t, w.Namespace, "red-net/db")
	wants(t, w.Namespace, "10.0.4.9:80", "db 10.0.4.5")
	if len(a.Notes) > 0 {
		t.Errorf("notes are %q, want none", a.Notes)
	}
	if listens, _, err := c.nodes[0].Listening(db1, "svcdb"); !listens || err != nil {
		t.Errorf("a guest is waited for to listen")
	}
	now := inventory(t, ns)
	for _, line := range strings.Split(before, "\n") {
		if !strings.Contains(now, line) {
			t.Errorf("%q is gone from the namespace, which has\n%s", line, now)
		}
	}
	if !strings.Contains(now, "link swarm0 ") || !strings.Contains(now, "table "+ingress.GuestTable) {
		t.Errorf("the namespace has\n%s", now)
	}

	c.nodes[0].detach(t, db1)
	c.tell(t, false, dropEndpoint(db1))
	sockets := "socket tcp6 " // the test's own server
	if left := inventory(t, ns); strings.Join(slices.DeleteFunc(strings.Split(left, "\n"), func(l string) bool { return strings.HasPrefix(l, sockets) }), "\n") != before {
		t.Errorf("the namespace had\n%s\nand has\n%s", before, left)
	}
	if g := c.nodes[0].Guests(); len(g) > 0 {
		t.Errorf("guests are %v", g)
	}
}

func TestGuest_LinkTakenAway_IsMadeAgain(t *testing.T) {
	c := newCluster(t, 1)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red), setService(web(red)))
	w := c.nodes[0].task(t, web1, at(red, 5))
	answer(t, w.Namespace, "web")
	c.tell(t, false, setEndpoint(c.nodes[0].endpoint("websvc", web1, 1, w)))
	ns := outsider(t)
	c.nodes[0].guest(t, db1, Guest{Path: ns}, at(red, 9))
	must(t, in(ns, func() error {
		link, err := netlink.LinkByName("swarm0")
		must(t, err)
		must(t, netlink.LinkDel(link))
		conn, err := nftables.New()
		must(t, err)
		conn.DelTable(&nftables.Table{Name: ingress.GuestTable, Family: nftables.TableFamilyINet})
		return conn.Flush()
	}))
	c.nodes[0].do(t, func() error { return c.nodes[0].Check(t.Context()) })
	c.nodes[0].do(t, func() error { return c.nodes[0].Check(t.Context()) })
	named(t, ns, "web", "10.0.4.100")
	wants(t, ns, "10.0.4.100:80", "web 10.0.4.9")
}

// The binding of a guest's namespace is how it is found again; without it the guest itself is asked.
func TestGuest_BindingTakenAway_NothingIsLeftAllTheSame(t *testing.T) {
	c := newCluster(t, 1)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red), setService(web(red)))
	n, ns := c.nodes[0], outsider(t)
	before := inventory(t, ns)
	n.guest(t, db1, Guest{Path: ns}, at(red, 9))
	must(t, removeNamespace(n.guestPath(db1)))
	n.detach(t, db1)
	if left := inventory(t, ns); left != before {
		t.Errorf("the namespace had\n%s\nand has\n%s", before, left)
	}
}

// Two attachments of one namespace share resolver and table.
func TestGuest_TwoNetworks_OneLeaves_TheOtherStays(t *testing.T) {
	c := newCluster(t, 1)
	red, blue := testNetwork("red", 4097, "10.0.4.0/24"), testNetwork("blue", 4098, "10.0.5.0/24")
	api := &swarmpb.AssignedService{Id: "apisvc", Name: "api", Vips: []*swarmpb.NetworkAddress{at(blue, 100)}, Networks: []*swarmpb.NetworkAttachment{{Network: blue.Id}}}
	c.tellPeers(t, setNetwork(red), setNetwork(blue), setService(web(red)), setService(api))
	n := c.nodes[0]
	w, p := n.task(t, web1, at(red, 5)), n.task(t, "api1taskaaaaaaaaaaaaaaaaaa", at(blue, 5))
	answer(t, w.Namespace, "web")
	answer(t, p.Namespace, "api")
	c.tell(t, false, setEndpoint(n.endpoint("websvc", web1, 1, w)), setEndpoint(n.endpoint("apisvc", "api1taskaaaaaaaaaaaaaaaaaa", 1, p)))
	ns := outsider(t)
	before := inventory(t, ns)
	n.guest(t, db1, Guest{Path: ns}, at(red, 9))
	n.guest(t, db2, Guest{Path: ns}, at(blue, 9))
	both := func() {
		named(t, ns, "web", "10.0.4.100")
		named(t, ns, "api", "10.0.5.100")
		wants(t, ns, "10.0.4.100:80", "web 10.0.4.9")
		wants(t, ns, "10.0.5.100:80", "api 10.0.5.9")
	}
	both()
	n.end(t)
	n.start(t) // a new process takes both over
	c.tellPeers(t, setNetwork(red), setNetwork(blue), setService(web(red)), setService(api), setEndpoint(n.endpoint("websvc", web1, 1, w)), setEndpoint(n.endpoint("apisvc", "api1taskaaaaaaaaaaaaaaaaaa", 1, p)))
	n.do(t, func() error { return n.Check(t.Context()) })
	both()
	n.detach(t, db1)
	named(t, ns, "api", "10.0.5.100")
	unnamed(t, ns, "web")
	wants(t, ns, "10.0.5.100:80", "api 10.0.5.9")
	refuses(t, ns, "10.0.4.100:80")
	n.detach(t, db2)
	if left := inventory(t, ns); left != before {
		t.Errorf("the namespace had\n%s\nand has\n%s", before, left)
	}
}

// A process that is killed leaves all; the next one, which was told nothing yet, can take it away.
func TestGuest_ProcessKilled_NextOneKnowsIt_AndTakesItAway(t *testing.T) {
	for _, gone := range []string{"disconnected", "record lost"} {
		t.Run(gone, func(t *testing.T) {
			c := newCluster(t, 1)
			red := testNetwork("red", 4097, "10.0.4.0/24")
			c.tellPeers(t, setNetwork(red))
			n := c.nodes[0]
			ns := outsider(t)
			before := inventory(t, ns)
			n.guest(t, db1, Guest{Path: ns}, at(red, 9))
			n.end(t)
			if gone == "record lost" {
				must(t, os.Remove(filepath.Join(n.dir, "attachments", db1)))
			}
			var next *Network
			n.do(t, func() (err error) {
				next, err = New(Config{Dir: n.dir, Logger: n.cfg.Logger})
				return err
			})
			if gone == "disconnected" {
				if g := next.Guests(); !slices.Equal(g, []string{db1}) {
					t.Errorf("guests are %v", g)
				}
				n.do(t, func() error { return next.Detach(t.Context(), db1) })
			} else {
				n.do(t, func() error { return next.Sweep(t.Context(), []string{web1}) })
			}
			next.Close()
			if left := inventory(t, ns); left != before {
				t.Errorf("the namespace had\n%s\nand has\n%s", before, left)
			}
			n.start(t)
		})
	}
}

func TestGuest_WhatCannotBeAttached_IsRefusedWithTheReason(t *testing.T) {
	c := newCluster(t, 1)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red))
	n := c.nodes[0]
	w := n.task(t, web1, at(red, 5))
	file, fifo := filepath.Join(t.TempDir(), "file"), filepath.Join(t.TempDir(), "fifo")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, unix.Mkfifo(fifo, 0o600))
	dead := exec.Command("/bin/true")
	must(t, dead.Run())
	busy, six := outsider(t), outsider(t)
	must(t, in(busy, func() error {
		addAddr(t, "eth0", netip.MustParseAddr("10.0.4.77"))
		return nil
	}))
	must(t, in(six, func() error {
		must(t, setSysctl("net/ipv6/conf/eth0/disable_ipv6", "0"))
		return netlink.RouteAdd(&netlink.Route{LinkIndex: linkIndex(t, "eth0"), Dst: &net.IPNet{IP: net.ParseIP("fd00:1001::"), Mask: net.CIDRMask(48, 128)}, Table: 77})
	}))
	full := outsider(t)
	must(t, in(full, func() error {
		for i := range maxGuestDevices {
			must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprint(guestDevice, i), TxQLen: -1}}))
		}
		return nil
	}))
	for name, x := range map[string]struct {
		guest Guest
		want  string
	}{
		"host":              {Guest{Path: n.ns}, "network of the host itself"},
		"daemon's own":      {Guest{PID: uint32(os.Getpid())}, "network of the host itself"},
		"task":              {Guest{Path: w.Namespace}, "namespace of a service's container"},
		"overlay":           {Guest{Path: filepath.Join(n.dir, "overlays", "red")}, "namespace of a service's container"},
		"nothing":           {Guest{Path: "/nonexistent/ns"}, "there is no /nonexistent/ns"},
		"below a file":      {Guest{Path: file + "/ns"}, "there is no"},
		"no namespace":      {Guest{Path: file}, "is not the file of a network namespace"},
		"fifo":              {Guest{Path: fifo}, "is not the file of a network namespace"},
		"directory":         {Guest{Path: "/proc"}, "is not the file of a network namespace"},
		"other namespace":   {Guest{Path: "/proc/self/ns/mnt"}, "not of a network namespace"},
		"relative":          {Guest{Path: "ns"}, "no absolute path"},
		"empty":             {Guest{}, "no absolute path"},
		"dead process":      {Guest{PID: uint32(dead.Process.Pid)}, "no process"},
		"no process ID":     {Guest{PID: 1 << 31}, "is not a process"},
		"another namespace": {Guest{Path: busy, Namespace: "net:[1]"}, "connect it again"},
		"its own subnet":    {Guest{Path: busy}, "reaches 10.0.4.0/24 already, through eth0, which overlaps subnet 10.0.4.0/24"},
		"subnet of IPv6":    {Guest{Path: six}, "reaches fd00:1001::/48 already, through eth0"},
		"no name is free":   {Guest{Path: full}, "all names from swarm0 to swarm63 are taken"},
	} {
		t.Run(name, func(t *testing.T) {
			err := n.try(func() error {
				_, err := n.Attach(t.Context(), Request{TaskID: db1, Networks: []*swarmpb.NetworkAddress{at(red, 9)}, Guest: &x.guest})
				return err
			})
			if !errors.Is(err, ErrUnsuited) || !strings.Contains(fmt.Sprint(err), x.want) {
				t.Errorf("got %v, want %q", err, x.want)
			}
			if left, _ := os.ReadDir(n.cfg.guests()); len(left) > 0 || len(n.Guests()) > 0 {
				t.Errorf("%v %v is left", left, n.Guests())
			}
		})
	}
}

func TestGuest_ProcessOrNamespaceEnds_IsTold(t *testing.T) {
	c := newCluster(t, 1)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red))
	n := c.nodes[0]
	process := exec.Command("sleep", "1000")
	process.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	must(t, process.Start())
	t.Cleanup(func() { _ = process.Process.Kill() })
	pid := uint32(process.Process.Pid)
	ns := outsider(t)
	n.guest(t, db1, Guest{PID: pid, Namespace: nameAt(fmt.Sprintf("/proc/%d/ns/net", pid))}, at(red, 9))
	n.guest(t, db2, Guest{Path: ns}, at(red, 10))
	told := make(chan string, 2)
	for _, id := range []string{db1, db2} {
		go func() {
			why, err := n.AwaitGuest(t.Context(), id)
			told <- fmt.Sprint(why, err)
		}()
	}
	must(t, process.Process.Kill())
	_ = process.Wait()
	if got, want := <-told, fmt.Sprintf("process %d has ended<nil>", pid); got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	must(t, removeNamespace(ns))
	must(t, makeNamespace(ns, nil)) // another one in its place
	if got, want := <-told, "namespace "+ns+" is gone<nil>"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	// The attachment holds the namespace until it is taken away.
	n.detach(t, db1)
	n.detach(t, db2)
	if why, err := n.AwaitGuest(t.Context(), db1); err != nil || why == "" {
		t.Errorf("one that is not attached: %q %v", why, err)
	}
	// Another process with the same ID is another one.
	g := guestRecord{Guest: Guest{PID: uint32(os.Getpid())}, Began: "1"}
	if g.goneFor() == "" {
		t.Error("a process that began at another time is taken for the one that was attached")
	}
}

func TestGuest_LoopbackDownOrAnotherResolver_IsSaid(t *testing.T) {
	c := newCluster(t, 1)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red), setService(web(red)))
	n := c.nodes[0]
	ns := outsider(t)
	must(t, in(ns, func() error {
		pc, err := net.ListenPacket("udp4", "127.0.0.11:0")
		if err == nil {
			t.Cleanup(func() { _ = pc.Close() })
		}
		return err
	}))
	a := n.guest(t, db1, Guest{Path: ns}, at(red, 9))
	if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "ask 127.0.0.12") {
		t.Errorf("notes are %q", a.Notes)
	}
	n.detach(t, db1)
	must(t, in(ns, func() error {
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		return netlink.LinkSetDown(lo)
	}))
	a = n.guest(t, db1, Guest{Path: ns}, at(red, 9))
	if len(a.Notes) != 2 || !strings.Contains(a.Notes[0], "loopback is down") {
		t.Errorf("notes are %q", a.Notes)
	}
}

func linkIndex(t testing.TB, name string) int {
	t.Helper()
	link, err := netlink.LinkByName(name)
	must(t, err)
	return link.Attrs().Index
}
