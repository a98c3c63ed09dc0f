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
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
			if err != nil {
				return err
			}
			defer f.Close()
			if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace: %w", err)
			}
			return fn()
		}()
	}()
	return <-done
}

func makeSwitch() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = switchLink
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make switch: %w", err)
	}
	a := Subnet.Addr().As4()
	a[3] = 254
	if err := errors.Join(setUp("lo"), addAddress(switchLink, netip.AddrFrom4(a)), setUp(switchLink)); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	// The switch stands in for the world outside and refuses every connection, so that nothing waits for an answer.
	return netlink.RouteAdd(&netlink.Route{
		Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_MAIN,
		Scope: netlink.SCOPE_HOST, LinkIndex: lo.Attrs().Index,
	})
}

// connect makes the wire between switch and host: node-1 on the switch's side, eth0 in the host.
func (h *Host) connect() error {
	return h.lab.inSwitch(func() error {
		if l, err := netlink.LinkByName(h.Name); err == nil {
			_ = netlink.LinkDel(l)
		}
		sw, err := netlink.LinkByName(switchLink)
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = h.Name, sw.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(h.node.pid)}); err != nil {
			return fmt.Errorf("wire %s: %w", h.Name, err)
		}
		if err := setUp(h.Name); err != nil {
			return err
		}
		return inNamespace(h.node.pid, func() error {
			gw := Subnet.Addr().As4()
			gw[3] = 254
			if err := errors.Join(setUp("lo"), addAddress("eth0", h.Addr), setUp("eth0")); err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{Gw: net.IP(gw[:])})
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

func addAddress(name string, a netip.Addr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}})
}
