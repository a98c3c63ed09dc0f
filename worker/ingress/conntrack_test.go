package ingress

import (
	"fmt"
	"net/netip"
	"testing"

	mdl "github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addFlow makes an entry: from the client to "here", led to the backend.
func addFlow(t testing.TB, protocol uint8, client, here, backend netip.AddrPort) {
	t.Helper()
	family := netlink.InetFamily(familyID(client.Addr()))
	tuple := func(src, dst netip.AddrPort) netlink.IPTuple {
		return netlink.IPTuple{Protocol: protocol, SrcIP: src.Addr().AsSlice(), SrcPort: src.Port(), DstIP: dst.Addr().AsSlice(), DstPort: dst.Port()}
	}
	flow := &netlink.ConntrackFlow{FamilyType: uint8(family), Forward: tuple(client, here), Reverse: tuple(backend, client), TimeOut: 1000}
	if protocol == unix.IPPROTO_TCP {
		flow.ProtoInfo = &netlink.ProtoInfoTCP{State: 3}
	}
	must(t, netlink.ConntrackCreate(netlink.ConntrackTable, family, flow))
}

func clearFlows(t testing.TB) { must(t, netlink.ConntrackTableFlush(netlink.ConntrackTable)) }

func TestDeleteFlows_FiltersByAddressProtocolAndPort(t *testing.T) {
	ap := netip.MustParseAddrPort
	for name, remove := range map[string]func(...ctFilter) error{
		"by the kernel": func(f ...ctFilter) error { return deleteFlows("", f...) },
		"one by one": func(f ...ctFilter) error {
			conn, err := dialNetfilter("")
			must(t, err)
			defer conn.Close()
			for _, f := range f {
				must(t, deleteOneByOne(conn, f.family(), []ctFilter{f}))
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				filter ctFilter
				left   int
			}{
				{ctFilter{answering: netip.MustParseAddr("100.64.0.2")}, 7},
				{ctFilter{answering: netip.MustParseAddr("100.64.0.2"), protocol: unix.IPPROTO_UDP}, 8},
				{ctFilter{answering: netip.MustParseAddr("fd00::2")}, 7},
				{ctFilter{answering: netip.MustParseAddr("fd00::2"), protocol: unix.IPPROTO_UDP}, 8},
				{ctFilter{answering: netip.MustParseAddr("100.64.0.9")}, 9},
				{ctFilter{protocol: unix.IPPROTO_UDP, untranslatedTo: 8080}, 6},
				{ctFilter{protocol: unix.IPPROTO_UDP, untranslatedTo: 8080, ipv6: true}, 7},
			} {
				clearFlows(t)
				for n, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
					addFlow(t, protocol, ap(fmt.Sprintf("10.1.1.1:%d", 1000+n)), ap("10.0.0.1:8080"), ap("100.64.0.2:80"))
					addFlow(t, protocol, ap(fmt.Sprintf("10.1.1.1:%d", 2000+n)), ap("10.0.0.1:8080"), ap("100.64.0.3:80"))
					addFlow(t, protocol, ap(fmt.Sprintf("[fd01::1]:%d", 1000+n)), ap("[fd01::9]:8080"), ap("[fd00::2]:80"))
					addFlow(t, protocol, ap(fmt.Sprintf("[fd01::1]:%d", 2000+n)), ap("[fd01::9]:8080"), ap("[fd00::3]:80"))
				}
				addFlow(t, unix.IPPROTO_UDP, ap("10.1.1.1:3000"), ap("10.0.0.1:8080"), ap("10.0.0.1:8080"))
				must(t, remove(c.filter))
				if n := flows(t, "", func(*netlink.ConntrackFlow) bool { return true }); n != c.left {
					t.Errorf("%+v: %d entries are left, want %d", c.filter, n, c.left)
				}
			}
			clearFlows(t)
			var many []ctFilter
			for n := range 3 * maxWalks {
				addFlow(t, unix.IPPROTO_TCP, ap("10.1.1.1:1000"), ap(fmt.Sprintf("10.0.0.1:%d", 8000+n)), ap(fmt.Sprintf("100.64.0.%d:80", n)))
				many = append(many, ctFilter{answering: netip.MustParseAddr(fmt.Sprintf("100.64.0.%d", n))})
			}
			must(t, remove(many[1:]...))
			if n := flows(t, "", func(*netlink.ConntrackFlow) bool { return true }); n != 1 {
				t.Errorf("many filters: %d entries are left, want 1", n)
			}
			clearFlows(t)
		})
	}
}

func TestDeleteFlows_KernelLetsNoneBeSeen_IsNoError(t *testing.T) {
	here, err := dialNetfilter("")
	must(t, err)
	defer here.Close()
	if !hasTrackingTable(here) {
		t.Error("this kernel's entries can be seen, and it is not noticed")
	}
	answering := func(code unix.Errno) func(string) (*mdl.Conn, error) {
		return func(string) (*mdl.Conn, error) {
			return nltest.Dial(func(req []mdl.Message) ([]mdl.Message, error) { return nltest.Error(int(code), req) }), nil
		}
	}
	for _, filters := range [][]ctFilter{
		{{answering: netip.MustParseAddr("100.64.0.2")}},
		{{answering: netip.MustParseAddr("fd00::2")}},
		{{protocol: unix.IPPROTO_UDP, untranslatedTo: 53}, {protocol: unix.IPPROTO_UDP, untranslatedTo: 53, ipv6: true}},
	} {
		if err := deleteFlowsThrough(answering(unix.EINVAL), "", filters...); err != nil {
			t.Errorf("%v: %v", filters, err)
		}
		if err := deleteFlowsThrough(answering(unix.EPERM), "", filters...); err == nil {
			t.Errorf("%v: not permitted, and no error", filters)
		}
	}
}
