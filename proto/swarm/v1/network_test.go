package swarmpb

import (
	"net/netip"
	"testing"
)

func TestAddress6_Prefix_KeepsTheAddressBehindIt(t *testing.T) {
	v4 := netip.MustParseAddr("100.64.3.7")
	if got, want := Address6(netip.MustParsePrefix("fd12:3456:789a::/96"), v4), netip.MustParseAddr("fd12:3456:789a::6440:307"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for _, bad := range []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/97")} {
		if got := Address6(bad, v4); got.IsValid() {
			t.Errorf("prefix %s gives %s", bad, got)
		}
	}
	if got := Address6(netip.MustParsePrefix("fd00::/96"), netip.MustParseAddr("fd00::1")); got.IsValid() {
		t.Errorf("an address of IPv6 gives %s", got)
	}
}

func TestReached_PortsAndNetworks_TellWhoDrains(t *testing.T) {
	port := func(mode PublishMode) *ServiceSpec {
		return &ServiceSpec{Endpoint: &EndpointSpec{Ports: []*PortConfig{{TargetPort: 80, Mode: mode}}}}
	}
	for name, c := range map[string]struct {
		spec *ServiceSpec
		want bool
	}{
		"nothing":      {&ServiceSpec{}, false},
		"host port":    {port(PublishMode_PUBLISH_MODE_HOST), false},
		"ingress port": {port(PublishMode_PUBLISH_MODE_INGRESS), true},
		"unspecified":  {port(PublishMode_PUBLISH_MODE_UNSPECIFIED), true},
		"network":      {&ServiceSpec{Task: &TaskSpec{Networks: []*NetworkAttachment{{Network: "n"}}}}, true},
	} {
		if got := c.spec.Reached(); got != c.want {
			t.Errorf("%s: got %t", name, got)
		}
	}
}

func TestRow_NetworkRows_HaveTheirKeys(t *testing.T) {
	for _, c := range []struct {
		row  *Row
		want *RowKey
	}{
		{&Row{Row: &Row_Network{Network: &Network{Id: "n"}}}, NetworkKey("n")},
		{&Row{Row: &Row_NetworkProgress{NetworkProgress: &NetworkProgress{NetworkId: "n"}}}, NetworkProgressKey("n")},
		{&Row{Row: &Row_ServiceEndpoint{ServiceEndpoint: &ServiceEndpoint{ServiceId: "s"}}}, ServiceEndpointKey("s")},
	} {
		if got := c.row.Key(); got.ID() != c.want.ID() || got.Table != c.want.Table {
			t.Errorf("key is %v, want %v", got, c.want)
		}
	}
}
