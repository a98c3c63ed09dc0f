package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of the kernel's nfnetlink_conntrack.h.
const (
	ctGet, ctDelete, ctStats = 1, 2, 5

	ctaTupleOrig, ctaTupleReply, ctaStatus, ctaID, ctaFilter, ctaStatusMask = 1, 2, 3, 12, 25, 26

	ctaTupleIP, ctaTupleProto          = 1, 2
	ctaIPv4Src, ctaIPv6Src             = 1, 3
	ctaProtoNum, ctaProtoDstPort       = 1, 3
	ctaFilterOrigFlags, ctaFilterReply = 1, 2

	filterIPSrc, filterProtoNum, filterDstPort = 1 << 0, 1 << 3, 1 << 5
)

// ctFilter names connection tracking entries.
type ctFilter struct {
	// Answering: the address that the flow's replies come from, which is where it leads to after all translation.
	answering netip.Addr
	// Protocol, 0 = all.
	protocol byte
	// ipv6 is the family when there is no address.
	ipv6 bool
	// UntranslatedTo: the port that the flow was sent to, of flows whose destination was not translated; 0 = all.
	untranslatedTo uint16
}

func (f ctFilter) family() byte {
	if f.answering.Is6() || f.ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// attributes of a request for the entries, which the kernel compares itself: among 100,000 entries that takes some
// milliseconds, where reading them takes a tenth of a second. Not for addresses of IPv6: for those kernels have compared
// the wrong way round, and would delete all others'.
func (f ctFilter) attributes() ([]byte, error) {
	enc := mdl.NewAttributeEncoder()
	var orig, reply uint32
	proto := func(e *mdl.AttributeEncoder) error {
		e.Nested(ctaTupleProto, func(e *mdl.AttributeEncoder) error {
			e.Uint8(ctaProtoNum, f.protocol)
			if f.untranslatedTo != 0 {
				e.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, f.untranslatedTo))
			}
			return nil
		})
		return nil
	}
	if f.answering.IsValid() {
		reply = filterIPSrc
		if f.protocol != 0 {
			reply |= filterProtoNum
		}
		enc.Nested(ctaTupleReply, func(e *mdl.AttributeEncoder) error {
			e.Nested(ctaTupleIP, func(e *mdl.AttributeEncoder) error {
				e.Bytes(ctaIPv4Src, f.answering.AsSlice())
				return nil
			})
			return proto(e)
		})
	}
	if f.untranslatedTo != 0 {
		orig = filterProtoNum | filterDstPort
		enc.Nested(ctaTupleOrig, proto)
		enc.Bytes(ctaStatus, make([]byte, 4))
		enc.Bytes(ctaStatusMask, binary.BigEndian.AppendUint32(nil, statusDstNAT))
	}
	enc.Nested(ctaFilter, func(e *mdl.AttributeEncoder) error {
		e.Uint32(ctaFilterOrigFlags, orig)
		e.Uint32(ctaFilterReply, reply)
		return nil
	})
	return enc.Encode()
}

// maxWalks is how many filters are left to the kernel at a time: for each it looks at all entries.
const maxWalks = 8

// deleteFlows deletes the entries that match one of the filters, in a namespace ("" = the calling thread's). A kernel that
// deletes none (CONFIG_NF_CT_NETLINK) is no error, as no other try helps: the entries time out.
func deleteFlows(namespace string, filters ...ctFilter) error {
	return deleteFlowsThrough(dialNetfilter, namespace, filters...)
}

func deleteFlowsThrough(dial func(namespace string) (*mdl.Conn, error), namespace string, filters ...ctFilter) error {
	if len(filters) == 0 {
		return nil
	}
	conn, err := dial(namespace)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = deleteMatching(conn, filters)
	if err != nil && !hasTrackingTable(conn) {
		return nil
	}
	return err
}

// hasTrackingTable tells whether the kernel lets its connection tracking entries be seen and deleted.
func hasTrackingTable(conn *mdl.Conn) bool {
	_, err := conn.Execute(ctMessage(ctStats, mdl.Acknowledge, unix.AF_UNSPEC, nil))
	return !errors.Is(err, unix.EINVAL) // nfnetlink's answer for a part that it does not know
}

func deleteMatching(conn *mdl.Conn, filters []ctFilter) error {
	read := map[byte][]ctFilter{} // by family
	for _, f := range filters {
		if len(filters) > maxWalks || f.answering.Is6() {
			read[f.family()] = append(read[f.family()], f)
			continue
		}
		err := deleteByFilter(conn, f)
		if errors.Is(err, unix.EOPNOTSUPP) { // kernels before 6.8
			read[f.family()] = append(read[f.family()], f)
		} else if err != nil {
			return fmt.Errorf("delete connection tracking entries: %w", err)
		}
	}
	for family, some := range read {
		if err := deleteOneByOne(conn, family, some); err != nil {
			return fmt.Errorf("delete connection tracking entries: %w", err)
		}
	}
	return nil
}

