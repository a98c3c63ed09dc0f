package orchestrator

import (
	"slices"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/scheduler"

	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/store"
)

// fits tells whether nodes meet the constraints of templates, each asked once.
type fits struct {
	view      *store.View
	templates map[templateID][]scheduler.Constraint
	answers   map[fit]bool
}

type templateID struct {
	service string
	version uint64
}

type fit struct {
	templateID
	node string
}

func newFits(view *store.View) *fits { return &fits{view: view} }

// constraints are a template's; one that cannot be understood, which validation refuses, has none.
func (f *fits) constraints(id templateID) []scheduler.Constraint {
	found, known := f.templates[id]
	if known {
		return found
	}
	if template := f.view.Template(id.service, id.version); constrained(template) {
		if q, err := scheduler.NewRequirements(template); err == nil {
			found = q.Constraints
		}
	}
	if f.templates == nil {
		f.templates = map[templateID][]scheduler.Constraint{}
	}
	f.templates[id] = found
	return found
}

// misfit tells whether a node does not meet the constraints of a task's template. A node that is no member meets all: nobody
// knows what it is.
func (f *fits) misfit(task *swarmpb.Task, nodeID string) bool {
	id := templateID{task.ServiceId, task.TemplateVersion}
	wants := f.constraints(id)
	if len(wants) == 0 || nodeID == "" {
		return false
	}
	at := fit{id, nodeID}
	misfit, known := f.answers[at]
	if known {
		return misfit
	}
	if row := f.view.Node(nodeID); row != nil {
		node := scheduler.NewNode(row, f.view.NodeStatus(nodeID))
		misfit = slices.ContainsFunc(wants, func(c scheduler.Constraint) bool { return !c.Match(&node) })
	}
	if f.answers == nil {
		f.answers = map[fit]bool{}
	}
	f.answers[at] = misfit
	return misfit
}

func constrained(template *swarmpb.Template) bool {
	return len(template.GetSpec().GetPlacement().GetConstraints()) > 0
}

// constrainedOn are the slots of a node's tasks that have constraints.
func constrainedOn(view *store.View, nodeID string) (ids []reconcile.ID) {
	for task := range view.TasksOn(nodeID) {
		if constrained(view.Template(task.ServiceId, task.TemplateVersion)) {
			ids = append(ids, slotOf(task)...)
		}
	}
	return ids
}
