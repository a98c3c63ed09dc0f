package plan

import (
	"cmp"
	"slices"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	stateReady    = swarmpb.TaskState_TASK_STATE_READY
	stateRunning  = swarmpb.TaskState_TASK_STATE_RUNNING
	stateComplete = swarmpb.TaskState_TASK_STATE_COMPLETE
	stateShutdown = swarmpb.TaskState_TASK_STATE_SHUTDOWN
)

// workersID is the one unit of work of all workers: they act at the same time.
const workersID = "workers"

// workers are the nodes' agents, and the dispatcher, for the tasks of one service, as a reconciler that goes last: a task on
// a READY node is prepared, started and stopped at once, and a job's task completes at once. On other nodes nothing happens. Of
// other services they stop what has been told to give way.
type workers struct {
	service string
	// waiting are the tasks to look at.
	waiting []string
	known   map[string]bool
}

func newWorkers(serviceID string) *workers {
	return &workers{service: serviceID, known: map[string]bool{}}
}

// Name is workers.
func (w *workers) Name() string { return "workers" }

// Affects takes in what the workers of the service's tasks are told, and what they said.
func (w *workers) Affects(view *store.View, change store.Change) []reconcile.ID {
	switch change.Table {
	case swarmpb.Table_TABLE_TASK, swarmpb.Table_TABLE_TASK_PLACEMENT, swarmpb.Table_TABLE_TASK_STATUS:
		task := view.Task(change.Key.ID)
		if change.New == nil || task.GetServiceId() != w.service && (task == nil || task.GetDesiredState().Wanted()) {
			return nil
		}
		w.add(change.Key.ID)
		return []reconcile.ID{{Object: workersID}}
	}
	return nil
}

// All looks at all tasks of the service.
func (w *workers) All(view *store.View) []reconcile.ID {
	for task := range view.TasksOf(w.service) {
		w.add(task.Id)
	}
	return []reconcile.ID{{Object: workersID}}
}

func (w *workers) add(task string) {
	if !w.known[task] {
		w.known[task] = true
		w.waiting = append(w.waiting, task)
	}
}

// Reconcile lets every task that something became of take a step.
func (w *workers) Reconcile(view *store.View, _ reconcile.ID, now time.Time) (reconcile.Plan, error) {
	w.sort(view)
	var plan reconcile.Plan
	var later []string
	taken := 0
	for _, id := range w.waiting {
		if len(plan.Writes)+2 > reconcile.MaxWrites {
			plan.More = true
			break
		}
		taken++
		delete(w.known, id)
		rows := view.TaskRows(id)
		if rows.Task == nil || !ready(view, rows.Placement.GetNodeId()) {
			continue
		}
		if at := time.Unix(0, rows.Task.StartNotBefore); starts(rows) && now.Before(at) {
			later = append(later, id)
			if plan.At.IsZero() || at.Before(plan.At) {
				plan.At = at
			}
			continue
		}
		plan.Writes = append(plan.Writes, step(rows, now)...)
	}
	w.waiting = w.waiting[taken:]
	for _, id := range later {
		w.add(id)
	}
	return plan, nil
}

// sort puts those that wait in the order in which people read them.
func (w *workers) sort(view *store.View) {
	slices.SortFunc(w.waiting, func(a, b string) int {
		one, other := view.Task(a), view.Task(b)
		return cmp.Or(cmp.Compare(one.GetSlot(), other.GetSlot()), cmp.Compare(one.GetAttempt(), other.GetAttempt()), strings.Compare(a, b))
	})
}

// starts: the next thing that its worker does is to start the task.
func starts(rows store.TaskRows) bool {
	return rows.Observed == stateReady && rows.Task.DesiredState.Starts()
}

// step is what a worker reports next of a task: the end, that it is ready, that it runs, that it has completed; nothing when it
// is where it should be. One that runs is drained from all nodes by then.
func step(rows store.TaskRows, now time.Time) []*swarmpb.Write {
	status := &swarmpb.TaskStatus{TaskId: rows.Task.Id, At: now.UnixNano()}
	report := func() *swarmpb.Write {
		return &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: status}}
	}
	switch {
	case rows.Observed.Ended():
		return nil
	case !rows.Task.DesiredState.Wanted():
		status.State = stateShutdown
		if status.Container = swarmpb.Clone(rows.Status.GetContainer()); status.Container != nil {
			status.Container.FinishedAt = status.At
		}
		if rows.Observed < stateRunning || rows.Status.GetDrainedAt() != 0 {
			return []*swarmpb.Write{report()}
		}
		drained := &swarmpb.SetDrained{TaskIds: []string{rows.Task.Id}, At: status.At}
		return []*swarmpb.Write{{Op: &swarmpb.Write_SetDrained{SetDrained: drained}}, report()}
	case rows.Observed < stateReady:
		status.State = stateReady
	case rows.Observed < stateRunning && rows.Task.DesiredState.Starts():
		status.State = stateRunning
		status.Container = &swarmpb.ContainerStatus{StartedAt: status.At}
	case rows.Observed == stateRunning && rows.Task.DesiredState == stateComplete:
		status.State = stateComplete
		status.Container = swarmpb.Clone(cmp.Or(rows.Status.GetContainer(), &swarmpb.ContainerStatus{}))
		status.Container.FinishedAt = status.At
	default:
		return nil
	}
	return []*swarmpb.Write{report()}
}

// ready: the node's worker does what it is told.
func ready(view *store.View, nodeID string) bool {
	return nodeID != "" && view.NodeStatus(nodeID).GetState() == swarmpb.NodeState_NODE_STATE_READY
}
