package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/ingress/slots"
)

// ResolverAddress is where a container asks for names, on port 53.
var ResolverAddress = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// goneFor is how long a VIP that was taken away is refused rather than unanswered: shorter than an address rests.
const goneFor = time.Minute

// OtherResolverAddress leads to the same resolver in a namespace that is not ours, where something else may have the first one.
var OtherResolverAddress = netip.AddrFrom4([4]byte{127, 0, 0, 12})

// GuestTable is the name of the table in a namespace that is not ours.
const GuestTable = Table + "-guest"

// VIPConfig is what a table in a container's namespace needs.
type VIPConfig struct {
	Logger *slog.Logger
	// ResolverUDP and ResolverTCP are where 127.0.0.11:53 leads, ports on 127.0.0.11 there; 0 = nowhere.
	ResolverUDP, ResolverTCP uint16
	// Guest: the namespace is not ours. The table is GuestTable, and OtherResolverAddress leads to the resolver too.
	Guest bool
}

func (c VIPConfig) table() string {
	if c.Guest {
		return GuestTable
	}
	return Table
}

func (c VIPConfig) resolvers() []netip.Addr {
	if c.Guest {
		return []netip.Addr{ResolverAddress, OtherResolverAddress}
	}
	return []netip.Addr{ResolverAddress}
}

// VIP is a service's address: every port and protocol, ICMP too, leads to one of the backends; none = refused. While there is a
// trial, its backends together get Share (of slots.Whole) of the connections, and Backends the rest, as slots.Sides says.
type VIP struct {
	Address  netip.Addr
	Backends []Backend
	Trial    []Backend
	Share    uint32
}

// Backend is a task's address of the VIP's family. Weight: its share in proportion to the others'; 0 = none.
type Backend struct {
	Address netip.Addr
	Weight  uint32
}

// VIPUpdate changes some VIPs, or with Full replaces them all.
type VIPUpdate struct {
	Full    bool
	VIPs    []VIP
	Removed []netip.Addr
}

// VIPs is the table inside one container's namespace. All methods are safe for concurrent use.
type VIPs struct {
	cfg       VIPConfig
	namespace string
	table     *vipTable

	mu     sync.Mutex
	kernel *kernel                   // nil once closed
	held   map[netip.Addr]vipBalance // what the kernel holds
	print  uint64
	dirty  bool
}

// vipBalance is the backend of each slot; empty = refused. IDs of slots are addresses.
type vipBalance []netip.Addr

// vipTable is the layout of the table. Rules never change.
//
//	map vips4, vips6   vip -> goto the chain of its slot class
//	map be4, be6       vip . slot -> address
//	set known4, known6 all VIPs: what is not translated is refused; gone4, gone6: for a minute after
type vipTable struct {
	inet                        *nftables.Table
	vips, backends, known, gone [2]*nftables.Set
}

func newVIPTable(name string) *vipTable {
	t := &vipTable{inet: &nftables.Table{Name: name, Family: nftables.TableFamilyINet}}
	id := uint32(0)
	set := func(name string, key nftables.SetDatatype) *nftables.Set {
		id++
		return &nftables.Set{Table: t.inet, Name: name, ID: id, KeyType: key}
	}
	for i, f := range families {
		t.vips[i] = set("vips"+f.suffix, f.datatype)
		t.vips[i].IsMap, t.vips[i].DataType = true, nftables.TypeVerdict
		t.backends[i] = set("be"+f.suffix, nftables.MustConcatSetType(f.datatype, nftables.TypeMark))
		t.backends[i].IsMap, t.backends[i].DataType, t.backends[i].Concatenation = true, f.datatype, true
		t.known[i] = set("known"+f.suffix, f.datatype)
		t.gone[i] = set("gone"+f.suffix, f.datatype)
		t.gone[i].HasTimeout = true
	}
	return t
}

// OpenVIPs loads the table into the namespace at the path, in one transaction. VIPs of a former process's table stay in it until
// the first full update.
func OpenVIPs(namespace string, cfg VIPConfig) (*VIPs, error) {
	k, err := openKernel(namespace)
	if err != nil {
		return nil, fmt.Errorf("open VIPs: %w", err)
	}
	v := &VIPs{cfg: cfg, namespace: namespace, table: newVIPTable(cfg.table()), kernel: k}
	if v.held, err = v.table.read(k); err == nil {
		err = v.load()
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("open VIPs: %w", err)
	}
	return v, nil
}

