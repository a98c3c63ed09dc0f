package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const inside = "SWARMD_INGRESS_TEST_INSIDE"

// TestMain runs the tests again in network and mount namespaces of their own, which are the first host of the test and
// vanish with it.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("skipped: network namespaces need root")
		return
	}
	if os.Getenv(inside) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

const (
	testGroup = 0x5d17
	testTable = 0x5d5d
	testVNI   = 1
	testPort  = 4789
	testFab   = "swarm-fab"
)

var (
	testPrefix6 = netip.MustParsePrefix("fd5d:1:2:3:4:5::/96")
	testPool    = netip.MustParsePrefix("100.64.0.0/10")
	clientAddr  = netip.MustParseAddr("10.99.0.9")
	clientAddr6 = netip.MustParseAddr("fd99::9")
)

// lab is hosts and a client on one wire. The first host is the namespace of the test itself.
type lab struct {
	t      testing.TB
	dir    string
	wire   string // namespace of the switch
	client string
	hosts  []*host
	paths  []string // of all namespaces
}

type host struct {
	*Ingress
	lab      *lab
	ns       string // "" = the test's
	number   uint32
	address  netip.Addr
	address6 netip.Addr
	block    netip.Prefix
	pods     []*pod
}

type pod struct {
	id   string
	ns   string
	addr netip.Addr
	host *host
}

func newLab(t testing.TB, hosts int) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir()}
	t.Cleanup(func() {
		for _, h := range l.hosts {
			if h.Ingress == nil {
				continue
			}
			must(t, in(h.ns, func() error { return h.Teardown() }))
			h.Close()
			must(t, in(h.ns, func() error { return assertClean() }))
		}
		_ = in("", func() error {
			names := []string{testFab, "swarm-up", "eth9"}
			for _, p := range l.hosts[0].pods {
				names = append(names, "u-"+p.id)
			}
			for _, name := range names {
				if link, err := netlink.LinkByName(name); err == nil {
					_ = netlink.LinkDel(link)
				}
			}
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				rules, _ := netlink.RuleListFiltered(family, &netlink.Rule{Table: testTable}, netlink.RT_FILTER_TABLE)
				for _, r := range rules {
					r.Family = family
					_ = netlink.RuleDel(&r)
				}
			}
			return nil
		})
		for _, path := range l.paths {
			must(t, unix.Unmount(path, unix.MNT_DETACH))
		}
	})
	l.wire, l.client = l.namespace("wire"), l.namespace("client")
	must(t, in(l.wire, func() error {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch", TxQLen: -1}}))
		up(t, "switch")
		return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0)
	}))
	l.plug(l.client, "client", clientAddr, clientAddr6)
	for n := range hosts {
		l.addHost(uint32(n + 1))
	}
	for _, h := range l.hosts {
		must(t, in(h.ns, func() error { h.joinFabric(); return nil }))
		h.start()
		eventually(t, "the host answers", func() bool {
			_, err := get(l.client, "tcp", h.at(9))
			_, err6 := get(l.client, "tcp", h.at6(9))
			return errors.Is(err, syscall.ECONNREFUSED) && errors.Is(err6, syscall.ECONNREFUSED)
		})
	}
	return l
}

func (l *lab) namespace(name string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	must(l.t, os.WriteFile(path, nil, 0o600))
	must(l.t, onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}))
	must(l.t, in(path, func() error { up(l.t, "lo"); return nil }))
	l.paths = append(l.paths, path)
	return path
}

// plug connects a namespace to the wire as eth9.
func (l *lab) plug(ns, port string, a, a6 netip.Addr) {
	l.t.Helper()
	must(l.t, in(l.wire, func() error {
		must(l.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MTU: 1500, TxQLen: -1}, PeerName: "to-" + port}))
		link, err := netlink.LinkByName(port)
		must(l.t, err)
		sw, err := netlink.LinkByName("switch")
		must(l.t, err)
		must(l.t, netlink.LinkSetMaster(link, sw))
		up(l.t, port)
		peer, err := netlink.LinkByName("to-" + port)
		must(l.t, err)
		f, err := os.Open(nsPath(ns))
		must(l.t, err)
		defer f.Close()
		return netlink.LinkSetNsFd(peer, int(f.Fd()))
	}))
	must(l.t, in(ns, func() error {
		link, err := netlink.LinkByName("to-" + port)
		must(l.t, err)
		must(l.t, netlink.LinkSetName(link, "eth9"))
		up(l.t, "lo")
		up(l.t, "eth9")
		address(l.t, "eth9", a, 24)
		address(l.t, "eth9", a6, 64)
		return nil
	}))
}

