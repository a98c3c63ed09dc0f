package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

var (
	// loopback is where tasks ask, as they do under Docker.
	loopback = netip.AddrFrom4([4]byte{127, 0, 0, 11})
	// errFull: the client does not read what it asked for.
	errFull = errors.New("the client's socket is full")
)

const (
	// sendBuffer takes the largest answer whole: writing to a client must never wait.
	sendBuffer = 128 << 10
	// pauseAfterError keeps a socket that fails from keeping a processor busy.
	pauseAfterError = 50 * time.Millisecond
	// maxNameservers of a task or of the host that are asked.
	maxNameservers = 8
)

// budget counts what runs at a time.
type budget struct{ forwards, conns *slots }

func newBudget(forwards, conns int) budget {
	return budget{&slots{max: int64(forwards)}, &slots{max: int64(conns)}}
}

type slots struct {
	max int64
	n   atomic.Int64
}

func (s *slots) take() bool {
	if s.n.Add(1) > s.max {
		s.n.Add(-1)
		return false
	}
	return true
}

func (s *slots) give() { s.n.Add(-1) }

// settings of a client, as they are used.
type settings struct {
	Client
	pool // its own nameservers
}

func newSettings(c Client) *settings {
	c.Networks = slices.Clone(c.Networks)
	// Its own loopback address of names leads back to us.
	c.Nameservers = slices.DeleteFunc(slices.Clone(c.Nameservers), func(a netip.AddrPort) bool { return !a.IsValid() || a.Addr().Unmap() == loopback })
	return &settings{Client: c}
}

// client is a task with its sockets.
type client struct {
	r         *Resolver
	path      string
	namespace *os.File
	settings  atomic.Pointer[settings]
	budget    budget
	udp       *net.UDPConn
	tcp       *net.TCPListener
	udpRaw    syscall.RawConn

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// listen opens the sockets and answers on them.
func (r *Resolver) listen(path string, s Client) (*client, error) {
	namespace, err := openNamespace(path)
	if err != nil {
		return nil, err
	}
	c := &client{r: r, path: path, namespace: namespace, budget: newBudget(r.cfg.Limits.TaskForwards, r.cfg.Limits.TaskConns)}
	c.settings.Store(newSettings(s))
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if err := inNamespace(namespace, c.open); err != nil {
		c.close()
		return nil, fmt.Errorf("listen in %s: %w", path, err)
	}
	c.wg.Add(2)
	go c.serveUDP()
	go c.serveTCP()
	return c, nil
}

// open runs within the namespace.
func (c *client) open() error {
	// The loopback device of the namespace may not be up yet.
	free := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) }), err)
	}}
	any := netip.AddrPortFrom(loopback, 0).String()
	packets, err := free.ListenPacket(context.Background(), "udp4", any)
	if err != nil {
		return err
	}
	c.udp = packets.(*net.UDPConn)
	listener, err := free.Listen(context.Background(), "tcp4", any)
	if err != nil {
		return err
	}
	c.tcp = listener.(*net.TCPListener)
	c.udpRaw, err = c.udp.SyscallConn()
	return err
}

func (c *client) ports() (udp, tcp uint16, err error) {
	return c.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(), c.tcp.Addr().(*net.TCPAddr).AddrPort().Port(), nil
}

// there tells whether the path still leads to the namespace.
func (c *client) there() bool {
	var now, then unix.Stat_t
	return unix.Stat(c.path, &now) == nil && unix.Fstat(int(c.namespace.Fd()), &then) == nil && now.Ino == then.Ino && now.Dev == then.Dev
}

// close waits until nothing of the client runs.
func (c *client) close() {
	c.cancel()
	if c.udp != nil {
		_ = c.udp.Close()
	}
	if c.tcp != nil {
		_ = c.tcp.Close()
	}
	c.wg.Wait()
	_ = c.namespace.Close()
}

// pause waits after an error of a socket; false: it was closed.
func (c *client) pause(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	select {
	case <-c.ctx.Done():
		return false
	case <-time.After(pauseAfterError):
		return true
	}
}

