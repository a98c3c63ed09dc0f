package ingress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestCheck_WhateverWasDoneByHand_IsRepaired(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	a, b := h.pod("a"), l.hosts[1].pod("b")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active), b.endpoint("s", active)}})
	key := portKey{unix.IPPROTO_TCP, 8080}
	by := func(fn func(c *nftables.Conn)) func() {
		return func() {
			c, err := nftables.New()
			must(t, err)
			fn(c)
			must(t, c.Flush())
		}
	}
	for _, c := range []struct {
		name string
		hurt func()
	}{
		{"the table deleted", by(func(c *nftables.Conn) { c.DelTable(h.table.inet) })},
		{"a map emptied", by(func(c *nftables.Conn) { c.FlushSet(h.table.published) })},
		{"an element missing", by(func(c *nftables.Conn) {
			must(t, c.SetDeleteElements(h.table.backends[0], []nftables.SetElement{{Key: key.slotKey(3)}}))
		})},
		{"a foreign element", by(func(c *nftables.Conn) {
			must(t, c.SetAddElements(h.table.ports, []nftables.SetElement{{Key: portKey{unix.IPPROTO_TCP, 22}.key()}}))
		})},
		{"an element changed", by(func(c *nftables.Conn) {
			must(t, c.SetDeleteElements(h.table.backends[1], []nftables.SetElement{{Key: key.slotKey(3)}}))
			must(t, c.SetAddElements(h.table.backends[1], []nftables.SetElement{{Key: key.slotKey(3), Val: backendValue(netip.MustParseAddr("fd00::1"), 1)}}))
		})},
		{"a pod missing", by(func(c *nftables.Conn) { c.FlushSet(h.table.pods[0]) })},
		{"rules flushed", by(func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Name: "isolate", Table: h.table.inet}) })},
		{"a rule added", by(func(c *nftables.Conn) {
			c.AddRule(&nftables.Rule{Table: h.table.inet, Chain: &nftables.Chain{Name: "lb", Table: h.table.inet}, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
		})},
		{"the policy rules removed", func() {
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				_, err := removeResets(family, nil)
				must(t, err)
			}
		}},
	} {
		c.hurt()
		must(t, h.Check())
		if same, err := h.intact(); !same || err != nil {
			t.Errorf("%s: intact %v, %v", c.name, same, err)
		}
		h.dirty = true // compare again, all of it
		if same, err := h.intact(); !same || err != nil {
			t.Errorf("%s: compared: intact %v, %v", c.name, same, err)
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			must(t, err)
			n := 0
			for _, r := range rules {
				if r.Protocol == resetProtocol {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%s: %d policy rules of family %d, want 1", c.name, n, family)
			}
		}
		for _, to := range []string{h.at(8080), h.at6(8080)} {
			if seen := who(t, l.client, to, 30); len(seen) != 2 {
				t.Errorf("%s: %s: answered by %v", c.name, to, seen)
			}
		}
		if _, err := get(a.ns, "tcp", b.addr.String()+":80"); err == nil {
			t.Errorf("%s: a task reaches another over the uplink", c.name)
		}
	}
}

func TestCheck_OthersChangeTheirTables_OursStays(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.pod("a")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}})
	before, err := h.kernel.currentGeneration()
	must(t, err)
	must(t, h.Check())
	c, err := nftables.New()
	must(t, err)
	other := c.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyINet})
	must(t, c.Flush())
	defer func() { c.DelTable(other); must(t, c.Flush()) }()
	must(t, h.Check())
	after, err := h.kernel.currentGeneration()
	must(t, err)
	if after != before+1 {
		t.Errorf("the generation went from %d to %d: ours was loaded anew, or theirs was not seen", before, after)
	}
}

// A change that the kernel refuses, as somebody took away what it takes away, is made all the same.
func TestApply_ElementsWereDeletedByHand_TableIsLoadedAnew(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.pod("a"), h.pod("b")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}})
	c, err := nftables.New()
	must(t, err)
	c.DelTable(h.table.inet)
	must(t, c.Flush())
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{b.endpoint("s", active)}})
	if seen := who(t, l.client, h.at(8080), 30); len(seen) != 2 {
		t.Errorf("answered by %v", seen)
	}
	c.DelTable(h.table.inet)
	must(t, c.Flush())
	must(t, h.SetPods(append(h.addresses(), netip.MustParseAddr("100.64.0.77"))))
	if seen := who(t, l.client, h.at(8080), 1); len(seen) != 1 {
		t.Errorf("answered by %v", seen)
	}
}

