package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// explained is web on three nodes of which one suits, with tasks that wait.
func explained(waiting int) *swarmpb.ExplainServiceResponse {
	r := &swarmpb.ExplainServiceResponse{ServiceId: webID, ServiceName: "web", TemplateVersion: 4, Nodes: []*swarmpb.NodeVerdict{
		{NodeId: n1ID, Hostname: "n1", Accepted: true, Detail: "suits", ServiceTasks: 1, Tasks: 7},
		{NodeId: n2ID, Hostname: "n2", Filter: "resources", Detail: "needs 2 CPUs, 0.5 of 4 free", ServiceTasks: 2, Tasks: 9},
		{NodeId: "node3000000000000000000n3", Filter: "constraint", Detail: "node.labels.disk==ssd: the node has \"hdd\x1b[2J\""},
		{NodeId: "node4000000000000000000n4", Hostname: "n4", Filter: "resources", Detail: "needs 2 CPUs, 0 of 4 free", Tasks: 4},
		{NodeId: "node5000000000000000000n5", Hostname: "n5", Accepted: true, Detail: "suits, but comes last: the service has failed here again and again of late"},
	}}
	for i := range waiting {
		t := task(fmt.Sprint("t", i), uint64(i+1), 1, running, pending, "")
		t.Since, t.Placement = before(time.Duration(i+1)*time.Minute), &swarmpb.TaskPlacement{Message: "no suitable node (insufficient resources on 2 nodes; scheduling constraints not satisfied on 1 node)"}
		if i == 1 {
			t.Placement.Message = "waits for a task of lower priority to stop"
		}
		r.Pending = append(r.Pending, t)
	}
	r.PendingTotal = uint64(waiting)
	return r
}

func TestExplain_EveryForm_ReadsAsBefore(t *testing.T) {
	f := start(t, false)
	f.control.explained = explained(2)
	lines := f.play(
		"service explain web", "service explain --refused web", "service explain --filter filter=resources --filter node=n2 web", "service explain --filter accepted=true web",
		"service explain --format json --filter node=node3 web", `service explain --format '{{.Accepted}}/{{.PendingTotal}}{{range .Nodes}} {{.Hostname}}:{{.Filter}}{{end}}' web`, "service explain --format '{{.Nope}}' web",
		"service explain", "service explain nope", "service explain --filter colour=red web", "service explain --filter accepted=yes web", "service explain --filter filter=memory web", "service explain --format table web",
	)
	f.control.nodes[0].NotAccepted = []string{"3 of licence", "engine label rack=7"}
	lines += f.play("service explain web", "service explain --filter node=n1 web")
	f.control.nodes[0].NotAccepted = nil
	f.control.explained = explained(0)
	lines += f.play("service explain --filter node=n1 web")
	f.control.explained = explained(8)
	f.control.explained.PendingTotal = 1234
	lines += f.play("service explain --filter node=n1 web")
	f.terminal, f.width = true, 60
	lines += f.play("service explain web")
	golden(t, "explain", lines)
}

func TestExplain_JSON_CountsAllNodesHoweverFewAreShown(t *testing.T) {
	f := start(t, false)
	f.control.explained = explained(1)
	o := f.run("service", "explain", "--refused", "--format", "json", "web")
	var e explanation
	if err := json.Unmarshal([]byte(o.stdout), &e); err != nil || e.Accepted != 2 || e.Refused["resources"] != 2 || len(e.Nodes) != 3 || len(e.Pending) != 1 {
		t.Errorf("%v %+v", err, e)
	}
}

func TestRebalance_EveryForm_ReadsAsBefore(t *testing.T) {
	f := start(t, false)
	move := func(task, from, to string, there, here uint32) *swarmpb.ProposedMove {
		return &swarmpb.ProposedMove{
			TaskId: task + "0000000000000000task", TaskName: task, ServiceName: task[:3], FromNodeId: from, FromHostname: "n1", ToNodeId: to, ToHostname: "n2", TasksFrom: there, TasksTo: here,
		}
	}
	f.control.rebalanced = &swarmpb.RebalanceClusterResponse{
		Moves: []*swarmpb.ProposedMove{move("web.3", n1ID, n2ID, 5, 0), move("api.1", n1ID, n2ID, 2, 0)}, LeftAlone: []string{"db: a replica is not up", "batch: it packs its tasks"},
	}
	lines := f.play("cluster rebalance --dry-run", "cluster rebalance", "cluster rebalance --dry-run --format json", "cluster rebalance --format '{{range .Moves}}{{.Task}} {{end}}'")
	f.control.rebalanced.Truncated = true
	lines += f.play("cluster rebalance --dry-run")
	f.control.rebalanced.Moves, f.control.rebalanced.Truncated = nil, false
	lines += f.play("cluster rebalance --dry-run")
	f.control.rebalanced.LeftAlone = nil
	lines += f.play("cluster rebalance", "cluster rebalance now", "cluster rebalance --format json")
	golden(t, "rebalance", lines)
	for i, dry := range []bool{true, false, true, false, true, true, false, false} {
		if r := f.control.rebalances[i]; r.DryRun != dry || r.RequestId == "" {
			t.Errorf("request %d: %v", i, r)
		}
	}
}

