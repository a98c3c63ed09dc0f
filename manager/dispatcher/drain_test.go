package dispatcher

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// publish gives web an ingress port, so that its tasks are reached.
func (w *world) publish() {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{
		ServiceId: serviceWeb, Ports: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080}}}}})
}

// prompt has the worker acknowledge at once, as real ones do.
func (w *worker) prompt() *holder {
	w.atOnce.Store(true)
	return w.assignments()
}

func (w *world) drained(task string) bool { return w.view().Status(task).GetDrainedAt() != 0 }

// drainedWithin waits for a task to be drained, and says how long that took.
func (w *world) drainedWithin(t *testing.T, task string, limit time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	for !w.drained(task) {
		if time.Since(began) > limit {
			t.Fatalf("the task is not drained after %s", limit)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began)
}

// TestDrain_SessionsOnTwoManagers_QuicklyAndItsNodeIsTold: no step of it waits for a tick of anything.
func TestDrain_SessionsOnTwoManagers_QuicklyAndItsNodeIsTold(t *testing.T) {
	inFleet(t, []string{"m1", "m2"}, []string{"n1", "n2", "n3"}, nil, func(t *testing.T, f *fleet) {
		f.publish()
		first, second := f.task(1, "n1"), f.task(2, "n2")
		h := f.managers["m2"].mustConnect("n1", "b1").prompt()
		for i, id := range []string{"n2", "n3", "m1", "m2"} {
			f.managers[[]string{"m1", "m2"}[i%2]].mustConnect(id, "b").prompt()
		}
		f.status(first, stRunning)
		f.status(second, stRunning)
		time.Sleep(2 * time.Second)
		began := time.Now()
		f.desire(first, stShutdown, false)
		f.drainedWithin(t, first, 20*time.Millisecond)
		told := func() bool { h.mu.Lock(); defer h.mu.Unlock(); return h.tasks[first].GetDrained() }
		for ; !told(); time.Sleep(time.Millisecond) {
			if time.Since(began) > 20*time.Millisecond {
				t.Fatal("the node of the task has not been told that it is drained")
			}
		}
		// What comes right after it is gathered for a moment.
		f.desire(second, stShutdown, false)
		f.drainedWithin(t, second, 80*time.Millisecond)
		if got := f.managers["m1"].server.Drains(); got != (DrainCounts{Noted: 2}) {
			t.Errorf("drained: %+v", got)
		}
	})
}

func TestDrain_NodeDoesNotAcknowledge_LateAfterFiveSecondsAndOthersAreNotWaitedFor(t *testing.T) {
	inFleet(t, []string{"m1", "m2"}, []string{"n1", "n2", "gone"}, nil, func(t *testing.T, f *fleet) {
		f.publish()
		task := f.task(1, "n1")
		for _, id := range []string{"n1", "m1", "m2"} {
			f.managers["m1"].mustConnect(id, "b").prompt()
		}
		behind := f.managers["m2"].mustConnect("n2", "b") // beats, and takes no assignments
		gone := f.managers["m2"].mustConnect("gone", "b")
		f.status(task, stRunning)
		time.Sleep(2 * time.Second)
		gone.mute.Store(true)
		time.Sleep(4 * time.Second)
		f.managers["m1"].expectState("gone", down)
		f.desire(task, stShutdown, false)
		time.Sleep(4900 * time.Millisecond)
		if f.drained(task) {
			t.Fatal("drained before the node has acknowledged")
		}
		f.drainedWithin(t, task, 200*time.Millisecond)
		if got := f.managers["m1"].server.Drains(); got != (DrainCounts{Noted: 1, Late: 1}) {
			t.Errorf("drained: %+v", got)
		}
		time.Sleep(time.Second)
		alarms := func() (of []string) {
			for a := range f.view().Alarms() {
				if a.GetKind() == AlarmNodeBehind {
					of = append(of, a.GetObject())
				}
			}
			return of
		}
		if got := alarms(); !slices.Equal(got, []string{"n2"}) || !strings.Contains(f.view().Alarm(AlarmNodeBehind, "n2").GetMessage(), "node inspect") {
			t.Errorf("nodes %v have alarms", got)
		}
		behind.prompt()
		time.Sleep(time.Second)
		if got := alarms(); len(got) != 0 {
			t.Errorf("nodes %v have alarms when all have caught up", got)
		}
	})
}

func TestDrain_NodeIsCalledDownMeanwhile_WaitEnds(t *testing.T) {
	inFleet(t, []string{"m1"}, []string{"n1", "n2", "n3", "n4"}, nil, func(t *testing.T, f *fleet) {
		f.publish()
		task := f.task(1, "n1")
		var last *worker
		for _, id := range []string{"m1", "n1", "n2", "n3", "n4"} {
			last = f.managers["m1"].mustConnect(id, "b")
			if id != "n4" {
				last.prompt()
			}
		}
		f.status(task, stRunning)
		time.Sleep(2 * time.Second)
		last.mute.Store(true)
		f.desire(task, stShutdown, false)
		took := f.drainedWithin(t, task, 4500*time.Millisecond)
		if got := f.managers["m1"].server.Drains(); got != (DrainCounts{Noted: 1}) || took < time.Second {
			t.Errorf("drained after %s: %+v", took, got)
		}
	})
}

// TestDrain_LeaderIsLost_TheNextOneGoesOn: nothing of a wait is kept but in the store.
func TestDrain_LeaderIsLost_TheNextOneGoesOn(t *testing.T) {
	inFleet(t, []string{"m1", "m2", "m3"}, []string{"n1", "n2"}, nil, func(t *testing.T, f *fleet) {
		f.publish()
		task := f.task(1, "n1")
		f.managers["m2"].mustConnect("n1", "b").prompt()
		for _, id := range []string{"n2", "m1", "m2", "m3"} {
			f.managers["m3"].mustConnect(id, "b").prompt()
		}
		f.status(task, stRunning)
		time.Sleep(2 * time.Second)
		f.kill("m1")
		f.desire(task, stShutdown, false)
		time.Sleep(time.Second)
		if f.drained(task) {
			t.Fatal("drained without a leader")
		}
		f.elect("m2")
		f.drainedWithin(t, task, time.Second)
		if got := f.managers["m2"].server.Drains(); got != (DrainCounts{Noted: 1}) {
			t.Errorf("drained: %+v", got)
		}
		time.Sleep(time.Second)
		for _, id := range []string{"m2", "m3"} { // every manager can tell
			if got, known := f.managers[id].server.LeaderDrains(); !known || got != (DrainCounts{Noted: 1}) {
				t.Errorf("%s knows of %+v, %v", id, got, known)
			}
		}
	})
}

// TestDrain_WriteFails_TriedAgain also counts a late task once.
func TestDrain_WriteFails_TriedAgain(t *testing.T) {
	inCluster(t, []string{"n1"}, func(t *testing.T, c *cluster) {
		c.publish()
		task := c.task(1, "n1")
		c.mustConnect("n1", "b1")
		c.status(task, stRunning)
		time.Sleep(2 * time.Second)
		c.refuseWrites.Store(true)
		c.desire(task, stShutdown, false)
		time.Sleep(7 * time.Second)
		if c.drained(task) {
			t.Fatal("drained though nothing can be written")
		}
		c.refuseWrites.Store(false)
		c.drainedWithin(t, task, time.Second)
		if got := c.server.Drains(); got != (DrainCounts{Noted: 1, Late: 1}) {
			t.Errorf("drained: %+v", got)
		}
	})
}

// TestDrainer_ListedAnew_GoesOnWithTheTimeThatWasWaited: a watch that breaks again and again keeps no task from its end.
func TestDrainer_ListedAnew_GoesOnWithTheTimeThatWasWaited(t *testing.T) {
	w := testWorld(t, "n1")
	w.publish()
	old, young := w.task(1, "n1"), w.task(2, "n1")
	w.status(old, stRunning)
	w.status(young, stRunning)
	w.desire(old, stShutdown, false)
	first := newDrainer(&leaderPart{}, w.view(), nil)
	began := time.Now().Add(-4 * time.Second)
	first.waiting[old] = drainWait{index: first.waiting[old].index, since: began, late: true}
	w.desire(old, stShutdown, true) // its row changes
	w.desire(young, stShutdown, false)
	waiting := newDrainer(&leaderPart{}, w.view(), first.waiting).waiting
	if got := waiting[old]; got.since != began || !got.late || got.index != w.view().Task(old).GetMeta().GetVersion() {
		t.Errorf("waits since %s for %d, late %t", got.since, got.index, got.late)
	}
	if got := waiting[young]; len(waiting) != 2 || got.late || !got.since.After(began) {
		t.Errorf("%d wait, the young one %+v", len(waiting), got)
	}
}

func TestDrain_ManyTasks_FewWritesAndNobodyElses(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		c.publish()
		c.mustConnect("n1", "b1").prompt()
		c.mustConnect("n2", "b2").prompt()
		time.Sleep(2 * time.Second)
		var tasks []string
		for slot := range uint64(maxWrites + 1) {
			id := c.task(slot+1, "n1")
			c.status(id, stRunning)
			tasks = append(tasks, id)
		}
		kept := c.task(maxWrites+2, "n2")
		c.status(kept, stRunning)
		starting := c.task(maxWrites+3, "n2")
		time.Sleep(time.Second)
		before := c.proposed.Load()
		var writes []*swarmpb.Write
		for _, id := range append(tasks, starting) {
			writes = append(writes, &swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{TaskId: id, DesiredState: stShutdown}}})
		}
		c.world.propose(writes[:maxWrites]...)
		c.world.propose(writes[maxWrites:]...)
		time.Sleep(time.Second)
		for _, id := range tasks {
			if !c.drained(id) {
				t.Fatalf("%s is not drained", id)
			}
		}
		if c.drained(kept) {
			t.Error("a task that is to run is drained")
		}
		if n := c.proposed.Load() - before; n > 4 {
			t.Errorf("%d proposals", n)
		}
	})
}

