package ingress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// established connects from the client and reads the first line; echo then tells whether the connection still works.
func established(t *testing.T, ns, to string) (id string, echo func() error) {
	t.Helper()
	var c net.Conn
	must(t, in(ns, func() (err error) { c, err = net.DialTimeout("tcp", to, time.Second); return err }))
	t.Cleanup(func() { _ = c.Close() })
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	must(t, err)
	id, _, _ = strings.Cut(line, " ")
	return id, func() error {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		_, err := r.ReadByte()
		return err
	}
}

func flows(t *testing.T, ns string, match func(*netlink.ConntrackFlow) bool) int {
	t.Helper()
	n := 0
	must(t, in(ns, func() error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			all, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range all {
				if match(f) {
					n++
				}
			}
		}
		return nil
	}))
	return n
}

func leadingTo(p *pod, protocol uint8) func(*netlink.ConntrackFlow) bool {
	return func(f *netlink.ConntrackFlow) bool {
		return f.Forward.Protocol == protocol && (f.Reverse.SrcIP.String() == p.addr.String() || f.Reverse.SrcIP.String() == p.addr6().String())
	}
}

func who(t *testing.T, from, to string, times int) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for range times {
		got, err := get(from, "tcp", to)
		if err != nil {
			t.Errorf("%s: %v", to, err)
			return seen
		}
		id, _, _ := strings.Cut(got, " ")
		seen[id]++
	}
	return seen
}

func TestDraining_NewOnesGoElsewhere_EstablishedStay_UDPEnds(t *testing.T) {
	l := newLab(t, 2)
	a, b := l.hosts[0].pod("a"), l.hosts[1].pod("b")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80), port(udp, 5353, 53))}, Endpoints: []*swarmpb.Endpoint{b.endpoint("s", active)}})
	for _, to := range []string{l.hosts[0].at(8080), l.hosts[0].at6(8080)} {
		id, echo := established(t, l.client, to)
		if id != "b" || echo() != nil {
			t.Fatalf("the connection is with %q, %v", id, echo())
		}
		t.Cleanup(func() {})
		defer func() {
			if err := echo(); err != nil {
				t.Errorf("the established connection to %s ended: %v", to, err)
			}
		}()
	}
	if got, err := get(l.client, "udp", l.hosts[0].at(5353)); err != nil || !strings.HasPrefix(got, "b ") {
		t.Fatalf("udp: %q, %v", got, err)
	}
	if got, err := get(l.client, "udp", l.hosts[0].at6(5353)); err != nil || !strings.HasPrefix(got, "b ") {
		t.Fatalf("udp6: %q, %v", got, err)
	}
	if n := flows(t, "", leadingTo(b, unix.IPPROTO_UDP)); n < 2 {
		t.Fatalf("%d UDP entries, want some to see them go", n)
	}
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active), b.endpoint("s", draining)}})
	for _, h := range l.hosts {
		if n := flows(t, h.ns, leadingTo(b, unix.IPPROTO_UDP)); n > 0 {
			t.Errorf("host %d: %d UDP entries lead to the draining replica", h.number, n)
		}
		if seen := who(t, l.client, h.at(8080), 20); seen["a"] != 20 {
			t.Errorf("host %d: new connections went to %v", h.number, seen)
		}
	}
}

func TestEndpointRemoved_ActiveClientIsResetAtOnce_OthersGoOn(t *testing.T) {
	l := newLab(t, 2)
	a, b := l.hosts[0].pod("a"), l.hosts[1].pod("b")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{b.endpoint("s", active)}})
	_, toB := established(t, l.client, l.hosts[0].at(8080))
	_, toB6 := established(t, l.client, l.hosts[0].at6(8080))
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}, RemovedEndpoints: []string{}})
	must(t, in("", func() error {
		return l.hosts[0].Apply(Update{Endpoints: []*swarmpb.Endpoint{b.endpoint("s", draining)}})
	}))
	_, toA := established(t, l.client, l.hosts[0].at(8080))
	must(t, toB())
	l.tell(Update{RemovedEndpoints: []string{"b"}})
	for name, echo := range map[string]func() error{"IPv4": toB, "IPv6": toB6} {
		if err := echo(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%s: the connection with the replica that is gone: %v; want a reset", name, err)
		}
	}
	if err := toA(); err != nil {
		t.Errorf("the connection with the other replica: %v", err)
	}
}

