package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// fixture is a store with a proposer, nodes n1 and n2 and the service "web" of ID svc with templates 1 and 2.
type fixture struct {
	*testing.T
	store *Store
	*LocalProposer
}

func newFixture(t *testing.T) *fixture {
	store := New()
	f := &fixture{t, store, NewLocalProposer(store)}
	f.apply(
		put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: "n1"}}}),
		put(&swarmpb.Row{Row: &swarmpb.Row_Node{Node: &swarmpb.Node{Id: "n2"}}}),
		service("svc", "web"),
		put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf("svc", 1)}}),
		put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf("svc", 2)}}),
	)
	return f
}

func service(id, name string) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
		Id: id, Spec: &swarmpb.ServiceSpec{Name: name}, TemplateVersion: 2, PreviousTemplateVersion: 1,
	}}})
}

func task(id string, slot, attempt, template uint64, replaces string) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
		Id: id, ServiceId: "svc", Slot: slot, Attempt: attempt, TemplateVersion: template, Replaces: replaces,
		DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING,
	}}})
}

func placement(id, node string) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_TaskPlacement{TaskPlacement: &swarmpb.TaskPlacement{TaskId: id, NodeId: node}}})
}

func status(id string, state swarmpb.TaskState) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{TaskId: id, State: state}}}
}

func deletion(key *swarmpb.RowKey) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: key}}
}

func (f *fixture) try(writes ...*swarmpb.Write) error {
	_, err := f.Propose(context.Background(), &swarmpb.Proposal{Writes: writes, Now: 7})
	if broken := f.store.View().Verify(); broken != nil {
		f.Fatal(broken)
	}
	return err
}

func (f *fixture) apply(writes ...*swarmpb.Write) {
	f.Helper()
	if err := f.try(writes...); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) usage(node string, cpus, memory int64, tasks int, ports ...uint32) {
	f.Helper()
	u := f.store.View().Usage(node)
	var got []uint32
	for _, port := range u.Ports() {
		got = append(got, port)
	}
	if u.NanoCPUs != cpus || u.MemoryBytes != memory || u.Tasks != tasks || !slices.Equal(got, ports) {
		f.Fatalf("usage of %s is %d CPU, %d bytes, %d tasks, ports %v; want %d, %d, %d, %v",
			node, u.NanoCPUs, u.MemoryBytes, u.Tasks, got, cpus, memory, tasks, ports)
	}
	if f.store.View().TasksOnByService(node, "svc") != tasks {
		f.Fatalf("tasks of the service on %s: %d, want %d", node, f.store.View().TasksOnByService(node, "svc"), tasks)
	}
}

