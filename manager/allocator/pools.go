package allocator

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	// SubnetPool is the pool of the subnets that were chosen for networks; those that users gave have no row.
	SubnetPool = "subnet"
	// VNIPool is the pool of the networks' numbers on the wire.
	VNIPool = "vni"
	// FirstVNI to LastVNI are the numbers that networks get.
	FirstVNI = 4096
	LastVNI  = 1<<24 - 1
	// FirstPort to LastPort are the published ports that services get which ask for any.
	FirstPort = 30000
	LastPort  = 32767
	// DefaultAddrPool and DefaultSubnetLength hold where the cluster's spec says nothing.
	DefaultAddrPool     = "10.0.0.0/8"
	DefaultSubnetLength = 24
	// Gateway is the owner of the addresses of a network that are its gateways'.
	Gateway = "gateway"

	networkPrefix = "network/"
	portPrefix    = "port/"
)

// NetworkPool is the pool of a network's addresses.
func NetworkPool(networkID string) string { return networkPrefix + networkID }

// PortPool is the pool of the published ports of a protocol.
func PortPool(protocol swarmpb.Protocol) string { return portPrefix + protocol.Name() }

// portPools are the pools of all protocols that this version knows.
func portPools() []string {
	return []string{
		PortPool(swarmpb.Protocol_PROTOCOL_TCP), PortPool(swarmpb.Protocol_PROTOCOL_UDP), PortPool(swarmpb.Protocol_PROTOCOL_SCTP),
	}
}

// Number is a node's number on the wire, from 1 to 65535: that of its block in the fabric pool, plus 1.
func Number(pool, block netip.Prefix) (uint32, error) {
	blocks, err := NewBlocks(pool, block.Bits())
	if err != nil {
		return 0, fmt.Errorf("number block %s: %w", block, err)
	}
	span, ok := blocks.Span(block)
	if !ok || span.First != span.Last {
		return 0, fmt.Errorf("number block %s: it is not in the fabric pool %s", block, pool)
	}
	if span.First >= math.MaxUint16 {
		return 0, fmt.Errorf("number block %s: the fabric pool %s has more than %d blocks of this length", block, pool, math.MaxUint16)
	}
	return uint32(span.First) + 1, nil
}

// space is what a network's addresses are chosen from.
type space struct {
	pool    string
	subnet  netip.Prefix
	subnet6 netip.Prefix
	// first and last are the store's numbers of the range, without the subnet's own address and its broadcast address.
	first, last uint64
	// gateways are the addresses of IPv4 that no task has: the gateway, and that whose twin of IPv6 is the other gateway.
	gateways []string
}

// spaceOf reads what a network was given.
func spaceOf(p *swarmpb.NetworkProgress) (space, error) {
	s := space{pool: NetworkPool(p.GetNetworkId())}
	var err error
	if s.subnet, err = netip.ParsePrefix(p.GetSubnet()); err != nil || !s.subnet.Addr().Is4() {
		return space{}, fmt.Errorf("subnet %q is not one of IPv4", p.GetSubnet())
	}
	if p.GetSubnet6() != "" {
		if s.subnet6, err = netip.ParsePrefix(p.GetSubnet6()); err != nil || !s.subnet6.Addr().Is6() || s.subnet6.Bits() > 96 {
			return space{}, fmt.Errorf("subnet %q is not one of IPv6 with a length of at most 96", p.GetSubnet6())
		}
	}
	inner := s.subnet
	if p.GetIpRange() != "" {
		if inner, err = netip.ParsePrefix(p.GetIpRange()); err != nil || !s.subnet.Contains(inner.Addr()) || inner.Bits() < s.subnet.Bits() {
			return space{}, fmt.Errorf("range %q is not a part of subnet %s", p.GetIpRange(), s.subnet)
		}
	}
	low, high := ends(s.subnet)
	s.gateways = []string{p.GetGateway()}
	if gateway6, err := netip.ParseAddr(p.GetGateway6()); err == nil && s.subnet6.IsValid() {
		if host, ok := hostNumber(s.subnet6, gateway6); ok && host <= high-low && store.NumberedAddress(low+host) != p.GetGateway() {
			s.gateways = append(s.gateways, store.NumberedAddress(low+host))
		}
	}
	s.first, s.last = ends(inner)
	s.first, s.last = max(s.first, low+1), min(s.last, high-1)
	if s.first > s.last {
		return space{}, fmt.Errorf("subnet %s has no room for addresses in range %s", s.subnet, inner)
	}
	return s, nil
}

