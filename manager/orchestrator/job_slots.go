package orchestrator

import (
	"cmp"
	"maps"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile"
)

// verdict is what has become of a slot in a run.
type verdict uint8

const (
	lacks  verdict = iota // no task of the run is there, or meant to be
	busy                  // a task is on its way, or to be restarted
	done                  // one has completed
	failed                // the last one has failed, and the restart policy has no other
)

// findings are what a run's slots have come to.
type findings struct {
	busy, done, failed uint64
	// lacking are slots that are to be filled, as many as a plan may hold; of nodes where nodes have slots.
	lacking []place
	// every slot up to mark is done or failed; markFailed of them have failed.
	mark, markFailed uint64
	// more: there are more slots to fill than lacking holds.
	more bool
}

// place is a slot to be filled, and the node that it is for, if any.
type place struct {
	slot uint64
	node string
}

// over tells whether the run has come to its end.
func (f *findings) over() bool { return f.busy == 0 && len(f.lacking) == 0 && !f.more }

// note enters a slot's verdict.
func (f *findings) note(v verdict) {
	switch v {
	case busy:
		f.busy++
	case done:
		f.done++
	case failed:
		f.failed++
	}
}

// look finds out how far a run has come.
func (j *job) look(run *swarmpb.JobRun) *findings {
	if j.service.Spec.Mode.GetGlobalJob() != nil {
		return j.lookAtNodes(run)
	}
	if j.service.Spec.Schedule == nil && run.Run == j.state.Run {
		run.Total = j.total() // what a schedule has begun keeps its size
	}
	f := &findings{mark: max(run.SettledSlot, run.Base), markFailed: run.SettledFailed}
	f.failed, f.done = f.markFailed, f.mark-run.Base-f.markFailed
	last, next, unbroken := run.Base+run.Total, f.mark+1, true
	lack := func(until uint64) {
		for ; next < until; next++ {
			unbroken = false
			if len(f.lacking) >= reconcile.MaxWrites {
				f.more = true
				return
			}
			f.lacking = append(f.lacking, place{slot: next})
		}
	}
	for s := range slots(j.view, j.service, f.mark, j.now) {
		if s.number > last {
			break
		}
		lack(s.number)
		v := j.verdict(s, run)
		if v == lacks {
			lack(s.number + 1)
		}
		f.note(v)
		next = s.number + 1
		if unbroken = unbroken && v >= done; unbroken {
			f.mark = s.number
			if v == failed {
				f.markFailed++
			}
		}
	}
	lack(last + 1)
	return f
}

// lookAtNodes is look for a job with a task a node: its slots are those of the nodes that suit, and of those on which it
// has come to its end already.
func (j *job) lookAtNodes(run *swarmpb.JobRun) *findings {
	f := &findings{}
	template := j.view.Template(j.service.Id, run.TemplateVersion)
	if template == nil {
		template = j.view.Template(j.service.Id, j.service.TemplateVersion)
	}
	nodes, have, taken := suitable(j.view, template), map[string]bool{}, map[uint64]bool{}
	for s := range slots(j.view, j.service, 0, j.now) {
		newest := s.replicas[len(s.replicas)-1].task
		if newest.Run != run.Run {
			taken[s.number] = j.goesOn(newest.Run) || newest.NodeId != "" && swarmpb.NodeSlot(newest.NodeId) != s.number
			continue
		}
		taken[s.number] = true
		v := j.verdict(s, run)
		if _, suits := nodes[newest.NodeId]; !suits && v < done {
			continue // its node is drained, gone, or of another kind by now
		}
		if v == busy && j.service.Spec.Schedule != nil && down(j.view.NodeStatus(newest.NodeId)) {
			v = failed // the next run is not held up by a node that is DOWN
		}
		if v != lacks {
			have[newest.NodeId] = true
		}
		f.note(v)
	}
	for _, node := range slices.Sorted(maps.Keys(nodes)) {
		if have[node] || !nodes[node] {
			continue
		}
		number := slotOfNode(node, func(number uint64) bool {
			return !j.filled[number] && (!taken[number] || j.ownSlot(number, node, run))
		})
		taken[number] = true
		f.lacking = append(f.lacking, place{number, node})
	}
	return f
}

// ownSlot tells whether a slot is one that the run has given the node already.
func (j *job) ownSlot(number uint64, node string, run *swarmpb.JobRun) bool {
	for task := range j.view.TasksIn(j.service.Id, number) {
		if task.Run == run.Run && task.NodeId == node {
			return true
		}
	}
	return false
}

// verdict judges a slot by the tasks of a run in it.
func (j *job) verdict(s *slot, run *swarmpb.JobRun) verdict {
	var newest *replica
	for i := range s.replicas {
		r := &s.replicas[i]
		if r.task.Run != run.Run {
			continue
		}
		if r.state == stateComplete {
			return done
		}
		if r.live() {
			newest = r
		}
	}
	switch {
	case newest == nil:
		return lacks
	case newest.state.Ended() && j.finally(s, newest):
		return failed
	default:
		return busy
	}
}

