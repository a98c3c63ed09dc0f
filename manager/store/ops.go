package store

import (
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// apply makes one write.
func (t *tx) apply(write *swarmpb.Write) *refusal {
	switch op := write.GetOp().(type) {
	case *swarmpb.Write_Put:
		return t.put(op.Put)
	case *swarmpb.Write_Delete:
		return t.delete(op.Delete)
	case *swarmpb.Write_MergeStatus:
		return t.mergeStatus(op.MergeStatus)
	case *swarmpb.Write_SetTaskState:
		return t.setTaskState(op.SetTaskState)
	case *swarmpb.Write_AdvanceAttempt:
		return t.advanceAttempt(op.AdvanceAttempt)
	case *swarmpb.Write_RaiseAlarm:
		return t.raiseAlarm(op.RaiseAlarm)
	case *swarmpb.Write_SetDrained:
		return t.setDrained(op.SetDrained)
	case *swarmpb.Write_NoteMoves:
		return t.noteMoves(op.NoteMoves)
	default:
		return unknown("the proposal holds a write that this version does not know; upgrade this manager")
	}
}

func unknown(message string) *refusal {
	refused := invalid("%s", message)
	refused.alarm = AlarmUnknownOperation
	return refused
}

// put makes or replaces a row, by the rules of its table.
func (t *tx) put(row *swarmpb.Row) *refusal {
	if placement := row.GetTaskPlacement(); placement != nil {
		// The most frequent one: here the key stays on the stack.
		if refused := checkKey(swarmpb.TaskPlacementKey(placement.TaskId)); refused != nil {
			return refused
		}
		return t.putPlacement(placement)
	}
	if refused := checkKey(row.Key()); refused != nil {
		return refused
	}
	switch row := row.Row.(type) {
	case *swarmpb.Row_Cluster:
		return t.putCluster(row.Cluster)
	case *swarmpb.Row_Node:
		return t.putNode(row.Node)
	case *swarmpb.Row_NodeStatus:
		return t.putNodeStatus(row.NodeStatus)
	case *swarmpb.Row_Service:
		return t.putService(row.Service)
	case *swarmpb.Row_Template:
		return t.putTemplate(row.Template)
	case *swarmpb.Row_ServiceProgress:
		return t.putServiceProgress(row.ServiceProgress)
	case *swarmpb.Row_SlotProgress:
		return t.putSlotProgress(row.SlotProgress)
	case *swarmpb.Row_Task:
		return t.putTask(row.Task)
	case *swarmpb.Row_TaskAddresses:
		return t.putAddresses(row.TaskAddresses)
	case *swarmpb.Row_TaskStatus:
		return t.mergeStatus(row.TaskStatus)
	case *swarmpb.Row_Allocation:
		return t.putAllocation(row.Allocation)
	case *swarmpb.Row_Alarm:
		return t.putAlarm(row.Alarm)
	case *swarmpb.Row_Network:
		return t.putNetwork(row.Network)
	case *swarmpb.Row_NetworkProgress:
		return t.putNetworkProgress(row.NetworkProgress)
	case *swarmpb.Row_ServiceEndpoint:
		return t.putEndpoint(row.ServiceEndpoint)
	case *swarmpb.Row_ServiceRevision:
		return t.putRevision(row.ServiceRevision)
	case *swarmpb.Row_ServiceMetric:
		return t.putMetric(row.ServiceMetric)
	default:
		return invalid("put %s: only the store writes it", swarmpb.Table_TABLE_REQUEST.Name())
	}
}

// checkKey refuses what cannot name a row. key is nil for a row of a kind that this version does not know.
func checkKey(key *swarmpb.RowKey) *refusal {
	if key == nil {
		return unknown("the proposal holds a row that this version does not know; upgrade this manager")
	}
	if key.Id == "" {
		return invalid("%s: the ID is empty", key.Table.Name())
	}
	if len(key.Id) > MaxKeyLength || len(key.Name) > MaxKeyLength {
		return invalid("%s: its key is longer than %d bytes", key.Table.Name(), MaxKeyLength)
	}
	switch key.Table {
	case swarmpb.Table_TABLE_TEMPLATE, swarmpb.Table_TABLE_SLOT_PROGRESS, swarmpb.Table_TABLE_SERVICE_REVISION:
		if key.Number == 0 {
			return invalid("%s of service %s: numbers start from 1", key.Table.Name(), key.Id)
		}
	case swarmpb.Table_TABLE_ALLOCATION:
		if key.Name == "" {
			return invalid("allocation in pool %s: the address is empty", key.Id)
		}
	}
	return nil
}

// stamp is the Meta of a row written now.
func (t *tx) stamp(old *swarmpb.Meta) *swarmpb.Meta {
	meta := &swarmpb.Meta{Version: t.index, CreatedAt: t.now, UpdatedAt: t.now}
	if old != nil {
		meta.CreatedAt = old.CreatedAt
	}
	return meta
}

// replace writes a row that needs no more rules.
func (t *tx) replace(table swarmpb.Table, key Key, row proto.Message) *refusal {
	old, _, _ := t.get(table, key)
	t.write(table, key, old, row)
	return nil
}

func (t *tx) putCluster(row *swarmpb.Cluster) *refusal {
	if t.cluster != nil && t.cluster.Id != row.Id {
		return conflict(swarmpb.ClusterKey(t.cluster.Id), "this is cluster %s already", t.cluster.Id)
	}
	row.Meta = t.stamp(t.cluster.GetMeta())
	return t.replace(swarmpb.Table_TABLE_CLUSTER, Key{ID: row.Id}, row)
}

func (t *tx) putNode(row *swarmpb.Node) *refusal {
	row.Meta = t.stamp(t.Node(row.Id).GetMeta())
	return t.replace(swarmpb.Table_TABLE_NODE, Key{ID: row.Id}, row)
}

func (t *tx) putNodeStatus(row *swarmpb.NodeStatus) *refusal {
	node := t.Node(row.NodeId)
	if node == nil {
		return gone(swarmpb.NodeKey(row.NodeId))
	}
	row.NodeId = node.Id
	row.Meta = t.stamp(t.NodeStatus(row.NodeId).GetMeta())
	return t.replace(swarmpb.Table_TABLE_NODE_STATUS, Key{ID: row.NodeId}, row)
}

func (t *tx) putService(row *swarmpb.Service) *refusal {
	name := row.GetSpec().GetName()
	if name == "" {
		return invalid("service %s: it has no name", row.Id)
	}
	if other, taken := t.names.Get(name); taken && other != row.Id {
		return conflict(swarmpb.ServiceKey(other), "service name %q is taken by service %s", name, other)
	}
	row.Meta = t.stamp(t.Service(row.Id).GetMeta())
	return t.replace(swarmpb.Table_TABLE_SERVICE, Key{ID: row.Id}, row)
}

func (t *tx) putTemplate(row *swarmpb.Template) *refusal {
	key := Key{ID: row.ServiceId, Number: row.Version}
	if old := t.Template(row.ServiceId, row.Version); old != nil {
		if proto.Equal(old, row) {
			return nil
		}
		return reused(swarmpb.TemplateRowKey(key.ID, key.Number))
	}
	t.loose = append(t.loose, reference{service: row.ServiceId, version: row.Version})
	return t.replace(swarmpb.Table_TABLE_TEMPLATE, key, row)
}

func (t *tx) putServiceProgress(row *swarmpb.ServiceProgress) *refusal {
	service := t.Service(row.ServiceId)
	if service == nil {
		return gone(swarmpb.ServiceKey(row.ServiceId))
	}
	old := t.ServiceProgress(row.ServiceId)
	row.ServiceId = service.Id
	row.Attempt = max(row.Attempt, old.GetAttempt())
	// Who writes the update or a job's runs knows nothing of moves.
	keepMoves(row, old)
	row.Meta = t.stamp(old.GetMeta())
	return t.replace(swarmpb.Table_TABLE_SERVICE_PROGRESS, Key{ID: row.ServiceId}, row)
}

func (t *tx) putSlotProgress(row *swarmpb.SlotProgress) *refusal {
	service := t.Service(row.ServiceId)
	if service == nil {
		return gone(swarmpb.ServiceKey(row.ServiceId))
	}
	row.ServiceId = service.Id
	row.Meta = t.stamp(t.SlotProgress(row.ServiceId, row.Slot).GetMeta())
	return t.replace(swarmpb.Table_TABLE_SLOT_PROGRESS, Key{ID: row.ServiceId, Number: row.Slot}, row)
}

func (t *tx) putAllocation(row *swarmpb.Allocation) *refusal {
	old := t.Allocation(row.Pool, row.Address)
	if old.GetOwner() != "" && row.Owner != "" && old.Owner != row.Owner {
		return conflict(swarmpb.AllocationKey(row.Pool, row.Address), "address %s of pool %s is taken by %s",
			row.Address, row.Pool, old.Owner)
	}
	row.Version = t.index
	return t.replace(swarmpb.Table_TABLE_ALLOCATION, Key{ID: row.Pool, Name: row.Address}, row)
}

func (t *tx) putAlarm(row *swarmpb.Alarm) *refusal {
	if t.Alarm(row.Kind, row.Object) == nil && t.alarms.Len() >= MaxAlarms {
		t.raise(row.Kind, row.Object, row.Message)
		return nil
	}
	row.Version = t.index
	return t.replace(swarmpb.Table_TABLE_ALARM, Key{ID: row.Kind, Name: row.Object}, row)
}

func gone(key *swarmpb.RowKey) *refusal {
	return conflict(key, "%s is gone", key.Describe())
}

func reused(key *swarmpb.RowKey) *refusal {
	refused := conflict(key, "%s exists with other content: an ID never returns", key.Describe())
	refused.alarm, refused.object = AlarmIDConflict, key.Id
	return refused
}

// delete takes a row away, with the rows that cannot be without it. A row that is not there is no error.
func (t *tx) delete(key *swarmpb.RowKey) *refusal {
	if key == nil {
		return invalid("delete: the key is empty")
	}
	at := keyOf(key)
	old, _, known := t.get(key.Table, at)
	if !known {
		return unknown("the proposal deletes from a table that this version does not know; upgrade this manager")
	}
	if old == nil {
		return nil
	}
	switch key.Table {
	case swarmpb.Table_TABLE_CLUSTER:
		return invalid("delete cluster: its row stays for as long as the cluster does")
	case swarmpb.Table_TABLE_TASK_PLACEMENT, swarmpb.Table_TABLE_TASK_STATUS:
		return invalid("delete %s: it goes with its task", key.Describe())
	case swarmpb.Table_TABLE_TEMPLATE:
		return invalid("delete %s: it goes when nothing refers to it", key.Describe())
	case swarmpb.Table_TABLE_SERVICE_REVISION:
		return invalid("delete %s: it goes with its service, or when it is old", key.Describe())
	case swarmpb.Table_TABLE_NODE:
		if status := t.NodeStatus(key.Id); status != nil {
			t.write(swarmpb.Table_TABLE_NODE_STATUS, at, status, nil)
		}
	case swarmpb.Table_TABLE_SERVICE:
		return t.deleteService(old.(*swarmpb.Service))
	case swarmpb.Table_TABLE_TASK:
		t.deleteTask(t.taskRow(key.Id))
		return nil
	case swarmpb.Table_TABLE_NETWORK:
		return t.deleteNetwork(old.(*swarmpb.Network))
	}
	t.write(key.Table, at, old, nil)
	return nil
}

// deleteService refuses while tasks are there: they hold containers somewhere.
func (t *tx) deleteService(service *swarmpb.Service) *refusal {
	for task := range t.TasksOf(service.Id) {
		return conflict(swarmpb.TaskKey(task.Id), "service %s still has tasks, for example %s", service.Spec.GetName(), task.Id)
	}
	if progress := t.ServiceProgress(service.Id); progress != nil {
		t.write(swarmpb.Table_TABLE_SERVICE_PROGRESS, Key{ID: service.Id}, progress, nil)
	}
	var slots []*swarmpb.SlotProgress
	for slot := range t.SlotsOf(service.Id) {
		slots = append(slots, slot)
	}
	for _, slot := range slots {
		t.write(swarmpb.Table_TABLE_SLOT_PROGRESS, Key{ID: service.Id, Number: slot.Slot}, slot, nil)
	}
	if endpoint := t.ServiceEndpoint(service.Id); endpoint != nil {
		t.write(swarmpb.Table_TABLE_SERVICE_ENDPOINT, Key{ID: service.Id}, endpoint, nil)
	}
	if metric := t.ServiceMetric(service.Id); metric != nil {
		t.write(swarmpb.Table_TABLE_SERVICE_METRIC, Key{ID: service.Id}, metric, nil)
	}
	t.dropRevisions(service.Id, 0)
	t.write(swarmpb.Table_TABLE_SERVICE, Key{ID: service.Id}, service, nil)
	return nil
}

func (t *tx) raiseAlarm(op *swarmpb.RaiseAlarm) *refusal {
	if refused := checkKey(swarmpb.AlarmKey(op.GetKind(), op.GetObject())); refused != nil {
		return refused
	}
	t.raise(op.Kind, op.Object, op.Message)
	return nil
}

// raise makes an alarm or counts it up.
func (t *tx) raise(kind, object, message string) {
	old := t.Alarm(kind, object)
	if old == nil && t.alarms.Len() >= MaxAlarms {
		kind, object, message = AlarmOverflow, "", "there are more alarms than are kept; end the causes of those shown"
		old = t.Alarm(kind, object)
	}
	alarm := &swarmpb.Alarm{Kind: kind, Object: object, Version: t.index, Message: message, Since: t.now, Count: 1}
	if old != nil {
		alarm.Since, alarm.Count = old.Since, old.Count+1
		t.write(swarmpb.Table_TABLE_ALARM, Key{ID: kind, Name: object}, old, alarm)
		return
	}
	t.write(swarmpb.Table_TABLE_ALARM, Key{ID: kind, Name: object}, nil, alarm)
}
