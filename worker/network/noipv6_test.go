package network

import (
	"path/filepath"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// IPv6 switched off by sysctl, as many hosts have it: IPv4 works, everywhere.
func TestHost_IPv6SwitchedOff_IPv4Works(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	n := c.nodes[0]
	n.end(t)
	n.do(t, func() error {
		for _, which := range []string{"all", "default", "lo", "wire"} {
			must(t, setSysctl(filepath.Join("net/ipv6/conf", which, "disable_ipv6"), "1"))
		}
		return n.Teardown(t.Context())
	})
	n.start(t)
	c.tellPeers(t, setNetwork(red), setService(&swarmpb.AssignedService{Id: "s", Name: "s", Ports: []*swarmpb.PortConfig{{Protocol: swarmpb.Protocol_PROTOCOL_TCP, PublishedPort: 8080, TargetPort: 80}}}))
	a, b := n.task(t, "atask", at(red, 5)), c.nodes[1].task(t, "btask", at(red, 6))
	answer(t, b.Namespace, "b")
	c.tell(t, false, setEndpoint(n.endpoint("x", "atask", 1, a)), setEndpoint(c.nodes[1].endpoint("s", "btask", 1, b)))
	wants(t, a.Namespace, "10.0.4.6:80", "b 10.0.4.5")
	wants(t, c.client, port8080(n), "b "+wireAddress(clientOctet).String())
	n.do(t, func() error { return n.Check(t.Context()) })
	if p := n.Status().GetProblems(); len(p) > 0 {
		t.Errorf("problems: %q", p)
	}
}

func port8080(n *node) string { return n.address.String() + ":8080" }
