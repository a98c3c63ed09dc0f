package orchestrator

import (
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// verb is how the messages of an update that moves begin.
func (r *rollout) verb() string {
	if r.goal.rollback {
		return "rollback in progress"
	}
	return "update in progress"
}

// version is what users call the revision that the update goes to, or the set that it goes back to.
func (r *rollout) version() string {
	name := r.service.GetSpec().GetName()
	switch {
	case r.update.FailedTemplateVersion != 0:
		return "the earlier version of " + name
	case r.update.Revision == 0:
		return "the new version of " + name
	default:
		return fmt.Sprintf("%s v%d", name, r.update.Revision)
	}
}

// explain says what an update that replaces slots waits for: above all a task that finds no node.
func (r *rollout) explain(w *survey) {
	if r.next != nil && r.next.Phase != r.update.Phase {
		return
	}
	if text := r.refusal(w.waits); text != "" {
		r.say("%s: %s", r.verb(), text)
		return
	}
	if r.goal.rollback { // why it goes back is what its users want to read
		return
	}
	switch phase := r.update.Phase; {
	case phase == phaseStarting, phase == phaseWatching && w.watched < w.begun:
		r.say("%s: all old tasks have stopped, the new ones start", r.verb())
	case phase == phaseWatching:
		r.say("%s: all new tasks are up and watched for %s", r.verb(), r.settings.monitor)
	case phase == phaseNone, phase == phasePreparing:
		r.say("update in progress")
	}
}

// refusal says why a task that is waited for has no node, once that has been so for a while; empty otherwise.
func (r *rollout) refusal(waits *replica) string {
	if waits == nil || !waits.refused {
		return ""
	}
	if at := time.Unix(0, r.view.Placement(waits.task.Id).GetAt()).Add(PendingNote); r.now.Before(at) {
		r.wake(at)
		return ""
	}
	return "waiting for a node for " + r.describe(waits.task.Id)
}

// share is a share in percent.
func percent(share uint32) string {
	return fmt.Sprintf("%g%%", float64(share)/float64(swarmpb.WholeShare)*100)
}

// tasks is a number of tasks.
func tasks(n uint64) string {
	if n == 1 {
		return "1 task"
	}
	return fmt.Sprintf("%d tasks", n)
}
