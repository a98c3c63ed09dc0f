package dispatcher

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// largest is a writer that notes the size of the largest proposal, and how many writes there were.
type largest struct {
	store.LocalProposer
	bytes, writes int
}

func (l *largest) Propose(_ context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	l.bytes, l.writes = max(l.bytes, proto.Size(p)), l.writes+len(p.GetWrites())
	return &swarmpb.Result{}, nil
}

// manyLabels is the largest description that a node may give of itself.
func manyLabels() *swarmpb.NodeDescription {
	labels := make(map[string]string, maxLabels)
	for i := range maxLabels {
		labels[fmt.Sprintf("%0*d", maxLabelBytes, i)] = strings.Repeat("v", maxLabelBytes)
	}
	return &swarmpb.NodeDescription{Hostname: "h", Engine: &swarmpb.EngineDescription{Labels: labels}}
}

func TestMessages_ManyNodesWithManyLabels_FitTheOtherSide(t *testing.T) {
	facts := &Facts{Description: manyLabels(), Address: "10.0.0.7"}
	if _, err := cleanDescription(facts.Description); err != nil {
		t.Fatal(err)
	}
	const nodes = 200
	report, decisions := &Report{}, []decision(nil)
	for i := range nodes {
		report.Beats = append(report.Beats, Beat{NodeID: fmt.Sprint(i), Facts: facts})
		decisions = append(decisions, decision{write: &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_NodeStatus{
			NodeStatus: &swarmpb.NodeStatus{NodeId: fmt.Sprint(i), Description: facts.Description}}}}}})
	}
	leader, sessions := &keeperCalls{}, 0
	if _, err := sendParts(context.Background(), leader, report); err != nil {
		t.Fatal(err)
	}
	for i, call := range leader.calls {
		sessions += len(call.GetSessions())
		if n := proto.Size(call); n > wire.MaxRequestBytes/2 {
			t.Errorf("call %d of a report has %d bytes; %d are taken", i, n, wire.MaxRequestBytes)
		}
	}
	if sessions != nodes {
		t.Errorf("%d of %d sessions are reported", sessions, nodes)
	}
	log := &largest{}
	l := &leaderPart{leader: log}
	if err := l.propose(context.Background(), decisions); err != nil || log.writes != nodes || log.bytes > wire.MaxRequestBytes/2 {
		t.Errorf("%d of %d states are written, by proposals of up to %d bytes: %v", log.writes, nodes, log.bytes, err)
	}
}

func TestUpdateStatus_LongStatusesOfManyNodes_FitTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, log := newWorld(t, "n1"), &largest{}
		m := newMerger(log, func() *store.Store { return w.store }, time.Millisecond)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		ports := make([]*swarmpb.PortConfig, maxHostPorts)
		for i := range ports {
			ports[i] = &swarmpb.PortConfig{Name: strings.Repeat("p", maxNameBytes), TargetPort: uint32(i)}
		}
		const calls, each = 10, 20
		results := make(chan error, calls)
		for i := range uint64(calls) {
			var statuses []*swarmpb.TaskStatus
			for j := range uint64(each) {
				statuses = append(statuses, &swarmpb.TaskStatus{TaskId: w.task(i*each+j+1, "n1"), State: stRunning, HostPorts: ports})
			}
			go func() { results <- m.merge(ctx, nil, statuses) }()
		}
		synctest.Wait() // all of them wait before the first is proposed
		go func() { done <- m.run(ctx) }()
		for range calls {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		if log.writes != calls*each || log.bytes > wire.MaxRequestBytes/2 {
			t.Errorf("%d of %d statuses are written, by proposals of up to %d bytes", log.writes, calls*each, log.bytes)
		}
		cancel()
		<-done
	})
}
