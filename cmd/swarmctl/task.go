package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// taskRow is a task in a listing.
type taskRow struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Service      string `json:"service"`
	Slot         uint64 `json:"slot"`
	Attempt      uint64 `json:"attempt"`
	Image        string `json:"image"`
	Node         string `json:"node"`
	NodeID       string `json:"nodeId"`
	DesiredState string `json:"desiredState"`
	State        string `json:"state"`
	Since        string `json:"since"`
	Error        string `json:"error"`
	Message      string `json:"message"`
	// Move is why the task that it replaces is to be elsewhere: drain, constraint or rebalance; empty for most.
	Move     string `json:"move"`
	ExitCode *int32 `json:"exitCode"` // null until the container has ended
	Address  string `json:"address"`
	Ports    string `json:"ports"`
	// Health is starting, healthy, unhealthy or not ready; empty where nothing asks. Failing and NotReadyFailing count
	// failures in a row, HealthOutput is what the probe said that changed it last, at HealthAt.
	Health          string `json:"health"`
	Ready           bool   `json:"ready"`
	Failing         uint32 `json:"failing"`
	NotReadyFailing uint32 `json:"notReadyFailing"`
	HealthOutput    string `json:"healthOutput"`
	HealthAt        string `json:"healthAt"`

	since  int64
	health *swarmpb.HealthStatus
	// former: a newer attempt at the same replica stands above it.
	former bool
}

func newTaskRow(t *swarmpb.TaskInfo) taskRow {
	task, status := t.GetTask(), t.GetStatus()
	r := taskRow{
		ID: task.GetId(), Name: t.GetName(), Service: t.GetServiceName(), Slot: task.GetSlot(), Attempt: task.GetAttempt(), Image: t.GetImage(),
		Node: cmp.Or(t.GetNodeHostname(), t.GetNodeId()), NodeID: t.GetNodeId(),
		DesiredState: task.GetDesiredState().Name(), State: t.GetState().Name(), Since: stamp(t.GetSince()), since: t.GetSince(),
		Error: t.GetError(), Message: t.GetMessage(), Address: status.GetAddress(), Ports: portsText(status.GetHostPorts(), true),
	}
	if why := task.GetMove(); why != swarmpb.MoveReason_MOVE_REASON_UNSPECIFIED {
		r.Move = why.Name()
	}
	if c := status.GetContainer(); c.GetFinishedAt() != 0 {
		r.ExitCode = &c.ExitCode
	}
	h := status.GetHealth()
	r.health, r.Health, r.Ready = h, healthState(h), status.Up()
	r.Failing, r.NotReadyFailing, r.HealthOutput, r.HealthAt = h.GetFailing(), h.GetNotReadyFailing(), h.GetOutput(), stamp(h.GetAt())
	return r
}

// taskListing is a listing of tasks.
type taskListing struct {
	listing
	current, whole, health bool
	filter                 *filter[taskRow]
}

// newTaskFilter is --filter of a listing of tasks.
func newTaskFilter() *filter[taskRow] {
	return &filter[taskRow]{
		keys: map[string]func(taskRow, string) bool{
			"id":            func(r taskRow, v string) bool { return strings.HasPrefix(r.ID, v) },
			"name":          func(r taskRow, v string) bool { return strings.HasPrefix(r.Name, v) },
			"node":          func(r taskRow, v string) bool { return r.Node == v || strings.HasPrefix(r.NodeID, v) },
			"state":         func(r taskRow, v string) bool { return r.State == v },
			"desired-state": func(r taskRow, v string) bool { return r.DesiredState == v },
		},
		want: "id=, name=, node=, state= or desired-state= and a value, for example state=failed",
		check: func(key, value string) error {
			if (key == "state" || key == "desired-state") && !slices.Contains(taskStates(), value) {
				return fmt.Errorf("no task has the state %q; there are %s", value, strings.Join(taskStates(), ", "))
			}
			return nil
		},
	}
}

// taskStates are all states, in the order in which tasks go through them.
func taskStates() []string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(swarmpb.TaskState_name)) {
		if n != 0 {
			out = append(out, swarmpb.TaskState(n).Name())
		}
	}
	return out
}

