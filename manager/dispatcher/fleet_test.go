package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// fleet is several managers of one cluster, which report to one another over gRPC, in virtual time.
type fleet struct {
	*world
	t        *testing.T
	managers map[string]*cluster
	stops    map[string]func()

	mu     sync.Mutex
	leader string
	hung   map[string]bool
	// cut are managers that reach nobody.
	cut   map[string]bool
	conns []*grpc.ClientConn
}

// inFleet runs a test with managers of which m1 leads.
func inFleet(t *testing.T, managers, nodes []string, hints Hints, test func(t *testing.T, f *fleet)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{world: newWorld(t, append(nodes, managers...)...), t: t, managers: make(map[string]*cluster),
			stops: make(map[string]func()), hung: make(map[string]bool), cut: make(map[string]bool)}
		for _, id := range managers {
			f.managers[id], f.stops[id] = startManager(t, context.Background(), f.world, id, func(cfg *Config) {
				cfg.LeaderConn = f.leaderConn(id)
				cfg.Hints = hints
				cfg.Health = func() *swarmpb.ManagerHealth { return &swarmpb.ManagerHealth{FreeBytes: uint64(len(id))} }
			})
		}
		defer func() {
			for _, id := range managers {
				f.managers[id].endLead()
				f.stops[id]()
			}
			for _, conn := range f.conns {
				conn.Close()
			}
		}()
		f.elect(managers[0])
		test(t, f)
	})
}

func (f *fleet) elect(id string) {
	f.mu.Lock()
	f.leader = id
	f.mu.Unlock()
	f.managers[id].lead()
}

// kill ends a manager at once.
func (f *fleet) kill(id string) {
	f.mu.Lock()
	if f.leader == id {
		f.leader = ""
	}
	f.mu.Unlock()
	f.managers[id].endLead()
	f.stops[id]()
}

func (f *fleet) set(of map[string]bool, id string, on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of[id] = on
}

func (f *fleet) leaderConn(id string) func() (*grpc.ClientConn, string, error) {
	conns := make(map[string]*grpc.ClientConn)
	return func() (*grpc.ClientConn, string, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.leader == "" || f.leader == id {
			return nil, "", errors.New("no leader")
		}
		leader := f.leader
		if conns[leader] == nil {
			conns[leader] = f.managers[leader].dial(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				f.mu.Lock()
				hung, cut := f.hung[leader], f.cut[id]
				f.mu.Unlock()
				if hung || cut {
					<-ctx.Done()
					return status.FromContextError(ctx.Err()).Err()
				}
				return invoke(asNode(ctx, id), method, req, reply, cc, opts...)
			})
			f.conns = append(f.conns, conns[leader])
		}
		return conns[leader], leader, nil
	}
}

func TestKeepers_SessionsOnTwoManagers_LeaderKnowsAll(t *testing.T) {
	inFleet(t, []string{"m1", "m2"}, []string{"n1", "n2"}, nil, func(t *testing.T, f *fleet) {
		m1, m2 := f.managers["m1"], f.managers["m2"]
		m1.mustConnect("n1", "b1").assignments()
		w := m2.mustConnect("n2", "b2")
		w.assignments()
		f.task(1, "n2")
		time.Sleep(2 * time.Second)
		m1.expectState("n1", ready)
		m1.expectState("n2", ready)
		for _, id := range []string{"n1", "n2"} {
			if acked, ok := m1.server.Acked(id); !ok || acked != f.view().Index() {
				t.Errorf("%s acked %d %t, want %d", id, acked, ok, f.view().Index())
			}
		}
		if health, ok := m1.server.Health("m2"); !ok || health.GetFreeBytes() != 2 {
			t.Errorf("health of m2: %v %t", health, ok)
		}
		if _, ok := m2.server.Health("m2"); ok {
			t.Error("a follower knows a manager's health")
		}
		w.mute.Store(true)
		time.Sleep(3500 * time.Millisecond)
		m1.expectState("n2", down)
		m1.expectState("n1", ready)
		f.kill("m2")
		time.Sleep(6 * time.Second)
		if _, ok := m1.server.Health("m2"); ok {
			t.Error("a manager that is silent has a health")
		}
		if _, ok := m1.server.Acked("n2"); ok {
			t.Error("a node without a session has acknowledged")
		}
	})
}

