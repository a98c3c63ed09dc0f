package orchestrator_test

import (
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// TestStopAfterDisconnect_NodeRemoved_WaitCountsFromTheRemoval: a node that was removed by force may be alive, so its
// task is kept in the slot, whatever the history's limit, until it must have stopped by itself.
func TestStopAfterDisconnect_NodeRemoved_WaitCountsFromTheRemoval(t *testing.T) {
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	play := func(lines ...[]string) {
		t.Helper()
		for _, words := range lines {
			if _, err := w.Do(words...); err != nil {
				t.Fatalf("%v: %v", words, err)
			}
			if err := w.Settle(); err != nil {
				t.Fatal(err)
			}
		}
	}
	advance := func(d time.Duration) {
		t.Helper()
		if err := w.Advance(d); err != nil {
			t.Fatal(err)
		}
	}
	play([]string{"node", "n1", "ready"}, []string{"history", "0"}, []string{"auto", "on"},
		[]string{"service", "db", "replicas=1", "stop-after-disconnect=20s"}, []string{"node", "n2", "ready"})
	first := newest(w.View(), "db", 1)
	play([]string{"node", "n1", "gone"})
	advance(time.Second)
	if err := w.Report(first, swarmpb.TaskState_TASK_STATE_ORPHANED); err != nil { // as the dispatcher does
		t.Fatal(err)
	}
	advance(33999 * time.Millisecond)
	heir := newest(w.View(), "db", 1)
	if got := w.View().Task(heir).GetDesiredState(); heir == first || got != swarmpb.TaskState_TASK_STATE_READY {
		t.Fatalf("the successor is meant to be %s before the old task must have stopped", got.Name())
	}
	if w.View().Task(first) == nil {
		t.Fatal("the old task was forgotten while it may run")
	}
	advance(time.Millisecond)
	if got := w.View().Observed(heir); got != swarmpb.TaskState_TASK_STATE_RUNNING {
		t.Fatalf("the successor is %s after the wait", got.Name())
	}
	if w.View().Task(first) != nil {
		t.Error("the old task was kept beyond the history's limit")
	}
}

// TestStopAfterDisconnect_ServiceRemoved_GoesAtOnce: with no successor there is nothing to wait for.
func TestStopAfterDisconnect_ServiceRemoved_GoesAtOnce(t *testing.T) {
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range [][]string{{"node", "n1", "ready"}, {"auto", "on"},
		{"service", "db", "replicas=2", "stop-after-disconnect=20s"}, {"node", "n1", "down"}, {"remove", "db"}} {
		if _, err := w.Do(words...); err != nil {
			t.Fatalf("%v: %v", words, err)
		}
		if err := w.Settle(); err != nil {
			t.Fatal(err)
		}
	}
	if w.View().Service("db") != nil || w.View().TaskCount() != 0 {
		t.Errorf("the service is still there, with %d tasks", w.View().TaskCount())
	}
}
