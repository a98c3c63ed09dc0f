package orchestrator_test

import (
	"errors"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// As long as a task is to leave a node that is drained, its service is looked at again: of a large one few changes lead there,
// and what is under way may fail.
func TestMoves_EveryTaskIsOnItsWay_TheServiceIsLookedAtAgain(t *testing.T) {
	c := filled(t, 1, 6000)
	node := swarmpb.Clone(c.store.View().Node("n00"))
	node.Spec.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
	c.write(t, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}))
	id := reconcile.ID{Object: "s0000"}
	looksAgain := func(when string) reconcile.Plan {
		t.Helper()
		plan, err := orchestrator.Moves{}.Reconcile(c.store.View(), id, c.now)
		if err != nil || !plan.At.After(c.now) && !plan.More {
			t.Fatalf("%s: there is no look again: %v, %d writes", when, err, len(plan.Writes))
		}
		for part, ok := plan, len(plan.Writes) > 0; ok; part, ok = part.Next() {
			c.apply(t, part)
		}
		return plan
	}
	if plan := looksAgain("the moves are begun"); len(plan.Writes) == 0 {
		t.Fatal("nothing was begun")
	}
	if plan := looksAgain("the moves are under way"); len(plan.Writes) > 0 {
		t.Fatalf("%d writes once all moves are under way", len(plan.Writes))
	}
	// Their successors end before they have begun.
	for task := range c.store.View().TasksOf(id.Object) {
		if task.Move != 0 {
			c.write(t, script.Put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: task.Id, NodeId: "n01"}}}),
				c.report(task.Id, swarmpb.TaskState_TASK_STATE_FAILED))
			c.reconcile(t, orchestrator.Replicated{}, reconcile.ID{Object: id.Object, Slot: task.Slot})
		}
	}
	if plan := looksAgain("the successors have failed"); len(plan.Writes) == 0 {
		t.Error("those whose successors have failed are not tried again")
	}
	// When nothing is left the service is at rest.
	node = swarmpb.Clone(c.store.View().Node("n00"))
	node.Spec.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_ACTIVE
	c.write(t, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}))
	if plan, err := (orchestrator.Moves{}).Reconcile(c.store.View(), id, c.now); err != nil || !plan.At.IsZero() || plan.More {
		t.Errorf("no node is drained: %v, %v, %v", plan.At, plan.More, err)
	}
}

// Whatever else becomes of a service while its moves are being written, such as tasks that crash and are made anew, is no
// conflict; that others have told its tasks to move is one.
func TestMoves_TasksCrashMeanwhile_TheMovesAreWrittenAllTheSame(t *testing.T) {
	c := filled(t, 1, 200)
	node := swarmpb.Clone(c.store.View().Node("n00"))
	node.Spec.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
	c.write(t, script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}))
	moves, err := orchestrator.Moves{}.Reconcile(c.store.View(), reconcile.ID{Object: "s0000"}, c.now)
	if err != nil || len(moves.Writes) == 0 {
		t.Fatalf("%v, %d writes", err, len(moves.Writes))
	}
	for task := range c.store.View().TasksIn("s0000", 2) { // it is on another node
		c.write(t, c.report(task.Id, swarmpb.TaskState_TASK_STATE_FAILED))
	}
	attempt := c.store.View().ServiceProgress("s0000").GetAttempt()
	c.reconcile(t, orchestrator.Replicated{}, reconcile.ID{Object: "s0000", Slot: 2})
	if c.store.View().ServiceProgress("s0000").GetAttempt() == attempt {
		t.Fatal("the task that crashed was not made anew")
	}
	c.apply(t, moves)
	var conflict *store.ConflictError
	_, err = c.leader.Propose(t.Context(), &swarmpb.Proposal{Term: c.leader.Term(), Writes: moves.Writes[:1], Now: c.now.UnixNano()})
	if !errors.As(err, &conflict) {
		t.Errorf("what rests on a look before the moves: %v, want a conflict", err)
	}
}
