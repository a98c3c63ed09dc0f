package network

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/ingress"
)

const (
	// guestDevice is the beginning of the name of a link in a guest's namespace, and maxGuestDevices how many such a namespace
	// may have. Container engines name theirs eth0 and on, so that they never want these.
	guestDevice     = "swarm"
	maxGuestDevices = 64
	// guestAlias is the beginning of the alias of such a link; its task's ID follows.
	guestAlias = "swarmd attachment "
)

// plugGuest joins a guest's namespace to the overlay, by a link whose name is free there. Nothing that is there gives way.
func (o *overlay) plugGuest(taskID, namespace string, address pair) error {
	p := plugging{taskID: taskID, address: address}
	leave, err := p.enter(namespace)
	if err != nil {
		return err
	}
	defer leave()
	if err := o.unplug(taskID); err != nil {
		return err
	}
	if err := p.removeGuestLinks(); err != nil {
		return err
	}
	if err := p.checkRoutes(o.place); err != nil {
		return err
	}
	if p.device, err = p.freeDevice(); err != nil {
		return err
	}
	p.prepare = func() error {
		link, err := p.inside.LinkByName(p.device)
		if err == nil {
			err = p.inside.LinkSetAlias(link, guestAlias+taskID)
		}
		if err != nil {
			return fmt.Errorf("mark %s: %w", p.device, err)
		}
		if !address.v6.IsValid() {
			return nil
		}
		return inNamespace(namespace, func() error { return quietIPv6(p.device) })
	}
	return o.join(p)
}

// freeDevice is a name that no link of the namespace has.
func (p *plugging) freeDevice() (string, error) {
	links, err := listed(p.inside.LinkList)
	if err != nil {
		return "", fmt.Errorf("list links: %w", err)
	}
	taken := map[string]bool{}
	for _, l := range links {
		taken[l.Attrs().Name] = true
		for _, name := range l.Attrs().AltNames {
			taken[name] = true
		}
	}
	for i := range maxGuestDevices {
		if name := fmt.Sprint(guestDevice, i); !taken[name] {
			return name, nil
		}
	}
	return "", unsuited("all names from %s0 to %s%d are taken by links of that namespace; disconnect some", guestDevice, guestDevice, maxGuestDevices-1)
}

// checkRoutes refuses a namespace that reaches something else under addresses of the network.
func (p *plugging) checkRoutes(place overlayPlace) error {
	for _, subnet := range []netip.Prefix{place.subnet, place.subnet6} {
		if !subnet.IsValid() {
			continue
		}
		family := netlink.FAMILY_V4
		if subnet.Addr().Is6() {
			family = netlink.FAMILY_V6
		}
		// Of all tables: RT_TABLE_UNSPEC.
		routes, err := listed(func() ([]netlink.Route, error) {
			return p.inside.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			to, ok := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			if !ok || bits == 0 {
				continue // the default route, which leads where nothing else does
			}
			if route := netip.PrefixFrom(to.Unmap(), bits); route.Overlaps(subnet) {
				return unsuited("that namespace reaches %s already%s, which overlaps subnet %s of the network; take it out of what has that, or make the network with another --subnet",
					route, p.through(r.LinkIndex), subnet)
			}
		}
	}
	return nil
}

// through names a link of the namespace.
func (p *plugging) through(index int) string {
	link, err := p.inside.LinkByIndex(index)
	if err != nil {
		return ""
	}
	return ", through " + link.Attrs().Name
}

// removeGuestLinks removes the links that were made there for the task.
func (p *plugging) removeGuestLinks() error {
	links, err := listed(p.inside.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() != "veth" || l.Attrs().Alias != guestAlias+p.taskID {
			continue
		}
		if err := p.inside.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// removeGuestLink removes what was made for a task in the namespace at path.
func removeGuestLink(path, taskID string) error {
	p := plugging{taskID: taskID}
	leave, err := p.enter(path)
	if err != nil {
		return err
	}
	defer leave()
	return p.removeGuestLinks()
}

// guestNotes are what keeps names from being answered in a guest's namespace: what is there is left as it is.
func guestNotes(path string) (notes []string) {
	err := inNamespace(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil && lo.Attrs().RawFlags&unix.IFF_UP == 0 {
			notes = append(notes, "its loopback is down, so that names are not answered there; bring it up with `ip link set lo up` in that namespace")
		}
		others, err := socketsOn(ingress.ResolverAddress)
		if err == nil && others > 1 { // one is ours
			notes = append(notes, fmt.Sprintf("something else there has %s, as Docker does on networks of its own; ask %s for names of this network",
				ingress.ResolverAddress, ingress.OtherResolverAddress))
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return notes
}

// socketsOn counts the UDP sockets of the calling thread's namespace that are bound to an address.
func socketsOn(a netip.Addr) (int, error) {
	f, err := os.Open("/proc/thread-self/net/udp")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := a.As4()
	want := fmt.Sprintf("%08X:", binary.NativeEndian.Uint32(b[:])) // as the table writes it
	count := 0
	s := bufio.NewScanner(f)
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) > 1 && strings.HasPrefix(fields[1], want) {
			count++
		}
	}
	return count, s.Err()
}
