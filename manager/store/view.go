package store

import (
	"iter"
	"slices"
	"strings"

	"github.com/tidwall/btree"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// View is one immutable version of the state. Its methods are safe for any number of goroutines; messages that
// they return are shared and read-only, and nil when there is no such row.
type View struct {
	index uint64
	term  uint64

	cluster      *swarmpb.Cluster
	nodes        *btree.Map[string, *swarmpb.Node]
	nodeStatuses *btree.Map[string, *swarmpb.NodeStatus]
	services     *btree.Map[string, *swarmpb.Service]
	templates    *btree.BTreeG[templateItem]
	progress     *btree.Map[string, *swarmpb.ServiceProgress]
	slots        *btree.BTreeG[*swarmpb.SlotProgress]
	rows         taskTable
	allocations  *btree.BTreeG[*swarmpb.Allocation]
	alarms       *btree.BTreeG[*swarmpb.Alarm]
	requests     *btree.Map[string, request]

	networks        *btree.Map[string, *swarmpb.Network]
	networkProgress *btree.Map[string, *swarmpb.NetworkProgress]
	endpoints       *btree.Map[string, *swarmpb.ServiceEndpoint]
	revisions       *btree.BTreeG[*swarmpb.ServiceRevision]
	metrics         *btree.Map[string, *swarmpb.ServiceMetric]

	// What follows is derived from the rows above; verify.go says how.

	// requestOrder is the requests by age.
	requestOrder *btree.Map[uint64, string]
	nextRequest  uint64
	// names is service name -> ID.
	names *btree.Map[string, string]
	// networkNames is network name -> ID.
	networkNames *btree.Map[string, string]
	// attachments is network -> the templates whose tasks are in it.
	attachments *btree.BTreeG[attachment]
	// owners is the allocations by live owner.
	owners *btree.BTreeG[ownerItem]
	// resting is the allocations without an owner, by age, and runs is the numbers of each pool that have a row.
	resting *btree.BTreeG[restItem]
	runs    *btree.BTreeG[run]
	// tasks is the tasks by ID.
	tasks taskSet
	// waiting is the services with tasks that wait for a node, and unplaced the number of those tasks.
	waiting  *btree.Map[string, struct{}]
	unplaced int
	// asking is the number of tasks without a node that wait for others to give way.
	asking int
	// heirs is the number of tasks that replace another one and hold a claim.
	heirs int
	// references is how many rows refer to a template.
	references *btree.BTreeG[reference]
	perNode    *btree.Map[string, *nodeIndex]
	perService *btree.Map[string, *serviceIndex]
	// lastNumber is that of the newest service index.
	lastNumber uint32

	// forked is the index up to which memory is shared with the store that this one was forked from; 0 in one of its own.
	forked uint64
}

func newView() *View {
	return &View{
		nodes:        btree.NewMap[string, *swarmpb.Node](0),
		nodeStatuses: btree.NewMap[string, *swarmpb.NodeStatus](0),
		services:     btree.NewMap[string, *swarmpb.Service](0),
		templates:    newTree(lessTemplate),
		progress:     btree.NewMap[string, *swarmpb.ServiceProgress](0),
		slots:        newTree(lessSlot),
		allocations:  newTree(lessAllocation),
		alarms:       newTree(lessAlarm),
		requests:     btree.NewMap[string, request](0),
		requestOrder: btree.NewMap[uint64, string](0),
		names:        btree.NewMap[string, string](0),
		owners:       newTree(lessOwner),
		resting:      newTree(lessRest),
		runs:         newTree(lessRun),
		waiting:      btree.NewMap[string, struct{}](0),
		references:   newTree(lessReference),
		perNode:      btree.NewMap[string, *nodeIndex](degree),
		perService:   btree.NewMap[string, *serviceIndex](degree),

		networks:        btree.NewMap[string, *swarmpb.Network](0),
		networkProgress: btree.NewMap[string, *swarmpb.NetworkProgress](0),
		endpoints:       btree.NewMap[string, *swarmpb.ServiceEndpoint](0),
		revisions:       newTree(lessRevision),
		metrics:         btree.NewMap[string, *swarmpb.ServiceMetric](0),
		networkNames:    btree.NewMap[string, string](0),
		attachments:     newTree(lessAttachment),
	}
}

// fork is the next version before anything is written: every tree shares its nodes with the version before.
func (v *View) fork() *View {
	next := *v
	next.nodes = copyMap(v.nodes)
	next.nodeStatuses = copyMap(v.nodeStatuses)
	next.services = copyMap(v.services)
	next.templates = copyTree(v.templates)
	next.progress = copyMap(v.progress)
	next.slots = copyTree(v.slots)
	next.allocations = copyTree(v.allocations)
	next.alarms = copyTree(v.alarms)
	next.requests = copyMap(v.requests)
	next.requestOrder = copyMap(v.requestOrder)
	next.names = copyMap(v.names)
	next.owners = copyTree(v.owners)
	next.resting = copyTree(v.resting)
	next.runs = copyTree(v.runs)
	next.waiting = copyMap(v.waiting)
	next.references = copyTree(v.references)
	next.perNode = copyMap(v.perNode)
	next.perService = copyMap(v.perService)
	next.networks = copyMap(v.networks)
	next.networkProgress = copyMap(v.networkProgress)
	next.endpoints = copyMap(v.endpoints)
	next.revisions = copyTree(v.revisions)
	next.metrics = copyMap(v.metrics)
	next.networkNames = copyMap(v.networkNames)
	next.attachments = copyTree(v.attachments)
	return &next
}

// Index is the log index of the last entry in this version.
func (v *View) Index() uint64 { return v.index }

// Term is the term of the last entry in this version.
func (v *View) Term() uint64 { return v.term }

// Cluster is the cluster's row; nil before init.
func (v *View) Cluster() *swarmpb.Cluster { return v.cluster }

// Node is a member.
func (v *View) Node(id string) *swarmpb.Node {
	node, _ := v.nodes.Get(id)
	return node
}

// NodeStatus is what is seen of a node.
func (v *View) NodeStatus(nodeID string) *swarmpb.NodeStatus {
	status, _ := v.nodeStatuses.Get(nodeID)
	return status
}

// NodeName names a node for an operator: its hostname, or the ID of one that has never told any.
func (v *View) NodeName(nodeID string) string {
	if name := v.NodeStatus(nodeID).GetDescription().GetHostname(); name != "" {
		return name
	}
	return nodeID
}

// Nodes are all members, by ID.
func (v *View) Nodes() iter.Seq[*swarmpb.Node] { return values(v.nodes) }

// NodeCount is the number of members.
func (v *View) NodeCount() int { return v.nodes.Len() }

// NodeStatusCount is the number of members of which a status has been written.
func (v *View) NodeStatusCount() int { return v.nodeStatuses.Len() }

// Service is a service by ID.
func (v *View) Service(id string) *swarmpb.Service {
	service, _ := v.services.Get(id)
	return service
}

// ServiceByName is a service by its full name.
func (v *View) ServiceByName(name string) *swarmpb.Service {
	id, ok := v.names.Get(name)
	if !ok {
		return nil
	}
	return v.Service(id)
}

// Services are all services, by ID.
func (v *View) Services() iter.Seq[*swarmpb.Service] { return values(v.services) }

// ServiceCount is the number of services.
func (v *View) ServiceCount() int { return v.services.Len() }

// ServiceProgress is how far the cluster has come with a service.
func (v *View) ServiceProgress(serviceID string) *swarmpb.ServiceProgress {
	progress, _ := v.progress.Get(serviceID)
	return progress
}

// SlotProgress is a slot's memory of restarts; nil for one that has not restarted.
func (v *View) SlotProgress(serviceID string, slot uint64) *swarmpb.SlotProgress {
	progress, _ := v.slots.Get(&swarmpb.SlotProgress{ServiceId: serviceID, Slot: slot})
	return progress
}

// SlotsOf are the slots of a service that have restarted, by number.
func (v *View) SlotsOf(serviceID string) iter.Seq[*swarmpb.SlotProgress] {
	return from(v.slots, &swarmpb.SlotProgress{ServiceId: serviceID}, func(p *swarmpb.SlotProgress) bool {
		return p.ServiceId == serviceID
	})
}

// Template is the template of a service's tasks.
func (v *View) Template(serviceID string, version uint64) *swarmpb.Template {
	item, _ := v.templates.Get(templateItem{service: serviceID, version: version})
	return item.template
}

// TemplatesOf are the templates of a service that something refers to, by version.
func (v *View) TemplatesOf(serviceID string) iter.Seq[*swarmpb.Template] {
	items := from(v.templates, templateItem{service: serviceID}, func(item templateItem) bool { return item.service == serviceID })
	return func(yield func(*swarmpb.Template) bool) {
		for item := range items {
			if !yield(item.template) {
				return
			}
		}
	}
}

// Task is a task by ID.
func (v *View) Task(id string) *swarmpb.Task {
	if row := v.taskRow(id); row != nil {
		return row.task
	}
	return nil
}

// Placement says where a task goes, or why nowhere yet.
func (v *View) Placement(taskID string) *swarmpb.TaskPlacement {
	if row := v.taskRow(taskID); row != nil {
		return row.placement
	}
	return nil
}

// Addresses are what the allocator gave a task.
func (v *View) Addresses(taskID string) *swarmpb.TaskAddresses {
	if row := v.taskRow(taskID); row != nil {
		return row.addresses
	}
	return nil
}

// Status is what the worker last said of a task; nil before it accepted it.
func (v *View) Status(taskID string) *swarmpb.TaskStatus {
	if row := v.taskRow(taskID); row != nil {
		return row.status
	}
	return nil
}

// TaskRows are a task and the rows beside it, each nil when there is none.
type TaskRows struct {
	Task      *swarmpb.Task
	Placement *swarmpb.TaskPlacement
	Addresses *swarmpb.TaskAddresses
	Status    *swarmpb.TaskStatus
	// Observed is as View.Observed says.
	Observed swarmpb.TaskState
}

// TaskRows reads all rows of a task in one look-up. Task is nil when there is no such task.
func (v *View) TaskRows(id string) TaskRows {
	row := v.taskRow(id)
	if row == nil {
		return TaskRows{}
	}
	return TaskRows{row.task, row.placement, row.addresses, row.status, row.observed()}
}

// Observed is how far a task has come: what its worker said, once it has accepted the task; before that
// ASSIGNED with a node, else PENDING when it has an address in each network of its template, else NEW. UNSPECIFIED: no such task.
func (v *View) Observed(taskID string) swarmpb.TaskState {
	if row := v.taskRow(taskID); row != nil {
		return row.observed()
	}
	return swarmpb.TaskState_TASK_STATE_UNSPECIFIED
}

// NodeID is the node that a task is placed on; empty before.
func (v *View) NodeID(taskID string) string {
	return v.Placement(taskID).GetNodeId()
}

// Tasks are all tasks, by ID.
func (v *View) Tasks() iter.Seq[*swarmpb.Task] {
	return func(yield func(*swarmpb.Task) bool) {
		for ordinal := range v.tasks.all() {
			if !yield(v.rows.at(ordinal).task) {
				return
			}
		}
	}
}

// TaskCount is the number of tasks.
func (v *View) TaskCount() int { return v.tasks.count }

// TasksOf are the tasks of a service, by slot and attempt.
func (v *View) TasksOf(serviceID string) iter.Seq[*swarmpb.Task] {
	return v.TasksFrom(serviceID, 0)
}

// RowsOf are the tasks of a service, by slot and attempt, with the rows beside each: for who reads those of very many.
func (v *View) RowsOf(serviceID string) iter.Seq[TaskRows] {
	return func(yield func(TaskRows) bool) {
		index, ok := v.perService.Get(serviceID)
		if !ok {
			return
		}
		for ordinal := range index.tasks.all() {
			if row := v.rows.at(ordinal); !yield(TaskRows{row.task, row.placement, row.addresses, row.status, row.observed()}) {
				return
			}
		}
	}
}

// TasksFrom are the tasks of a service from a slot on, by slot and attempt.
func (v *View) TasksFrom(serviceID string, slot uint64) iter.Seq[*swarmpb.Task] {
	return func(yield func(*swarmpb.Task) bool) {
		index, ok := v.perService.Get(serviceID)
		if !ok {
			return
		}
		for ordinal := range index.tasks.from(slot) {
			if !yield(v.rows.at(ordinal).task) {
				return
			}
		}
	}
}

// TasksIn are the tasks of one slot, by attempt.
func (v *View) TasksIn(serviceID string, slot uint64) iter.Seq[*swarmpb.Task] {
	return func(yield func(*swarmpb.Task) bool) {
		for task := range v.TasksFrom(serviceID, slot) {
			if task.Slot != slot || !yield(task) {
				return
			}
		}
	}
}

// TasksOn are the tasks placed on a node, ended ones too, by ID.
func (v *View) TasksOn(nodeID string) iter.Seq[*swarmpb.Task] {
	index, ok := v.perNode.Get(nodeID)
	if !ok {
		return func(func(*swarmpb.Task) bool) {}
	}
	return func(yield func(*swarmpb.Task) bool) {
		// They are kept as they came: to put a list in order is cheap beside what its reader does with it.
		tasks := make([]*swarmpb.Task, 0, index.tasks.count)
		for ordinal := range index.tasks.all() {
			tasks = append(tasks, v.rows.at(ordinal).task)
		}
		slices.SortFunc(tasks, func(a, b *swarmpb.Task) int { return strings.Compare(a.Id, b.Id) })
		for _, task := range tasks {
			if !yield(task) {
				return
			}
		}
	}
}

// Unplaced are the tasks that wait for a node: without one, not NEW, not ended, desired state at most RUNNING; by
// service, slot and attempt.
func (v *View) Unplaced() iter.Seq[*swarmpb.Task] {
	return func(yield func(*swarmpb.Task) bool) {
		more := true
		v.waiting.Scan(func(service string, _ struct{}) bool {
			for task := range v.UnplacedOf(service) {
				if more = yield(task); !more {
					break
				}
			}
			return more
		})
	}
}

// UnaddressedOf are the tasks of a service that are NEW, whatever is desired of them, by slot and attempt, each with
// what it has of addresses.
func (v *View) UnaddressedOf(serviceID string) iter.Seq2[*swarmpb.Task, *swarmpb.TaskAddresses] {
	index, ok := v.perService.Get(serviceID)
	if !ok {
		return func(func(*swarmpb.Task, *swarmpb.TaskAddresses) bool) {}
	}
	return func(yield func(*swarmpb.Task, *swarmpb.TaskAddresses) bool) {
		for ordinal := range index.unaddressed.all() {
			if row := v.rows.at(ordinal); !yield(row.task, row.addresses) {
				return
			}
		}
	}
}

// UnplacedCount is the number of tasks that wait for a node.
func (v *View) UnplacedCount() int { return v.unplaced }

// AskingCount is the number of tasks without a node that have asked others to give way (TaskPlacement.preempts).
func (v *View) AskingCount() int { return v.asking }

// UnplacedOf are the tasks of a service that wait for a node, by slot and attempt.
func (v *View) UnplacedOf(serviceID string) iter.Seq[*swarmpb.Task] {
	index, ok := v.perService.Get(serviceID)
	if !ok {
		return func(func(*swarmpb.Task) bool) {}
	}
	return func(yield func(*swarmpb.Task) bool) {
		for ordinal := range index.waiting.all() {
			if !yield(v.rows.at(ordinal).task) {
				return
			}
		}
	}
}

// Allocation is the row of an address: with its owner, or resting.
func (v *View) Allocation(pool, address string) *swarmpb.Allocation {
	allocation, _ := v.allocations.Get(&swarmpb.Allocation{Pool: pool, Address: address})
	return allocation
}

// Allocations are the rows of a pool, owned and resting, by address as text.
func (v *View) Allocations(pool string) iter.Seq[*swarmpb.Allocation] {
	return from(v.allocations, &swarmpb.Allocation{Pool: pool}, func(a *swarmpb.Allocation) bool { return a.Pool == pool })
}

// AllocationsOf are the addresses that an owner holds, by pool and address.
func (v *View) AllocationsOf(owner string) iter.Seq[*swarmpb.Allocation] {
	items := from(v.owners, ownerItem{owner: owner}, func(item ownerItem) bool { return item.owner == owner })
	return func(yield func(*swarmpb.Allocation) bool) {
		for item := range items {
			if !yield(v.Allocation(item.pool, item.address)) {
				return
			}
		}
	}
}

// Alarm is one alarm.
func (v *View) Alarm(kind, object string) *swarmpb.Alarm {
	alarm, _ := v.alarms.Get(&swarmpb.Alarm{Kind: kind, Object: object})
	return alarm
}

// Alarms are all alarms, by kind and object.
func (v *View) Alarms() iter.Seq[*swarmpb.Alarm] {
	return func(yield func(*swarmpb.Alarm) bool) { v.alarms.Scan(yield) }
}

// values walks a map's values by key.
func values[V any](m *btree.Map[string, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		m.Scan(func(_ string, value V) bool { return yield(value) })
	}
}

// from walks a tree from a pivot on for as long as while holds.
func from[T any](tree *btree.BTreeG[T], pivot T, while func(T) bool) iter.Seq[T] {
	return func(yield func(T) bool) {
		tree.Ascend(pivot, func(item T) bool { return while(item) && yield(item) })
	}
}
