package replica

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/swarmd/swarmd/proto/wire"
)

// askRejoin has a member that does not run ask another one.
func (m *member) askRejoin(to *member) error {
	conn, err := m.config().DialManager(to.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	return AskRejoin(m.cluster.t.Context(), conn)
}

func TestRejoin_DamagedMember_BeginsAgainFromNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		for i := range 50 {
			c.leader().mustPropose(alarm(fmt.Sprint(i), ""))
		}
		damaged := c.follower()
		damaged.stop()
		if err := os.WriteFile(filepath.Join(damaged.dir, "raft.db"), []byte("no database"), 0o600); err != nil {
			t.Fatal(err)
		}
		var data *DataError
		if _, err := New(damaged.config()); !errors.As(err, &data) {
			t.Fatalf("New on damaged data: %v", err)
		}
		leader := c.leader()
		for _, m := range c.members {
			if m != leader && m != damaged {
				if err := damaged.askRejoin(m); !errors.Is(err, wire.ErrNotLeader) {
					t.Errorf("a follower answers %v", err)
				}
			}
		}
		for range 2 {
			if err := damaged.askRejoin(leader); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range leader.Members() {
			if m.Voter == (m.ID == damaged.id) {
				t.Errorf("after it asked: %+v", m)
			}
		}
		moved, err := SetAside(damaged.dir)
		if err != nil || moved == "" {
			t.Fatalf("SetAside = %q, %v", moved, err)
		}
		damaged.restart()
		c.join(damaged)
		if _, err := damaged.ReadIndex(t.Context()); err != nil || damaged.count("49") != 1 {
			t.Errorf("after the rejoin: %v, count %d", err, damaged.count("49"))
		}
	})
}

func TestRejoin_WithoutAMajorityOfTheOthers_IsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		// With two of five gone, the third may not go; of three, one that is gone leaves no majority of the two.
		leader, gone := c.leader(), c.follower()
		var damaged *member
		for _, m := range c.members {
			if m != leader && m != gone {
				damaged = m
			}
		}
		c.net.partition(gone.address, true)
		eventually(t, "the leader to miss it", func() bool { return !leader.CaughtUp(gone.id) })
		if err := damaged.askRejoin(leader); !errors.Is(err, wire.ErrFailedPrecondition) {
			t.Errorf("Rejoin = %v", err)
		}
		if leader.list() != " m1 m2 m3" {
			t.Errorf("after the refusal:%s", leader.list())
		}
		if err := leader.askRejoin(leader); !errors.Is(err, wire.ErrFailedPrecondition) {
			t.Errorf("Rejoin of the leader: %v", err)
		}
	})
}

// TestRejoin_LogThatIsGone_DoesNotCountAsCaughtUp: a member that answers again may have an empty log, and the leader learns
// that later than that it is there.
func TestRejoin_LogThatIsGone_DoesNotCountAsCaughtUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		leader, damaged := c.leader(), c.follower()
		for i := range 50 {
			leader.mustPropose(alarm(fmt.Sprint(i), ""))
		}
		eventually(t, "the follower to catch up", func() bool { return leader.CaughtUp(damaged.id) })
		damaged.stop()
		if err := damaged.askRejoin(leader); err != nil {
			t.Fatal(err)
		}
		term := leader.node.Load().CurrentTerm()
		heartbeat := &raft.AppendEntriesRequest{Term: term}
		leader.progress.observe(raft.ServerID(damaged.id), heartbeat, &raft.AppendEntriesResponse{Term: term, Success: true})
		if leader.CaughtUp(damaged.id) {
			t.Error("a member that began again counts as caught up by the log that it had before")
		}
	})
}

func TestSetAside_KeepsTheNewestTwo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	if moved, err := SetAside(filepath.Join(dir, "gone", "raft")); moved != "" || err != nil {
		t.Fatalf("SetAside below a directory that is not there = %q, %v", moved, err)
	}
	if moved, err := SetAside(dir); moved != "" || err != nil {
		t.Errorf("nothing there: %q, %v", moved, err)
	}
	for i := range 12 {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		moved, err := SetAside(dir)
		if want := fmt.Sprintf("%s.damaged-%d", dir, i+1); err != nil || moved != want {
			t.Fatalf("SetAside = %q, %v; want %q", moved, err, want)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(dir))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); err != nil || got != "raft.damaged-11 raft.damaged-12" {
		t.Errorf("left: %s, %v", got, err)
	}
}
