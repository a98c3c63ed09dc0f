package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Table is our one nftables table, of family inet.
const Table = "swarmd"

// forward sends a port of the host to a container.
type forward struct {
	protocol swarmpb.Protocol
	port     uint16
	to       netip.AddrPort
}

// ruleset is the table: its rules never change once loaded, every change is an element of the map.
//
//	map host-ports { inet_proto . inet_service : ipv4_addr . inet_service }
//	lb           meta nfproto ipv4, fib daddr type local, daddr not 127/8: dnat to (l4proto, dport) map @host-ports
//	pre-nat      prerouting  -105: jump lb
//	out-nat      output      -105: jump lb
//	fwd          forward        0: uplink to uplink: accept what was dnat'ed, drop the rest
//	post-nat     postrouting   95: from the block to elsewhere: masquerade
//	                               dnat'ed and from the block to the uplink: snat to the gateway (hairpin)
type ruleset struct {
	conn  *nftables.Conn
	block netip.Prefix
	ports *nftables.Set
}

func openRules(block netip.Prefix) (*ruleset, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &ruleset{conn: conn, block: block}, nil
}

func (r *ruleset) close() { _ = r.conn.CloseLasting() }

// load replaces the whole table in one transaction: no packet sees it half made.
func (r *ruleset) load(forwards []forward) error {
	table := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	r.conn.AddTable(table) // so that the delete finds one
	r.conn.DelTable(table)
	r.conn.AddTable(table)
	r.ports = &nftables.Set{
		Table: table, Name: "host-ports", IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService),
	}
	if err := r.conn.AddSet(r.ports, elements(forwards)); err != nil {
		return fmt.Errorf("load nftables map: %w", err)
	}
	lb := r.conn.AddChain(&nftables.Chain{Name: "lb", Table: table})
	r.rule(lb, r.lookup()...)
	base := func(name string, hook *nftables.ChainHook, priority int32, kind nftables.ChainType) *nftables.Chain {
		return r.conn.AddChain(&nftables.Chain{Name: name, Table: table, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)), Type: kind})
	}
	toLocal := append(ipv4(), &expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, equal(1, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)))
	toLocal = append(toLocal, address(16, netip.MustParsePrefix("127.0.0.0/8"), expr.CmpOpNeq)...)
	toLocal = append(toLocal, &expr.Verdict{Kind: expr.VerdictJump, Chain: "lb"})
	r.rule(base("pre-nat", nftables.ChainHookPrerouting, -105, nftables.ChainTypeNAT), toLocal...)
	r.rule(base("out-nat", nftables.ChainHookOutput, -105, nftables.ChainTypeNAT), toLocal...)

	fwd := base("fwd", nftables.ChainHookForward, 0, nftables.ChainTypeFilter)
	within := append(uplink(expr.MetaKeyIIFGROUP, expr.CmpOpEq), uplink(expr.MetaKeyOIFGROUP, expr.CmpOpEq)...)
	r.rule(fwd, append(append(within, dnated()...), &expr.Verdict{Kind: expr.VerdictAccept})...)
	r.rule(fwd, append(within, &expr.Verdict{Kind: expr.VerdictDrop})...)

	post := base("post-nat", nftables.ChainHookPostrouting, 95, nftables.ChainTypeNAT)
	fromBlock := append(ipv4(), address(12, r.block, expr.CmpOpEq)...)
	r.rule(post, append(append(fromBlock, uplink(expr.MetaKeyOIFGROUP, expr.CmpOpNeq)...), &expr.Masq{})...)
	hairpin := append(append(fromBlock, uplink(expr.MetaKeyOIFGROUP, expr.CmpOpEq)...), dnated()...)
	gateway := gatewayOf(r.block).As4()
	r.rule(post, append(hairpin, &expr.Immediate{Register: 1, Data: gateway[:]},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})...)
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("load nftables table %s: %w", Table, err)
	}
	return nil
}

func (r *ruleset) rule(c *nftables.Chain, exprs ...expr.Any) {
	r.conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: append([]expr.Any(nil), exprs...)})
}

// lookup loads (l4proto, dport) into the 32-bit registers 8 and 9 and translates by what the map answers there.
func (r *ruleset) lookup() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG32_00},
		&expr.Payload{DestRegister: unix.NFT_REG32_01, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: unix.NFT_REG32_00, DestRegister: unix.NFT_REG32_00, IsDestRegSet: true, SetName: r.ports.Name, SetID: r.ports.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: unix.NFT_REG32_00, RegProtoMin: unix.NFT_REG32_01, Specified: true},
	}
}

func (r *ruleset) add(forwards []forward) error {
	if len(forwards) == 0 {
		return nil
	}
	if err := r.conn.SetAddElements(r.ports, elements(forwards)); err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	if err := r.conn.Flush(); err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	return nil
}

// remove tolerates elements that are not there.
func (r *ruleset) remove(forwards []forward) error {
	for _, f := range forwards {
		if err := r.conn.SetDeleteElements(r.ports, elements([]forward{f})); err != nil {
			return fmt.Errorf("withdraw port %d: %w", f.port, err)
		}
		if err := r.conn.Flush(); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("withdraw port %d: %w", f.port, err)
		}
	}
	return nil
}

func deleteTable() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", Table, err)
	}
	return nil
}

func elements(forwards []forward) []nftables.SetElement {
	var out []nftables.SetElement
	for _, f := range forwards {
		ip, p := f.to.Addr().As4(), f.to.Port()
		out = append(out, nftables.SetElement{
			Key: []byte{protocolNumber(f.protocol), 0, 0, 0, byte(f.port >> 8), byte(f.port), 0, 0},
			Val: []byte{ip[0], ip[1], ip[2], ip[3], byte(p >> 8), byte(p), 0, 0},
		})
	}
	return out
}

func protocolNumber(p swarmpb.Protocol) byte {
	switch p {
	case swarmpb.Protocol_PROTOCOL_UDP:
		return unix.IPPROTO_UDP
	case swarmpb.Protocol_PROTOCOL_SCTP:
		return unix.IPPROTO_SCTP
	}
	return unix.IPPROTO_TCP
}

func equal(register uint32, data []byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func ipv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(1, []byte{unix.NFPROTO_IPV4})}
}

// address compares the IPv4 header's address at offset (12 source, 16 destination) with a prefix.
func address(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	network := p.Masked().Addr().As4()
	mask := ipNet(p.Addr(), p.Bits()).Mask
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: network[:]},
	}
}

// uplink compares the device group of a packet's link with that of the tasks' links.
func uplink(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uplinkGroup)}}
}

// dnated matches packets of a flow whose destination was translated.
func dnated() []expr.Any {
	const ipsDstNAT = 1 << 5 // IPS_DST_NAT of the kernel's nf_conntrack_common.h
	mask := binaryutil.NativeEndian.PutUint32(ipsDstNAT)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}
