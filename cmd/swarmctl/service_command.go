package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// rolloutCommand tells the rollout of a service something, and waits for what comes of it.
func (a *app) rolloutCommand(cmd *cobra.Command, g goal, request func() *swarmpb.CommandRolloutRequest) *cobra.Command {
	var w waiting
	cmd.Args = oneArg("service")
	completed := rollingServices
	if g.paused || g.told && cmd.Name() == "resume" {
		completed = pausableServices
	}
	cmd.ValidArgsFunction = first(a.complete(completed))
	cmd.RunE = a.call(func(ctx context.Context, c *client, names []string) error {
		req := request()
		req.Service, req.RequestId, req.Author = names[0], swarmpb.NewID(), a.author
		r, err := c.CommandRollout(ctx, req)
		if err != nil {
			return err
		}
		if err := a.say("%s", r.GetMessage()); err != nil {
			return err
		}
		g.service, g.name = r.GetId(), names[0]
		return a.await(ctx, c, w, g)
	})
	w.define(cmd)
	return cmd
}

func actionRequest(action swarmpb.RolloutAction) func() *swarmpb.CommandRolloutRequest {
	return func() *swarmpb.CommandRolloutRequest { return &swarmpb.CommandRolloutRequest{Action: action} }
}

func (a *app) servicePauseCommand() *cobra.Command {
	return a.rolloutCommand(&cobra.Command{
		Use: "pause SERVICE", Short: "Stop the rollout of a service where it is",
		Long: `Stop the rollout of a service where it is: no further replica is replaced, and shares of traffic stay as they are. What
runs goes on, and what ends is started again. "service resume" goes on, "service abort" goes back. The schedule of a job begins no
further run.`,
		Example: "  swarmctl service pause web",
	}, goal{paused: true}, actionRequest(swarmpb.RolloutAction_ROLLOUT_ACTION_PAUSE))
}

func (a *app) serviceResumeCommand() *cobra.Command {
	return a.rolloutCommand(&cobra.Command{
		Use: "resume SERVICE", Short: "Go on with a rollout that is paused",
		Long: `Go on with a rollout that was paused, by "service pause" or because it failed: at the same step, with its failures
forgotten. It shows the progress, and ends, as "service update" does. The schedule of a job goes on with its next time.`,
		Example: "  swarmctl service resume web",
	}, goal{told: true}, actionRequest(swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME))
}

func (a *app) servicePromoteCommand() *cobra.Command {
	full := false
	cmd := a.rolloutCommand(&cobra.Command{
		Use: "promote SERVICE", Short: "Give the new version its next share of the traffic, or all of it",
		Long: `Let a rollout go on to its next step without waiting further: where it waits for that, and where it still watches. A
blue-green update gives the new replicas all traffic, a canary goes to its next step, or with --full to its end.

The old replicas stay for the time of --promote-grace after the new ones have got all traffic. The command returns when that
begins; until it is over, "service abort" goes back at once.`,
		Example: `  swarmctl service promote web
  swarmctl service promote --full web`,
	}, goal{told: true}, func() *swarmpb.CommandRolloutRequest {
		if full {
			return &swarmpb.CommandRolloutRequest{Action: swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE_FULLY}
		}
		return &swarmpb.CommandRolloutRequest{Action: swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE}
	})
	cmd.Flags().BoolVar(&full, "full", false, "canary: to the end, without further steps")
	return cmd
}

func (a *app) serviceAbortCommand() *cobra.Command {
	return a.rolloutCommand(&cobra.Command{
		Use: "abort SERVICE", Short: "Go back from a rollout that has not ended",
		Long: `Go back from a rollout that has not ended to where it came from. With blue-green and canary the old replicas are still
there: they have all traffic again at once, and the new ones stop. With the other strategies, what has been replaced is replaced
back, as the --rollback flags say. The way back is a version of its own in "service history".`,
		Example: "  swarmctl service abort web",
	}, goal{back: true}, func() *swarmpb.CommandRolloutRequest { return &swarmpb.CommandRolloutRequest{Abort: true} })
}

