package allocator

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func (l *lab) progress(id string) *swarmpb.NetworkProgress { return l.View().NetworkProgress(id) }

// says fails unless a text holds all the words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q does not say %q", text, word)
		}
	}
}

// host makes a node with routes and an address.
func (l *lab) host(id, address string, routes ...string) {
	l.Helper()
	l.write(
		putRow(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}}),
		putRow(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id, Address: address,
			Description: &swarmpb.NodeDescription{Network: &swarmpb.NodeNetwork{Routes: routes}}}}}))
}

func TestNetworks_SubnetChosen_KeepsOutOfWhatIsThere(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{
		FabricPool: "10.0.0.0/23", FabricBlockLength: 28, DefaultAddrPools: []string{"10.0.0.0/20", "10.9.0.0/24"},
	})
	l.host("n1", "10.0.2.17", "0.0.0.0/0", "10.0.4.0/22", "fd00::/8", "nonsense")
	l.host("n2", "fd00::1", "10.0.8.0/21")
	l.network(&swarmpb.NetworkSpec{Name: "given", Subnets: []*swarmpb.NetworkSubnet{{Subnet: "10.0.3.128/25"}}})
	l.settle()
	for i, want := range []string{"10.9.0.0/24", "10.0.3.0/24"} {
		// The fabric has 0 and 1, a host's address 2, routes 4 to 15; 3 is a user's, which is taken before there is none at all.
		name := fmt.Sprint("n", i)
		l.network(&swarmpb.NetworkSpec{Name: name})
		l.settle()
		if got := l.progress(name); got.GetSubnet() != want || got.GetGateway() != strings.TrimSuffix(want, "0/24")+"1" || got.GetIpRange() != want {
			t.Errorf("network %s got %v, want %s", name, got, want)
		}
	}
}

func TestNetworks_PoolsFull_SaysSoUntilOneIsFree(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{DefaultAddrPools: []string{"10.0.0.0/24"}})
	l.network(&swarmpb.NetworkSpec{Name: "a"})
	l.network(&swarmpb.NetworkSpec{Name: "b"})
	l.settle()
	words := []string{"no subnet of length 24 is free", "10.0.0.0/24", "network prune", "--subnet"}
	says(t, l.progress("b").GetMessage(), words...)
	says(t, l.View().Alarm(PoolFullAlarm, SubnetPool).GetMessage(), words...)
	l.service("s", []string{"b"}, 0)
	l.scale("s", 1)
	l.settle()
	says(t, l.View().Addresses("s.1").GetMessage(), "network b has no addresses", "no subnet")
	says(t, l.View().ServiceEndpoint("s").GetMessage(), "network b has no addresses", "no subnet")
	l.removeNetwork("a")
	l.advance(Rest - time.Second)
	if l.progress("b").GetSubnet() != "" {
		t.Fatal("a subnet was given before it had rested")
	}
	l.advance(time.Minute)
	l.check()
	if got := l.progress("b"); got.GetSubnet() != "10.0.0.0/24" || got.GetMessage() != "" || l.View().Alarm(PoolFullAlarm, SubnetPool) != nil {
		t.Fatalf("network b got %v, alarms %v", got, l.View().Alarm(PoolFullAlarm, SubnetPool))
	}
	if l.View().Observed("s.1") != swarmpb.TaskState_TASK_STATE_PENDING {
		t.Fatal("the task does not go on")
	}
}

func TestNetworks_HostNoLongerInTheWay_SubnetIsChosen(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{DefaultAddrPools: []string{"10.0.0.0/24"}})
	l.host("n1", "192.168.0.1", "10.0.0.0/8")
	l.network(&swarmpb.NetworkSpec{Name: "a"})
	l.settle()
	says(t, l.progress("a").GetMessage(), "routes of hosts")
	l.host("n1", "192.168.0.1", "10.1.0.0/16")
	l.settle()
	if got := l.progress("a").GetSubnet(); got != "10.0.0.0/24" {
		t.Fatalf("subnet %q", got)
	}
	// What is chosen stays, whatever a host comes with later.
	l.host("n1", "192.168.0.1", "10.0.0.0/8")
	l.settle()
	if got := l.progress("a"); got.GetSubnet() != "10.0.0.0/24" || got.GetMessage() != "" {
		t.Fatalf("network a has %v", got)
	}
}

