package ingress

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/google/nftables"

	"github.com/swarmd/swarmd/worker/ingress/slots"
)

// reload makes the table what it should be, in one transaction: no packet sees it half made. Sockets are bound and released as settle does.
func (i *Ingress) reload() error {
	i.unloaded = true
	if err := i.kernel.ready(); err != nil {
		return err
	}
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
	if supported, err := i.kernel.loadZones(i.layout); err != nil {
		i.dirty = true
		return err
	} else if !supported {
		i.cfg.Logger.Warn("the kernel has no connection tracking zones: a client's second connection from one port, through another node, to the same task gets no answer")
	}
	if err := i.load(elements); err != nil {
		i.dirty = true
		return fmt.Errorf("load nftables table %s: %w", Table, err)
	}
	for k, to := range next {
		i.remember(k, to)
	}
	i.loaded, i.unloaded = true, false
	i.changed()
	return errors.Join(i.takePrint(), i.ensureResets())
}

// load loads the table; where the kernel cannot hash clients' addresses, without that.
func (i *Ingress) load(elements map[*nftables.Set][]nftables.SetElement) error {
	try := func() error {
		return i.kernel.exchange(i.table.inet, func(l *loading) error { return i.table.load(l, i.layout, elements) })
	}
	could := !i.table.withoutHash
	i.table.withoutHash = false
	err := try()
	if err == nil || i.kernel.takes(families[0].is(), i.table.clientHash(slots.Classes[0], families[0])) {
		return err
	}
	if i.table.withoutHash = true; could {
		i.cfg.Logger.Warn("the kernel cannot hash clients' addresses (CONFIG_NFT_HASH): affinity=client-ip is not kept, these ports' connections are divided by chance", "error", err)
	}
	return try()
}

// loadRefused loads the table that the kernel refused before; nil: it holds all.
func (i *Ingress) loadRefused() error {
	if i.kernel == nil || !i.unloaded {
		return nil
	}
	return i.reload()
}

// takePrint remembers the rules as the kernel has them now, and the generation that they are from.
func (i *Ingress) takePrint() error {
	i.dirty = true
	generation, err := i.kernel.currentGeneration()
	if err != nil {
		return err
	}
	if i.print, err = i.kernel.rulesPrint(i.table.all()...); err != nil {
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
	return errors.Join(i.repair(), i.endFlows(newLeaving()))
}

func (i *Ingress) repair() error {
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
	if i.unloaded {
		return false, nil
	}
	if !i.dirty && generation == i.kernel.generation {
		return true, nil
	}
	if now, err := i.kernel.rulesPrint(i.table.all()...); err != nil || now != i.print {
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
	all, err := i.holdsSlots()
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

// holdsSlots compares the numbers of elements and then, from the port where the last check ended, the elements themselves.
func (i *Ingress) holdsSlots() (compared, error) {
	total := 0
	for _, b := range i.balances {
		total += len(b.backends)
	}
	for n := range i.layout.usedFamilies() {
		have, told, err := i.kernel.count(i.table.backends[n])
		if err != nil || told && have != total {
			return different, err
		}
	}
	ports := slices.SortedFunc(maps.Keys(i.balances), portKey.compare)
	from, found := slices.BinarySearchFunc(ports, i.slotCursor, portKey.compare)
	if found {
		from++
	}
	for n, left := from, slotBudget; n < len(ports); n++ {
		b := i.balances[ports[n]]
		if left -= 2 * len(b.backends); left < 0 && n > from {
			return partly, nil
		}
		if same, err := i.holdsBalance(ports[n], b); !same || err != nil {
			return different, err
		}
		i.slotCursor = ports[n]
	}
	i.slotCursor = portKey{}
	return wholly, nil
}

func (i *Ingress) holdsBalance(k portKey, b *balance) (bool, error) {
	c := newChange()
	for slot, to := range b.backends {
		i.table.slotElements(c, k, slot, to, i.layout.host.Prefix6, c.add)
	}
	for _, s := range c.order {
		keys := make([][]byte, len(c.given[s]))
		for n, e := range c.given[s] {
			keys[n] = e.Key
		}
		have, err := i.kernel.lookUp(s, keys)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		for _, e := range c.given[s] {
			if string(have[string(e.Key)]) != string(e.Val) {
				return false, nil
			}
		}
	}
	return true, nil
}

// expected is what the sets but those of slots should hold.
func (i *Ingress) expected() map[*nftables.Set]map[string]nftables.SetElement {
	out := map[*nftables.Set]map[string]nftables.SetElement{}
	for _, s := range i.table.sets() {
		out[s] = maps.Clone(i.members[s])
		if out[s] == nil {
			out[s] = map[string]nftables.SetElement{}
		}
	}
	for k, b := range i.balances {
		e := nftables.SetElement{Key: k.key()}
		key := string(e.Key)
		out[i.table.ports][key] = e
		if b.sourceNAT {
			out[i.table.sourceNAT][key] = e
		}
		if len(b.backends) > 0 {
			out[i.table.published][key] = k.verdictElement(*b)
		}
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
