package orchestrator

import (
	"cmp"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/scheduler"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	// SettleTime is how long a node must have been as it is before tasks are moved there for balance.
	SettleTime = claims.SettleTime
	// MaxBalancing is how many moves for balance are under way in the cluster at a time; there is one a service.
	MaxBalancing = 5
	// BalancePause is the pause between two moves for balance of a service.
	BalancePause = 5 * time.Second
	// BalanceRetry is how long after a look at which a service was busy there is another one.
	BalanceRetry = 30 * time.Second
	// BalanceFailed is how long the slot of a task is left alone that has failed of late.
	BalanceFailed = 10 * time.Minute
	// AskedFor is how long a user's request for balance is tried to be met.
	AskedFor = claims.AskedFor
)

// balanceID is the unit of work that sees to the balance of the whole cluster.
var balanceID = reconcile.ID{Object: "cluster balance"}

// balancer is one look for tasks that would be better off elsewhere.
type balancer struct {
	view *store.View
	now  time.Time
	plan reconcile.Plan
	read *claims.Claims
	// auto: tasks are moved without being asked to. asked: a user has asked, and that is not too long ago.
	auto, asked bool
	// fresh are nodes that have not settled.
	fresh map[string]bool
	// busy: a service was left alone for now.
	busy     bool
	underWay int
	// lost are tasks that nothing is expected of any more, by service.
	lost map[string]lostTasks
	// even are the services that the user's request is done with if nothing moves.
	even []*swarmpb.Service
}

// balance begins moves of tasks that would be better off elsewhere.
func balance(view *store.View, now time.Time) reconcile.Plan {
	b := &balancer{view: view, now: now}
	cluster := view.Cluster()
	b.auto = !cluster.GetSpec().GetNoRebalance()
	b.asked = cluster.GetRebalanceAt() != 0 && now.Sub(time.Unix(0, cluster.GetRebalanceAt())) < AskedFor
	if view.NodeCount() < 2 || !b.auto && !b.asked {
		return b.plan
	}
	if at, wait := b.pace(); wait {
		b.wake(at)
		return b.plan
	}
	fresh, settled := claims.Unsettled(view, now)
	if b.fresh = fresh; len(fresh) > 0 {
		b.wake(settled)
	}
	b.lost = lostTasksOf(view)
	if b.makingRoom() {
		return b.plan // what gives way comes first
	}
	b.begin()
	return b.plan
}

func (b *balancer) wake(at time.Time) {
	if b.plan.At.IsZero() || at.Before(b.plan.At) {
		b.plan.At = at
	}
}

// pace has looks take place at the beginning of periods that are longer in larger clusters, where a look costs more, so that
// they take a small part of the time whatever happens. It answers when the next one begins unless that is now.
func (b *balancer) pace() (time.Time, bool) {
	period := time.Second * time.Duration(1+b.view.TaskCount()/100_000+b.view.NodeCount()*b.view.ServiceCount()/2_000_000)
	begun := b.now.Truncate(period)
	return begun.Add(period), b.now.Sub(begun) > period/4
}

// makingRoom tells whether tasks give way to one of higher priority: that keeps room which the claims do not show.
func (b *balancer) makingRoom() bool {
	for task := range b.view.Unplaced() {
		if asks(b.view.Placement(task.Id)) {
			return true
		}
	}
	return false
}

// begin looks at one service after the other, those that have been moved least lately first.
func (b *balancer) begin() {
	services := slices.Collect(b.view.Services())
	slices.SortStableFunc(services, func(x, y *swarmpb.Service) int {
		return cmp.Or(cmp.Compare(b.movedAt(x), b.movedAt(y)), cmp.Compare(x.Id, y.Id))
	})
	var able []*swarmpb.Service
	for _, service := range services {
		if leftAlone(b.view, service) == "" {
			able = append(able, service)
			b.underWay += b.balancing(service)
		} else {
			b.even = append(b.even, service)
		}
	}
	begun := 0
	for _, service := range able {
		if b.underWay+begun >= MaxBalancing {
			return // there is another look as each is done
		}
		if b.move(service) {
			begun++
		}
	}
	if b.busy {
		b.wake(b.now.Add(BalanceRetry))
	}
	if b.underWay+begun == 0 {
		b.done()
	}
}

