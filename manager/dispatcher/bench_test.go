package dispatcher

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const benchNodes = 10_000

// benchLeader is a leader's part and a server with a session of each of 10,000 nodes, all READY.
func benchLeader(b *testing.B) (*Server, *leaderPart) {
	w := newWorld(b)
	s, err := New(Config{
		NodeID: "m", Store: func() *store.Store { return w.store }, Proposer: w.proposer,
		ReadIndex: func(context.Context) (uint64, error) { return w.view().Index(), nil },
		Managers:  func() []*swarmpb.ManagerPeer { return nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	for i := range benchNodes {
		id := swarmpb.DerivedID("node", fmt.Sprint(i))
		facts := &Facts{Address: "10.0.0.7", Description: &swarmpb.NodeDescription{
			Hostname: fmt.Sprint("host", i), Platform: &swarmpb.Platform{Os: "linux", Architecture: "amd64"}, Resources: &swarmpb.Resources{NanoCpus: 8e9},
			Engine: &swarmpb.EngineDescription{Version: "1.0", Labels: map[string]string{"disk": "ssd"}}}}
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Role: swarmpb.NodeRole_NODE_ROLE_WORKER}}},
			&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{
				NodeId: id, State: ready, Address: facts.Address, Description: facts.Description}}})
		s.sessions[id] = newSession(swarmpb.NewID(), id, swarmpb.NewID(), facts, now)
	}
	now = time.Now()
	for _, x := range s.sessions {
		x.last = now
	}
	l := newLeaderPart(s, w.proposer, now)
	l.report(now, s.makeReport(now))
	return s, l
}

// BenchmarkReport_Keeper is what a keeper does every 250 ms.
func BenchmarkReport_Keeper(b *testing.B) {
	s, _ := benchLeader(b)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		s.makeReport(now)
	}
}

// wired answers a keeper as the leader would over the wire, without a network.
type wired struct{ leader *Server }

func (w wired) Report(_ context.Context, in *swarmpb.KeeperReportRequest, _ ...grpc.CallOption) (*swarmpb.KeeperReportResponse, error) {
	data, err := proto.Marshal(in)
	if err != nil {
		return nil, err
	}
	out := &swarmpb.KeeperReportRequest{}
	if err := proto.Unmarshal(data, out); err != nil {
		return nil, err
	}
	return w.leader.Report(incoming("m2"), out)
}

// BenchmarkReport_Remote is a whole report of a follower's, both ends without the network.
func BenchmarkReport_Remote(b *testing.B) {
	s, l := benchLeader(b)
	s.cfg.Peer = callerOf
	s.leading = l
	b.ReportAllocs()
	for b.Loop() {
		s.contact.mark(time.Now())
		if _, err := sendParts(context.Background(), wired{s}, s.makeReport(time.Now())); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkJudge_Leader is what the leader does every 250 ms: a report taken at hand and a judgement.
func BenchmarkJudge_Leader(b *testing.B) {
	s, l := benchLeader(b)
	now := time.Now()
	report := s.makeReport(now)
	b.ReportAllocs()
	for b.Loop() {
		l.report(now, report)
		if n := len(l.decide(l.store().View(), now)); n != 0 {
			b.Fatalf("%d decisions about nodes that are well", n)
		}
	}
}

// BenchmarkEndpointChange is what one change of an endpoint costs a manager, from its commit until the message for each of
// 1,000 nodes is made, with 1,000 published services: without gRPC and the network.
func BenchmarkEndpointChange(b *testing.B) {
	const services, nodes, tasksOnNode = 1_000, 1_000, 10
	w := newWorld(b)
	ids := make([]string, nodes)
	for i := range ids {
		ids[i] = swarmpb.DerivedID("node", fmt.Sprint(i))
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: ids[i], Role: swarmpb.NodeRole_NODE_ROLE_WORKER}}},
			&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: ids[i], State: ready, Address: "10.0.0.7"}}})
	}
	var changing []string
	for i := range services {
		service := swarmpb.DerivedID("service", fmt.Sprint(i))
		spec := &swarmpb.ServiceSpec{Name: fmt.Sprint("s", i)}
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: service, Version: 1, Spec: &swarmpb.TaskSpec{}}}},
			&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: service, Spec: spec, TemplateVersion: 1}}},
			&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{
				ServiceId: service, Ports: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: uint32(10_000 + i)}}}}})
		for slot := range uint64(nodes * tasksOnNode / services) {
			id := swarmpb.TaskID(service, slot+1, "", 1)
			w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
				Id: id, ServiceId: service, Slot: slot + 1, Attempt: 1, TemplateVersion: 1, DesiredState: stRunning}}})
			w.place(id, ids[(i+int(slot)*97)%nodes])
			w.propose(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{TaskId: id, State: stRunning, Address: "100.64.3.7"}}})
			changing = append(changing, id)
		}
	}
	p := newTeller(w, maxEvents, ids...)
	before := heap()
	messages := 0
	tell := func(id string) {
		x, told := p.server.sessions[id], p.told[id]
		base, wakes, parts := p.server.nextSet(x, told)
		for m := range chunks(base, told.version, parts) {
			if data, err := proto.Marshal(m); err != nil || len(data) == 0 {
				b.Fatal(err)
			}
			messages++
		}
		told.base = told.version
		x.delivered(told.version, wakes)
	}
	for _, id := range ids {
		tell(id)
	}
	held := heap() - before
	messages = 0
	i := 0
	b.ReportAllocs()
	began := cpuTime(b)
	for b.Loop() {
		// A task leaves the balancers, or comes back.
		w.desire(changing[i/2%len(changing)], stRunning, i%2 == 0)
		i++
		p.see()
		for _, id := range ids {
			tell(id)
		}
	}
	if messages != i*nodes {
		b.Fatalf("%d messages for %d changes to %d nodes", messages, i, nodes)
	}
	b.ReportMetric(float64(cpuTime(b)-began)/float64(i*nodes), "cpu-ns/session")
	b.ReportMetric(float64(held)/nodes, "heap-B/session")
}

func heap() int64 {
	var stats runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

// cpuTime is what the process has used, collection of garbage included.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
