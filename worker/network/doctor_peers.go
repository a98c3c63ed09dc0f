package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/doctor"
)

// peerChecks look at the way to each peer: what fits through it, and whether the fabric carries packets both ways.
func (n *Network) peerChecks() []doctor.Check {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.configured || n.fabric == nil {
		return nil
	}
	mtu, err := n.mtu()
	if err != nil {
		return nil
	}
	var out []doctor.Check
	peers := make([]*swarmpb.Peer, 0, len(n.told.peers))
	for _, p := range n.told.peers {
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b *swarmpb.Peer) int { return int(a.GetNumber()) - int(b.GetNumber()) })
	own, port := n.ownAddress(), n.place.port
	for _, p := range peers {
		address, err := netip.ParseAddr(p.GetAddress())
		block, err2 := netip.ParsePrefix(p.GetUplinkBlock())
		if err != nil || err2 != nil || p.GetNumber() == n.place.number {
			continue
		}
		address = address.Unmap()
		at := peerName(p)
		out = append(out,
			doctor.Check{Name: "mtu to " + at, Run: func(ctx context.Context) doctor.Finding { return checkMTU(ctx, address, mtu+overheadOf(own)) }},
			doctor.Check{Name: fmt.Sprintf("port %d/udp to %s", port, at), Run: func(ctx context.Context) doctor.Finding {
				return checkFabric(ctx, address, gatewayOf(block), port, mtu)
			}},
		)
	}
	return out
}

// peerName is what users may know a peer by.
func peerName(p *swarmpb.Peer) string {
	return p.GetAddress() + " (node " + p.GetNodeId() + ")"
}

// checkMTU finds out whether packets of the size that networks here use get through to a peer in one piece.
func checkMTU(ctx context.Context, to netip.Addr, want int) doctor.Finding {
	fits, err := largest(ctx, to, want)
	switch {
	case err != nil:
		return doctor.Problem("no packet can be sent there: "+err.Error(), "check addresses and routes between the hosts")
	case fits == 0:
		return doctor.Warning("it does not answer ICMP echo, so that this cannot be told", "allow ICMP between the nodes: path MTU discovery needs it")
	case fits < want:
		return doctor.Problem(fmt.Sprintf("only packets of up to about %d bytes get through, and networks here use %d", fits, want),
			fmt.Sprintf("let %d bytes through on every hop, or lower the MTU of the hosts' links between the nodes to %d", want, fits))
	}
	return doctor.OK("%d bytes get through", want)
}

// checkFabric sends packets to the other end's gateway, through the fabric, and back.
func checkFabric(ctx context.Context, to, gateway netip.Addr, port uint16, mtu int) doctor.Finding {
	fits, err := largest(ctx, gateway, mtu)
	switch {
	case err == nil && fits >= mtu:
		return doctor.OK("packets of %d bytes go there and back through the fabric", mtu)
	case err == nil && fits > 0:
		return doctor.Problem(fmt.Sprintf("of what goes through the fabric, only packets of up to about %d bytes of %d get there and back", fits, mtu),
			"see the mtu check of the same node")
	}
	if refused(ctx, netip.AddrPortFrom(to, port)) {
		return doctor.Problem("nobody listens there", "see that swarmd runs there, and with swarmctl info on that host why it has no fabric")
	}
	return doctor.Problem("nothing comes back through the fabric", fmt.Sprintf("open UDP port %d between all nodes, both ways; "+
		"see also that swarmd runs there", port))
}

// refused tells whether a host says that nobody listens on a UDP port. Silence says nothing.
func refused(ctx context.Context, at netip.AddrPort) bool {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		return false
	}
	defer c.Close()
	until := time.Now().Add(300 * time.Millisecond)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
		until = deadline
	}
	_ = c.SetDeadline(until)
	// A VXLAN header that names no network: whoever listens drops it.
	if _, err := c.Write(make([]byte, 8)); err != nil {
		return errors.Is(err, unix.ECONNREFUSED)
	}
	_, err = c.Read(make([]byte, 64))
	return errors.Is(err, unix.ECONNREFUSED)
}

const (
	echoSmall = 84 // bytes of a packet that gets through anywhere
	// echoFor is how long answers are waited for, echoAgain after how long everything is sent once more.
	echoFor, echoAgain = 1200 * time.Millisecond, 400 * time.Millisecond
)

