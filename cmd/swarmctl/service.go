package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// serviceRow is a service in a listing.
type serviceRow struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Mode     string `json:"mode"`
	Running  uint64 `json:"running"`
	Desired  uint64 `json:"desired"`
	Replicas string `json:"replicas"`
	Image    string `json:"image"`
	Ports    string `json:"ports"`
	Update   string `json:"update"`
	Rollout  string `json:"rollout"` // the same in few words, with the phase; empty when nothing is under way
	Version  uint64 `json:"version"`
	NotReady uint64 `json:"notReady"`
	Removing bool   `json:"removing"`

	labels map[string]string
}

func newServiceRow(s *swarmpb.ServiceInfo) serviceRow {
	service, spec := s.GetService(), s.GetService().GetSpec()
	return serviceRow{
		ID: service.GetId(), Name: spec.GetName(), Mode: modeWord(spec.GetMode()), Running: s.GetRunning(), Desired: s.GetDesired(),
		Replicas: replicasWord(s), Image: spec.GetTask().GetContainer().GetImage(),
		Ports: portsText(servicePorts(s), false), Update: updateStateWord(s.GetProgress().GetUpdate().GetState()),
		Rollout: rolloutWord(s.GetProgress().GetUpdate()), Version: service.GetRevision(), NotReady: s.GetNotReady(), Removing: service.GetRemoving(),
		labels: spec.GetLabels(),
	}
}

func modeWord(m *swarmpb.ServiceMode) string {
	return m.Name()
}

func (a *app) serviceCommand() *cobra.Command {
	return group("service", "Create, change and see services",
		a.serviceCreateCommand(), serviceListCommand(a), a.servicePsCommand(), a.serviceExplainCommand(), a.serviceInspectCommand(), a.serviceLogsCommand(),
		a.serviceScaleCommand(), a.serviceUpdateCommand(), a.serviceRemoveCommand(),
		a.servicePlanCommand(), a.servicePauseCommand(), a.serviceResumeCommand(), a.servicePromoteCommand(), a.serviceAbortCommand(),
		a.serviceRollbackCommand(), a.serviceHistoryCommand(), a.serviceDiffCommand())
}

func newServiceFilter() *filter[serviceRow] {
	return &filter[serviceRow]{
		keys: map[string]func(serviceRow, string) bool{
			"id":    func(r serviceRow, v string) bool { return strings.HasPrefix(r.ID, v) },
			"name":  func(r serviceRow, v string) bool { return strings.HasPrefix(r.Name, v) },
			"mode":  func(r serviceRow, v string) bool { return r.Mode == v },
			"label": func(r serviceRow, v string) bool { return hasLabel(r.labels, v) },
		},
		every: []string{"label"},
		want:  "id=, name=, mode= or label= and a value, for example label=team=shop",
	}
}

func serviceListCommand(a *app) *cobra.Command {
	f := newServiceFilter()
	services := table[serviceRow]{func(r serviceRow) string { return r.ID }, []column[serviceRow]{
		{"ID", func(r serviceRow) string { return short(r.ID) }, false},
		{"NAME", func(r serviceRow) string { return r.Name }, false},
		{"MODE", func(r serviceRow) string { return r.Mode }, false},
		{"REPLICAS", func(r serviceRow) string {
			switch {
			case r.Removing:
				return r.Replicas + " (removing)"
			case r.Rollout != "":
				return r.Replicas + " (" + r.Rollout + ")"
			}
			return r.Replicas
		}, false},
		{"IMAGE", func(r serviceRow) string { return r.Image }, true},
		{"PORTS", func(r serviceRow) string { return r.Ports }, true},
	}}
	list := listCommand(a, "List the services", "  swarmctl service ls\n  swarmctl service ls --format '{{.Name}} {{.Replicas}}'", services,
		func(ctx context.Context, c *client) ([]serviceRow, error) {
			r, err := c.ListServices(ctx, &swarmpb.ListServicesRequest{})
			var rows []serviceRow
			for _, s := range r.GetServices() {
				rows = append(rows, newServiceRow(s))
			}
			slices.SortFunc(rows, func(x, y serviceRow) int { return strings.Compare(x.Name, y.Name) })
			return slices.DeleteFunc(rows, f.drops), err
		})
	list.Flags().VarP(f, "filter", "f", "only services with `key=value`: id, name (or how it begins), mode or label (label=NAME or label=NAME=VALUE); may be repeated")
	completeWords(list, "filter", "name=", "label=", "mode=replicated", "mode=global", "mode=replicated-job", "mode=global-job", "id=")
	a.reading(list)
	return list
}