func (v *VIPs) load() error {
	v.dirty = true
	if err := v.kernel.ready(); err != nil {
		return err
	}
	c := newChange()
	for a, b := range v.held {
		v.table.rebalance(c, a, nil, b, true)
	}
	if err := v.kernel.exchange(v.table.inet, func(l *loading) error { return v.table.load(l, v.cfg, c.given) }); err != nil {
		return fmt.Errorf("load nftables table %s: %w", v.table.inet.Name, err)
	}
	generation, err := v.kernel.currentGeneration()
	if err != nil {
		return err
	}
	if v.print, err = v.kernel.rulesPrint(v.table.inet); err != nil {
		return err
	}
	v.kernel.generation, v.dirty = generation, false
	return nil
}

func (t *vipTable) load(k *loading, cfg VIPConfig, elements map[*nftables.Set][]nftables.SetElement) error {
	chain := func(name string) *nftables.Chain { return k.chain(&nftables.Chain{Name: name, Table: t.inet}) }
	base := func(name string, kind nftables.ChainType, priority *nftables.ChainPriority) *nftables.Chain {
		return k.chain(&nftables.Chain{Name: name, Table: t.inet, Type: kind, Hooknum: nftables.ChainHookOutput, Priority: priority})
	}
	for i := range families {
		for _, s := range []*nftables.Set{t.backends[i], t.known[i]} {
			if err := k.fillSet(s, elements[s]); err != nil {
				return err
			}
		}
		if err := k.addSet(t.gone[i], nil); err != nil {
			return err
		}
	}
	for _, class := range slots.Classes {
		c := chain(chainName(byChance, class))
		for i, f := range families {
			rule(k, c, f.is(), f.load(f.dest, reg0), []expr.Any{
				&expr.Numgen{Register: reg0 + f.addressRegisters, Modulus: uint32(class), Type: unix.NFT_NG_RANDOM},
				&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: t.backends[i].Name, SetID: t.backends[i].ID},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg0},
			})
		}
	}
	for i := range families {
		if err := k.fillSet(t.vips[i], elements[t.vips[i]]); err != nil {
			return err
		}
	}
	nat := base("out-nat", nftables.ChainTypeNAT, nftables.ChainPriorityNATDest)
	v4 := families[0]
	for _, to := range []struct {
		protocol byte
		port     uint16
	}{{unix.IPPROTO_UDP, cfg.ResolverUDP}, {unix.IPPROTO_TCP, cfg.ResolverTCP}} {
		if to.port == 0 {
			continue
		}
		for _, asked := range cfg.resolvers() {
			rule(k, nat, v4.is(), v4.within(v4.dest, expr.CmpOpEq, netip.PrefixFrom(asked, 32)), protocolIs(to.protocol), destPort(53), []expr.Any{
				&expr.Immediate{Register: reg0, Data: ResolverAddress.AsSlice()},
				&expr.Immediate{Register: reg1, Data: []byte{byte(to.port >> 8), byte(to.port)}},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(v4.proto), RegAddrMin: reg0, RegProtoMin: reg1, Specified: true},
			})
		}
	}
	refuse := chain("refuse")
	rule(k, refuse, resetTCP())
	rule(k, refuse, reject(unix.NFT_REJECT_ICMPX_PORT_UNREACH))
	filter := base("out", nftables.ChainTypeFilter, nftables.ChainPriorityFilter)
	rule(k, filter, dnated(true), accept())
	for i, f := range families {
		rule(k, nat, f.is(), f.load(f.dest, scratch), []expr.Any{&expr.Lookup{SourceRegister: scratch, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: t.vips[i].Name, SetID: t.vips[i].ID}})
		rule(k, filter, f.is(), f.in(f.dest, t.known[i], false), jump(refuse.Name))
		rule(k, filter, f.is(), f.in(f.dest, t.gone[i], false), jump(refuse.Name))
	}
	return nil
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// rebalance adds to the change what leads a VIP from one balance to another. known: the VIP is there, afterwards.
func (t *vipTable) rebalance(c *change, vip netip.Addr, from, to vipBalance, known bool) {
	i := familyOf(vip)
	element := func(b vipBalance) nftables.SetElement {
		return nftables.SetElement{Key: vip.AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainName(byChance, len(b))}}
	}
	if len(from) != len(to) {
		if len(from) > 0 {
			c.remove(t.vips[i], element(from))
		}
		if len(to) > 0 {
			c.add(t.vips[i], element(to))
		}
	}
	if known && from == nil {
		c.add(t.known[i], nftables.SetElement{Key: vip.AsSlice()})
	} else if !known {
		c.remove(t.known[i], nftables.SetElement{Key: vip.AsSlice()})
		c.add(t.gone[i], nftables.SetElement{Key: vip.AsSlice(), Timeout: goneFor})
	}
	for slot := range max(len(from), len(to)) {
		var was, is netip.Addr
		if slot < len(from) {
			was = from[slot]
		}
		if slot < len(to) {
			is = to[slot]
		}
		if was == is {
			continue
		}
		key := append(vip.AsSlice(), native(uint32(slot))...)
		switch {
		case was.IsValid() && slot >= len(to) && len(to) > 0:
			c.afterwards().remove(t.backends[i], nftables.SetElement{Key: key, Val: was.AsSlice()})
		case was.IsValid():
			c.remove(t.backends[i], nftables.SetElement{Key: key, Val: was.AsSlice()})
		}
		if is.IsValid() {
			c.add(t.backends[i], nftables.SetElement{Key: key, Val: is.AsSlice()})
		}
	}
}

// read is what the kernel holds, of a table that a former process may have loaded.
func (t *vipTable) read(k *kernel) (map[netip.Addr]vipBalance, error) {
	out := map[netip.Addr]vipBalance{}
	for i, f := range families {
		for _, s := range []*nftables.Set{t.known[i], t.vips[i], t.backends[i]} {
			elements, err := k.elements(s)
			if err != nil {
				return nil, err
			}
			for _, e := range elements {
				if len(e.Key) < int(f.size) {
					continue
				}
				vip, _ := netip.AddrFromSlice(e.Key[:f.size])
				switch s {
				case t.known[i]:
					out[vip] = vipBalance{}
				case t.vips[i]:
					if _, class, ok := parseChain(verdictChain(e)); ok && out[vip] != nil {
						out[vip] = make(vipBalance, class)
					}
				default:
					if len(e.Key) < int(f.size)+4 || len(e.Val) < int(f.size) {
						continue
					}
					if slot := int(binary.NativeEndian.Uint32(e.Key[f.size:])); slot < len(out[vip]) {
						out[vip][slot], _ = netip.AddrFromSlice(e.Val[:f.size])
					}
				}
			}
		}
	}
	for vip, b := range out {
		if slices.ContainsFunc(b, func(a netip.Addr) bool { return !a.IsValid() }) {
			out[vip] = vipBalance{}
		}
	}
	return out, nil
}

// ApplyVIPs is Apply of one update in many namespaces. What is the same in them is worked out once, which is most of it when all hold
// the same VIPs. An error in one keeps no other from the update.
func ApplyVIPs(all []*VIPs, u VIPUpdate) error {
	if len(all) == 0 {
		return nil
	}
	step := &vipStep{}
	errs := make([]error, len(all))
	errs[0] = all[0].apply(u, step) // the others take the step that it has worked out
	var sending errgroup.Group
	sending.SetLimit(vipSenders)
	for n, v := range all[1:] {
		sending.Go(func() error {
			errs[n+1] = v.apply(u, step)
			return nil
		})
	}
	_ = sending.Wait()
	return errors.Join(errs...)
}

// vipSenders bounds the namespaces that are changed at a time: the kernel has each of them wait for a while.
const vipSenders = 16

// vipStep is a change of VIPs from one state of theirs to another, for all namespaces that are in the first.
type vipStep struct {
	mu           sync.Mutex
	from, to     []vipBalance // of the VIPs of the update, in its order
	transactions [][]byte     // nil: not known
}

// take gives a namespace that holds these VIPs what it is to hold, and the transactions; false: the step is not for it.
func (s *vipStep) take(u VIPUpdate, held map[netip.Addr]vipBalance) (to []vipBalance, transactions [][]byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.transactions == nil || u.Full || len(u.Removed) > 0 {
		return nil, nil, false
	}
	for n, vip := range u.VIPs {
		is, ok := held[vip.Address]
		if !ok || len(is) != len(s.from[n]) || (len(is) > 0 && &is[0] != &s.from[n][0] && !slices.Equal(is, s.from[n])) {
			return nil, nil, false
		}
	}
	return s.to, s.transactions, true
}

// learn has the step be what was just done.
func (s *vipStep) learn(u VIPUpdate, held, next map[netip.Addr]vipBalance, transactions [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.from, s.to, s.transactions = nil, nil, nil
	for _, vip := range u.VIPs {
		is, ok := held[vip.Address]
		if !ok {
			return
		}
		s.from, s.to = append(s.from, is), append(s.to, next[vip.Address])
	}
	s.transactions = transactions
}

// Apply takes an update over, in one transaction, and slots that nothing leads to any more in another; slots move as little as the change allows.
func (v *VIPs) Apply(u VIPUpdate) error { return v.apply(u, &vipStep{}) }

func (v *VIPs) apply(u VIPUpdate, step *vipStep) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.kernel == nil {
		return errors.New("change VIPs: they are closed")
	}
	if to, transactions, ok := step.take(u, v.held); ok {
		for n, vip := range u.VIPs {
			v.held[vip.Address] = to[n]
		}
		return v.send(transactions)
	}
	c := newChange()
	named := map[netip.Addr]bool{}
	for _, vip := range u.VIPs {
		named[vip.Address] = true
	}
	removed := slices.Clone(u.Removed)
	if u.Full {
		removed = slices.Collect(maps.Keys(v.held))
	}
	removed = slices.DeleteFunc(removed, func(a netip.Addr) bool { return named[a] })
	next := map[netip.Addr]vipBalance{}
	for _, a := range removed {
		if _, ok := v.held[a]; ok {
			v.table.rebalance(c, a, v.held[a], nil, false)
			next[a] = nil
		}
	}
	for _, vip := range u.VIPs {
		to, err := balanceVIP(vip, v.held[vip.Address])
		if err != nil {
			return err
		}
		if next[vip.Address] != nil {
			return fmt.Errorf("change VIPs: %s is named twice", vip.Address)
		}
		if from := v.held[vip.Address]; from == nil || !slices.Equal(from, to) {
			v.table.rebalance(c, vip.Address, from, to, true)
		}
		next[vip.Address] = to
	}
	var transactions [][]byte
	if !c.empty() {
		transactions = append(transactions, c.encode())
		if c.rest != nil {
			transactions = append(transactions, c.rest.encode())
		}
		step.learn(u, v.held, next, transactions)
	}
	for a, b := range next {
		if b == nil {
			delete(v.held, a)
		} else {
			v.held[a] = b
		}
	}
	return v.send(transactions)
}

// send has the kernel follow what is held.
func (v *VIPs) send(transactions [][]byte) error {
	if v.dirty { // what was refused before
		return v.load()
	}
	for _, t := range transactions {
		err := v.kernel.transact(t)
		if err == nil {
			continue
		}
		v.cfg.Logger.Warn("nftables refused a change of VIPs; the table is loaded anew", "namespace", v.namespace, "error", err)
		if again := v.load(); again != nil {
			return fmt.Errorf("change VIPs: %w", errors.Join(err, again))
		}
		return nil // it holds all
	}
	return nil
}

// Flush deletes the namespace's connection tracking entries to a backend's address: all, or those of UDP alone.
func (v *VIPs) Flush(addr netip.Addr, udpAlone bool) error {
	f := ctFilter{answering: addr}
	if udpAlone {
		f.protocol = unix.IPPROTO_UDP
	}
	return deleteFlows(v.namespace, f)
}

// Check compares the kernel with what it should hold, and loads the table anew in one transaction where they differ.
func (v *VIPs) Check() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.kernel == nil {
		return nil
	}
	generation, err := v.kernel.currentGeneration()
	if err != nil {
		return fmt.Errorf("check VIPs: %w", err)
	}
	if !v.dirty && generation == v.kernel.generation {
		return nil
	}
	print, err := v.kernel.rulesPrint(v.table.inet)
	if err != nil {
		return fmt.Errorf("check VIPs: %w", err)
	}
	have, err := v.table.read(v.kernel)
	if err != nil {
		return fmt.Errorf("check VIPs: %w", err)
	}
	if print == v.print && maps.EqualFunc(have, v.held, slices.Equal[vipBalance]) {
		v.kernel.generation, v.dirty = generation, false
		return nil
	}
	if err := v.load(); err != nil {
		return fmt.Errorf("repair VIPs: %w", err)
	}
	v.cfg.Logger.Info("a container's table of VIPs was not as it should be; it is loaded anew", "namespace", v.namespace)
	return nil
}

// Close lets go of the socket; the table stays, and goes with the namespace.
func (v *VIPs) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.kernel != nil {
		v.kernel.close()
		v.kernel = nil
	}
}

// RemoveGuestTable removes the table from a namespace that is not ours, and has it forget what the table led to the resolver. One
// without the table is no error.
func RemoveGuestTable(namespace string) error {
	k, err := openKernel(namespace)
	if err != nil {
		return fmt.Errorf("remove nftables table %s: %w", GuestTable, err)
	}
	defer k.close()
	if err := k.removeTables(newVIPTable(GuestTable).inet); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", GuestTable, err)
	}
	return deleteFlows(namespace, ctFilter{answering: ResolverAddress})
}