// sizes are tried beside the one that is wanted: those of common links and tunnels.
var sizes = []int{8950, 8000, 4000, 2000, 1500, 1492, 1480, 1476, 1470, 1460, 1450, 1440, 1430, 1420, 1410, 1400, 1380, 1350, 1320, 1300, 1280, 1200, 1000, 576, echoSmall}

// largest is the size of the largest packet, of at most want bytes with its IP header, that an address answers when it
// is sent in one piece; 0 = it answers none. An error is of one that cannot be sent at all.
func largest(ctx context.Context, to netip.Addr, want int) (int, error) {
	e, err := dialEcho(to)
	if err != nil {
		return 0, err
	}
	defer e.conn.Close()
	tries := []int{want}
	for _, s := range sizes {
		if s < want {
			tries = append(tries, s)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = e.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	best := 0
	for end := time.Now().Add(echoFor); best < want && time.Now().Before(end) && ctx.Err() == nil; {
		for _, size := range tries {
			if err := e.send(size); size == echoSmall && err != nil && best == 0 {
				return 0, err
			}
		}
		until := time.Now().Add(echoAgain)
		_ = e.conn.SetReadDeadline(until)
		for best < want && time.Now().Before(until) && ctx.Err() == nil {
			size, ok := e.receive()
			if ok {
				best = max(best, size)
			}
		}
	}
	return best, nil
}

// echo asks one address for answers, with the size of each packet as the number of its echo.
type echo struct {
	conn         net.Conn
	v6           bool
	id           uint16
	header, kind int // of IP in bytes; type of an answer
	buffer       []byte
}

func dialEcho(to netip.Addr) (*echo, error) {
	e := &echo{v6: to.Is6(), header: 20, kind: 0, buffer: make([]byte, 1<<16), id: uint16(time.Now().UnixNano())}
	network := "ip4:icmp"
	if e.v6 {
		network, e.header, e.kind = "ip6:ipv6-icmp", 40, 129
	}
	conn, err := net.Dial(network, to.String())
	if err != nil {
		return nil, err
	}
	e.conn = conn
	raw, err := conn.(*net.IPConn).SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) {
			// In one piece, whatever the kernel believes to fit.
			if e.v6 {
				set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			} else {
				set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			}
		})
		err = errors.Join(err, set)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return e, nil
}

// send sends a packet of a size, with its IP header.
func (e *echo) send(size int) error {
	p := make([]byte, max(size-e.header, 8))
	if p[0] = 8; e.v6 {
		p[0] = 128 // the kernel sums these
	}
	p[4], p[5], p[6], p[7] = byte(e.id>>8), byte(e.id), byte(size>>8), byte(size)
	if !e.v6 {
		sum := checksum(p)
		p[2], p[3] = byte(sum>>8), byte(sum)
	}
	_, err := e.conn.Write(p)
	return err
}

// receive is the size of a packet that was answered; false for anything else.
func (e *echo) receive() (int, bool) {
	got, err := e.conn.Read(e.buffer)
	p := e.buffer[:max(got, 0)]
	if err != nil || len(p) < 8 {
		return 0, false
	}
	if !e.v6 && p[0]>>4 == 4 { // with its IP header
		if own := int(p[0]&15) * 4; len(p) >= own+8 {
			p = p[own:]
		}
	}
	size := int(p[6])<<8 | int(p[7])
	return size, int(p[0]) == e.kind && uint16(p[4])<<8|uint16(p[5]) == e.id && len(p) == max(size-e.header, 8)
}

// checksum is the Internet checksum (RFC 1071).
func checksum(p []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(p); i += 2 {
		sum += uint32(p[i])<<8 | uint32(p[i+1])
	}
	if len(p)%2 == 1 {
		sum += uint32(p[len(p)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// portCheck looks whether the port between nodes is free, while this host has no fabric of its own.
func (n *Network) portCheck() []doctor.Check {
	n.mu.Lock()
	defer n.mu.Unlock()
	port := n.place.port
	if port == 0 {
		port = defaultDataPathPort
	}
	if n.fabric != nil {
		return nil
	}
	return []doctor.Check{{Name: "port " + strconv.Itoa(int(port)) + "/udp", Run: func(context.Context) doctor.Finding {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return doctor.Problem("it cannot be had: "+err.Error(), "end what has it, or found the cluster with another --data-path-port")
		}
		_ = c.Close()
		return doctor.OK("free")
	}}}
}