func (a *app) serviceInspectCommand() *cobra.Command {
	return a.inspectCommand("service", "Show all about services, named by ID, name or prefix of the ID.",
		"  swarmctl service inspect --pretty web\n  swarmctl service inspect -f '{{.Spec.Task.Container.Image}}' web", serviceNames,
		func(ctx context.Context, c *client, arg string) (inspected, error) {
			r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: arg})
			return inspected{r.GetService(), []string{"service"}, func(w io.Writer) { a.prettyService(w, r.GetService()) }}, err
		})
}

func (a *app) prettyService(w io.Writer, s *swarmpb.ServiceInfo) {
	service, spec := s.GetService(), s.GetService().GetSpec()
	p := printer{w: w, width: len("Stop grace period:")}
	p.line("ID", service.GetId())
	p.line("Name", spec.GetName())
	if service.GetRevision() > 0 {
		p.line("Version", fmt.Sprint(service.GetRevision()))
	}
	p.line("Labels", pairs(spec.GetLabels()))
	p.line("Mode", modeWord(spec.GetMode()))
	up := fmt.Sprintf("%d running of %d", s.GetRunning(), s.GetDesired())
	if s.GetNotReady() > 0 {
		up += fmt.Sprintf(", %d not ready", s.GetNotReady())
	}
	p.line("Replicas", up)
	a.prettyJob(p, s)
	if service.GetRemoving() {
		p.line("Removing", "yes")
	}
	p.line("Created", a.ago(service.GetMeta().GetCreatedAt()))
	p.line("Updated", a.ago(service.GetMeta().GetUpdatedAt()))
	a.prettyRollout(p, s)
	prettyContainer(p, spec.GetTask().GetContainer())
	task := spec.GetTask()
	p.line("Limits", resourcesText(task.GetResources().GetLimits(), task.GetResources().GetPidsLimit()))
	p.line("Reservations", resourcesText(task.GetResources().GetReservations(), 0))
	p.line("Restart", restartText(task.GetRestart()))
	if after := span(task.GetStopAfterDisconnect()); after != "" {
		p.line("Disconnected", "a task stops "+after+" after its node lost all managers")
	}
	prettyPlacement(p, spec)
	prettyUpdate(p, "Update", spec.GetUpdate())
	prettyUpdate(p, "Rollback", spec.GetRollback())
	prettyEndpoint(p, s)
	p.line("Template", fmt.Sprintf("version %d", service.GetTemplateVersion()))
	p.line("PROBLEM", s.GetEndpoint().GetMessage())
	for _, c := range s.GetConflicts() {
		p.line("CONFLICT", conflictText(c))
	}
}

// prettyEndpoint is where a service is reached.
func prettyEndpoint(p printer, s *swarmpb.ServiceInfo) {
	p.lines("Network", networkTexts(s))
	spec := s.GetService().GetSpec()
	if len(spec.GetTask().GetNetworks()) > 0 {
		p.line("Endpoint mode", spec.GetEndpoint().GetMode().Name())
	}
	for _, vip := range s.GetEndpoint().GetVips() {
		p.line("VIP", addressText(vip, s.GetNetworkNames()))
	}
	p.lines("Ports", publishedTexts(s))
}

