package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/network/wireguard"
)

const (
	secret     = "this is what nobody on the wire may read"
	secretPort = 9000
)

// encrypted starts the nodes again with a place for their keys.
func (c *cluster) encrypted(t *testing.T) {
	t.Helper()
	for _, n := range c.nodes {
		n.keys = t.TempDir()
		n.end(t)
		n.start(t)
		if n.Status().GetWireguard() == "" {
			t.Fatalf("no tunnel: %v", n.tunnelErr)
		}
	}
}

// tap counts frames on a host's wire that must not be there: they hold the secret, or are VXLAN, or fragments.
func (c *cluster) tap(t *testing.T, octet int) *atomic.Int64 {
	t.Helper()
	const all = 0x0300 // ETH_P_ALL in network order
	var readable atomic.Int64
	var fd int
	must(t, in(c.wire, func() (err error) {
		link, err := net.InterfaceByName(fmt.Sprintf("w%d", octet))
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}))
	file := os.NewFile(uintptr(fd), "tap") // with the poller: Close ends the reading
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 1<<16)
		for {
			n, err := file.Read(b)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			const ethernet, header4, header6 = 14, 20, 40
			ports := b[ethernet+header6:]
			vxlan := b[12] == 0x86 && b[13] == 0xdd && b[ethernet+6] == unix.IPPROTO_UDP && int(ports[2])<<8|int(ports[3]) == wireguard.VXLANPort
			fragment := b[12] == 8 && b[13] == 0 && (b[ethernet+6]&0x3f != 0 || b[ethernet+7] != 0)
			if bytes.Contains(b[:max(n, 0)], []byte(secret)) || n > ethernet+header4 && fragment || n > ethernet+header6+4 && vxlan {
				readable.Add(1)
			}
		}
	}()
	t.Cleanup(func() { must(t, file.Close()); <-ended })
	return &readable
}

// inbox is where a task hears the secret.
func inbox(t *testing.T, ns string) <-chan string {
	t.Helper()
	var c *net.UDPConn
	must(t, in(ns, func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: secretPort})
		return err
	}))
	heard := make(chan string, 1024)
	go func() {
		b := make([]byte, 2000)
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			heard <- string(b[:n])
		}
	}()
	t.Cleanup(func() { _ = c.Close() })
	return heard
}

func tellSecret(from, to string) error {
	return in(from, func() error {
		c, err := net.Dial("udp4", net.JoinHostPort(to, fmt.Sprint(secretPort)))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte(secret))
		return errors.Join(err, c.Close())
	})
}

// hears sends until it arrives.
func hears(t *testing.T, when, from, to string, heard <-chan string) {
	t.Helper()
	eventually(t, when, func() error {
		if err := tellSecret(from, to); err != nil {
			return err
		}
		select {
		case <-heard:
			return nil
		case <-time.After(100 * time.Millisecond):
			return errors.New("nothing arrived")
		}
	})
}

