package allocator

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// Networks is the reconciler of what networks are given: their number on the wire, subnet, gateway and range; and it
// removes those that are to go once nothing holds an address of them. All networks are one unit of work: what was chosen for
// several at a time would collide.
type Networks struct{}

var _ reconcile.Reconciler = Networks{}

const networksID = "networks"

// Name stands in logs.
func (Networks) Name() string { return "network-allocator" }

// Affects: networks, the pools and the hosts' routes that subnets keep out of, and what networks that are to go wait for.
func (Networks) Affects(view *store.View, c store.Change) []reconcile.ID {
	switch c.Table {
	case swarmpb.Table_TABLE_CLUSTER, swarmpb.Table_TABLE_NETWORK:
	case swarmpb.Table_TABLE_SERVICE:
		if c.New != nil || !anyNetwork(view, func(n *swarmpb.Network) bool { return n.GetRemoving() }) {
			return nil
		}
	case swarmpb.Table_TABLE_NODE_STATUS:
		old, _ := c.Old.(*swarmpb.NodeStatus)
		now, _ := c.New.(*swarmpb.NodeStatus)
		if slices.Equal(old.GetDescription().GetNetwork().GetRoutes(), now.GetDescription().GetNetwork().GetRoutes()) ||
			!anyNetwork(view, func(n *swarmpb.Network) bool { return view.NetworkProgress(n.GetId()).GetMessage() != "" }) {
			return nil
		}
	case swarmpb.Table_TABLE_ALLOCATION:
		if !released(c) {
			return nil
		}
		switch pool := c.Key.ID; {
		case pool == SubnetPool, pool == VNIPool:
		case isNetworkPool(pool):
			if !view.Network(pool[len(networkPrefix):]).GetRemoving() {
				return nil
			}
		default:
			return nil
		}
	default:
		return nil
	}
	return []reconcile.ID{{Object: networksID}}
}

func anyNetwork(view *store.View, is func(*swarmpb.Network) bool) bool {
	for n := range view.Networks() {
		if is(n) {
			return true
		}
	}
	return false
}

// All is the one unit of work.
func (Networks) All(*store.View) []reconcile.ID { return []reconcile.ID{{Object: networksID}} }

// Reconcile gives each network what it lacks, or says why not, and removes those that are to go and are empty.
func (Networks) Reconcile(view *store.View, _ reconcile.ID, now time.Time) (reconcile.Plan, error) {
	b := &batch{view: view, now: now}
	p := &networkPass{batch: b, vnis: b.numbers(VNIPool, FirstVNI, LastVNI, false), taken: map[netip.Prefix]bool{}}
	for row := range view.Resting(SubnetPool) {
		if until := rest(row); until.After(now) {
			b.wakeAt(until)
			break
		}
	}
	for n := range view.Networks() {
		switch progress := view.NetworkProgress(n.GetId()); {
		case n.GetRemoving():
			p.remove(n)
		case progress == nil || progress.GetMessage() != "":
			p.provide(n, progress)
		}
	}
	p.vnis.forget()
	for row := range view.Resting(SubnetPool) {
		prefix, _ := netip.ParsePrefix(row.GetAddress())
		if rest(row).After(now) {
			break
		}
		if key := swarmpb.AllocationKey(SubnetPool, row.GetAddress()); !p.taken[prefix] {
			p.add([]*swarmpb.Write{remove(key)}, guard(key, row.GetVersion()))
		}
	}
	switch {
	case p.full != "":
		p.raise(SubnetPool, p.full)
	case !p.plan.More:
		p.end(SubnetPool)
	}
	return p.done(), nil
}

// networkPass is one Reconcile.
type networkPass struct {
	*batch
	vnis *numbers
	// subnets are the pools with what is free in them; made when the first subnet is to be chosen.
	subnets []*subnetPool
	made    error
	// taken are the subnets that this plan gives, full what the alarm says.
	taken map[netip.Prefix]bool
	full  string
}

// subnetPool is one of the cluster's address pools.
type subnetPool struct {
	Blocks
	// apart leaves out the subnets that users gave as well: a task may be in both. all does not.
	apart, all *Picker
}

