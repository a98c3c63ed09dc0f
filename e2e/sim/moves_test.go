package sim

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const moveBalance = swarmpb.MoveReason_MOVE_REASON_REBALANCE

// moves is what must hold of tasks that are told to be elsewhere: because of a drain or of constraints within the budget of
// their service, for balance one after the other, and only where that is wanted. It is used with the mutex of the checks held.
//
// It reckons by itself which slots are out, from the tasks that are made. What the leader did not know yet is left out: what
// nodes have reported in the last moments, and what came in the same batch.
type moves struct {
	c *checks
	// out are the slots, by service and number, in which a task that was up is on its way to another node.
	out map[string]map[uint64]*onTheMove
	// down is since when a slot in use has no task that is up.
	down map[string]map[uint64]time.Duration
	// running is since when a task is known to run.
	running map[string]time.Duration
	// heldSince is when the cluster's operator last said that nothing moves by itself; negative: it does.
	heldSince time.Duration
	// asked is when a service was last one of those that a user's request for balance is about.
	asked map[string]time.Duration
	seen  struct{ drained, evicted, balanced, most int }
}

// onTheMove is a slot that is out.
type onTheMove struct {
	reason swarmpb.MoveReason
	// asked: a user wants balance.
	asked bool
}

func newMoves(c *checks) *moves {
	return &moves{c: c, out: map[string]map[uint64]*onTheMove{}, down: map[string]map[uint64]time.Duration{},
		running: map[string]time.Duration{}, heldSince: -1, asked: map[string]time.Duration{}}
}

// step is a batch of changes, and what they led to.
type step struct {
	v       *store.View
	changes []store.Change
	// slots, by service and number, and nodes, that something in the batch is about, new tasks that move aside.
	slots map[string]map[uint64]bool
	nodes map[string]bool
}

// begun are the tasks of a service that were told to move in one commit.
type begun struct {
	index   uint64
	service string
	tasks   []*swarmpb.Task
}

// batch is told of changes that nobody has seen yet, and what they led to.
func (m *moves) batch(v *store.View, changes []store.Change) {
	s := &step{v: v, changes: changes, slots: map[string]map[uint64]bool{}, nodes: map[string]bool{}}
	var all []*begun
	for _, change := range changes {
		switch now := change.New.(type) {
		case *swarmpb.Task:
			if change.Old != nil || now.Move == swarmpb.MoveReason_MOVE_REASON_UNSPECIFIED {
				s.touch(now)
				continue
			}
			if n := len(all); n == 0 || all[n-1].index != change.Index || all[n-1].service != now.ServiceId {
				all = append(all, &begun{index: change.Index, service: now.ServiceId})
			}
			all[len(all)-1].tasks = append(all[len(all)-1].tasks, now)
		case *swarmpb.TaskStatus:
			s.touch(v.Task(now.TaskId))
			if _, known := m.running[now.TaskId]; !known && now.Up() {
				m.running[now.TaskId] = m.c.clock()
			}
		case *swarmpb.TaskPlacement:
			s.touch(v.Task(now.TaskId))
		}
		if change.Table == swarmpb.Table_TABLE_NODE || change.Table == swarmpb.Table_TABLE_NODE_STATUS {
			s.nodes[change.Key.ID] = true
		}
	}
	m.requests(v)
	for _, b := range all {
		m.begin(s, b)
	}
	for _, change := range changes {
		old, _ := change.Old.(*swarmpb.TaskPlacement)
		if now, ok := change.New.(*swarmpb.TaskPlacement); ok && now.NodeId != "" && old.GetNodeId() == "" {
			m.placed(s, now)
		}
	}
	m.look(v)
}

func (s *step) touch(task *swarmpb.Task) {
	if task == nil {
		return
	}
	if s.slots[task.ServiceId] == nil {
		s.slots[task.ServiceId] = map[uint64]bool{}
	}
	s.slots[task.ServiceId][task.Slot] = true
}

// serviceAt is a service as it was once an entry was applied.
func (s *step) serviceAt(id string, index uint64) *swarmpb.Service {
	for _, change := range s.changes {
		if change.Table == swarmpb.Table_TABLE_SERVICE && change.Key.ID == id && change.Index > index {
			old, _ := change.Old.(*swarmpb.Service)
			return old
		}
	}
	return s.v.Service(id)
}

