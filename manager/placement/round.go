package placement

import (
	"cmp"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/scheduler"
)

// round is one plan: the nodes with all claims of the view, of the overlay and of the round itself.
type round struct {
	planner *planner
	view    *store.View
	now     time.Time
	read    *claims.Claims
	nodes   *scheduler.Nodes // those of read
	// extra are the claims that the view does not count, by service and node.
	extra map[string]map[string]int
	// heirs are the tasks of the overlay that share the claim of the task whose place they take, by that.
	heirs map[string]string
	// inherited are the claims that this round's tasks may take over, by the task whose place they take.
	inherited map[string]inheritance
	decisions []*decision

	// kept is the room that others make for waiting tasks, by task: the node.
	kept map[string]string
	// asked are the tasks that are to give way; preemptors counts for whom; priority is the range of priorities.
	asked      map[string]bool
	preemptors int
	priority   *[2]int32
}

func newRound(p *planner, view *store.View, now time.Time) *round {
	r := &round{
		planner: p, view: view, now: now, read: claims.Of(view),
		extra: map[string]map[string]int{}, heirs: map[string]string{}, inherited: map[string]inheritance{},
		kept: map[string]string{}, asked: map[string]bool{},
	}
	r.nodes = r.read.Nodes()
	var successors []*entry
	for _, e := range p.overlay {
		if e.task.GetReplaces() != "" {
			successors = append(successors, e)
		} else {
			r.claim(e) // in any order: sums are the same
		}
	}
	// The earliest attempt shares the claim, as in the store.
	slices.SortFunc(successors, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.task.GetAttempt(), b.task.GetAttempt()), cmp.Compare(a.task.GetId(), b.task.GetId()))
	})
	for _, e := range successors {
		r.claim(e)
	}
	r.keepRoom()
	return r
}

// claim counts what the overlay has given away on a node and the view does not show.
func (r *round) claim(e *entry) {
	rows := r.view.TaskRows(e.task.GetId())
	node := r.nodes.Node(e.node)
	if node == nil || rows.Task == nil || rows.Placement.GetNodeId() != "" || rows.Observed.Ended() {
		return
	}
	q, err := r.requirements(e.task.GetServiceId(), e.task.GetTemplateVersion())
	if err != nil {
		return
	}
	node.ClaimGeneric(scheduler.Beyond(e.generic, r.read.GenericBefore(e.task, e.node)))
	base, beside := r.base(e.task)
	if held := r.held(e.task, base, beside); held != nil && held.Node == e.node {
		r.heirs[base.Task.GetId()] = e.task.GetId()
		node.Extend(held.Resources, q.Reserve, q.Ports)
		return
	}
	node.Claim(q.Reserve, q.Ports)
	r.count(e.task.GetServiceId(), e.node)
}

func (r *round) count(service, node string) {
	if r.extra[service] == nil {
		r.extra[service] = map[string]int{}
	}
	r.extra[service][node]++
}

func (r *round) requirements(service string, version uint64) (*scheduler.Requirements, error) {
	return r.read.Requirements(service, version)
}

// inheritance is what one successor may take over, nil = nothing: one that runs beside the task that it replaces, or
// one that does not.
type inheritance struct {
	claim  *scheduler.Claim
	beside bool
}

// inherits is held, once for all tasks that are to take one's place.
func (r *round) inherits(t *swarmpb.Task) *scheduler.Claim {
	base, beside := r.base(t)
	if base.Task == nil {
		return nil
	}
	i, known := r.inherited[base.Task.GetId()]
	if !known {
		i = inheritance{r.held(t, base, beside), beside}
		r.inherited[base.Task.GetId()] = i
	}
	if i.beside != beside {
		return nil
	}
	return i.claim
}

// base is the task whose place another one is to take, and whether it runs beside that: as the store counts, but that it knows
// what has been decided.
func (r *round) base(t *swarmpb.Task) (base store.TaskRows, beside bool) {
	if t.GetReplaces() == "" {
		return store.TaskRows{}, false
	}
	return r.view.Base(t, func(id string) bool {
		e := r.planner.overlay[id]
		return e != nil && e.node != ""
	})
}

