package wire

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Listener is the cluster port: it does the TLS handshake of every connection and hands it on by ALPN. What
// fails the handshake is closed without a word in the log: a port on a network is always being knocked at.
type Listener struct {
	inner net.Listener
	creds *Credentials
	grpc  *routeListener
	raft  *routeListener

	mu        sync.Mutex
	pending   *list.List     // of *pendingConn, oldest first
	changed   chan struct{}  // closed and replaced when pending shrinks
	anonymous map[string]int // live connections without a certificate, by host
	anonTotal int
}

// lingerBytes is how much of a refused peer's words is read before the connection is closed on it.
const lingerBytes = 64 << 10

type pendingConn struct {
	conn  net.Conn
	since time.Time
	at    *list.Element
}

// Listen opens the cluster port at addr (host[:port]; port 0 is any). Nothing is accepted before Run.
func Listen(addr string, creds *Credentials) (*Listener, error) {
	inner, err := net.Listen("tcp", addr)
	if err == nil {
		return NewListener(inner, creds), nil
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, Errorf(CodeInUse, "listen on %s: the port is taken by another process; stop it, or choose another "+
			"port with --listen-addr", addr)
	}
	return nil, fmt.Errorf("listen on %s: %w", addr, err)
}

// NewListener serves the cluster port on an open listener, which it takes over.
func NewListener(inner net.Listener, creds *Credentials) *Listener {
	return &Listener{
		inner: inner, creds: creds,
		grpc: newRouteListener(inner.Addr()), raft: newRouteListener(inner.Addr()),
		pending: list.New(), changed: make(chan struct{}), anonymous: make(map[string]int),
	}
}

// GRPC yields the connections for a server of NewServer.
func (l *Listener) GRPC() net.Listener { return l.grpc }

// Raft yields connections of managers for Raft.
func (l *Listener) Raft() net.Listener { return l.raft }

// Addr is the address that the port is bound to.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Close closes the port and both listeners; Run then returns.
func (l *Listener) Close() error {
	l.grpc.Close()
	l.raft.Close()
	err := l.inner.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Run accepts until ctx ends or the port breaks, and returns when no handshake is under way. Connections that
// were handed on live until their owners close them.
func (l *Listener) Run(ctx context.Context) error {
	var handshakes sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { l.Close(); l.dropPending() })
	defer func() {
		stop()
		l.Close()
		l.dropPending()
		handshakes.Wait()
	}()
	var pause time.Duration
	for {
		conn, err := l.inner.Accept()
		switch {
		case err == nil:
			pause = 0
		case errors.Is(err, net.ErrClosed) || ctx.Err() != nil:
			return ctx.Err()
		case isTransient(err):
			// Out of descriptors or memory: others may give some back.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		default:
			return fmt.Errorf("accept on %s: %w", l.inner.Addr(), err)
		}
		p := l.admit(ctx, conn)
		if p == nil {
			conn.Close()
			continue
		}
		handshakes.Go(func() { l.serve(ctx, p) })
	}
}

func isTransient(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// admit waits for room among the pending handshakes. Honest peers need milliseconds, so room comes either from
// them or by ending the oldest that has had its grace. Nil when ctx ends first.
func (l *Listener) admit(ctx context.Context, conn net.Conn) *pendingConn {
	for {
		l.mu.Lock()
		now := time.Now()
		wait := time.Duration(0)
		if l.pending.Len() >= MaxHandshakes {
			oldest := l.pending.Front().Value.(*pendingConn)
			if wait = oldest.since.Add(HandshakeGrace).Sub(now); wait <= 0 {
				l.removePending(oldest)
				oldest.conn.Close()
			}
		}
		if wait <= 0 {
			p := &pendingConn{conn: conn, since: now}
			p.at = l.pending.PushBack(p)
			l.mu.Unlock()
			return p
		}
		changed := l.changed
		l.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		timer.Stop()
	}
}

// removePending is called with mu held, and does nothing the second time.
func (l *Listener) removePending(p *pendingConn) {
	if p.at == nil {
		return
	}
	l.pending.Remove(p.at)
	p.at = nil
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Listener) dropPending() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.pending.Front(); e != nil; e = e.Next() {
		e.Value.(*pendingConn).conn.Close()
	}
}

// serve does one handshake and hands the connection on, or closes it.
func (l *Listener) serve(ctx context.Context, p *pendingConn) {
	conn, err := l.handshake(ctx, p.conn)
	if err != nil {
		linger(p.conn)
	}
	l.mu.Lock()
	l.removePending(p)
	l.mu.Unlock()
	if err != nil {
		p.conn.Close()
		return
	}
	route, want := l.grpc, Expect{}
	if conn.ConnectionState().NegotiatedProtocol == ALPNRaft {
		route, want.Role = l.raft, swarmpb.NodeRole_NODE_ROLE_MANAGER
	}
	t, err := l.creds.track(conn, want)
	if err != nil {
		conn.Close()
		return
	}
	if t.info.Caller == swarmpb.Caller_CALLER_ANYONE && !l.takeAnonymous(t) {
		t.Close()
		return
	}
	if !route.deliver(t) {
		t.Close()
	}
}

func (l *Listener) handshake(ctx context.Context, raw net.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	conn := tls.Server(raw, l.creds.ServerTLS(ALPNGRPC, ALPNRaft))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return conn, nil
}

// linger lets a refused peer read why: closing at once, with what it has sent still unread, would reset the
// connection and throw the alert away.
func linger(conn net.Conn) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	conn.SetReadDeadline(time.Now().Add(HandshakeGrace))
	io.CopyN(io.Discard, conn, lingerBytes)
}

// takeAnonymous counts a connection without a certificate until it closes; false when there are too many.
func (l *Listener) takeAnonymous(t *trackedConn) bool {
	host := t.info.Host()
	l.mu.Lock()
	if l.anonTotal >= MaxAnonymous || l.anonymous[host] >= MaxAnonymousPerHost {
		l.mu.Unlock()
		return false
	}
	l.anonTotal++
	l.anonymous[host]++
	l.mu.Unlock()
	release := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.anonTotal--
		if l.anonymous[host]--; l.anonymous[host] == 0 {
			delete(l.anonymous, host)
		}
	}
	if !t.onClose(release) {
		release()
		return false
	}
	return true
}

// routeListener is one side of the split.
type routeListener struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newRouteListener(addr net.Addr) *routeListener {
	return &routeListener{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// deliver waits as long as a handshake may take for somebody to accept.
func (r *routeListener) deliver(conn net.Conn) bool {
	timer := time.NewTimer(HandshakeTimeout)
	defer timer.Stop()
	select {
	case <-r.closed:
		return false
	default:
	}
	select {
	case r.conns <- conn:
		return true
	case <-r.closed:
		return false
	case <-timer.C:
		return false
	}
}

func (r *routeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-r.conns:
		return conn, nil
	case <-r.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. The port itself stays open: it is the Listener's.
func (r *routeListener) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}

func (r *routeListener) Addr() net.Addr { return r.addr }
