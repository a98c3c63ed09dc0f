package sim

import (
	"context"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	active = swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE
	drain  = swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
)

func TestIdle_ServiceRuns_NothingEntersTheLog(t *testing.T) {
	inCluster(t, []string{"n1", "n2", "n3"}, func(t *testing.T, c *cluster) {
		c.create(publish(spec("web", 3), 8080))
		c.create(publish(spec("stuck", 3), 8080)) // what finds no node is quiet too
		c.awaitRunning(3, 10*time.Second)
		time.Sleep(time.Minute)
		before := c.log.writes.Load()
		time.Sleep(time.Hour)
		if n := c.log.writes.Load() - before; n != 0 {
			t.Errorf("%d proposals in an idle hour", n)
		}
	})
}

func TestRemove_ServiceWithTasksEverywhere_NothingIsLeft(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		c.create(spec("web", 6))
		c.create(spec("crash", 2, "exit", "1"))
		c.awaitRunning(6, 20*time.Second)
		c.hosts["n2"].cut(true)
		time.Sleep(2 * time.Second)
		c.remove("web")
		c.remove("crash")
		time.Sleep(30 * time.Second)
		if n := c.view().ServiceCount(); n != 0 {
			t.Errorf("%d services are left\n%s", n, c.table())
		}
		c.hosts["n2"].cut(false)
		c.awaitRunning(0, time.Minute)
		for name, h := range c.hosts {
			if left := h.runtime.Containers(); len(left) > 0 {
				t.Errorf("%s keeps containers %v", name, left)
			}
		}
		for node := range c.view().Nodes() {
			if u := c.view().Usage(node.Id); u.Tasks != 0 {
				t.Errorf("%d tasks are still counted on a node", u.Tasks)
			}
		}
	})
}

func TestNodeDown_ComesBack_ReplacedTasksStop(t *testing.T) {
	inCluster(t, []string{"n1", "n2", "n3"}, func(t *testing.T, c *cluster) {
		c.create(spec("web", 6))
		c.awaitRunning(6, 10*time.Second)
		c.hosts["n3"].cut(true)
		c.awaitRunning(8, 20*time.Second) // the two that are cut off go on
		c.hosts["n3"].cut(false)
		c.awaitRunning(6, 30*time.Second)
		if err := c.view().Verify(); err != nil {
			t.Error(err)
		}
	})
}

func TestNodeRemoved_TasksRunElsewhereAndNothingWaitsForIt(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		c.create(spec("web", 4))
		c.awaitRunning(4, 10*time.Second)
		if _, err := c.api.RemoveNode(context.Background(), &swarmpb.RemoveNodeRequest{Node: "n2", Force: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if n := len(c.hosts["n1"].runtime.Running()); n != 4 {
			t.Errorf("%d containers run on the node that is left, want 4\n%s", n, c.table())
		}
		c.remove("web")
		time.Sleep(10 * time.Second)
		if n := c.view().TaskCount(); n != 0 {
			t.Errorf("%d tasks are left\n%s", n, c.table())
		}
	})
}

func TestDrain_HostPort_MovesAndComesBack(t *testing.T) {
	for _, order := range []swarmpb.UpdateOrder{swarmpb.UpdateOrder_UPDATE_ORDER_STOP_FIRST, swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST} {
		t.Run(order.Name(), func(t *testing.T) {
			inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
				s := publish(spec("web", 2), 8080)
				s.Update = &swarmpb.UpdateConfig{Order: order}
				c.create(s)
				c.awaitRunning(2, 10*time.Second)
				c.available("n2", drain)
				c.awaitRunning(1, 20*time.Second)
				if left := c.hosts["n2"].runtime.Running(); len(left) > 0 {
					t.Errorf("the drained node runs %v", left)
				}
				c.available("n2", active)
				c.awaitRunning(2, 20*time.Second)
			})
		})
	}
}

