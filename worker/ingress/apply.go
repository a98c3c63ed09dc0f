package ingress

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/ingress/slots"
)

// subsetFrom is the number of endpoints beyond which a node balances over a subset.
const subsetFrom = slots.Limit

// Forward sends a port of this host to a task: a host-mode port. To is the task's IPv4 address; its IPv6 twin follows.
type Forward struct {
	Protocol swarmpb.Protocol
	Port     uint16
	To       netip.AddrPort
}

func (f Forward) key() portKey { return portKey{protocolNumber(f.Protocol), f.Port} }

// Apply takes an update over. It returns once the kernel holds it, in one transaction, and the connections that end with it are
// deleted; before Configure it only remembers. After an error the kernel may not hold it; Check tries again, and so does the next Apply.
func (i *Ingress) Apply(u Update) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	touched, leave := i.state.take(u)
	if i.kernel != nil {
		for id := range touched {
			i.recall(id)
		}
	}
	ports := i.state.claim(touched)
	if u.Full {
		i.full = true
		for k := range i.inherited {
			ports[k] = true
		}
		clear(i.inherited)
	}
	err := errors.Join(i.settle(ports), i.followGone(), i.loadRefused(), i.endFlows(leave))
	i.state.tidy(touched)
	return err
}

func (i *Ingress) recall(id string) {
	v := i.state.services[id]
	if v == nil || v.random != nil {
		return
	}
	for _, p := range v.ports {
		v.recall(i.inherited[portKey{protocolNumber(p.GetProtocol()), uint16(p.GetPublishedPort())}])
	}
}

// Gone takes a task whose process has ended out at once, and ends its connections, without waiting for the managers.
func (i *Ingress) Gone(taskID string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	id, ok := i.state.tasks[taskID]
	if !ok || i.state.gone[taskID] {
		return nil
	}
	i.state.gone[taskID], i.state.handed[taskID] = true, true
	leave := newLeaving()
	if a, ok := uplinkAddress(i.state.services[id].endpoints[taskID]); ok {
		i.state.release(a, leave)
	}
	return errors.Join(i.settle(i.state.claim(map[string]bool{id: true})), i.followGone(), i.endFlows(leave))
}

// Hint has endpoints on nodes that gossip calls dead take no new connections, unless nothing else is left. The function is kept and
// asked again for endpoints that come later, until the next call.
func (i *Ingress) Hint(dead func(nodeID string) bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.settle(i.state.claim(i.state.hinted(dead)))
}

// AddForwards binds host-mode ports and sends them to their tasks, all or none, and returns them as bound: port 0 is chosen by the
// kernel. It is idempotent. A port that something else has is ErrPortTaken.
func (i *Ingress) AddForwards(forwards []Forward) ([]Forward, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var bound []Forward
	var fresh []portKey
	undo := func() {
		for _, k := range fresh {
			i.listeners.release(k)
			delete(i.forwards, k)
		}
	}
	for _, f := range forwards {
		k := f.key()
		if to, ok := i.forwards[k]; ok && f.Port != 0 && to == f.To {
			bound = append(bound, f)
			continue
		} else if f.Port != 0 && (ok || i.state.claimed(k) != nil) {
			undo()
			return nil, fmt.Errorf("publish %s: %w: it is published already on this node", k, ErrPortTaken)
		}
		k, err := i.listeners.reserve(k, i.ownerOf)
		if err != nil {
			undo()
			return nil, fmt.Errorf("publish %s: %w", f.key(), err)
		}
		i.forwards[k] = f.To
		fresh = append(fresh, k)
		f.Port = k.port
		bound = append(bound, f)
	}
	if err := i.settle(keySet(fresh)); err != nil {
		undo()
		return nil, errors.Join(fmt.Errorf("publish ports: %w", err), i.settle(keySet(fresh)))
	}
	return bound, nil
}

// AdoptForwards takes over the host-mode ports of a former process. One that something else has bound since is translated all the
// same, as its task runs; the socket is tried again.
func (i *Ingress) AdoptForwards(forwards []Forward) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	ports := map[portKey]bool{}
	for _, f := range forwards {
		i.forwards[f.key()] = f.To
		ports[f.key()] = true
		if _, err := i.listeners.reserve(f.key(), i.ownerOf); err != nil {
			i.cfg.Logger.Warn("cannot reserve a host port again", "port", f.key().String(), "error", err)
			i.tryLater()
		}
	}
	return i.settle(ports)
}

// RemoveForwards withdraws host-mode ports and ends the connections to their tasks; those that are not there are no error.
func (i *Ingress) RemoveForwards(forwards []Forward) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	ports, leave := map[portKey]bool{}, newLeaving()
	for _, f := range forwards {
		if to, ok := i.forwards[f.key()]; ok && to == f.To {
			delete(i.forwards, f.key())
			ports[f.key()] = true
			leave.all[f.To.Addr()] = true
		}
	}
	return errors.Join(i.settle(ports), i.endFlows(leave))
}

func keySet(keys []portKey) map[portKey]bool {
	out := map[portKey]bool{}
	for _, k := range keys {
		out[k] = true
	}
	return out
}

// target is what the kernel should hold of a port; nil: nothing.
func (i *Ingress) target(k portKey) *balance {
	if to, ok := i.forwards[k]; ok {
		b := &balance{kind: byChance, backends: make([]netip.AddrPort, slots.Classes[0])}
		for slot := range b.backends {
			b.backends[slot] = to
		}
		return b
	}
	if b := i.state.claimed(k); b != nil {
		return b
	}
	return i.inherited[k]
}

