package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// explanation is what the nodes are to a service.
type explanation struct {
	Service   string `json:"service"`
	ServiceID string `json:"serviceId"`
	// TemplateVersion is the template that the nodes were judged for.
	TemplateVersion uint64 `json:"templateVersion"`
	// Accepted nodes would take one more task, Refused ones would not, by the filter that refused them.
	Accepted int            `json:"accepted"`
	Refused  map[string]int `json:"refused"`
	// Nodes are those that were asked for, Waiting the first of the PendingTotal tasks that have no node.
	Nodes        []nodeVerdict `json:"nodes"`
	PendingTotal uint64        `json:"pendingTotal"`
	Pending      []waitingTask `json:"pending"`

	total int // nodes, shown or not
}

// nodeVerdict is what the filters say of a node.
type nodeVerdict struct {
	NodeID   string `json:"nodeId"`
	Hostname string `json:"hostname"`
	Accepted bool   `json:"accepted"`
	// Filter is the one that refused the node; empty: none did.
	Filter string `json:"filter"`
	Detail string `json:"detail"`
	// ServiceTasks are the service's tasks there, Tasks all.
	ServiceTasks uint32 `json:"serviceTasks"`
	Tasks        uint32 `json:"tasks"`
}

// waitingTask is a task without a node.
type waitingTask struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Since   string `json:"since"`
	Message string `json:"message"`

	since int64
}

// homeless tells whether no node suits a task.
func homeless(t *swarmpb.TaskInfo) bool {
	return t.GetState() == swarmpb.TaskState_TASK_STATE_PENDING && t.GetPlacement().GetMessage() != ""
}

// whereToLook is the command that says more of a task which does not come up.
func whereToLook(t *swarmpb.TaskInfo) string {
	if homeless(t) {
		return "explain"
	}
	return "ps"
}

// waitingWhy is what is wrong with a task, or why it has no node; the command that says more is left to who shows it.
func waitingWhy(t *swarmpb.TaskInfo) string {
	text, _, _ := strings.Cut(cmp.Or(t.GetError(), t.GetPlacement().GetMessage()), "; `swarmctl service explain ")
	return text
}

func newExplanation(r *swarmpb.ExplainServiceResponse, drops func(nodeVerdict) bool) *explanation {
	e := &explanation{
		Service: r.GetServiceName(), ServiceID: r.GetServiceId(), TemplateVersion: r.GetTemplateVersion(), Refused: map[string]int{},
		Nodes: []nodeVerdict{}, PendingTotal: r.GetPendingTotal(), Pending: []waitingTask{}, total: len(r.GetNodes()),
	}
	for _, n := range r.GetNodes() {
		v := nodeVerdict{
			NodeID: n.GetNodeId(), Hostname: cmp.Or(n.GetHostname(), n.GetNodeId()), Accepted: n.GetAccepted(), Filter: n.GetFilter(), Detail: n.GetDetail(),
			ServiceTasks: n.GetServiceTasks(), Tasks: n.GetTasks(),
		}
		if v.Accepted {
			e.Accepted++
		} else {
			e.Refused[v.Filter]++
		}
		if !drops(v) {
			e.Nodes = append(e.Nodes, v)
		}
	}
	for _, t := range r.GetPending() {
		e.Pending = append(e.Pending, waitingTask{
			ID: t.GetTask().GetId(), Name: t.GetName(), Since: stamp(t.GetSince()), Message: cmp.Or(waitingWhy(t), t.GetMessage(), "no node has been looked for yet"), since: t.GetSince(),
		})
	}
	return e
}

// placementFilters are what a node may be refused by, in the order in which they judge.
var placementFilters = []string{"availability", "constraint", "platform", "encryption", "resources", "generic-resource", "host-port", "max-replicas-per-node"}