func nsPath(ns string) string {
	if ns == "" {
		return fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	}
	return ns
}

func (l *lab) addHost(number uint32) {
	l.t.Helper()
	h := &host{
		lab: l, number: number, block: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(number - 1), 0}), 24),
		address: netip.AddrFrom4([4]byte{10, 99, 0, byte(number)}), address6: netip.MustParseAddr(fmt.Sprintf("fd99::%d", number)),
	}
	if number > 1 {
		h.ns = l.namespace(fmt.Sprintf("host%d", number))
	}
	l.plug(h.ns, fmt.Sprintf("host%d", number), h.address, h.address6)
	must(l.t, in(h.ns, func() error {
		for path, v := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0"} {
			must(l.t, os.WriteFile("/proc/sys/net/"+path, []byte(v), 0))
		}
		must(l.t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "swarm-up", TxQLen: -1}}))
		up(l.t, "swarm-up")
		address(l.t, "swarm-up", h.gateway(), 32)
		address(l.t, "swarm-up", h.gateway6(), 128)
		return nil
	}))
	l.hosts = append(l.hosts, h)
}

func (h *host) gateway() netip.Addr  { return h.block.Addr().Next() }
func (h *host) gateway6() netip.Addr { return swarmpb.Address6(testPrefix6, h.gateway()) }

func mark(number uint32) uint32 { return number << bits.TrailingZeros32(DefaultMarkMask) }

func fabMAC(number uint32) net.HardwareAddr {
	m := mark(number)
	return net.HardwareAddr{0x02, 0x5d, byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}

// joinFabric makes what worker/network does: the device, the ways to the peers, and the way of replies.
func (h *host) joinFabric() {
	t := h.lab.t
	must(t, netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: testFab, MTU: 1430, TxQLen: -1, HardwareAddr: fabMAC(h.number)},
		VxlanId: testVNI, SrcAddr: h.address.AsSlice(), Port: testPort}))
	up(t, testFab)
	link, err := netlink.LinkByName(testFab)
	must(t, err)
	index := link.Attrs().Index
	neigh := func(family int, flags int, ip netip.Addr, mac net.HardwareAddr) {
		must(t, netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: family, Flags: flags, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: mac}))
	}
	for _, p := range h.lab.hosts {
		if p == h {
			continue
		}
		neigh(unix.AF_BRIDGE, netlink.NTF_SELF, p.address, fabMAC(p.number))
		for _, r := range []struct{ to, gw, src netip.Prefix }{
			{p.block, netip.PrefixFrom(p.gateway(), 32), netip.PrefixFrom(h.gateway(), 32)},
			{twinPrefix(testPrefix6, p.block), netip.PrefixFrom(p.gateway6(), 128), netip.PrefixFrom(h.gateway6(), 128)},
		} {
			neigh(familyID(r.gw.Addr()), 0, r.gw.Addr(), fabMAC(p.number))
			must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(r.to), Gw: r.gw.Addr().AsSlice(), Src: r.src.Addr().AsSlice(), Flags: int(netlink.FLAG_ONLINK)}))
		}
	}
	mask := uint32(DefaultMarkMask)
	for _, via := range []string{"169.254.93.1", "fe80::5d"} {
		a := netip.MustParseAddr(via)
		neigh(familyID(a), 0, a, fabMAC(0))
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if a.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(all), Gw: a.AsSlice(), Table: testTable, Flags: int(netlink.FLAG_ONLINK)}))
		const actNop = 3
		local, reply, end := netlink.NewRule(), netlink.NewRule(), netlink.NewRule()
		local.Priority, local.IifName, local.Goto = 31999, "lo", 32001
		reply.Priority, reply.Mask, reply.Invert, reply.Table = 32000, &mask, true, testTable
		end.Priority, end.Type = 32001, actNop
		for _, r := range []*netlink.Rule{end, local, reply} {
			r.Family = familyID(a)
			if err := netlink.RuleAdd(r); !errors.Is(err, unix.EEXIST) {
				must(t, err)
			}
		}
	}
	loadTestEgress(t)
}

