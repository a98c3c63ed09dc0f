package orchestrator

import (
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/scheduler"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// Global is the reconciler of global services: each node that suits has one slot, which Replicated carries along as
// any other. A node that is DOWN or paused keeps its task; one that is drained, or that the constraints do not allow any
// more, loses it.
type Global struct{}

var _ reconcile.Reconciler = Global{}

// Name is global.
func (Global) Name() string { return "global" }

// Affects names the service that changes, and what all global ones have on a node that does.
func (g Global) Affects(view *store.View, change store.Change) []reconcile.ID {
	switch change.Table {
	case swarmpb.Table_TABLE_SERVICE:
		if service, ok := change.New.(*swarmpb.Service); ok && global(service) {
			return []reconcile.ID{{Object: service.Id}}
		}
	case swarmpb.Table_TABLE_NODE, swarmpb.Table_TABLE_NODE_STATUS:
		if nodeMatters(change) {
			ids := g.All(view)
			for i := range ids {
				ids[i].Node = change.Key.ID
			}
			return ids
		}
	}
	return nil
}

// All names every global service.
func (Global) All(view *store.View) (ids []reconcile.ID) {
	for service := range view.Services() {
		if global(service) {
			ids = append(ids, reconcile.ID{Object: service.Id})
		}
	}
	return ids
}

// Of is All for one service.
func (Global) Of(_ *store.View, serviceID string) []reconcile.ID {
	return []reconcile.ID{{Object: serviceID}}
}

// allNodes is as many nodes as a look at all of them costs next to nothing.
const allNodes = 1000

// Pace keeps looks at all nodes apart, so that of many nodes which join one after another those that have come meanwhile are
// looked at together.
func (Global) Pace(view *store.View, id reconcile.ID) time.Duration {
	if id.Node != "" {
		return 0
	}
	return lookPace(view)
}

// lookPace is the distance between looks at all nodes, which take a few hundredths of the time then.
func lookPace(view *store.View) time.Duration {
	return time.Duration(view.NodeCount()/allNodes) * 100 * time.Millisecond
}

// Reconcile fills the slots of nodes that have come to suit, and empties those of nodes that do not suit any more. For one node
// it finds out whether there is anything to do, and leaves that to the look at all: so two plans never give a slot its first
// task.
func (Global) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	service := view.Service(id.Object)
	if service == nil || service.Removing || !global(service) {
		return reconcile.Plan{}, nil
	}
	p := newPlanner(view, service, now)
	if id.Node != "" {
		if p.amissOn(id.Node) {
			return reconcile.Plan{Also: []reconcile.Look{{ID: reconcile.ID{Object: id.Object}}}}, nil
		}
		return reconcile.Plan{}, nil
	}
	p.spread()
	return p.finish(), nil
}

func global(service *swarmpb.Service) bool { return service.GetSpec().GetMode().GetGlobal() != nil }

// nodeMatters tells whether a change of a node can change what suits it.
func nodeMatters(change store.Change) bool {
	switch change.Table {
	case swarmpb.Table_TABLE_NODE:
		before, _ := change.Old.(*swarmpb.Node)
		after, _ := change.New.(*swarmpb.Node)
		return before == nil || after == nil || before.Role != after.Role ||
			before.GetSpec().GetAvailability() != after.GetSpec().GetAvailability() ||
			!maps.Equal(before.GetSpec().GetLabels(), after.GetSpec().GetLabels()) ||
			!proto.Equal(before.GetSpec().GetAccepted(), after.GetSpec().GetAccepted())
	default:
		before, _ := change.Old.(*swarmpb.NodeStatus)
		after, _ := change.New.(*swarmpb.NodeStatus)
		was, is := scheduler.NewNode(nil, before), scheduler.NewNode(nil, after)
		return before.GetState() != after.GetState() || !was.Same(&is)
	}
}