func ctMessage(kind uint16, flags mdl.HeaderFlags, family byte, attrs []byte) mdl.Message {
	const version = 1 // the family counts
	return mdl.Message{
		Header: mdl.Header{Type: mdl.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind), Flags: mdl.Request | flags},
		Data:   append([]byte{family, version, 0, 0}, attrs...),
	}
}

func deleteByFilter(conn *mdl.Conn, f ctFilter) error {
	attrs, err := f.attributes()
	if err != nil {
		return err
	}
	_, err = conn.Execute(ctMessage(ctDelete, mdl.Acknowledge, f.family(), attrs))
	return err
}

// deleteOneByOne reads the entries of a family and deletes those that match.
func deleteOneByOne(conn *mdl.Conn, family byte, filters []ctFilter) error {
	answering := map[netip.Addr][]ctFilter{}
	var others []ctFilter
	for _, f := range filters {
		if f.answering.IsValid() {
			answering[f.answering] = append(answering[f.answering], f)
		} else {
			others = append(others, f)
		}
	}
	var found [][]byte
	err := dumpFlows(conn, family, func(attrs []byte) {
		e := parseEntry(attrs)
		matches := func(f ctFilter) bool { return e.matches(f) }
		if slices.ContainsFunc(answering[e.answering], matches) || slices.ContainsFunc(others, matches) {
			found = append(found, e.identity())
		}
	})
	if err != nil {
		return err
	}
	for _, identity := range found {
		if _, err := conn.Execute(ctMessage(ctDelete, mdl.Acknowledge, family, identity)); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// dumpFlows calls with the attributes of every entry, which are good until it returns.
func dumpFlows(conn *mdl.Conn, family byte, each func(attrs []byte)) error {
	if _, err := conn.Send(ctMessage(ctGet, mdl.Dump, family, nil)); err != nil {
		return err
	}
	return receive(conn, each)
}

// entry is what filters look at of an entry.
type entry struct {
	tuple, id []byte // as the kernel encoded them
	answering netip.Addr
	protocol  byte
	port      uint16
	dnated    bool
}

func parseEntry(attrs []byte) entry {
	var e entry
	eachAttribute(attrs, func(kind uint16, v []byte) {
		switch kind {
		case ctaTupleOrig:
			e.tuple = v
			eachAttribute(v, func(kind uint16, v []byte) {
				if kind == ctaTupleProto {
					eachAttribute(v, func(kind uint16, v []byte) {
						if kind == ctaProtoNum && len(v) > 0 {
							e.protocol = v[0]
						} else if kind == ctaProtoDstPort && len(v) > 1 {
							e.port = binary.BigEndian.Uint16(v)
						}
					})
				}
			})
		case ctaTupleReply:
			eachAttribute(v, func(kind uint16, v []byte) {
				if kind == ctaTupleIP {
					eachAttribute(v, func(kind uint16, v []byte) {
						if kind == ctaIPv4Src || kind == ctaIPv6Src {
							e.answering, _ = netip.AddrFromSlice(v)
						}
					})
				}
			})
		case ctaStatus:
			e.dnated = len(v) > 3 && binary.BigEndian.Uint32(v)&statusDstNAT != 0
		case ctaID:
			e.id = v
		}
	})
	return e
}

func (e entry) matches(f ctFilter) bool {
	return (!f.answering.IsValid() || f.answering == e.answering) && (f.protocol == 0 || f.protocol == e.protocol) &&
		(f.untranslatedTo == 0 || f.untranslatedTo == e.port && !e.dnated)
}

// identity names the entry in a request: its ID too, as another flow with the same addresses may have come.
func (e entry) identity() []byte {
	var out []byte
	for _, a := range []struct {
		kind uint16
		v    []byte
	}{{ctaTupleOrig | unix.NLA_F_NESTED, e.tuple}, {ctaID, e.id}} {
		out = binary.NativeEndian.AppendUint16(out, uint16(attributeHeader+len(a.v)))
		out = binary.NativeEndian.AppendUint16(out, a.kind)
		out = append(out, a.v...)
		out = append(out, make([]byte, align(len(out))-len(out))...)
	}
	return out
}

const attributeHeader = 4

func align(n int) int { return (n + 3) &^ 3 }

func eachAttribute(b []byte, each func(kind uint16, v []byte)) {
	for len(b) >= attributeHeader {
		size := int(binary.NativeEndian.Uint16(b))
		if size < attributeHeader || size > len(b) {
			return
		}
		each(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[attributeHeader:size])
		b = b[min(align(size), len(b)):]
	}
}
