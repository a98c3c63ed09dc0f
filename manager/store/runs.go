package store

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"strconv"

	"github.com/tidwall/btree"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// run is a stretch of numbers of a pool that all have a row, with nobody else's before and behind: what makes the
// lowest number without a row a look-up instead of a walk.
type run struct {
	pool        string
	first, last uint64
}

func lessRun(a, b run) bool {
	if a.pool != b.pool {
		return a.pool < b.pool
	}
	return a.first < b.first
}

// restItem is an allocation without an owner.
type restItem struct {
	pool       string
	releasedAt int64
	address    string
}

func lessRest(a, b restItem) bool {
	switch {
	case a.pool != b.pool:
		return a.pool < b.pool
	case a.releasedAt != b.releasedAt:
		return a.releasedAt < b.releasedAt
	default:
		return a.address < b.address
	}
}

func restOf(a *swarmpb.Allocation) restItem { return restItem{a.Pool, a.ReleasedAt, a.Address} }

// firstAddress is the number of 0.0.0.0; lower ones are numbers themselves.
const firstAddress = 1 << 32

// AddressNumber is the number under which FirstFree finds the row of an address: of a number below 2^32 itself, of an
// IPv4 address one above. ok is false for anything else, such as prefixes. No two addresses have the same.
func AddressNumber(address string) (n uint64, ok bool) {
	if n, err := strconv.ParseUint(address, 10, 32); err == nil {
		return n, address == "0" || address[0] != '0'
	}
	addr, err := netip.ParseAddr(address)
	if err != nil || !addr.Is4() {
		return 0, false
	}
	raw := addr.As4()
	return firstAddress + uint64(binary.BigEndian.Uint32(raw[:])), true
}

// NumberedAddress is the address of a number.
func NumberedAddress(n uint64) string {
	if n < firstAddress {
		return strconv.FormatUint(n, 10)
	}
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}).String()
}

// setAllocation keeps the owners, the rests and the runs beside the row.
func (t *tx) setAllocation(old, next *swarmpb.Allocation) {
	row := next
	if row == nil {
		row = old
	}
	if row == nil {
		return
	}
	switch {
	case old == nil:
	case old.Owner != "":
		t.owners.Delete(ownerItem{old.Owner, old.Pool, old.Address})
	default:
		t.resting.Delete(restOf(old))
	}
	switch {
	case next == nil:
	case next.Owner != "":
		t.owners.Set(ownerItem{next.Owner, next.Pool, next.Address})
	default:
		t.resting.Set(restOf(next))
	}
	if (old == nil) == (next == nil) {
		return
	}
	n, ok := AddressNumber(row.Address)
	switch {
	case !ok:
	case next != nil:
		addRun(t.runs, row.Pool, n)
	default:
		cutRun(t.runs, row.Pool, n)
	}
}

// runAt is the last run that begins at or before a number.
func runAt(runs *btree.BTreeG[run], pool string, n uint64) (found run, ok bool) {
	runs.Descend(run{pool: pool, first: n}, func(r run) bool {
		found, ok = r, r.pool == pool
		return false
	})
	return found, ok
}

// addRun adds a number that is in no run.
func addRun(runs *btree.BTreeG[run], pool string, n uint64) {
	next := run{pool, n, n}
	if left, ok := runAt(runs, pool, n); ok {
		if left.last+1 == n {
			next.first = left.first
		}
	}
	if right, ok := runs.Get(run{pool: pool, first: n + 1}); ok {
		next.last = right.last
		runs.Delete(right)
	}
	runs.Set(next)
}

func cutRun(runs *btree.BTreeG[run], pool string, n uint64) {
	r, ok := runAt(runs, pool, n)
	if !ok || r.last < n {
		return
	}
	runs.Delete(r)
	if r.first < n {
		runs.Set(run{pool, r.first, n - 1})
	}
	if r.last > n {
		runs.Set(run{pool, n + 1, r.last})
	}
}

// FirstFree is the lowest number from first to last, both included, that has no row in the pool; AddressNumber says
// which rows have one. false when all have.
func (v *View) FirstFree(pool string, first, last uint64) (uint64, bool) {
	if r, ok := runAt(v.runs, pool, first); ok && r.last >= first {
		if r.last >= last {
			return 0, false
		}
		first = r.last + 1
	}
	return first, first <= last
}

// LastFree is the highest such number.
func (v *View) LastFree(pool string, first, last uint64) (uint64, bool) {
	if r, ok := runAt(v.runs, pool, last); ok && r.last >= last {
		if r.first <= first {
			return 0, false
		}
		last = r.first - 1
	}
	return last, first <= last
}

// Resting are the rows of a pool without an owner, those that were released first before the others.
func (v *View) Resting(pool string) iter.Seq[*swarmpb.Allocation] {
	items := from(v.resting, restItem{pool: pool, releasedAt: -1 << 63}, func(item restItem) bool { return item.pool == pool })
	return func(yield func(*swarmpb.Allocation) bool) {
		for item := range items {
			if !yield(v.Allocation(item.pool, item.address)) {
				return
			}
		}
	}
}

// verifyRuns derives the rests and runs anew.
func (v *View) verifyRuns() error {
	runs, resting := newTree(lessRun), 0
	var err error
	v.allocations.Scan(func(a *swarmpb.Allocation) bool {
		if n, ok := AddressNumber(a.Address); ok {
			addRun(runs, a.Pool, n)
		}
		if a.Owner == "" {
			resting++
			if _, kept := v.resting.Get(restOf(a)); !kept {
				err = fmt.Errorf("address %s of pool %s is not among those that rest", a.Address, a.Pool)
			}
		}
		return err == nil
	})
	switch {
	case err != nil:
		return err
	case resting != v.resting.Len():
		return fmt.Errorf("%d addresses are kept as resting, the rows give %d", v.resting.Len(), resting)
	case runs.Len() != v.runs.Len():
		return fmt.Errorf("%d runs of addresses are kept, the rows give %d", v.runs.Len(), runs.Len())
	}
	runs.Scan(func(r run) bool {
		if kept, ok := v.runs.Get(r); !ok || kept != r {
			err = fmt.Errorf("pool %s: addresses %d to %d are not kept as a run", r.pool, r.first, r.last)
		}
		return err == nil
	})
	return err
}
