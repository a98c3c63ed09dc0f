package ingress

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	vip4, vip6 = netip.MustParseAddr("10.0.7.2"), netip.MustParseAddr("fd77::2")
	subnet4    = "10.0.7."
	subnet6    = "fd77::"
)

// overlay is containers on one switch, as an overlay network joins them.
type overlay struct {
	t    testing.TB
	lab  *lab
	pods []string
}

func newOverlay(t testing.TB, n int) *overlay {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir()}
	t.Cleanup(func() {
		for _, path := range l.paths {
			must(t, unix.Unmount(path, unix.MNT_DETACH))
		}
	})
	l.wire = l.namespace("wire")
	must(t, in(l.wire, func() error {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch", TxQLen: -1}}))
		up(t, "switch")
		must(t, os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-ip6tables", []byte("0"), 0))
		return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0)
	}))
	o := &overlay{t: t, lab: l}
	for i := range n {
		name := fmt.Sprintf("c%d", i)
		ns := l.namespace(name)
		l.plug(ns, name, o.addr(i), o.addr6(i))
		o.pods = append(o.pods, ns)
		serveIn(t, ns, name)
		if i > 0 {
			eventually(t, "containers reach one another", func() bool {
				_, err := get(ns, "tcp", net.JoinHostPort(o.addr(0).String(), "80"))
				_, err6 := get(ns, "tcp", net.JoinHostPort(o.addr6(0).String(), "80"))
				return err == nil && err6 == nil
			})
		}
	}
	return o
}

func (o *overlay) addr(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("%s%d", subnet4, 10+i))
}
func (o *overlay) addr6(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("%s%d", subnet6, 10+i))
}

func (o *overlay) open(i int) *VIPs {
	o.t.Helper()
	v, err := OpenVIPs(o.pods[i], VIPConfig{Logger: slog.New(slog.DiscardHandler)})
	must(o.t, err)
	o.t.Cleanup(v.Close)
	return v
}