func TestUpdate_HostPortOnEveryNode_Completes(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		c.create(publish(spec("web", 2), 8080))
		c.awaitRunning(2, 10*time.Second)
		c.update("web", func(s *swarmpb.ServiceSpec) { s.Task.Container.Image = "nginx:2" })
		time.Sleep(2 * time.Minute)
		c.wantUpdate("web", swarmpb.UpdateState_UPDATE_STATE_COMPLETED)
		c.awaitRunning(2, time.Second)
	})
}

// A task that starts before the old one stops needs a port of its own: it goes where one is free.
func TestUpdate_StartFirstWithHostPort_TakesTheFreeNode(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		s := publish(spec("web", 1), 8080)
		s.Update = &swarmpb.UpdateConfig{Order: swarmpb.UpdateOrder_UPDATE_ORDER_START_FIRST}
		c.create(s)
		c.awaitRunning(1, 10*time.Second)
		c.create(spec("other", 3)) // most of it on the other node, so that to stay is the better choice
		c.awaitRunning(4, 10*time.Second)
		c.update("web", func(s *swarmpb.ServiceSpec) { s.Task.Container.Image = "nginx:2" })
		time.Sleep(2 * time.Minute)
		c.wantUpdate("web", swarmpb.UpdateState_UPDATE_STATE_COMPLETED)
	})
}

func TestStuck_CauseEnds_TaskRuns(t *testing.T) {
	for name, free := range map[string]func(*cluster){
		"port freed": func(c *cluster) { c.remove("first") },
		"scaled down": func(c *cluster) {
			c.update("first", func(s *swarmpb.ServiceSpec) { s.Mode.GetReplicated().Replicas = 1 })
		},
		"node joined":  func(c *cluster) { c.join("n3") },
		"port changed": func(c *cluster) { c.update("first", func(s *swarmpb.ServiceSpec) { s.Endpoint = nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
				c.create(publish(spec("first", 2), 8080))
				c.awaitRunning(2, 10*time.Second)
				second := c.create(publish(spec("second", 1), 8080))
				time.Sleep(time.Minute)
				free(c)
				time.Sleep(time.Minute)
				if n := c.view().TaskCountIn(second, swarmpb.TaskState_TASK_STATE_RUNNING); n != 1 {
					t.Errorf("the task that waited does not run\n%s", c.table())
				}
			})
		})
	}
}

func TestStuck_LabelComes_TaskRuns(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		s := spec("web", 1)
		s.Task.Placement = &swarmpb.Placement{Constraints: []string{"node.labels.disk == ssd"}}
		c.create(s)
		time.Sleep(10 * time.Second)
		c.awaitRunning(0, time.Second)
		c.label("n2", "disk", "ssd")
		c.awaitRunning(1, 10*time.Second)
	})
}

func TestLeaderChanges_MidUpdate_GoesOn(t *testing.T) {
	inCluster(t, []string{"n1", "n2", "n3"}, func(t *testing.T, c *cluster) {
		c.create(spec("web", 6))
		c.awaitRunning(6, 10*time.Second)
		c.update("web", func(s *swarmpb.ServiceSpec) { s.Task.Container.Image = "nginx:2" })
		for range 8 {
			time.Sleep(3300 * time.Millisecond)
			c.endTerm()
			time.Sleep(700 * time.Millisecond)
			c.lead()
		}
		time.Sleep(2 * time.Minute)
		c.wantUpdate("web", swarmpb.UpdateState_UPDATE_STATE_COMPLETED)
		c.awaitRunning(6, time.Second)
		if err := c.view().Verify(); err != nil {
			t.Error(err)
		}
	})
}

func (c *cluster) wantUpdate(name string, want swarmpb.UpdateState) {
	c.t.Helper()
	update := c.view().ServiceProgress(c.view().ServiceByName(name).GetId()).GetUpdate()
	if update.GetState() != want {
		c.t.Fatalf("update of %s is %s (%s), want %s\n%s", name, update.GetState().Name(), update.GetMessage(), want.Name(), c.table())
	}
}
