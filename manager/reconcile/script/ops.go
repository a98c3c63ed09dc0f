package script

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Service is a service by name; its ID is its name, as a node's is.
func (w *World) Service(name string) (*swarmpb.Service, error) {
	if service := w.View().Service(name); service != nil {
		return service, nil
	}
	return nil, fmt.Errorf("there is no service %q", name)
}

// Create makes a service.
func (w *World) Create(name string, spec *swarmpb.ServiceSpec) error {
	spec.Name = name
	w.versions[name] = 0
	service := &swarmpb.Service{Id: name, Spec: spec, TemplateVersion: 1, Revision: 1}
	return w.Write(w.template(service), Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}))
}

// Update changes a service's spec as control would: the template's version moves when what tasks are made from does.
func (w *World) Update(name string, change func(*swarmpb.ServiceSpec) error) error {
	old, err := w.Service(name)
	if err != nil {
		return err
	}
	service := swarmpb.Clone(old)
	service.PreviousSpec, service.PreviousTemplateVersion = swarmpb.Clone(old.Spec), old.TemplateVersion
	service.Revision++
	if err := change(service.Spec); err != nil {
		return err
	}
	if proto.Equal(old.Spec, service.Spec) {
		service = swarmpb.Clone(old) // the way back stays what it was
	}
	var writes []*swarmpb.Write
	if swarmpb.TemplateChanged(old.Spec, service.Spec) {
		w.versions[name]++
		service.TemplateVersion = 1 + w.versions[name]
		writes = append(writes, w.template(service))
	}
	return w.Write(append(writes, Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}))...)
}

// Rollback swaps a service's spec and the one before.
func (w *World) Rollback(name string) error {
	old, err := w.Service(name)
	if err != nil {
		return err
	}
	if old.PreviousSpec == nil {
		return fmt.Errorf("service %q has no spec to go back to", name)
	}
	service := swarmpb.Clone(old)
	service.Spec, service.PreviousSpec = service.PreviousSpec, service.Spec
	service.TemplateVersion, service.PreviousTemplateVersion = old.PreviousTemplateVersion, old.TemplateVersion
	service.Revision++
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}))
}

// Abort goes back to where the update under way came from, as control does: of two sets to the old one's version, else to
// the spec before. The number of replicas stays.
func (w *World) Abort(name string) error {
	old, err := w.Service(name)
	if err != nil {
		return err
	}
	update := w.View().ServiceProgress(name).GetUpdate()
	spec := w.specs[name][update.GetStableTemplateVersion()]
	if !update.Sets() || spec == nil || update.GetStableTemplateVersion() == old.TemplateVersion {
		return w.Rollback(name)
	}
	service := swarmpb.Clone(old)
	service.Spec, service.PreviousSpec = swarmpb.Clone(spec), old.Spec
	service.Spec.Mode = swarmpb.Clone(old.Spec.Mode)
	service.TemplateVersion, service.PreviousTemplateVersion = update.StableTemplateVersion, old.TemplateVersion
	service.Revision++
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}))
}

// Command tells a service's rollout what to do.
func (w *World) Command(name string, action swarmpb.RolloutAction) error {
	old, err := w.Service(name)
	if err != nil {
		return err
	}
	service := swarmpb.Clone(old)
	service.Command = &swarmpb.RolloutCommand{
		Action: action, Sequence: old.GetCommand().GetSequence() + 1, At: w.Now().UnixNano(), Author: "ann@desk",
		TemplateVersion: w.View().ServiceProgress(name).GetUpdate().GetTemplateVersion(),
	}
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}))
}

// Metric says of a canary's metric that it is within its bounds, or not.
func (w *World) Metric(name string, failing bool) error {
	metric := &swarmpb.ServiceMetric{ServiceId: name, Update: w.View().ServiceProgress(name).GetUpdate().GetStartedAt(), At: w.Now().UnixNano(), Value: 0.001}
	if failing {
		metric.FailedSince, metric.Value, metric.Message = w.Now().UnixNano(), 0.2, "0.2 is above 0.01"
	}
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_ServiceMetric{ServiceMetric: metric}}))
}

// Ready is a worker's word about the readiness of a running task.
func (w *World) Ready(taskID string, ready bool) error {
	return w.Write(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: w.health(taskID, !ready, "")}})
}

// Remove marks a service as removed by its user.
func (w *World) Remove(name string) error {
	old, err := w.Service(name)
	if err != nil {
		return err
	}
	service := swarmpb.Clone(old)
	service.Removing = true
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}}))
}

func (w *World) template(service *swarmpb.Service) *swarmpb.Write {
	if w.specs[service.Id] == nil {
		w.specs[service.Id] = map[uint64]*swarmpb.ServiceSpec{}
	}
	w.specs[service.Id][service.TemplateVersion] = swarmpb.Clone(service.Spec)
	return Put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{
		ServiceId: service.Id, Version: service.TemplateVersion, Spec: swarmpb.Clone(service.Spec.Task),
		HostPorts: service.Spec.HostPorts(),
	}}})
}

// NodeState makes a node, or says what is seen of it.
func (w *World) NodeState(id string, state swarmpb.NodeState) error {
	var writes []*swarmpb.Write
	if w.View().Node(id) == nil {
		writes = append(writes, Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{
			Id: id, Spec: &swarmpb.NodeSpec{Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE}}}}))
	}
	return w.Write(append(writes, Put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
		NodeId: id, State: state, Since: w.Now().UnixNano(), Description: w.View().NodeStatus(id).GetDescription()}}}))...)
}