// told tells whether an entry says that a task is to stop.
func (s *step) told(id string, index uint64) bool {
	return slices.ContainsFunc(s.changes, func(change store.Change) bool {
		now, ok := change.New.(*swarmpb.Task)
		return ok && change.Index == index && now.Id == id && !now.DesiredState.Wanted()
	})
}

// requests follows what users want of balance.
func (m *moves) requests(v *store.View) {
	switch held := v.Cluster().GetSpec().GetNoRebalance(); {
	case !held:
		m.heldSince = -1
	case m.heldSince < 0:
		m.heldSince = m.c.clock()
	}
	at := v.Cluster().GetRebalanceAt()
	for service := range v.Services() {
		if at != 0 && service.GetMeta().GetCreatedAt() <= at && v.ServiceProgress(service.Id).GetBalancedAt() < at {
			m.asked[service.Id] = m.c.clock()
		}
	}
}

// begin judges tasks of a service that are told to move.
func (m *moves) begin(s *step, b *begun) {
	service := s.serviceAt(b.service, b.index)
	if service == nil {
		return
	}
	var entered []*swarmpb.Task
	for _, task := range b.tasks {
		if !s.told(task.Replaces, b.index) || m.wasUp(s, task.Replaces) {
			entered = append(entered, task)
		}
		if task.Move == moveBalance {
			m.balance(s, service, task, b.index)
		}
	}
	if service.GetSpec().GetMode().GetReplicated() == nil || s.v.ServiceProgress(service.Id).GetUpdate().Sets() {
		return
	}
	m.spend(s, service, entered)
	if m.out[service.Id] == nil {
		m.out[service.Id] = map[uint64]*onTheMove{}
	}
	for _, task := range entered {
		_, asked := m.asked[service.Id]
		asked = asked && m.c.clock()-m.asked[service.Id] <= overtaken
		m.out[service.Id][task.Slot] = &onTheMove{reason: task.Move, asked: asked}
	}
	for _, task := range b.tasks {
		switch task.Move {
		case moveBalance:
			m.seen.balanced++
		case swarmpb.MoveReason_MOVE_REASON_DRAIN:
			m.seen.drained++
		default:
			m.seen.evicted++
		}
	}
	m.seen.most = max(m.seen.most, len(m.out[service.Id]))
}

// wasUp tells whether a task was up for long enough that the leader knew.
func (m *moves) wasUp(s *step, id string) bool {
	node := s.v.NodeID(id)
	since, known := m.running[id]
	status := s.v.NodeStatus(node)
	return known && m.c.clock()-since > overtaken && s.v.Observed(id) == swarmpb.TaskState_TASK_STATE_RUNNING && !s.nodes[node] &&
		status.GetState() == swarmpb.NodeState_NODE_STATE_READY && time.Since(time.Unix(0, status.GetSince())) > overtaken
}

// spend: those that are out and those that have been down for a while are together no more than the budget.
func (m *moves) spend(s *step, service *swarmpb.Service, entered []*swarmpb.Task) {
	if len(entered) == 0 {
		return
	}
	used := map[uint64]string{}
	for slot, move := range m.out[service.Id] {
		if !s.slots[service.Id][slot] {
			used[slot] = "moves, " + move.reason.Name()
		}
	}
	for slot, since := range m.down[service.Id] {
		if m.c.clock()-since > overtaken && !s.slots[service.Id][slot] {
			used[slot] = "is down since " + since.String()
		}
	}
	for _, task := range entered {
		used[task.Slot] = "is told to move, " + task.Move.Name()
	}
	if most, _ := budgetOf(service); uint64(len(used)) > most {
		m.c.add("%s may have %d tasks out at a time, of %d, at %d: %v", service.GetSpec().GetName(), most, service.GetSpec().GetMode().GetReplicated().GetReplicas(), s.v.Index(), used)
	}
}

