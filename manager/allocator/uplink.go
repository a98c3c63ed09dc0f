package allocator

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	// UplinkPool is the pool of the nodes' blocks.
	UplinkPool = "uplink"
	// DefaultFabricPool and DefaultBlockLength hold where the cluster's spec says nothing: 16,384 nodes.
	DefaultFabricPool  = "100.64.0.0/10"
	DefaultBlockLength = 24
	// Rest is how long a released address is not given again: longer than TCP's TIME_WAIT and the idle time of
	// most connection tracking entries.
	Rest = 5 * time.Minute
	// PoolFullAlarm is raised for what gets nothing because its pool is full; its object is POOL/ID.
	PoolFullAlarm = "pool-full"
	alarmPrefix   = UplinkPool + "/"
	// maxAlarms bounds the alarms of one pool.
	maxAlarms = 100
)

// Uplink is the reconciler of the nodes' blocks. The pool is one unit of work: blocks that were chosen for several
// nodes at a time would collide. While nodes do nothing but come, it goes on from its last look at the whole pool, so that a
// node costs the same however many there are.
type Uplink struct {
	// seen is nil when the whole pool has to be looked at.
	seen *seenPool
	// joined are the nodes that have come since.
	joined []string
	// planned is what seen becomes, and how many of joined are done with, once the last plan is carried out.
	planned struct {
		seen   *seenPool
		joined int
	}
}

// seenPool is what a look at the whole pool leaves: every node had a block then.
type seenPool struct {
	blocks Blocks
	free   Picker
	wake   time.Time
}

var (
	_ reconcile.Reconciler = &Uplink{}
	_ reconcile.Settler    = &Uplink{}
)

// Name stands in logs.
func (*Uplink) Name() string { return "uplink-allocator" }

// Affects: nodes that come and go, blocks that are released, and the pool itself.
func (u *Uplink) Affects(_ *store.View, c store.Change) []reconcile.ID {
	switch c.Table {
	case swarmpb.Table_TABLE_CLUSTER:
		u.seen = nil
	case swarmpb.Table_TABLE_NODE:
		switch {
		case c.Old != nil && c.New != nil:
			return nil
		case c.New != nil:
			u.joined = append(u.joined, c.Key.ID)
		default:
			u.seen = nil
		}
	case swarmpb.Table_TABLE_ALLOCATION:
		if row, _ := c.New.(*swarmpb.Allocation); c.Key.ID != UplinkPool || row.GetOwner() != "" {
			return nil
		}
		u.seen = nil
	default:
		return nil
	}
	return []reconcile.ID{{Object: UplinkPool}}
}

// All is the pool.
func (u *Uplink) All(*store.View) []reconcile.ID {
	u.seen = nil
	return []reconcile.ID{{Object: UplinkPool}}
}

// Settled looks at the whole pool again when a plan was not carried out.
func (u *Uplink) Settled(_ reconcile.ID, _ reconcile.Plan, _ uint64, err error) {
	if err != nil {
		u.seen = nil
		return
	}
	u.carriedOut()
}

func (u *Uplink) carriedOut() {
	u.seen, u.joined = u.planned.seen, u.joined[u.planned.joined:]
	u.planned.joined = 0
}

// Reconcile releases the blocks of nodes that are gone, forgets those that have rested, and gives a block to each
// node that has none.
func (u *Uplink) Reconcile(view *store.View, _ reconcile.ID, now time.Time) (reconcile.Plan, error) {
	if view.Cluster() == nil {
		return reconcile.Plan{}, nil
	}
	plan, ok := u.goOn(view, now)
	if !ok {
		var err error
		if plan, err = u.look(view, now); err != nil {
			return plan, err
		}
	}
	if len(plan.Writes) == 0 {
		u.carriedOut()
	}
	return plan, nil
}

