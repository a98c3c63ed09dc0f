package dispatcher

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func (w *world) progress(update *swarmpb.UpdateStatus) {
	w.t.Helper()
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: serviceWeb, Attempt: 9, Update: update}}})
}

func (w *world) health(id string, notReady bool, at int64) {
	w.t.Helper()
	w.propose(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
		TaskId: id, State: stRunning, At: at, Health: &swarmpb.HealthStatus{NotReady: notReady, At: at}}}})
}

// woken tells whether anyone has been woken for what has happened since, and counts it as seen.
func (p *teller) woken(node string) bool {
	p.see()
	x := p.server.sessions[node]
	return x.wakes != x.looked
}

// TestTrial_ProgressMoves_OnlyItsTrialIsTold: a step that moves no share wakes nobody; one that does is one message.
func TestTrial_ProgressMoves_OnlyItsTrialIsTold(t *testing.T) {
	w := testWorld(t, "n1", "n2")
	w.publish()
	spec := w.view().Service(serviceWeb).GetSpec()
	w.propose(w.template(2), &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_Service{Service: &swarmpb.Service{
		Id: serviceWeb, Spec: spec, TemplateVersion: 2, PreviousSpec: spec, PreviousTemplateVersion: 1}}}}})
	old, fresh := w.task(1, "n1"), w.taskOf(2, 2, "n1", 2)
	w.status(old, stRunning)
	w.status(fresh, stRunning)
	told, h := newTeller(w, maxEvents, "n2"), newHolder(t)
	told.deliver(h, "n2")
	if got := h.services[serviceWeb]; got.GetTrial() != nil || h.endpoints[old].GetSet() != 1 || h.endpoints[fresh].GetSet() != 2 {
		t.Fatalf("held are %v with %v", got, h.endpoints)
	}
	update := &swarmpb.UpdateStatus{State: updating, Strategy: canary, TemplateVersion: 2, Phase: swarmpb.RolloutPhase_ROLLOUT_PHASE_STARTING, ReplicaShare: 500}
	step := func(change func()) []*swarmpb.AssignmentChange {
		t.Helper()
		change()
		w.progress(swarmpb.Clone(update))
		return told.next("n2")
	}
	if got := step(func() {}); len(got) != 1 || !proto.Equal(got[0].GetService().GetTrial(), &swarmpb.Trial{Set: 2, Preview: true}) {
		t.Fatalf("as it begins: told are %v", got)
	}
	if got := step(func() { update.Share = 500 }); len(got) != 1 || got[0].GetService().GetTrial().GetShare() != 500 {
		t.Fatalf("with a share: told are %v", got)
	}
	for name, change := range map[string]func(){
		"phase":     func() { update.Phase, update.PhaseSince = swarmpb.RolloutPhase_ROLLOUT_PHASE_WATCHING, 7 },
		"step":      func() { update.Step, update.ReplicaShare = 1, 2500 },
		"message":   func() { update.Message, update.ProgressedAt = "m", 9 },
		"is paused": func() { update.State = swarmpb.UpdateState_UPDATE_STATE_PAUSED },
	} {
		change()
		w.progress(swarmpb.Clone(update))
		if told.woken("n2") {
			t.Errorf("%s: a node is woken", name)
		}
	}
	// Its end is the service's alone: no endpoint that stays comes again.
	if got := step(func() { update.State = completed }); len(got) != 1 || got[0].GetService() == nil || got[0].GetService().GetTrial() != nil {
		t.Fatalf("as it ends: told are %v", got)
	}
	w.progress(&swarmpb.UpdateStatus{State: updating, TemplateVersion: 2, SettledSlot: 1})
	if told.woken("n2") {
		t.Error("an update that replaces slots wakes a node")
	}
}

// TestTrial_PreviewPortsAlone_ServiceIsReachedWhileItLasts: then all nodes are told of it, and its tasks drain.
func TestTrial_PreviewPortsAlone_ServiceIsReachedWhileItLasts(t *testing.T) {
	w := testWorld(t, "n1", "n2")
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceEndpoint{ServiceEndpoint: &swarmpb.ServiceEndpoint{
		ServiceId: serviceWeb, PreviewPorts: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8081}}}}})
	id := w.task(1, "n1")
	w.status(id, stRunning)
	told, here, there := newTeller(w, maxEvents, "n1", "n2"), newHolder(t), newHolder(t)
	look := func() (drained bool) {
		t.Helper()
		told.deliver(here, "n1")
		told.deliver(there, "n2")
		here.expect(w.view(), "n1")
		there.expect(w.view(), "n2")
		return here.tasks[id].GetDrained()
	}
	if !look() || there.services[serviceWeb] != nil {
		t.Fatalf("without a trial: %v is held", there.services)
	}
	w.progress(&swarmpb.UpdateStatus{State: updating, Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN, TemplateVersion: 1})
	if look(); len(there.services[serviceWeb].GetPreviewPorts()) != 1 || there.endpoints[id].GetState() != swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE {
		t.Fatalf("with a trial: held are %v, %v", there.services, there.endpoints)
	}
	if !told.server.reach.isReached(serviceWeb) {
		t.Error("nobody reaches it")
	}
	w.progress(&swarmpb.UpdateStatus{State: completed, Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN, TemplateVersion: 1})
	if look(); there.services[serviceWeb] != nil || len(there.endpoints) != 0 {
		t.Errorf("after it: %v is held", there.services)
	}
}

