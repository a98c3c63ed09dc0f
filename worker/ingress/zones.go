package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Two connections of one client from the same port, through two nodes and to one replica, reach the replica's node as the same
// addresses and ports. There a flow from the fabric is tracked in a zone of the node that sent it, its original direction alone: the two are told
// apart, and as the replies of both are in the common zone, where addresses and ports must be unique, translation gives the second
// one another port and keeps its address.
//
// The zone is the node's number, which the last four bytes of a fabric device's MAC hold as its mark. It depends on no element, so that
// no change of members moves an established flow into another zone, where it would be a new one. The rules have tables of their own,
// as the library cannot encode them and collects a transaction that nothing can be added to; they too are exchanged in one, and in place.

// zoneTables are the tables of the rules, one a family; the host's own is of both.
var zoneTables = [2]*nftables.Table{
	{Name: Table, Family: nftables.TableFamilyIPv4},
	{Name: Table, Family: nftables.TableFamilyIPv6},
}

// all are the tables that Ingress has in the host.
func (t *table) all() []*nftables.Table { return append([]*nftables.Table{t.inet}, zoneTables[:]...) }

const zoneChain = "zones"

// loadZones loads the tables in one transaction: in place, or anew where they hold what is not ours. A kernel without zones has none:
// there such a second connection gets no answer.
func (k *kernel) loadZones(l layout) (supported bool, err error) {
	for _, inPlace := range []bool{true, false} {
		b, err := encodeZones(l, inPlace)
		if err != nil {
			return false, err
		}
		err = k.transact(b)
		if errors.Is(err, unix.EOPNOTSUPP) && !inPlace {
			return false, nil
		}
		if err != nil && !inPlace {
			return false, fmt.Errorf("load nftables tables of zones: %w", err)
		}
		ours := err == nil
		for _, t := range zoneTables {
			there, err := k.chainsOf(t)
			if err != nil {
				return false, err
			}
			ours = ours && slices.Equal(there, []string{zoneChain})
		}
		if ours {
			return true, nil
		}
	}
	return true, nil
}

func encodeZones(l layout, inPlace bool) ([]byte, error) {
	const request, create = unix.NLM_F_REQUEST, unix.NLM_F_CREATE
	b := &batch{}
	message := func(t *nftables.Table, kind, flags uint16) {
		b.message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, request|flags, byte(t.Family), 0)
	}
	b.message(unix.NFNL_MSG_BATCH_BEGIN, request, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
	for _, t := range zoneTables {
		begin := []struct{ kind, flags uint16 }{{unix.NFT_MSG_NEWTABLE, create}, {unix.NFT_MSG_DELTABLE, 0}, {unix.NFT_MSG_NEWTABLE, create}}
		if inPlace {
			begin = begin[:1]
		}
		for _, m := range begin {
			message(t, m.kind, m.flags)
			b.name(unix.NFTA_TABLE_NAME, t.Name)
			b.end()
		}
		message(t, unix.NFT_MSG_NEWCHAIN, create)
		b.name(unix.NFTA_CHAIN_TABLE, t.Name)
		b.name(unix.NFTA_CHAIN_NAME, zoneChain)
		hook := b.open(unix.NFTA_CHAIN_HOOK | nested)
		b.number(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_PRE_ROUTING)
		priority := int32(-300) // before tracking
		b.number(unix.NFTA_HOOK_PRIORITY, uint32(priority))
		b.close(hook)
		b.name(unix.NFTA_CHAIN_TYPE, string(nftables.ChainTypeFilter))
		b.number(unix.NFTA_CHAIN_POLICY, uint32(nftables.ChainPolicyAccept))
		b.end()
		message(t, unix.NFT_MSG_DELRULE, 0)
		b.name(unix.NFTA_RULE_TABLE, t.Name)
		b.name(unix.NFTA_RULE_CHAIN, zoneChain)
		b.end()
		message(t, unix.NFT_MSG_NEWRULE, create|unix.NLM_F_APPEND)
		b.name(unix.NFTA_RULE_TABLE, t.Name)
		b.name(unix.NFTA_RULE_CHAIN, zoneChain)
		list := b.open(unix.NFTA_RULE_EXPRESSIONS | nested)
		if err := b.zoneRule(byte(t.Family), l); err != nil {
			return nil, err
		}
		b.close(list)
		b.end()
	}
	b.acknowledge()
	b.message(unix.NFNL_MSG_BATCH_END, request, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
	return b.buf, nil
}

// zoneRule is the rule's expressions: iifname FABRIC ct original zone set (ether saddr's mark >> shift).
func (b *batch) zoneRule(family byte, l layout) error {
	for _, e := range join(link(expr.MetaKeyIIFNAME, expr.CmpOpEq, l.fabric), []expr.Any{
		&expr.Payload{DestRegister: scratch, Base: expr.PayloadBaseLLHeader, Offset: 8, Len: 4},
		&expr.Byteorder{SourceRegister: scratch, DestRegister: scratch, Op: expr.ByteorderNtoh, Len: 4, Size: 4},
	}) {
		data, err := expr.Marshal(family, e)
		if err != nil {
			return fmt.Errorf("encode the rule of zones: %w", err)
		}
		b.bytes(unix.NFTA_LIST_ELEM|nested, data)
	}
	if shift := bits.TrailingZeros32(l.mask); shift > 0 {
		const op, data, right = 6, 7, 2 // NFTA_BITWISE_OP, NFTA_BITWISE_DATA, NFT_BITWISE_RSHIFT
		b.expression("bitwise", func() {
			b.number(unix.NFTA_BITWISE_SREG, scratch)
			b.number(unix.NFTA_BITWISE_DREG, scratch)
			b.number(unix.NFTA_BITWISE_LEN, 4)
			b.number(op, right)
			at := b.open(data | nested)
			b.bytes(unix.NFTA_DATA_VALUE, native(uint32(shift)))
			b.close(at)
		})
	}
	const original = 0 // IP_CT_DIR_ORIGINAL
	b.expression("ct", func() {
		b.number(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE)
		b.bytes(unix.NFTA_CT_DIRECTION, []byte{original})
		b.number(unix.NFTA_CT_SREG, scratch)
	})
	return nil
}

func (b *batch) expression(name string, attributes func()) {
	e := b.open(unix.NFTA_LIST_ELEM | nested)
	b.name(unix.NFTA_EXPR_NAME, name)
	data := b.open(unix.NFTA_EXPR_DATA | nested)
	attributes()
	b.close(data)
	b.close(e)
}

func (b *batch) number(kind uint16, v uint32) {
	b.bytes(kind, binary.BigEndian.AppendUint32(nil, v))
}

// acknowledge has the kernel acknowledge the last message.
func (b *batch) acknowledge() {
	binary.NativeEndian.PutUint16(b.buf[b.last+6:], binary.NativeEndian.Uint16(b.buf[b.last+6:])|unix.NLM_F_ACK)
}
