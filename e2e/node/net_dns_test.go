package node_test

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// outsideAddress is what every name below outside.example has, as the hosts' own resolvers answer it.
const outsideAddress = "192.0.2.7"

// outsideNames has the resolvers of this machine, which are those of the hosts, answered on the switch.
func outsideNames(t *testing.T, c *cluster) {
	t.Helper()
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal("the resolvers of this machine, whose part the test plays:", err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		l, err := c.lab.ListenPacket("udp", net.JoinHostPort(f[1], "53"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go answerAll(l, "outside.example.", netip.MustParseAddr(outsideAddress))
	}
}

// answerAll is a name server that has one address for every name below a domain, until its socket is closed.
func answerAll(conn net.PacketConn, domain string, addr netip.Addr) {
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		q := r.Question[0]
		switch {
		case !strings.HasSuffix(q.Name, domain):
			m.Rcode = dns.RcodeNameError
		case q.Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: addr.AsSlice()}}
		}
		_ = w.WriteMsg(m)
	})}
	_ = s.ActivateAndServe()
}