// held is the claim that the task takes over if it is put on the node of its base; nil when there is none, or another task
// shares its claim. The claim is empty when the two run beside each other: they are one task of the node's, but need the
// resources of both. The store counts such a pair by the same rule.
func (r *round) held(t *swarmpb.Task, base store.TaskRows, beside bool) *scheduler.Claim {
	if base.Task == nil {
		return nil
	}
	id, node := base.Task.GetId(), base.Placement.GetNodeId()
	if heir := r.heirs[id]; heir != "" && heir != t.GetId() {
		return nil
	}
	for other := range r.view.TasksIn(t.GetServiceId(), t.GetSlot()) {
		if other.GetReplaces() == "" || other.GetId() == t.GetId() || r.view.NodeID(other.GetId()) != node || r.view.Observed(other.GetId()).Ended() {
			continue
		}
		if its, _ := r.view.Base(other, nil); its.Task.GetId() == id {
			return nil
		}
	}
	if beside {
		return &scheduler.Claim{Node: node} // nothing of the other's is free for it
	}
	q, err := r.requirements(base.Task.GetServiceId(), base.Task.GetTemplateVersion())
	if err != nil {
		return nil
	}
	held := &scheduler.Claim{Node: node, Resources: q.Reserve, Generic: base.Placement.GetGeneric()}
	if t.GetDesiredState() < swarmpb.TaskState_TASK_STATE_RUNNING {
		held.Ports = q.Ports // else it does not wait for the other to stop, and needs ports that are free now
	}
	return held
}

// place decides about tasks of one service, template by template.
func (r *round) place(service string, tasks []*swarmpb.Task) {
	if len(tasks) == 0 {
		return
	}
	var versions []uint64
	byVersion := map[uint64][]*swarmpb.Task{}
	for _, t := range tasks {
		v := t.GetTemplateVersion()
		if byVersion[v] == nil {
			versions = append(versions, v)
		}
		byVersion[v] = append(byVersion[v], t)
	}
	onNode := r.onNode(service)
	for _, v := range versions {
		rest := byVersion[v][:0:0]
		for _, t := range byVersion[v] {
			if t.GetMove() == swarmpb.MoveReason_MOVE_REASON_REBALANCE && r.optional(t) {
				r.balance(t, onNode)
			} else {
				rest = append(rest, t)
			}
		}
		if len(rest) > 0 {
			r.placeGroup(service, v, rest, onNode)
		}
	}
}

// optional tells whether the slot of a task can do without it: the one that it is to follow is there still.
func (r *round) optional(t *swarmpb.Task) bool {
	old := r.view.TaskRows(t.GetReplaces())
	return old.Task != nil && old.Task.DesiredState.Wanted() && !old.Observed.Ended() &&
		r.view.NodeStatus(old.Placement.GetNodeId()).GetState() != swarmpb.NodeState_NODE_STATE_DOWN
}

// balance places a task that is to follow another one for balance: only where that makes things more even than they are, which
// may be another node than the orchestrator found, and not on one that has not settled. So moves come to an end whatever happens
// meanwhile.
func (r *round) balance(t *swarmpb.Task, onNode map[string]int) {
	q, err := r.requirements(t.GetServiceId(), t.GetTemplateVersion())
	if err != nil {
		r.reject(t, err.Error())
		return
	}
	group := &scheduler.Group{Service: t.GetServiceId(), Requirements: q, OnNode: onNode}
	avoid := []map[string]bool{r.read.Failing(t.GetServiceId(), r.now)}
	if !claims.BalanceAsked(r.view, r.view.Service(t.GetServiceId()), r.now) {
		fresh, _ := claims.Unsettled(r.view, r.now)
		avoid = append(avoid, fresh)
	}
	move, ok := r.nodes.Better(&scheduler.Balance{Service: t.GetServiceId(), Requirements: q, OnNode: onNode,
		From: r.view.NodeID(t.GetReplaces()), Avoid: avoid})
	if !ok {
		r.planner.stick(t.GetServiceId(), true) // it is needed when the other one ends
		r.reject(t, notBetter)
		return
	}
	group.Tasks = []scheduler.Task{{ID: t.GetId(), Node: move.To}}
	if a := r.nodes.Place(group)[0]; a.Node != "" {
		onNode[a.Node]++
		r.assign(t, a.Node, a.Generic)
		return
	}
	r.planner.stick(t.GetServiceId(), true)
	r.reject(t, notBetter)
}

// notBetter is why a task does not move for balance.
const notBetter = "no node is better than the one where it is"

