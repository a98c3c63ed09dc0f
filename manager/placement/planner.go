package placement

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/scheduler"
)

// roundTasks is how many tasks one call of plan looks at: enough to pay for reading the nodes, and few enough
// that a small service does not wait long for a large one.
const roundTasks = 4000

// planner decides. It keeps what is under way and which services wait for what; everything else is the view's.
type planner struct {
	// only, when set, is the one service whose tasks are placed.
	only string
	// queue holds the services to look at, each once, first come first served; work is it by service.
	queue []*work
	work  map[string]*work
	// stuck are the services with tasks that no node suits; true: for want of something that tasks hold.
	stuck map[string]bool
	// pinned are those of them with a task that belongs on the node of the one that it replaces, by that node.
	pinned map[string]map[string]bool
	// successors are the services of tasks that were decided about before the task that they replace had a node, by
	// that one. Their claims counted in full; once both have the same node they are one claim, which leaves room.
	successors map[string]string
	// nominated are waiting tasks for which others are to give way, by task: the node, where their claim counts already.
	nominated map[string]string
	// overlay is what has been decided and is not yet in the view, by task.
	overlay map[string]*entry
	// maxWrites bounds a decision: halved by a conflict, doubled by success, so that rows which keep changing
	// spoil ever less.
	maxWrites int
}

// work is a service's turn in the queue.
type work struct {
	service string
	// Tasks up to this one have been looked at in this turn.
	after position
}

// position is a task's place in its service.
type position struct {
	slot, attempt uint64
	id            string
}

func positionOf(t *swarmpb.Task) position { return position{t.GetSlot(), t.GetAttempt(), t.GetId()} }

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.slot, q.slot), cmp.Compare(p.attempt, q.attempt), cmp.Compare(p.id, q.id))
}

// entry is one decision about one task.
type entry struct {
	task *swarmpb.Task
	// node is empty when the decision was that none suits.
	node    string
	message string
	generic []*swarmpb.GenericResource
	// preempts are the tasks that are to give way to it on preemptsOn; it has no node then.
	preempts   []string
	preemptsOn string
	// index at which it was written; 0 = under way.
	index uint64
	// alone: it counts in full for want of its predecessor's node.
	alone bool
	// missed: its service was looked at while this was under way, so it must be looked at again.
	missed bool
}

// decision is one proposal.
type decision struct {
	now     time.Time
	writes  []*swarmpb.Write
	guards  []*swarmpb.Guard
	entries []*entry
	guarded map[string]bool // nodes
}

func newPlanner() *planner {
	return &planner{
		work: map[string]*work{}, stuck: map[string]bool{}, pinned: map[string]map[string]bool{}, nominated: map[string]string{}, successors: map[string]string{}, overlay: map[string]*entry{},
		maxWrites: store.MaxWrites,
	}
}

func (p *planner) waiting() bool { return len(p.queue) > 0 }

// reset looks at everything: at the start, and when changes were missed. The overlay stays.
func (p *planner) reset(view *store.View) {
	maps.DeleteFunc(p.stuck, func(service string, _ bool) bool { return view.Service(service) == nil })
	clear(p.pinned)
	clear(p.nominated)
	maps.DeleteFunc(p.successors, func(task, _ string) bool { return view.Task(task) == nil || view.NodeID(task) != "" })
	last := ""
	for t := range view.Unplaced() {
		p.nominate(t.GetId(), view.Placement(t.GetId()))
		if t.GetServiceId() != last {
			last = t.GetServiceId()
			p.enqueue(last)
		}
	}
}

// enqueue gives the service a turn; one that it has already starts over.
func (p *planner) enqueue(service string) {
	if p.only != "" && p.only != service {
		return
	}
	if w := p.work[service]; w != nil {
		w.after = position{}
		return
	}
	w := &work{service: service}
	p.work[service] = w
	p.queue = append(p.queue, w)
}

