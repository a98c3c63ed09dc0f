package control

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	updating       = swarmpb.UpdateState_UPDATE_STATE_UPDATING
	updatePaused   = swarmpb.UpdateState_UPDATE_STATE_PAUSED
	updated        = swarmpb.UpdateState_UPDATE_STATE_COMPLETED
	goingBack      = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED
	backPaused     = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED
	rolledBack     = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED
	rolling        = swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING
	recreate       = swarmpb.UpdateStrategy_UPDATE_STRATEGY_RECREATE
	blueGreen      = swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN
	canary         = swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY
	phaseStarting  = swarmpb.RolloutPhase_ROLLOUT_PHASE_STARTING
	phaseWatching  = swarmpb.RolloutPhase_ROLLOUT_PHASE_WATCHING
	phaseWaiting   = swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING
	phaseGrace     = swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE
	phaseEnding    = swarmpb.RolloutPhase_ROLLOUT_PHASE_ENDING
	phaseReturning = swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING
	actPause       = swarmpb.RolloutAction_ROLLOUT_ACTION_PAUSE
	actResume      = swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME
	actPromote     = swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE
	actFully       = swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE_FULLY
)

// trial makes the service web with three replicas of web:1, updates it to web:2 and puts its update into a state; up of
// the new tasks are up.
func trial(t *testing.T, w *world, update *swarmpb.UpdateStatus, up int) string {
	t.Helper()
	id := w.create("web", 3)
	for slot := range uint64(3) {
		w.status(&swarmpb.TaskStatus{TaskId: w.task(id, slot+1, 1, self), State: swarmpb.TaskState_TASK_STATE_RUNNING})
	}
	next := spec("web", "web:2", 3)
	next.Update = &swarmpb.UpdateConfig{Strategy: update.GetStrategy()}
	w.updateTo(next, "")
	for slot := range uint64(up) {
		w.status(&swarmpb.TaskStatus{TaskId: w.task(id, slot+11, 1, self), State: swarmpb.TaskState_TASK_STATE_RUNNING})
	}
	update = swarmpb.Clone(update)
	if update.GetTemplateVersion() == 0 {
		update.TemplateVersion = 2
	}
	if update.StableTemplateVersion = 1; update.GetTemplateVersion() == 1 {
		update.StableTemplateVersion = 2
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Update: update}}})
	return id
}

