package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

var ctx = context.Background()

func TestCreateService_Valid_ServiceAndTemplateInOneProposal(t *testing.T) {
	w := newWorld(t)
	s := spec("web", "nginx", 3)
	s.Endpoint = &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8080, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST}}}
	r, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: s, RequestId: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	service, template := w.view().Service(r.GetId()), w.view().Template(r.GetId(), 1)
	if service.GetTemplateVersion() != 1 || template.GetSpec().GetContainer().GetImage() != "nginx" || len(template.GetHostPorts()) != 1 || w.proposes != 1 {
		t.Errorf("service %v, template %v, %d proposals", service, template, w.proposes)
	}
	if len(r.GetWarnings()) != 2 || !strings.Contains(r.GetWarnings()[0], "no tag") {
		t.Errorf("warnings %q", r.GetWarnings())
	}
	again, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: s, RequestId: "r1"})
	if err != nil || again.GetId() != r.GetId() || w.view().ServiceCount() != 1 {
		t.Errorf("repeated: %v %v", again, err)
	}
}

func TestCreateService_NoName_DrawsOneThatIsFree(t *testing.T) {
	w := newWorld(t)
	for range 50 {
		if w.create("", 1) == "" {
			t.Fatal("no ID")
		}
	}
	if n := w.view().ServiceCount(); n != 50 {
		t.Errorf("%d services", n)
	}
	for service := range w.view().Services() {
		if err := swarmpb.ValidateServiceName(service.GetSpec().GetName()); err != nil {
			t.Error(err)
		}
	}
}

func TestCreateService_WrongInput_Refused(t *testing.T) {
	w := newWorld(t)
	w.create("taken", 1)
	for _, tc := range []struct {
		name  string
		req   *swarmpb.CreateServiceRequest
		code  wire.Code
		parts []string
	}{
		{"nothing", nil, wire.CodeInvalid, []string{"spec is missing"}},
		{"empty spec", &swarmpb.CreateServiceRequest{Spec: &swarmpb.ServiceSpec{}}, wire.CodeInvalid, []string{"image"}},
		{"bad name", &swarmpb.CreateServiceRequest{Spec: spec("-x", "a:1", 1)}, wire.CodeInvalid, []string{`name "-x"`}},
		{"no image", &swarmpb.CreateServiceRequest{Spec: spec("x", "", 1)}, wire.CodeInvalid, []string{"image"}},
		{"name taken", &swarmpb.CreateServiceRequest{Spec: spec("taken", "a:1", 1)}, wire.CodeExists, []string{`"taken"`, "choose another"}},
		{"request ID", &swarmpb.CreateServiceRequest{Spec: spec("x", "a:1", 1), RequestId: strings.Repeat("r", 65)}, wire.CodeInvalid, []string{"request ID"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := w.server.CreateService(ctx, tc.req)
			expectError(t, err, tc.code, tc.parts...)
		})
	}
}

func TestCreateService_NameTakenMeanwhile_NamedConflict(t *testing.T) {
	w := newWorld(t)
	w.before = func() { w.create("web", 1) }
	_, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: spec("web", "a:1", 1)})
	expectError(t, err, wire.CodeExists, `"web"`)
}

func TestUpdateService_WhatChanges_DecidesTheTemplate(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 2)
	update := func(change func(*swarmpb.ServiceSpec)) *swarmpb.Service {
		t.Helper()
		s := swarmpb.Clone(w.view().Service(id).GetSpec())
		change(s)
		if _, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: "web", Spec: s}); err != nil {
			t.Fatal(err)
		}
		return w.view().Service(id)
	}
	before := w.view().Service(id)
	if got := update(func(*swarmpb.ServiceSpec) {}); got != before {
		t.Error("an update that says the same wrote something")
	}
	scaled := update(func(s *swarmpb.ServiceSpec) { s.GetMode().GetReplicated().Replicas = 5 })
	if scaled.GetTemplateVersion() != 1 || !proto.Equal(scaled.GetPreviousSpec(), before.GetSpec()) || scaled.GetPreviousTemplateVersion() != 1 {
		t.Errorf("scaled: %v", scaled)
	}
	image := update(func(s *swarmpb.ServiceSpec) { s.GetTask().GetContainer().Image = "web:2" })
	if image.GetTemplateVersion() != 3 || image.GetPreviousTemplateVersion() != 1 || w.view().Template(id, 3) == nil {
		t.Errorf("new image: %v", image)
	}
	// The version of a failed template is not used again, though its row may be gone.
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Update: &swarmpb.UpdateStatus{
		State: swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, TemplateVersion: 1, FailedTemplateVersion: 7}}}})
	if forced := update(func(s *swarmpb.ServiceSpec) { s.GetTask().ForceUpdate++ }); forced.GetTemplateVersion() != 8 {
		t.Errorf("forced: template %d", forced.GetTemplateVersion())
	}
}

