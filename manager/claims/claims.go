// Package claims reads from a view what the scheduler judges by: the nodes with what tasks claim on them, and what
// services require. Placement decides with it, adding what it has decided and the view does not show yet; explaining
// why a task waits and looking for tasks that would be better off elsewhere read the same, so that all three agree.
// It writes nothing, and keeps nothing beyond the one view.
package claims

import (
	"fmt"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/scheduler"
)

const (
	// FailuresToAvoid tasks of a service that ended in failure on a node within FailureWindow make the node its last choice.
	FailuresToAvoid = 5
	FailureWindow   = 5 * time.Minute
)

// Claims are a view's. They are for one goroutine.
type Claims struct {
	view  *store.View
	nodes *scheduler.Nodes
	*Templates
}

// Of reads all nodes of a view with what is claimed on them.
func Of(view *store.View) *Claims {
	c := &Claims{view: view, Templates: TemplatesOf(view)}
	nodes := make([]scheduler.Node, 0, view.NodeCount())
	for row := range view.Nodes() {
		nodes = append(nodes, NodeOf(view, row))
	}
	c.nodes = scheduler.NewNodes(nodes)
	return c
}

// NodeOf reads one node with what is claimed there. It walks the node's tasks only where it has generic resources.
func NodeOf(view *store.View, row *swarmpb.Node) scheduler.Node {
	node := scheduler.NewNode(row, view.NodeStatus(row.GetId()))
	usage := view.Usage(row.GetId())
	var ports []scheduler.Port
	for protocol, number := range usage.Ports() {
		ports = append(ports, scheduler.Port{Protocol: protocol, Number: number})
	}
	node.Claim(scheduler.Resources{NanoCPUs: usage.NanoCPUs, MemoryBytes: usage.MemoryBytes}, ports)
	node.Tasks = usage.Tasks
	if len(node.Generic) > 0 {
		claimGeneric(view, &node)
	}
	return node
}

// Nodes are the nodes with what is left on them. What is claimed there counts from then on.
func (c *Claims) Nodes() *scheduler.Nodes { return c.nodes }

// claimGeneric takes what the node's tasks hold out of its generic resources. A pair of which one follows the other
// holds the larger of both.
func claimGeneric(view *store.View, node *scheduler.Node) {
	for t := range view.TasksOn(node.ID) {
		rows := view.TaskRows(t.GetId())
		if got := rows.Placement.GetGeneric(); len(got) > 0 && !rows.Observed.Ended() {
			node.ClaimGeneric(scheduler.Beyond(got, genericBefore(view, t, node.ID)))
		}
	}
}

// GenericBefore is what the task whose place it takes holds on the node, if the task takes that over there.
func (c *Claims) GenericBefore(t *swarmpb.Task, node string) []*swarmpb.GenericResource {
	return genericBefore(c.view, t, node)
}

func genericBefore(view *store.View, t *swarmpb.Task, node string) []*swarmpb.GenericResource {
	base, beside := view.Base(t, nil)
	if beside || base.Placement.GetNodeId() != node {
		return nil
	}
	return base.Placement.GetGeneric()
}

// OnNode counts the service's claims by node.
func (c *Claims) OnNode(service string) map[string]int { return c.view.ClaimsOf(service) }

// Failing are the nodes that the service is better kept from for a while.
func (c *Claims) Failing(service string, now time.Time) map[string]bool {
	count := func(s swarmpb.TaskState) int { return c.view.TaskCountIn(service, s) }
	if count(swarmpb.TaskState_TASK_STATE_FAILED)+count(swarmpb.TaskState_TASK_STATE_REJECTED) < FailuresToAvoid {
		return nil
	}
	since, failures := now.Add(-FailureWindow).UnixNano(), map[string]int{}
	var out map[string]bool
	for rows := range c.view.RowsOf(service) {
		if s := rows.Observed; s != swarmpb.TaskState_TASK_STATE_FAILED && s != swarmpb.TaskState_TASK_STATE_REJECTED || rows.Status.GetAt() < since {
			continue
		}
		if node := rows.Placement.GetNodeId(); node != "" {
			if failures[node]++; failures[node] == FailuresToAvoid {
				if out == nil {
					out = map[string]bool{}
				}
				out[node] = true
			}
		}
	}
	return out
}

// Templates reads what templates require, each once.
type Templates struct {
	view  *store.View
	known map[templateKey]template
}

type templateKey struct {
	service string
	version uint64
}

type template struct {
	requirements *scheduler.Requirements
	err          error
}

// TemplatesOf reads none yet.
func TemplatesOf(view *store.View) *Templates {
	return &Templates{view: view, known: map[templateKey]template{}}
}

// Requirements are a template's, as its tasks are placed by. An error says that it is missing, or what of it cannot be
// understood.
func (c *Templates) Requirements(service string, version uint64) (*scheduler.Requirements, error) {
	key := templateKey{service, version}
	t, ok := c.known[key]
	if !ok {
		if row := c.view.Template(service, version); row == nil {
			t.err = fmt.Errorf("template %d of service %s is missing", version, service)
		} else {
			t.requirements, t.err = scheduler.NewRequirements(row)
			if t.err == nil && c.encrypted(row) {
				t.requirements.Encrypt()
			}
		}
		c.known[key] = t
	}
	return t.requirements, t.err
}

// encrypted tells whether a network of the template is.
func (c *Templates) encrypted(t *swarmpb.Template) bool {
	return slices.ContainsFunc(t.GetSpec().GetNetworks(), func(a *swarmpb.NetworkAttachment) bool {
		return c.view.Network(a.GetNetwork()).GetSpec().GetEncrypted()
	})
}