func TestCommandRollout_States_AreObeyedOrSaidWhyNot(t *testing.T) {
	blueReady := &swarmpb.UpdateStatus{State: updating, Strategy: blueGreen, Phase: phaseWaiting, ReplicaShare: 10000}
	canaryOne := &swarmpb.UpdateStatus{State: updating, Strategy: canary, Phase: phaseWatching, Share: 1000, ReplicaShare: 1000}
	with := func(x *swarmpb.UpdateStatus, change func(*swarmpb.UpdateStatus)) *swarmpb.UpdateStatus {
		x = swarmpb.Clone(x)
		change(x)
		return x
	}
	state := func(s swarmpb.UpdateState, strategy swarmpb.UpdateStrategy) *swarmpb.UpdateStatus {
		return &swarmpb.UpdateStatus{State: s, Strategy: strategy, Message: "update paused by its user"}
	}
	for name, test := range map[string]struct {
		update *swarmpb.UpdateStatus
		up     int
		action swarmpb.RolloutAction
		// says is the message, or with ! before it the refusal.
		says string
	}{
		"pause":                 {state(updating, rolling), 0, actPause, "the update of web is paused: nothing further"},
		"pause a rollback":      {state(goingBack, rolling), 0, actPause, "the rollback of web is paused"},
		"pause paused":          {state(updatePaused, rolling), 0, actPause, "!its update is paused already: update paused by its user; go on with `swarmctl service resume web`, or back with `swarmctl service abort web`"},
		"pause ended":           {state(updated, rolling), 0, actPause, "!no update is under way, as the last one has completed; there is nothing to pause"},
		"pause rolled back":     {state(rolledBack, rolling), 0, actPause, "!no update is under way, as the last one was rolled back"},
		"pause a recreate":      {with(state(updating, recreate), func(x *swarmpb.UpdateStatus) { x.Phase = phaseEnding }), 0, actPause, "!recreate is stopping the old tasks"},
		"resume":                {state(updatePaused, rolling), 0, actResume, "the update of web goes on"},
		"resume a rollback":     {state(backPaused, rolling), 0, actResume, "the rollback of web goes on"},
		"resume what goes":      {canaryOne, 1, actResume, "!its update is not paused: canary, watching, step 1 of 3, 10% of new connections; there is nothing to resume"},
		"resume nothing":        {state(updated, rolling), 0, actResume, "!no update is under way, as the last one has completed; there is nothing to resume"},
		"promote rolling":       {state(updating, rolling), 0, actPromote, "!its update is of strategy rolling, which goes on by itself: rolling, replacing; nothing waits for a promotion"},
		"promote ended":         {state(updated, blueGreen), 3, actFully, "!no update is under way, as the last one has completed; there is nothing to promote"},
		"promote blue-green":    {blueReady, 3, actPromote, "the new tasks of web get all new connections"},
		"promote not up":        {blueReady, 2, actPromote, "!the new tasks are not all up (2/3): blue-green, waiting, 0% of new connections; wait for them, see `swarmctl service ps web`, or back with"},
		"promote starting":      {with(blueReady, func(x *swarmpb.UpdateStatus) { x.Phase = phaseStarting }), 1, actPromote, "!the new tasks are not all up (1/3): blue-green, starting"},
		"fully not up":          {with(blueReady, func(x *swarmpb.UpdateStatus) { x.Phase = phaseStarting }), 1, actFully, "!the new tasks are not all up (1/3)"},
		"promote paused":        {with(blueReady, func(x *swarmpb.UpdateStatus) { x.State = updatePaused }), 3, actPromote, "!its update is paused: "},
		"promote in grace":      {with(blueReady, func(x *swarmpb.UpdateStatus) { x.Phase = phaseGrace }), 3, actPromote, "the old tasks of web stop now"},
		"promote promoted":      {with(blueReady, func(x *swarmpb.UpdateStatus) { x.Phase, x.Share = phaseEnding, 10000 }), 3, actPromote, "!it has been promoted: blue-green, ending, 100% of new connections"},
		"promote a way back":    {with(blueReady, func(x *swarmpb.UpdateStatus) { x.State, x.Phase = goingBack, phaseReturning }), 3, actPromote, "!it is going back, which nothing has to be promoted for"},
		"promote a canary":      {canaryOne, 1, actPromote, "web goes on to step 2 of 3: 50% of new connections"},
		"promote the last step": {with(canaryOne, func(x *swarmpb.UpdateStatus) { x.Step, x.Share, x.ReplicaShare = 1, 5000, 5000 }), 2, actPromote, "web goes on to the end: the rest of the new tasks start"},
		"canary not up":         {canaryOne, 0, actPromote, "!the new tasks are not all up (0/1): canary, watching, step 1 of 3"},
		"canary fully":          {canaryOne, 0, actFully, "web goes on to the end: the rest of the new tasks start"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := trial(t, w, test.update, test.up)
			before := w.view().Service(id)
			r, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Action: test.action, Author: "ann"})
			if refusal, refused := strings.CutPrefix(test.says, "!"); refused {
				expectError(t, err, wire.CodeFailedPrecondition, `service "web"`, refusal)
				if w.view().Service(id) != before {
					t.Error("a refused command was written")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			after := swarmpb.Clone(w.view().Service(id))
			command := after.GetCommand()
			if !strings.Contains(r.GetMessage(), test.says) || command.GetAction() != test.action || command.GetSequence() != 1 ||
				command.GetTemplateVersion() != 2 || command.GetAuthor() != "ann" || command.GetAt() == 0 {
				t.Errorf("message %q, command %v", r.GetMessage(), command)
			}
			if after.Command, after.Meta = nil, before.Meta; !proto.Equal(after, before) {
				t.Errorf("the command changed more: %v", after)
			}
		})
	}
}

func TestCommandRollout_Sequence_NeverReturns(t *testing.T) {
	w := newWorld(t)
	id := trial(t, w, &swarmpb.UpdateStatus{State: updating, Strategy: rolling, CommandSequence: 4}, 0)
	for _, action := range []swarmpb.RolloutAction{actPause, actPause} {
		if _, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Action: action}); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.view().Service(id).GetCommand().GetSequence(); n != 6 {
		t.Errorf("sequence %d, want 6", n)
	}
	// An update takes the command along, so that the next one counts on.
	w.updateTo(spec("web", "web:3", 3), "")
	if n := w.view().Service(id).GetCommand().GetSequence(); n != 6 {
		t.Errorf("sequence %d after an update, want 6", n)
	}
}

