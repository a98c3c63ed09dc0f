package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// ask resolves a name as a task would.
func ask(ns, name string) ([]string, error) {
	var out []string
	err := in(ns, func() error {
		// The resolver's own goroutines are not on this thread: the socket is opened here.
		conn, err := net.Dial("udp4", "127.0.0.11:53")
		if err != nil {
			return err
		}
		defer conn.Close()
		r := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
		addrs, err := r.LookupNetIP(context.Background(), "ip4", name+".")
		for _, a := range addrs {
			out = append(out, a.Unmap().String())
		}
		slices.Sort(out)
		return err
	})
	return out, err
}

func named(t testing.TB, ns, name string, want ...string) {
	t.Helper()
	if got, err := ask(ns, name); err != nil || !slices.Equal(got, want) {
		t.Errorf("%s is %v, %v; want %v", name, got, err, want)
	}
}

func unnamed(t testing.TB, ns, name string) {
	t.Helper()
	if got, err := ask(ns, name); err == nil {
		t.Errorf("%s is %v; want no such name", name, got)
	}
}

func web(red *swarmpb.AssignedNetwork) *swarmpb.AssignedService {
	return &swarmpb.AssignedService{Id: "websvc", Name: "Web", Vips: []*swarmpb.NetworkAddress{at(red, 100)},
		Networks: []*swarmpb.NetworkAttachment{{Network: red.Id, Aliases: []string{"www"}}}}
}

func TestNames_VIPTasksAliasesAndContainers_FollowTheEndpoints(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red), setService(web(red)))
	const t1, t2 = "web1taskaaaaaaaaaaaaaaaaaa", "web2taskbbbbbbbbbbbbbbbbbb"
	a, b := c.nodes[0].task(t, t1, at(red, 5)), c.nodes[1].task(t, t2, at(red, 6))
	client := c.nodes[0].task(t, "clienttask", at(red, 9))
	answer(t, a.Namespace, "a")
	answer(t, b.Namespace, "b")
	second := c.nodes[1].endpoint("websvc", t2, 2, b)
	c.tell(t, false, setEndpoint(c.nodes[0].endpoint("websvc", t1, 1, a)), setEndpoint(second), setEndpoint(c.nodes[0].endpoint("client", "clienttask", 1, client)))
	ns := client.Namespace
	named(t, ns, "web", "10.0.4.100")
	named(t, ns, "www", "10.0.4.100")
	named(t, ns, "tasks.web", "10.0.4.5", "10.0.4.6")
	named(t, ns, "web.1", "10.0.4.5")
	named(t, ns, "web.2", "10.0.4.6")
	named(t, ns, "web.2."+t2, "10.0.4.6")
	named(t, ns, t2[:12], "10.0.4.6")
	seen := map[string]bool{}
	for range 60 {
		got, err := get(ns, "10.0.4.100:80")
		must(t, err)
		seen[got] = true
	}
	if !seen["a 10.0.4.9"] || !seen["b 10.0.4.9"] {
		t.Errorf("the VIP was answered by %v", seen)
	}
	wants(t, ns, port80(at(red, 100).Address6), "a "+at(red, 9).Address6, "b "+at(red, 9).Address6)

	draining := swarmpb.Clone(second)
	draining.State = swarmpb.EndpointState_ENDPOINT_STATE_DRAINING
	c.tell(t, false, setEndpoint(draining))
	named(t, ns, "tasks.web", "10.0.4.5")
	named(t, ns, "web.2", "10.0.4.6") // it can be reached still
	for range 20 {
		wants(t, ns, "10.0.4.100:80", "a 10.0.4.9")
	}
	c.tell(t, false, dropEndpoint(t2))
	unnamed(t, ns, "web.2")
	c.nodes[0].do(t, func() error { return c.nodes[0].Gone(t.Context(), t1) })
	unnamed(t, ns, "tasks.web")
	if _, err := get(ns, "10.0.4.100:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a VIP without tasks: %v; want it refused", err)
	}
	// Its container is started again: the agent attaches it anew.
	again := c.nodes[0].task(t, t1, at(red, 5))
	if again.Namespace != a.Namespace || again.Address != a.Address {
		t.Errorf("attached again at %v, before at %v", again, a)
	}
	named(t, ns, "tasks.web", "10.0.4.5")
	wants(t, ns, "10.0.4.100:80", "a 10.0.4.9")
}

