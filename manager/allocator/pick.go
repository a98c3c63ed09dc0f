package allocator

import (
	"cmp"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"slices"
	"time"
)

// Blocks cuts a prefix into numbered blocks of one length, the lowest being 0. Its zero value has none.
type Blocks struct {
	pool netip.Prefix
	bits int
}

// NewBlocks cuts pool into blocks of the prefix length bits.
func NewBlocks(pool netip.Prefix, bits int) (Blocks, error) {
	if !pool.IsValid() {
		return Blocks{}, fmt.Errorf("cut pool into blocks: the pool is not a valid prefix")
	}
	if bits < pool.Bits() || bits > pool.Addr().BitLen() {
		return Blocks{}, fmt.Errorf("cut pool %s into blocks: block length /%d is outside /%d to /%d",
			pool, bits, pool.Bits(), pool.Addr().BitLen())
	}
	return Blocks{pool: pool.Masked(), bits: bits}, nil
}

// Pool is the prefix that the blocks come from.
func (b Blocks) Pool() netip.Prefix { return b.pool }

// Count is the number of blocks, at most the greatest uint64.
func (b Blocks) Count() uint64 {
	switch n := b.bits - b.pool.Bits(); {
	case !b.pool.IsValid():
		return 0
	case n >= 64:
		return math.MaxUint64
	default:
		return 1 << n
	}
}

// At is the block of a number below Count.
func (b Blocks) At(n uint64) netip.Prefix {
	start := new(big.Int).SetBytes(b.pool.Addr().AsSlice())
	start.Add(start, new(big.Int).Lsh(new(big.Int).SetUint64(n), uint(b.pool.Addr().BitLen()-b.bits)))
	raw := start.FillBytes(make([]byte, b.pool.Addr().BitLen()/8))
	addr, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(addr, b.bits)
}

// Span is the numbers of the blocks that overlap a prefix of any length; false when none does.
func (b Blocks) Span(p netip.Prefix) (Span, bool) {
	if !b.pool.IsValid() || !p.IsValid() || !b.pool.Overlaps(p) {
		return Span{}, false
	}
	if p.Bits() <= b.pool.Bits() {
		return Span{Last: b.Count() - 1}, true
	}
	host := uint(b.pool.Addr().BitLen() - b.bits)
	offset := new(big.Int).SetBytes(p.Masked().Addr().AsSlice())
	offset.Sub(offset, new(big.Int).SetBytes(b.pool.Addr().AsSlice()))
	first := offset.Rsh(offset, host)
	if !first.IsUint64() {
		return Span{}, false // beyond the numbers that Count admits
	}
	s := Span{First: first.Uint64(), Last: first.Uint64()}
	if wider := b.bits - p.Bits(); wider >= 64 {
		s.Last = math.MaxUint64
	} else if wider > 0 {
		s.Last += 1<<wider - 1
	}
	return s, true
}

// Span is a range of numbers that cannot be given, both ends included.
type Span struct {
	First, Last uint64
	// Until is the end of its rest; zero = it has an owner.
	Until time.Time
}

// Picker gives out numbers below a count, the lowest free first, each once. It serves blocks, addresses and
// ports alike.
type Picker struct {
	count  uint64
	spans  []Span // by First
	next   uint64
	passed int // spans that begin at or below next
	done   bool
	wake   time.Time
}

// NewPicker leaves out the spans that have an owner or rest beyond now, in any order.
func NewPicker(count uint64, taken []Span, now time.Time) *Picker {
	p := &Picker{count: count, done: count == 0}
	for _, s := range taken {
		if !s.Until.IsZero() {
			if !s.Until.After(now) {
				continue
			}
			if p.wake.IsZero() || s.Until.Before(p.wake) {
				p.wake = s.Until
			}
		}
		p.spans = append(p.spans, s)
	}
	slices.SortFunc(p.spans, func(a, b Span) int { return cmp.Compare(a.First, b.First) })
	return p
}

// Next is the lowest free number; false when there is none.
func (p *Picker) Next() (uint64, bool) {
	for !p.done && p.passed < len(p.spans) && p.spans[p.passed].First <= p.next {
		p.skipTo(p.spans[p.passed].Last)
		p.passed++
	}
	if p.done {
		return 0, false
	}
	n := p.next
	p.skipTo(n)
	return n, true
}

// skipTo goes on after last.
func (p *Picker) skipTo(last uint64) {
	if last >= p.count-1 {
		p.done = true
	} else if last >= p.next {
		p.next = last + 1
	}
}

// Wake is when the first of the resting numbers may be given again; zero = none rests.
func (p *Picker) Wake() time.Time { return p.wake }