// An address is given again once its task has ended; the other nodes may hear of both late.
func TestEndpointRemoved_AnotherHasItsAddress_ThatOnesConnectionsGoOn(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.pod("a"), h.pod("b")
	former := func(id string) *swarmpb.Endpoint {
		e := a.endpoint("s", active)
		e.TaskId = id
		return e
	}
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{
		a.endpoint("s", active), former("removed"), former("moved"), former("gone"), former("forgotten"),
	}})
	_, echo := established(t, l.client, h.at(8080))
	moved := b.endpoint("s", draining)
	moved.TaskId = "moved"
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"one is removed", func() error { return h.Apply(Update{RemovedEndpoints: []string{"removed"}}) }},
		{"one has another address", func() error { return h.Apply(Update{Endpoints: []*swarmpb.Endpoint{moved}}) }},
		{"one's process ends", func() error { return h.Gone("gone") }},
		{"one is not told any more", func() error {
			return h.Apply(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}})
		}},
	} {
		must(t, c.do())
		if n := flows(t, "", leadingTo(a, unix.IPPROTO_TCP)); n == 0 {
			t.Errorf("%s: the connection with the one that has the address is not tracked any more", c.name)
		}
		must(t, echo())
	}
	must(t, h.Apply(Update{RemovedEndpoints: []string{"a"}, Endpoints: []*swarmpb.Endpoint{former("next")}}))
	if n := flows(t, "", leadingTo(a, unix.IPPROTO_TCP)); n > 0 {
		t.Errorf("the last one is removed as another comes: %d of its connections are still tracked", n)
	}
	if n := len(h.state.held); n != 1 {
		t.Errorf("%d addresses are held: %v; want one", n, h.state.held)
	}
}

// What could not be ended, here for want of descriptors, is ended by the next check.
func TestEndpointRemoved_ConnectionsCannotBeEnded_TheNextCheckEndsThem(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.pod("a")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}})
	_, echo := established(t, l.client, h.at(8080))
	must(t, echo())
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
	err := h.Apply(Update{RemovedEndpoints: []string{"a"}})
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("without descriptors: %v; want it to say so", err)
	}
	must(t, h.Check())
	if err := echo(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("after the check: %v; want a reset", err)
	}
}

// The sockets to the kernel are made anew after an error; without descriptors that fails too, and is no reason to end.
func TestSockets_CannotBeMadeAnewForAWhile_AreAfterwards(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.pod("a")
	vips, err := OpenVIPs(a.ns, VIPConfig{Logger: h.cfg.Logger})
	must(t, err)
	defer vips.Close()
	without := func(fn func()) {
		var limit unix.Rlimit
		must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
		defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
		fn()
	}
	services := Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}}
	update := VIPUpdate{Full: true, VIPs: []VIP{{Address: netip.MustParseAddr("10.0.4.200"), Backends: []Backend{{Address: netip.MustParseAddr("10.0.4.2"), Weight: 1}}}}}
	without(func() {
		for _, k := range []*kernel{h.kernel, vips.kernel} {
			if err := k.drop(); !errors.Is(err, unix.EMFILE) {
				t.Fatalf("without descriptors: %v", err)
			}
		}
		for range 2 {
			for name, fail := range map[string]func() error{
				"Apply": func() error { return h.Apply(services) }, "Check": h.Check, "SetPods": func() error { return h.SetPods(nil) },
				"VIPs' Apply": func() error { return vips.Apply(update) }, "VIPs' Check": vips.Check,
			} {
				if err := fail(); err == nil && name != "SetPods" {
					t.Errorf("%s without sockets: no error", name)
				}
			}
		}
	})
	must(t, h.SetPods(h.addresses()))
	must(t, h.Check())
	must(t, vips.Check())
	if got, err := get(l.client, "tcp", h.at(8080)); err != nil || !strings.HasPrefix(got, "a ") {
		t.Errorf("afterwards: %q, %v", got, err)
	}
	if held, err := vips.table.read(vips.kernel); err != nil || len(held) != 1 {
		t.Errorf("VIPs in the kernel: %v, %v", held, err)
	}
}

func TestGone_NodeOfTheTask_TakesItOutWithoutTheManagers(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.pod("a"), h.pod("b")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active), b.endpoint("s", active)}})
	if seen := who(t, l.client, h.at(8080), 60); seen["a"] < 12 || seen["b"] < 12 {
		t.Errorf("not balanced: %v", seen)
	}
	must(t, h.Gone("b"))
	must(t, h.Gone("never heard of"))
	if n := flows(t, "", leadingTo(b, unix.IPPROTO_TCP)); n > 0 {
		t.Errorf("%d entries lead to the task that is gone", n)
	}
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{b.endpoint("s", active)}}) // the managers do not know yet
	if seen := who(t, l.client, h.at(8080), 20); seen["a"] != 20 {
		t.Errorf("new connections went to %v", seen)
	}
	l.tell(Update{RemovedEndpoints: []string{"b"}})
	if len(h.state.gone) != 0 {
		t.Errorf("remembered for ever: %v", h.state.gone)
	}
}

