package sim

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/allocator"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

const (
	// leadOverlap is how long a leader may go on after a newer one has begun: its lease, and its loops' way out.
	leadOverlap = 2 * time.Second
	// drainTimeout is how long the leader waits for nodes before it notes a task as drained nevertheless.
	drainTimeout = 5 * time.Second
	// maxViolations are kept; a broken rule breaks again with every commit.
	maxViolations = 20
	// verifyEvery so many commits the derived rows are made anew.
	verifyEvery = 25
)

// checks is what must always hold. It is told of every commit on every manager, every leadership and every start of a
// container. Safe for concurrent use.
type checks struct {
	mu         sync.Mutex
	violations []string
	clock      func() time.Duration

	newest  uint64            // index of the newest view that was checked
	term    uint64            // of that view
	digests map[uint64]digest // what the managers made of each entry
	views   map[uint64]digest // what their stores were at some
	born    map[string]uint64 // table and ID of a row -> index of the entry that made it

	// stopping is when a task was first seen to be one that is to stop; drained are those noted as drained.
	stopping map[string]time.Duration
	drained  map[string]bool
	// onDrained is called once for each that was noted in time.
	onDrained func(v *store.View, task string)

	leaders map[uint64]string // term -> machine that ran the leader's loops
	leading map[*life]uint64  // term
	newer   map[*life]time.Duration

	runs  *runs
	fleet *fleet
	moves *moves
}

// digest is what a manager had at an index.
type digest struct{ machine, sum string }

func newChecks(clock func() time.Duration) *checks {
	c := &checks{
		clock: clock, digests: map[uint64]digest{}, views: map[uint64]digest{}, born: map[string]uint64{},
		stopping: map[string]time.Duration{}, drained: map[string]bool{},
		leaders: map[uint64]string{}, leading: map[*life]uint64{}, newer: map[*life]time.Duration{},
	}
	c.runs, c.fleet, c.moves = newRuns(c), newFleet(c), newMoves(c)
	return c
}

func (c *checks) violate(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(format, args...)
}

func (c *checks) add(format string, args ...any) {
	if len(c.violations) < maxViolations {
		c.violations = append(c.violations, fmt.Sprintf("%.3fs: %s", c.clock().Seconds(), fmt.Sprintf(format, args...)))
	}
}

// failed is what was violated so far.
func (c *checks) failed() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.violations...)
}

// batch is told what a manager's store went through above index from.
func (c *checks) batch(machine string, from uint64, b store.Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	to := b.View.Index()
	sums := map[uint64][]byte{}
	for _, change := range b.Changes {
		c.change(machine, change)
		c.drain(b.View, change)
		sums[change.Index] = hashChange(sums[change.Index], change)
	}
	for index := from + 1; index <= to; index++ {
		c.same(c.digests, "entry", index, machine, hex.EncodeToString(sums[index]))
	}
	if to > c.newest {
		if term := b.View.Term(); term < c.term {
			c.add("entry %d is of term %d, after one of term %d", to, term, c.term)
		} else {
			c.term = term
		}
		if to/verifyEvery != c.newest/verifyEvery {
			if err := b.View.Verify(); err != nil {
				c.add("derived rows at %d on %s: %v", to, machine, err)
			}
		}
		at := slices.IndexFunc(b.Changes, func(change store.Change) bool { return change.Index > c.newest })
		c.newest = to
		c.view(b.View)
		if at >= 0 {
			c.runs.batch(b.View, b.Changes[at:])
			c.fleet.batch(b.View, b.Changes[at:])
			c.moves.batch(b.View, b.Changes[at:])
		}
	}
}

func (c *checks) same(seen map[uint64]digest, what string, index uint64, machine, sum string) {
	if old, ok := seen[index]; !ok {
		seen[index] = digest{machine, sum}
	} else if old.sum != sum {
		c.add("%s %d is not the same on %s and %s", what, index, old.machine, machine)
	}
}

func hashChange(sum []byte, change store.Change) []byte {
	h := sha256.New()
	h.Write(sum)
	fmt.Fprintf(h, "%d %q %d %q ", change.Table, change.Key.ID, change.Key.Number, change.Key.Name)
	if change.New != nil {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(change.New)
		fmt.Fprintf(h, "%x %v", body, err)
	}
	return h.Sum(nil)
}