func prettyContainer(p printer, c *swarmpb.ContainerSpec) {
	p.line("Image", c.GetImage())
	p.line("Digest", c.GetImageDigest())
	if c.GetPullPolicy() != swarmpb.PullPolicy_PULL_POLICY_UNSPECIFIED {
		p.line("Pull", c.GetPullPolicy().Name())
	}
	p.line("Entrypoint", strings.Join(c.GetCommand(), " "))
	p.line("Arguments", strings.Join(c.GetArgs(), " "))
	p.lines("Environment", c.GetEnv())
	p.line("Container labels", pairs(c.GetLabels()))
	p.line("User", c.GetUser())
	p.line("Directory", c.GetDir())
	p.line("Hostname", c.GetHostname())
	p.line("Name servers", strings.Join(c.GetDns().GetNameservers(), ", "))
	p.line("Search domains", strings.Join(c.GetDns().GetSearch(), ", "))
	p.line("DNS options", strings.Join(c.GetDns().GetOptions(), ", "))
	p.lines("Host", c.GetHosts())
	for _, m := range c.GetMounts() {
		p.line("Mount", mountText(m))
	}
	p.line("Health", probeText(c.GetHealth()))
	p.line("Readiness", probeText(c.GetReady()))
	if c.GetNoHealthcheck() {
		p.line("Health", "nothing is asked, not even what the image says")
	}
	p.line("Pre-stop", preStopText(c))
	p.line("Drain timeout", span(c.GetDrainTimeout()))
	p.line("Stop signal", c.GetStopSignal())
	p.line("Stop grace period", span(c.GetStopGracePeriod()))
	p.line("Capabilities", strings.TrimSpace(signed("+", c.GetCapAdd())+signed("-", c.GetCapDrop())))
	var options []string
	if c.GetReadOnly() {
		options = append(options, "read-only root filesystem")
	}
	if c.GetInit() {
		options = append(options, "init")
	}
	if c.GetNoNewPrivileges() {
		options = append(options, "no-new-privileges")
	}
	p.line("Options", strings.Join(options, ", "))
}

// signed puts a sign before each word: +NET_ADMIN -CHOWN.
func signed(sign string, words []string) string {
	text := ""
	for _, w := range words {
		text += sign + w + " "
	}
	return text
}

func restartText(r *swarmpb.RestartPolicy) string {
	text := r.GetCondition().Name()
	switch {
	case text == "none":
		return text
	case r.GetDelay() != nil:
		text += ", after " + span(r.GetDelay())
	default:
		text += ", at once and then with growing pauses"
	}
	if r.GetMaxAttempts() > 0 {
		text += ", at most " + count(r.GetMaxAttempts(), "time")
	}
	if r.GetWindow() != nil {
		text += " within " + span(r.GetWindow())
	}
	return text
}

func resourcesText(r *swarmpb.Resources, pids int64) string {
	var parts []string
	if r.GetNanoCpus() != 0 {
		parts = append(parts, cpusText(r.GetNanoCpus()))
	}
	if r.GetMemoryBytes() != 0 {
		parts = append(parts, memory(r.GetMemoryBytes())+" memory")
	}
	for _, g := range r.GetGeneric() {
		parts = append(parts, genericText(g))
	}
	switch {
	case pids < 0:
		parts = append(parts, "any number of processes")
	case pids > 0:
		parts = append(parts, fmt.Sprintf("%d processes", pids))
	}
	return strings.Join(parts, ", ")
}

func mountText(m *swarmpb.Mount) string {
	text := fmt.Sprintf("%s %s", m.GetType().Name(), m.GetTarget())
	if m.GetSource() != "" {
		text += " from " + m.GetSource()
	}
	if m.GetReadOnly() {
		text += " (read-only)"
	}
	return text
}

// pairs is labels, by name.
func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ", ")
}

func (a *app) serviceRemoveCommand() *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use: "rm SERVICE...", Aliases: []string{"remove"}, Short: "Remove services and stop their tasks",
		Example: "  swarmctl service rm web api",
		Args:    someArgs("service"), ValidArgsFunction: a.complete(serviceNames),
		RunE: a.call(func(ctx context.Context, c *client, args []string) error {
			var goals []goal
			err := each(args, func(arg string) error {
				r, err := c.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: arg, RequestId: swarmpb.NewID()})
				switch {
				case err == nil:
					goals = append(goals, goal{service: r.Id, name: arg, removed: true})
				case errors.Is(err, wire.ErrUnavailable): // which names no service
					return fmt.Errorf("service %s: %w", arg, err)
				}
				return err
			})
			for _, g := range goals {
				waited := a.await(ctx, c, w, g)
				if waited == nil {
					_, waited = fmt.Fprintln(a.out, g.name)
				}
				err = errors.Join(err, waited)
			}
			return err
		}),
	}
	w.define(cmd)
	return cmd
}
