package network

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// cluster is hosts in namespaces of their own, on one wire, with a client beside them.
type cluster struct {
	wire, client string
	nodes        []*node
}

// node is one host. What touches its kernel runs on its thread, which is in its namespace.
type node struct {
	*Network
	ns, dir string
	keys    string // empty: it takes no part in encrypted networks
	id      string
	number  uint32
	address netip.Addr
	calls   chan func()
	stop    context.CancelFunc
	ran     chan error
}

const clientOctet = 200

func newCluster(t testing.TB, size int) *cluster {
	t.Helper()
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	c := &cluster{wire: filepath.Join(t.TempDir(), "wire"), client: filepath.Join(t.TempDir(), "client")}
	must(t, makeNamespace(c.wire, quietOverlay))
	t.Cleanup(func() { must(t, removeNamespace(c.wire)) })
	must(t, in(c.wire, func() error {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br", TxQLen: -1}}))
		up(t, "br")
		return nil
	}))
	must(t, makeNamespace(c.client, quietContainer))
	t.Cleanup(func() { must(t, removeNamespace(c.client)) })
	c.join(t, c.client, clientOctet)
	for i := range size {
		c.addNode(t, i+1)
	}
	return c
}

func wireAddress(octet int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(octet)}) }

// join puts a namespace on the wire.
func (c *cluster) join(t testing.TB, ns string, octet int) {
	t.Helper()
	f, err := os.Open(ns)
	must(t, err)
	defer f.Close()
	must(t, in(c.wire, func() error {
		name := fmt.Sprintf("w%d", octet)
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500, TxQLen: -1}, PeerName: "wire", PeerNamespace: netlink.NsFd(f.Fd())}))
		port, err := netlink.LinkByName(name)
		must(t, err)
		br, err := netlink.LinkByName("br")
		must(t, err)
		must(t, netlink.LinkSetMasterByIndex(port, br.Attrs().Index))
		up(t, name)
		return nil
	}))
	must(t, in(ns, func() error {
		up(t, "lo")
		addAddr(t, "wire", wireAddress(octet))
		l, err := netlink.LinkByName("wire")
		must(t, err)
		must(t, netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: wireAddress6(octet).AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}))
		up(t, "wire")
		return nil
	}))
}

func wireAddress6(octet int) netip.Addr {
	return swarmpb.Address6(netip.MustParsePrefix("fd99::/96"), wireAddress(octet))
}

func (c *cluster) addNode(t testing.TB, number int) *node {
	t.Helper()
	n := &node{ns: filepath.Join(t.TempDir(), "host"), dir: t.TempDir(), id: fmt.Sprintf("node%d", number), number: uint32(number), address: wireAddress(number), calls: make(chan func())}
	must(t, makeNamespace(n.ns, quietContainer))
	t.Cleanup(func() { must(t, removeNamespace(n.ns)) })
	c.join(t, n.ns, number)
	entered := make(chan error)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open(n.ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		entered <- err
		for call := range n.calls {
			call()
		}
	}()
	must(t, <-entered)
	n.start(t)
	c.nodes = append(c.nodes, n)
	t.Cleanup(func() {
		n.do(t, func() error { return n.Teardown(context.Background()) })
		n.end(t)
		if tt, ok := t.(*testing.T); ok {
			n.do(t, func() error { assertClean(tt, n.dir); return nil })
		}
		close(n.calls)
	})
	return n
}

func (n *node) do(t testing.TB, call func() error) {
	t.Helper()
	must(t, n.try(call))
}

func (n *node) try(call func() error) error {
	done := make(chan error)
	n.calls <- func() { done <- call() }
	return <-done
}