func (a *app) serviceRollbackCommand() *cobra.Command {
	var (
		w   waiting
		dry planFlags
		to  uint64
	)
	cmd := &cobra.Command{
		Use: "rollback SERVICE", Short: "Go back to an earlier version of a service",
		Long: `Make the previous version of a service, or the one of --to, its version again. All of the spec becomes as it was then,
also the number of replicas; it counts as a new version. Replicas are replaced as the --rollback flags of that version say. It shows
the progress, and ends, as "service update" does.`,
		Example: `  swarmctl service rollback web
  swarmctl service history web
  swarmctl service rollback --to 3 web
  swarmctl service rollback --to 3 --dry-run web`,
		Args: oneArg("service"), ValidArgsFunction: first(a.complete(serviceNames)),
	}
	cmd.Flags().Uint64Var(&to, "to", 0, "`version` to go back to, as \"service history\" has it (default: the previous one)")
	_ = cmd.RegisterFlagCompletionFunc("to", func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.complete(versionsOf(args[0]))(cmd, args, word)
	})
	dry.define(cmd)
	w.define(cmd)
	cmd.RunE = a.call(func(ctx context.Context, c *client, names []string) error {
		if cmd.Flags().Changed("to") && to == 0 {
			return errors.New("service rollback: --to 0: want a version as `swarmctl service history` shows it")
		}
		for try := 1; ; try++ {
			r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: names[0]})
			if err != nil {
				return err
			}
			s := r.GetService().GetService()
			req := &swarmpb.RollbackServiceRequest{Service: s.GetId(), Version: s.GetMeta().GetVersion(), Revision: to, RequestId: swarmpb.NewID(), Author: a.author}
			if dry.wanted {
				return a.plan(ctx, c, dry, s.GetSpec().GetName(), &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Rollback{Rollback: req}})
			}
			done, err := c.RollbackService(ctx, req)
			switch {
			case err == nil:
				a.warn(done.GetWarnings())
				if err := a.say("%s: going back, as version %d", names[0], done.GetRevision()); err != nil {
					return err
				}
				return a.await(ctx, c, w, goal{service: done.GetId(), name: s.GetSpec().GetName(), revision: done.GetRevision(), back: true})
			case !errors.Is(err, wire.ErrConflict) || try == changeTries:
				return err
			}
		}
	})
	return cmd
}

// rollingServices completes to services whose rollout has not ended.
func rollingServices(ctx context.Context, c *client) ([]cobra.Completion, error) {
	r, err := c.ListServices(ctx, &swarmpb.ListServicesRequest{})
	var out []cobra.Completion
	for _, s := range r.GetServices() {
		if u := s.GetProgress().GetUpdate(); u.Underway() {
			out = append(out, cobra.CompletionWithDesc(s.GetService().GetSpec().GetName(), rolloutWord(u)))
		}
	}
	return out, err
}

// pausableServices completes to those as well that have a schedule, which is paused and resumed too.
func pausableServices(ctx context.Context, c *client) ([]cobra.Completion, error) {
	out, err := rollingServices(ctx, c)
	if err != nil {
		return nil, err
	}
	r, err := c.ListServices(ctx, &swarmpb.ListServicesRequest{})
	for _, s := range r.GetServices() {
		if spec := s.GetService().GetSpec(); spec.GetSchedule() != nil {
			out = append(out, cobra.CompletionWithDesc(spec.GetName(), spec.GetSchedule().GetCron()))
		}
	}
	return out, err
}

// updateStateWord is the state of an update; empty when there was none.
func updateStateWord(s swarmpb.UpdateState) string {
	if s == swarmpb.UpdateState_UPDATE_STATE_UNSPECIFIED {
		return ""
	}
	return s.Name()
}

// rolloutWord is the state of an update that is under way, or that has ended badly, in few words; empty for another.
func rolloutWord(u *swarmpb.UpdateStatus) string {
	switch u.GetState() {
	case swarmpb.UpdateState_UPDATE_STATE_UPDATING:
	case swarmpb.UpdateState_UPDATE_STATE_PAUSED:
		if u.Sets() && u.GetShare() > 0 {
			return fmt.Sprintf("paused at %s", percent(u.GetShare()))
		}
		return "paused"
	case swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED:
		return "rolling back"
	case swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED:
		return "rollback paused"
	case swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED:
		return "rolled back"
	default:
		return ""
	}
	switch {
	case u.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING:
		return "going back"
	case u.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING:
		return "waiting for promote"
	case u.GetPhase() == swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE:
		return "promoted, in grace"
	case u.GetStrategy() == swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY:
		return "canary at " + percent(u.GetShare())
	case u.GetStrategy() == swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN:
		return "blue-green"
	}
	return "updating"
}
