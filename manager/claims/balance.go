package claims

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/scheduler"
)

const (
	// SettleTime is how long a node must have been as it is before tasks are moved there for balance.
	SettleTime = 10 * time.Second
	// AskedFor is how long a user's request for balance is tried to be met.
	AskedFor = time.Hour
	// ClockSkew is how far the clocks of two leaders may differ unnoticed: a time that is further ahead of now says nothing.
	ClockSkew = 10 * time.Second
)

// Unsettled are the nodes that take tasks and have come, returned or changed just now: unless a user asks, nothing is moved
// there for balance. The time is when the first of them has settled; zero without any.
func Unsettled(view *store.View, now time.Time) (nodes map[string]bool, next time.Time) {
	for node := range view.Nodes() {
		status := view.NodeStatus(node.Id)
		at := time.Unix(0, max(node.GetMeta().GetUpdatedAt(), status.GetSince()))
		settled := at.Add(SettleTime)
		if !now.Before(settled) || at.Sub(now) > ClockSkew || !scheduler.TakesTasks(node, status) {
			continue
		}
		if nodes == nil {
			nodes = map[string]bool{}
		}
		nodes[node.Id] = true
		if next.IsZero() || settled.Before(next) {
			next = settled
		}
	}
	return nodes, next
}

// BalanceAsked tells whether a user's request for balance holds for a service.
func BalanceAsked(view *store.View, service *swarmpb.Service, now time.Time) bool {
	at := view.Cluster().GetRebalanceAt()
	return at != 0 && now.Sub(time.Unix(0, at)) < AskedFor &&
		view.ServiceProgress(service.GetId()).GetBalancedAt() < at && service.GetMeta().GetCreatedAt() <= at
}
