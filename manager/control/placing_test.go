package control

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// fakePlacing answers as it is told to.
type fakePlacing struct {
	verdicts []*swarmpb.NodeVerdict
	moves    int
	alone    int
	err      error
	held     map[string]string // by service ID
	asked    int               // Held
	free     *swarmpb.Resources
}

func (f *fakePlacing) Explain(*store.View, string) ([]*swarmpb.NodeVerdict, error) {
	return f.verdicts, f.err
}

func (f *fakePlacing) Rebalance(_ *store.View, most int) (moves []*swarmpb.ProposedMove, more bool, alone []string) {
	for i := range min(f.moves, most) {
		moves = append(moves, &swarmpb.ProposedMove{TaskId: fmt.Sprint(i)})
	}
	for i := range f.alone {
		alone = append(alone, fmt.Sprintf("s%d: it is not to be", i))
	}
	return moves, f.moves > most, alone
}

func (f *fakePlacing) Account(view *store.View, node *swarmpb.Node) (reserved, free *swarmpb.Resources, notAccepted []string) {
	usage := view.Usage(node.GetId())
	return &swarmpb.Resources{NanoCpus: usage.NanoCPUs, MemoryBytes: usage.MemoryBytes}, f.free, []string{"16 CPUs, 8 are taken"}
}

func (f *fakePlacing) Held(_ *store.View, serviceID string) string {
	f.asked++
	return f.held[serviceID]
}

func TestExplainService_TasksWait_EachNodeByHostnameAndTheFirstOfThem(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 120)
	for slot := range uint64(120) {
		w.place(w.task(id, slot+1, 1, ""), "", "no suitable node (insufficient resources on 2 nodes)")
	}
	w.placing.verdicts = []*swarmpb.NodeVerdict{{NodeId: "3", Hostname: "b"}, {NodeId: "2", Hostname: "a"}, {NodeId: "1", Hostname: "b", Accepted: true}}
	r, err := w.server.ExplainService(ctx, &swarmpb.ExplainServiceRequest{Service: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if r.GetServiceId() != id || r.GetServiceName() != "web" || r.GetTemplateVersion() != 1 {
		t.Errorf("of %s %s, template %d", r.GetServiceId(), r.GetServiceName(), r.GetTemplateVersion())
	}
	var order []string
	for _, v := range r.GetNodes() {
		order = append(order, v.GetNodeId())
	}
	if got := strings.Join(order, " "); got != "2 1 3" {
		t.Errorf("nodes %s, want them by hostname, then ID", got)
	}
	if len(r.GetPending()) != maxPending || r.GetPendingTotal() != 120 {
		t.Errorf("%d of %d pending tasks; want %d of 120", len(r.GetPending()), r.GetPendingTotal(), maxPending)
	}
	if p := r.GetPending()[0]; p.GetName() != "web.1" || !strings.HasPrefix(p.GetError(), "no suitable node (insufficient") {
		t.Errorf("first of them %s: %s", p.GetName(), p.GetError())
	}
}

func TestExplainService_Job_IsExplained(t *testing.T) {
	w := newWorld(t)
	job := spec("import", "web:1", 0)
	job.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_ReplicatedJob{ReplicatedJob: &swarmpb.ReplicatedJobMode{Total: 3}}}
	made, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: job})
	if err != nil {
		t.Fatal(err)
	}
	id := swarmpb.TaskID(made.GetId(), 1, "", 1)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: id, ServiceId: made.GetId(), Slot: 1, Attempt: 1, Run: 1, TemplateVersion: 1,
		DesiredState: swarmpb.TaskState_TASK_STATE_COMPLETE}}})
	r, err := w.server.ExplainService(ctx, &swarmpb.ExplainServiceRequest{Service: "import"})
	if err != nil || r.GetPendingTotal() != 1 {
		t.Errorf("%d pending, error %v", r.GetPendingTotal(), err)
	}
}

func TestExplainService_NothingToExplain_SaysWhyWithTheObject(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	w.create("web", 1)
	w.network(&swarmpb.NetworkSpec{Name: "net", Attachable: true})
	if _, err := w.server.ConnectNetwork(ctx, &swarmpb.ConnectNetworkRequest{Network: "net", Node: "a", Name: "pet", Guest: &swarmpb.Guest{Pid: 7}}); err != nil {
		t.Fatal(err)
	}
	w.task(w.create("gone", 1), 1, 1, nodeA)
	if _, err := w.server.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: "gone"}); err != nil {
		t.Fatal(err)
	}
	w.placing.err = errors.New("constraint node.unknown==x: no such attribute")
	for ref, want := range map[string]struct {
		code  wire.Code
		parts []string
	}{
		"wbe":     {wire.CodeNotFound, []string{`service "wbe": not found`}},
		"net/pet": {wire.CodeFailedPrecondition, []string{`service "net/pet"`, "outside of services", "on node a", "swarmctl network inspect"}},
		"gone":    {wire.CodeFailedPrecondition, []string{`service "gone"`, "being removed"}},
		"web":     {wire.CodeFailedPrecondition, []string{`service "web"`, "constraint node.unknown==x"}},
	} {
		_, err := w.server.ExplainService(ctx, &swarmpb.ExplainServiceRequest{Service: ref})
		expectError(t, err, want.code, want.parts...)
	}
}

