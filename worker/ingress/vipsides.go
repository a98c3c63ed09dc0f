package ingress

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/ingress/slots"
)

// balanceVIP gives the slots of a VIP to its backends; what moves of the old ones is as little as the change allows.
func balanceVIP(vip VIP, old vipBalance) (vipBalance, error) {
	if !vip.Address.IsValid() {
		return nil, errors.New("change VIPs: one has no address")
	}
	byID := map[string]netip.Addr{}
	side := func(backends []Backend) ([]slots.Share, error) {
		shares := make([]slots.Share, 0, len(backends))
		for _, b := range backends {
			if familyOf(b.Address) != familyOf(vip.Address) || !b.Address.IsValid() {
				return nil, fmt.Errorf("change VIPs: backend %s is not of the family of %s", b.Address, vip.Address)
			}
			id := string(b.Address.AsSlice())
			if _, ok := byID[id]; ok {
				return nil, fmt.Errorf("change VIPs: %s names backend %s twice", vip.Address, b.Address)
			}
			byID[id] = b.Address
			shares = append(shares, slots.Share{ID: id, Weight: b.Weight})
		}
		return shares, nil
	}
	sides := slots.Sides{Share: vip.Share}
	var err error
	if sides.Rest, err = side(vip.Backends); err != nil {
		return nil, err
	}
	if sides.Trial, err = side(vip.Trial); err != nil {
		return nil, err
	}
	if sides.Empty() {
		return vipBalance{}, nil
	}
	before := make([]string, len(old))
	for i, a := range old {
		before[i] = string(a.AsSlice())
	}
	ids := slots.Next(before, sides)
	to := make(vipBalance, len(ids))
	for i, id := range ids {
		to[i] = byID[id]
	}
	return to, nil
}

// FlushUDP deletes the namespace's connection tracking entries of UDP to backends' addresses.
func (v *VIPs) FlushUDP(addrs []netip.Addr) error {
	filters := make([]ctFilter, len(addrs))
	for i, a := range addrs {
		filters[i] = ctFilter{answering: a, protocol: unix.IPPROTO_UDP}
	}
	return deleteFlows(v.namespace, filters...)
}
