package control

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// updateTo gives a service another spec through the API and returns its revision.
func (w *world) updateTo(spec *swarmpb.ServiceSpec, author string) uint64 {
	w.t.Helper()
	r, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: spec.GetName(), Spec: spec, Author: author})
	if err != nil {
		w.t.Fatalf("update %s: %v", spec.GetName(), err)
	}
	return r.GetRevision()
}

func (w *world) history(name string) []string {
	w.t.Helper()
	r, err := w.server.GetServiceHistory(ctx, &swarmpb.GetServiceHistoryRequest{Service: name})
	if err != nil {
		w.t.Fatalf("history: %v", err)
	}
	var lines []string
	for _, info := range r.GetRevisions() {
		rev := info.GetRevision()
		line := fmt.Sprintf("%d %s %s template %d by %s: %s", rev.GetRevision(), rev.GetSpec().GetTask().GetContainer().GetImage(),
			info.GetOutcome().GetState().Name(), rev.GetTemplateVersion(), rev.GetAuthor(), rev.GetCause())
		if info.GetCurrent() {
			line += " *"
		}
		if rev.GetAt() == 0 || rev.GetRegistryAuth() != nil {
			w.t.Fatalf("revision %v", rev)
		}
		lines = append(lines, line)
	}
	return lines
}

func expectLines(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestHistory_CreatedUpdatedRolledBack_TellsWhoAndWhat(t *testing.T) {
	w := newWorld(t)
	auth := &swarmpb.RegistryAuth{Server: "docker.io", Username: "u", Password: "p"}
	r, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: spec("web", "web:1", 3), Author: "ann@host", RegistryAuth: auth})
	if err != nil {
		t.Fatal(err)
	}
	id := r.GetId()
	w.updateTo(spec("web", "web:2", 3), "bob@host")
	w.updateTo(spec("web", "web:2", 3), "nobody") // the same once more is no version
	w.updateTo(spec("web", "web:2", 9), "bob@host")
	back, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web", Revision: 1, Author: "cid@host"})
	if err != nil {
		t.Fatal(err)
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Outcomes: []*swarmpb.RevisionOutcome{
		{Revision: 2, State: swarmpb.UpdateState_UPDATE_STATE_COMPLETED},
	}}}})
	if back.GetRevision() != 4 || w.view().Service(id).GetRevision() != 4 {
		t.Errorf("revision %d, of the service %d", back.GetRevision(), w.view().Service(id).GetRevision())
	}
	expectLines(t, w.history("web"),
		"4 web:1 unspecified template 1 by cid@host: rollback to version 1 *",
		"3 web:2 unspecified template 2 by bob@host: update",
		"2 web:2 completed template 2 by bob@host: update",
		"1 web:1 unspecified template 1 by ann@host: create")
	if kept := w.view().ServiceRevision(id, 1).GetRegistryAuth(); !proto.Equal(kept, auth) {
		t.Errorf("the store keeps %v", kept)
	}
	_, err = w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: spec("x", "web:1", 3), Author: strings.Repeat("a", 129)})
	expectError(t, err, wire.CodeInvalid, "author: 129 bytes; at most 128")
	_, err = w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: "web", Spec: spec("web", "web:1", 3), Author: "a\x1b"})
	expectError(t, err, wire.CodeInvalid, "it holds a control character")
}

