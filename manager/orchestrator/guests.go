package orchestrator

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// GuestKept is how long an attachment that never came about stays from when it was asked for, so that the reason can be read.
const GuestKept = 5 * time.Minute

// Guests is the reconciler of services that stand for a container outside of services (id: the service): it removes
// one whose container has gone, or whose node has left the cluster. What is attached cannot be made anew.
type Guests struct{}

var _ reconcile.Reconciler = Guests{}

// Name is guests.
func (Guests) Name() string { return "guests" }

// Affects names the service of a task that has ended, and all of a node that has left.
func (g Guests) Affects(view *store.View, change store.Change) []reconcile.ID {
	switch change.Table {
	case swarmpb.Table_TABLE_SERVICE:
		if service, ok := change.New.(*swarmpb.Service); ok && change.Old == nil && service.GetSpec().IsAttachment() {
			return []reconcile.ID{{Object: service.Id}}
		}
	case swarmpb.Table_TABLE_TASK_STATUS:
		status, ok := change.New.(*swarmpb.TaskStatus)
		if !ok || !status.State.Ended() {
			return nil
		}
		if service := view.Service(view.Task(status.TaskId).GetServiceId()); service.GetSpec().IsAttachment() {
			return []reconcile.ID{{Object: service.Id}}
		}
	case swarmpb.Table_TABLE_NODE:
		if change.New == nil {
			return g.All(view)
		}
	}
	return nil
}

// All names every such service.
func (Guests) All(view *store.View) []reconcile.ID {
	var ids []reconcile.ID
	for service := range view.Services() {
		if service.GetSpec().IsAttachment() {
			ids = append(ids, reconcile.ID{Object: service.Id})
		}
	}
	return ids
}

// Reconcile removes the service once there is nothing left that it stands for.
func (Guests) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	service := view.Service(id.Object)
	if service == nil || service.Removing || !service.GetSpec().IsAttachment() {
		return reconcile.Plan{}, nil
	}
	if view.Node(service.Spec.Task.Guest.NodeId) != nil {
		over, at := guestOver(view, service)
		if !over {
			return reconcile.Plan{}, nil
		}
		if at.After(now) {
			return reconcile.Plan{At: at}, nil
		}
	}
	next := swarmpb.Clone(service)
	next.Removing = true
	return reconcile.Plan{
		Guards: []*swarmpb.Guard{{Key: swarmpb.ServiceKey(service.Id), Version: service.GetMeta().GetVersion()}},
		Writes: []*swarmpb.Write{{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Service{Service: next}}}}},
	}, nil
}

// guestOver tells whether the attachment has ended, and when the service is to go.
func guestOver(view *store.View, service *swarmpb.Service) (over bool, at time.Time) {
	for task := range view.TasksOf(service.Id) {
		switch rows := view.TaskRows(task.Id); {
		case !rows.Observed.Ended():
			return false, time.Time{}
		case rows.Status.GetContainer().GetStartedAt() == 0: // it was never attached
			at = time.Unix(0, service.GetMeta().GetCreatedAt()).Add(GuestKept)
		}
		over = true
	}
	return over, at
}

// ofGuest tells whether a task is a container's outside of services.
func ofGuest(view *store.View, task *swarmpb.Task) bool {
	return view.Service(task.ServiceId).GetSpec().IsAttachment()
}