// finally tells whether a task that has failed is the last one in its slot.
func (p *planner) finally(s *slot, r *replica) bool {
	progress := s.progress
	return !p.policy(r.task.TemplateVersion).restarts(r.state) ||
		progress.GetGivenUp() && progress.Run == r.task.Run && progress.TemplateVersion == r.task.TemplateVersion
}

// fill fills a run's slots, as many at a time as the spec says; on nodes that do not suit any more it stops its tasks.
func (j *job) fill(run *swarmpb.JobRun, found *findings) {
	if j.service.Spec.Mode.GetGlobalJob() != nil {
		j.leave(run)
	} else if j.service.Spec.Schedule == nil {
		j.shorten(run)
	}
	budget := uint64(len(found.lacking))
	if most := j.service.Spec.Mode.GetReplicatedJob().GetMaxConcurrent(); most > 0 {
		budget = min(budget, most-min(most, found.busy))
	}
	j.plan.More = j.plan.More || found.more && budget == uint64(len(found.lacking))
	template := cmp.Or(j.view.Template(j.service.Id, run.TemplateVersion).GetVersion(), j.service.TemplateVersion)
	for _, at := range found.lacking[:budget] {
		if !j.room() {
			j.plan.More = true
			return
		}
		task := &swarmpb.Task{Slot: at.slot, NodeId: at.node, Run: run.Run, TemplateVersion: template, DesiredState: stateComplete}
		j.filled[at.slot] = true
		s := readSlot(j.view, j.service, at.slot, j.now)
		n := len(s.replicas)
		if n == 0 {
			j.create(task)
			continue
		}
		j.guardSlot(s)
		for _, r := range s.live() { // of a run before
			j.desire(r, stateShutdown)
		}
		j.heir(s, &s.replicas[n-1], task)
	}
}

// leave stops a run's tasks on nodes that they do not belong on any more.
func (j *job) leave(run *swarmpb.JobRun) {
	template := j.view.Template(j.service.Id, run.TemplateVersion)
	if template == nil {
		return
	}
	nodes := suitable(j.view, template)
	j.call(run, func(s *slot, node string) bool { _, suits := nodes[node]; return !suits })
}

// shorten stops what is beyond the total, which has become smaller.
func (j *job) shorten(run *swarmpb.JobRun) {
	last := run.Base + run.Total
	for range j.view.TasksFrom(j.service.Id, last+1) {
		j.call(run, func(s *slot, _ string) bool { return s.number > last })
		return
	}
}

// call tells a run's tasks in some slots to stop, unless they have ended.
func (j *job) call(run *swarmpb.JobRun, of func(s *slot, node string) bool) {
	for s := range slots(j.view, j.service, 0, j.now) {
		newest := &s.replicas[len(s.replicas)-1]
		if newest.task.Run != run.Run || !newest.live() || newest.state == stateComplete || !of(s, newest.task.NodeId) {
			continue
		}
		if !j.room() {
			j.plan.More = true
			return
		}
		j.guardSlot(s)
		for _, r := range s.live() {
			j.desire(r, stateShutdown)
		}
	}
}

// over carries on a slot of a job in which there is nothing to replace or restart any more: one that has completed, or
// whose run does not go on. What is still on its way there is told to stop.
func (p *planner) over(s *slot, live []*replica) bool {
	run, completed := s.run(), false
	for i := range s.replicas {
		r := &s.replicas[i]
		completed = completed || r.task.Run == run && r.state == stateComplete
	}
	if !completed && p.goesOn(run) {
		return false
	}
	for _, r := range live {
		if r.state != stateComplete && (completed || !r.state.Ended()) {
			p.desire(r, stateShutdown)
		}
	}
	return true
}

// goesOn tells whether a run of the job has not come to its end.
func (p *planner) goesOn(run uint64) bool {
	return slices.ContainsFunc(p.progress.GetJob().GetActive(), func(r *swarmpb.JobRun) bool { return r.Run == run })
}

// keepsRun tells whether the tasks of a run are kept: those of a schedule's newest ones.
func (p *planner) keepsRun(run uint64) bool {
	newest := p.progress.GetJob().GetRun()
	return run >= newest || p.goesOn(run) || p.service.GetSpec().GetSchedule() != nil && run+p.service.Spec.Schedule.HistoryOr() > newest
}

// keepsRuns judges which of a job's ended tasks are kept though the slot's history is full, or the slot not in use: what
// has completed as long as its run goes on or is the newest, and of the runs that are kept the newest task in the slot.
func (p *planner) keepsRuns() func(r *replica, inUse bool) bool {
	seen := map[uint64]bool{}
	return func(r *replica, _ bool) bool {
		if r.node == "" && !r.state.Ended() {
			return false // nothing ever came of it
		}
		first := !seen[r.task.Run]
		seen[r.task.Run] = true
		return p.keepsRun(r.task.Run) && (first || r.state == stateComplete)
	}
}
