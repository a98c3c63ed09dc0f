package control

import (
	"context"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestGetTask_NodesNetworkDoesNotWork_TasksThatAreReachedSaySo(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	plain := w.create("plain", 1)
	published := spec("web", "web:1", 2)
	published.Endpoint = &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080, Protocol: swarmpb.Protocol_PROTOCOL_TCP}}}
	r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: published})
	if err != nil {
		t.Fatal(err)
	}
	reached, waits, alone := w.task(r.GetId(), 1, 1, nodeA), w.task(r.GetId(), 2, 1, nodeA), w.task(plain, 1, 1, nodeA)
	for _, id := range []string{reached, alone} {
		w.status(&swarmpb.TaskStatus{TaskId: id, State: stRunning, At: 42})
	}
	want := func(id, text string) {
		t.Helper()
		got, err := w.server.GetTask(ctx, &swarmpb.GetTaskRequest{Task: id})
		if err != nil || got.GetTask().GetError() != text {
			t.Errorf("%s: error %q, %v; want %q", got.GetTask().GetName(), got.GetTask().GetError(), err, text)
		}
	}
	want(reached, "")
	w.describe(nodeA, &swarmpb.NodeNetwork{Problems: []string{"kernel vxlan: not supported", "another"}})
	want(reached, "network of node a: kernel vxlan: not supported (and 1 more: swarmctl node inspect)")
	want(waits, "")
	want(alone, "")
	w.status(&swarmpb.TaskStatus{TaskId: reached, State: stRunning, At: 43, Error: "its own"})
	want(reached, "its own")
	w.status(&swarmpb.TaskStatus{TaskId: reached, State: stRunning, At: 44})
	w.describe(nodeA, &swarmpb.NodeNetwork{})
	want(reached, "")
}
