package ingress

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestGone_OtherNodesDoNotKnowYet_AnotherReplicaHereTakesTheirFlows(t *testing.T) {
	l := newLab(t, 2)
	one, two := l.hosts[0], l.hosts[1]
	a, b := two.pod("a"), two.pod("b")
	service := publishing("s", port(tcp, 8080, 80), port(udp, 5353, 53))
	must(t, one.Apply(Update{Full: true, Services: []*swarmpb.AssignedService{service}, Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}}))
	there := func(do func() error) { t.Helper(); must(t, in(two.ns, do)) }
	there(func() error {
		return two.Apply(Update{Full: true, Services: []*swarmpb.AssignedService{service, publishing("other", port(tcp, 8081, 80))},
			Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active), b.endpoint("s", active)}})
	})
	answered := func(when, by string) {
		t.Helper()
		for network, to := range map[string]string{"tcp4": one.at(8080), "tcp6": one.at6(8080), "udp4": one.at(5353)} {
			client := clientAddr
			if network == "tcp6" {
				client = clientAddr6
			}
			if got, err := get(l.client, network, to); err != nil || got != by+" "+client.String() {
				t.Errorf("%s: %s: %q, %v; want it answered by %s, which sees the client's address", when, network, got, err, by)
			}
		}
	}
	answered("before", "a")
	there(func() error { return two.Gone("a") })
	answered("its process has ended", "b")
	there(func() error { two.dirty = true; return two.Check() })
	answered("after a check", "b")
	there(func() error { return two.reload() })
	answered("after a repair", "b")

	// The one that takes them drains: there is none left. In this test the one that is gone answers still.
	there(func() error { return two.Apply(Update{Endpoints: []*swarmpb.Endpoint{b.endpoint("s", draining)}}) })
	answered("the other drains", "a")
	there(func() error { return two.Apply(Update{Endpoints: []*swarmpb.Endpoint{b.endpoint("s", active)}}) })
	answered("the other takes new ones again", "b")

	// Somebody else is given the address before the managers have said anything.
	there(func() error { return two.SetPods([]netip.Addr{b.addr}) })
	answered("its address is free", "b")
	there(func() error { return two.SetPods(two.addresses()) })
	answered("its address is another's", "a")

	there(func() error {
		if err := two.Apply(Update{RemovedEndpoints: []string{"a"}}); err != nil {
			return err
		}
		if err := two.Apply(Update{Endpoints: []*swarmpb.Endpoint{a.endpoint("s", active)}}); err != nil {
			return err
		}
		return two.Gone("a")
	})
	answered("gone again", "b")
	there(func() error { return two.Apply(Update{RemovedEndpoints: []string{"a"}}) })
	answered("the managers have taken it back", "a")
	if len(two.state.handed)+len(two.members[two.table.instead[0]]) > 0 {
		t.Errorf("remembered for ever: %v", two.state.handed)
	}
	there(func() error { return two.SetPods([]netip.Addr{b.addr}) })
	if got, err := get(l.client, "tcp", one.at(8080)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("and its address is free: %q, %v; want it refused", strings.TrimSpace(got), err)
	}
}