func TestRebalanceCluster_DryRun_TellsAndWritesNothing(t *testing.T) {
	w := newWorld(t)
	w.placing.moves, w.placing.alone = maxMoves+5, maxLeftAlone+5
	r, err := w.server.RebalanceCluster(ctx, &swarmpb.RebalanceClusterRequest{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetMoves()) != maxMoves || !r.GetTruncated() || len(r.GetLeftAlone()) != maxLeftAlone {
		t.Errorf("%d moves, truncated %t, %d left alone", len(r.GetMoves()), r.GetTruncated(), len(r.GetLeftAlone()))
	}
	if w.proposes != 0 || w.view().Cluster().GetRebalanceAt() != 0 {
		t.Errorf("%d proposals, rebalance at %d", w.proposes, w.view().Cluster().GetRebalanceAt())
	}
	w.placing.moves = maxMoves
	if r, err = w.server.RebalanceCluster(ctx, &swarmpb.RebalanceClusterRequest{DryRun: true}); err != nil || r.GetTruncated() {
		t.Errorf("truncated %t, error %v: all were told", r.GetTruncated(), err)
	}
}

func TestRebalanceCluster_Asked_IsNotedOnceARequest(t *testing.T) {
	w := newWorld(t)
	w.placing.moves = 2
	rebalance := func(request string) int64 {
		r, err := w.server.RebalanceCluster(ctx, &swarmpb.RebalanceClusterRequest{RequestId: request})
		if err != nil || len(r.GetMoves()) != 2 {
			t.Fatalf("%d moves, error %v", len(r.GetMoves()), err)
		}
		return w.view().Cluster().GetRebalanceAt()
	}
	first := rebalance("r1")
	if again := rebalance("r1"); first == 0 || again != first {
		t.Errorf("asked at %d, and the same request again at %d", first, again)
	}
	w.before = func() { // a join token that rotates at the same time
		cluster := swarmpb.Clone(w.view().Cluster())
		cluster.JoinTokens = &swarmpb.JoinTokens{Worker: "w1"}
		cluster.RebalanceAt = 1 << 62 // by a clock that was wrong
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})
	}
	second := rebalance("r2")
	if second != 1<<62+1 || w.view().Cluster().GetJoinTokens().GetWorker() != "w1" {
		t.Errorf("asked at %d; want a later time than %d, and the other's write kept", second, int64(1)<<62)
	}
}

func TestNodeInfo_Drained_ProgressAndWhatWaits(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	w.node(nodeB, "b", roleWorker, stateReady)
	web, db, batch := w.create("web", 3), w.create("db", 1), w.create("batch", 2)
	if r, err := w.server.GetNode(ctx, &swarmpb.GetNodeRequest{Node: "a"}); err != nil || r.GetNode().GetDrain() != nil {
		t.Fatalf("drain %v of a node that takes tasks, error %v", r.GetNode().GetDrain(), err)
	}
	running := func(id string) string {
		w.status(&swarmpb.TaskStatus{TaskId: id, State: swarmpb.TaskState_TASK_STATE_RUNNING, At: 1})
		return id
	}
	moving := running(w.task(web, 1, 1, nodeA))
	running(w.task(web, 2, 1, nodeA))
	running(w.task(web, 3, 1, nodeA))
	stuck := running(w.task(db, 1, 1, nodeA))
	stopping := running(w.task(batch, 1, 1, nodeA))
	ended := w.task(batch, 2, 1, nodeA)
	w.status(&swarmpb.TaskStatus{TaskId: ended, State: swarmpb.TaskState_TASK_STATE_FAILED, At: 1})
	w.desire(stopping, stShutdown)
	w.heir(moving, swarmpb.MoveReason_MOVE_REASON_DRAIN, nodeB)
	w.place(w.heir(stuck, swarmpb.MoveReason_MOVE_REASON_DRAIN, ""), "", "no suitable node")
	w.placing.held = map[string]string{web: "web: 1 of 3 replicas are down or moving, 1 may be (--max-unavailable)"}

	node := w.view().Node(nodeA)
	r, err := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "a", Version: node.GetMeta().GetVersion(),
		Spec: &swarmpb.NodeSpec{Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN}})
	if err != nil {
		t.Fatal(err)
	}
	want := &swarmpb.NodeDrain{Left: 5, Moving: 2, Since: w.view().Node(nodeA).GetAvailabilityChangedAt(),
		Waits: []string{"db.1: no suitable node", "web: 1 of 3 replicas are down or moving, 1 may be (--max-unavailable)"}}
	if got := r.GetNode().GetDrain(); !proto.Equal(got, want) || got.GetSince() == 0 {
		t.Errorf("drain %v,\n want %v", got, want)
	}
	if w.placing.asked != 1 {
		t.Errorf("service web was looked at %d times", w.placing.asked)
	}
	since := w.view().Node(nodeA).GetAvailabilityChangedAt()
	if _, err := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{
		Availability: swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN, Labels: map[string]string{"rack": "3"}}}); err != nil {
		t.Fatal(err)
	}
	if now := w.view().Node(nodeA).GetAvailabilityChangedAt(); now != since {
		t.Errorf("a new label made the drain begin at %d, it began at %d", now, since)
	}
}