// provide gives a network its number, subnet, gateway and range.
func (p *networkPass) provide(n *swarmpb.Network, old *swarmpb.NetworkProgress) {
	next := &swarmpb.NetworkProgress{NetworkId: n.GetId()}
	guards := []*swarmpb.Guard{
		guard(swarmpb.NetworkKey(n.GetId()), n.GetMeta().GetVersion()),
		guard(swarmpb.NetworkProgressKey(n.GetId()), old.GetMeta().GetVersion()),
	}
	writes, more, err := p.fill(n, next)
	if err != nil {
		next = &swarmpb.NetworkProgress{NetworkId: n.GetId(), Message: err.Error()}
		writes, more = nil, nil
		if old.GetMessage() == next.Message {
			return
		}
	}
	writes = append(writes, putRow(&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: next}}))
	p.add(writes, append(guards, more...)...)
}

// fill makes the row, and the writes of what the network takes from pools.
func (p *networkPass) fill(n *swarmpb.Network, next *swarmpb.NetworkProgress) (writes []*swarmpb.Write, guards []*swarmpb.Guard, err error) {
	given, given6 := givenSubnets(n.GetSpec())
	take := func(pool, address, owner string, version uint64) {
		writes = append(writes, allocation(pool, address, owner))
		guards = append(guards, guard(swarmpb.AllocationKey(pool, address), version))
	}
	subnet, chosen, err := p.subnet(given)
	if err != nil {
		return nil, nil, err
	}
	next.Subnet = subnet.String()
	if chosen {
		take(SubnetPool, next.Subnet, n.GetId(), p.view.Allocation(SubnetPool, next.Subnet).GetVersion())
	}
	vni, version, ok := p.vnis.next(nil)
	if !ok {
		return nil, nil, errors.New("all numbers for networks are in use; remove networks that are not needed")
	}
	next.Vni = uint32(vni)
	take(VNIPool, store.NumberedAddress(vni), n.GetId(), version)
	gateways, err := setGateways(n, subnet, given, given6, next)
	if err != nil {
		return nil, nil, err
	}
	for _, gateway := range gateways {
		pool, address := NetworkPool(n.GetId()), store.NumberedAddress(gateway)
		take(pool, address, Gateway, p.view.Allocation(pool, address).GetVersion())
	}
	next.IpRange = next.Subnet
	if given.GetIpRange() != "" {
		next.IpRange = given.GetIpRange()
	}
	_, err = spaceOf(next)
	return writes, guards, err
}

// givenSubnets are what the user asked for of IPv4 and of IPv6; nil for nothing.
func givenSubnets(spec *swarmpb.NetworkSpec) (v4, v6 *swarmpb.NetworkSubnet) {
	for _, s := range spec.GetSubnets() {
		if prefix, err := netip.ParsePrefix(s.GetSubnet()); err == nil && prefix.Addr().Is6() {
			v6 = s
		} else {
			v4 = s
		}
	}
	return v4, v6
}

// setGateways sets the gateways and the subnet of IPv6, and answers the numbers of the addresses of IPv4 that no task may
// have for that: the gateway, and that whose twin of IPv6 is the other gateway.
func setGateways(n *swarmpb.Network, subnet netip.Prefix, given, given6 *swarmpb.NetworkSubnet, next *swarmpb.NetworkProgress) ([]uint64, error) {
	low, high := ends(subnet)
	gateway := low + 1
	if text := given.GetGateway(); text != "" {
		addr, err := netip.ParseAddr(text)
		if err != nil || !addr.Is4() || !subnet.Contains(addr) {
			return nil, fmt.Errorf("gateway %q is not an address of subnet %s", text, subnet)
		}
		gateway = number(addr)
	}
	next.Gateway = store.NumberedAddress(gateway)
	taken := []uint64{gateway}
	if !n.GetSpec().GetIpv6() && given6 == nil {
		return taken, nil
	}
	subnet6 := uniqueLocal(n.GetId())
	if given6 != nil {
		subnet6, _ = netip.ParsePrefix(given6.GetSubnet())
	}
	subnet6 = subnet6.Masked()
	next.Subnet6, next.Gateway6 = subnet6.String(), hostOf(subnet6, gateway-low).String()
	if text := given6.GetGateway(); text != "" {
		addr, err := netip.ParseAddr(text)
		if err != nil || !subnet6.Contains(addr) {
			return nil, fmt.Errorf("gateway %q is not an address of subnet %s", text, subnet6)
		}
		next.Gateway6 = addr.String()
	}
	// Only a gateway that was given may be the twin of a task's address.
	gateway6, _ := netip.ParseAddr(next.Gateway6)
	if host, ok := hostNumber(subnet6, gateway6); ok && host < high-low && low+host != gateway {
		taken = append(taken, low+host)
	}
	return taken, nil
}

