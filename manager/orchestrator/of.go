package orchestrator

import (
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// Of is All for one service: for whoever tries out what becomes of that one.
func (Replicated) Of(view *store.View, serviceID string) []reconcile.ID {
	return restless([]reconcile.ID{{Object: serviceID}}, view, serviceID)
}

// Of is All for the tasks of one service.
func (Preemption) Of(view *store.View, serviceID string) (ids []reconcile.ID) {
	for task := range view.UnplacedOf(serviceID) {
		if asks(view.Placement(task.Id)) {
			ids = append(ids, reconcile.ID{Object: task.Id})
		}
	}
	return ids
}
