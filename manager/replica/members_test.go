package replica

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/swarmd/swarmd/proto/wire"
)

// list prints the members as this one has them: "m1 m2 m3-" where "-" has no vote.
func (m *member) list() string {
	text := ""
	for _, member := range m.Members() {
		text += " " + member.ID
		if !member.Voter {
			text += "-"
		}
	}
	return text
}

func wantMembers(t *testing.T, c *cluster, want string) {
	t.Helper()
	for _, m := range c.members {
		if m.cancel != nil {
			eventually(t, fmt.Sprintf("%s to have%s; it has%s", m.id, want, m.list()), func() bool { return m.list() == want })
		}
	}
}

func TestMembers_AddedPromotedMovedRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		leader := c.leader()
		m4 := c.start("m4")
		if m4.list() != "" {
			t.Errorf("a member without a cluster has members:%s", m4.list())
		}
		c.net.partition(m4.address, true)
		c.add(m4)
		c.add(m4)
		if err := leader.MakeVoter(t.Context(), "m4"); !errors.Is(err, wire.ErrFailedPrecondition) {
			t.Errorf("vote for a member that never answered: %v", err)
		}
		c.net.partition(m4.address, false)
		eventually(t, "m4 to catch up", func() bool { return leader.CaughtUp("m4") })
		wantMembers(t, c, " m1 m2 m3 m4-")
		if err := leader.MakeVoter(t.Context(), "m4"); err != nil {
			t.Fatal(err)
		}
		wantMembers(t, c, " m1 m2 m3 m4")

		m4.stop()
		eventually(t, "the leader to miss m4", func() bool { return !leader.CaughtUp("m4") })
		m4.address = "m4:2388"
		m4.restart()
		c.add(m4)
		eventually(t, "m4 to answer at its new address", func() bool { return leader.CaughtUp("m4") })
		if m := leader.Members()[3]; m != (Member{ID: "m4", Address: "m4:2388", Voter: true}) {
			t.Errorf("after the move it is %+v", m)
		}
		if err := leader.AddMember(t.Context(), "m5", m4.address); !errors.Is(err, wire.ErrInUse) {
			t.Errorf("second member at an address: %v", err)
		}
		for range 2 {
			if err := leader.RemoveMember(t.Context(), "m4"); err != nil {
				t.Fatal(err)
			}
		}
		if leader.list() != " m1 m2 m3" || leader.CaughtUp("m4") {
			t.Errorf("after the removal:%s, m4 caught up: %v", leader.list(), leader.CaughtUp("m4"))
		}
	})
}

func TestMembers_RefusedSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		leader, follower := c.leader(), c.follower()
		for what, err := range map[string]error{
			"AddMember": follower.AddMember(t.Context(), "m9", "m9:2377"), "MakeVoter": follower.MakeVoter(t.Context(), "m1"),
			"RemoveMember": follower.RemoveMember(t.Context(), "m1"), "TransferLeadership": follower.TransferLeadership(t.Context(), ""),
		} {
			if !errors.Is(err, wire.ErrNotLeader) {
				t.Errorf("%s on a follower: %v", what, err)
			}
		}
		if follower.CaughtUp(leader.id) {
			t.Error("a follower says who has caught up")
		}
		if err := leader.MakeVoter(t.Context(), "m9"); !errors.Is(err, wire.ErrNotFound) {
			t.Errorf("vote for a stranger: %v", err)
		}
		if err := leader.RemoveMember(t.Context(), leader.id); !errors.Is(err, wire.ErrFailedPrecondition) {
			t.Errorf("removal of the leader: %v", err)
		}
		if err := leader.TransferLeadership(t.Context(), "m9"); !errors.Is(err, wire.ErrInvalid) {
			t.Errorf("leadership to a stranger: %v", err)
		}
		for _, m := range c.members {
			if m != leader {
				m.stop()
			}
		}
		if err := leader.AddMember(t.Context(), "m9", "m9:2377"); !errors.Is(err, wire.ErrUnavailable) && !errors.Is(err, wire.ErrNotLeader) {
			t.Errorf("change without a majority: %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, nil)
		c.add(c.start("m2"))
		if err := c.leader().RemoveMember(t.Context(), "m1"); !errors.Is(err, wire.ErrFailedPrecondition) {
			t.Errorf("removal of the last voter: %v", err)
		}
		if err := c.leader().TransferLeadership(t.Context(), ""); !errors.Is(err, wire.ErrFailedPrecondition) {
			t.Errorf("leadership to nobody: %v", err)
		}
	})
}

