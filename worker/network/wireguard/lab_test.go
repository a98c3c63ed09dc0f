package wireguard

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// asNode makes a test binary a node of a lab: a process in a network namespace of its own, as its name there.
const asNode = "SWARMD_WIREGUARD_TEST_NODE"

func TestMain(m *testing.M) {
	if os.Getenv(asNode) != "" {
		(&member{}).run(os.Stdin, os.Stdout)
		return
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// prefix6 is the cluster's of the tests, wire the underlay between its two hosts.
var (
	prefix6 = netip.MustParsePrefix("fd5d:1:2:3::/96")
	wire    = []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24"), netip.MustParsePrefix("10.99.0.2/24")}
)

const (
	needle    = "this is the plain text of a secret"
	appPort   = 9000
	vxlanName = "vx"
	patience  = 30 * time.Second
)

// order is what the test has a node do, answer what came of it.
type order struct {
	Do       string
	Dir      string
	Port     uint16
	Address  netip.Prefix
	Peers    []Peer
	To       netip.AddrPort
	Local    netip.Addr
	Duration time.Duration
}

type answer struct {
	Err   string
	Text  string
	Key   []byte
	Bytes int64
	CPU   time.Duration
	Lines []string
}

// member is a node, within its process.
type member struct {
	device  *Device
	hog     *net.UDPConn
	inbox   chan string
	frames  atomic.Int64
	plain   atomic.Int64
	strange atomic.Int64
	sunk    atomic.Int64
}

func (m *member) run(in io.Reader, out io.Writer) {
	orders, answers := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var o order
		if orders.Decode(&o) != nil {
			return // the test has ended
		}
		a, err := m.do(o)
		if err != nil {
			a.Err = err.Error()
		}
		if answers.Encode(a) != nil {
			return
		}
	}
}

func (m *member) do(o order) (a answer, err error) {
	switch o.Do {
	case "open":
		m.device, err = Open(Config{Dir: o.Dir, Port: o.Port, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if err == nil {
			a.Key, a.Text = m.device.PublicKey(), m.device.Kind()
		}
	case "configure":
		err = m.device.Configure(o.Address, 1500)
	case "peers":
		err = m.device.SetPeers(o.Peers)
	case "rotate":
		err = m.device.Rotate()
		a.Key = m.device.PublicKey()
	case "check":
		err = m.device.Check()
	case "close":
		m.device.Close()
	case "teardown":
		err = m.device.Teardown()
	case "state":
		a.Lines, err = state()
	case "hog": // the tunnel's port
		m.hog, err = net.ListenUDP("udp", &net.UDPAddr{Port: DefaultPort})
	case "unlink":
		err = removeLink()
	case "listen":
		err = m.listen()
	case "received":
		a.Text = m.received(o.Duration)
	case "send":
		err = send(o.To, needle)
	case "capture":
		err = m.capture()
	case "captured":
		a.Lines = []string{fmt.Sprint(m.frames.Load()), fmt.Sprint(m.plain.Load()), fmt.Sprint(m.strange.Load())}
	case "vxlan":
		err = vxlan(o.Local, o.To.Addr(), o.Address)
	case "sink":
		err = m.sink()
	case "sunk":
		a.Bytes, a.CPU = m.sunk.Swap(0), used()
	case "stream":
		a.Bytes, err = stream(o.To, o.Duration)
		a.CPU = used()
	default:
		err = fmt.Errorf("no order %q", o.Do)
	}
	return a, err
}

// state is what of ours the kernel and the process hold.
func state() ([]string, error) {
	var out []string
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Attrs().Name == Link {
			out = append(out, fmt.Sprintf("link mtu %d", l.Attrs().MTU))
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if strings.HasPrefix(a.IP.String(), "fd5d:") {
			out = append(out, "address "+a.IPNet.String())
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Dst != nil && strings.HasPrefix(r.Dst.IP.String(), "fd5d:") && r.Dst.String() != "" {
			out = append(out, fmt.Sprintf("route %s type %d metric %d", r.Dst, r.Type, r.Priority))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (m *member) listen() error {
	c, err := net.ListenUDP("udp", &net.UDPAddr{Port: appPort})
	if err != nil {
		return err
	}
	m.inbox = make(chan string, 64)
	go func() {
		b := make([]byte, 2000)
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			m.inbox <- string(b[:n])
		}
	}()
	return nil
}

func (m *member) received(wait time.Duration) string {
	select {
	case text := <-m.inbox:
		return text
	case <-time.After(wait):
		return ""
	}
}

func send(to netip.AddrPort, text string) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	_, err = c.Write([]byte(text))
	return errors.Join(err, c.Close())
}

// capture counts the frames on the wire: all, those with the needle, and strange ones.
func (m *member) capture() error {
	const all = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return err
	}
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		return err
	}
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				return
			}
			m.frames.Add(1)
			if bytes.Contains(b[:n], []byte(needle)) {
				m.plain.Add(1)
			}
			if strange(b[:n]) {
				m.strange.Add(1)
			}
		}
	}()
	return nil
}