// budgetOf is how many tasks of a service may be out at a time because of moves, and whether its user has said so.
func budgetOf(service *swarmpb.Service) (most uint64, strict bool) {
	replicas := service.GetSpec().GetMode().GetReplicated().GetReplicas()
	budget := service.GetSpec().GetMaxUnavailable()
	switch {
	case budget.GetCount() > 0:
		return budget.GetCount(), true
	case budget.GetPercent() > 0:
		return max(1, (replicas*uint64(budget.GetPercent())+99)/100), true
	}
	return max(1, (replicas+3)/4), false
}

// balance judges a task that is told to move for balance: that is for services that do not opt out, and where it is wanted.
func (m *moves) balance(s *step, service *swarmpb.Service, task *swarmpb.Task, index uint64) {
	name, spec := service.GetSpec().GetName(), service.GetSpec()
	template := s.v.Template(service.Id, task.TemplateVersion)
	switch strategy := spec.GetUpdate().StrategyOr(); {
	case spec.GetNoRebalance(), spec.GetMode().GetReplicated() == nil, strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_IN_PLACE,
		strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_RECREATE, template.GetSpec().GetStopAfterDisconnect() != nil:
		m.c.add("task %s of %s moves for balance, and the service is to be left alone: %v", task.Id, name, spec)
	case !task.Beside:
		m.c.add("task %s of %s moves for balance, and what it follows is to stop first", task.Id, name)
	}
	since, known := m.asked[service.Id]
	if asked := known && m.c.clock()-since <= overtaken; !asked && m.heldSince >= 0 && m.c.clock()-m.heldSince > overtaken {
		m.c.add("task %s of %s moves for balance, which nobody has asked for, and the cluster is not to do by itself since %s", task.Id, name, m.heldSince)
	}
	for slot, other := range m.out[service.Id] {
		if !s.slots[service.Id][slot] {
			m.c.add("slot %d of %s moves for balance while slot %d moves, %s", task.Slot, name, slot, other.reason.Name())
		}
	}
	balancing := 1
	for id, slots := range m.out {
		for slot, other := range slots {
			if other.reason == moveBalance && !s.slots[id][slot] {
				balancing++
			}
		}
	}
	if balancing > orchestrator.MaxBalancing {
		m.c.add("%d tasks move for balance at a time at %d", balancing, s.v.Index())
	}
	for _, change := range s.changes {
		now, ok := change.New.(*swarmpb.ServiceProgress)
		if old, _ := change.Old.(*swarmpb.ServiceProgress); ok && change.Index == index && now.ServiceId == service.Id && old.GetMovedAt() != 0 && old.MovedAt != now.MovedAt {
			if pause := time.Duration(now.MovedAt - old.GetMovedAt()); pause >= 0 && pause < orchestrator.BalancePause {
				m.c.add("slot %d of %s moves for balance %s after another move", task.Slot, name, pause)
			}
		}
	}
}

// placed judges the node that a task gets which moves for balance: it makes things more even, and has been there for a while.
func (m *moves) placed(s *step, now *swarmpb.TaskPlacement) {
	task := s.v.Task(now.TaskId)
	if task == nil || task.Move != moveBalance {
		return
	}
	move := m.out[task.ServiceId][task.Slot]
	node, status := s.v.Node(now.NodeId), s.v.NodeStatus(now.NodeId)
	from := s.v.NodeID(task.Replaces)
	if move == nil || move.reason != moveBalance || s.nodes[now.NodeId] || s.nodes[from] || s.v.Task(task.Replaces) == nil ||
		s.v.Observed(task.Replaces).Ended() || !s.v.Task(task.Replaces).DesiredState.Wanted() {
		return // it is just needed by now
	}
	name := s.v.Service(task.ServiceId).GetSpec().GetName()
	if settled := time.Unix(0, max(node.GetMeta().GetUpdatedAt(), status.GetSince())).Add(orchestrator.SettleTime); !move.asked && time.Now().Before(settled) {
		m.c.add("slot %d of %s moves for balance to node %s, which has not been there for %s", task.Slot, name, now.NodeId, orchestrator.SettleTime)
	}
	if there, here := holds(s.v, task.ServiceId, now.NodeId), holds(s.v, task.ServiceId, from); there > here {
		m.c.add("slot %d of %s moves for balance from node %s, which has %d of its tasks, to node %s, which then has %d", task.Slot, name, from, here, now.NodeId, there)
	}
}