func TestHint_DeadNodesGetNothing_UnlessNothingElseIsLeft(t *testing.T) {
	l := newLab(t, 2)
	a, b := l.hosts[0].pod("a"), l.hosts[1].pod("b")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active), b.endpoint("s", active)}})
	h := l.hosts[0]
	for _, c := range []struct {
		dead string
		want []string
	}{{"node2", []string{"a"}}, {"node1", []string{"b"}}, {"node1 node2", []string{"a", "b"}}, {"", []string{"a", "b"}}} {
		must(t, h.Hint(func(id string) bool { return strings.Contains(c.dead, id) }))
		seen := who(t, l.client, h.at(8080), 40)
		if len(seen) != len(c.want) || seen[c.want[0]] == 0 {
			t.Errorf("dead %q: connections went to %v, want %v", c.dead, seen, c.want)
		}
	}
	must(t, h.Hint(func(id string) bool { return id == "node2" }))
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{b.endpoint("s", draining)}})
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{b.endpoint("s", active)}})
	if seen := who(t, l.client, h.at(8080), 20); seen["b"] != 0 {
		t.Errorf("told again of an endpoint on a dead node: %v", seen)
	}
}

func TestAffinity_ClientGetsTheSameReplicaFromEveryNode_WhateverTheHistory(t *testing.T) {
	l := newLab(t, 2)
	var all []*swarmpb.Endpoint
	for n := range 5 {
		all = append(all, l.hosts[n%2].pod(fmt.Sprintf("p%d", n)).endpoint("s", active))
	}
	sticky := port(tcp, 8080, 80)
	sticky.Affinity = swarmpb.Affinity_AFFINITY_CLIENT_IP
	service := []*swarmpb.AssignedService{publishing("s", sticky, port(tcp, 8081, 80))}
	must(t, l.hosts[0].Apply(Update{Full: true, Services: service, Endpoints: all}))
	must(t, in(l.hosts[1].ns, func() error { // one after the other, backwards
		if err := l.hosts[1].Apply(Update{Full: true, Services: service}); err != nil {
			return err
		}
		for n := len(all) - 1; n >= 0; n-- {
			if err := l.hosts[1].Apply(Update{Endpoints: all[n : n+1]}); err != nil {
				return err
			}
		}
		return nil
	}))
	for _, to := range [][2]string{{l.hosts[0].at(8080), l.hosts[1].at(8080)}, {l.hosts[0].at6(8080), l.hosts[1].at6(8080)}} {
		first, second := who(t, l.client, to[0], 10), who(t, l.client, to[1], 10)
		if len(first) != 1 || fmt.Sprint(first) != fmt.Sprint(second) {
			t.Errorf("connections went to %v and %v", first, second)
		}
	}
	if seen := who(t, l.client, l.hosts[0].at(8081), 200); len(seen) != 5 {
		t.Errorf("without affinity connections went to %v alone", seen)
	}
}

func TestWeights_AreShares(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.pod("a").endpoint("s", active), h.pod("b").endpoint("s", active)
	a.Weight, b.Weight = 90, 10
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a, b}})
	seen := who(t, l.client, h.at(8080), 400)
	if seen["b"] < 15 || seen["b"] > 75 {
		t.Errorf("of 400 connections the replica with a tenth got %d", seen["b"])
	}
}

func TestPortTaken_ServiceIsNotTranslatedThere_ProcessIsNamed_ServedOnceItIsFree(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.pod("a")
	li, err := net.Listen("tcp4", "10.99.0.1:8080")
	must(t, err)
	go func() {
		for {
			c, err := li.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "mine\n")
			_ = c.Close()
		}
	}()
	pc, err := net.ListenPacket("udp", ":5353")
	must(t, err)
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80), port(udp, 5353, 53), port(tcp, 8081, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}})
	select {
	case <-h.Changes():
	default:
		t.Error("conflicts are not told")
	}
	conflicts := h.Conflicts()
	if len(conflicts) != 2 || conflicts[0].Port != 5353 || conflicts[1].Port != 8080 || conflicts[0].Protocol != udp ||
		!strings.Contains(conflicts[1].Process, fmt.Sprintf("(pid %d)", syscall.Getpid())) {
		t.Fatalf("conflicts: %v; want 5353/udp and 8080/tcp of this process", conflicts)
	}
	if got, err := get(l.client, "tcp", h.at(8080)); err != nil || got != "mine" {
		t.Errorf("the listener's own port: %q, %v", got, err)
	}
	if got, err := get(l.client, "tcp", h.at(8081)); err != nil || !strings.HasPrefix(got, "a ") {
		t.Errorf("the service's other port: %q, %v", got, err)
	}
	_, _ = li.Close(), pc.Close()
	eventually(t, "the conflicts end", func() bool { return len(h.Conflicts()) == 0 })
	if got, err := get(l.client, "tcp", h.at(8080)); err != nil || !strings.HasPrefix(got, "a ") {
		t.Errorf("once it is free: %q, %v", got, err)
	}
	if _, err := net.Listen("tcp4", "10.99.0.1:8080"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the port is not reserved: %v", err)
	}
}