// newVerdictFilter is --filter of explain.
func newVerdictFilter() *filter[nodeVerdict] {
	return &filter[nodeVerdict]{
		keys: map[string]func(nodeVerdict, string) bool{
			"node":     func(v nodeVerdict, s string) bool { return v.Hostname == s || strings.HasPrefix(v.NodeID, s) },
			"filter":   func(v nodeVerdict, s string) bool { return v.Filter == s },
			"accepted": func(v nodeVerdict, s string) bool { return fmt.Sprint(v.Accepted) == s },
		},
		want: "node=, filter= or accepted= and a value, for example accepted=false",
		check: func(key, value string) error {
			switch {
			case key == "accepted" && value != "true" && value != "false":
				return errors.New("want accepted=true or accepted=false")
			case key == "filter" && !slices.Contains(placementFilters, value):
				return fmt.Errorf("no filter is called %q; there are %s", value, strings.Join(placementFilters, ", "))
			}
			return nil
		},
	}
}

func (a *app) serviceExplainCommand() *cobra.Command {
	var (
		f       format
		refused bool
	)
	only := newVerdictFilter()
	cmd := &cobra.Command{
		Use: "explain SERVICE", Short: "Show for each node whether it would take one more task of a service, and why not",
		Long: `Show for each node whether it would take one more task of a service, and if not, which filter refused it and what was
asked of it; below that, which tasks wait for a node. A node counts for the first filter that refuses it: availability,
constraint, platform, encryption, resources, generic-resource, host-port, max-replicas-per-node. The managers answer with the
code that places tasks, for the template that the service has now.

A task that waits is tried again as soon as something that could help has changed: a node that joins, returns, changes its
labels or becomes active, a task that ends. Nothing has to be done for that.`,
		Example: `  swarmctl service explain web
  swarmctl service explain --refused web
  swarmctl service explain --filter filter=resources --filter node=node-2 web
  swarmctl service explain --format json web | jq .refused
  swarmctl service explain --format '{{range .Nodes}}{{.Hostname}}: {{.Detail}}{{"\n"}}{{end}}' web`,
		Args: oneArg("service"), ValidArgsFunction: first(a.complete(serviceNames)),
	}
	f.define(cmd, "text", formatJSON)
	cmd.Flags().BoolVar(&refused, "refused", false, "only nodes that would not take one")
	cmd.Flags().Var(only, "filter", "only nodes with `key=value`: node, filter (by which they were refused) or accepted; may be repeated")
	words := []string{"accepted=true", "accepted=false", "node="}
	for _, name := range placementFilters {
		words = append(words, "filter="+name)
	}
	completeWords(cmd, "filter", words...)
	a.reading(cmd)
	cmd.RunE = a.call(func(ctx context.Context, c *client, names []string) error {
		r, err := c.ExplainService(ctx, &swarmpb.ExplainServiceRequest{Service: names[0]})
		if err != nil {
			return err
		}
		e := newExplanation(r, func(v nodeVerdict) bool { return refused && v.Accepted || only.drops(v) })
		switch f.kind {
		case formatJSON:
			return printJSON(a.out, e)
		case formatTemplate:
			return f.execute(a.out, fieldsOf[*explanation](), []any{e})
		}
		if err := a.printExplanation(e); err != nil {
			return err
		}
		return a.printNotAccepted(ctx, c, e)
	})
	return cmd
}

func (a *app) printExplanation(e *explanation) error {
	verdicts := table[nodeVerdict]{columns: []column[nodeVerdict]{
		{"NODE", func(v nodeVerdict) string { return v.Hostname }, true},
		{"VERDICT", func(v nodeVerdict) string {
			if v.Accepted {
				return "suits"
			}
			return v.Filter
		}, false},
		{"OF SERVICE", func(v nodeVerdict) string { return fmt.Sprint(v.ServiceTasks) }, false},
		{"TASKS", func(v nodeVerdict) string { return fmt.Sprint(v.Tasks) }, false},
		{"DETAIL", func(v nodeVerdict) string {
			if v.Detail == "suits" { // which the verdict says
				return ""
			}
			return v.Detail
		}, true},
	}}
	if err := printRows(a.out, a.width, listing{format: format{kind: formatTable}}, e.Nodes, verdicts); err != nil {
		return err
	}
	_, _ = fmt.Fprintln(a.out)
	if err := a.say("%s", e.counts()); err != nil {
		return err
	}
	return a.printWaiting(a.out, e)
}

