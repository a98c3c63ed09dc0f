package network

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FabricTable is the nftables table of family netdev that sends replies back over the fabric.
const FabricTable = "swarmd-fabric"

const (
	// fabricTable is the routing table of replies, and fabricPriority that of the rule that leads to it: behind those that
	// VPNs make for their own marks, before the main table.
	fabricTable    = 0x5d5d
	fabricPriority = 32000
	// repliesChain is the one chain of FabricTable.
	repliesChain = "replies"
	// anyPeer is the neighbour that replies are routed to; the hardware address of the right one comes by the mark.
	anyPeer4, anyPeer6 = "169.254.93.1", "fe80::5d"
)

// makeReturnPath makes the ip rule and the route that replies take, a family, and the chain that addresses them.
func (f *fabric) makeReturnPath() error {
	for _, family := range families(f.place.prefix6.IsValid()) {
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

// makeRules send what has a node's number in its mark to the table of replies: every mark of what our tasks send that is not
// zero in our bits. Packets of the host's own programs, and of other software's containers, pass them by: their marks are not ours.
func (f *fabric) makeRules(family int) error {
	want := f.returnRules(family)
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

// returnRules begin with the one that those before the last lead to.
func (f *fabric) returnRules(family int) []*netlink.Rule {
	const actNop = 3 // FR_ACT_NOP of the kernel's fib_rules.h
	local, others, reply, end := netlink.NewRule(), netlink.NewRule(), netlink.NewRule(), netlink.NewRule()
	local.Priority, local.IifName, local.Goto = fabricPriority-1, "lo", fabricPriority+1
	block := f.place.block
	if family == netlink.FAMILY_V6 {
		block = block6(f.place.prefix6, block)
	}
	others.Priority, others.Src, others.Invert, others.Goto = fabricPriority-1, netOf(block), true, fabricPriority+1
	reply.Priority, reply.Mask, reply.Invert, reply.Table = fabricPriority, &f.place.mask, true, fabricTable
	end.Priority, end.Type = fabricPriority+1, actNop
	rules := []*netlink.Rule{end, local, others, reply}
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
	source := func(r *netlink.Rule) string {
		if r.Src == nil {
			return ""
		}
		return r.Src.String()
	}
	return a.Priority == b.Priority && a.IifName == b.IifName && a.Mark == b.Mark && mask(a) == mask(b) && a.Invert == b.Invert && source(a) == source(b)
}

// ourRules finds the rules that are ours by their protocol and place.
func ourRules(family int) ([]netlink.Rule, error) {
	rules, err := listed(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
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

// loadEgress loads the chain on the device's egress, in one transaction: a reply, which is addressed to any peer, goes to the
// node of the number in its mark. Our bits of a mark end there, whoever set them, so that they do not lead the outer packet astray.
func (f *fabric) loadEgress() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: FabricTable, Family: nftables.TableFamilyNetdev}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{Name: repliesChain, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookEgress, Priority: nftables.ChainPriorityFilter, Device: Fabric})
	mask, none := binaryutil.NativeEndian.PutUint32(f.place.mask), make([]byte, 4)
	keep := binaryutil.NativeEndian.PutUint32(^f.place.mask)
	const address = 6 // bytes, at the head of a frame
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Len: address},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: fabricMAC(0, f.place.mask)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: none},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: none},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 2, Len: 4},
	}})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: keep, Xor: none},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("load nftables table %s (replies over the fabric need Linux 5.16 with CONFIG_NETFILTER_EGRESS): %w", FabricTable, err)
	}
	return nil
}

func everywhere(family int) *net.IPNet {
	if family == netlink.FAMILY_V6 {
		return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
}

// removeReturnPath takes the rules and the chain away, also a former process's; the routes go with the device.
func removeReturnPath() error {
	var errs []error
	for _, family := range families(hasIPv6()) {
		rules, err := ourRules(family)
		errs = append(errs, err)
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

// returnPathIntact tells whether the rules, routes and the chain of replies are there.
func (f *fabric) returnPathIntact() (bool, error) {
	for _, family := range families(f.place.prefix6.IsValid()) {
		have, err := ourRules(family)
		if err != nil {
			return false, err
		}
		for _, w := range f.returnRules(family) {
			if !slices.ContainsFunc(have, func(r netlink.Rule) bool { return sameRule(w, &r) }) {
				return false, nil
			}
		}
		routes, err := listed(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: fabricTable, LinkIndex: f.index}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		})
		if err != nil || len(routes) != 1 {
			return false, err
		}
	}
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == FabricTable && c.Name == repliesChain {
			rules, err := conn.GetRules(c.Table, c)
			return len(rules) == 2, err
		}
	}
	return false, nil
}