// hostNumber is the inverse of hostOf; false beyond 32 bits.
func hostNumber(subnet6 netip.Prefix, addr netip.Addr) (uint64, bool) {
	base, raw := subnet6.Masked().Addr().As16(), addr.As16()
	host := uint64(0)
	for i := range raw {
		if raw[i] == base[i] && host == 0 {
			continue
		}
		host = host<<8 | uint64(raw[i]^base[i])
		if i < 12 {
			return 0, false
		}
	}
	return host, true
}

// uniqueLocal is a network's subnet of IPv6 when none is given: of its own, for as long as it lives.
func uniqueLocal(networkID string) netip.Prefix {
	sum := sha256.Sum256([]byte("subnet of network " + networkID))
	raw := [16]byte{0: 0xfd}
	copy(raw[1:8], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(raw), 64)
}

// subnet is the one that a user gave, or the lowest that is free.
func (p *networkPass) subnet(given *swarmpb.NetworkSubnet) (prefix netip.Prefix, chosen bool, err error) {
	if text := given.GetSubnet(); text != "" {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || !prefix.Addr().Is4() {
			return netip.Prefix{}, false, fmt.Errorf("subnet %q is not a network of IPv4 in CIDR form", text)
		}
		if blocks, err := fabric(p.view.Cluster().GetSpec()); err == nil && blocks.Pool().Overlaps(prefix) {
			return netip.Prefix{}, false, fmt.Errorf("subnet %s overlaps the fabric pool %s, which the hosts use between them; "+
				"remove the network and make it with another subnet", prefix, blocks.Pool())
		}
		return prefix.Masked(), false, nil
	}
	if p.subnets == nil && p.made == nil {
		p.subnets, p.made = p.openPools()
	}
	if p.made != nil {
		return netip.Prefix{}, false, p.made
	}
	for _, pick := range []func(*subnetPool) *Picker{
		func(s *subnetPool) *Picker { return s.apart }, func(s *subnetPool) *Picker { return s.all },
	} {
		for _, pool := range p.subnets {
			for n, ok := pick(pool).Next(); ok; n, ok = pick(pool).Next() {
				if prefix := pool.At(n); !p.taken[prefix] {
					p.taken[prefix] = true
					return prefix, true, nil
				}
			}
		}
	}
	return netip.Prefix{}, false, p.noSubnet()
}

func (p *networkPass) noSubnet() error {
	var pools []string
	for _, pool := range p.subnets {
		pools = append(pools, pool.Pool().String())
	}
	p.full = fmt.Sprintf("no subnet of length %d is free in the address pools %v: all are networks' already, overlap routes of hosts, or rest for %s "+
		"after their network was removed; remove networks that are not needed (swarmctl network prune), or give one with --subnet",
		p.subnets[0].bits, pools, Rest)
	return errors.New(p.full)
}