// reserved is the number of addresses in the range that are gateways'.
func (s space) reserved(view *store.View) (n int) {
	for _, address := range s.gateways {
		number, ok := store.AddressNumber(address)
		if ok && number >= s.first && number <= s.last && view.Allocation(s.pool, address).GetOwner() == Gateway {
			n++
		}
	}
	return n
}

// ends are the store's numbers of the first and last address of a prefix of IPv4.
func ends(p netip.Prefix) (first, last uint64) {
	first = number(p.Masked().Addr())
	return first, first + 1<<(32-p.Bits()) - 1
}

// number is the store's number of an address of IPv4.
func number(a netip.Addr) uint64 {
	n, _ := store.AddressNumber(a.String())
	return n
}

// address is what a task or VIP with the number gets.
func (s space) address(networkID string, n uint64) *swarmpb.NetworkAddress {
	out := &swarmpb.NetworkAddress{NetworkId: networkID, Address: store.NumberedAddress(n)}
	if s.subnet6.IsValid() {
		low, _ := ends(s.subnet)
		out.Address6 = hostOf(s.subnet6, n-low).String()
	}
	return out
}

// hostOf is the address with the host number, below 2^32, in a subnet of IPv6.
func hostOf(subnet6 netip.Prefix, host uint64) netip.Addr {
	raw := subnet6.Masked().Addr().As16()
	binary.BigEndian.PutUint64(raw[8:], binary.BigEndian.Uint64(raw[8:])|host)
	return netip.AddrFrom16(raw)
}

// batch is a plan that fills up.
type batch struct {
	view *store.View
	now  time.Time
	plan reconcile.Plan
	wake time.Time
}

// add puts writes with their guards into the plan, all or none. Without room for them it notes that there is more to do.
func (b *batch) add(writes []*swarmpb.Write, guards ...*swarmpb.Guard) bool {
	if b.plan.More || len(b.plan.Writes)+len(writes) > reconcile.MaxWrites || len(b.plan.Guards)+len(guards) > store.MaxGuards {
		b.plan.More = true
		return false
	}
	b.plan.Writes = append(b.plan.Writes, writes...)
	b.plan.Guards = append(b.plan.Guards, guards...)
	return true
}

// done is the plan, to be looked at again at the wake.
func (b *batch) done() reconcile.Plan {
	if !b.plan.More {
		b.plan.At = b.wake
	}
	return b.plan
}

func (b *batch) wakeAt(t time.Time) {
	if b.wake.IsZero() || t.Before(b.wake) {
		b.wake = t
	}
}

// raise makes an alarm say the message.
func (b *batch) raise(pool, message string) {
	if b.view.Alarm(PoolFullAlarm, pool).GetMessage() == message {
		return
	}
	b.add([]*swarmpb.Write{{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{
		Kind: PoolFullAlarm, Object: pool, Message: message,
	}}}})
}

// end takes an alarm back.
func (b *batch) end(pool string) {
	if b.view.Alarm(PoolFullAlarm, pool) != nil {
		b.add([]*swarmpb.Write{remove(swarmpb.AlarmKey(PoolFullAlarm, pool))})
	}
}

// rest is when an address that was released may be given again.
func rest(row *swarmpb.Allocation) time.Time { return time.Unix(0, row.GetReleasedAt()).Add(Rest) }

