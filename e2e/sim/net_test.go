package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxInFlight bounds the bytes of one direction of a connection that nobody has read.
const maxInFlight = 64 << 20

// way is a direction between two machines.
type way struct{ from, to string }

// memNet is what lies between machines: connections in memory whose bytes take a while and keep their order. A cut
// holds bytes up, as packets that are lost and sent again do, until it is mended; nobody is told.
type memNet struct {
	mu        sync.Mutex
	random    *rand.Rand
	fast      time.Duration // at most this long takes what one write sends, unless slow
	slow      time.Duration
	listeners map[string]*memListener // by address
	cuts      map[way]int             // how many faults cut it
	conns     map[*memConn]struct{}   // this end and the other
	mended    chan struct{}           // closed and replaced with each change of cuts
}

func newNetwork(random *rand.Rand) *memNet {
	return &memNet{
		random: random, fast: time.Millisecond, listeners: map[string]*memListener{}, cuts: map[way]int{},
		conns: map[*memConn]struct{}{}, mended: make(chan struct{}),
	}
}

// latency is how long the next bytes take. n.mu is held.
func (n *memNet) latency() time.Duration {
	return 50*time.Microsecond + time.Duration(n.random.Int64N(int64(max(n.fast, n.slow))))
}

// setSlow has bytes take up to d each way; 0 ends that.
func (n *memNet) setSlow(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow = d
}

// cut holds up every byte on these ways, or with -1 mends one cut of each.
func (n *memNet) cut(by int, ways ...way) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range ways {
		n.cuts[w] += by
	}
	for c := range n.conns {
		c.out.hold(n.cuts[c.out.way] > 0)
		c.in.hold(n.cuts[c.in.way] > 0)
	}
	close(n.mended)
	n.mended = make(chan struct{})
}

// card is one life's access to the network: it is pulled when the life ends.
type card struct {
	net     *memNet
	machine string
	host    string // its IP address
	pulled  bool   // under net.mu
}

// pull ends all connections of the card; nothing can be opened on it any more.
func (c *card) pull() {
	c.net.mu.Lock()
	c.pulled = true
	for address, l := range c.net.listeners {
		if l.card == c {
			delete(c.net.listeners, address)
			l.once.Do(func() { close(l.done) })
		}
	}
	c.net.mu.Unlock()
	c.drop()
}

// drop ends the connections that there are.
func (c *card) drop() {
	c.net.mu.Lock()
	var mine []*memConn
	for conn := range c.net.conns {
		if conn.card == c {
			mine = append(mine, conn)
		}
	}
	c.net.mu.Unlock()
	for _, conn := range mine {
		conn.Close()
	}
}

type memListener struct {
	card    *card
	address string
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
}

func (c *card) listen(port string) *memListener {
	l := &memListener{card: c, address: net.JoinHostPort(c.host, port), conns: make(chan net.Conn, 256), done: make(chan struct{})}
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.net.listeners[l.address] = l
	return l
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.card.net.mu.Lock()
	if l.card.net.listeners[l.address] == l {
		delete(l.card.net.listeners, l.address)
	}
	l.card.net.mu.Unlock()
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr(l.address) }

type memAddr string

func (memAddr) Network() string  { return "tcp" }
func (a memAddr) String() string { return string(a) }