func TestKeepers_LeaderHangs_ContactAgesAndSessionsEnd(t *testing.T) {
	inFleet(t, []string{"m1", "m2"}, []string{"n1", "n2"}, nil, func(t *testing.T, f *fleet) {
		m2 := f.managers["m2"]
		w := m2.mustConnect("n1", "b1")
		time.Sleep(3 * time.Second)
		if sent, heard := w.sequence.Load(), w.answered.Load(); heard+1 < sent || heard == 0 {
			t.Fatalf("of %d beats %d were answered", sent, heard)
		}
		f.set(f.hung, "m1", true)
		began := time.Now()
		time.Sleep(1500 * time.Millisecond)
		before, sent := w.answered.Load(), w.sequence.Load()
		time.Sleep(time.Second)
		if now := w.answered.Load(); now != before || w.sequence.Load() == sent {
			t.Errorf("beat %d is answered without contact with a leader", now)
		}
		expectCode(t, <-w.ended, wire.CodeUnavailable, "another manager")
		if d := time.Since(began); d > 4*time.Second {
			t.Errorf("the session ended %s after the leader", d)
		}
		_, err := m2.connect("n1", "b1")
		expectCode(t, err, wire.CodeUnavailable, "another manager")
		_, err = m2.client.UpdateStatus(asNode(m2.ctx, "n1"), &swarmpb.UpdateStatusRequest{SessionId: w.id})
		expectCode(t, err, wire.CodeUnavailable, "another manager")
		f.set(f.hung, "m1", false)
		time.Sleep(2 * time.Second)
		m2.mustConnect("n1", "b1")
		time.Sleep(time.Second)
		m2.expectState("n1", ready)
	})
}

// TestKeepers_LeaderAndWorkerDieTogether_DownALeaseAfterTheElection: the keeper of the node lives and says that its session has
// ended. It may have found another one, with the leader that died; so it has a lease from the election, and no reconnect lease.
func TestKeepers_LeaderAndWorkerDieTogether_DownALeaseAfterTheElection(t *testing.T) {
	nodes := []string{"n1", "n2", "n3", "n4"}
	inFleet(t, []string{"m1", "m2", "m3"}, nodes, nil, func(t *testing.T, f *fleet) {
		m2 := f.managers["m2"]
		var workers []*worker
		for _, id := range nodes {
			workers = append(workers, m2.mustConnect(id, "b"+id))
		}
		time.Sleep(3 * time.Second)
		workers[0].cut()
		f.kill("m1")
		time.Sleep(1500 * time.Millisecond)
		f.elect("m3")
		time.Sleep(2500 * time.Millisecond)
		m2.expectState("n1", ready)
		time.Sleep(time.Second)
		m2.expectState("n1", down)
		time.Sleep(20 * time.Second)
		for _, id := range nodes[1:] {
			m2.expectState(id, ready)
		}
	})
}

// TestKeepers_NoLeaderForLong_NodesHaveTimeToComeBack: the keeper ended the sessions for want of a leader, or the
// worker left for want of answers; neither says that the node is dead.
func TestKeepers_NoLeaderForLong_NodesHaveTimeToComeBack(t *testing.T) {
	inFleet(t, []string{"m1", "m2"}, []string{"n1", "n2"}, nil, func(t *testing.T, f *fleet) {
		m2 := f.managers["m2"]
		dropped := m2.mustConnect("n1", "b1")
		leaving := m2.mustConnect("n2", "b2")
		time.Sleep(3 * time.Second)
		f.kill("m1")
		time.Sleep(2 * time.Second)
		leaving.cut()
		expectCode(t, <-dropped.ended, wire.CodeUnavailable, "another manager")
		time.Sleep(5 * time.Second)
		f.elect("m2")
		time.Sleep(8 * time.Second)
		for _, id := range []string{"n1", "n2"} {
			if state := f.view().NodeStatus(id).GetState(); state == down {
				t.Errorf("%s is called down though it could not have a session", id)
			}
		}
		m2.mustConnect("n1", "b1")
		time.Sleep(8 * time.Second)
		m2.expectState("n1", ready)
		m2.expectState("n2", down) // its reconnect lease is over
	})
}

