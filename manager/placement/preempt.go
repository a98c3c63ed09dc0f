package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/scheduler"
)

const (
	// maxPreemptors is for how many tasks a round looks for others that could give way.
	maxPreemptors = 16
	// maxVictims give way to one task.
	maxVictims = 32
)

// keepRoom counts the claims of those for whom others give way as if they were there already, so that nobody takes the
// room which that makes.
func (r *round) keepRoom() {
	for id, node := range r.planner.nominated {
		if n := r.nodes.Node(node); n != nil && r.planner.overlay[id] == nil {
			if q := r.wanted(id); q != nil {
				n.Claim(q.Reserve, nil)
				r.kept[id] = node
			}
		}
	}
}

func (r *round) wanted(id string) *scheduler.Requirements {
	t := r.view.Task(id)
	if t == nil || r.view.NodeID(id) != "" {
		return nil
	}
	q, err := r.requirements(t.GetServiceId(), t.GetTemplateVersion())
	if err != nil {
		return nil
	}
	return q
}

// openRoom lets a task into the room that was kept for it.
func (r *round) openRoom(id string, q *scheduler.Requirements) {
	node, kept := r.kept[id]
	if !kept {
		return
	}
	delete(r.kept, id)
	r.nodes.Node(node).Release(q.Reserve)
}

// preempt asks tasks of lower priority to give way to one that fits nowhere: it is written who, and where. What has been
// asked stands until all of them have ended. It reports false when there is nobody to ask.
func (r *round) preempt(t *swarmpb.Task, group *scheduler.Group, message string) bool {
	row := r.view.Placement(t.GetId())
	mine := r.view.Service(t.GetServiceId()).GetSpec().GetPriority()
	if node := row.GetPreemptsOn(); node != "" && r.stands(row, mine) && r.nodes.Node(node) != nil && r.nodes.Node(node).Ready {
		r.nodes.Node(node).Claim(group.Requirements.Reserve, nil) // it is still its own
		return true
	}
	if low, _ := r.priorities(); mine <= low || r.preemptors == maxPreemptors {
		return false
	}
	r.preemptors++
	one := *group
	one.Tasks = slices.DeleteFunc(slices.Clone(group.Tasks), func(other scheduler.Task) bool { return other.ID != t.GetId() })
	node, victims, ok := r.nodes.Preempt(&one, mine, func(node string) []scheduler.Running { return r.running(node, group.Service) })
	if !ok || len(victims) == 0 || len(victims) > maxVictims {
		return false
	}
	r.nodes.Node(node).Claim(group.Requirements.Reserve, nil)
	for _, id := range victims {
		r.asked[id] = true
	}
	noun := "1 task"
	if len(victims) > 1 {
		noun = fmt.Sprintf("%d tasks", len(victims))
	}
	r.write(r.decision(0), &entry{task: t, preempts: victims, preemptsOn: node,
		message: fmt.Sprintf("%s; waits for %s of lower priority to give way on %s", message, noun, r.view.NodeName(node))})
	return true
}

// stands tells whether what a task of a priority has asked for is still to come: some of those who are to give way have not
// ended, and none of them is as high by now and will not.
func (r *round) stands(row *swarmpb.TaskPlacement, priority int32) (some bool) {
	for _, id := range row.GetPreempts() {
		t := r.view.Task(id)
		if t == nil || r.view.Observed(id).Ended() {
			continue
		}
		if t.GetDesiredState() < swarmpb.TaskState_TASK_STATE_SHUTDOWN && r.view.Service(t.GetServiceId()).GetSpec().GetPriority() >= priority {
			return false
		}
		some = true
	}
	return some
}

// priorities are the lowest and the highest of all services.
func (r *round) priorities() (low, high int32) {
	if r.priority == nil {
		low, high = math.MaxInt32, math.MinInt32
		for service := range r.view.Services() {
			low, high = min(low, service.GetSpec().GetPriority()), max(high, service.GetSpec().GetPriority())
		}
		r.priority = &[2]int32{low, high}
	}
	return r.priority[0], r.priority[1]
}

// byPriority puts those first in the queue that are to have what there is.
func (r *round) byPriority() {
	if low, high := r.priorities(); low >= high {
		return
	}
	slices.SortStableFunc(r.planner.queue, func(a, b *work) int {
		return cmp.Compare(r.view.Service(b.service).GetSpec().GetPriority(), r.view.Service(a.service).GetSpec().GetPriority())
	})
}

// running lists what may be asked to give way on a node: what is meant to run, and has not been asked by another.
func (r *round) running(node, service string) []scheduler.Running {
	var out []scheduler.Running
	for t := range r.view.TasksOn(node) {
		if !t.GetDesiredState().Wanted() || r.asked[t.GetId()] || r.view.Observed(t.GetId()).Ended() {
			continue
		}
		q, err := r.requirements(t.GetServiceId(), t.GetTemplateVersion())
		if err != nil || r.shares(t, node) || r.view.Service(t.GetServiceId()).GetSpec().IsAttachment() {
			continue
		}
		out = append(out, scheduler.Running{Task: t.GetId(), Priority: r.view.Service(t.GetServiceId()).GetSpec().GetPriority(),
			Resources: q.Reserve, Ports: q.Ports, Same: t.GetServiceId() == service})
	}
	return out
}

// shares tells whether a task claims nothing of its own: it takes over what the one whose place it takes holds there, and goes
// with that.
func (r *round) shares(t *swarmpb.Task, node string) bool {
	base, beside := r.view.Base(t, nil)
	return !beside && base.Task != nil && base.Placement.GetNodeId() == node
}