// observe gives a turn to the services that the changes bring new tasks, or a chance for those that are stuck.
func (p *planner) observe(view *store.View, changes []store.Change) {
	freed, node := false, false
	var ended map[string]bool // tasks that are gone, and held nothing any more
	for _, c := range changes {
		switch c.Table {
		case swarmpb.Table_TABLE_TASK:
			if c.Old == nil {
				p.enqueue(c.New.(*swarmpb.Task).GetServiceId())
			}
			if c.New == nil {
				delete(p.successors, c.Key.ID)
				freed = p.withdraw(c.Key.ID) || freed
			} else if !c.New.(*swarmpb.Task).GetDesiredState().Wanted() {
				freed = p.withdraw(c.Key.ID) || freed
			}
		case swarmpb.Table_TABLE_TASK_ADDRESSES: // its last one makes it PENDING
			if task := view.Task(c.Key.ID); task != nil && view.NodeID(c.Key.ID) == "" {
				p.enqueue(task.GetServiceId())
			}
		case swarmpb.Table_TABLE_TASK_STATUS: // goes before the placement when a task is deleted
			old, _ := c.Old.(*swarmpb.TaskStatus)
			now, _ := c.New.(*swarmpb.TaskStatus)
			freed = freed || now.GetState().Ended() && !old.GetState().Ended()
			if c.New == nil && old.GetState().Ended() {
				if ended == nil {
					ended = map[string]bool{}
				}
				ended[c.Key.ID] = true
			}
		case swarmpb.Table_TABLE_TASK_PLACEMENT:
			old, _ := c.Old.(*swarmpb.TaskPlacement)
			row, _ := c.New.(*swarmpb.TaskPlacement)
			freed = p.nominate(c.Key.ID, row) || freed
			freed = freed || c.New == nil && old.GetNodeId() != "" && !ended[c.Key.ID]
			if service, waits := p.successors[c.Key.ID]; waits && (c.New == nil || c.New.(*swarmpb.TaskPlacement).GetNodeId() != "") {
				delete(p.successors, c.Key.ID)
				p.enqueue(service)
				freed = true
			}
		case swarmpb.Table_TABLE_SERVICE: // goes after its tasks
			if c.New == nil {
				delete(p.stuck, c.Key.ID)
			}
			old, _ := c.Old.(*swarmpb.Service)
			row, _ := c.New.(*swarmpb.Service)
			// Others may give way now that would not, or not have to any more.
			freed = freed || old != nil && row != nil && old.GetSpec().GetPriority() != row.GetSpec().GetPriority()
		case swarmpb.Table_TABLE_NODE, swarmpb.Table_TABLE_NODE_STATUS:
			node = node || helps(view, c)
			if !scheduler.TakesTasks(view.Node(c.Key.ID), view.NodeStatus(c.Key.ID)) {
				p.unpin(c.Key.ID)
			}
		}
	}
	if freed || node {
		p.wake(node)
	}
}

// helps reports whether a change to a node could make it suit tasks that it did not suit before.
func helps(view *store.View, c store.Change) bool {
	if c.New == nil || !scheduler.TakesTasks(view.Node(c.Key.ID), view.NodeStatus(c.Key.ID)) {
		return false
	}
	switch now := c.New.(type) {
	case *swarmpb.Node:
		old, _ := c.Old.(*swarmpb.Node)
		return old == nil || old.GetRole() != now.GetRole() || !proto.Equal(old.GetSpec(), now.GetSpec())
	case *swarmpb.NodeStatus:
		old, _ := c.Old.(*swarmpb.NodeStatus)
		return old.GetState() != now.GetState() || old.GetAddress() != now.GetAddress() ||
			!proto.Equal(old.GetDescription(), now.GetDescription())
	}
	return false
}

