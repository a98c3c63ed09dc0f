package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of the kernel's nfnetlink_conntrack.h.
const (
	ctGet, ctDelete = 1, 2

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

// attributes of a request for the entries. The kernel compares them itself: among 100,000 entries that takes some
// milliseconds, where reading them all takes a tenth of a second and more.
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
		kind := uint16(ctaIPv4Src)
		if f.answering.Is6() {
			kind = ctaIPv6Src
		}
		if f.protocol != 0 {
			reply |= filterProtoNum
		}
		enc.Nested(ctaTupleReply, func(e *mdl.AttributeEncoder) error {
			e.Nested(ctaTupleIP, func(e *mdl.AttributeEncoder) error {
				e.Bytes(kind, f.answering.AsSlice())
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

// deleteFlows deletes the entries that match one of the filters, in a namespace ("" = the calling thread's).
func deleteFlows(namespace string, filters ...ctFilter) error {
	if len(filters) == 0 {
		return nil
	}
	conn, err := dialNetfilter(namespace)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, f := range filters {
		err := deleteByFilter(conn, f)
		if errors.Is(err, unix.EOPNOTSUPP) { // kernels before 6.8
			err = deleteOneByOne(conn, f)
		}
		if err != nil {
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

// deleteOneByOne has the kernel list the entries, and deletes each.
func deleteOneByOne(conn *mdl.Conn, f ctFilter) error {
	attrs, err := f.attributes()
	if err != nil {
		return err
	}
	msgs, err := conn.Execute(ctMessage(ctGet, mdl.Dump, f.family(), attrs))
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if len(m.Data) < 4 {
			continue
		}
		ad, err := mdl.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return err
		}
		enc := mdl.NewAttributeEncoder()
		for ad.Next() {
			switch ad.Type() {
			case ctaTupleOrig:
				enc.Bytes(ctaTupleOrig|unix.NLA_F_NESTED, ad.Bytes())
			case ctaID: // another flow with the same addresses may have come
				enc.Bytes(ctaID, ad.Bytes())
			}
		}
		one, err := enc.Encode()
		if err != nil {
			return err
		}
		if _, err := conn.Execute(ctMessage(ctDelete, mdl.Acknowledge, m.Data[0], one)); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}