// However many nodes are drained, a service is looked at once an answer.
func TestListNodes_ManyAreDrained_LooksAtEachServiceOnce(t *testing.T) {
	w := newWorld(t)
	web := w.create("web", 20)
	w.placing.held = map[string]string{web: "web: 5 tasks wait"}
	for i := range uint64(10) {
		id := fmt.Sprintf("%025d", i)
		w.node(id, fmt.Sprint("n", i), roleWorker, stateReady)
		w.availability(id, swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN)
		w.task(web, 2*i+1, 1, id)
		w.task(web, 2*i+2, 1, id)
	}
	r, err := w.server.ListNodes(ctx, &swarmpb.ListNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	drained := 0
	for _, node := range r.GetNodes() {
		if node.GetDrain().GetLeft() == 2 && len(node.GetDrain().GetWaits()) == 1 {
			drained++
		}
	}
	if drained != 10 || w.placing.asked != 1 {
		t.Errorf("%d nodes say what waits, the service was looked at %d times", drained, w.placing.asked)
	}
}

func TestLines_MoreThanFit_CountTheRest(t *testing.T) {
	of := map[string]string{}
	for i := range maxWaits + 3 {
		of[fmt.Sprint(i)] = fmt.Sprintf("s%02d: waits", i)
	}
	got := lines(of, maxWaits)
	if len(got) != maxWaits || got[0] != "s00: waits" || got[maxWaits-1] != "and 4 more services" {
		t.Errorf("%d lines: %q", len(got), got)
	}
	delete(of, "0")
	delete(of, "1")
	delete(of, "2")
	if got := lines(of, maxWaits); len(got) != maxWaits || got[maxWaits-1] != "s18: waits" {
		t.Errorf("%d lines: %q", len(got), got)
	}
}

func TestUpdateNode_Accept_TakesWhatTheNodeSaysNow(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, swarmpb.NodeState_NODE_STATE_UNKNOWN)
	accept := func(spec *swarmpb.NodeSpec) (*swarmpb.UpdateNodeResponse, error) {
		return w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: nodeA, Spec: spec, Accept: true})
	}
	_, err := accept(&swarmpb.NodeSpec{})
	expectError(t, err, wire.CodeFailedPrecondition, "node "+nodeA, "never connected")

	facts := &swarmpb.NodeFacts{Hostname: "a", Platform: &swarmpb.Platform{Os: "linux", Architecture: "arm64"},
		Resources:    &swarmpb.Resources{NanoCpus: 8e9, MemoryBytes: 1 << 34, Generic: []*swarmpb.GenericResource{{Kind: "gpu", Instances: []string{"g0", "g1"}}}},
		EngineLabels: map[string]string{"tier": "fast"}}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: nodeA, State: stateReady, Description: &swarmpb.NodeDescription{
		Hostname: "a", Platform: facts.GetPlatform(), Resources: facts.GetResources(), Engine: &swarmpb.EngineDescription{Version: "1", Labels: facts.GetEngineLabels()}}}}})
	r, err := accept(&swarmpb.NodeSpec{Labels: map[string]string{"rack": "3"}})
	if err != nil {
		t.Fatal(err)
	}
	spec := w.view().Node(nodeA).GetSpec()
	if !proto.Equal(spec.GetAccepted(), facts) || spec.GetLabels()["rack"] != "3" {
		t.Errorf("spec %v, want %v accepted", spec, facts)
	}
	if got := r.GetNode().GetNotAccepted(); len(got) != 1 {
		t.Errorf("not accepted %q: the answer does not say", got)
	}

	// A spec without it leaves it as it is, and one with something else is refused.
	if _, err := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{}}); err != nil {
		t.Fatal(err)
	}
	if got := w.view().Node(nodeA).GetSpec().GetAccepted(); !proto.Equal(got, facts) {
		t.Errorf("an update of something else left %v accepted", got)
	}
	_, err = w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "a", Spec: &swarmpb.NodeSpec{Accepted: &swarmpb.NodeFacts{Hostname: "b"}}})
	expectError(t, err, wire.CodeInvalid, "node a", "node update --accept a")
}