// counts says how many nodes suit, and what refused the others, the most frequent first.
func (e *explanation) counts() string {
	text := fmt.Sprintf("%d of %s would take one more task of %s", e.Accepted, count(e.total, "node"), e.Service)
	var filters []string
	for name := range e.Refused {
		filters = append(filters, name)
	}
	slices.SortFunc(filters, func(x, y string) int { return cmp.Or(cmp.Compare(e.Refused[y], e.Refused[x]), cmp.Compare(x, y)) })
	for i, name := range filters {
		filters[i] = fmt.Sprintf("%s %d", name, e.Refused[name])
	}
	if len(filters) > 0 {
		text += "; refused: " + strings.Join(filters, ", ")
	}
	return text + "."
}

// mightHelp tells whether what a node says of itself beyond what is accepted could make it suit. Of constraints the detail tells that.
func (v nodeVerdict) mightHelp() bool {
	return slices.Contains([]string{"platform", "resources", "generic-resource"}, v.Filter)
}

// printNotAccepted names the nodes that would have more if somebody accepted it.
func (a *app) printNotAccepted(ctx context.Context, c *client, e *explanation) error {
	if !slices.ContainsFunc(e.Nodes, nodeVerdict.mightHelp) {
		return nil
	}
	r, err := c.ListNodes(ctx, &swarmpb.ListNodesRequest{})
	if err != nil {
		return err
	}
	for _, n := range r.GetNodes() {
		says := n.GetNotAccepted()
		if len(says) == 0 || !slices.ContainsFunc(e.Nodes, func(v nodeVerdict) bool { return v.NodeID == n.GetNode().GetId() && v.mightHelp() }) {
			continue
		}
		if err := a.say("%s says of itself what is not accepted: %s; `swarmctl node update --accept %s` takes it", nodeName(n), strings.Join(says, "; "), nodeName(n)); err != nil {
			return err
		}
	}
	return nil
}

// shownWaiting is how many tasks are named of those that wait for the same.
const shownWaiting = 5

// printWaiting says which tasks wait for a node, those that wait for the same on one line.
func (a *app) printWaiting(w io.Writer, e *explanation) error {
	if e.PendingTotal == 0 {
		_, err := fmt.Fprintln(w, "No task waits for a node.")
		return err
	}
	verb := "waits"
	if e.PendingTotal > 1 {
		verb = "wait"
	}
	_, _ = fmt.Fprintf(w, "%s %s for a node:\n", count(e.PendingTotal, "task"), verb)
	var reasons []string
	by := map[string][]waitingTask{}
	for _, t := range e.Pending {
		if by[t.Message] == nil {
			reasons = append(reasons, t.Message)
		}
		by[t.Message] = append(by[t.Message], t)
	}
	for _, reason := range reasons {
		tasks := by[reason]
		var named []string
		oldest := tasks[0].since
		for i, t := range tasks {
			if i < shownWaiting {
				named = append(named, t.Name)
			}
			oldest = min(oldest, t.since)
		}
		text := strings.Join(named, ", ")
		if more := len(tasks) - shownWaiting; more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
		if oldest != 0 {
			text += ", for " + duration(a.now().Sub(time.Unix(0, oldest)))
		}
		_, _ = fmt.Fprintln(w, clean("  "+text+": "+reason))
	}
	if more := e.PendingTotal - uint64(len(e.Pending)); e.PendingTotal > uint64(len(e.Pending)) {
		_, _ = fmt.Fprintf(w, "  and %s\n", count(more, "more task"))
	}
	return nil
}
