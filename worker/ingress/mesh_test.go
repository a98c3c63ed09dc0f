package ingress

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestMesh_EveryHostAnswers_ClientAddressKept(t *testing.T) {
	l := newLab(t, 3)
	web := l.hosts[1].pod("web")
	other := l.hosts[0].pod("other")
	nat := &swarmpb.PortConfig{Protocol: tcp, PublishedPort: 8081, TargetPort: 80, Source: swarmpb.PublishSource_PUBLISH_SOURCE_NAT}
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80), port(udp, 5353, 53), nat)},
		Endpoints: []*swarmpb.Endpoint{web.endpoint("s", active)}})
	v4, v6 := clientAddr.String(), clientAddr6.String()
	for _, h := range l.hosts {
		seen4, seen6 := h.gateway().String(), h.gateway6().String()
		for _, c := range []struct{ name, from, network, to, want string }{
			{"client, IPv4", l.client, "tcp", h.at(8080), v4},
			{"client, IPv6", l.client, "tcp", h.at6(8080), v6},
			{"client, UDP", l.client, "udp", h.at(5353), v4},
			{"client, UDP over IPv6", l.client, "udp", h.at6(5353), v6},
			{"source=nat", l.client, "tcp", h.at(8081), seen4},
			{"source=nat, IPv6", l.client, "tcp", h.at6(8081), seen6},
			{"a task of host 1", other.ns, "tcp", h.at(8080), ""},
			{"a task of host 1, IPv6", other.ns, "tcp", h.at6(8080), ""},
			{"the replica itself", web.ns, "tcp", h.at(8080), ""},
			{"the replica itself, IPv6", web.ns, "tcp", h.at6(8080), ""},
			{"the replica itself, UDP", web.ns, "udp", h.at(5353), ""},
			{"a host", l.hosts[2].ns, "tcp", h.at(8080), ""},
			{"a host, IPv6", l.hosts[2].ns, "tcp", h.at6(8080), ""},
			{"the replica's host", l.hosts[1].ns, "udp", h.at(5353), ""},
		} {
			got, err := get(c.from, c.network, c.to)
			if id, addr, _ := strings.Cut(got, " "); err != nil || id != "web" || (c.want != "" && addr != c.want) {
				t.Errorf("host %d: %s: got %q, %v; want address %q", h.number, c.name, got, err, c.want)
			}
		}
	}
	for _, to := range []string{"127.0.0.1:8080", "[::1]:8080"} {
		if got, err := get("", "tcp", to); err != nil || !strings.HasPrefix(got, "web ") {
			t.Errorf("%s: got %q, %v", to, got, err)
		}
	}
	for _, to := range []string{"127.0.0.1:5353", "[::1]:5353"} {
		if got, err := get("", "udp", to); err != nil || !strings.HasPrefix(got, "web ") {
			t.Errorf("%s: got %q, %v", to, got, err)
		}
	}
}

func TestMesh_NoBackend_IsRefusedAtOnce(t *testing.T) {
	l := newLab(t, 2)
	web := l.hosts[1].pod("web")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80), port(udp, 5353, 53))},
		Endpoints: []*swarmpb.Endpoint{web.endpoint("s", starting)}})
	refused := func(when string) {
		t.Helper()
		for _, h := range l.hosts {
			for _, to := range []struct{ network, at string }{{"tcp", h.at(8080)}, {"tcp", h.at6(8080)}, {"udp", h.at(5353)}, {"udp", h.at6(5353)}} {
				for _, from := range []string{l.client, web.ns, h.ns} {
					if got, err := get(from, to.network, to.at); !errors.Is(err, syscall.ECONNREFUSED) {
						t.Errorf("%s: from %q: %s %s: got %q, %v; want it refused", when, from, to.network, to.at, got, err)
					}
				}
			}
		}
	}
	refused("only a starting one")
	l.tell(Update{Endpoints: []*swarmpb.Endpoint{web.endpoint("s", active)}})
	if got, err := get(l.client, "udp", l.hosts[0].at(5353)); err != nil || got != "web "+clientAddr.String() {
		t.Errorf("active: got %q, %v", got, err)
	}
	l.tell(Update{RemovedEndpoints: []string{"web"}})
	refused("after it went")
	l.tell(Update{RemovedServices: []string{"s"}})
	if len(l.hosts[0].balances) != 0 || len(l.hosts[0].listeners.held) != 0 || len(l.hosts[0].state.services) != 0 {
		t.Errorf("left of the service: %v, %d sockets, %v", l.hosts[0].balances, len(l.hosts[0].listeners.held), l.hosts[0].state.services)
	}
}

// The replica's node knows that it is gone before the node that the client called does.
func TestMesh_TaskOfAnotherNodeIsGone_ClientIsRefusedThere(t *testing.T) {
	l := newLab(t, 2)
	web := l.hosts[1].pod("web")
	l.tell(Update{Full: true, Services: []*swarmpb.AssignedService{publishing("s", port(tcp, 8080, 80))}, Endpoints: []*swarmpb.Endpoint{web.endpoint("s", active)}})
	must(t, in(l.hosts[1].ns, func() error { return l.hosts[1].SetPods(nil) }))
	for _, to := range []string{l.hosts[0].at(8080), l.hosts[0].at6(8080)} {
		if got, err := get(l.client, "tcp", to); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: got %q, %v; want it refused", to, got, err)
		}
	}
	if got, err := get(l.client, "tcp", l.hosts[1].at(8080)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("on its own node: got %q, %v; want it refused", got, err)
	}
}

func TestIsolation_TasksReachOneAnotherByPublishedPortsAlone(t *testing.T) {
	l := newLab(t, 2)
	a, b, c := l.hosts[0].pod("a"), l.hosts[0].pod("b"), l.hosts[1].pod("c")
	for _, p := range []*pod{b, c} {
		for _, to := range []string{fmt.Sprintf("%s:80", p.addr), fmt.Sprintf("[%s]:80", p.addr6())} {
			if got, err := get(a.ns, "tcp", to); err == nil {
				t.Errorf("a reached %s over the uplink: %q", p.id, got)
			}
			if got, err := get(l.client, "tcp", to); err == nil {
				t.Errorf("the client reached %s: %q", p.id, got)
			}
		}
	}
	serveIn(t, l.client, "client")
	if got, err := get(a.ns, "tcp", clientAddr.String()+":80"); err != nil || got != "client "+l.hosts[0].address.String() {
		t.Errorf("egress: got %q, %v; want it masqueraded", got, err)
	}
	if got, err := get(a.ns, "udp", "["+clientAddr6.String()+"]:53"); err != nil || got != "client "+l.hosts[0].address6.String() {
		t.Errorf("egress over IPv6: got %q, %v; want it masqueraded", got, err)
	}
	if got, err := get(l.hosts[0].ns, "tcp", c.addr.String()+":80"); err != nil {
		t.Errorf("a host to another's task: %q, %v", got, err)
	}
}
