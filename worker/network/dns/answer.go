package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

const (
	// headerLength of a message.
	headerLength = 12
	// maxUDP is the largest message over UDP here: there is nothing but a loopback device between.
	maxUDP = 4096
	// maxTCP is the largest message that its length field can say.
	maxTCP = 65535
	// ttl of our answers: nobody keeps an address for longer than its connection takes to begin.
	ttl = 0
	// absentTTL is how long a name that does not exist may be taken not to, in seconds.
	absentTTL = 1
)

// query is what a client asked, parsed.
type query struct {
	packet []byte // as it came; not kept beyond the answer unless copied
	msg    dns.Msg
	limit  int // bytes that an answer may have
}

func (q *query) question() dns.Question { return q.msg.Question[0] }

// parse reads a query. It returns an answer instead if the query can have no other, and neither if nothing is to be
// answered.
func parse(packet []byte, tcp bool) (q *query, refusal *dns.Msg) {
	if len(packet) < headerLength || packet[2]&0x80 != 0 {
		return nil, nil // what is an answer itself gets none, or two resolvers could keep each other busy
	}
	q = &query{packet: packet, limit: dns.MinMsgSize}
	if tcp {
		q.limit = maxTCP
	}
	if err := q.msg.Unpack(packet); err != nil || len(q.msg.Question) != 1 {
		m := &dns.Msg{}
		m.Id, m.Opcode = uint16(packet[0])<<8|uint16(packet[1]), int(packet[2]>>3&0xf)
		m.Response, m.Rcode = true, dns.RcodeFormatError
		return nil, m
	}
	opt := q.msg.IsEdns0()
	if opt != nil && !tcp {
		q.limit = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
	}
	switch {
	case opt != nil && opt.Version() != 0:
		return nil, q.reply(dns.RcodeBadVers)
	case q.msg.Opcode != dns.OpcodeQuery:
		return nil, q.reply(dns.RcodeNotImplemented)
	case q.question().Qclass != dns.ClassINET:
		return nil, q.reply(dns.RcodeRefused)
	case q.question().Qtype == dns.TypeAXFR, q.question().Qtype == dns.TypeIXFR:
		return nil, q.reply(dns.RcodeRefused)
	}
	return q, nil
}

// reply is an answer without records.
func (q *query) reply(rcode int) *dns.Msg {
	m := &dns.Msg{}
	m.SetReply(&q.msg)
	m.Rcode, m.RecursionAvailable = rcode, true
	if opt := q.msg.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
	}
	return m
}

// answer composes what the table says; nil: somebody else has to be asked. The table's lock is held.
func (t *table) answer(networks []string, q *query) *dns.Msg {
	question := q.question()
	name := key(question.Name)
	found, ok := t.forward(networks, name)
	if !ok {
		return t.answerReverse(networks, q, name)
	}
	m := q.reply(dns.RcodeSuccess)
	m.Authoritative = true
	if found.absent {
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: absentTTL},
			Ns: ".", Mbox: ".", Serial: 1, Refresh: absentTTL, Retry: absentTTL, Expire: absentTTL, Minttl: absentTTL}}
		return m
	}
	switch question.Qtype {
	case dns.TypeA:
		for _, a := range shuffled(found.answer(func(a addresses) []netip.Addr { return a.v4 })) {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(question.Name, dns.TypeA), A: a.AsSlice()})
		}
	case dns.TypeAAAA:
		for _, a := range shuffled(found.answer(func(a addresses) []netip.Addr { return a.v6 })) {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header(question.Name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	case dns.TypeANY:
		m.Rcode = dns.RcodeRefused
	}
	return m
}

// answer is what one query gets of a family's addresses: one side of each division, by chance.
func (e entry) answer(family func(addresses) []netip.Addr) []netip.Addr {
	if len(e.divided) == 0 {
		return family(e.addresses)
	}
	out := slices.Clone(family(e.addresses))
	for _, d := range e.divided {
		chosen, other := family(d.rest), family(d.trial)
		if rand.Uint32N(wholeShare) < d.share {
			chosen, other = other, chosen
		}
		if len(chosen) == 0 {
			chosen = other
		}
		out = append(out, chosen...)
	}
	return out
}

// wholeShare is all queries.
const wholeShare = 10000

func (t *table) answerReverse(networks []string, q *query, name string) *dns.Msg {
	addr, ok := reverseAddress(name)
	if !ok {
		return nil
	}
	target, ours := t.reverse(networks, addr)
	if !ours {
		return nil
	}
	m := q.reply(dns.RcodeSuccess)
	m.Authoritative = true
	switch {
	case !validTarget(target) || target == "":
		m.Rcode = dns.RcodeNameError
	case q.question().Qtype == dns.TypePTR:
		m.Answer = []dns.RR{&dns.PTR{Hdr: header(q.question().Name, dns.TypePTR), Ptr: dns.Fqdn(target)}}
	case q.question().Qtype == dns.TypeANY:
		m.Rcode = dns.RcodeRefused
	}
	return m
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

// shuffled puts the addresses in an order of chance: most clients take the first.
func shuffled(addrs []netip.Addr) []netip.Addr {
	if len(addrs) < 2 {
		return addrs
	}
	out := slices.Clone(addrs)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// pack writes a message of at most limit bytes into buf, which it may outgrow. What does not fit is left out, and the
// message says so.
func pack(m *dns.Msg, limit int, buf []byte) ([]byte, error) {
	if len(m.Answer) > 1 {
		m.Truncate(limit) // also compresses if needed
	}
	return m.PackBuffer(buf)
}

// fit brings an answer of another server to at most limit bytes.
func fit(answer []byte, limit int) []byte {
	if len(answer) <= limit {
		return answer
	}
	var m dns.Msg
	if err := m.Unpack(answer); err == nil {
		m.Truncate(limit)
		if out, err := m.Pack(); err == nil && len(out) <= limit {
			return out
		}
	}
	// Not even that can be read: the question alone, and that there is more.
	_, end, ok := readQuestion(answer)
	if !ok || end > limit {
		return nil
	}
	out := slices.Clone(answer[:end])
	out[2] |= 0x02
	clear(out[6:headerLength])
	return out
}

// readQuestion reads the one question of a message without reading its records, and where it ends.
func readQuestion(packet []byte) (q dns.Question, end int, ok bool) {
	if len(packet) < headerLength || packet[4] != 0 || packet[5] != 1 {
		return q, 0, false
	}
	name, off, err := dns.UnpackDomainName(packet, headerLength)
	if err != nil || off+4 > len(packet) {
		return q, 0, false
	}
	q = dns.Question{Name: name, Qtype: uint16(packet[off])<<8 | uint16(packet[off+1]), Qclass: uint16(packet[off+2])<<8 | uint16(packet[off+3])}
	return q, off + 4, true
}