func TestPropose_Refused_SaysWhyAsAnError(t *testing.T) {
	guard := func(key *swarmpb.RowKey, version uint64) *swarmpb.Proposal {
		return &swarmpb.Proposal{Guards: []*swarmpb.Guard{{Key: key, Version: version}}}
	}
	writes := func(writes ...*swarmpb.Write) *swarmpb.Proposal { return &swarmpb.Proposal{Writes: writes} }
	for name, test := range map[string]struct {
		proposal *swarmpb.Proposal
		// want is part of the error; a conflict when kind is nil.
		want string
		kind error
	}{
		"name taken":            {writes(service("other", "web")), `service name "web" is taken by service svc`, nil},
		"no name":               {writes(service("other", "")), "it has no name", ErrInvalid},
		"guard: exists":         {guard(swarmpb.ServiceKey("svc"), 0), "service svc exists already", nil},
		"guard: gone":           {guard(swarmpb.ServiceKey("nope"), 3), "service nope is gone", nil},
		"guard: other version":  {guard(swarmpb.ServiceKey("svc"), 9), "service svc has version 1, not 9", nil},
		"guard: empty":          {&swarmpb.Proposal{Guards: []*swarmpb.Guard{nil}}, "does not know", ErrInvalid},
		"stale term":            {&swarmpb.Proposal{Term: 9}, "decided in term 9, the term is 1", ErrStaleTerm},
		"too many writes":       {writes(make([]*swarmpb.Write, MaxWrites+1)...), "501 writes, at most 500", ErrInvalid},
		"empty write":           {writes(&swarmpb.Write{}), "does not know", ErrInvalid},
		"empty row":             {writes(put(&swarmpb.Row{})), "does not know", ErrInvalid},
		"empty ID":              {writes(task("", 1, 1, 1, "")), "the ID is empty", ErrInvalid},
		"long ID":               {writes(task(strings.Repeat("x", 300), 1, 1, 1, "")), "longer than 256", ErrInvalid},
		"request row":           {writes(put(&swarmpb.Row{Row: &swarmpb.Row_Request{Request: &swarmpb.Request{Id: "r"}}})), "only the store", ErrInvalid},
		"no slot":               {writes(task("t", 0, 1, 1, "")), "it has no slot", ErrInvalid},
		"template gone":         {writes(task("t", 1, 1, 7, "")), "template 7 of service svc is gone", nil},
		"task of nobody":        {writes(placement("nope", "n1")), "task nope is gone", nil},
		"node gone":             {writes(task("t", 1, 1, 1, ""), placement("t", "nope")), "node nope is gone", nil},
		"placed elsewhere":      {writes(placement("placed", "n2")), "task placed is placed on node n1 already", nil},
		"service with tasks":    {writes(deletion(swarmpb.ServiceKey("svc"))), "service web still has tasks, for example placed", nil},
		"missing template":      {writes(put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: "x", Spec: &swarmpb.ServiceSpec{Name: "x"}, TemplateVersion: 4}}})), "template 4, which is not there", ErrInvalid},
		"status not a worker's": {writes(status("placed", swarmpb.TaskState_TASK_STATE_ASSIGNED)), "not a worker's to report", ErrInvalid},
		"unknown state":         {writes(status("placed", 85)), "not a worker's to report", ErrInvalid},
		"state of no task":      {writes(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{TaskId: "nope"}}}), "task nope is gone", nil},
		"delete a placement":    {writes(deletion(swarmpb.TaskPlacementKey("placed"))), "goes with its task", ErrInvalid},
		"address taken":         {writes(allocation("a", "n1"), allocation("a", "n2")), "address a of pool uplink is taken by n1", nil},
		"ID reused":             {writes(task("placed", 2, 1, 1, "")), "an ID never returns", nil},
		"template reused": {writes(put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: "svc", Version: 1}}})),
			"template 1 of service svc exists with other content", nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.apply(task("placed", 1, 1, 1, ""), placement("placed", "n1"))
			_, err := f.Propose(context.Background(), test.proposal)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want one with %q", err, test.want)
			}
			var conflict *ConflictError
			if test.kind != nil && !errors.Is(err, test.kind) || test.kind == nil && (!errors.As(err, &conflict) || conflict.Key == nil) {
				t.Fatalf("error %v is not of its kind", err)
			}
		})
	}
}

func allocation(address, owner string) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Allocation{Allocation: &swarmpb.Allocation{Pool: "uplink", Address: address, Owner: owner}}})
}

func TestApply_UnknownOperationOrReusedID_RaisesAnAlarmThatCounts(t *testing.T) {
	f := newFixture(t)
	f.apply(task("t", 1, 1, 1, ""))
	for range 2 {
		f.try(&swarmpb.Write{})
		f.try(task("t", 2, 1, 1, ""))
	}
	for _, alarm := range []*swarmpb.Alarm{f.store.View().Alarm(AlarmUnknownOperation, ""), f.store.View().Alarm(AlarmIDConflict, "t")} {
		if alarm.GetCount() != 2 || alarm.GetSince() != 7 {
			t.Fatalf("alarm is %v, want a count of 2 since 7", alarm)
		}
	}
}

