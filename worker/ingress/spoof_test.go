package ingress

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sendFrom sends a UDP packet from a namespace with any source, as a task with a raw socket can.
func sendFrom(t *testing.T, ns string, from, to netip.AddrPort, payload []byte) {
	t.Helper()
	packet := udpPacket(from, to, payload)
	must(t, in(ns, func() error {
		if to.Addr().Is4() {
			return sendRaw(unix.AF_INET, packet, &unix.SockaddrInet4{Addr: to.Addr().As4()})
		}
		return sendRaw(unix.AF_INET6, packet, &unix.SockaddrInet6{Addr: to.Addr().As16()})
	}))
}

// udpPacket leaves to the kernel what it fills in of an IPv4 header.
func udpPacket(from, to netip.AddrPort, payload []byte) []byte {
	segment := binary.BigEndian.AppendUint16(nil, from.Port())
	segment = binary.BigEndian.AppendUint16(segment, to.Port())
	segment = binary.BigEndian.AppendUint16(segment, uint16(8+len(payload)))
	segment = append(append(segment, 0, 0), payload...)
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(segment)))
	pseudo = append(append(pseudo, 0, 0, 0, unix.IPPROTO_UDP), segment...)
	binary.BigEndian.PutUint16(segment[6:], checksum(pseudo))
	if to.Addr().Is4() {
		header := make([]byte, 20)
		header[0], header[8], header[9] = 0x45, 64, unix.IPPROTO_UDP
		copy(header[12:], from.Addr().AsSlice())
		copy(header[16:], to.Addr().AsSlice())
		return append(header, segment...)
	}
	header := make([]byte, 40)
	header[0], header[6], header[7] = 0x60, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(header[4:], uint16(len(segment)))
	copy(header[8:], from.Addr().AsSlice())
	copy(header[24:], to.Addr().AsSlice())
	return append(header, segment...)
}

func sendRaw(family int, packet []byte, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, packet, 0, to)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// vxlanFrame is an empty frame of the fabric, as VXLAN carries it.
func vxlanFrame() []byte {
	frame := append([]byte{8, 0, 0, 0, 0, 0, testVNI, 0}, fabMAC(1)...)
	frame = append(append(frame, fabMAC(2)...), 8, 6)
	return append(frame, make([]byte, 60)...)
}

var guestAddr = netip.MustParseAddr("172.17.0.2")

// guest is a container of other software on the host, whose packets leave by masquerade.
func (h *host) guest() string {
	t := h.lab.t
	t.Helper()
	ns := h.lab.namespace("guest")
	must(t, in(h.ns, func() error {
		f, err := os.Open(ns)
		must(t, err)
		defer f.Close()
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "docker9", TxQLen: -1}, PeerName: "eth0", PeerNamespace: netlink.NsFd(f.Fd())}))
		up(t, "docker9")
		address(t, "docker9", guestAddr.Prev(), 24)
		c, err := nftables.New()
		must(t, err)
		table := c.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: join(families[0].within(families[0].source, expr.CmpOpEq, netip.PrefixFrom(guestAddr, 32)), []expr.Any{&expr.Masq{}})})
		return c.Flush()
	}))
	must(t, in(ns, func() error {
		up(t, "eth0")
		address(t, "eth0", guestAddr, 24)
		link, err := netlink.LinkByName("eth0")
		must(t, err)
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: guestAddr.Prev().AsSlice()})
	}))
	serveIn(t, h.lab.client, "client")
	eventually(t, "the guest gets out", func() bool {
		got, err := get(ns, "udp", netip.AddrPortFrom(clientAddr, 53).String())
		return err == nil && got == "client "+h.address.String()
	})
	return ns
}

