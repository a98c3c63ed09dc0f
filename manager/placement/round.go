package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/scheduler"
)

// round is one plan: the nodes with all claims of the view, of the overlay and of the round itself.
type round struct {
	planner   *planner
	view      *store.View
	now       time.Time
	nodes     *scheduler.Nodes
	ids       []string // of nodes
	templates map[templateKey]template
	// extra are the claims that the view does not count, by service and node.
	extra map[string]map[string]int
	// heirs are the tasks of the overlay that share the claim of the task they replace, by the task replaced.
	heirs map[string]string
	// claims are those that this round's tasks may take over, by the task replaced.
	claims    map[string]inheritance
	decisions []*decision

	// kept is the room that others make for waiting tasks, by task: the node.
	kept map[string]string
	// asked are the tasks that are to give way; preemptors counts for whom; priority is the range of priorities.
	asked      map[string]bool
	preemptors int
	priority   *[2]int32
}

type templateKey struct {
	service string
	version uint64
}

type template struct {
	requirements *scheduler.Requirements
	err          error
}

func newRound(p *planner, view *store.View, now time.Time) *round {
	r := &round{
		planner: p, view: view, now: now, templates: map[templateKey]template{},
		extra: map[string]map[string]int{}, heirs: map[string]string{}, claims: map[string]inheritance{},
		kept: map[string]string{}, asked: map[string]bool{},
	}
	nodes := make([]scheduler.Node, 0, view.NodeCount())
	for row := range view.Nodes() {
		node := scheduler.NewNode(row, view.NodeStatus(row.GetId()))
		usage := view.Usage(row.GetId())
		var ports []scheduler.Port
		for protocol, number := range usage.Ports() {
			ports = append(ports, scheduler.Port{Protocol: protocol, Number: number})
		}
		node.Claim(scheduler.Resources{NanoCPUs: usage.NanoCPUs, MemoryBytes: usage.MemoryBytes}, ports)
		node.Tasks = usage.Tasks
		if len(node.Generic) > 0 {
			r.claimGeneric(&node)
		}
		nodes = append(nodes, node)
		r.ids = append(r.ids, node.ID)
	}
	r.nodes = scheduler.NewNodes(nodes)
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

// claimGeneric takes what the node's tasks hold out of its generic resources. A pair of which one follows the other
// holds the larger of both.
func (r *round) claimGeneric(node *scheduler.Node) {
	for t := range r.view.TasksOn(node.ID) {
		rows := r.view.TaskRows(t.GetId())
		if got := rows.Placement.GetGeneric(); len(got) > 0 && !rows.Observed.Ended() {
			node.ClaimGeneric(scheduler.Beyond(got, r.genericBefore(t, node.ID)))
		}
	}
}

// genericBefore is what the task's predecessor holds on the node, if the task takes that over.
func (r *round) genericBefore(t *swarmpb.Task, node string) []*swarmpb.GenericResource {
	if t.GetReplaces() == "" || t.GetBeside() {
		return nil
	}
	old := r.view.TaskRows(t.GetReplaces())
	if old.Placement.GetNodeId() != node || old.Observed.Ended() {
		return nil
	}
	return old.Placement.GetGeneric()
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
	node.ClaimGeneric(scheduler.Beyond(e.generic, r.genericBefore(e.task, e.node)))
	if held := r.held(e.task); held != nil && held.Node == e.node {
		r.heirs[e.task.GetReplaces()] = e.task.GetId()
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

// requirements reads a template once a round.
func (r *round) requirements(service string, version uint64) (*scheduler.Requirements, error) {
	key := templateKey{service, version}
	t, ok := r.templates[key]
	if !ok {
		if row := r.view.Template(service, version); row == nil {
			t.err = fmt.Errorf("template %d of service %s is missing", version, service)
		} else {
			t.requirements, t.err = scheduler.NewRequirements(row)
			if t.err == nil && r.encrypted(row) {
				t.requirements.Encrypt()
			}
		}
		r.templates[key] = t
	}
	return t.requirements, t.err
}

// encrypted tells whether a network of the template is.
func (r *round) encrypted(t *swarmpb.Template) bool {
	return slices.ContainsFunc(t.GetSpec().GetNetworks(), func(a *swarmpb.NetworkAttachment) bool {
		return r.view.Network(a.GetNetwork()).GetSpec().GetEncrypted()
	})
}

const (
	// So many tasks of a service that ended in failure on a node within failureWindow make the node its last choice.
	failuresToAvoid = 5
	failureWindow   = 5 * time.Minute
)

// failing are the nodes that the service is better kept from for a while.
func (r *round) failing(service string) map[string]bool {
	count := func(s swarmpb.TaskState) int { return r.view.TaskCountIn(service, s) }
	if count(swarmpb.TaskState_TASK_STATE_FAILED)+count(swarmpb.TaskState_TASK_STATE_REJECTED) < failuresToAvoid {
		return nil
	}
	since, failures := r.now.Add(-failureWindow).UnixNano(), map[string]int{}
	var out map[string]bool
	for t := range r.view.TasksOf(service) {
		rows := r.view.TaskRows(t.GetId())
		if s := rows.Observed; s != swarmpb.TaskState_TASK_STATE_FAILED && s != swarmpb.TaskState_TASK_STATE_REJECTED || rows.Status.GetAt() < since {
			continue
		}
		if node := rows.Placement.GetNodeId(); node != "" {
			if failures[node]++; failures[node] == failuresToAvoid {
				if out == nil {
					out = map[string]bool{}
				}
				out[node] = true
			}
		}
	}
	return out
}

// inheritance is what one successor may take over, nil = nothing: one that runs beside the task that it replaces, or
// one that does not.
type inheritance struct {
	claim  *scheduler.Claim
	beside bool
}

// inherits is held, once for all successors of a task.
func (r *round) inherits(t *swarmpb.Task) *scheduler.Claim {
	if t.GetReplaces() == "" {
		return nil
	}
	i, known := r.claims[t.GetReplaces()]
	if !known {
		i = inheritance{r.held(t), t.GetBeside()}
		r.claims[t.GetReplaces()] = i
	}
	if i.beside != t.GetBeside() {
		return nil
	}
	return i.claim
}

// held is the claim that the task takes over if it is put on the node of the task that it replaces; nil when
// that one holds none, or another successor shares it. The claim is empty when the two run beside each other: they
// are one task of the node's, but need the resources of both. The store counts such a pair by the same rule.
func (r *round) held(t *swarmpb.Task) *scheduler.Claim {
	if t.GetReplaces() == "" {
		return nil
	}
	old := r.view.TaskRows(t.GetReplaces())
	node := old.Placement.GetNodeId()
	if node == "" || old.Observed.Ended() || old.Task.GetServiceId() != t.GetServiceId() ||
		old.Task.GetSlot() != t.GetSlot() || old.Task.GetAttempt() >= t.GetAttempt() {
		return nil
	}
	if heir := r.heirs[t.GetReplaces()]; heir != "" && heir != t.GetId() {
		return nil
	}
	for other := range r.view.TasksIn(t.GetServiceId(), t.GetSlot()) {
		if other.GetReplaces() == t.GetReplaces() && other.GetId() != t.GetId() &&
			r.view.NodeID(other.GetId()) == node && !r.view.Observed(other.GetId()).Ended() {
			return nil
		}
	}
	if t.GetBeside() {
		return &scheduler.Claim{Node: node} // nothing of the other's is free for it
	}
	q, err := r.requirements(old.Task.GetServiceId(), old.Task.GetTemplateVersion())
	if err != nil {
		return nil
	}
	held := &scheduler.Claim{Node: node, Resources: q.Reserve, Generic: old.Placement.GetGeneric()}
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
		r.placeGroup(service, v, byVersion[v], onNode)
	}
}

func (r *round) placeGroup(service string, version uint64, tasks []*swarmpb.Task, onNode map[string]int) {
	q, err := r.requirements(service, version)
	if err != nil {
		r.planner.stick(service, false)
		for _, t := range tasks {
			r.reject(t, err.Error())
		}
		return
	}
	group := &scheduler.Group{Service: service, Requirements: q, OnNode: onNode, Failing: r.failing(service), Tasks: make([]scheduler.Task, len(tasks))}
	for i, t := range tasks {
		r.openRoom(t.GetId(), q)
		group.Tasks[i] = scheduler.Task{ID: t.GetId(), Node: cmp.Or(t.GetNodeId(), r.home(t)), Held: r.inherits(t)}
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

// home is the node that an in-place successor belongs on: that of the task which it replaces, while it takes tasks.
func (r *round) home(t *swarmpb.Task) string {
	if !t.GetSameNode() {
		return ""
	}
	node := r.view.NodeID(t.GetReplaces())
	if !scheduler.TakesTasks(r.view.Node(node), r.view.NodeStatus(node)) {
		return ""
	}
	return node
}

// onNode counts the service's claims by node, with those that the view does not show. It reads whichever are
// fewer, the service's tasks or the nodes.
func (r *round) onNode(service string) map[string]int {
	counts := map[string]int{}
	add := func(node string) {
		if _, done := counts[node]; !done {
			if n := r.view.TasksOnByService(node, service); n > 0 {
				counts[node] = n
			}
		}
	}
	if r.view.TaskCountOf(service) < len(r.ids) {
		for t := range r.view.TasksOf(service) {
			if node := r.view.NodeID(t.GetId()); node != "" {
				add(node)
			}
		}
	} else {
		for _, node := range r.ids {
			add(node)
		}
	}
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
