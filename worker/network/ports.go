package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// reservations holds a socket for every published port. The socket keeps others from binding the port, finds who
// already has, and serves 127.0.0.1, which the kernel's rules leave out: only loopback traffic reaches it.
type reservations struct {
	log *slog.Logger

	mu   sync.Mutex
	held map[portKey]*reservation
}

type portKey struct {
	protocol swarmpb.Protocol
	port     uint16
}

type reservation struct {
	to     netip.AddrPort
	closer io.Closer
	cancel context.CancelFunc
	done   chan struct{}
}

func newReservations(log *slog.Logger) *reservations {
	return &reservations{log: log, held: map[portKey]*reservation{}}
}

// reserve binds the port, or chooses one for a published port of 0, and returns it as bound.
func (r *reservations) reserve(want *swarmpb.PortConfig, addr netip.Addr) (*swarmpb.PortConfig, error) {
	bound := proto.CloneOf(want)
	if bound.Protocol == swarmpb.Protocol_PROTOCOL_UNSPECIFIED {
		bound.Protocol = swarmpb.Protocol_PROTOCOL_TCP
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	port, closer, serve, err := bind(bound.Protocol, uint16(bound.PublishedPort))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w: %d/%s is already in use on this host%s; choose another port or stop what uses it",
			ErrPortTaken, bound.PublishedPort, protocolName(bound.Protocol), ownerOf(bound.Protocol, uint16(bound.PublishedPort)))
	}
	if err != nil {
		return nil, fmt.Errorf("bind %d/%s: %w", bound.PublishedPort, protocolName(bound.Protocol), err)
	}
	bound.PublishedPort = uint32(port)
	ctx, cancel := context.WithCancel(context.Background())
	h := &reservation{to: netip.AddrPortFrom(addr, uint16(bound.TargetPort)), closer: closer, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		if err := serve(ctx, h.to); err != nil && ctx.Err() == nil {
			r.log.Warn("published port is not served on 127.0.0.1", "port", port, "error", err)
		}
	}()
	r.held[portKey{bound.Protocol, port}] = h
	return bound, nil
}

// adopt reserves the port of an attachment that a former process made.
func (r *reservations) adopt(p *swarmpb.PortConfig, addr netip.Addr) error {
	r.mu.Lock()
	_, ok := r.held[portKey{p.Protocol, uint16(p.PublishedPort)}]
	r.mu.Unlock()
	if ok {
		return nil
	}
	_, err := r.reserve(p, addr)
	return err
}

func (r *reservations) release(ports []*swarmpb.PortConfig) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range ports {
		r.end(portKey{p.Protocol, uint16(p.PublishedPort)})
	}
}

func (r *reservations) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.held {
		r.end(k)
	}
}

func (r *reservations) end(k portKey) {
	h, ok := r.held[k]
	if !ok {
		return
	}
	h.cancel()
	_ = h.closer.Close()
	<-h.done
	delete(r.held, k)
}

type server func(ctx context.Context, to netip.AddrPort) error

func bind(protocol swarmpb.Protocol, port uint16) (uint16, io.Closer, server, error) {
	at := fmt.Sprintf("0.0.0.0:%d", port)
	switch protocol {
	case swarmpb.Protocol_PROTOCOL_UDP:
		conn, err := net.ListenPacket("udp4", at)
		if err != nil {
			return 0, nil, nil, err
		}
		serve := func(ctx context.Context, to netip.AddrPort) error { return relayPackets(ctx, conn, to) }
		return portOf(conn.LocalAddr()), conn, serve, nil
	case swarmpb.Protocol_PROTOCOL_SCTP:
		return bindSCTP(port)
	}
	l, err := net.Listen("tcp4", at)
	if err != nil {
		return 0, nil, nil, err
	}
	serve := func(ctx context.Context, to netip.AddrPort) error { return relayStreams(ctx, l, to) }
	return portOf(l.Addr()), l, serve, nil
}

func portOf(a net.Addr) uint16 {
	ap, _ := netip.ParseAddrPort(a.String())
	return ap.Port()
}

type socket int

func (s socket) Close() error { return unix.Close(int(s)) }

// bindSCTP only holds the port: loopback is not served for SCTP.
func bindSCTP(port uint16) (uint16, io.Closer, server, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("this kernel has no SCTP (load the sctp module): %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
		return 0, nil, nil, errors.Join(err, unix.Close(fd))
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, nil, nil, errors.Join(err, unix.Close(fd))
	}
	wait := func(ctx context.Context, _ netip.AddrPort) error { <-ctx.Done(); return nil }
	return uint16(name.(*unix.SockaddrInet4).Port), socket(fd), wait, nil
}

// maxRelayed bounds what one published port relays on loopback at a time.
const maxRelayed = 1024

// acceptPause is the pause after a connection for which the host has no descriptor or memory.
const acceptPause = 100 * time.Millisecond

func outOfRoom(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func relayStreams(ctx context.Context, l net.Listener, to netip.AddrPort) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxRelayed)
	for {
		in, err := l.Accept()
		if outOfRoom(err) && ctx.Err() == nil {
			select { // others may give some back
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			_ = g.Wait()
			return err
		}
		g.Go(func() error {
			relayStream(ctx, in.(*net.TCPConn), to)
			return nil
		})
	}
}

func relayStream(ctx context.Context, in *net.TCPConn, to netip.AddrPort) {
	defer in.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", to.String())
	if err != nil {
		_ = in.SetLinger(0) // refused there, reset here
		return
	}
	out := conn.(*net.TCPConn)
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
	defer stop()
	var both sync.WaitGroup
	pipe := func(dst, src *net.TCPConn) {
		_, _ = io.Copy(dst, src)
		_ = dst.CloseWrite()
	}
	both.Go(func() { pipe(out, in) })
	both.Go(func() { pipe(in, out) })
	both.Wait()
}
