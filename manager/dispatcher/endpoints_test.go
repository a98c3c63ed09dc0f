package dispatcher

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestNodeNumber_BlocksOfAPool_CountFromOne(t *testing.T) {
	for _, tc := range []struct {
		pool, block string
		number      uint32
	}{
		{"100.64.0.0/10", "100.64.0.0/24", 1},
		{"100.64.0.0/10", "100.64.3.0/24", 4},
		{"100.64.0.0/10", "100.127.255.0/24", 16384},
		{"10.0.0.0/8", "10.255.254.0/24", 65535},
		{"10.0.0.0/8", "10.255.255.0/24", 0}, // more than there is room for on the wire
		{"10.0.0.0/8", "10.1.0.0/16", 2},
		{"10.0.0.0/8", "10.0.0.0/8", 1},
		{"100.64.0.0/10", "10.0.0.0/24", 0},
		{"100.64.0.0/10", "100.0.0.0/8", 0},
		{"100.64.0.0/10", "", 0}, {"", "100.64.0.0/24", 0}, {"fd00::/8", "fd00::/64", 0}, {"0.0.0.0/0", "0.0.0.0/0", 0},
	} {
		if got := nodeNumber(tc.pool, tc.block); got != tc.number {
			t.Errorf("block %s of %s: number %d, want %d", tc.block, tc.pool, got, tc.number)
		}
	}
}

func TestFabricPrefix6_OfAClusterID_AlwaysTheSame(t *testing.T) {
	one, other := fabricPrefix6("a"), fabricPrefix6("b")
	if one == other || one != fabricPrefix6("a") {
		t.Errorf("prefixes %s and %s", one, other)
	}
	prefix, err := netip.ParsePrefix(one)
	if err != nil || prefix.Bits() != 96 || prefix.Masked() != prefix || !netip.MustParsePrefix("fd00::/8").Contains(prefix.Addr()) {
		t.Errorf("prefix %s: %v", one, err)
	}
	if got := swarmpb.Address6(prefix, netip.MustParseAddr("100.64.3.2")); !prefix.Contains(got) {
		t.Errorf("a task's address is %s", got)
	}
	if fabricPrefix6("") != "" {
		t.Error("a prefix of no cluster")
	}
}

func TestAssignment_NodeConfig_SaysWhoTheNodeIsInTheFabric(t *testing.T) {
	w := testWorld(t, "n1")
	w.allocate("uplink", "100.64.3.0/24", "n1")
	h, told := newHolder(t), newTeller(w, maxEvents, "n1")
	told.deliver(h, "n1")
	if c := h.config; c.GetNumber() != 4 || c.GetFabricPrefix6() != fabricPrefix6(clusterName) || c.GetDataPathPort() != 4789 {
		t.Errorf("configuration %v", c)
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: clusterName, Spec: &swarmpb.ClusterSpec{FabricPool: "100.64.0.0/12", DataPathPort: 4790}}}})
	told.deliver(h, "n1")
	if c := h.config; c.GetNumber() != 4 || c.GetDataPathPort() != 4790 || c.GetFabricPool() != "100.64.0.0/12" {
		t.Errorf("configuration %v", c)
	}
}