func TestUpdateService_SameSpecWhileTheUpdateIsPaused_ResumesIt(t *testing.T) {
	for _, state := range []swarmpb.UpdateState{swarmpb.UpdateState_UPDATE_STATE_PAUSED, swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED} {
		t.Run(state.Name(), func(t *testing.T) {
			w := newWorld(t)
			id := w.create("web", 2)
			req := &swarmpb.UpdateServiceRequest{Service: "web", Spec: spec("web", "web:2", 2)}
			if _, err := w.server.UpdateService(ctx, req); err != nil {
				t.Fatal(err)
			}
			before := w.view().Service(id)
			w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id,
				Update: &swarmpb.UpdateStatus{State: state, TemplateVersion: 2, PausedAtVersion: before.GetMeta().GetVersion()}}}})
			stale := swarmpb.Clone(req)
			stale.Version = before.GetMeta().GetVersion() + 9
			_, err := w.server.UpdateService(ctx, stale)
			expectError(t, err, wire.CodeConflict, `"web"`)
			if _, err := w.server.UpdateService(ctx, req); err != nil {
				t.Fatal(err)
			}
			after := swarmpb.Clone(w.view().Service(id))
			if after.GetMeta().GetVersion() <= before.GetMeta().GetVersion() {
				t.Fatal("the service's row is as old as the pause, so nothing resumes the update")
			}
			command := after.GetCommand()
			if command.GetAction() != swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME || command.GetSequence() != 1 || command.GetTemplateVersion() != 2 {
				t.Errorf("command %v", command)
			}
			if after.Meta, after.Command = before.Meta, nil; !proto.Equal(after, before) {
				t.Errorf("more than the version and the command changed: %v, before %v", after, before)
			}
		})
	}
}

func TestUpdateService_WrongInput_Refused(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 1)
	gone := w.create("gone", 1)
	if _, err := w.server.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: "gone"}); err != nil {
		t.Fatal(err)
	}
	version := w.view().Service(id).GetMeta().GetVersion()
	global := spec("web", "web:1", 1)
	global.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Global{Global: &swarmpb.GlobalMode{}}}
	for _, tc := range []struct {
		name  string
		req   *swarmpb.UpdateServiceRequest
		code  wire.Code
		parts []string
	}{
		{"nothing", nil, wire.CodeInvalid, []string{"spec is missing"}},
		{"no service", &swarmpb.UpdateServiceRequest{Spec: spec("web", "web:2", 1)}, wire.CodeInvalid, []string{"service ls"}},
		{"unknown service", &swarmpb.UpdateServiceRequest{Service: "nope", Spec: spec("web", "web:2", 1)}, wire.CodeNotFound, []string{`"nope"`}},
		{"name", &swarmpb.UpdateServiceRequest{Service: id, Spec: spec("other", "web:1", 1)}, wire.CodeInvalid, []string{"name cannot change"}},
		{"mode", &swarmpb.UpdateServiceRequest{Service: id, Spec: global}, wire.CodeInvalid, []string{"from replicated to global"}},
		{"bad spec", &swarmpb.UpdateServiceRequest{Service: id, Spec: spec("web", "::", 1)}, wire.CodeInvalid, []string{"image"}},
		{"stale", &swarmpb.UpdateServiceRequest{Service: id, Version: version + 9, Spec: spec("web", "web:2", 1)}, wire.CodeConflict, []string{`"web"`, "repeat"}},
		{"being removed", &swarmpb.UpdateServiceRequest{Service: gone, Spec: spec("gone", "web:2", 1)}, wire.CodeFailedPrecondition, []string{"being removed"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := w.server.UpdateService(ctx, tc.req)
			expectError(t, err, tc.code, tc.parts...)
		})
	}
	t.Run("repeated after a change by others", func(t *testing.T) {
		req := &swarmpb.UpdateServiceRequest{Service: id, Version: version, Spec: spec("web", "web:2", 1), RequestId: "r7"}
		if _, err := w.server.UpdateService(ctx, req); err != nil {
			t.Fatal(err)
		}
		if _, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: id, Spec: spec("web", "web:3", 1)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.server.UpdateService(ctx, req); err != nil {
			t.Errorf("the first answer is lost: %v", err)
		}
		if image := w.view().Service(id).GetSpec().GetTask().GetContainer().GetImage(); image != "web:3" {
			t.Errorf("the repetition took effect: %s", image)
		}
	})
}

