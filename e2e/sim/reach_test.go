package sim

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/allocator"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const (
	endpointActive = swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE
	// settledNode is for how long a node must have been READY to be one that the leader has waited for.
	settledNode = 15 * time.Second
)

// reachable are the endpoints that a node must hold, as far as the view says: of services that publish ports, and of
// those that share a network with one of its tasks.
func reachable(v *store.View, nodeID string) map[string]swarmpb.EndpointState {
	mine := map[string]bool{}
	for task := range v.TasksOn(nodeID) {
		if !v.Observed(task.Id).Ended() {
			for _, n := range v.Template(task.ServiceId, task.TemplateVersion).GetSpec().GetNetworks() {
				mine[n.Network] = true
			}
		}
	}
	out := map[string]swarmpb.EndpointState{}
	for service := range v.Services() {
		reached := len(v.ServiceEndpoint(service.Id).GetPorts()) > 0
		for t := range v.TemplatesOf(service.Id) {
			reached = reached || slices.ContainsFunc(t.GetSpec().GetNetworks(), func(n *swarmpb.NetworkAttachment) bool { return mine[n.Network] })
		}
		if !reached {
			continue
		}
		for task := range v.TasksOf(service.Id) {
			node, observed := v.NodeID(task.Id), v.Observed(task.Id)
			switch {
			case node == "" || observed.Ended() || v.NodeStatus(node).GetState() == swarmpb.NodeState_NODE_STATE_DOWN:
			case observed != swarmpb.TaskState_TASK_STATE_RUNNING:
				out[task.Id] = swarmpb.EndpointState_ENDPOINT_STATE_STARTING
			case task.DesiredState == swarmpb.TaskState_TASK_STATE_RUNNING && !task.Draining:
				out[task.Id] = endpointActive
			default:
				out[task.Id] = swarmpb.EndpointState_ENDPOINT_STATE_DRAINING
			}
		}
	}
	return out
}

// differs says in what a node's table is not as the view says.
func (n *fakeNet) differs(v *store.View, nodeID string) string {
	held := map[string]swarmpb.EndpointState{}
	for id, e := range n.Endpoints() {
		held[id] = e.State
		if rows := v.TaskRows(id); !proto.Equal(e, &swarmpb.Endpoint{TaskId: id, ServiceId: rows.Task.GetServiceId(), Slot: rows.Task.GetSlot(),
			NodeId: rows.Placement.GetNodeId(), State: e.State, Address: rows.Status.GetAddress(), Networks: rows.Addresses.GetNetworks(),
			Set: rows.Task.GetTemplateVersion()}) {
			return fmt.Sprintf("holds endpoint %v", e)
		}
	}
	if want := reachable(v, nodeID); !maps.Equal(held, want) {
		return fmt.Sprintf("holds endpoints %v, want %v", held, want)
	}
	numbers := map[uint32]string{}
	peers, known := n.Peers(), 0
	for node := range v.Nodes() {
		if v.NodeStatus(node.Id).GetAddress() == "" {
			continue // it was never seen
		}
		known++
		block := ""
		for a := range v.AllocationsOf(node.Id) {
			if a.Pool == allocator.UplinkPool {
				block = a.Address
			}
		}
		peer := peers[node.Id]
		if block == "" || peer.GetUplinkBlock() != block || peer.GetAddress() != v.NodeStatus(node.Id).GetAddress() || peer.GetNumber() == 0 {
			return fmt.Sprintf("holds peer %v of node %s with block %s", peer, node.Id, block)
		}
		if other, taken := numbers[peer.Number]; taken {
			return fmt.Sprintf("has number %d for %s and %s", peer.Number, other, node.Id)
		}
		numbers[peer.Number] = node.Id
	}
	if len(peers) != known {
		return fmt.Sprintf("holds %d peers of %d nodes", len(peers), known)
	}
	return ""
}

// checkDrained: when a task is noted as drained in time, no node that has been READY for a while sends it connections.
// c.mu of the checks is held.
func (w *world) checkDrained(v *store.View, task string) {
	for _, m := range w.machines {
		status := v.NodeStatus(m.node())
		if status.GetState() != swarmpb.NodeState_NODE_STATE_READY || time.Since(time.Unix(0, status.GetSince())) < settledNode {
			continue
		}
		if m.net.Endpoints()[task].GetState() == endpointActive {
			w.checks.add("task %s is noted as drained while %s sends it connections", task, m.name)
		}
	}
}

// TestDrain_TasksStop_NobodySendsThemConnections: scaled, updated, and moved from a node, no task is stopped before all
// nodes have taken it from their tables and its own has been told so.
func TestDrain_TasksStop_NobodySendsThemConnections(t *testing.T) {
	inCluster(t, []string{"n1", "n2", "n3"}, func(t *testing.T, c *cluster) {
		if _, err := c.api.CreateNetwork(context.Background(), &swarmpb.CreateNetworkRequest{Spec: &swarmpb.NetworkSpec{Name: "back"}}); err != nil {
			t.Fatal(err)
		}
		c.create(attach(onEveryNode(spec("web", 6)), "back"))
		c.create(attach(spec("api", 3), "back"))
		c.awaitRunning(9, 20*time.Second)
		for name, h := range c.hosts {
			if why := h.net.differs(c.view(), nodeID(name)); why != "" {
				t.Errorf("%s %s", name, why)
			}
		}
		var mu sync.Mutex
		stopped := map[string]bool{}
		before := func(_ context.Context, op runtimetest.Op, id string) error {
			if op != runtimetest.OpStop {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if stopped[id] || c.view().Task(id).GetDesiredState() != swarmpb.TaskState_TASK_STATE_SHUTDOWN {
				return nil // of a service that is removed: nobody is to reach it any more
			}
			stopped[id] = true
			if c.view().Status(id).GetDrainedAt() == 0 {
				t.Errorf("task %s is stopped and was not noted as drained", id)
			}
			for name, h := range c.hosts {
				if h.net.Endpoints()[id].GetState() == endpointActive {
					t.Errorf("task %s is stopped while %s sends it connections", id, name)
				}
			}
			return nil
		}
		for _, h := range c.hosts {
			h.runtime.SetBefore(before)
		}
		c.update("web", func(s *swarmpb.ServiceSpec) { s.Mode.GetReplicated().Replicas = 4 })
		c.awaitRunning(7, 20*time.Second)
		c.update("web", func(s *swarmpb.ServiceSpec) { s.Task.Container.Image = "nginx:2" })
		time.Sleep(time.Minute)
		c.available("n1", drain)
		time.Sleep(30 * time.Second)
		c.awaitRunning(7, 20*time.Second)
		c.remove("api")
		c.awaitRunning(4, 20*time.Second)
		mu.Lock()
		defer mu.Unlock()
		if n := len(stopped); n < 2+4 {
			t.Errorf("only %d tasks were stopped", n)
		}
		if got := c.sessions.Drains(); got.Late != 0 || got.Noted < uint64(len(stopped)) {
			t.Errorf("of %d tasks that were stopped, drained are %+v", len(stopped), got)
		}
		for name, h := range c.hosts {
			if why := h.net.differs(c.view(), nodeID(name)); why != "" {
				t.Errorf("%s %s", name, why)
			}
		}
	})
}
