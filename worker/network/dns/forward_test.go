package dns

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const short = 200 * time.Millisecond

func TestForward_ServersSilentFailingOrWrong_NextIsAskedAndTheGoodOneFirstThen(t *testing.T) {
	for name, first := range map[string]func(*dns.Msg, bool) *dns.Msg{
		"silent": silent, "SERVFAIL": fails(dns.RcodeServerFailure), "REFUSED": fails(dns.RcodeRefused),
		"other ID": func(q *dns.Msg, _ bool) *dns.Msg { m := says("6.6.6.6")(q, false); m.Id++; return m },
		"other question": func(q *dns.Msg, _ bool) *dns.Msg {
			m := says("6.6.6.6")(q, false)
			m.Question[0].Name = "evil."
			return m
		},
		"other type": func(q *dns.Msg, _ bool) *dns.Msg {
			m := says("6.6.6.6")(q, false)
			m.Question[0].Qtype = dns.TypeTXT
			return m
		},
		"no answer bit": func(q *dns.Msg, _ bool) *dns.Msg { m := says("6.6.6.6")(q, false); m.Response = false; return m },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, Limits{Try: short, Total: time.Minute})
			bad, good := serve(t, "127.0.0.53:0", first), serve(t, "127.0.0.54:0", says("192.0.2.1"))
			l.setUpstream(bad.addr, good.addr)
			k := l.task("t", Client{})
			for range 3 {
				if m := k.ask("udp", "Example.com", dns.TypeA); !slices.Equal(got(m), []string{"192.0.2.1"}) || m.Question[0].Name != "Example.com." {
					t.Fatalf("got %s", m)
				}
			}
			if len(bad.asked) != 1 {
				t.Errorf("the bad server was asked %d times, want 1", len(bad.asked))
			}
		})
	}
}

func TestForward_OnePacketLost_AskedAgain(t *testing.T) {
	l := newLab(t, Limits{Try: short, Total: time.Minute})
	var n atomic.Int64
	only := serve(t, "127.0.0.53:0", func(q *dns.Msg, tcp bool) *dns.Msg {
		if n.Add(1) == 1 {
			return nil
		}
		return says("192.0.2.1")(q, tcp)
	})
	l.setUpstream(only.addr)
	if m := l.task("t", Client{}).ask("udp", "example.com", dns.TypeA); len(m.Answer) != 1 {
		t.Fatalf("got %s", m)
	}
}

func TestForward_NobodyAnswers_ServfailOrTheRefusal(t *testing.T) {
	l := newLab(t, Limits{Try: time.Hour, Total: time.Hour}) // so it does not wait for what is refused at once
	k := l.task("t", Client{})
	nobody := netip.MustParseAddrPort("127.0.0.99:1")
	refuses := serve(t, "127.0.0.53:0", fails(dns.RcodeRefused))
	for _, c := range []struct {
		upstream []netip.AddrPort
		rcode    int
	}{{nil, dns.RcodeServerFailure}, {[]netip.AddrPort{nobody, nobody}, dns.RcodeServerFailure}, {[]netip.AddrPort{refuses.addr, nobody}, dns.RcodeRefused}} {
		l.setUpstream(c.upstream...)
		for _, network := range []string{"udp", "tcp"} {
			if m := k.ask(network, "example.com", dns.TypeA); m.Rcode != c.rcode {
				t.Errorf("%s %v: %s", network, c.upstream, dns.RcodeToString[m.Rcode])
			}
		}
	}
	// That a name does not exist is an answer.
	missing := serve(t, "127.0.0.53:0", fails(dns.RcodeNameError))
	l.setUpstream(missing.addr, refuses.addr)
	if m := k.ask("udp", "example.com", dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("got %s", m)
	}
}

func TestForward_AnswerTooLargeForUDP_FetchedOverTCPAndFitted(t *testing.T) {
	l := newLab(t, Limits{})
	var many []string
	for a := netip.MustParseAddr("198.18.0.0"); len(many) < 100; a = a.Next() {
		many = append(many, a.String())
	}
	var tcpWorks atomic.Bool
	tcpWorks.Store(true)
	large := serve(t, "127.0.0.53:0", func(q *dns.Msg, tcp bool) *dns.Msg {
		if tcp && !tcpWorks.Load() {
			return new(dns.Msg).SetQuestion("other.", dns.TypeA)
		}
		m := says(many...)(q, tcp)
		if !tcp {
			m.Answer, m.Truncated = m.Answer[:5], true
		}
		return m
	})
	l.setUpstream(large.addr)
	k := l.task("t", Client{})
	if m := k.ask("tcp", "example.com", dns.TypeA); m.Truncated || len(m.Answer) != len(many) {
		t.Errorf("over TCP: truncated %v, %d addresses", m.Truncated, len(m.Answer))
	}
	if m := k.ask("udp", "example.com", dns.TypeA); !m.Truncated || len(m.Answer) < 20 || len(m.Answer) == len(many) {
		t.Errorf("over UDP: truncated %v, %d addresses", m.Truncated, len(m.Answer))
	}
	q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	q.SetEdns0(4096, false)
	if m := k.exchange("udp", q); m.Truncated || len(m.Answer) != len(many) {
		t.Errorf("over UDP with room: truncated %v, %d addresses", m.Truncated, len(m.Answer))
	}
	tcpWorks.Store(false)
	if m := k.ask("udp", "example.com", dns.TypeA); !m.Truncated || len(m.Answer) != 5 {
		t.Errorf("TCP broken: truncated %v, %d addresses", m.Truncated, len(m.Answer))
	}
	if m := k.ask("tcp", "example.com", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("TCP broken: %s", m)
	}
}