// vips stand for the containers.
func (o *overlay) vips(containers ...int) []VIP {
	out := []VIP{{Address: vip4}, {Address: vip6}}
	for _, i := range containers {
		out[0].Backends = append(out[0].Backends, Backend{o.addr(i), 100})
		out[1].Backends = append(out[1].Backends, Backend{o.addr6(i), 100})
	}
	return out
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func TestVIP_EveryPortAndProtocolLeadsToABackend_ItselfToo(t *testing.T) {
	o := newOverlay(t, 3)
	v := o.open(0)
	must(t, v.Apply(VIPUpdate{Full: true, VIPs: o.vips(0, 1, 2)}))
	for _, vip := range []netip.Addr{vip4, vip6} {
		if seen := who(t, o.pods[0], at(vip, 80), 60); len(seen) != 3 || seen["c0"] < 8 || seen["c1"] < 8 || seen["c2"] < 8 {
			t.Errorf("%s: answered by %v", vip, seen)
		}
		for range 5 {
			if got, err := get(o.pods[0], "udp", at(vip, 53)); err != nil || !strings.HasPrefix(got, "c") {
				t.Errorf("%s: udp: %q, %v", vip, got, err)
			}
		}
		if got, err := get(o.pods[0], "tcp", at(vip, 81)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: a port that nobody listens on: %q, %v", vip, got, err)
		}
	}
	must(t, v.Apply(VIPUpdate{VIPs: o.vips(0)}))
	for _, vip := range []netip.Addr{vip4, vip6} {
		if got, err := get(o.pods[0], "tcp", at(vip, 80)); err != nil || !strings.HasPrefix(got, "c0 ") {
			t.Errorf("%s: itself: %q, %v", vip, got, err)
		}
	}
	for network, to := range map[string]netip.Addr{"ip4:icmp": vip4, "ip6:ipv6-icmp": vip6} {
		for _, backends := range [][]int{{0}, {1, 2}} {
			must(t, v.Apply(VIPUpdate{VIPs: o.vips(backends...)}))
			if err := ping(o.pods[0], network, to); err != nil {
				t.Errorf("ping %s with backends %v: %v", to, backends, err)
			}
		}
	}
}

// ping sends one echo request and waits for the answer from the address itself.
func ping(ns, network string, to netip.Addr) error {
	return in(ns, func() error {
		c, err := net.Dial(network, to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		request, answer := []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}, byte(0)
		if to.Is6() {
			request, answer = []byte{128, 0, 0, 0, 0, 1, 0, 1}, 129 // the kernel fills in the checksum
		}
		if _, err := c.Write(request); err != nil {
			return err
		}
		b := make([]byte, 200)
		for {
			n, err := c.Read(b) // what comes from the address, requests of the container to itself among it
			if err != nil {
				return err
			}
			if to.Is4() && n > 20 && b[20] == answer || to.Is6() && n > 0 && b[0] == answer { // IPv4 comes with its header
				return nil
			}
		}
	})
}

func TestVIP_WithoutBackendsOrGone_IsRefusedAtOnce(t *testing.T) {
	o := newOverlay(t, 2)
	v := o.open(0)
	must(t, v.Apply(VIPUpdate{Full: true, VIPs: o.vips()}))
	refused := func(when string) {
		t.Helper()
		for _, vip := range []netip.Addr{vip4, vip6} {
			for _, to := range []struct {
				network string
				port    uint16
			}{{"tcp", 80}, {"udp", 53}} {
				if got, err := get(o.pods[0], to.network, at(vip, to.port)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s: %s %s: %q, %v; want it refused", when, to.network, vip, got, err)
				}
			}
		}
	}
	refused("no backend")
	must(t, v.Apply(VIPUpdate{VIPs: o.vips(1)}))
	if got, err := get(o.pods[0], "udp", at(vip4, 53)); err != nil || !strings.HasPrefix(got, "c1 ") {
		t.Errorf("with a backend: %q, %v", got, err)
	}
	must(t, v.Apply(VIPUpdate{Removed: []netip.Addr{vip4, vip6}}))
	must(t, v.Flush(o.addr(1), true))
	must(t, v.Flush(o.addr6(1), true))
	refused("gone")
	must(t, v.Apply(VIPUpdate{VIPs: o.vips(1), Removed: []netip.Addr{vip4}}))
	if got, err := get(o.pods[0], "tcp", at(vip4, 80)); err != nil || !strings.HasPrefix(got, "c1 ") {
		t.Errorf("back: %q, %v", got, err)
	}
	must(t, v.Apply(VIPUpdate{Full: true}))
	refused("a full update without it")
}

func TestVIP_BackendFlushed_ActiveClientIsReset_OthersGoOn(t *testing.T) {
	o := newOverlay(t, 3)
	v := o.open(0)
	must(t, v.Apply(VIPUpdate{Full: true, VIPs: o.vips(1)}))
	_, to1 := established(t, o.pods[0], at(vip4, 80))
	_, to1v6 := established(t, o.pods[0], at(vip6, 80))
	must(t, v.Apply(VIPUpdate{VIPs: o.vips(2)}))
	_, to2 := established(t, o.pods[0], at(vip4, 80))
	must(t, to1())
	must(t, v.Flush(o.addr(1), true))
	must(t, to1())
	must(t, v.Flush(o.addr(1), false))
	must(t, v.Flush(o.addr6(1), false))
	for name, echo := range map[string]func() error{"IPv4": to1, "IPv6": to1v6} {
		if err := echo(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("%s: the backend is gone: %v; want a reset", name, err)
		}
	}
	must(t, to2())
}

func TestVIP_Resolver_IsWhere127_0_0_11Leads(t *testing.T) {
	o := newOverlay(t, 1)
	var pc net.PacketConn
	var li net.Listener
	must(t, in(o.pods[0], func() (err error) {
		if pc, err = net.ListenPacket("udp", "127.0.0.11:0"); err != nil {
			return err
		}
		li, err = net.Listen("tcp", "127.0.0.11:0")
		return err
	}))
	defer pc.Close()
	defer li.Close()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo([]byte("udp"), from)
		}
	}()
	go func() {
		for {
			c, err := li.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("tcp"))
			_ = c.Close()
		}
	}()
	v, err := OpenVIPs(o.pods[0], VIPConfig{Logger: slog.New(slog.DiscardHandler),
		ResolverUDP: uint16(pc.LocalAddr().(*net.UDPAddr).Port), ResolverTCP: uint16(li.Addr().(*net.TCPAddr).Port)})
	must(t, err)
	defer v.Close()
	for _, network := range []string{"udp", "tcp"} {
		if got, err := get(o.pods[0], network, "127.0.0.11:53"); err != nil || got != network {
			t.Errorf("%s: %q, %v", network, got, err)
		}
	}
}

