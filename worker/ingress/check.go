package ingress

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/google/nftables"
)

// reload replaces the table by what it should be, in one transaction: no packet sees it half made. Sockets are bound and released as settle does.
func (i *Ingress) reload() error {
	keys := map[portKey]bool{}
	for k := range i.balances {
		keys[k] = true
	}
	for k := range i.inherited {
		keys[k] = true
	}
	for k := range i.forwards {
		keys[k] = true
	}
	for k := range i.state.claims {
		keys[k] = true
	}
	if i.told.pods || i.members[i.table.pods[0]] == nil {
		for s, e := range i.podElements() {
			i.members[s] = bySet(e)
		}
	}
	c, next := newChange(), map[portKey]*balance{}
	for k := range keys {
		to := i.target(k)
		if to != nil && !i.reserve(k) {
			to = nil
		}
		next[k] = to
		if to != nil {
			i.table.rebalance(c, k, nil, to, i.layout.host.Prefix6)
		}
	}
	elements := c.given
	for _, s := range i.table.sets() {
		for _, e := range i.members[s] {
			elements[s] = append(elements[s], e)
		}
	}
	for a := range i.state.addresses() {
		for _, a := range i.twins(a) { // whether anything led there is lost with the old table
			s := i.table.reached[familyOf(a)]
			elements[s] = append(elements[s], nftables.SetElement{Key: a.AsSlice()})
		}
	}
	if err := i.table.load(i.kernel, i.layout, elements); err != nil {
		return errors.Join(err, i.kernel.drop())
	}
	if err := i.kernel.commit(); err != nil {
		i.dirty = true
		return fmt.Errorf("load nftables table %s: %w", Table, err)
	}
	for k, to := range next {
		i.remember(k, to)
	}
	i.changed()
	return errors.Join(i.takePrint(), i.ensureResets())
}

// takePrint remembers the rules as the kernel has them now, and the generation that they are from.
func (i *Ingress) takePrint() error {
	i.dirty = true
	generation, err := i.kernel.currentGeneration()
	if err != nil {
		return err
	}
	if i.print, err = i.kernel.rulesPrint(i.table.inet); err != nil {
		return err
	}
	i.kernel.generation, i.dirty = generation, false
	return nil
}

// mend is what follows a transaction that the kernel refused, as somebody has changed our table: it is loaded anew.
func (i *Ingress) mend(cause error) error {
	i.cfg.Logger.Warn("nftables refused a change; the table is loaded anew", "error", cause)
	if err := i.reload(); err != nil {
		i.dirty = true
		return errors.Join(cause, err)
	}
	return nil
}

// Check compares the kernel with what it should hold, and loads the table anew in one transaction where they differ. Where nobody
// has changed the host's nftables since, which a number tells, it costs next to nothing; else it reads the table once.
func (i *Ingress) Check() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.kernel == nil {
		return nil
	}
	same, err := i.intact()
	if err != nil {
		return fmt.Errorf("check ingress: %w", err)
	}
	if same {
		if err := i.ensureResets(); err != nil {
			return fmt.Errorf("check ingress: %w", err)
		}
		return nil
	}
	if err := i.reload(); err != nil {
		return fmt.Errorf("repair ingress: %w", err)
	}
	i.cfg.Logger.Info("the table of published ports was not as it should be; it is loaded anew")
	return nil
}

func (i *Ingress) intact() (bool, error) {
	generation, err := i.kernel.currentGeneration()
	if err != nil {
		return false, err
	}
	if !i.dirty && generation == i.kernel.generation {
		return true, nil
	}
	if now, err := i.kernel.rulesPrint(i.table.inet); err != nil || now != i.print {
		return false, err
	}
	expected := i.expected()
	for _, s := range i.table.sets() {
		if slices.Contains(i.table.backends[:], s) {
			continue
		}
		if same, err := i.holds(s, expected[s]); !same || err != nil {
			return false, err
		}
	}
	all, err := i.holdsSlots(expected)
	if err != nil || all == different {
		return false, err
	}
	// What is beyond the budget comes with the next checks.
	i.kernel.generation, i.dirty = generation, all == partly
	return true, nil
}

// How far slots have been compared.
type compared int

const (
	different compared = iota
	partly
	wholly
)

// slotBudget is how many elements of slots one check looks up: some 20 ms of CPU.
const slotBudget = 16384

// holdsSlots compares the numbers of elements and then, from where the last check ended, the elements themselves.
func (i *Ingress) holdsSlots(expected map[*nftables.Set]map[string]nftables.SetElement) (compared, error) {
	total := 0
	for _, s := range i.table.backends {
		n, told, err := i.kernel.count(s)
		if err != nil || told && n != len(expected[s]) {
			return different, err
		}
		total += len(expected[s])
	}
	left := slotBudget
	if i.slotCursor >= total {
		i.slotCursor = 0
	}
	at := 0
	for _, s := range i.table.backends {
		keys := slices.Sorted(maps.Keys(expected[s]))
		from := min(max(i.slotCursor-at, 0), len(keys))
		part := keys[from:min(from+left, len(keys))]
		at += len(keys)
		left -= len(part)
		wanted := make([][]byte, len(part))
		for n, key := range part {
			wanted[n] = []byte(key)
		}
		have, err := i.kernel.lookUp(s, wanted)
		if errors.Is(err, fs.ErrNotExist) {
			return different, nil
		}
		if err != nil {
			return different, err
		}
		for _, key := range part {
			if string(have[key]) != string(expected[s][key].Val) {
				return different, nil
			}
		}
	}
	i.slotCursor += slotBudget - left
	if i.slotCursor < total {
		return partly, nil
	}
	i.slotCursor = 0
	return wholly, nil
}

// expected is what the sets should hold.
func (i *Ingress) expected() map[*nftables.Set]map[string]nftables.SetElement {
	c := newChange()
	for k, b := range i.balances {
		i.table.rebalance(c, k, nil, b, i.layout.host.Prefix6)
	}
	out := map[*nftables.Set]map[string]nftables.SetElement{}
	for _, s := range i.table.sets() {
		out[s] = map[string]nftables.SetElement{}
		for _, e := range c.given[s] {
			out[s][string(e.Key)] = e
		}
		maps.Copy(out[s], i.members[s])
	}
	return out
}

func (i *Ingress) holds(s *nftables.Set, want map[string]nftables.SetElement) (bool, error) {
	have, err := i.kernel.elements(s)
	if err != nil || len(have) != len(want) {
		return false, err
	}
	for _, e := range have {
		w, ok := want[string(e.Key)]
		if !ok || (w.VerdictData != nil && w.VerdictData.Chain != verdictChain(e)) || (w.VerdictData == nil && string(w.Val) != string(e.Val)) {
			return false, nil
		}
	}
	return true, nil
}
