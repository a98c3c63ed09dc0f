package orchestrator

import (
	"cmp"
	"iter"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// sizes is all of an update that says how many tasks of which kind there should be.
type sizes struct {
	sets, active             bool
	strategy                 swarmpb.UpdateStrategy
	phase                    swarmpb.RolloutPhase
	template, stable, failed uint64
	share                    uint32
	stableEnds               bool
}

func sizesOf(update *swarmpb.UpdateStatus) sizes {
	return sizes{
		sets: update.Sets(), active: active(update), strategy: update.GetStrategy(), phase: update.GetPhase(),
		template: update.GetTemplateVersion(), stable: update.GetStableTemplateVersion(), failed: update.GetFailedTemplateVersion(),
		share: update.GetReplicaShare(), stableEnds: update.GetStableEnds(),
	}
}

// scale makes as many slots live as the spec asks for, of each set when there are two: the lowest free ones are filled,
// the surplus is told to stop.
func (p *planner) scale() {
	update := p.progress.GetUpdate()
	if update.Underway() {
		// How many there should be follows from the update's row, which new tasks touch.
		p.single = true
		p.guard(swarmpb.ServiceProgressKey(p.service.Id), p.progress.GetMeta().GetVersion())
	}
	if update.Sets() {
		if goalOf(p.view, p.service, update).reachedBy(update) { // else the rollout clears away what is too much
			p.scaleSets(update)
		}
		return
	}
	want := replicas(p.service)
	var live []uint64
	for task := range p.view.TasksOf(p.service.Id) {
		if task.DesiredState.Wanted() && (len(live) == 0 || live[len(live)-1] != task.Slot) {
			live = append(live, task.Slot)
		}
	}
	have := uint64(len(live))
	switch {
	case have < want:
		p.fill(live, []batch{{p.newcomers(), want - have}})
	case have > want:
		p.shrink(int(have-want), nil)
	}
}

// scaleSets fills and empties each set on its own.
func (p *planner) scaleSets(update *swarmpb.UpdateStatus) {
	fresh, old := update.Replicas(replicas(p.service)), replicas(p.service)
	if update.StableEnds {
		old = 0
	}
	var live []uint64
	haveFresh, haveOld := uint64(0), uint64(0)
	for number, template := range p.members() {
		live = append(live, number)
		if template == update.TemplateVersion {
			haveFresh++
		} else {
			haveOld++
		}
	}
	if haveFresh > fresh {
		p.shrink(int(haveFresh-fresh), func(s *slot) bool { return s.template() == update.TemplateVersion })
	}
	if haveOld > old {
		p.shrink(int(haveOld-old), func(s *slot) bool { return s.template() != update.TemplateVersion })
	}
	if rollsBack(update) && update.Share >= swarmpb.WholeShare {
		old = min(old, haveOld) // what was only tried gets no more tasks while the set is filled up that it gives way to
	}
	stable := update.StableTemplateVersion
	if p.view.Template(p.service.Id, stable) == nil {
		stable = update.TemplateVersion
	}
	p.fill(live, []batch{{stable, old - min(old, haveOld)}, {update.TemplateVersion, fresh - min(fresh, haveFresh)}})
}

// members are the slots in use with the template of the newest task that is meant to run there, in order.
func (p *planner) members() iter.Seq2[uint64, uint64] {
	return func(yield func(uint64, uint64) bool) {
		slot, template := uint64(0), uint64(0)
		for task := range p.view.TasksOf(p.service.Id) {
			if !task.DesiredState.Wanted() {
				continue
			}
			if slot != 0 && slot != task.Slot && !yield(slot, template) {
				return
			}
			slot, template = task.Slot, task.TemplateVersion
		}
		if slot != 0 {
			yield(slot, template)
		}
	}
}

// newcomers is the template of tasks in new slots: while an update makes its tasks ready, the old one, which is known to
// work.
func (p *planner) newcomers() uint64 {
	update := p.progress.GetUpdate()
	if update.Underway() && !rollsBack(update) && update.Phase == phasePreparing && goalOf(p.view, p.service, update).reachedBy(update) &&
		p.view.Template(p.service.Id, update.StableTemplateVersion) != nil {
		return update.StableTemplateVersion
	}
	return p.template()
}

// batch is how many new slots are to be filled from a template.
type batch struct{ template, missing uint64 }

// fill makes tasks in the lowest free slots; live are those in use, ascending.
func (p *planner) fill(live []uint64, batches []batch) {
	for number := uint64(1); len(batches) > 0; {
		b := &batches[0]
		switch {
		case b.missing == 0:
			batches = batches[1:]
			continue
		case len(live) > 0 && live[0] == number:
			live = live[1:]
			number++
			continue
		case !p.room():
			p.plan.More = true
			return
		}
		s := readSlot(p.view, p.service, number, p.now)
		task := &swarmpb.Task{Slot: number, TemplateVersion: b.template, DesiredState: stateRunning}
		if n := len(s.replicas); n > 0 {
			p.heir(s, &s.replicas[n-1], task)
		} else {
			if p.heldBack(b.template) {
				task.DesiredState = stateReady
			}
			p.create(task)
		}
		b.missing--
		number++
	}
}

// surplus is a slot as scaling down sees it.
type surplus struct {
	*slot
	runs bool
	// up: it runs and takes connections.
	up   bool
	node string
	// rank is how many tasks of the service run on the node in lower slots: the crowded nodes' last come first.
	rank int
}

// shrink tells the tasks of so many slots to stop, of those that a set has, or of all: first those that do not run, then
// those that take no connections, then those on the nodes with most tasks, then the highest slots.
func (p *planner) shrink(count int, of func(*slot) bool) {
	var all []surplus
	onNode := map[string]int{}
	for s := range slots(p.view, p.service, 0, p.now) {
		live := s.live()
		if len(live) == 0 || of != nil && !of(s) {
			continue
		}
		c := surplus{slot: s}
		for _, r := range live {
			if r.runs() {
				c.runs, c.node = true, r.node
				c.up = c.up || r.up()
			}
		}
		if c.runs {
			c.rank = onNode[c.node]
			onNode[c.node]++
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b surplus) int {
		return cmp.Or(compareBools(a.runs, b.runs), compareBools(a.up, b.up), cmp.Compare(b.rank, a.rank), cmp.Compare(b.number, a.number))
	})
	for _, c := range all[:min(count, len(all))] {
		if !p.room() {
			p.plan.More = true
			return
		}
		p.guardSlot(c.slot)
		for _, r := range c.live() {
			p.desire(r, stateShutdown)
		}
	}
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// size is how many slots the service has by its spec; of a global one, by its nodes.
func (p *planner) size() (n uint64) {
	if !p.service.GetSpec().IsGlobal() {
		return replicas(p.service)
	}
	for range p.members() {
		n++
	}
	return n
}

// replicas is how many the spec asks for.
func replicas(service *swarmpb.Service) uint64 {
	return service.GetSpec().GetMode().GetReplicated().GetReplicas()
}
