package orchestrator_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/store"
)

// upSlots are the slots of a service in which a task that is meant to run takes connections.
func upSlots(view *store.View, service string) map[uint64]bool {
	up := map[uint64]bool{}
	for task := range view.TasksOf(service) {
		if task.DesiredState == swarmpb.TaskState_TASK_STATE_RUNNING && view.Status(task.Id).Up() {
			up[task.Slot] = true
		}
	}
	return up
}

// TestMoves_AnyDrainsAndLabels_BudgetIsKeptAndNodesAreEmptied drains nodes and changes their labels, with leaders that come
// and go, while nothing fails. Never are more tasks of a service down than its budget, nor any under start-first; in the end,
// since there is a node that suits all, every task is where it may be.
func TestMoves_AnyDrainsAndLabels_BudgetIsKeptAndNodesAreEmptied(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, err := newPlacedWorld()
		must(t, err)
		replicas := rapid.IntRange(1, 9).Draw(t, "replicas")
		order := rapid.SampledFrom([]string{"stop-first", "start-first"}).Draw(t, "order")
		budget := rapid.SampledFrom([]string{"", "1", "2", "50%"}).Draw(t, "budget")
		most := map[string]int{"": max(1, (replicas+3)/4), "1": 1, "2": 2, "50%": max(1, (replicas+1)/2)}[budget]
		if order == "start-first" {
			most = 0
		}
		for _, words := range [][]string{
			{"auto", "on"}, {"image", "v1", "pulls", "in", "2s", "starts", "in", "1s", "stops", "in", "1s"},
			{"node", "n0", "ready"}, {"node", "n1", "ready"}, {"node", "n2", "ready"}, {"node", "n3", "ready"},
			{"node", "n0", "label", "ok=yes"}, {"node", "n1", "label", "ok=yes"}, {"node", "n2", "label", "ok=yes"},
		} {
			do(t, w, words...)
		}
		words := []string{"service", "web", fmt.Sprint("replicas=", replicas), "order=" + order, "constraint=node.labels.ok==yes"}
		if budget != "" {
			words = append(words, "max-unavailable="+budget)
		}
		do(t, w, words...)
		do(t, w, "advance", "20s")
		w.Check = func(view *store.View) error {
			if up := len(upSlots(view, "web")); up+most < replicas {
				table, _ := w.Do("tasks")
				return fmt.Errorf("%d of %d tasks are up, %d may be down:\n%s", up, replicas, most, table)
			}
			return nil
		}
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			// n0 always suits: a user's budget is not held up by what fits nowhere, the default one never takes more than it may.
			node := fmt.Sprint("n", rapid.IntRange(1, 3).Draw(t, "node"))
			switch rapid.IntRange(0, 4).Draw(t, "event") {
			case 0:
				do(t, w, "node", node, rapid.SampledFrom([]string{"drain", "active", "pause"}).Draw(t, "availability"))
			case 1:
				do(t, w, "node", node, "label", rapid.SampledFrom([]string{"ok=yes", "ok=no"}).Draw(t, "label"))
			case 2:
				do(t, w, "relist")
			default:
				do(t, w, "advance", fmt.Sprint(rapid.IntRange(1, 8000).Draw(t, "ms"), "ms"))
			}
		}
		do(t, w, "advance", "10m")
		for task := range w.View().TasksOf("web") {
			if node := w.View().Node(w.View().NodeID(task.Id)); task.DesiredState.Wanted() && (node == nil || node.Spec.Labels["ok"] != "yes" ||
				node.Spec.Availability == swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN || !w.View().Status(task.Id).Up()) {
				table, _ := w.Do("tasks")
				t.Fatalf("task %d is not where it should be, or not up: %s\n%s", task.Slot, orchestrator.Held(w.View(), "web", w.Now()), table)
			}
		}
	})
}

