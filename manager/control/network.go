package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// CreateNetwork makes a network; the allocator gives it its number and subnet. Its ID follows from the request ID.
func (s *Server) CreateNetwork(ctx context.Context, req *swarmpb.CreateNetworkRequest) (*swarmpb.CreateNetworkResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	if req.GetSpec() == nil {
		return nil, wire.Errorf(wire.CodeInvalid, "network: the spec is missing")
	}
	view, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	id := swarmpb.DerivedID("network", request)
	if made := view.Network(id); made != nil {
		return &swarmpb.CreateNetworkResponse{Id: id, Warnings: networkWarnings(view, made.GetSpec())}, nil
	}
	spec := swarmpb.Clone(req.GetSpec())
	if spec.Driver == "" {
		spec.Driver = swarmpb.DriverOverlay
	}
	if err := spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	what := "network \"" + spec.GetName() + "\""
	if other := view.NetworkByName(spec.GetName()); other != nil {
		return nil, networkTaken(other)
	}
	if err := errors.Join(overlaps(view, spec), encryptable(view, spec)); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "%s: %w", what, err)
	}
	if err := s.checkSpace(view, what); err != nil {
		return nil, err
	}
	err = s.write(ctx, request, &swarmpb.Proposal{
		Guards: []*swarmpb.Guard{guard(swarmpb.NetworkKey(id), 0)},
		Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: id, Spec: spec}}})},
	})
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		if other := s.cfg.Store().View().NetworkByName(spec.GetName()); other != nil && other.GetId() != id {
			return nil, networkTaken(other)
		}
		return nil, conflictError(err, what)
	}
	if err != nil {
		return nil, err
	}
	return &swarmpb.CreateNetworkResponse{Id: id, Warnings: networkWarnings(view, spec)}, nil
}

func networkTaken(other *swarmpb.Network) error {
	state := ""
	if other.GetRemoving() {
		state = ", which is being removed"
	}
	return wire.Errorf(wire.CodeExists, "network %q: the name is taken by network %s%s; choose another name or remove that one", other.GetSpec().GetName(), other.GetId(), state)
}

// overlaps refuses subnets that hosts could then no longer tell from what they reach already.
func overlaps(view *store.View, spec *swarmpb.NetworkSpec) error {
	for _, s := range spec.GetSubnets() {
		subnet, err := netip.ParsePrefix(s.GetSubnet())
		if err != nil {
			continue // to be chosen
		}
		fabric, err := netip.ParsePrefix(cmp.Or(view.Cluster().GetSpec().GetFabricPool(), swarmpb.DefaultFabricPool))
		if err == nil && fabric.Overlaps(subnet) {
			return fmt.Errorf("subnet %s: it overlaps %s, which the cluster uses between its hosts; choose another subnet", subnet, fabric)
		}
		if prefix6 := swarmpb.FabricPrefix6(view.Cluster().GetId()); prefix6.IsValid() && prefix6.Overlaps(subnet) {
			return fmt.Errorf("subnet %s: it overlaps %s, which the cluster uses for its containers' IPv6; choose another subnet", subnet, prefix6)
		}
		for node := range view.Nodes() {
			for _, text := range view.NodeStatus(node.GetId()).GetDescription().GetNetwork().GetRoutes() {
				// A default route leads everywhere, and is in nobody's way.
				if route, err := netip.ParsePrefix(text); err == nil && route.Bits() > 0 && route.Overlaps(subnet) {
					return fmt.Errorf("subnet %s: it overlaps %s, which node %s reaches already; choose another subnet", subnet, route, view.NodeName(node.GetId()))
				}
			}
		}
	}
	return nil
}

// encryptable refuses an encrypted network that works nowhere.
func encryptable(view *store.View, spec *swarmpb.NetworkSpec) error {
	if !spec.GetEncrypted() {
		return nil
	}
	can, _, cannot := encrypting(view)
	if can == 0 && len(cannot) > 0 {
		return errors.New("encrypted: no node can run WireGuard, neither in the kernel nor through /dev/net/tun; load one of the modules wireguard and tun on the nodes, or leave --encrypted out")
	}
	return nil
}

// encrypting counts the nodes that encrypt, and of them those that do it in a process of their own; cannot names the others.
func encrypting(view *store.View) (can, slow int, cannot []string) {
	for node := range view.Nodes() {
		status := view.NodeStatus(node.GetId())
		network := status.GetDescription().GetNetwork()
		switch {
		case status.GetState() != swarmpb.NodeState_NODE_STATE_READY:
		case len(network.GetWireguardKey()) == 0:
			cannot = append(cannot, view.NodeName(node.GetId()))
		default:
			can++
			if network.GetWireguard() != "kernel" {
				slow++
			}
		}
	}
	return can, slow, cannot
}

const maxNamed = 5