// snapshot compares a whole store with the others' at the same index.
func (c *checks) snapshot(machine string, v *store.View) {
	var b bytes.Buffer
	err := v.WriteSnapshot(&b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.add("snapshot of %s at %d: %v", machine, v.Index(), err)
		return
	}
	sum := sha256.Sum256(b.Bytes())
	c.same(c.views, "store at", v.Index(), machine, hex.EncodeToString(sum[:]))
}

// change checks one row's step.
func (c *checks) change(machine string, change store.Change) {
	key := change.RowKey().Describe()
	switch change.Table {
	case swarmpb.Table_TABLE_TASK, swarmpb.Table_TABLE_SERVICE, swarmpb.Table_TABLE_NODE:
		if change.Old == nil {
			if born, ok := c.born[key]; ok && born != change.Index {
				c.add("%s was made by entry %d and again by %d", key, born, change.Index)
			}
			c.born[key] = change.Index
		}
	}
	if change.Old == nil || change.New == nil {
		return
	}
	switch now := change.New.(type) {
	case *swarmpb.Task:
		old := change.Old.(*swarmpb.Task)
		if now.DesiredState < old.DesiredState {
			c.add("%s: desired state went back from %s to %s on %s", key, old.DesiredState.Name(), now.DesiredState.Name(), machine)
		}
		if fixed(old) != fixed(now) {
			c.add("%s was one thing and is another: %v, %v", key, old, now)
		}
	case *swarmpb.TaskStatus:
		old := change.Old.(*swarmpb.TaskStatus)
		if now.State < old.State {
			c.add("%s: went back from %s to %s on %s", key, old.State.Name(), now.State.Name(), machine)
		}
	case *swarmpb.TaskPlacement:
		if old := change.Old.(*swarmpb.TaskPlacement).NodeId; old != "" && old != now.NodeId {
			c.add("%s moved from node %s to %q", key, old, now.NodeId)
		}
	}
}

// drain has it looked at who still sends a task connections when it is noted as drained. One for which a node was waited
// for in vain is left out.
func (c *checks) drain(v *store.View, change store.Change) {
	switch now := change.New.(type) {
	case *swarmpb.Task:
		if _, known := c.stopping[now.Id]; !known && now.DesiredState > swarmpb.TaskState_TASK_STATE_RUNNING {
			c.stopping[now.Id] = c.clock()
		}
	case *swarmpb.TaskStatus:
		if now.DrainedAt == 0 || c.drained[now.TaskId] {
			return
		}
		c.drained[now.TaskId] = true
		since, known := c.stopping[now.TaskId]
		if !known {
			c.add("task %s is noted as drained and is not to stop", now.TaskId)
		} else if c.clock()-since < drainTimeout && c.onDrained != nil {
			c.onDrained(v, now.TaskId)
		}
	}
}

// fixed is what a task is for all its life.
func fixed(t *swarmpb.Task) string {
	return fmt.Sprint(t.ServiceId, t.Slot, t.NodeId, t.TemplateVersion, t.Replaces, t.Attempt, t.Beside)
}

// view checks a whole state. c.mu is held.
func (c *checks) view(v *store.View) {
	for service := range v.Services() {
		c.slots(v, service)
	}
	for node := range v.Nodes() {
		c.node(v, node.Id)
	}
	c.blocks(v)
	c.addresses(v)
	c.networks(v)
}

// slots: of a slot at most one task is to run, but for a successor that starts beside its predecessor.
func (c *checks) slots(v *store.View, service *swarmpb.Service) {
	meant := map[uint64][]*swarmpb.Task{}
	for task := range v.TasksOf(service.Id) {
		if task.DesiredState == swarmpb.TaskState_TASK_STATE_RUNNING && !v.Observed(task.Id).Ended() {
			meant[task.Slot] = append(meant[task.Slot], task)
		}
	}
	for slot, tasks := range meant {
		switch {
		case len(tasks) == 1:
		case len(tasks) == 2 && tasks[1].Beside && tasks[1].Replaces == tasks[0].Id:
		default:
			c.add("%d tasks of slot %d of service %s are to run at %d", len(tasks), slot, service.GetSpec().GetName(), v.Index())
		}
	}
}

