package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// guardPrefix begins the name of the nftables table of a port; the port's follows.
const guardPrefix = "swarmd-"

// guardPort loads the table that drops what a task sends into the network in another's name: frames from another hardware
// address, packets from another address, and answers for one. A task may write all that itself, and others would send to
// it what is another's.
func (o *overlay) guardPort(port string, address pair) error {
	conn, err := o.nftables()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: guardPrefix + port}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{Name: "from-task", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter, Device: port})
	for _, exprs := range guardRules(address) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("load the rules of %s (they need CONFIG_NETFILTER_INGRESS): %w", port, err)
	}
	o.guarded[port] = true
	return nil
}

// unguardPort tolerates a port without rules.
func (o *overlay) unguardPort(port string) error {
	if !o.guarded[port] {
		return nil
	}
	conn, err := o.nftables()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyNetdev, Name: guardPrefix + port}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove the rules of %s: %w", port, err)
	}
	delete(o.guarded, port)
	return nil
}

// readGuards sees which ports have their rules.
func (o *overlay) readGuards() error {
	conn, err := o.nftables()
	if err != nil {
		return err
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if errors.Is(err, unix.EOPNOTSUPP) {
		chains, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	o.guarded = map[string]bool{}
	for _, c := range chains {
		if port, ours := strings.CutPrefix(c.Table.Name, guardPrefix); ours {
			o.guarded[port] = true
		}
	}
	return nil
}

func (o *overlay) nftables() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(o.ns)))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, nil
}

// guardRules are what a task with these addresses may send: the last one drops all else.
func guardRules(address pair) [][]expr.Any {
	const (
		arpSHA, arpSPA         = 8, 14 // offsets in ARP for Ethernet and IPv4
		source4, source6       = 12, 8
		etherSource            = 6
		advertisement          = 136 // of a neighbour; what it is for is at 8
		routerAdvert, redirect = 134, 137
	)
	mac, link, network, transport := macOf(address.v4), expr.PayloadBaseLLHeader, expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	compare := func(base expr.PayloadBase, offset uint32, op expr.CmpOp, value []byte) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(value))}, &expr.Cmp{Op: op, Register: 1, Data: value}}
	}
	is := func(ethertype uint16, more ...[]expr.Any) []expr.Any {
		out := []expr.Any{&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(ethertype)}}
		for _, m := range more {
			out = append(out, m...)
		}
		return out
	}
	drop, accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}, []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	v4 := address.v4.AsSlice()
	rules := [][]expr.Any{
		append(compare(link, etherSource, expr.CmpOpNeq, mac), drop...),
		is(unix.ETH_P_IP, compare(network, source4, expr.CmpOpEq, v4), accept),
		is(unix.ETH_P_ARP, compare(network, arpSHA, expr.CmpOpEq, mac), compare(network, arpSPA, expr.CmpOpEq, v4), accept),
	}
	if address.v6.IsValid() {
		icmp := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}}}
		linkLocal := func(base expr.PayloadBase, offset uint32, op expr.CmpOp) []expr.Any {
			local := netip.MustParsePrefix("fe80::/10")
			mask := []byte{0xff, 0xc0}
			return []expr.Any{
				&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: 2},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: mask, Xor: make([]byte, 2)},
				&expr.Cmp{Op: op, Register: 1, Data: local.Addr().AsSlice()[:2]},
			}
		}
		v6 := address.v6.AsSlice()
		for _, kind := range []byte{routerAdvert, redirect} {
			rules = append(rules, is(unix.ETH_P_IPV6, icmp, compare(transport, 0, expr.CmpOpEq, []byte{kind}), drop))
		}
		rules = append(rules,
			is(unix.ETH_P_IPV6, icmp, compare(transport, 0, expr.CmpOpEq, []byte{advertisement}), compare(transport, 8, expr.CmpOpNeq, v6),
				linkLocal(transport, 8, expr.CmpOpNeq), drop),
			is(unix.ETH_P_IPV6, compare(network, source6, expr.CmpOpEq, v6), accept),
			is(unix.ETH_P_IPV6, linkLocal(network, source6, expr.CmpOpEq), accept),
			is(unix.ETH_P_IPV6, compare(network, source6, expr.CmpOpEq, make([]byte, 16)), accept), // before it has an address
		)
	}
	return append(rules, drop)
}
