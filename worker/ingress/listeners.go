package ingress

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Limits of what all published ports together relay on loopback at a time, and one of them.
const (
	maxRelayed     = 8192
	maxRelayedPort = 1024
)

// listeners holds a socket for every published port. The socket keeps others from binding the port, finds who already has,
// and serves 127.0.0.1 and [::1], which the kernel's rules leave out: only loopback traffic reaches it. One goroutine
// waits for all sockets; each relayed connection has two more.
type listeners struct {
	log   *slog.Logger
	epoll int
	wake  int // eventfd: ends the goroutine

	mu      sync.Mutex
	held    map[portKey]*listener
	byFD    map[int32]*listener
	closed  bool
	relayed atomic.Int64
	all     sync.WaitGroup
}

// listener is the socket of one port.
type listener struct {
	key      portKey
	fd       int // -1: this kernel has no such sockets
	backends atomic.Pointer[[]netip.AddrPort]
	relayed  atomic.Int64

	mu     sync.Mutex
	closed bool
	flows  map[any]func() // what is under way, with what ends it
	udp    map[string]*packetFlow
}

func newListeners(log *slog.Logger) (*listeners, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)})
	}
	if err != nil {
		return nil, fmt.Errorf("make epoll: %w", errors.Join(err, unix.Close(epoll)))
	}
	l := &listeners{log: log, epoll: epoll, wake: wake, held: map[portKey]*listener{}, byFD: map[int32]*listener{}}
	l.all.Go(l.run)
	return l, nil
}

// reserve binds the port and returns it as bound; port 0 = the kernel chooses. It is idempotent. ErrPortTaken names who
// has it, as owner says.
func (l *listeners) reserve(k portKey, ownerOf func(portKey) string) (portKey, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return k, errors.New("ingress is closed")
	}
	if _, ok := l.held[k]; ok {
		return k, nil
	}
	fd, port, err := bind(k)
	if errors.Is(err, unix.EADDRINUSE) {
		owner := ownerOf(k)
		if owner != "" {
			owner = " by " + owner
		}
		return k, fmt.Errorf("%w: %s is already in use on this host%s; choose another port or stop what uses it", ErrPortTaken, k, owner)
	}
	if err != nil {
		return k, fmt.Errorf("bind %s: %w", k, err)
	}
	k.port = port
	h := &listener{key: k, fd: fd, flows: map[any]func(){}, udp: map[string]*packetFlow{}}
	h.backends.Store(&[]netip.AddrPort{})
	if fd >= 0 && k.protocol != unix.IPPROTO_SCTP {
		if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return k, fmt.Errorf("watch %s: %w", k, errors.Join(err, unix.Close(fd)))
		}
		l.byFD[int32(fd)] = h
	}
	l.held[k] = h
	return k, nil
}

func (l *listeners) has(k portKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[k] != nil
}

// lead has the proxy of the port choose among the backends, by slot.
func (l *listeners) lead(k portKey, backends []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.held[k]; h != nil {
		h.backends.Store(&backends)
		h.leave(backends)
	}
}

// release closes the port's socket and what is relayed through it.
func (l *listeners) release(k portKey) {
	l.mu.Lock()
	h := l.held[k]
	if h != nil {
		delete(l.held, k)
		l.forget(h)
	}
	l.mu.Unlock()
	if h != nil {
		h.end()
	}
}

// forget closes the socket; l.mu is held, so that its number cannot mean another listener to run.
func (l *listeners) forget(h *listener) {
	if h.fd < 0 {
		return
	}
	delete(l.byFD, int32(h.fd))
	_ = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_DEL, h.fd, nil)
	h.mu.Lock()
	h.closed = true
	_ = unix.Close(h.fd)
	h.mu.Unlock()
}

// end ends what is relayed.
func (h *listener) end() {
	h.mu.Lock()
	h.closed = true
	ends := make([]func(), 0, len(h.flows))
	for _, end := range h.flows {
		ends = append(ends, end)
	}
	h.mu.Unlock()
	for _, end := range ends {
		end()
	}
}