// strange tells whether a frame is of a protocol that users have, but not of the tunnel. ICMP says that a port is closed.
func strange(frame []byte) bool {
	const ethernet, header4, header6 = 14, 20, 40
	var protocol byte
	var rest []byte
	switch {
	case len(frame) > ethernet+header4 && frame[12] == 0x08 && frame[13] == 0:
		protocol, rest = frame[ethernet+9], frame[ethernet+header4:]
	case len(frame) > ethernet+header6 && frame[12] == 0x86 && frame[13] == 0xdd:
		protocol, rest = frame[ethernet+6], frame[ethernet+header6:]
	}
	switch protocol {
	case unix.IPPROTO_UDP:
		return len(rest) < 4 || int(rest[2])<<8|int(rest[3]) != DefaultPort
	case unix.IPPROTO_TCP, unix.IPPROTO_IPV6, unix.IPPROTO_IPIP:
		return true
	}
	return false
}

// vxlan makes a device as an overlay has it, with an address.
func vxlan(local, remote netip.Addr, address netip.Prefix) error {
	if link, err := netlink.LinkByName(vxlanName); err == nil {
		if err := netlink.LinkDel(link); err != nil {
			return err
		}
	}
	underlay, overlay := 1500, 50
	if local.Is6() {
		underlay, overlay = 1500-overhead, 70
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = vxlanName, underlay-overlay
	device := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 7, SrcAddr: local.AsSlice(), Group: remote.AsSlice(), Port: 4789}
	if err := netlink.LinkAdd(device); err != nil {
		return err
	}
	link, err := netlink.LinkByName(vxlanName)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}}), netlink.LinkSetUp(link))
}

func (m *member) sink() error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", appPort))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 1<<18)
			for {
				n, err := c.Read(b)
				if err != nil {
					break
				}
				m.sunk.Add(int64(n))
			}
			_ = c.Close()
		}
	}()
	return nil
}

func stream(to netip.AddrPort, d time.Duration) (int64, error) {
	c, err := net.DialTimeout("tcp", to.String(), patience)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(d))
	b := make([]byte, 1<<17)
	for total := int64(0); ; {
		n, err := c.Write(b)
		total += int64(n)
		if err != nil {
			return total, nil
		}
	}
}

func used() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// host is a node, from the test.
type host struct {
	t       testing.TB
	number  uint32
	dir     string
	cmd     *exec.Cmd
	in      io.WriteCloser
	orders  *json.Encoder
	answers *json.Decoder
	key     []byte
}

// newHost starts a node in a namespace of its own, with nothing but a loopback device.
func newHost(t testing.TB, number uint32, dir string) *host {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	h := &host{t: t, number: number, dir: dir}
	h.start(unix.CLONE_NEWNET)
	h.in6("lo", func(n *netlink.Handle, l netlink.Link) error { return n.LinkSetUp(l) })
	return h
}

func (h *host) start(flags uintptr) {
	h.cmd = exec.Command("/proc/self/exe")
	h.cmd.Env = append(os.Environ(), asNode+"=1")
	h.cmd.Stderr = os.Stderr
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags} // it ends with its input, if not before
	var err error
	h.in, err = h.cmd.StdinPipe()
	must(h.t, err)
	out, err := h.cmd.StdoutPipe()
	must(h.t, err)
	must(h.t, h.cmd.Start())
	h.orders, h.answers = json.NewEncoder(h.in), json.NewDecoder(out)
	h.t.Cleanup(h.stop)
}

func (h *host) stop() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait() // killed
}

// restart kills the node's process and starts another in the same namespace.
func (h *host) restart() {
	h.t.Helper()
	ns, err := netns.GetFromPid(h.cmd.Process.Pid)
	must(h.t, err)
	defer ns.Close()
	h.stop()
	done := make(chan error)
	go func() { // on a thread that has entered the namespace, which the child inherits
		runtime.LockOSThread()
		home, err := netns.Get()
		if err == nil {
			err = netns.Set(ns)
		}
		if err == nil {
			h.start(0)
			err = netns.Set(home)
		}
		if err == nil {
			runtime.UnlockOSThread()
		}
		done <- errors.Join(err, home.Close())
	}()
	must(h.t, <-done)
}