// Looking for a process reads what all have open: not at every try, of every port.
func TestPortTaken_TriedAgain_ProcessIsLookedForOnce(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	taken, err := net.Listen("tcp", ":8080")
	must(t, err)
	defer taken.Close()
	looks := 0
	h.ownerOf = func(portKey) string { looks++; return "nginx (pid 12)" }
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}})
	for range 5 {
		h.mu.Lock()
		h.reserve(portKey{unix.IPPROTO_TCP, 8080})
		h.mu.Unlock()
	}
	if c := h.Conflicts(); looks != 1 || len(c) != 1 || c[0].GetProcess() != "nginx (pid 12)" {
		t.Errorf("looked %d times, conflicts %v; want one", looks, c)
	}
}

func TestForwards_HostPorts_BoundChosenTakenRemoved(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.pod("a")
	to := func(p uint16) Forward { return Forward{Protocol: tcp, Port: p, To: netipAddrPort(a, 80)} }
	bound, err := h.AddForwards([]Forward{to(9090), to(0), {Protocol: udp, Port: 9053, To: netipAddrPort(a, 53)}})
	must(t, err)
	if bound[1].Port == 0 {
		t.Fatal("no port was chosen")
	}
	again, err := h.AddForwards(bound)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(bound) {
		t.Errorf("again: %v, %v", again, err)
	}
	for _, p := range []int{9090, int(bound[1].Port)} {
		for _, at := range []string{h.at(p), h.at6(p)} {
			if got, err := get(l.client, "tcp", at); err != nil || !strings.HasPrefix(got, "a "+clientAddr.String()[:1]) && !strings.HasPrefix(got, "a fd99::9") {
				t.Errorf("%s: %q, %v", at, got, err)
			}
		}
	}
	for _, at := range []string{h.at(9053), "127.0.0.1:9053"} {
		if got, err := get("", "udp", at); err != nil || !strings.HasPrefix(got, "a ") {
			t.Errorf("udp %s: %q, %v", at, got, err)
		}
	}
	li, err := net.Listen("tcp", ":9191")
	must(t, err)
	defer li.Close()
	if _, err := h.AddForwards([]Forward{to(9192), to(9191)}); !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", syscall.Getpid())) {
		t.Errorf("a taken port: %v", err)
	}
	if _, err := h.AddForwards([]Forward{{Protocol: tcp, Port: 9090, To: netipAddrPort(a, 81)}}); !errors.Is(err, ErrPortTaken) {
		t.Errorf("a port that another task has: %v", err)
	}
	if _, err := get(l.client, "tcp", h.at(9192)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("one of a list that failed: %v", err)
	}
	_, echo := established(t, l.client, h.at(9090))
	must(t, h.RemoveForwards(bound))
	must(t, h.RemoveForwards(bound))
	if err := echo(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("an established connection through a removed port: %v; want a reset", err)
	}
	if _, err := get(l.client, "tcp", h.at(9090)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("removed: %v", err)
	}
}

func TestListeners_ManyServices_OneGoroutineWaitsForAllSockets(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.pod("a")
	before := runtime.NumGoroutine()
	u := Update{Full: true}
	for n := range 300 {
		id := fmt.Sprintf("s%d", n)
		u.Services = append(u.Services, publishing(id, port(tcp, uint32(20000+n), 80), port(udp, uint32(20000+n), 53)))
		e := a.endpoint(id, active)
		e.TaskId = id
		u.Endpoints = append(u.Endpoints, e)
	}
	l.tell(u)
	if n := runtime.NumGoroutine() - before; n > 10 {
		t.Errorf("600 published ports have %d goroutines", n)
	}
	for _, p := range []string{"20000", "20150", "20299"} {
		for _, network := range []string{"tcp", "udp"} {
			for _, host := range []string{"127.0.0.1", "::1"} {
				if got, err := get("", network, net.JoinHostPort(host, p)); err != nil || !strings.HasPrefix(got, "a ") {
					t.Errorf("%s %s:%s: %q, %v", network, host, p, got, err)
				}
			}
		}
	}
	// A replica that does not answer is passed over.
	dead := &swarmpb.Endpoint{TaskId: "dead", ServiceId: "s0", NodeId: "node1", State: active, Address: "100.64.0.200"}
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{dead}})
	for range 10 {
		if got, err := get("", "tcp", "127.0.0.1:20000"); err != nil || !strings.HasPrefix(got, "a ") {
			t.Errorf("with a dead replica beside: %q, %v", got, err)
		}
	}
}
