package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const switchLink = "switch"

// The switch's own last byte in both subnets.
const switchByte = 254

// inSwitch runs fn in the switch's network namespace, on a thread that is thrown away.
func (l *Lab) inSwitch(fn func() error) error { return inNamespace(l.sw.pid, fn) }

func inNamespace(pid int, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // the main thread cannot be thrown away: keep it busy, take another
			err := inNamespace(pid, fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- func() error {
			if err := enter(networkOf(pid)); err != nil {
				return err
			}
			return fn()
		}()
	}()
	return <-done
}

// networkOf is the path of a process's network namespace.
func networkOf(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// enter moves this thread into the network namespace at a path.
func enter(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	return nil
}

// address4 and address6 are the addresses with that last byte in the lab's subnets.
func address4(last byte) netip.Addr {
	a := Subnet.Addr().As4()
	a[3] = last
	return netip.AddrFrom4(a)
}

func address6(last byte) netip.Addr {
	a := Subnet6.Addr().As16()
	a[15] = last
	return netip.AddrFrom16(a)
}

func (l *Lab) makeSwitch() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = switchLink, l.cfg.MTU
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make switch: %w", err)
	}
	if err := errors.Join(setUp("lo"), addAddresses(switchLink, switchByte), setUp(switchLink)); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	// The switch stands in for the world outside and refuses every connection, so that nothing waits for an answer.
	for _, all := range []net.IPNet{
		{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	} {
		if err := netlink.RouteAdd(&netlink.Route{
			Dst: &all, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_MAIN, Scope: netlink.SCOPE_HOST, LinkIndex: lo.Attrs().Index,
		}); err != nil {
			return fmt.Errorf("make the switch the world outside, %s: %w", &all, err)
		}
	}
	return nil
}

// connect makes the host's wire.
func (h *Host) connect() error { return h.lab.wire(h.Name, h.node.pid, byte(h.index)) }

// wire makes the wire between the switch and a namespace: name on the switch's side, eth0 with addresses that end in last on the other.
func (l *Lab) wire(name string, pid int, last byte) error {
	return l.inSwitch(func() error {
		if l, err := netlink.LinkByName(name); err == nil {
			_ = netlink.LinkDel(l)
		}
		sw, err := netlink.LinkByName(switchLink)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex, attrs.MTU = name, sw.Attrs().Index, l.cfg.MTU
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid), PeerMTU: uint32(l.cfg.MTU)}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("wire %s: %w", name, err)
		}
		if err := setUp(name); err != nil {
			return err
		}
		return inNamespace(pid, func() error {
			if err := errors.Join(setUp("lo"), setUp("eth0"), addAddresses("eth0", last)); err != nil {
				return err
			}
			return errors.Join(netlink.RouteAdd(&netlink.Route{Gw: address4(switchByte).AsSlice()}),
				netlink.RouteAdd(&netlink.Route{Gw: address6(switchByte).AsSlice()}))
		})
	})
}

// Cut pulls the host's wire; Mend puts it back.
func (h *Host) Cut() error {
	return h.lab.inSwitch(func() error {
		l, err := netlink.LinkByName(h.Name)
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	})
}

// Mend undoes Cut.
func (h *Host) Mend() error { return h.lab.inSwitch(func() error { return setUp(h.Name) }) }

// Inside runs fn in the host's network namespace.
func (h *Host) Inside(fn func() error) error { return inNamespace(h.node.pid, fn) }

func setUp(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// addAddresses gives a link an address of each of the lab's subnets, usable at once.
func addAddresses(name string, last byte) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{netip.PrefixFrom(address4(last), Subnet.Bits()), netip.PrefixFrom(address6(last), Subnet6.Bits())} {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(l, a); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, p, err)
		}
	}
	return nil
}
