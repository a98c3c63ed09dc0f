package ingress

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Bits of the kernel's nf_conntrack_common.h.
const (
	statusDstNAT  = 1 << 5 // IPS_DST_NAT
	directionBack = 1      // IP_CT_DIR_REPLY
)

// maxIfName is IFNAMSIZ.
const maxIfName = 16

// Registers of 32 bits: a concatenated key lies in consecutive ones.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_01
	reg2 = unix.NFT_REG32_02
	reg4 = unix.NFT_REG32_04
	// scratch is behind the longest key.
	scratch = unix.NFT_REG32_12
)

// family is what differs between IPv4 and IPv6.
type family struct {
	proto            byte   // NFPROTO
	size             uint32 // of an address
	source, dest     uint32 // offsets of the addresses in the header
	datatype         nftables.SetDatatype
	loopback         netip.Prefix
	suffix           string // of names of sets
	addressRegisters uint32
}

var families = [2]family{
	{unix.NFPROTO_IPV4, 4, 12, 16, nftables.TypeIPAddr, netip.MustParsePrefix("127.0.0.0/8"), "4", 1},
	{unix.NFPROTO_IPV6, 16, 8, 24, nftables.TypeIP6Addr, netip.MustParsePrefix("::1/128"), "6", 4},
}

// linkLocal addresses cannot be forwarded: what comes to one is left to the proxy.
var linkLocal = netip.MustParsePrefix("fe80::/10")

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func accept() []expr.Any { return verdict(expr.VerdictAccept, "") }
func drop() []expr.Any   { return verdict(expr.VerdictDrop, "") }
func back() []expr.Any   { return verdict(expr.VerdictReturn, "") }

func jump(chain string) []expr.Any { return verdict(expr.VerdictJump, chain) }

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// metaIs compares a property of the packet.
func metaIs(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: scratch}, &expr.Cmp{Op: op, Register: scratch, Data: data}}
}

func (f family) is() []expr.Any { return metaIs(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f.proto}) }

func protocolIs(p byte) []expr.Any { return metaIs(expr.MetaKeyL4PROTO, expr.CmpOpEq, []byte{p}) }

func link(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return metaIs(key, op, append([]byte(name), make([]byte, maxIfName-len(name))...))
}

func group(key expr.MetaKey, op expr.CmpOp, g uint32) []expr.Any { return metaIs(key, op, native(g)) }

// addressLocal matches when an address of the packet is one of this host's.
func addressLocal(source bool) []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: scratch, FlagDADDR: !source, FlagSADDR: source, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: scratch, Data: native(unix.RTN_LOCAL)},
	}
}

// notFromThere matches when no route leads to the packet's source by the link that it came from. It works before routing alone.
func notFromThere() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: scratch, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: scratch, Data: make([]byte, 4)},
	}
}

func (f family) load(offset, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}}
}

// within compares the address at the offset with a prefix.
func (f family) within(offset uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return join(f.load(offset, scratch), []expr.Any{
		&expr.Bitwise{SourceRegister: scratch, DestRegister: scratch, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
		&expr.Cmp{Op: op, Register: scratch, Data: p.Masked().Addr().AsSlice()},
	})
}

// in looks the address at the offset up in a set.
func (f family) in(offset uint32, s *nftables.Set, not bool) []expr.Any {
	return join(f.load(offset, scratch), []expr.Any{&expr.Lookup{SourceRegister: scratch, SetName: s.Name, SetID: s.ID, Invert: not}})
}

// port loads the destination port; with proto before it, that is the beginning of a key.
func protoPort() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

func destPort(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: scratch, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: scratch, Data: []byte{byte(port >> 8), byte(port)}},
	}
}

// dnated matches packets of a flow whose destination was translated, or was not.
func dnated(yes bool) []expr.Any {
	op := expr.CmpOpNeq
	if !yes {
		op = expr.CmpOpEq
	}
	return []expr.Any{
		&expr.Ct{Register: scratch, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: scratch, DestRegister: scratch, Len: 4, Mask: native(statusDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: scratch, Data: make([]byte, 4)},
	}
}

func reply() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: scratch, Key: expr.CtKeyDIRECTION},
		&expr.Cmp{Op: expr.CmpOpEq, Register: scratch, Data: []byte{directionBack}},
	}
}

func newFlow() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: scratch, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: scratch, DestRegister: scratch, Len: 4, Mask: native(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: scratch, Data: make([]byte, 4)},
	}
}

func resetTCP() []expr.Any {
	return join(protocolIs(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
}

func reject(code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: code}}
}

// snat translates the source to one address.
func (f family) snat(to netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: scratch, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: scratch},
	}
}

// masked loads a mark, reduced to the bits of the mask.
func masked(load expr.Any, register, mask uint32) []expr.Any {
	return []expr.Any{load, &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 4, Mask: native(mask), Xor: make([]byte, 4)}}
}

func compare(op expr.CmpOp, register uint32) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: op, Register: register, Data: make([]byte, 4)}}
}
