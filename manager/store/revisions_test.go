package store

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func revision(n, template uint64) *swarmpb.Write {
	return put(&swarmpb.Row{Row: &swarmpb.Row_ServiceRevision{ServiceRevision: &swarmpb.ServiceRevision{
		ServiceId: "svc", Revision: n, TemplateVersion: template, Spec: &swarmpb.ServiceSpec{Name: "web"}, At: int64(n),
	}}})
}

func revisionsOf(v *View) []uint64 {
	var all []uint64
	for r := range v.RevisionsOf("svc") {
		all = append(all, r.Revision)
	}
	return all
}

func TestRevisions_MoreThanKept_TheOldestGoWithTheirTemplates(t *testing.T) {
	f := newFixture(t)
	f.apply(revision(1, 1), revision(2, 2))
	// Nothing but the history needs template 1 from here on.
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: "svc", Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: 2}}}))
	if f.store.View().Template("svc", 1) == nil {
		t.Fatal("a template that the history needs is gone")
	}
	for n := range uint64(MaxRevisions - 1) {
		f.apply(revision(n+3, 2))
	}
	want := []uint64{2, 3, 4, 5, 6, 7, 8, 9, 10, 11}
	if got := revisionsOf(f.store.View()); !slices.Equal(got, want) {
		t.Fatalf("kept are %v, want %v", got, want)
	}
	if f.store.View().Template("svc", 1) != nil {
		t.Fatal("a template that nothing needs is still there")
	}
	if err := f.store.View().Verify(); err != nil {
		t.Fatal(err)
	}
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_ServiceMetric{ServiceMetric: &swarmpb.ServiceMetric{ServiceId: "svc"}}}))
	f.apply(deletion(swarmpb.ServiceKey("svc")))
	if v := f.store.View(); v.revisions.Len() != 0 || v.metrics.Len() != 0 || v.templates.Len() != 0 {
		t.Fatal("the service left rows behind")
	}
}

func TestRevisions_OutOfOrderOrOtherContent_AreRefused(t *testing.T) {
	f := newFixture(t)
	f.apply(revision(3, 2))
	f.apply(revision(3, 2)) // the same once more is no change
	var conflicted *ConflictError
	for what, write := range map[string]*swarmpb.Write{
		"older": revision(2, 2), "other content": revision(3, 1), "template gone": revision(4, 9),
		"of no service": put(&swarmpb.Row{Row: &swarmpb.Row_ServiceRevision{ServiceRevision: &swarmpb.ServiceRevision{ServiceId: "none", Revision: 1}}}),
	} {
		if err := f.try(write); !errors.As(err, &conflicted) {
			t.Errorf("%s: error is %v, want a conflict", what, err)
		}
	}
	for what, write := range map[string]*swarmpb.Write{"number 0": revision(0, 2), "deletion": deletion(swarmpb.ServiceRevisionKey("svc", 3))} {
		if err := f.try(write); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: error is %v, want ErrInvalid", what, err)
		}
	}
	if got := revisionsOf(f.store.View()); !slices.Equal(got, []uint64{3}) {
		t.Fatalf("kept are %v", got)
	}
}

func TestNetwork_OnlyInTheHistory_MayGo(t *testing.T) {
	f := newFixture(t)
	network := func(removing bool) *swarmpb.Write {
		return put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{
			Id: "net-a", Spec: &swarmpb.NetworkSpec{Name: "front"}, Removing: removing,
		}}})
	}
	in := proto.CloneOf(templateOf("svc", 3))
	in.Spec.Networks = []*swarmpb.NetworkAttachment{{Network: "net-a"}}
	named := func(template uint64) *swarmpb.Write {
		return put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: "svc", Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: template}}})
	}
	f.apply(network(false), put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: in}}), named(3), revision(1, 3))
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_Template{Template: templateOf("svc", 4)}}), named(4), revision(2, 4))
	if f.store.View().Template("svc", 3) == nil {
		t.Fatal("a template that the history needs is gone")
	}
	if used := f.store.View().NetworkInUse("net-a"); used != "" {
		t.Fatalf("in use: %s", used)
	}
	f.apply(network(true))
	f.apply(deletion(swarmpb.NetworkKey("net-a")))
	// The revision stays, and cannot come back.
	if got := revisionsOf(f.store.View()); !slices.Equal(got, []uint64{1, 2}) {
		t.Fatalf("kept are %v", got)
	}
	var conflicted *ConflictError
	if err := f.try(named(3)); !errors.As(err, &conflicted) {
		t.Fatalf("a service in a network that is gone: %v", err)
	}
	if err := f.store.View().Verify(); err != nil {
		t.Fatal(err)
	}
}

func TestTemplate_OfTheOldSet_StaysWhileThereAreTwo(t *testing.T) {
	f := newFixture(t)
	progress := func(state swarmpb.UpdateState) *swarmpb.Write {
		return put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: "svc", Update: &swarmpb.UpdateStatus{
			State: state, Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY, TemplateVersion: 2, StableTemplateVersion: 1,
		}}}})
	}
	f.apply(progress(swarmpb.UpdateState_UPDATE_STATE_UPDATING))
	f.apply(put(&swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{Id: "svc", Spec: &swarmpb.ServiceSpec{Name: "web"}, TemplateVersion: 2}}}))
	if f.store.View().Template("svc", 1) == nil {
		t.Fatal("the old set's template is gone while tasks are made from it")
	}
	f.apply(progress(swarmpb.UpdateState_UPDATE_STATE_COMPLETED))
	if f.store.View().Template("svc", 1) != nil {
		t.Fatal("the old set's template is still there after the update")
	}
}