func TestHistory_UpdateUnderWay_TellsWhereItIs(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 3)
	w.updateTo(spec("web", "web:2", 3), "bob@host")
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id,
		Update:   &swarmpb.UpdateStatus{State: swarmpb.UpdateState_UPDATE_STATE_UPDATING, Revision: 2, Message: "waiting for promote"},
		Outcomes: []*swarmpb.RevisionOutcome{{Revision: 2, State: swarmpb.UpdateState_UPDATE_STATE_UPDATING, Message: "update in progress"}},
	}}})
	r, err := w.server.GetServiceHistory(ctx, &swarmpb.GetServiceHistoryRequest{Service: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.GetRevisions()[0].GetOutcome().GetMessage(); got != "waiting for promote" {
		t.Errorf("outcome %q", got)
	}
}

func TestHistory_ServiceFromBefore_GetsItsFirstVersion(t *testing.T) {
	w := newWorld(t)
	old := spec("web", "web:1", 1)
	w.local.Propose(ctx, &swarmpb.Proposal{Now: 7, Writes: []*swarmpb.Write{
		putTemplate("s1", 1, old), putService(&swarmpb.Service{Id: "s1", Spec: old, TemplateVersion: 1}),
	}})
	expectLines(t, w.history("web"))
	if n := w.updateTo(spec("web", "web:2", 1), "me"); n != 2 {
		t.Errorf("revision %d", n)
	}
	expectLines(t, w.history("web"),
		"2 web:2 unspecified template 2 by me: update *", "1 web:1 unspecified template 1 by : before its history was kept")
	if at := w.view().ServiceRevision("s1", 1).GetAt(); at != 7 {
		t.Errorf("at %d", at)
	}
}

func TestRollback_WithoutARevision_SwapsTheTwoSpecs(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 2)
	w.updateTo(spec("web", "web:2", 4), "")
	one, two := w.view().Service(id).GetPreviousSpec(), w.view().Service(id).GetSpec()
	for i, want := range []*swarmpb.ServiceSpec{one, two, one} {
		r, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		service := w.view().Service(id)
		if !proto.Equal(service.GetSpec(), want) || r.GetRevision() != uint64(i)+3 || service.GetTemplateVersion() != uint64(i%2)+1 ||
			service.GetPreviousTemplateVersion() != uint64((i+1)%2)+1 {
			t.Fatalf("rollback %d: %v, revision %d", i, service, r.GetRevision())
		}
	}
	if n := w.history("web")[0]; !strings.HasSuffix(n, "rollback to version 3 *") {
		t.Errorf("newest is %s", n)
	}
	templates := 0
	for range w.view().TemplatesOf(id) {
		templates++
	}
	if templates != 2 {
		t.Errorf("%d templates", templates)
	}
}

func TestRollback_SentTwice_TakesEffectOnce(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 2)
	w.updateTo(spec("web", "web:2", 2), "")
	for range 2 {
		r, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web", RequestId: "r1"})
		if err != nil || r.GetRevision() != 3 {
			t.Fatalf("%v, %v", r, err)
		}
	}
	if image := w.view().Service(id).GetSpec().GetTask().GetContainer().GetImage(); image != "web:1" {
		t.Errorf("image %s", image)
	}
}

func TestRollback_NotPossible_SaysWhyAndWhatThereIs(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 1)
	w.put(network("n1", "front"))
	expect := func(revision uint64, code wire.Code, parts ...string) {
		t.Helper()
		before := w.view().Index()
		_, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web", Revision: revision})
		expectError(t, err, code, append(parts, `service "web"`)...)
		_, err = w.server.PlanService(ctx, &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Rollback{
			Rollback: &swarmpb.RollbackServiceRequest{Service: "web", Revision: revision}}})
		expectError(t, err, code, parts...)
		if w.view().Index() != before {
			t.Error("something was written")
		}
	}
	expect(0, wire.CodeFailedPrecondition, "it has never been updated")
	expect(1, wire.CodeFailedPrecondition, "version 1 is what it has now; choose another one, which `swarmctl service history web` shows")

	attached := spec("web", "web:2", 1)
	attached.Task.Networks = []*swarmpb.NetworkAttachment{{Network: "front"}}
	attached.Endpoint = &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080}}}
	w.updateTo(attached, "")
	w.updateTo(spec("web", "web:1", 1), "")
	expect(7, wire.CodeNotFound, "there is no version 7; kept are 1, 2, 3, which `swarmctl service history web` shows")
	expect(1, wire.CodeFailedPrecondition, "version 1 is the same as version 3, which it has now")

	other := spec("api", "web:1", 1)
	other.Endpoint = &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080}}}
	if _, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: other}); err != nil {
		t.Fatal(err)
	}
	expect(2, wire.CodeExists, "cannot go back to version 2", `publish 8080: port is already published by service "api"`)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: "n1", Spec: &swarmpb.NetworkSpec{Name: "front"}, Removing: true}}})
	expect(2, wire.CodeFailedPrecondition, `network "front": it is being removed`)
	w.delete(swarmpb.NetworkKey("n1"))
	expect(2, wire.CodeFailedPrecondition, "cannot go back to version 2: it is in network n1, which is gone; update the service")

	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Update: &swarmpb.UpdateStatus{
		State: swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, TemplateVersion: 2, FailedTemplateVersion: w.view().Service(id).GetTemplateVersion(),
	}}}})
	expect(3, wire.CodeFailedPrecondition, "the update to it failed and was rolled back", "service update --force web")
	if _, err := w.server.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: "web"}); err != nil {
		t.Fatal(err)
	}
	expect(2, wire.CodeFailedPrecondition, "it is being removed")
	_, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "none"})
	expectError(t, err, wire.CodeNotFound, `service "none"`)
}

