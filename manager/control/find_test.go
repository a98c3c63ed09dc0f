package control

import (
	"context"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestFind_ATaskOrANodeInPlaceOfAService_IsToldApart(t *testing.T) {
	w := newWorld(t)
	w.node("n1", "host-1", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_READY)
	service := w.create("web", 1)
	task := w.task(service, 1, 1, "")
	for ref, want := range map[string]string{
		"web.1":  "it is a task of service \"web\": `swarmctl task inspect web.1`",
		task:     "it is a task of service \"web\"",
		"host-1": "it is a node: `swarmctl node ps host-1`",
		"n1":     "it is a node",
		"nope":   "`swarmctl service ls`",
		"web.2":  "`swarmctl service ls`",
	} {
		_, err := w.server.ListTasks(context.Background(), &swarmpb.ListTasksRequest{Service: ref})
		expectError(t, err, wire.CodeNotFound, "service \""+ref+"\": not found", want)
	}
	if s, x, err := Find(w.view(), "web.1"); err != nil || x.GetId() != task || s.GetId() != service {
		t.Errorf("%v, %v, %v", s, x, err)
	}
	_, _, err := Find(w.view(), "host-1")
	expectError(t, err, wire.CodeNotFound, "no such service and no such task", "it is a node: `swarmctl node ps host-1`")
	_, _, err = Find(w.view(), "nope")
	expectError(t, err, wire.CodeNotFound, "no such service and no such task", "`swarmctl task ls`")
}