func (l *listeners) close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	var ended []*listener
	for k, h := range l.held {
		delete(l.held, k)
		l.forget(h)
		ended = append(ended, h)
	}
	l.mu.Unlock()
	for _, h := range ended {
		h.end()
	}
	_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	l.all.Wait()
	_, _ = unix.Close(l.epoll), unix.Close(l.wake)
}

// run waits for the sockets until close.
func (l *listeners) run() {
	events := make([]unix.EpollEvent, 64)
	buf := make([]byte, maxPacket)
	for {
		n, err := unix.EpollWait(l.epoll, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			l.log.Error("published ports are not served on loopback", "error", err)
			return
		}
		for _, e := range events[:max(n, 0)] {
			l.mu.Lock()
			h, closed := l.byFD[e.Fd], l.closed
			l.mu.Unlock()
			switch {
			case closed:
				return
			case h == nil:
			case h.key.protocol == unix.IPPROTO_UDP:
				l.receive(h, buf)
			default:
				l.accept(h)
			}
		}
	}
}

// begin takes note of something that is relayed, if there is room; done ends that.
func (l *listeners) begin(h *listener, id any, end func()) bool {
	if l.relayed.Add(1) > maxRelayed {
		l.relayed.Add(-1)
		return false
	}
	if h.relayed.Add(1) > maxRelayedPort {
		l.relayed.Add(-1)
		h.relayed.Add(-1)
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		l.relayed.Add(-1)
		h.relayed.Add(-1)
		return false
	}
	h.flows[id] = end
	return true
}

func (l *listeners) done(h *listener, id any) {
	h.mu.Lock()
	delete(h.flows, id)
	h.mu.Unlock()
	l.relayed.Add(-1)
	h.relayed.Add(-1)
}

// choose is a backend of a slot taken by chance, other than those that were tried.
func (h *listener) choose(tried map[netip.AddrPort]bool) (netip.AddrPort, bool) {
	all := *h.backends.Load()
	if len(all) == 0 {
		return netip.AddrPort{}, false
	}
	from := rand.IntN(len(all))
	for i := range all {
		if a := all[(from+i)%len(all)]; a.IsValid() && !tried[a] {
			return a, true
		}
	}
	return netip.AddrPort{}, false
}

// bind makes the socket of a port, of both families where there is IPv6, and tells the port; -1 when the kernel has no
// sockets of the protocol, so that nothing else can have the port either.
func bind(k portKey) (int, uint16, error) {
	kind := unix.SOCK_STREAM
	if k.protocol == unix.IPPROTO_UDP {
		kind = unix.SOCK_DGRAM
	}
	flags := kind | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	var at unix.Sockaddr = &unix.SockaddrInet6{Port: int(k.port)}
	fd, err := unix.Socket(unix.AF_INET6, flags, int(k.protocol))
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	} else if errors.Is(err, unix.EAFNOSUPPORT) {
		at = &unix.SockaddrInet4{Port: int(k.port)}
		fd, err = unix.Socket(unix.AF_INET, flags, int(k.protocol))
	}
	if k.protocol == unix.IPPROTO_SCTP && (errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT)) {
		if k.port == 0 {
			return -1, 0, errors.New("this kernel has no SCTP sockets to choose a port with; name one")
		}
		return -1, k.port, nil
	}
	if err != nil {
		return -1, 0, err
	}
	port, err := bindSocket(fd, k.protocol, at)
	if err != nil {
		_ = unix.Close(fd)
		return -1, 0, err
	}
	return fd, port, nil
}

func bindSocket(fd int, protocol byte, at unix.Sockaddr) (uint16, error) {
	const backlog = 4096
	if protocol == unix.IPPROTO_TCP {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return 0, err
		}
	}
	if err := unix.Bind(fd, at); err != nil {
		return 0, err
	}
	if protocol != unix.IPPROTO_UDP {
		if err := unix.Listen(fd, backlog); err != nil {
			return 0, err
		}
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch a := name.(type) {
	case *unix.SockaddrInet6:
		return uint16(a.Port), nil
	case *unix.SockaddrInet4:
		return uint16(a.Port), nil
	}
	return 0, fmt.Errorf("bound to an address of a strange kind %T", name)
}
