package manager

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/dispatcher"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// BenchmarkAssign measures three whole managers in one process, with real files, TLS and sealing: 100 services of 1,000 replicas
// are created on 10,000 nodes, of which there are only the rows. tasks/cpu-s counts the CPU of all three from the first create
// until each of them has the last placement: at least 8,000 (SwarmKit: 8,200 for placement in one store without Raft, about 3,000
// with it by adding up its parts).
func BenchmarkAssign(b *testing.B) {
	const nodes, services, replicas = 10_000, 100, 1_000
	m1, founding := found(b)
	for first := 0; first < nodes; first += 250 {
		p := &swarmpb.Proposal{Now: time.Now().UnixNano(), RequestId: fmt.Sprint("nodes-", first)}
		for i := first; i < min(first+250, nodes); i++ {
			p.Writes = append(p.Writes, nodeRows(fmt.Sprintf("node%05d", i))...)
		}
		if _, err := m1.manager.replica.Propose(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
	m1.stop()
	// From here on the nodes count as ready though they have no sessions.
	m1.limits = dispatcher.Limits{Lease: 24 * time.Hour, ReconnectLease: 24 * time.Hour}
	l, err := m1.open()
	if err != nil {
		b.Fatal(err)
	}
	m1.run(l, m1)
	// Now and then: a host that asks again and again is told to wait.
	for join := (wire.JoinConfig{Managers: []string{m1.addr}, Token: founding.Tokens.GetWorker()}); ; time.Sleep(2 * time.Second) {
		if _, err := wire.Join(b.Context(), join); err == nil {
			break
		} else if b.Elapsed() > time.Minute {
			b.Fatal(err)
		}
	}
	hosts := []*host{m1, join(b, founding, m1), join(b, founding, m1)}
	for _, h := range hosts {
		eventually(b, "three voters", func() bool { return len(h.voters()) == 3 })
	}
	for round := 0; b.Loop(); round++ {
		begin, at := cpu(b), time.Now()
		for i := range services {
			request := &swarmpb.CreateServiceRequest{NoResolveImage: true, Spec: &swarmpb.ServiceSpec{
				Name: fmt.Sprintf("s%d-%d", round, i),
				Task: &swarmpb.TaskSpec{
					Container: &swarmpb.ContainerSpec{Image: "simulated:v1"},
					Resources: &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 10_000_000, MemoryBytes: 16 << 20}},
				},
				Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: replicas}}},
			}}
			if _, err := m1.manager.Control().CreateService(b.Context(), request); err != nil {
				b.Fatal(err)
			}
		}
		for _, h := range hosts {
			awaitPlaced(b, h, (round+1)*services*replicas)
		}
		used := (cpu(b) - begin).Seconds()
		b.ReportMetric(services*replicas/used, "tasks/cpu-s")
		b.ReportMetric(time.Since(at).Seconds(), "s")
	}
}

// awaitPlaced waits until so many tasks have a node, as this manager has it.
func awaitPlaced(b *testing.B, h *host, want int) {
	b.Helper()
	for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		placed, view := 0, h.manager.Store().View()
		for service := range view.Services() {
			placed += view.TaskCountIn(service.GetId(), swarmpb.TaskState_TASK_STATE_ASSIGNED)
		}
		if placed >= want {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d tasks have a node", placed, want)
		}
	}
}

// nodeRows are those of a node that looks ready.
func nodeRows(id string) []*swarmpb.Write {
	node := &swarmpb.Node{Id: id, Role: workerRole, Spec: &swarmpb.NodeSpec{DesiredRole: workerRole, Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE}}
	status := &swarmpb.NodeStatus{NodeId: id, State: swarmpb.NodeState_NODE_STATE_READY, Address: "127.0.0.1", Description: &swarmpb.NodeDescription{
		Hostname: id, Platform: &swarmpb.Platform{Os: "linux", Architecture: "amd64"},
		Resources: &swarmpb.Resources{NanoCpus: 64_000_000_000, MemoryBytes: 256 << 30},
	}}
	return []*swarmpb.Write{
		{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}}},
		{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}}}},
	}
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
