package network

import (
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

// answer serves every connection in a namespace, IPv6 too, with a name and the client's address.
func answer(t testing.TB, ns, name string) {
	t.Helper()
	must(t, in(ns, func() error {
		li, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = li.Close() })
		go func() {
			for {
				c, err := li.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "%s %s", name, c.RemoteAddr().(*net.TCPAddr).IP)
				_ = c.Close()
			}
		}()
		return nil
	}))
}

// wants fails unless one of the wanted answers comes.
func wants(t testing.TB, from, to string, want ...string) {
	t.Helper()
	if got, err := getWithin(from, to, 10*time.Second); err != nil || !slices.Contains(want, got) {
		t.Errorf("to %s: got %q, %v; want %q", to, got, err, want)
	}
}

func refuses(t testing.TB, from, to string) {
	t.Helper()
	if got, err := get(from, to); err == nil {
		t.Errorf("to %s: got %q; want no answer", to, got)
	}
}

func port80(address string) string { return net.JoinHostPort(address, "80") }

func TestOverlay_ThreeHostsTwoNetworksOfOneSubnet_TasksReachTheirOwnNetworkAlone(t *testing.T) {
	c := newCluster(t, 3)
	red, blue := testNetwork("red", 4097, "10.0.4.0/24"), testNetwork("blue", 4098, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red), setNetwork(blue))
	r1, r2 := c.nodes[0].task(t, "red1task", at(red, 5)), c.nodes[1].task(t, "red2task", at(red, 6))
	r3 := c.nodes[1].task(t, "red3task", at(red, 7))
	b1, b2 := c.nodes[0].task(t, "blue1task", at(blue, 5)), c.nodes[2].task(t, "blue2task", at(blue, 6))
	for name, a := range map[string]Attachment{"r1": r1, "r2": r2, "r3": r3, "b1": b1, "b2": b2} {
		answer(t, a.Namespace, name)
	}
	c.tell(t, false, sets(setEndpoint, c.nodes[0].endpoint("r", "red1task", 1, r1), c.nodes[1].endpoint("r", "red2task", 2, r2), c.nodes[1].endpoint("r", "red3task", 3, r3),
		c.nodes[0].endpoint("b", "blue1task", 1, b1), c.nodes[2].endpoint("b", "blue2task", 2, b2))...)
	wants(t, r1.Namespace, "10.0.4.6:80", "r2 10.0.4.5")
	wants(t, r1.Namespace, "10.0.4.7:80", "r3 10.0.4.5")
	wants(t, r2.Namespace, "10.0.4.7:80", "r3 10.0.4.6")
	wants(t, b1.Namespace, "10.0.4.6:80", "b2 10.0.4.5")
	refuses(t, b1.Namespace, "10.0.4.7:80")
	wants(t, r1.Namespace, port80(at(red, 6).Address6), "r2 "+at(red, 5).Address6)
	wants(t, r3.Namespace, port80(at(red, 6).Address6), "r2 "+at(red, 7).Address6)
	refuses(t, c.nodes[1].ns, "10.0.4.6:80") // the host is in no network

	// An endpoint that moves, and one that goes.
	c.tell(t, false, dropEndpoint("red3task"))
	refuses(t, r1.Namespace, "10.0.4.7:80")
	c.nodes[1].do(t, func() error { return c.nodes[1].Detach(t.Context(), "red3task") })
	moved := c.nodes[2].task(t, "red4task", at(red, 7))
	answer(t, moved.Namespace, "r4")
	c.tell(t, false, setEndpoint(c.nodes[2].endpoint("r", "red4task", 3, moved)))
	wants(t, r1.Namespace, "10.0.4.7:80", "r4 10.0.4.5")
	wants(t, r2.Namespace, "10.0.4.7:80", "r4 10.0.4.6")

	// A network without tasks leaves nothing on the node.
	c.nodes[2].do(t, func() error { return c.nodes[2].Detach(t.Context(), "blue2task") })
	if _, err := os.Stat(filepath.Join(c.nodes[2].dir, "overlays", "blue")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the network's namespace is left: %v", err)
	}
}

func TestOverlay_LargestPacket_PassesWithoutFragments(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	small := testNetwork("small", 4099, "10.0.6.0/24")
	small.Spec.Options = map[string]string{"mtu": "1300"}
	c.tellPeers(t, setNetwork(red), setNetwork(small))
	a, b := c.nodes[0].task(t, "atask", at(red, 5), at(small, 5)), c.nodes[1].task(t, "btask", at(red, 6), at(small, 6))
	c.tell(t, false, setEndpoint(c.nodes[0].endpoint("s", "atask", 1, a)), setEndpoint(c.nodes[1].endpoint("s", "btask", 2, b)))
	for _, of := range []struct {
		device string
		mtu    int
		to     string
	}{{"eth1", 1450, "10.0.4.6"}, {"eth2", 1300, "10.0.6.6"}} {
		must(t, in(a.Namespace, func() error {
			l, err := net.InterfaceByName(of.device)
			must(t, err)
			if l.MTU != of.mtu {
				t.Errorf("MTU of %s is %d, want %d", of.device, l.MTU, of.mtu)
			}
			return nil
		}))
		must(t, in(b.Namespace, func() error {
			pc, err := net.ListenPacket("udp4", of.to+":9")
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = pc.Close() })
			go func() {
				buf := make([]byte, 2000)
				for {
					n, from, err := pc.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = pc.WriteTo(buf[:n], from)
				}
			}()
			return nil
		}))
		must(t, in(a.Namespace, func() error { return echoWhole(of.to+":9", of.mtu-28) }))
	}
}

