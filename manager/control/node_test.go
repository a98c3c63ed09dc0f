package control

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	roleWorker   = swarmpb.NodeRole_NODE_ROLE_WORKER
	roleManager  = swarmpb.NodeRole_NODE_ROLE_MANAGER
	stateReady   = swarmpb.NodeState_NODE_STATE_READY
	stateDown    = swarmpb.NodeState_NODE_STATE_DOWN
	stateUnknown = swarmpb.NodeState_NODE_STATE_UNKNOWN
)

func TestLookup_AllWays(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "twin", roleWorker, stateReady)
	w.node(nodeA2, "twin", roleWorker, stateReady)
	w.node(nodeB, "solo", roleWorker, stateReady)
	for _, tc := range []struct {
		ref, id string
		code    wire.Code
		part    string
	}{
		{"self", self, 0, ""},
		{nodeA, nodeA, 0, ""},
		{"solo", nodeB, 0, ""},
		{nodeA[:24], nodeA, 0, ""},
		{"twin", "", wire.CodeInvalid, "2 nodes have this hostname"},
		{"000000000000000000000na", "", wire.CodeInvalid, "2 nodes have this ID prefix"},
		{"nope", "", wire.CodeNotFound, "node ls"},
		{"", "", wire.CodeInvalid, "node ls"},
		{strings.Repeat("x", 1000), "", wire.CodeInvalid, "longer"},
	} {
		r, err := w.server.GetNode(ctx, &swarmpb.GetNodeRequest{Node: tc.ref})
		if tc.code != 0 {
			expectError(t, err, tc.code, tc.part)
		} else if err != nil || r.GetNode().GetNode().GetId() != tc.id {
			t.Errorf("%q: %v %v", tc.ref, r, err)
		}
	}
}

func TestListNodes_UsageBlockAndLeader(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	w.node(nodeB, "", roleWorker, stateUnknown)
	s := spec("web", "web:1", 1)
	s.Task.Resources = &swarmpb.ResourceRequirements{Reservations: &swarmpb.Resources{NanoCpus: 5e8, MemoryBytes: 64 << 20}}
	r, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	w.task(r.GetId(), 1, 1, nodeA)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Allocation{Allocation: &swarmpb.Allocation{Pool: "uplink", Address: "100.64.3.0/24", Owner: nodeA}}})
	list, err := w.server.ListNodes(ctx, nil)
	if err != nil || len(list.GetNodes()) != 3 {
		t.Fatalf("%v %v", list, err)
	}
	for _, info := range list.GetNodes() {
		switch info.GetNode().GetId() {
		case nodeA:
			if info.GetTasks() != 1 || info.GetReserved().GetNanoCpus() != 5e8 || info.GetUplinkBlock() != "100.64.3.0/24" || info.GetLeader() {
				t.Errorf("node a: %v", info)
			}
		case nodeB:
			if info.GetStatus().GetState() != stateUnknown {
				t.Errorf("node b: %v", info)
			}
		case self:
			if !info.GetLeader() {
				t.Error("the leader is not marked")
			}
		}
	}
}

func TestRemoveNode_WhichAndWhen(t *testing.T) {
	const manager2 = "000000000000000000000mgr2"
	for _, tc := range []struct {
		name  string
		setup func(w *world)
		ref   string
		force bool
		code  wire.Code
		part  string
	}{
		{name: "down", ref: "b"},
		{name: "ready", ref: "a", code: wire.CodeFailedPrecondition, part: "it is ready and not down"},
		{name: "ready, forced", ref: "a", force: true},
		{name: "never connected", ref: nodeA2, code: wire.CodeFailedPrecondition, part: "--force"},
		{name: "last manager", ref: "self", force: true, code: wire.CodeFailedPrecondition, part: "last manager"},
		{name: "self of two", setup: func(w *world) { w.node(manager2, "boss2", roleManager, stateDown) }, ref: "boss", force: true,
			code: wire.CodeFailedPrecondition, part: "swarmctl node demote boss"},
		{name: "another manager", setup: func(w *world) { w.node(manager2, "boss2", roleManager, stateDown) }, ref: "boss2", force: true,
			code: wire.CodeFailedPrecondition, part: "demote"},
		{name: "demoted and still in Raft", setup: func(w *world) { w.manager(manager2, "boss2", stateDown); w.desireRole(manager2, roleWorker) }, ref: "boss2", force: true,
			code: wire.CodeFailedPrecondition, part: "its demotion is under way"},
		{name: "demoted and down", setup: func(w *world) { w.node(manager2, "boss2", roleManager, stateDown); w.desireRole(manager2, roleWorker) }, ref: "boss2"},
		{name: "unknown", ref: "nope", code: wire.CodeNotFound, part: "nope"},
		{name: "back in that moment", ref: "b", setup: func(w *world) { w.before = func() { w.nodeState(nodeB, "b", stateReady) } },
			code: wire.CodeFailedPrecondition, part: "ready and not down"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.node(nodeA, "a", roleWorker, stateReady)
			w.node(nodeA2, "", roleWorker, stateUnknown)
			w.node(nodeB, "b", roleWorker, stateDown)
			if tc.setup != nil {
				tc.setup(w)
			}
			before := w.view().NodeCount()
			r, err := w.server.RemoveNode(ctx, &swarmpb.RemoveNodeRequest{Node: tc.ref, Force: tc.force})
			if tc.code != 0 {
				expectError(t, err, tc.code, tc.part)
				if w.view().NodeCount() != before || len(w.closed) != 0 {
					t.Error("a refused removal did something")
				}
				return
			}
			if err != nil || w.view().Node(r.GetId()) != nil || w.view().NodeStatus(r.GetId()) != nil || !slices.Equal(w.closed, []string{r.GetId()}) {
				t.Errorf("%v %v, closed %v", r, err, w.closed)
			}
		})
	}
}