func TestNetworks_BadInput_SaysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		subnets []*swarmpb.NetworkSubnet
		pools   []string
		want    string
	}{
		"subnet":        {[]*swarmpb.NetworkSubnet{{Subnet: "10.0.0"}}, nil, `"10.0.0" is not a network of IPv4`},
		"gateway":       {[]*swarmpb.NetworkSubnet{{Subnet: "10.0.0.0/24", Gateway: "10.0.1.1"}}, nil, `gateway "10.0.1.1" is not an address of subnet 10.0.0.0/24`},
		"range":         {[]*swarmpb.NetworkSubnet{{Subnet: "10.0.0.0/24", IpRange: "10.0.0.0/16"}}, nil, "is not a part of subnet"},
		"no room":       {[]*swarmpb.NetworkSubnet{{Subnet: "10.0.0.0/32"}}, nil, "has no room"},
		"all":           {[]*swarmpb.NetworkSubnet{{Subnet: "0.0.0.0/0", Gateway: "1.1.1.1"}}, nil, "overlaps the fabric pool"},
		"gateway6":      {[]*swarmpb.NetworkSubnet{{Subnet: "fd00::/64", Gateway: "fd01::1"}}, nil, `gateway "fd01::1" is not an address of subnet fd00::/64`},
		"long subnet6":  {[]*swarmpb.NetworkSubnet{{Subnet: "fd00::/100"}}, nil, "length of at most 96"},
		"cluster pools": {nil, []string{"fd00::/8"}, `address pool "fd00::/8" is not a network of IPv4`},
	} {
		l := newLab(t, &swarmpb.ClusterSpec{DefaultAddrPools: c.pools})
		l.network(&swarmpb.NetworkSpec{Name: "a", Subnets: c.subnets})
		l.settle()
		if got := l.progress("a").GetMessage(); !strings.Contains(got, c.want) {
			t.Errorf("%s: message %q, want %q", name, got, c.want)
		}
		l.removeNetwork("a")
		l.advance(2 * Rest)
		for _, pool := range append(l.pools(), NetworkPool("a")) {
			for row := range l.View().Allocations(pool) {
				t.Errorf("%s: %v is left", name, row)
			}
		}
	}
}

func TestNumber_Blocks_CountFromOne(t *testing.T) {
	pool := netip.MustParsePrefix("100.64.0.0/10")
	for text, want := range map[string]uint32{"100.64.0.0/24": 1, "100.64.3.0/24": 4, "100.127.255.0/24": 16384} {
		if n, err := Number(pool, netip.MustParsePrefix(text)); err != nil || n != want {
			t.Errorf("%s: %d, %v, want %d", text, n, err, want)
		}
	}
	for _, text := range []string{"10.0.0.0/24", "100.0.0.0/8", "100.127.255.252/30"} {
		if n, err := Number(pool, netip.MustParsePrefix(text)); err == nil {
			t.Errorf("%s: %d", text, n)
		}
	}
}

func TestNetworks_LargePoolOfOneThatGoes_IsRemovedInParts(t *testing.T) {
	l := newLab(t, &swarmpb.ClusterSpec{})
	l.network(&swarmpb.NetworkSpec{Name: "net-a", Subnets: []*swarmpb.NetworkSubnet{{Subnet: "10.1.0.0/16"}}})
	l.service("svc-a", []string{"net-a"}, swarmpb.EndpointMode_ENDPOINT_MODE_DNSRR)
	l.scale("svc-a", 1300)
	l.settle()
	l.check()
	l.removeAll(l.advance)
}