func TestRestart_NoConnectionFails_UntilAndWhileTheManagersTellAll(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	a, b := h.pod("a"), l.hosts[1].pod("b")
	services := []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80)), publishing("gone", port(tcp, 8081, 80))}
	endpoints := []*swarmpb.Endpoint{a.endpoint("s", active), b.endpoint("s", active), {TaskId: "x", ServiceId: "gone", NodeId: "node1", State: active, Address: a.addr.String()}}
	l.tell(Update{Full: true, Services: services, Endpoints: endpoints})
	forward := Forward{Protocol: tcp, Port: 9090, To: netipAddrPort(a, 80)}
	_, err := h.AddForwards([]Forward{forward})
	must(t, err)
	slots := fmt.Sprint(h.balances[portKey{unix.IPPROTO_TCP, 8080}].backends)

	targets := []string{h.at(8080), h.at6(8080), h.at(9090)}
	for _, to := range targets {
		eventually(t, to+" answers", func() bool { _, err := get(l.client, "tcp", to); return err == nil })
	}
	lost := func() int { return retransmitted(t, l.client) + retransmitted(t, a.ns) + retransmitted(t, b.ns) }
	before := lost()
	var failed atomic.Int64
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			for _, to := range targets {
				if _, err := getWithin(l.client, "tcp", to, 30*time.Second); err != nil {
					t.Log(err)
					failed.Add(1)
				}
			}
		}
		done <- n
	}()
	for range 3 {
		h.Close()
		next, err := New(Config{Logger: h.cfg.Logger, UplinkGroup: testGroup, FabricLink: testFab, ReplyRule: 32000})
		must(t, err)
		h.Ingress = next
		must(t, h.AdoptForwards([]Forward{forward}))
		must(t, h.Configure(h.place()))
		if got, err := get(l.client, "tcp", h.at(8081)); err != nil || !strings.HasPrefix(got, "a ") {
			t.Errorf("what the former process published, before the managers tell: %q, %v", got, err)
		}
		if got, err := get("", "tcp", "127.0.0.1:8080"); err != nil {
			t.Errorf("on loopback, before the managers tell: %q, %v", got, err)
		}
		must(t, h.SetNodes(l.nodes()))
		must(t, h.SetPods(h.addresses()))
		must(t, h.Apply(Update{Full: true, Services: services, Endpoints: endpoints}))
	}
	must(t, h.Configure(h.place()))
	if now := fmt.Sprint(h.balances[portKey{unix.IPPROTO_TCP, 8080}].backends); now != slots {
		t.Errorf("slots moved: %s, were %s", now, slots)
	}
	must(t, h.Apply(Update{Full: true, Services: services[:1], Endpoints: endpoints[:2]}))
	stop.Store(true)
	if n := <-done; n == 0 || failed.Load() > 0 {
		t.Errorf("%d of %d rounds failed", failed.Load(), n)
	}
	if n := lost() - before; n > 0 {
		t.Errorf("%d packets that open a connection were lost", n)
	}
	if _, err := get(l.client, "tcp", h.at(8081)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("what is gone since: %v; want it refused", err)
	}
}

