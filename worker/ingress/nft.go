package ingress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Table is the name of all our nftables tables.
const Table = "swarmd"

// maxElements is how many elements one message holds: an attribute holds 64 KiB.
const maxElements = 400

// socketBuffer has room for the acknowledgements of a whole table, and for the table itself, on the way to the kernel.
// They are limits: memory is taken as it is needed.
const (
	receiveBuffer = 8 << 20
	sendBuffer    = 256 << 20
)

// kernel is kept-open sockets to the nftables of one network namespace. Rules are collected and sent by commit, as one
// transaction; changes of elements alone go by change.commit. It counts its own transactions, so that it can tell whether somebody else has changed anything.
type kernel struct {
	namespace  string         // path; "" = that of the calling thread
	conn       *nftables.Conn // for rules
	raw        *mdl.Conn      // for elements and questions
	generation uint32         // of the namespace's nftables when last seen, plus our transactions since
	pending    bool
}

func openKernel(namespace string) (*kernel, error) {
	k := &kernel{namespace: namespace}
	return k, k.open()
}

func (k *kernel) open() error {
	buffers := func(c *mdl.Conn) error {
		return errors.Join(c.SetReadBuffer(receiveBuffer), c.SetWriteBuffer(sendBuffer))
	}
	opts := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(buffers)}
	if k.namespace != "" {
		f, err := os.Open(k.namespace)
		if err != nil {
			return fmt.Errorf("open namespace: %w", err)
		}
		defer f.Close()
		opts = append(opts, nftables.WithNetNSFd(int(f.Fd())))
	}
	conn, err := nftables.New(opts...)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	raw, err := dialNetfilter(k.namespace)
	if err == nil {
		err = buffers(raw)
	}
	if err != nil {
		return errors.Join(err, conn.CloseLasting())
	}
	k.conn, k.raw = conn, raw
	return nil
}

// ready opens the sockets again where that failed before, such as for want of descriptors.
func (k *kernel) ready() error {
	if k.conn != nil {
		return nil
	}
	return k.open()
}

func (k *kernel) close() {
	if k.conn != nil {
		_, _ = k.conn.CloseLasting(), k.raw.Close()
		k.conn, k.raw = nil, nil
	}
}

// commit sends what was collected. After an error the socket is a new one, as answers may still be under way on the old.
func (k *kernel) commit() error {
	if !k.pending {
		return nil
	}
	k.pending = false
	if err := k.conn.Flush(); err != nil {
		k.close()
		return errors.Join(err, k.open())
	}
	k.generation++
	return nil
}

// drop forgets what was collected.
func (k *kernel) drop() error {
	k.pending = false
	k.close()
	return k.open()
}

func (k *kernel) add(s *nftables.Set, elements []nftables.SetElement) error {
	for len(elements) > 0 {
		n := min(len(elements), maxElements)
		if err := k.conn.SetAddElements(s, elements[:n]); err != nil {
			return fmt.Errorf("encode elements of %s: %w", s.Name, err)
		}
		k.pending = true
		elements = elements[n:]
	}
	return nil
}

// addSet makes a set, or takes the one that is there, with what the packet path wrote into it.
func (k *kernel) addSet(s *nftables.Set, elements []nftables.SetElement) error {
	if err := k.conn.AddSet(s, nil); err != nil {
		return fmt.Errorf("encode set %s: %w", s.Name, err)
	}
	k.pending = true
	return k.add(s, elements)
}

// fillSet makes a set that holds these elements alone.
func (k *kernel) fillSet(s *nftables.Set, elements []nftables.SetElement) error {
	if err := k.addSet(s, nil); err != nil {
		return err
	}
	k.conn.FlushSet(s)
	return k.add(s, elements)
}

// loading is the transaction that fills a table with our sets, chains and rules.
type loading struct {
	*kernel
	chains map[string]bool // ours
}

