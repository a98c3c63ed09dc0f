package ingress

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// fromPort connects from a port of the client's and returns the answer's line, and what tells whether the connection still works.
func fromPort(t *testing.T, l *lab, port int, to string) (line string, echo func() error, err error) {
	t.Helper()
	d := &net.Dialer{LocalAddr: &net.TCPAddr{Port: port}, Timeout: 3 * time.Second, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(e, err)
	}}
	var c net.Conn
	if err := in(l.client, func() (err error) { c, err = d.Dial("tcp", to); return err }); err != nil {
		return "", nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	r := bufio.NewReader(c)
	line, err = r.ReadString('\n')
	return strings.TrimSpace(line), func() error {
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(c, "x"); err != nil {
			return err
		}
		_, err := r.ReadByte()
		return err
	}, err
}

func samePort(t *testing.T, l *lab, at func(*host) string, want string) (echoes []func() error) {
	t.Helper()
	for _, h := range l.hosts {
		line, echo, err := fromPort(t, l, 45678, at(h))
		if err != nil || line != want {
			t.Errorf("through host %d: got %q, %v; want %q", h.number, line, err, want)
			continue
		}
		echoes = append(echoes, echo)
	}
	for n, echo := range echoes {
		if err := echo(); err != nil {
			t.Errorf("connection %d: %v", n, err)
		}
	}
	return echoes
}

func TestSamePort_ThroughSeveralNodesToOneReplica_EachConnectionWorksAndIsResetWithIt(t *testing.T) {
	l := newLab(t, 4)
	web := l.hosts[2].pod("web")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{web.endpoint("s", active)}})
	echoes := samePort(t, l, func(h *host) string { return h.at(8080) }, "web "+clientAddr.String())
	echoes = append(echoes, samePort(t, l, func(h *host) string { return h.at6(8080) }, "web "+clientAddr6.String())...)
	if n, want := flows(t, l.hosts[2].ns, leadingTo(web, unix.IPPROTO_TCP)), 2*len(l.hosts); n < want || n > want+2 {
		t.Errorf("%d entries on the replica's node, want one a connection: %d, and up to 2 of the readiness probe", n, want)
	}
	must(t, in(l.hosts[2].ns, l.hosts[2].Check))
	for n, echo := range echoes {
		if err := echo(); err != nil {
			t.Errorf("connection %d after a check: %v", n, err)
		}
	}
	// A later process takes over, and loads the tables anew before it is told of members.
	h := l.hosts[2]
	h.Close()
	must(t, in(h.ns, func() (err error) {
		h.Ingress, err = New(h.cfg)
		if err != nil {
			return err
		}
		return h.Configure(h.place())
	}))
	for n, echo := range echoes {
		if err := echo(); err != nil {
			t.Errorf("connection %d after a restart: %v", n, err)
		}
	}
	h.start()
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{web.endpoint("s", active)}})
	// The replica's node alone ends them: each of its entries has to be found, in whatever zone.
	must(t, in(h.ns, func() error { return h.SetPods(nil) }))
	must(t, in(h.ns, func() error { return h.Apply(Update{RemovedEndpoints: []string{"web"}}) }))
	for n, echo := range echoes {
		if err := echo(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("connection %d with the replica that is gone: %v; want a reset", n, err)
		}
	}
}

// udpFromPort is the answer to one packet from a port of the client's.
func udpFromPort(l *lab, port int, to string) (answer string, err error) {
	d := &net.Dialer{LocalAddr: &net.UDPAddr{Port: port}}
	err = in(l.client, func() error {
		c, err := d.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err := io.WriteString(c, "hello"); err != nil {
			return err
		}
		b := make([]byte, 200)
		n, err := c.Read(b)
		answer = string(b[:n])
		return err
	})
	return answer, err
}

// Entries in zones go as others do, by the kernel's filter and one by one.
func TestDeleteFlows_FromTheFabric_UDPEntriesGoInAnyZone(t *testing.T) {
	l := newLab(t, 3)
	h := l.hosts[2]
	web := h.pod("web")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(udp, 5353, 53))}, Endpoints: []*swarmpb.Endpoint{web.endpoint("s", active)}})
	for name, remove := range map[string]func(f ctFilter) error{
		"by the kernel": func(f ctFilter) error { return deleteFlows("", f) },
		"one by one": func(f ctFilter) error {
			conn, err := dialNetfilter("")
			must(t, err)
			defer conn.Close()
			return deleteOneByOne(conn, f.family(), []ctFilter{f})
		},
	} {
		for _, via := range l.hosts[:2] {
			for _, to := range []string{via.at(5353), via.at6(5353)} {
				if got, err := udpFromPort(l, 45679, to); err != nil || !strings.HasPrefix(got, "web ") {
					t.Fatalf("%s: %s: got %q, %v", name, to, got, err)
				}
			}
		}
		toWeb := leadingTo(web, unix.IPPROTO_UDP)
		if n := flows(t, h.ns, toWeb); n < 4 {
			t.Fatalf("%s: %d entries, want those of 4 flows", name, n)
		}
		for _, a := range []netip.Addr{web.addr, web.addr6()} {
			must(t, in(h.ns, func() error { return remove(ctFilter{answering: a, protocol: unix.IPPROTO_UDP}) }))
		}
		if n := flows(t, h.ns, toWeb); n > 0 {
			t.Errorf("%s: %d entries are left", name, n)
		}
	}
}

// zoneRules is the number of a table's rules: the library cannot read these.
func zoneRules(t *testing.T, k *kernel, table *nftables.Table) (n int) {
	t.Helper()
	b := &batch{}
	b.name(unix.NFTA_RULE_TABLE, table.Name)
	msgs, err := k.ask(unix.NFT_MSG_GETRULE, byte(table.Family), unix.NLM_F_DUMP, b.buf)
	must(t, err)
	for _, m := range msgs {
		if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE {
			n++
		}
	}
	return n
}

func TestCheck_ZonesChangedByHand_AreRepaired(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	for _, table := range zoneTables {
		chain := &nftables.Chain{Name: zoneChain, Table: table}
		for name, hurt := range map[string]func(c *nftables.Conn){
			"deleted": func(c *nftables.Conn) { c.DelTable(table) },
			"flushed": func(c *nftables.Conn) { c.FlushChain(chain) },
			"a rule added": func(c *nftables.Conn) {
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
			},
		} {
			c, err := nftables.New()
			must(t, err)
			hurt(c)
			must(t, c.Flush())
			if same, err := h.intact(); same || err != nil {
				t.Errorf("%s: intact %v, %v; want it noticed", name, same, err)
			}
			must(t, h.Check())
			if n := zoneRules(t, h.kernel, table); n != 1 {
				t.Errorf("%s: after the check: %d rules, want 1", name, n)
			}
		}
	}
}
