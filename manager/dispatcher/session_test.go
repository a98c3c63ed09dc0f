package dispatcher

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func TestSession_WorkerConnectsAndIsRemoved_ReadyWithDescriptionAndForgotten(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		c.expectState("n1", ready)
		row := c.view().NodeStatus("n1")
		if row.GetDescription().GetHostname() != "host-b1" || row.GetAddress() != "10.0.0.7" || row.GetSince() == 0 || row.GetManagerAddress() != "" {
			t.Errorf("status row %v", row)
		}
		if err := w.send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Description{Description: &swarmpb.NodeDescription{Hostname: "renamed\x1b[31m"}}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if got := c.view().NodeStatus("n1"); got.GetDescription().GetHostname() != "renamed[31m" || got.GetSince() != row.GetSince() {
			t.Errorf("after the change: %v", got)
		}
		described := func() int {
			c.server.leading.mu.Lock()
			defer c.server.leading.mu.Unlock()
			return len(c.server.leading.described)
		}
		if n := described(); n != 1 {
			t.Errorf("the changes of %d nodes are remembered, want 1", n)
		}
		c.delete(swarmpb.NodeKey("n1"))
		time.Sleep(3 * time.Second)
		if n := described(); n != 0 {
			t.Errorf("the changes of %d nodes are remembered after the node was removed", n)
		}
	})
}

func TestSession_Idle_WritesNothing(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		c.mustConnect("n1", "b1").assignments()
		c.mustConnect("n2", "b2").assignments()
		time.Sleep(time.Second)
		before := c.proposed.Load()
		time.Sleep(time.Hour)
		if n := c.proposed.Load() - before; n != 0 {
			t.Errorf("%d proposals in an idle hour", n)
		}
	})
}

func TestSession_WorkerSilent_DownThenReadyOnTheSameStream(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		time.Sleep(1100 * time.Millisecond)
		w.mute.Store(true)
		time.Sleep(2600 * time.Millisecond)
		c.expectState("n1", ready)
		time.Sleep(700 * time.Millisecond)
		c.expectState("n1", down)
		w.mute.Store(false)
		time.Sleep(time.Second)
		c.expectState("n1", ready)
	})
}

func TestSession_StreamEnds_DownByLease(t *testing.T) {
	for _, way := range []string{"cut", "closed"} {
		t.Run(way, func(t *testing.T) {
			inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
				w := c.mustConnect("n1", "b1")
				time.Sleep(1100 * time.Millisecond)
				if way == "cut" {
					w.cut()
				} else if err := w.close(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Second)
				c.expectState("n1", ready)
				time.Sleep(1500 * time.Millisecond)
				c.expectState("n1", down)
			})
		})
	}
}

func TestSession_LongSilence_EndsTheStream(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		w.mute.Store(true)
		expectCode(t, <-w.ended, wire.CodeDeadline, "no beat")
		time.Sleep(time.Minute)
		c.server.mu.Lock()
		defer c.server.mu.Unlock()
		if n := len(c.server.sessions); n != 0 {
			t.Errorf("%d sessions are remembered", n)
		}
	})
}

func TestSession_Clone_RefusedWithAlarmThatEnds(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		time.Sleep(100 * time.Millisecond)
		_, err := c.connect("n1", "b2")
		expectCode(t, err, wire.CodeInUse, "leave --force")
		time.Sleep(time.Second)
		if c.view().Alarm(AlarmDuplicateNode, "n1") == nil {
			t.Fatal("there is no alarm")
		}
		select {
		case err := <-w.ended:
			t.Fatalf("the holder's session ended: %v", err)
		default:
		}
		c.expectState("n1", ready)
		time.Sleep(2 * time.Minute)
		if alarm := c.view().Alarm(AlarmDuplicateNode, "n1"); alarm != nil {
			t.Errorf("alarm %v is still there", alarm)
		}
	})
}

func TestSession_Restart_TakesOverFromHalfOpenStream(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		old := c.mustConnect("n1", "b1")
		time.Sleep(time.Second)
		old.mute.Store(true)
		time.Sleep(200 * time.Millisecond)
		began := time.Now()
		c.mustConnect("n1", "b2")
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("the restart waited %s", d)
		}
		expectCode(t, <-old.ended, wire.CodeFailedPrecondition, "superseded")
		time.Sleep(time.Minute)
		c.expectState("n1", ready)
		if c.view().Alarm(AlarmDuplicateNode, "n1") != nil {
			t.Error("a restart raised an alarm")
		}
	})
}

func TestSession_ReconnectOfSameBoot_SupersedesAtOnce(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		old := c.mustConnect("n1", "b1")
		began := time.Now()
		c.mustConnect("n1", "b1")
		if d := time.Since(began); d > 0 {
			t.Errorf("the reconnect waited %s", d)
		}
		expectCode(t, <-old.ended, wire.CodeFailedPrecondition, "superseded")
		expectCode(t, func() error {
			_, err := c.client.UpdateStatus(asNode(c.ctx, "n1"), &swarmpb.UpdateStatusRequest{SessionId: old.id})
			return err
		}(),
			wire.CodeFailedPrecondition, "open a new one")
	})
}

func TestSession_BeforeTheClustersFirstRows_TurnedAwayForNowOnly(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.store = store.New()
		_, err := c.connect("n1", "b1")
		expectCode(t, err, wire.CodeUnavailable, "being founded")
	})
}

