package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is the link that holds the gateway's address on every node.
const Uplink = "swarm-up"

// uplinkGroup is the device group of the host's ends of the tasks' veth pairs: what the rules match.
const uplinkGroup = 0x5d17

// linkPrefix marks the host's end of a task's veth pair.
const linkPrefix = "u-"

// linkName fits IFNAMSIZ; 13 characters of a random base36 ID do not meet twice on one host.
func linkName(taskID string) string {
	return linkPrefix + taskID[:min(len(taskID), 13)]
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, 32)}
}

// macOf derives a link's address from its IP address, so that a neighbour entry is right for ever.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x5d, b[0], b[1], b[2], b[3]}
}

// maxListings are the tries to get a list that nothing has changed meanwhile.
const maxListings = 20

// listed lists again while others change what is listed: the kernel then says that something may be missing.
func listed[T any](list func() ([]T, error)) ([]T, error) {
	all, err := list()
	for range maxListings {
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
		all, err = list()
	}
	return all, err
}

func linkExists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	// It may go by itself meanwhile: a veth pair goes with the namespace of either end, some time after that.
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// removeStrayLinks removes links of the uplink group that carry a task's name but are not in keep.
func removeStrayLinks(keep map[string]bool) error {
	links, err := listed(func() ([]netlink.Link, error) { return netlink.LinkList() })
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		a := l.Attrs()
		if a.Group == uplinkGroup && strings.HasPrefix(a.Name, linkPrefix) && !keep[a.Name] {
			errs = append(errs, removeLink(a.Name))
		}
	}
	return errors.Join(errs...)
}
