package plan

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// recorder makes steps of the changes to a service.
type recorder struct {
	service string
	start   int64
	steps   []*swarmpb.PlanStep
	// more: there were steps beyond the most.
	more          bool
	starts, stops uint64
	// gaveWay are tasks of other services that are stopped for this one's.
	gaveWay []string
	// last is when the last step was taken.
	last int64
}

// add takes in one change; view is one that shows it.
func (r *recorder) add(view *store.View, change store.Change, now time.Time) {
	switch change.Table {
	case swarmpb.Table_TABLE_TASK_STATUS:
		status, ok := change.New.(*swarmpb.TaskStatus)
		task := view.Task(change.Key.ID)
		if !ok {
			return
		}
		if task.GetServiceId() != r.service {
			r.other(view, task, status, now)
			return
		}
		old, _ := change.Old.(*swarmpb.TaskStatus)
		r.task(view, task, old.GetState(), status.GetState(), now)
	case swarmpb.Table_TABLE_SERVICE_PROGRESS:
		if change.Key.ID != r.service {
			return
		}
		old, _ := change.Old.(*swarmpb.ServiceProgress)
		progress, _ := change.New.(*swarmpb.ServiceProgress)
		r.progress(old.GetUpdate(), progress.GetUpdate(), now)
	}
}

// task makes a step of a task's way from one state to another.
func (r *recorder) task(view *store.View, task *swarmpb.Task, old, state swarmpb.TaskState, now time.Time) {
	step := &swarmpb.PlanStep{TaskName: nameOf(view, task), Slot: task.Slot, TemplateVersion: task.TemplateVersion}
	if step.NodeId = view.NodeID(task.Id); step.NodeId != "" {
		step.NodeHostname = view.NodeName(step.NodeId)
	}
	switch {
	case old == state:
		return
	case state == stateReady && task.DesiredState < stateRunning:
		step.Action = swarmpb.PlanAction_PLAN_ACTION_PREPARE
		step.Replaces = replaced(view, task)
	case state == stateRunning:
		step.Action = swarmpb.PlanAction_PLAN_ACTION_START
		step.Replaces = replaced(view, task)
		r.starts++
	case state == stateComplete: // how long a job's task takes nobody knows
		return
	case state.Ended():
		step.Action = swarmpb.PlanAction_PLAN_ACTION_STOP
		if old < swarmpb.TaskState_TASK_STATE_STARTING {
			step.Message = "called off before it started"
		} else {
			r.stops++
		}
	default:
		return
	}
	r.put(step, now)
}

// other makes a step of the end of another service's task, which is that it gave way.
func (r *recorder) other(view *store.View, task *swarmpb.Task, status *swarmpb.TaskStatus, now time.Time) {
	if task == nil || !status.State.Ended() {
		return
	}
	step := &swarmpb.PlanStep{Action: swarmpb.PlanAction_PLAN_ACTION_STOP, TaskName: nameOf(view, task), Slot: task.Slot,
		TemplateVersion: task.TemplateVersion, NodeId: view.NodeID(task.Id), Message: "gives way to a task of higher priority"}
	if step.NodeId != "" {
		step.NodeHostname = view.NodeName(step.NodeId)
	}
	if to := view.Task(view.SlotProgress(task.ServiceId, task.Slot).GetGaveWayTo()); to != nil {
		step.Message = "gives way to " + nameOf(view, to)
	}
	r.gaveWay = append(r.gaveWay, step.TaskName)
	r.put(step, now)
}

// replaced names the task that one replaces, as long as that is there.
func replaced(view *store.View, task *swarmpb.Task) string {
	if old := view.Task(task.Replaces); old != nil {
		return nameOf(view, old)
	}
	return ""
}

func nameOf(view *store.View, task *swarmpb.Task) string {
	return swarmpb.TaskName(view.Service(task.ServiceId).GetSpec().GetName(), task.Slot, task.NodeId)
}

// progress makes a step of a change in how connections are divided.
func (r *recorder) progress(old, update *swarmpb.UpdateStatus, now time.Time) {
	trial := update.Trial()
	if trial == nil {
		return
	}
	was := old.Trial()
	if was.GetShare() == trial.Share && (was.GetSet() == trial.Set || trial.Share == 0) {
		return
	}
	r.put(&swarmpb.PlanStep{
		Action: swarmpb.PlanAction_PLAN_ACTION_SHIFT, TemplateVersion: trial.Set,
		Message: share(trial.Share) + " to version " + version(update),
	}, now)
}

// version is how users know what an update goes to.
func version(update *swarmpb.UpdateStatus) string {
	if revision := update.GetRevision(); revision != 0 {
		return strconv.FormatUint(revision, 10)
	}
	return strconv.FormatUint(update.GetTemplateVersion(), 10)
}

// share is hundredths of a percent in words.
func share(hundredths uint32) string {
	switch hundredths {
	case 0:
		return "no new connections"
	case swarmpb.WholeShare:
		return "all new connections"
	}
	percent := strings.TrimRight(strings.TrimRight(fmt.Sprintf("%d.%02d", hundredths/100, hundredths%100), "0"), ".")
	return percent + "% of new connections"
}

func (r *recorder) put(step *swarmpb.PlanStep, now time.Time) {
	step.At = now.UnixNano() - r.start
	r.last = step.At
	if len(r.steps) == MaxSteps {
		r.more = true
		return
	}
	r.steps = append(r.steps, step)
}
