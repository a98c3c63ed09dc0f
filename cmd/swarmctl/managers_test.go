package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// ticking lets waits look again at once; the clock stands.
func (f *fake) ticking() {
	done := make(chan struct{})
	f.t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case f.clock.tick <- time.Time{}:
			case <-done:
				return
			}
		}
	}()
}

type stage = func(*swarmpb.NodeInfo) error

// promotion is what a worker goes through; each stage is seen twice.
func promotion() []stage {
	var out []stage
	for _, s := range []stage{
		func(*swarmpb.NodeInfo) error { return nil }, // as it is read before the change
		func(n *swarmpb.NodeInfo) error { n.Status.State = swarmpb.NodeState_NODE_STATE_READY; return nil },
		func(n *swarmpb.NodeInfo) error { n.Node.Role = roleManager; return nil },
		func(n *swarmpb.NodeInfo) error {
			n.Manager = &swarmpb.ManagerStatus{Address: "10.0.0.2:2377", Reachable: true}
			return nil
		},
		func(*swarmpb.NodeInfo) error { return wire.Errorf(wire.CodeUnavailable, "no leader") },
		func(n *swarmpb.NodeInfo) error { n.Manager.Voter = true; return nil },
	} {
		out = append(out, s, s)
	}
	return out[1:]
}

func TestRoles_EveryCourse_ReadsAsBefore(t *testing.T) {
	var got strings.Builder
	scene := func(title string, prepare func(f *fake), lines ...string) *fake {
		f := start(t, false)
		f.ticking()
		f.control.nodes[0].Status.State = swarmpb.NodeState_NODE_STATE_READY
		f.control.stages = map[string][]stage{}
		if prepare != nil {
			prepare(f)
		}
		got.WriteString("== " + title + " ==\n" + f.play(lines...))
		return f
	}
	join := func(f *fake) {
		n := f.control.nodes[0]
		n.Node.Role, n.Node.Spec.DesiredRole = roleManager, roleManager
		n.Manager = &swarmpb.ManagerStatus{Address: "10.0.0.2:2377", Voter: true, Reachable: true}
		f.control.cluster.Managers = 3
	}
	leaves := []stage{
		func(n *swarmpb.NodeInfo) error { n.Manager.Leader = true; return nil },
		func(n *swarmpb.NodeInfo) error { n.Manager.Leader = false; return nil },
		func(n *swarmpb.NodeInfo) error { n.Manager = nil; return nil },
	}
	f := scene("promoted", func(f *fake) {
		f.control.stages[n2ID] = promotion()
		f.control.cluster.Managers = 2
	}, "node promote "+n2ID, "node ls", "node promote n2", "node inspect --pretty n2")
	if changes := f.control.changes; len(changes) != 1 || changes[0].DesiredRole != roleManager || changes[0].Labels["disk"] != "ssd" {
		t.Errorf("changes %v", changes)
	}
	scene("detached", nil, "node promote -d n2", "node ls")
	scene("promotion does not end", func(f *fake) {
		f.control.nodes[0].Status.State = swarmpb.NodeState_NODE_STATE_DOWN
	}, "node promote --timeout 20ms n2")
	scene("demoted by somebody else meanwhile", func(f *fake) {
		f.control.stages[n2ID] = []stage{
			func(*swarmpb.NodeInfo) error { return nil },
			func(n *swarmpb.NodeInfo) error { n.Node.Spec.DesiredRole = roleWorker; return nil },
		}
	}, "node promote "+n2ID)
	scene("removed meanwhile", func(f *fake) {
		f.control.stages[n2ID] = []stage{
			func(*swarmpb.NodeInfo) error { return nil },
			func(*swarmpb.NodeInfo) error { return wire.Errorf(wire.CodeNotFound, "node n2: not found") },
		}
	}, "node promote "+n2ID)
	scene("the leader demoted", func(f *fake) { join(f); f.control.stages[n2ID] = leaves }, "node demote "+n2ID, "node demote n2", "node ls")
	scene("one that is down demoted", func(f *fake) {
		join(f)
		f.control.stages[n2ID] = leaves[1:]
		f.control.nodes[0].Status.State = swarmpb.NodeState_NODE_STATE_DOWN
	}, "node demote "+n2ID)
	scene("one is unknown, and the other goes on", func(f *fake) { f.control.stages[n2ID] = promotion() }, "node promote nope "+n2ID)
	scene("four are left", func(f *fake) {
		join(f)
		f.control.stages[n2ID] = leaves
		f.control.cluster.Managers = 4
	}, "node demote "+n2ID)
	scene("this host demotes itself", func(f *fake) {
		join(f)
		f.local.info.NodeId = n2ID
		f.control.stages[n2ID] = []stage{func(*swarmpb.NodeInfo) error { return nil }, func(*swarmpb.NodeInfo) error { return wire.NotManager() }}
	}, "node demote "+n2ID)
	scene("this host is demoted meanwhile", func(f *fake) {
		join(f)
		f.control.stages[n2ID] = []stage{func(*swarmpb.NodeInfo) error { return nil }, func(*swarmpb.NodeInfo) error { return wire.NotManager() }}
	}, "node demote "+n2ID)
	golden(t, "roles", got.String())
}