// tasksCommand is a command that lists tasks: those that requests, made of the arguments, ask for. Below the table stand
// the notes, if there are any.
func (a *app) tasksCommand(cmd *cobra.Command, requests func(args []string) []*swarmpb.ListTasksRequest, notes func(context.Context, *client, []string) ([]string, error)) *cobra.Command {
	l := taskListing{filter: newTaskFilter()}
	l.define(cmd)
	cmd.Flags().BoolVar(&l.current, "current", false, "leave out tasks that have ended or are to end")
	a.reading(cmd)
	cmd.Flags().VarP(l.filter, "filter", "f", "only tasks with `key=value`: id, name, node, state or desired-state; may be repeated")
	completeWords(cmd, "filter", "state=failed", "state=running", "desired-state=running", "node=", "name=")
	cmd.Flags().BoolVar(&l.whole, "no-trunc", false, "shorten nothing, neither IDs nor errors")
	cmd.Flags().BoolVar(&l.health, "health", false, "show what probes say of the tasks, and what the last one said that changed that")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if l.health && (l.quiet || cmd.Flags().Changed("format")) {
			return usageError(cmd, "--health is a table of its own, and goes neither with -q nor with --format, whose fields have all of it")
		}
		return nil
	}
	cmd.RunE = a.call(func(ctx context.Context, c *client, args []string) error {
		var rows []taskRow
		var errs []error
		found := false
		for _, req := range requests(args) {
			req.CurrentOnly = l.current
			more, err := listTasks(ctx, c, req)
			rows, errs, found = append(rows, more...), append(errs, err), found || err == nil
		}
		if !found {
			return errors.Join(errs...)
		}
		sortTasks(rows)
		rows = slices.DeleteFunc(rows, l.filter.drops)
		printed := a.printTasks(l, rows)
		if notes != nil && printed == nil && l.format.kind == formatTable && !l.quiet {
			printed = a.printNotes(ctx, c, args, notes)
		}
		return errors.Join(append([]error{printed}, errs...)...)
	})
	return cmd
}

// printNotes writes what a listing says below its table. What is wrong with the arguments has been said.
func (a *app) printNotes(ctx context.Context, c *client, args []string, notes func(context.Context, *client, []string) ([]string, error)) error {
	lines, err := notes(ctx, c, args)
	if len(lines) > 0 {
		_, _ = fmt.Fprintln(a.out)
	}
	for _, line := range lines {
		_, _ = fmt.Fprintln(a.out, clean(line))
	}
	return err
}

// listTasks reads all pages.
func listTasks(ctx context.Context, c *client, req *swarmpb.ListTasksRequest) ([]taskRow, error) {
	var rows []taskRow
	for {
		r, err := c.ListTasks(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, t := range r.Tasks {
			rows = append(rows, newTaskRow(t))
		}
		if r.NextPageToken == "" {
			return rows, nil
		}
		req.PageToken = r.NextPageToken
	}
}

// sortTasks brings each replica's attempts together, the newest first, and marks the others.
func sortTasks(rows []taskRow) {
	slices.SortStableFunc(rows, func(x, y taskRow) int {
		return cmp.Or(
			cmp.Compare(x.Service, y.Service), cmp.Compare(x.Slot, y.Slot), cmp.Compare(x.Name, y.Name),
			cmp.Compare(y.Attempt, x.Attempt), cmp.Compare(x.ID, y.ID),
		)
	})
	for i := 1; i < len(rows); i++ {
		rows[i].former = rows[i].Name == rows[i-1].Name
	}
}

func (a *app) printTasks(l taskListing, rows []taskRow) error {
	width := a.width
	if l.whole {
		width = 0
	}
	if l.health {
		return printRows(a.out, width, l.listing, rows, a.healthTable(l.whole))
	}
	return printRows(a.out, width, l.listing, rows, table[taskRow]{func(r taskRow) string { return r.ID }, []column[taskRow]{
		{"ID", func(r taskRow) string { return r.shownID(l.whole) }, false},
		{"NAME", taskRow.shownName, false},
		{"IMAGE", func(r taskRow) string { return r.Image }, true},
		{"NODE", func(r taskRow) string { return r.Node }, true},
		{"DESIRED", func(r taskRow) string { return r.DesiredState }, false},
		{"STATE", func(r taskRow) string { return strings.TrimSpace(r.State + " " + a.ago(r.since)) }, false},
		{"PORTS", func(r taskRow) string { return r.Ports }, true},
		{"ERROR", taskRow.trouble, true},
	}})
}

// trouble is why a task ended or what it waits for, and where it has gone to.
func (r taskRow) trouble() string {
	var said []string
	for _, gone := range []string{"moves to ", "moved to ", "gave way to "} {
		if strings.HasPrefix(r.Message, gone) {
			text, _, _ := strings.Cut(r.Message, "; ")
			said = append(said, text)
		}
	}
	switch {
	case r.Error != "":
		said = append(said, r.Error)
	case r.State == "pending", r.State == "preparing":
		return r.Message
	}
	return strings.Join(said, "; ")
}

func (r taskRow) shownID(whole bool) string {
	if whole {
		return r.ID
	}
	return short(r.ID)
}

// shownName marks a former attempt, which stands below the one that counts.
func (r taskRow) shownName() string {
	if r.former {
		return ` \_ ` + r.Name
	}
	return r.Name
}

func (a *app) taskCommand() *cobra.Command {
	return group("task", "See tasks", a.taskListCommand(), a.taskInspectCommand())
}

func (a *app) taskListCommand() *cobra.Command {
	return a.tasksCommand(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List all tasks", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Example: "  swarmctl task ls --current\n  swarmctl task ls --format json",
	}, func([]string) []*swarmpb.ListTasksRequest { return []*swarmpb.ListTasksRequest{{}} }, nil)
}

