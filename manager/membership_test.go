package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	managerRole = swarmpb.NodeRole_NODE_ROLE_MANAGER
	workerRole  = swarmpb.NodeRole_NODE_ROLE_WORKER
	nodeReady   = swarmpb.NodeState_NODE_STATE_READY
	nodeDown    = swarmpb.NodeState_NODE_STATE_DOWN
)

// row is what the store has of a node.
type row struct {
	desired, certified swarmpb.NodeRole
	state              swarmpb.NodeState
	address            string
}

// managerAt is the usual one.
func managerAt(address string) row { return row{managerRole, managerRole, nodeReady, address} }

func (r row) down() row    { r.state = nodeDown; return r }
func (r row) demoted() row { r.desired = workerRole; return r }

// putRows makes the store's nodes these, of a cluster that is founded.
func putRows(tb interface{ Fatal(...any) }, st *store.Store, rows map[string]row) {
	var writes []*swarmpb.Write
	put := func(r *swarmpb.Row) {
		writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_Put{Put: r}})
	}
	if st.View().Cluster() == nil {
		put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: &swarmpb.Cluster{Id: "c"}}})
	}
	for node := range st.View().Nodes() {
		if _, ok := rows[node.GetId()]; !ok {
			writes = append(writes, removeNode(node.GetId()))
		}
	}
	for id, r := range rows {
		put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id, Spec: &swarmpb.NodeSpec{DesiredRole: r.desired}, Role: r.certified}}})
		put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: &swarmpb.NodeStatus{NodeId: id, State: r.state, ManagerAddress: r.address}}})
	}
	if len(writes) == 0 {
		return
	}
	if _, err := store.NewLocalProposer(st).Propose(context.Background(), &swarmpb.Proposal{Writes: writes, Now: time.Now().UnixNano()}); err != nil {
		tb.Fatal(err)
	}
}

func voterAt(id, address string) replica.Member {
	return replica.Member{ID: id, Address: address, Voter: true}
}

