package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const inside = "SWARMD_NETWORK_TEST_INSIDE"

// TestMain runs the tests again in network and mount namespaces of their own, which are the "host" of the test
// and vanish with it.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("skipped: network namespaces need root")
		return
	}
	if os.Getenv(inside) != "" {
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

var (
	hostAddr   = netip.MustParseAddr("10.99.0.1")
	clientAddr = netip.MustParseAddr("10.99.0.2")
	block      = &swarmpb.NodeConfig{UplinkBlock: "100.64.3.0/24", FabricPool: "100.64.0.0/10"}
)

// lab is a host with a client beside it, in a namespace of its own.
type lab struct {
	*Network
	dir    string
	client string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	l := &lab{dir: t.TempDir(), client: filepath.Join(t.TempDir(), "client")}
	must(t, makeNamespace(l.client, nil))
	t.Cleanup(func() { must(t, removeNamespace(l.client)); must(t, removeLink("wire")) })
	up(t, "lo")
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire", MTU: 1500, TxQLen: -1}, PeerName: "eth0"}))
	addAddr(t, "wire", hostAddr)
	up(t, "wire")
	ns, err := os.Open(l.client)
	must(t, err)
	defer ns.Close()
	peer, err := netlink.LinkByName("eth0")
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, int(ns.Fd())))
	must(t, in(l.client, func() error { up(t, "lo"); addAddr(t, "eth0", clientAddr); up(t, "eth0"); return nil }))
	l.start(t)
	t.Cleanup(func() {
		must(t, l.Teardown(context.Background()))
		l.Close()
		assertClean(t, l.dir)
	})
	return l
}

func (l *lab) start(t *testing.T) {
	t.Helper()
	n, err := New(Config{Dir: l.dir, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	l.Network = n
	must(t, n.Configure(t.Context(), block))
}

func (l *lab) attach(t *testing.T, id string) Attachment {
	t.Helper()
	a, err := l.Attach(t.Context(), Request{TaskID: id})
	must(t, err)
	return a
}

// serve answers every connection in the task's namespace with the name and the client's address.
func serve(t *testing.T, a Attachment, name string) {
	t.Helper()
	must(t, in(a.Namespace, func() error {
		li, err := net.Listen("tcp4", ":80")
		if err != nil {
			return err
		}
		pc, err := net.ListenPacket("udp4", ":53")
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
				_, _ = fmt.Fprintf(c, "%s %s", name, c.RemoteAddr().(*net.TCPAddr).IP)
				_ = c.Close()
			}
		}()
		go func() {
			b := make([]byte, 100)
			for {
				n, from, err := pc.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(append([]byte(name+" "), b[:n]...), from)
			}
		}()
		return nil
	}))
}

// get dials from the namespace ("" = the host) and returns what is answered.
func get(from, to string) (string, error) { return getWithin(from, to, time.Second) }

func getWithin(from, to string, wait time.Duration) (string, error) {
	var out []byte
	call := func() error {
		c, err := net.DialTimeout("tcp", to, wait)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		out, err = io.ReadAll(c)
		return err
	}
	if from == "" {
		return string(out), errors.Join(call(), nil)
	}
	err := in(from, call)
	return string(out), err
}

func TestPublishedPort_AnswersClientHostLoopbackAndTasks_ClientAddressKept(t *testing.T) {
	l := newLab(t)
	web, other := l.attach(t, "webtask000000000000000001"), l.attach(t, "othertask0000000000000002")
	serve(t, web, "web")
	bound, err := l.Publish(t.Context(), "webtask000000000000000001", []*swarmpb.PortConfig{
		{Protocol: swarmpb.Protocol_PROTOCOL_TCP, TargetPort: 80, PublishedPort: 8080},
		{Protocol: swarmpb.Protocol_PROTOCOL_UDP, TargetPort: 53, PublishedPort: 5353},
		{Protocol: swarmpb.Protocol_PROTOCOL_TCP, TargetPort: 80}})
	must(t, err)
	if bound[2].PublishedPort == 0 {
		t.Fatal("a dynamic port was not chosen")
	}
	for _, c := range []struct{ name, from, to, want string }{
		{"client, address kept", l.client, "10.99.0.1:8080", "web 10.99.0.2"},
		{"client, dynamic port", l.client, fmt.Sprintf("10.99.0.1:%d", bound[2].PublishedPort), "web 10.99.0.2"},
		{"another task", other.Namespace, "10.99.0.1:8080", "web " + web.Gateway.String()},
		{"the task itself", web.Namespace, "10.99.0.1:8080", "web " + web.Gateway.String()},
	} {
		got, err := get(c.from, c.to)
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	for _, to := range []string{"10.99.0.1:8080", "127.0.0.1:8080"} {
		conn, err := net.DialTimeout("tcp4", to, time.Second)
		must(t, err)
		got, err := io.ReadAll(conn)
		_ = conn.Close()
		if err != nil || !strings.HasPrefix(string(got), "web ") {
			t.Errorf("from the host to %s: got %q, %v", to, got, err)
		}
	}
	for _, to := range []string{"10.99.0.1:5353", "127.0.0.1:5353"} {
		conn, err := net.Dial("udp4", to)
		must(t, err)
		_, _ = conn.Write([]byte("hello"))
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 50)
		n, err := conn.Read(b)
		_ = conn.Close()
		if err != nil || string(b[:n]) != "web hello" {
			t.Errorf("udp to %s: got %q, %v", to, b[:n], err)
		}
	}
}