func TestRemoveService_Twice_Same(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 1)
	w.before = func() { // Somebody scales it in that moment: removing goes on all the same.
		if _, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: id, Spec: spec("web", "web:1", 9)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if r, err := w.server.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: "web"}); err != nil || r.GetId() != id {
			t.Fatalf("%v %v", r, err)
		}
	}
	if service := w.view().Service(id); !service.GetRemoving() || service.GetSpec().GetMode().GetReplicated().GetReplicas() != 9 {
		t.Errorf("service %v", service)
	}
	_, err := w.server.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: "nope"})
	expectError(t, err, wire.CodeNotFound, "nope")
}

func TestGetService_Counts_LostAndSupersededTasksAreNotRunning(t *testing.T) {
	w := newWorld(t)
	w.node(nodeA, "a", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_READY)
	w.node(nodeB, "b", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_DOWN)
	id := w.create("web", 3)
	for slot, node := range map[uint64]string{1: nodeA, 2: nodeB, 3: nodeA} {
		w.status(&swarmpb.TaskStatus{TaskId: w.task(id, slot, 1, node), State: swarmpb.TaskState_TASK_STATE_RUNNING})
	}
	w.desire(swarmpb.TaskID(id, 3, "", 1), swarmpb.TaskState_TASK_STATE_SHUTDOWN)
	w.task(id, 3, 2, "")
	r, err := w.server.GetService(ctx, &swarmpb.GetServiceRequest{Service: id[:8]})
	if err != nil {
		t.Fatal(err)
	}
	if r.GetService().GetRunning() != 1 || r.GetService().GetDesired() != 3 {
		t.Errorf("%d/%d, want 1/3", r.GetService().GetRunning(), r.GetService().GetDesired())
	}
	list, err := w.server.ListServices(ctx, nil)
	if err != nil || len(list.GetServices()) != 1 || !proto.Equal(list.GetServices()[0], r.GetService()) {
		t.Errorf("list %v, %v", list, err)
	}
}

func TestWrites_NoMajority_UnavailableWithAdvice(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 1)
	w.fail = errors.New("no majority")
	calls := map[string]func() error{
		"RotateJoinToken": func() error {
			_, err := w.server.RotateJoinToken(ctx, &swarmpb.RotateJoinTokenRequest{Role: 1})
			return err
		},
		"RemoveNode": func() error { _, err := w.server.RemoveNode(ctx, &swarmpb.RemoveNodeRequest{Node: "x"}); return err },
		"UpdateNode": func() error {
			_, err := w.server.UpdateNode(ctx, &swarmpb.UpdateNodeRequest{Node: "x", Spec: &swarmpb.NodeSpec{}})
			return err
		},
		"CreateService": func() error {
			_, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: spec("x", "a:1", 1)})
			return err
		},
		"UpdateService": func() error {
			_, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: id, Spec: spec("web", "a:1", 1)})
			return err
		},
		"RemoveService": func() error {
			_, err := w.server.RemoveService(ctx, &swarmpb.RemoveServiceRequest{Service: id})
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) { expectError(t, call(), wire.CodeUnavailable, "no majority", "try again") })
	}
	t.Run("lost while committing", func(t *testing.T) {
		err := w.server.write(ctx, "r", &swarmpb.Proposal{})
		expectError(t, err, wire.CodeUnavailable, "majority")
	})
}

func TestService_HostPort_WarnsOnlyOfMoreReplicasThanReadyNodes(t *testing.T) {
	w := newWorld(t) // with one node that is ready
	w.node(nodeA, "a", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_READY)
	w.node(nodeB, "b", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_DOWN)
	for replicas, want := range map[uint64]int{2: 0, 3: 1} {
		s := spec(fmt.Sprint("web", replicas), "web:1", replicas)
		s.Endpoint = &swarmpb.EndpointSpec{Ports: []*swarmpb.PortConfig{{
			TargetPort: 80, PublishedPort: 8080, Protocol: swarmpb.Protocol_PROTOCOL_TCP, Mode: swarmpb.PublishMode_PUBLISH_MODE_HOST}}}
		r, err := w.server.CreateService(context.Background(), &swarmpb.CreateServiceRequest{Spec: s})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.GetWarnings(); len(got) != want || want > 0 && !strings.Contains(got[0], "2 nodes that are ready") {
			t.Errorf("%d replicas: warnings %q", replicas, got)
		}
	}
}