func TestSteps_RowsAndConfiguration_SayWhatToDo(t *testing.T) {
	const a1, a2, a3, a4 = "10.0.0.1:2377", "10.0.0.2:2377", "10.0.0.3:2377", "10.0.0.4:2377"
	three := []replica.Member{voterAt("n1", a1), voterAt("n2", a2), voterAt("n3", a3)}
	all := map[string]row{"n1": managerAt(a1), "n2": managerAt(a2), "n3": managerAt(a3)}
	with := func(changes map[string]row) map[string]row {
		rows := maps.Clone(all)
		maps.Copy(rows, changes)
		return rows
	}
	without := func(ids ...string) map[string]row {
		rows := maps.Clone(all)
		for _, id := range ids {
			delete(rows, id)
		}
		return rows
	}
	for _, tc := range []struct {
		name    string
		rows    map[string]row
		members []replica.Member
		behind  string // its log has not caught up
		want    []string
		blocked string
	}{
		{"at rest", all, three, "", nil, ""},
		{"a worker", with(map[string]row{"w": {workerRole, workerRole, nodeReady, ""}}), three, "", nil, ""},
		{"joined, address known", with(map[string]row{"n4": managerAt(a4)}), three, "", []string{"add a manager without a vote n4 " + a4}, ""},
		{"joined, address not known", with(map[string]row{"n4": managerAt("")}), three, "", nil, ""},
		{"joined, gone again", with(map[string]row{"n4": managerAt(a4).down()}), three, "", nil, ""},
		{"joined by loopback", with(map[string]row{"n4": managerAt("127.0.0.1:2377")}), three, "", nil, ""},
		{"promoted, certificate not issued", with(map[string]row{"n4": {managerRole, workerRole, nodeReady, a4}}), three, "", nil, ""},
		{"caught up", with(map[string]row{"n4": managerAt(a4)}), append(slices.Clone(three), replica.Member{ID: "n4", Address: a4}), "",
			[]string{"give a manager its vote n4 "}, ""},
		{"not caught up", with(map[string]row{"n4": managerAt(a4)}), append(slices.Clone(three), replica.Member{ID: "n4", Address: a4}), "n4", nil, ""},
		{"moved", with(map[string]row{"n2": managerAt(a4)}), three, "", []string{"write a manager's new address n2 " + a4}, ""},
		{"non-voter moved", with(map[string]row{"n4": managerAt(a4)}), append(slices.Clone(three), replica.Member{ID: "n4", Address: "10.0.0.9:2377"}), "",
			[]string{"write a manager's new address n4 " + a4}, ""},
		{"moved to another's address", with(map[string]row{"n2": managerAt(a3)}), three, "", nil, "its address " + a3 + " is that of manager n3"},
		{"joined at another's address", with(map[string]row{"n4": managerAt(a3)}), three, "", nil, "its address " + a3 + " is that of manager n3"},
		{"two joined at one address", with(map[string]row{"n4": managerAt(a4), "n5": managerAt(a4)}), three, "", []string{"add a manager without a vote n4 " + a4}, ""},
		{"the leader's row says another address", with(map[string]row{"n1": managerAt("127.0.0.1:2377")}), three, "", nil, ""},
		{"demoted", with(map[string]row{"n3": managerAt(a3).demoted()}), three, "", []string{"remove a manager n3 "}, ""},
		{"removed", without("n3"), three, "", []string{"remove a manager n3 "}, ""},
		{"demoted non-voter", with(map[string]row{"n4": managerAt(a4).demoted()}), append(slices.Clone(three), replica.Member{ID: "n4", Address: a4}), "n4",
			[]string{"remove a manager n4 "}, ""},
		{"demoted while another does not answer", with(map[string]row{"n3": managerAt(a3).demoted()}), three, "n2", nil, "no majority of managers that answers"},
		{"removed while it does not answer", without("n3"), three, "n3", []string{"remove a manager n3 "}, ""},
		{"two removed, one of them answers: the other goes first", without("n2", "n3"), three, "n2", []string{"remove a manager n2 "}, "no majority of managers that answers"},
		{"the leader is demoted", with(map[string]row{"n1": managerAt(a1).demoted(), "n2": managerAt(a2).down()}), three, "",
			[]string{"hand leadership over, as this node is to be a manager no longer n3 "}, ""},
		{"the leader is removed", without("n1"), three, "", []string{
			"hand leadership over, as this node is to be a manager no longer n2 ", "hand leadership over, as this node is to be a manager no longer n3 "}, ""},
		{"the last manager is demoted", map[string]row{"n1": managerAt(a1).demoted()}, three[:1], "", nil, "no other manager with a vote"},
		{"one is replaced: it goes last", with(map[string]row{"n3": managerAt(a3).demoted(), "n4": managerAt(a4)}), three, "",
			[]string{"add a manager without a vote n4 " + a4, "remove a manager n3 "}, ""},
	} {
		st := store.New()
		putRows(t, st, tc.rows)
		s := situation{self: "n1", address: a1, view: st.View(), members: tc.members, caughtUp: func(id string) bool { return id != tc.behind }}
		steps, blocked := s.steps()
		var got []string
		for _, s := range steps {
			got = append(got, fmt.Sprint(s.kind, " ", s.node, " ", s.address))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		reasons := strings.Join(slices.Collect(maps.Values(blocked)), "; ")
		if !strings.Contains(reasons, tc.blocked) || tc.blocked == "" && reasons != "" {
			t.Errorf("%s: blocked %q, want %q", tc.name, reasons, tc.blocked)
		}
	}
}

func TestSteps_BeforeTheFirstRows_NothingToDoAndNothingToComplainAbout(t *testing.T) {
	s := situation{
		self: "n1", address: "10.0.0.1:2377", view: store.New().View(), members: []replica.Member{voterAt("n1", "10.0.0.1:2377")},
		caughtUp: func(string) bool { return true },
	}
	if steps, blocked := s.steps(); len(steps) > 0 || len(blocked) > 0 {
		t.Errorf("steps %v, blocked %v", steps, blocked)
	}
}

// fakeRaft is Raft's configuration in memory.
type fakeRaft struct {
	mu      sync.Mutex
	members []replica.Member
	behind  map[string]bool
	fail    func(call string) error
	calls   map[string]int
	heir    string
}

func (f *fakeRaft) call(name string, do func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = make(map[string]int)
	}
	f.calls[name]++
	if f.fail != nil {
		if err := f.fail(name); err != nil {
			return err
		}
	}
	do()
	return nil
}

func (f *fakeRaft) Members() []replica.Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.members)
}

func (f *fakeRaft) CaughtUp(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.behind[id]
}

func (f *fakeRaft) AddMember(_ context.Context, id, address string) error {
	return f.call("add "+id, func() {
		for i := range f.members {
			if f.members[i].ID == id {
				f.members[i].Address = address
				return
			}
		}
		f.members = append(f.members, replica.Member{ID: id, Address: address})
	})
}