func TestUplink_TasksCannotReachOneAnotherDirectly_ButGetOut(t *testing.T) {
	l := newLab(t)
	a, b := l.attach(t, "atask00000000000000000001"), l.attach(t, "btask00000000000000000002")
	serve(t, b, "b")
	if got, err := get(a.Namespace, b.Address.String()+":80"); err == nil {
		t.Errorf("task reached its neighbour over the uplink: %q", got)
	}
	must(t, in(l.client, func() error {
		li, err := net.Listen("tcp4", "10.99.0.2:7000")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = li.Close() })
		go func() {
			c, err := li.Accept()
			if err == nil {
				_, _ = fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).IP)
				_ = c.Close()
			}
		}()
		return nil
	}))
	if got, err := get(a.Namespace, "10.99.0.2:7000"); err != nil || got != hostAddr.String() {
		t.Errorf("egress: got %q, %v; want it masqueraded as %s", got, err, hostAddr)
	}
}

func TestRestart_AttachmentsAndPortsAreKnownAgain(t *testing.T) {
	l := newLab(t)
	id := "webtask000000000000000001"
	first := l.attach(t, id)
	serve(t, first, "web")
	port := []*swarmpb.PortConfig{{Protocol: swarmpb.Protocol_PROTOCOL_TCP, TargetPort: 80, PublishedPort: 8080}}
	_, err := l.Publish(t.Context(), id, port)
	must(t, err)
	l.Close()
	if got, err := get(l.client, "10.99.0.1:8080"); err != nil {
		t.Errorf("while the daemon is down: %q, %v", got, err)
	}
	l.start(t)
	if again := l.attach(t, id); again.Address != first.Address {
		t.Errorf("address changed from %s to %s", first.Address, again.Address)
	}
	if got, err := get(l.client, "10.99.0.1:8080"); err != nil || got != "web 10.99.0.2" {
		t.Errorf("after the restart: %q, %v", got, err)
	}
	_, err = l.Publish(t.Context(), id, port)
	must(t, err)
	must(t, l.Sweep(t.Context(), nil))
	if _, err := get(l.client, "10.99.0.1:8080"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the sweep: %v; want connection refused", err)
	}
	if isNamespace(first.Namespace) || linkExists(linkName(id)) {
		t.Error("the sweep left a namespace or link")
	}
}

func TestPublish_PortTakenByAProcess_NamesIt(t *testing.T) {
	l := newLab(t)
	l.attach(t, "webtask000000000000000001")
	li, err := net.Listen("tcp4", ":8080")
	must(t, err)
	defer li.Close()
	_, err = l.Publish(t.Context(), "webtask000000000000000001", []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080}})
	if !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("got %v; want it to name this process", err)
	}
}

func TestAttach_BeforeConfigureOrFullBlock_SaysSo(t *testing.T) {
	l := newLab(t)
	n, err := New(Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	if _, err := n.Attach(t.Context(), Request{TaskID: "x"}); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("got %v; want ErrNotConfigured", err)
	}
	must(t, l.Configure(t.Context(), &swarmpb.NodeConfig{UplinkBlock: "100.64.4.0/30"}))
	l.attach(t, "atask00000000000000000001")
	if _, err := l.Attach(t.Context(), Request{TaskID: "btask00000000000000000002"}); !errors.Is(err, ErrBlockFull) {
		t.Errorf("got %v; want ErrBlockFull", err)
	}
	for _, bad := range []string{"nonsense", "fd00::/64", "10.0.0.0/31"} {
		if err := l.Configure(t.Context(), &swarmpb.NodeConfig{UplinkBlock: bad}); err == nil {
			t.Errorf("block %q was accepted", bad)
		}
	}
}

