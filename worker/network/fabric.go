package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Fabric is the device that joins the nodes, and the nftables table of family netdev that sends replies back over it.
const (
	Fabric      = "swarm-fab"
	FabricTable = "swarmd-fabric"
)

const (
	// fabricVNI is below those of networks, which begin at 4096.
	fabricVNI = 1
	// fabricTable is the routing table of replies, and the priority of the rule that leads to it: behind those that
	// VPNs make for their own marks, before the main table.
	fabricTable    = 0x5d5d
	fabricPriority = 32000
	// anyPeer is the neighbour that replies are routed to; the hardware address of the right one comes by the mark.
	anyPeer4, anyPeer6 = "169.254.93.1", "fe80::5d"
)

// fabricPlace is this node's place in the fabric.
type fabricPlace struct {
	number  uint32
	address netip.Addr // packets between nodes come from here
	block   netip.Prefix
	prefix6 netip.Prefix // invalid: no IPv6
	port    uint16
	mask    uint32
	mtu     int
}

// fabricPeer is what the kernel holds of another node.
type fabricPeer struct {
	mac     string
	address netip.Addr
	block   netip.Prefix
}

// fabric is the VXLAN device that carries what was translated from node to node, and the replies. For each peer it
// has an entry of the forwarding database, a permanent neighbour and a route a family; a change costs only its peer.
//
// A reply to a client whose address was kept carries, in its mark, the number of the node that the client called.
// One ip rule sends it to the fabric, and a chain on the device's egress writes the number into the frame's
// destination: docs/decisions/0006-return-path-over-the-fabric.md.
type fabric struct {
	place fabricPlace
	index int
	have  map[string]fabricPeer // node ID -> what is in the kernel
}

// fabricMAC is the hardware address of a node's end of the fabric: the bytes of its mark are its last four.
func fabricMAC(number, mask uint32) net.HardwareAddr {
	m := markOf(number, mask)
	return net.HardwareAddr{0x02, 0x5d, byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}
}

// markOf is a number in the bits of the mask.
func markOf(number, mask uint32) uint32 {
	if mask == 0 {
		return 0
	}
	shift := 0
	for ; mask>>shift&1 == 0; shift++ {
	}
	return number << shift & mask
}

// openFabric makes the device and what replies need. A device that is right stays, with its entries.
func openFabric(place fabricPlace) (*fabric, error) {
	f := &fabric{place: place, have: map[string]fabricPeer{}}
	if err := f.makeDevice(); err != nil {
		return nil, err
	}
	if err := f.makeReturnPath(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *fabric) makeDevice() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = Fabric, f.place.mtu, fabricMAC(f.place.number, f.place.mask)
	want := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: fabricVNI, SrcAddr: f.place.address.AsSlice(), Port: int(f.place.port)}
	link, err := f.deviceLike(want)
	if err != nil {
		return err
	}
	f.index = link.Attrs().Index
	if link.Attrs().MTU != f.place.mtu {
		if err := netlink.LinkSetMTU(link, f.place.mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", Fabric, f.place.mtu, err)
		}
	}
	if err := setDeviceSysctls(Fabric, f.place.prefix6.IsValid()); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", Fabric, err)
	}
	return nil
}

// deviceLike finds the device as wanted, or makes it; one that differs in what cannot be changed is replaced.
func (f *fabric) deviceLike(want *netlink.Vxlan) (netlink.Link, error) {
	link, err := netlink.LinkByName(Fabric)
	if err == nil {
		is, ok := link.(*netlink.Vxlan)
		if !ok {
			return nil, fmt.Errorf("link %s exists and is not ours but a %s; remove or rename it", Fabric, link.Type())
		}
		if is.VxlanId == want.VxlanId && is.Port == want.Port && is.SrcAddr.Equal(want.SrcAddr) && !is.Learning &&
			is.HardwareAddr.String() == want.HardwareAddr.String() {
			return link, nil
		}
		if err := removeLink(Fabric); err != nil {
			return nil, err
		}
	}
	if err := netlink.LinkAdd(want); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make link %s: another VXLAN device of this host has VNI %d on port %d: %w", Fabric, want.VxlanId, want.Port, err)
		}
		return nil, fmt.Errorf("make link %s: %w", Fabric, err)
	}
	f.have = map[string]fabricPeer{}
	return netlink.LinkByName(Fabric)
}

// setDeviceSysctls has the device take packets from addresses that are routed elsewhere: clients keep theirs.
func setDeviceSysctls(device string, ipv6 bool) error {
	errs := []error{setSysctl("net/ipv4/conf/"+device+"/rp_filter", "2"), setSysctl("net/ipv4/conf/"+device+"/send_redirects", "0")}
	if ipv6 {
		at := "net/ipv6/conf/" + device + "/"
		errs = append(errs, setSysctl(at+"disable_ipv6", "0"), setSysctl(at+"accept_ra", "0"), setSysctl(at+"accept_dad", "0"))
	}
	return errors.Join(errs...)
}

