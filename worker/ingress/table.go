package ingress

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress/slots"
)

// affinitySeed is the same on every node, so that a client's address has the same slot everywhere.
const affinitySeed = 0x5d17a11f

// table is the layout of the host's table. Its rules never change while the host is configured alike; every change is
// elements.
//
//	map  published    proto . port -> goto the chain of its slot class: r16 to r4096 by chance, c16 to c4096 by client address
//	map  be4, be6     proto . port . slot -> address . port
//	map  instead4, instead6  proto . address . port of a task of this node that has gone -> those of another replica on it
//	set  ports        proto . port, also of what has no backend: it is refused
//	set  source-nat   proto . port: the replica sees this node's address
//	set  pods4, pods6 addresses of this node's tasks; the rest of the block is refused
//	set  reached4, reached6  addresses of tasks that a flow was led to, written by the rules
//	set  nodes4, nodes6  all addresses of the members; fabric4, fabric6: those that the fabric's packets come from, one each; map node-of-mac: the mark of the node that a packet came from over the fabric
type table struct {
	inet *nftables.Table

	published, ports, sourceNAT, nodeOfMAC          *nftables.Set
	backends, instead, pods, nodes, fabric, reached [2]*nftables.Set // by family

	// withoutHash: the kernel cannot hash a client's address (CONFIG_NFT_HASH), so all slots are taken by chance.
	withoutHash bool
	hashType    expr.HashType
}

func newTable() *table {
	t := &table{inet: &nftables.Table{Name: Table, Family: nftables.TableFamilyINet}, hashType: expr.HashTypeJenkins}
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	id := uint32(0)
	set := func(name string, key nftables.SetDatatype, concat bool) *nftables.Set {
		id++ // numbers of our own: the library's counter is not safe for concurrent use
		return &nftables.Set{Table: t.inet, Name: name, ID: id, KeyType: key, Concatenation: concat}
	}
	mapping := func(name string, key, data nftables.SetDatatype, concat bool) *nftables.Set {
		s := set(name, key, concat)
		s.IsMap, s.DataType = true, data
		return s
	}
	t.published = mapping("published", port, nftables.TypeVerdict, true)
	t.ports = set("ports", port, true)
	t.sourceNAT = set("source-nat", port, true)
	t.nodeOfMAC = mapping("node-of-mac", nftables.TypeEtherAddr, nftables.TypeMark, false)
	for i, f := range families {
		t.backends[i] = mapping("be"+f.suffix, nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark),
			nftables.MustConcatSetType(f.datatype, nftables.TypeInetService), true)
		t.instead[i] = mapping("instead"+f.suffix, nftables.MustConcatSetType(nftables.TypeInetProto, f.datatype, nftables.TypeInetService),
			nftables.MustConcatSetType(f.datatype, nftables.TypeInetService), true)
		t.pods[i] = set("pods"+f.suffix, f.datatype, false)
		t.nodes[i] = set("nodes"+f.suffix, f.datatype, false)
		t.fabric[i] = set("fabric"+f.suffix, f.datatype, false)
		t.reached[i] = set("reached"+f.suffix, f.datatype, false)
		t.reached[i].Dynamic, t.reached[i].Size = true, maxReached
	}
	return t
}

// maxReached is how many addresses are remembered as reached; those beyond it keep their connections until these time out.
const maxReached = 1 << 16

// sets are all but those that the rules write.
func (t *table) sets() []*nftables.Set {
	return slices.Concat([]*nftables.Set{t.published, t.ports, t.sourceNAT, t.nodeOfMAC}, t.backends[:], t.instead[:], t.pods[:], t.nodes[:], t.fabric[:])
}

// layout is what the rules depend on.
type layout struct {
	host        Host
	uplinkGroup uint32
	fabric      string
	mask        uint32
}

// own is this node's block or its twin of IPv6; not valid without IPv6.
func (l layout) own(f family) netip.Prefix {
	if f.proto == unix.NFPROTO_IPV4 {
		return l.host.Block
	}
	return twinPrefix(l.host.Prefix6, l.host.Block)
}

// pool is where the addresses of all nodes' tasks come from.
func (l layout) pool(f family) netip.Prefix {
	pool := l.host.Pool
	if !pool.IsValid() {
		pool = l.host.Block
	}
	if f.proto == unix.NFPROTO_IPV4 {
		return pool.Masked()
	}
	return twinPrefix(l.host.Prefix6, pool)
}

func (l layout) gateway(f family) netip.Addr {
	if p := l.own(f); p.IsValid() {
		return p.Addr().Next()
	}
	return netip.Addr{}
}

