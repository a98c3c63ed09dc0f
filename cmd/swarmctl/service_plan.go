package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/reflect/protoreflect"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// planFlags are those of commands that can tell what they would do.
type planFlags struct {
	wanted bool
	format format
}

func (p *planFlags) define(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.wanted, "dry-run", false, "show what would be done, and whether it would fit, and do nothing; exit code 2 when it would not")
	p.format.define(cmd, "text", formatJSON)
	cmd.Flags().Lookup("format").Usage = "with --dry-run: " + cmd.Flags().Lookup("format").Usage
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("format") && !p.wanted {
			return usageError(cmd, "--format is for --dry-run; add it, or leave --format out")
		}
		return nil
	}
}

// planView is a plan as it is shown.
type planView struct {
	Service  string        `json:"service"`
	Change   string        `json:"change"` // create, update or rollback
	Strategy string        `json:"strategy"`
	Fits     bool          `json:"fits"`
	NoChange bool          `json:"noChange"`
	Starts   uint64        `json:"starts"`
	Stops    uint64        `json:"stops"`
	AtLeast  string        `json:"atLeast"`
	Problems []string      `json:"problems"`
	Warnings []string      `json:"warnings"`
	Diff     []fieldChange `json:"diff"`
	Steps    []planStep    `json:"steps"`
	// Truncated: there are more steps.
	Truncated bool           `json:"truncated"`
	Before    map[string]any `json:"before"`
	After     map[string]any `json:"after"`
}

// planStep is a line of a plan.
type planStep struct {
	At              string `json:"at"`
	Action          string `json:"action"`
	Task            string `json:"task"`
	Slot            uint64 `json:"slot"`
	TemplateVersion uint64 `json:"templateVersion"`
	Node            string `json:"node"`
	NodeID          string `json:"nodeId"`
	Replaces        string `json:"replaces"`
	Message         string `json:"message"`
}

func newPlanView(service, change string, r *swarmpb.PlanServiceResponse) *planView {
	v := &planView{
		Service: service, Change: change, Strategy: r.GetStrategy().Name(), Fits: len(r.GetProblems()) == 0, NoChange: r.GetNoChange(),
		Starts: r.GetStarts(), Stops: r.GetStops(), AtLeast: offset(r.GetAtLeast()), Problems: append([]string{}, r.GetProblems()...),
		Warnings: append([]string{}, r.GetWarnings()...), Steps: []planStep{}, Truncated: r.GetTruncated(),
		Diff: diffFields(specFields(r.GetBefore()), specFields(r.GetAfter())),
	}
	p := plainer{name: protoreflect.FieldDescriptor.JSONName}
	if r.GetBefore() != nil {
		v.Before = p.message(r.GetBefore().ProtoReflect())
	}
	if r.GetAfter() != nil {
		v.After = p.message(r.GetAfter().ProtoReflect())
	}
	for _, s := range r.GetSteps() {
		node := s.GetNodeHostname()
		if node == "" {
			node = s.GetNodeId()
		}
		v.Steps = append(v.Steps, planStep{
			At: offset(s.GetAt()), Action: s.GetAction().Name(), Task: s.GetTaskName(), Slot: s.GetSlot(), TemplateVersion: s.GetTemplateVersion(),
			Node: node, NodeID: s.GetNodeId(), Replaces: s.GetReplaces(), Message: s.GetMessage(),
		})
	}
	return v
}

// offset is a time from the beginning: 1m30s.
func offset(ns int64) string { return time.Duration(ns).Round(time.Millisecond).String() }

// plan asks what a change would do and shows it. One that would not come to an end is an error.
func (a *app) plan(ctx context.Context, c *client, flags planFlags, service string, req *swarmpb.PlanServiceRequest) error {
	r, err := c.PlanService(ctx, req)
	if err != nil && req.GetCreate() != nil {
		return wrongIn("service create", err)
	} else if err != nil {
		return wrongIn("service "+service, err)
	}
	change := "update"
	switch {
	case req.GetCreate() != nil:
		change = "create"
	case req.GetRollback() != nil:
		change = "rollback"
	}
	if name := r.GetAfter().GetName(); name != "" {
		service = name
	}
	v := newPlanView(service, change, r)
	switch flags.format.kind {
	case formatJSON:
		err = printJSON(a.out, v)
	case formatTemplate:
		err = flags.format.execute(a.out, fieldsOf[*planView](), []any{v})
	default:
		a.warn(v.Warnings)
		err = a.printPlan(v, r)
	}
	if err == nil && !v.Fits {
		err = coded{fmt.Errorf("service %s: this would not come to an end: %s", service, v.Problems[0]), exitNoEnd}
	}
	return err
}