func TestApply_SameRequest_AnswersTheFirstResult(t *testing.T) {
	f := newFixture(t)
	first, err := f.Propose(context.Background(), &swarmpb.Proposal{RequestId: "r", Writes: []*swarmpb.Write{allocation("a", "n1")}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.Propose(context.Background(), &swarmpb.Proposal{RequestId: "r", Writes: []*swarmpb.Write{allocation("a", "n2")}})
	if err != nil || !proto.Equal(first, again) {
		t.Fatalf("second answer is %v, %v, want %v", again, err, first)
	}
	if owner := f.store.View().Allocation("uplink", "a").Owner; owner != "n1" {
		t.Fatalf("owner is %s", owner)
	}
	f.try(allocation("b", "n1"))
	if _, err := f.Propose(context.Background(), &swarmpb.Proposal{RequestId: "q", Writes: []*swarmpb.Write{allocation("b", "n2")}}); err == nil {
		t.Fatal("took a taken address")
	}
	if _, err := f.Propose(context.Background(), &swarmpb.Proposal{RequestId: "q", Writes: []*swarmpb.Write{allocation("c", "n2")}}); err != nil {
		t.Fatalf("a refused request cannot be tried again: %v", err)
	}
}

func TestApply_MoreRequestsThanKept_ForgetsTheOldest(t *testing.T) {
	s := New()
	for i := range MaxRequests + 2 {
		s.Apply(uint64(i+1), 1, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{RequestId: fmt.Sprint(i)}}})
	}
	_, oldest := s.View().requests.Get("1")
	_, next := s.View().requests.Get("2")
	if s.View().requests.Len() != MaxRequests || oldest || !next {
		t.Fatalf("%d requests are kept, the second %v, the third %v", s.View().requests.Len(), oldest, next)
	}
}

func TestApply_EntryOfThePast_IsRefused(t *testing.T) {
	f := newFixture(t)
	results := f.store.Apply(1, 1, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Writes: []*swarmpb.Write{service("a", "a")}}}})
	if results[0].Outcome != swarmpb.Outcome_OUTCOME_INVALID || f.store.View().Service("a") != nil {
		t.Fatalf("result is %v", results[0])
	}
}

func TestObserved_TaskGoesOn_FollowsItsRows(t *testing.T) {
	f := newFixture(t)
	want := func(state swarmpb.TaskState, unplaced int) {
		t.Helper()
		v := f.store.View()
		if v.Observed("t") != state || v.UnplacedCount() != unplaced || v.Count("svc", 1, state) != 1 {
			t.Fatalf("state is %s with %d unplaced, want %s with %d", v.Observed("t").Name(), v.UnplacedCount(), state.Name(), unplaced)
		}
	}
	f.apply(task("t", 1, 1, 1, ""))
	want(swarmpb.TaskState_TASK_STATE_PENDING, 1)
	f.apply(placement("t", ""))
	want(swarmpb.TaskState_TASK_STATE_PENDING, 1)
	f.apply(placement("t", "n1"))
	want(swarmpb.TaskState_TASK_STATE_ASSIGNED, 0)
	f.apply(status("t", swarmpb.TaskState_TASK_STATE_RUNNING))
	want(swarmpb.TaskState_TASK_STATE_RUNNING, 0)
	f.apply(status("t", swarmpb.TaskState_TASK_STATE_PREPARING))
	want(swarmpb.TaskState_TASK_STATE_RUNNING, 0)
	if f.store.View().Observed("nope") != swarmpb.TaskState_TASK_STATE_UNSPECIFIED {
		t.Fatal("a task that is not there has a state")
	}
}

func TestMergeStatus_LaterState_KeepsTheContainer(t *testing.T) {
	f := newFixture(t)
	f.apply(task("t", 1, 1, 1, ""))
	running := status("t", swarmpb.TaskState_TASK_STATE_RUNNING)
	running.GetMergeStatus().Container = &swarmpb.ContainerStatus{ContainerId: "c"}
	running.GetMergeStatus().Address = "100.64.0.2"
	f.apply(running, status("t", swarmpb.TaskState_TASK_STATE_FAILED), status("unknown", swarmpb.TaskState_TASK_STATE_FAILED))
	got := f.store.View().Status("t")
	if got.State != swarmpb.TaskState_TASK_STATE_FAILED || got.Container.GetContainerId() != "c" || got.Address != "100.64.0.2" {
		t.Fatalf("status is %v", got)
	}
	version := got.Version
	f.apply(status("t", swarmpb.TaskState_TASK_STATE_FAILED))
	if f.store.View().Status("t").Version != version {
		t.Fatal("a status that changes nothing was written")
	}
}