func TestAddress_Released_RestsUntilTheBlockIsThrough(t *testing.T) {
	n := &Network{place: hostPlace{block: netip.MustParsePrefix("10.0.0.0/29")}, attached: map[string]*record{}}
	var got []string
	for range 7 {
		a, err := n.freeAddress()
		must(t, err)
		got = append(got, a.String())
	}
	if s := strings.Join(got, " "); s != "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.2 10.0.0.3" {
		t.Error(s)
	}
}

// assertClean fails if anything of ours is on the host: links, routes, rules, tables, namespaces.
func assertClean(t *testing.T, dir string) {
	t.Helper()
	links, err := netlink.LinkList()
	must(t, err)
	for _, l := range links {
		n := l.Attrs().Name
		if n == Uplink || n == Fabric || strings.HasPrefix(n, linkPrefix) || strings.HasPrefix(n, tunnelPrefix) {
			t.Errorf("link %s is left behind", n)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		must(t, err)
		for _, r := range routes {
			t.Errorf("route %s is left behind", r)
		}
		rules, err := netlink.RuleList(family)
		must(t, err)
		if len(rules) > 3 {
			t.Errorf("rules are left behind: %v", rules)
		}
	}
	conn, err := nftables.New()
	must(t, err)
	tables, err := conn.ListTables()
	must(t, err)
	for _, table := range tables {
		if strings.HasPrefix(table.Name, "swarmd") {
			t.Errorf("nftables table %s is left behind", table.Name)
		}
	}
	for _, d := range []string{"netns", "overlays", "attachments"} {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		must(t, err)
		for _, e := range entries {
			t.Errorf("%s/%s is left behind", d, e.Name())
		}
	}
}

// in runs fn in a namespace, on a thread that is thrown away.
func in(path string, fn func() error) error {
	return onThreadOfItsOwn(func() error {
		f, err := os.Open(path)
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

func up(t testing.TB, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
}

func addAddr(t testing.TB, name string, a netip.Addr) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(a, 24)}))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTeardown_ByAProcessThatNeverKnewTheBlock_LeavesNoRoute(t *testing.T) {
	l := newLab(t)
	must(t, l.Configure(t.Context(), block))
	must(t, l.Configure(t.Context(), &swarmpb.NodeConfig{UplinkBlock: "100.64.4.0/24", FabricPool: "100.64.0.0/10"}))
	if got := unreachables(t); got != "100.64.4.0/24" {
		t.Errorf("unreachable are %q, want the new block alone", got)
	}
	l.Close()
	next, err := New(Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	must(t, next.Teardown(t.Context()))
	if got := unreachables(t); got != "" || linkExists(Uplink) {
		t.Errorf("left: routes %q, uplink %v", got, linkExists(Uplink))
	}
}

func unreachables(t *testing.T) string {
	t.Helper()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_TYPE)
	must(t, err)
	var out []string
	for _, r := range routes {
		out = append(out, r.Dst.String())
	}
	return strings.Join(out, " ")
}

func TestRemoveLink_PeersNamespaceGoesMeanwhile_IsNoError(t *testing.T) {
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for range 50 {
		path := filepath.Join(t.TempDir(), "gone")
		must(t, makeNamespace(path, nil))
		ns, err := os.Open(path)
		must(t, err)
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire", MTU: 1500, TxQLen: -1}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}))
		_ = ns.Close()
		must(t, removeNamespace(path))
		must(t, removeLink("wire"))
	}
}

func deadlineSoon() time.Time { return time.Now().Add(5 * time.Second) }

func TestAttach_FirstPacketOfATask_IsNotLost(t *testing.T) {
	l := newLab(t)
	for i := range 15 {
		id := fmt.Sprintf("task%d", i)
		a := l.attach(t, id)
		if _, err := get(a.Namespace, "10.99.0.1:7001"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the first packet: %v; want it refused before it is sent again", err)
		}
		must(t, l.Detach(t.Context(), id))
	}
}

func TestListed_OthersChangeItMeanwhile_IsListedAgain(t *testing.T) {
	tries := 0
	got, err := listed(func() ([]int, error) {
		if tries++; tries < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(got) != 2 {
		t.Errorf("listed %v, %v", got, err)
	}
	if _, err := listed(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted }); !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Errorf("never whole: %v", err)
	}
}
