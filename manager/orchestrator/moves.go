package orchestrator

import (
	"fmt"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	// DefaultUnavailable is the share of the replicas, in percent, that may be down for the sake of moves unless the user says.
	DefaultUnavailable = 25
	// MovePatience is how long a task that does not come up holds others up, under the default budget.
	MovePatience = 5 * time.Minute
	// MoveFailures in a row are as many after which it is not waited for, under the default budget.
	MoveFailures = 5
	// MovePace is how often a service is looked at while a task waits for its turn to move, and nothing happens; a large one
	// less often, so that it takes a few hundredths of the time.
	MovePace = time.Second
	// MoveRetry is the pause before a task's successor is tried again that has failed for good.
	MoveRetry = 30 * time.Second
	// largeService is as many tasks as a look at all of them costs next to nothing.
	largeService = 5000
)

const (
	moveDrain      = swarmpb.MoveReason_MOVE_REASON_DRAIN
	moveConstraint = swarmpb.MoveReason_MOVE_REASON_CONSTRAINT
	moveBalance    = swarmpb.MoveReason_MOVE_REASON_REBALANCE
)

// Moves is the reconciler that has tasks replaced which should be elsewhere: those of drained nodes and those whose node
// does not meet their constraints any more, within the service's disruption budget (id: the service), and, a few in the whole
// cluster at a time, those that would be better off elsewhere (id: all services for balance). Slots carry each one along.
type Moves struct{}

var _ reconcile.Reconciler = Moves{}

// Name is moves.
func (Moves) Name() string { return "moves" }

// Affects names what services have on a node that changes, one that changes itself, and one in which a move has got
// further; and the cluster's balance when something may be out of it.
func (Moves) Affects(view *store.View, change store.Change) (ids []reconcile.ID) {
	switch change.Table {
	case swarmpb.Table_TABLE_SERVICE:
		ids = append(ids, balanceID)
		if change.New != nil {
			ids = append(ids, reconcile.ID{Object: change.Key.ID})
		}
	case swarmpb.Table_TABLE_SERVICE_PROGRESS:
		before, _ := change.Old.(*swarmpb.ServiceProgress)
		after, _ := change.New.(*swarmpb.ServiceProgress)
		if before.GetUpdate().Underway() && !after.GetUpdate().Underway() {
			ids = append(ids, balanceID)
		}
	case swarmpb.Table_TABLE_NODE:
		if nodeMatters(change) {
			ids = append(servicesOn(view, change.Key.ID), balanceID)
		}
	case swarmpb.Table_TABLE_NODE_STATUS:
		if nodeMatters(change) {
			ids = append(servicesOn(view, change.Key.ID), balanceID)
		}
	case swarmpb.Table_TABLE_TASK:
		task, _ := change.New.(*swarmpb.Task)
		if task.GetMove() != 0 && change.Old != nil && !task.DesiredState.Wanted() {
			ids = movedFurther(view, task)
		}
	case swarmpb.Table_TABLE_TASK_PLACEMENT:
		placement, _ := change.New.(*swarmpb.TaskPlacement)
		if task := view.Task(placement.GetTaskId()); task.GetMove() != 0 && placement.NodeId == "" {
			ids = movedFurther(view, task)
		}
	case swarmpb.Table_TABLE_TASK_STATUS:
		status, _ := change.New.(*swarmpb.TaskStatus)
		if status.GetState() >= stateRunning {
			ids = statusMoves(view, view.Task(status.TaskId), status.State)
		}
	case swarmpb.Table_TABLE_CLUSTER:
		ids = append(ids, balanceID)
	}
	return ids
}

// statusMoves: a task that has moved is up, or one has ended: it, or the one that it followed.
func statusMoves(view *store.View, task *swarmpb.Task, state swarmpb.TaskState) []reconcile.ID {
	switch {
	case task == nil:
		return nil
	case task.Move != 0:
		return movedFurther(view, task)
	case !state.Ended() || view.ServiceProgress(task.ServiceId).GetMovedAt() == 0:
		return nil
	}
	for other := range view.TasksIn(task.ServiceId, task.Slot) {
		if other.Replaces == task.Id && other.Move != 0 {
			return movedFurther(view, other)
		}
	}
	return nil
}