func TestCommandRollout_SentTwice_TakesEffectOnce(t *testing.T) {
	w := newWorld(t)
	id := trial(t, w, &swarmpb.UpdateStatus{State: updating, Strategy: rolling}, 0)
	request := &swarmpb.CommandRolloutRequest{Service: "web", Action: actPause, RequestId: "r1"}
	if _, err := w.server.CommandRollout(ctx, request); err != nil {
		t.Fatal(err)
	}
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Update: &swarmpb.UpdateStatus{
		State: updatePaused, TemplateVersion: 2, CommandSequence: 1}}}})
	if r, err := w.server.CommandRollout(ctx, request); err != nil || r.GetId() != id {
		t.Fatalf("%v, %v", r, err)
	}
	if n := w.view().Service(id).GetCommand().GetSequence(); n != 1 {
		t.Errorf("sequence %d", n)
	}
}

func TestCommandRollout_StateChangesMeanwhile_IsJudgedAnew(t *testing.T) {
	w := newWorld(t)
	id := trial(t, w, &swarmpb.UpdateStatus{State: updating, Strategy: rolling}, 0)
	w.before = func() {
		w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Update: &swarmpb.UpdateStatus{
			State: updated, TemplateVersion: 2}}}})
	}
	_, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Action: actPause})
	expectError(t, err, wire.CodeFailedPrecondition, "no update is under way, as the last one has completed")
}

func TestCommandRollout_WrongInput_Refused(t *testing.T) {
	w := newWorld(t)
	w.create("web", 1)
	for want, req := range map[string]*swarmpb.CommandRolloutRequest{
		"command: none is given; use pause, resume":    {Service: "web"},
		"command: both abort and pause are given":      {Service: "web", Action: actPause, Abort: true},
		"command 9: this version does not know it":     {Service: "web", Action: 9},
		"author: 200 bytes":                            {Service: "web", Action: actPause, Author: strings.Repeat("x", 200)},
		"request ID: 65 bytes":                         {Service: "web", Action: actPause, RequestId: strings.Repeat("x", 65)},
		"service: name one by its ID":                  {Action: actPause},
		"no update is under way; there is nothing to ": {Service: "web", Action: actPause},
		"under way; there is nothing to abort":         {Service: "web", Abort: true},
	} {
		if _, err := w.server.CommandRollout(ctx, req); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestCommandRollout_UpdateNotBegun_IsRefusedButAborted(t *testing.T) {
	w := newWorld(t)
	id := trial(t, w, &swarmpb.UpdateStatus{State: updated, TemplateVersion: 1}, 0)
	_, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Action: actPause})
	expectError(t, err, wire.CodeFailedPrecondition, "its update to version 2 has not begun yet; try again in a moment")
	if _, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Abort: true}); err != nil {
		t.Fatal(err)
	}
	if n := w.view().Service(id).GetTemplateVersion(); n != 1 {
		t.Errorf("template %d", n)
	}
}

func TestAbort_UnderWay_GoesBackToWhereItCameFrom(t *testing.T) {
	w := newWorld(t)
	id := trial(t, w, &swarmpb.UpdateStatus{State: updating, Strategy: canary, Phase: phaseWatching, Share: 1000, ReplicaShare: 1000}, 1)
	// A scaling and a second update, which was superseded too, while the old set is still web:1's.
	w.updateTo(spec("web", "web:3", 3), "")
	bigger := spec("web", "web:3", 7)
	w.updateTo(bigger, "")
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Update: &swarmpb.UpdateStatus{
		State: updating, Strategy: canary, TemplateVersion: 3, StableTemplateVersion: 1, Phase: phaseWatching}}}})
	r, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Abort: true, Author: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	service := w.view().Service(id)
	if service.GetTemplateVersion() != 1 || service.GetPreviousTemplateVersion() != 3 || service.GetSpec().GetTask().GetContainer().GetImage() != "web:1" ||
		service.GetSpec().GetMode().GetReplicated().GetReplicas() != 7 {
		t.Errorf("service %v", service)
	}
	for _, part := range []string{"web goes back to version 1", "get all new connections at once", "its 7 replicas stay"} {
		if !strings.Contains(r.GetMessage(), part) {
			t.Errorf("message %q does not say %q", r.GetMessage(), part)
		}
	}
	if newest := w.history("web")[0]; newest != "5 web:1 unspecified template 1 by ann: abort, back to version 1 *" {
		t.Errorf("newest is %s", newest)
	}
}