func TestEndpoint_NotReady_StandsByAndDrainsAsEver(t *testing.T) {
	w := testWorld(t, "n1", "n2")
	w.publish()
	id := w.task(1, "n1")
	told, h := newTeller(w, maxEvents, "n2"), newHolder(t)
	for _, step := range []struct {
		name   string
		change func()
		want   swarmpb.EndpointState
		drains bool
	}{
		{"starts, and is not ready", func() {
			w.propose(&swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: &swarmpb.TaskStatus{
				TaskId: id, State: stReady, Health: &swarmpb.HealthStatus{NotReady: true}}}})
		}, swarmpb.EndpointState_ENDPOINT_STATE_STARTING, false},
		{"runs", func() { w.health(id, false, 1) }, swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE, false},
		{"is not ready", func() { w.health(id, true, 2) }, swarmpb.EndpointState_ENDPOINT_STATE_STANDBY, false},
		{"is ready again", func() { w.health(id, false, 3) }, swarmpb.EndpointState_ENDPOINT_STATE_ACTIVE, false},
		{"is not ready again", func() { w.health(id, true, 4) }, swarmpb.EndpointState_ENDPOINT_STATE_STANDBY, false},
		{"is to stop", func() { w.desire(id, stShutdown, false) }, swarmpb.EndpointState_ENDPOINT_STATE_DRAINING, true},
		{"is ready as it stops", func() { w.health(id, false, 5) }, swarmpb.EndpointState_ENDPOINT_STATE_DRAINING, false},
	} {
		before := told.server.awaited.Load()
		step.change()
		told.deliver(h, "n2")
		if got := h.endpoints[id].GetState(); got != step.want {
			t.Errorf("%s: endpoint is %v, want %v", step.name, got, step.want)
		}
		if drains := told.server.awaited.Load() > before; drains != step.drains {
			t.Errorf("%s: acknowledgements are waited for: %t", step.name, drains)
		}
	}
}

func TestAssignment_InPlaceOnTheSameNode_TakesTheVolumes_ForGood(t *testing.T) {
	w := testWorld(t, "n1", "n2")
	base := w.task(1, "n1")
	heir := func(attempt uint64, node string, same bool) string {
		id := swarmpb.TaskID(serviceWeb, 1, "", attempt)
		w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: &swarmpb.Task{
			Id: id, ServiceId: serviceWeb, Slot: 1, Attempt: attempt, TemplateVersion: 1, DesiredState: stReady, Replaces: base, SameNode: same}}})
		w.place(id, node)
		return id
	}
	takes, elsewhere, other := heir(2, "n1", true), heir(3, "n2", true), heir(4, "n1", false)
	told := newTeller(w, maxEvents, "n1", "n2")
	h1, h2 := newHolder(t), newHolder(t)
	told.deliver(h1, "n1")
	told.deliver(h2, "n2")
	if !h1.tasks[takes].GetTakesVolumes() || h2.tasks[elsewhere].GetTakesVolumes() || h1.tasks[other].GetTakesVolumes() || h1.tasks[base].GetTakesVolumes() {
		t.Errorf("held are %v, %v", h1.tasks, h2.tasks)
	}
	w.delete(swarmpb.TaskKey(base))
	w.desire(takes, stRunning, false)
	told.deliver(h1, "n1")
	if got := h1.tasks[takes]; !got.GetTakesVolumes() || got.GetDesiredState() != stRunning {
		t.Errorf("once the other's row has gone: %v", got)
	}
}

// TestStatus_Health_IsKept_CleanAndBounded: whatever a worker says of it.
func TestStatus_Health_IsKept_CleanAndBounded(t *testing.T) {
	id := swarmpb.TaskID(serviceWeb, 1, "", 1)
	of := func(h *swarmpb.HealthStatus) *swarmpb.TaskStatus {
		return &swarmpb.TaskStatus{TaskId: id, State: stRunning, At: 5, Health: h}
	}
	said := &swarmpb.HealthStatus{State: swarmpb.HealthState_HEALTH_STATE_UNHEALTHY, NotReady: true, Failing: 3, NotReadyFailing: 4, Output: "no\x00\n" + strings.Repeat("x", 9999), At: -3}
	clean, err := cleanStatus(of(said))
	if err != nil {
		t.Fatal(err)
	}
	got := clean.GetHealth()
	if got.GetState() != said.GetState() || !got.GetNotReady() || got.GetFailing() != 3 || got.GetNotReadyFailing() != 4 || got.GetAt() != 0 ||
		len(got.GetOutput()) > maxMessageBytes || strings.ContainsAny(got.GetOutput(), "\x00\n") {
		t.Errorf("kept is %v", got)
	}
	if _, err := cleanStatus(of(&swarmpb.HealthStatus{State: 99})); err == nil {
		t.Error("an unknown state of health is taken")
	}
	if clean, err := cleanStatus(of(nil)); err != nil || clean.GetHealth() != nil {
		t.Errorf("without health: %v, %v", clean, err)
	}
	row := of(&swarmpb.HealthStatus{State: swarmpb.HealthState_HEALTH_STATE_HEALTHY, At: 7})
	for _, c := range []struct {
		health *swarmpb.HealthStatus
		want   bool
	}{{nil, true}, {swarmpb.Clone(row.GetHealth()), true}, {&swarmpb.HealthStatus{NotReady: true, At: 8}, false}, {&swarmpb.HealthStatus{NotReady: true, At: 6}, true}} {
		if got := unchanged(row, of(c.health)); got != c.want {
			t.Errorf("%v after %v: unchanged %t, want %t", c.health, row.GetHealth(), got, c.want)
		}
	}
	if unchanged(of(nil), of(&swarmpb.HealthStatus{})) {
		t.Error("the first health is no change")
	}
}