func TestUsage_ReplacementOnTheSameNode_SharesOneClaim(t *testing.T) {
	f := newFixture(t)
	// Template 1 needs 100 and 1000, template 2 needs 200 and 500; both bind 8080, and 9001 or 9002.
	f.apply(task("old", 1, 1, 1, ""), placement("old", "n1"))
	f.usage("n1", 100, 1000, 1, 8080, 9001)
	f.apply(task("new", 1, 2, 2, "old"), placement("new", "n1"))
	f.usage("n1", 200, 1000, 1, 8080, 9001, 9002)
	if !f.store.View().Usage("n1").HasPort(swarmpb.Protocol_PROTOCOL_UNSPECIFIED, 8080) {
		t.Fatal("port 8080 is not seen as tcp's")
	}
	f.apply(status("old", swarmpb.TaskState_TASK_STATE_SHUTDOWN))
	f.usage("n1", 200, 500, 1, 8080, 9002)
	f.apply(deletion(swarmpb.TaskKey("old")))
	f.usage("n1", 200, 500, 1, 8080, 9002)
	f.apply(status("new", swarmpb.TaskState_TASK_STATE_FAILED))
	f.usage("n1", 0, 0, 0)
}

func TestUsage_ReplacementBesideTheOldTask_IsOneTaskWithTwoClaims(t *testing.T) {
	f := newFixture(t)
	f.apply(task("old", 1, 1, 1, ""), placement("old", "n1"))
	heir := task("new", 1, 2, 2, "old")
	heir.GetPut().GetTask().Beside = true
	f.apply(heir, placement("new", "n1"))
	f.usage("n1", 100+200, 1000+500, 1, 8080, 9001, 9002)
	f.apply(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{
		TaskId: "new", DesiredState: swarmpb.TaskState_TASK_STATE_SHUTDOWN}}})
	if !f.store.View().Task("new").Beside {
		t.Fatal("a change of the desired state forgot that the task runs beside another")
	}
	f.apply(status("old", swarmpb.TaskState_TASK_STATE_SHUTDOWN))
	f.usage("n1", 200, 500, 1, 8080, 9002)
	if err := f.try(task("new", 1, 2, 2, "old")); err == nil {
		t.Fatal("the task's ID was taken for another one, not beside the old task")
	}
}

func TestUsage_ReplacementElsewhereOrASecondOne_CountsInFull(t *testing.T) {
	f := newFixture(t)
	f.apply(task("old", 1, 1, 1, ""), placement("old", "n1"), task("far", 1, 2, 1, "old"), placement("far", "n2"))
	f.usage("n1", 100, 1000, 1, 8080, 9001)
	f.usage("n2", 100, 1000, 1, 8080, 9001)
	f.apply(task("near", 1, 3, 1, "old"), placement("near", "n1"), task("nearer", 1, 4, 1, "old"), placement("nearer", "n1"))
	f.usage("n1", 200, 2000, 2, 8080, 9001)
	f.apply(deletion(swarmpb.TaskKey("near")))
	f.usage("n1", 100, 1000, 1, 8080, 9001)
}

// The third task of a slot takes the place of the first when the second has ended, or never had a node: it shares the claim of
// what is there still.
func TestUsage_TheTaskBetweenHoldsNothing_TheFirstAndTheThirdAreOneClaim(t *testing.T) {
	f := newFixture(t)
	f.apply(task("first", 1, 1, 1, ""), placement("first", "n1"), task("second", 1, 2, 1, "first"), placement("second", "n1"))
	f.usage("n1", 100, 1000, 1, 8080, 9001)
	f.apply(task("third", 1, 3, 1, "second"), placement("third", "n1"))
	f.usage("n1", 100, 1000, 1, 8080, 9001)
	ended := func(id string) *swarmpb.Write {
		return &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{TaskId: id, State: swarmpb.TaskState_TASK_STATE_FAILED}}}
	}
	f.apply(ended("second"))
	f.usage("n1", 100, 1000, 1, 8080, 9001)
	f.apply(task("fourth", 1, 4, 1, "third"), task("fifth", 1, 5, 1, "fourth"), placement("fifth", "n1"))
	f.usage("n1", 100, 1000, 1, 8080, 9001)
	f.apply(ended("first"))
	f.usage("n1", 100, 1000, 1, 8080, 9001)
	// Without the row between nobody knows what belongs together.
	f.apply(deletion(swarmpb.TaskKey("fourth")))
	f.usage("n1", 200, 2000, 2, 8080, 9001)
}