// holds is how many tasks of a service a node has.
func holds(v *store.View, service, node string) (n int) {
	for task := range v.TasksOn(node) {
		if task.ServiceId == service && !v.Observed(task.Id).Ended() {
			n++
		}
	}
	return n
}

// look finds which slots are not out any more, and which are down.
func (m *moves) look(v *store.View) {
	maps.DeleteFunc(m.out, func(id string, _ map[uint64]*onTheMove) bool { return v.Service(id) == nil })
	maps.DeleteFunc(m.down, func(id string, _ map[uint64]time.Duration) bool { return v.Service(id) == nil })
	for service := range v.Services() {
		if service.GetSpec().GetMode().GetReplicated() == nil {
			continue
		}
		live := map[uint64][]*swarmpb.Task{}
		for task := range v.TasksOf(service.Id) {
			if task.DesiredState.Wanted() {
				live[task.Slot] = append(live[task.Slot], task)
			}
		}
		_, strict := budgetOf(service)
		sets := v.ServiceProgress(service.Id).GetUpdate().Sets() // of which some take no connections, and count for nothing
		down := m.down[service.Id]
		if down == nil {
			down = map[uint64]time.Duration{}
			m.down[service.Id] = down
		}
		over := func(slot uint64) bool {
			return sets || len(live[slot]) == 0 || !strict && m.excused(v, service.Id, slot, live[slot])
		}
		maps.DeleteFunc(m.out[service.Id], func(slot uint64, _ *onTheMove) bool { return over(slot) || settled(v, live[slot]) })
		maps.DeleteFunc(down, func(slot uint64, _ time.Duration) bool { return over(slot) })
		for slot, tasks := range live {
			up := slices.ContainsFunc(tasks, func(task *swarmpb.Task) bool { return isUp(v, task) })
			if _, known := down[slot]; up {
				delete(down, slot)
			} else if !known && !over(slot) {
				down[slot] = m.c.clock()
			}
		}
	}
}

// excused tells whether the default budget does not wait for a slot.
func (m *moves) excused(v *store.View, service string, slot uint64, live []*swarmpb.Task) bool {
	newest := live[len(live)-1]
	progress := v.SlotProgress(service, slot)
	return m.c.fleet.refused[newest.Id] || progress.GetGivenUp() || progress.GetFailures() >= orchestrator.MoveFailures ||
		time.Since(time.Unix(0, newest.GetMeta().GetCreatedAt())) >= orchestrator.MovePatience
}

// isUp tells whether a task runs on a node that is there.
func isUp(v *store.View, task *swarmpb.Task) bool {
	node := v.NodeID(task.Id)
	return v.Status(task.Id).Up() && v.Node(node) != nil && v.NodeStatus(node).GetState() != swarmpb.NodeState_NODE_STATE_DOWN
}

// settled tells whether one task has the slot, which is up; one that waits for its turn in an update aside.
func settled(v *store.View, live []*swarmpb.Task) bool {
	if n := len(live); n > 1 && live[n-1].DesiredState < swarmpb.TaskState_TASK_STATE_RUNNING && live[n-1].TemplateVersion != live[n-2].TemplateVersion {
		live = live[:n-1]
	}
	return len(live) == 1 && isUp(v, live[0])
}

// misplaced says why a task that runs is not to be where it is.
func misplaced(v *store.View, task *swarmpb.Task) string {
	id := v.NodeID(task.Id)
	switch node := v.Node(id); {
	case node == nil:
		return fmt.Sprintf("task %s of %s runs on node %s, which is no member", task.Id, task.ServiceId, id)
	case node.GetSpec().GetAvailability() == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN:
		return fmt.Sprintf("task %s of %s runs on node %s, which is drained", task.Id, task.ServiceId, id)
	case !inZone(v, id, v.Template(task.ServiceId, task.TemplateVersion)):
		return fmt.Sprintf("task %s of %s runs on node %s, which its constraints do not allow", task.Id, task.ServiceId, id)
	}
	return ""
}

// heldBack tells whether tasks stay where they should not be: as many others have no room as their user's budget allows.
func (s *standing) heldBack(service *swarmpb.Service) bool {
	most, strict := budgetOf(service)
	return strict && service.GetSpec().GetMode().GetReplicated() != nil && uint64(len(s.waiting)) >= most
}
