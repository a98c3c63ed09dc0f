package ingress

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// cpu is what this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// published starts a host with services of three endpoints each.
func published(b *testing.B, services int) (*Ingress, Update) {
	b.Helper()
	i, err := New(Config{Logger: slog.New(slog.DiscardHandler), UplinkGroup: testGroup, FabricLink: testFab})
	must(b, err)
	b.Cleanup(func() { must(b, i.Teardown()); i.Close() })
	must(b, i.Configure(Host{Number: 1, Block: netip.MustParsePrefix("100.64.0.0/24"), Pool: testPool, Prefix6: testPrefix6, DataPathPort: testPort}))
	u := Update{Full: true}
	for n := range services {
		id := fmt.Sprintf("service%d", n)
		u.Services = append(u.Services, publishing(id, port(tcp, uint32(10000+n), 80)))
		for e := range 3 {
			u.Endpoints = append(u.Endpoints, endpointAt(id, e, n*3+e))
		}
	}
	return i, u
}

func endpointAt(service string, e, n int) *swarmpb.Endpoint {
	return &swarmpb.Endpoint{TaskId: fmt.Sprintf("%s.%d", service, e), ServiceId: service, NodeId: fmt.Sprintf("node%d", e), State: active,
		Address: netip.AddrFrom4([4]byte{100, 65, byte(n >> 8), byte(n)}).String()}
}

// BenchmarkEndpointChange: one endpoint of a service comes and goes, by turns, with so many services published; IPv4 and IPv6.
func BenchmarkEndpointChange(b *testing.B) {
	for _, services := range []int{10, 1000, 5000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			i, u := published(b, services)
			must(b, i.Apply(u))
			fourth := endpointAt("service7", 3, 60000)
			begin := cpu()
			b.ResetTimer()
			took := make([]time.Duration, b.N)
			for n := range b.N {
				at := time.Now()
				if n%2 == 0 {
					must(b, i.Apply(Update{Endpoints: []*swarmpb.Endpoint{fourth}}))
				} else {
					must(b, i.Apply(Update{RemovedEndpoints: []string{fourth.TaskId}}))
				}
				took[n] = time.Since(at)
			}
			b.ReportMetric(float64((cpu()-begin).Microseconds())/float64(b.N), "cpu-us/op")
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*999/1000].Microseconds()), "p99.9-us")
			b.ReportMetric(float64(took[len(took)-1].Microseconds()), "worst-us")
		})
	}
}

// BenchmarkShareChange: a trial of one endpoint beside three gets 5, 25 and 0 percent by turns, with so many services published;
// and 100 endpoints beside 100.
func BenchmarkShareChange(b *testing.B) {
	for _, c := range []struct{ services, rest, trial int }{{1000, 3, 1}, {10, 100, 100}} {
		b.Run(fmt.Sprintf("%d/%d+%d", c.services, c.rest, c.trial), func(b *testing.B) {
			i, u := published(b, c.services)
			for n := range c.rest + c.trial {
				e := endpointAt("service7", 10+n, 60000+n)
				if n >= c.rest {
					e.Set = 2
				}
				u.Endpoints = append(u.Endpoints, e)
			}
			must(b, i.Apply(u))
			begin := cpu()
			b.ResetTimer()
			var worst time.Duration
			for n := range b.N {
				s := publishing("service7", port(tcp, 10007, 80))
				s.Trial = &swarmpb.Trial{Set: 2, Share: []uint32{500, 2500, 0}[n%3]}
				at := time.Now()
				must(b, i.Apply(Update{Services: []*swarmpb.AssignedService{s}}))
				worst = max(worst, time.Since(at))
			}
			b.ReportMetric(float64((cpu()-begin).Microseconds())/float64(b.N), "cpu-us/op")
			b.ReportMetric(float64(worst.Microseconds()), "worst-us")
		})
	}
}