func TestAbort_UpdateThatScalesToo_TakesTheReplicasBack(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 3)
	w.task(id, 1, 1, self)
	w.updateTo(spec("web", "web:2", 9), "")
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Update: &swarmpb.UpdateStatus{
		State: updatePaused, Strategy: rolling, TemplateVersion: 2}}}})
	if _, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Abort: true}); err != nil {
		t.Fatal(err)
	}
	if n := w.view().Service(id).GetSpec().GetMode().GetReplicated().GetReplicas(); n != 3 {
		t.Errorf("%d replicas", n)
	}
}

func TestAbort_SupersededVersionBetween_IsPassedOver(t *testing.T) {
	w := newWorld(t)
	id := w.create("web", 1)
	w.updateTo(spec("web", "web:2", 1), "")
	w.updateTo(spec("web", "web:3", 1), "")
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id,
		Update:   &swarmpb.UpdateStatus{State: updating, Strategy: rolling, TemplateVersion: 3},
		Outcomes: []*swarmpb.RevisionOutcome{{Revision: 2, Message: "superseded"}}}}})
	if _, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Abort: true}); err != nil {
		t.Fatal(err)
	}
	if image := imageOf(w.view().Service(id).GetSpec()); image != "web:1" {
		t.Errorf("image %s", image)
	}
}

func TestAbort_NothingToAbort_SaysWhatToDoInstead(t *testing.T) {
	for want, update := range map[string]*swarmpb.UpdateStatus{
		"as the last one has completed; `swarmctl service rollback web` goes back": {State: updated},
		"as the last one was rolled back; there is nothing to abort":               {State: rolledBack},
		"it is going back already: rolling, replacing":                             {State: goingBack},
		"it is going back already, and that is paused: why; go on with":            {State: backPaused, Message: "why"},
	} {
		w := newWorld(t)
		update.Strategy = rolling
		trial(t, w, update, 0)
		_, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: "web", Abort: true})
		expectError(t, err, wire.CodeFailedPrecondition, want)
	}
}

// fakePlanner remembers what it was asked.
type fakePlanner struct {
	proposals []*swarmpb.Proposal
	service   string
	view      *store.View
	err       error
	hold      chan struct{}
}

func (p *fakePlanner) Plan(ctx context.Context, view *store.View, proposals []*swarmpb.Proposal, service string) (*swarmpb.PlanServiceResponse, error) {
	p.proposals, p.service, p.view = proposals, service, view
	if p.hold != nil {
		p.hold <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &swarmpb.PlanServiceResponse{Starts: 3, Warnings: []string{"planned"}}, p.err
}

func TestPlan_EveryChange_IsWhatWouldBeWritten(t *testing.T) {
	create := &swarmpb.CreateServiceRequest{Spec: spec("web", "web", 3), Author: "ann"}
	update := &swarmpb.UpdateServiceRequest{Service: "web", Spec: spec("web", "web:2", 3), Author: "ann"}
	rollback := &swarmpb.RollbackServiceRequest{Service: "web", Author: "ann"}
	w := newWorld(t)
	planner := &fakePlanner{}
	w.server.cfg.Planner = planner
	plan := func(change *swarmpb.PlanServiceRequest) *swarmpb.PlanServiceResponse {
		t.Helper()
		before := w.view().Index()
		response, err := w.server.PlanService(ctx, change)
		if err != nil {
			t.Fatal(err)
		}
		if w.view().Index() != before {
			t.Fatal("a plan wrote something")
		}
		return response
	}
	// planned compares the proposal with what the write then puts there.
	planned := func(what string, write func() error) {
		t.Helper()
		if len(planner.proposals) != 1 || planner.proposals[0].GetNow() == 0 || planner.view == nil {
			t.Fatalf("%s: proposals %v", what, planner.proposals)
		}
		if err := write(); err != nil {
			t.Fatal(err)
		}
		for _, write := range planner.proposals[0].GetWrites() {
			service := write.GetPut().GetService()
			if service == nil {
				continue
			}
			made := swarmpb.Clone(w.view().ServiceByName("web"))
			made.Meta, made.Id = nil, service.GetId()
			if !proto.Equal(service, made) {
				t.Fatalf("%s: planned %v, written %v", what, service, made)
			}
		}
	}

	response := plan(&swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Create{Create: create}})
	if response.GetBefore() != nil || response.GetAfter().GetName() != "web" || response.GetStarts() != 3 || len(response.GetWarnings()) != 2 || response.GetWarnings()[1] != "planned" {
		t.Errorf("create: %v", response)
	}
	planned("create", func() error { _, err := w.server.CreateService(ctx, create); return err })

	response = plan(&swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Update{Update: update}})
	if imageOf(response.GetBefore()) != "web" || imageOf(response.GetAfter()) != "web:2" || planner.service != w.view().ServiceByName("web").GetId() {
		t.Errorf("update: %v", response)
	}
	planned("update", func() error { _, err := w.server.UpdateService(ctx, update); return err })

	response = plan(&swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Rollback{Rollback: rollback}})
	if imageOf(response.GetBefore()) != "web:2" || imageOf(response.GetAfter()) != "web" {
		t.Errorf("rollback: %v", response)
	}
	planned("rollback", func() error { _, err := w.server.RollbackService(ctx, rollback); return err })

	planner.proposals = nil
	same := &swarmpb.UpdateServiceRequest{Service: "web", Spec: w.view().ServiceByName("web").GetSpec()}
	response = plan(&swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Update{Update: same}})
	if !response.GetNoChange() || planner.proposals != nil || response.GetAfter() == nil {
		t.Errorf("no change: %v, planner asked %v", response, planner.proposals)
	}
}

