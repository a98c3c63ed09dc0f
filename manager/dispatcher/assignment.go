package dispatcher

import (
	"cmp"
	"encoding/binary"
	"iter"
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
	// the full set.
	version, base uint64

	tasks map[string]taskMark
	// templates are those told, with the credentials that went along; nil = none did.
	templates map[templateKey]*swarmpb.RegistryAuth
	config    configMark
}

type taskMark struct {
	template templateKey
	desired  swarmpb.TaskState
	draining bool
	// ended tasks are told of no more, until their row goes.
	ended bool
}

type templateKey struct {
	service string
	version uint64
}

type configMark struct {
	block, pool string
	role        swarmpb.NodeRole
	// keys are those of gossip, the primary one first, each behind its length.
	keys string
}

func newAssignment() *assignment {
	return &assignment{tasks: make(map[string]taskMark), templates: make(map[templateKey]*swarmpb.RegistryAuth)}
}

// advance brings the assignment to the view and returns the changes, in the order in which they are sent: node
// configuration, templates, tasks, tasks to remove, templates to remove. Before the first call the changes are
// the full set.
func (a *assignment) advance(view *store.View, nodeID string, role swarmpb.NodeRole) []*swarmpb.AssignmentChange {
	full := a.version == 0
	a.version = view.Index()
	var changes []*swarmpb.AssignmentChange

	if config := configOf(view, nodeID, role); full || config != a.config {
		a.config = config
		changes = append(changes, &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_NodeConfig{
			NodeConfig: &swarmpb.NodeConfig{
				UplinkBlock: config.block, FabricPool: config.pool, Role: config.role, GossipKeys: gossipKeys(view.Cluster())}}})
	}

	var tasks []*swarmpb.AssignmentChange
	needed := make(map[templateKey]struct{}, len(a.templates))
	seen := make(map[string]struct{}, len(a.tasks))
	for task := range view.TasksOn(nodeID) {
		mark := taskMark{
			template: templateKey{task.GetServiceId(), task.GetTemplateVersion()},
			desired:  task.GetDesiredState(),
			draining: task.GetDraining(),
			ended:    view.Observed(task.GetId()).Ended(),
		}
		before, told := a.tasks[task.GetId()]
		if !told && mark.ended {
			continue
		}
		if !mark.ended {
			template := view.Template(mark.template.service, mark.template.version)
			if template == nil {
				// Apply keeps a template that a task refers to; without it the worker could do nothing with the task.
				continue
			}
			if _, looked := needed[mark.template]; !looked {
				needed[mark.template] = struct{}{}
				auth := view.Service(mark.template.service).RegistryAuthFor(template.GetSpec().GetContainer().GetImage())
				if had, ok := a.templates[mark.template]; !ok || had != auth && !proto.Equal(had, auth) {
					changes = append(changes, templateChange(template, auth))
				}
				a.templates[mark.template] = auth
			}
		}
		seen[task.GetId()] = struct{}{}
		a.tasks[task.GetId()] = mark
		if !mark.ended && (!told || before != mark) {
			tasks = append(tasks, taskChange(view, task))
		}
	}
	changes = append(changes, tasks...)
	changes = append(changes, a.removeTasks(seen)...)
	return append(changes, a.removeTemplates(needed)...)
}

func (a *assignment) removeTasks(keep map[string]struct{}) []*swarmpb.AssignmentChange {
	var gone []string
	for id := range a.tasks {
		if _, ok := keep[id]; !ok {
			gone = append(gone, id)
		}
	}
	slices.Sort(gone)
	changes := make([]*swarmpb.AssignmentChange, 0, len(gone))
	for _, id := range gone {
		delete(a.tasks, id)
		changes = append(changes, &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveTask{RemoveTask: id}})
	}
	return changes
}

func (a *assignment) removeTemplates(keep map[templateKey]struct{}) []*swarmpb.AssignmentChange {
	var gone []templateKey
	for key := range a.templates {
		if _, ok := keep[key]; !ok {
			gone = append(gone, key)
		}
	}
	slices.SortFunc(gone, func(x, y templateKey) int {
		return cmp.Or(cmp.Compare(x.service, y.service), cmp.Compare(x.version, y.version))
	})
	changes := make([]*swarmpb.AssignmentChange, 0, len(gone))
	for _, key := range gone {
		delete(a.templates, key)
		changes = append(changes, &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_RemoveTemplate{
			RemoveTemplate: &swarmpb.TemplateKey{ServiceId: key.service, Version: key.version}}})
	}
	return changes
}

func taskChange(view *store.View, task *swarmpb.Task) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Task{Task: &swarmpb.AssignedTask{
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
	}}}
}

func templateChange(t *swarmpb.Template, auth *swarmpb.RegistryAuth) *swarmpb.AssignmentChange {
	return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Template{Template: &swarmpb.AssignedTemplate{
		ServiceId:    t.GetServiceId(),
		Version:      t.GetVersion(),
		Spec:         t.GetSpec(),
		HostPorts:    t.GetHostPorts(),
		RegistryAuth: auth,
	}}}
}

func configOf(view *store.View, nodeID string, role swarmpb.NodeRole) configMark {
	config := configMark{pool: view.Cluster().GetSpec().GetFabricPool(), role: role}
	for a := range view.AllocationsOf(nodeID) {
		if a.GetPool() == poolUplink && (config.block == "" || a.GetAddress() < config.block) {
			config.block = a.GetAddress()
		}
	}
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

// chunks cuts a set into messages of bounded size. A full set has at least one message; a set without changes
// otherwise has none.
func chunks(base, version uint64, changes []*swarmpb.AssignmentChange) iter.Seq[*swarmpb.AssignmentsResponse] {
	return func(yield func(*swarmpb.AssignmentsResponse) bool) {
		if len(changes) == 0 && base != 0 {
			return
		}
		for {
			n := fitting(changes, maxChunkChanges, func(c *swarmpb.AssignmentChange) int { return proto.Size(c) })
			chunk := &swarmpb.AssignmentsResponse{BaseVersion: base, Version: version, LastChunk: n == len(changes), Changes: changes[:n]}
			if changes = changes[n:]; !yield(chunk) || chunk.LastChunk {
				return
			}
		}
	}
}