// retransmitted is how many SYN and SYN-ACK a namespace has sent again.
func retransmitted(t *testing.T, ns string) int {
	t.Helper()
	var b []byte
	must(t, in(ns, func() (err error) { b, err = os.ReadFile("/proc/thread-self/net/netstat"); return err }))
	lines := strings.Split(string(b), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	n, err := strconv.Atoi(values[slices.Index(names, "TCPSynRetrans")])
	must(t, err)
	return n
}

// tableHandles change when a table is another one of the same name.
func tableHandles(t *testing.T, k *kernel, tables ...*nftables.Table) string {
	t.Helper()
	const tableHandle = 4 // NFTA_TABLE_HANDLE
	out := ""
	for _, table := range tables {
		b := &batch{}
		b.name(unix.NFTA_TABLE_NAME, table.Name)
		answer, err := k.ask(unix.NFT_MSG_GETTABLE, byte(table.Family), 0, b.buf)
		must(t, err)
		eachAttribute(answer[0].Data[4:], func(kind uint16, v []byte) {
			if kind == tableHandle {
				out += fmt.Sprintf("%d:%x ", table.Family, v)
			}
		})
	}
	return out
}

// A connection that begins while a table is exchanged for another may be led by neither, so the tables stay.
func TestRestart_TablesAreFilledAnewInPlace(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	c, err := nftables.New()
	must(t, err)
	restart := func() string {
		h.Close()
		next, err := New(Config{Logger: h.cfg.Logger, UplinkGroup: testGroup, FabricLink: testFab, ReplyRule: 32000})
		must(t, err)
		h.Ingress = next
		must(t, h.Configure(h.place()))
		return tableHandles(t, h.kernel, h.table.all()...)
	}
	before := restart()
	if after := restart(); after != before || strings.Count(before, ":") != 3 {
		t.Errorf("the tables are %s, were %s", after, before)
	}
	for _, table := range h.table.all() {
		c.AddChain(&nftables.Chain{Name: "of another version", Table: table})
	}
	must(t, c.Flush())
	restart()
	for _, table := range h.table.all() {
		if chains, err := h.kernel.chainsOf(table); err != nil || slices.Contains(chains, "of another version") {
			t.Errorf("chains that are not ours stay: %v, %v", chains, err)
		}
	}
}

// The kernel refuses a kind of hash that it does not know, as it refuses any without CONFIG_NFT_HASH.
func TestLoad_KernelCannotHash_PortsAreServedByChance(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.pod("a"), h.pod("b")
	restart := func(hash expr.HashType) {
		h.Close()
		next, err := New(Config{Logger: h.cfg.Logger, UplinkGroup: testGroup, FabricLink: testFab, ReplyRule: 32000})
		must(t, err)
		h.Ingress = next
		h.table.hashType = hash
		must(t, h.Configure(h.place()))
		must(t, h.SetNodes(l.nodes()))
		must(t, h.SetPods(h.addresses()))
		sticky := port(tcp, 8081, 80)
		sticky.Affinity = swarmpb.Affinity_AFFINITY_CLIENT_IP
		must(t, h.Apply(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80), sticky)},
			Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active), b.endpoint("s", active)}}))
	}
	const unknown = 99
	restart(unknown)
	for _, to := range []string{h.at(8080), h.at(8081), h.at6(8081)} {
		if seen := who(t, l.client, to, 60); len(seen) != 2 {
			t.Errorf("%s: answered by %v", to, seen)
		}
	}
	c, err := nftables.New()
	must(t, err)
	c.DelTable(h.table.inet)
	must(t, c.Flush())
	must(t, h.Check())
	if seen := who(t, l.client, h.at(8081), 60); len(seen) != 2 {
		t.Errorf("after a repair: answered by %v", seen)
	}
	restart(expr.HashTypeJenkins)
	if seen := who(t, l.client, h.at(8081), 20); len(seen) != 1 || h.table.withoutHash {
		t.Errorf("with a kernel that can: answered by %v", seen)
	}
}

// What a former process was told is on disk, so it may be told again before there is a configuration.
func TestRestart_ToldBeforeItIsConfigured_SlotsStayAndWhatIsGoneIsRefused(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.pod("a")
	key := portKey{unix.IPPROTO_TCP, 8080}
	services := []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80)), publishing("gone", port(tcp, 8081, 80))}
	endpoints := []*swarmpb.Endpoint{a.endpoint("s", active)}
	for n := range 9 {
		endpoints = append(endpoints, &swarmpb.Endpoint{TaskId: fmt.Sprint("x", n), ServiceId: "s", NodeId: "node1", State: active, Address: fmt.Sprintf("100.64.0.%d", 100+n)})
	}
	l.tell(Update{Full: true, Services: services, Endpoints: endpoints})
	must(t, h.Apply(Update{RemovedEndpoints: []string{"x3"}})) // so that the slots have a history
	endpoints = append(endpoints[:4:4], endpoints[5:]...)
	slots := fmt.Sprint(h.balances[key].backends)
	h.Close()
	next, err := New(Config{Logger: h.cfg.Logger, UplinkGroup: testGroup, FabricLink: testFab, ReplyRule: 32000})
	must(t, err)
	h.Ingress = next
	must(t, h.Apply(Update{Full: true, Services: services[:1], Endpoints: endpoints}))
	must(t, h.Configure(h.place()))
	if now := fmt.Sprint(h.balances[key].backends); now != slots {
		t.Errorf("slots moved: %s, were %s", now, slots)
	}
	if same, err := h.holdsBalance(key, h.balances[key]); !same || err != nil {
		t.Errorf("the kernel holds other slots: %v", err)
	}
	must(t, h.SetPods(h.addresses()))
	if _, err := get(l.client, "tcp", h.at(8081)); !errors.Is(err, syscall.ECONNREFUSED) || len(h.inherited) > 0 {
		t.Errorf("what is gone since: %v; want it refused and forgotten: %v", err, h.inherited)
	}
}