func TestKeepers_CloneAtAnotherManager_NeitherFlaps(t *testing.T) {
	inFleet(t, []string{"m1", "m2", "m3"}, []string{"n1"}, nil, func(t *testing.T, f *fleet) {
		holder := f.managers["m2"].mustConnect("n1", "b1")
		time.Sleep(time.Second)
		since := f.view().NodeStatus("n1").GetSince()
		for range 5 {
			clone := f.managers["m3"].mustConnect("n1", "b2")
			expectCode(t, <-clone.ended, wire.CodeInUse, "leave --force")
			time.Sleep(3 * time.Second)
		}
		select {
		case err := <-holder.ended:
			t.Fatalf("the holder's session ended: %v", err)
		default:
		}
		f.managers["m1"].expectState("n1", ready)
		row := f.view().NodeStatus("n1")
		if row.GetSince() != since || row.GetDescription().GetHostname() != "host-b1" {
			t.Errorf("the node's row is %v", row)
		}
		if f.view().Alarm(AlarmDuplicateNode, "n1") == nil {
			t.Error("there is no alarm")
		}
		// A restart elsewhere is no clone: the holder is silent.
		holder.cut()
		restarted := f.managers["m3"].mustConnect("n1", "b3")
		time.Sleep(5 * time.Second)
		select {
		case err := <-restarted.ended:
			t.Fatalf("the restart was refused: %v", err)
		default:
		}
		f.managers["m1"].expectState("n1", ready)
	})
}

