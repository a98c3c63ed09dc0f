package orchestrator

import (
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

const (
	guestNode = "000000000000000000000node1"
	guestID   = "0000000000000000000000svc1"
)

// guestWorld is a store with one attachment on one node, and its task.
type guestWorld struct {
	*testing.T
	store *store.Store
	local *store.LocalProposer
	now   time.Time
	task  string
}

func newGuestWorld(t *testing.T) *guestWorld {
	st := store.New()
	w := &guestWorld{T: t, store: st, local: store.NewLocalProposer(st), now: time.Unix(1_700_000_000, 0), task: swarmpb.TaskID(guestID, 1, "", 1)}
	spec := &swarmpb.ServiceSpec{
		Name: "back/db", Mode: &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Replicated{Replicated: &swarmpb.ReplicatedMode{Replicas: 1}}},
		Task: &swarmpb.TaskSpec{Guest: &swarmpb.Guest{NodeId: guestNode, Pid: 7}, Restart: &swarmpb.RestartPolicy{Condition: swarmpb.RestartCondition_RESTART_CONDITION_NONE}},
	}
	w.write(script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: guestNode}}}))
	w.write(script.Put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: guestID, Version: 1, Spec: spec.Task}}}),
		script.Put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: guestID, Spec: spec, TemplateVersion: 1}}}))
	w.step(0)
	w.write(script.Put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: w.task, NodeId: guestNode}}}))
	return w
}

func (w *guestWorld) write(writes ...*swarmpb.Write) {
	w.Helper()
	if _, err := w.local.Propose(w.Context(), &swarmpb.Proposal{Term: 1, Now: w.now.UnixNano(), Writes: writes}); err != nil {
		w.Fatal(err)
	}
}

// step has the orchestrator plan for the service or a slot of it, and applies that.
func (w *guestWorld) step(slot uint64) {
	w.Helper()
	id := Replicated{}.All(w.store.View())[0]
	id.Slot = slot
	plan, err := Replicated{}.Reconcile(w.store.View(), id, w.now)
	if err != nil {
		w.Fatal(err)
	}
	if len(plan.Writes) > 0 {
		w.write(plan.Writes...)
	}
}

func (w *guestWorld) node(edit func(*swarmpb.Node, *swarmpb.NodeStatus)) {
	w.Helper()
	node, status := swarmpb.Clone(w.store.View().Node(guestNode)), &swarmpb.NodeStatus{NodeId: guestNode}
	if node.Spec == nil {
		node.Spec = &swarmpb.NodeSpec{}
	}
	edit(node, status)
	w.write(script.Put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: node}}), script.Put(&swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: status}}))
}

func (w *guestWorld) report(state swarmpb.TaskState, attached bool) {
	w.Helper()
	status := &swarmpb.TaskStatus{TaskId: w.task, State: state, At: w.now.UnixNano(), Container: &swarmpb.ContainerStatus{}}
	if attached {
		status.Container.StartedAt = w.now.UnixNano()
	}
	w.write(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: status}})
}

// guests is what the reconciler plans now: to remove the service, and else when to look again.
func (w *guestWorld) guests() (removes bool, at time.Time) {
	w.Helper()
	g := Guests{}
	plan, err := g.Reconcile(w.store.View(), g.All(w.store.View())[0], w.now)
	if err != nil {
		w.Fatal(err)
	}
	if len(plan.Writes) > 0 {
		w.write(plan.Writes...)
		return w.store.View().Service(guestID).GetRemoving(), plan.At
	}
	return false, plan.At
}

func (w *guestWorld) tasks() (n int) {
	for range w.store.View().TasksOf(guestID) {
		n++
	}
	return n
}

func TestGuests_NodeDownOrDrained_TaskStays(t *testing.T) {
	for name, edit := range map[string]func(*swarmpb.Node, *swarmpb.NodeStatus){
		"down": func(_ *swarmpb.Node, s *swarmpb.NodeStatus) { s.State = swarmpb.NodeState_NODE_STATE_DOWN },
		"drained": func(n *swarmpb.Node, _ *swarmpb.NodeStatus) {
			n.Spec.Availability = swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newGuestWorld(t)
			w.report(swarmpb.TaskState_TASK_STATE_RUNNING, true)
			w.node(edit)
			w.step(1)
			if task := w.store.View().Task(w.task); w.tasks() != 1 || task.GetDesiredState() != swarmpb.TaskState_TASK_STATE_RUNNING {
				t.Errorf("%d tasks, desired %s", w.tasks(), task.GetDesiredState())
			}
			if removes, at := w.guests(); removes || !at.IsZero() {
				t.Errorf("removes %v, looks again at %v", removes, at)
			}
		})
	}
}

func TestGuests_ContainerGone_ServiceIsRemoved_AndNothingIsMadeAnew(t *testing.T) {
	w := newGuestWorld(t)
	w.report(swarmpb.TaskState_TASK_STATE_RUNNING, true)
	w.report(swarmpb.TaskState_TASK_STATE_COMPLETE, true)
	w.step(1)
	if w.tasks() != 1 {
		t.Errorf("%d tasks", w.tasks())
	}
	if removes, _ := w.guests(); !removes {
		t.Error("the service stays")
	}
}

func TestGuests_NeverAttached_StaysForAWhileWithItsReason(t *testing.T) {
	w := newGuestWorld(t)
	w.report(swarmpb.TaskState_TASK_STATE_REJECTED, false)
	w.now = w.now.Add(time.Minute)
	w.step(1)
	removes, at := w.guests()
	if removes || w.tasks() != 1 {
		t.Fatalf("removed %v, %d tasks", removes, w.tasks())
	}
	if want := w.now.Add(GuestKept - time.Minute); !at.Equal(want) {
		t.Errorf("looks again at %v, want %v", at, want)
	}
	w.now = at
	if removes, _ := w.guests(); !removes {
		t.Error("the service stays")
	}
}

func TestGuests_NodeLeaves_ServiceIsRemoved(t *testing.T) {
	w := newGuestWorld(t)
	w.report(swarmpb.TaskState_TASK_STATE_RUNNING, true)
	w.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(guestNode)}})
	if removes, _ := w.guests(); !removes {
		t.Error("the service stays")
	}
}

func TestGuests_Affects_WhatMayEndAnAttachment(t *testing.T) {
	w := newGuestWorld(t)
	watch, err := w.store.Watch(w.store.View().Index(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	affected := func() (n int) {
		batch, err := watch.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range batch.Changes {
			n += len(Guests{}.Affects(batch.View, c))
		}
		return n
	}
	w.report(swarmpb.TaskState_TASK_STATE_RUNNING, true)
	if n := affected(); n != 0 {
		t.Errorf("a task that runs wakes %d", n)
	}
	w.report(swarmpb.TaskState_TASK_STATE_COMPLETE, true)
	if n := affected(); n != 1 {
		t.Errorf("a task that has ended wakes %d", n)
	}
	w.write(&swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.NodeKey(guestNode)}})
	if n := affected(); n != 1 {
		t.Errorf("a node that leaves wakes %d", n)
	}
}