// maxOverlaps bounds the hosts' routes that are shown with a network.
const maxOverlaps = 20

// networkWarnings are what a user should know of a network that is valid: what it cannot be used for yet, what encryption
// costs, and where it does not work.
func networkWarnings(view *store.View, spec *swarmpb.NetworkSpec) []string {
	var out []string
	if !spec.GetEncrypted() {
		return out
	}
	can, slow, cannot := encrypting(view)
	if slow > 0 {
		out = append(out, fmt.Sprintf("encrypted: %d of %d nodes have no WireGuard in the kernel and encrypt in a process, at 2 to 11 %% of the throughput; load the module wireguard there", slow, can+len(cannot)))
	}
	if len(cannot) > 0 {
		out = append(out, fmt.Sprintf("encrypted: %s cannot run WireGuard and refuse tasks of this network", some(cannot)))
	}
	return out
}

// some names a few of a list.
func some(names []string) string {
	slices.Sort(names)
	if len(names) > maxNamed {
		return fmt.Sprintf("%s and %d others", strings.Join(names[:maxNamed], ", "), len(names)-maxNamed)
	}
	return strings.Join(names, ", ")
}

// RemoveNetwork marks a network that nothing uses; the allocator takes it away. A retry finds what it did before, also once the
// network is gone.
func (s *Server) RemoveNetwork(ctx context.Context, req *swarmpb.RemoveNetworkRequest) (*swarmpb.RemoveNetworkResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		view, err := s.fresh(ctx)
		if err != nil {
			return nil, err
		}
		network, err := findNetwork(view, req.GetNetwork())
		if errors.Is(err, wire.ErrNotFound) && view.Answered(request) {
			return &swarmpb.RemoveNetworkResponse{Id: req.GetNetwork()}, nil // it has gone since
		}
		if err != nil {
			return nil, err
		}
		response := &swarmpb.RemoveNetworkResponse{Id: network.GetId()}
		if network.GetRemoving() {
			return response, nil
		}
		if err := unused(view, network); err != nil {
			return nil, err
		}
		next := swarmpb.Clone(network)
		next.Removing = true
		err = s.write(ctx, request, &swarmpb.Proposal{
			Guards: []*swarmpb.Guard{guard(swarmpb.NetworkKey(network.GetId()), network.GetMeta().GetVersion())},
			Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: next}})},
		})
		var conflict *store.ConflictError
		if err == nil {
			return response, nil
		}
		if !errors.As(err, &conflict) || try == rewrites {
			return nil, conflictError(err, "network \""+network.GetSpec().GetName()+"\"")
		}
	}
}

// unused refuses to remove a network that a service is in.
func unused(view *store.View, network *swarmpb.Network) error {
	name := network.GetSpec().GetName()
	var users, updating, attachments []string
	for service := range view.ServicesOn(network.GetId()) {
		switch spec := service.GetSpec(); {
		case service.GetRemoving():
		case spec.IsAttachment():
			attachments = append(attachments, attachmentName(service))
		case names(spec, network.GetId()):
			users = append(users, spec.GetName())
		default:
			updating = append(updating, spec.GetName())
		}
	}
	if len(users) > 0 {
		return wire.Errorf(wire.CodeInUse, "network %q: it is used by the services %s; remove them, or take it from them with `swarmctl service update --network-rm %s SERVICE`", name, some(users), name)
	}
	if len(attachments) > 0 {
		return wire.Errorf(wire.CodeInUse, "network %q: containers outside of services are attached to it: %s; take each of them out with `swarmctl network disconnect %s NAME`", name, some(attachments), name)
	}
	if len(updating) > 0 {
		return wire.Errorf(wire.CodeInUse, "network %q: the services %s leave it with an update that is not over, and may go back; try again when it is", name, some(updating))
	}
	if n := view.TasksOnNetwork(network.GetId()); n > 0 {
		return wire.Errorf(wire.CodeInUse, "network %q: %d tasks on it are still stopping; try again when they are gone", name, n)
	}
	return nil
}

// names tells whether a spec attaches its tasks to the network.
func names(spec *swarmpb.ServiceSpec, networkID string) bool {
	return slices.ContainsFunc(spec.GetTask().GetNetworks(), func(a *swarmpb.NetworkAttachment) bool { return a.GetNetwork() == networkID })
}

// GetNetwork returns one network.
func (s *Server) GetNetwork(ctx context.Context, req *swarmpb.GetNetworkRequest) (*swarmpb.GetNetworkResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	network, err := findNetwork(view, req.GetNetwork())
	if err != nil {
		return nil, err
	}
	return &swarmpb.GetNetworkResponse{Network: networkInfo(view, network)}, nil
}

