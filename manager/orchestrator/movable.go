package orchestrator

import (
	"cmp"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/scheduler"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/store"
)

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
	there, up, want := 0, 0, replicas(service)
	for template := range b.view.TemplatesOf(service.Id) {
		for state, n := range b.view.Counts(service.Id, template.Version) {
			if !state.Ended() {
				there += n
			}
		}
		up += b.view.Up(service.Id, template.Version)
	}
	if there == up && uint64(up) == want {
		return ""
	}
	if b.lost == nil {
		b.lost = lostTasksOf(b.view)
	}
	lost := b.lost[service.Id]
	if there-lost.there != up-lost.up || uint64(max(0, up-lost.up)) != want {
		return "not all of its tasks are up, or some are on their way"
	}
	return ""
}

// balancing tells whether a move for balance is under way in a service. Where the task that is to go is on a node that is DOWN,
// its successor is just needed.
func balancing(view *store.View, serviceID string) bool {
	slot := view.ServiceProgress(serviceID).GetBalanceSlot()
	if slot == 0 {
		return false
	}
	for task := range view.TasksIn(serviceID, slot) {
		if task.Move == moveBalance && task.DesiredState.Wanted() && view.Task(task.Replaces) != nil &&
			!view.Observed(task.Replaces).Ended() && !lost(view, view.NodeID(task.Replaces)) {
			return true
		}
	}
	return false
}

// balanced is a service as the scheduler balances it.
type balanced struct {
	scheduler.Balance
	b       *balancer
	service *swarmpb.Service
	fits    *fits
	// found are the tasks that may be moved, by node, as far as nodes have been looked at.
	found map[string][]*swarmpb.Task
}

// balanceOf reads a service; false when none of its tasks could be moved.
func (b *balancer) balanceOf(service *swarmpb.Service) (*balanced, bool) {
	if b.read == nil {
		b.read = claims.Of(b.view)
	}
	q, err := b.read.Requirements(service.Id, service.TemplateVersion)
	if err != nil {
		return nil, false
	}
	s := &balanced{b: b, service: service, fits: newFits(b.view), found: map[string][]*swarmpb.Task{},
		Balance: scheduler.Balance{Service: service.Id, Requirements: q, OnNode: b.read.OnNode(service.Id), Stays: map[string]bool{}}}
	if failing := b.read.Failing(service.Id, b.now); failing != nil {
		s.Avoid = append(s.Avoid, failing)
	}
	return s, true
}

// maxLooks is how many nodes without a task that may be moved are found out one after another, in one look at a service.
const maxLooks = 64

// best is the best move and the task to be moved; cut: nodes from which none may be moved took all the time.
func (s *balanced) best() (move scheduler.Move, task *swarmpb.Task, cut bool) {
	for range maxLooks {
		move, ok := s.b.read.Nodes().Better(&s.Balance)
		if !ok {
			return scheduler.Move{}, nil, false
		}
		if tasks := s.tasks(move.From); len(tasks) > 0 {
			return move, tasks[len(tasks)-1], false
		}
		s.Stays[move.From] = true
	}
	return scheduler.Move{}, nil, true
}

// made counts a move as done.
func (s *balanced) made(move scheduler.Move) {
	tasks := s.tasks(move.From)
	s.found[move.From] = tasks[:len(tasks)-1]
	s.b.read.Nodes().Made(&s.Balance, move)
}

// tasks are those of the service on a node that may be moved, by slot: they are up, nothing has happened to them of late, and
// they should not be elsewhere anyway.
func (s *balanced) tasks(node string) []*swarmpb.Task {
	tasks, known := s.found[node]
	if known {
		return tasks
	}
	for task := range s.b.view.TasksOn(node) {
		if task.ServiceId != s.Service || task.DesiredState != stateRunning || task.TemplateVersion != s.service.TemplateVersion {
			continue
		}
		if r := readReplica(s.b.view, task, s.b.now, s.fits); r.up() && !r.evicted && !s.b.failedLately(task) {
			tasks = append(tasks, task)
		}
	}
	slices.SortFunc(tasks, func(a, b *swarmpb.Task) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.Attempt, b.Attempt))
	})
	s.found[node] = tasks
	return tasks
}

// failedLately tells whether a slot's task, or one that was to follow it, has failed not long ago.
func (b *balancer) failedLately(task *swarmpb.Task) bool {
	progress := b.view.SlotProgress(task.ServiceId, task.Slot)
	return progress.GetFailures() > 0 && b.now.UnixNano()-progress.GetMeta().GetUpdatedAt() < int64(BalanceFailed)
}

// Rebalance is the moves that a user's request for balance would have made as things are, one after another, at most so many,
// and why services are left alone, a line each by name.
func Rebalance(view *store.View, now time.Time, most int) (found []*swarmpb.ProposedMove, alone []string) {
	b := &balancer{view: view, now: now, read: claims.Of(view)}
	var able []*balanced
	for service := range view.Services() {
		switch why := cmp.Or(leftAlone(view, service), b.restlessWhy(service)); {
		case why == "":
			if s, ok := b.balanceOf(service); ok {
				able = append(able, s)
			}
		case !service.GetSpec().IsAttachment():
			alone = append(alone, service.GetSpec().GetName()+": "+why)
		}
	}
	slices.Sort(alone)
	for moved := true; moved; {
		moved = false
		// One for which nothing is found is looked at again once all others have come to rest.
		for going := able; len(going) > 0; {
			var next []*balanced
			for _, s := range going {
				move, task, _ := s.best()
				if task == nil {
					continue
				}
				if len(found) == most {
					return found, alone
				}
				s.made(move)
				moved, next = true, append(next, s)
				found = append(found, b.proposed(s, move, task))
			}
			going = next
		}
	}
	return found, alone
}

// proposed tells a move, which is counted as done, to people.
func (b *balancer) proposed(s *balanced, move scheduler.Move, task *swarmpb.Task) *swarmpb.ProposedMove {
	name := s.service.GetSpec().GetName()
	return &swarmpb.ProposedMove{
		TaskId: task.Id, TaskName: swarmpb.TaskName(name, task.Slot, ""), ServiceName: name,
		FromNodeId: move.From, FromHostname: b.view.NodeName(move.From), ToNodeId: move.To, ToHostname: b.view.NodeName(move.To),
		TasksFrom: uint32(max(0, s.OnNode[move.From]+1)), TasksTo: uint32(max(0, s.OnNode[move.To]-1)),
	}
}
