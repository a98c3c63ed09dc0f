package dns

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func back() Update {
	return Update{Networks: map[string]NetworkNames{
		"n1": {Full: true, Name: "Back", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd01::/64")}, Set: map[string][]netip.Addr{
			"web": addrs("10.0.1.2", "fd01::2"), "tasks.web": addrs("10.0.1.3", "10.0.1.4"), "web.1.abc": addrs("10.0.1.3"), "abc": addrs("10.0.1.3"), "idle": nil,
		}},
		"n2": {Full: true, Name: "front", Set: map[string][]netip.Addr{"web": addrs("10.0.2.2"), "db": addrs("10.0.2.3")}},
		"n3": {Full: true, Set: map[string][]netip.Addr{"secret": addrs("10.0.3.3")}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.3.0/24")}},
	}, Own: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/10")}}
}

func TestAsk_NamesOfTheTasksNetworks_AnsweredByFamilyAndNothingElse(t *testing.T) {
	l := newLab(t, Limits{})
	outside := serve(t, "127.0.0.53:0", says("192.0.2.1"))
	l.setUpstream(outside.addr)
	l.Apply(back())
	k := l.task("t1", Client{Networks: []string{"n1", "n2", "unknown"}})
	for _, c := range []struct {
		name   string
		rrtype uint16
		rcode  int
		want   []string
	}{
		{"web", dns.TypeA, dns.RcodeSuccess, []string{"10.0.1.2"}},
		{"WeB.", dns.TypeA, dns.RcodeSuccess, []string{"10.0.1.2"}},
		{"web", dns.TypeAAAA, dns.RcodeSuccess, []string{"fd01::2"}},
		{"db", dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"idle", dns.TypeA, dns.RcodeSuccess, nil},
		{"web", dns.TypeMX, dns.RcodeSuccess, nil},
		{"web", dns.TypeHTTPS, dns.RcodeSuccess, nil},
		{"web", dns.TypeANY, dns.RcodeRefused, nil},
		{"web", dns.TypeAXFR, dns.RcodeRefused, nil},
		{"web.front", dns.TypeA, dns.RcodeSuccess, []string{"10.0.2.2"}},
		{"web.back", dns.TypeA, dns.RcodeSuccess, []string{"10.0.1.2"}},
		{"tasks.web", dns.TypeA, dns.RcodeSuccess, []string{"10.0.1.3", "10.0.1.4"}},
		{"3.1.0.10.in-addr.arpa", dns.TypePTR, dns.RcodeSuccess, []string{"web.1.abc.Back."}},
		{"3.1.0.10.in-addr.arpa", dns.TypeA, dns.RcodeSuccess, nil},
		{"3.1.0.10.in-addr.arpa", dns.TypeANY, dns.RcodeRefused, nil},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa", dns.TypePTR, dns.RcodeSuccess, []string{"web.Back."}},
		{"9.1.0.10.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, nil},
		{"3.3.0.10.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, nil}, // of a network that the task is not in
		{"7.3.64.100.in-addr.arpa", dns.TypePTR, dns.RcodeNameError, nil},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := k.ask(network, c.name, c.rrtype)
			have := got(m)
			slices.Sort(have)
			if m.Rcode != c.rcode || !slices.Equal(have, c.want) || !m.RecursionAvailable {
				t.Errorf("%s %s %s: got %s %v, want %s %v", network, c.name, dns.TypeToString[c.rrtype], dns.RcodeToString[m.Rcode], have, dns.RcodeToString[c.rcode], c.want)
			}
			for _, rr := range m.Answer {
				if rr.Header().Ttl > 1 || rr.Header().Name != m.Question[0].Name {
					t.Errorf("%s %s: record %s", network, c.name, rr)
				}
			}
		}
	}
	if n := len(outside.asked) + len(outside.tcp); n != 0 {
		t.Errorf("%d of these questions left the node", n)
	}
	// What is nobody's here is asked outside: names of other networks, unknown ones, other people's addresses.
	for _, name := range []string{"secret", "example.com", "nobody", "tasks.nobody", "nobody.front", "1.2.0.192.in-addr.arpa", "x.1.0.10.in-addr.arpa", "1.0.10.in-addr.arpa"} {
		if m := k.ask("udp", name, dns.TypeA); !slices.Equal(got(m), []string{"192.0.2.1"}) {
			t.Errorf("%s: got %s", name, m)
		}
		if asked := <-outside.asked; asked != dns.Fqdn(name) {
			t.Errorf("asked outside for %s, want %s", asked, name)
		}
	}
}

func TestAsk_ManyAddresses_ShuffledTruncatedOverUDPWholeOverTCP(t *testing.T) {
	l := newLab(t, Limits{})
	var many []netip.Addr
	for a := netip.MustParseAddr("10.9.0.0"); len(many) < 1000; a = a.Next() {
		many = append(many, a)
	}
	l.Apply(Update{Networks: map[string]NetworkNames{"n": {Set: map[string][]netip.Addr{"many": many}}}})
	k := l.task("t", Client{Networks: []string{"n"}})
	for _, c := range []struct{ edns, limit int }{{0, 512}, {100, 512}, {1232, 1232}, {4096, 4096}, {65535, 4096}} {
		q := new(dns.Msg).SetQuestion("many.", dns.TypeA)
		if c.edns > 0 {
			q.SetEdns0(uint16(c.edns), true)
		}
		m := k.exchange("udp", q)
		m.Compress = true
		if size := m.Len(); !m.Truncated || size > c.limit || size < c.limit-40 {
			t.Errorf("edns %d: truncated %v, %d bytes", c.edns, m.Truncated, size)
		}
		if opt := m.IsEdns0(); (opt != nil) != (c.edns > 0) || opt != nil && !opt.Do() {
			t.Errorf("edns %d: got %v", c.edns, opt)
		}
	}
	whole := k.ask("tcp", "many", dns.TypeA)
	if whole.Truncated || len(whole.Answer) != len(many) {
		t.Fatalf("over TCP: truncated %v, %d addresses", whole.Truncated, len(whole.Answer))
	}
	first := map[string]bool{}
	for range 20 {
		first[got(k.ask("tcp", "many", dns.TypeA))[0]] = true
	}
	if len(first) < 2 {
		t.Error("the same address comes first each time")
	}
}

func TestAsk_OddQueries_RefusedOrIgnored(t *testing.T) {
	l := newLab(t, Limits{})
	l.Apply(back())
	k := l.task("t", Client{Networks: []string{"n1"}})
	edit := func(f func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion("web.", dns.TypeA)
		f(m)
		return m
	}
	for _, c := range []struct {
		query *dns.Msg
		rcode int
	}{
		{edit(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{edit(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{edit(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{edit(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if m := k.exchange(network, c.query); m.Rcode != c.rcode {
				t.Errorf("%s %s: got %s", network, c.query, dns.RcodeToString[m.Rcode])
			}
		}
	}
	// Rubbish is survived: what comes after it is answered.
	conn := k.dial("udp")
	defer conn.Close()
	answer, err := edit(func(m *dns.Msg) { m.Response = true }).Pack()
	must(t, err)
	for _, packet := range [][]byte{{}, {1}, make([]byte, 11), answer, make([]byte, 9000)} {
		_, err := conn.Write(packet)
		must(t, err)
	}
	m, _, err := (&dns.Client{Timeout: time.Minute}).ExchangeWithConn(edit(func(*dns.Msg) {}), &dns.Conn{Conn: conn})
	if err != nil || !slices.Equal(got(m), []string{"10.0.1.2"}) {
		t.Fatalf("after rubbish: %v %v", m, err)
	}
}

// An answer is composed and handed over in one step that no Apply returns within.
func TestApply_Returned_NoAnswerBeingComposedNamesWhatIsGone(t *testing.T) {
	r := New(Config{})
	address := func(n uint32) netip.Addr {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24+n)))
	}
	set := func(n uint32) {
		r.Apply(Update{Networks: map[string]NetworkNames{"n": {Set: map[string][]netip.Addr{"web": {address(n)}}}}})
	}
	set(1)
	packet, err := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	must(t, err)
	var applied atomic.Uint32
	applied.Store(1)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s := newSettings(Client{Networks: []string{"n"}})
			for !stop.Load() {
				q, _ := parse(packet, false)
				_, err := r.answer(s, q, nil, func(b []byte) error {
					runtime.Gosched()
					oldest := applied.Load()
					var m dns.Msg
					must(t, m.Unpack(b))
					if a := binary.BigEndian.Uint32(m.Answer[0].(*dns.A).A) - 10<<24; a < oldest {
						return fmt.Errorf("answered %d when %d had been applied", a, oldest)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := uint32(2); n < 20_000; n++ {
		set(n)
		applied.Store(n)
	}
	stop.Store(true)
	wg.Wait()
}

func TestListen_AgainForTheTask_KeepsPortsAndTakesSettings(t *testing.T) {
	l := newLab(t, Limits{})
	l.Apply(back())
	k := l.task("t", Client{Networks: []string{"n2"}})
	udp, tcp, err := l.Listen("t", k.namespace, Client{Networks: []string{"n1"}})
	must(t, err)
	if udp != k.udp || tcp != k.tcp {
		t.Fatalf("ports %d, %d became %d, %d", k.udp, k.tcp, udp, tcp)
	}
	if m := k.ask("udp", "web", dns.TypeA); !slices.Equal(got(m), []string{"10.0.1.2"}) {
		t.Fatalf("got %s", m)
	}
	// In another namespace it is another place.
	other := l.namespace()
	k.udp, k.tcp, err = l.Listen("t", other, Client{Networks: []string{"n2"}})
	must(t, err)
	k.namespace = other
	if m := k.ask("tcp", "web", dns.TypeA); !slices.Equal(got(m), []string{"10.0.2.2"}) {
		t.Fatalf("got %s", m)
	}
	l.Apply(Update{RemovedNetworks: []string{"n2"}})
	if m := k.ask("tcp", "web", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Fatalf("after the network was removed: %s", m)
	}
}

func TestListen_NoNamespace_SaysSoAndKeepsNothing(t *testing.T) {
	l := newLab(t, Limits{})
	before := descriptors(t)
	file := t.TempDir() + "/file"
	must(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{file, file + "-missing"} {
		if _, _, err := l.Listen("t", path, Client{}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if after := descriptors(t); !reflect.DeepEqual(before, after) {
		t.Errorf("descriptors %v became %v", before, after)
	}
}

func TestClose_OrNamespaceVanished_LeavesNothing(t *testing.T) {
	l := newLab(t, Limits{Try: time.Hour, Total: time.Hour})
	quiet := serve(t, "127.0.0.53:0", silent)
	l.setUpstream(quiet.addr)
	open, goroutines := len(descriptors(t)), runtime.NumGoroutine()
	for round := range 10 {
		k := l.task("t", Client{})
		idle, busy := k.dial("tcp"), k.dial("udp")
		packet, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
		must(t, err)
		_, err = busy.Write(packet)
		must(t, err)
		<-quiet.asked // being forwarded now
		if round%2 == 0 {
			l.Close("t")
			l.Close("t")
		} else {
			l.vanish(k.namespace)
			l.sweep()
		}
		_ = idle.Close()
		_ = busy.Close()
	}
	eventually(t, func() string {
		if now := len(descriptors(t)); now > open {
			return fmt.Sprintf("%d descriptors became %d", open, now)
		}
		if now := runtime.NumGoroutine(); now > goroutines {
			return fmt.Sprintf("%d goroutines became %d", goroutines, now)
		}
		return ""
	})
	if n := l.total.forwards.n.Load() + l.total.conns.n.Load(); n != 0 {
		t.Errorf("%d places are still taken", n)
	}
}

// A client that asks over TCP and does not read must not keep Apply from returning.
func TestTCP_ClientThatDoesNotRead_IsCutOffAndBlocksNobody(t *testing.T) {
	l := newLab(t, Limits{TaskConns: 1})
	var many []netip.Addr
	for a := netip.MustParseAddr("10.9.0.0"); len(many) < 4000; a = a.Next() {
		many = append(many, a)
	}
	l.Apply(Update{Networks: map[string]NetworkNames{"n": {Set: map[string][]netip.Addr{"many": many}}}})
	k := l.task("t", Client{Networks: []string{"n"}})
	conn := k.dial("tcp").(*net.TCPConn)
	defer conn.Close()
	packet, err := new(dns.Msg).SetQuestion("many.", dns.TypeA).Pack()
	must(t, err)
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
	const patience = time.Minute
	must(t, conn.SetWriteDeadline(time.Now().Add(patience)))
	for { // until it is cut off
		if _, err = conn.Write(framed); err != nil {
			break
		}
		l.Apply(Update{Networks: map[string]NetworkNames{"n": {Removed: []string{"x"}}}})
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Fatalf("not cut off: %v", err)
	}
	// Its place is free for the next one.
	if m := k.ask("udp", "many", dns.TypeA); len(m.Answer) == 0 {
		t.Fatal("no answer")
	}
	eventually(t, func() string {
		if n := l.total.conns.n.Load(); n != 0 {
			return fmt.Sprintf("%d connections", n)
		}
		return ""
	})
	if m := k.ask("tcp", "many", dns.TypeA); len(m.Answer) != len(many) {
		t.Fatalf("%d addresses", len(m.Answer))
	}
}

func descriptors(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var out []string
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		out = append(out, strings.SplitN(target, ":", 2)[0])
	}
	slices.Sort(out)
	return out
}

// eventually waits until nothing is wrong.
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	const patience, pause = 30 * time.Second, 5 * time.Millisecond
	for deadline := time.Now().Add(patience); ; <-time.After(pause) {
		now := wrong()
		if now == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(now)
		}
	}
}