func TestSession_NodeRemoved_EndsForGoodAndOrphansTasks(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		id, done := c.task(1, "n1"), c.task(2, "n1")
		c.status(id, stRunning)
		c.status(done, stFailed)
		time.Sleep(time.Second)
		c.delete(swarmpb.NodeKey("n1"))
		expectCode(t, <-w.ended, wire.CodePermissionDenied, "was removed")
		synctest.Wait()
		if got := c.view().Status(id); got.GetState() != stOrphaned || !strings.Contains(got.GetError(), "removed") {
			t.Errorf("task on the removed node: %v", got)
		}
		if got := c.view().Observed(done); got != stFailed {
			t.Errorf("ended task became %s", got.Name())
		}
		_, err := c.connect("n1", "b1")
		expectCode(t, err, wire.CodePermissionDenied, "n1")
	})
}

func TestLead_NodeRemovedWithoutLeader_OrphanedAtStart(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		id := c.task(1, "n1")
		c.endLead()
		c.delete(swarmpb.NodeKey("n1"))
		c.lead()
		if got := c.view().Observed(id); got != stOrphaned {
			t.Errorf("task is %s", got.Name())
		}
	})
}

func TestSession_NewTerm_NodesKeepReadyAndLostOnesGoDown(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		c.mustConnect("n1", "b1")
		gone := c.mustConnect("n2", "b2")
		time.Sleep(time.Second)
		c.endLead()
		gone.cut()
		time.Sleep(2 * time.Second)
		c.lead()
		time.Sleep(4 * time.Second)
		c.expectState("n1", ready)
		c.expectState("n2", down)
	})
}

func TestSession_NoLeaderForALease_SessionsEnd(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		time.Sleep(time.Second)
		c.endLead()
		expectCode(t, <-w.ended, wire.CodeUnavailable, "another manager")
		_, err := c.connect("n1", "b1")
		expectCode(t, err, wire.CodeUnavailable, "another manager")
		c.lead()
		time.Sleep(time.Second)
		c.mustConnect("n1", "b1")
	})
}

func TestBrake_ManyVanish_AlarmUntilTheyReturn(t *testing.T) {
	nodes := []string{"n1", "n2", "n3", "n4"}
	inCluster(t, nodes, func(t *testing.T, c *cluster) {
		var workers []*worker
		for _, id := range nodes {
			workers = append(workers, c.mustConnect(id, "b"+id))
		}
		time.Sleep(time.Second)
		for _, w := range workers[1:] {
			w.cut()
		}
		time.Sleep(10 * time.Second)
		c.expectState("n2", disconnected)
		alarm := c.view().Alarm(AlarmNodesHeld, "cluster")
		if alarm == nil || !strings.Contains(alarm.GetMessage(), "host-bn2, host-bn3, host-bn4") {
			t.Fatalf("alarm %v", alarm)
		}
		c.endLead()
		c.lead()
		time.Sleep(time.Minute)
		c.expectState("n3", disconnected)
		c.mustConnect("n2", "x")
		c.mustConnect("n3", "x")
		c.delete(swarmpb.NodeKey("n4"))
		time.Sleep(time.Second)
		c.expectState("n3", ready)
		if alarm := c.view().Alarm(AlarmNodesHeld, "cluster"); alarm != nil {
			t.Errorf("alarm %v is still there", alarm)
		}
	})
}

func TestSession_ManagersChange_WorkersLearn(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		w := c.mustConnect("n1", "b1")
		synctest.Wait()
		c.managers.Store(&[]*swarmpb.ManagerPeer{{NodeId: "m"}, {NodeId: "m2"}})
		time.Sleep(time.Second)
		if n := w.peers.Load(); n != 2 {
			t.Errorf("the worker knows %d managers", n)
		}
	})
}

// TestSession_RandomMessages_NeverPanic sends a session whatever the protocol can carry.
func TestSession_RandomMessages_NeverPanic(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		random := rand.New(rand.NewPCG(1, 2))
		text := func() string { return string([]rune{rune(random.IntN(300)), rune(random.IntN(70000)), '\x1b'}) }
		messages := []func() *swarmpb.SessionRequest{
			func() *swarmpb.SessionRequest { return &swarmpb.SessionRequest{} },
			func() *swarmpb.SessionRequest { return hello("b1") },
			func() *swarmpb.SessionRequest { return hello(text()) },
			func() *swarmpb.SessionRequest { return hello(strings.Repeat("b", 100)) },
			func() *swarmpb.SessionRequest { return beat(random.Uint64()) },
			func() *swarmpb.SessionRequest {
				return &swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Hello{}}
			},
			func() *swarmpb.SessionRequest {
				return &swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Beat{}}
			},
			func() *swarmpb.SessionRequest {
				return &swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Description{}}
			},
			func() *swarmpb.SessionRequest {
				return &swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Description{Description: &swarmpb.NodeDescription{
					Hostname: text(), Resources: &swarmpb.Resources{NanoCpus: random.Int64() - random.Int64()},
					Engine: &swarmpb.EngineDescription{Labels: map[string]string{text(): text()}}}}}
			},
		}
		for range 300 {
			ctx, cut := context.WithCancel(asNode(c.ctx, "n1"))
			stream, err := c.client.Session(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if random.IntN(2) == 0 {
				_ = stream.Send(hello("b1"))
			}
			for range random.IntN(6) {
				if stream.Send(messages[random.IntN(len(messages))]()) != nil {
					break
				}
			}
			if random.IntN(2) == 0 {
				_ = stream.CloseSend()
			}
			time.Sleep(time.Duration(random.IntN(1200)) * time.Millisecond)
			cut()
		}
		time.Sleep(10 * time.Second)
		c.mustConnect("n1", "b9")
		c.expectState("n1", ready)
	})
}
