package dispatcher

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// poolUplink is the pool of the blocks that nodes give their tasks' addresses from; its owners are nodes.
const poolUplink = "uplink"

// assignment is what a node has been told: the marks that changes are found by, so that what a slow node has
// missed is computed again from the view and never queued.
type assignment struct {
	// version is the index of the view that it was computed from, and base that of the last set sent; 0 before
	// the full set. epoch is reach's.
	version, base, epoch uint64
	// from is the least index of the full set.
	from uint64

	tasks map[string]taskMark
	// templates are those told, with the credentials that went along; nil = none did.
	templates map[templateKey]*swarmpb.RegistryAuth
	// uses counts the tasks of each template that have not ended.
	uses   map[templateKey]int
	config configMark
	// networks are those of the node's tasks.
	networks networkSet
}

type taskMark struct {
	template          templateKey
	desired           swarmpb.TaskState
	draining, drained bool
	// takes the volumes of the task that it replaces.
	takes     bool
	addresses *swarmpb.TaskAddresses
	// ended tasks are told of no more, until their row goes.
	ended bool
}

type templateKey struct {
	service string
	version uint64
}

func (k templateKey) compare(other templateKey) int {
	return cmp.Or(cmp.Compare(k.service, other.service), cmp.Compare(k.version, other.version))
}

type configMark struct {
	block, pool, prefix6 string
	number, port         uint32
	role                 swarmpb.NodeRole
	// keys are those of gossip, the primary one first, each behind its length.
	keys string
}

func newAssignment() *assignment {
	return &assignment{tasks: make(map[string]taskMark), templates: make(map[templateKey]*swarmpb.RegistryAuth), uses: make(map[templateKey]int)}
}

// advance brings the assignment to what reach holds and returns the changes in the parts in which they are sent: what all
// nodes are told alike, node configuration, how tasks are reached, templates, tasks, tasks to remove, templates to remove.
// Before the first call they are the full set. own is what has changed of the node itself. It is false when what
// was told before cannot be gone on from. Call with reach's lock held for reading.
func (a *assignment) advance(r *reach, nodeID string, role swarmpb.NodeRole, own owed) ([][]message, bool) {
	full, from := a.version == 0, a.version
	if !full && (a.epoch != r.epoch || from > r.view.Index()) {
		return nil, false
	}
	a.version, a.epoch = r.view.Index(), r.epoch
	networks := maps.Clone(a.networks)
	var shared, changes, tasks []message
	if own.config || full {
		changes = a.advanceConfig(r.view, nodeID, role, full)
	}
	if own.any() || full {
		networks = make(networkSet)
		tasks = a.advanceTasks(r, nodeID, own, networks)
	}
	if full {
		shared, changes = r.shared(), append(changes, r.beyondShared(networks)...)
	} else {
		missed, ok := r.since(from, a.networks, networks)
		if !ok {
			return nil, false
		}
		changes = append(changes, missed...)
	}
	a.networks = networks
	return [][]message{shared, append(changes, tasks...)}, true
}

func (a *assignment) advanceConfig(view *store.View, nodeID string, role swarmpb.NodeRole, full bool) []message {
	config := configOf(view, nodeID, role)
	if config == a.config && !full {
		return nil
	}
	a.config = config
	return []message{encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_NodeConfig{NodeConfig: &swarmpb.NodeConfig{
		UplinkBlock: config.block, FabricPool: config.pool, Role: config.role, GossipKeys: gossipKeys(view.Cluster()),
		Number: config.number, FabricPrefix6: config.prefix6, DataPathPort: config.port}}})}
}

// advanceTasks brings tasks and templates to the view, and fills in the networks of the tasks.
func (a *assignment) advanceTasks(r *reach, nodeID string, own owed, networks networkSet) (changes []message) {
	var told, gone []message
	look := func(id string, task *swarmpb.Task) {
		before, known := a.tasks[id]
		mark := taskMark{}
		if task != nil {
			mark = markOf(r, task, before)
		}
		switch {
		case task == nil, !mark.ended && r.view.Template(mark.template.service, mark.template.version) == nil:
			// Apply keeps a template that a task refers to; without it the worker could do nothing with the task.
			if known {
				a.forget(id)
				gone = append(gone, encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveTask{RemoveTask: id}}))
			}
		case known || !mark.ended:
			a.note(id, mark)
			if !mark.ended && (!known || before != mark) {
				told = append(told, taskChange(r.view, task, mark))
			}
		}
	}
	for _, id := range a.changed(r.view, nodeID, own) {
		task := r.view.Task(id)
		if task != nil && r.view.NodeID(id) != nodeID {
			task = nil
		}
		look(id, task)
	}
	changes = append(a.advanceTemplates(r.view, networks), told...)
	changes = append(changes, gone...)
	return append(changes, a.removeTemplates()...)
}

