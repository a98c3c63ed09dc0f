package network

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// BenchmarkApply_VIPChange is an endpoint of a service that begins and ends to get connections, on a node with 100 tasks
// that can call it: names, and the VIP in each of their namespaces.
func BenchmarkApply_VIPChange(b *testing.B) {
	c := newCluster(b, 1)
	n := c.nodes[0]
	red := testNetwork("red", 4097, "10.0.4.0/24")
	nobody := &swarmpb.Peer{NodeId: "nobody", Number: 9, Address: wireAddress(9).String(), UplinkBlock: "100.64.9.0/24"}
	c.tellPeers(b, setPeer(nobody), setNetwork(red), setService(web(red)))
	for i := range 100 {
		n.task(b, fmt.Sprintf("task%d", i), at(red, 110+i))
	}
	endpoint := &swarmpb.Endpoint{TaskId: "web1task", ServiceId: "websvc", Slot: 1, NodeId: "nobody", State: swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE, Networks: []*swarmpb.NetworkAddress{at(red, 5)}}
	starting := swarmpb.Clone(endpoint)
	starting.State = swarmpb.EndpointState_ENDPOINT_STATE_STARTING
	states := [][]*swarmpb.AssignmentChange{{setEndpoint(endpoint)}, {setEndpoint(starting)}}
	n.do(b, func() error {
		b.ResetTimer()
		begin := cpuOfProcess()
		for i := range b.N {
			if err := n.Apply(b.Context(), false, states[i%2]); err != nil {
				return err
			}
		}
		b.ReportMetric(float64((cpuOfProcess()-begin).Microseconds())/float64(b.N), "cpu-us/op")
		return nil
	})
}

// BenchmarkApply_Peer is a node that comes and goes beside 1,000 others.
func BenchmarkApply_Peer(b *testing.B) {
	c := newCluster(b, 1)
	n := c.nodes[0]
	peer := func(i int) *swarmpb.Peer {
		return &swarmpb.Peer{NodeId: fmt.Sprintf("peer%d", i), Number: uint32(i), Address: fmt.Sprintf("10.98.%d.%d", i>>8, i&255), UplinkBlock: fmt.Sprintf("100.%d.%d.0/24", 65+i>>8, i&255)}
	}
	var all []*swarmpb.AssignmentChange
	for i := range 1000 {
		all = append(all, setPeer(peer(i+2)))
	}
	c.tellPeers(b, all...)
	come := []*swarmpb.AssignmentChange{setPeer(peer(2000))}
	leave := []*swarmpb.AssignmentChange{{Change: &swarmpb.AssignmentChange_RemovePeer{RemovePeer: "peer2000"}}}
	n.do(b, func() error {
		b.ResetTimer()
		begin := cpuOfProcess()
		for i := range b.N {
			if err := n.Apply(b.Context(), false, [][]*swarmpb.AssignmentChange{come, leave}[i%2]); err != nil {
				return err
			}
		}
		b.ReportMetric(float64((cpuOfProcess()-begin).Microseconds())/float64(b.N), "cpu-us/op")
		return nil
	})
}

// cpuOfProcess counts all threads: a change of many namespaces goes over several.
func cpuOfProcess() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