// plan decides about up to roundTasks tasks of the services whose turn it is.
func (p *planner) plan(view *store.View, now time.Time) []*decision {
	p.prune(view)
	r := newRound(p, view, now)
	r.byPriority()
	for budget := roundTasks; budget > 0 && len(p.queue) > 0; {
		w := p.queue[0]
		p.queue = p.queue[1:]
		delete(p.work, w.service)
		tasks, more := p.collect(view, w, budget)
		budget -= max(len(tasks), 1)
		if w.after == (position{}) {
			delete(p.stuck, w.service)
		}
		r.place(w.service, tasks)
		if more {
			p.queue = append(p.queue, &work{service: w.service, after: positionOf(tasks[len(tasks)-1])})
			p.work[w.service] = p.queue[len(p.queue)-1]
		}
	}
	return r.decisions
}

// prune drops from the overlay what the view shows.
func (p *planner) prune(view *store.View) {
	for id, e := range p.overlay {
		if e.index > 0 && view.Index() >= e.index {
			delete(p.overlay, id)
		}
	}
}

// collect reads the service's waiting tasks, at most limit, from where its turn stands.
func (p *planner) collect(view *store.View, w *work, limit int) (tasks []*swarmpb.Task, more bool) {
	for t := range view.UnplacedOf(w.service) {
		if positionOf(t).compare(w.after) <= 0 {
			continue
		}
		if e := p.overlay[t.GetId()]; e != nil {
			e.missed = true
			continue
		}
		if len(tasks) == limit {
			return tasks, true
		}
		tasks = append(tasks, t)
	}
	return tasks, false
}

// applied: the decision is in the store, from index on.
func (p *planner) applied(d *decision, index uint64) {
	p.maxWrites = min(2*p.maxWrites, store.MaxWrites)
	paired := false
	for _, e := range d.entries {
		e.index = index
		// A chance that came while the reason was being written must not be missed.
		if e.missed && e.node == "" {
			p.enqueue(e.task.GetServiceId())
		}
		paired = paired || e.alone
	}
	if paired {
		p.wake(false)
	}
}

// refused: nothing of the decision was written.
func (p *planner) refused(d *decision) {
	p.maxWrites = max(p.maxWrites/2, 1)
	p.withdrawn(d)
}

// withdrawn: the decision was not proposed, or not written; or nobody knows, as when leadership is being lost.
// Should it be written after all, the store refuses another node for its tasks.
func (p *planner) withdrawn(d *decision) {
	freed := false
	for _, e := range d.entries {
		delete(p.overlay, e.task.GetId())
		p.enqueue(e.task.GetServiceId())
		freed = freed || e.node != ""
	}
	if freed {
		p.wake(false)
	}
}

// stick notes that a task of the service waits: crowded, for something that other tasks hold.
func (p *planner) stick(service string, crowded bool) {
	p.stuck[service] = p.stuck[service] || crowded
}

// pin notes that a task of the service waits for this node alone, as long as that takes tasks.
func (p *planner) pin(service, node string) {
	if p.pinned[node] == nil {
		p.pinned[node] = map[string]bool{}
	}
	p.pinned[node][service] = true
}

// nominate notes where a waiting task has asked others to give way; true when it waits there no longer.
func (p *planner) nominate(task string, row *swarmpb.TaskPlacement) bool {
	if row.GetNodeId() == "" && row.GetPreemptsOn() != "" {
		p.nominated[task] = row.GetPreemptsOn()
		return false
	}
	return p.withdraw(task)
}

// withdraw gives up what is kept for a task; true when there was any.
func (p *planner) withdraw(task string) bool {
	_, kept := p.nominated[task]
	delete(p.nominated, task)
	return kept
}

// unpin gives a turn to the services that waited for a node which takes no tasks any more.
func (p *planner) unpin(node string) {
	for _, service := range slices.Sorted(maps.Keys(p.pinned[node])) {
		p.enqueue(service)
	}
	delete(p.pinned, node)
}

// wake gives a turn to the services that are stuck: those that wait for what tasks hold, or all.
func (p *planner) wake(all bool) {
	var woken []string
	for service, crowded := range p.stuck {
		if all || crowded {
			woken = append(woken, service)
		}
	}
	slices.Sort(woken)
	for _, service := range woken {
		p.enqueue(service)
	}
}
