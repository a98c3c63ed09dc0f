package script

import (
	"cmp"
	"slices"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// behaviour is what becomes of a task with some image.
type behaviour struct {
	// end is the state in which it ends by itself; UNSPECIFIED = it runs on.
	end swarmpb.TaskState
	// after is how long it runs before; a task that ends REJECTED never starts.
	after time.Duration
	// pull, start and stop are how long it takes to get ready, up, and down.
	pull, start, stop time.Duration
	// unready is how long it runs until it takes no connections any more; 0 = it does for good.
	unready time.Duration
}

// nodes play placement and workers: a task goes to the node with the fewest, and does there at once what it is told.
type nodes struct {
	auto   bool
	images map[string]behaviour
	// placed: placement is among the world's reconcilers.
	placed bool
}

// act lets every task take one step. It answers whether any did.
func (n *nodes) act(w *World) (bool, error) {
	if !n.auto {
		return false, nil
	}
	var writes []*swarmpb.Write
	view := w.View()
	load := loads(view)
	for task := range view.Unplaced() {
		if write := n.place(w, task, load); write != nil {
			writes = append(writes, write)
		}
	}
	for task := range view.Tasks() {
		if status := n.advance(w, task); status != nil {
			writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: status}})
		}
	}
	for chunk := range slices.Chunk(writes, reconcile.MaxWrites) {
		if err := w.Write(chunk...); err != nil {
			return false, err
		}
	}
	return len(writes) > 0, nil
}

// loads counts the tasks that hold a place on each node that takes new ones.
func loads(view *store.View) map[string]int {
	load := map[string]int{}
	for node := range view.Nodes() {
		if node.GetSpec().GetAvailability() <= swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE &&
			view.NodeStatus(node.Id).GetState() == swarmpb.NodeState_NODE_STATE_READY {
			load[node.Id] = 0
		}
	}
	for task := range view.Tasks() {
		if node := view.NodeID(task.Id); node != "" && !view.Observed(task.Id).Ended() {
			if _, ok := load[node]; ok {
				load[node]++
			}
		}
	}
	return load
}

func (n *nodes) place(w *World, task *swarmpb.Task, load map[string]int) *swarmpb.Write {
	if n.placed {
		return nil
	}
	best := ""
	for node, tasks := range load {
		if best == "" || cmp.Or(cmp.Compare(tasks, load[best]), strings.Compare(node, best)) < 0 {
			best = node
		}
	}
	if home := w.View().NodeID(task.Replaces); task.SameNode {
		if _, takes := load[home]; takes {
			best = home
		}
	}
	if task.NodeId != "" {
		if best = ""; hasKey(load, task.NodeId) {
			best = task.NodeId
		}
	}
	placement := &swarmpb.TaskPlacement{TaskId: task.Id, NodeId: best, At: w.Now().UnixNano()}
	if best == "" {
		if w.View().Placement(task.Id) != nil {
			return nil
		}
		placement.Message = "no suitable node"
	} else {
		load[best]++
	}
	return Put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: placement}})
}

func hasKey(load map[string]int, node string) bool { _, ok := load[node]; return ok }

// advance is the status of a task's next state; nil when it stays as it is.
func (n *nodes) advance(w *World, task *swarmpb.Task) *swarmpb.TaskStatus {
	view := w.View()
	node := view.NodeID(task.Id)
	state := view.Observed(task.Id)
	if node == "" || state.Ended() || view.NodeStatus(node).GetState() != swarmpb.NodeState_NODE_STATE_READY {
		return nil
	}
	acts := n.behaviour(view, task)
	if at, ok := n.due(w, task, acts); ok && w.Now().Before(at) {
		return nil
	}
	status := view.Status(task.Id)
	switch {
	case !task.DesiredState.Wanted():
		return w.status(task.Id, swarmpb.TaskState_TASK_STATE_SHUTDOWN)
	case state < swarmpb.TaskState_TASK_STATE_READY:
		switch {
		case acts.pull > 0 && state < swarmpb.TaskState_TASK_STATE_PREPARING:
			return w.status(task.Id, swarmpb.TaskState_TASK_STATE_PREPARING)
		case acts.end == swarmpb.TaskState_TASK_STATE_REJECTED:
			return w.status(task.Id, acts.end)
		}
		return w.status(task.Id, swarmpb.TaskState_TASK_STATE_READY)
	case state == swarmpb.TaskState_TASK_STATE_READY:
		switch {
		case task.DesiredState < swarmpb.TaskState_TASK_STATE_RUNNING || w.Now().UnixNano() < task.StartNotBefore:
			return nil
		case acts.start > 0:
			return w.status(task.Id, swarmpb.TaskState_TASK_STATE_STARTING)
		}
		return w.status(task.Id, swarmpb.TaskState_TASK_STATE_RUNNING)
	case state == swarmpb.TaskState_TASK_STATE_STARTING:
		return w.status(task.Id, swarmpb.TaskState_TASK_STATE_RUNNING)
	default:
		if end, ok := endOf(view, task, acts); ok && !w.Now().Before(end) {
			return w.status(task.Id, acts.end)
		}
		if acts.unready > 0 && status.Up() && w.Now().UnixNano() >= status.GetContainer().GetStartedAt()+int64(acts.unready) {
			return w.health(task.Id, true, "503 Service Unavailable")
		}
		return nil
	}
}

