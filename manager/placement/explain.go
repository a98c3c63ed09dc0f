package placement

import (
	"fmt"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/scheduler"
)

// Explanation is what the nodes are to a service.
type Explanation struct {
	// TemplateVersion is the one that it was judged for.
	TemplateVersion uint64
	// Nodes are all of them, by ID.
	Nodes []NodeVerdict
}

// NodeVerdict is whether a node would take one more task, and what it has.
type NodeVerdict struct {
	scheduler.Verdict
	// ServiceTasks are the service's tasks that claim something there, Tasks all that do.
	ServiceTasks, Tasks int
}

// Explain judges each node for one more task of the service's present template, as the tasks that wait are judged when
// they are placed: with the room that is kept for other services' tasks, for which others give way, but not what has
// been decided and is not in the view. An error says that there is no such service, or why its template cannot be used.
func Explain(view *store.View, serviceID string, now time.Time) (*Explanation, error) {
	service := view.Service(serviceID)
	if service == nil {
		return nil, fmt.Errorf("explain service %s: there is none", serviceID)
	}
	p := newPlanner()
	for t := range view.Unplaced() {
		if t.GetServiceId() != serviceID {
			p.nominate(t.GetId(), view.Placement(t.GetId()))
		}
	}
	r := newRound(p, view, now)
	q, err := r.requirements(serviceID, service.GetTemplateVersion())
	if err != nil {
		return nil, fmt.Errorf("explain service %s: %w", serviceID, err)
	}
	group := &scheduler.Group{Service: serviceID, Requirements: q, OnNode: r.onNode(serviceID), Failing: r.read.Failing(serviceID, now)}
	out := &Explanation{TemplateVersion: service.GetTemplateVersion()}
	for _, v := range r.nodes.Explain(group) {
		out.Nodes = append(out.Nodes, NodeVerdict{
			Verdict: v, ServiceTasks: group.OnNode[v.Node], Tasks: view.Usage(v.Node).Tasks})
	}
	return out, nil
}