// movedFurther names the service of a task that has moved: of a large one only for few of its tasks, since a look is at all of
// them; the clock does the rest.
func movedFurther(view *store.View, task *swarmpb.Task) (ids []reconcile.ID) {
	if task.Move == moveBalance {
		ids = append(ids, balanceID)
	}
	if n := uint64(1 + view.TaskCountOf(task.ServiceId)/largeService); task.Slot%(n*n) == 0 {
		ids = append(ids, reconcile.ID{Object: task.ServiceId})
	}
	return ids
}

// servicesOn are what services have on a node.
func servicesOn(view *store.View, nodeID string) (ids []reconcile.ID) {
	seen := map[string]bool{}
	for task := range view.TasksOn(nodeID) {
		if !seen[task.ServiceId] {
			seen[task.ServiceId] = true
			ids = append(ids, reconcile.ID{Object: task.ServiceId, Node: nodeID})
		}
	}
	return ids
}

// All names every service, and the balance of all.
func (Moves) All(view *store.View) []reconcile.ID {
	ids := []reconcile.ID{balanceID}
	for service := range view.Services() {
		ids = append(ids, reconcile.ID{Object: service.Id})
	}
	return ids
}

// Of is All for one service.
func (Moves) Of(_ *store.View, serviceID string) []reconcile.ID {
	return []reconcile.ID{{Object: serviceID}}
}

// Reconcile begins as many moves as the service's budget leaves, or some for balance.
func (Moves) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	if forBalance(id) {
		return balance(view, id, now), nil
	}
	service := view.Service(id.Object)
	if !movable(service) {
		return reconcile.Plan{}, nil
	}
	m := &moving{planner: newPlanner(view, service, now)}
	switch {
	case id.Node != "":
		if m.displacedOn(view.Node(id.Node), m.constrained(), newFits(view)) {
			return reconcile.Plan{Also: []reconcile.Look{{ID: reconcile.ID{Object: id.Object}}}}, nil
		}
	case m.displaced():
		m.look()
		m.begin()
	}
	return m.finish(), nil
}

// movable tells whether the service's tasks can be elsewhere than where they are.
func movable(service *swarmpb.Service) bool {
	return service != nil && !service.Removing && !global(service) && !service.GetSpec().IsAttachment() &&
		service.GetSpec().GetMode().GetGlobalJob() == nil
}

// moving is one look at a service of which tasks should be elsewhere.
type moving struct {
	*planner
	// most is how many slots may be without a task that is up, or on their way to another one; strict: the user says so.
	most   uint64
	strict bool
	// used is how many are, blocks one of them.
	used   uint64
	blocks *slot
	// free are slots to move that are not up anyway, ready those that are.
	free, ready []*slot
	// more: there are more of them than are kept.
	more bool
	// underWay: a slot is to be moved in which another replacement goes on.
	underWay bool
	// later is when the first is to be tried again whose successor has failed; paused is how many there are.
	later  time.Time
	paused int
}

// displaced tells cheaply whether a task of the service may be where it should not.
func (m *moving) displaced() bool {
	with, f := m.constrained(), newFits(m.view)
	for node := range m.view.Nodes() {
		if m.displacedOn(node, with, f) {
			return true
		}
	}
	return false
}

// constrained are the service's templates with constraints, a task of each.
func (m *moving) constrained() (with []*swarmpb.Task) {
	for template := range m.view.TemplatesOf(m.service.Id) {
		if constrained(template) {
			with = append(with, &swarmpb.Task{ServiceId: m.service.Id, TemplateVersion: template.Version})
		}
	}
	return with
}

// displacedOn is displaced for one node; nil is none.
func (m *moving) displacedOn(node *swarmpb.Node, with []*swarmpb.Task, f *fits) bool {
	drained := node.GetSpec().GetAvailability() == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
	if !drained && len(with) == 0 || m.view.TasksOnByService(node.GetId(), m.service.Id) == 0 {
		return false
	}
	return drained || slices.ContainsFunc(with, func(task *swarmpb.Task) bool { return f.misfit(task, node.GetId()) })
}