func TestAdvanceAttempt_LowerNumber_ChangesNothing(t *testing.T) {
	f := newFixture(t)
	for _, n := range []uint64{3, 2} {
		f.apply(&swarmpb.Write{Op: &swarmpb.Write_AdvanceAttempt{AdvanceAttempt: &swarmpb.AdvanceAttempt{ServiceId: "svc", Attempt: n}}})
	}
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: "svc"}}}))
	if got := f.store.View().ServiceProgress("svc").Attempt; got != 3 {
		t.Fatalf("attempt is %d, want 3", got)
	}
}

func TestNoteMoves_OthersWereToldMeanwhile_IsAConflict(t *testing.T) {
	f := newFixture(t)
	note := func(before, at int64, slot uint64) *swarmpb.Write {
		return &swarmpb.Write{Op: &swarmpb.Write_NoteMoves{NoteMoves: &swarmpb.NoteMoves{ServiceId: "svc", MovedBefore: before, MovedAt: at, BalanceSlot: slot}}}
	}
	update := &swarmpb.UpdateStatus{Message: "goes on"}
	f.apply(note(0, 5, 3), put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: "svc", Update: update}}}))
	// Whatever else changes in the row is no concern of moves.
	f.apply(&swarmpb.Write{Op: &swarmpb.Write_AdvanceAttempt{AdvanceAttempt: &swarmpb.AdvanceAttempt{ServiceId: "svc", Attempt: 7}}}, note(5, 6, 0))
	var conflict *ConflictError
	if err := f.try(note(5, 7, 0)); !errors.As(err, &conflict) {
		t.Errorf("the same moves are noted twice: %v", err)
	}
	f.apply(note(6, 2, 0), &swarmpb.Write{Op: &swarmpb.Write_NoteMoves{NoteMoves: &swarmpb.NoteMoves{ServiceId: "svc", BalancedAt: 9}}})
	got := f.store.View().ServiceProgress("svc")
	if got.MovedAt != 7 || got.BalanceSlot != 3 || got.BalancedAt != 9 || got.Attempt != 7 || got.GetUpdate().GetMessage() != "goes on" {
		t.Errorf("progress is %v", got)
	}
}

func TestSetTaskState_LowerState_KeepsTheHigher(t *testing.T) {
	f := newFixture(t)
	f.apply(task("t", 1, 1, 1, ""))
	for _, state := range []swarmpb.TaskState{100, 80, 0} {
		f.apply(&swarmpb.Write{Op: &swarmpb.Write_SetTaskState{SetTaskState: &swarmpb.SetTaskState{TaskId: "t", DesiredState: state, Draining: true}}})
	}
	got := f.store.View().Task("t")
	if got.DesiredState != swarmpb.TaskState_TASK_STATE_SHUTDOWN || !got.Draining || got.Meta.CreatedAt != 7 {
		t.Fatalf("task is %v", got)
	}
	// A plan that is tried again makes the task once more: nothing goes back.
	f.apply(task("t", 1, 1, 1, ""))
	if f.store.View().Task("t") != got {
		t.Fatal("making the task again changed it")
	}
}

func TestWatch_StartedInThePast_GetsEachChangeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		watch, err := f.store.Watch(1, 0)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan Batch)
		go func() {
			defer close(got)
			for {
				batch, err := watch.Next(context.Background())
				if err != nil {
					return
				}
				got <- batch
			}
		}()
		synctest.Wait()
		f.apply(task("a", 1, 1, 1, ""))
		batch := <-got
		if len(batch.Changes) != 1 || batch.View.Index() != 2 || batch.Changes[0].Key.ID != "a" || batch.Changes[0].Old != nil {
			t.Fatalf("batch is %v", batch)
		}
		f.apply(task("b", 2, 1, 1, ""))
		f.apply(task("c", 3, 1, 1, ""))
		synctest.Wait()
		seen := len((<-got).Changes)
		for seen < 2 {
			seen += len((<-got).Changes)
		}
		watch.Close()
		if _, open := <-got; open {
			t.Fatal("more changes than were made")
		}
	})
}