func TestRoles_Refused_TheWordsAreShownOnce(t *testing.T) {
	f := start(t, false)
	f.control.fail = wire.Errorf(wire.CodeFailedPrecondition, "node n1: it is the last manager, and a cluster cannot do without one; promote another node first with `swarmctl node promote NODE`")
	golden(t, "roles_refused", f.play("node demote n1 n2"))
}

func TestRoles_Interrupted_SaysThatTheClusterGoesOn(t *testing.T) {
	f := start(t, false)
	f.ticking()
	f.control.stages = map[string][]stage{n2ID: {
		func(n *swarmpb.NodeInfo) error { n.Status.State = swarmpb.NodeState_NODE_STATE_READY; return nil },
		func(*swarmpb.NodeInfo) error { f.cancel(); return nil },
	}}
	o := f.run("node", "promote", n2ID)
	if want := "swarmctl: interrupted; the cluster goes on, see `swarmctl node ls`\n"; o.code != exitInterrupted || o.stderr != want {
		t.Errorf("%+v", o)
	}
}

func TestManagers_NoLeader_WhoIsReachableIsNotKnown(t *testing.T) {
	f := start(t, false)
	n := f.control.nodes[0]
	n.Node.Role, n.Node.Spec.DesiredRole = roleManager, roleManager
	n.Manager = &swarmpb.ManagerStatus{Address: "10.0.0.2:2377", Voter: true, Reachable: true}
	const list = "node ls --format '{{.Hostname}} {{.ManagerStatus}}'"
	if out := f.play(list); !strings.Contains(out, "n2 reachable") || !strings.Contains(out, "n1 leader") {
		t.Errorf("with a leader:\n%s", out)
	}
	for _, n := range f.control.nodes {
		if n.Leader = false; n.Manager != nil {
			n.Manager.Leader = false
		}
	}
	f.control.cluster.Leader = ""
	if out := f.play(list); !strings.Contains(out, "n2 unknown") || !strings.Contains(out, "n1 reachable") {
		t.Errorf("without a leader:\n%s", out)
	}
	if out := f.play("info"); !strings.Contains(out, "not known without a leader") {
		t.Errorf("without a leader:\n%s", out)
	}
}

func TestNodeUpdate_Flags_ChangeTheSpec(t *testing.T) {
	f := start(t, false)
	f.control.conflicts = 1
	golden(t, "node_update", f.play("node update --availability drain --label-add zone=a --label-rm disk n2", "node update --availability drain n2", "node ls"))
	if len(f.control.changes) != 1 {
		t.Fatalf("changes %v", f.control.changes)
	}
	spec := f.control.changes[0]
	if spec.Availability != swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN || len(spec.Labels) != 1 || spec.Labels["zone"] != "a" || spec.DesiredRole != roleWorker {
		t.Errorf("%v", spec)
	}
}

func TestStale_Answer_WarnsOnceOnStandardError(t *testing.T) {
	f := start(t, false)
	f.control.watch[webID] = []step{say(1, task("a1", 1, 1, running, running, "")), wait(5 * time.Second)}
	var got strings.Builder
	for _, mark := range []*wire.StaleRead{{Known: true, Leaderless: 12*time.Second + 300*time.Millisecond}, {Known: true}, {}} {
		f.control.stale = mark
		got.WriteString(f.play("node ls -q", "service ps -q web"))
	}
	got.WriteString(f.play("service ls --stale -q", "info --format '{{.NodeID}}'", "service inspect -f '{{.ID}}' web api"))
	golden(t, "stale", got.String())
	o := f.run("node", "ls", "--stale", "--format", "json")
	var rows []nodeRow
	if err := json.Unmarshal([]byte(o.stdout), &rows); err != nil || len(rows) != 2 || rows[0].ManagerStatus != "leader" {
		t.Errorf("%v %+v", err, o)
	}
}

func TestStale_Flag_IsSentByEveryReadingCommand(t *testing.T) {
	for _, line := range []string{"node ls", "node inspect n1", "node ps n1", "service ls", "service ps web", "service inspect web", "task ls", "info", "cluster inspect", "service explain web"} {
		f := start(t, false)
		if o := f.run(append(strings.Fields(line), "--stale")...); o.code != 0 || f.control.wished == 0 {
			t.Errorf("%s: %d wishes, %+v", line, f.control.wished, o)
		}
		f.control.wished = 0
		if f.run(strings.Fields(line)...); f.control.wished != 0 {
			t.Errorf("%s: wished for what nobody asked for", line)
		}
	}
}