// makeReturnPath makes the ip rule and the route that replies take, a family, and the chain that addresses them.
func (f *fabric) makeReturnPath() error {
	for _, family := range f.families() {
		via := net.ParseIP(anyPeer4)
		if family == netlink.FAMILY_V6 {
			via = net.ParseIP(anyPeer6)
		}
		neigh := &netlink.Neigh{LinkIndex: f.index, Family: family, State: netlink.NUD_PERMANENT, IP: via, HardwareAddr: fabricMAC(0, f.place.mask)}
		if err := netlink.NeighSet(neigh); err != nil {
			return fmt.Errorf("add neighbour %s: %w", via, err)
		}
		route := &netlink.Route{LinkIndex: f.index, Gw: via, Table: fabricTable, Flags: int(netlink.FLAG_ONLINK), Protocol: routeProtocol, Dst: everywhere(family)}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("add the route of replies: %w", err)
		}
		if err := f.makeRules(family); err != nil {
			return err
		}
	}
	return f.loadEgress()
}

// makeRules send what has a node's number in its mark to the table of replies: every mark that is not zero in our bits.
// Packets of the host's own programs pass them by: marks of those are VPNs' and other software's.
func (f *fabric) makeRules(family int) error {
	want := returnRules(family, f.place.mask)
	have, err := ourRules(family)
	if err != nil {
		return err
	}
	for _, r := range have {
		if i := slices.IndexFunc(want, func(w *netlink.Rule) bool { return sameRule(w, &r) }); i >= 0 {
			want = slices.Delete(want, i, i+1)
		} else if err := gone(netlink.RuleDel(&r)); err != nil {
			return fmt.Errorf("remove a former rule of replies: %w", err)
		}
	}
	for _, r := range want {
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the rule of replies: %w", err)
		}
	}
	return nil
}

// returnRules end with the one that the first leads to.
func returnRules(family int, mask uint32) []*netlink.Rule {
	const actNop = 3 // FR_ACT_NOP of the kernel's fib_rules.h
	local, reply, end := netlink.NewRule(), netlink.NewRule(), netlink.NewRule()
	local.Priority, local.IifName, local.Goto = fabricPriority-1, "lo", fabricPriority+1
	reply.Priority, reply.Mask, reply.Invert, reply.Table = fabricPriority, &mask, true, fabricTable
	end.Priority, end.Type = fabricPriority+1, actNop
	rules := []*netlink.Rule{end, local, reply}
	for _, r := range rules {
		r.Family, r.Protocol = family, routeProtocol
	}
	return rules
}

func sameRule(a, b *netlink.Rule) bool {
	mask := func(r *netlink.Rule) uint32 {
		if r.Mask == nil {
			return 0
		}
		return *r.Mask
	}
	return a.Priority == b.Priority && a.IifName == b.IifName && a.Mark == b.Mark && mask(a) == mask(b) && a.Invert == b.Invert
}

// ourRules finds the rules that are ours by their protocol and place.
func ourRules(family int) ([]netlink.Rule, error) {
	rules, err := netlink.RuleList(family)
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	var ours []netlink.Rule
	for _, r := range rules {
		if r.Protocol == routeProtocol && r.Priority >= fabricPriority-1 && r.Priority <= fabricPriority+1 {
			r.Family = family
			ours = append(ours, r)
		}
	}
	return ours, nil
}

// loadEgress loads the chain on the device's egress, in one transaction: a frame with a mark goes to the node of
// that number, and the mark ends there, so that it does not lead the outer packet astray.
func (f *fabric) loadEgress() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: FabricTable, Family: nftables.TableFamilyNetdev}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{Name: "replies", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookEgress, Priority: nftables.ChainPriorityFilter, Device: Fabric})
	mask, none := binaryutil.NativeEndian.PutUint32(f.place.mask), make([]byte, 4)
	keep := binaryutil.NativeEndian.PutUint32(^f.place.mask)
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: none},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: none},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 2, Len: 4},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: keep, Xor: none},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("load nftables table %s (replies over the fabric need Linux 5.16 with CONFIG_NETFILTER_EGRESS): %w", FabricTable, err)
	}
	return nil
}

func (f *fabric) families() []int {
	if f.place.prefix6.IsValid() {
		return []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	}
	return []int{netlink.FAMILY_V4}
}

