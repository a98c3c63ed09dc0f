package control

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// maxAliases bounds what an attachment is called besides its name.
const maxAliases = 32

// ConnectNetwork attaches a container outside of services: it makes the service that stands for it (docs/design-network.md), whose
// ID follows from the request ID.
func (s *Server) ConnectNetwork(ctx context.Context, req *swarmpb.ConnectNetworkRequest) (*swarmpb.ConnectNetworkResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	view, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	id := swarmpb.DerivedID("attachment", request)
	if made := view.Service(id); made != nil {
		return &swarmpb.ConnectNetworkResponse{Id: id, Name: attachmentName(made)}, nil
	}
	network, err := attachable(view, req.GetNetwork())
	if err != nil {
		return nil, err
	}
	node, err := s.hostOfGuest(view, req)
	if err != nil {
		return nil, err
	}
	spec, err := attachmentSpec(view, network, node, req)
	if err != nil {
		return nil, err
	}
	what := "attachment \"" + spec.GetName() + "\""
	if err := s.checkSpace(view, what); err != nil {
		return nil, err
	}
	service := &swarmpb.Service{Id: id, Spec: spec, TemplateVersion: 1}
	err = s.write(ctx, request, &swarmpb.Proposal{
		Guards: []*swarmpb.Guard{guard(swarmpb.ServiceKey(id), 0)},
		Writes: []*swarmpb.Write{putTemplate(id, 1, spec), put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}})},
	})
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		if other := s.cfg.Store().View().ServiceByName(spec.GetName()); other != nil && other.GetId() != id {
			return nil, attached(s.cfg.Store().View(), other, network)
		}
		return nil, conflictError(err, what)
	}
	if err != nil {
		return nil, err
	}
	return &swarmpb.ConnectNetworkResponse{Id: id, Name: attachmentName(service)}, nil
}

// attachable finds a network that containers outside of services may attach to.
func attachable(view *store.View, ref string) (*swarmpb.Network, error) {
	network, err := findNetwork(view, ref)
	if err != nil {
		return nil, err
	}
	name := network.GetSpec().GetName()
	if network.GetRemoving() {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "network %q: it is being removed; make it anew once it is gone", name)
	}
	if !network.GetSpec().GetAttachable() {
		return nil, wire.Errorf(wire.CodeFailedPrecondition,
			"network %q: only services may be in it; make a network that others may attach to with `swarmctl network create --attachable NAME`, as this cannot be changed later", name)
	}
	return network, nil
}

// hostOfGuest finds the node of what is to be attached, which must be there to do it.
func (s *Server) hostOfGuest(view *store.View, req *swarmpb.ConnectNetworkRequest) (*swarmpb.Node, error) {
	if req.GetGuest().GetNodeId() != "" {
		return nil, wire.Errorf(wire.CodeInvalid, "node: name it beside the container, not in it")
	}
	if err := req.GetGuest().Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	node, err := s.findNode(view, cmp.Or(req.GetNode(), "self"))
	if err != nil {
		return nil, err
	}
	name := view.NodeName(node.GetId())
	if status := view.NodeStatus(node.GetId()); status.GetState() != swarmpb.NodeState_NODE_STATE_READY {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "node %s: it is %s, so that nothing can be attached there; try again once `swarmctl node ls` shows it ready", name, status.GetState().Name())
	}
	if a := node.GetSpec().GetAvailability(); a > swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "node %s: it takes nothing new, as its availability is %s; change that with `swarmctl node update --availability active %s`", name, a.Name(), name)
	}
	return node, nil
}

// attachmentSpec is the service that stands for the attachment.
func attachmentSpec(view *store.View, network *swarmpb.Network, node *swarmpb.Node, req *swarmpb.ConnectNetworkRequest) (*swarmpb.ServiceSpec, error) {
	name := req.GetName()
	if name == "" {
		name = randomName(func(n string) bool { return named(view, network.GetId(), n) != nil })
	}
	if err := swarmpb.ValidateServiceName(name); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	if len(req.GetAliases()) > maxAliases {
		return nil, wire.Errorf(wire.CodeInvalid, "alias: %d are too many; use at most %d", len(req.GetAliases()), maxAliases)
	}
	if err := swarmpb.ValidateAliases(network.GetSpec().GetName(), req.GetAliases()); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	if other := named(view, network.GetId(), name); other != nil {
		return nil, attached(view, other, network)
	}
	guest := swarmpb.Clone(req.GetGuest())
	guest.NodeId = node.GetId()
	aliases := append([]string{name}, slices.DeleteFunc(slices.Clone(req.GetAliases()), func(a string) bool { return a == name })...)
	return &swarmpb.ServiceSpec{
		Name:     swarmpb.AttachmentName(network.GetSpec().GetName(), name),
		Mode:     &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: 1}}},
		Endpoint: &swarmpb.EndpointSpec{Mode: swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR},
		Task: &swarmpb.TaskSpec{
			Guest:     guest,
			Networks:  []*swarmpb.NetworkAttachment{{Network: network.GetId(), Aliases: aliases}},
			Restart:   &swarmpb.RestartPolicy{Condition: swarmpb.RestartCondition_RESTART_CONDITION_NONE},
			Placement: &swarmpb.Placement{Constraints: []string{"node.id==" + node.GetId()}},
		},
	}, nil
}