func (r *round) placeGroup(service string, version uint64, tasks []*swarmpb.Task, onNode map[string]int) {
	q, err := r.requirements(service, version)
	if err != nil {
		r.planner.stick(service, false)
		for _, t := range tasks {
			r.reject(t, err.Error())
		}
		return
	}
	group := &scheduler.Group{Service: service, Requirements: q, OnNode: onNode, Failing: r.read.Failing(service, r.now), Tasks: make([]scheduler.Task, len(tasks))}
	for i, t := range tasks {
		r.openRoom(t.GetId(), q)
		group.Tasks[i] = scheduler.Task{ID: t.GetId(), Node: cmp.Or(t.GetNodeId(), r.home(t, q)), Held: r.inherits(t)}
	}
	var words scheduler.Rejections
	message := ""
	for i, a := range r.nodes.Place(group) {
		if a.Node == "" {
			if message == "" || a.Rejections != words { // the same for nearly all of a group
				words, message = a.Rejections, a.Rejections.String()
			}
			if a.Rejections.Crowded() && r.preempt(tasks[i], group, message) {
				r.planner.stick(service, true)
				continue
			}
			r.planner.stick(service, a.Rejections.Crowded())
			if tasks[i].GetSameNode() && group.Tasks[i].Node != "" {
				r.planner.pin(service, group.Tasks[i].Node)
			}
			r.reject(tasks[i], message)
			continue
		}
		if held := group.Tasks[i].Held; held == nil || held.Node != a.Node {
			onNode[a.Node]++
		}
		r.assign(tasks[i], a.Node, a.Generic)
	}
}

// home is the node that an in-place successor belongs on: that of the task which it replaces, while it takes tasks, and is of
// the kind that the service asks for.
func (r *round) home(t *swarmpb.Task, q *scheduler.Requirements) string {
	if !t.GetSameNode() {
		return ""
	}
	node := r.view.NodeID(t.GetReplaces())
	row, status := r.view.Node(node), r.view.NodeStatus(node)
	if !scheduler.TakesTasks(row, status) {
		return ""
	}
	if n := scheduler.NewNode(row, status); q.Suits(&n) != scheduler.Accepted {
		return ""
	}
	return node
}

// onNode counts the service's claims by node, with those that the view does not show.
func (r *round) onNode(service string) map[string]int {
	counts := r.read.OnNode(service)
	for node, n := range r.extra[service] {
		counts[node] += n
	}
	return counts
}

func (r *round) assign(t *swarmpb.Task, node string, generic []*swarmpb.GenericResource) {
	d := r.decision(2)
	if !d.guarded[node] {
		d.guarded[node] = true
		d.guards = append(d.guards,
			&swarmpb.Guard{Key: swarmpb.NodeKey(node), Version: r.view.Node(node).GetMeta().GetVersion()},
			&swarmpb.Guard{Key: swarmpb.NodeStatusKey(node), Version: r.view.NodeStatus(node).GetMeta().GetVersion()})
	}
	r.write(d, &entry{task: t, node: node, generic: generic})
}

// reject says why no node suits, unless the task's row says it already.
func (r *round) reject(t *swarmpb.Task, message string) {
	if e := r.planner.overlay[t.GetId()]; e == nil && r.view.Placement(t.GetId()).GetMessage() == message {
		return
	}
	r.write(r.decision(0), &entry{task: t, message: message})
}

func (r *round) write(d *decision, e *entry) {
	id := e.task.GetId()
	d.guards = append(d.guards, &swarmpb.Guard{Key: swarmpb.TaskKey(id), Version: e.task.GetMeta().GetVersion()})
	d.writes = append(d.writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{
		TaskPlacement: &swarmpb.TaskPlacement{TaskId: id, NodeId: e.node, Message: e.message, At: r.now.UnixNano(), Generic: e.generic,
			Preempts: e.preempts, PreemptsOn: e.preemptsOn},
	}}}})
	d.entries = append(d.entries, e)
	if old := e.task.GetReplaces(); old != "" {
		if rows := r.view.TaskRows(old); rows.Task != nil && rows.Placement.GetNodeId() == "" && !rows.Observed.Ended() {
			r.planner.successors[old] = e.task.GetServiceId()
			e.alone = e.node != ""
		}
	}
	r.planner.overlay[id] = e
}

// decision is the one being filled, or the next when that is full. nodeGuards may come with the write.
func (r *round) decision(nodeGuards int) *decision {
	if n := len(r.decisions); n > 0 {
		d := r.decisions[n-1]
		if len(d.writes) < r.planner.maxWrites && len(d.guards)+1+nodeGuards <= store.MaxGuards {
			return d
		}
	}
	d := &decision{now: r.now, guarded: map[string]bool{}}
	r.decisions = append(r.decisions, d)
	return d
}
