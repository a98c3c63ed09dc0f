package orchestrator

import (
	"cmp"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// scale makes as many slots live as the spec asks for: the lowest free ones are filled, the surplus is told to stop.
func (p *planner) scale() {
	want := replicas(p.service)
	var live []uint64
	for task := range p.view.TasksOf(p.service.Id) {
		if task.DesiredState <= stateRunning && (len(live) == 0 || live[len(live)-1] != task.Slot) {
			live = append(live, task.Slot)
		}
	}
	have := uint64(len(live))
	switch {
	case have < want:
		p.fill(live, want-have)
	case have > want:
		p.shrink(int(have - want))
	}
}

// fill makes tasks in the lowest free slots; live are those in use, ascending.
func (p *planner) fill(live []uint64, missing uint64) {
	template := p.template()
	for number := uint64(1); missing > 0; number++ {
		if len(live) > 0 && live[0] == number {
			live = live[1:]
			continue
		}
		if !p.room() {
			p.plan.More = true
			return
		}
		s := readSlot(p.view, p.service, number, p.now)
		if n := len(s.replicas); n > 0 {
			p.heir(s, &s.replicas[n-1], template, 0)
		} else {
			p.create(&swarmpb.Task{Slot: number, TemplateVersion: template, DesiredState: stateRunning})
		}
		missing--
	}
}

// surplus is a slot as scaling down sees it.
type surplus struct {
	*slot
	runs bool
	node string
	// rank is how many tasks of the service run on the node in lower slots: the crowded nodes' last come first.
	rank int
}

// shrink tells the tasks of so many slots to stop: first those that do not run, then those on the nodes with most
// tasks of the service, then the highest slots.
func (p *planner) shrink(count int) {
	var all []surplus
	onNode := map[string]int{}
	for s := range slots(p.view, p.service, 0, p.now) {
		live := s.live()
		if len(live) == 0 {
			continue
		}
		c := surplus{slot: s}
		for _, r := range live {
			if r.runs() {
				c.runs, c.node = true, r.node
			}
		}
		if c.runs {
			c.rank = onNode[c.node]
			onNode[c.node]++
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b surplus) int {
		if a.runs != b.runs {
			if b.runs {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.rank, a.rank), cmp.Compare(b.number, a.number))
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

// replicas is how many the spec asks for.
func replicas(service *swarmpb.Service) uint64 {
	return service.GetSpec().GetMode().GetReplicated().GetReplicas()
}