// A task that sends what the fabric sends: to another node, where it would come from its own node's address, and to its own
// node in another's name.
func TestFabric_TaskSendsItsPackets_NoNodeTakesThem(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	own, remote := h.pod("own"), l.hosts[1].pod("remote")
	received := func() uint64 {
		link, err := netlink.LinkByName(testFab)
		must(t, err)
		return link.Attrs().Statistics.RxPackets
	}
	member := func() {
		c, err := net.Dial("udp", h.at(testPort))
		must(t, err)
		defer c.Close()
		_, err = c.Write(vxlanFrame())
		must(t, err)
	}
	at := netip.AddrPortFrom(h.address, testPort)
	// Another bridge's container on the second host, which leaves with its address too.
	guest := l.hosts[1].guest()
	before := received()
	for range 5 {
		sendFrom(t, remote.ns, netip.AddrPortFrom(remote.addr, 12345), at, vxlanFrame())
		sendFrom(t, own.ns, netip.AddrPortFrom(l.hosts[1].address, 12345), at, vxlanFrame())
		sendFrom(t, guest, netip.AddrPortFrom(guestAddr, 12345), at, vxlanFrame())
	}
	must(t, in(l.hosts[1].ns, func() error { member(); return nil })) // comes after those
	eventually(t, "a member's packet is taken", func() bool { return received() > before })
	if n := received() - before; n != 1 {
		t.Errorf("%d packets were taken, want the member's alone", n)
	}
}

func TestUplink_TaskSendsInAnothersName_IsNotHeard(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.pod("a"), h.pod("b")
	for _, c := range []struct {
		name           string
		own, at, other netip.Addr
		client         netip.Addr
	}{{"IPv4", a.addr, h.address, b.addr, clientAddr}, {"IPv6", a.addr6(), h.address6, b.addr6(), clientAddr6}} {
		pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.at, 0)))
		must(t, err)
		defer pc.Close()
		to := pc.LocalAddr().(*net.UDPAddr).AddrPort()
		to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
		for _, from := range []netip.Addr{c.other, c.client, c.at.Next(), c.own} {
			sendFrom(t, a.ns, netip.AddrPortFrom(from, 4000), to, []byte("x"))
		}
		must(t, pc.SetReadDeadline(time.Now().Add(30*time.Second)))
		_, from, err := pc.ReadFromUDPAddrPort(make([]byte, 10))
		must(t, err)
		if from.Addr().Unmap() != c.own {
			t.Errorf("%s: the first packet heard came from %s, want the task's own %s alone", c.name, from.Addr(), c.own)
		}
	}
}

// Kubernetes and others set route_localnet: then a packet to 127.0.0.1 may come by any link.
func TestUplink_LoopbackOfTheHost_IsNotReachedThoughItIsRouted(t *testing.T) {
	l := newLab(t, 1)
	a := l.hosts[0].pod("a")
	const setting = "/proc/sys/net/ipv4/conf/all/route_localnet"
	must(t, os.WriteFile(setting, []byte("1"), 0))
	t.Cleanup(func() { must(t, os.WriteFile(setting, []byte("0"), 0)) })
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer pc.Close()
	port := pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	uplink, err := netlink.LinkByName("u-a")
	must(t, err)
	packet := udpPacket(netip.AddrPortFrom(a.addr, 4000), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), []byte("task"))
	binary.BigEndian.PutUint16(packet[2:], uint16(len(packet)))
	binary.BigEndian.PutUint16(packet[10:], checksum(packet[:20]))
	must(t, in(a.ns, func() error {
		eth0, err := netlink.LinkByName("eth0")
		must(t, err)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		frame := append(append([]byte{}, uplink.Attrs().HardwareAddr...), eth0.Attrs().HardwareAddr...)
		frame = append(append(frame, 8, 0), packet...)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: eth0.Attrs().Index})
	}))
	c, err := net.Dial("udp4", pc.LocalAddr().String())
	must(t, err)
	defer c.Close()
	_, err = c.Write([]byte("host")) // comes after it
	must(t, err)
	must(t, pc.SetReadDeadline(time.Now().Add(30*time.Second)))
	b := make([]byte, 10)
	n, _, err := pc.ReadFromUDPAddrPort(b)
	must(t, err)
	if string(b[:n]) != "host" {
		t.Errorf("the host's loopback heard a %s", b[:n])
	}
}