func TestRemoveNode_AnswerWasLost_RepeatedRequestSucceeds(t *testing.T) {
	w := newWorld(t)
	w.node(nodeB, "b", roleWorker, stateDown)
	for range 2 {
		if _, err := w.server.RemoveNode(ctx, &swarmpb.RemoveNodeRequest{Node: "b", RequestId: "r1"}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.server.RemoveNode(ctx, &swarmpb.RemoveNodeRequest{Node: "b", RequestId: "r2"})
	expectError(t, err, wire.CodeNotFound, "node ls")
}

func TestNodes_PartInRaft_IsShown(t *testing.T) {
	w := newWorld(t)
	w.manager(nodeA, "a", stateDown)
	w.manager(nodeB, "b", stateReady)
	w.node(nodeA2, "worker", roleWorker, stateReady)
	w.members[2].Voter = false
	list, err := w.server.ListNodes(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, n := range list.GetNodes() {
		m := n.GetManager()
		got[n.GetNode().GetId()] = fmt.Sprint(m != nil, m.GetAddress(), m.GetLeader(), m.GetVoter(), m.GetReachable())
	}
	want := map[string]string{
		self: fmt.Sprint(true, "10.0.0.1:2377", true, true, true), nodeA: fmt.Sprint(true, "a:2377", false, true, false),
		nodeB: fmt.Sprint(true, "b:2377", false, false, true), nodeA2: fmt.Sprint(false, "", false, false, false),
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	cluster, err := w.server.GetCluster(ctx, nil)
	if err != nil || cluster.GetManagers() != 3 || cluster.GetReachableManagers() != 1 {
		t.Errorf("%d managers, %d reachable, %v", cluster.GetManagers(), cluster.GetReachableManagers(), err)
	}
}

func TestCluster_CountsAndNoSecrets(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	id := w.create("web", 2)
	w.task(id, 1, 1, nodeA)
	w.status(&swarmpb.TaskStatus{TaskId: w.task(id, 2, 1, nodeA), State: swarmpb.TaskState_TASK_STATE_FAILED})
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Alarm{Alarm: &swarmpb.Alarm{Kind: "k", Object: "o"}}})
	r, err := w.server.GetCluster(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.GetNodes() != 2 || r.GetManagers() != 1 || r.GetServices() != 1 || r.GetTasks() != 1 || len(r.GetAlarms()) != 1 || r.GetLeader() != self {
		t.Errorf("cluster %v", r)
	}
	if text := r.String(); strings.Contains(text, "secret") || strings.Contains(text, "w0") || len(r.GetRootDigest()) != 64 {
		t.Errorf("cluster shows %s", text)
	}
}

func TestRotateJoinToken_OneRoleOnceARequest(t *testing.T) {
	w := newWorld(t)
	w.before = func() { // The CA writes the same row in that moment.
		cluster := swarmpb.Clone(w.view().Cluster())
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})
	}
	r, err := w.server.RotateJoinToken(ctx, &swarmpb.RotateJoinTokenRequest{Role: roleWorker, RequestId: "r1"})
	if err != nil || r.GetTokens().GetWorker() == "w0" || r.GetTokens().GetManager() != "m0" || r.GetManagerAddress() != "10.0.0.1:2377" {
		t.Fatalf("%v %v", r, err)
	}
	again, err := w.server.RotateJoinToken(ctx, &swarmpb.RotateJoinTokenRequest{Role: roleWorker, RequestId: "r1"})
	if err != nil || again.GetTokens().GetWorker() != r.GetTokens().GetWorker() {
		t.Errorf("repeated: %v %v", again, err)
	}
	tokens, err := w.server.GetJoinTokens(ctx, nil)
	if err != nil || tokens.GetTokens().GetWorker() != r.GetTokens().GetWorker() {
		t.Errorf("get: %v %v", tokens, err)
	}
	if w.view().Cluster().GetRootCa().GetKey() == nil {
		t.Error("rotating lost the root's key")
	}
	for _, role := range []swarmpb.NodeRole{0, 3, -1} {
		_, err := w.server.RotateJoinToken(ctx, &swarmpb.RotateJoinTokenRequest{Role: role})
		expectError(t, err, wire.CodeInvalid, "worker or manager")
	}
}