// settle brings the kernel to what the ports should be: sockets are bound first and closed last, and everything between is one transaction,
// but for slots of a finer class, which go after it.
func (i *Ingress) settle(ports map[portKey]bool) error {
	if i.kernel == nil || len(ports) == 0 {
		return nil
	}
	keys := slices.SortedFunc(maps.Keys(ports), portKey.compare)
	c, conflicts := i.change, len(i.conflicts)
	defer c.again()
	next := map[portKey]*balance{}
	for _, k := range keys {
		to := i.target(k)
		if to != nil && !i.reserve(k) {
			to = nil
		}
		next[k] = to
		if from := i.balances[k]; from == nil || to == nil || !from.equal(*to) {
			i.table.rebalance(c, k, from, to, i.layout.host.Prefix6)
		}
	}
	var err error
	if !c.empty() {
		err = c.commit(i.kernel)
	}
	var opened []ctFilter
	for _, k := range keys {
		to := next[k]
		if to != nil && len(to.backends) > 0 && k.protocol == unix.IPPROTO_UDP && (i.balances[k] == nil || len(i.balances[k].backends) == 0) {
			for _, ipv6 := range []bool{false, true} {
				opened = append(opened, ctFilter{protocol: unix.IPPROTO_UDP, untranslatedTo: k.port, ipv6: ipv6})
			}
		}
		i.remember(k, to)
	}
	if len(i.conflicts) > 0 || conflicts > 0 {
		i.changed()
	}
	if err != nil {
		return i.mend(err)
	}
	return deleteFlows("", opened...)
}

// remember takes note of what the kernel now holds of a port, and has the proxy follow.
func (i *Ingress) remember(k portKey, to *balance) {
	if to == nil {
		delete(i.balances, k)
		if i.target(k) == nil {
			delete(i.conflicts, k)
			delete(i.looked, k)
			i.listeners.release(k)
		}
		return
	}
	i.balances[k] = to
	i.listeners.lead(k, to.backends)
}

// reserve tells whether the port may be translated here: its socket is bound, or could not be for another reason than that
// something else has the port.
func (i *Ingress) reserve(k portKey) bool {
	if i.listeners.has(k) {
		delete(i.conflicts, k)
		delete(i.looked, k)
		return true
	}
	was, known := i.conflicts[k]
	owner := was
	_, err := i.listeners.reserve(k, func(k portKey) string {
		if now := time.Now(); now.Sub(i.looked[k]) >= lookAgain {
			i.looked[k], owner = now, i.ownerOf(k)
		}
		return owner
	})
	if err == nil {
		delete(i.conflicts, k)
		delete(i.looked, k)
		return true
	}
	i.tryLater()
	if _, forward := i.forwards[k]; forward {
		return true
	}
	if !errors.Is(err, ErrPortTaken) {
		i.cfg.Logger.Warn("published port is not served on loopback", "port", k.String(), "error", err)
		return true
	}
	if !known || was != owner {
		i.cfg.Logger.Warn("published port is taken on this host, which serves it not", "port", k.String(), "process", strings.TrimSpace(owner))
	}
	i.conflicts[k] = owner
	return false
}

// tryLater has all ports without a socket tried again after a while.
func (i *Ingress) tryLater() {
	if i.retry != nil || i.closed {
		return
	}
	i.retry = time.AfterFunc(retryAfter, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.retry = nil
		ports := map[portKey]bool{}
		for k := range i.conflicts {
			ports[k] = true
		}
		for k := range i.balances {
			if !i.listeners.has(k) {
				ports[k] = true
			}
		}
		if err := i.settle(ports); err != nil {
			i.cfg.Logger.Warn("cannot publish ports that had been taken", "error", err)
		}
	})
}

// endFlows deletes the connection tracking entries to addresses that end. That has the kernel walk through its whole table, some
// milliseconds, so it is done for those alone that a flow was led to. What fails is done again with the next ones, and by Check.
func (i *Ingress) endFlows(more leaving) error {
	if i.kernel == nil {
		return nil
	}
	l := i.unended
	maps.Copy(l.all, more.all)
	maps.Copy(l.udp, more.udp)
	if len(l.all)+len(l.udp) == 0 {
		return nil
	}
	var filters []ctFilter
	c := newChange()
	each := func(a netip.Addr, protocol byte) error {
		for _, a := range i.twins(a) {
			s := i.table.reached[familyOf(a)]
			reached, err := i.kernel.contains(s, a.AsSlice())
			if err != nil {
				return err
			}
			if !reached {
				continue
			}
			filters = append(filters, ctFilter{answering: a, protocol: protocol})
			if protocol == 0 {
				c.remove(s, nftables.SetElement{Key: a.AsSlice()})
			}
		}
		return nil
	}
	for a := range l.all {
		if err := each(a, 0); err != nil {
			return err
		}
	}
	for a := range l.udp {
		if l.all[a] {
			continue
		}
		if err := each(a, unix.IPPROTO_UDP); err != nil {
			return err
		}
	}
	if err := deleteFlows("", filters...); err != nil {
		return err
	}
	i.unended = newLeaving()
	if c.empty() {
		return nil
	}
	if err := c.commit(i.kernel); err != nil {
		return i.mend(err)
	}
	return nil
}

// twins are an address and its twin of IPv6, where there is one.
func (i *Ingress) twins(a netip.Addr) []netip.Addr {
	if p := i.layout.host.Prefix6; p.IsValid() {
		return []netip.Addr{a, swarmpb.Address6(p, a)}
	}
	return []netip.Addr{a}
}