// usedFamilies is IPv4 and, with a prefix, IPv6.
func (l layout) usedFamilies() []family {
	if !l.host.Prefix6.IsValid() {
		return families[:1]
	}
	return families[:]
}

// load fills the table with our rules and the given elements. published comes with the chains that it names, so the order is: sets,
// class chains, elements, hooks.
func (t *table) load(k *loading, l layout, elements map[*nftables.Set][]nftables.SetElement) error {
	for _, s := range t.sets() {
		if s == t.published {
			continue
		}
		if err := k.fillSet(s, elements[s]); err != nil {
			return err
		}
	}
	for _, s := range t.reached {
		if err := k.addSet(s, elements[s]); err != nil {
			return err
		}
	}
	for _, c := range slots.Classes {
		for _, kind := range []byte{byChance, byClient} {
			t.classChain(k, kind, c)
		}
	}
	if err := k.fillSet(t.published, elements[t.published]); err != nil {
		return err
	}
	t.rawHooks(k, l)
	t.mangleHooks(k, l)
	t.translation(k, l)
	t.filters(k, l)
	t.sources(k, l)
	return nil
}

func (t *table) chain(k *loading, name string) *nftables.Chain {
	return k.chain(&nftables.Chain{Name: name, Table: t.inet})
}

func (t *table) base(k *loading, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority int32) *nftables.Chain {
	return k.chain(&nftables.Chain{
		Name: name, Table: t.inet, Type: kind, Hooknum: hook, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)),
	})
}

func rule(k *loading, c *nftables.Chain, parts ...[]expr.Any) {
	k.conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: join(parts...)})
}

// Kinds of classes: how a connection takes its slot.
const (
	byChance = 'r'
	byClient = 'c'
)

// clientHash is the slot of a client's address.
func (t *table) clientHash(class int, f family) []expr.Any {
	hash := &expr.Hash{SourceRegister: scratch, DestRegister: reg2, Length: f.size, Modulus: uint32(class), Seed: affinitySeed, Type: t.hashType}
	return join(f.load(f.source, scratch), []expr.Any{hash})
}

// classChain translates by (proto, port, slot). The backend's address and port come into the registers of the key.
func (t *table) classChain(k *loading, kind byte, class int) {
	c := t.chain(k, chainName(kind, class))
	for i, f := range families {
		slot := []expr.Any{&expr.Numgen{Register: reg2, Modulus: uint32(class), Type: unix.NFT_NG_RANDOM}}
		if kind == byClient && !t.withoutHash {
			slot = t.clientHash(class, f)
		}
		rule(k, c, f.is(), protoPort(), slot, []expr.Any{
			&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: t.backends[i].Name, SetID: t.backends[i].ID},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg0, RegProtoMin: reg0 + f.addressRegisters, Specified: true},
		})
	}
}

// rawHooks drop what a task sends from an address that is not its own, and spare the fabric's own packets connection tracking.
// A task may write any source into a packet; a member's would be let into the fabric, another task's be taken for it.
func (t *table) rawHooks(k *loading, l layout) {
	pre := t.base(k, "pre-raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)
	rule(k, pre, group(expr.MetaKeyIIFGROUP, expr.CmpOpEq, l.uplinkGroup), notFromThere(), drop())
	if l.host.DataPathPort == 0 {
		return
	}
	out := t.base(k, "out-raw", nftables.ChainTypeFilter, nftables.ChainHookOutput, -300)
	tunnel := join(protocolIs(unix.IPPROTO_UDP), destPort(l.host.DataPathPort))
	rule(k, pre, tunnel, addressLocal(false), []expr.Any{&expr.Notrack{}})
	for i, f := range families {
		rule(k, out, tunnel, f.is(), f.in(f.dest, t.nodes[i], false), []expr.Any{&expr.Notrack{}})
	}
}

// translation leads what is sent to a published port of this host to a slot. Loopback is left to the proxy.
func (t *table) translation(k *loading, l layout) {
	lb := t.chain(k, "lb")
	rule(k, lb, protoPort(), []expr.Any{&expr.Lookup{SourceRegister: reg0, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: t.published.Name, SetID: t.published.ID}})
	pre := t.base(k, "pre-nat", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -105)
	t.handOver(k, pre, l)
	rule(k, pre, link(expr.MetaKeyIIFNAME, expr.CmpOpEq, l.fabric), back())
	out := t.base(k, "out-nat", nftables.ChainTypeNAT, nftables.ChainHookOutput, -105)
	for _, c := range []*nftables.Chain{pre, out} {
		v4, v6 := families[0], families[1]
		rule(k, c, v4.is(), addressLocal(false), v4.within(v4.dest, expr.CmpOpNeq, v4.loopback), jump(lb.Name))
		rule(k, c, v6.is(), addressLocal(false), v6.within(v6.dest, expr.CmpOpNeq, v6.loopback), v6.within(v6.dest, expr.CmpOpNeq, linkLocal), jump(lb.Name))
	}
}

// mangleHooks remember from which node a kept client's flow came, and lead its replies back there.
func (t *table) mangleHooks(k *loading, l layout) {
	remember := t.chain(k, "remember")
	t.setMark(k, remember, l.mask, expr.Ct{Key: expr.CtKeyMARK}, func(register uint32) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: register, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
			&expr.Lookup{SourceRegister: register, DestRegister: register, IsDestRegSet: true, SetName: t.nodeOfMAC.Name, SetID: t.nodeOfMAC.ID},
		}
	})
	lead := t.chain(k, "lead-back")
	t.setMark(k, lead, l.mask, expr.Meta{Key: expr.MetaKeyMARK}, func(register uint32) []expr.Any {
		return masked(&expr.Ct{Key: expr.CtKeyMARK, Register: register}, register, l.mask)
	})
	came := join(masked(&expr.Ct{Key: expr.CtKeyMARK, Register: scratch}, scratch, l.mask), compare(expr.CmpOpNeq, scratch))
	pre := t.base(k, "pre-mangle", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -150)
	rule(k, pre, link(expr.MetaKeyIIFNAME, expr.CmpOpEq, l.fabric), newFlow(), jump(remember.Name))
	rule(k, pre, group(expr.MetaKeyIIFGROUP, expr.CmpOpEq, l.uplinkGroup), reply(), came, jump(lead.Name))
	// What this host answers itself in a task's place, such as a reset.
	out := t.base(k, "out-mangle", nftables.ChainTypeRoute, nftables.ChainHookOutput, -150)
	rule(k, out, reply(), came, jump(lead.Name))
}