// numbers gives out what a pool has, within one plan: from one end what has no row, then what has rested.
type numbers struct {
	*batch
	pool        string
	first, last uint64
	// down: from the highest on.
	down bool
	// low and high are what has not been looked at.
	low, high uint64
	done      bool
	// rested are rows that may be given again or forgotten, at most as many as a plan takes. taken are those given.
	rested []*swarmpb.Allocation
	at     int
	taken  map[string]bool
	more   bool
}

func (b *batch) numbers(pool string, first, last uint64, down bool) *numbers {
	n := &numbers{batch: b, pool: pool, first: first, last: last, down: down, low: first, high: last, taken: map[string]bool{}}
	for row := range b.view.Resting(pool) {
		until := rest(row)
		if until.After(b.now) {
			b.wakeAt(until)
			break
		}
		if n.more = len(n.rested) >= reconcile.MaxWrites; n.more {
			break
		}
		n.rested = append(n.rested, row)
	}
	return n
}

// next is an address that may be given, with the version of its row. taken, which may be nil, are addresses of the pool that
// this plan gives in other ways.
func (n *numbers) next(taken func(address string) bool) (number, version uint64, ok bool) {
	for !n.done {
		if n.down {
			number, ok = n.view.LastFree(n.pool, n.low, n.high)
			n.high = number - 1
		} else {
			number, ok = n.view.FirstFree(n.pool, n.low, n.high)
			n.low = number + 1
		}
		if n.done = !ok || n.low > n.high; !ok {
			break
		}
		if taken == nil || !taken(store.NumberedAddress(number)) {
			return number, 0, true
		}
	}
	for n.at < len(n.rested) {
		row := n.rested[n.at]
		n.at++
		number, ok = store.AddressNumber(row.GetAddress())
		if ok && number >= n.first && number <= n.last && !n.taken[row.GetAddress()] && (taken == nil || !taken(row.GetAddress())) {
			n.taken[row.GetAddress()] = true
			return number, row.GetVersion(), true
		}
	}
	return 0, 0, false
}

// left tells whether there are numbers without a row that were not given.
func (n *numbers) left() bool {
	if n.done {
		return false
	}
	_, ok := n.view.FirstFree(n.pool, n.low, n.high)
	return ok
}

// forget removes the rows of what has rested and was not given again.
func (n *numbers) forget() {
	for _, row := range n.rested {
		if n.taken[row.GetAddress()] {
			continue
		}
		key := swarmpb.AllocationKey(n.pool, row.GetAddress())
		if !n.add([]*swarmpb.Write{remove(key)}, &swarmpb.Guard{Key: key, Version: row.GetVersion()}) {
			return
		}
	}
	n.plan.More = n.plan.More || n.more
}

// allocation is the write that makes a row, and free the one that lets go of it.
func allocation(pool, address, owner string) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Allocation{
		Allocation: &swarmpb.Allocation{Pool: pool, Address: address, Owner: owner},
	}}}}
}

func free(row *swarmpb.Allocation, now time.Time) (*swarmpb.Write, *swarmpb.Guard) {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Allocation{
			Allocation: &swarmpb.Allocation{Pool: row.GetPool(), Address: row.GetAddress(), ReleasedAt: now.UnixNano()},
		}}}}, &swarmpb.Guard{
			Key: swarmpb.AllocationKey(row.GetPool(), row.GetAddress()), Version: row.GetVersion(),
		}
}

func isNetworkPool(pool string) bool { return strings.HasPrefix(pool, networkPrefix) }

func isPortPool(pool string) bool { return strings.HasPrefix(pool, portPrefix) }

// released tells whether a change lets go of an address or forgets it.
func released(c store.Change) bool {
	row, _ := c.New.(*swarmpb.Allocation)
	return row.GetOwner() == ""
}

func putRow(row *swarmpb.Row) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}}
}

func guard(key *swarmpb.RowKey, version uint64) *swarmpb.Guard {
	return &swarmpb.Guard{Key: key, Version: version}
}
