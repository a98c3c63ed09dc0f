package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func putNode(id string) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: id}}}}}
}

func removeNode(id string) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(id)}}
}

func TestFollowRemovals_NodesGoWatchedUnwatchedAndWithTheStore_NoneIsMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := store.New()
		apply := func(entry *swarmpb.Entry) {
			for _, result := range st.Apply(st.View().Index()+1, 1, entry) {
				if err := store.ResultError(result); err != nil {
					t.Fatal(err)
				}
			}
		}
		one := func(writes ...*swarmpb.Write) *swarmpb.Entry {
			return &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Term: 1, Now: 1, Writes: writes}}}
		}
		apply(one(putNode("watched"), putNode("unwatched"), putNode("restored"), putNode("stays")))
		live := map[string]bool{"watched": true, "unwatched": true, "restored": true, "stays": true}
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for id := range live {
				got = append(got, id)
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Fatalf("connected are %v, want %v", got, want)
			}
		}
		missed := func() {
			for id := range live {
				if st.View().Node(id) == nil {
					delete(live, id)
				}
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- followRemovals(ctx, func() *store.Store { return st }, missed, func(id string) { delete(live, id) })
		}()
		synctest.Wait()

		apply(one(removeNode("watched")))
		expect("restored", "stays", "unwatched")

		// More changes in one entry than may wait for a watcher.
		entry := one(removeNode("unwatched"))
		for i := range store.MaxFeedChanges/store.MaxWrites + 2 {
			p := &swarmpb.Proposal{Term: 1, Now: 1}
			for j := range store.MaxWrites {
				p.Writes = append(p.Writes, putNode(fmt.Sprint("n", i, ".", j)))
			}
			entry.Proposals = append(entry.Proposals, p)
		}
		apply(entry)
		expect("restored", "stays")

		// A store that was restored from a snapshot takes the place of this one.
		old := st
		st = store.New()
		apply(one(putNode("stays")))
		old.Close()
		expect("stays")

		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
}

func TestJudge_StoreMayBeBehind_OnlyWhoIsGoneIsKeptOut(t *testing.T) {
	type world struct {
		rows    map[string]row // nil: the cluster's row is not there yet
		raft    []string
		leader  string
		learned map[string]row // what a read index brings
		err     error          // of the read index
	}
	present := map[string]row{"here": {workerRole, workerRole, nodeReady, ""}}
	for _, tc := range []struct {
		name      string
		world     world
		node      string
		certified swarmpb.NodeRole
		standing  wire.Standing
		asked     bool
	}{
		{"nothing is known yet", world{leader: "m"}, "n", workerRole, wire.StandingMember, false},
		{"a node", world{rows: present, leader: "m"}, "here", workerRole, wire.StandingMember, false},
		{"a member of Raft without a row", world{rows: present, raft: []string{"n"}, leader: "m"}, "n", managerRole, wire.StandingMember, false},
		{"removed", world{rows: present, leader: "m", learned: present}, "n", workerRole, wire.StandingRemoved, true},
		{"a removed manager", world{rows: present, leader: "m", learned: present}, "n", managerRole, wire.StandingRemoved, true},
		{"joined, this store is behind", world{rows: present, leader: "m", learned: map[string]row{"n": managerAt("")}}, "n", managerRole, wire.StandingMember, true},
		{"no answer from the leader", world{rows: present, leader: "m", err: errors.New("no")}, "n", workerRole, wire.StandingUnknown, true},
		{"a worker, no leader to ask", world{rows: present}, "n", workerRole, wire.StandingUnknown, false},
		{"a manager, no leader: it may be the new one", world{rows: present}, "n", managerRole, wire.StandingMember, false},
		{"the leader itself", world{rows: present, leader: "n"}, "n", managerRole, wire.StandingMember, false},
	} {
		st := store.New()
		put := func(rows map[string]row) {
			if rows != nil {
				putRows(t, st, rows)
			}
		}
		put(tc.world.rows)
		asked := false
		j := &judge{
			view: st.View, inRaft: func(id string) bool { return slices.Contains(tc.world.raft, id) },
			leader: func() string { return tc.world.leader },
			readIndex: func(ctx context.Context) (uint64, error) {
				if _, bounded := ctx.Deadline(); !bounded {
					t.Errorf("%s: a read index without a limit", tc.name)
				}
				asked = true
				put(tc.world.learned)
				return 0, tc.world.err
			},
		}
		if got := j.standing(tc.node, tc.certified); got != tc.standing || asked != tc.asked {
			t.Errorf("%s: standing %v, asked the leader %v", tc.name, got, asked)
		}
	}
}

func TestJudge_CertificateSaysManager_CountsWhileItIsOneOrMayBe(t *testing.T) {
	st := store.New()
	leader := "m"
	j := &judge{
		view: st.View, leader: func() string { return leader },
		role: func(id string) swarmpb.NodeRole { return st.View().Node(id).GetSpec().GetDesiredRole() },
	}
	expect := func(when, id string, want swarmpb.NodeRole) {
		t.Helper()
		if got := j.countsAs(id, managerRole); got != want {
			t.Errorf("%s: %s counts as %s", when, id, got.Name())
		}
	}
	expect("an empty store", "m", managerRole)
	putRows(t, st, map[string]row{"m": managerAt(""), "old": managerAt("").demoted()})
	expect("a manager", "m", managerRole)
	expect("demoted", "old", workerRole)
	expect("unknown: standing decides", "n", managerRole)
	leader = "old"
	expect("it leads: this store is behind", "old", managerRole)
	leader = ""
	expect("no leader: it may be the new one, and this store behind", "old", managerRole)
}

func TestFollowRemovals_ManagerIsDemoted_ConnectionsAreJudgedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := store.New()
		putRows(t, st, map[string]row{"m": managerAt("a:1"), "w": {workerRole, workerRole, nodeReady, ""}})
		sweeps := 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- followRemovals(ctx, func() *store.Store { return st }, func() { sweeps++ }, func(string) {})
		}()
		synctest.Wait()
		before := sweeps
		putRows(t, st, map[string]row{"m": managerAt("a:1"), "w": {workerRole, workerRole, nodeDown, ""}})
		synctest.Wait()
		if sweeps != before {
			t.Errorf("swept for a change of state")
		}
		putRows(t, st, map[string]row{"m": managerAt("a:1").demoted(), "w": {workerRole, workerRole, nodeDown, ""}})
		synctest.Wait()
		if sweeps != before+1 {
			t.Errorf("%d sweeps for a demotion", sweeps-before)
		}
		cancel()
		<-done
	})
}
