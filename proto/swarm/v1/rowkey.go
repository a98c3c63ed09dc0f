package swarmpb

import (
	"fmt"
	"strconv"
)

// Key names the row; nil for a row without content.
func (x *Row) Key() *RowKey {
	switch row := x.GetRow().(type) {
	case *Row_Cluster:
		return ClusterKey(row.Cluster.GetId())
	case *Row_Node:
		return NodeKey(row.Node.GetId())
	case *Row_NodeStatus:
		return NodeStatusKey(row.NodeStatus.GetNodeId())
	case *Row_Service:
		return ServiceKey(row.Service.GetId())
	case *Row_Template:
		return TemplateRowKey(row.Template.GetServiceId(), row.Template.GetVersion())
	case *Row_ServiceProgress:
		return ServiceProgressKey(row.ServiceProgress.GetServiceId())
	case *Row_SlotProgress:
		return SlotProgressKey(row.SlotProgress.GetServiceId(), row.SlotProgress.GetSlot())
	case *Row_Task:
		return TaskKey(row.Task.GetId())
	case *Row_TaskPlacement:
		return TaskPlacementKey(row.TaskPlacement.GetTaskId())
	case *Row_TaskAddresses:
		return TaskAddressesKey(row.TaskAddresses.GetTaskId())
	case *Row_TaskStatus:
		return TaskStatusKey(row.TaskStatus.GetTaskId())
	case *Row_Allocation:
		return AllocationKey(row.Allocation.GetPool(), row.Allocation.GetAddress())
	case *Row_Alarm:
		return AlarmKey(row.Alarm.GetKind(), row.Alarm.GetObject())
	case *Row_Request:
		return &RowKey{Table: Table_TABLE_REQUEST, Id: row.Request.GetId()}
	case *Row_Network:
		return NetworkKey(row.Network.GetId())
	case *Row_NetworkProgress:
		return NetworkProgressKey(row.NetworkProgress.GetNetworkId())
	case *Row_ServiceEndpoint:
		return ServiceEndpointKey(row.ServiceEndpoint.GetServiceId())
	case *Row_ServiceRevision:
		return ServiceRevisionKey(row.ServiceRevision.GetServiceId(), row.ServiceRevision.GetRevision())
	case *Row_ServiceMetric:
		return ServiceMetricKey(row.ServiceMetric.GetServiceId())
	default:
		return nil
	}
}

// ID is the key as a map key: equal for equal keys alone.
func (x *RowKey) ID() string {
	id := x.GetId()
	b := make([]byte, 0, 32+len(id)+len(x.GetName()))
	b = strconv.AppendInt(b, int64(x.GetTable()), 10)
	b = append(b, '/')
	b = strconv.AppendUint(b, x.GetNumber(), 10)
	b = append(b, '/')
	// The length tells where the ID ends and the name begins.
	b = strconv.AppendInt(b, int64(len(id)), 10)
	b = append(b, '/')
	b = append(b, id...)
	return string(append(b, x.GetName()...))
}

// Describe names the row in an error: task 3k..., template 4 of service 9a...
func (x *RowKey) Describe() string {
	switch x.GetTable() {
	case Table_TABLE_TEMPLATE:
		return fmt.Sprintf("template %d of service %s", x.GetNumber(), x.GetId())
	case Table_TABLE_SERVICE_REVISION:
		return fmt.Sprintf("version %d of service %s", x.GetNumber(), x.GetId())
	case Table_TABLE_SLOT_PROGRESS:
		return fmt.Sprintf("slot %d of service %s", x.GetNumber(), x.GetId())
	case Table_TABLE_ALLOCATION:
		return fmt.Sprintf("address %s of pool %s", x.GetName(), x.GetId())
	case Table_TABLE_ALARM:
		return fmt.Sprintf("alarm %s of %q", x.GetId(), x.GetName())
	default:
		return x.GetTable().Name() + " " + x.GetId()
	}
}

// ClusterKey names the cluster's row.
func ClusterKey(id string) *RowKey { return &RowKey{Table: Table_TABLE_CLUSTER, Id: id} }

// NodeKey names a node's row.
func NodeKey(id string) *RowKey { return &RowKey{Table: Table_TABLE_NODE, Id: id} }

// NodeStatusKey names the row of what is seen of a node.
func NodeStatusKey(nodeID string) *RowKey {
	return &RowKey{Table: Table_TABLE_NODE_STATUS, Id: nodeID}
}

// ServiceKey names a service's row.
func ServiceKey(id string) *RowKey { return &RowKey{Table: Table_TABLE_SERVICE, Id: id} }

// TemplateRowKey names a template's row.
func TemplateRowKey(serviceID string, version uint64) *RowKey {
	return &RowKey{Table: Table_TABLE_TEMPLATE, Id: serviceID, Number: version}
}

// ServiceProgressKey names a service's progress row.
func ServiceProgressKey(serviceID string) *RowKey {
	return &RowKey{Table: Table_TABLE_SERVICE_PROGRESS, Id: serviceID}
}

// SlotProgressKey names a slot's progress row.
func SlotProgressKey(serviceID string, slot uint64) *RowKey {
	return &RowKey{Table: Table_TABLE_SLOT_PROGRESS, Id: serviceID, Number: slot}
}

// TaskKey names a task's row.
func TaskKey(id string) *RowKey { return &RowKey{Table: Table_TABLE_TASK, Id: id} }

// TaskPlacementKey names a task's placement row.
func TaskPlacementKey(taskID string) *RowKey {
	return &RowKey{Table: Table_TABLE_TASK_PLACEMENT, Id: taskID}
}

// TaskAddressesKey names a task's addresses row.
func TaskAddressesKey(taskID string) *RowKey {
	return &RowKey{Table: Table_TABLE_TASK_ADDRESSES, Id: taskID}
}

// TaskStatusKey names a task's status row.
func TaskStatusKey(taskID string) *RowKey {
	return &RowKey{Table: Table_TABLE_TASK_STATUS, Id: taskID}
}

// AllocationKey names the row of an address.
func AllocationKey(pool, address string) *RowKey {
	return &RowKey{Table: Table_TABLE_ALLOCATION, Id: pool, Name: address}
}

// AlarmKey names an alarm's row.
func AlarmKey(kind, object string) *RowKey {
	return &RowKey{Table: Table_TABLE_ALARM, Id: kind, Name: object}
}

// NetworkKey names a network's row.
func NetworkKey(id string) *RowKey { return &RowKey{Table: Table_TABLE_NETWORK, Id: id} }

// NetworkProgressKey names the row of what a network was given.
func NetworkProgressKey(networkID string) *RowKey {
	return &RowKey{Table: Table_TABLE_NETWORK_PROGRESS, Id: networkID}
}

// ServiceEndpointKey names the row of what a service was given.
func ServiceEndpointKey(serviceID string) *RowKey {
	return &RowKey{Table: Table_TABLE_SERVICE_ENDPOINT, Id: serviceID}
}

// ServiceRevisionKey names the row of a spec that a service has had.
func ServiceRevisionKey(serviceID string, revision uint64) *RowKey {
	return &RowKey{Table: Table_TABLE_SERVICE_REVISION, Id: serviceID, Number: revision}
}

// ServiceMetricKey names the row of what a service's canary metric says.
func ServiceMetricKey(serviceID string) *RowKey {
	return &RowKey{Table: Table_TABLE_SERVICE_METRIC, Id: serviceID}
}