// dial opens a connection. Towards a machine that is cut off it waits, as one whose first packets are lost.
func (c *card) dial(ctx context.Context, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) { return nil, fmt.Errorf("dial %s: %w", address, err) }
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fail(err)
	}
	n := c.net
	for {
		n.mu.Lock()
		to := machineAt(host)
		cut := n.cuts[way{c.machine, to}] > 0 || n.cuts[way{to, c.machine}] > 0
		if !cut || c.pulled {
			break
		}
		mended := n.mended
		n.mu.Unlock()
		select {
		case <-mended:
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
	defer n.mu.Unlock()
	l := n.listeners[address]
	switch {
	case c.pulled:
		return fail(net.ErrClosed)
	case l == nil:
		return fail(syscall.ECONNREFUSED)
	}
	there, back := newPipe(n, way{c.machine, l.card.machine}), newPipe(n, way{l.card.machine, c.machine})
	mine := &memConn{card: c, in: back, out: there, local: memAddr(net.JoinHostPort(c.host, "40000")), remote: memAddr(address)}
	other := &memConn{card: l.card, in: there, out: back, local: mine.remote, remote: mine.local}
	select {
	case l.conns <- other:
	default:
		return fail(syscall.ECONNREFUSED) // its backlog is full
	}
	n.conns[mine], n.conns[other] = struct{}{}, struct{}{}
	return mine, nil
}

// memConn is one end of a connection. A write never blocks, so that no lock above it is held for a time that virtual
// time would have to pass.
type memConn struct {
	card          *card
	in, out       *pipe
	local, remote memAddr
}

func (c *memConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *memConn) Write(b []byte) (int, error) { return c.out.write(b) }
func (c *memConn) LocalAddr() net.Addr         { return c.local }
func (c *memConn) RemoteAddr() net.Addr        { return c.remote }

func (c *memConn) Close() error {
	c.card.net.mu.Lock()
	delete(c.card.net.conns, c)
	c.card.net.mu.Unlock()
	c.in.change(func() { c.in.unread = true })
	c.out.change(func() { c.out.ended = true })
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memConn) SetReadDeadline(t time.Time) error {
	c.in.change(func() { c.in.readBy = t })
	return nil
}

// pipe is one direction of a connection.
type pipe struct {
	net *memNet
	way way

	mu      sync.Mutex
	changed chan struct{}
	chunks  []chunk
	size    int
	last    time.Time // when the newest chunk arrives
	held    bool      // a cut: nothing arrives, not even the end
	ended   bool      // the writer has closed
	unread  bool      // the reader has closed
	readBy  time.Time
}

type chunk struct {
	at   time.Time
	data []byte
}

// newPipe is called with net.mu held.
func newPipe(n *memNet, w way) *pipe {
	return &pipe{net: n, way: w, changed: make(chan struct{}), held: n.cuts[w] > 0}
}

func (p *pipe) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) hold(is bool) {
	if p.held != is { // only hold changes it, under net.mu
		p.change(func() { p.held = is })
	}
}

func (p *pipe) write(b []byte) (int, error) {
	p.net.mu.Lock()
	arrives := time.Now().Add(p.net.latency())
	p.net.mu.Unlock()
	err := error(nil)
	p.change(func() {
		switch {
		case p.ended:
			err = net.ErrClosed
		case p.unread:
			// It is lost. The writer learns of that where it reads: nothing fails to be sent before the end has come
			// back, which a cut may hold up.
		case p.size+len(b) > maxInFlight:
			err = errors.New("too much is on its way")
		default:
			if arrives.Before(p.last) {
				arrives = p.last
			}
			p.last = arrives
			p.chunks = append(p.chunks, chunk{arrives, append([]byte(nil), b...)})
			p.size += len(b)
		}
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

func (p *pipe) read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		n, wait, changed, err := p.take(b)
		if n > 0 || err != nil {
			return n, err
		}
		if wait < 0 {
			<-changed
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// take reads what has arrived, or says how long to wait for what; negative: until something changes.
func (p *pipe) take(b []byte) (n int, wait time.Duration, changed chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	wait = -1
	if p.unread {
		return 0, 0, nil, net.ErrClosed
	}
	if !p.readBy.IsZero() {
		if wait = p.readBy.Sub(now); wait <= 0 {
			return 0, 0, nil, os.ErrDeadlineExceeded
		}
	}
	if !p.held {
		if len(p.chunks) == 0 {
			if p.ended {
				return 0, 0, nil, io.EOF
			}
			return 0, wait, p.changed, nil
		}
		for len(p.chunks) > 0 && n < len(b) && !p.chunks[0].at.After(now) {
			first := &p.chunks[0]
			copied := copy(b[n:], first.data)
			n += copied
			p.size -= copied
			if first.data = first.data[copied:]; len(first.data) == 0 {
				p.chunks = p.chunks[1:]
			}
		}
		if n > 0 {
			return n, 0, nil, nil
		}
		if d := p.chunks[0].at.Sub(now); wait < 0 || d < wait {
			wait = d
		}
	}
	return 0, wait, p.changed, nil
}