// budgetOf is how many of the service's tasks may be down for the sake of moves, and whether the user has said so.
func budgetOf(service *swarmpb.Service) (most uint64, strict bool) {
	share := uint64(DefaultUnavailable)
	switch budget := service.GetSpec().GetMaxUnavailable().GetMost().(type) {
	case *swarmpb.DisruptionBudget_Count:
		return max(1, budget.Count), true
	case *swarmpb.DisruptionBudget_Percent:
		share, strict = uint64(budget.Percent), true
	}
	return max(1, (replicas(service)*share+99)/100), strict
}

// look goes through all slots.
func (m *moving) look() {
	m.most, m.strict = budgetOf(m.service)
	slotsInUse := uint64(0)
	for s := range slots(m.view, m.service, 0, m.now) {
		live := s.live()
		if len(live) == 0 || m.job && !m.goesOn(s.run()) {
			continue
		}
		slotsInUse++
		task, underWay := m.holder(live)
		up := task != nil && task.up()
		if (!up || underWay) && m.counts(s, live[len(live)-1]) {
			m.used++
			if m.blocks == nil {
				m.blocks = s
			}
		}
		if task != nil && !underWay && task.evicted && !task.gone() {
			m.enter(s, task, up)
		} else if slices.ContainsFunc(live, func(r *replica) bool { return r.evicted && !r.gone() }) {
			m.underWay = true
		}
	}
	if !m.job && !m.progress.GetUpdate().Sets() {
		m.used += replicas(m.service) - min(replicas(m.service), slotsInUse) // not made yet
	}
}

// holder is the task that has a slot, nil when none runs and there are several, and whether another one is about to take its
// place. One that waits for a rollout's turn is not.
func (m *moving) holder(live []*replica) (task *replica, underWay bool) {
	heir := live[len(live)-1]
	if len(live) == 1 {
		return heir, false
	}
	for _, r := range live[:len(live)-1] {
		if r.runs() {
			task = r
		}
	}
	if task == nil {
		return nil, true
	}
	return task, !waitsForTurn(task, heir)
}

// counts tells whether a slot that is not up, or about to change, is held against the budget: under the default one only as
// long as it is likely to come up. A set without traffic takes nothing from anybody.
func (m *moving) counts(s *slot, newest *replica) bool {
	if update := m.progress.GetUpdate(); update.Sets() {
		fresh := s.template() == update.TemplateVersion
		if fresh && update.Share == 0 || !fresh && update.Share >= swarmpb.WholeShare {
			return false
		}
	}
	if m.strict || m.job {
		return true
	}
	progress := s.progressOf(m.service, newest.task.TemplateVersion)
	return !newest.refused && !progress.GivenUp && progress.Failures < MoveFailures &&
		m.now.UnixNano()-newest.task.GetMeta().GetCreatedAt() < int64(MovePatience)
}

// enter notes a slot whose task is to move, unless it runs and its last successor has failed just now.
func (m *moving) enter(s *slot, task *replica, up bool) {
	progress := s.progressOf(m.service, task.task.TemplateVersion)
	at := time.Unix(0, progress.NotBefore)
	if progress.GivenUp {
		at = time.Unix(0, progress.GetMeta().GetUpdatedAt()).Add(MoveRetry)
	}
	switch {
	case m.now.Before(at) && task.runs():
		if m.paused++; m.later.IsZero() || at.Before(m.later) {
			m.later = at
		}
	case len(m.free)+len(m.ready) >= reconcile.MaxWrites*(reconcile.MaxRest+1)/2:
		m.more = true
	case up:
		m.ready = append(m.ready, s)
	default:
		m.free = append(m.free, s)
	}
}