// TestRebalance_AnyCluster_NoSlotIsDownAndThenSilent has nodes come and go and services change in size. No slot is without a
// task because of a move, there are never more under way than allowed, and in the end nothing moves any more, and nothing is
// left that a user could ask for.
func TestRebalance_AnyCluster_NoSlotIsDownAndThenSilent(t *testing.T) {
	moved := 0
	rapid.Check(t, func(t *rapid.T) {
		w, err := newPlacedWorld()
		must(t, err)
		do(t, w, "auto", "on")
		do(t, w, "image", "v1", "pulls", "in", "3s", "starts", "in", "1s", "stops", "in", "1s")
		for i := range rapid.IntRange(1, 3).Draw(t, "nodes") {
			do(t, w, "node", nodeName(i), "ready")
			do(t, w, "node", nodeName(i), "cpus", fmt.Sprint(rapid.IntRange(2, 8).Draw(t, "cpus")))
		}
		services := rapid.IntRange(1, 4).Draw(t, "services")
		for i := range services {
			do(t, w, "service", fmt.Sprint("s", i), fmt.Sprint("replicas=", rapid.IntRange(1, 6).Draw(t, "replicas")),
				"cpus="+rapid.SampledFrom([]string{"0", "0", "1/2", "1"}).Draw(t, "needs"))
		}
		do(t, w, "advance", "30s")
		guard := &balanceGuard{}
		w.Check = guard.check
		for range rapid.IntRange(1, 10).Draw(t, "events") {
			switch rapid.IntRange(0, 5).Draw(t, "event") {
			case 0, 1:
				node := nodeName(rapid.IntRange(0, 5).Draw(t, "node"))
				if w.View().Node(node) == nil {
					do(t, w, "node", node, "ready")
					do(t, w, "node", node, "cpus", "8")
				}
			case 2:
				do(t, w, "scale", fmt.Sprint("s", rapid.IntRange(0, services-1).Draw(t, "service")), fmt.Sprint(rapid.IntRange(0, 8).Draw(t, "replicas")))
			case 3:
				do(t, w, "relist")
			default:
				do(t, w, "advance", fmt.Sprint(rapid.IntRange(1, 20000).Draw(t, "ms"), "ms"))
			}
		}
		do(t, w, "advance", "15m")
		moved += guard.moved
		before := guard.moved
		w.Relist()
		do(t, w, "balance", "now")
		do(t, w, "advance", "2h")
		if guard.moved != before {
			table, _ := w.Do("tasks")
			t.Fatalf("%d moves after it had come to rest:\n%s", guard.moved-before, table)
		}
		if left, _ := orchestrator.Rebalance(w.View(), w.Now(), 10); len(left) > 0 {
			table, _ := w.Do("tasks")
			t.Fatalf("a user could still ask for %v\n%s", left, table)
		}
	})
	if moved == 0 {
		t.Error("nothing ever moved: the test does not test what it is for")
	}
}

// balanceGuard checks after each write what moves for balance may never do.
type balanceGuard struct {
	before *store.View
	moved  int
}

func (g *balanceGuard) check(view *store.View) error {
	before := g.before
	g.before = view
	if before == nil {
		return nil
	}
	underWay := 0
	for service := range view.Services() {
		up, of := upSlots(view, service.Id), 0
		for task := range view.TasksOf(service.Id) {
			if task.Move != swarmpb.MoveReason_MOVE_REASON_REBALANCE {
				continue
			}
			if before.Task(task.Id) == nil {
				g.moved++
			}
			old := view.Task(task.Replaces)
			if task.DesiredState.Wanted() && old != nil && old.DesiredState.Wanted() {
				of++
			}
			if was := before.Task(task.Replaces); was != nil && old != nil && was.DesiredState.Wanted() && !old.DesiredState.Wanted() &&
				task.DesiredState.Wanted() && !up[task.Slot] {
				return fmt.Errorf("task %s.%d was stopped, and the one that it moves to is not up", service.Id, task.Slot)
			}
		}
		if of > 1 {
			return fmt.Errorf("%d moves of %s are under way", of, service.Id)
		}
		underWay += of
	}
	if underWay > orchestrator.MaxBalancing {
		return fmt.Errorf("%d moves are under way in the cluster", underWay)
	}
	return nil
}

// What holds a drain up is told in a line.
func TestHeld_BudgetSpentOnWhatFitsNowhere_SaysSo(t *testing.T) {
	w, err := newPlacedWorld()
	if err != nil {
		t.Fatal(err)
	}
	do(t, w, "auto", "on")
	do(t, w, "node", "n1", "ready")
	do(t, w, "service", "web", "replicas=4", "max-unavailable=1")
	if text := orchestrator.Held(w.View(), "web", w.Now()); text != "" {
		t.Errorf("nothing is to move: %s", text)
	}
	do(t, w, "node", "n1", "drain")
	do(t, w, "advance", "10s")
	const want = "web: 3 tasks wait for their turn: 1 may be down or on the way (max unavailable), and 1 is: web.1 finds no node that suits"
	if text := orchestrator.Held(w.View(), "web", w.Now()); text != want {
		t.Errorf("%s", text)
	}
}
