package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// waiting holds the flags of commands that wait until a service has settled.
type waiting struct {
	detach, quiet bool
	timeout       time.Duration
}

func (w *waiting) define(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&w.detach, "detach", "d", false, "return at once instead of waiting until the service has settled")
	cmd.Flags().BoolVarP(&w.quiet, "quiet", "q", false, "wait without showing progress")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "stop waiting, with an error, after this time (default: wait as long as there is hope)")
}

func (a *app) serviceUpdateCommand() *cobra.Command {
	var (
		w           waiting
		flags       serviceFlags
		force       bool
		image, args string
	)
	cmd := &cobra.Command{
		Use:   "update [flags] SERVICE",
		Short: "Change a service; replicas are replaced a few at a time",
		Long: `Change a service. Only the flags given change anything. When the tasks' template changes (the image, the
environment and so on, or with --force) the replicas are replaced as the --update flags say.

Published ports change without a restart of anything, but for those of mode=host, which are part of the template as networks,
name servers and hosts are.

Without --image the replicas keep the digest that the tag stood for before, wherever the tag has moved since. Credentials
of --with-registry-auth are kept as well, for images of the same registry.`,
		Example: `  swarmctl service update --image whoami:v2 web
  swarmctl service update --env-add MODE=test --env-rm DEBUG --update-parallelism 2 web
  swarmctl service update --publish-add 8443:443 --publish-rm 80 web
  swarmctl service update --network-add name=back,alias=db --network-rm old web
  swarmctl service update --replicas 5 web
  swarmctl service update --force web`,
		DisableFlagsInUseLine: true,
		Args:                  oneArg("service"),
		ValidArgsFunction:     first(a.complete(serviceNames)),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&image, "image", "", "`image` to run; its tag is looked up anew, also where it is the same as before")
	f.StringVar(&args, "args", "", "`arguments` of the command, in one word, split as a shell does")
	f.BoolVar(&force, "force", false, "replace all replicas though nothing else has changed")
	flags.define(cmd, false)
	_ = cmd.RegisterFlagCompletionFunc("network-add", a.complete(networkNames))
	_ = cmd.RegisterFlagCompletionFunc("network-rm", a.complete(networkNames))
	w.define(cmd)
	edit := func(spec *swarmpb.ServiceSpec) error {
		if err := flags.apply(f, spec); err != nil {
			return err
		}
		if f.Changed("image") {
			spec.Task.Container.Image, spec.Task.Container.ImageDigest = image, ""
		}
		if f.Changed("args") {
			words, err := splitWords(args)
			if err != nil {
				return fmt.Errorf("--args: %w", err)
			}
			spec.Task.Container.Args = words
		}
		if force {
			spec.Task.ForceUpdate++
		}
		return nil
	}
	cmd.RunE = a.call(func(ctx context.Context, c *client, names []string) error {
		if err := flags.resolveNetworks(ctx, c); err != nil {
			return fmt.Errorf("service %s: %w", names[0], err)
		}
		changed, err := a.change(ctx, c, names[0], edit, flags.request)
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
		return fmt.Errorf("only a replicated service can be scaled; this one is %s", modeWord(spec.GetMode()))
	}
	spec.Mode = replicated(s.replicas)
	return nil
}

// change is what a change of a service came to.
type change struct {
	goal
	// effective: the service is not what it was.
	effective bool
}

// changeTries bounds how often a change is made anew because somebody else changed the service meanwhile.
const changeTries = 5

// request completes an update by the flags that are no part of the spec.
func (s *serviceFlags) request(r *swarmpb.UpdateServiceRequest) (err error) {
	r.NoResolveImage = s.noResolve
	if s.withAuth {
		r.RegistryAuth, err = requiredAuth(r.GetSpec().GetTask().GetContainer().GetImage())
	}
	return err
}

// change reads a service, edits its spec and writes it back, in a request that complete, if there is one, adds to.
func (a *app) change(ctx context.Context, c *client, name string, edit func(*swarmpb.ServiceSpec) error, complete func(*swarmpb.UpdateServiceRequest) error) (change, error) {
	for try := 1; ; try++ {
		r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: name})
		if err != nil {
			return change{}, err
		}
		s := r.GetService().GetService()
		spec := swarmpb.Clone(s.GetSpec())
		if err := edit(spec); err != nil {
			return change{}, fmt.Errorf("service %s: %w", name, err)
		}
		request := &swarmpb.UpdateServiceRequest{Service: s.GetId(), Version: s.GetMeta().GetVersion(), Spec: spec, RequestId: swarmpb.NewID()}
		if complete != nil {
			if err := complete(request); err != nil {
				return change{}, fmt.Errorf("service %s: %w", name, err)
			}
		}
		// A paused update goes on when its service is updated, even to the same spec.
		if proto.Equal(spec, s.GetSpec()) && request.RegistryAuth == nil && !paused(r.GetService().GetProgress().GetUpdate().GetState()) {
			return change{}, nil
		}
		resp, err := c.UpdateService(ctx, request)
		if err == nil {
			a.warn(resp.Warnings)
			return change{goal{service: resp.Id, name: s.GetSpec().GetName()}, true}, nil
		}
		if !errors.Is(err, wire.ErrConflict) || try == changeTries {
			return change{}, err
		}
	}
}

func paused(s swarmpb.UpdateState) bool {
	return s == swarmpb.UpdateState_UPDATE_STATE_PAUSED || s == swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED
}