func TestCluster_InspectAndUpdate_ReadAsBefore(t *testing.T) {
	f := start(t, false)
	f.control.cluster.Meta = &swarmpb.Meta{Version: 3, CreatedAt: before(72 * time.Hour), UpdatedAt: before(time.Hour)}
	f.control.conflicts = 1
	golden(t, "cluster", f.play(
		"cluster inspect --pretty", "cluster update --no-rebalance --task-history-limit 2", "cluster inspect --pretty", "cluster update --no-rebalance", "cluster update --rebalance --cert-expiry 720h",
		"cluster update --default-addr-pool 172.20.0.0/14 --default-addr-pool 10.1.0.0/16 --default-addr-pool-mask-length 23", "cluster inspect",
		"cluster inspect -f '{{.Spec.TaskHistoryLimit}} {{.Spec.NoRebalance}} {{.Spec.NodeCertExpiry}}'",
		"cluster update", "cluster update --rebalance --no-rebalance", "cluster update --cert-expiry 1m", "cluster update --task-history-limit many", "cluster update now", "cluster inspect --pretty -f json", "cluster inspect now",
	))
	if n := len(f.control.settings); n != 4 {
		t.Errorf("%d updates", n)
	}
	if got := f.control.settings[0]; !got.NoRebalance || got.GetTaskHistoryLimit() != 2 || got.FabricPool != "100.64.0.0/10" {
		t.Errorf("%v", got)
	}
}

func TestInit_Settings_AreThoseOfTheCluster(t *testing.T) {
	f := start(t, false)
	if o := f.run("init", "--no-rebalance", "--gossip-key-rotation", "2h", "--task-history-limit", "0", "--cert-expiry", "24h"); o.code != 0 {
		t.Fatalf("%+v", o)
	}
	spec := f.local.init.Spec
	if !spec.NoRebalance || spec.GossipKeyRotation.AsDuration() != 2*time.Hour || spec.TaskHistoryLimit == nil || *spec.TaskHistoryLimit != 0 || spec.NodeCertExpiry.AsDuration() != 24*time.Hour {
		t.Errorf("%v", spec)
	}
	if f.run("init"); f.local.init.Spec.TaskHistoryLimit != nil || f.local.init.Spec.NodeCertExpiry != nil || f.local.init.Spec.GossipKeyRotation != nil {
		t.Errorf("nothing was said, and %v", f.local.init.Spec)
	}
}

// leaving is how far the drain of a node is.
func leaving(left, moving uint32, waits ...string) stage {
	return func(n *swarmpb.NodeInfo) error {
		n.Drain, n.Tasks = &swarmpb.NodeDrain{Left: left, Moving: moving, Waits: waits, Since: before(0)}, left
		return nil
	}
}

func TestDrain_EveryCourse_ReadsAsBefore(t *testing.T) {
	const line = "node update --availability drain " + n2ID
	still := func(*swarmpb.NodeInfo) error { return nil } // as it is read before the change
	held := "web: 3 tasks wait: 1 may be down or on the way (max unavailable), and 1 is: web.3 is starting"
	whole := []stage{still, leaving(5, 0), leaving(5, 2, held), leaving(3, 1, strings.Replace(held, "3 tasks", "2 tasks", 1), "and 4 more services"), func(*swarmpb.NodeInfo) error { return wire.Errorf(wire.CodeUnavailable, "no leader") }, leaving(1, 1), leaving(0, 0)}
	var got strings.Builder
	for _, scene := range []struct {
		title, line string
		stages      []stage
	}{
		{"drained", line, whole},
		{"quiet", line + " -q", whole},
		{"detached", line + " -d", nil},
		{"with labels, and what it says of itself", line + " --label-add zone=a --accept", []stage{still, leaving(0, 0)}},
		{"nothing was there", line, []stage{leaving(0, 0), leaving(0, 0)}},
		{"it does not end", line + " --timeout 20ms", []stage{still, leaving(3, 1, held)}},
		{"active again meanwhile", line, []stage{still, leaving(3, 1), func(n *swarmpb.NodeInfo) error {
			n.Node.Spec.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE
			return nil
		}}},
		{"removed meanwhile", line, []stage{still, leaving(3, 1), func(*swarmpb.NodeInfo) error { return wire.Errorf(wire.CodeNotFound, "node n2: not found") }}},
		{"it goes down", line, []stage{still, leaving(3, 1), func(n *swarmpb.NodeInfo) error {
			n.Status.State = swarmpb.NodeState_NODE_STATE_DOWN
			return nil
		}}},
		{"refused", line, []stage{still, leaving(3, 1), func(*swarmpb.NodeInfo) error { return wire.Errorf(wire.CodeInternal, "no disk") }}},
	} {
		for _, terminal := range []bool{false, true} {
			f := start(t, false)
			f.ticking()
			f.control.nodes[0].Status.State = swarmpb.NodeState_NODE_STATE_READY
			f.control.stages = map[string][]stage{n2ID: append([]stage{}, scene.stages...)}
			got.WriteString("== " + scene.title + " ==\n")
			if f.terminal = terminal; terminal {
				f.width, f.height = 70, 20
			}
			got.WriteString(f.play(scene.line))
		}
	}
	golden(t, "drain", got.String())
}