// changed are the IDs of the tasks to look at, in order.
func (a *assignment) changed(view *store.View, nodeID string, own owed) []string {
	ids := slices.Clone(own.tasks)
	if own.all || a.networks == nil {
		for task := range view.TasksOn(nodeID) {
			ids = append(ids, task.GetId())
		}
		ids = slices.AppendSeq(ids, maps.Keys(a.tasks))
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func (a *assignment) note(id string, mark taskMark) {
	a.forget(id)
	a.tasks[id] = mark
	if !mark.ended {
		a.uses[mark.template]++
	}
}

func (a *assignment) forget(id string) {
	before, known := a.tasks[id]
	if !known {
		return
	}
	delete(a.tasks, id)
	if before.ended {
		return
	}
	if a.uses[before.template]--; a.uses[before.template] == 0 {
		delete(a.uses, before.template)
	}
}

// advanceTemplates tells of the templates in use that are new, or have other credentials, and fills in their networks.
func (a *assignment) advanceTemplates(view *store.View, networks networkSet) (changes []message) {
	for _, key := range slices.SortedFunc(maps.Keys(a.uses), templateKey.compare) {
		template := view.Template(key.service, key.version)
		auth := view.Service(key.service).RegistryAuthFor(template.GetSpec().GetContainer().GetImage())
		if had, ok := a.templates[key]; !ok || had != auth && !proto.Equal(had, auth) {
			changes = append(changes, templateChange(template, auth))
		}
		a.templates[key] = auth
		for _, network := range template.GetSpec().GetNetworks() {
			networks[network.GetNetwork()] = nil
		}
	}
	return changes
}

// markOf is what a node must know of a task. Once it has been told that it may stop the task at once, that is final; so is
// whose volumes the task takes over, as the other one's row may go first.
func markOf(r *reach, task *swarmpb.Task, before taskMark) taskMark {
	view := r.view
	mark := taskMark{
		template:  templateKey{task.GetServiceId(), task.GetTemplateVersion()},
		desired:   task.GetDesiredState(),
		draining:  task.GetDraining(),
		addresses: view.Addresses(task.GetId()),
		ended:     view.Observed(task.GetId()).Ended(),
		takes:     before.takes || takesVolumes(view, task),
	}
	if !mark.ended {
		stopping := !before.desired.Wanted()
		mark.drained = before.drained && stopping || isDrained(view, task, r.isReached(task.GetServiceId()))
	}
	return mark
}

// takesVolumes tells whether a task takes over the anonymous volumes of the one that it replaces: in place, on the same node.
func takesVolumes(view *store.View, task *swarmpb.Task) bool {
	node := view.NodeID(task.GetId())
	return task.GetSameNode() && task.GetReplaces() != "" && node != "" && view.NodeID(task.GetReplaces()) == node
}

func (a *assignment) removeTemplates() (changes []message) {
	for _, key := range slices.SortedFunc(maps.Keys(a.templates), templateKey.compare) {
		if a.uses[key] == 0 {
			delete(a.templates, key)
			changes = append(changes, encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveTemplate{
				RemoveTemplate: &swarmpb.TemplateKey{ServiceId: key.service, Version: key.version}}}))
		}
	}
	return changes
}

func taskChange(view *store.View, task *swarmpb.Task, mark taskMark) message {
	return encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Task{Task: &swarmpb.AssignedTask{
		Id:              task.GetId(),
		ServiceId:       task.GetServiceId(),
		ServiceName:     view.Service(task.GetServiceId()).GetSpec().GetName(),
		Slot:            task.GetSlot(),
		TemplateVersion: task.GetTemplateVersion(),
		DesiredState:    task.GetDesiredState(),
		StartNotBefore:  task.GetStartNotBefore(),
		Replaces:        task.GetReplaces(),
		Draining:        task.GetDraining(),
		ObservedState:   view.Observed(task.GetId()),
		Networks:        mark.addresses.GetNetworks(),
		Drained:         mark.drained,
		TakesVolumes:    mark.takes,
		Global:          task.GetNodeId() != "",
		Generic:         view.Placement(task.GetId()).GetGeneric(),
	}}})
}

func templateChange(t *swarmpb.Template, auth *swarmpb.RegistryAuth) message {
	return encode(&swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Template{Template: &swarmpb.AssignedTemplate{
		ServiceId:    t.GetServiceId(),
		Version:      t.GetVersion(),
		Spec:         t.GetSpec(),
		HostPorts:    t.GetHostPorts(),
		RegistryAuth: auth,
	}}})
}

func configOf(view *store.View, nodeID string, role swarmpb.NodeRole) configMark {
	spec := view.Cluster().GetSpec()
	config := configMark{
		pool: cmp.Or(spec.GetFabricPool(), swarmpb.DefaultFabricPool), role: role, block: uplinkBlock(view, nodeID),
		prefix6: fabricPrefix6(view.Cluster().GetId()), port: cmp.Or(spec.GetDataPathPort(), swarmpb.DefaultDataPathPort),
	}
	config.number = nodeNumber(config.pool, config.block)
	var keys []byte
	for _, key := range gossipKeys(view.Cluster()) {
		keys = append(binary.AppendUvarint(keys, uint64(len(key))), key...)
	}
	config.keys = string(keys)
	return config
}

// gossipKeys are the cluster's, the primary one first.
func gossipKeys(cluster *swarmpb.Cluster) [][]byte {
	var first, rest [][]byte
	for _, key := range cluster.GetGossipKeys() {
		if key.GetPrimary() {
			first = append(first, key.GetKey())
		} else {
			rest = append(rest, key.GetKey())
		}
	}
	return append(first, rest...)
}
