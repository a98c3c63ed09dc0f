package orchestrator

import (
	"iter"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// replica is a task with what the view says of it.
type replica struct {
	task   *swarmpb.Task
	status *swarmpb.TaskStatus
	state  swarmpb.TaskState
	node   string
	// lost: its node is DOWN or no member any more.
	lost bool
	// orphaned: its node is no member any more.
	orphaned bool
	// evicted: it should be elsewhere, since its node is being drained, or misfit: does not meet its constraints any more.
	evicted, misfit bool
	// until is when a task that nobody hears of has certainly been stopped by its node, if the template says so and
	// that is not yet; zero otherwise.
	until time.Time
	// refused: placement has looked, and no node suits.
	refused bool
	// placement is the version of its placement row, 0 without one.
	placement uint64
	guarded   bool
}

// readReplica reads a task's rows. Without fits nobody is to ask whether it is evicted.
func readReplica(view *store.View, task *swarmpb.Task, now time.Time, f *fits) replica {
	rows := view.TaskRows(task.Id)
	r := replica{
		task: task, status: rows.Status, state: rows.Observed,
		node: rows.Placement.GetNodeId(), placement: rows.Placement.GetVersion(),
	}
	if r.node == "" {
		r.refused = rows.Placement.GetMessage() != ""
		return r
	}
	r.orphaned = view.Node(r.node) == nil
	r.lost = lost(view, r.node)
	drained := evicted(view, r.node)
	r.misfit = !drained && f != nil && task.NodeId == "" && f.misfit(task, r.node)
	r.evicted = drained || r.misfit
	if (r.lost || r.evicted) && (task.NodeId != "" || ofGuest(view, task)) {
		r.lost, r.evicted, r.misfit = r.orphaned, false, false // it cannot be elsewhere
	}
	if at := r.stoppedBy(view, now); at.After(now) {
		r.until = at
	}
	return r
}

// stoppedBy is when a task whose node is lost must have been stopped by that node itself; zero when it may start
// elsewhere at once. A node that was removed may be alive: the count then begins with the removal, the last that
// anyone knows of it.
func (r *replica) stoppedBy(view *store.View, now time.Time) time.Time {
	orphan := r.state == stateOrphaned
	if !r.lost || r.state.Ended() && !orphan || r.task.DesiredState < stateRunning {
		return time.Time{} // its end is known, or it was never told to start
	}
	wait, ok := view.Template(r.task.ServiceId, r.task.TemplateVersion).GetSpec().DisconnectWait()
	switch status := view.NodeStatus(r.node); {
	case !ok:
		return time.Time{}
	case orphan:
		return time.Unix(0, r.status.GetAt()).Add(wait)
	case r.orphaned:
		return now.Add(wait) // it is being written that the task is an orphan
	case status.GetSince() != 0:
		return time.Unix(0, status.GetSince()).Add(wait)
	default:
		return time.Unix(0, status.GetMeta().GetUpdatedAt()).Add(wait)
	}
}

func lost(view *store.View, nodeID string) bool {
	return nodeID != "" && (view.Node(nodeID) == nil || down(view.NodeStatus(nodeID)))
}

func evicted(view *store.View, nodeID string) bool {
	return nodeID != "" &&
		view.Node(nodeID).GetSpec().GetAvailability() == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
}

// live: it is meant to run, or to be ready to. A job's task stays so when it has completed.
func (r *replica) live() bool { return r.task.DesiredState.Wanted() }

// runs: it is up as far as anyone knows.
func (r *replica) runs() bool { return r.state == stateRunning && !r.lost }

// up: it runs and takes connections.
func (r *replica) up() bool { return r.runs() && r.status.Up() }

// gone: nothing more is expected of it. A task that was never placed and is not live will not be.
func (r *replica) gone() bool {
	return r.state.Ended() || r.lost || r.node == "" && !r.live()
}

// stopped: it holds nothing any more that its successor needs, as far as anyone can know, or has to.
func (r *replica) stopped() bool { return r.gone() && r.until.IsZero() }

// ran is how long the container ran, by the worker's clock; 0 when it never did.
func (r *replica) ran() time.Duration {
	container := r.status.GetContainer()
	if container.GetStartedAt() == 0 {
		return 0
	}
	end := container.GetFinishedAt()
	if end == 0 {
		end = r.status.GetAt()
	}
	return max(0, time.Duration(end-container.GetStartedAt()))
}

// upAfter is how long the container ran before it was up last, by the worker's clock; false when it was not up when it
// ended, as far as its probes tell.
func (r *replica) upAfter() (time.Duration, bool) {
	health := r.status.GetHealth()
	switch {
	case health == nil:
		return 0, true
	case health.NotReady || health.State == swarmpb.HealthState_HEALTH_STATE_STARTING ||
		health.State == swarmpb.HealthState_HEALTH_STATE_UNHEALTHY:
		return 0, false
	default:
		return max(0, time.Duration(health.At-r.status.GetContainer().GetStartedAt())), true
	}
}

// upSince is since when it has been up, by the worker's clock, unless that contradicts the manager's: a task cannot
// have begun before it was told to, nor later than now. What a leader with a clock ahead of this one's has told it says
// nothing; zero where the worker's clock is no better.
func (r *replica) upSince(now time.Time) time.Time {
	told := time.Unix(0, r.task.GetMeta().GetUpdatedAt())
	at := r.status.GetContainer().GetStartedAt()
	if at == 0 {
		at = r.status.GetAt()
	}
	since := time.Unix(0, max(at, r.status.GetHealth().GetAt()))
	switch {
	case told.Sub(now) > ClockSkew && since.After(now):
		return time.Time{}
	case told.Sub(now) > ClockSkew:
		return since
	case since.Before(told) || since.After(now):
		return told
	}
	return since
}

// slot is the replicas of one slot, by attempt.
type slot struct {
	number   uint64
	replicas []replica
	progress *swarmpb.SlotProgress
}

func readSlot(view *store.View, service *swarmpb.Service, number uint64, now time.Time) *slot {
	s, f := &slot{number: number, progress: view.SlotProgress(service.Id, number)}, newFits(view)
	for task := range view.TasksIn(service.Id, number) {
		s.replicas = append(s.replicas, readReplica(view, task, now, f))
	}
	return s
}

// slots walks a service's slots above a number, in order. A slot that is yielded is the caller's.
func slots(view *store.View, service *swarmpb.Service, after uint64, now time.Time) iter.Seq[*slot] {
	return func(yield func(*slot) bool) {
		var s *slot
		f := newFits(view)
		for task := range view.TasksFrom(service.Id, after+1) {
			if s == nil || s.number != task.Slot {
				if s != nil && !yield(s) {
					return
				}
				s = &slot{number: task.Slot, progress: view.SlotProgress(service.Id, task.Slot)}
			}
			s.replicas = append(s.replicas, readReplica(view, task, now, f))
		}
		if s != nil {
			yield(s)
		}
	}
}

// live are the replicas that are meant to run, oldest first.
func (s *slot) live() []*replica {
	var live []*replica
	for i := range s.replicas {
		if s.replicas[i].live() {
			live = append(live, &s.replicas[i])
		}
	}
	return live
}

// template is the newest live replica's: the set that the slot belongs to. 0 without any.
func (s *slot) template() uint64 {
	live := s.live()
	if len(live) == 0 {
		return 0
	}
	return live[len(live)-1].task.TemplateVersion
}

// run is that of the newest replica; 0 of a service that is no job.
func (s *slot) run() uint64 {
	if n := len(s.replicas); n > 0 {
		return s.replicas[n-1].task.Run
	}
	return 0
}

// up tells whether a task of the slot that is to go on takes connections.
func (s *slot) up() bool {
	for i := range s.replicas {
		if r := &s.replicas[i]; r.live() && r.up() {
			return true
		}
	}
	return false
}

// clear tells whether everything but r has stopped, so that r may start.
func (s *slot) clear(except ...*replica) bool {
	for i := range s.replicas {
		r := &s.replicas[i]
		skip := false
		for _, e := range except {
			skip = skip || e == r
		}
		if !skip && !r.stopped() {
			return false
		}
	}
	return true
}

// progressOf is the slot's memory for a template; another template, and another run of a job, starts from nothing. It may be changed.
func (s *slot) progressOf(service *swarmpb.Service, template uint64) *swarmpb.SlotProgress {
	run := s.run()
	if s.progress.GetTemplateVersion() == template && s.progress != nil && s.progress.Run == run {
		return swarmpb.Clone(s.progress)
	}
	return &swarmpb.SlotProgress{ServiceId: service.Id, Slot: s.number, TemplateVersion: template, Run: run}
}
