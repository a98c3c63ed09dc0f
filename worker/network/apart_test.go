package network

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestPeerOfTheOtherFamily_IsReportedByName_OthersAreServed(t *testing.T) {
	c := newCluster(t, 2)
	one, two := c.nodes[0], c.nodes[1]
	net := testNetwork("na", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(net))
	web, asks := two.task(t, "web", at(net, 10)), one.task(t, "asks", at(net, 11))
	serve(t, web, "web")
	far := &swarmpb.Peer{NodeId: "far", Number: 7, Address: wireAddress6(7).String(), UplinkBlock: "100.64.7.0/24"}
	lost := &swarmpb.Endpoint{TaskId: "lost", ServiceId: "s", Slot: 2, NodeId: "far", State: swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE, Address: "100.64.7.2",
		Networks: []*swarmpb.NetworkAddress{at(net, 12)}}
	service := &swarmpb.AssignedService{Id: "s", Name: "s", Vips: []*swarmpb.NetworkAddress{at(net, 200)},
		Ports: []*swarmpb.PortConfig{{Protocol: swarmpb.Protocol_PROTOCOL_TCP, PublishedPort: 8080, TargetPort: 80, Mode: swarmpb.PublishMode_PUBLISH_MODE_INGRESS}}}
	c.tell(t, false, setPeer(far), setService(service), setEndpoint(two.endpoint("s", "web", 1, web)), setEndpoint(lost),
		setService(&swarmpb.AssignedService{Id: "a", Name: "a"}), setEndpoint(one.endpoint("a", "asks", 1, asks)))
	check := func() []string {
		t.Helper()
		one.do(t, func() error { return one.Check(t.Context()) })
		return one.Status().GetProblems()
	}
	names := func(problems []string, id string) int {
		n := 0
		for _, line := range problems {
			n += strings.Count(line, id)
		}
		return n
	}
	if got := check(); names(got, "far (fd99::") != 1 {
		t.Errorf("reported: %q; want the peer and its address once", got)
	}
	for range 20 {
		for from, to := range map[string]string{c.client: "10.99.0.1:8080", asks.Namespace: "10.0.4.200:80"} {
			if got, err := get(from, to); err != nil || !strings.HasPrefix(got, "web ") {
				t.Fatalf("%s: %q, %v; want the replica that can be reached", to, got, err)
			}
		}
	}
	// It joins again with an address that can be reached, and one that is told already moves away.
	near := &swarmpb.Peer{NodeId: "far", Number: 7, Address: wireAddress(7).String(), UplinkBlock: "100.64.7.0/24"}
	c.tell(t, false, setPeer(near))
	if got := check(); names(got, "far") != 0 || one.isDead("far") {
		t.Errorf("reported though it can be reached: %q", got)
	}
	c.tell(t, false, setPeer(far))
	for range 20 {
		if got, err := get(c.client, "10.99.0.1:8080"); err != nil {
			t.Fatalf("after the peer's address changed: %q, %v", got, err)
		}
	}
	if err := one.try(func() error { return one.Hint(func(string) bool { return false }) }); err != nil || !one.isDead("far") {
		t.Errorf("gossip's view makes it reachable: %v", err)
	}
}

func TestApartLine_ManyPeers_NamesAFew(t *testing.T) {
	apart := map[string]netip.Addr{}
	for i := range 9 {
		apart[fmt.Sprint("n", i)] = wireAddress6(i)
	}
	if got := apartLine(apart, wireAddress(1)); !strings.Contains(got, "n3 (") || strings.Contains(got, "n4 (") || !strings.Contains(got, "5 more") {
		t.Error(got)
	}
}
