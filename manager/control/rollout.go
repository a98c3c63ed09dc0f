package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// CommandRollout tells the update under way to pause, to go on or to be promoted, or goes back to where it came from. It
// is judged by the update's state as it is when the command is written, and refused with that state where it makes no
// sense.
func (s *Server) CommandRollout(ctx context.Context, req *swarmpb.CommandRolloutRequest) (*swarmpb.CommandRolloutResponse, error) {
	ctx, cancel := writing(ctx)
	defer cancel()
	request, err := requestID(req.GetRequestId())
	if err != nil {
		return nil, err
	}
	if err := checkCommand(req); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		view, err := s.fresh(ctx)
		if err != nil {
			return nil, err
		}
		service, err := findService(view, req.GetService())
		if err != nil {
			return nil, err
		}
		if view.Answered(request) {
			return &swarmpb.CommandRolloutResponse{Id: service.GetId(), Message: "the command was taken already"}, nil
		}
		r := &rollout{view: view, service: service, update: view.ServiceProgress(service.GetId()).GetUpdate()}
		proposal, message, err := s.commanded(r, req)
		if err != nil {
			return nil, err
		}
		err = s.write(ctx, request, proposal)
		var conflict *store.ConflictError
		if err == nil {
			return &swarmpb.CommandRolloutResponse{Id: service.GetId(), Message: message}, nil
		}
		if !errors.As(err, &conflict) || try == rewrites {
			return nil, conflictError(err, "service \""+r.name()+"\"")
		}
	}
}

func checkCommand(req *swarmpb.CommandRolloutRequest) error {
	const known = "use pause, resume, promote, promote-fully or abort"
	action := req.GetAction()
	switch _, ok := swarmpb.RolloutAction_name[int32(action)]; {
	case !ok:
		return wire.Errorf(wire.CodeInvalid, "command %d: this version does not know it; %s", action, known)
	case req.GetAbort() && action != swarmpb.RolloutAction_ROLLOUT_ACTION_UNSPECIFIED:
		return wire.Errorf(wire.CodeInvalid, "command: both abort and %s are given; give one", action.Name())
	case !req.GetAbort() && action == swarmpb.RolloutAction_ROLLOUT_ACTION_UNSPECIFIED:
		return wire.Errorf(wire.CodeInvalid, "command: none is given; %s", known)
	}
	return checkAuthor(req.GetAuthor())
}

// commanded is the proposal of a command, with what happens then in a line.
func (s *Server) commanded(r *rollout, req *swarmpb.CommandRolloutRequest) (*swarmpb.Proposal, string, error) {
	if r.service.GetRemoving() {
		return nil, "", r.refuse("the service is being removed")
	}
	if r.service.GetSpec().IsJob() {
		return commandSchedule(r, req)
	}
	progress := guard(swarmpb.ServiceProgressKey(r.service.GetId()), r.view.ServiceProgress(r.service.GetId()).GetMeta().GetVersion())
	if req.GetAbort() {
		c, message, err := s.abort(r, req.GetAuthor())
		if err != nil {
			return nil, "", err
		}
		c.proposal.Guards = append(c.proposal.Guards, progress)
		return c.proposal, message, nil
	}
	message, err := r.allow(req.GetAction())
	if err != nil {
		return nil, "", err
	}
	next := swarmpb.Clone(r.service)
	command(next, r.update, req.GetAction(), req.GetAuthor())
	return &swarmpb.Proposal{
		Guards: []*swarmpb.Guard{guard(swarmpb.ServiceKey(next.GetId()), r.service.GetMeta().GetVersion()), progress},
		Writes: []*swarmpb.Write{putService(next)},
	}, message, nil
}

// command gives the service's update a command.
func command(service *swarmpb.Service, update *swarmpb.UpdateStatus, action swarmpb.RolloutAction, author string) {
	service.Command = &swarmpb.RolloutCommand{
		Action: action, Sequence: max(service.GetCommand().GetSequence(), update.GetCommandSequence()) + 1,
		TemplateVersion: update.GetTemplateVersion(), At: time.Now().UnixNano(), Author: author,
	}
}

// rollout is a service's update as it is, to be judged.
type rollout struct {
	view    *store.View
	service *swarmpb.Service
	update  *swarmpb.UpdateStatus
}

func (r *rollout) name() string { return r.service.GetSpec().GetName() }

func (r *rollout) refuse(format string, args ...any) error {
	return wire.Errorf(wire.CodeFailedPrecondition, "service %q: "+format, append([]any{r.name()}, args...)...)
}