func loadTestEgress(t testing.TB) {
	conn, err := nftables.New()
	must(t, err)
	table := conn.AddTable(&nftables.Table{Name: "fabric-test", Family: nftables.TableFamilyNetdev})
	chain := conn.AddChain(&nftables.Chain{Name: "replies", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookEgress, Priority: nftables.ChainPriorityFilter, Device: testFab})
	load := func() *expr.Meta { return &expr.Meta{Key: expr.MetaKeyMARK, Register: 1} }
	and := func(mask uint32) *expr.Bitwise {
		return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)}
	}
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		load(), and(DefaultMarkMask), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 2, Len: 4},
		load(), and(0xffffffff &^ DefaultMarkMask), &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}})
	must(t, conn.Flush())
}

func familyID(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// start makes the host's Ingress and tells it of all hosts.
func (h *host) start() {
	t := h.lab.t
	t.Helper()
	var err error
	logger := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	must(t, in(h.ns, func() error {
		h.Ingress, err = New(Config{Logger: logger, UplinkGroup: testGroup, FabricLink: testFab, ReplyRule: 32000})
		if err != nil {
			return err
		}
		if err := h.Configure(h.place()); err != nil {
			return err
		}
		if err := h.SetPods(h.addresses()); err != nil {
			return err
		}
		return h.SetNodes(h.lab.nodes())
	}))
}

func (h *host) place() Host {
	return Host{Number: h.number, Block: h.block, Pool: testPool, Prefix6: testPrefix6, DataPathPort: testPort}
}

func (l *lab) nodes() []Node {
	var out []Node
	for _, h := range l.hosts {
		out = append(out, Node{ID: fmt.Sprintf("node%d", h.number), Number: h.number, Address: h.address, Others: []netip.Addr{h.address6}, MAC: fabMAC(h.number)})
	}
	return out
}

func (h *host) addresses() []netip.Addr {
	var out []netip.Addr
	for _, p := range h.pods {
		out = append(out, p.addr)
	}
	return out
}

// pod makes a task's namespace as worker/network does, with a server that tells its name and the client's address.
func (h *host) pod(id string) *pod {
	t := h.lab.t
	t.Helper()
	p := &pod{id: id, ns: h.lab.namespace(id), host: h}
	b := h.block.Addr().As4()
	b[3] = byte(2 + len(h.pods))
	p.addr = netip.AddrFrom4(b)
	name := "u-" + id
	must(t, in(h.ns, func() error {
		f, err := os.Open(p.ns)
		must(t, err)
		defer f.Close()
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1430, Group: testGroup, TxQLen: -1}, PeerName: "eth0", PeerNamespace: netlink.NsFd(f.Fd())}))
		up(t, name)
		address(t, name, netip.MustParseAddr("fe80::1"), 64)
		link, err := netlink.LinkByName(name)
		must(t, err)
		for _, a := range []netip.Addr{p.addr, p.addr6()} {
			must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), Scope: netlink.SCOPE_LINK}))
		}
		return nil
	}))
	must(t, in(p.ns, func() error {
		up(t, "eth0")
		address(t, "eth0", p.addr, 32)
		address(t, "eth0", p.addr6(), 128)
		link, err := netlink.LinkByName("eth0")
		must(t, err)
		i := link.Attrs().Index
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: i, Dst: ipNet(netip.PrefixFrom(h.gateway(), 32)), Scope: netlink.SCOPE_LINK}))
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: i, Gw: h.gateway().AsSlice()}))
		return netlink.RouteAdd(&netlink.Route{LinkIndex: i, Gw: net.ParseIP("fe80::1")})
	}))
	h.pods = append(h.pods, p)
	if h.Ingress != nil {
		must(t, in(h.ns, func() error { return h.SetPods(h.addresses()) }))
	}
	p.serve()
	// A link that was opened before its peer may take a second to send.
	eventually(t, "the pod answers", func() bool {
		_, err := get(h.ns, "tcp", net.JoinHostPort(p.addr.String(), "80"))
		_, err6 := get(h.ns, "tcp", net.JoinHostPort(p.addr6().String(), "80"))
		return err == nil && err6 == nil
	})
	return p
}

