package allocator

import (
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// RouteOverlapAlarm: a route of a host overlaps a network's subnet, which was chosen or given before the route was there. The object
// is NETWORK/NODE, by ID. It ends when the route has gone, or the network, or the node.
const RouteOverlapAlarm = "route-overlap"

// maxOverlapAlarms bounds such alarms at a time.
const maxOverlapAlarms = 20

// Overlaps is the reconciler of these alarms. All of them are one unit of work.
type Overlaps struct{}

var _ reconcile.Reconciler = Overlaps{}

const overlapsID = "overlaps"

// Name stands in logs.
func (Overlaps) Name() string { return "route-overlaps" }

// Affects: what nodes say of their routes, nodes that leave, and what networks are given.
func (Overlaps) Affects(_ *store.View, c store.Change) []reconcile.ID {
	switch c.Table {
	case swarmpb.Table_TABLE_NETWORK_PROGRESS:
	case swarmpb.Table_TABLE_NODE:
		if c.New != nil {
			return nil
		}
	case swarmpb.Table_TABLE_NODE_STATUS:
		old, _ := c.Old.(*swarmpb.NodeStatus)
		now, _ := c.New.(*swarmpb.NodeStatus)
		if slices.Equal(old.GetDescription().GetNetwork().GetRoutes(), now.GetDescription().GetNetwork().GetRoutes()) {
			return nil
		}
	default:
		return nil
	}
	return []reconcile.ID{{Object: overlapsID}}
}

// All is the one unit of work.
func (Overlaps) All(*store.View) []reconcile.ID { return []reconcile.ID{{Object: overlapsID}} }

// Reconcile raises the alarms that there should be, and ends the others.
func (Overlaps) Reconcile(view *store.View, _ reconcile.ID, now time.Time) (reconcile.Plan, error) {
	b := &batch{view: view, now: now}
	overlaps := view.RouteOverlaps(maxOverlapAlarms)
	wanted := map[string]bool{}
	for _, o := range overlaps {
		wanted[overlapObject(o)] = true
	}
	for a := range view.Alarms() {
		if a.GetKind() == RouteOverlapAlarm && !wanted[a.GetObject()] {
			b.add([]*swarmpb.Write{remove(swarmpb.AlarmKey(RouteOverlapAlarm, a.GetObject()))})
		}
	}
	for _, o := range overlaps {
		object, message := overlapObject(o), o.Text()
		if view.Alarm(RouteOverlapAlarm, object).GetMessage() != message {
			b.add([]*swarmpb.Write{{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: RouteOverlapAlarm, Object: object, Message: message}}}})
		}
	}
	return b.done(), nil
}

func overlapObject(o store.RouteOverlap) string { return o.Network + "/" + o.Node }