// begin has the tasks of as many slots replaced as the budget leaves.
func (m *moving) begin() {
	most := len(m.ready)
	if !m.job {
		most = int(min(uint64(most), m.most-min(m.most, m.used)))
	}
	m.plan.More = m.more && most == len(m.ready)
	// What is under way may fail, and not every change of a large service leads here.
	if m.underWay || len(m.free)+len(m.ready) > 0 {
		m.wake(m.now.Add(MovePace * time.Duration(1+m.view.TaskCountOf(m.service.Id)/(5*largeService))))
	}
	if m.paused > 0 {
		m.wake(m.later)
	}
	begun := append(m.free, m.ready[:most]...)
	if len(begun) == 0 {
		return
	}
	m.moved(0)
	for _, s := range begun {
		if !m.room() {
			m.plan.More = true
			return
		}
		m.relocate(s)
	}
}

// moved notes that tasks of the service are told to move, of balanceSlot for balance if it is one. Of two who do so at a time
// one is refused, and counts anew; whatever else becomes of the service meanwhile does not matter.
func (p *planner) moved(balanceSlot uint64) {
	p.write(&swarmpb.Write{Op: &swarmpb.Write_NoteMoves{NoteMoves: &swarmpb.NoteMoves{ServiceId: p.service.Id,
		MovedBefore: p.progress.GetMovedAt(), MovedAt: p.now.UnixNano(), BalanceSlot: balanceSlot}}})
}

// relocate has a slot's task replaced, by the order in which the service is updated.
func (m *moving) relocate(s *slot) {
	task, _ := m.holder(s.live())
	like := &swarmpb.Task{TemplateVersion: m.templateOf(task), Beside: m.startFirst(), Move: moveDrain}
	if task.misfit {
		like.Move = moveConstraint
	}
	if !task.runs() {
		like.StartNotBefore = task.task.StartNotBefore
	}
	m.replace(s, like)
}

// startFirst tells whether a task that moves runs elsewhere before it stops where it was.
func (p *planner) startFirst() bool {
	config := p.service.GetSpec().GetUpdate()
	return config.GetOrder() == swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST &&
		config.StrategyOr() != inPlace && config.StrategyOr() != recreate
}

// Held says in a line why tasks of a service that should be elsewhere wait; empty when none has to.
func Held(view *store.View, serviceID string, now time.Time) string {
	service := view.Service(serviceID)
	if !movable(service) {
		return ""
	}
	m := &moving{planner: newPlanner(view, service, now)}
	if !m.displaced() {
		return ""
	}
	m.look()
	switch waits := uint64(len(m.ready)); {
	case waits > 0 && !m.job && m.used >= m.most:
		whose := "max unavailable"
		if !m.strict {
			whose = "the default max unavailable"
		}
		text := fmt.Sprintf("%s: %s: %d may be down or on the way (%s), and %s",
			service.GetSpec().GetName(), wait(waits), m.most, whose, are(m.used))
		if m.blocks != nil {
			text += ": " + m.blocks.trouble(service)
		}
		return text
	case m.paused > 0:
		return fmt.Sprintf("%s: the successor of %s failed and is tried again in %s",
			service.GetSpec().GetName(), tasks(uint64(m.paused)), m.later.Sub(now).Round(time.Second))
	default:
		return ""
	}
}

func wait(n uint64) string {
	if n == 1 {
		return "1 task waits for its turn"
	}
	return fmt.Sprintf("%d tasks wait for their turn", n)
}

func are(n uint64) string {
	if n == 1 {
		return "1 is"
	}
	return fmt.Sprintf("%d are", n)
}

// trouble names what keeps a slot from being up.
func (s *slot) trouble(service *swarmpb.Service) string {
	live := s.live()
	newest := live[len(live)-1]
	name := swarmpb.TaskName(service.GetSpec().GetName(), s.number, newest.task.NodeId)
	switch {
	case newest.refused:
		return name + " finds no node that suits"
	case newest.lost:
		return name + " is on a node that is down"
	case newest.state.Ended():
		return fmt.Sprintf("%s has ended (%s)", name, newest.state.Name())
	default:
		return fmt.Sprintf("%s is %s", name, newest.state.Name())
	}
}