// setMark fills a chain that sets our bits of a mark to those of value and keeps the others. Kernels before 6.13 cannot
// combine two registers, so where others' bits are set our bits are set one by one.
func (t *table) setMark(k *loading, c *nftables.Chain, mask uint32, mark any, value func(register uint32) []expr.Any) {
	load := func() expr.Any {
		if m, ok := mark.(expr.Ct); ok {
			m.Register = scratch
			return &m
		}
		m := mark.(expr.Meta)
		m.Register = scratch
		return &m
	}
	store := func(register uint32) expr.Any {
		if m, ok := mark.(expr.Ct); ok {
			m.Register, m.SourceRegister = register, true
			return &m
		}
		m := mark.(expr.Meta)
		m.Register, m.SourceRegister = register, true
		return &m
	}
	rule(k, c, masked(load(), scratch, ^mask), compare(expr.CmpOpEq, scratch), value(reg4), []expr.Any{store(reg4)}, back())
	rule(k, c, masked(load(), scratch, ^mask), []expr.Any{store(scratch)})
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if mask&bit == 0 {
			continue
		}
		one := &expr.Bitwise{SourceRegister: reg4, DestRegister: reg4, Len: 4, Mask: native(bit), Xor: make([]byte, 4)}
		set := &expr.Bitwise{SourceRegister: scratch, DestRegister: scratch, Len: 4, Mask: native(^bit), Xor: native(bit)}
		rule(k, c, value(reg4), []expr.Any{one}, compare(expr.CmpOpNeq, reg4), []expr.Any{load(), set, store(scratch)})
	}
}