func (h *host) try(o order) (answer, error) {
	h.t.Helper()
	must(h.t, h.orders.Encode(o))
	var a answer
	must(h.t, h.answers.Decode(&a))
	if a.Err != "" {
		return a, errors.New(a.Err)
	}
	return a, nil
}

func (h *host) do(o order) answer {
	h.t.Helper()
	a, err := h.try(o)
	if err != nil {
		h.t.Fatalf("node %d: %s: %v", h.number, o.Do, err)
	}
	return a
}

// in6 runs fn with a handle within the node's namespace.
func (h *host) in6(link string, fn func(*netlink.Handle, netlink.Link) error) {
	h.t.Helper()
	ns, err := netns.GetFromPid(h.cmd.Process.Pid)
	must(h.t, err)
	defer ns.Close()
	n, err := netlink.NewHandleAt(ns)
	must(h.t, err)
	defer n.Close()
	l, err := n.LinkByName(link)
	must(h.t, err)
	must(h.t, fn(n, l))
}

func (h *host) address() netip.Prefix { return Address(prefix6, h.number) }

func (h *host) underlay() netip.Addr { return wire[h.number-1].Addr() }

func (h *host) peer() Peer {
	return Peer{PublicKey: h.key, Endpoint: netip.AddrPortFrom(h.underlay(), DefaultPort), Address: h.address().Addr()}
}

// open opens the tunnel with its address.
func (h *host) open() {
	h.t.Helper()
	a := h.do(order{Do: "open", Dir: h.dir})
	if a.Text != KindKernel && a.Text != KindUserspace {
		h.t.Fatalf("kind %q", a.Text)
	}
	h.key = a.Key
	h.do(order{Do: "configure", Address: h.address()})
}

func (h *host) peers(peers ...Peer) { h.t.Helper(); h.do(order{Do: "peers", Peers: peers}) }

// pair are two hosts with a wire between them.
func pair(t testing.TB) (a, b *host) {
	t.Helper()
	a, b = newHost(t, 1, t.TempDir()), newHost(t, 2, t.TempDir())
	connect(t, a, b)
	return a, b
}

func connect(t testing.TB, a, b *host) {
	t.Helper()
	nsA, err := netns.GetFromPid(a.cmd.Process.Pid)
	must(t, err)
	defer nsA.Close()
	nsB, err := netns.GetFromPid(b.cmd.Process.Pid)
	must(t, err)
	defer nsB.Close()
	inA, err := netlink.NewHandleAt(nsA)
	must(t, err)
	defer inA.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	must(t, inA.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(nsB)}))
	for _, h := range []*host{a, b} {
		h.in6("eth0", func(n *netlink.Handle, l netlink.Link) error {
			p := wire[h.number-1]
			return errors.Join(n.AddrAdd(l, &netlink.Addr{IPNet: netOf(p)}), n.LinkSetUp(l))
		})
	}
}

// reaches sends until the other has it: the first packets are lost while there is no session.
func (h *host) reaches(to *host, why string) {
	h.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		_, err := h.try(order{Do: "send", To: netip.AddrPortFrom(to.address().Addr(), appPort)})
		const pause = 200 * time.Millisecond
		if err == nil && to.do(order{Do: "received", Duration: pause}).Text == needle {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: nothing from node %d arrives at node %d (%v)", why, h.number, to.number, err)
		}
	}
}

// silence drains what is under way, then sends for a while and fails if anything arrives.
func (h *host) silence(to *host, why string) {
	h.t.Helper()
	const pause, tries = 100 * time.Millisecond, 15
	for to.do(order{Do: "received", Duration: pause}).Text != "" {
	}
	for range tries {
		_, _ = h.try(order{Do: "send", To: netip.AddrPortFrom(to.address().Addr(), appPort)}) // refused is as well
		if to.do(order{Do: "received", Duration: pause}).Text != "" {
			h.t.Fatalf("%s: a packet from node %d arrived at node %d", why, h.number, to.number)
		}
	}
}

// defaultRoute leads everything of IPv6 to the other host over the wire.
func defaultRoute(other *host) func(*netlink.Handle, netlink.Link) error {
	return func(n *netlink.Handle, l netlink.Link) error {
		mac := net.HardwareAddr{}
		other.in6("eth0", func(_ *netlink.Handle, there netlink.Link) error { mac = there.Attrs().HardwareAddr; return nil })
		gateway := net.ParseIP("fe80::99")
		return errors.Join(
			n.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: mac}),
			n.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, Gw: gateway, Flags: int(netlink.FLAG_ONLINK)}))
	}
}

// eventually tries until it works.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	const pause = 20 * time.Millisecond
	for deadline := time.Now().Add(patience); ; <-time.After(pause) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