// ListNetworks returns all networks, by ID.
func (s *Server) ListNetworks(ctx context.Context, _ *swarmpb.ListNetworksRequest) (*swarmpb.ListNetworksResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	response := &swarmpb.ListNetworksResponse{}
	for network := range view.Networks() {
		response.Networks = append(response.Networks, networkInfo(view, network))
	}
	return response, nil
}

func networkInfo(view *store.View, network *swarmpb.Network) *swarmpb.NetworkInfo {
	info := &swarmpb.NetworkInfo{
		Network: network, Progress: view.NetworkProgress(network.GetId()), Tasks: uint32(view.TasksOnNetwork(network.GetId())),
	}
	for service := range view.ServicesOn(network.GetId()) {
		if service.GetSpec().IsAttachment() {
			info.Attachments = append(info.Attachments, attachmentInfo(view, service, network.GetId()))
			continue
		}
		info.Services = append(info.Services, service.GetSpec().GetName())
	}
	for _, o := range view.RouteOverlapsOf(network.GetId(), maxOverlaps) {
		info.Overlaps = append(info.Overlaps, o.Text())
	}
	slices.Sort(info.Services)
	slices.SortFunc(info.Attachments, func(a, b *swarmpb.Attachment) int { return strings.Compare(a.GetName(), b.GetName()) })
	for row := range view.Allocations(networkPool + network.GetId()) {
		if row.GetOwner() != "" {
			info.AddressesUsed++
		}
	}
	if given, err := netip.ParsePrefix(info.Progress.GetIpRange()); err == nil && given.Addr().Is4() {
		info.AddressesTotal = 1 << (32 - given.Bits())
		// The network's own address and the broadcast address are nobody's.
		if subnet, err := netip.ParsePrefix(info.Progress.GetSubnet()); err == nil && subnet.Bits() == given.Bits() {
			info.AddressesTotal -= 2
		}
	}
	return info
}

// networkPool is the beginning of the name of the pool of a network's addresses.
const networkPool = "network/"

// resolveNetworks replaces the names of networks by their IDs.
func resolveNetworks(view *store.View, spec *swarmpb.ServiceSpec) error {
	internal := len(spec.GetTask().GetNetworks()) > 0
	seen := make(map[string]bool)
	var joined []*swarmpb.Network
	for _, a := range spec.GetTask().GetNetworks() {
		network, err := findNetwork(view, a.GetNetwork())
		if err != nil {
			return err
		}
		name := network.GetSpec().GetName()
		if network.GetRemoving() {
			return wire.Errorf(wire.CodeFailedPrecondition, "network %q: it is being removed; make it anew once it is gone", name)
		}
		if seen[network.GetId()] {
			return wire.Errorf(wire.CodeInvalid, "network %q: it is named twice; name each network once", name)
		}
		seen[network.GetId()] = true
		a.Network = network.GetId()
		if other := named(view, network.GetId(), spec.GetName()); other.GetSpec().IsAttachment() {
			return attached(view, other, network)
		}
		internal = internal && network.GetSpec().GetInternal()
		if err := apart(view, network, joined); err != nil {
			return err
		}
		joined = append(joined, network)
	}
	if ports := publications(spec); internal && len(ports) > 0 {
		return wire.Errorf(wire.CodeInvalid, "%s %s: all networks of the service are internal, so that nothing reaches it from outside; attach it to a network that is not, or publish nothing", ports[0].flag, portName(ports[0].PortConfig))
	}
	return nil
}

// apart refuses a network whose addresses another network of the same service has too.
func apart(view *store.View, network *swarmpb.Network, joined []*swarmpb.Network) error {
	subnets := subnetsOf(view, network)
	for _, other := range joined {
		for _, theirs := range subnetsOf(view, other) {
			i := slices.IndexFunc(subnets, theirs.Overlaps)
			if i < 0 {
				continue
			}
			return wire.Errorf(wire.CodeInvalid, "network %q: its subnet %s overlaps %s of network %q, so that no service can be in both; name one of them, or make one anew with another --subnet",
				network.GetSpec().GetName(), subnets[i], theirs, other.GetSpec().GetName())
		}
	}
	return nil
}

// subnetsOf are those that a network was given, and until then those that were asked for.
func subnetsOf(view *store.View, network *swarmpb.Network) (out []netip.Prefix) {
	progress := view.NetworkProgress(network.GetId())
	texts := []string{progress.GetSubnet(), progress.GetSubnet6()}
	for _, s := range network.GetSpec().GetSubnets() {
		texts = append(texts, s.GetSubnet())
	}
	for _, text := range texts {
		if prefix, err := netip.ParsePrefix(text); err == nil {
			out = append(out, prefix)
		}
	}
	return out
}

// addName notes the name of a network, unless that is gone.
func addName(view *store.View, names *map[string]string, id string) {
	network := view.Network(id)
	if network == nil {
		return
	}
	if *names == nil {
		*names = make(map[string]string)
	}
	(*names)[id] = network.GetSpec().GetName()
}
