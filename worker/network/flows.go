package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetFlows deletes the connection tracking entries of the fabric's addresses, which nobody here has any more. Some
// would stay for ten minutes.
func forgetFlows(pool netip.Prefix) error {
	if !pool.IsValid() {
		return nil
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flowsOf(pool))
	// One that has gone meanwhile is no fault; a kernel without this table has none, one that does not let it be seen (EINVAL) none that can
	// be deleted, and a list that others change meanwhile is not all of them.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("forget the flows of %s: %w", pool, err)
	}
	return nil
}

// within takes flows from or to a prefix, in either direction.
type flowsOf netip.Prefix

func (w flowsOf) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
		if a, ok := netip.AddrFromSlice(ip); ok && netip.Prefix(w).Contains(a.Unmap()) {
			return true
		}
	}
	return false
}