// named is the service that has a name in a network, as its own or as an alias; nil: nobody has.
func named(view *store.View, networkID, name string) *swarmpb.Service {
	is := func(other string) bool { return strings.EqualFold(other, name) }
	for service := range view.ServicesOn(networkID) {
		if is(service.GetSpec().GetName()) {
			return service
		}
		for _, a := range service.GetSpec().GetTask().GetNetworks() {
			if a.GetNetwork() == networkID && slices.ContainsFunc(a.GetAliases(), is) {
				return service
			}
		}
	}
	return nil
}

// attached refuses a name that somebody has.
func attached(view *store.View, other *swarmpb.Service, network *swarmpb.Network) error {
	in, name := network.GetSpec().GetName(), attachmentName(other)
	switch {
	case !other.GetSpec().IsAttachment():
		return wire.Errorf(wire.CodeExists, "network %q: service %q has that name there, or that alias; choose another with --name", in, other.GetSpec().GetName())
	case other.GetRemoving():
		return wire.Errorf(wire.CodeExists, "network %q: attachment %q has that name and is being disconnected; try again in a moment", in, name)
	}
	return wire.Errorf(wire.CodeExists, "network %q: attachment %q on node %s has that name, or that alias; choose another with --name, or disconnect that one with `swarmctl network disconnect %s %s`",
		in, name, view.NodeName(other.GetSpec().GetTask().GetGuest().GetNodeId()), in, name)
}

// attachmentName is what an attachment is called in its network.
func attachmentName(service *swarmpb.Service) string {
	for _, a := range service.GetSpec().GetTask().GetNetworks() {
		if len(a.GetAliases()) > 0 {
			return a.GetAliases()[0]
		}
	}
	return service.GetSpec().GetName()
}

// DisconnectNetwork ends an attachment: its service is removed.
func (s *Server) DisconnectNetwork(ctx context.Context, req *swarmpb.DisconnectNetworkRequest) (*swarmpb.DisconnectNetworkResponse, error) {
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	bounded, cancel := writing(ctx)
	defer cancel()
	view, err := s.fresh(bounded)
	if err != nil {
		return nil, err
	}
	var service *swarmpb.Service
	network, err := findNetwork(view, req.GetNetwork())
	if err == nil {
		service, err = findAttachment(view, network, req.GetAttachment())
	}
	if view.Answered(request) {
		return &swarmpb.DisconnectNetworkResponse{Id: service.GetId()}, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := s.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: service.GetId(), RequestId: request})
	if errors.Is(err, wire.ErrNotFound) { // it has gone by itself meanwhile
		return &swarmpb.DisconnectNetworkResponse{Id: service.GetId()}, nil
	}
	return &swarmpb.DisconnectNetworkResponse{Id: r.GetId()}, err
}

// findAttachment finds one by its name in the network, or by its ID.
func findAttachment(view *store.View, network *swarmpb.Network, ref string) (*swarmpb.Service, error) {
	noun := noun{"attachment", "swarmctl network inspect --pretty " + network.GetSpec().GetName()}
	if err := noun.check(ref); err != nil {
		return nil, err
	}
	if service := view.ServiceByName(swarmpb.AttachmentName(network.GetSpec().GetName(), ref)); service.GetSpec().IsAttachment() {
		return service, nil
	}
	service, err := byPrefix(noun, ref, func(yield func(*swarmpb.Service) bool) {
		for service := range view.ServicesOn(network.GetId()) {
			if service.GetSpec().IsAttachment() && !yield(service) {
				return
			}
		}
	})
	if other := view.ServiceByName(ref); errors.Is(err, wire.ErrNotFound) && names(other.GetSpec(), network.GetId()) {
		return nil, wire.Errorf(wire.CodeNotFound, "attachment %q: not found; it is a service: `swarmctl service update --network-rm %s %s` takes it out of the network", ref, network.GetSpec().GetName(), ref)
	}
	return service, err
}

// attachmentInfo puts together what there is of an attachment.
func attachmentInfo(view *store.View, service *swarmpb.Service, networkID string) *swarmpb.Attachment {
	guest := service.GetSpec().GetTask().GetGuest()
	info := &swarmpb.Attachment{
		Id: service.GetId(), Name: attachmentName(service), Guest: guest, NodeHostname: view.NodeName(guest.GetNodeId()), Removing: service.GetRemoving(),
		State: swarmpb.TaskState_TASK_STATE_NEW, Since: service.GetMeta().GetCreatedAt(),
	}
	for _, a := range service.GetSpec().GetTask().GetNetworks() {
		info.Aliases = append(info.Aliases, a.GetAliases()[min(1, len(a.GetAliases())):]...)
	}
	var last *swarmpb.Task
	for task := range view.TasksOf(service.GetId()) {
		last = task // of the highest attempt
	}
	if last == nil {
		return info
	}
	task := taskInfo(view, last)
	info.State, info.Since, info.Error, info.Message = task.GetState(), task.GetSince(), task.GetError(), task.GetMessage()
	for _, a := range task.GetAddresses().GetNetworks() {
		if a.GetNetworkId() == networkID {
			info.Address, info.Address6 = a.GetAddress(), a.GetAddress6()
		}
	}
	return info
}

// guestText is what stands in place of an attachment's image.
func guestText(guest *swarmpb.Guest) string {
	if guest.GetPid() != 0 {
		return "(attached process)"
	}
	return "(attached " + guest.GetNetns() + ")"
}

// services counts those that users made as such.
func services(view *store.View) (n int) {
	for service := range view.Services() {
		if !service.GetSpec().IsAttachment() {
			n++
		}
	}
	return n
}
