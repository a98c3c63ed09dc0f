package gossip

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// The library's envelopes, of which this node takes one kind: AES-GCM without padding. It panics on some others
// when they come under a valid key, and looks at a stream's length only once it has read it.
const (
	envelope       = 1  // first byte of a packet, and of the message in a stream
	envelopeBytes  = 29 // version, nonce and tag
	streamEnvelope = 10 // first byte of a stream; then 4 bytes of length, then the message
)

// transport carries packets over UDP and streams over TCP. Unlike the library's own it resolves no names out of
// packets, bounds the streams of strangers, hands on only what the inspector lets through, and ends with all it began.
type transport struct {
	limits          Limits
	inspector       inspector
	log             *log.Logger // of the library
	bind, advertise netip.AddrPort
	tcp             *net.TCPListener
	udp             *net.UDPConn
	packets         chan *memberlist.Packet
	inbound         chan net.Conn
	places          chan struct{} // of inbound streams
	ctx             context.Context
	cancel          context.CancelFunc
	work            sync.WaitGroup

	mu   sync.Mutex
	open map[*stream]bool
	from map[netip.Addr]int // inbound streams
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func listen(bind, advertise netip.AddrPort, limits Limits, ring *memberlist.Keyring, log *log.Logger) (*transport, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(bind))
	if err != nil {
		return nil, err
	}
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bind))
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	t := &transport{
		limits: limits, inspector: inspector{ring, limits}, log: log, bind: bind, advertise: advertise, tcp: tcp, udp: udp,
		packets: make(chan *memberlist.Packet), inbound: make(chan net.Conn), places: make(chan struct{}, limits.Streams),
		open: map[*stream]bool{}, from: map[netip.Addr]int{},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.work.Go(t.readPackets)
	t.work.Go(t.acceptStreams)
	return t, nil
}

// Shutdown closes everything and returns once nothing of it runs any more; again is no harm.
func (t *transport) Shutdown() error {
	t.cancel()
	err := errors.Join(t.tcp.Close(), t.udp.Close())
	t.mu.Lock()
	for s := range t.open {
		_ = s.Conn.Close()
	}
	t.mu.Unlock()
	t.work.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.inbound }

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	addr, err := netip.ParseAddrPort(to.Addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.udp.WriteToUDPAddrPort(b, addr)
	return time.Now(), err
}

// errorPause keeps a socket that fails from taking a processor.
const errorPause = 50 * time.Millisecond

func (t *transport) readPackets() {
	buf := make([]byte, t.limits.PacketBytes+1)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		at := time.Now()
		if t.ctx.Err() != nil {
			return
		}
		if err != nil {
			t.pause()
			continue
		}
		if n > t.limits.PacketBytes || n <= envelopeBytes || buf[0] != envelope {
			continue
		}
		if err := t.inspector.packet(buf[:n]); err != nil {
			t.log.Printf("[ERR] memberlist: packet from %s is refused: %v", from, err)
			continue
		}
		packet := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: at}
		select {
		case t.packets <- packet:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) pause() {
	select {
	case <-time.After(errorPause):
	case <-t.ctx.Done():
	}
}

func (t *transport) acceptStreams() {
	for {
		select {
		case t.places <- struct{}{}:
		case <-t.ctx.Done():
			return
		}
		conn, err := t.tcp.AcceptTCP()
		if err != nil {
			<-t.places
			if t.ctx.Err() != nil {
				return
			}
			t.pause()
			continue
		}
		s := t.admit(conn)
		if s == nil {
			<-t.places
			_ = conn.Close()
			continue
		}
		select {
		case t.inbound <- s:
		case <-t.ctx.Done():
			_ = s.Close()
			return
		}
	}
}

// admit counts an inbound stream; nil when its address has enough of them.
func (t *transport) admit(conn *net.TCPConn) *stream {
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.from[from] >= t.limits.StreamsPerAddress {
		return nil
	}
	t.from[from]++
	_ = conn.SetDeadline(time.Now().Add(streamTimeout))
	s := &stream{Conn: conn, inspector: t.inspector}
	t.open[s] = true
	s.closed = func() {
		t.mu.Lock()
		delete(t.open, s)
		if t.from[from]--; t.from[from] == 0 {
			delete(t.from, from)
		}
		t.mu.Unlock()
		<-t.places
	}
	return s
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	addr, err := netip.ParseAddrPort(to.Addr)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: timeout}
	if !t.bind.Addr().IsUnspecified() {
		dialer.LocalAddr = &net.TCPAddr{IP: t.bind.Addr().AsSlice()}
	}
	conn, err := dialer.DialContext(t.ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	s := &stream{Conn: conn, inspector: t.inspector}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	t.open[s] = true
	s.closed = func() {
		t.mu.Lock()
		delete(t.open, s)
		t.mu.Unlock()
	}
	return s, nil
}

// stream gives its reader one message, once all of it has come and the inspector has let it through, and then nothing more.
type stream struct {
	net.Conn
	inspector inspector
	once      sync.Once
	closed    func()

	seen bool
	held bytes.Buffer // what is still to be given
	err  error
}

func (s *stream) Close() error {
	err := s.Conn.Close()
	s.once.Do(s.closed)
	return err
}

func (s *stream) Read(p []byte) (int, error) {
	if !s.seen {
		s.seen = true
		s.err = s.receive()
	}
	if s.err != nil {
		return 0, s.err
	}
	return s.held.Read(p)
}

// receive takes no more room than what has come, whatever the length says.
func (s *stream) receive() error {
	const headBytes = 5
	if _, err := io.CopyN(&s.held, s.Conn, headBytes+1); err != nil {
		return err
	}
	first := s.held.Bytes()
	length, limit := binary.BigEndian.Uint32(first[1:headBytes]), s.inspector.limits.StreamBytes
	switch {
	case first[0] != streamEnvelope || first[headBytes] != envelope:
		return errors.New("the stream is not encrypted as this version does")
	case length <= envelopeBytes:
		return errors.New("the stream has no message")
	case uint64(length) > uint64(limit):
		return fmt.Errorf("the stream's message has %d bytes, the limit is %d", length, limit)
	}
	if _, err := io.CopyN(&s.held, s.Conn, int64(length)-1); err != nil {
		return fmt.Errorf("the stream's message of %d bytes has not come whole: %w", length, err)
	}
	all := s.held.Bytes()
	if err := s.inspector.stream(all[:headBytes], all[headBytes:]); err != nil {
		s.held = bytes.Buffer{}
		return fmt.Errorf("the stream is refused: %w", err)
	}
	return nil
}