// filters refuse what leads nowhere, at once, and keep tasks apart.
func (t *table) filters(k *loading, l layout) {
	// A task that is gone: its clients, here or beyond the fabric, get a reset.
	dead := t.base(k, "pre-dead", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -90)
	in := t.base(k, "input", nftables.ChainTypeFilter, nftables.ChainHookInput, -5)
	refuse := t.chain(k, "refuse")
	rule(k, refuse, resetTCP())
	rule(k, refuse, reject(unix.NFT_REJECT_ICMPX_PORT_UNREACH))
	for i, f := range families {
		if own := l.own(f); own.IsValid() {
			gateway := l.gateway(f)
			rule(k, dead, f.is(), f.within(f.dest, expr.CmpOpEq, own), f.within(f.dest, expr.CmpOpNeq, netip.PrefixFrom(gateway, gateway.BitLen())),
				f.in(f.dest, t.pods[i], true), jump(refuse.Name))
		}
		if l.host.DataPathPort != 0 {
			rule(k, in, protocolIs(unix.IPPROTO_UDP), destPort(l.host.DataPathPort), f.is(), f.in(f.source, t.fabric[i], true), drop())
		}
	}
	// Where other software lets loopback be routed, a task's link would lead to what listens there alone.
	rule(k, in, group(expr.MetaKeyIIFGROUP, expr.CmpOpEq, l.uplinkGroup), families[0].is(), families[0].within(families[0].dest, expr.CmpOpEq, families[0].loopback), drop())
	// What gets here was not translated; the placeholder's socket is for the proxy's clients alone.
	here := t.chain(k, "published-here")
	v4, v6 := families[0], families[1]
	rule(k, here, v4.is(), v4.within(v4.dest, expr.CmpOpEq, v4.loopback), back())
	rule(k, here, v6.is(), v6.within(v6.dest, expr.CmpOpEq, v6.loopback), back())
	rule(k, here, v6.is(), v6.within(v6.dest, expr.CmpOpEq, linkLocal), back())
	rule(k, here, jump(refuse.Name))
	rule(k, in, newFlow(), protoPort(), []expr.Any{&expr.Lookup{SourceRegister: reg0, SetName: t.ports.Name, SetID: t.ports.ID}}, dnated(false), jump(here.Name))

	fwd := t.base(k, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0)
	isolate := t.chain(k, "isolate")
	rule(k, isolate, dnated(true), accept())
	rule(k, isolate, reply(), accept())
	rule(k, isolate, reject(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))
	toUplink := group(expr.MetaKeyOIFGROUP, expr.CmpOpEq, l.uplinkGroup)
	if l.host.DataPathPort != 0 {
		// It would leave with this host's address, and another member take it for the fabric's, with any network's packet within.
		rule(k, fwd, group(expr.MetaKeyIIFGROUP, expr.CmpOpEq, l.uplinkGroup), link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, l.fabric),
			protocolIs(unix.IPPROTO_UDP), destPort(l.host.DataPathPort), dnated(false), reject(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))
		for i, f := range families { // so would other containers' and guests' of this host
			rule(k, fwd, protocolIs(unix.IPPROTO_UDP), destPort(l.host.DataPathPort), f.is(), f.in(f.dest, t.nodes[i], false),
				f.in(f.source, t.nodes[i], true), dnated(false), reject(unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED))
		}
	}
	rule(k, fwd, toUplink, link(expr.MetaKeyIIFNAME, expr.CmpOpEq, l.fabric), accept())
	rule(k, fwd, toUplink, jump(isolate.Name))
	rule(k, fwd, link(expr.MetaKeyOIFNAME, expr.CmpOpEq, l.fabric), jump(isolate.Name))
}

// sources translates the few sources that replies would not find back to.
func (t *table) sources(k *loading, l layout) {
	post := t.base(k, "post-nat", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 95)
	toUplink := group(expr.MetaKeyOIFGROUP, expr.CmpOpEq, l.uplinkGroup)
	toFabric := link(expr.MetaKeyOIFNAME, expr.CmpOpEq, l.fabric)
	published := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg1, Direction: 0},
		&expr.Lookup{SourceRegister: reg0, SetName: t.sourceNAT.Name, SetID: t.sourceNAT.ID},
	}
	for i, f := range families {
		own := l.own(f)
		if !own.IsValid() {
			continue
		}
		gateway := f.snat(l.gateway(f))
		rule(k, post, f.is(), f.within(f.dest, expr.CmpOpEq, l.pool(f)), f.load(f.dest, scratch), []expr.Any{
			&expr.Dynset{SrcRegKey: scratch, SetName: t.reached[i].Name, SetID: t.reached[i].ID, Operation: unix.NFT_DYNSET_OP_ADD},
		})
		for _, out := range [][]expr.Any{toUplink, toFabric} {
			rule(k, post, f.is(), out, dnated(true), published, gateway)
		}
		// The client is a member: beyond the fabric its address might be that host's own.
		rule(k, post, f.is(), toFabric, dnated(true), f.in(f.source, t.nodes[i], false), gateway)
		rule(k, post, f.is(), toFabric, dnated(true), addressLocal(true), gateway)
		// Hairpin: the client may be the replica itself.
		rule(k, post, f.is(), toUplink, f.within(f.source, expr.CmpOpEq, own), dnated(true), gateway)
		rule(k, post, f.is(), f.within(f.source, expr.CmpOpEq, own), link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, l.fabric),
			group(expr.MetaKeyOIFGROUP, expr.CmpOpNeq, l.uplinkGroup), []expr.Any{&expr.Masq{}})
	}
}

// twinPrefix is the block's twin of IPv6; not valid without both.
func twinPrefix(prefix6, block netip.Prefix) netip.Prefix {
	if !prefix6.IsValid() || !block.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(swarmpb.Address6(prefix6, block.Masked().Addr()), 96+block.Bits())
}
