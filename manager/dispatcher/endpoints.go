package dispatcher

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// What follows makes of rows what nodes are told of how tasks are reached; docs/design-network.md has the table.

// endpointOf is a task as others reach it; nil when they do not. The task is of a service that is reached.
func endpointOf(view *store.View, taskID string) *swarmpb.Endpoint {
	rows := view.TaskRows(taskID)
	node := rows.Placement.GetNodeId()
	if rows.Task == nil || node == "" || rows.Observed.Ended() || isDown(view, node) {
		return nil
	}
	state := swarmpb.EndpointState_ENDPOINT_STATE_STARTING
	if rows.Observed == swarmpb.TaskState_TASK_STATE_RUNNING {
		switch {
		case stops(rows.Task) || rows.Task.GetDraining():
			state = swarmpb.EndpointState_ENDPOINT_STATE_DRAINING
		case rows.Status.GetHealth().GetNotReady():
			state = swarmpb.EndpointState_ENDPOINT_STATE_STANDBY
		default:
			state = swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE
		}
	}
	return &swarmpb.Endpoint{
		TaskId: taskID, ServiceId: rows.Task.GetServiceId(), Slot: rows.Task.GetSlot(), NodeId: node, State: state,
		Address: rows.Status.GetAddress(), Networks: rows.Addresses.GetNetworks(),
		Set: rows.Task.GetTemplateVersion(), Global: rows.Task.GetNodeId() != "",
	}
}

// stops tells whether a task is to stop.
func stops(task *swarmpb.Task) bool {
	return !task.GetDesiredState().Wanted()
}

// isDown tells whether what runs on a node cannot be reached: it is called down, or was removed.
func isDown(view *store.View, nodeID string) bool {
	return view.Node(nodeID) == nil || view.NodeStatus(nodeID).GetState() == swarmpb.NodeState_NODE_STATE_DOWN
}

// serviceOf is a service as nodes are told of it; nil when no node is.
func serviceOf(view *store.View, serviceID string) *reachedService {
	service := view.Service(serviceID)
	if service == nil {
		return nil
	}
	given := view.ServiceEndpoint(serviceID)
	networks := slices.Clone(service.GetSpec().GetTask().GetNetworks())
	// Tasks of an earlier template are where that said, as long as there are any.
	for template := range view.TemplatesOf(serviceID) {
		for _, a := range template.GetSpec().GetNetworks() {
			if !slices.ContainsFunc(networks, func(b *swarmpb.NetworkAttachment) bool { return a.GetNetwork() == b.GetNetwork() }) {
				networks = append(networks, a)
			}
		}
	}
	s := &reachedService{assigned: &swarmpb.AssignedService{
		Id: serviceID, Name: service.GetSpec().GetName(), Mode: service.GetSpec().GetEndpoint().GetMode(),
		Ports: given.GetPorts(), Vips: given.GetVips(), Networks: networks, Trial: view.ServiceProgress(serviceID).GetUpdate().Trial(),
	}}
	if s.assigned.GetTrial().GetPreview() {
		s.assigned.PreviewPorts = given.GetPreviewPorts()
	}
	if len(s.assigned.GetPorts())+len(s.assigned.GetPreviewPorts()) > 0 {
		s.topics = append(s.topics, everyone)
	}
	for _, a := range networks {
		s.topics = append(s.topics, a.GetNetwork())
	}
	for _, vip := range given.GetVips() {
		s.topics = append(s.topics, vip.GetNetworkId())
	}
	if len(s.topics) == 0 {
		return nil
	}
	slices.Sort(s.topics)
	s.topics = slices.Compact(s.topics)
	return s
}

// isReached tells whether anyone sends connections to the service's tasks, or may soon: then they drain before they stop.
func isReached(view *store.View, serviceID string) bool {
	return view.Service(serviceID).GetSpec().Reached() || serviceOf(view, serviceID) != nil
}

// isDrained tells whether a task of a service that is reached, or not, may stop at once when it is to stop: no node sends
// it new connections.
func isDrained(view *store.View, task *swarmpb.Task, reached bool) bool {
	status := view.Status(task.GetId())
	neverActive := stops(task) && status.GetState() < swarmpb.TaskState_TASK_STATE_RUNNING
	return !reached || neverActive || status.GetDrainedAt() != 0
}

// networkOf is a network as nodes are told of it; nil when there is none.
func networkOf(view *store.View, id string) *swarmpb.AssignedNetwork {
	network := view.Network(id)
	if network == nil {
		return nil
	}
	return &swarmpb.AssignedNetwork{Id: id, Spec: network.GetSpec(), Progress: view.NetworkProgress(id)}
}

// peerOf is a node as the others reach it; nil before it has a block and has been seen.
func peerOf(view *store.View, nodeID string, addresses *hostAddresses) *swarmpb.Peer {
	if view.Node(nodeID) == nil {
		return nil
	}
	block := uplinkBlock(view, nodeID)
	pool := cmp.Or(view.Cluster().GetSpec().GetFabricPool(), swarmpb.DefaultFabricPool)
	number := nodeNumber(pool, block)
	status := view.NodeStatus(nodeID)
	address, err := netip.ParseAddr(status.GetAddress())
	if number == 0 || err != nil {
		return nil
	}
	return &swarmpb.Peer{
		NodeId: nodeID, Number: number, Address: address.Unmap().WithZone("").String(), UplinkBlock: block,
		WireguardKey:   status.GetDescription().GetNetwork().GetWireguardKey(),
		OtherAddresses: addresses.of(nodeID, address.Unmap().WithZone(""), containerPrefixes(view.Cluster(), pool)),
	}
}

// uplinkBlock is the block that a node gives its tasks addresses from; empty before it has one.
func uplinkBlock(view *store.View, nodeID string) (block string) {
	for a := range view.AllocationsOf(nodeID) {
		if a.GetPool() == poolUplink && (block == "" || a.GetAddress() < block) {
			block = a.GetAddress()
		}
	}
	return block
}

// maxNodeNumber is what the fabric has room for on the wire.
const maxNodeNumber = 1<<16 - 1

// nodeNumber is that of a block in the pool, plus 1; 0 for what is no block of it.
func nodeNumber(pool, block string) uint32 {
	p, err := netip.ParsePrefix(pool)
	if err != nil {
		return 0
	}
	b, err := netip.ParsePrefix(block)
	if err != nil || !p.Addr().Is4() || !b.Addr().Is4() || b.Bits() < p.Bits() || b.Bits() == 0 || !p.Contains(b.Addr()) {
		return 0
	}
	from, at := p.Masked().Addr().As4(), b.Masked().Addr().As4()
	number := uint64(binary.BigEndian.Uint32(at[:])-binary.BigEndian.Uint32(from[:]))>>(32-b.Bits()) + 1
	if number > maxNodeNumber {
		return 0
	}
	return uint32(number)
}

// fabricPrefix6 is the cluster's prefix of 96 bits; empty: it has none.
func fabricPrefix6(clusterID string) string {
	if prefix := swarmpb.FabricPrefix6(clusterID); prefix.IsValid() {
		return prefix.String()
	}
	return ""
}