func (a *app) nodePsCommand() *cobra.Command {
	return a.tasksCommand(&cobra.Command{
		Use: "ps [NODE...]", Short: "List the tasks of nodes (default: of this one)", ValidArgsFunction: a.complete(nodeNames),
		Example: `  swarmctl node ps
  swarmctl node ps --current n1 n2
  swarmctl node ps --filter desired-state=running node-2`,
	}, func(args []string) []*swarmpb.ListTasksRequest {
		if len(args) == 0 {
			args = []string{"self"}
		}
		var out []*swarmpb.ListTasksRequest
		for _, arg := range args {
			out = append(out, &swarmpb.ListTasksRequest{Node: arg})
		}
		return out
	}, nil)
}

func (a *app) servicePsCommand() *cobra.Command {
	return a.tasksCommand(&cobra.Command{
		Use: "ps SERVICE...", Short: "List the tasks of services, with what happened to them",
		Args: someArgs("service"), ValidArgsFunction: a.complete(serviceNames),
		Long: `List the tasks of services: for each replica the attempt that is to run, and below it the former ones, as many as
the cluster keeps (--task-history-limit at init). STATE says what a task came to and since when, ERROR why it ended or what
it waits for: an exit code, a signal, "out of memory", an image that cannot be pulled, a network without a free address, no node
that suits ("swarmctl service explain" tells that node by node), or where it has moved to and why.
PREPARING shows how far its image is. --health shows instead what probes say: starting until the first one succeeds, then
healthy, unhealthy or not ready, with the failures in a row, and the output of the probe that changed it last.

Below the table stands what keeps clients from the service: a published port that a program on some node has already, and
what of its ports and addresses the cluster could not give it, and why its last update was rolled back.`,
		Example: `  swarmctl service ps web
  swarmctl service ps --filter state=failed --no-trunc web
  swarmctl service ps --health --current web
  swarmctl service ps --current --format json web`,
	}, func(args []string) []*swarmpb.ListTasksRequest {
		var out []*swarmpb.ListTasksRequest
		for _, arg := range args {
			out = append(out, &swarmpb.ListTasksRequest{Service: arg})
		}
		return out
	}, serviceNotes)
}

func (a *app) taskInspectCommand() *cobra.Command {
	return a.inspectCommand("task", "Show all about tasks, named by ID, name or prefix of the ID. A name stands for the replica's current task.",
		"  swarmctl task inspect --pretty web.1\n  swarmctl task inspect -f '{{.State}} {{.Error}}' web.1", taskNames,
		func(ctx context.Context, c *client, arg string) (inspected, error) {
			r, err := c.GetTask(ctx, &swarmpb.GetTaskRequest{Task: arg})
			return inspected{r, []string{"task", "task"}, func(w io.Writer) { a.prettyTask(w, r) }}, err
		})
}

func (a *app) prettyTask(w io.Writer, r *swarmpb.GetTaskResponse) {
	t := newTaskRow(r.GetTask())
	container := r.GetTask().GetStatus().GetContainer()
	p := printer{w: w, width: len("Last probe said:")}
	p.line("ID", t.ID)
	p.line("Name", t.Name)
	p.line("Service", t.Service)
	p.line("Attempt", fmt.Sprint(t.Attempt))
	p.line("Image", t.Image)
	p.line("Digest", container.GetImageDigest())
	node := t.Node
	if node != t.NodeID {
		node = fmt.Sprintf("%s (%s)", node, t.NodeID)
	}
	p.line("Node", node)
	p.line("Desired state", t.DesiredState)
	p.line("State", strings.TrimSpace(t.State+" "+a.ago(t.since)))
	p.line("Message", t.Message)
	p.line("Error", t.Error)
	prettyHealth(a, p, t.health)
	if t.ExitCode != nil {
		p.line("Exit code", fmt.Sprint(*t.ExitCode))
	}
	if container.GetOomKilled() {
		p.line("Out of memory", "yes")
	}
	for _, g := range r.GetTask().GetPlacement().GetGeneric() {
		text := genericText(g)
		if names := strings.Join(g.GetInstances(), ", "); names != "" {
			text += " (" + names + ")"
		}
		p.line("Generic", text)
	}
	p.line("Container", container.GetContainerId())
	p.line("Replaces", r.GetTask().GetTask().GetReplaces())
	p.line("Address", t.Address)
	for _, address := range r.GetTask().GetAddresses().GetNetworks() {
		p.line("Network", addressText(address, r.GetNetworkNames()))
	}
	p.line("Ports", t.Ports)
}
