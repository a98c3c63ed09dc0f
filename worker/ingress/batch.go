package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// batch is a transaction of elements as it goes to the kernel. It is encoded here rather than by the library, at a small part of
// the cost: a change is some dozens of elements, and the library would make some dozen slices of each, and have each message acknowledged.
type batch struct {
	buf  []byte
	last int // offset of the last message
}

func (b *batch) message(kind, flags uint16, family byte, resource uint16) {
	b.last = len(b.buf)
	b.buf = append(b.buf, 0, 0, 0, 0)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, flags)
	b.buf = append(b.buf, 0, 0, 0, 0, 0, 0, 0, 0) // sequence and port: the kernel answers in order, to this socket
	b.buf = append(b.buf, family, unix.NFNETLINK_V0)
	b.buf = binary.BigEndian.AppendUint16(b.buf, resource)
}

func (b *batch) end() {
	binary.NativeEndian.PutUint32(b.buf[b.last:], uint32(len(b.buf)-b.last))
}

// open begins an attribute, whose length close fills in.
func (b *batch) open(kind uint16) int {
	at := len(b.buf)
	b.buf = append(b.buf, 0, 0)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	return at
}

func (b *batch) close(at int) {
	binary.NativeEndian.PutUint16(b.buf[at:], uint16(len(b.buf)-at))
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

func (b *batch) bytes(kind uint16, v []byte) {
	at := b.open(kind)
	b.buf = append(b.buf, v...)
	b.close(at)
}

func (b *batch) name(kind uint16, v string) {
	at := b.open(kind)
	b.buf = append(append(b.buf, v...), 0)
	b.close(at)
}

const nested = unix.NLA_F_NESTED

// elements adds or deletes elements of a set, as many messages as that takes.
func (b *batch) elements(kind, flags uint16, s *nftables.Set, all []nftables.SetElement) {
	for len(all) > 0 {
		n := min(len(all), maxElements)
		b.message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, byte(s.Table.Family), 0)
		b.name(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
		b.name(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		list := b.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS | nested)
		for i := range all[:n] {
			e := b.open(unix.NFTA_LIST_ELEM | nested)
			b.element(s, &all[i], kind == unix.NFT_MSG_NEWSETELEM)
			b.close(e)
		}
		b.close(list)
		b.end()
		all = all[n:]
	}
}

func (b *batch) element(s *nftables.Set, e *nftables.SetElement, value bool) {
	key := b.open(unix.NFTA_SET_ELEM_KEY | nested)
	b.bytes(unix.NFTA_DATA_VALUE, e.Key)
	b.close(key)
	if !value {
		return
	}
	if s.HasTimeout && e.Timeout != 0 {
		b.bytes(unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(e.Timeout.Milliseconds())))
	}
	if !s.IsMap {
		return
	}
	data := b.open(unix.NFTA_SET_ELEM_DATA | nested)
	if v := e.VerdictData; v != nil {
		b.verdict(v)
	} else {
		b.bytes(unix.NFTA_DATA_VALUE, e.Val)
	}
	b.close(data)
}

func (b *batch) verdict(v *expr.Verdict) {
	at := b.open(unix.NFTA_DATA_VERDICT | nested)
	b.bytes(unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, uint32(v.Kind)))
	b.name(unix.NFTA_VERDICT_CHAIN, v.Chain)
	b.close(at)
}

// encode is the whole transaction, in the change's own memory; only the last message of elements is acknowledged, as the kernel tells of errors anyway.
func (c *change) encode() []byte {
	const request, create = unix.NLM_F_REQUEST, unix.NLM_F_CREATE
	b := &batch{buf: c.encoded[:0]}
	b.message(unix.NFNL_MSG_BATCH_BEGIN, request, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
	for _, s := range c.order {
		b.elements(unix.NFT_MSG_DELSETELEM, request, s, c.take[s])
	}
	for _, s := range c.order {
		b.elements(unix.NFT_MSG_NEWSETELEM, request|create, s, c.given[s])
	}
	b.acknowledge()
	b.message(unix.NFNL_MSG_BATCH_END, request, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	b.end()
	c.encoded = b.buf
	return b.buf
}

// commit sends the change as one transaction, and what comes after it as another.
func (c *change) commit(k *kernel) error {
	for ; c != nil; c = c.rest {
		if c.empty() {
			continue
		}
		if err := k.transact(c.encode()); err != nil {
			return err
		}
	}
	return nil
}

// transact sends a transaction of elements. After an error the socket is a new one, as more answers may be under way on the old.
func (k *kernel) transact(transaction []byte) error {
	if err := k.send(transaction, nil); err != nil {
		k.close()
		return errors.Join(fmt.Errorf("change nftables elements: %w", err), k.open())
	}
	k.generation++
	return nil
}

// send writes messages of which the kernel is to acknowledge one, and calls with the attributes of what it answers before that,
// which are good until it returns.
func (k *kernel) send(messages []byte, each func(attrs []byte)) error {
	if err := k.ready(); err != nil {
		return err
	}
	raw, err := k.raw.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		failed = unix.Sendto(int(fd), messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	return receive(k.raw, each)
}

// answers are buffers for what the kernel answers: pages of a dump are half as long at most.
var answers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// receive reads until the end of a dump, an acknowledgement, or an error. The library would ask for the length of every
// answer first, and keep them all.
func receive(conn *mdl.Conn, each func(attrs []byte)) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	buf := answers.Get().(*[]byte)
	defer answers.Put(buf)
	for {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), *buf, unix.MSG_DONTWAIT)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		for b := (*buf)[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return errors.New("the kernel's answer is cut off")
			}
			switch kind := binary.NativeEndian.Uint16(b[4:]); {
			case kind == unix.NLMSG_DONE:
				return nil
			case kind == unix.NLMSG_ERROR && size >= unix.NLMSG_HDRLEN+4:
				if code := int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])); code != 0 {
					return unix.Errno(-code)
				}
				return nil
			case size > unix.NLMSG_HDRLEN+4 && each != nil:
				each(b[unix.NLMSG_HDRLEN+4 : size])
			}
			b = b[min(align(size), len(b)):]
		}
	}
}
