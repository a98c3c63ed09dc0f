package store

import (
	"errors"
	"fmt"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Verify derives anew, from the rows alone and in another way, what the store keeps up to date by each write, and
// compares. It reads everything: for restores and tests.
func (v *View) Verify() error {
	r := rebuild{
		references: make(map[reference]int),
		nodes:      make(map[string]*nodeTotals),
		services:   make(map[string]*serviceTotals),
		heirs:      make(map[string][]*taskRow),
	}
	if err := v.verifyLists(); err != nil {
		return err
	}
	return errors.Join(r.objects(v), r.tasks(v), r.compare(v), v.verifyNetworks(), v.verifyRuns())
}

// rebuild is what the rows add up to.
type rebuild struct {
	references map[reference]int
	nodes      map[string]*nodeTotals
	services   map[string]*serviceTotals
	// heirs are the claiming tasks by the task whose claim they may share.
	heirs          map[string][]*taskRow
	waiting        int
	asking         int
	claimingHeirs  int
	ownedAddresses int
}

type nodeTotals struct {
	nanoCPUs    int64
	memoryBytes int64
	claims      int
	tasks       int
	ports       map[uint32]int
	services    map[string]int
}

type serviceTotals struct {
	tasks  int
	counts map[stateCount]int
	// unready is template -> tasks that run and are not ready.
	unready map[uint64]int
}

func (r *rebuild) node(id string) *nodeTotals {
	if r.nodes[id] == nil {
		r.nodes[id] = &nodeTotals{ports: make(map[uint32]int), services: make(map[string]int)}
	}
	return r.nodes[id]
}

func (r *rebuild) service(id string) *serviceTotals {
	if r.services[id] == nil {
		r.services[id] = &serviceTotals{counts: make(map[stateCount]int), unready: make(map[uint64]int)}
	}
	return r.services[id]
}

func (r *rebuild) refer(service string, version uint64) {
	if version != 0 {
		r.references[reference{service: service, version: version}]++
	}
}

// objects goes through the rows that are not of tasks.
func (r *rebuild) objects(v *View) error {
	for service := range v.Services() {
		if id, _ := v.names.Get(service.GetSpec().GetName()); id != service.Id {
			return fmt.Errorf("name %q leads to service %q, not %s", service.GetSpec().GetName(), id, service.Id)
		}
		r.refer(service.Id, service.TemplateVersion)
		r.refer(service.Id, service.PreviousTemplateVersion)
	}
	for progress := range values(v.progress) {
		for _, version := range rolloutTemplates(progress) {
			r.refer(progress.ServiceId, version)
		}
	}
	if err := r.revisions(v); err != nil {
		return err
	}
	var err error
	v.allocations.Scan(func(a *swarmpb.Allocation) bool {
		if a.Owner == "" {
			return true
		}
		r.ownedAddresses++
		if _, ok := v.owners.Get(ownerItem{a.Owner, a.Pool, a.Address}); !ok {
			err = fmt.Errorf("address %s of pool %s is not among those of %s", a.Address, a.Pool, a.Owner)
		}
		return err == nil
	})
	v.requestOrder.Scan(func(order uint64, id string) bool {
		if known, ok := v.requests.Get(id); !ok || known.order != order {
			err = fmt.Errorf("request %s is not remembered under its age", id)
		}
		return err == nil
	})
	return err
}

// tasks goes through the tasks twice: who claims what, and then which claims are shared.
func (r *rebuild) tasks(v *View) error {
	for ordinal := range v.tasks.all() {
		if err := r.task(v, v.rows.at(ordinal)); err != nil {
			return err
		}
	}
	for ordinal := range v.tasks.all() {
		r.pair(v, v.rows.at(ordinal))
	}
	return nil
}

func (r *rebuild) task(v *View, row *taskRow) error {
	task := row.task
	if row.lacks != v.lacks(task, row.addresses) {
		return fmt.Errorf("task %s: that it lacks addresses is kept as %t", task.Id, row.lacks)
	}
	service := r.service(task.ServiceId)
	service.tasks++
	service.counts[stateCount{template: task.TemplateVersion, state: row.observed()}]++
	if row.observed() == swarmpb.TaskState_TASK_STATE_RUNNING && row.status.GetHealth().GetNotReady() {
		service.unready[task.TemplateVersion]++
	}
	r.refer(task.ServiceId, task.TemplateVersion)
	if index, ok := v.perService.Get(task.ServiceId); !ok {
		return fmt.Errorf("service %s has no index, but task %s", task.ServiceId, task.Id)
	} else if ordinal, ok := index.tasks.find(task.Slot, v.bySlot(task)); !ok || ordinal != row.ordinal {
		return fmt.Errorf("task %s is not among those of service %s", task.Id, task.ServiceId)
	}
	if row.waits() {
		r.waiting++
		if row.placement.GetPreempts() != nil {
			r.asking++
		}
	}
	nodeID := row.placement.GetNodeId()
	if nodeID == "" {
		return nil
	}
	node := r.node(nodeID)
	node.tasks++
	if row.observed().Ended() {
		return nil
	}
	reserved, ports := v.needs(task)
	node.nanoCPUs += reserved.GetNanoCpus()
	node.memoryBytes += reserved.GetMemoryBytes()
	node.claims++
	node.services[task.ServiceId]++
	for _, port := range ports {
		node.ports[port]++
	}
	if task.Replaces != "" {
		r.claimingHeirs++
		if base := baseByHand(v, row); base != "" {
			r.heirs[base] = append(r.heirs[base], row)
		}
	}
	return nil
}

// baseByHand is the task on the same node that a task may share a claim with: the nearest of those before it that is still on a
// node, through those that are on none any more or yet.
func baseByHand(v *View, row *taskRow) string {
	before := v.taskRow(row.task.Replaces)
	for last := row; before != nil; last, before = before, v.taskRow(before.task.Replaces) {
		a, b := before.task, last.task
		if a.ServiceId != b.ServiceId || a.Slot != b.Slot || a.Attempt >= b.Attempt {
			return ""
		}
		if on := before.placement.GetNodeId(); on != "" && !before.observed().Ended() {
			if on != row.placement.GetNodeId() {
				return ""
			}
			return a.Id
		}
	}
	return ""
}

// pair takes away what a task and the one that takes its place on the same node have counted twice.
func (r *rebuild) pair(v *View, replaced *taskRow) {
	var heir *taskRow
	for _, row := range r.heirs[replaced.task.Id] {
		// They come by ID, so that the first of an attempt stays.
		if heir == nil || row.task.Attempt < heir.task.Attempt {
			heir = row
		}
	}
	if heir == nil {
		return
	}
	node := r.node(replaced.placement.NodeId)
	node.claims--
	node.services[replaced.task.ServiceId]--
	for between := heir; between != replaced; between = v.taskRow(between.task.Replaces) {
		if between.task.Beside {
			return
		}
	}
	a, portsA := v.needs(replaced.task)
	b, portsB := v.needs(heir.task)
	node.nanoCPUs -= min(a.GetNanoCpus(), b.GetNanoCpus())
	node.memoryBytes -= min(a.GetMemoryBytes(), b.GetMemoryBytes())
	for _, port := range portsB {
		if slices.Contains(portsA, port) {
			node.ports[port]--
		}
	}
}

// compare holds the totals against what the View says.
func (r *rebuild) compare(v *View) error {
	for _, table := range []struct {
		name     string
		got, was int
	}{
		{"names", v.names.Len(), v.services.Len()},
		{"owned addresses", v.owners.Len(), r.ownedAddresses},
		{"remembered requests", v.requestOrder.Len(), v.requests.Len()},
		{"unplaced tasks", v.unplaced, r.waiting},
		{"asking tasks", v.asking, r.asking},
		{"replacing tasks", v.heirs, r.claimingHeirs},
		{"template references", v.references.Len(), len(r.references)},
		{"nodes with tasks", v.perNode.Len(), len(r.nodes)},
		{"services with tasks", v.perService.Len(), len(r.services)},
	} {
		if table.got != table.was {
			return fmt.Errorf("%s: %d are kept, the rows give %d", table.name, table.got, table.was)
		}
	}
	var err error
	v.references.Scan(func(kept reference) bool {
		key := reference{service: kept.service, version: kept.version}
		if kept.count != r.references[key] {
			err = fmt.Errorf("template %d of service %s: %d references are kept, the rows give %d",
				kept.version, kept.service, kept.count, r.references[key])
		} else if v.Template(kept.service, kept.version) == nil {
			err = fmt.Errorf("template %d of service %s is referred to, but not there", kept.version, kept.service)
		}
		return err == nil
	})
	if err == nil && v.templates.Len() != v.references.Len() {
		err = fmt.Errorf("%d templates are kept, %d are referred to", v.templates.Len(), v.references.Len())
	}
	return errors.Join(err, r.compareNodes(v), r.compareServices(v))
}

func (r *rebuild) compareNodes(v *View) error {
	var err error
	v.perNode.Scan(func(id string, kept *nodeIndex) bool {
		was := r.nodes[id]
		if was == nil || kept.tasks.count != was.tasks || kept.claims != was.claims ||
			kept.nanoCPUs != was.nanoCPUs || kept.memoryBytes != was.memoryBytes ||
			!sameCounts(kept.ports.Scan, was.ports) || !sameCounts(kept.services.Scan, numbered(v, was.services)) {
			err = fmt.Errorf("node %s: usage is not what the rows give", id)
		}
		return err == nil
	})
	return err
}

// numbered are the counts under the numbers of their services; one without an index has no claims.
func numbered(v *View, counts map[string]int) map[uint32]int {
	out := make(map[uint32]int, len(counts))
	for id, n := range counts {
		if service, ok := v.perService.Get(id); ok {
			out[service.number] = n
		}
	}
	return out
}

// sameCounts compares the counts kept with those that the rows give, where a zero is none.
func sameCounts[K comparable](kept func(func(K, int) bool), was map[K]int) bool {
	same := true
	left := 0
	for _, n := range was {
		if n != 0 {
			left++
		}
	}
	kept(func(key K, n int) bool {
		same = n == was[key]
		left--
		return same
	})
	return same && left == 0
}

func (r *rebuild) compareServices(v *View) error {
	var err error
	v.perService.Scan(func(id string, kept *serviceIndex) bool {
		was := r.services[id]
		if was == nil || kept.tasks.count != was.tasks || len(kept.counts) != len(was.counts) {
			err = fmt.Errorf("service %s: tasks and counts are not what the rows give", id)
			return false
		}
		for _, c := range kept.counts {
			if n := was.counts[stateCount{template: c.template, state: c.state}]; n != c.count {
				err = fmt.Errorf("service %s: %d tasks of template %d are kept in state %s, the rows give %d",
					id, c.count, c.template, c.state.Name(), n)
			}
			unready := 0
			if c.state == swarmpb.TaskState_TASK_STATE_RUNNING {
				unready = was.unready[c.template]
			}
			if c.unready != unready {
				err = fmt.Errorf("service %s: %d tasks of template %d are kept as not ready, the rows give %d", id, c.unready, c.template, unready)
			}
		}
		return err == nil
	})
	return err
}
