package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func network(id, name string, removing bool) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{
		Id: id, Spec: &swarmpb.NetworkSpec{Name: name}, Removing: removing,
	}}})
}

// serviceIn is a service with one template, whose tasks are in the networks.
func serviceIn(id string, version uint64, networks ...string) []*swarmpb.Write {
	spec := &swarmpb.TaskSpec{}
	for _, n := range networks {
		spec.Networks = append(spec.Networks, &swarmpb.NetworkAttachment{Network: n})
	}
	return []*swarmpb.Write{
		put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
			Id: id, Spec: &swarmpb.ServiceSpec{Name: id + "-name", Task: spec}, TemplateVersion: version,
		}}}),
		put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: &swarmpb.Template{ServiceId: id, Version: version, Spec: spec}}}),
	}
}

func taskOf(service, id string, version uint64) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
		Id: id, ServiceId: service, Slot: 1, Attempt: 1, TemplateVersion: version, DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING,
	}}})
}

func addresses(task string, networks ...string) *swarmpb.Write {
	row := &swarmpb.TaskAddresses{TaskId: task}
	for i, id := range networks {
		row.Networks = append(row.Networks, &swarmpb.NetworkAddress{NetworkId: id, Address: fmt.Sprintf("10.0.%d.2", i)})
	}
	return put(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: row}})
}

func (f *fixture) refused(want string, writes ...*swarmpb.Write) {
	f.Helper()
	err := f.try(writes...)
	var conflict *ConflictError
	if !errors.As(err, &conflict) || !strings.Contains(conflict.Message, want) {
		f.Fatalf("error is %v, want a conflict that says %q", err, want)
	}
}

func TestObserved_TaskInNetworks_IsNewUntilItHasAnAddressInEach(t *testing.T) {
	f := newFixture(t)
	f.apply(network("n1", "front", false), network("n2", "back", false))
	f.apply(append(serviceIn("s", 1, "n1", "n2"), taskOf("s", "t", 1))...)
	expect := func(state swarmpb.TaskState, unplaced int) {
		t.Helper()
		v := f.store.View()
		if got := v.Observed("t"); got != state || v.UnplacedCount() != unplaced || v.Count("s", 1, state) != 1 {
			t.Fatalf("observed %s with %d unplaced, want %s and %d", got.Name(), v.UnplacedCount(), state.Name(), unplaced)
		}
	}
	expect(swarmpb.TaskState_TASK_STATE_NEW, 0)
	f.refused("has no addresses yet", placement("t", "n1"))
	f.apply(placement("t", "")) // a message is no place
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_TaskAddresses{TaskAddresses: &swarmpb.TaskAddresses{TaskId: "t", Message: "full"}}}))
	expect(swarmpb.TaskState_TASK_STATE_NEW, 0)
	f.apply(addresses("t", "n2"))
	expect(swarmpb.TaskState_TASK_STATE_NEW, 0)
	f.apply(addresses("t", "n2", "n1"))
	expect(swarmpb.TaskState_TASK_STATE_PENDING, 1)
	f.apply(addresses("t"))
	expect(swarmpb.TaskState_TASK_STATE_NEW, 0)
	f.apply(addresses("t", "n1", "n2"))
	f.apply(placement("t", "n1"))
	expect(swarmpb.TaskState_TASK_STATE_ASSIGNED, 0)
	f.apply(deletion(swarmpb.TaskKey("t")))
	if v := f.store.View(); v.TaskCount() != 0 || v.TasksOnNetwork("n1") != 0 {
		t.Fatalf("%d tasks are left, %d on the network", v.TaskCount(), v.TasksOnNetwork("n1"))
	}
}

func TestPutService_NetworkUnknownOrGoing_IsRefused(t *testing.T) {
	f := newFixture(t)
	f.apply(network("n1", "front", false), network("n2", "back", true))
	f.refused("network nowhere is gone", serviceIn("s", 1, "n1", "nowhere")...)
	f.refused(`network "back" is being removed`, serviceIn("s", 1, "n2")...)
	// In one proposal, in any order.
	f.apply(append(serviceIn("s", 1, "n3"), network("n3", "new", false))...)
}

func TestDeleteNetwork_InUse_IsRefusedAndSaysByWhom(t *testing.T) {
	f := newFixture(t)
	f.apply(append(serviceIn("s", 1, "n1"), network("n1", "back", false), taskOf("s", "t", 1), addresses("t", "n1"))...)
	inUse := `network "back" is in use by service "s-name"`
	f.refused(inUse, deletion(swarmpb.NetworkKey("n1")))
	f.refused(inUse, network("n1", "back", true))
	// The service leaves the network, its old task is still there.
	f.apply(serviceIn("s", 2)...)
	stillThere := `network "back" still has 1 tasks of service "s-name"`
	f.refused(stillThere, deletion(swarmpb.NetworkKey("n1")))
	f.refused(stillThere, network("n1", "back", true))
	f.apply(placement("t", "n1"), status("t", swarmpb.TaskState_TASK_STATE_SHUTDOWN))
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: &swarmpb.NetworkProgress{NetworkId: "n1"}}}))
	f.apply(network("n1", "back", true))
	f.apply(deletion(swarmpb.NetworkKey("n1")))
	if v := f.store.View(); v.NetworkProgress("n1") != nil || v.NetworkByName("back") != nil || v.NetworkCount() != 0 {
		t.Fatal("something of the network is left")
	}
}