func (b *balancer) movedAt(service *swarmpb.Service) int64 {
	return b.view.ServiceProgress(service.Id).GetMovedAt()
}

// wanted tells whether a user's request holds for a service.
func (b *balancer) wanted(service *swarmpb.Service) bool {
	return b.asked && claims.BalanceAsked(b.view, service, b.now)
}

// move begins the move of one task of a service, if one would be better off elsewhere.
func (b *balancer) move(service *swarmpb.Service) bool {
	asked := b.wanted(service)
	if !asked && !b.auto {
		return false
	}
	if b.restlessWhy(service) != "" {
		b.busy = true
		return false
	}
	if b.read == nil {
		b.read = claims.Of(b.view)
	}
	s, ok := balanceOf(b.view, b.read, service, b.now)
	if ok && !asked {
		s.Avoid = append(s.Avoid, b.fresh)
	}
	if !ok || !s.better(b.read.Nodes()) {
		b.even = append(b.even, service)
		return false
	}
	if at := time.Unix(0, b.movedAt(service)).Add(BalancePause); b.now.Before(at) && at.Sub(b.now) <= BalancePause {
		b.busy = true
		b.wake(at)
		return false
	}
	s.Movable = lastOf(movableTasks(b.view, service, b.now, b.failedLately))
	found := b.read.Nodes().Rebalance([]scheduler.Balance{s.Balance}, 1)
	if len(found) == 0 {
		b.even = append(b.even, service)
		return false
	}
	task := b.view.Task(found[0].Task)
	p := newPlanner(b.view, service, b.now)
	if (&moving{planner: p}).displaced() {
		b.busy = true // what has to move goes first
		return false
	}
	p.moved()
	p.replace(readSlot(b.view, service, task.Slot, b.now), &swarmpb.Task{TemplateVersion: task.TemplateVersion, Beside: true, Move: moveBalance})
	b.plan.Writes, b.plan.Guards = append(b.plan.Writes, p.plan.Writes...), append(b.plan.Guards, p.plan.Guards...)
	return true
}

// failedLately tells whether a slot's task, or one that was to follow it, has failed not long ago.
func (b *balancer) failedLately(task *swarmpb.Task) bool {
	progress := b.view.SlotProgress(task.ServiceId, task.Slot)
	return progress.GetFailures() > 0 && b.now.UnixNano()-progress.GetMeta().GetUpdatedAt() < int64(BalanceFailed)
}

// done notes that there is nothing left to move for what a user has asked.
func (b *balancer) done() {
	if !b.asked {
		return
	}
	at := b.view.Cluster().GetRebalanceAt()
	for _, service := range b.even {
		if !b.wanted(service) {
			continue
		}
		if len(b.plan.Writes) == reconcile.MaxWrites/2 {
			b.plan.More = true
			return
		}
		old := b.view.ServiceProgress(service.Id)
		progress := &swarmpb.ServiceProgress{ServiceId: service.Id}
		if old != nil {
			progress = swarmpb.Clone(old)
		}
		progress.BalancedAt = at
		b.plan.Guards = append(b.plan.Guards, &swarmpb.Guard{Key: swarmpb.ServiceProgressKey(service.Id), Version: old.GetMeta().GetVersion()},
			&swarmpb.Guard{Key: swarmpb.ServiceKey(service.Id), Version: service.GetMeta().GetVersion()})
		b.plan.Writes = append(b.plan.Writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{
			Row: &swarmpb.Row_ServiceProgress{ServiceProgress: progress}}}})
	}
}