// look goes through the whole pool.
func (u *Uplink) look(view *store.View, now time.Time) (reconcile.Plan, error) {
	u.planned.seen, u.planned.joined = nil, len(u.joined)
	blocks, err := fabric(view.Cluster().GetSpec())
	if err != nil {
		return reconcile.Plan{}, fmt.Errorf("allocate uplink blocks: %w", err)
	}
	p := &pass{view: view, now: now, blocks: blocks, rested: map[string]*swarmpb.Allocation{}, has: map[string]bool{}}
	for row := range view.Allocations(UplinkPool) {
		p.read(row)
	}
	free, full := p.assign()
	for row := range view.Allocations(UplinkPool) {
		if p.rested[row.GetAddress()] != nil {
			key := swarmpb.AllocationKey(UplinkPool, row.GetAddress())
			p.add(remove(key), &swarmpb.Guard{Key: key, Version: row.GetVersion()})
		}
	}
	p.endAlarms()
	if !p.plan.More {
		p.plan.At = p.wake
		if !full {
			u.planned.seen = &seenPool{blocks: blocks, free: *free, wake: p.wake}
		}
	}
	return p.plan, nil
}

// goOn gives blocks to the nodes that have come since the last look at the whole pool; false: there has to be another one.
func (u *Uplink) goOn(view *store.View, now time.Time) (reconcile.Plan, bool) {
	if u.seen == nil || !u.seen.wake.IsZero() && !now.Before(u.seen.wake) {
		return reconcile.Plan{}, false
	}
	p := &pass{view: view, now: now, blocks: u.seen.blocks}
	free, done := u.seen.free, 0
	for ; done < len(u.joined) && p.room(guardsOfBlock); done++ {
		node := view.Node(u.joined[done])
		if node == nil || hasBlock(view, node.GetId()) {
			continue
		}
		n, ok := free.Next()
		if !ok {
			return reconcile.Plan{}, false
		}
		address := p.blocks.At(n).String()
		if view.Allocation(UplinkPool, address) != nil {
			return reconcile.Plan{}, false
		}
		p.give(node, address)
	}
	if p.plan.More = done < len(u.joined); !p.plan.More {
		p.plan.At = u.seen.wake
	}
	u.planned.seen, u.planned.joined = &seenPool{blocks: p.blocks, free: free, wake: u.seen.wake}, done
	return p.plan, true
}

func hasBlock(view *store.View, nodeID string) bool {
	for a := range view.AllocationsOf(nodeID) {
		if a.GetPool() == UplinkPool {
			return true
		}
	}
	return false
}

// fabric reads the pool out of the cluster's spec.
func fabric(spec *swarmpb.ClusterSpec) (Blocks, error) {
	text, bits := spec.GetFabricPool(), int(spec.GetFabricBlockLength())
	if text == "" {
		text = DefaultFabricPool
	}
	if bits == 0 {
		bits = DefaultBlockLength
	}
	pool, err := netip.ParsePrefix(text)
	if err != nil {
		return Blocks{}, fmt.Errorf("the cluster's fabric pool %q is not a prefix such as %s", text, DefaultFabricPool)
	}
	return NewBlocks(pool, bits)
}

// pass is one Reconcile.
type pass struct {
	view   *store.View
	now    time.Time
	blocks Blocks
	taken  []Span
	// has are the nodes with a block, rested the rows that may be given again or forgotten, by address.
	has    map[string]bool
	rested map[string]*swarmpb.Allocation
	wake   time.Time
	plan   reconcile.Plan
}

// read takes one row into account, and releases it when its node is gone.
func (p *pass) read(row *swarmpb.Allocation) {
	prefix, err := netip.ParsePrefix(row.GetAddress())
	if err != nil {
		return // not of our making; it is in nobody's way
	}
	span, inPool := p.blocks.Span(prefix)
	switch {
	case row.GetOwner() != "" && p.view.Node(row.GetOwner()) != nil:
		p.has[row.GetOwner()] = true
	case row.GetOwner() != "":
		span.Until = p.now.Add(Rest)
		p.release(row)
	default:
		span.Until = time.Unix(0, row.GetReleasedAt()).Add(Rest)
		if !span.Until.After(p.now) {
			p.rested[row.GetAddress()] = row
			return
		}
		p.wakeAt(span.Until)
	}
	if inPool {
		p.taken = append(p.taken, span)
	}
}

