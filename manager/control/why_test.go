package control

import (
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestGetTask_OneThatGaveWay_SuccessorSaysForWhom(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	low, db := w.create("low", 1), w.create("db", 1)
	old, high := w.task(low, 1, 1, nodeA), w.task(db, 1, 1, nodeA)
	w.desire(old, stShutdown)
	id := swarmpb.TaskID(low, 1, "", 2)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: id, ServiceId: low, Slot: 1, Attempt: 2, Replaces: old,
		DesiredState: swarmpb.TaskState_TASK_STATE_READY, TemplateVersion: 1}}})
	waitsFor := func() string {
		r, err := w.server.GetTask(ctx, &swarmpb.GetTaskRequest{Task: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetTask().GetError()
	}
	if got := waitsFor(); got != "" {
		t.Errorf("nobody is known to have had its place: %q", got)
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_SlotProgress{SlotProgress: &swarmpb.SlotProgress{ServiceId: low, Slot: 1, TemplateVersion: 1, GaveWayTo: high}}})
	if got, want := waitsFor(), "the one before gave way to db.1 of higher priority"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	w.place(id, "", "no suitable node")
	if got, want := waitsFor(), "the one before gave way to db.1 of higher priority; no suitable node; `swarmctl service explain low` tells it node by node"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	w.delete(swarmpb.TaskKey(high))
	if got, want := waitsFor(), "the one before gave way to a task of higher priority; no suitable node; `swarmctl service explain low` tells it node by node"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestGetTask_OneThatHadToGo_SaysForWhom(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	low, db := w.create("low", 1), w.create("db", 1)
	old, high := w.task(low, 1, 1, nodeA), w.task(db, 1, 1, "")
	w.desire(old, stShutdown)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_SlotProgress{SlotProgress: &swarmpb.SlotProgress{ServiceId: low, Slot: 1, TemplateVersion: 1, GaveWayTo: high}}})
	if got := w.message(old); got != "" {
		t.Errorf("without a successor: %q", got)
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{Id: swarmpb.TaskID(low, 1, "", 2), ServiceId: low, Slot: 1, Attempt: 2, Replaces: old,
		DesiredState: swarmpb.TaskState_TASK_STATE_READY, TemplateVersion: 1}}})
	if got, want := w.message(old), "gave way to db.1 of higher priority"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// message is what is said of a task.
func (w *world) message(task string) string {
	w.t.Helper()
	r, err := w.server.GetTask(ctx, &swarmpb.GetTaskRequest{Task: task})
	if err != nil {
		w.t.Fatalf("get task: %v", err)
	}
	return r.GetTask().GetMessage()
}

// availability sets a node's.
func (w *world) availability(id string, a swarmpb.NodeAvailability) {
	w.t.Helper()
	node := swarmpb.Clone(w.view().Node(id))
	node.Spec = &swarmpb.NodeSpec{Availability: a}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}})
}

// heir makes a task that is to follow another one.
func (w *world) heir(old string, move swarmpb.MoveReason, node string) string {
	w.t.Helper()
	before := w.view().Task(old)
	next := swarmpb.Clone(before)
	next.Attempt++
	next.Id, next.Replaces, next.Move = swarmpb.TaskID(before.GetServiceId(), before.GetSlot(), "", next.Attempt), old, move
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: next}})
	if node != "" {
		w.place(next.Id, node, "")
	}
	return next.Id
}

func TestGetTask_OneThatMoves_SaysWhereAndWhy(t *testing.T) {
	cases := map[swarmpb.MoveReason]struct{ before, after string }{
		swarmpb.MoveReason_MOVE_REASON_DRAIN:      {"the node is drained", "the node was drained"},
		swarmpb.MoveReason_MOVE_REASON_CONSTRAINT: {"the node does not meet the service's constraints any more", ""},
		swarmpb.MoveReason_MOVE_REASON_REBALANCE:  {"the load is more even so", ""},
	}
	for move := range swarmpb.MoveReason_name {
		if move != 0 && cases[swarmpb.MoveReason(move)].before == "" {
			t.Errorf("%v: not tried", swarmpb.MoveReason(move))
		}
	}
	for move, want := range cases {
		t.Run(move.String(), func(t *testing.T) {
			w := newWorld(t)
			w.node(nodeA, "a", roleWorker, stateReady)
			w.node(nodeB, "b", roleWorker, stateReady)
			w.availability(nodeA, swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN)
			old := w.task(w.create("web", 1), 1, 1, nodeA)
			w.status(&swarmpb.TaskStatus{TaskId: old, State: swarmpb.TaskState_TASK_STATE_RUNNING, At: 1, Message: "started again"})
			heir := w.heir(old, move, nodeB)
			if got := w.message(heir); got != "moved from a: "+want.before {
				t.Errorf("heir: %q", got)
			}
			if got := w.message(old); got != "moves to b: "+want.before+"; started again" {
				t.Errorf("the one before: %q", got)
			}
			w.status(&swarmpb.TaskStatus{TaskId: old, State: stShutdown, At: 2})
			w.availability(nodeA, swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE)
			after := want.after
			if after == "" {
				after = want.before
			}
			if got := w.message(old); got != "moved to b: "+after {
				t.Errorf("the one before, after it: %q", got)
			}
			w.delete(swarmpb.TaskKey(old))
			if got := w.message(heir); got == "" || got[:len("moved from another node: ")] != "moved from another node: " {
				t.Errorf("heir, when nothing is known of the one before: %q", got)
			}
		})
	}
}

func TestGetTask_NobodyMoves_SaysNothing(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", roleWorker, stateReady)
	old := w.task(w.create("web", 1), 1, 1, nodeA)
	heir := w.heir(old, swarmpb.MoveReason_MOVE_REASON_UNSPECIFIED, nodeA)
	if one, other := w.message(old), w.message(heir); one != "" || other != "" {
		t.Errorf("%q, %q", one, other)
	}
}
