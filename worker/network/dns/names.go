package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// table is what names stand for. An answer is composed and handed to the kernel under the lock for reading, and a change
// takes it for writing: that is the promise of Apply. So nothing may wait while it holds the lock.
type table struct {
	mu       sync.RWMutex
	networks map[string]*network
	own      []netip.Prefix
}

type network struct {
	name    string
	subnets []netip.Prefix
	names   map[string]entry
	reverse map[netip.Addr][]string // names that have the address; one is removed with its last
}

// addresses of a name, by family.
type addresses struct{ v4, v6 []netip.Addr }

func (a addresses) all() []netip.Addr { return slices.Concat(a.v4, a.v6) }

// entry is what a name stands for: addresses, and one side of each division.
type entry struct {
	addresses
	divided []division
	absent  bool
}

type division struct {
	rest, trial addresses
	share       uint32
}

func (e entry) all() []netip.Addr {
	out := e.addresses.all()
	for _, d := range e.divided {
		out = append(append(out, d.rest.all()...), d.trial.all()...)
	}
	return out
}

func (a *addresses) add(addrs []netip.Addr) {
	for _, addr := range addrs {
		if addr = addr.Unmap(); addr.Is4() {
			a.v4 = append(a.v4, addr)
		} else if addr.IsValid() {
			a.v6 = append(a.v6, addr)
		}
	}
}

func newTable() table { return table{networks: map[string]*network{}} }

func (t *table) apply(u Update) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range u.RemovedNetworks {
		delete(t.networks, id)
	}
	for id, names := range u.Networks {
		n := t.networks[id]
		if n == nil {
			n = &network{}
			t.networks[id] = n
		}
		n.apply(names)
	}
	if u.Own != nil {
		t.own = slices.Clone(u.Own)
	}
}

func (n *network) apply(u NetworkNames) {
	if u.Full || n.names == nil {
		n.names, n.reverse = make(map[string]entry, len(u.Set)), make(map[netip.Addr][]string, len(u.Set))
	}
	for _, name := range u.Removed {
		n.remove(name)
	}
	for name, addrs := range u.Set {
		n.remove(name)
		var e entry
		e.add(addrs)
		for _, d := range u.Divided[name] {
			of := division{share: d.Share}
			of.rest.add(d.Rest)
			of.trial.add(d.Trial)
			e.divided = append(e.divided, of)
		}
		for _, addr := range e.all() {
			n.reverse[addr] = append(n.reverse[addr], name)
		}
		n.names[name] = e
	}
	for _, name := range u.Absent {
		n.remove(name)
		n.names[name] = entry{absent: true}
	}
	n.name = cmp.Or(u.Name, n.name)
	if u.Subnets != nil {
		n.subnets = slices.Clone(u.Subnets)
	}
}

func (n *network) remove(name string) {
	for _, addr := range n.names[name].all() {
		names := n.reverse[addr]
		if i := slices.Index(names, name); i >= 0 {
			names = slices.Delete(names, i, i+1)
		}
		if n.reverse[addr] = names; len(names) == 0 {
			delete(n.reverse, addr)
		}
	}
	delete(n.names, name)
}

// forward finds a name, which is lower-case without a final dot, in the first of the networks where it has addresses; failing
// that, as NAME.NETWORK. One without addresses anywhere is found as such, and one that is absent wherever it is known as that.
// The lock is held.
func (t *table) forward(networks []string, name string) (out entry, found bool) {
	out.absent = true
	look := func(n *network, name string) bool {
		e, ok := n.names[name]
		if !ok {
			return false
		}
		found, out.absent = true, out.absent && e.absent
		if len(e.v4)+len(e.v6)+len(e.divided) > 0 {
			out = e
			return true
		}
		return false
	}
	for _, id := range networks {
		if n := t.networks[id]; n != nil && look(n, name) {
			return out, true
		}
	}
	for _, id := range networks {
		n := t.networks[id]
		if n == nil || n.name == "" {
			continue
		}
		if short, ok := strings.CutSuffix(name, "."+strings.ToLower(n.name)); ok && look(n, short) {
			return out, true
		}
	}
	return out, found
}

// reverse finds the name of an address; ours: nobody outside can know it. The lock is held.
func (t *table) reverse(networks []string, addr netip.Addr) (name string, ours bool) {
	for _, id := range networks {
		n := t.networks[id]
		if n == nil || len(n.reverse[addr]) == 0 {
			continue
		}
		name = slices.MinFunc(n.reverse[addr], n.moreTelling)
		if n.name != "" {
			name += "." + n.name
		}
		return name, true
	}
	if contains(t.own, addr) {
		return "", true
	}
	for _, n := range t.networks {
		if contains(n.subnets, addr) {
			return "", true
		}
	}
	return "", false
}

// moreTelling puts the name first that says most of an address: one that nothing else has, and that says more than others.
func (n *network) moreTelling(a, b string) int {
	return cmp.Or(
		cmp.Compare(len(n.names[a].all()), len(n.names[b].all())),
		cmp.Compare(strings.Count(b, "."), strings.Count(a, ".")),
		cmp.Compare(len(b), len(a)),
		strings.Compare(a, b),
	)
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// reverseAddress is the address that a name of in-addr.arpa or ip6.arpa, lower-case without a final dot, stands for.
func reverseAddress(name string) (netip.Addr, bool) {
	if labels, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(labels, ".")
		slices.Reverse(parts)
		addr, err := netip.ParseAddr(strings.Join(parts, "."))
		return addr, err == nil && addr.Is4()
	}
	labels, ok := strings.CutSuffix(name, ".ip6.arpa")
	const nibbles = 32
	if !ok || len(labels) != 2*nibbles-1 {
		return netip.Addr{}, false
	}
	parts := strings.Split(labels, ".")
	slices.Reverse(parts)
	var text strings.Builder
	for i, p := range parts {
		if i > 0 && i%4 == 0 {
			text.WriteByte(':')
		}
		text.WriteString(p)
	}
	addr, err := netip.ParseAddr(text.String())
	return addr.Unmap(), err == nil && len(parts) == nibbles
}

// key is the form in which the table has a name.
func key(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// validTarget tells whether a name can be in an answer.
func validTarget(name string) bool {
	_, ok := dns.IsDomainName(name)
	return ok
}