func everywhere(family int) *net.IPNet {
	if family == netlink.FAMILY_V6 {
		return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
}

// peerOf is what the kernel is to hold of a peer; false: the peer cannot be reached yet, or is this node.
func (f *fabric) peerOf(p *swarmpb.Peer) (fabricPeer, bool) {
	address, err := netip.ParseAddr(p.GetAddress())
	block, err2 := netip.ParsePrefix(p.GetUplinkBlock())
	if err != nil || err2 != nil || p.GetNumber() == 0 || p.GetNumber() == f.place.number || !block.Addr().Is4() {
		return fabricPeer{}, false
	}
	return fabricPeer{mac: fabricMAC(p.GetNumber(), f.place.mask).String(), address: address.Unmap(), block: block.Masked()}, true
}

// set brings what the kernel holds of a node to what was told of it; nil: it is no peer any more.
func (f *fabric) set(nodeID string, p *swarmpb.Peer) error {
	want, ok := f.peerOf(p)
	have, had := f.have[nodeID]
	if ok && had && want == have {
		return nil
	}
	if had && (!ok || want.mac != have.mac || want.block != have.block || want.address.Is4() != have.address.Is4()) {
		if err := f.remove(nodeID, have); err != nil {
			return err
		}
	}
	if !ok {
		return nil
	}
	if want.address.Is4() != f.place.address.Is4() {
		return fmt.Errorf("node %s has the address %s, this node %s: both have to be of one family; join one of them with an --advertise-addr of the other family",
			nodeID, want.address, f.place.address)
	}
	if err := f.put(want); err != nil {
		return fmt.Errorf("join node %s to the fabric: %w", nodeID, err)
	}
	f.have[nodeID] = want
	return nil
}

func (f *fabric) put(p fabricPeer) error {
	mac, err := net.ParseMAC(p.mac)
	if err != nil {
		return err
	}
	entry := &netlink.Neigh{LinkIndex: f.index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: p.address.AsSlice(), HardwareAddr: mac}
	if err := netlink.NeighSet(entry); err != nil {
		return fmt.Errorf("set forwarding entry: %w", err)
	}
	for _, r := range f.routesTo(p) {
		neigh := &netlink.Neigh{LinkIndex: f.index, State: netlink.NUD_PERMANENT, IP: r.Gw, HardwareAddr: mac}
		if err := netlink.NeighSet(neigh); err != nil {
			return fmt.Errorf("set neighbour %s: %w", r.Gw, err)
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("set the route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

// routesTo lead to a peer's block through its gateway's address, which is what the permanent neighbours are for.
func (f *fabric) routesTo(p fabricPeer) []*netlink.Route {
	gateway := gatewayOf(p.block)
	routes := []*netlink.Route{{LinkIndex: f.index, Dst: ipNet(p.block.Addr(), p.block.Bits()), Gw: gateway.AsSlice(), Src: gatewayOf(f.place.block).AsSlice()}}
	if p6 := f.place.prefix6; p6.IsValid() {
		routes = append(routes, &netlink.Route{LinkIndex: f.index, Dst: netOf(block6(p6, p.block)),
			Gw: swarmpb.Address6(p6, gateway).AsSlice(), Src: swarmpb.Address6(p6, gatewayOf(f.place.block)).AsSlice()})
	}
	for _, r := range routes {
		r.Flags, r.Protocol = int(netlink.FLAG_ONLINK), routeProtocol
	}
	return routes
}

// remove tolerates what is not there.
func (f *fabric) remove(nodeID string, p fabricPeer) error {
	mac, err := net.ParseMAC(p.mac)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range f.routesTo(p) {
		r.Src = nil
		errs = append(errs, gone(netlink.RouteDel(r)), gone(netlink.NeighDel(&netlink.Neigh{LinkIndex: f.index, IP: r.Gw})))
	}
	errs = append(errs, gone(netlink.NeighDel(&netlink.Neigh{LinkIndex: f.index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: p.address.AsSlice(), HardwareAddr: mac})))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take node %s out of the fabric: %w", nodeID, err)
	}
	delete(f.have, nodeID)
	return nil
}

// gone is err, unless it says that what was to go is not there.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// removeFabric takes away everything of the fabric, also what a former process made.
func removeFabric() error {
	errs := []error{removeLink(Fabric)} // with its routes, neighbours and entries
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := ourRules(family)
		if err != nil {
			if !hasIPv6() && family == netlink.FAMILY_V6 {
				continue
			}
			errs = append(errs, err)
		}
		for _, r := range rules {
			errs = append(errs, gone(netlink.RuleDel(&r)))
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("open nftables: %w", err))...)
	}
	table := &nftables.Table{Name: FabricTable, Family: nftables.TableFamilyNetdev}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		errs = append(errs, fmt.Errorf("remove nftables table %s: %w", FabricTable, err))
	}
	return errors.Join(errs...)
}

// block6 is the twin of a block in IPv6.
func block6(prefix6, block netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(swarmpb.Address6(prefix6, block.Addr()), 96+block.Bits()).Masked()
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