func TestDeleteNetwork_UpdateMayGoBackToIt_IsRefused(t *testing.T) {
	f := newFixture(t)
	f.apply(append(serviceIn("s", 1, "n1"), network("n1", "back", false))...)
	writes := serviceIn("s", 2)
	writes[0].GetPut().GetService().PreviousTemplateVersion = 1
	f.apply(append(writes, put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{
		ServiceId: "s", Update: &swarmpb.UpdateStatus{State: swarmpb.UpdateState_UPDATE_STATE_UPDATING, TemplateVersion: 2},
	}}}))...)
	f.refused(`in use by service "s-name"`, deletion(swarmpb.NetworkKey("n1")))
	expect := func(services ...string) {
		t.Helper()
		var got []string
		for service := range f.store.View().ServicesOn("n1") {
			got = append(got, service.Id)
		}
		if !slices.Equal(got, services) {
			t.Fatalf("services %v are in the network, want %v", got, services)
		}
	}
	expect("s")
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{
		ServiceId: "s", Update: &swarmpb.UpdateStatus{State: swarmpb.UpdateState_UPDATE_STATE_COMPLETED, TemplateVersion: 2},
	}}}))
	// The previous spec alone keeps nobody from removing it; going back is refused then.
	expect()
	f.apply(deletion(swarmpb.NetworkKey("n1")))
	back := serviceIn("s", 1, "n1")
	f.refused("network n1 is gone", back[0])
}

func TestRemoveNetwork_ServiceIsBeingRemovedToo_IsTakenAndWaitsForIt(t *testing.T) {
	f := newFixture(t)
	f.apply(append(serviceIn("s", 1, "n1"), network("n1", "back", false), taskOf("s", "t", 1))...)
	writes := serviceIn("s", 1, "n1")
	writes[0].GetPut().GetService().Removing = true
	f.apply(writes[0])
	f.apply(network("n1", "back", true))
	f.refused(`in use by service "s-name"`, deletion(swarmpb.NetworkKey("n1")))
	f.apply(network("n1", "back", false))
	if !f.store.View().Network("n1").GetRemoving() {
		t.Fatal("a network that is being removed came back")
	}
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{ServiceId: "s"}}}))
	f.apply(deletion(swarmpb.TaskKey("t")))
	f.apply(deletion(swarmpb.ServiceKey("s")))
	if f.store.View().ServiceEndpoint("s") != nil {
		t.Fatal("the endpoint outlives its service")
	}
	f.apply(deletion(swarmpb.NetworkKey("n1")))
}

func TestPutNetwork_NameTaken_IsRefused(t *testing.T) {
	f := newFixture(t)
	f.apply(network("n1", "back", false))
	f.refused(`network name "back" is taken by network n1`, network("n2", "back", false))
	f.apply(network("n1", "front", false)) // renamed
	f.apply(network("n2", "back", false))
	if f.store.View().NetworkByName("back").GetId() != "n2" {
		t.Fatal("the name leads to another network")
	}
	f.refused("network gone", put(&swarmpb.Row{Row: &swarmpb.Row_NetworkProgress{NetworkProgress: &swarmpb.NetworkProgress{NetworkId: "gone"}}}))
	f.refused("service gone", put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{ServiceId: "gone"}}}))
}

func TestSetDrained_Status_KeepsTheFirstTimeThroughMerges(t *testing.T) {
	f := newFixture(t)
	f.apply(task("a", 1, 1, 1, ""), task("b", 2, 1, 1, ""), placement("a", "n1"))
	f.apply(status("a", swarmpb.TaskState_TASK_STATE_RUNNING))
	drained := func(at int64, ids ...string) *swarmpb.Write {
		return &swarmpb.Write{Op: &swarmpb.Write_SetDrained{SetDrained: &swarmpb.SetDrained{TaskIds: ids, At: at}}}
	}
	f.apply(drained(5, "unknown", "a", "b"))
	f.apply(drained(6, "a"))
	liar := &swarmpb.TaskStatus{TaskId: "a", State: swarmpb.TaskState_TASK_STATE_SHUTDOWN, DrainedAt: 99}
	f.apply(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: liar}})
	v := f.store.View()
	if got := v.Status("a"); got.DrainedAt != 5 || got.State != swarmpb.TaskState_TASK_STATE_SHUTDOWN {
		t.Fatalf("status is %v", got)
	}
	if v.Status("b") != nil {
		t.Fatal("a task that never had a status has one")
	}
	before := v.Index()
	if err := f.try(drained(7, make([]string, MaxWrites+1)...)); !errors.Is(err, ErrInvalid) {
		t.Fatalf("more than the limit: %v", err)
	}
	if err := f.try(drained(0, "a")); !errors.Is(err, ErrInvalid) {
		t.Fatalf("without a time: %v", err)
	}
	var snapshot bytes.Buffer
	if err := f.store.View().WriteSnapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	restored, err := ReadSnapshot(&snapshot)
	if err != nil || restored.View().Status("a").GetDrainedAt() != 5 || restored.View().Index() <= before {
		t.Fatalf("restored: %v, error %v", restored.View().Status("a"), err)
	}
}
