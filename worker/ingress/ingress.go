// Package ingress is the node's load balancer. On the host it owns the nftables table swarmd: published ports of
// services, host-mode ports, and what the fabric needs: which packets may cross it, and the marks that lead replies back
// over it when the client's address was kept. In containers' namespaces it owns the
// tables of that name, which hold VIPs.
//
// It promises that rules never change while the host is configured alike, that every change is one transaction of
// elements, and that a port something else on this host has is left to it and reported. A former process's table serves on until the
// managers have told all; then it changes in one transaction.
//
// It executes no tools, and writes nothing else in the kernel but the placeholders' sockets and connection tracking entries that it
// deletes.
package ingress

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// ErrPortTaken: something else on this host has the port; errors that wrap it name the port and the process.
var ErrPortTaken = errors.New("port is taken")

// DefaultMarkMask is what Config.MarkMask is by default.
const DefaultMarkMask = 0xffff0000

// Config is what an Ingress needs.
type Config struct {
	Logger *slog.Logger
	// UplinkGroup is the device group of the host's ends of the tasks' links.
	UplinkGroup uint32
	// FabricLink is the name of the device that joins the nodes; it need not exist yet.
	FabricLink string
	// ReplyRule is the priority of the policy rule that leads onto the fabric by marks: resets that this host sends in a task's
	// place are led to it. The one before it may pass over what the host itself sends. 0 = there is none.
	ReplyRule int
	// MarkMask are the bits of packet and connection marks that are ours, side by side; 0 = DefaultMarkMask. All others are
	// left as they are. The numbers of all nodes must fit.
	MarkMask uint32
}

// Host is this node's place in the fabric.
type Host struct {
	Number uint32
	// Block is where the addresses of this node's tasks come from, its first the gateway's; Pool where all blocks do.
	Block, Pool netip.Prefix
	// Prefix6 has 96 bits: an IPv6 address is it with the IPv4 address behind. Not valid: no IPv6.
	Prefix6 netip.Prefix
	// DataPathPort is the fabric's UDP port: only members may send to it. 0 = it is left alone.
	DataPathPort uint16
}

// Node is a member of the cluster that has a block, this one among them.
type Node struct {
	ID      string
	Number  uint32
	Address netip.Addr
	// Others are further addresses that its tasks' or its own packets may come from, such as one of IPv6. A task that calls another
	// node from an address which is not known here gets no answer when that node's choice is a replica beside it.
	Others []netip.Addr
	// MAC of its fabric device. Its last four bytes are the mark that leads back to the node, its number behind the mask's trailing zeros.
	MAC net.HardwareAddr
}

// Update is what the managers told of services and endpoints; with Full, of all that there are.
type Update struct {
	Full             bool
	Services         []*swarmpb.AssignedService
	RemovedServices  []string
	Endpoints        []*swarmpb.Endpoint
	RemovedEndpoints []string
}

// Ingress owns the host's table. All methods are safe for concurrent use.
type Ingress struct {
	cfg       Config
	changes   chan struct{}
	listeners *listeners

	mu     sync.Mutex
	closed bool
	kernel *kernel // nil until configured
	table  *table
	layout layout
	state  *state

	// balances are what the kernel holds, and inherited what a former process left there, until the first full update.
	balances, inherited map[portKey]*balance
	full                bool
	forwards            map[portKey]netip.AddrPort
	// conflicts are ports that could not be bound, with who has them; tried again after retryAfter.
	conflicts map[portKey]string
	// looked is when a conflict's process was looked for: that reads what all processes have open.
	looked  map[portKey]time.Time
	ownerOf func(portKey) string
	retry   *time.Timer

	change *change // settle's, used again and again
	// members are the elements of the sets of pods and nodes as the kernel should hold them. Nil: not told yet.
	members map[*nftables.Set]map[string]nftables.SetElement
	nodes   []Node
	pods    []netip.Addr
	told    struct{ nodes, pods bool }

	// unended are addresses whose connections are still to be ended.
	unended leaving

	loaded bool   // the kernel has had our table since Configure
	print  uint64 // of the rules
	dirty  bool   // kernel and state may differ
	// unloaded: the kernel has refused what it should hold.
	unloaded bool
	// slotCursor is the port behind which the next check goes on comparing slots.
	slotCursor portKey
}

// retryAfter is how long a port that something else has is left alone before it is tried again.
const retryAfter = 3 * time.Second

// lookAgain is how soon who has a port is looked for again.
const lookAgain = time.Minute