func TestCleanDescription_Network_BoundedAndCanonical(t *testing.T) {
	if d, err := cleanDescription(&swarmpb.NodeDescription{Hostname: "h"}); err != nil || d.GetNetwork() != nil {
		t.Errorf("%v, %v", d, err)
	}
	n := &swarmpb.NodeNetwork{
		Routes:       []string{"10.1.2.3/8", "10.0.0.0/8", "not one", "", "fe80::1/64", "10.0.0.1"},
		Conflicts:    []*swarmpb.PortConflict{nil, {Port: 70000}, {Port: 80, Protocol: 99}, {Port: 443, Protocol: swarmpb.Protocol_PROTOCOL_UDP, Process: "x\n\x00" + strings.Repeat("y", 999)}},
		Problems:     []string{"a\nb", strings.Repeat("z", 9999)},
		WireguardKey: make([]byte, 31), Wireguard: "kernel",
		Addresses: []string{"192.0.2.1", "nothing", "127.0.0.1", "fe80::1", "fd77::1", "::ffff:192.0.2.2"},
	}
	clean := func() *swarmpb.NodeNetwork {
		d, err := cleanDescription(&swarmpb.NodeDescription{Hostname: "h", Network: n})
		if err != nil {
			t.Fatal(err)
		}
		return d.GetNetwork()
	}
	got := clean()
	if !slices.Equal(got.GetRoutes(), []string{"10.0.0.0/8", "fe80::/64"}) {
		t.Errorf("routes %q", got.GetRoutes())
	}
	if !slices.Equal(got.GetAddresses(), []string{"192.0.2.1", "fd77::1", "192.0.2.2"}) {
		t.Errorf("addresses %q", got.GetAddresses())
	}
	if len(got.GetConflicts()) != 1 || got.GetConflicts()[0].GetPort() != 443 || len(got.GetConflicts()[0].GetProcess()) > maxNameBytes ||
		strings.ContainsAny(got.GetConflicts()[0].GetProcess(), "\n\x00") {
		t.Errorf("conflicts %v", got.GetConflicts())
	}
	if len(got.GetProblems()) != 2 || got.GetProblems()[0] != "a b" || len(got.GetProblems()[1]) > maxMessageBytes {
		t.Errorf("problems %q", got.GetProblems())
	}
	if len(got.GetWireguardKey()) != 0 || got.GetWireguard() != "" {
		t.Errorf("a key of 31 bytes is kept: %v", got)
	}
	n.WireguardKey = bytes.Repeat([]byte{1}, 32)
	for i := range 3000 {
		n.Routes = append(n.Routes, fmt.Sprintf("10.%d.%d.0/24", i/250, i%250))
		n.Conflicts = append(n.Conflicts, &swarmpb.PortConflict{Port: uint32(i + 1)})
		n.Problems = append(n.Problems, "p")
		n.Addresses = append(n.Addresses, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
	}
	got = clean()
	if len(got.GetAddresses()) > maxHostAddresses || len(got.GetRoutes()) != maxRoutes || len(got.GetConflicts()) != maxConflicts || len(got.GetProblems()) != maxProblems {
		t.Errorf("%d routes, %d conflicts, %d problems", len(got.GetRoutes()), len(got.GetConflicts()), len(got.GetProblems()))
	}
	if len(got.GetWireguardKey()) != 32 || got.GetWireguard() != "kernel" {
		t.Errorf("key %x of %q", got.GetWireguardKey(), got.GetWireguard())
	}
}

// TestDescription_KeyOfAnotherNode_IsNotTold: a node that claims another's key would cut it off from encrypted networks.
func TestDescription_KeyOfAnotherNode_IsNotTold(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		key := bytes.Repeat([]byte{7}, wireguardKeyBytes)
		n1, n2 := c.mustConnect("n1", "b1"), c.mustConnect("n2", "b2")
		tell := func(w *worker, key []byte) *swarmpb.NodeNetwork {
			t.Helper()
			if err := w.send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Description{Description: &swarmpb.NodeDescription{
				Hostname: "host-" + w.node, Network: &swarmpb.NodeNetwork{WireguardKey: key, Wireguard: "kernel"}}}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
			return c.view().NodeStatus(w.node).GetDescription().GetNetwork()
		}
		if got := tell(n1, key); !bytes.Equal(got.GetWireguardKey(), key) {
			t.Errorf("the first one's network is %v", got)
		}
		got := tell(n2, key)
		if len(got.GetWireguardKey()) != 0 || len(got.GetProblems()) != 1 || !strings.Contains(got.GetProblems()[0], "that of node host-n1") {
			t.Errorf("the second one's network is %v", got)
		}
		before := c.proposed.Load()
		time.Sleep(time.Minute)
		if n := c.proposed.Load() - before; n != 0 {
			t.Errorf("%d proposals for what is known", n)
		}
		if got := tell(n2, bytes.Repeat([]byte{8}, wireguardKeyBytes)); len(got.GetWireguardKey()) == 0 || len(got.GetProblems()) != 0 {
			t.Errorf("with a key of its own: %v", got)
		}
		if got := tell(n1, key); !bytes.Equal(got.GetWireguardKey(), key) {
			t.Errorf("the first one's network is %v", got)
		}
	})
}