// openPools reads the cluster's address pools and what is taken in them.
func (p *networkPass) openPools() ([]*subnetPool, error) {
	spec := p.view.Cluster().GetSpec()
	texts, bits := spec.GetDefaultAddrPools(), int(spec.GetDefaultAddrPoolMaskLength())
	if len(texts) == 0 {
		texts = []string{DefaultAddrPool}
	}
	if bits == 0 {
		bits = DefaultSubnetLength
	}
	taken, given := p.inTheWay()
	var pools []*subnetPool
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || !prefix.Addr().Is4() {
			return nil, fmt.Errorf("the cluster's address pool %q is not a network of IPv4 such as %s", text, DefaultAddrPool)
		}
		blocks, err := NewBlocks(prefix, max(bits, prefix.Bits()))
		if err != nil {
			return nil, fmt.Errorf("the cluster's address pool %s: %w", prefix, err)
		}
		spans := spansOf(blocks, taken, nil)
		pools = append(pools, &subnetPool{
			Blocks: blocks,
			all:    NewPicker(blocks.Count(), spans, p.now),
			apart:  NewPicker(blocks.Count(), spansOf(blocks, given, spans), p.now),
		})
	}
	return pools, nil
}

// spansOf adds the spans of prefixes to those there are.
func spansOf(blocks Blocks, prefixes map[netip.Prefix]time.Time, spans []Span) []Span {
	spans = slices.Clone(spans)
	for prefix, until := range prefixes { // in any order: the picker sorts them
		if span, ok := blocks.Span(prefix); ok {
			span.Until = until
			spans = append(spans, span)
		}
	}
	return spans
}

// inTheWay are the prefixes that no chosen subnet may overlap, with the end of their rest if they have one, and those that
// users gave to networks.
func (p *networkPass) inTheWay() (taken, given map[netip.Prefix]time.Time) {
	taken, given = map[netip.Prefix]time.Time{}, map[netip.Prefix]time.Time{}
	if blocks, err := fabric(p.view.Cluster().GetSpec()); err == nil {
		taken[blocks.Pool()] = time.Time{}
	}
	for node := range p.view.Nodes() {
		status := p.view.NodeStatus(node.GetId())
		for _, route := range status.GetDescription().GetNetwork().GetRoutes() {
			// A default route leads everywhere, and is in nobody's way.
			if prefix, err := netip.ParsePrefix(route); err == nil && prefix.Bits() > 0 {
				taken[prefix.Masked()] = time.Time{}
			}
		}
		if addr, err := netip.ParseAddr(status.GetAddress()); err == nil {
			taken[netip.PrefixFrom(addr, addr.BitLen())] = time.Time{}
		}
	}
	for row := range p.view.Allocations(SubnetPool) {
		prefix, err := netip.ParsePrefix(row.GetAddress())
		if _, known := taken[prefix]; err != nil || known {
			continue
		}
		taken[prefix] = time.Time{}
		if row.GetOwner() == "" {
			taken[prefix] = rest(row)
		}
	}
	for n := range p.view.Networks() {
		if v4, _ := givenSubnets(n.GetSpec()); v4 != nil {
			if prefix, err := netip.ParsePrefix(v4.GetSubnet()); err == nil {
				given[prefix] = time.Time{}
			}
		}
	}
	return taken, given
}

// remove deletes the rows of a network's addresses, and then the network, once nothing holds one of them.
func (p *networkPass) remove(n *swarmpb.Network) {
	if p.view.NetworkInUse(n.GetId()) != "" {
		return
	}
	same := guard(swarmpb.NetworkKey(n.GetId()), n.GetMeta().GetVersion())
	var rows []*swarmpb.Write
	for row := range p.view.Allocations(NetworkPool(n.GetId())) {
		if owner := row.GetOwner(); owner != "" && owner != Gateway {
			return // its release is on the way
		}
		rows = append(rows, remove(swarmpb.AllocationKey(row.GetPool(), row.GetAddress())))
	}
	for part := range slices.Chunk(rows, reconcile.MaxWrites/2) {
		if !p.add(part, same) {
			return
		}
	}
	last := []*swarmpb.Write{remove(same.GetKey())}
	guards := []*swarmpb.Guard{same}
	for row := range p.view.AllocationsOf(n.GetId()) {
		w, g := free(row, p.now)
		last, guards = append(last, w), append(guards, g)
	}
	if alarm := swarmpb.AlarmKey(PoolFullAlarm, NetworkPool(n.GetId())); p.view.Alarm(alarm.GetId(), alarm.GetName()) != nil {
		last = append(last, remove(alarm))
	}
	p.add(last, guards...)
}
