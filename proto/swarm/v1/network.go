package swarmpb

import "net/netip"

// NeedsAddresses tells whether tasks of this template get addresses from the allocator before they are placed.
func (x *TaskSpec) NeedsAddresses() bool { return len(x.GetNetworks()) > 0 }

// Reached tells whether the cluster sends connections to the service's tasks, by an ingress port or in a network: they
// are drained before they stop.
func (x *ServiceSpec) Reached() bool {
	if x.GetTask().NeedsAddresses() || len(x.GetUpdate().GetPreviewPorts()) > 0 {
		return true
	}
	for _, port := range x.GetEndpoint().GetPorts() {
		if port.GetMode() != PublishMode_PUBLISH_MODE_HOST {
			return true
		}
	}
	return false
}

// Address6 is a's twin of IPv6: the first 96 bits of prefix6, then a. It is the zero Addr unless prefix6 is of IPv6 and
// leaves 32 bits or more, and a is of IPv4.
func Address6(prefix6 netip.Prefix, a netip.Addr) netip.Addr {
	if !prefix6.IsValid() || !prefix6.Addr().Is6() || prefix6.Bits() > 96 || !a.Is4() {
		return netip.Addr{}
	}
	out, low := prefix6.Masked().Addr().As16(), a.As4()
	copy(out[12:], low[:])
	return netip.AddrFrom16(out)
}
