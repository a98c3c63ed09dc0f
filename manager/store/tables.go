package store

import (
	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// tx is the version being made.
type tx struct {
	*View
	strings *interner
	// now is the proposal's clock.
	now int64
	// changes are those of the whole entry; a refused proposal takes its own back.
	changes []Change
	// loose are the templates that the proposal wrote or that lost their last reference in it.
	loose []reference
}

// write puts row (nil: deletes) in place of old, and records the change.
func (t *tx) write(table swarmpb.Table, key Key, old, row proto.Message) {
	t.set(table, key, row)
	t.record(table, key, old, row)
}

// writePart is write for one of the rows of a task that is there, without looking the task up once more.
func (t *tx) writePart(table swarmpb.Table, task *taskRow, old, row proto.Message) {
	t.setTaskPart(table, task, row)
	t.record(table, Key{ID: task.task.Id}, old, row)
}

func (t *tx) record(table swarmpb.Table, key Key, old, row proto.Message) {
	t.changes = append(t.changes, Change{Table: table, Key: key, Old: old, New: row, Index: t.index})
}

// undo takes back what was written after the mark.
func (t *tx) undo(mark int) {
	for i := len(t.changes) - 1; i >= mark; i-- {
		c := t.changes[i]
		t.set(c.Table, c.Key, c.Old)
		t.changes[i] = Change{}
	}
	t.changes = t.changes[:mark]
	t.loose = t.loose[:0]
}

// set stores a row of the right type, or deletes it when row is nil, with everything derived from it.
func (t *tx) set(table swarmpb.Table, key Key, row proto.Message) {
	switch table {
	case swarmpb.Table_TABLE_CLUSTER:
		t.cluster, _ = row.(*swarmpb.Cluster)
	case swarmpb.Table_TABLE_NODE:
		setValue(t.nodes, key.ID, row)
	case swarmpb.Table_TABLE_NODE_STATUS:
		setValue(t.nodeStatuses, key.ID, row)
	case swarmpb.Table_TABLE_SERVICE:
		t.setService(key.ID, row)
	case swarmpb.Table_TABLE_TEMPLATE:
		t.setTemplate(key, row)
	case swarmpb.Table_TABLE_SERVICE_PROGRESS:
		t.setProgress(key.ID, row)
	case swarmpb.Table_TABLE_SLOT_PROGRESS:
		setItem(t.slots, &swarmpb.SlotProgress{ServiceId: key.ID, Slot: key.Number}, row)
	case swarmpb.Table_TABLE_TASK, swarmpb.Table_TABLE_TASK_PLACEMENT, swarmpb.Table_TABLE_TASK_ADDRESSES,
		swarmpb.Table_TABLE_TASK_STATUS:
		t.setTaskPart(table, t.taskRow(key.ID), row)
	case swarmpb.Table_TABLE_ALLOCATION:
		next, _ := row.(*swarmpb.Allocation)
		t.setAllocation(t.Allocation(key.ID, key.Name), next)
		setItem(t.allocations, &swarmpb.Allocation{Pool: key.ID, Address: key.Name}, row)
	case swarmpb.Table_TABLE_ALARM:
		setItem(t.alarms, &swarmpb.Alarm{Kind: key.ID, Object: key.Name}, row)
	case swarmpb.Table_TABLE_NETWORK:
		t.setNetwork(key.ID, row)
	case swarmpb.Table_TABLE_NETWORK_PROGRESS:
		setValue(t.networkProgress, key.ID, row)
	case swarmpb.Table_TABLE_SERVICE_ENDPOINT:
		setValue(t.endpoints, key.ID, row)
	case swarmpb.Table_TABLE_SERVICE_REVISION:
		t.setRevision(key, row)
	case swarmpb.Table_TABLE_SERVICE_METRIC:
		setValue(t.metrics, key.ID, row)
	}
}

func setValue[V proto.Message](m *btree.Map[string, V], id string, row proto.Message) {
	if row == nil {
		m.Delete(id)
		return
	}
	m.Set(id, row.(V))
}

func setItem[V proto.Message](tree *btree.BTreeG[V], pivot V, row proto.Message) {
	if row == nil {
		tree.Delete(pivot)
		return
	}
	tree.Set(row.(V))
}

func (t *tx) setTemplate(key Key, row proto.Message) {
	if row == nil {
		t.attach(t.Template(key.ID, key.Number), false)
		t.templates.Delete(templateItem{service: key.ID, version: key.Number})
		return
	}
	template := row.(*swarmpb.Template)
	t.attach(template, true)
	t.templates.Set(templateItem{template.ServiceId, template.Version, template})
}

func (t *tx) setNetwork(id string, row proto.Message) {
	if old := t.Network(id); old != nil {
		t.networkNames.Delete(old.GetSpec().GetName())
	}
	setValue(t.networks, id, row)
	if network, ok := row.(*swarmpb.Network); ok {
		t.networkNames.Set(network.GetSpec().GetName(), id)
	}
}

func (t *tx) setService(id string, row proto.Message) {
	if old := t.Service(id); old != nil {
		t.names.Delete(old.GetSpec().GetName())
		t.refer(id, old.TemplateVersion, -1)
		t.refer(id, old.PreviousTemplateVersion, -1)
	}
	setValue(t.services, id, row)
	if service, ok := row.(*swarmpb.Service); ok {
		t.names.Set(service.GetSpec().GetName(), id)
		t.refer(id, service.TemplateVersion, +1)
		t.refer(id, service.PreviousTemplateVersion, +1)
	}
}

func (t *tx) setProgress(serviceID string, row proto.Message) {
	for _, version := range rolloutTemplates(t.ServiceProgress(serviceID)) {
		t.refer(serviceID, version, -1)
	}
	setValue(t.progress, serviceID, row)
	progress, _ := row.(*swarmpb.ServiceProgress)
	for _, version := range rolloutTemplates(progress) {
		t.refer(serviceID, version, +1)
	}
}

// rolloutTemplate is the template that a service goes to, or stays at, by its progress rather than by its spec; 0
// when there is none. After an update that was rolled back because it failed the spec still names the failed
// template: the good one must outlive its tasks, or the service would come back to the failed one.
func rolloutTemplate(progress *swarmpb.ServiceProgress) uint64 {
	update := progress.GetUpdate()
	switch update.GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_UNSPECIFIED, swarmpb.UpdateState_UPDATE_STATE_COMPLETED:
		return 0
	case swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED:
		if update.GetFailedTemplateVersion() == 0 {
			return 0
		}
	}
	return update.GetTemplateVersion()
}

