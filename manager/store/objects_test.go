package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestTemplate_LastReferenceGone_IsCollected(t *testing.T) {
	f := newFixture(t)
	f.apply(task("t", 1, 1, 1, ""))
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
		Id: "svc", Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: 2,
	}}}))
	if f.store.View().Template("svc", 1) == nil {
		t.Fatal("a template that a task needs is gone")
	}
	f.apply(deletion(swarmpb.TaskKey("t")))
	if f.store.View().Template("svc", 1) != nil {
		t.Fatal("a template that nothing needs is still there")
	}
	f.apply(&swarmpb.Write{Op: &swarmpb.Write_AdvanceAttempt{AdvanceAttempt: &swarmpb.AdvanceAttempt{ServiceId: "svc", Attempt: 4}}})
	f.apply(deletion(swarmpb.ServiceKey("svc")))
	if v := f.store.View(); v.templates.Len() != 0 || v.progress.Len() != 0 || v.ServiceByName("web") != nil {
		t.Fatal("the service left rows behind")
	}
}

func rolledBack(state swarmpb.UpdateState, to, failed uint64) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{
		ServiceId: "svc", Update: &swarmpb.UpdateStatus{State: state, TemplateVersion: to, FailedTemplateVersion: failed},
	}}})
}

func TestTemplate_RolledBackToBeforeScalingToZero_Stays(t *testing.T) {
	onlyFailed := put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
		Id: "svc", Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: 2,
	}}})
	f := newFixture(t)
	f.apply(task("t", 1, 1, 1, ""), rolledBack(swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, 1, 2))
	f.apply(onlyFailed, deletion(swarmpb.TaskKey("t")))
	if f.store.View().Template("svc", 1) == nil {
		t.Fatal("the template that the service was rolled back to is gone")
	}
	f.apply(rolledBack(swarmpb.UpdateState_UPDATE_STATE_COMPLETED, 2, 0))
	if f.store.View().Template("svc", 1) != nil {
		t.Fatal("the template is still there after an update that leaves it")
	}

	f = newFixture(t)
	f.apply(rolledBack(swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, 1, 0), onlyFailed)
	if f.store.View().Template("svc", 1) != nil {
		t.Fatal("a rollback by hand, whose template the spec names, keeps another")
	}
}

func TestPutCluster_Again_KeepsItsIDAndBirth(t *testing.T) {
	cluster := func(id string, now int64) *swarmpb.Proposal {
		row := &swarmpb.Cluster{Id: id, Meta: &swarmpb.Meta{Version: 99, CreatedAt: 99}}
		return &swarmpb.Proposal{Writes: []*swarmpb.Write{put(&swarmpb.Row{Row: &swarmpb.Row_Cluster{Cluster: row}})}, Now: now}
	}
	f := newFixture(t)
	if f.store.View().Cluster() != nil {
		t.Fatal("a cluster is there before it was made")
	}
	for _, now := range []int64{3, 5} {
		if _, err := f.Propose(context.Background(), cluster("c", now)); err != nil {
			t.Fatal(err)
		}
	}
	want := &swarmpb.Meta{Version: f.store.View().Index(), CreatedAt: 3, UpdatedAt: 5}
	if got := f.store.View().Cluster(); got.Id != "c" || !proto.Equal(got.Meta, want) {
		t.Fatalf("cluster is %v, want c with %v", got, want)
	}
	var conflict *ConflictError
	_, err := f.Propose(context.Background(), cluster("other", 7))
	if !errors.As(err, &conflict) || conflict.Key.GetId() != "c" || !strings.Contains(err.Error(), "this is cluster c already") {
		t.Fatalf("error is %v, want a conflict with cluster c", err)
	}
	if err := f.try(deletion(swarmpb.ClusterKey("c"))); !errors.Is(err, ErrInvalid) || f.store.View().Cluster() == nil {
		t.Fatalf("deleting the cluster: error is %v", err)
	}
	// Whoever writes the cluster may guard it without knowing its ID.
	version := f.store.View().Cluster().Meta.Version
	for _, id := range []string{"", "c"} {
		guards := []*swarmpb.Guard{{Key: swarmpb.ClusterKey(id), Version: version}}
		if _, err := f.Propose(context.Background(), &swarmpb.Proposal{Guards: guards}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRaiseAlarm_TableFull_CountsTheRestTogether(t *testing.T) {
	f := newFixture(t)
	for i := range MaxAlarms + 3 {
		f.store.Apply(f.store.View().Index()+1, 1, &swarmpb.Entry{Proposals: []*swarmpb.Proposal{{Writes: []*swarmpb.Write{
			{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: "k", Object: fmt.Sprint(i)}}},
		}}}})
	}
	if alarm := f.store.View().Alarm(AlarmOverflow, ""); alarm.GetCount() != 3 {
		t.Fatalf("overflow alarm is %v, want a count of 3", alarm)
	}
	if n := f.store.View().alarms.Len(); n != MaxAlarms+1 {
		t.Fatalf("%d alarms are kept", n)
	}
}

func alarm(kind, object string, count uint64) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_Alarm{Alarm: &swarmpb.Alarm{
		Kind: kind, Object: object, Message: "look", Since: 4, Count: count,
	}}})
}

func TestPutAlarm_Again_ReplacesIt(t *testing.T) {
	f := newFixture(t)
	f.apply(alarm("k", "a", 5))
	f.apply(alarm("k", "a", 2))
	want := &swarmpb.Alarm{Kind: "k", Object: "a", Message: "look", Since: 4, Count: 2, Version: f.store.View().Index()}
	if got := f.store.View().Alarm("k", "a"); !proto.Equal(got, want) {
		t.Fatalf("alarm is %v, want %v", got, want)
	}
	f.apply(&swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: "k", Object: "a", Message: "more"}}})
	if got := f.store.View().Alarm("k", "a"); got.Count != 3 || got.Since != 4 || got.Message != "more" {
		t.Fatalf("raised, the alarm is %v", got)
	}
	f.apply(deletion(swarmpb.AlarmKey("k", "a")))
	for got := range f.store.View().Alarms() {
		t.Fatalf("alarm %v is still there", got)
	}
	if err := f.try(alarm("", "a", 1)); !errors.Is(err, ErrInvalid) {
		t.Fatalf("error is %v, want ErrInvalid", err)
	}
}

func TestPutAlarm_TableFull_ReplacesWhatIsThereAndCountsTheRest(t *testing.T) {
	f := newFixture(t)
	for i := 0; i < MaxAlarms; i += MaxWrites {
		var writes []*swarmpb.Write
		for n := i; n < min(MaxAlarms, i+MaxWrites); n++ {
			writes = append(writes, alarm("k", fmt.Sprint(n), 1))
		}
		f.apply(writes...)
	}
	f.apply(alarm("k", "0", 9), alarm("k", "beyond", 9), alarm("k", "further", 9))
	v := f.store.View()
	if v.Alarm("k", "0").GetCount() != 9 || v.Alarm("k", "beyond") != nil || v.Alarm(AlarmOverflow, "").GetCount() != 2 {
		t.Fatalf("alarms are %v, %v, %v", v.Alarm("k", "0"), v.Alarm("k", "beyond"), v.Alarm(AlarmOverflow, ""))
	}
}
