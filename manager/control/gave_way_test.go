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
	if got, want := waitsFor(), "the one before gave way to db.1 of higher priority; no suitable node"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	w.delete(swarmpb.TaskKey(high))
	if got, want := waitsFor(), "the one before gave way to a task of higher priority; no suitable node"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
