package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// serviceEdit is a change of a service by flags: of update, and of plan.
type serviceEdit struct {
	flags       serviceFlags
	set         *pflag.FlagSet
	force       bool
	image, args string
}

func (e *serviceEdit) define(a *app, cmd *cobra.Command) {
	e.set = cmd.Flags()
	e.set.SortFlags = false
	e.set.StringVar(&e.image, "image", "", "`image` to run; its tag is looked up anew, also where it is the same as before")
	e.set.StringVar(&e.args, "args", "", "`arguments` of the command, in one word, split as a shell does")
	e.set.BoolVar(&e.force, "force", false, "replace all replicas though nothing else has changed")
	e.flags.define(cmd, false)
	_ = cmd.RegisterFlagCompletionFunc("image", a.complete(imageNames))
	_ = cmd.RegisterFlagCompletionFunc("network-add", a.complete(networkNames))
	_ = cmd.RegisterFlagCompletionFunc("network-rm", a.complete(networkNames))
	e.flags.completePlacement(a, cmd, false)
}

// apply changes the spec by the flags that were given.
func (e *serviceEdit) apply(spec *swarmpb.ServiceSpec) error {
	if err := e.flags.apply(e.set, spec); err != nil {
		return err
	}
	if e.set.Changed("image") {
		spec.Task.Container.Image, spec.Task.Container.ImageDigest = e.image, ""
	}
	if e.set.Changed("args") {
		words, err := splitWords(e.args)
		if err != nil {
			return flagged("args", err)
		}
		spec.Task.Container.Args = words
	}
	if e.force {
		spec.Task.ForceUpdate++
	}
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

// prepare reads a service and makes the request that changes it as edit says; complete, if there is one, adds to it.
func (a *app) prepare(ctx context.Context, c *client, name string, edit func(*swarmpb.ServiceSpec) error, complete func(*swarmpb.UpdateServiceRequest) error) (*swarmpb.UpdateServiceRequest, *swarmpb.ServiceInfo, error) {
	r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: name})
	if err != nil {
		return nil, nil, err
	}
	s := r.GetService().GetService()
	spec := swarmpb.Clone(s.GetSpec())
	if err := edit(spec); err != nil {
		return nil, nil, fmt.Errorf("service %s: %w", name, err)
	}
	request := &swarmpb.UpdateServiceRequest{Service: s.GetId(), Version: s.GetMeta().GetVersion(), Spec: spec, RequestId: swarmpb.NewID(), Author: a.author}
	if complete != nil {
		if err := complete(request); err != nil {
			return nil, nil, fmt.Errorf("service %s: %w", name, err)
		}
	}
	return request, r.GetService(), nil
}

// change reads a service, edits its spec and writes it back.
func (a *app) change(ctx context.Context, c *client, name string, edit func(*swarmpb.ServiceSpec) error, complete func(*swarmpb.UpdateServiceRequest) error) (change, error) {
	for try := 1; ; try++ {
		request, was, err := a.prepare(ctx, c, name, edit, complete)
		if err != nil {
			return change{}, err
		}
		s := was.GetService()
		// A paused update goes on when its service is updated, even to the same spec.
		same, paused := proto.Equal(request.Spec, s.GetSpec()), was.GetProgress().GetUpdate().Paused()
		if same && request.RegistryAuth == nil && !paused {
			return change{}, nil
		}
		resp, err := c.UpdateService(ctx, request)
		if err == nil {
			a.warn(resp.Warnings)
			return change{goal{service: resp.Id, name: s.GetSpec().GetName(), revision: resp.GetRevision(), told: same && paused}, true}, nil
		}
		if !errors.Is(err, wire.ErrConflict) || try == changeTries {
			return change{}, wrongIn("service "+name, err)
		}
	}
}

// wrongIn says on each line of what the managers find wrong with a spec whose it is.
func wrongIn(what string, err error) error {
	if !errors.Is(err, wire.ErrInvalid) {
		return err
	}
	return errors.New(what + ": " + strings.ReplaceAll(err.Error(), "\n", "\n"+what+": "))
}