// Steps decided on the same members exclude each other.
func TestMembers_ChangedAtOnce_EachStepSeesTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		leader := c.leader()
		const n = 4
		errs := make(chan error, n)
		for i := range n {
			go func() { errs <- leader.AddMember(t.Context(), fmt.Sprint("x", i), fmt.Sprint("x", i, ":2377")) }()
		}
		done := 0
		for range n {
			switch err := <-errs; {
			case err == nil:
				done++
			case !errors.Is(err, wire.ErrConflict):
				t.Error(err)
			}
		}
		if got := len(leader.Members()) - 3; done == 0 || got != done {
			t.Errorf("%d steps succeeded, %d members are new", done, got)
		}
		err := leader.changeMembers(t.Context(), "remove x", func([]raft.Server) (configurationStep, error) {
			return removal("x0"), leader.AddMember(t.Context(), "late", "late:2377")
		})
		if !errors.Is(err, wire.ErrConflict) {
			t.Errorf("step decided on older members: %v", err)
		}
	})
}

func TestRemovedMember_DoesNotDisturb(t *testing.T) {
	for _, knows := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3, nil)
			leader, out := c.leader(), c.follower()
			c.net.partition(out.address, !knows)
			if err := leader.RemoveMember(t.Context(), out.id); err != nil {
				t.Fatal(err)
			}
			c.net.partition(out.address, false)
			term := leader.node.Load().CurrentTerm()
			for i := range 20 {
				leader.mustPropose(alarm(fmt.Sprint(i), ""))
				<-time.After(500 * time.Millisecond)
			}
			if now := leader.node.Load().CurrentTerm(); c.leader() != leader || now != term {
				t.Errorf("leadership moved from term %d to %d (it knows of its removal: %v)", term, now, knows)
			}
			if _, err := out.Propose(t.Context(), alarm("out", "")); !errors.Is(err, wire.ErrUnavailable) {
				t.Errorf("write through a removed member: %v", err)
			}
			select {
			case err := <-out.done:
				t.Errorf("its Run ended: %v", err)
			default:
			}
		})
	}
}

func TestNonvoter_NeverPromoted_ServesAsFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		m4 := c.start("m4")
		c.add(m4)
		m4.mustPropose(alarm("a", "r"))
		if _, err := m4.ReadIndex(t.Context()); err != nil || m4.count("a") != 1 {
			t.Errorf("ReadIndex: %v, count %d", err, m4.count("a"))
		}
		old := c.leader()
		c.net.partition(old.address, true)
		m4.mustPropose(alarm("b", "r2"))
		c.net.partition(old.address, false)
		if c.leader() == m4 {
			t.Error("a member without a vote leads")
		}
		if age, ok := m4.LastContact(); !ok || age > time.Second {
			t.Errorf("LastContact = %s, %v", age, ok)
		}
		conn, id, err := m4.LeaderConn()
		if err != nil || id != c.leader().id || conn == nil {
			t.Errorf("LeaderConn = %v, %q, %v", conn, id, err)
		}
		if _, _, err := c.leader().LeaderConn(); !errors.Is(err, wire.ErrUnavailable) {
			t.Errorf("LeaderConn on the leader: %v", err)
		}
	})
}

// Raft believes in a configuration that its leader failed to write. Nothing may be built on it.
func TestChangeThatCouldNotBeWritten_LeavesNoTrace(t *testing.T) {
	for _, n := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, n, func(m *member) {
				m.tuning = Tuning{SnapshotThreshold: 20, SnapshotInterval: 200 * time.Millisecond, TrailingLogs: 1}
			})
			old := c.leader()
			old.mustPropose(alarm("before", ""))
			before := old.list()
			broken := errors.New("broken disk")
			old.logs.setFault(func() error { return broken })
			if err := old.AddMember(t.Context(), "phantom", "phantom:2377"); err == nil {
				t.Fatal("a change was made on a broken disk")
			}
			old.logs.setFault(func() error { return nil })
			for i := range 200 { // past some snapshots
				c.leader().mustPropose(alarm(fmt.Sprint(i), fmt.Sprint(n, "-", i)))
				<-time.After(10 * time.Millisecond)
			}
			believed := old.node.Load().GetConfiguration().Configuration().Servers
			if !slices.ContainsFunc(believed, func(s raft.Server) bool { return s.ID == "phantom" }) {
				t.Error("Raft does not believe in it any more: this test tests nothing")
			}
			wantMembers(t, c, before)
			list, _ := old.snapshots.List()
			if len(list) == 0 || len(list[0].Configuration.Servers) != n {
				t.Errorf("snapshot with %v", list)
			}
			c.transfer(old)
			c.add(c.start("z"))
			wantMembers(t, c, before+" z-")
			if now := len(old.node.Load().GetConfiguration().Configuration().Servers); now != n+1 {
				t.Errorf("Raft has %d members", now)
			}
		})
	}
}