func TestWatch_TooFarBehind_Overflows(t *testing.T) {
	f := newFixture(t)
	slow, _ := f.store.Watch(1, 2)
	for i := range 3 {
		f.apply(allocation(fmt.Sprint(i), "n1"))
	}
	if _, err := slow.Next(context.Background()); !errors.Is(err, ErrOverflow) {
		t.Fatalf("error is %v, want ErrOverflow", err)
	}
	watch, _ := f.store.Watch(f.store.View().Index(), 0)
	for f.store.feed.floor == 0 {
		writes := make([]*swarmpb.Write, MaxWrites)
		for i := range writes {
			writes[i] = allocation(fmt.Sprint(i), "n1")
		}
		proposal := &swarmpb.Proposal{Writes: writes}
		f.store.Apply(f.store.View().Index()+1, 1, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{proposal}})
	}
	for f.store.feed.floor <= watch.index {
		f.store.Apply(f.store.View().Index()+1, 1, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Writes: []*swarmpb.Write{allocation("x", "n1")}}}})
	}
	if _, err := watch.Next(context.Background()); !errors.Is(err, ErrOverflow) {
		t.Fatalf("error is %v, want ErrOverflow", err)
	}
	if _, err := f.store.Watch(1, 0); !errors.Is(err, ErrCompacted) {
		t.Fatalf("error is %v, want ErrCompacted", err)
	}
}

func TestWatch_StoreReplaced_Overflows(t *testing.T) {
	f := newFixture(t)
	watch, _ := f.store.Watch(f.store.View().Index(), 0)
	f.store.Close()
	if _, err := watch.Next(context.Background()); !errors.Is(err, ErrOverflow) {
		t.Fatalf("error is %v, want ErrOverflow", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := watch.Next(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("error is %v, want the context's", err)
	}
}

func TestReadSnapshot_Restored_AnswersRetriesAndCompactsTheFeed(t *testing.T) {
	f := newFixture(t)
	first, _ := f.Propose(context.Background(), &swarmpb.Proposal{RequestId: "r", Writes: []*swarmpb.Write{task("t", 1, 1, 1, ""), placement("t", "n1")}})
	restored, err := ReadSnapshot(bytes.NewReader(snapshotOf(t, f.store.View())))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := restored.Watch(1, 0); !errors.Is(err, ErrCompacted) {
		t.Fatalf("error is %v, want ErrCompacted", err)
	}
	again, err := NewLocalProposer(restored).Propose(context.Background(), &swarmpb.Proposal{RequestId: "r"})
	if err != nil || !proto.Equal(first, again) {
		t.Fatalf("answer is %v, %v, want %v", again, err, first)
	}
}

func TestUsage_SecondSuccessorBesideTheFirst_NeverTakesItsShare(t *testing.T) {
	f := newFixture(t)
	// The second successor is the first by ID and needs less CPU: as the sharer it would raise the node's usage.
	f.apply(task("old", 1, 1, 2, ""), placement("old", "n1"))
	f.apply(task("b", 1, 2, 2, "old"), placement("b", "n1"))
	f.usage("n1", 200, 500, 1, 8080, 9002)
	f.apply(task("a", 1, 3, 1, "old"), placement("a", "n1"))
	f.usage("n1", 200+100, 500+1000, 2, 8080, 9001, 9002)
	f.apply(status("b", swarmpb.TaskState_TASK_STATE_FAILED))
	f.usage("n1", 200, 1000, 1, 8080, 9001, 9002)
}

func TestWatch_EntryWithoutChanges_ReachedTellsOfIt(t *testing.T) {
	st := New()
	watch, err := st.Watch(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	propose := func(w *swarmpb.Write) {
		if _, err := NewLocalProposer(st).Propose(t.Context(), &swarmpb.Proposal{Writes: []*swarmpb.Write{w}, Now: 1}); err != nil {
			t.Fatal(err)
		}
	}
	nothing := &swarmpb.Write{Op: &swarmpb.Write_SetDrained{SetDrained: &swarmpb.SetDrained{TaskIds: []string{"nobody"}, At: 1}}}
	propose(nothing)
	if view := watch.Reached(); view == nil || view != st.View() {
		t.Error("an entry without changes is not told of")
	}
	propose(&swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: "k", Object: "o"}}})
	if watch.Reached() != nil {
		t.Error("a change is there to be read first")
	}
	if _, err := watch.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	propose(nothing)
	if watch.Reached() != st.View() {
		t.Error("an entry after the change is not told of")
	}
	st.Close()
	if watch.Reached() != nil {
		t.Error("a store that was replaced is reached")
	}
}