// exchange fills a table with what load makes, in one transaction. A connection that begins while a table is exchanged for another may be led
// by neither: the new one's chains come before the old one's, are still empty as it passes them, and the others are empty already. So
// the table stays, its chains and sets too, and what they hold is exchanged. Only one that has other chains than ours, or that
// is refused, as somebody or another version made it differently, is replaced.
func (k *kernel) exchange(t *nftables.Table, load func(*loading) error) error {
	for _, inPlace := range []bool{true, false} {
		l := &loading{kernel: k, chains: map[string]bool{}}
		k.conn.AddTable(t)
		if !inPlace {
			k.conn.DelTable(t)
			k.conn.AddTable(t)
		}
		k.pending = true
		if err := load(l); err != nil {
			return errors.Join(err, k.drop())
		}
		err := k.commit()
		if !inPlace {
			return err
		}
		if err != nil {
			continue
		}
		there, err := k.chainsOf(t)
		if err != nil || slices.Equal(there, slices.Sorted(maps.Keys(l.chains))) {
			return err
		}
	}
	return nil
}

// takes tells whether the kernel takes a rule: it is made and removed again in one transaction. What fails in another way than for want of
// what the rule is made of counts as taken.
func (k *kernel) takes(parts ...[]expr.Any) bool {
	if err := k.ready(); err != nil {
		return true
	}
	t := k.conn.AddTable(&nftables.Table{Name: Table + "-try", Family: nftables.TableFamilyINet})
	c := k.conn.AddChain(&nftables.Chain{Name: "try", Table: t})
	k.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: join(parts...)})
	k.conn.DelTable(t)
	k.pending = true
	err := k.commit()
	return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP)
}

// chain adds a chain, without the rules that it may have already.
func (l *loading) chain(c *nftables.Chain) *nftables.Chain {
	l.chains[c.Name] = true
	if c.Hooknum != nil {
		policy := nftables.ChainPolicyAccept
		c.Policy = &policy
	}
	l.conn.AddChain(c)
	l.conn.FlushChain(c)
	return c
}

// chainsOf are the names of a table's chains, sorted.
func (k *kernel) chainsOf(t *nftables.Table) ([]string, error) {
	if err := k.ready(); err != nil {
		return nil, err
	}
	all, err := k.conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list nftables chains: %w", err), k.drop())
	}
	var out []string
	for _, c := range all {
		if c.Table.Name == t.Name && c.Table.Family == t.Family {
			out = append(out, c.Name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// removeTables removes tables, which need not be there.
func (k *kernel) removeTables(tables ...*nftables.Table) error {
	if err := k.ready(); err != nil {
		return err
	}
	for _, t := range tables {
		k.conn.AddTable(t)
		k.conn.DelTable(t)
	}
	k.pending = true
	return k.commit()
}

// elements of a set; none when the table or the set is not there.
func (k *kernel) elements(s *nftables.Set) ([]nftables.SetElement, error) {
	if err := k.ready(); err != nil {
		return nil, err
	}
	if _, err := k.conn.GetSetByName(s.Table, s.Name); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("find nftables set %s: %w", s.Name, err), k.drop())
	}
	all, err := k.conn.GetSetElements(s)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read nftables set %s: %w", s.Name, err), k.drop())
	}
	return all, nil
}

// lookUp is the values of keys in a set, as the kernel has them; a key that is not there ends it with fs.ErrNotExist. It costs the
// same a key at any size, where reading a set costs the square of its size: the kernel begins anew for every page.
func (k *kernel) lookUp(s *nftables.Set, keys [][]byte) (map[string][]byte, error) {
	out := make(map[string][]byte, len(keys))
	for len(keys) > 0 {
		n := min(len(keys), maxLookUp)
		b := &batch{}
		b.message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NLM_F_REQUEST|unix.NLM_F_ACK, byte(s.Table.Family), 0)
		b.name(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
		b.name(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		list := b.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS | nested)
		for _, key := range keys[:n] {
			e := b.open(unix.NFTA_LIST_ELEM | nested)
			b.element(s, &nftables.SetElement{Key: key}, false)
			b.close(e)
		}
		b.close(list)
		b.end()
		err := k.send(b.buf, func(attrs []byte) { addElements(out, attrs) })
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("look up in nftables set %s: %w", s.Name, err), k.drop())
		}
		keys = keys[n:]
	}
	return out, nil
}

// maxLookUp is how many keys one question has: the answers come one by one, and wait for their reader.
const maxLookUp = 200