// New changes nothing in the kernel.
func New(cfg Config) (*Ingress, error) {
	if cfg.MarkMask == 0 {
		cfg.MarkMask = DefaultMarkMask
	}
	shifted := cfg.MarkMask >> bits.TrailingZeros32(cfg.MarkMask)
	if shifted&(shifted+1) != 0 {
		return nil, fmt.Errorf("mark mask %#x: its bits must be side by side", cfg.MarkMask)
	}
	if cfg.FabricLink == "" || len(cfg.FabricLink) >= maxIfName {
		return nil, fmt.Errorf("fabric link %q: want a name of 1 to %d characters", cfg.FabricLink, maxIfName-1)
	}
	l, err := newListeners(cfg.Logger)
	if err != nil {
		return nil, err
	}
	return &Ingress{
		cfg: cfg, changes: make(chan struct{}, 1), change: newChange(), listeners: l, table: newTable(), state: newState(),
		balances: map[portKey]*balance{}, inherited: map[portKey]*balance{}, forwards: map[portKey]netip.AddrPort{},
		conflicts: map[portKey]string{}, looked: map[portKey]time.Time{}, ownerOf: ownerOf, members: map[*nftables.Set]map[string]nftables.SetElement{}, unended: newLeaving(),
	}, nil
}

// Configure loads the table for the host, or again for another configuration, in one transaction. Ports, tasks and nodes
// of a former process's table stay in it until they are told anew.
func (i *Ingress) Configure(h Host) error {
	if !h.Block.IsValid() || !h.Block.Addr().Is4() || h.Block.Bits() > 30 {
		return fmt.Errorf("configure ingress: block %s: want an IPv4 prefix of at most /30", h.Block)
	}
	if h.Prefix6.IsValid() && (h.Prefix6.Bits() != 96 || !h.Prefix6.Addr().Is6()) {
		return fmt.Errorf("configure ingress: prefix %s: want an IPv6 prefix of 96 bits", h.Prefix6)
	}
	h.Block = h.Block.Masked()
	i.mu.Lock()
	defer i.mu.Unlock()
	next := layout{host: h, uplinkGroup: i.cfg.UplinkGroup, fabric: i.cfg.FabricLink, mask: i.cfg.MarkMask}
	if i.closed {
		return errors.New("configure ingress: it is closed")
	}
	if i.loaded && i.layout == next {
		return nil
	}
	opened := i.kernel == nil
	if opened {
		if err := i.takeOver(); err != nil {
			return fmt.Errorf("configure ingress: %w", err)
		}
	}
	i.layout = next
	i.findSelf()
	if opened {
		i.inherit()
	}
	if err := i.reload(); err != nil {
		return fmt.Errorf("configure ingress: %w", err)
	}
	return nil
}

// takeOver opens the kernel and reads what a former process left.
func (i *Ingress) takeOver() error {
	k, err := openKernel("")
	if err != nil {
		return err
	}
	if i.inherited, err = i.table.readBalances(k); err != nil {
		k.close()
		return err
	}
	for _, s := range slices.Concat(i.table.pods[:], i.table.nodes[:], i.table.fabric[:], []*nftables.Set{i.table.nodeOfMAC}) {
		if i.members[s] != nil {
			continue
		}
		elements, err := k.elements(s)
		if err != nil {
			k.close()
			return err
		}
		i.members[s] = bySet(elements)
	}
	i.kernel = k
	return nil
}

// inherit has what was told before Configure take the slots that a former process gave it, and forgets what that one published
// and nobody does any more.
func (i *Ingress) inherit() {
	all := map[string]bool{}
	for id, v := range i.state.services {
		all[id], v.random = true, nil
		i.recall(id)
	}
	i.state.claim(all)
	if i.full {
		clear(i.inherited)
	}
}

// SetNodes replaces the members. Addresses are known to the rules, numbers lead replies back, IDs order the subsets.
func (i *Ingress) SetNodes(nodes []Node) error {
	room := i.cfg.MarkMask >> bits.TrailingZeros32(i.cfg.MarkMask)
	i.mu.Lock()
	defer i.mu.Unlock()
	t := i.table
	want := map[*nftables.Set][]nftables.SetElement{t.nodes[0]: nil, t.nodes[1]: nil, t.fabric[0]: nil, t.fabric[1]: nil, t.nodeOfMAC: nil}
	var errs []error
	i.state.nodes = nil
	for _, n := range nodes {
		i.state.nodes = append(i.state.nodes, n.ID)
		if a := n.Address.Unmap(); a.IsValid() {
			s := t.fabric[familyOf(a)]
			want[s] = append(want[s], nftables.SetElement{Key: a.AsSlice()})
		}
		for _, a := range append([]netip.Addr{n.Address}, n.Others...) {
			if a = a.Unmap(); a.IsValid() {
				s := t.nodes[familyOf(a)]
				want[s] = append(want[s], nftables.SetElement{Key: a.AsSlice()})
			}
		}
		switch {
		case len(n.MAC) != 6 || n.Number == 0:
		case n.Number > room:
			errs = append(errs, fmt.Errorf("node %s: number %d does not fit the mark mask %#x: replies that kept a client's address cannot go back through it; use a wider mask", n.ID, n.Number, i.cfg.MarkMask))
		default:
			mark := native(n.Number << bits.TrailingZeros32(i.cfg.MarkMask))
			want[t.nodeOfMAC] = append(want[t.nodeOfMAC], nftables.SetElement{Key: n.MAC, Val: mark})
		}
	}
	slices.Sort(i.state.nodes)
	i.nodes, i.told.nodes = slices.Clone(nodes), true
	i.findSelf()
	errs = append(errs, i.setMembers(want))
	if i.kernel != nil {
		errs = append(errs, i.settle(i.state.claim(i.state.large())))
	}
	return errors.Join(errs...)
}