// due is when the task's node has done what takes it a while.
func (n *nodes) due(w *World, task *swarmpb.Task, acts behaviour) (time.Time, bool) {
	status := w.View().Status(task.Id)
	at := time.Unix(0, status.GetAt())
	switch {
	case !task.DesiredState.Wanted():
		return time.Unix(0, task.GetMeta().GetUpdatedAt()).Add(acts.stop), status.GetState() == swarmpb.TaskState_TASK_STATE_RUNNING
	case status.GetState() == swarmpb.TaskState_TASK_STATE_PREPARING:
		return at.Add(acts.pull), true
	case status.GetState() == swarmpb.TaskState_TASK_STATE_STARTING:
		return at.Add(acts.start), true
	default:
		return time.Time{}, false
	}
}

func (n *nodes) behaviour(view *store.View, task *swarmpb.Task) behaviour {
	return n.images[view.Template(task.ServiceId, task.TemplateVersion).GetSpec().GetContainer().GetImage()]
}

// endOf is when a running task ends by itself.
func endOf(view *store.View, task *swarmpb.Task, acts behaviour) (time.Time, bool) {
	started := view.Status(task.Id).GetContainer().GetStartedAt()
	if acts.end == 0 || started == 0 {
		return time.Time{}, false
	}
	return time.Unix(0, started).Add(acts.after), true
}

// next is when a node has something to do again.
func (n *nodes) next(w *World) (next time.Time, ok bool) {
	if !n.auto {
		return time.Time{}, false
	}
	view := w.View()
	earliest := func(at time.Time) {
		if at.After(w.Now()) && (!ok || at.Before(next)) {
			next, ok = at, true
		}
	}
	for task := range view.Tasks() {
		if view.Observed(task.Id).Ended() || view.NodeStatus(view.NodeID(task.Id)).GetState() != swarmpb.NodeState_NODE_STATE_READY {
			continue
		}
		acts := n.behaviour(view, task)
		if at, waits := n.due(w, task, acts); waits {
			earliest(at)
		}
		if view.Observed(task.Id) != swarmpb.TaskState_TASK_STATE_RUNNING {
			continue
		}
		if end, ends := endOf(view, task, acts); ends {
			earliest(end)
		}
		if acts.unready > 0 && view.Status(task.Id).Up() {
			earliest(time.Unix(0, view.Status(task.Id).GetContainer().GetStartedAt()).Add(acts.unready))
		}
	}
	return next, ok
}

// health is what a worker would report of a running task whose readiness has changed.
func (w *World) health(taskID string, notReady bool, output string) *swarmpb.TaskStatus {
	status := swarmpb.Clone(w.View().Status(taskID))
	if status.GetState() != swarmpb.TaskState_TASK_STATE_RUNNING {
		status = w.status(taskID, swarmpb.TaskState_TASK_STATE_RUNNING)
	}
	status.At = w.Now().UnixNano()
	status.Health = &swarmpb.HealthStatus{State: swarmpb.HealthState_HEALTH_STATE_HEALTHY, NotReady: notReady, Output: output, At: status.At}
	return status
}

// status is what a worker would report of a task that is in a state now.
func (w *World) status(taskID string, state swarmpb.TaskState) *swarmpb.TaskStatus {
	now := w.Now().UnixNano()
	status := &swarmpb.TaskStatus{TaskId: taskID, State: state, At: now}
	container := swarmpb.Clone(w.View().Status(taskID).GetContainer())
	switch {
	case state == swarmpb.TaskState_TASK_STATE_RUNNING:
		container = &swarmpb.ContainerStatus{StartedAt: now}
	case state.Ended() && container != nil:
		container.FinishedAt = now
	}
	switch state {
	case swarmpb.TaskState_TASK_STATE_FAILED:
		status.Error = "exit status 1"
	case swarmpb.TaskState_TASK_STATE_REJECTED:
		status.Error = "no such image"
	}
	status.Container = container
	return status
}