func TestNames_RestartOfTheDaemon_AnswersAgain(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	told := []*swarmpb.AssignmentChange{setNetwork(red), setService(web(red))}
	c.tellPeers(t, told...)
	a, b := c.nodes[0].task(t, "web1task", at(red, 5)), c.nodes[1].task(t, "web2task", at(red, 6))
	answer(t, b.Namespace, "b")
	first := c.nodes[0].endpoint("websvc", "web1task", 1, a)
	first.State = swarmpb.EndpointState_ENDPOINT_STATE_STARTING
	told = append(told, setEndpoint(first), setEndpoint(c.nodes[1].endpoint("websvc", "web2task", 2, b)))
	c.tellPeers(t, told...)
	wants(t, a.Namespace, "10.0.4.100:80", "b 10.0.4.5")
	// A program that keeps its socket, as resolvers of their own do.
	var kept net.Conn
	must(t, in(a.Namespace, func() (err error) { kept, err = net.Dial("udp4", "127.0.0.11:53"); return err }))
	defer kept.Close()
	asksAgain := func() {
		t.Helper()
		_ = kept.SetDeadline(time.Now().Add(2 * time.Second))
		query := append([]byte{1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3}, "web\x00\x00\x01\x00\x01"...)
		reply := make([]byte, 512)
		if _, err := kept.Write(query); err != nil {
			_, err = kept.Write(query) // the error is of a packet before
			must(t, err)
		}
		if size, err := kept.Read(reply); err != nil || size < 12 || reply[7] != 1 {
			t.Errorf("from the socket that was kept: %v, %v", reply[:size], err)
		}
	}
	asksAgain()
	n := c.nodes[0]
	n.end(t)
	wants(t, a.Namespace, "10.0.4.100:80", "b 10.0.4.5") // by the kernel alone
	n.start(t)
	c.tellPeers(t, told...)
	named(t, a.Namespace, "web", "10.0.4.100")
	asksAgain()
	wants(t, a.Namespace, "10.0.4.100:80", "b 10.0.4.5")
	wants(t, a.Namespace, "10.0.4.6:80", "b 10.0.4.5")
}

func TestHint_NodeCalledDead_GetsNothingUnlessNothingElseIsLeft(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red), setService(web(red)))
	a, b := c.nodes[0].task(t, "web1task", at(red, 5)), c.nodes[1].task(t, "web2task", at(red, 6))
	c.tell(t, false, setEndpoint(c.nodes[0].endpoint("websvc", "web1task", 1, a)), setEndpoint(c.nodes[1].endpoint("websvc", "web2task", 2, b)))
	n := c.nodes[0]
	hint := func(dead ...string) {
		n.do(t, func() error { return n.Hint(func(id string) bool { return slices.Contains(dead, id) }) })
	}
	hint("node2")
	named(t, a.Namespace, "tasks.web", "10.0.4.5")
	hint("node1", "node2")
	named(t, a.Namespace, "tasks.web", "10.0.4.5", "10.0.4.6")
	hint()
	named(t, a.Namespace, "tasks.web", "10.0.4.5", "10.0.4.6")
}

