package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const inside = "SWARMD_DNS_TEST_INSIDE"

// TestMain runs the tests again in network and mount namespaces of their own, which are the "host" of the test and vanish
// with it. Without root only what needs no namespace is tested.
func TestMain(m *testing.M) {
	if os.Getuid() != 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lab is a host with a Resolver.
type lab struct {
	*Resolver
	t        testing.TB
	upstream atomic.Pointer[[]netip.AddrPort]
}

// setUpstream makes these the host's nameservers.
func (l *lab) setUpstream(servers ...netip.AddrPort) { l.upstream.Store(&servers) }

// newLab wants root; the loopback device of the host is up in it.
func newLab(t testing.TB, limits Limits) *lab {
	t.Helper()
	if os.Getenv(inside) == "" {
		t.Skip("network namespaces need root")
	}
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, loopbackUp())
	l := &lab{t: t}
	l.setUpstream()
	l.Resolver = New(Config{Upstream: func() []netip.AddrPort { return *l.upstream.Load() }, Logger: slog.New(slog.DiscardHandler), Limits: limits})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-ended) })
	return l
}

func loopbackUp() error {
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return h.LinkSetUp(lo)
}

// namespace makes one with its loopback device up.
func (l *lab) namespace() string {
	l.t.Helper()
	path := filepath.Join(l.t.TempDir(), "ns")
	must(l.t, os.WriteFile(path, nil, 0o400))
	must(l.t, onThreadOfItsOwn(func() error {
		return errors.Join(unix.Unshare(unix.CLONE_NEWNET), loopbackUp(),
			unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, ""))
	}))
	l.t.Cleanup(func() { l.vanish(path) })
	return path
}

// vanish removes a namespace, if it is still there.
func (l *lab) vanish(path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err == nil {
		must(l.t, os.Remove(path))
	}
}

// task is one that asks.
type task struct {
	l         *lab
	namespace string
	udp, tcp  uint16
}

func (l *lab) task(id string, c Client) *task {
	l.t.Helper()
	ns := l.namespace()
	udp, tcp, err := l.Listen(id, ns, c)
	must(l.t, err)
	return &task{l: l, namespace: ns, udp: udp, tcp: tcp}
}

func (k *task) dial(network string) net.Conn {
	k.l.t.Helper()
	port := k.udp
	if network == "tcp" {
		port = k.tcp
	}
	ns, err := openNamespace(k.namespace)
	must(k.l.t, err)
	defer ns.Close()
	var conn net.Conn
	must(k.l.t, inNamespace(ns, func() (err error) {
		conn, err = net.Dial(network, netip.AddrPortFrom(loopback, port).String())
		return err
	}))
	return conn
}

// ask sends a question and returns the answer.
func (k *task) ask(network, name string, rrtype uint16) *dns.Msg {
	k.l.t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), rrtype)
	return k.exchange(network, m)
}

func (k *task) exchange(network string, m *dns.Msg) *dns.Msg {
	k.l.t.Helper()
	conn := k.dial(network)
	defer conn.Close()
	const patience = 30 * time.Second
	client := dns.Client{Net: network, Timeout: patience, UDPSize: 65535}
	answer, _, err := client.ExchangeWithConn(m, &dns.Conn{Conn: conn})
	if err != nil {
		k.l.t.Fatalf("%s %s: %v", network, m.Question[0].String(), err)
	}
	return answer
}

// server is a nameserver in the current namespace that answers as it is told.
type server struct {
	addr  netip.AddrPort
	asked chan string // names, in the order of their questions
	tcp   chan string
}

// serve answers on both protocols; respond returns nil for silence.
func serve(t testing.TB, addr string, respond func(q *dns.Msg, tcp bool) *dns.Msg) *server {
	t.Helper()
	s := &server{asked: make(chan string, 4096), tcp: make(chan string, 4096)}
	packets, err := net.ListenPacket("udp4", addr)
	must(t, err)
	listener, err := net.Listen("tcp4", packets.LocalAddr().String())
	must(t, err)
	s.addr = packets.LocalAddr().(*net.UDPAddr).AddrPort()
	handle := func(tcp bool) dns.HandlerFunc {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			if tcp {
				s.tcp <- q.Question[0].Name
			} else {
				s.asked <- q.Question[0].Name
			}
			if m := respond(q, tcp); m != nil {
				_ = w.WriteMsg(m)
			}
		}
	}
	udp, tcp := &dns.Server{PacketConn: packets, Handler: handle(false)}, &dns.Server{Listener: listener, Handler: handle(true)}
	go udp.ActivateAndServe()
	go tcp.ActivateAndServe()
	t.Cleanup(func() { _ = packets.Close(); _ = listener.Close() })
	return s
}

// says answers every question with the addresses.
func says(addrs ...string) func(*dns.Msg, bool) *dns.Msg {
	return func(q *dns.Msg, _ bool) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		for _, a := range addrs {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(a)})
		}
		return m
	}
}

func fails(rcode int) func(*dns.Msg, bool) *dns.Msg {
	return func(q *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(q, rcode) }
}

func silent(*dns.Msg, bool) *dns.Msg { return nil }

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

// got are the addresses and names in an answer.
func got(m *dns.Msg) []string {
	out := []string{}
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			out = append(out, rr.A.String())
		case *dns.AAAA:
			out = append(out, rr.AAAA.String())
		case *dns.PTR:
			out = append(out, rr.Ptr)
		}
	}
	return out
}