func TestMergeStatus_Health_TheNewestCounts(t *testing.T) {
	f := newFixture(t)
	f.apply(task("t", 1, 1, 2, ""), placement("t", "n1"))
	report := func(state swarmpb.TaskState, at int64, health *swarmpb.HealthStatus) {
		t.Helper()
		f.apply(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{TaskId: "t", State: state, At: at, Health: health, Message: "at"}}})
		if err := f.store.View().Verify(); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, at int64, up int) {
		t.Helper()
		view := f.store.View()
		if got := view.Status("t").GetHealth().GetAt(); got != at {
			t.Fatalf("%s: health is of %d, want %d", what, got, at)
		}
		if got := view.Up("svc", 2); got != up {
			t.Fatalf("%s: %d are up, want %d", what, got, up)
		}
	}
	const starting, running, failed = swarmpb.TaskState_TASK_STATE_STARTING, swarmpb.TaskState_TASK_STATE_RUNNING, swarmpb.TaskState_TASK_STATE_FAILED
	report(starting, 1, &swarmpb.HealthStatus{NotReady: true, At: 1})
	expect("starting", 1, 0)
	report(running, 2, &swarmpb.HealthStatus{At: 2})
	expect("running", 2, 1)
	report(running, 2, &swarmpb.HealthStatus{NotReady: true, At: 5})
	expect("not ready", 5, 0)
	report(running, 3, &swarmpb.HealthStatus{At: 4})
	expect("an older health with a newer status", 5, 0)
	if at := f.store.View().Status("t").GetAt(); at != 3 {
		t.Fatalf("the status is of %d, want 3", at)
	}
	report(running, 2, &swarmpb.HealthStatus{At: 6})
	expect("a newer health with an older status", 6, 1)
	if at := f.store.View().Status("t").GetAt(); at != 3 {
		t.Fatalf("the status is of %d, want 3", at)
	}
	report(starting, 9, &swarmpb.HealthStatus{NotReady: true, At: 9})
	expect("a state of the past", 6, 1)
	report(running, 4, nil)
	expect("a status that says nothing of it", 6, 1)
	before := f.store.View().Status("t").GetVersion()
	report(running, 4, &swarmpb.HealthStatus{At: 6})
	if f.store.View().Status("t").GetVersion() != before {
		t.Fatal("the same once more is a change")
	}
	report(running, 5, &swarmpb.HealthStatus{NotReady: true, At: 7})
	report(failed, 6, nil)
	expect("ended", 7, 0)
	f.apply(deletion(swarmpb.TaskKey("t")))
	if err := f.store.View().Verify(); err != nil {
		t.Fatal(err)
	}
}

func TestMergeStatus_FloodOfProbeOutput_IsCut(t *testing.T) {
	f := newFixture(t)
	f.apply(task("t", 1, 1, 2, ""), placement("t", "n1"))
	for at, text := range []string{strings.Repeat("x", 1<<20), strings.Repeat("€", 1<<20), "x" + strings.Repeat("€", 1<<20)} {
		f.apply(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
			TaskId: "t", State: swarmpb.TaskState_TASK_STATE_RUNNING, Health: &swarmpb.HealthStatus{Output: text, At: int64(at)},
		}}})
		got := f.store.View().Status("t").GetHealth().GetOutput()
		if len(got) > MaxProbeOutput || len(got) < MaxProbeOutput-3 || !utf8.ValidString(got) || !strings.HasPrefix(text, got) {
			t.Fatalf("output of %d bytes is kept as %d", len(text), len(got))
		}
	}
	var out bytes.Buffer
	if err := f.store.View().WriteSnapshot(&out); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSnapshot(&out); err != nil {
		t.Fatal(err)
	}
}

func TestRevisions_OfOneTemplate_ShareItsSpec(t *testing.T) {
	f := newFixture(t)
	same := revision(1, 2)
	same.GetPut().GetServiceRevision().Spec.Task = templateOf("svc", 2).Spec
	other := revision(2, 2)
	other.GetPut().GetServiceRevision().Spec.Task = templateOf("svc", 1).Spec
	f.apply(same, other, revision(3, 2))
	var out bytes.Buffer
	if err := f.store.View().WriteSnapshot(&out); err != nil {
		t.Fatal(err)
	}
	restored, err := ReadSnapshot(&out)
	if err != nil {
		t.Fatal(err)
	}
	for _, view := range []*View{f.store.View(), restored.View()} {
		if view.ServiceRevision("svc", 1).Spec.Task != view.Template("svc", 2).Spec {
			t.Error("a revision has a copy of its template's spec")
		}
		if !proto.Equal(view.ServiceRevision("svc", 2).Spec.Task, templateOf("svc", 1).Spec) || view.ServiceRevision("svc", 3).Spec.Task != nil {
			t.Error("a revision lost what differs from its template")
		}
	}
}
