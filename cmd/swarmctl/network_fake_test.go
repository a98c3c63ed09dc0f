package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	backID = "back000000000000000000back"
	dbID   = "db00000000000000000000db00"
	shopID = "shop000000000000000000shop"
)

var networkNamesFixture = map[string]string{backID: "back", dbID: "db"}

// networkFixtures are a network in use, one with everything that can be asked for, one without a subnet and one that goes.
func networkFixtures() []*swarmpb.NetworkInfo {
	return []*swarmpb.NetworkInfo{
		{
			Network:  &swarmpb.Network{Id: backID, Spec: &swarmpb.NetworkSpec{Name: "back", Driver: "overlay"}, Meta: &swarmpb.Meta{Version: 3, CreatedAt: before(time.Hour)}},
			Progress: &swarmpb.NetworkProgress{NetworkId: backID, Vni: 4096, Subnet: "10.0.1.0/24", Gateway: "10.0.1.1", IpRange: "10.0.1.0/24"},
			Services: []string{"api", "shop"}, Tasks: 3, AddressesUsed: 6, AddressesTotal: 254,
		},
		{
			Network: &swarmpb.Network{Id: dbID, Meta: &swarmpb.Meta{Version: 4, CreatedAt: before(time.Hour)}, Spec: &swarmpb.NetworkSpec{
				Name: "db", Driver: "overlay", Internal: true, Encrypted: true, Attachable: true, Ipv6: true, Options: map[string]string{"mtu": "1400"}, Labels: map[string]string{"team": "shop", "tier": "back"},
				Subnets: []*swarmpb.NetworkSubnet{{Subnet: "10.0.2.0/24", IpRange: "10.0.2.128/25"}},
			}},
			Progress: &swarmpb.NetworkProgress{
				NetworkId: dbID, Vni: 4097, Subnet: "10.0.2.0/24", Gateway: "10.0.2.1", IpRange: "10.0.2.128/25", Subnet6: "fd12:3456:789a:1::/64", Gateway6: "fd12:3456:789a:1::1",
			},
			AddressesUsed: 1, AddressesTotal: 128,
		},
		{
			Network:  &swarmpb.Network{Id: "open000000000000000000open", Spec: &swarmpb.NetworkSpec{Name: "open", Driver: "overlay", Attachable: true}, Meta: &swarmpb.Meta{Version: 7, CreatedAt: before(time.Hour)}},
			Progress: &swarmpb.NetworkProgress{Vni: 4099, Subnet: "10.0.5.0/24", Gateway: "10.0.5.1", IpRange: "10.0.5.0/24"}, AddressesUsed: 2, AddressesTotal: 254,
			Tasks: 1, Attachments: attachmentFixtures(), Overlaps: []string{
				`node n2 reaches 10.0.5.0/25 by a route of its own, which overlaps subnet 10.0.5.0/24 of network "open": containers in the network do not reach there what that route leads to; ` +
					"take the route away, or make the network anew with another --subnet"},
		},
		{
			Network:  &swarmpb.Network{Id: "full000000000000000000full", Spec: &swarmpb.NetworkSpec{Name: "full", Driver: "overlay", Labels: map[string]string{"team": "shop"}}, Meta: &swarmpb.Meta{Version: 5, CreatedAt: before(time.Minute)}},
			Progress: &swarmpb.NetworkProgress{Message: poolFull},
		},
		{
			Network:  &swarmpb.Network{Id: "old0000000000000000000old0", Removing: true, Spec: &swarmpb.NetworkSpec{Name: "old", Driver: "overlay"}, Meta: &swarmpb.Meta{Version: 6, CreatedAt: before(time.Hour)}},
			Progress: &swarmpb.NetworkProgress{Vni: 4098, Subnet: "10.0.3.0/24", Gateway: "10.0.3.1", IpRange: "10.0.3.0/24"}, AddressesTotal: 254,
		},
	}
}

const poolFull = "no subnet of length 24 is free in 10.0.0.0/8; remove networks that are not needed, or give one with --subnet"

