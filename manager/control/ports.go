package control

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// checkPorts refuses published ports that another service has, or the cluster itself.
func checkPorts(view *store.View, id string, spec *swarmpb.ServiceSpec) error {
	wanted := make(map[portKey]publication)
	for _, p := range publications(spec) {
		if p.GetPublishedPort() == 0 {
			continue
		}
		if p.GetProtocol() == swarmpb.Protocol_PROTOCOL_UDP && p.GetPublishedPort() == view.Cluster().GetSpec().GetDataPathPort() {
			return wire.Errorf(wire.CodeInvalid, "%s %d: the port carries the traffic between the hosts; choose another port", p.flag, p.GetPublishedPort())
		}
		wanted[keyOf(p.PortConfig)] = p
	}
	if len(wanted) == 0 {
		return nil
	}
	for other := range view.Services() {
		// One that is being removed lets go of its ports: the allocator gives them as soon as it has, and says so until then.
		if other.GetId() == id || other.GetRemoving() {
			continue
		}
		for _, taken := range takenPorts(view, other) {
			port, ok := wanted[keyOf(taken)]
			if !ok || taken.GetPublishedPort() == 0 || onHost(port.PortConfig) && onHost(taken) { // two of mode host may be on different nodes
				continue
			}
			return wire.Errorf(wire.CodeExists, "%s %d: port is already published by service %q; choose another port or remove it there",
				port.flag, port.GetPublishedPort(), other.GetSpec().GetName())
		}
	}
	return nil
}

// takenPorts are those that a service names, and those that were chosen for it. What the allocator has not taken back yet,
// though the service no longer asks for it, is nobody's.
func takenPorts(view *store.View, service *swarmpb.Service) []*swarmpb.PortConfig {
	spec, endpoint := service.GetSpec(), view.ServiceEndpoint(service.GetId())
	ports := chosenFor(spec.GetEndpoint().GetPorts(), endpoint.GetPorts())
	return append(ports, chosenFor(spec.GetUpdate().GetPreviewPorts(), endpoint.GetPreviewPorts())...)
}

// chosenFor are the ports asked for, with those of the given that stand for one that was left open.
func chosenFor(asked, given []*swarmpb.PortConfig) []*swarmpb.PortConfig {
	ports := slices.Clone(asked)
	for _, port := range given {
		if slices.ContainsFunc(asked, func(p *swarmpb.PortConfig) bool {
			return p.GetPublishedPort() == 0 && !onHost(p) && p.GetTargetPort() == port.GetTargetPort() && p.GetProtocol().Name() == port.GetProtocol().Name()
		}) {
			ports = append(ports, port)
		}
	}
	return ports
}

// publication is a port that a service publishes, with the flag that users ask for it by.
type publication struct {
	*swarmpb.PortConfig
	flag string
}

// publications are all ports of a spec: the service's own, and those that lead to a set that is not promoted yet.
func publications(spec *swarmpb.ServiceSpec) (all []publication) {
	for _, port := range spec.GetEndpoint().GetPorts() {
		all = append(all, publication{port, "publish"})
	}
	for _, port := range spec.GetUpdate().GetPreviewPorts() {
		all = append(all, publication{port, "preview publish"})
	}
	return all
}

type portKey struct {
	port     uint32
	protocol string
}

func keyOf(p *swarmpb.PortConfig) portKey {
	return portKey{p.GetPublishedPort(), p.GetProtocol().Name()}
}

// portName is a published port in messages: by the container's where none is chosen yet.
func portName(p *swarmpb.PortConfig) string {
	if p.GetPublishedPort() == 0 {
		return fmt.Sprintf("(target %d)", p.GetTargetPort())
	}
	return fmt.Sprint(p.GetPublishedPort())
}

func onHost(p *swarmpb.PortConfig) bool { return p.GetMode() == swarmpb.PublishMode_PUBLISH_MODE_HOST }

// checkReach makes IDs of the networks that a spec names, and refuses what is not there or taken.
func checkReach(view *store.View, id string, spec *swarmpb.ServiceSpec) error {
	if err := resolveNetworks(view, spec); err != nil {
		return err
	}
	return checkPorts(view, id, spec)
}

// withConflicts adds where a service's ports are somebody else's: all nodes are looked at.
func withConflicts(view *store.View, info *swarmpb.ServiceInfo) *swarmpb.ServiceInfo {
	info.Conflicts = portConflicts(view, info.Endpoint)
	return info
}

// portConflicts are the nodes on which something else has a port of the service.
func portConflicts(view *store.View, endpoint *swarmpb.ServiceEndpoint) []*swarmpb.NodePortConflict {
	ours := make(map[portKey]bool)
	for _, port := range slices.Concat(endpoint.GetPorts(), endpoint.GetPreviewPorts()) {
		ours[keyOf(port)] = true
	}
	if len(ours) == 0 {
		return nil
	}
	var out []*swarmpb.NodePortConflict
	for node := range view.Nodes() {
		for _, c := range conflictsOf(view.NodeStatus(node.GetId())) {
			if ours[portKey{c.GetPort(), c.GetProtocol().Name()}] && len(out) < maxConflicts {
				out = append(out, &swarmpb.NodePortConflict{NodeId: node.GetId(), Hostname: view.NodeName(node.GetId()), Conflict: c})
			}
		}
	}
	return out
}

// conflictsOf are the ports that something else on the node has.
func conflictsOf(status *swarmpb.NodeStatus) []*swarmpb.PortConflict {
	return status.GetDescription().GetNetwork().GetConflicts()
}

func samePort(a, b *swarmpb.PortConflict) bool { return proto.Equal(a, b) }

// maxConflicts bounds the conflicts of one answer.
const maxConflicts = 100
