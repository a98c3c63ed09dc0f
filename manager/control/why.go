package control

import (
	"fmt"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// history says why a task was made elsewhere than the one before it, or why it had to go; empty for most.
func history(view *store.View, task *swarmpb.Task) string {
	if to := gaveWayTo(view, task); to != "" {
		return "gave way to " + to
	}
	if task.GetMove() != swarmpb.MoveReason_MOVE_REASON_UNSPECIFIED {
		from := view.NodeID(task.GetReplaces())
		return "moved from " + nodeText(view, from) + ": " + reason(view, from, task.GetMove())
	}
	for other := range view.TasksIn(task.GetServiceId(), task.GetSlot()) {
		if to := view.NodeID(other.GetId()); other.GetReplaces() == task.GetId() && other.GetMove() != swarmpb.MoveReason_MOVE_REASON_UNSPECIFIED && to != "" {
			verb := "moves to "
			if view.Observed(task.GetId()).Ended() {
				verb = "moved to "
			}
			return verb + nodeText(view, to) + ": " + reason(view, view.NodeID(task.GetId()), other.GetMove())
		}
	}
	return ""
}

// nodeText is a node as users know it, also one that nothing is known of any more.
func nodeText(view *store.View, id string) string {
	if id == "" {
		return "another node"
	}
	return view.NodeName(id)
}

// reason is why a task is, or was, to leave a node.
func reason(view *store.View, from string, why swarmpb.MoveReason) string {
	switch why {
	case swarmpb.MoveReason_MOVE_REASON_DRAIN:
		if availability(view.Node(from)) == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN {
			return "the node is drained"
		}
		return "the node was drained"
	case swarmpb.MoveReason_MOVE_REASON_CONSTRAINT:
		return "the node does not meet the service's constraints any more"
	case swarmpb.MoveReason_MOVE_REASON_REBALANCE:
		return "the load is more even so"
	}
	return "the reason is not known to this version"
}

// gaveWay says for whom the task before a waiting one was stopped; empty when it was not.
func gaveWay(view *store.View, task *swarmpb.Task) string {
	id := view.SlotProgress(task.GetServiceId(), task.GetSlot()).GetGaveWayTo()
	if id == "" || task.GetReplaces() == "" {
		return ""
	}
	return "the one before gave way to " + higher(view, id)
}

// gaveWayTo is for whom a task was stopped, as long as its successor does not run; empty when that is not why.
func gaveWayTo(view *store.View, task *swarmpb.Task) string {
	id := view.SlotProgress(task.GetServiceId(), task.GetSlot()).GetGaveWayTo()
	if id == "" || wanted(task) {
		return ""
	}
	for other := range view.TasksIn(task.GetServiceId(), task.GetSlot()) {
		if other.GetReplaces() == task.GetId() {
			return higher(view, id)
		}
	}
	return ""
}

// higher names a task for which others have to go.
func higher(view *store.View, id string) string {
	task := view.Task(id)
	if task == nil {
		return "a task of higher priority"
	}
	name := view.Service(task.GetServiceId()).GetSpec().GetName()
	return swarmpb.TaskName(name, task.GetSlot(), task.GetNodeId()) + " of higher priority"
}

// waiting is why a task has no node yet, in a line that says where to look.
func waiting(view *store.View, task *swarmpb.Task, rows *store.TaskRows) string {
	text := rows.Addresses.GetMessage()
	if message := rows.Placement.GetMessage(); message != "" {
		text = message
		if service := view.Service(task.GetServiceId()).GetSpec(); !service.IsAttachment() {
			text += fmt.Sprintf("; `swarmctl service explain %s` tells it node by node", service.GetName())
		}
	}
	if way := gaveWay(view, task); way != "" && text != "" {
		return way + "; " + text
	} else if way != "" {
		return way
	}
	return text
}
