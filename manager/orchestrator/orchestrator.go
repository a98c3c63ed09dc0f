// Package orchestrator keeps each service's tasks as its spec asks: so many replicas, of the right template,
// restarted when they end, replaced when it changes.
//
// It has seven reconcilers. Replicated fills and empties the slots of replicated services (id: the service) and carries
// each slot of any service along: the replacements under way in it, restarts, and the reaping of old tasks (id: the service
// and the slot). Global fills and empties those of global services, Job those of jobs, run by run (id: the service). Rollout
// moves a service to another template, some slots at a time, and back when that fails (id: the service). Moves has tasks
// that should be elsewhere replaced there, some at a time (id: the service, or all of them for balance). Preemption stops
// tasks that have to give way to one of higher priority (id: the one that waits). Guests removes
// services that stand for a container outside of services which has gone (id: the service).
// Everything they know is in rows, so a new leader goes on where the old one stopped.
//
// docs/design-replace.md tells how a task gives way to another, docs/design-rollout.md which tasks and when. This package alone writes tasks (existence and
// desired state), slot progress and service progress, and deletes a removed service's row.
package orchestrator

import (
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/claims"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	// StableWindow is how long a task must have run for its end to be the first failure again.
	StableWindow = time.Minute
	// BackoffMin and BackoffMax bound the pause before a restart when the user gives no delay. The first restart
	// is at once, the second after BackoffMin, and then it doubles.
	BackoffMin = 500 * time.Millisecond
	BackoffMax = 30 * time.Second
	// DefaultHistory is how many ended tasks a slot keeps.
	DefaultHistory = 5
	// DefaultParallelism and DefaultMonitor hold for an update that does not say.
	DefaultParallelism = 1
	DefaultMonitor     = 5 * time.Second
	// PrepareAhead is how many slots at most, beyond its parallelism, an update makes ready before their turn.
	PrepareAhead = 64
	// PendingNote is how long a new task may wait for a node before the update's message says so.
	PendingNote = 3 * time.Second
	// ClockSkew is how far the clocks of two leaders may differ unnoticed.
	ClockSkew = claims.ClockSkew
	// MaxOutcomes is how many revisions' outcomes are kept.
	MaxOutcomes = 10
)

const (
	stateReady    = swarmpb.TaskState_TASK_STATE_READY
	stateRunning  = swarmpb.TaskState_TASK_STATE_RUNNING
	stateComplete = swarmpb.TaskState_TASK_STATE_COMPLETE
	stateShutdown = swarmpb.TaskState_TASK_STATE_SHUTDOWN
	stateRejected = swarmpb.TaskState_TASK_STATE_REJECTED
	stateRemove   = swarmpb.TaskState_TASK_STATE_REMOVE
	stateOrphaned = swarmpb.TaskState_TASK_STATE_ORPHANED

	rolling   = swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING
	inPlace   = swarmpb.UpdateStrategy_UPDATE_STRATEGY_IN_PLACE
	recreate  = swarmpb.UpdateStrategy_UPDATE_STRATEGY_RECREATE
	blueGreen = swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN
	canary    = swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY

	phaseNone      = swarmpb.RolloutPhase_ROLLOUT_PHASE_UNSPECIFIED
	phasePreparing = swarmpb.RolloutPhase_ROLLOUT_PHASE_PREPARING
	phaseStarting  = swarmpb.RolloutPhase_ROLLOUT_PHASE_STARTING
	phaseWatching  = swarmpb.RolloutPhase_ROLLOUT_PHASE_WATCHING
	phaseWaiting   = swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING
	phaseGrace     = swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE
	phaseEnding    = swarmpb.RolloutPhase_ROLLOUT_PHASE_ENDING
	phaseReturning = swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING
)

// Reconcilers are all that a leader runs, each under a driver of its own.
func Reconcilers() []reconcile.Reconciler {
	return []reconcile.Reconciler{Replicated{}, Rollout{}, Global{}, Job{}, Moves{}, Preemption{}, Guests{}}
}

// Replicated is the reconciler of replicated services, and of every service's slots.
type Replicated struct{}

// Name is replicated.
func (Replicated) Name() string { return "replicated" }