func TestRollback_ToAnotherRegistry_PullsWithTheCredentialsOfThen(t *testing.T) {
	w := newWorld(t)
	auth := func(server, password string) *swarmpb.RegistryAuth {
		return &swarmpb.RegistryAuth{Server: server, Username: "u", Password: password}
	}
	update := func(image string, auth *swarmpb.RegistryAuth) {
		t.Helper()
		if _, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: "web", Spec: spec("web", image, 1), RegistryAuth: auth}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: spec("web", "a.test/web:1", 1), RegistryAuth: auth("a.test", "p1")})
	if err != nil {
		t.Fatal(err)
	}
	update("b.test/web:2", auth("b.test", "p2"))
	update("c.test/web:3", auth("c.test", "p3"))
	if _, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web", Revision: 1}); err != nil {
		t.Fatal(err)
	}
	service := w.view().Service(r.GetId())
	if !proto.Equal(service.GetRegistryAuth(), auth("a.test", "p1")) || !proto.Equal(service.GetPreviousRegistryAuth(), auth("c.test", "p3")) {
		t.Errorf("credentials %v, previous %v", service.GetRegistryAuth(), service.GetPreviousRegistryAuth())
	}
	// Newer ones for the same registry are taken before those of then.
	update("a.test/web:4", auth("a.test", "p4"))
	if _, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web", Revision: 1}); err != nil {
		t.Fatal(err)
	}
	if got := w.view().Service(r.GetId()).GetRegistryAuth(); !proto.Equal(got, auth("a.test", "p4")) {
		t.Errorf("credentials %v", got)
	}
}

func TestRollback_ChangedMeanwhile_IsAConflict(t *testing.T) {
	w := newWorld(t)
	w.create("web", 1)
	w.updateTo(spec("web", "web:2", 1), "")
	w.before = func() { w.updateTo(spec("web", "web:3", 1), "") }
	_, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web"})
	expectError(t, err, wire.CodeConflict, `service "web" was changed by somebody else`)
	_, err = w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web", Version: 1})
	expectError(t, err, wire.CodeConflict)
}

func network(id, name string) *swarmpb.Row {
	return &swarmpb.Row{Row: &swarmpb.Row_Network{Network: &swarmpb.Network{Id: id, Spec: &swarmpb.NetworkSpec{Name: name}}}}
}

func TestUpdate_HighestTemplateForgotten_ItsNumberNeverReturns(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 1)
	w.updateTo(spec("web", "web:2", 1), "")
	if _, err := w.server.RollbackService(ctx, &swarmpb.RollbackServiceRequest{Service: "web"}); err != nil {
		t.Fatal(err)
	}
	for replicas := range uint64(store.MaxRevisions) {
		w.updateTo(spec("web", "web:1", replicas+2), "")
	}
	if w.view().Template(id, 2) != nil {
		t.Fatal("template 2 is still remembered")
	}
	w.updateTo(spec("web", "web:3", 1), "")
	if n := w.view().Service(id).GetTemplateVersion(); n <= 2 {
		t.Errorf("template %d was given twice", n)
	}
}
