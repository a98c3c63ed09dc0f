package script

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// doTasks prints the task table, of one service or all: by slot, oldest attempt first.
func (w *World) doTasks(args []string) (string, error) {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "TASK\tIMAGE\tNODE\tDESIRED\tSTATE\tNOTE\n")
	rows := 0
	for service := range w.View().Services() {
		if len(args) > 0 && service.Id != args[0] {
			continue
		}
		for task := range w.View().TasksOf(service.Id) {
			rows++
			fmt.Fprintln(table, strings.Join(w.row(service, task), "\t"))
		}
	}
	if rows == 0 {
		return "no tasks\n", nil
	}
	if err := table.Flush(); err != nil {
		return "", err
	}
	var trimmed strings.Builder
	for line := range strings.Lines(b.String()) {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return trimmed.String(), nil
}

func (w *World) row(service *swarmpb.Service, task *swarmpb.Task) []string {
	view := w.View()
	image := view.Template(task.ServiceId, task.TemplateVersion).GetSpec().GetContainer().GetImage()
	node := view.NodeID(task.Id)
	if node == "" {
		node = "-"
	}
	var notes []string
	if task.Replaces != "" && task.DesiredState.Wanted() {
		if old := view.Task(task.Replaces); old != nil {
			verb := "replaces"
			switch {
			case task.Beside:
				verb = "beside"
			case task.SameNode:
				verb = "in place of"
			}
			note := fmt.Sprintf("%s #%d", verb, old.Attempt)
			if task.Move != 0 {
				note += " (" + task.Move.Name() + ")"
			}
			notes = append(notes, note)
		}
	}
	if at := time.Unix(0, task.StartNotBefore); task.StartNotBefore != 0 && at.After(w.Now()) {
		notes = append(notes, "starts in "+at.Sub(w.Now()).String())
	}
	if status := view.Status(task.Id); status.GetState() == swarmpb.TaskState_TASK_STATE_RUNNING && !status.Up() {
		notes = append(notes, strings.TrimSpace("not ready "+status.GetHealth().GetOutput()))
	}
	if to := view.Task(view.SlotProgress(task.ServiceId, task.Slot).GetGaveWayTo()); to != nil && task.Replaces != "" && node == "-" {
		notes = append(notes, fmt.Sprintf("the one before gave way to %s.%d#%d", to.ServiceId, to.Slot, to.Attempt))
	}
	if text := view.Status(task.Id).GetError(); text != "" {
		notes = append(notes, text)
	} else if text := view.Placement(task.Id).GetMessage(); text != "" {
		notes = append(notes, text)
	}
	return []string{
		fmt.Sprintf("%s#%d", swarmpb.TaskName(service.Spec.Name, task.Slot, task.NodeId), task.Attempt),
		image, node, task.DesiredState.Name(), view.Observed(task.Id).Name(), strings.Join(notes, ", "),
	}
}

// doStatus prints a service's update and what its slots remember.
func (w *World) doStatus(args []string) (string, error) {
	view := w.View()
	service := view.Service(args[0])
	if service == nil {
		return fmt.Sprintf("no service %s\n", args[0]), nil
	}
	var b strings.Builder
	if update := view.ServiceProgress(service.Id).GetUpdate(); update == nil {
		b.WriteString("never updated\n")
	} else {
		message := w.named(service.Id, update.Message)
		fmt.Fprintf(&b, "%s: %s\n", update.State.Name(), message)
		if update.Underway() && update.Phase != 0 {
			fmt.Fprintf(&b, "%s, %s", update.Strategy.Name(), update.Phase.Name())
			if trial := update.Trial(); trial != nil {
				fmt.Fprintf(&b, ", step %d: v%d has %g%% of the traffic and %d tasks", update.Step, trial.Set, float64(trial.Share)/100,
					update.Replicas(service.GetSpec().GetMode().GetReplicated().GetReplicas()))
			}
			b.WriteString("\n")
		}
	}
	for progress := range view.SlotsOf(service.Id) {
		fmt.Fprintf(&b, "slot %d: %d failures, %d restarts", progress.Slot, progress.Failures, progress.Restarts)
		if progress.GivenUp {
			b.WriteString(", given up")
		}
		if at := time.Unix(0, progress.NotBefore); at.After(w.Now()) {
			fmt.Fprintf(&b, ", goes on in %s", at.Sub(w.Now()))
		}
		b.WriteString("\n")
	}
	return b.String(), nil
}

// doOutcomes prints what became of a service's revisions.
func (w *World) doOutcomes(args []string) (string, error) {
	var b strings.Builder
	for _, o := range w.View().ServiceProgress(args[0]).GetOutcomes() {
		state := "-"
		if o.State != swarmpb.UpdateState_UPDATE_STATE_UNSPECIFIED {
			state = o.State.Name()
		}
		fmt.Fprintf(&b, "version %d: %s: %s\n", o.Revision, state, w.named(args[0], o.Message))
	}
	return cmp.Or(b.String(), "none\n"), nil
}

// named is a message with tasks' names in the place of their IDs.
func (w *World) named(service, message string) string {
	for task := range w.View().TasksOf(service) {
		name := fmt.Sprintf("%s#%d", swarmpb.TaskName(w.View().Service(service).GetSpec().GetName(), task.Slot, task.NodeId), task.Attempt)
		message = strings.ReplaceAll(message, task.Id, name)
	}
	return message
}