// deaf sends for a while, and nothing may arrive.
func deaf(t *testing.T, when, from, to string, heard <-chan string) {
	t.Helper()
	for len(heard) > 0 {
		<-heard
	}
	for range 10 {
		_ = tellSecret(from, to) // refused is as well
		select {
		case <-heard:
			t.Fatalf("%s: it arrived", when)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func TestEncrypted_AlwaysEncryptedOrNotAtAll_WhateverBecomesOfTheTunnel(t *testing.T) {
	c := newCluster(t, 2)
	readable := c.tap(t, 1)
	silent := func(when string) {
		t.Helper()
		if n := readable.Load(); n != 0 {
			t.Fatalf("%s: %d readable frames on the wire", when, n)
		}
	}
	c.encrypted(t)
	one, two := c.nodes[0], c.nodes[1]
	back := testNetwork("back", 4097, "10.0.1.0/24")
	back.Spec.Encrypted = true

	// The network is made before anybody knows a key.
	var strangers []*swarmpb.AssignmentChange
	for _, n := range c.nodes {
		p := n.peer()
		p.WireguardKey = nil
		strangers = append(strangers, setPeer(p))
	}
	c.tell(t, true, append(strangers, setNetwork(back))...)
	a, b := one.task(t, "taska", at(back, 11)), two.task(t, "taskb", at(back, 12))
	heard, to := inbox(t, b.Namespace), b.Networks[0].GetAddress()
	endpoints := sets(setEndpoint, one.endpoint("web", "taska", 1, a), two.endpoint("web", "taskb", 2, b))
	c.tell(t, false, endpoints...)
	deaf(t, "no keys yet", a.Namespace, to, heard)
	silent("no keys yet")

	c.tellPeers(t, append([]*swarmpb.AssignmentChange{setNetwork(back)}, endpoints...)...)
	hears(t, "with keys", a.Namespace, to, heard)
	must(t, in(b.Namespace, func() error { return echoDatagrams(t, to+":9") }))
	must(t, in(a.Namespace, func() error {
		const largest = 1500 - 80 - 70 // less WireGuard and VXLAN over IPv6
		if l, err := net.InterfaceByName("eth1"); err != nil || l.MTU != largest {
			return fmt.Errorf("MTU of eth1: %+v (%w), want %d", l, err, largest)
		}
		return echoWhole(to+":9", largest-28)
	}))
	silent("with keys, in packets as large as can be")

	// The tunnel goes, and a route of somebody's leads its packets to the other host all the same.
	one.do(t, func() error { return errors.Join(removeLink(wireguard.Link), one.leak(two)) })
	deaf(t, "tunnel removed", a.Namespace, to, heard)
	silent("tunnel removed")
	// Without the rules that would be seen: it is they that hold it.
	one.do(t, deleteGuard)
	eventually(t, "without rules, as a control", func() error {
		must(t, tellSecret(a.Namespace, to))
		if readable.Load() == 0 {
			return errors.New("no readable frame")
		}
		return nil
	})
	one.do(t, func() error { return errors.Join(one.unleak(two), one.Check(t.Context())) })
	hears(t, "repaired", a.Namespace, to, heard)
	readable.Store(0)
	one.do(t, func() error { return one.leak(two) })
	deaf(t, "led past the tunnel", a.Namespace, to, heard)
	silent("led past the tunnel")
	one.do(t, func() error { return one.unleak(two) })

	// The daemon stops: its tasks go on, and what they say to this network does not leave.
	one.end(t)
	deaf(t, "daemon stopped", a.Namespace, to, heard)
	silent("daemon stopped")
	one.start(t)
	c.tellPeers(t, append([]*swarmpb.AssignmentChange{setNetwork(back)}, endpoints...)...)
	one.task(t, "taska", at(back, 11))
	hears(t, "daemon back", a.Namespace, to, heard)
	silent("daemon back")
}

// What comes in plain text for an encrypted network is not heard, whoever it says it is from.
func TestEncrypted_PlainPacketFromTheWire_IsNotHeard(t *testing.T) {
	c := newCluster(t, 1)
	c.encrypted(t)
	n := c.nodes[0]
	back := testNetwork("back", 4097, "10.0.1.0/24")
	back.Spec.Encrypted = true
	c.tellPeers(t, setNetwork(back))
	b := n.task(t, "taskb", at(back, 12))
	heard := inbox(t, b.Namespace)
	forged := forge(4097, netip.MustParseAddr("10.0.1.11"), netip.MustParseAddr(b.Networks[0].GetAddress()))
	inject := func() error {
		return in(c.client, func() error {
			to := netip.AddrPortFrom(wireAddress6(int(n.number)), wireguard.VXLANPort)
			conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				return err
			}
			_, err = conn.Write(forged)
			return errors.Join(err, conn.Close())
		})
	}
	for range 10 {
		must(t, inject())
		select {
		case text := <-heard:
			t.Fatalf("heard %q", text)
		case <-time.After(50 * time.Millisecond):
		}
	}
	n.do(t, deleteGuard) // a control: without the rules it is heard
	eventually(t, "without rules", func() error {
		must(t, inject())
		select {
		case <-heard:
			return nil
		case <-time.After(50 * time.Millisecond):
			return errors.New("not heard")
		}
	})
}

func TestCheck_KeyIsOld_NewOneIsToldAndPeersGoOnWithIt(t *testing.T) {
	c := newCluster(t, 2)
	c.encrypted(t)
	one, two := c.nodes[0], c.nodes[1]
	back := testNetwork("back", 4097, "10.0.1.0/24")
	back.Spec.Encrypted = true
	c.tellPeers(t, setNetwork(back))
	a, b := one.task(t, "taska", at(back, 11)), two.task(t, "taskb", at(back, 12))
	heard, to := inbox(t, b.Namespace), b.Networks[0].GetAddress()
	c.tell(t, false, sets(setEndpoint, one.endpoint("web", "taska", 1, a), two.endpoint("web", "taskb", 2, b))...)
	hears(t, "with the first key", a.Namespace, to, heard)

	first := one.Status().GetWireguardKey()
	one.do(t, func() error { return one.Check(t.Context()) })
	if !bytes.Equal(one.Status().GetWireguardKey(), first) {
		t.Fatal("a young key was replaced")
	}
	for len(one.Changes()) > 0 {
		<-one.Changes()
	}
	old := time.Now().Add(-keyLife - time.Hour)
	must(t, os.Chtimes(filepath.Join(one.keys, "wireguard.key"), old, old))
	one.do(t, func() error { return one.Check(t.Context()) })
	if bytes.Equal(one.Status().GetWireguardKey(), first) || len(one.Changes()) == 0 {
		t.Fatal("the old key was kept, or nobody is told of the new one")
	}
	c.tell(t, false, setPeer(one.peer()))
	hears(t, "with the new key", a.Namespace, to, heard)
}

// echoDatagrams sends datagrams back until the test ends.
func echoDatagrams(t *testing.T, at string) error {
	c, err := net.ListenPacket("udp4", at)
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return nil
}

// leak leads packets for another node's end of the tunnel straight to it.
func (n *node) leak(to *node) error {
	link, err := netlink.LinkByName("wire")
	if err != nil {
		return err
	}
	r := n.leakRoute(to)
	r.LinkIndex = link.Attrs().Index
	return netlink.RouteReplace(r)
}

func (n *node) unleak(to *node) error { return netlink.RouteDel(n.leakRoute(to)) }

func (n *node) leakRoute(to *node) *netlink.Route {
	end := wireguard.Address(netip.MustParsePrefix(n.config().FabricPrefix6), to.number).Addr()
	return &netlink.Route{Dst: netOf(netip.PrefixFrom(end, 128)), Gw: wireAddress6(int(to.number)).AsSlice(), Priority: 1}
}

func deleteGuard() error {
	conn := &nftables.Conn{}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: wireguard.Table})
	return conn.Flush()
}

// forge is the payload of a VXLAN packet with the secret from one address of a network to another.
func forge(vni uint32, from, to netip.Addr) []byte {
	p := binary.BigEndian.AppendUint64(nil, 0x08<<56|uint64(vni)<<8)
	p = append(append(append(p, macOf(to)...), macOf(from)...), 8, 0)
	const header4, headerUDP, lifetime = 20, 8, 64
	ip := []byte{0x45, 0, 0, header4 + headerUDP + byte(len(secret)), 0, 1, 0, 0, lifetime, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	p = append(p, ip...)
	for _, field := range []uint16{secretPort, secretPort, headerUDP + uint16(len(secret)), 0} {
		p = binary.BigEndian.AppendUint16(p, field)
	}
	return append(p, secret...)
}
