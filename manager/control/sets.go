package control

import (
	"cmp"
	"maps"
	"slices"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// part is what a task counts for in its service. The zero part counts for nothing.
type part struct {
	template uint64
	// wanted: its desired state is at most RUNNING. The others are false unless it is.
	wanted bool
	// up: it runs on a node that is not lost, and is ready; notReady: it does, but is not.
	up, notReady bool
	// unhealthy: its probe of liveness fails.
	unhealthy bool
}

// look is what a task counts for by now.
func look(view *store.View, task *swarmpb.Task) part {
	rows := view.TaskRows(task.GetId())
	return partOf(&rows, func(node string) bool { return lostNow(view, node) })
}

// lostNow tells whether a node is DOWN.
func lostNow(view *store.View, node string) bool {
	return view.NodeStatus(node).GetState() == swarmpb.NodeState_NODE_STATE_DOWN
}

// lostNodes are all that are DOWN, for who looks at very many tasks.
func lostNodes(view *store.View) map[string]bool {
	lost := map[string]bool{}
	for node := range view.Nodes() {
		if lostNow(view, node.GetId()) {
			lost[node.GetId()] = true
		}
	}
	return lost
}

// partOf is what a task with these rows counts for; lost tells the nodes that are DOWN.
func partOf(rows *store.TaskRows, lost func(node string) bool) part {
	p := part{template: rows.Task.GetTemplateVersion(), wanted: rows.Task != nil && wanted(rows.Task)}
	if !p.wanted {
		return p
	}
	runs := rows.Observed == swarmpb.TaskState_TASK_STATE_RUNNING && !lost(rows.Placement.GetNodeId())
	p.up, p.notReady = runs && rows.Status.Up(), runs && !rows.Status.Up()
	p.unhealthy = !rows.Observed.Ended() && rows.Status.GetHealth().GetState() == swarmpb.HealthState_HEALTH_STATE_UNHEALTHY
	return p
}

// counts are those of a service's wanted tasks of one template.
type counts struct{ tasks, up, notReady, unhealthy uint64 }

// tally counts the wanted tasks of a service by template. Templates without any are left out.
type tally map[uint64]counts

// add counts a task n times, 1 or -1.
func (t tally) add(p part, n int) {
	if !p.wanted {
		return
	}
	c := t[p.template]
	for _, at := range []struct {
		field *uint64
		is    bool
	}{{&c.tasks, true}, {&c.up, p.up}, {&c.notReady, p.notReady}, {&c.unhealthy, p.unhealthy}} {
		if at.is {
			*at.field += uint64(n)
		}
	}
	if c.tasks == 0 {
		delete(t, p.template)
		return
	}
	t[p.template] = c
}

// total is the sum over the templates for which of holds.
func (t tally) total(of func(template uint64) bool) (sum counts) {
	for template, c := range t {
		if of(template) {
			sum.tasks, sum.up, sum.notReady, sum.unhealthy = sum.tasks+c.tasks, sum.up+c.up, sum.notReady+c.notReady, sum.unhealthy+c.unhealthy
		}
	}
	return sum
}

// info puts the rows of a service together with the counts of its tasks.
func (t tally) info(view *store.View, service *swarmpb.Service) *swarmpb.ServiceInfo {
	progress := view.ServiceProgress(service.GetId())
	update := progress.GetUpdate()
	all := t.total(func(uint64) bool { return true })
	info := &swarmpb.ServiceInfo{
		Service:  shown(service),
		Progress: progress,
		Running:  t.total(func(template uint64) bool { return serves(update, template) }).up,
		NotReady: all.notReady,
		Desired:  all.tasks,
		Endpoint: view.ServiceEndpoint(service.GetId()),
		Sets:     t.sets(view, service, update),
	}
	if metric := view.ServiceMetric(service.GetId()); update.Underway() && metric.GetUpdate() == update.GetStartedAt() {
		info.Metric = metric
	}
	for _, a := range service.GetSpec().GetTask().GetNetworks() {
		addName(view, &info.NetworkNames, a.GetNetwork())
	}
	for _, vip := range info.Endpoint.GetVips() {
		addName(view, &info.NetworkNames, vip.GetNetworkId())
	}
	if service.GetSpec().IsGlobal() || service.GetSpec().IsJob() {
		info.Desired, info.Total = desired(view, service, progress.GetJob())
	}
	if replicated := service.GetSpec().GetMode().GetReplicated(); replicated != nil {
		info.Desired = replicated.GetReplicas()
	}
	if service.GetRemoving() {
		info.Desired = 0
	}
	return info
}

// serves tells whether a template's tasks count as the service's: of two sets those with the larger share of the
// connections do, else all.
func serves(update *swarmpb.UpdateStatus, template uint64) bool {
	trial := update.Trial()
	if trial == nil {
		return true
	}
	return (template == trial.GetSet()) == (trial.GetShare() > swarmpb.WholeShare/2)
}

// sets are the templates that the service has tasks of, and both of an update that goes from one set to another, the
// newest first. Without two sets, connections go to each task that is up alike.
func (t tally) sets(view *store.View, service *swarmpb.Service, update *swarmpb.UpdateStatus) []*swarmpb.SetInfo {
	templates := slices.Collect(maps.Keys(t))
	trial := update.Trial()
	if trial != nil {
		templates = append(templates, trial.GetSet(), update.GetStableTemplateVersion())
	}
	slices.SortFunc(templates, func(a, b uint64) int { return cmp.Compare(b, a) })
	templates = slices.DeleteFunc(slices.Compact(templates), func(template uint64) bool { return template == 0 })
	newest := make(map[uint64]uint64)
	for revision := range view.RevisionsOf(service.GetId()) {
		newest[revision.GetTemplateVersion()] = revision.GetRevision()
	}
	others := t.total(func(template uint64) bool { return trial == nil || template != trial.GetSet() })
	var sets []*swarmpb.SetInfo
	for _, template := range templates {
		c := t[template]
		set := &swarmpb.SetInfo{
			TemplateVersion: template, Revision: newest[template], Tasks: c.tasks, Up: c.up, Unhealthy: c.unhealthy,
			Image: view.Template(service.GetId(), template).GetSpec().GetContainer().GetImage(),
		}
		rest := uint64(swarmpb.WholeShare) - uint64(trial.GetShare())
		switch {
		case trial != nil && template == trial.GetSet():
			set.Share = trial.GetShare()
		case others.up > 0:
			set.Share = uint32(rest * c.up / others.up)
		case len(templates) == 1 || trial != nil && template == update.GetStableTemplateVersion():
			set.Share = uint32(rest)
		}
		sets = append(sets, set)
	}
	return sets
}
