package network

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

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

// A host whose kernel has no IPv6 has none in its networks either, whatever addresses its tasks were given.
func TestAttach_NetworkHasNoIPv6Here_AddressOfItIsLeftOut(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	five, six := at(red, 5), at(red, 6)
	red.Progress.Subnet6 = ""
	c.tellPeers(t, setNetwork(red))
	a, b := c.nodes[0].task(t, "atask", five), c.nodes[1].task(t, "btask", six)
	answer(t, b.Namespace, "b")
	c.tell(t, false, setEndpoint(c.nodes[0].endpoint("s", "atask", 1, a)), setEndpoint(c.nodes[1].endpoint("s", "btask", 1, b)))
	wants(t, a.Namespace, "10.0.4.6:80", "b 10.0.4.5")
	must(t, in(a.Namespace, func() error {
		link, err := netlink.LinkByName("eth1")
		must(t, err)
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		must(t, err)
		for _, a := range addrs {
			if a.IP.IsGlobalUnicast() {
				t.Errorf("eth1 has %s", a.IPNet)
			}
		}
		return nil
	}))
	if r := c.nodes[0].overlays["red"].have["btask"]; r.v6.IsValid() || !r.v4.IsValid() {
		t.Errorf("the kernel holds %v", r)
	}
}

// IPv6 wants packets of 1280 bytes; with what VXLAN takes this wire has less.
func TestHost_SmallWire_BothFamiliesWorkAndItIsAProblem(t *testing.T) {
	c := newCluster(t, 2)
	for _, n := range c.nodes {
		n.do(t, func() error {
			link, err := netlink.LinkByName("wire")
			must(t, err)
			return netlink.LinkSetMTU(link, 1300)
		})
	}
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red))
	a, b := c.nodes[0].task(t, "atask", at(red, 5)), c.nodes[1].task(t, "btask", at(red, 6))
	answer(t, b.Namespace, strings.Repeat("b", 20000))
	c.tell(t, false, setEndpoint(c.nodes[0].endpoint("s", "atask", 1, a)), setEndpoint(c.nodes[1].endpoint("s", "btask", 1, b)))
	wants(t, a.Namespace, "10.0.4.6:80", strings.Repeat("b", 20000)+" 10.0.4.5")
	wants(t, a.Namespace, port80(at(red, 6).Address6), strings.Repeat("b", 20000)+" "+at(red, 5).Address6)
	n := c.nodes[0]
	n.do(t, func() error { return n.Check(t.Context()) })
	if p := n.Status().GetProblems(); len(p) != 1 || !strings.Contains(p[0], "MTU of 1300") || !strings.Contains(p[0], "1330") {
		t.Errorf("problems: %q", p)
	}
}