func TestPlan_NotPossible_HasTheErrorOfTheWrite(t *testing.T) {
	w := newWorld(t)
	w.server.cfg.Planner = &fakePlanner{}
	w.create("web", 1)
	unknown := spec("x", "a:1", 1)
	unknown.Task.Networks = []*swarmpb.NetworkAttachment{{Network: "none"}}
	for _, req := range []*swarmpb.CreateServiceRequest{
		nil, {Spec: spec("web", "a:1", 1)}, {Spec: unknown}, {Spec: spec("-", "a:1", 1)}, {Spec: spec("x", "a:1", 1), Author: "\n"},
		{Spec: spec("x", "a:1", 1), RegistryAuth: &swarmpb.RegistryAuth{Server: "other"}},
	} {
		_, want := w.server.CreateService(ctx, req)
		_, got := w.server.PlanService(ctx, &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Create{Create: req}})
		if want == nil || got == nil || got.Error() != want.Error() || wire.CodeOf(got) != wire.CodeOf(want) {
			t.Errorf("plan says %v, create %v", got, want)
		}
	}
	for _, req := range []*swarmpb.UpdateServiceRequest{
		{Service: "web"}, {Service: "none", Spec: spec("none", "a:1", 1)}, {Service: "web", Spec: spec("other", "a:1", 1)},
	} {
		_, want := w.server.UpdateService(ctx, req)
		_, got := w.server.PlanService(ctx, &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Update{Update: req}})
		if want == nil || got == nil || got.Error() != want.Error() || wire.CodeOf(got) != wire.CodeOf(want) {
			t.Errorf("plan says %v, update %v", got, want)
		}
	}
	_, err := w.server.PlanService(ctx, nil)
	expectError(t, err, wire.CodeInvalid, "plan: neither a create nor an update nor a rollback")
	change := &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Create{Create: &swarmpb.CreateServiceRequest{Spec: spec("x", "a:1", 1)}}}
	broken := errors.New("no plan")
	w.server.cfg.Planner = &fakePlanner{err: broken}
	if _, err := w.server.PlanService(ctx, change); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	w.server.cfg.Planner = nil
	_, err = w.server.PlanService(ctx, change)
	expectError(t, err, wire.CodeUnimplemented, "cannot plan")
}

func TestPlan_TooManyAtOnce_TheNextIsTold(t *testing.T) {
	w := newWorld(t)
	planner := &fakePlanner{hold: make(chan struct{})}
	w.server.cfg.Planner = planner
	change := &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Create{Create: &swarmpb.CreateServiceRequest{Spec: spec("x", "a:1", 1)}}}
	held, release := context.WithCancel(ctx)
	done := make(chan error, maxPlans)
	for range maxPlans {
		go func() { _, err := w.server.PlanService(held, change); done <- err }()
		<-planner.hold
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err := w.server.foretell(gone, w.view(), &change0)
	expectError(t, err, wire.CodeResourceExhausted, "plan: ", "works out 2 other answers")
	release()
	for range maxPlans {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	}
}

var change0 = change{id: "x", proposal: &swarmpb.Proposal{}}
