package swarmpb

import (
	"errors"
	"strings"
	"testing"
)

func TestNetworkSpecValidate_OneThingWrong_NamesFieldAndWhatToDo(t *testing.T) {
	subnet := func(subnet, gateway, ipRange string) func(*NetworkSpec) {
		return func(s *NetworkSpec) {
			s.Subnets = []*NetworkSubnet{{Subnet: subnet, Gateway: gateway, IpRange: ipRange}}
		}
	}
	for name, test := range map[string]struct {
		change func(*NetworkSpec)
		want   string
	}{
		"no name":       {func(s *NetworkSpec) { s.Name = "" }, "name: it is empty; give the network a name"},
		"bad name":      {func(s *NetworkSpec) { s.Name = "a b" }, `name "a b": it is not a valid network name`},
		"reserved":      {func(s *NetworkSpec) { s.Name = "ingress" }, `name "ingress": it is reserved`},
		"driver":        {func(s *NetworkSpec) { s.Driver = "macvlan" }, `driver "macvlan": there is no such driver; use overlay`},
		"option":        {func(s *NetworkSpec) { s.Options = map[string]string{"com.docker.x": "1"} }, `option "com.docker.x": there is no such option`},
		"mtu":           {func(s *NetworkSpec) { s.Options = map[string]string{"mtu": "100"} }, `option mtu: "100" is not a packet size; use 576 to 65000`},
		"mtu of IPv6":   {func(s *NetworkSpec) { s.Ipv6 = true; s.Options = map[string]string{"mtu": "1000"} }, "use 1280 to 65000"},
		"no CIDR":       {subnet("10.0.0.1", "", ""), `subnet "10.0.0.1": it is not a network in CIDR form`},
		"host bits":     {subnet("10.0.0.1/24", "", ""), "it has bits set beyond its length; use 10.0.0.0/24"},
		"multicast":     {subnet("224.0.0.0/24", "", ""), "containers cannot have such addresses"},
		"small":         {subnet("10.0.0.0/30", "", ""), "its length must be 8 to 29"},
		"IPv6 alone":    {subnet("fd00::/64", "", ""), "it is of IPv6, and the network has none; give --ipv6 as well"},
		"small IPv6":    {func(s *NetworkSpec) { s.Ipv6 = true; subnet("fd00::/112", "", "")(s) }, "its length must be at most 96"},
		"gateway":       {subnet("10.0.0.0/24", "10.0.1.1", ""), `gateway "10.0.1.1": it is not an address that a host of 10.0.0.0/24 can have`},
		"broadcast":     {subnet("10.0.0.0/24", "10.0.0.255", ""), `gateway "10.0.0.255": it is not an address that a host of 10.0.0.0/24 can have`},
		"gateway alone": {subnet("", "10.0.1.1", ""), `gateway "10.0.1.1": it belongs to a subnet, and none is given`},
		"range":         {subnet("10.0.0.0/24", "", "10.0.1.0/26"), `ip range "10.0.1.0/26": it is not a part of 10.0.0.0/24`},
		"small range":   {subnet("10.0.0.0/24", "", "10.0.0.4/31"), "it is too small"},
		"two subnets": {func(s *NetworkSpec) {
			s.Subnets = []*NetworkSubnet{{Subnet: "10.0.0.0/24"}, {Subnet: "10.0.1.0/24"}}
		}, "subnet: a network has one subnet of IPv4"},
		"nil subnets": {func(s *NetworkSpec) { s.Subnets = []*NetworkSubnet{nil, nil} }, "subnet: a network has one subnet of IPv4"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &NetworkSpec{Name: "back"}
			test.change(spec)
			err := spec.Validate()
			var field *FieldError
			if !errors.As(err, &field) || field.Field == "" || field.Fix == "" || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want a FieldError with %q", err, test.want)
			}
		})
	}
	if err := (*NetworkSpec)(nil).Validate(); err == nil {
		t.Error("no spec: no error")
	}
}

func TestNetworkSpecValidate_WhatUsersWrite_IsTaken(t *testing.T) {
	for _, spec := range []*NetworkSpec{
		{Name: "back"},
		{Name: "back", Driver: "overlay", Internal: true, Attachable: true, Encrypted: true, Options: map[string]string{"mtu": "1400"}},
		{Name: "back", Subnets: []*NetworkSubnet{{Subnet: "10.20.0.0/24", Gateway: "10.20.0.1", IpRange: "10.20.0.128/25"}}},
		{Name: "back", Ipv6: true, Subnets: []*NetworkSubnet{{Subnet: "10.20.0.0/24"}, {Subnet: "fd00:20::/64", Gateway: "fd00:20::1"}}},
		{Name: "back", Subnets: []*NetworkSubnet{{Subnet: "10.20.0.0/24", Gateway: "10.20.0.254"}}},
	} {
		if err := spec.Validate(); err != nil {
			t.Errorf("%v: %v", spec, err)
		}
	}
}

func TestServiceSpecValidate_PortsOfTheClusterItself_AreRefused(t *testing.T) {
	for _, port := range []uint32{DefaultDataPathPort, TunnelPort, TunnelVXLANPort, 7946} {
		for _, mode := range []PublishMode{PublishMode_PUBLISH_MODE_INGRESS, PublishMode_PUBLISH_MODE_HOST} {
			spec := validSpec()
			spec.Endpoint.Ports = []*PortConfig{{TargetPort: 80, PublishedPort: port, Mode: mode, Protocol: Protocol_PROTOCOL_UDP}}
			if err := spec.Validate(); err == nil || !strings.Contains(err.Error(), "the port is that of ") {
				t.Errorf("port %d: %v", port, err)
			}
		}
	}
}

func TestClusterSpecValidate_AddressPools_NamesWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct {
		spec *ClusterSpec
		want string
	}{
		"pool":    {&ClusterSpec{DefaultAddrPools: []string{"ten"}}, `default address pool "ten": it is not an IPv4 network`},
		"overlap": {&ClusterSpec{DefaultAddrPools: []string{"10.0.0.0/8", "10.1.0.0/16"}}, `default address pool "10.1.0.0/16": it overlaps 10.0.0.0/8`},
		"short":   {&ClusterSpec{DefaultAddrPools: []string{"10.1.0.0/16"}, DefaultAddrPoolMaskLength: 12}, "subnets of length 12 do not fit in it"},
		"length":  {&ClusterSpec{DefaultAddrPoolMaskLength: 31}, "default address pool mask length 31: it must be 8 to 29"},
		"port":    {&ClusterSpec{DataPathPort: 80}, "data path port 80: it is outside 1024 to 49151"},
		"tiny":    {&ClusterSpec{DefaultAddrPools: []string{"10.0.0.0/31"}}, `default address pool "10.0.0.0/31": no subnet fits in it`},
		"tunnel":  {&ClusterSpec{DataPathPort: TunnelVXLANPort}, "data path port 4793: it is that of encrypted networks between the hosts"},
		"gossip":  {&ClusterSpec{DataPathPort: 7946}, "data path port 7946: it is that of the hosts' gossip"},
	} {
		if err := test.spec.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
	}
}