// TestAssignment_Drained_WhatATaskMayDoAtOnce has each reason for which a task need not wait.
func TestAssignment_Drained_WhatATaskMayDoAtOnce(t *testing.T) {
	w := testWorld(t, "n1")
	lone := w.task(1, "n1")
	h, told := newHolder(t), newTeller(w, maxEvents, "n1")
	expect := func(when, id string, drained bool) {
		t.Helper()
		told.deliver(h, "n1")
		if h.tasks[id].GetDrained() != drained {
			t.Errorf("%s: drained is %t", when, !drained)
		}
	}
	expect("nobody reaches the service", lone, true)
	w.publish()
	w.desire(lone, stShutdown, false)
	expect("it is to stop and never was active", lone, true)
	w.status(lone, stRunning)
	expect("it was told so", lone, true)
	active := w.task(2, "n1")
	w.status(active, stRunning)
	expect("it is active", active, false)
	w.desire(active, stShutdown, false)
	expect("it is to stop", active, false)
	w.propose(&swarmpb.Write{Op: &swarmpb.Write_SetDrained{SetDrained: &swarmpb.SetDrained{TaskIds: []string{active}, At: 1}}})
	expect("it is noted", active, true)
	waits := w.task(3, "n1")
	w.status(waits, stRunning)
	w.desire(waits, stShutdown, false)
	expect("it waits", waits, false)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{ServiceId: serviceWeb}}})
	expect("nobody reaches the service any more", waits, true)
}

