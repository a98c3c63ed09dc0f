package plan

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
)

// answer is the plan as it was made.
func (r *run) answer() *swarmpb.PlanServiceResponse {
	view, update := r.store.View(), r.update()
	name := view.Service(r.service).GetSpec().GetName()
	now := r.engine.Now()
	a := &swarmpb.PlanServiceResponse{Strategy: update.GetStrategy()}
	if a.Strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_UNSPECIFIED {
		a.Strategy = view.Service(r.service).GetSpec().GetUpdate().StrategyOr()
	}
	moved, job := len(r.steps.steps) > 0, r.job(view)
	problems := append(r.pending[:len(r.pending):len(r.pending)], unreached(view, r.service)...)
	switch r.end {
	case settled:
		if moved || job != "" {
			r.steps.put(&swarmpb.PlanStep{Action: swarmpb.PlanAction_PLAN_ACTION_DONE, Message: cmp.Or(job, r.done(update))}, now)
		}
	case waits:
		r.steps.put(&swarmpb.PlanStep{Action: swarmpb.PlanAction_PLAN_ACTION_WAIT, TemplateVersion: update.GetTemplateVersion(),
			Message: "waits for promote"}, now)
	case paused:
		what := update.GetMessage()
		if r.engine.Now().Equal(r.start) { // it is paused as things are, not by what is planned
			what += fmt.Sprintf("; `swarmctl service resume %s` goes on", name)
		}
		problems = append(problems, r.after(what))
	case failed:
		problems = append(problems, r.after(update.GetMessage()))
	case stuck:
		problems = append(problems, r.holdups(view)...)
	case cut:
		r.estimate(view)
		a.Warnings = append(a.Warnings, r.cutMessage())
	}
	a.Problems = bounded(problems)
	a.Steps, a.Truncated = r.steps.steps, r.steps.more || r.end == cut
	a.Starts, a.Stops, a.AtLeast = r.steps.starts, r.steps.stops, r.steps.last
	a.NoChange = len(r.steps.steps) == 0 && r.end == settled
	if n := len(r.steps.gaveWay); n > 0 {
		who := strings.Join(r.steps.gaveWay[:min(n, named)], ", ")
		if n > named {
			who += fmt.Sprintf(" and %d more", n-named)
		}
		a.Warnings = append(a.Warnings, fmt.Sprintf("of services with a lower priority, %s would have to give way and wait for room", who))
	}
	return a
}

// done is what the update says that has ended within the plan, if one has.
func (r *run) done(update *swarmpb.UpdateStatus) string {
	if update.GetCompletedAt() < r.start.UnixNano() {
		return ""
	}
	return update.GetMessage()
}

// after says when something happens, if that is not at once.
func (r *run) after(what string) string {
	if passed := r.engine.Now().Sub(r.start); passed > 0 {
		return fmt.Sprintf("after %s: %s", passed.Round(time.Millisecond), what)
	}
	return what
}

// holdups is why a service that nothing moves is not as it should be, pending tasks apart.
func (r *run) holdups(view *store.View) []string {
	reasons := newReasons()
	for task := range view.TasksOf(r.service) {
		rows := view.TaskRows(task.Id)
		node := rows.Placement.GetNodeId()
		if task.DesiredState.Wanted() && node != "" && !rows.Observed.Ended() && !rows.Status.Up() && !ready(view, node) {
			reasons.add(nameOf(view, task), fmt.Sprintf("node %s is %s", view.NodeName(node), view.NodeStatus(node).GetState().Name()))
		}
	}
	lines := reasons.lines()
	if len(lines) == 0 && len(r.pending) == 0 {
		lines = append(lines, r.after("nothing moves any more, and the service is not as it should be"))
	}
	return lines
}

// pending is why tasks of a service have no node or no address.
func pending(view *store.View, serviceID string) []string {
	reasons := newReasons()
	for task, addresses := range view.UnaddressedOf(serviceID) {
		if message := addresses.GetMessage(); message != "" && task.DesiredState.Wanted() {
			reasons.add(nameOf(view, task), message)
		}
	}
	for task := range view.UnplacedOf(serviceID) {
		if message := view.Placement(task.Id).GetMessage(); message != "" {
			reasons.add(nameOf(view, task), message)
		}
	}
	return reasons.lines()
}

// unreached is why the service's ports or addresses are not what it asks for.
func unreached(view *store.View, serviceID string) []string {
	if message := view.ServiceEndpoint(serviceID).GetMessage(); message != "" {
		return []string{message}
	}
	return nil
}

// estimate counts what is left to be done by the rows: in the end all that run are of the newest template, and as many as the
// service asks for.
func (r *run) estimate(view *store.View) {
	service, update := view.Service(r.service), r.update()
	goal := service.GetTemplateVersion()
	if update.Underway() {
		goal = update.GetTemplateVersion()
	}
	if run := newest(view.ServiceProgress(r.service).GetJob()); run.GetEndedAt() == 0 {
		r.steps.starts += run.GetTotal() - min(run.GetTotal(), run.GetCompleted())
	}
	replicated := service.GetSpec().GetMode().GetReplicated()
	if replicated == nil {
		return
	}
	running := uint64(view.TaskCountIn(r.service, stateRunning))
	of := uint64(view.Count(r.service, goal, stateRunning))
	want := replicated.GetReplicas()
	r.steps.starts += want - min(want, of)
	r.steps.stops += running - min(running, of) + of - min(of, want)
}

func (r *run) cutMessage() string {
	passed := r.engine.Now().Sub(r.start).Round(time.Millisecond)
	return fmt.Sprintf("what happens after %s was not looked at: there is more than one plan may take; starts and stops are an estimate", passed)
}

// reasons gathers tasks by what keeps them.
type reasons struct {
	order []string
	tasks map[string][]string
}

// named is how many tasks of one reason are named.
const named = 3

func newReasons() *reasons { return &reasons{tasks: map[string][]string{}} }

func (r *reasons) add(task, reason string) {
	if r.tasks[reason] == nil {
		r.order = append(r.order, reason)
	}
	r.tasks[reason] = append(r.tasks[reason], task)
}

func (r *reasons) lines() []string {
	var lines []string
	for _, reason := range r.order {
		tasks := r.tasks[reason]
		who := strings.Join(tasks[:min(named, len(tasks))], ", ")
		if more := len(tasks) - named; more > 0 {
			who += fmt.Sprintf(" and %d more", more)
		}
		lines = append(lines, who+": "+reason)
	}
	return lines
}

// bounded keeps the first of the problems, and says how many there are beside.
func bounded(problems []string) []string {
	if more := len(problems) - MaxProblems; more > 0 {
		return append(problems[:MaxProblems:MaxProblems], fmt.Sprintf("and %d more", more))
	}
	return problems
}