// Affects names the service for a change of its spec, and the slot for a change of what is in it.
func (o Replicated) Affects(view *store.View, change store.Change) []reconcile.ID {
	switch change.Table {
	case swarmpb.Table_TABLE_SERVICE:
		if service, ok := change.New.(*swarmpb.Service); ok && (replicated(service) || service.Removing) {
			return []reconcile.ID{{Object: service.Id}}
		}
	case swarmpb.Table_TABLE_SERVICE_PROGRESS:
		before, _ := change.Old.(*swarmpb.ServiceProgress)
		after, _ := change.New.(*swarmpb.ServiceProgress)
		if sizesOf(before.GetUpdate()) != sizesOf(after.GetUpdate()) {
			return []reconcile.ID{{Object: change.Key.ID}}
		}
	case swarmpb.Table_TABLE_TASK:
		return affectedByTask(view, change)
	case swarmpb.Table_TABLE_TASK_STATUS:
		if status, ok := change.New.(*swarmpb.TaskStatus); ok {
			if task := view.Task(status.TaskId); task != nil && statusMatters(task, status.State) {
				return slotOf(task)
			}
		}
	case swarmpb.Table_TABLE_TASK_PLACEMENT:
		if placement, ok := change.New.(*swarmpb.TaskPlacement); ok {
			// An heir that no node suits may open a drain's gate; a node may have gone while it was chosen.
			task := view.Task(placement.TaskId)
			if task != nil && (task.Replaces != "" || lost(view, placement.NodeId)) {
				return slotOf(task)
			}
		}
	case swarmpb.Table_TABLE_NODE:
		before, _ := change.Old.(*swarmpb.Node)
		after, _ := change.New.(*swarmpb.Node)
		if before != nil && (after == nil || before.Spec.GetAvailability() != after.Spec.GetAvailability()) {
			return slotsOn(view, change.Key.ID)
		}
		if nodeMatters(change) {
			return constrainedOn(view, change.Key.ID)
		}
	case swarmpb.Table_TABLE_NODE_STATUS:
		before, _ := change.Old.(*swarmpb.NodeStatus)
		after, _ := change.New.(*swarmpb.NodeStatus)
		if down(before) != down(after) {
			return slotsOn(view, change.Key.ID)
		}
		if nodeMatters(change) {
			return constrainedOn(view, change.Key.ID)
		}
	case swarmpb.Table_TABLE_CLUSTER:
		before, _ := change.Old.(*swarmpb.Cluster)
		after, _ := change.New.(*swarmpb.Cluster)
		if before != nil && after != nil && history(before) != history(after) {
			return o.All(view)
		}
	}
	return nil
}

func affectedByTask(view *store.View, change store.Change) []reconcile.ID {
	task, made := change.New.(*swarmpb.Task)
	if !made {
		task, ok := change.Old.(*swarmpb.Task)
		if !ok || task.Slot == 0 {
			return nil
		}
		if service := view.Service(task.ServiceId); service.GetRemoving() && empty(view, service.Id) {
			return []reconcile.ID{{Object: service.Id}}
		}
		return slotOf(task)
	}
	if change.Old == nil && task.DesiredState.Starts() && task.Replaces == "" {
		return nil // a task in a free slot: there is nothing to do before it gets somewhere
	}
	return slotOf(task)
}

// statusMatters tells whether a slot has anything to do when its task reaches a state: its end always matters, and
// for a task that replaces another also that it is ready, and that it runs.
func statusMatters(task *swarmpb.Task, state swarmpb.TaskState) bool {
	return state.Ended() || task.Replaces != "" && state >= stateReady
}

// All names every service, and each slot in which something is under way or to be reaped.
func (o Replicated) All(view *store.View) []reconcile.ID {
	var ids []reconcile.ID
	for service := range view.Services() {
		ids = append(ids, reconcile.ID{Object: service.Id})
		ids = restless(ids, view, service.Id)
	}
	return ids
}

// restless adds the slots in which something may be to do though nothing changes: all but those with a single task
// that is on its way to RUNNING, or there.
func restless(ids []reconcile.ID, view *store.View, service string) []reconcile.ID {
	slot, tasks, quiet := uint64(0), 0, true
	flush := func() {
		if tasks > 1 || !quiet {
			ids = append(ids, reconcile.ID{Object: service, Slot: slot})
		}
	}
	for task := range view.TasksOf(service) {
		if task.Slot != slot {
			flush()
			slot, tasks = task.Slot, 0
		}
		tasks++
		if tasks == 1 {
			rows := view.TaskRows(task.Id)
			node := rows.Placement.GetNodeId()
			quiet = task.DesiredState.Starts() && !rows.Observed.Ended() && !lost(view, node) ||
				task.DesiredState == stateComplete && rows.Observed == stateComplete
		}
	}
	flush()
	return ids
}

// Reconcile plans for a service (slot 0) or one of its slots.
func (o Replicated) Reconcile(view *store.View, id reconcile.ID, now time.Time) (reconcile.Plan, error) {
	service := view.Service(id.Object)
	if service == nil {
		return reconcile.Plan{}, nil
	}
	p := newPlanner(view, service, now)
	switch {
	case id.Slot > 0:
		s := readSlot(view, service, id.Slot, now)
		if !service.Removing {
			p.step(s)
		}
		p.reap(s)
	case service.Removing:
		p.remove()
	case replicated(service):
		p.scale()
	}
	return p.finish(), nil
}

// replicated tells whether the service asks for a number of replicas.
func replicated(service *swarmpb.Service) bool {
	return service.GetSpec().GetMode().GetReplicated() != nil
}

func slotOf(task *swarmpb.Task) []reconcile.ID {
	if task.Slot == 0 {
		return nil
	}
	return []reconcile.ID{{Object: task.ServiceId, Slot: task.Slot}}
}

func slotsOn(view *store.View, nodeID string) []reconcile.ID {
	var ids []reconcile.ID
	for task := range view.TasksOn(nodeID) {
		ids = append(ids, slotOf(task)...)
	}
	return ids
}

func empty(view *store.View, serviceID string) bool {
	for range view.TasksOf(serviceID) {
		return false
	}
	return true
}

func down(status *swarmpb.NodeStatus) bool {
	return status.GetState() == swarmpb.NodeState_NODE_STATE_DOWN
}

// history is how many ended tasks a slot keeps.
func history(cluster *swarmpb.Cluster) int {
	if spec := cluster.GetSpec(); spec != nil && spec.TaskHistoryLimit != nil {
		return int(*spec.TaskHistoryLimit)
	}
	return DefaultHistory
}
