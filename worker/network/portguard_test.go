package network

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sendFrames sends frames out of eth1 of a task, as one with a raw socket can.
func sendFrames(t *testing.T, ns string, frames ...[]byte) {
	t.Helper()
	must(t, in(ns, func() error {
		link, err := netlink.LinkByName("eth1")
		must(t, err)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		for _, f := range frames {
			must(t, unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}))
		}
		return nil
	}))
}

func ethernet(to, from net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	out := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(out, ethertype), payload...)
}

// claim is a gratuitous ARP: it says to somebody who knows it that an address has a hardware address.
func claim(to, from net.HardwareAddr, address netip.Addr, has net.HardwareAddr) []byte {
	arp := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, has...)
	arp = append(append(arp, address.AsSlice()...), make([]byte, 6)...)
	return ethernet(to, from, unix.ETH_P_ARP, append(arp, address.AsSlice()...))
}

// advertise is a neighbour advertisement that overrides.
func advertise(to, from net.HardwareAddr, source, dest, target netip.Addr, has net.HardwareAddr) []byte {
	icmp := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice()...)
	icmp = append(append(icmp, 2, 1), has...)
	pseudo := append(source.AsSlice(), dest.AsSlice()...)
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(icmp))), 0, 0, 0, unix.IPPROTO_ICMPV6)
	sum := uint32(0)
	for i, v := range append(pseudo, icmp...) {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(icmp[2:], ^uint16(sum))
	header := []byte{0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255}
	header = append(append(header, source.AsSlice()...), dest.AsSlice()...)
	return ethernet(to, from, unix.ETH_P_IPV6, append(header, icmp...))
}

func datagram(to, from net.HardwareAddr, source, dest netip.AddrPort) []byte {
	udp := binary.BigEndian.AppendUint16(nil, source.Port())
	udp = binary.BigEndian.AppendUint16(udp, dest.Port())
	udp = append(udp, 0, 9, 0, 0, 'x')
	header := append([]byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, source.Addr().AsSlice()...)
	header = append(header, dest.Addr().AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	binary.BigEndian.PutUint16(header[10:], ^uint16(sum+sum>>16))
	return ethernet(to, from, unix.ETH_P_IP, append(header, udp...))
}

func neighbour(t *testing.T, ns string, of netip.Addr) (mac string) {
	t.Helper()
	must(t, in(ns, func() error {
		all, err := netlink.NeighList(0, 0)
		must(t, err)
		for _, n := range all {
			if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap() == of {
				mac = n.HardwareAddr.String()
			}
		}
		return nil
	}))
	return mac
}

func TestOverlay_TaskSendsInAnothersName_IsNotHeard(t *testing.T) {
	c := newCluster(t, 1)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red))
	n := c.nodes[0]
	evil, victim, server := n.task(t, "eviltask", at(red, 5)), n.task(t, "victimtask", at(red, 6)), n.task(t, "servertask", at(red, 7))
	answer(t, server.Namespace, "server")
	for _, to := range []string{at(red, 7).Address, at(red, 7).Address6} {
		wants(t, victim.Namespace, port80(to), "server "+at(red, 6).Address, "server "+at(red, 6).Address6)
		wants(t, evil.Namespace, port80(to), "server "+at(red, 5).Address, "server "+at(red, 5).Address6)
	}
	four := func(host int) netip.Addr { return netip.MustParseAddr(at(red, host).Address) }
	six := func(host int) netip.Addr { return netip.MustParseAddr(at(red, host).Address6) }
	me, his, to := macOf(four(5)), macOf(four(6)), macOf(four(7))
	var pc net.PacketConn
	must(t, in(server.Namespace, func() (err error) { pc, err = net.ListenPacket("udp4", ":9"); return err }))
	defer pc.Close()
	at9 := netip.AddrPortFrom(four(7), 9)
	sendFrames(t, evil.Namespace,
		claim(to, me, four(6), his), claim(to, his, four(6), me), claim(to, me, four(6), me),
		advertise(to, me, six(5), six(7), six(6), me), advertise(to, me, six(6), six(7), six(6), me),
		datagram(to, me, netip.AddrPortFrom(four(6), 9), at9), datagram(to, his, netip.AddrPortFrom(four(5), 9), at9), datagram(to, his, netip.AddrPortFrom(four(6), 9), at9),
		datagram(to, me, netip.AddrPortFrom(four(5), 5), at9)) // its own comes last
	must(t, pc.SetReadDeadline(time.Now().Add(30*time.Second)))
	_, from, err := pc.ReadFrom(make([]byte, 10))
	must(t, err)
	if want := netip.AddrPortFrom(four(5), 5).String(); from.String() != want {
		t.Errorf("the first packet heard came from %s, want the task's own from %s alone", from, want)
	}
	for _, a := range []netip.Addr{four(6), six(6)} {
		if mac := neighbour(t, server.Namespace, a); mac != his.String() {
			t.Errorf("the server sends what is for %s to %s, want %s: another task took it", a, mac, his)
		}
	}
}

func TestOverlay_RulesOfAPortAreDeleted_AreMadeAgainAndGoWithTheTask(t *testing.T) {
	c := newCluster(t, 1)
	red := testNetwork("red", 4097, "10.0.4.0/24")
	c.tellPeers(t, setNetwork(red))
	n := c.nodes[0]
	a, b := n.task(t, "atask", at(red, 5)), n.task(t, "btask", at(red, 6))
	answer(t, b.Namespace, "b")
	tables := func() (names []string) {
		conn, err := n.overlays["red"].nftables()
		must(t, err)
		all, err := conn.ListTablesOfFamily(nftables.TableFamilyNetdev)
		must(t, err)
		for _, table := range all {
			names = append(names, table.Name)
		}
		return names
	}
	n.do(t, func() error {
		conn, err := n.overlays["red"].nftables()
		must(t, err)
		conn.DelTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: guardPrefix + portName("atask")})
		must(t, conn.Flush())
		return n.Check(t.Context())
	})
	if got := tables(); len(got) != 2 {
		t.Errorf("tables after the check: %q, want one of each port", got)
	}
	wants(t, a.Namespace, "10.0.4.6:80", "b 10.0.4.5")
	n.do(t, func() error { return n.Detach(t.Context(), "atask") })
	if got, want := fmt.Sprint(tables()), fmt.Sprintf("[%s]", guardPrefix+portName("btask")); got != want {
		t.Errorf("tables without the task: %s, want %s", got, want)
	}
}