func (c *client) serveUDP() {
	defer c.wg.Done()
	in, out := make([]byte, maxUDP), make([]byte, maxUDP)
	for {
		n, from, err := c.udp.ReadFromUDPAddrPort(in)
		if err != nil {
			if !c.pause(err) {
				return
			}
			continue
		}
		send := func(answer []byte) error { return c.sendUDP(answer, from) }
		q, refusal := parse(in[:n], false)
		if q == nil {
			_ = sendMessage(refusal, dns.MinMsgSize, out, send)
			continue
		}
		if done, _ := c.r.answer(c.settings.Load(), q, out, send); done {
			continue
		}
		if !c.mayForward() {
			_ = sendMessage(q.reply(dns.RcodeServerFailure), q.limit, out, send)
			continue
		}
		q.packet = slices.Clone(q.packet)
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			defer c.forwarded()
			_ = send(c.forward(q, false))
		}()
	}
}

// sendUDP never waits: what the kernel does not take at once is lost, as a packet may be.
func (c *client) sendUDP(answer []byte, to netip.AddrPort) error {
	if len(answer) == 0 {
		return nil
	}
	address := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()}
	var err error
	return errors.Join(c.udpRaw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), answer, unix.MSG_DONTWAIT, address)
		return true
	}), err)
}

// answer says what the table has; false: somebody else has to be asked.
func (r *Resolver) answer(s *settings, q *query, buf []byte, send func([]byte) error) (bool, error) {
	r.names.mu.RLock()
	defer r.names.mu.RUnlock() // only after the kernel has the answer: see table
	m := r.names.answer(s.Networks, q)
	if m == nil {
		return false, nil
	}
	return true, sendMessage(m, q.limit, buf, send)
}

// sendMessage sends nothing for nil.
func sendMessage(m *dns.Msg, limit int, buf []byte, send func([]byte) error) error {
	if m == nil {
		return nil
	}
	packet, err := pack(m, limit, buf)
	if err != nil {
		return fmt.Errorf("pack an answer: %w", err)
	}
	return send(packet)
}

func (c *client) mayForward() bool {
	if !c.budget.forwards.take() {
		return false
	}
	if !c.r.total.forwards.take() {
		c.budget.forwards.give()
		return false
	}
	return true
}

func (c *client) forwarded() {
	c.r.total.forwards.give()
	c.budget.forwards.give()
}

func (c *client) serveTCP() {
	defer c.wg.Done()
	for {
		conn, err := c.tcp.AcceptTCP()
		if err != nil {
			if !c.pause(err) {
				return
			}
			continue
		}
		if !c.budget.conns.take() {
			_ = conn.Close()
			continue
		}
		if !c.r.total.conns.take() {
			c.budget.conns.give()
			_ = conn.Close()
			continue
		}
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			defer c.budget.conns.give()
			defer c.r.total.conns.give()
			c.serveConn(conn)
		}()
	}
}

// serveConn answers one query after the other until the client ends, is idle, or does not take an answer.
func (c *client) serveConn(conn *net.TCPConn) {
	defer conn.Close()
	defer context.AfterFunc(c.ctx, func() { _ = conn.Close() })()
	raw, err := conn.SyscallConn()
	if err != nil || conn.SetWriteBuffer(sendBuffer) != nil {
		return
	}
	send := func(answer []byte) error { return sendTCP(raw, answer) }
	var length [2]byte
	for {
		_ = conn.SetReadDeadline(time.Now().Add(c.r.cfg.Limits.Idle))
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		packet := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, packet); err != nil {
			return
		}
		if c.serveQuery(packet, send) != nil {
			return
		}
	}
}

func (c *client) serveQuery(packet []byte, send func([]byte) error) error {
	q, refusal := parse(packet, true)
	if q == nil {
		return sendMessage(refusal, maxTCP, nil, send)
	}
	if done, err := c.r.answer(c.settings.Load(), q, nil, send); done {
		return err
	}
	if !c.mayForward() {
		return sendMessage(q.reply(dns.RcodeServerFailure), q.limit, nil, send)
	}
	defer c.forwarded()
	return send(c.forward(q, true))
}

// sendTCP never waits. An answer that the kernel takes only in part ends the connection.
func sendTCP(raw syscall.RawConn, answer []byte) error {
	if len(answer) == 0 {
		return nil
	}
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(answer)), uint16(len(answer)))
	framed = append(framed, answer...)
	var n int
	var err error
	if err := errors.Join(raw.Write(func(fd uintptr) bool {
		n, err = unix.Write(int(fd), framed)
		return true
	}), err); err != nil {
		return err
	}
	if n < len(framed) {
		return errFull
	}
	return nil
}