// NodeAvailability changes what an operator wants of a node.
func (w *World) NodeAvailability(id string, availability swarmpb.NodeAvailability) error {
	return w.changeNode(id, func(spec *swarmpb.NodeSpec) { spec.Availability = availability })
}

func (w *World) changeNode(id string, change func(*swarmpb.NodeSpec)) error {
	node := swarmpb.Clone(w.View().Node(id))
	if node == nil {
		return fmt.Errorf("there is no node %q", id)
	}
	change(node.Spec)
	return w.Write(Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}))
}

// NodeGone removes a node from the cluster.
func (w *World) NodeGone(id string) error {
	return w.Write(
		&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeStatusKey(id)}},
		&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(id)}})
}

// Report is a worker's word that a task has come to a state.
func (w *World) Report(taskID string, state swarmpb.TaskState) error {
	return w.Write(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: w.status(taskID, state)}})
}

// NewSpec is the spec of a replicated service with an image of its own and no other settings.
func NewSpec(replicas uint64) *swarmpb.ServiceSpec {
	return &swarmpb.ServiceSpec{
		Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: replicas}}},
		Task: &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "v1"}, Restart: &swarmpb.RestartPolicy{}},
	}
}

// setSpec sets one field of a spec from its name in scripts.
func setSpec(spec *swarmpb.ServiceSpec, key, value string) (err error) {
	config := &spec.Update
	if rest, ok := strings.CutPrefix(key, "rollback-"); ok {
		key, config = rest, &spec.Rollback
	}
	if *config == nil {
		*config = &swarmpb.UpdateConfig{}
	}
	restart := spec.Task.Restart
	switch key {
	case "replicas":
		spec.GetMode().GetReplicated().Replicas, err = strconv.ParseUint(value, 10, 64)
	case "kind":
		spec.Mode, err = swarmpb.ParseServiceMode(value)
		if spec.IsJob() {
			spec.Update, spec.Rollback = nil, nil
		}
	case "total":
		spec.GetMode().GetReplicatedJob().Total, err = strconv.ParseUint(value, 10, 64)
	case "max-concurrent":
		spec.GetMode().GetReplicatedJob().MaxConcurrent, err = strconv.ParseUint(value, 10, 64)
	case "constraint":
		spec.Task.Placement = &swarmpb.Placement{Constraints: filled(value)}
	case "schedule", "timezone", "overlap", "missed", "keep-runs", "suspended":
		err = setSchedule(spec, key, value)
	case "max-unavailable", "rebalance":
		err = setMoves(spec, key, value)
	case "priority", "cpus":
		err = setNeeds(spec, key, value)
	case "image":
		spec.Task.Container.Image = value
	case "label":
		spec.Labels = map[string]string{"label": value}
	case "restart":
		restart.Condition, err = swarmpb.ParseRestartCondition(value)
	case "restart-delay":
		restart.Delay, err = parseDuration(value)
	case "restart-window":
		restart.Window, err = parseDuration(value)
	case "stop-after-disconnect":
		spec.Task.StopAfterDisconnect, err = parseDuration(value)
	case "max-attempts":
		restart.MaxAttempts, err = strconv.ParseUint(value, 10, 64)
	case "networks":
		setNetworks(spec, value)
	case "publish":
		err = setPorts(spec, value)
	case "mode":
		err = setMode(spec, value)
	case "order":
		(*config).Order, err = swarmpb.ParseUpdateOrder(value)
	case "parallelism":
		var n uint64
		n, err = strconv.ParseUint(value, 10, 64)
		(*config).Parallelism = &n
	case "delay":
		(*config).Delay, err = parseDuration(value)
	case "monitor":
		(*config).Monitor, err = parseDuration(value)
	case "failure-action":
		(*config).FailureAction, err = swarmpb.ParseFailureAction(value)
	case "strategy":
		(*config).Strategy, err = swarmpb.ParseUpdateStrategy(value)
	case "steps":
		(*config).CanarySteps, err = parseSteps(value)
	case "grace":
		(*config).PromoteGrace, err = parseDuration(value)
	case "deadline":
		(*config).ProgressDeadline, err = parseDuration(value)
	case "max-failure-ratio":
		(*config).MaxFailureRatio, err = strconv.ParseFloat(value, 64)
	default:
		return fmt.Errorf("a service has no %q", key)
	}
	return err
}

func parseDuration(s string) (*durationpb.Duration, error) {
	d, err := time.ParseDuration(s)
	return durationpb.New(d), err
}

// parseSteps reads SHARE%:DURATION, SHARE%:manual and SHARE%:DURATION:manual, with commas between.
func parseSteps(value string) (steps []*swarmpb.CanaryStep, err error) {
	for _, text := range strings.Split(value, ",") {
		share, how, _ := strings.Cut(text, ":")
		percent, err := strconv.ParseFloat(strings.TrimSuffix(share, "%"), 64)
		if err != nil {
			return nil, err
		}
		step := &swarmpb.CanaryStep{Share: uint32(percent * 100)}
		for _, word := range strings.Split(how, ":") {
			if word == "manual" {
				step.Manual = true
			} else if step.Watch, err = parseDuration(word); err != nil {
				return nil, err
			}
		}
		steps = append(steps, step)
	}
	return steps, nil
}