func TestDrain_Interrupted_SaysThatItGoesOn(t *testing.T) {
	f := start(t, false)
	f.ticking()
	f.control.nodes[0].Status.State = swarmpb.NodeState_NODE_STATE_READY
	f.control.stages = map[string][]stage{n2ID: {
		func(*swarmpb.NodeInfo) error { return nil }, leaving(3, 1), func(*swarmpb.NodeInfo) error { f.cancel(); return nil },
	}}
	o := f.run("node", "update", "--availability", "drain", n2ID)
	if want := "swarmctl: interrupted; the drain goes on, see `swarmctl node inspect --pretty n2`\n"; o.code != exitInterrupted || o.stderr != want {
		t.Errorf("%+v", o)
	}
}

func TestNode_ResourcesDrainAndWhatIsNotAccepted_AreShown(t *testing.T) {
	f := start(t, false)
	n := f.control.nodes[0]
	d := n.Status.Description
	d.Resources.Generic = []*swarmpb.GenericResource{{Kind: "licence", Count: 5}, {Kind: "nvidia.com/gpu", Instances: []string{"0", "1", "2"}}}
	d.Engine.Labels = map[string]string{"rack": "7", "zone": "b"}
	n.Node.Spec.Accepted = &swarmpb.NodeFacts{Hostname: "n2", EngineLabels: map[string]string{"rack": "7", "zone": "a"}}
	n.Reserved = &swarmpb.Resources{NanoCpus: 25e8, MemoryBytes: 9 << 30, Generic: []*swarmpb.GenericResource{{Kind: "licence", Count: 2}, {Kind: "nvidia.com/gpu", Instances: []string{"1"}}}}
	n.Free = &swarmpb.Resources{NanoCpus: 15e8, MemoryBytes: -1 << 30, Generic: []*swarmpb.GenericResource{{Kind: "licence", Count: 1}, {Kind: "nvidia.com/gpu", Instances: []string{"2", "0"}}}}
	n.NotAccepted = []string{"5 of licence, 3 are taken", `engine label zone=b, "a" is taken`}
	n.Status.State, n.Status.Message = swarmpb.NodeState_NODE_STATE_READY, ""
	n.Node.Spec.Availability = drained
	n.Drain = &swarmpb.NodeDrain{Left: 3, Moving: 1, Waits: []string{"web: its budget of 1 is used by web.3", "api.2: no suitable node"}, Since: before(4 * time.Minute)}
	lines := f.play("node inspect --pretty n2", "node ls", "node ls --format '{{.Hostname}} {{.Draining}} {{.DrainLeft}} {{len .NotAccepted}}'")
	n.Drain = &swarmpb.NodeDrain{Since: before(time.Hour)}
	lines += f.play("node update --accept "+n2ID, "node inspect --pretty n2", "node ls")
	golden(t, "node_resources", lines)
}

func TestServicePs_TasksThatMoved_SayWhereAndWhy(t *testing.T) {
	f := start(t, false)
	for i, change := range []func(*swarmpb.TaskInfo){
		func(t *swarmpb.TaskInfo) {
			t.Message, t.Task.Move, t.Task.Replaces = "moved from n2: the node is drained; started", swarmpb.MoveReason_MOVE_REASON_DRAIN, "web220000000000000000task"
			t.Placement.Generic = []*swarmpb.GenericResource{{Kind: "licence", Count: 2}, {Kind: "nvidia.com/gpu", Count: 2, Instances: []string{"0", "3"}}}
		},
		func(t *swarmpb.TaskInfo) {
			t.Error, t.Message, t.Status.State = "", "moved to n1: the node is drained; stopped", shutdown
		},
		func(t *swarmpb.TaskInfo) {
			t.Error, t.Message = "", "gave way to db.1 of higher priority; stopped"
		},
		func(t *swarmpb.TaskInfo) {
			t.Error = "no suitable node (insufficient resources on 2 nodes); `swarmctl service explain web` tells it node by node"
		},
	} {
		change(f.control.tasks[i])
	}
	golden(t, "ps_moved", f.play("service ps web", "service ps --format '{{.Name}} {{.Move}}' web", "task inspect --pretty web.1"))
}