// allow answers what a command leads to, or why it cannot be obeyed.
func (r *rollout) allow(action swarmpb.RolloutAction) (string, error) {
	if r.pending() {
		return "", r.refuse("its update to version %d has not begun yet; try again in a moment", r.service.GetRevision())
	}
	if !r.update.Underway() {
		return "", r.refuse("no update is under way%s; there is nothing to %s", r.last(), verb(action))
	}
	switch action {
	case swarmpb.RolloutAction_ROLLOUT_ACTION_PAUSE:
		return r.allowPause()
	case swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME:
		if !r.update.Paused() {
			return "", r.refuse("its %s is not paused: %s; there is nothing to resume", r.what(), r.state())
		}
		return fmt.Sprintf("the %s of %s goes on", r.what(), r.name()), nil
	default:
		return r.allowPromote(action == swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE_FULLY)
	}
}

func verb(action swarmpb.RolloutAction) string {
	if action == swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE_FULLY {
		return "promote"
	}
	return action.Name()
}

// pending tells whether the orchestrator has not seen the service's present spec yet.
func (r *rollout) pending() bool {
	want := r.service.GetTemplateVersion()
	if r.update.GetTemplateVersion() == want || r.update.GetFailedTemplateVersion() == want {
		return false
	}
	for task := range r.view.TasksOf(r.service.GetId()) {
		if wanted(task) && task.GetTemplateVersion() != want {
			return true
		}
	}
	return false
}

func (r *rollout) allowPause() (string, error) {
	switch {
	case r.update.Paused():
		return "", r.refuse("its %s is paused already: %s; go on with `swarmctl service resume %s`%s", r.what(), r.update.GetMessage(), r.name(), r.orAbort())
	case r.update.GetStrategy() == swarmpb.UpdateStrategy_UPDATE_STRATEGY_RECREATE && r.update.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_ENDING:
		return "", r.refuse("recreate is stopping the old tasks, and a pause would leave the service down; wait until the new ones have started")
	}
	return fmt.Sprintf("the %s of %s is paused: nothing further is replaced or shifted, and what runs stays", r.what(), r.name()), nil
}

func (r *rollout) allowPromote(fully bool) (string, error) {
	strategy, phase := r.update.GetStrategy(), r.update.GetPhase()
	switch {
	case r.backwards():
		return "", r.refuse("it is going back, which nothing has to be promoted for: %s", r.state())
	case !strategy.Sets():
		return "", r.refuse("its update is of strategy %s, which goes on by itself: %s; nothing waits for a promotion", strategy.Name(), r.state())
	case r.update.Paused():
		return "", r.refuse("its update is paused: %s; go on with `swarmctl service resume %s` first%s", r.update.GetMessage(), r.name(), r.orAbort())
	case phase == swarmpb.RolloutPhase_ROLLOUT_PHASE_ENDING:
		return "", r.refuse("it has been promoted: %s", r.state())
	case phase == swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE:
		return "the old tasks of " + r.name() + " stop now, without waiting for the end of their grace", nil
	}
	up, all := r.newSet()
	// A canary that is to have all goes on with starting the rest, whatever it has now.
	toTheEnd := fully && strategy == swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY
	starting := phase != swarmpb.RolloutPhase_ROLLOUT_PHASE_WATCHING && phase != swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING
	if (starting || up < all) && !toTheEnd {
		return "", r.refuse("the new tasks are not all up (%d/%d): %s; wait for them, see `swarmctl service ps %s`%s", up, all, r.state(), r.name(), r.orAbort())
	}
	return r.promoted(fully), nil
}

// promoted tells what a promotion leads to.
func (r *rollout) promoted(fully bool) string {
	steps, next := r.service.GetSpec().GetUpdate().CanaryStepsOr(), int(r.update.GetStep())+1
	switch {
	case r.update.GetStrategy() == swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY && next < len(steps) && !fully:
		return fmt.Sprintf("%s goes on to step %d of %d: %s of new connections", r.name(), next+1, len(steps)+1, swarmpb.SharePercent(steps[next].GetShare()))
	case r.update.GetReplicaShare() < swarmpb.WholeShare:
		return fmt.Sprintf("%s goes on to the end: the rest of the new tasks start, and get all new connections once they are up", r.name())
	}
	return fmt.Sprintf("the new tasks of %s get all new connections", r.name())
}

// newSet counts the new set's tasks that are up, and those that there should be by now.
func (r *rollout) newSet() (up, all uint64) {
	for task := range r.view.TasksOf(r.service.GetId()) {
		if task.GetTemplateVersion() == r.update.GetTemplateVersion() && look(r.view, task).up {
			up++
		}
	}
	return up, r.update.Replicas(r.service.GetSpec().GetMode().GetReplicated().GetReplicas())
}

// backwards tells whether the update goes back to an earlier version, by itself or at its user's wish.
func (r *rollout) backwards() bool {
	switch r.update.GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED, swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED:
		return true
	}
	return r.update.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING
}

// what is the update in messages.
func (r *rollout) what() string {
	if r.backwards() {
		return "rollback"
	}
	return "update"
}