// addElements reads the answer to a question for elements.
func addElements(to map[string][]byte, attrs []byte) {
	value := func(v []byte) (out []byte) {
		eachAttribute(v, func(kind uint16, v []byte) {
			if kind == unix.NFTA_DATA_VALUE {
				out = v
			}
		})
		return out
	}
	eachAttribute(attrs, func(kind uint16, v []byte) {
		if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return
		}
		eachAttribute(v, func(_ uint16, v []byte) {
			var key, data []byte
			eachAttribute(v, func(kind uint16, v []byte) {
				switch kind {
				case unix.NFTA_SET_ELEM_KEY:
					key = value(v)
				case unix.NFTA_SET_ELEM_DATA:
					data = value(v)
				}
			})
			to[string(key)] = slices.Clone(data)
		})
	})
}

// contains tells whether a set holds a key.
func (k *kernel) contains(s *nftables.Set, key []byte) (bool, error) {
	_, err := k.lookUp(s, [][]byte{key})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// count is the number of a set's elements, where the kernel tells it (6.17).
func (k *kernel) count(s *nftables.Set) (n int, told bool, err error) {
	b := &batch{}
	b.name(unix.NFTA_SET_TABLE, s.Table.Name)
	b.name(unix.NFTA_SET_NAME, s.Name)
	msgs, err := k.ask(unix.NFT_MSG_GETSET, byte(s.Table.Family), 0, b.buf)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, true, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("find nftables set %s: %w", s.Name, err)
	}
	const setCount = 20 // NFTA_SET_COUNT
	for _, m := range msgs {
		eachAttribute(m.Data[min(4, len(m.Data)):], func(kind uint16, v []byte) {
			if kind == setCount && len(v) == 4 {
				n, told = int(binary.BigEndian.Uint32(v)), true
			}
		})
	}
	return n, told, nil
}

// currentGeneration is a number that every change of the namespace's nftables, by anybody, increases by one.
func (k *kernel) currentGeneration() (uint32, error) {
	msgs, err := k.ask(unix.NFT_MSG_GETGEN, unix.NFPROTO_UNSPEC, 0, nil)
	if err != nil {
		return 0, fmt.Errorf("read the generation of nftables: %w", err)
	}
	for _, m := range msgs {
		ad, err := mdl.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("read the generation of nftables: %w", err)
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("read the generation of nftables: the kernel did not tell it")
}

// rulesPrint is a hash of tables' rules as the kernel has them; elements of sets are no part of it.
func (k *kernel) rulesPrint(tables ...*nftables.Table) (uint64, error) {
	h := fnv.New64a()
	for _, t := range tables {
		attrs, err := mdl.MarshalAttributes([]mdl.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(t.Name + "\x00")}})
		if err != nil {
			return 0, fmt.Errorf("encode request: %w", err)
		}
		msgs, err := k.ask(unix.NFT_MSG_GETRULE, byte(t.Family), mdl.Dump, attrs)
		if err != nil {
			return 0, fmt.Errorf("read nftables rules: %w", err)
		}
		for _, m := range msgs {
			if len(m.Data) > 4 {
				_, _ = h.Write(m.Data[4:]) // behind the header, which holds the generation
			}
		}
	}
	return h.Sum64(), nil
}

// ask is a question, or a dump. After an error that is not the kernel's plain answer the sockets are new ones: what is still under way on
// the old would be taken for the answer to the next question, or for a transaction's acknowledgement.
func (k *kernel) ask(kind uint16, family byte, flags mdl.HeaderFlags, attrs []byte) ([]mdl.Message, error) {
	if err := k.ready(); err != nil {
		return nil, err
	}
	msgs, err := k.raw.Execute(mdl.Message{
		Header: mdl.Header{Type: mdl.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: mdl.Request | flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(err, k.drop())
	}
	return msgs, err
}

func dialNetfilter(namespace string) (*mdl.Conn, error) {
	cfg := &mdl.Config{}
	if namespace != "" {
		f, err := os.Open(namespace)
		if err != nil {
			return nil, fmt.Errorf("open namespace: %w", err)
		}
		defer f.Close()
		cfg.NetNS = int(f.Fd())
	}
	conn, err := mdl.Dial(unix.NETLINK_NETFILTER, cfg)
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	return conn, nil
}