// TestAssignments_EndpointsOfOthers_WakeWhomTheyConcern counts what sessions are woken for.
func TestAssignments_EndpointsOfOthers_WakeWhomTheyConcern(t *testing.T) {
	w := testWorld(t, "n1", "n2")
	task := w.task(1, "n1")
	told := newTeller(w, maxEvents, "n1", "n2")
	holders := map[string]*holder{"n1": newHolder(t), "n2": newHolder(t)}
	wakes := func(node string) uint64 {
		told.see()
		return told.server.sessions[node].wakes
	}
	expect := func(what string, woken bool) {
		t.Helper()
		for _, node := range []string{"n1", "n2"} {
			if got := told.server.sessions[node].looked != wakes(node); got != woken {
				t.Errorf("%s: %s is woken: %t", what, node, got)
			}
			told.deliver(holders[node], node)
		}
	}
	expect("at first", true)
	w.status(task, stReady)
	w.status(task, stRunning)
	expect("a service that nobody reaches", false)
	w.publish()
	expect("a service that is published", true)
	second := w.task(2, "n1")
	expect("a task that will be reached", true)
	w.status(second, stReady)
	expect("a step on its way", false)
	w.status(second, stRunning)
	expect("it runs", true)
	for node, h := range holders {
		if e := h.endpoints[second]; e.GetState() != swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE {
			t.Errorf("%s holds %v", node, e)
		}
	}
}

func TestDescription_Conflicts_ReachTheStoreAtOnce(t *testing.T) {
	inFleet(t, []string{"m1", "m2"}, []string{"n1"}, nil, func(t *testing.T, f *fleet) {
		w := f.managers["m2"].mustConnect("n1", "b1")
		time.Sleep(5 * time.Second)
		began := time.Now()
		if err := w.send(&swarmpb.SessionRequest{Message: &swarmpb.SessionRequest_Description{Description: &swarmpb.NodeDescription{
			Hostname: "host-b1", Network: &swarmpb.NodeNetwork{Conflicts: []*swarmpb.PortConflict{{Port: 80, Process: "nginx (pid 12)"}}}}}}); err != nil {
			t.Fatal(err)
		}
		for len(f.view().NodeStatus("n1").GetDescription().GetNetwork().GetConflicts()) == 0 {
			if time.Since(began) > 20*time.Millisecond {
				t.Fatal("the conflict is not known after 20 ms")
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
	})
}

// TestDrainer_ServiceIsRemoved_IsNotWaitedFor: its tasks' nodes do not wait either, and none is late for it.
func TestDrainer_ServiceIsRemoved_IsNotWaitedFor(t *testing.T) {
	inCluster(t, []string{"n1", "n2"}, func(t *testing.T, c *cluster) {
		c.publish()
		h := c.mustConnect("n1", "b1").prompt()
		c.mustConnect("n2", "b2") // beats, and acknowledges nothing
		task := c.task(1, "n1")
		c.status(task, stRunning)
		time.Sleep(2 * time.Second)
		before := c.proposed.Load()
		service := swarmpb.Clone(c.view().Service(serviceWeb))
		service.Removing = true
		c.put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: service}})
		c.desire(task, stRemove, false)
		time.Sleep(7 * time.Second)
		h.expect(c.view(), "n1")
		if n, drains := c.proposed.Load()-before, c.server.Drains(); n != 0 || drains != (DrainCounts{}) {
			t.Errorf("%d proposals, drained: %+v", n, drains)
		}
	})
}