// leftAlone is why a service's tasks are never moved for balance, whatever they do; empty when they are.
func leftAlone(view *store.View, service *swarmpb.Service) string {
	spec := service.GetSpec()
	template := view.Template(service.Id, service.TemplateVersion).GetSpec()
	switch strategy := spec.GetUpdate().StrategyOr(); {
	case service.Removing:
		return "it is being removed"
	case spec.IsAttachment():
		return "it stands for a container outside of services"
	case !replicated(service):
		return "only replicated services are balanced, it is " + spec.GetMode().Name()
	case spec.NoRebalance:
		return "it opts out (no rebalance)"
	case strategy == inPlace || strategy == recreate:
		return "its tasks are not to run beside their successors (update strategy " + strategy.Name() + ")"
	case template.GetStopAfterDisconnect() != nil:
		return "its tasks are not to run beside their successors (stop after disconnect)"
	case template.GetPlacement().GetStrategy() == swarmpb.PlacementStrategy_PLACEMENT_STRATEGY_BINPACK:
		return "it packs its tasks (placement strategy binpack)"
	case slices.ContainsFunc(template.GetContainer().GetMounts(), keepsData):
		return "its tasks may have data on their nodes (volumes, or directories of the host that they write to)"
	default:
		return ""
	}
}

// keepsData: what is written there stays on the node.
func keepsData(mount *swarmpb.Mount) bool {
	return !mount.GetReadOnly() && mount.GetType() != swarmpb.MountType_MOUNT_TYPE_TMPFS
}

// lostTasks are tasks of a service that are to stop, on nodes that are DOWN: up of them were up when they were last heard of.
type lostTasks struct{ there, up int }

// lostTasksOf finds them, by service. Their nodes may never come back: nothing is to wait for that.
func lostTasksOf(view *store.View) map[string]lostTasks {
	out := map[string]lostTasks{}
	for node := range view.Nodes() {
		if !down(view.NodeStatus(node.Id)) {
			continue
		}
		for task := range view.TasksOn(node.Id) {
			status := view.Status(task.Id)
			if task.DesiredState.Wanted() || status.GetState().Ended() || view.Template(task.ServiceId, task.TemplateVersion) == nil {
				continue
			}
			n := out[task.ServiceId]
			n.there++
			if status.Up() {
				n.up++
			}
			out[task.ServiceId] = n
		}
	}
	return out
}

// restlessWhy is why a service is left alone for now; empty when all its tasks are up and nothing is under way.
func (b *balancer) restlessWhy(service *swarmpb.Service) string {
	if update := b.view.ServiceProgress(service.Id).GetUpdate(); update.Underway() {
		return "it is being updated"
	}
	there, up, want := -b.lost[service.Id].there, -b.lost[service.Id].up, replicas(service)
	for template := range b.view.TemplatesOf(service.Id) {
		for state, n := range b.view.Counts(service.Id, template.Version) {
			if !state.Ended() {
				there += n
			}
		}
		up += b.view.Up(service.Id, template.Version)
	}
	if there != up || uint64(up) != want {
		return "not all of its tasks are up, or some are on their way"
	}
	return ""
}

// balancing is how many moves for balance are under way in a service: at most one, but for what an earlier leader knew. Where the
// task that is to go is on a node that is DOWN, its successor is just needed.
func (b *balancer) balancing(service *swarmpb.Service) (n int) {
	if b.movedAt(service) == 0 || b.restlessWhy(service) == "" {
		return 0
	}
	for task := range b.view.TasksOf(service.Id) {
		if task.Move == moveBalance && task.DesiredState.Wanted() && b.view.Task(task.Replaces) != nil &&
			!b.view.Observed(task.Replaces).Ended() && !lost(b.view, b.view.NodeID(task.Replaces)) {
			n++
		}
	}
	return n
}

// balanced is a service as the scheduler balances it.
type balanced struct{ scheduler.Balance }

// balanceOf reads a service; false when none of its tasks could be moved.
func balanceOf(view *store.View, read *claims.Claims, service *swarmpb.Service, now time.Time) (*balanced, bool) {
	q, err := read.Requirements(service.Id, service.TemplateVersion)
	if err != nil {
		return nil, false
	}
	s := &balanced{scheduler.Balance{Service: service.Id, Requirements: q, OnNode: read.OnNode(service.Id)}}
	if failing := read.Failing(service.Id, now); failing != nil {
		s.Avoid = append(s.Avoid, failing)
	}
	return s, true
}