func (a *app) printPlan(v *planView, r *swarmpb.PlanServiceResponse) error {
	out := a.out
	if v.Change == "create" {
		_, _ = fmt.Fprintf(out, "Plan: create %s\n\n", v.Service)
		a.printUnified(out, "/dev/null", v.Service, nil, fieldLines(specFields(r.GetAfter())))
	} else {
		_, _ = fmt.Fprintf(out, "Plan: %s of %s, %s\n\n", v.Change, v.Service, v.Strategy)
		a.printUnified(out, v.Service+", as it is", v.Service+", as it would be", fieldLines(specFields(r.GetBefore())), fieldLines(specFields(r.GetAfter())))
	}
	switch {
	case v.NoChange && len(v.Diff) == 0:
		_, _ = fmt.Fprintln(out, "Nothing would change.")
	case v.NoChange:
		_, _ = fmt.Fprintln(out, "\nNo task would change.")
	default:
		if len(v.Diff) > 0 && len(v.Steps) > 0 {
			_, _ = fmt.Fprintln(out)
		}
		if err := a.printPlanSteps(v.Steps); err != nil {
			return err
		}
		if v.Truncated {
			_, _ = fmt.Fprintf(out, "and so on: the first %d steps are shown\n", len(v.Steps))
		}
		_, _ = fmt.Fprintf(out, "\n%s to start, %d to stop; delays, watches and graces take %s at least.\n", count(v.Starts, "task"), v.Stops, v.AtLeast)
	}
	if v.Fits {
		_, err := fmt.Fprintln(out, "It fits.")
		return err
	}
	_, err := fmt.Fprintln(out, a.colour(red, "It would not come to an end:"))
	for _, p := range v.Problems {
		_, err = fmt.Fprintln(out, clean("  "+p))
	}
	return err
}

func (a *app) printPlanSteps(steps []planStep) error {
	if len(steps) == 0 {
		return nil
	}
	return printRows(a.out, a.width, listing{format: format{kind: formatTable}}, steps, table[planStep]{columns: []column[planStep]{
		{"AT", func(s planStep) string { return s.At }, false},
		{"STEP", func(s planStep) string { return s.Action }, false},
		{"TASK", func(s planStep) string { return s.Task }, false},
		{"NODE", func(s planStep) string { return s.Node }, true},
		{"WHAT", func(s planStep) string {
			switch {
			case s.Message != "" || s.Replaces == "":
				return s.Message
			case s.Replaces == s.Task:
				return "in place of the old one"
			}
			return "in place of " + s.Replaces
		}, true},
	}})
}

func (a *app) servicePlanCommand() *cobra.Command {
	var (
		p planFlags
		e serviceEdit
	)
	cmd := &cobra.Command{
		Use:   "plan [flags] SERVICE",
		Short: "Show what an update would do, without doing it",
		Long: `Show what "service update" with the same flags would do: how the spec would change, which tasks would start and stop, in
which order, on which nodes and when at the earliest, and whether all of it would fit. The managers compute it with the code
that does it, on a copy of the cluster's state in which every task starts at once and stays up. A service that does not exist
would be created; name its --image.

Exit code 0: it fits. 2: it would not come to an end, for example for lack of a node that suits; the reasons stand below
the steps. 1: it would be refused.`,
		Example: `  swarmctl service plan --image whoami:v2 --update-order start-first web
  swarmctl service plan --image api:3 --replicas 40 --reserve-memory 1g api
  swarmctl service plan --image whoami:v2 --format json web | jq .problems`,
		DisableFlagsInUseLine: true,
		Args:                  oneArg("service"),
		ValidArgsFunction:     first(a.complete(serviceNames)),
	}
	e.define(a, cmd)
	p.format.define(cmd, "text", formatJSON)
	cmd.RunE = a.call(func(ctx context.Context, c *client, names []string) error {
		if err := e.flags.resolveNetworks(ctx, c); err != nil {
			return fmt.Errorf("service %s: %w", names[0], err)
		}
		request, was, err := a.prepare(ctx, c, names[0], e.apply, e.flags.request)
		if err == nil {
			return a.plan(ctx, c, p, was.GetService().GetSpec().GetName(), &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Update{Update: request}})
		}
		if !errors.Is(err, wire.ErrNotFound) || !e.set.Changed("image") {
			if errors.Is(err, wire.ErrNotFound) {
				return fmt.Errorf("%w; to plan its creation, add --image", err)
			}
			return err
		}
		create, err := a.plannedCreate(names[0], &e)
		if err != nil {
			return err
		}
		return a.plan(ctx, c, p, names[0], &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Create{Create: create}})
	})
	return cmd
}

// plannedCreate is the service that the flags of an update make of nothing.
func (a *app) plannedCreate(name string, e *serviceEdit) (*swarmpb.CreateServiceRequest, error) {
	spec := &swarmpb.ServiceSpec{Name: name, Mode: replicated(e.flags.replicas), Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{}}}
	if err := e.apply(spec); err != nil {
		return nil, fmt.Errorf("service %s: %w", name, err)
	}
	update := &swarmpb.UpdateServiceRequest{Spec: spec}
	if err := e.flags.request(update); err != nil {
		return nil, fmt.Errorf("service %s: %w", name, err)
	}
	return &swarmpb.CreateServiceRequest{
		Spec: spec, RequestId: swarmpb.NewID(), RegistryAuth: update.RegistryAuth, NoResolveImage: update.NoResolveImage, Author: a.author,
	}, nil
}
