// Package sctp asks and answers over SCTP on kernels that have no such sockets: associations of a library, packets through raw
// sockets. It is for tests of what is between the two ends, and so compares each packet's checksum.
package sctp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/logging"
	"github.com/pion/sctp"
)

const (
	// SCTP as the net package names it.
	protocol4, protocol6 = "ip4:132", "ip6:132"
	// libraryPort is what the library puts into every packet as both ports.
	libraryPort = 5000
	headerSize  = 12
	maxPacket   = 1 << 16
	// waiting packets of one association; more are lost, and sent again by the other side.
	waiting = 64
)

// Serve answers every message that comes to a port, in both families, until ctx ends.
func Serve(ctx context.Context, port uint16, answer func(from netip.AddrPort, message []byte) []byte) error {
	var servers []*server
	for _, network := range []string{protocol4, protocol6} {
		conn, err := net.ListenPacket(network, "")
		if err != nil {
			return fmt.Errorf("listen for SCTP: %w", err)
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		servers = append(servers, &server{conn: conn, port: port, answer: answer, peers: map[netip.AddrPort]*pipe{}})
	}
	var all sync.WaitGroup
	for _, s := range servers {
		all.Go(s.run)
	}
	all.Wait()
	return ctx.Err()
}

// Ask sends one message from a port of a raw socket (see Open) and returns the answer.
func Ask(ctx context.Context, conn net.PacketConn, from uint16, to netip.AddrPort, message []byte) ([]byte, error) {
	p := newPipe(conn, from, to)
	stop := context.AfterFunc(ctx, func() { _ = p.Close() })
	defer stop()
	go receive(conn, from, func(peer netip.AddrPort, packet []byte) {
		if peer == to {
			p.deliver(packet)
		}
	})
	a, err := sctp.Client(sctp.Config{NetConn: p, LoggerFactory: logging.NewDefaultLoggerFactory()})
	if err != nil {
		return nil, fmt.Errorf("associate with %s: %w", to, err)
	}
	defer a.Close()
	s, err := a.OpenStream(1, sctp.PayloadTypeWebRTCBinary)
	if err != nil {
		return nil, fmt.Errorf("open a stream to %s: %w", to, err)
	}
	if _, err := s.Write(message); err != nil {
		return nil, fmt.Errorf("write to %s: %w", to, err)
	}
	buf := make([]byte, maxPacket)
	n, err := s.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("read from %s: %w", to, errors.Join(err, ctx.Err()))
	}
	return buf[:n], nil
}

// Open makes a raw socket that reaches an address.
func Open(to netip.Addr) (net.PacketConn, error) {
	if to.Is4() {
		return net.ListenPacket(protocol4, "")
	}
	return net.ListenPacket(protocol6, "")
}

type server struct {
	conn   net.PacketConn
	port   uint16
	answer func(netip.AddrPort, []byte) []byte
	peers  map[netip.AddrPort]*pipe
}

func (s *server) run() {
	receive(s.conn, s.port, func(from netip.AddrPort, packet []byte) {
		p := s.peers[from]
		if p == nil || p.ended() {
			if packet[headerSize] != 1 { // the first chunk of an association is INIT
				return
			}
			p = newPipe(s.conn, s.port, from)
			s.peers[from] = p
			go s.associate(p)
		}
		p.deliver(packet)
	})
	for _, p := range s.peers {
		_ = p.Close()
	}
}

func (s *server) associate(p *pipe) {
	defer p.Close()
	a, err := sctp.Server(sctp.Config{NetConn: p, LoggerFactory: logging.NewDefaultLoggerFactory()})
	if err != nil {
		return
	}
	defer a.Close()
	for {
		stream, err := a.AcceptStream()
		if err != nil {
			return
		}
		buf := make([]byte, maxPacket)
		for {
			n, err := stream.Read(buf)
			if err != nil {
				break
			}
			if _, err := stream.Write(s.answer(p.peer, buf[:n])); err != nil {
				break
			}
		}
	}
}

// receive hands on the packets for a port whose checksum is right, until the socket is closed.
func receive(conn net.PacketConn, port uint16, deliver func(from netip.AddrPort, packet []byte)) {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		ip, ok := from.(*net.IPAddr)
		if !ok || n <= headerSize || binary.BigEndian.Uint16(buf[2:]) != port {
			continue
		}
		packet := append([]byte{}, buf[:n]...)
		sum := binary.LittleEndian.Uint32(packet[8:])
		if seal(packet); binary.LittleEndian.Uint32(packet[8:]) != sum {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.IP)
		deliver(netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(packet)), packet)
	}
}

// seal writes a packet's checksum, CRC-32C with the field as zero.
func seal(packet []byte) {
	clear(packet[8:headerSize])
	binary.LittleEndian.PutUint32(packet[8:], crc32.Checksum(packet, crc32.MakeTable(crc32.Castagnoli)))
}

// pipe is one association's packets, between the library's ports and the true ones.
type pipe struct {
	conn net.PacketConn
	port uint16
	peer netip.AddrPort

	in     chan []byte
	closed chan struct{}
	once   sync.Once
}

func newPipe(conn net.PacketConn, port uint16, peer netip.AddrPort) *pipe {
	return &pipe{conn: conn, port: port, peer: peer, in: make(chan []byte, waiting), closed: make(chan struct{})}
}

func (p *pipe) deliver(packet []byte) {
	ports(packet, libraryPort, libraryPort)
	select {
	case p.in <- packet:
	default:
	}
}

func ports(packet []byte, source, dest uint16) {
	binary.BigEndian.PutUint16(packet, source)
	binary.BigEndian.PutUint16(packet[2:], dest)
	seal(packet)
}

func (p *pipe) ended() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// Read, Write and the rest make a pipe what the library takes for its connection.
func (p *pipe) Read(b []byte) (int, error) {
	select {
	case packet := <-p.in:
		return copy(b, packet), nil
	case <-p.closed:
		return 0, net.ErrClosed
	}
}

func (p *pipe) Write(b []byte) (int, error) {
	packet := append([]byte{}, b...)
	ports(packet, p.port, p.peer.Port())
	if _, err := p.conn.WriteTo(packet, &net.IPAddr{IP: p.peer.Addr().AsSlice()}); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipe) LocalAddr() net.Addr              { return p.conn.LocalAddr() }
func (p *pipe) RemoteAddr() net.Addr             { return net.UDPAddrFromAddrPort(p.peer) }
func (p *pipe) SetDeadline(time.Time) error      { return nil }
func (p *pipe) SetReadDeadline(time.Time) error  { return nil }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }
