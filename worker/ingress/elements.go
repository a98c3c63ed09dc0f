package ingress

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress/slots"
)

// portKey is a published port of the host.
type portKey struct {
	protocol byte // IPPROTO
	port     uint16
}

func (k portKey) compare(o portKey) int {
	return cmp.Or(cmp.Compare(k.protocol, o.protocol), cmp.Compare(k.port, o.port))
}

// balance is what the kernel holds of a published port.
type balance struct {
	kind      byte // byChance or byClient
	sourceNAT bool
	// backends by slot, as many as the class has; empty = refused. IPv4; the twins follow from it.
	backends []netip.AddrPort
}

func (b balance) equal(o balance) bool {
	return b.kind == o.kind && b.sourceNAT == o.sourceNAT && slices.Equal(b.backends, o.backends)
}

func chainName(kind byte, class int) string { return string(kind) + strconv.Itoa(class) }

// parseChain is the inverse of chainName.
func parseChain(name string) (kind byte, class int, ok bool) {
	if name == "" {
		return 0, 0, false
	}
	class, err := strconv.Atoi(name[1:])
	return name[0], class, err == nil && slices.Contains(slots.Classes[:], class) && (name[0] == byChance || name[0] == byClient)
}

func (k portKey) key() []byte {
	return []byte{k.protocol, 0, 0, 0, byte(k.port >> 8), byte(k.port), 0, 0}
}

func (k portKey) slotKey(slot int) []byte { return append(k.key(), native(uint32(slot))...) }

func parsePortKey(key []byte) (portKey, bool) {
	if len(key) < 8 {
		return portKey{}, false
	}
	return portKey{key[0], binary.BigEndian.Uint16(key[4:])}, true
}

func backendValue(a netip.Addr, port uint16) []byte {
	return append(a.AsSlice(), byte(port>>8), byte(port), 0, 0)
}

// verdictElement leads a port to its class.
func (k portKey) verdictElement(b balance) nftables.SetElement {
	return nftables.SetElement{Key: k.key(), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainName(b.kind, len(b.backends))}}
}

// verdictChain is the chain that an element of a verdict map names, as the library reads it.
func verdictChain(e nftables.SetElement) string {
	const chain = 2 // NFTA_VERDICT_CHAIN
	ad, err := mdl.NewAttributeDecoder(e.Val)
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == chain {
			return ad.String()
		}
	}
	return ""
}

// change is the elements that a transaction takes from and gives to sets. Those taken go first: a key whose value
// changes is in both.
type change struct {
	order       []*nftables.Set
	take, given map[*nftables.Set][]nftables.SetElement
	// rest is taken in a transaction of its own, after this one: slots of a finer class. A packet that has read that class looks its slot
	// up a moment later, and would be refused if it were gone by then. Nil: nothing.
	rest *change

	bytes   []byte // of elements
	encoded []byte
}

func newChange() *change {
	return &change{take: map[*nftables.Set][]nftables.SetElement{}, given: map[*nftables.Set][]nftables.SetElement{}}
}

// What a change keeps of its memory for the next: enough for one endpoint of a service. Without that, most of what a change costs is to
// collect its garbage, which also has single changes wait for some milliseconds.
const (
	keptElements = 4096
	keptBytes    = 1 << 18
)

// afterwards is the change that follows this one.
func (c *change) afterwards() *change {
	if c.rest == nil {
		c.rest = newChange()
	}
	return c.rest
}

// again empties the change for the next.
func (c *change) again() {
	c.rest = nil
	c.order = c.order[:0]
	for _, of := range []map[*nftables.Set][]nftables.SetElement{c.take, c.given} {
		for s, all := range of {
			if of[s] = all[:0]; cap(all) > keptElements {
				delete(of, s)
			}
		}
	}
	if c.bytes = c.bytes[:0]; cap(c.bytes) > keptBytes {
		c.bytes = nil
	}
	if c.encoded = c.encoded[:0]; cap(c.encoded) > keptBytes {
		c.encoded = nil
	}
}

// slot is the element of a slot in the change's own memory, good until it is used again.
func (c *change) slot(key portKey, slot int, to netip.Addr, port uint16) nftables.SetElement {
	from := len(c.bytes)
	c.bytes = append(c.bytes, key.protocol, 0, 0, 0, byte(key.port>>8), byte(key.port), 0, 0)
	c.bytes = binary.NativeEndian.AppendUint32(c.bytes, uint32(slot))
	middle := len(c.bytes)
	if to.Is4() {
		b := to.As4()
		c.bytes = append(c.bytes, b[:]...)
	} else {
		b := to.As16()
		c.bytes = append(c.bytes, b[:]...)
	}
	c.bytes = append(c.bytes, byte(port>>8), byte(port), 0, 0)
	end := len(c.bytes)
	return nftables.SetElement{Key: c.bytes[from:middle:middle], Val: c.bytes[middle:end:end]}
}

func (c *change) touch(s *nftables.Set) {
	if !slices.Contains(c.order, s) {
		c.order = append(c.order, s)
	}
}

func (c *change) remove(s *nftables.Set, e nftables.SetElement) {
	c.touch(s)
	c.take[s] = append(c.take[s], e)
}

func (c *change) add(s *nftables.Set, e nftables.SetElement) {
	c.touch(s)
	c.given[s] = append(c.given[s], e)
}

func (c *change) empty() bool { return len(c.order) == 0 }

// rebalance adds to the change what leads a port from one balance to another; either may be nil, for a port that is not published.
func (t *table) rebalance(c *change, k portKey, from, to *balance, prefix6 netip.Prefix) {
	var old, now balance
	if from != nil {
		old = *from
	}
	if to != nil {
		now = *to
	}
	membership := func(s *nftables.Set, was, is bool) {
		switch {
		case was && !is:
			c.remove(s, nftables.SetElement{Key: k.key()})
		case is && !was:
			c.add(s, nftables.SetElement{Key: k.key()})
		}
	}
	membership(t.ports, from != nil, to != nil)
	membership(t.sourceNAT, old.sourceNAT, now.sourceNAT)
	if had, has := len(old.backends) > 0, len(now.backends) > 0; had != has || old.kind != now.kind || len(old.backends) != len(now.backends) {
		if had {
			c.remove(t.published, k.verdictElement(old))
		}
		if has {
			c.add(t.published, k.verdictElement(now))
		}
	}
	for slot := range max(len(old.backends), len(now.backends)) {
		var was, is netip.AddrPort
		if slot < len(old.backends) {
			was = old.backends[slot]
		}
		if slot < len(now.backends) {
			is = now.backends[slot]
		}
		if was == is {
			continue
		}
		switch {
		case was.IsValid() && slot >= len(now.backends) && len(now.backends) > 0:
			t.slotElements(c, k, slot, was, prefix6, c.afterwards().remove)
		case was.IsValid():
			t.slotElements(c, k, slot, was, prefix6, c.remove)
		}
		if is.IsValid() {
			t.slotElements(c, k, slot, is, prefix6, c.add)
		}
	}
}

func (t *table) slotElements(c *change, k portKey, slot int, to netip.AddrPort, prefix6 netip.Prefix, each func(*nftables.Set, nftables.SetElement)) {
	each(t.backends[0], c.slot(k, slot, to.Addr(), to.Port()))
	if prefix6.IsValid() {
		each(t.backends[1], c.slot(k, slot, swarmpb.Address6(prefix6, to.Addr()), to.Port()))
	}
}

// readBalances is what the kernel holds, for a table that a former process may have loaded. Ports that it cannot make sense
// of are there without backends.
func (t *table) readBalances(k *kernel) (map[portKey]*balance, error) {
	out := map[portKey]*balance{}
	for _, s := range []*nftables.Set{t.ports, t.sourceNAT, t.published} {
		elements, err := k.elements(s)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			key, ok := parsePortKey(e.Key)
			if !ok {
				continue
			}
			if s == t.ports {
				out[key] = &balance{}
			}
			b := out[key]
			if b == nil {
				continue
			}
			switch s {
			case t.sourceNAT:
				b.sourceNAT = true
			case t.published:
				if kind, class, ok := parseChain(verdictChain(e)); ok {
					b.kind, b.backends = kind, make([]netip.AddrPort, class)
				}
			}
		}
	}
	for key, b := range out {
		if err := t.readSlots(k, key, b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (t *table) readSlots(k *kernel, key portKey, b *balance) error {
	keys := make([][]byte, len(b.backends))
	for slot := range keys {
		keys[slot] = key.slotKey(slot)
	}
	values, err := k.lookUp(t.backends[0], keys)
	if errors.Is(err, fs.ErrNotExist) {
		b.backends = nil
		return nil
	}
	if err != nil {
		return err
	}
	for slot, key := range keys {
		v := values[string(key)]
		if len(v) < 8 {
			b.backends = nil
			return nil
		}
		b.backends[slot] = netip.AddrPortFrom(netip.AddrFrom4([4]byte(v)), binary.BigEndian.Uint16(v[4:]))
	}
	return nil
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

func protocolOf(number byte) swarmpb.Protocol {
	switch number {
	case unix.IPPROTO_UDP:
		return swarmpb.Protocol_PROTOCOL_UDP
	case unix.IPPROTO_SCTP:
		return swarmpb.Protocol_PROTOCOL_SCTP
	}
	return swarmpb.Protocol_PROTOCOL_TCP
}

func protocolName(number byte) string {
	switch number {
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return "tcp"
}

func (k portKey) String() string { return fmt.Sprintf("%d/%s", k.port, protocolName(k.protocol)) }