// node: what is placed on it fits, and a host port is bound once.
func (c *checks) node(v *store.View, id string) {
	has := v.NodeStatus(id).GetDescription().GetResources()
	if usage := v.Usage(id); has != nil && (usage.NanoCPUs > has.NanoCpus || usage.MemoryBytes > has.MemoryBytes) {
		if cpus, bytes, names := started(v, id); cpus > has.NanoCpus || bytes > has.MemoryBytes {
			c.add("node %s is over capacity at %d: %d of %d CPUs, %d of %d bytes; %s", id, v.Index(), cpus, has.NanoCpus, bytes, has.MemoryBytes, names)
		}
	}
	type slot struct {
		service string
		number  uint64
	}
	claimed, bound := map[uint32]slot{}, map[uint32]string{}
	for task := range v.TasksOn(id) {
		state := v.Observed(task.Id)
		if state.Ended() {
			continue
		}
		at := slot{task.ServiceId, task.Slot}
		for _, p := range v.Template(task.ServiceId, task.TemplateVersion).GetHostPorts() {
			port := uint32(p.Protocol)<<16 | p.PublishedPort
			if other, ok := claimed[port]; ok && other != at {
				c.add("port %d of node %s belongs to tasks of two slots at %d", p.PublishedPort, id, v.Index())
			}
			claimed[port] = at
			if state != swarmpb.TaskState_TASK_STATE_RUNNING {
				continue
			}
			if other, ok := bound[port]; ok {
				c.add("port %d of node %s is bound by tasks %s and %s at %d", p.PublishedPort, id, other, task.Id, v.Index())
			}
			bound[port] = task.Id
		}
	}
}

// blocks: no two nodes have addresses in common.
func (c *checks) blocks(v *store.View) {
	var seen []netip.Prefix
	owner := map[string]string{}
	for row := range v.Allocations(allocator.UplinkPool) {
		prefix, err := netip.ParsePrefix(row.GetAddress())
		if err != nil {
			c.add("block %q: %v", row.GetAddress(), err)
			continue
		}
		for _, other := range seen {
			if prefix.Overlaps(other) {
				c.add("blocks %s and %s overlap at %d", prefix, other, v.Index())
			}
		}
		seen = append(seen, prefix)
		if row.Owner == "" {
			continue
		}
		if other, ok := owner[row.Owner]; ok {
			c.add("node %s has blocks %s and %s at %d", row.Owner, other, row.Address, v.Index())
		}
		owner[row.Owner] = row.Address
	}
}

// addresses: no two running tasks have the same.
func (c *checks) addresses(v *store.View) {
	seen := map[string]string{}
	for task := range v.Tasks() {
		status := v.Status(task.Id)
		if status.GetAddress() == "" || status.GetState() != swarmpb.TaskState_TASK_STATE_RUNNING {
			continue
		}
		if other, ok := seen[status.Address]; ok {
			c.add("tasks %s and %s both have address %s at %d", other, task.Id, status.Address, v.Index())
		}
		seen[status.Address] = task.Id
	}
}

// networks: no two have the same address in a network, or the same published port.
func (c *checks) networks(v *store.View) {
	owners := map[string]string{}
	take := func(what, owner string) {
		if other, taken := owners[what]; taken && other != owner {
			c.add("%s and %s both have %s at %d", other, owner, what, v.Index())
		}
		owners[what] = owner
	}
	for network := range v.Networks() {
		if gateway := v.NetworkProgress(network.Id).GetGateway(); gateway != "" {
			take(network.Id+"/"+gateway, "the gateway")
		}
	}
	for service := range v.Services() {
		given := v.ServiceEndpoint(service.Id)
		for _, vip := range given.GetVips() {
			take(vip.NetworkId+"/"+vip.Address, "service "+service.Id)
		}
		for _, port := range given.GetPorts() {
			take(fmt.Sprintf("published port %d/%s", port.PublishedPort, port.Protocol), "service "+service.Id)
		}
	}
	for task := range v.Tasks() {
		if v.Observed(task.Id).Ended() {
			continue
		}
		for _, a := range v.Addresses(task.Id).GetNetworks() {
			take(a.NetworkId+"/"+a.Address, "task "+task.Id)
		}
	}
}

// leads: a manager has begun to run the leader's loops in a term. In no term may two do so, and one of an older
// term has leadOverlap to notice.
func (c *checks) leads(l *life, term uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.killed.Load() {
		return
	}
	if other, ok := c.leaders[term]; ok && other != l.m.name {
		c.add("%s and %s both lead in term %d", other, l.m.name, term)
	}
	c.leaders[term] = l.m.name
	c.leading[l] = term
	delete(c.newer, l)
	for other, old := range c.leading {
		if _, known := c.newer[other]; old < term && !known {
			c.newer[other] = c.clock()
		}
	}
}