func (p *pass) release(row *swarmpb.Allocation) {
	key := swarmpb.AllocationKey(UplinkPool, row.GetAddress())
	p.wakeAt(p.now.Add(Rest))
	p.add(put(row.GetAddress(), "", p.now.UnixNano()),
		&swarmpb.Guard{Key: key, Version: row.GetVersion()},
		&swarmpb.Guard{Key: swarmpb.NodeKey(row.GetOwner())})
}

// assign gives each node without a block the lowest free one, or an alarm: then the pool is full. free goes on after them.
func (p *pass) assign() (free *Picker, full bool) {
	free = NewPicker(p.blocks.Count(), p.taken, p.now)
	alarms := 0
	for node := range p.view.Nodes() {
		id := node.GetId()
		if p.has[id] || p.plan.More {
			continue
		}
		if n, ok := free.Next(); ok {
			p.give(node, p.blocks.At(n).String())
			p.has[id] = !p.plan.More
		} else if alarms++; alarms <= maxAlarms {
			p.alarm(id)
		}
	}
	return free, alarms > 0
}

// guardsOfBlock are those of a block that is given.
const guardsOfBlock = 2

func (p *pass) give(node *swarmpb.Node, address string) {
	row := p.rested[address] // its version is 0 when there is no row
	delete(p.rested, address)
	p.add(put(address, node.GetId(), 0),
		&swarmpb.Guard{Key: swarmpb.AllocationKey(UplinkPool, address), Version: row.GetVersion()},
		&swarmpb.Guard{Key: swarmpb.NodeKey(node.GetId()), Version: node.GetMeta().GetVersion()})
}

func (p *pass) alarm(node string) {
	message := fmt.Sprintf("no block of uplink addresses is left for node %s in fabric pool %s (%d blocks); remove nodes that "+
		"are gone (swarmctl node rm), whose blocks are free after %s", node, p.blocks.Pool(), p.blocks.Count(), Rest)
	if p.view.Alarm(PoolFullAlarm, alarmPrefix+node).GetMessage() == message {
		return
	}
	p.add(&swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{
		Kind: PoolFullAlarm, Object: alarmPrefix + node, Message: message,
	}}})
}

// endAlarms takes back the alarms of nodes that have a block by now, or are gone.
func (p *pass) endAlarms() {
	for a := range p.view.Alarms() {
		node, ours := strings.CutPrefix(a.GetObject(), alarmPrefix)
		if a.GetKind() == PoolFullAlarm && ours && (p.has[node] || p.view.Node(node) == nil) {
			p.add(remove(swarmpb.AlarmKey(PoolFullAlarm, a.GetObject())))
		}
	}
}

func (p *pass) wakeAt(t time.Time) {
	if p.wake.IsZero() || t.Before(p.wake) {
		p.wake = t
	}
}

// room tells whether another write with so many guards goes into the plan.
func (p *pass) room(guards int) bool {
	return len(p.plan.Writes) < reconcile.MaxWrites && len(p.plan.Guards)+guards <= store.MaxGuards
}

// add puts a write into the plan, or marks that more follows when the plan is full.
func (p *pass) add(w *swarmpb.Write, guards ...*swarmpb.Guard) {
	if !p.room(len(guards)) {
		p.plan.More = true
		return
	}
	p.plan.Writes = append(p.plan.Writes, w)
	p.plan.Guards = append(p.plan.Guards, guards...)
}

func put(address, owner string, released int64) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Allocation{
		Allocation: &swarmpb.Allocation{Pool: UplinkPool, Address: address, Owner: owner, ReleasedAt: released},
	}}}}
}

func remove(key *swarmpb.RowKey) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: key}}
}