// orAbort is the other way out of an update that does not go on.
func (r *rollout) orAbort() string {
	if r.backwards() {
		return ""
	}
	return fmt.Sprintf(", or back with `swarmctl service abort %s`", r.name())
}

// last tells of the update that has ended.
func (r *rollout) last() string {
	switch r.update.GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_COMPLETED:
		return ", as the last one has completed"
	case swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED:
		return ", as the last one was rolled back"
	}
	return ""
}

// state is where the update is, in a line.
func (r *rollout) state() string {
	text := r.update.GetStrategy().Name() + ", " + r.update.GetPhase().Name()
	if r.update.GetStrategy() == swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY && !r.backwards() {
		// The last step is the one with all connections.
		steps := len(r.service.GetSpec().GetUpdate().CanaryStepsOr()) + 1
		text += fmt.Sprintf(", step %d of %d", min(int(r.update.GetStep())+1, steps), steps)
	}
	if r.update.Sets() {
		text += fmt.Sprintf(", %s of new connections", swarmpb.SharePercent(r.update.GetShare()))
	}
	return text
}

// abort is the change back to where the update under way came from.
func (s *Server) abort(r *rollout, author string) (*change, string, error) {
	update := r.update
	if !r.pending() {
		switch {
		case update.GetState() == swarmpb.UpdateState_UPDATE_STATE_COMPLETED:
			return nil, "", r.refuse("no update is under way, as the last one has completed; `swarmctl service rollback %s` goes back to the version before it", r.name())
		case !update.Underway():
			return nil, "", r.refuse("no update is under way%s; there is nothing to abort", r.last())
		case update.GetState() == swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED:
			return nil, "", r.refuse("it is going back already, and that is paused: %s; go on with `swarmctl service resume %s`", update.GetMessage(), r.name())
		case r.backwards():
			return nil, "", r.refuse("it is going back already: %s", r.state())
		}
	}
	target, ok := r.origin()
	if !ok {
		return nil, "", r.refuse("its history does not tell any more where the update came from; choose a version of those that `swarmctl service history %s` shows, "+
			"and go to it with `swarmctl service rollback --to VERSION %s`", r.name(), r.name())
	}
	kept := ""
	if replicas, scaled := r.scaled(); scaled && target.spec.GetMode().GetReplicated() != nil {
		target.spec = swarmpb.Clone(target.spec)
		if mode := target.spec.GetMode().GetReplicated(); mode.GetReplicas() != replicas {
			mode.Replicas = replicas
			kept = fmt.Sprintf("; its %d replicas stay, which it was scaled to since", replicas)
		}
	}
	c, err := s.goBack(r.view, r.service, r.service.GetMeta().GetVersion(), target, author, "abort, back"+target.to())
	if err != nil {
		return nil, "", err
	}
	message := fmt.Sprintf("%s goes back to %s", r.name(), target.named())
	if update.Sets() {
		message += ", whose tasks get all new connections at once"
	}
	return c, message + kept, nil
}

// origin is the version that the update under way came from: of two sets the old one's, else the newest version of another
// template that was not itself superseded or rolled back on its way.
func (r *rollout) origin() (earlier, bool) {
	stable := uint64(0)
	if r.update.Sets() {
		stable = r.update.GetStableTemplateVersion()
	}
	outcomes := make(map[uint64]*swarmpb.RevisionOutcome)
	for _, outcome := range r.view.ServiceProgress(r.service.GetId()).GetOutcomes() {
		outcomes[outcome.GetRevision()] = outcome
	}
	var good, any *swarmpb.ServiceRevision
	for revision := range r.view.RevisionsOf(r.service.GetId()) {
		if revision.GetTemplateVersion() == r.service.GetTemplateVersion() || stable != 0 && revision.GetTemplateVersion() != stable {
			continue
		}
		any = revision
		if outcome := outcomes[revision.GetRevision()]; outcome == nil || outcome.GetState() == swarmpb.UpdateState_UPDATE_STATE_COMPLETED {
			good = revision
		}
	}
	if found := cmp.Or(good, any); found != nil {
		return earlierOf(found), true
	}
	if r.service.GetPreviousSpec() != nil && r.service.GetPreviousTemplateVersion() != r.service.GetTemplateVersion() {
		return previous(r.view, r.service), true
	}
	return earlier{}, false
}

// scaled tells whether the number of replicas was changed since the update began, and what it is.
func (r *rollout) scaled() (replicas uint64, scaled bool) {
	replicas = r.service.GetSpec().GetMode().GetReplicated().GetReplicas()
	var first *swarmpb.ServiceRevision
	for revision := range r.view.RevisionsOf(r.service.GetId()) {
		switch {
		case revision.GetTemplateVersion() != r.service.GetTemplateVersion():
			first = nil
		case first == nil:
			first = revision
		}
	}
	return replicas, first != nil && first.GetSpec().GetMode().GetReplicated().GetReplicas() != replicas
}