func (p *pod) addr6() netip.Addr { return swarmpb.Address6(testPrefix6, p.addr) }

// serve answers TCP on 80 and UDP on 53: the pod's ID and the client's address. A TCP client that sends something gets it back after that.
func (p *pod) serve() { serveIn(p.host.lab.t, p.ns, p.id) }

func serveIn(t testing.TB, ns, id string) {
	t.Helper()
	must(t, in(ns, func() error {
		li, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		pc, err := net.ListenPacket("udp", ":53")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = li.Close(); _ = pc.Close() })
		go func() {
			for {
				c, err := li.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = fmt.Fprintf(c, "%s %s\n", id, plain(c.RemoteAddr()))
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		go func() {
			b := make([]byte, 2000)
			for {
				_, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo([]byte(id+" "+plain(from)), from)
			}
		}()
		return nil
	}))
}

func plain(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return ap.Addr().Unmap().String()
}

// get connects from a namespace and returns the server's line.
func get(ns, network, to string) (string, error) { return getWithin(ns, network, to, time.Second) }

func getWithin(ns, network, to string, within time.Duration) (string, error) {
	var line string
	err := in(ns, func() error {
		c, err := net.DialTimeout(network, to, within)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(within))
		if strings.HasPrefix(network, "udp") {
			_, _ = c.Write([]byte("hello"))
		}
		b := make([]byte, 200)
		n, err := c.Read(b)
		line = strings.TrimSpace(string(b[:n]))
		return err
	})
	return line, err
}

func (h *host) at(port int) string  { return netip.AddrPortFrom(h.address, uint16(port)).String() }
func (h *host) at6(port int) string { return netip.AddrPortFrom(h.address6, uint16(port)).String() }

// tell applies an update on all hosts.
func (l *lab) tell(u Update) {
	l.t.Helper()
	for _, h := range l.hosts {
		must(l.t, in(h.ns, func() error { return h.Apply(u) }))
	}
}

func (p *pod) endpoint(service string, state swarmpb.EndpointState) *swarmpb.Endpoint {
	return &swarmpb.Endpoint{TaskId: p.id, ServiceId: service, NodeId: fmt.Sprintf("node%d", p.host.number), State: state, Address: p.addr.String()}
}

const (
	active   = swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE
	draining = swarmpb.EndpointState_ENDPOINT_STATE_DRAINING
	starting = swarmpb.EndpointState_ENDPOINT_STATE_STARTING
	tcp      = swarmpb.Protocol_PROTOCOL_TCP
	udp      = swarmpb.Protocol_PROTOCOL_UDP
	sctp     = swarmpb.Protocol_PROTOCOL_SCTP
)

func publishing(id string, ports ...*swarmpb.PortConfig) *swarmpb.AssignedService {
	return &swarmpb.AssignedService{Id: id, Name: id, Ports: ports}
}

func port(protocol swarmpb.Protocol, published, target uint32) *swarmpb.PortConfig {
	return &swarmpb.PortConfig{Protocol: protocol, PublishedPort: published, TargetPort: target, Mode: swarmpb.PublishMode_PUBLISH_MODE_INGRESS}
}

func assertClean() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, table := range tables {
		if table.Name == Table {
			return fmt.Errorf("nftables table %s is left behind", Table)
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if r.Protocol == resetProtocol {
				return fmt.Errorf("policy rule %v is left behind", r)
			}
		}
	}
	return nil
}

// in runs fn in a namespace, on a thread that is thrown away; "" = the test's own.
func in(ns string, fn func() error) error {
	if ns == "" {
		return fn()
	}
	return onThread(func() error {
		f, err := os.Open(ns)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}

func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("ended early")
		defer func() { done <- err }()
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err = onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		err = fn()
	}()
	return <-done
}

func up(t testing.TB, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
}

func address(t testing.TB, name string, a netip.Addr, length int) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, length)), Flags: unix.IFA_F_NODAD}))
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for what must become true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within 30 s", what)
		case <-tick.C:
		}
	}
}

func netipAddrPort(p *pod, port uint16) netip.AddrPort { return netip.AddrPortFrom(p.addr, port) }
