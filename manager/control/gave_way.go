package control

import (
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// gaveWay says for whom the task before a waiting one was stopped; empty when it was not.
func gaveWay(view *store.View, task *swarmpb.Task) string {
	id := view.SlotProgress(task.GetServiceId(), task.GetSlot()).GetGaveWayTo()
	if id == "" || task.GetReplaces() == "" {
		return ""
	}
	to := view.Task(id)
	if to == nil {
		return "the one before gave way to a task of higher priority"
	}
	name := view.Service(to.GetServiceId()).GetSpec().GetName()
	return "the one before gave way to " + swarmpb.TaskName(name, to.GetSlot(), to.GetNodeId()) + " of higher priority"
}