// large are the services whose subset depends on the nodes.
func (s *state) large() map[string]bool {
	out := map[string]bool{}
	for id, v := range s.services {
		if len(v.endpoints) > subsetFrom {
			out[id] = true
		}
	}
	return out
}

func (i *Ingress) findSelf() {
	for _, n := range i.nodes {
		if n.Number == i.layout.host.Number {
			i.state.self = n.ID
		}
	}
}

// SetPods replaces the uplink addresses (IPv4) of this node's tasks. Packets to other addresses of the block are refused.
func (i *Ingress) SetPods(addresses []netip.Addr) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.takeBack(addresses)
	i.pods, i.told.pods = slices.Clone(addresses), true
	want := i.podElements()
	maps.Copy(want, i.insteadElements())
	return i.setMembers(want)
}

func (i *Ingress) podElements() map[*nftables.Set][]nftables.SetElement {
	t := i.table
	want := map[*nftables.Set][]nftables.SetElement{t.pods[0]: nil, t.pods[1]: nil}
	for _, a := range i.pods {
		want[t.pods[0]] = append(want[t.pods[0]], nftables.SetElement{Key: a.AsSlice()})
		if p := i.layout.host.Prefix6; p.IsValid() {
			want[t.pods[1]] = append(want[t.pods[1]], nftables.SetElement{Key: swarmpb.Address6(p, a).AsSlice()})
		}
	}
	return want
}

// setMembers changes sets to what they should hold.
func (i *Ingress) setMembers(want map[*nftables.Set][]nftables.SetElement) error {
	c := newChange()
	for s, elements := range want {
		now := bySet(elements)
		for key, e := range i.members[s] {
			if n, ok := now[key]; !ok || string(n.Val) != string(e.Val) {
				c.remove(s, e)
			}
		}
		for key, e := range now {
			if was, ok := i.members[s][key]; !ok || string(was.Val) != string(e.Val) {
				c.add(s, e)
			}
		}
		i.members[s] = now
	}
	if i.kernel == nil {
		return nil
	}
	if err := c.commit(i.kernel); err != nil {
		return i.mend(err)
	}
	return i.loadRefused()
}

func bySet(elements []nftables.SetElement) map[string]nftables.SetElement {
	out := make(map[string]nftables.SetElement, len(elements))
	for _, e := range elements {
		out[string(e.Key)] = nftables.SetElement{Key: e.Key, Val: e.Val}
	}
	return out
}

// Conflicts are the published ports that something else on this host has: they are not served here.
func (i *Ingress) Conflicts() []*swarmpb.PortConflict {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []*swarmpb.PortConflict
	for k, process := range i.conflicts {
		out = append(out, &swarmpb.PortConflict{Protocol: protocolOf(k.protocol), Port: uint32(k.port), Process: process})
	}
	slices.SortFunc(out, func(a, b *swarmpb.PortConflict) int {
		return (int(a.Port)-int(b.Port))*8 + int(a.Protocol) - int(b.Protocol)
	})
	return out
}

// Changes has an element when Conflicts may have changed.
func (i *Ingress) Changes() <-chan struct{} { return i.changes }

func (i *Ingress) changed() {
	select {
	case i.changes <- struct{}{}:
	default:
	}
}

// Close lets go of sockets; published ports go on through the kernel's rules.
func (i *Ingress) Close() {
	i.mu.Lock()
	i.closed = true
	if i.retry != nil {
		i.retry.Stop()
	}
	if i.kernel != nil {
		i.kernel.close()
		i.kernel = nil
	}
	i.mu.Unlock()
	i.listeners.close()
}

// Teardown removes all that this package has in the host's kernel, also that of a former process. It is configured no more.
func (i *Ingress) Teardown() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	k := i.kernel
	if k == nil {
		var err error
		if k, err = openKernel(""); err != nil {
			return fmt.Errorf("remove the table of ingress: %w", err)
		}
	}
	i.kernel, i.loaded = nil, false
	for key := range i.balances {
		i.listeners.release(key)
	}
	for key := range i.forwards {
		i.listeners.release(key)
	}
	clear(i.conflicts)
	clear(i.looked)
	clear(i.forwards)
	clear(i.members)
	i.balances, i.inherited = map[portKey]*balance{}, map[portKey]*balance{}
	i.state, i.full, i.nodes, i.pods = newState(), false, nil, nil
	i.told.nodes, i.told.pods = false, false
	i.unended = newLeaving()
	defer k.close()
	if err := errors.Join(k.removeTables(i.table.all()...), removeAllResets()); err != nil {
		return fmt.Errorf("remove the table of ingress: %w", err)
	}
	return nil
}
