package dns

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

// firstOf is how often each address came first, of so many queries.
func firstOf(k *task, name string, rrtype uint16, times int) map[string]int {
	seen := map[string]int{}
	for range times {
		if all := got(k.ask("udp", name, rrtype)); len(all) > 0 {
			seen[all[0]]++
		}
	}
	return seen
}

func TestAsk_DividedName_AQueryGetsOneSideByItsShare(t *testing.T) {
	l := newLab(t, Limits{})
	divided := Division{Rest: addrs("10.0.1.2", "10.0.1.3", "fd01::2"), Trial: addrs("10.0.1.9", "10.0.1.10"), Share: 2500}
	l.Apply(Update{Networks: map[string]NetworkNames{"n": {Full: true, Set: map[string][]netip.Addr{"web": nil, "shared": addrs("10.0.1.77"), "db": addrs("10.0.1.5")},
		Divided: map[string][]Division{"web": {divided}, "shared": {divided}}}}})
	k := l.task("t", Client{Networks: []string{"n"}})
	const times = 4000
	trial, firsts := 0, map[string]int{}
	for range times {
		all := got(k.ask("udp", "web", dns.TypeA))
		firsts[all[0]]++
		slices.Sort(all)
		switch {
		case slices.Equal(all, []string{"10.0.1.10", "10.0.1.9"}):
			trial++
		case !slices.Equal(all, []string{"10.0.1.2", "10.0.1.3"}):
			t.Fatalf("an answer has %v: not all of one side", all)
		}
	}
	if trial < times*21/100 || trial > times*29/100 {
		t.Errorf("of %d queries %d got the trial; want a quarter", times, trial)
	}
	for a, n := range firsts {
		if n < times/10 {
			t.Errorf("%s came first %d times of %d", a, n, times)
		}
	}
	for range 50 {
		if all := got(k.ask("udp", "web", dns.TypeAAAA)); !slices.Equal(all, []string{"fd01::2"}) {
			t.Fatalf("of a family that one side has: %v", all)
		}
		if all := got(k.ask("udp", "shared", dns.TypeA)); len(all) != 3 || !slices.Contains(all, "10.0.1.77") {
			t.Fatalf("of a name that another service gives too: %v", all)
		}
	}
	if all := got(k.ask("udp", "9.1.0.10.in-addr.arpa", dns.TypePTR)); !slices.Equal(all, []string{"web."}) && !slices.Equal(all, []string{"shared."}) {
		t.Errorf("the name of an address of one side: %v", all)
	}
	l.Apply(Update{Networks: map[string]NetworkNames{"n": {Set: map[string][]netip.Addr{"web": addrs("10.0.1.9")}, Removed: []string{"shared"}}}})
	if seen := firstOf(k, "web", dns.TypeA, 50); seen["10.0.1.9"] != 50 {
		t.Errorf("divided no more: %v", seen)
	}
	if all := got(k.ask("udp", "2.1.0.10.in-addr.arpa", dns.TypePTR)); len(all) > 0 && all[0] != "192.0.2.1" {
		t.Errorf("an address that is gone is called %v", all)
	}
}

func TestAsk_AbsentName_DoesNotExistForASecond_AndNobodyElseIsAsked(t *testing.T) {
	l := newLab(t, Limits{})
	outside := serve(t, "127.0.0.53:0", says("192.0.2.1"))
	l.setUpstream(outside.addr)
	l.Apply(Update{Networks: map[string]NetworkNames{
		"n1": {Full: true, Name: "front", Set: map[string][]netip.Addr{"web": addrs("10.0.1.2"), "preview.db": addrs("10.0.1.8")}, Absent: []string{"preview.web", "preview.api"}},
		"n2": {Full: true, Set: map[string][]netip.Addr{"preview.api": nil}, Absent: []string{"preview.db"}},
	}})
	k := l.task("t", Client{Networks: []string{"n2", "n1"}})
	for _, name := range []string{"preview.web", "Preview.Web", "preview.web.front"} {
		for _, rrtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX} {
			m := k.ask("udp", name, rrtype)
			if m.Rcode != dns.RcodeNameError || len(m.Ns) != 1 || !m.Authoritative {
				t.Fatalf("%s: %s", name, m)
			}
			if soa, ok := m.Ns[0].(*dns.SOA); !ok || soa.Hdr.Ttl != 1 || soa.Minttl != 1 {
				t.Errorf("%s: kept for %s", name, m.Ns[0])
			}
		}
	}
	if m := k.ask("udp", "preview.api", dns.TypeA); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 {
		t.Errorf("without an address in one network, absent in another: %s", m)
	}
	if all := got(k.ask("udp", "preview.db", dns.TypeA)); !slices.Equal(all, []string{"10.0.1.8"}) {
		t.Errorf("absent in the first network alone: %v", all)
	}
	l.Apply(Update{Networks: map[string]NetworkNames{"n1": {Set: map[string][]netip.Addr{"preview.web": addrs("10.0.1.9")}}}})
	if all := got(k.ask("udp", "preview.web", dns.TypeA)); !slices.Equal(all, []string{"10.0.1.9"}) {
		t.Errorf("now there: %v", all)
	}
	l.Apply(Update{Networks: map[string]NetworkNames{"n1": {Absent: []string{"preview.web"}}}})
	if m := k.ask("udp", "preview.web", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("absent again: %s", m)
	}
	if n := len(outside.asked) + len(outside.tcp); n != 0 {
		t.Errorf("%d of these questions left the node", n)
	}
}
