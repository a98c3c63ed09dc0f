package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// waiting holds the flags of commands that wait until a service has settled.
type waiting struct {
	detach, quiet bool
	timeout       time.Duration
}

func (w *waiting) define(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&w.detach, "detach", "d", false, "return at once instead of waiting until the service has settled")
	cmd.Flags().BoolVarP(&w.quiet, "quiet", "q", false, "wait without showing progress")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "stop waiting after this time, with exit code 124 (default: wait as long as there is hope)")
}

// What the help of `service update` says.
const (
	updateLong = `Change a service. Only the flags given change anything; where a value can be left to a default, "default" does so again.
When the tasks' template changes (the image, the environment and so on, or with --force) the new version is rolled out as
--update-strategy says:

  rolling      --update-parallelism replicas at a time, in the --update-order; one that ends within --update-monitor has
               failed, and more than --update-max-failure-ratio of them lead to the --update-failure-action
  in-place     as rolling, each replica on the node where it is, with the same anonymous volumes
  recreate     all old replicas stop, then all new ones start
  blue-green   a whole new set beside the old one, which gets traffic with "service promote" alone
  canary       a few new replicas with a share of the traffic, which both grow with the --canary-steps

Nothing old is stopped before the new version's image is on the nodes that were chosen. --dry-run shows what would be done,
and whether it would fit, and does nothing.

The command shows the progress and returns when the service has settled, or when the rollout waits for a person: "waiting
for promote", or the grace for which the old replicas stay after the new ones have got all traffic. Exit codes:

  0     done, or waiting for a person
  1     failed, paused or rolled back; the reason is on standard error, with the tasks that failed
  2     with --dry-run: it would not come to an end
  124   --timeout was over before; the rollout goes on
  130   interrupted; the rollout goes on

Published ports change without a restart of anything, but for those of mode=host, which are part of the template as networks,
name servers and hosts are.

Without --image the replicas keep the digest that the tag stood for before, wherever the tag has moved since. Credentials
of --with-registry-auth are kept as well, for images of the same registry.`

	updateExamples = `  swarmctl service update --image whoami:v2 web
  swarmctl service update --image whoami:v2 --update-order start-first --update-failure-action rollback web
  swarmctl service update --image whoami:v2 --update-strategy blue-green --preview-publish 8081:80 web
  swarmctl service update --image whoami:v2 --update-strategy canary --canary-steps 5%:2m,25%:5m,50%:manual web
  swarmctl service update --image whoami:v2 --dry-run web
  swarmctl service update --health-http :8080/healthz --health-interval 5s web
  swarmctl service update --env-add MODE=test --env-rm DEBUG --update-parallelism 2 web
  swarmctl service update --publish-add 8443:443 --publish-rm 80 web
  swarmctl service update --network-add name=back,alias=db --network-rm old web
  swarmctl service update --constraint-add 'node.labels.zone in (a, b)' --placement-pref-add spread=node.labels.rack db
  swarmctl service update --max-unavailable 10% --priority 100 --no-rebalance db
  swarmctl service update --schedule "*/5 * * * *" --overlap replace report
  swarmctl service update --update-monitor default --force web`
)

func (a *app) serviceUpdateCommand() *cobra.Command {
	var (
		w   waiting
		e   serviceEdit
		dry planFlags
	)
	cmd := &cobra.Command{
		Use:                   "update [flags] SERVICE",
		Short:                 "Change a service; a new version is rolled out as its update strategy says",
		Long:                  updateLong,
		Example:               updateExamples,
		DisableFlagsInUseLine: true,
		Args:                  oneArg("service"),
		ValidArgsFunction:     first(a.complete(serviceNames)),
	}
	e.define(a, cmd)
	dry.define(cmd)
	w.define(cmd)
	cmd.RunE = a.call(func(ctx context.Context, c *client, names []string) error {
		if err := e.flags.resolveNetworks(ctx, c); err != nil {
			return fmt.Errorf("service %s: %w", names[0], err)
		}
		if dry.wanted {
			request, was, err := a.prepare(ctx, c, names[0], e.apply, e.flags.request)
			if err != nil {
				return err
			}
			return a.plan(ctx, c, dry, was.GetService().GetSpec().GetName(), &swarmpb.PlanServiceRequest{Change: &swarmpb.PlanServiceRequest_Update{Update: request}})
		}
		changed, err := a.change(ctx, c, names[0], e.apply, e.flags.request)
		if err != nil {
			return err
		}
		if !changed.effective {
			_, err := fmt.Fprintf(a.out, "%s: nothing to change\n", names[0])
			return err
		}
		if _, err := fmt.Fprintln(a.out, names[0]); err != nil {
			return err
		}
		return a.await(ctx, c, w, changed.goal)
	})
	return cmd
}

func (a *app) serviceScaleCommand() *cobra.Command {
	var w waiting
	var scales []scale
	cmd := &cobra.Command{
		Use: "scale SERVICE=REPLICAS...", Short: "Change how many replicas services have",
		Example: "  swarmctl service scale web=5\n  swarmctl service scale web=5 api=2",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := someArgs("SERVICE=REPLICAS, for example web=5")(cmd, args); err != nil {
				return err
			}
			return each(args, func(arg string) error {
				s, err := parseScale(arg)
				scales = append(scales, s)
				return err
			})
		},
		ValidArgsFunction: a.scalable,
		RunE: a.call(func(ctx context.Context, c *client, _ []string) error {
			var goals []goal
			var errs []error
			for _, s := range scales {
				changed, err := a.change(ctx, c, s.service, s.edit, nil)
				errs = append(errs, err)
				switch {
				case err == nil && changed.effective:
					goals = append(goals, changed.goal)
					_, _ = fmt.Fprintf(a.out, "%s scaled to %d\n", s.service, s.replicas)
				case err == nil:
					_, _ = fmt.Fprintf(a.out, "%s is at %d: nothing to change\n", s.service, s.replicas)
				}
			}
			for _, g := range goals {
				errs = append(errs, a.await(ctx, c, w, g))
			}
			return errors.Join(errs...)
		}),
	}
	w.define(cmd)
	return cmd
}

// scale is an argument of scale: web=5.
type scale struct {
	service  string
	replicas uint64
}

func parseScale(arg string) (scale, error) {
	name, number, ok := strings.Cut(arg, "=")
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || name == "" || err != nil {
		return scale{}, fmt.Errorf("service scale: %q: want SERVICE=REPLICAS with a whole number, 0 or more, for example web=5", arg)
	}
	return scale{name, n}, nil
}

func (s scale) edit(spec *swarmpb.ServiceSpec) error {
	if spec.GetMode().GetReplicated() == nil {
		hint := ""
		if spec.GetMode().GetReplicatedJob() != nil {
			hint = "; `swarmctl service update --total` and --max-concurrent say how many tasks it has"
		}
		return fmt.Errorf("only a replicated service can be scaled; this one is %s%s", modeWord(spec.GetMode()), hint)
	}
	spec.Mode = replicated(s.replicas)
	return nil
}