func TestNames_OneSlotTwice_ActiveHasTheContainersName(t *testing.T) {
	red := testNetwork("red", 4097, "10.0.4.0/24")
	v := view{told: newTold()}
	endpoint := func(task string, host int, state swarmpb.EndpointState) *swarmpb.AssignmentChange {
		return setEndpoint(&swarmpb.Endpoint{TaskId: task, ServiceId: "websvc", Slot: 1, NodeId: "n", State: state, Networks: []*swarmpb.NetworkAddress{at(red, host)}})
	}
	const starting, active = swarmpb.EndpointState_ENDPOINT_STATE_STARTING, swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE
	v.merge(true, []*swarmpb.AssignmentChange{setService(web(red)), endpoint("a", 5, starting), endpoint("b", 6, active), endpoint("c", 7, starting)})
	got := v.names("red", "websvc")["web.1"].addrs
	if want := netip.MustParseAddr("10.0.4.6"); len(got) != 2 || got[0] != want {
		t.Errorf("web.1 is %v, want %s alone", got, want)
	}
	dnsrr := web(red)
	dnsrr.Mode = swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR
	v.merge(false, []*swarmpb.AssignmentChange{setService(dnsrr), endpoint("a", 5, active)})
	if got := v.names("red", "websvc")["web"].addrs; len(got) != 4 {
		t.Errorf("web is %v, want the two that are active, in both families", got)
	}
}

func TestResolvConf_WhoIsAsked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	network := []*swarmpb.NetworkAddress{{NetworkId: "red"}}
	wish := &swarmpb.DNSConfig{Nameservers: []string{"9.9.9.9"}, Search: []string{"x.y"}, Options: []string{"ndots:3"}}
	for _, c := range []struct {
		name, host, want string
		r                record
	}{
		{"direct, loopback left out", "search a.b\nnameserver 127.0.0.53\nnameserver 10.1.1.1\noptions edns0\n", "search a.b\nnameserver 10.1.1.1\noptions edns0\n", record{}},
		{"loopback only", "search a.b\nnameserver 127.0.0.53\n", "search a.b\nnameserver 127.0.0.11\noptions ndots:0\n", record{}},
		{"in a network", "nameserver 10.1.1.1\noptions edns0\n", "nameserver 127.0.0.11\noptions edns0 ndots:0\n", record{Networks: network}},
		{"wishes, direct", "search a.b\nnameserver 10.1.1.1\n", "search x.y\nnameserver 9.9.9.9\noptions ndots:3\n", record{DNS: wish}},
		{"wishes, in a network", "search a.b\nnameserver 10.1.1.1\n", "search x.y\nnameserver 127.0.0.11\noptions ndots:3\n", record{DNS: wish, Networks: network}},
		{"no search", "search a.b\nnameserver 10.1.1.1\n", "nameserver 10.1.1.1\n", record{DNS: &swarmpb.DNSConfig{Search: []string{"."}}}},
		{"nothing known", "", "", record{}},
	} {
		must(t, os.WriteFile(path, []byte(c.host), 0o600))
		if got := readResolvers(path).confOf(&c.r); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestEstablished_CountsWhatClientsHaveOpened(t *testing.T) {
	l := newLab(t)
	const id = "webtask000000000000000001"
	a := l.attach(t, id)
	var in4 net.Listener
	must(t, in(a.Namespace, func() (err error) {
		in4, err = net.Listen("tcp", ":80")
		return err
	}))
	defer in4.Close()
	outside, err := net.Listen("tcp4", ":7000")
	must(t, err)
	defer outside.Close()
	must(t, in(a.Namespace, func() error { // what the task has opened itself does not count
		conn, err := net.Dial("tcp4", a.Gateway.String()+":7000")
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
		}
		return err
	}))
	is := func(want int) {
		t.Helper()
		eventually(t, "established", func() error {
			if got, err := l.Established(id); err != nil || got != want {
				return fmt.Errorf("%d, %v; want %d", got, err, want)
			}
			return nil
		})
	}
	is(0)
	var clients []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp4", a.Address.String()+":80")
		must(t, err)
		clients = append(clients, conn)
	}
	is(3)
	_ = clients[0].Close()
	is(2)
	_ = clients[1].Close()
	_ = clients[2].Close()
	if _, err := l.Established("unknown"); err == nil || !strings.Contains(err.Error(), "unknown") {
		t.Errorf("of an unknown task: %v", err)
	}
}