// echoWhole sends a datagram that must not be fragmented, and waits for it to come back.
func echoWhole(to string, size int) error {
	conn, err := net.Dial("udp4", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var opt error
	if err := raw.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}); err != nil || opt != nil {
		return errors.Join(err, opt)
	}
	if _, err := conn.Write(make([]byte, size)); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(deadlineSoon()); err != nil {
		return err
	}
	n, err := conn.Read(make([]byte, size+1))
	if err == nil && n != size {
		return fmt.Errorf("%d bytes came back of %d", n, size)
	}
	return err
}

func TestAttach_NetworksOverlap_IsRefusedAndNamesBoth(t *testing.T) {
	c := newCluster(t, 1)
	red, blue := testNetwork("red", 4097, "10.0.4.0/24"), testNetwork("blue", 4098, "10.0.0.0/16")
	c.tellPeers(t, setNetwork(red), setNetwork(blue))
	err := c.nodes[0].try(func() error {
		_, err := c.nodes[0].Attach(t.Context(), Request{TaskID: "atask", Networks: []*swarmpb.NetworkAddress{at(red, 5), at(blue, 5)}})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "red-net") || !strings.Contains(err.Error(), "blue-net") {
		t.Errorf("got %v; want it to name both networks", err)
	}
}

func TestAttach_NetworkNotTold_IsNotConfigured(t *testing.T) {
	c := newCluster(t, 1)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t)
	try := func() error {
		_, err := c.nodes[0].Attach(t.Context(), Request{TaskID: "atask", Networks: []*swarmpb.NetworkAddress{at(red, 5)}})
		return err
	}
	if err := c.nodes[0].try(try); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("got %v; want ErrNotConfigured", err)
	}
	c.tell(t, false, setNetwork(red))
	must(t, c.nodes[0].try(try))
}

func TestAttach_InternalNetworksAlone_NoWayOutAndNoPorts(t *testing.T) {
	c := newCluster(t, 2)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	red.Spec.Internal = true
	c.tellPeers(t, setNetwork(red))
	a, b := c.nodes[0].task(t, "atask", at(red, 5)), c.nodes[1].task(t, "btask", at(red, 6))
	answer(t, b.Namespace, "b")
	answer(t, c.nodes[0].ns, "host")
	c.tell(t, false, setEndpoint(c.nodes[0].endpoint("s", "atask", 1, a)), setEndpoint(c.nodes[1].endpoint("s", "btask", 2, b)))
	wants(t, a.Namespace, "10.0.4.6:80", "b 10.0.4.5")
	refuses(t, a.Namespace, port80(c.nodes[0].address.String()))
	refuses(t, a.Namespace, port80(a.Gateway.String()))
	err := c.nodes[0].try(func() error {
		_, err := c.nodes[0].Publish(t.Context(), "atask", []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080}})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "internal") {
		t.Errorf("published: %v", err)
	}
	// A second network that is not internal opens the way.
	blue := testNetwork("blue", 4098, "10.0.5.0/24")
	c.tell(t, false, setNetwork(blue))
	both := c.nodes[0].task(t, "ctask", at(red, 7), at(blue, 7))
	wants(t, both.Namespace, port80(c.nodes[0].address.String()), "host "+both.Address.String())
}

func TestUplink_IPv6_GoesOutAndIsReachedFromItsHost(t *testing.T) {
	c := newCluster(t, 2)
	c.tellPeers(t)
	a := c.nodes[0].task(t, "atask")
	if want := netip.MustParseAddr("fd5d:1:2:3:4:5:6440:102"); a.Address6 != want {
		t.Fatalf("address is %s, want %s", a.Address6, want)
	}
	answer(t, a.Namespace, "a")
	answer(t, c.client, "client")
	wants(t, c.nodes[0].ns, port80(a.Address6.String()), "a "+c.nodes[0].place.gateway().v6.String())
	wants(t, a.Namespace, port80(wireAddress6(clientOctet).String()), "client "+wireAddress6(1).String())
}

func TestFabric_PublishedPortOnAnotherNode_ClientAddressKept(t *testing.T) {
	c := newCluster(t, 3)
	c.tellPeers(t)
	a := c.nodes[2].task(t, "atask")
	answer(t, a.Namespace, "a")
	c.tell(t, false, setService(&swarmpb.AssignedService{Id: "s", Name: "web", Ports: []*swarmpb.PortConfig{{Protocol: swarmpb.Protocol_PROTOCOL_TCP, TargetPort: 80, PublishedPort: 8080}}}),
		setEndpoint(c.nodes[2].endpoint("s", "atask", 1, a)))
	for i, n := range c.nodes {
		wants(t, c.client, n.address.String()+":8080", "a "+wireAddress(clientOctet).String())
		if i < 2 { // its own route to the client is by the wire
			wants(t, c.client, net.JoinHostPort(wireAddress6(i+1).String(), "8080"), "a "+wireAddress6(clientOctet).String())
		}
	}
	other := c.nodes[0].task(t, "btask")
	wants(t, other.Namespace, c.nodes[1].address.String()+":8080", "a "+c.nodes[1].place.gateway().v4.String())
	// A peer that goes takes its entries along; one that comes back has them again.
	c.tell(t, false, &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemovePeer{RemovePeer: c.nodes[2].id}})
	refuses(t, c.client, c.nodes[0].address.String()+":8080")
	c.tell(t, false, setPeer(c.nodes[2].peer()))
	wants(t, c.client, c.nodes[0].address.String()+":8080", "a "+wireAddress(clientOctet).String())
}