func TestLeadershipMoves_CallIsTriedAgainUnderItsRequestID(t *testing.T) {
	f := start(t, false)
	f.patience = patience
	f.control.unavailable = 2
	o := f.run("service", "create", "-d", "nginx:1")
	if ids := f.control.requests; o.code != 0 || o.stdout != webID+"\n" || o.stderr != "" || len(ids) != 3 || ids[0] == "" || ids[0] != ids[1] || ids[1] != ids[2] {
		t.Errorf("requests %q: %+v", ids, o)
	}
	f.control.unavailable = 1
	if o := f.run("node", "ls", "-q"); o.code != 0 || o.stderr != "" {
		t.Errorf("%+v", o)
	}
	f.patience, f.control.unavailable = 2*retryPause, 100
	if o := f.run("node", "ls", "-q"); o.code != exitFailed || !strings.Contains(o.stderr, "leadership was lost") {
		t.Errorf("%+v", o)
	}
	if tries := 100 - f.control.unavailable; tries < 2 || tries > 3 {
		t.Errorf("%d tries", tries)
	}
}

func TestNoSwarmd_IsNotWaitedFor(t *testing.T) {
	f := start(t, false)
	f.patience = time.Hour
	if o := f.run("--host", "unix:///nonexistent", "node", "ls"); o.code != exitFailed || !strings.Contains(o.stderr, "does not run") {
		t.Errorf("%+v", o)
	}
}

func TestWait_ManagerIsLost_GoesOnWithTheWholeState(t *testing.T) {
	f := start(t, false)
	f.patience = patience
	f.control.watch[webID] = []step{
		say(1, task("a1", 1, 1, running, starting, "")), {lost: true},
		say(1, task("b1", 1, 2, running, running, "")), wait(5 * time.Second),
	}
	if o := f.run("service", "create", "--name", "web", "whoami:v1"); o.code != 0 || !strings.Contains(o.stdout, "1 of 1 replica running") {
		t.Errorf("%+v", o)
	}
}

func TestJoin_AsManager_SaysWhenItCounts(t *testing.T) {
	f := start(t, false)
	f.local.role = roleManager
	golden(t, "join_manager", f.play("join --token SWMTKN-1-manager 10.0.0.1"))
}

func TestStopAfterDisconnect_SetClearedAndShown(t *testing.T) {
	f := start(t, false)
	f.run("service", "create", "-d", "--stop-after-disconnect", "30s", "nginx:1")
	if got := f.control.created.Task.GetStopAfterDisconnect().AsDuration(); got != 30*time.Second {
		t.Errorf("created with %s", got)
	}
	f.control.services[0].Service.Spec.Task = f.control.created.Task
	if o := f.run("service", "inspect", "--pretty", "web"); !strings.Contains(o.stdout, "stops 30s after its node lost all managers") {
		t.Errorf("%+v", o)
	}
	f.run("service", "update", "-d", "--stop-after-disconnect", "0", "web")
	if spec := f.control.updated[0].Task; spec.StopAfterDisconnect != nil {
		t.Errorf("still %v", spec.StopAfterDisconnect)
	}
}

// dying is a manager that stops in the middle of its first call, and knows the request in its second life.
type dying struct {
	swarmpb.UnimplementedControlServer
	requests chan string
	die      chan struct{}
	works    time.Duration // before it stops, or answers
	again    bool
}

func (d *dying) RemoveService(ctx context.Context, req *swarmpb.RemoveServiceRequest) (*swarmpb.RemoveServiceResponse, error) {
	d.requests <- req.RequestId
	select {
	case <-time.After(d.works):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if d.again {
		return &swarmpb.RemoveServiceResponse{Id: webID}, nil
	}
	close(d.die)
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestSwarmdRestarts_CallUnderWay_IsTriedAgain(t *testing.T) {
	callUnderWay(t, 30*time.Second, 0)
}

// What a call does, such as to ask a registry, takes nothing of the time for which it is tried again: before its manager stops,
// and when it is back.
func TestSwarmdRestarts_CallHadWorkedLong_IsTriedAgain(t *testing.T) {
	callUnderWay(t, 2*time.Second, 2500*time.Millisecond)
}

func callUnderWay(t *testing.T, patience, works time.Duration) {
	t.Helper()
	f := start(t, false)
	f.patience, f.socket = patience, filepath.Join(t.TempDir(), "s")
	requests := make(chan string, 2)
	serve := func(d *dying) (*grpc.Server, <-chan error) {
		listener, err := wire.ListenLocal(f.socket)
		if err != nil {
			t.Fatal(err)
		}
		server, done := wire.NewServer(wire.ServerConfig{Local: true}), make(chan error, 1)
		swarmpb.RegisterControlServer(server, d)
		go func() { done <- server.Serve(listener) }()
		return server, done
	}
	first := &dying{requests: requests, die: make(chan struct{}), works: works}
	server, stopped := serve(first)
	ended := make(chan outcome, 1)
	go func() { ended <- f.run("service", "rm", "-d", "web") }()
	<-first.die
	server.Stop()
	<-stopped
	server, stopped = serve(&dying{requests: requests, works: works, again: true})
	o := <-ended
	server.Stop()
	<-stopped
	if a, b := <-requests, <-requests; o.code != 0 || o.stdout != "web\n" || a == "" || a != b {
		t.Errorf("requests %q, %q: %+v", a, b, o)
	}
}
