package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/swarmd/swarmd/manager/ca"
	"github.com/swarmd/swarmd/manager/dispatcher"
	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// leadLabel marks the goroutines of a term in the goroutine profile: they inherit it from the one that starts them.
const leadLabel = "leadership-test-term"

// inTerm are the goroutines that a term has started and that live, as the profile prints them.
func inTerm(term string) []string {
	var out bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&out, 1); err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, entry := range strings.Split(out.String(), "\n\n") {
		if strings.Contains(entry, fmt.Sprintf("%q:%q", leadLabel, term)) {
			found = append(found, entry)
		}
	}
	return found
}

// stuckLeader holds up every proposal, or every other one, until its caller gives up.
type stuckLeader struct {
	*store.LocalProposer
	all bool

	mu      sync.Mutex
	calls   int
	waiting int
}

func (l *stuckLeader) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	l.mu.Lock()
	l.calls++
	stuck := l.all || l.calls%2 == 0
	if stuck {
		l.waiting++
	}
	l.mu.Unlock()
	if !stuck {
		return l.LocalProposer.Propose(ctx, p)
	}
	<-ctx.Done()
	l.mu.Lock()
	l.waiting--
	l.mu.Unlock()
	return nil, ctx.Err()
}

func (l *stuckLeader) stuck() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting
}

// stuckRaft takes a change and never answers.
type stuckRaft struct {
	*fakeRaft
	entered chan struct{}
}

func (r stuckRaft) AddMember(ctx context.Context, _, _ string) error {
	poke(r.entered)
	<-ctx.Done()
	return ctx.Err()
}

// busyStore has nodes and services whose tasks are yet to be made, placed and given addresses.
func busyStore(t *testing.T) *store.Store {
	st := store.New()
	write := func(rows ...*swarmpb.Row) {
		t.Helper()
		var writes []*swarmpb.Write
		for _, r := range rows {
			writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: r}})
		}
		p := &swarmpb.Proposal{Writes: writes, Now: time.Now().UnixNano()}
		if _, err := store.NewLocalProposer(st).Propose(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	spec := &swarmpb.ClusterSpec{}
	spec.SetDefaults()
	write(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: "c", Spec: spec}}})
	putRows(t, st, map[string]row{"n1": managerAt("10.0.0.1:1"), "n2": managerAt("10.0.0.2:1"), "w1": {workerRole, workerRole, nodeReady, ""}})
	for i := range 20 {
		id := fmt.Sprint("service", i)
		task := &swarmpb.TaskSpec{Container: &swarmpb.ContainerSpec{Image: "i"}}
		write(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: id, Version: 1, Spec: task}}},
			&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: id, TemplateVersion: 1, Spec: &swarmpb.ServiceSpec{
				Name: id, Task: task,
				Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: 50}}},
			}}}})
	}
	return st
}

func TestLead_LeadershipIsLostWithWorkInFlight_NothingOfItLivesOn(t *testing.T) {
	st := busyStore(t)
	current := func() *store.Store { return st }
	readIndex := func(context.Context) (uint64, error) { return st.View().Index(), nil }
	log := slog.New(slog.DiscardHandler)
	sessions, err := dispatcher.New(dispatcher.Config{
		NodeID: "n1", Store: current, Proposer: store.NewLocalProposer(st), ReadIndex: readIndex, Logger: log,
		Managers: func() []*swarmpb.ManagerPeer { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.New(ca.Config{Store: current, Proposer: store.NewLocalProposer(st), ReadIndex: readIndex, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	raft := stuckRaft{&fakeRaft{members: []replica.Member{voterAt("n1", "10.0.0.1:1")}}, make(chan struct{}, 1)}
	health := func(string) (*swarmpb.ManagerHealth, bool) { return &swarmpb.ManagerHealth{LowSpace: true}, true }
	failure := errors.New("a part of it fails")

	for round := range 6 {
		term := fmt.Sprint("round ", round)
		leader := &stuckLeader{LocalProposer: store.NewLocalProposer(st), all: round%2 == 0}
		members := newMembership(st, raft, "n1", "10.0.0.1:1", log)
		watch := &healthWatch{store: st, leader: leader, raft: raft, self: "n1", health: health, log: log}
		fail := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go pprof.Do(ctx, pprof.Labels(leadLabel, term), func(ctx context.Context) {
			done <- Lead(ctx, st, leader, sessions, log, members.run, watch.run,
				func(ctx context.Context) error { return authority.Lead(ctx, leader, sessions.Acked) },
				func(ctx context.Context) error {
					select {
					case <-fail:
						return failure
					case <-ctx.Done():
						return ctx.Err()
					}
				})
		})
		// In flight: proposals of several loops, and a change of Raft's configuration.
		<-raft.entered
		eventually(t, "proposals are in flight", func() bool { return leader.stuck() >= 3 })
		if len(inTerm(term)) < 5 {
			t.Fatalf("the profile shows %d kinds of goroutines of a term that works: the label is lost", len(inTerm(term)))
		}
		want := context.Canceled
		if round == 5 {
			want = failure
			close(fail)
		} else {
			cancel()
		}
		if err := <-done; !errors.Is(err, want) {
			t.Errorf("%s: Lead ended with %v", term, err)
		}
		cancel()
		if n := leader.stuck(); n != 0 {
			t.Errorf("%s: %d proposals are still in flight", term, n)
		}
		// What has ended may need a moment to leave the profile: pprof.Do's own goroutine above all.
		eventually(t, "no goroutine of "+term+" is left", func() bool { return len(inTerm(term)) == 0 }, func() string { return strings.Join(inTerm(term), "\n\n") })
	}
}

func eventually(t testing.TB, what string, ok func() bool, state ...func() string) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-deadline.C:
			for _, s := range state {
				t.Log(s())
			}
			t.Fatalf("not so in 30 s: %s", what)
		}
	}
}
