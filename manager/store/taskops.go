package store

import (
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func (t *tx) putTask(row *swarmpb.Task) *refusal {
	key := swarmpb.TaskKey(row.Id)
	switch {
	case row.ServiceId == "":
		return invalid("%s: it names no service", key.Describe())
	case row.Slot == 0:
		return invalid("%s: it has no slot", key.Describe())
	case !row.DesiredState.Known():
		return invalid("%s: its desired state %d is not known", key.Describe(), row.DesiredState)
	case row.Replaces == row.Id:
		return invalid("%s: it replaces itself", key.Describe())
	}
	if known := t.taskRow(row.Id); known != nil {
		old := known.task
		if !sameTask(old, row) {
			return reused(key)
		}
		return t.changeTask(known, max(old.DesiredState, row.DesiredState), old.Draining || row.Draining)
	}
	service := t.Service(row.ServiceId)
	if service == nil {
		return gone(swarmpb.ServiceKey(row.ServiceId))
	}
	if t.Template(row.ServiceId, row.TemplateVersion) == nil {
		return gone(swarmpb.TemplateRowKey(row.ServiceId, row.TemplateVersion))
	}
	t.shareTask(row, service)
	row.Meta = t.stamp(nil)
	row = compactTask(row)
	t.write(swarmpb.Table_TABLE_TASK, Key{ID: row.Id}, nil, row)
	return nil
}

// sameTask compares what never changes in a task.
func sameTask(a, b *swarmpb.Task) bool {
	return a.ServiceId == b.ServiceId && a.Slot == b.Slot && a.NodeId == b.NodeId && a.TemplateVersion == b.TemplateVersion &&
		a.Replaces == b.Replaces && a.Attempt == b.Attempt && a.StartNotBefore == b.StartNotBefore &&
		a.Beside == b.Beside && a.SameNode == b.SameNode && a.Run == b.Run && a.Move == b.Move
}

// changeTask writes the only fields of a task that change.
func (t *tx) changeTask(known *taskRow, desired swarmpb.TaskState, draining bool) *refusal {
	old := known.task
	if old.DesiredState == desired && old.Draining == draining {
		return nil
	}
	row := compactTask(old)
	row.DesiredState, row.Draining = desired, draining
	if row.Meta == nil { // as a snapshot may have it
		row.Meta = t.stamp(nil)
	}
	row.Meta.Version, row.Meta.UpdatedAt = t.index, t.now
	t.writePart(swarmpb.Table_TABLE_TASK, known, old, row)
	return nil
}

// compactTask is a copy of a task that is one object with its Meta: of a million tasks, that is a million objects
// fewer for the collector to find. What a later version may know of either stays.
func compactTask(task *swarmpb.Task) *swarmpb.Task {
	both := new(struct {
		task swarmpb.Task
		meta swarmpb.Meta
	})
	row, meta := &both.task, &both.meta
	row.Id, row.ServiceId, row.Slot, row.NodeId = task.Id, task.ServiceId, task.Slot, task.NodeId
	row.TemplateVersion, row.Replaces, row.Attempt = task.TemplateVersion, task.Replaces, task.Attempt
	row.StartNotBefore, row.Beside, row.SameNode, row.Run, row.Move = task.StartNotBefore, task.Beside, task.SameNode, task.Run, task.Move
	row.DesiredState, row.Draining = task.DesiredState, task.Draining
	keepUnknown(row, task)
	if task.Meta != nil {
		row.Meta = meta
		meta.Version, meta.CreatedAt, meta.UpdatedAt = task.Meta.Version, task.Meta.CreatedAt, task.Meta.UpdatedAt
		keepUnknown(meta, task.Meta)
	}
	return row
}

func keepUnknown(to, from proto.Message) {
	if unknown := from.ProtoReflect().GetUnknown(); len(unknown) > 0 {
		to.ProtoReflect().SetUnknown(unknown)
	}
}

func (t *tx) setTaskState(op *swarmpb.SetTaskState) *refusal {
	key := swarmpb.TaskKey(op.GetTaskId())
	if refused := checkKey(key); refused != nil {
		return refused
	}
	if op.DesiredState != swarmpb.TaskState_TASK_STATE_UNSPECIFIED && !op.DesiredState.Known() {
		return invalid("%s: the desired state %d is not known", key.Describe(), op.DesiredState)
	}
	known := t.taskRow(op.TaskId)
	if known == nil {
		return gone(key)
	}
	return t.changeTask(known, max(known.task.DesiredState, op.DesiredState), op.Draining)
}

// namedService is the service that an operation names.
func (t *tx) namedService(id string) (*swarmpb.Service, *refusal) {
	if refused := checkKey(swarmpb.ServiceKey(id)); refused != nil {
		return nil, refused
	}
	service := t.Service(id)
	if service == nil {
		return nil, gone(swarmpb.ServiceKey(id))
	}
	return service, nil
}

func (t *tx) advanceAttempt(op *swarmpb.AdvanceAttempt) *refusal {
	service, refused := t.namedService(op.GetServiceId())
	if refused != nil {
		return refused
	}
	old := t.ServiceProgress(op.ServiceId)
	if old == nil {
		row := &swarmpb.ServiceProgress{ServiceId: service.Id, Attempt: op.Attempt, Meta: t.stamp(nil)}
		t.write(swarmpb.Table_TABLE_SERVICE_PROGRESS, Key{ID: service.Id}, nil, row)
		return nil
	}
	if op.Attempt <= old.Attempt {
		return nil
	}
	row := swarmpb.Clone(old)
	row.Attempt, row.Meta = op.Attempt, t.stamp(old.Meta)
	t.write(swarmpb.Table_TABLE_SERVICE_PROGRESS, Key{ID: service.Id}, old, row)
	return nil
}

// noteMoves notes that tasks of a service are told to move, or that a request for balance is done with.
func (t *tx) noteMoves(op *swarmpb.NoteMoves) *refusal {
	service, refused := t.namedService(op.GetServiceId())
	if refused != nil {
		return refused
	}
	old := t.ServiceProgress(op.ServiceId)
	if op.MovedAt != 0 && old.GetMovedAt() != op.MovedBefore {
		return conflict(swarmpb.ServiceProgressKey(op.ServiceId), "tasks of service %s were told to move meanwhile", op.ServiceId)
	}
	row := &swarmpb.ServiceProgress{ServiceId: service.Id}
	if old != nil {
		row = swarmpb.Clone(old)
	}
	if op.BalanceSlot != 0 {
		row.BalanceSlot = op.BalanceSlot
	}
	if op.MovedAt != 0 {
		row.MovedAt = max(op.MovedAt, old.GetMovedAt()+1) // also where the clock of the manager before was ahead
	}
	row.BalancedAt = max(op.BalancedAt, row.BalancedAt)
	row.Meta = t.stamp(old.GetMeta())
	return t.replace(swarmpb.Table_TABLE_SERVICE_PROGRESS, Key{ID: service.Id}, row)
}

// keepMoves keeps what the row before says of moves, unless this one knows of later ones.
func keepMoves(row, old *swarmpb.ServiceProgress) {
	if old.GetMovedAt() >= row.MovedAt {
		row.MovedAt, row.BalanceSlot = old.GetMovedAt(), old.GetBalanceSlot()
	}
	row.BalancedAt = max(row.BalancedAt, old.GetBalancedAt())
}

// putPlacement gives a task its node, or says why there is none. A placed task never moves: it is replaced.
func (t *tx) putPlacement(row *swarmpb.TaskPlacement) *refusal {
	task := t.taskRow(row.TaskId)
	if task == nil {
		return gone(swarmpb.TaskKey(row.TaskId))
	}
	if node := task.placement.GetNodeId(); node != "" && node != row.NodeId {
		return conflict(swarmpb.TaskPlacementKey(row.TaskId), "task %s is placed on node %s already", row.TaskId, node)
	}
	if row.NodeId != "" && t.Node(row.NodeId) == nil {
		return gone(swarmpb.NodeKey(row.NodeId))
	}
	if row.NodeId != "" && task.observed() == swarmpb.TaskState_TASK_STATE_NEW {
		return conflict(swarmpb.TaskAddressesKey(row.TaskId), "task %s has no addresses yet", row.TaskId)
	}
	t.sharePart(task, row)
	row.Version = t.index
	t.writePart(swarmpb.Table_TABLE_TASK_PLACEMENT, task, message(task.placement), row)
	return nil
}

func (t *tx) putAddresses(row *swarmpb.TaskAddresses) *refusal {
	task := t.taskRow(row.TaskId)
	if task == nil {
		return gone(swarmpb.TaskKey(row.TaskId))
	}
	if task.observed().Ended() {
		return conflict(swarmpb.TaskStatusKey(row.TaskId), "task %s has ended", row.TaskId)
	}
	t.sharePart(task, row)
	row.Version = t.index
	t.writePart(swarmpb.Table_TABLE_TASK_ADDRESSES, task, message(task.addresses), row)
	return nil
}

// mergeStatus takes in what a worker saw, unless it is older than what is known.
func (t *tx) mergeStatus(row *swarmpb.TaskStatus) *refusal {
	if refused := checkKey(swarmpb.TaskStatusKey(row.GetTaskId())); refused != nil {
		return refused
	}
	if row.State < swarmpb.TaskState_TASK_STATE_ACCEPTED || !row.State.Known() {
		return invalid("status of task %s: state %d is not a worker's to report", row.TaskId, row.State)
	}
	task := t.taskRow(row.TaskId)
	if task == nil {
		return nil
	}
	old := task.status
	if old != nil && row.State < old.State {
		return nil
	}
	health := newerHealth(old.GetHealth(), row.Health)
	if old != nil && row.State == old.State && row.At < old.At {
		if health == old.Health {
			return nil
		}
		row = copyStatus(old)
	}
	row.Health = health
	row.DrainedAt = old.GetDrainedAt()
	// What the worker no longer names is still true: a container that has ended keeps its ID and address.
	if row.Container == nil {
		row.Container = old.GetContainer()
	}
	if row.Address == "" {
		row.Address = old.GetAddress()
	}
	if len(row.HostPorts) == 0 {
		row.HostPorts = old.GetHostPorts()
	}
	if old != nil && row.State == old.State && row.At == old.At {
		row.Version = old.Version
		if proto.Equal(old, row) {
			return nil
		}
	}
	t.sharePart(task, row)
	row.Version = t.index
	t.writePart(swarmpb.Table_TABLE_TASK_STATUS, task, message(old), row)
	return nil
}

// newerHealth is what probes said last, by their own time: a task's health changes either way while its state stays. What
// is taken in is bounded.
func newerHealth(old, row *swarmpb.HealthStatus) *swarmpb.HealthStatus {
	if row == nil || old != nil && row.At < old.At {
		return old
	}
	if len(row.Output) > MaxProbeOutput {
		end := MaxProbeOutput
		for end > 0 && !utf8.RuneStart(row.Output[end]) {
			end--
		}
		row.Output = strings.Clone(row.Output[:end])
	}
	if proto.Equal(row, old) {
		return old
	}
	return row
}

// copyStatus is a copy that shares what is never changed.
func copyStatus(old *swarmpb.TaskStatus) *swarmpb.TaskStatus {
	row := swarmpb.Clone(old)
	row.Container, row.Health = old.Container, old.Health
	return row
}

// deleteTask takes a task away with the rows beside it.
func (t *tx) deleteTask(row *taskRow) {
	key := Key{ID: row.task.Id}
	if row.status != nil {
		t.write(swarmpb.Table_TABLE_TASK_STATUS, key, row.status, nil)
	}
	if row.addresses != nil {
		t.write(swarmpb.Table_TABLE_TASK_ADDRESSES, key, row.addresses, nil)
	}
	if row.placement != nil {
		t.write(swarmpb.Table_TABLE_TASK_PLACEMENT, key, row.placement, nil)
	}
	t.write(swarmpb.Table_TABLE_TASK, key, row.task, nil)
}

// message is row as an interface that is nil when row is.
func message[T any, M interface {
	*T
	proto.Message
}](row M) proto.Message {
	if row == nil {
		return nil
	}
	return row
}