func TestVIP_RestartAndRepair(t *testing.T) {
	o := newOverlay(t, 2)
	v := o.open(0)
	other := netip.MustParseAddr("10.0.7.3")
	must(t, v.Apply(VIPUpdate{Full: true, VIPs: append(o.vips(1), VIP{Address: other})}))
	slots, handles := fmt.Sprint(v.held), tableHandles(t, v.kernel, v.table.inet)
	v.Close()
	if err := v.Apply(VIPUpdate{}); err == nil {
		t.Error("closed VIPs were changed")
	}
	again := o.open(0)
	if fmt.Sprint(again.held) != slots {
		t.Errorf("after a restart: %v, were %s", again.held, slots)
	}
	if now := tableHandles(t, again.kernel, again.table.inet); now != handles || now == "" {
		t.Errorf("after a restart the table is another one, %s, was %s: connections that began meanwhile may have been refused", now, handles)
	}
	works := func(when string) {
		t.Helper()
		for _, vip := range []netip.Addr{vip4, vip6} {
			if got, err := get(o.pods[0], "tcp", at(vip, 80)); err != nil || !strings.HasPrefix(got, "c1 ") {
				t.Errorf("%s: %s: %q, %v", when, vip, got, err)
			}
		}
	}
	works("after a restart")
	for name, hurt := range map[string]func(*nftables.Conn){
		"the table deleted": func(c *nftables.Conn) { c.DelTable(again.table.inet) },
		"a map emptied":     func(c *nftables.Conn) { c.FlushSet(again.table.backends[0]) },
		"rules flushed":     func(c *nftables.Conn) { c.FlushChain(&nftables.Chain{Name: "out-nat", Table: again.table.inet}) },
	} {
		must(t, in(o.pods[0], func() error {
			c, err := nftables.New()
			must(t, err)
			hurt(c)
			return c.Flush()
		}))
		must(t, again.Check())
		works(name)
	}
	must(t, in(o.pods[0], func() error {
		c, err := nftables.New()
		must(t, err)
		c.DelTable(again.table.inet)
		return c.Flush()
	}))
	must(t, again.Apply(VIPUpdate{VIPs: o.vips(0, 1)}))
	must(t, again.Apply(VIPUpdate{VIPs: o.vips(1)}))
	works("changed after the table was deleted")
	if err := again.Apply(VIPUpdate{VIPs: []VIP{{Address: vip4, Backends: []Backend{{o.addr6(1), 1}}}}}); err == nil {
		t.Error("a backend of the other family was taken")
	}
}

func TestApplyVIPs_NamespacesInDifferentStates_AllFollow(t *testing.T) {
	o := newOverlay(t, 3)
	var all []*VIPs
	for i := range o.pods {
		all = append(all, o.open(i))
	}
	must(t, ApplyVIPs(all, VIPUpdate{Full: true, VIPs: o.vips(0, 1)}))
	must(t, all[2].Apply(VIPUpdate{VIPs: o.vips(2)}))
	for _, backends := range [][]int{{0, 1, 2}, {1, 2}, {1}, {}, {0}} {
		must(t, ApplyVIPs(all, VIPUpdate{VIPs: o.vips(backends...)}))
		for i, v := range all {
			have, err := v.table.read(v.kernel)
			must(t, err)
			for _, vip := range []netip.Addr{vip4, vip6} {
				seen := map[netip.Addr]bool{}
				for _, a := range have[vip] {
					seen[a] = true
				}
				if len(seen) != len(backends) || fmt.Sprint(have[vip]) != fmt.Sprint(v.held[vip]) {
					t.Errorf("namespace %d, backends %v: the kernel leads %s to %v, noted is %v", i, backends, vip, have[vip], v.held[vip])
				}
			}
		}
	}
	for _, ns := range o.pods {
		if got, err := get(ns, "tcp", at(vip4, 80)); err != nil || !strings.HasPrefix(got, "c0 ") {
			t.Errorf("%q, %v", got, err)
		}
	}
	all[1].Close()
	if err := ApplyVIPs(all, VIPUpdate{VIPs: o.vips(2)}); err == nil {
		t.Error("closed VIPs were changed")
	}
	if got, err := get(o.pods[2], "tcp", at(vip4, 80)); err != nil || !strings.HasPrefix(got, "c2 ") {
		t.Errorf("behind a closed one: %q, %v", got, err)
	}
}
