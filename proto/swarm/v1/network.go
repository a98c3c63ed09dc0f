package swarmpb

import (
	"crypto/sha256"
	"net/netip"
)

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

// FabricPrefix6 is the cluster's prefix of 96 bits: a unique local one (RFC 4193) whose global ID comes from the cluster's ID, the
// rest zero. The zero Prefix without an ID.
func FabricPrefix6(clusterID string) netip.Prefix {
	if clusterID == "" {
		return netip.Prefix{}
	}
	sum := sha256.Sum256([]byte("fabric6/" + clusterID))
	address := [16]byte{0: 0xfd}
	copy(address[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(address), 96)
}