func TestFabric_PacketsOfNonMembersAreDropped(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	received := func() uint64 {
		link, err := netlink.LinkByName(testFab)
		must(t, err)
		return link.Attrs().Statistics.RxPackets
	}
	frame := []byte{8, 0, 0, 0, 0, 0, testVNI, 0}
	frame = append(frame, fabMAC(1)...)
	frame = append(append(frame, fabMAC(2)...), 8, 6)
	frame = append(frame, make([]byte, 60)...)
	send := func(ns string) {
		must(t, in(ns, func() error {
			c, err := net.Dial("udp", h.at(testPort))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(frame)
			return err
		}))
	}
	before := received()
	send(l.hosts[1].ns)
	eventually(t, "a member's packet is taken", func() bool { return received() > before })
	// A member's further address may be another host's too, such as that of a bridge which every host has.
	nodes := l.nodes()
	nodes[1].Others = append(nodes[1].Others, clientAddr)
	must(t, h.SetNodes(nodes))
	before = received()
	for range 5 {
		send(l.client)
	}
	send(l.hosts[1].ns) // comes after those
	eventually(t, "a member's packet is taken", func() bool { return received() > before })
	if n := received() - before; n != 1 {
		t.Errorf("%d packets were taken, want the member's alone", n)
	}
}

// Other software's bits of marks stay, whatever they are, and ours lead back all the same.
func TestMarks_OthersBitsArePreserved(t *testing.T) {
	l := newLab(t, 2)
	web := l.hosts[1].pod("web")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{web.endpoint("s", active)}})
	const others = 0x0000a5c3
	ns := l.hosts[1].ns
	var table *nftables.Table
	must(t, in(ns, func() error {
		c, err := nftables.New()
		must(t, err)
		table = c.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Name: "mark", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-160)})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: join(newFlow(), []expr.Any{
			&expr.Immediate{Register: 1, Data: native(others)}, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}})})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Immediate{Register: 1, Data: native(others)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}})
		// What leaves by the fabric with another mark than theirs and the first host's is lost.
		out := c.AddChain(&nftables.Chain{Name: "see", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityRef(300)})
		c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: join(link(expr.MetaKeyOIFNAME, expr.CmpOpEq, testFab), reply(),
			metaIs(expr.MetaKeyMARK, expr.CmpOpNeq, native(others|mark(1))), drop())})
		return c.Flush()
	}))
	for _, to := range []string{l.hosts[0].at(8080), l.hosts[0].at6(8080)} {
		if got, err := get(l.client, "tcp", to); err != nil || !strings.HasPrefix(got, "web ") {
			t.Errorf("%s: %q, %v", to, got, err)
		}
	}
	n := flows(t, ns, func(f *netlink.ConntrackFlow) bool {
		return leadingTo(web, unix.IPPROTO_TCP)(f) && f.Mark == others|mark(1)
	})
	if n < 2 {
		t.Errorf("%d entries carry both marks, want 2", n)
	}
}

func TestUDPClient_WhosePortWasSomebodyElses_ReachesTheServiceOnceItIsServed(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.pod("a")
	pc, err := net.ListenPacket("udp", ":5353")
	must(t, err)
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte("mine"), from)
		}
	}()
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(udp, 5353, 53))}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}})
	var c net.Conn
	must(t, in(l.client, func() (err error) { c, err = net.Dial("udp", h.at(5353)); return err }))
	defer c.Close()
	ask := func() string {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, _ = c.Write([]byte("?"))
		b := make([]byte, 100)
		n, _ := c.Read(b)
		return string(b[:n])
	}
	if got := ask(); got != "mine" {
		t.Fatalf("before: %q", got)
	}
	_ = pc.Close()
	eventually(t, "the conflict ends", func() bool { return len(h.Conflicts()) == 0 })
	if got := ask(); !strings.HasPrefix(got, "a ") {
		t.Errorf("after: %q; the client's flow still leads to what is gone", got)
	}
}