// TestKeepers_LeaderWokenFromSleep_TakesNothingBeforeItIsConfirmed: what a leader that hung is told first, when it
// cannot know yet that it leads no more, must not keep anybody's contact fresh.
func TestKeepers_LeaderWokenFromSleep_TakesNothingBeforeItIsConfirmed(t *testing.T) {
	inFleet(t, []string{"m1", "m2"}, nil, nil, func(t *testing.T, f *fleet) {
		time.Sleep(1100 * time.Millisecond) // between two confirmations
		server := f.managers["m1"].server
		report := func() error {
			_, err := server.Report(incoming("m2"), &swarmpb.KeeperReportRequest{})
			return err
		}
		if err := report(); err != nil {
			t.Fatal(err)
		}
		server.contact.mark(time.Now().Add(-time.Minute))
		expectCode(t, report(), wire.CodeUnavailable, "no contact")
		time.Sleep(time.Second)
		if err := report(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestKeeper_Reports_BoundedAndOfMembersAlone(t *testing.T) {
	inFleet(t, []string{"m1", "m2"}, []string{"n1", "n2"}, nil, func(t *testing.T, f *fleet) {
		server := f.managers["m1"].server
		time.Sleep(time.Second)
		_, err := f.managers["m2"].server.Report(incoming("m1"), &swarmpb.KeeperReportRequest{})
		if wire.CodeOf(err) != wire.CodeNotLeader {
			t.Errorf("a follower takes a report: %v", err)
		}
		for _, req := range []*swarmpb.KeeperReportRequest{
			{Sessions: make([]*swarmpb.KeptSession, maxReported+1)}, {Refused: make([]string, maxReported+1)},
		} {
			_, err = server.Report(incoming("m3"), req)
			expectCode(t, err, wire.CodeInvalid, "at most 2000")
		}
		_, err = server.Report(context.Background(), &swarmpb.KeeperReportRequest{})
		expectCode(t, err, wire.CodeUnauthenticated, "no node")
		long := strings.Repeat("x", maxIDBytes+1)
		req := &swarmpb.KeeperReportRequest{Refused: []string{"stranger", ""}, Sessions: []*swarmpb.KeptSession{
			nil, {}, {NodeId: "n1", SessionId: long}, {NodeId: "n1", BootId: long},
			{NodeId: "n2", SessionId: "s", Age: -1 << 63, Facts: &swarmpb.SessionFacts{Address: "\x00" + strings.Repeat("a", 5000), ListenAddress: "a\nb"}},
		}}
		for i := range maxReported - len(req.Sessions) {
			req.Sessions = append(req.Sessions, &swarmpb.KeptSession{NodeId: fmt.Sprint(i), SessionId: "s", Age: 1 << 62, Applied: 1 << 63})
		}
		if _, err := server.Report(incoming("m3"), req); err != nil {
			t.Fatal(err)
		}
		leading := server.leading
		leading.mu.Lock()
		if n := len(leading.table.nodes); n != 1 || leading.table.nodes["n2"] == nil || leading.table.nodes["n2"].age != 0 {
			t.Errorf("%d nodes are remembered: %v", n, leading.table.nodes)
		}
		if n := len(leading.clones); n != 0 {
			t.Errorf("%d clones are remembered", n)
		}
		leading.mu.Unlock()
		for i := range 3 * maxManagers {
			if _, err := server.Report(incoming(fmt.Sprint("x", i)), &swarmpb.KeeperReportRequest{Health: &swarmpb.ManagerHealth{}}); err != nil {
				t.Fatal(err)
			}
		}
		leading.mu.Lock()
		defer leading.mu.Unlock()
		if n := len(leading.health); n > maxManagers {
			t.Errorf("the health of %d managers is remembered", n)
		}
	})
}

func TestKeeper_Register_OnlyManagersReport(t *testing.T) {
	w := testWorld(t)
	synctest.Test(t, func(t *testing.T) {
		c, stop := startManager(t, context.Background(), w, "m", nil)
		defer stop()
		server := wire.NewServer(wire.ServerConfig{})
		c.server.Register(server)
		if err := wire.CheckAccess(server); err != nil {
			t.Fatal(err)
		}
	})
	callers := wire.AllowedCallers(swarmpb.Keeper_Report_FullMethodName)
	if len(callers) != 1 || callers[0] != swarmpb.Caller_CALLER_MANAGER {
		t.Errorf("%v may report", callers)
	}
}

// keeperCalls is a leader that notes what it is told, and fails from some call on.
type keeperCalls struct {
	calls []*swarmpb.KeeperReportRequest
	fail  int
}

func (k *keeperCalls) Report(_ context.Context, in *swarmpb.KeeperReportRequest, _ ...grpc.CallOption) (*swarmpb.KeeperReportResponse, error) {
	if k.fail > 0 && len(k.calls)+1 >= k.fail {
		return nil, status.Error(codes.Unavailable, "gone")
	}
	k.calls = append(k.calls, in)
	return &swarmpb.KeeperReportResponse{End: map[string]string{fmt.Sprint("s", len(k.calls)): "refused"}}, nil
}

func TestSendParts_ManySessions_FirstHasTheRestAndVerdictsMerge(t *testing.T) {
	report := &Report{Refused: []string{"n1"}, Health: &swarmpb.ManagerHealth{LowSpace: true}}
	for i := range 2*maxReported + 1 {
		report.Beats = append(report.Beats, Beat{NodeID: fmt.Sprint(i), Age: time.Duration(i)})
	}
	leader := &keeperCalls{}
	verdict, err := sendParts(context.Background(), leader, report)
	if err != nil || len(verdict.End) != 3 || len(leader.calls) != 3 {
		t.Fatalf("verdict %v, error %v, %d calls", verdict, err, len(leader.calls))
	}
	next := 0
	for i, call := range leader.calls {
		if first := i == 0; (len(call.Refused) == 1) != first || call.Health.GetLowSpace() != first || len(call.Sessions) > maxReported {
			t.Errorf("call %d has %d refused, health %v and %d sessions", i, len(call.Refused), call.Health, len(call.Sessions))
		}
		for _, k := range call.Sessions {
			if k.GetNodeId() != fmt.Sprint(next) || k.GetAge() != int64(next) {
				t.Fatalf("session %d is %v", next, k)
			}
			next++
		}
	}
	if verdict, err := sendParts(context.Background(), &keeperCalls{fail: 2}, report); verdict == nil || wire.CodeOf(err) != wire.CodeUnavailable {
		t.Errorf("after one part: verdict %v, error %v", verdict, err)
	}
	if verdict, err := sendParts(context.Background(), &keeperCalls{fail: 1}, report); verdict != nil || err == nil {
		t.Errorf("after no part: verdict %v, error %v", verdict, err)
	}
	leader = &keeperCalls{}
	if _, err := sendParts(context.Background(), leader, &Report{}); err != nil || len(leader.calls) != 1 {
		t.Errorf("a report without sessions: error %v, %d calls", err, len(leader.calls))
	}
}