// start is a daemon that begins, with its resolver but without the regular checks.
func (n *node) start(t testing.TB) {
	t.Helper()
	n.do(t, func() (err error) {
		n.Network, err = New(Config{Dir: n.dir, KeyDir: n.keys, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		return n.Configure(t.Context(), n.config())
	})
	ctx, stop := context.WithCancel(context.Background())
	n.stop, n.ran = stop, make(chan error, 1)
	go func(resolver interface{ Run(context.Context) error }) { n.ran <- resolver.Run(ctx) }(n.names.resolver)
}

func (n *node) end(t testing.TB) {
	t.Helper()
	n.stop()
	must(t, <-n.ran)
	n.Close()
}

func (n *node) config() *swarmpb.NodeConfig {
	return &swarmpb.NodeConfig{UplinkBlock: fmt.Sprintf("100.64.%d.0/24", n.number), FabricPool: "100.64.0.0/10", Number: n.number,
		FabricPrefix6: "fd5d:1:2:3:4:5::/96", DataPathPort: 4789}
}

func (n *node) peer() *swarmpb.Peer {
	return &swarmpb.Peer{NodeId: n.id, Number: n.number, Address: n.address.String(), UplinkBlock: n.config().UplinkBlock, WireguardKey: n.Status().GetWireguardKey()}
}

// testNetwork is a network as the managers would tell of it: the tenth of id is its number.
func testNetwork(id string, vni uint32, subnet string) *swarmpb.AssignedNetwork {
	p := netip.MustParsePrefix(subnet)
	return &swarmpb.AssignedNetwork{Id: id, Spec: &swarmpb.NetworkSpec{Name: id + "-net", Ipv6: true},
		Progress: &swarmpb.NetworkProgress{NetworkId: id, Vni: vni, Subnet: subnet, Gateway: p.Addr().Next().String(), Subnet6: fmt.Sprintf("fd00:%x::/64", vni)}}
}

// at is an address in a network: the host number in both subnets.
func at(net *swarmpb.AssignedNetwork, host int) *swarmpb.NetworkAddress {
	four := netip.MustParsePrefix(net.Progress.Subnet).Addr().As4()
	four[3] = byte(host)
	six := netip.MustParsePrefix(net.Progress.Subnet6).Addr().As16()
	six[15] = byte(host)
	return &swarmpb.NetworkAddress{NetworkId: net.Id, Address: netip.AddrFrom4(four).String(), Address6: netip.AddrFrom16(six).String()}
}

func sets[M any](wrap func(M) *swarmpb.AssignmentChange, all ...M) []*swarmpb.AssignmentChange {
	var out []*swarmpb.AssignmentChange
	for _, m := range all {
		out = append(out, wrap(m))
	}
	return out
}

func setPeer(p *swarmpb.Peer) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Peer{Peer: p}}
}

func setNetwork(n *swarmpb.AssignedNetwork) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Network{Network: n}}
}

func setService(s *swarmpb.AssignedService) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Service{Service: s}}
}

func setEndpoint(e *swarmpb.Endpoint) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Endpoint{Endpoint: e}}
}

func dropEndpoint(task string) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveEndpoint{RemoveEndpoint: &swarmpb.RemoveEndpoint{TaskId: task}}}
}

// tell tells all nodes.
func (c *cluster) tell(t testing.TB, full bool, changes ...*swarmpb.AssignmentChange) {
	t.Helper()
	for _, n := range c.nodes {
		n.do(t, func() error { return n.Apply(t.Context(), full, changes) })
	}
}

// tellPeers tells all nodes of all nodes.
func (c *cluster) tellPeers(t testing.TB, others ...*swarmpb.AssignmentChange) {
	t.Helper()
	var peers []*swarmpb.Peer
	for _, n := range c.nodes {
		peers = append(peers, n.peer())
	}
	c.tell(t, true, append(sets(setPeer, peers...), others...)...)
}

// task attaches a task to a node.
func (n *node) task(t testing.TB, id string, networks ...*swarmpb.NetworkAddress) Attachment {
	t.Helper()
	var a Attachment
	n.do(t, func() (err error) {
		a, err = n.Attach(t.Context(), Request{TaskID: id, Networks: networks})
		return err
	})
	return a
}

// endpoint is a task as the managers tell of it.
func (n *node) endpoint(service, task string, slot uint64, a Attachment) *swarmpb.Endpoint {
	return &swarmpb.Endpoint{TaskId: task, ServiceId: service, Slot: slot, NodeId: n.id, State: swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE, Address: a.Address.String(), Networks: a.Networks}
}

// eventually tries until it is so.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		timer := time.NewTimer(20 * time.Millisecond)
		<-timer.C
	}
}