// better tells whether any of the tasks would be better off elsewhere, as if each could be moved: the tasks themselves are not
// looked at.
func (s *balanced) better(nodes *scheduler.Nodes) bool {
	s.Movable = make(map[string]string, len(s.OnNode))
	for node := range s.OnNode {
		s.Movable[node] = node
	}
	_, ok := nodes.Better(&s.Balance)
	return ok
}

// movableTasks are the tasks of a service that may be moved, by node, in order: they are up, nothing has happened to them
// of late, and they should not be elsewhere anyway.
func movableTasks(view *store.View, service *swarmpb.Service, now time.Time, except func(*swarmpb.Task) bool) map[string][]string {
	out, f := map[string][]string{}, newFits(view)
	for task := range view.TasksOf(service.Id) {
		if task.DesiredState != stateRunning || task.TemplateVersion != service.TemplateVersion {
			continue
		}
		if r := readReplica(view, task, now, f); r.up() && !r.evicted && !except(task) {
			out[r.node] = append(out[r.node], task.Id)
		}
	}
	return out
}

// lastOf is the task in the highest slot of each node.
func lastOf(tasks map[string][]string) map[string]string {
	out := make(map[string]string, len(tasks))
	for node, ids := range tasks {
		if len(ids) > 0 {
			out[node] = ids[len(ids)-1]
		}
	}
	return out
}

// Rebalance is the moves that a user's request for balance would have made as things are, one after another, at most so many,
// and why services are left alone, a line each by name.
func Rebalance(view *store.View, now time.Time, most int) (found []*swarmpb.ProposedMove, alone []string) {
	b := &balancer{view: view, now: now, read: claims.Of(view), lost: lostTasksOf(view)}
	var able []*balanced
	for service := range view.Services() {
		switch why := cmp.Or(leftAlone(view, service), b.restlessWhy(service)); {
		case why == "":
			if s, ok := balanceOf(view, b.read, service, now); ok {
				able = append(able, s)
			}
		case !service.GetSpec().IsAttachment():
			alone = append(alone, service.GetSpec().GetName()+": "+why)
		}
	}
	slices.Sort(alone)
	tasks := map[string]map[string][]string{}
	for moved := true; moved; {
		moved = false
		// One for which nothing is found is looked at again once all others have come to rest.
		for going := able; len(going) > 0; {
			var next []*balanced
			for _, s := range going {
				if tasks[s.Service] == nil && s.better(b.read.Nodes()) {
					tasks[s.Service] = movableTasks(view, view.Service(s.Service), now, b.failedLately)
				}
				s.Movable = lastOf(tasks[s.Service])
				for _, move := range b.read.Nodes().Rebalance([]scheduler.Balance{s.Balance}, 1) {
					if len(found) == most {
						return found, alone
					}
					moved, next = true, append(next, s)
					found = append(found, b.proposed(s, move))
					left := tasks[s.Service][move.From]
					tasks[s.Service][move.From] = left[:len(left)-1]
				}
			}
			going = next
		}
	}
	return found, alone
}

// proposed tells a move, which is counted as done, to people.
func (b *balancer) proposed(s *balanced, move scheduler.Move) *swarmpb.ProposedMove {
	name, task := b.view.Service(move.Service).GetSpec().GetName(), b.view.Task(move.Task)
	return &swarmpb.ProposedMove{
		TaskId: move.Task, TaskName: swarmpb.TaskName(name, task.GetSlot(), ""), ServiceName: name,
		FromNodeId: move.From, FromHostname: b.view.NodeName(move.From), ToNodeId: move.To, ToHostname: b.view.NodeName(move.To),
		TasksFrom: uint32(max(0, s.OnNode[move.From]+1)), TasksTo: uint32(max(0, s.OnNode[move.To]-1)),
	}
}
