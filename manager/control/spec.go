package control

import (
	"fmt"
	"strings"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// withDefaults copies a spec and fills in what a user may leave out.
func withDefaults(spec *swarmpb.ServiceSpec) *swarmpb.ServiceSpec {
	spec = swarmpb.Clone(spec)
	if spec.GetMode().GetMode() == nil {
		spec.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: 1}}}
	}
	return spec
}

// checkSpec refuses what no service may have.
func checkSpec(spec *swarmpb.ServiceSpec) error {
	if err := spec.Validate(); err != nil {
		return wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	return nil
}

// checkUpdate refuses a spec that the service cannot go to. A spec without a name keeps the service's.
func checkUpdate(service *swarmpb.Service, spec *swarmpb.ServiceSpec) error {
	name := service.GetSpec().GetName()
	if service.GetRemoving() {
		return wire.Errorf(wire.CodeFailedPrecondition, "service %q: it is being removed; wait until it is gone, then create it anew", name)
	}
	if spec.GetName() == "" {
		spec.Name = name
	}
	if spec.GetName() != name {
		return wire.Errorf(wire.CodeInvalid, "service %q: its name cannot change to %.80q; create a service with the new name and remove this one", name, spec.GetName())
	}
	if was, wants := modeName(service.GetSpec()), modeName(spec); was != wants {
		return wire.Errorf(wire.CodeInvalid, "service %q: its mode cannot change from %s to %s; remove it and create it anew", name, was, wants)
	}
	return checkSpec(spec)
}

func modeName(spec *swarmpb.ServiceSpec) string { return spec.GetMode().Name() }

// warnings are what a user should know of a spec that is valid.
func warnings(view *store.View, spec *swarmpb.ServiceSpec) []string {
	var out []string
	container := spec.GetTask().GetContainer()
	if image := container.GetImage(); container.GetImageDigest() == "" && !tagged(image) {
		out = append(out, fmt.Sprintf("image %q: it has no tag, so that %s:latest is run, which may be another image on each node and after each pull; name a version", image, image))
	}
	replicas, nodes := spec.GetMode().GetReplicated().GetReplicas(), readyNodes(view)
	for _, port := range spec.HostPorts() {
		if n := port.GetPublishedPort(); n != 0 && replicas > nodes {
			out = append(out, fmt.Sprintf("publish %d: a host-mode port takes one task a node, and %d replicas are more than the %d nodes that are ready; the others wait for nodes", n, replicas, nodes))
		} else if strategy := spec.GetUpdate().StrategyOr(); n != 0 && strategy.Sets() && 2*replicas > nodes {
			out = append(out, fmt.Sprintf("publish %d: a host-mode port takes one task a node, and an update of strategy %s needs nodes for two sets of %d tasks, of which %d are ready; "+
				"use strategy rolling, or publish in ingress mode", n, strategy.Name(), replicas, nodes))
		}
	}
	return out
}

// readyNodes counts the nodes that take tasks now.
func readyNodes(view *store.View) uint64 {
	count := uint64(0)
	for node := range view.Nodes() {
		available := node.GetSpec().GetAvailability() <= swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE
		if available && view.NodeStatus(node.GetId()).GetState() == swarmpb.NodeState_NODE_STATE_READY {
			count++
		}
	}
	return count
}

// tagged tells whether an image reference has a tag or a digest.
func tagged(image string) bool {
	if strings.Contains(image, "@") {
		return true
	}
	_, last, found := cutLast(image, "/")
	if !found {
		last = image
	}
	return strings.Contains(last, ":")
}