// rolloutTemplates are those that a service's progress needs, 0 for none: rolloutTemplate, and beside it that of the
// old set, which new tasks of that set are made from for as long as there are two.
func rolloutTemplates(progress *swarmpb.ServiceProgress) [2]uint64 {
	needed := [2]uint64{rolloutTemplate(progress), 0}
	if update := progress.GetUpdate(); update.Sets() {
		needed[1] = update.GetStableTemplateVersion()
	}
	return needed
}

// setTaskPart sets one of the rows of a task, whose rows are old now. The others are there only as long as the
// task's own row is.
func (t *tx) setTaskPart(table swarmpb.Table, old *taskRow, row proto.Message) {
	next := new(taskRow)
	if old != nil {
		*next = *old
	}
	switch table {
	case swarmpb.Table_TABLE_TASK:
		if row == nil {
			t.setTaskRow(old, nil)
			return
		}
		next.task = row.(*swarmpb.Task)
		if old == nil {
			next.ordinal = t.rows.take(t.index)
			next.lacks = t.lacks(next.task, nil)
		}
	case swarmpb.Table_TABLE_TASK_PLACEMENT:
		next.placement, _ = row.(*swarmpb.TaskPlacement)
	case swarmpb.Table_TABLE_TASK_ADDRESSES:
		next.addresses, _ = row.(*swarmpb.TaskAddresses)
		next.lacks = t.lacks(next.task, next.addresses)
	case swarmpb.Table_TABLE_TASK_STATUS:
		next.status, _ = row.(*swarmpb.TaskStatus)
	}
	t.setTaskRow(old, next)
}

// get is the row under a key and its version; nil and 0 when there is none. known is false for a table that
// holds no rows of its own in this version.
func (v *View) get(table swarmpb.Table, key Key) (row proto.Message, version uint64, known bool) {
	switch table {
	case swarmpb.Table_TABLE_CLUSTER:
		if v.cluster != nil && (key.ID == "" || key.ID == v.cluster.Id) {
			return v.cluster, v.cluster.GetMeta().GetVersion(), true
		}
	case swarmpb.Table_TABLE_NODE:
		return found(v.Node(key.ID))
	case swarmpb.Table_TABLE_NODE_STATUS:
		return found(v.NodeStatus(key.ID))
	case swarmpb.Table_TABLE_SERVICE:
		return found(v.Service(key.ID))
	case swarmpb.Table_TABLE_TEMPLATE:
		// Written once, so that its number is its version.
		if template := v.Template(key.ID, key.Number); template != nil {
			return template, template.Version, true
		}
	case swarmpb.Table_TABLE_SERVICE_PROGRESS:
		return found(v.ServiceProgress(key.ID))
	case swarmpb.Table_TABLE_SLOT_PROGRESS:
		return found(v.SlotProgress(key.ID, key.Number))
	case swarmpb.Table_TABLE_TASK:
		return found(v.Task(key.ID))
	case swarmpb.Table_TABLE_TASK_PLACEMENT:
		if placement := v.Placement(key.ID); placement != nil {
			return placement, placement.Version, true
		}
	case swarmpb.Table_TABLE_TASK_ADDRESSES:
		if addresses := v.Addresses(key.ID); addresses != nil {
			return addresses, addresses.Version, true
		}
	case swarmpb.Table_TABLE_TASK_STATUS:
		if status := v.Status(key.ID); status != nil {
			return status, status.Version, true
		}
	case swarmpb.Table_TABLE_ALLOCATION:
		if allocation := v.Allocation(key.ID, key.Name); allocation != nil {
			return allocation, allocation.Version, true
		}
	case swarmpb.Table_TABLE_ALARM:
		if alarm := v.Alarm(key.ID, key.Name); alarm != nil {
			return alarm, alarm.Version, true
		}
	case swarmpb.Table_TABLE_NETWORK:
		return found(v.Network(key.ID))
	case swarmpb.Table_TABLE_NETWORK_PROGRESS:
		return found(v.NetworkProgress(key.ID))
	case swarmpb.Table_TABLE_SERVICE_ENDPOINT:
		return found(v.ServiceEndpoint(key.ID))
	case swarmpb.Table_TABLE_SERVICE_REVISION:
		// Written once, so that its number is its version.
		if revision := v.ServiceRevision(key.ID, key.Number); revision != nil {
			return revision, revision.Revision, true
		}
	case swarmpb.Table_TABLE_SERVICE_METRIC:
		return found(v.ServiceMetric(key.ID))
	default:
		return nil, 0, false
	}
	return nil, 0, true
}

// found is the answer of get for a row with Meta.
func found[T any, M interface {
	*T
	proto.Message
	GetMeta() *swarmpb.Meta
}](row M) (proto.Message, uint64, bool) {
	if row == nil {
		return nil, 0, true
	}
	return row, row.GetMeta().GetVersion(), true
}