func (f *fakeRaft) MakeVoter(_ context.Context, id string) error {
	return f.call("vote "+id, func() {
		for i := range f.members {
			f.members[i].Voter = f.members[i].Voter || f.members[i].ID == id
		}
	})
}

func (f *fakeRaft) RemoveMember(_ context.Context, id string) error {
	return f.call("remove "+id, func() {
		f.members = slices.DeleteFunc(f.members, func(m replica.Member) bool { return m.ID == id })
	})
}

func (f *fakeRaft) TransferLeadership(_ context.Context, id string) error {
	return f.call("hand over to "+id, func() { f.heir = id })
}

func (f *fakeRaft) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeRaft) count(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

func (f *fakeRaft) wentTo() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heir
}

func (f *fakeRaft) allCalls() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.calls)
}

func voters(members []replica.Member) (ids []string) {
	for _, m := range members {
		if m.Voter {
			ids = append(ids, m.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func TestMembership_LeaderChangesBetweenSteps_TheNextOneGoesOn(t *testing.T) {
	const a1, a2, a3 = "10.0.0.1:2377", "10.0.0.2:2377", "10.0.0.3:2377"
	synctest.Test(t, func(t *testing.T) {
		st := store.New()
		rows := map[string]row{"n1": managerAt(a1)}
		putRows(t, st, rows)
		raft := &fakeRaft{members: []replica.Member{voterAt("n1", a1)}, behind: map[string]bool{"n2": true}}
		lead := func(self, address string) (end func()) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- newMembership(st, raft, self, address, slog.New(slog.DiscardHandler)).run(ctx) }()
			return func() {
				cancel()
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("it ended with %v", err)
				}
			}
		}
		expect := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			if got := voters(raft.Members()); !slices.Equal(got, want) {
				t.Fatalf("%s: voters %v, want %v", when, got, want)
			}
		}
		end := lead("n1", a1)
		synctest.Wait()
		rows["n2"] = managerAt(a2)
		putRows(t, st, rows)
		synctest.Wait() // no timer has to pass: the change wakes it
		if len(raft.Members()) != 2 {
			t.Fatalf("n2 was not added: %v", raft.Members())
		}
		end()
		// In the middle another leader takes over.
		end = lead("n1", a1)
		time.Sleep(time.Minute)
		expect("n2 is behind", "n1")
		raft.set(func() { raft.behind = nil })
		time.Sleep(2 * membershipEvery)
		expect("n2 has caught up", "n1", "n2")

		rows["n3"] = managerAt(a3)
		rows["n1"] = managerAt(a1).demoted()
		putRows(t, st, rows)
		time.Sleep(2 * membershipEvery)
		expect("n1 leads and is demoted", "n1", "n2", "n3")
		if heir := raft.wentTo(); heir != "n2" {
			t.Fatalf("leadership went to %q", heir)
		}
		end()
		end = lead("n2", a2)
		time.Sleep(2 * membershipEvery)
		expect("n2 leads", "n2", "n3")
		end()
	})
}

func TestMembership_StepFails_BacksOffAndTheOthersGoOn(t *testing.T) {
	const a1, a2, a3 = "10.0.0.1:2377", "10.0.0.2:2377", "10.0.0.3:2377"
	synctest.Test(t, func(t *testing.T) {
		st := store.New()
		putRows(t, st, map[string]row{"n1": managerAt(a1), "n2": managerAt(a2), "n3": managerAt(a3)})
		raft := &fakeRaft{members: []replica.Member{voterAt("n1", a1)}}
		raft.fail = func(call string) error {
			if call == "add n2" {
				return wire.Errorf(wire.CodeUnavailable, "no")
			}
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- newMembership(st, raft, "n1", a1, slog.New(slog.DiscardHandler)).run(ctx) }()
		time.Sleep(10 * time.Minute)
		if got := voters(raft.Members()); !slices.Equal(got, []string{"n1", "n3"}) {
			t.Errorf("voters %v", got)
		}
		if n := raft.count("add n2"); n < 15 || n > 40 {
			t.Errorf("the failing step was tried %d times in ten minutes", n)
		}
		raft.set(func() { raft.fail = nil })
		time.Sleep(2 * stepPauseMax)
		if got := voters(raft.Members()); !slices.Equal(got, []string{"n1", "n2", "n3"}) {
			t.Errorf("voters %v after the error", got)
		}
		// At rest it asks nothing of Raft.
		calls := raft.allCalls()
		time.Sleep(time.Hour)
		if now := raft.allCalls(); !maps.Equal(calls, now) {
			t.Errorf("at rest: %v, before %v", now, calls)
		}
		cancel()
		<-done
	})
}