// shopFixture is a service in the mesh and in two networks, to which something happened everywhere.
func shopFixture() *swarmpb.ServiceInfo {
	const (
		udp  = swarmpb.Protocol_PROTOCOL_UDP
		host = swarmpb.PublishMode_PUBLISH_MODE_HOST
	)
	ports := []*swarmpb.PortConfig{
		{TargetPort: 80, PublishedPort: 8080, Affinity: swarmpb.Affinity_AFFINITY_CLIENT_IP}, {TargetPort: 90}, {TargetPort: 91, Protocol: udp},
		{TargetPort: 53, PublishedPort: 53, Protocol: udp, Source: swarmpb.PublishSource_PUBLISH_SOURCE_NAT}, {TargetPort: 9000, PublishedPort: 9001, Mode: host}, {TargetPort: 9000, Mode: host},
		{TargetPort: 8000, PublishedPort: 7000}, {TargetPort: 8001, PublishedPort: 7001}, {TargetPort: 8002, PublishedPort: 7002}, {TargetPort: 8004, PublishedPort: 7003},
	}
	given := append(slices.Clone(ports[:1]), &swarmpb.PortConfig{TargetPort: 90, PublishedPort: 30000})
	return &swarmpb.ServiceInfo{
		Service: &swarmpb.Service{Id: shopID, TemplateVersion: 1, Meta: &swarmpb.Meta{Version: 44, CreatedAt: before(time.Minute)}, Spec: &swarmpb.ServiceSpec{
			Name: "shop", Mode: replicated(1), Endpoint: &swarmpb.EndpointSpec{Ports: ports},
			Task: &swarmpb.TaskSpec{
				Networks: []*swarmpb.NetworkAttachment{{Network: backID, Aliases: []string{"store", "market"}}, {Network: dbID}},
				Container: &swarmpb.ContainerSpec{
					Image: "shop:3", Hosts: []string{"192.168.1.5 db main", "fd00::1 six"},
					Dns: &swarmpb.DNSConfig{Nameservers: []string{"192.168.1.1", "fd00::53"}, Search: []string{"example.org"}, Options: []string{"ndots:2"}},
				},
			},
		}},
		Running: 1, Desired: 1,
		Endpoint: &swarmpb.ServiceEndpoint{
			ServiceId: shopID, Ports: given, Message: `publish 53/udp: the port is already published by service "api"; choose another port or remove it there`,
			Vips: []*swarmpb.NetworkAddress{{NetworkId: backID, Address: "10.0.1.254"}, {NetworkId: dbID, Address: "10.0.2.254", Address6: "fd12:3456:789a:1::fe"}},
		},
		Conflicts: []*swarmpb.NodePortConflict{
			{NodeId: n2ID, Hostname: "n2", Conflict: &swarmpb.PortConflict{Protocol: swarmpb.Protocol_PROTOCOL_TCP, Port: 8080, Process: "nginx (pid 12)"}},
			{NodeId: n1ID, Conflict: &swarmpb.PortConflict{Protocol: udp, Port: 53}},
		},
		NetworkNames: networkNamesFixture,
	}
}

func (c *fakeControl) findNetwork(ref string) (int, error) {
	i := slices.IndexFunc(c.networks, func(n *swarmpb.NetworkInfo) bool { return ref == n.Network.Id || ref == n.Network.Spec.Name })
	if i < 0 {
		return 0, wire.Errorf(wire.CodeNotFound, "network %q: not found; `swarmctl network ls` shows what there is", ref)
	}
	return i, nil
}

func (c *fakeControl) CreateNetwork(ctx context.Context, req *swarmpb.CreateNetworkRequest) (*swarmpb.CreateNetworkResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	if err := req.Spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "%w", err)
	}
	if i, err := c.findNetwork(req.Spec.Name); err == nil {
		return nil, wire.Errorf(wire.CodeExists, "network %q: the name is taken by network %s; choose another name or remove that one", req.Spec.Name, c.networks[i].Network.Id)
	}
	c.made = swarmpb.Clone(req.Spec)
	id := req.Spec.Name + "0000000000000000000000"
	c.networks = append(c.networks, &swarmpb.NetworkInfo{Network: &swarmpb.Network{Id: id, Spec: req.Spec}})
	return &swarmpb.CreateNetworkResponse{Id: id, Warnings: c.warnings}, nil
}

func (c *fakeControl) GetNetwork(ctx context.Context, req *swarmpb.GetNetworkRequest) (*swarmpb.GetNetworkResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	if len(c.network) > 0 {
		c.network[0](c)
		c.network = c.network[1:]
	}
	i, err := c.findNetwork(req.Network)
	if err != nil {
		return nil, err
	}
	return &swarmpb.GetNetworkResponse{Network: c.networks[i]}, nil
}

func (c *fakeControl) ListNetworks(ctx context.Context, _ *swarmpb.ListNetworksRequest) (*swarmpb.ListNetworksResponse, error) {
	return &swarmpb.ListNetworksResponse{Networks: c.networks}, c.answer(ctx)
}

func (c *fakeControl) RemoveNetwork(ctx context.Context, req *swarmpb.RemoveNetworkRequest) (*swarmpb.RemoveNetworkResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	i, err := c.findNetwork(req.Network)
	if err != nil {
		return nil, err
	}
	n := c.networks[i]
	if len(n.Services) > 0 {
		return nil, wire.Errorf(wire.CodeInUse, "network %q: it is used by the services %s; remove them, or take it from them with `swarmctl service update --network-rm %s SERVICE`",
			n.Network.Spec.Name, strings.Join(n.Services, ", "), n.Network.Spec.Name)
	}
	n.Network.Removing = true
	return &swarmpb.RemoveNetworkResponse{Id: n.Network.Id}, nil
}

// give is what the allocator does to the network that was made last.
func give(progress *swarmpb.NetworkProgress) func(*fakeControl) {
	return func(c *fakeControl) { c.networks[len(c.networks)-1].Progress = progress }
}

// removed is what the allocator does to networks that are to go.
func removed(c *fakeControl) {
	c.networks = slices.DeleteFunc(slices.Clone(c.networks), func(n *swarmpb.NetworkInfo) bool { return n.Network.Removing })
}

func (l *fakeLocal) Doctor(_ *swarmpb.DoctorRequest, stream grpc.ServerStreamingServer[swarmpb.DoctorResponse]) error {
	for _, check := range l.checks {
		if err := stream.Send(check); err != nil {
			return err
		}
	}
	return l.fail
}
