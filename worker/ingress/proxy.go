package ingress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// acceptPause is the pause after a connection for which the host has no descriptor or memory.
	acceptPause = 100 * time.Millisecond
	// dialTimeout is for one backend, of maxTries.
	dialTimeout = time.Second
	maxTries    = 3
	// maxPacket is the largest UDP payload.
	maxPacket = 65507
	// packetIdle ends a client's flow after which nothing came back.
	packetIdle = 60 * time.Second
	// turn is how many connections or packets of one port are taken before the others have their turn.
	turn = 32
)

func outOfRoom(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (l *listeners) accept(h *listener) {
	for range turn {
		fd, err := h.take()
		if outOfRoom(err) {
			time.Sleep(acceptPause) // others may give some back
			return
		}
		if errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // none is waiting
		}
		f := os.NewFile(uintptr(fd), "")
		conn, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			continue
		}
		in := conn.(*net.TCPConn)
		ctx, cancel := context.WithCancel(context.Background())
		if !l.begin(h, in, cancel) {
			cancel()
			_ = in.SetLinger(0)
			_ = in.Close()
			return
		}
		l.all.Go(func() {
			defer l.done(h, in)
			defer cancel()
			relayStream(ctx, in, h)
		})
	}
}

// take accepts a connection, if one is waiting.
func (h *listener) take() (int, error) {
	h.mu.Lock() // so that the socket's number is still its own
	defer h.mu.Unlock()
	if h.closed {
		return -1, net.ErrClosed
	}
	fd, _, err := unix.Accept4(h.fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	return fd, err
}

// relayStream connects a client with a backend; one that cannot be reached is passed over.
func relayStream(ctx context.Context, in *net.TCPConn, h *listener) {
	defer in.Close()
	out := dial(ctx, h)
	if out == nil {
		_ = in.SetLinger(0) // refused there, reset here
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
	defer stop()
	var both sync.WaitGroup
	pipe := func(dst, src *net.TCPConn) {
		if _, err := io.Copy(dst, src); err != nil {
			_ = dst.SetLinger(0)
			_, _ = dst.Close(), src.Close()
			return
		}
		_ = dst.CloseWrite()
	}
	both.Go(func() { pipe(out, in) })
	both.Go(func() { pipe(in, out) })
	both.Wait()
}

func dial(ctx context.Context, h *listener) *net.TCPConn {
	d := net.Dialer{Timeout: dialTimeout}
	tried := map[netip.AddrPort]bool{}
	for range maxTries {
		to, ok := h.choose(tried)
		if !ok {
			return nil
		}
		tried[to] = true
		if conn, err := d.DialContext(ctx, "tcp4", to.String()); err == nil {
			return conn.(*net.TCPConn)
		}
	}
	return nil
}

// packetFlow is a client's way through the proxy: one socket to one backend.
type packetFlow struct {
	out *net.UDPConn
	to  netip.AddrPort
}

// leave ends the flows with backends that have no slot any more, as the kernel's entries of them end: a client's next packet goes to
// another.
func (h *listener) leave(backends []netip.AddrPort) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, flow := range h.udp {
		if !slices.Contains(backends, flow.to) {
			delete(h.udp, id)
			_ = flow.out.Close()
		}
	}
}

// receive sends clients' packets on, each client's to one backend.
func (l *listeners) receive(h *listener, buf []byte) {
	for range turn {
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			return
		}
		n, from, err := unix.Recvfrom(h.fd, buf, unix.MSG_DONTWAIT)
		h.mu.Unlock()
		if err != nil {
			return
		}
		client := addressOf(from)
		if !client.IsValid() {
			continue
		}
		id := client.String()
		h.mu.Lock()
		flow := h.udp[id]
		h.mu.Unlock()
		if flow == nil {
			if flow = l.open(h, id, from); flow == nil {
				continue
			}
		}
		_, _ = flow.out.Write(buf[:n])
	}
}

func (l *listeners) open(h *listener, id string, client unix.Sockaddr) *packetFlow {
	to, ok := h.choose(nil)
	if !ok {
		return nil
	}
	out, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil
	}
	flow := &packetFlow{out, to}
	if !l.begin(h, flow, func() { _ = out.Close() }) {
		_ = out.Close()
		return nil
	}
	h.mu.Lock()
	h.udp[id] = flow
	late := !slices.Contains(*h.backends.Load(), to) // the backends have changed since it was chosen
	h.mu.Unlock()
	if late {
		_ = out.Close()
	}
	l.all.Go(func() {
		h.answer(flow, client)
		h.mu.Lock()
		if h.udp[id] == flow {
			delete(h.udp, id)
		}
		h.mu.Unlock()
		_ = out.Close()
		l.done(h, flow)
	})
	return flow
}

// packets are buffers of answers on their way: a flow has one only while it has an answer.
var packets = sync.Pool{New: func() any { b := make([]byte, maxPacket); return &b }}

// answer sends a backend's packets to the client, until none came for packetIdle or the backend refuses.
func (h *listener) answer(flow *packetFlow, client unix.Sockaddr) {
	raw, err := flow.out.SyscallConn()
	if err != nil {
		return
	}
	for err == nil {
		_ = flow.out.SetReadDeadline(time.Now().Add(packetIdle))
		var failed error
		err = raw.Read(func(fd uintptr) bool {
			buf := packets.Get().(*[]byte)
			defer packets.Put(buf)
			n, err := unix.Read(int(fd), *buf)
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			if failed = err; err == nil {
				failed = h.send((*buf)[:n], client)
			}
			return true
		})
		if err == nil {
			err = failed
		}
	}
}

func (h *listener) send(packet []byte, to unix.Sockaddr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return net.ErrClosed
	}
	if err := unix.Sendto(h.fd, packet, unix.MSG_DONTWAIT, to); err != nil && !errors.Is(err, unix.EAGAIN) {
		return err
	}
	return nil
}

func addressOf(s unix.Sockaddr) netip.AddrPort {
	switch a := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}