func TestForward_TasksOwnNameservers_AskedFromItsNamespace(t *testing.T) {
	l := newLab(t, Limits{})
	hosts := serve(t, "127.0.0.53:0", says("192.0.2.1"))
	l.setUpstream(hosts.addr)
	path := l.namespace()
	ns, err := openNamespace(path)
	must(t, err)
	defer ns.Close()
	var own *server
	must(t, inNamespace(ns, func() error { own = serve(t, hosts.addr.String(), says("192.0.2.2")); return nil }))
	itself := netip.AddrPortFrom(loopback, 53)
	for _, c := range []struct {
		client Client
		want   []string
		rcode  int
	}{
		{Client{}, []string{"192.0.2.1"}, dns.RcodeSuccess},
		{Client{Nameservers: []netip.AddrPort{itself}}, []string{"192.0.2.1"}, dns.RcodeSuccess},
		{Client{Nameservers: []netip.AddrPort{itself, own.addr}}, []string{"192.0.2.2"}, dns.RcodeSuccess},
		{Client{Isolated: true}, []string{}, dns.RcodeNameError},
		{Client{Isolated: true, Nameservers: []netip.AddrPort{own.addr}}, []string{"192.0.2.2"}, dns.RcodeSuccess},
	} {
		k := &task{l: l, namespace: path}
		k.udp, k.tcp, err = l.Listen("t", path, c.client)
		must(t, err)
		for _, network := range []string{"udp", "tcp"} {
			if m := k.ask(network, "example.com", dns.TypeA); !slices.Equal(got(m), c.want) || m.Rcode != c.rcode {
				t.Errorf("%+v over %s: got %s", c.client, network, m)
			}
		}
	}
}

func TestForward_MoreThanTheLimit_RefusedAtOnce(t *testing.T) {
	l := newLab(t, Limits{Forwards: 3, TaskForwards: 2, Try: time.Hour, Total: time.Hour})
	quiet := serve(t, "127.0.0.53:0", silent)
	l.setUpstream(quiet.addr)
	l.Apply(back())
	greedy, other := l.task("greedy", Client{Networks: []string{"n1"}}), l.task("other", Client{Networks: []string{"n1"}})
	packet, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
	must(t, err)
	send := func(k *task) net.Conn {
		conn := k.dial("udp")
		_, err := conn.Write(packet)
		must(t, err)
		return conn
	}
	for _, k := range []*task{greedy, greedy, other} {
		defer send(k).Close()
		<-quiet.asked
		if k == other {
			break
		}
	}
	for _, k := range []*task{greedy, other} {
		if m := k.ask("udp", "example.com", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %s", m)
		}
		if m := k.ask("tcp", "example.com", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %s", m)
		}
		if m := k.ask("udp", "web", dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("names of the cluster wait for others: %s", m)
		}
	}
}

func TestHostUpstream_FileChanges_IsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	u := &upstream{path: path, servers: onlyHost}
	for _, c := range []struct{ text, want string }{
		{"", "127.0.0.1:53"},
		{"# none\nnameserver 127.0.0.53\nnameserver\noptions edns0\n nameserver fe80::1%eth0 # x\n", "127.0.0.53:53 [fe80::1%eth0]:53"},
		{"nameserver 10.0.0.1\n", "10.0.0.1:53"},
		{strings.Repeat("nameserver 10.0.0.1\n", 20), strings.TrimSpace(strings.Repeat("10.0.0.1:53 ", maxNameservers))},
		{"search example.com\n", "127.0.0.1:53"},
	} {
		if c.text != "" {
			must(t, os.WriteFile(path+".new", []byte(c.text), 0o600))
			must(t, os.Rename(path+".new", path))
		}
		u.looked = time.Time{}
		var have []string
		for _, a := range u.get() {
			have = append(have, a.String())
		}
		if strings.Join(have, " ") != c.want {
			t.Errorf("%q: got %v, want %s", c.text, have, c.want)
		}
	}
	must(t, os.Remove(path))
	u.looked = time.Time{}
	if !slices.Equal(u.get(), onlyHost) {
		t.Errorf("without the file: %v", u.get())
	}
}
