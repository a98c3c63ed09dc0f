package dns

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// BenchmarkAsk is one client asking one question after the other over UDP; cpu-ns is what both sides cost together.
func BenchmarkAsk(b *testing.B) {
	l := newLab(b, Limits{})
	l.Apply(back())
	k := l.task("t", Client{Networks: []string{"n1"}})
	conn := k.dial("udp")
	defer conn.Close()
	packet, err := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	must(b, err)
	answer := make([]byte, maxUDP)
	before := cpu(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(packet); err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Read(answer); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((cpu(b)-before)/float64(b.N), "cpu-ns/op")
}

// BenchmarkAnswer is the part of it that is ours: from a packet to a packet.
func BenchmarkAnswer(b *testing.B) {
	r := New(Config{})
	r.Apply(back())
	s := newSettings(Client{Networks: []string{"n1"}})
	packet, err := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	must(b, err)
	out := make([]byte, maxUDP)
	b.ReportAllocs()
	for b.Loop() {
		q, _ := parse(packet, false)
		if _, err := r.answer(s, q, out, func([]byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApply changes one of many names, the way an endpoint changes.
func BenchmarkApply(b *testing.B) {
	for _, names := range []int{100, 100_000} {
		b.Run(fmt.Sprint(names), func(b *testing.B) {
			r := New(Config{})
			set := map[string][]netip.Addr{}
			a := netip.MustParseAddr("10.0.0.0")
			for i := range names {
				a = a.Next()
				set[fmt.Sprintf("web.%d", i)] = []netip.Addr{a}
			}
			r.Apply(Update{Networks: map[string]NetworkNames{"n": {Full: true, Set: set}}})
			for b.Loop() {
				a = a.Next()
				r.Apply(Update{Networks: map[string]NetworkNames{"n": {Set: map[string][]netip.Addr{"web.1": {a}}}}})
			}
		})
	}
}

// cpu is the time of a processor that this process has used, in nanoseconds.
func cpu(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	must(b, syscall.Getrusage(unix.RUSAGE_SELF, &u))
	return float64(u.Utime.Nano() + u.Stime.Nano())
}
