package wireguard

import (
	"net/netip"
	"testing"
	"time"
)

// BenchmarkStream compares TCP between tasks of two hosts over VXLAN in plain text with the same through the tunnel. Both
// hosts share the machine's processors; cpu is that of the process, which is the tunnel's in userspace.
func BenchmarkStream(b *testing.B) {
	one, two := pair(b)
	one.open()
	two.open()
	one.peers(two.peer())
	two.peers(one.peer())
	two.do(order{Do: "listen"})
	one.reaches(two, "at first")
	two.do(order{Do: "sink"})
	const each = 3 * time.Second
	rate := func(local, remote *host, from, to netip.Addr) float64 {
		local.do(order{Do: "vxlan", Local: from, To: netip.AddrPortFrom(to, 0), Address: netip.MustParsePrefix("10.7.0.1/24")})
		remote.do(order{Do: "vxlan", Local: to, To: netip.AddrPortFrom(from, 0), Address: netip.MustParsePrefix("10.7.0.2/24")})
		two.do(order{Do: "sunk"})
		local.do(order{Do: "stream", To: netip.MustParseAddrPort("10.7.0.2:9000"), Duration: each})
		return float64(two.do(order{Do: "sunk"}).Bytes) * 8 / each.Seconds() / 1e6
	}
	var plain, encrypted float64
	for b.Loop() {
		plain += rate(one, two, one.underlay(), two.underlay())
		encrypted += rate(one, two, one.address().Addr(), two.address().Addr())
	}
	b.ReportMetric(plain/float64(b.N), "plain-Mbit/s")
	b.ReportMetric(encrypted/float64(b.N), "encrypted-Mbit/s")
	b.ReportMetric(encrypted/plain, "ratio")
}
