package sim

import (
	"cmp"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// silence is for how long nothing may begin, once a cluster is as it should be, until it counts as being at rest.
const silence = time.Minute

// evenSilence is for how long no task may move for balance, until it counts as even: longer than any look is put off.
const evenSilence = 90 * time.Second

// fleet is what must hold of where tasks are. It is used with the mutex of the checks held.
type fleet struct {
	c *checks
	// beside are global services that have ever been updated start-first; global are all of them.
	global, beside map[string]bool
	// refused are tasks for which there was no node at some time.
	refused map[string]bool
	// begun is when a task was last made that neither a schedule nor balance has asked for, and which; evened one for balance.
	begun, evened         time.Duration
	lastBegun, lastEvened string
	preempted             int
}

func newFleet(c *checks) *fleet {
	return &fleet{c: c, global: map[string]bool{}, beside: map[string]bool{}, refused: map[string]bool{}}
}

// batch is told of changes that nobody has seen yet, and what they led to.
func (f *fleet) batch(v *store.View, changes []store.Change) {
	touched := map[string]bool{} // rows of nodes and services that are not as they were when something else was written
	for _, change := range changes {
		switch change.Table {
		case swarmpb.Table_TABLE_SERVICE, swarmpb.Table_TABLE_NODE:
			touched[change.Key.ID] = true
		}
		if service, ok := change.New.(*swarmpb.Service); ok && service.GetSpec().GetMode().GetGlobal() != nil {
			f.global[service.Id] = true
			if service.Spec.Update.GetOrder() == swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST {
				f.beside[service.Id] = true
			}
		}
	}
	for _, change := range changes {
		switch now := change.New.(type) {
		case *swarmpb.Task:
			switch service := v.Service(now.ServiceId); {
			case change.Old != nil || service.GetSpec().GetSchedule() != nil:
			case now.Move == moveBalance:
				f.evened, f.lastEvened = f.c.clock(), fmt.Sprintf("%s of %s", now.Id, service.GetSpec().GetName())
			default:
				f.begun, f.lastBegun = f.c.clock(), fmt.Sprintf("%s of %s", now.Id, service.GetSpec().GetName())
			}
		case *swarmpb.TaskPlacement:
			if now.NodeId == "" && now.Message != "" {
				f.refused[now.TaskId] = true
			}
			if old, _ := change.Old.(*swarmpb.TaskPlacement); now.NodeId != "" && old.GetNodeId() == "" && !touched[now.NodeId] {
				f.placed(v, now)
			}
		case *swarmpb.SlotProgress:
			if old, _ := change.Old.(*swarmpb.SlotProgress); now.GaveWayTo != "" && old.GetGaveWayTo() != now.GaveWayTo {
				asker := v.Task(now.GaveWayTo).GetServiceId()
				if !touched[asker] && !touched[now.ServiceId] {
					f.gaveWay(v.Service(asker), v.Service(now.ServiceId), now)
				}
			}
		}
	}
	for id := range f.global {
		if service := v.Service(id); service != nil {
			f.oneEach(v, service)
		}
	}
}

// placed: a node that is given a task takes tasks, and suits.
func (f *fleet) placed(v *store.View, now *swarmpb.TaskPlacement) {
	task, node := v.Task(now.TaskId), v.Node(now.NodeId)
	if task == nil || node == nil {
		return
	}
	if a := node.GetSpec().GetAvailability(); a == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN || a == swarmpb.NodeAvailability_NODE_AVAILABILITY_PAUSE {
		f.c.add("task %s of %s is placed on node %s, which is on %s", task.Id, task.ServiceId, node.Id, a.Name())
	}
	if !inZone(v, node.Id, v.Template(task.ServiceId, task.TemplateVersion)) {
		f.c.add("task %s of %s is placed on node %s, which its constraints do not allow", task.Id, task.ServiceId, node.Id)
	}
	if task.NodeId != "" && task.NodeId != node.Id {
		f.c.add("task %s of %s is for node %s, and placed on %s", task.Id, task.ServiceId, task.NodeId, node.Id)
	}
}

// gaveWay: nobody gives way but to a higher priority.
func (f *fleet) gaveWay(to, from *swarmpb.Service, slot *swarmpb.SlotProgress) {
	f.preempted++
	if to != nil && from != nil && to.GetSpec().GetPriority() <= from.GetSpec().GetPriority() {
		f.c.add("slot %d of %s, of priority %d, gave way to task %s of %s, of priority %d", slot.Slot, from.Spec.Name, from.Spec.Priority,
			slot.GaveWayTo, to.Spec.Name, to.Spec.Priority)
	}
}

// oneEach: on a node at most one task of a global service is to run, but for a successor that starts beside its predecessor.
func (f *fleet) oneEach(v *store.View, service *swarmpb.Service) {
	meant := map[string][]*swarmpb.Task{}
	for task := range v.TasksOf(service.Id) {
		if task.DesiredState == swarmpb.TaskState_TASK_STATE_RUNNING && !v.Observed(task.Id).Ended() {
			meant[task.NodeId] = append(meant[task.NodeId], task)
		}
	}
	for node, tasks := range meant {
		if node == "" || len(tasks) > 2 || len(tasks) == 2 && !(tasks[1].Beside && tasks[1].Replaces == tasks[0].Id) {
			f.c.add("%d tasks of global service %s are to run on node %q at %d", len(tasks), service.GetSpec().GetName(), node, v.Index())
		}
	}
}

// started is told which containers of a service run on a machine, one of which was just started.
func (f *fleet) started(machine, service string, running []string) {
	most := 1
	if f.beside[service] {
		most = 2
	}
	if f.global[service] && len(running) > most {
		f.c.add("%s runs %v of global service %s", machine, running, service)
	}
}

// inZone tells whether a node is in the zone that a template asks for, which is all that services here ask for.
func inZone(v *store.View, node string, template *swarmpb.Template) bool {
	for _, constraint := range template.GetSpec().GetPlacement().GetConstraints() {
		zone, _ := strings.CutPrefix(constraint, "node.labels."+zoneLabel+" == ")
		if v.Node(node).GetSpec().GetLabels()[zoneLabel] != zone {
			return false
		}
	}
	return true
}

// room says which node could take a task that has none, by itself or once others of lower priority have given way; empty = none.
func room(v *store.View, task *swarmpb.Task) string {
	template, service := v.Template(task.ServiceId, task.TemplateVersion), v.Service(task.ServiceId)
	need := template.GetSpec().GetResources().GetReservations().GetNanoCpus()
	for node := range v.Nodes() {
		if task.NodeId != "" && task.NodeId != node.Id || !takesTasks(v, node) || !inZone(v, node.Id, template) {
			continue
		}
		free := v.NodeStatus(node.Id).GetDescription().GetResources().GetNanoCpus() - v.Usage(node.Id).NanoCPUs
		taken := map[uint32]bool{}
		for other := range v.TasksOn(node.Id) {
			if v.Observed(other.Id).Ended() {
				continue
			}
			its := v.Template(other.ServiceId, other.TemplateVersion)
			for _, p := range its.GetHostPorts() {
				taken[p.PublishedPort] = true
			}
			if v.Service(other.ServiceId).GetSpec().GetPriority() < service.GetSpec().GetPriority() {
				free += its.GetSpec().GetResources().GetReservations().GetNanoCpus()
			}
		}
		blocked := false
		for _, p := range template.GetHostPorts() {
			blocked = blocked || taken[p.PublishedPort]
		}
		if free >= need && !blocked {
			return node.Id
		}
	}
	return ""
}

func takesTasks(v *store.View, node *swarmpb.Node) bool {
	return node.GetSpec().GetAvailability() <= swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE &&
		v.NodeStatus(node.Id).GetState() == swarmpb.NodeState_NODE_STATE_READY
}

// standing is what has become of the tasks of a service that are meant to run.
type standing struct {
	v *store.View
	// up are slots with a task that runs, waiting those with one for which there is no room, and held those with one that is
	// ready, and comes after such a one in an update.
	up, waiting, held map[uint64]bool
	// misplaced says why a task that runs is not to be where it is.
	misplaced string
}

// stand looks at a service's tasks, adds those that run to want, and says which is on its way.
func stand(v *store.View, service *swarmpb.Service, want map[string]bool) (*standing, string) {
	s := &standing{v: v, up: map[uint64]bool{}, waiting: map[uint64]bool{}, held: map[uint64]bool{}}
	update := v.ServiceProgress(service.Id).GetUpdate()
	updating := update.GetState() == swarmpb.UpdateState_UPDATE_STATE_UPDATING || update.GetState() == swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED
	for task := range v.TasksOf(service.Id) {
		state, rows := v.Observed(task.Id), v.TaskRows(task.Id)
		switch {
		case state.Ended():
		case task.DesiredState.Starts() && state == swarmpb.TaskState_TASK_STATE_RUNNING:
			want[task.Id], s.up[task.Slot] = true, true
			s.misplaced = cmp.Or(s.misplaced, misplaced(v, task))
		case task.DesiredState.Wanted() && rows.Placement.GetNodeId() == "" && rows.Placement.GetMessage() != "" && room(v, task) == "":
			s.waiting[task.Slot] = true
		case updating && task.DesiredState == swarmpb.TaskState_TASK_STATE_READY && state == swarmpb.TaskState_TASK_STATE_READY:
			s.held[task.Slot] = true
		default:
			why := ""
			if rows.Placement.GetNodeId() == "" {
				why = fmt.Sprintf("; there is room on node %q", room(v, task))
			}
			return nil, fmt.Sprintf("task %s of %s is %s of %s: %s%s%s", task.Id, service.GetSpec().GetName(), state.Name(), task.DesiredState.Name(),
				rows.Placement.GetMessage(), v.Status(task.Id).GetError(), why)
		}
	}
	return s, ""
}

// servedBy says what a service lacks, and adds its running tasks to want.
func servedBy(v *store.View, service *swarmpb.Service, want map[string]bool) string {
	name, spec := service.GetSpec().GetName(), service.GetSpec()
	switch {
	case service.Removing:
		return "service " + name + " is still being removed"
	case spec.GetSchedule() != nil && !spec.Schedule.Suspended:
		return "" // it never comes to rest
	}
	s, why := stand(v, service, want)
	switch {
	case why != "":
		return why
	case s.misplaced != "" && !s.heldBack(service):
		return s.misplaced
	case len(s.held) > 0 && len(s.waiting) == 0:
		return fmt.Sprintf("tasks of %s are ready, and are not started", name)
	case spec.IsJob():
		if active := v.ServiceProgress(service.Id).GetJob().GetActive(); len(s.up) > 0 || len(active) > 0 && len(s.waiting) == 0 {
			return fmt.Sprintf("job %s goes on: %v", name, active)
		}
	case spec.GetMode().GetGlobal() != nil:
		return s.everywhere(service)
	default:
		maps.Copy(s.waiting, s.up)
		maps.Copy(s.waiting, s.held)
		if replicas := spec.GetMode().GetReplicated().GetReplicas(); uint64(len(s.waiting)) != replicas {
			return fmt.Sprintf("%d of %d replicas of %s run, or wait for room", len(s.waiting), replicas, name)
		}
	}
	return ""
}

// everywhere says on which node a global service's task is missing, or is one too many.
func (s *standing) everywhere(service *swarmpb.Service) string {
	has, slots := map[string]int{}, map[uint64]bool{}
	for task := range s.v.TasksOf(service.Id) {
		if !s.v.Observed(task.Id).Ended() && task.DesiredState.Wanted() && !slots[task.Slot] {
			slots[task.Slot] = true
			has[task.NodeId]++
		}
	}
	template := s.v.Template(service.Id, service.TemplateVersion)
	for node := range s.v.Nodes() {
		least, most := 0, 0
		switch a := node.GetSpec().GetAvailability(); {
		case a == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN || !inZone(s.v, node.Id, template):
		case takesTasks(s.v, node):
			least, most = 1, 1
		default:
			most = 1
		}
		if n := has[node.Id]; n < least || n > most {
			return fmt.Sprintf("global service %s has tasks in %d slots of node %s, which is on %s", service.Spec.Name, n, node.Id, node.GetSpec().GetAvailability().Name())
		}
	}
	return ""
}
