package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// rounds is how often each nameserver is asked before a query has failed: a packet may be lost.
const rounds = 2

// pool remembers which of several nameservers answered last.
type pool struct {
	good atomic.Pointer[netip.AddrPort]
}

// order puts the one that answered last first.
func (p *pool) order(servers []netip.AddrPort) []netip.AddrPort {
	out := slices.Clone(servers[:min(len(servers), maxNameservers)])
	if good := p.good.Load(); good != nil {
		if i := slices.Index(out, *good); i > 0 {
			copy(out[1:i+1], out[:i])
			out[0] = *good
		}
	}
	return out
}

func (p *pool) answered(server netip.AddrPort) {
	if good := p.good.Load(); good == nil || *good != server {
		p.good.Store(&server)
	}
}

// dialer opens a connection to a nameserver, from where it is to be asked.
type dialer func(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error)

func dialHere(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, server.String())
}

func (c *client) dialThere(ctx context.Context, network string, server netip.AddrPort) (conn net.Conn, err error) {
	err = inNamespace(c.namespace, func() error {
		conn, err = dialHere(ctx, network, server)
		return err
	})
	return conn, err
}

// forward asks the client's nameservers, or the host's, and returns the answer for the client.
func (c *client) forward(q *query, tcp bool) []byte {
	s := c.settings.Load()
	servers, from, dial := s.Nameservers, &s.pool, c.dialThere
	if len(servers) == 0 {
		if s.Isolated {
			return packed(q.reply(dns.RcodeNameError))
		}
		servers, from, dial = c.r.cfg.Upstream(), &c.r.host, dialHere
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.r.cfg.Limits.Total)
	defer cancel()
	answer := c.r.ask(ctx, from, servers, dial, q, tcp)
	if answer == nil {
		return packed(q.reply(dns.RcodeServerFailure))
	}
	binary.BigEndian.PutUint16(answer, q.msg.Id)
	return fit(answer, q.limit)
}

func packed(m *dns.Msg) []byte {
	out, err := m.Pack()
	if err != nil {
		return nil // the question came from a packet, so it fits into one
	}
	return out
}

// ask tries one nameserver after the other. What they all refuse is refused; nil: none has answered.
func (r *Resolver) ask(ctx context.Context, from *pool, servers []netip.AddrPort, dial dialer, q *query, tcp bool) []byte {
	order := from.order(servers)
	var refusal []byte
	for range rounds {
		var silent []netip.AddrPort
		for _, server := range order {
			try, cancel := context.WithTimeout(ctx, r.cfg.Limits.Try)
			answer, err := exchange(try, dial, server, q, tcp)
			waited := try.Err() != nil
			cancel()
			switch {
			case ctx.Err() != nil:
				return refusal
			case err != nil && waited:
				silent = append(silent, server)
			case err != nil:
				// Refused at once: asking again helps as little.
			case refused(answer):
				refusal = answer
			default:
				from.answered(server)
				return answer
			}
		}
		order = silent
	}
	return refusal
}

// refused tells whether another nameserver may know more.
func refused(answer []byte) bool {
	switch answer[3] & 0xf {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError:
		return true
	}
	return false
}

// exchange asks over UDP, and over TCP for what does not fit. A client over UDP gets what fits if TCP fails.
func exchange(ctx context.Context, dial dialer, server netip.AddrPort, q *query, tcp bool) ([]byte, error) {
	answer, err := exchangeUDP(ctx, dial, server, q)
	if err != nil || answer[2]&0x02 == 0 {
		return answer, err
	}
	whole, err := exchangeTCP(ctx, dial, server, q)
	if err != nil && tcp {
		return nil, err
	}
	if err != nil {
		return answer, nil
	}
	return whole, nil
}

// open dials and bounds the connection by ctx; stop ends that.
func open(ctx context.Context, dial dialer, network string, server netip.AddrPort) (conn net.Conn, stop func(), err error) {
	if conn, err = dial(ctx, network, server); err != nil {
		return nil, nil, fmt.Errorf("ask %s: %w", server, err)
	}
	end := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return conn, func() { end(); _ = conn.Close() }, nil
}

// asked is the query under an ID of its own, so that nobody who sees the client's can answer in the server's place.
func asked(q *query) []byte {
	packet := slices.Clone(q.packet)
	binary.BigEndian.PutUint16(packet, uint16(rand.Uint32()))
	return packet
}

func exchangeUDP(ctx context.Context, dial dialer, server netip.AddrPort, q *query) ([]byte, error) {
	conn, stop, err := open(ctx, dial, "udp", server)
	if err != nil {
		return nil, err
	}
	defer stop()
	packet := asked(q)
	if _, err := conn.Write(packet); err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	size := maxUDP
	if opt := q.msg.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
	}
	answer := make([]byte, size)
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return nil, fmt.Errorf("ask %s: %w", server, err)
		}
		if answers(packet, q.question(), answer[:n]) {
			return answer[:n], nil
		}
	}
}

func exchangeTCP(ctx context.Context, dial dialer, server netip.AddrPort, q *query) ([]byte, error) {
	conn, stop, err := open(ctx, dial, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer stop()
	packet := asked(q)
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(packet))), packet...)
	if _, err := conn.Write(framed); err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	answer := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	if !answers(packet, q.question(), answer) {
		return nil, fmt.Errorf("ask %s: %w", server, errOther)
	}
	return answer, nil
}

var errOther = errors.New("it answered another question")

// answers tells whether a packet is the answer to what was asked. A server that understood nothing may leave the
// question out.
func answers(asked []byte, question dns.Question, packet []byte) bool {
	if len(packet) < headerLength || packet[2]&0x80 == 0 || packet[0] != asked[0] || packet[1] != asked[1] {
		return false
	}
	if packet[4] == 0 && packet[5] == 0 {
		return refused(packet)
	}
	got, _, ok := readQuestion(packet)
	return ok && strings.EqualFold(got.Name, question.Name) && got.Qtype == question.Qtype && got.Qclass == question.Qclass
}
