package lab

import (
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sendWhole sends a datagram that may not be cut into pieces.
func sendWhole(addr, size string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	conn, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}); err != nil {
		return err
	}
	if err != nil {
		return err
	}
	_, err = conn.Write(make([]byte, n))
	return err
}

func addressFor(t *testing.T, link, prefix string) error {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, a)
}

// routeVia routes a prefix through another machine, and has this one forward.
func routeVia(t *testing.T, prefix string, via netip.Addr) error {
	t.Helper()
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}