func (c *checks) leadsNoMore(l *life, term uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leading[l] == term {
		c.endLead(l)
	}
}

// endLead is called with c.mu held.
func (c *checks) endLead(l *life) {
	if since, ok := c.newer[l]; ok && !l.killed.Load() {
		if d := c.clock() - since; d > leadOverlap {
			c.add("%s led in term %d for %s after another had begun to lead in a newer one", l.m.name, c.leading[l], d)
		}
	}
	delete(c.leading, l)
	delete(c.newer, l)
}

// lifeEnded: nothing of it leads any more, whatever it says.
func (c *checks) lifeEnded(l *life) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endLead(l)
}

// leader is the machine that leads now, and how many do.
func (c *checks) leader() (name string, count int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	highest := uint64(0)
	for l, term := range c.leading {
		count++
		if term > highest {
			highest, name = term, l.m.name
		}
	}
	return name, count
}

// started is told of a container that was started, and of the service of each task.
func (c *checks) started(on *machine, service, task string, services map[string]string) {
	var running []string
	for _, id := range on.fake.Running() {
		if services[id] == service {
			running = append(running, id)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.runs.start(task, on.fake.Starts(task))
	c.fleet.started(on.name, service, running)
}

// ended is told how a container's process ended.
func (c *checks) ended(task string, exit runtime.Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.runs.end(task, exit)
}

// calm: no fault is left, and the cluster is as it should be.
func (c *checks) calm() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.runs.calm = true
}

// restless says what has begun of late that neither a schedule nor balance has asked for.
func (c *checks) restless() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if since := c.clock() - c.fleet.begun; since < silence {
		return fmt.Sprintf("task %s was made %s ago", c.fleet.lastBegun, since)
	}
	return ""
}

// evening says what has moved of late for balance.
func (c *checks) evening() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if since := c.clock() - c.fleet.evened; since < evenSilence {
		return fmt.Sprintf("task %s has moved for balance %s ago", c.fleet.lastEvened, since)
	}
	return ""
}

// settled has it checked what became of runs, of which none goes on.
func (c *checks) settled(v *store.View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.runs.settled(v)
}

// seen says how much there was to check.
func (c *checks) seen() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := fmt.Sprintf("%d entries in %d terms, %d stores compared", len(c.digests), len(c.leaders), len(c.views))
	if s := c.runs.seen; s.runs > 0 {
		text += fmt.Sprintf("; %d runs with %d slots, %d filled again, %d times left out; %d slots gave way", s.runs, s.slots, s.again, s.leftOut, c.fleet.preempted)
	}
	if s := c.moves.seen; s.most > 0 {
		text += fmt.Sprintf("; moved %d from drained nodes, %d because of constraints, %d for balance, at most %d of a service at a time", s.drained, s.evicted, s.balanced, s.most)
	}
	return text
}

// started is what tasks on a node reserve that run there or may begin to. A task that waits for another one of its slot to stop
// does not: where the one between the two has gone, it is counted as if it needed room of its own.
func started(v *store.View, node string) (cpus, bytes int64, names string) {
	type slot struct {
		service string
		number  uint64
	}
	seen := map[slot]bool{}
	tasks := slices.SortedFunc(v.TasksOn(node), func(a, b *swarmpb.Task) int { return cmp.Compare(a.Attempt, b.Attempt) })
	for _, task := range tasks {
		at := slot{task.ServiceId, task.Slot}
		state := v.Observed(task.Id)
		if state.Ended() || seen[at] && !task.Beside && state <= swarmpb.TaskState_TASK_STATE_READY {
			continue
		}
		seen[at] = true
		reserved := v.Template(task.ServiceId, task.TemplateVersion).GetSpec().GetResources().GetReservations()
		cpus, bytes = cpus+reserved.GetNanoCpus(), bytes+reserved.GetMemoryBytes()
		names += fmt.Sprintf("\n  %s.%d#%d is %s of %s", v.Service(task.ServiceId).GetSpec().GetName(), task.Slot, task.Attempt, state.Name(), task.DesiredState.Name())
	}
	return cpus, bytes, names
}