// suitable are the nodes that a template's tasks belong on: those that may have one, with whether they take a new one now.
// A node that is drained is none. An error of the constraints, which validation refuses, leaves none.
func suitable(view *store.View, template *swarmpb.Template) map[string]bool {
	nodes := map[string]bool{}
	q, err := scheduler.NewRequirements(template)
	if err != nil {
		return nodes
	}
	for node := range view.Nodes() {
		if suits, takes := suitsOne(view, node, q); suits {
			nodes[node.Id] = takes
		}
	}
	return nodes
}

// suitsOne tells whether a task with the requirements belongs on the node, nil being none, and whether it takes a new one now.
func suitsOne(view *store.View, node *swarmpb.Node, q *scheduler.Requirements) (suits, takes bool) {
	if node == nil || node.GetSpec().GetAvailability() == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN {
		return false, false
	}
	n := scheduler.NewNode(node, view.NodeStatus(node.Id))
	suits = q.Suits(&n) == scheduler.Accepted
	return suits, suits && n.Ready
}

// slotProbe is how many slots from a node's own one on are searched for its tasks: numbers are of 62 bits, so that not many
// nodes have the same.
const slotProbe = 8

// amissOn tells whether spread would do something about a node.
func (p *planner) amissOn(node string) bool {
	q, err := scheduler.NewRequirements(p.view.Template(p.service.Id, p.template()))
	if err != nil {
		return true
	}
	suits, takes := suitsOne(p.view, p.view.Node(node), q)
	own, has := swarmpb.NodeSlot(node), 0
	for s := range slots(p.view, p.service, own-1, p.now) {
		if s.number >= own+slotProbe {
			break
		}
		if s.replicas[len(s.replicas)-1].task.NodeId == node && len(s.live()) > 0 {
			has++
		}
	}
	return has > 1 || has == 1 && !suits || has == 0 && takes
}

// spread gives each node that suits its slot, and takes it from the others.
func (p *planner) spread() {
	version := p.newcomers()
	nodes := suitable(p.view, p.view.Template(p.service.Id, p.template()))
	taken, have := map[uint64]string{}, map[string]bool{}
	for s := range slots(p.view, p.service, 0, p.now) {
		node := s.replicas[len(s.replicas)-1].task.NodeId
		taken[s.number] = node
		live := s.live()
		_, suits := nodes[node]
		switch {
		case len(live) == 0:
			continue
		case suits && !have[node]:
			have[node] = true
			continue
		case !p.room():
			p.plan.More = true
			return
		}
		p.guardSlot(s)
		for _, r := range live {
			p.desire(r, stateShutdown)
		}
	}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		if have[node] || !nodes[node] {
			continue
		}
		if !p.room() {
			p.plan.More = true
			return
		}
		number := slotOfNode(node, func(number uint64) bool { return taken[number] == "" || taken[number] == node })
		taken[number] = node
		task := &swarmpb.Task{Slot: number, NodeId: node, TemplateVersion: version, DesiredState: stateRunning}
		if s := readSlot(p.view, p.service, number, p.now); len(s.replicas) > 0 {
			p.guardSlot(s)
			p.heir(s, &s.replicas[len(s.replicas)-1], task)
			continue
		}
		if p.heldBack(version) {
			task.DesiredState = stateReady
		}
		p.create(task)
	}
}

// slotOfNode is the node's own slot number, or the next one that is free.
func slotOfNode(node string, free func(uint64) bool) uint64 {
	number := swarmpb.NodeSlot(node)
	for !free(number) {
		number++
	}
	return number
}

// away tells whether a task belongs to a node that is DOWN: it is replaced there, once the node is back.
func (p *planner) away(r *replica) bool {
	return r.task.NodeId != "" && down(p.view.NodeStatus(r.task.NodeId))
}

// turnAway has an update's task follow on a node that is DOWN. Nobody waits for it: the old one is told to stop, and the
// node does both when it is back.
func (r *rollout) turnAway(s *slot, live []*replica) {
	r.guardSlot(s)
	newest := live[len(live)-1]
	follows := newest.task.TemplateVersion == r.goal.template // it waits for its turn already
	for _, old := range live {
		if old != newest || !follows {
			r.desire(old, stateShutdown)
		}
	}
	if !follows {
		r.heir(s, newest, &swarmpb.Task{TemplateVersion: r.goal.template})
	}
}