// BenchmarkLoad: from nothing to all services, sockets and kernel; then a check that has to read all, and one that need not.
func BenchmarkLoad(b *testing.B) {
	for _, services := range []int{1000, 5000} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			for range b.N {
				i, u := published(b, services)
				begin, at := cpu(), time.Now()
				must(b, i.Apply(u))
				b.ReportMetric(float64((cpu() - begin).Milliseconds()), "load-cpu-ms")
				b.ReportMetric(float64(time.Since(at).Milliseconds()), "load-ms")
				i.dirty = true
				at = time.Now()
				must(b, i.Check())
				b.ReportMetric(float64(time.Since(at).Milliseconds()), "full-check-ms")
				at = time.Now()
				must(b, i.Check())
				b.ReportMetric(float64(time.Since(at).Microseconds()), "check-us")
				at = time.Now()
				must(b, i.reload())
				b.ReportMetric(float64(time.Since(at).Milliseconds()), "repair-ms")
				at = time.Now()
				_, err := i.table.readBalances(i.kernel)
				must(b, err)
				b.ReportMetric(float64(time.Since(at).Milliseconds()), "adopt-ms")
				must(b, i.Teardown())
			}
		})
	}
}

// BenchmarkVIPChange: an endpoint of a VIP of ten comes and goes, by turns, in all namespaces, one after the other.
func BenchmarkVIPChange(b *testing.B) {
	for _, namespaces := range []int{1, 100} {
		b.Run(fmt.Sprint(namespaces), func(b *testing.B) {
			l := &lab{t: b, dir: b.TempDir()}
			b.Cleanup(func() {
				for _, path := range l.paths {
					must(b, unix.Unmount(path, unix.MNT_DETACH))
				}
			})
			var all []*VIPs
			for n := range namespaces {
				v, err := OpenVIPs(l.namespace(fmt.Sprint(n)), VIPConfig{Logger: slog.New(slog.DiscardHandler), ResolverUDP: 1, ResolverTCP: 2})
				must(b, err)
				b.Cleanup(v.Close)
				all = append(all, v)
			}
			vip := VIP{Address: vip4}
			for n := range 11 {
				vip.Backends = append(vip.Backends, Backend{netip.AddrFrom4([4]byte{10, 0, 7, byte(10 + n)}), 100})
			}
			ten := VIP{Address: vip.Address, Backends: slices.Clone(vip.Backends[:10])}
			for _, v := range all {
				must(b, v.Apply(VIPUpdate{Full: true, VIPs: []VIP{ten}}))
			}
			begin := cpu()
			b.ResetTimer()
			for n := range b.N {
				next := vip
				if n%2 == 1 {
					next = ten
				}
				must(b, ApplyVIPs(all, VIPUpdate{VIPs: []VIP{next}}))
			}
			b.ReportMetric(float64((cpu()-begin).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

// BenchmarkEndFlows: an address's entries deleted, among so many of others.
func BenchmarkEndFlows(b *testing.B) {
	for _, entries := range []int{1000, 100000} {
		for name, client := range map[string]string{"IPv4": "10.9.0.1", "IPv6": "fd09::1"} {
			b.Run(fmt.Sprintf("%s/%d", name, entries), func(b *testing.B) {
				defer clearFlows(b)
				from, here, gone, other := netip.MustParseAddr(client), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("100.64.0.3")
				if from.Is6() {
					here, gone, other = netip.MustParseAddr("fd00::1"), swarmpb.Address6(testPrefix6, gone), swarmpb.Address6(testPrefix6, other)
				}
				for n := range entries {
					addFlow(b, unix.IPPROTO_TCP, netip.AddrPortFrom(from, uint16(1024+n%60000)), netip.AddrPortFrom(here, uint16(80+n/60000)), netip.AddrPortFrom(other, uint16(80+n/60000)))
				}
				var used, took time.Duration
				b.ResetTimer()
				for range b.N {
					addFlow(b, unix.IPPROTO_TCP, netip.AddrPortFrom(from, 1000), netip.AddrPortFrom(here, 443), netip.AddrPortFrom(gone, 80))
					begin, at := cpu(), time.Now()
					must(b, deleteFlows("", ctFilter{answering: gone}))
					used, took = used+cpu()-begin, took+time.Since(at)
				}
				b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-us/op")
				b.ReportMetric(float64(took.Microseconds())/float64(b.N), "us/op")
			})
		}
	}
}
