package dispatcher

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestBeats_Counted_AnsweredWithTheNewest(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		old, err := c.open("n2", "b2", false)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if sent, heard, n := w.sequence.Load(), w.answered.Load(), w.answers.Load(); heard != sent || n > int64(sent) || sent < 19 {
			t.Errorf("of %d beats %d is answered, %d times", sent, heard, n)
		}
		if n := old.answers.Load(); n != 0 {
			t.Errorf("a worker that does not count its beats got %d answers", n)
		}
		// Without a leader the beats go on and the answers do not.
		c.endLead()
		time.Sleep(1300 * time.Millisecond)
		heard := w.answered.Load()
		time.Sleep(1200 * time.Millisecond)
		if w.answered.Load() != heard || w.sequence.Load() < heard+2 {
			t.Errorf("beat %d of %d is answered without a leader", w.answered.Load(), w.sequence.Load())
		}
		c.lead()
		time.Sleep(600 * time.Millisecond)
		synctest.Wait()
		if w.answered.Load() != w.sequence.Load() {
			t.Error("beats are not answered under the new leader")
		}
	})
}

// TestBeats_LeaderThatCannotBeSure_AnswersNone: a leader that its followers do not confirm may be one no more.
func TestBeats_LeaderThatCannotBeSure_AnswersNone(t *testing.T) {
	var alone atomic.Bool
	adjust := func(cfg *Config) {
		index := cfg.ReadIndex
		cfg.ReadIndex = func(ctx context.Context) (uint64, error) {
			if alone.Load() {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return index(ctx)
		}
	}
	inClusterWith(t, []string{"n1"}, adjust, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		time.Sleep(2 * time.Second)
		alone.Store(true)
		time.Sleep(1300 * time.Millisecond)
		heard := w.answered.Load()
		time.Sleep(time.Second)
		if now := w.answered.Load(); now != heard || heard == 0 {
			t.Errorf("beat %d is answered, after %d", now, heard)
		}
		expectCode(t, <-w.ended, wire.CodeUnavailable, "another manager")
	})
}

func TestSession_AnswersThatWait_BecomeOne(t *testing.T) {
	x := newSession("s", "n", "b", &Facts{}, time.Now())
	for _, n := range []uint64{1, 2, 5, 4, 0} {
		x.beat(time.Now(), &swarmpb.SessionBeat{Sequence: n}, true)
	}
	x.beat(time.Now(), &swarmpb.SessionBeat{Sequence: 6}, false)
	if len(x.renew) != 1 || x.answer() != 5 {
		t.Errorf("%d answers wait, the newest is for %d", len(x.renew), x.answer())
	}
}

func keysOf(c *swarmpb.NodeConfig) (out string) {
	for _, key := range c.GetGossipKeys() {
		out += string(key) + " "
	}
	return out
}

// rotate writes the cluster's gossip keys, the second one primary, and returns the row's version.
func (w *world) rotate(keys ...string) uint64 {
	w.t.Helper()
	cluster := swarmpb.Clone(w.view().Cluster())
	cluster.GossipKeys = nil
	for i, key := range keys {
		cluster.GossipKeys = append(cluster.GossipKeys, &swarmpb.GossipKey{Key: []byte(key), Primary: i == len(keys)-1})
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: cluster}})
	return w.view().Index()
}

func TestNodeConfig_KeysRotate_AckMeansDelivered(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		c.rotate("a")
		w := c.mustConnect("n1", "b1")
		h := w.assignments()
		time.Sleep(time.Second)
		if got := keysOf(h.config); got != "a " {
			t.Fatalf("keys %q", got)
		}
		version := c.rotate("a", "b")
		if acked, ok := c.server.Acked("n1"); !ok || acked >= version {
			t.Fatalf("version %d is acknowledged before it was sent: %d %t", version, acked, ok)
		}
		time.Sleep(time.Second)
		h.mu.Lock()
		got := keysOf(h.config)
		h.mu.Unlock()
		if acked, ok := c.server.Acked("n1"); got != "b a " || !ok || acked < version {
			t.Fatalf("keys %q, acknowledged %d %t of %d", got, acked, ok, version)
		}
		// A worker that takes no more sets acknowledges no more, whatever else happens.
		w.mute.Store(true)
		c.task(1, "n1")
		version = c.rotate("b")
		time.Sleep(2 * time.Second)
		if acked, _ := c.server.Acked("n1"); acked >= version {
			t.Errorf("version %d is acknowledged by a node that says nothing: %d", version, acked)
		}
	})
}

func TestNodeConfig_RoleChanges_ToldWithAndWithoutARow(t *testing.T) {
	var raft atomic.Int32
	for _, tc := range []struct {
		name   string
		adjust func(*Config)
		change func(c *cluster)
	}{
		{"desired role", nil, func(c *cluster) {
			node := swarmpb.Clone(c.view().Node("n1"))
			node.Spec = &swarmpb.NodeSpec{DesiredRole: swarmpb.NodeRole_NODE_ROLE_MANAGER}
			c.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}})
		}},
		{"Raft's configuration", func(cfg *Config) {
			raft.Store(int32(swarmpb.NodeRole_NODE_ROLE_WORKER))
			cfg.Role = func(string) swarmpb.NodeRole { return swarmpb.NodeRole(raft.Load()) }
		}, func(*cluster) { raft.Store(int32(swarmpb.NodeRole_NODE_ROLE_MANAGER)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inClusterWith(t, []string{"n1"}, tc.adjust, func(t *testing.T, c *cluster) {
				id := c.task(1, "n1")
				h := c.mustConnect("n1", "b1").assignments()
				role := func() swarmpb.NodeRole {
					h.mu.Lock()
					defer h.mu.Unlock()
					return h.config.GetRole()
				}
				time.Sleep(time.Minute)
				if role() != swarmpb.NodeRole_NODE_ROLE_WORKER {
					t.Fatalf("role %s", role().Name())
				}
				tc.change(c)
				time.Sleep(time.Second)
				if role() != swarmpb.NodeRole_NODE_ROLE_MANAGER || !h.has(id) {
					t.Fatalf("role %s, task %t", role().Name(), h.has(id))
				}
				if acked, ok := c.server.Acked("n1"); !ok || acked != c.view().Index() {
					t.Errorf("acked %d %t, want %d", acked, ok, c.view().Index())
				}
				c.task(2, "n1")
				time.Sleep(time.Second)
				h.expect(c.view(), "n1")
			})
		})
	}
}

func TestUpdateStatus_NoLeader_UnavailableAtOnce(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		id := c.task(1, "n1")
		time.Sleep(time.Second)
		c.refuse = func() error {
			time.Sleep(5 * time.Second) // as a replica does
			return wire.Errorf(wire.CodeUnavailable, "no leader")
		}
		before := c.proposed.Load()
		expectCode(t, w.update(&swarmpb.TaskStatus{TaskId: id, State: stRunning}), wire.CodeUnavailable, "no leader")
		if n := c.proposed.Load() - before; n != 1 {
			t.Errorf("proposed %d times", n)
		}
		// A session that ends does not keep its calls.
		done := make(chan error, 1)
		go func() { // not in the worker's context, which ends with the session
			_, err := c.client.UpdateStatus(asNode(c.ctx, "n1"), &swarmpb.UpdateStatusRequest{
				SessionId: w.id, Statuses: []*swarmpb.TaskStatus{{TaskId: id, State: stRunning}}})
			done <- err
		}()
		time.Sleep(time.Second)
		c.delete(swarmpb.NodeKey("n1"))
		synctest.Wait()
		expectCode(t, <-done, wire.CodePermissionDenied, "removed")
	})
}
