package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// completionTimeout bounds how long a shell waits for names.
const completionTimeout = 2 * time.Second

// names lists what a word may be completed to.
type names func(ctx context.Context, c *client) ([]cobra.Completion, error)

// complete offers names that are not on the line already. An error offers nothing: a shell has no place for it.
func (a *app) complete(list names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		var offered []cobra.Completion
		_ = a.with(func(c *client) (err error) { offered, err = list(ctx, c); return err })
		offered = slices.DeleteFunc(offered, func(name cobra.Completion) bool {
			word, _, _ := strings.Cut(name, "\t")
			return slices.Contains(args, word)
		})
		return offered, cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes the first argument alone.
func first(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(cmd, args, word)
	}
}

// completeWords completes a flag to fixed words.
func completeWords(cmd *cobra.Command, flag string, words ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// fileFlags are those whose values are files of this host.
var fileFlags = []string{"env-file", "host"}

// completeNoFiles keeps shells from offering the names of files where a flag does not take one.
func completeNoFiles(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if _, known := cmd.GetFlagCompletionFunc(f.Name); !known && !slices.Contains(fileFlags, f.Name) {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.NoFileCompletions)
		}
	})
	for _, sub := range cmd.Commands() {
		completeNoFiles(sub)
	}
}

func serviceNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	r, err := c.ListServices(ctx, &swarmpb.ListServicesRequest{})
	var out []cobra.Completion
	for _, s := range r.GetServices() {
		out = append(out, cobra.CompletionWithDesc(s.GetService().GetSpec().GetName(), s.GetService().GetSpec().GetTask().GetContainer().GetImage()))
	}
	return out, err
}

func replicatedNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	r, err := c.ListServices(ctx, &swarmpb.ListServicesRequest{})
	var out []cobra.Completion
	for _, s := range r.GetServices() {
		if spec := s.GetService().GetSpec(); spec.GetMode().GetReplicated() != nil {
			out = append(out, cobra.CompletionWithDesc(spec.GetName(), spec.GetTask().GetContainer().GetImage()))
		}
	}
	return out, err
}

// scalable completes to NAME=, after which the number comes.
func (a *app) scalable(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	offered, directive := a.complete(replicatedNames)(cmd, args, word)
	for i, name := range offered {
		service, description, _ := strings.Cut(name, "\t")
		offered[i] = cobra.CompletionWithDesc(service+"=", description)
	}
	return offered, directive | cobra.ShellCompDirectiveNoSpace
}

func nodeNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	r, err := c.ListNodes(ctx, &swarmpb.ListNodesRequest{})
	out := []cobra.Completion{cobra.CompletionWithDesc("self", "this manager")}
	for _, n := range r.GetNodes() {
		if h := n.GetStatus().GetDescription().GetHostname(); h != "" {
			out = append(out, cobra.CompletionWithDesc(h, n.GetNode().GetId()))
		}
	}
	return out, err
}

// labelNames are the labels of nodes, labelWords what they are set to.
func labelNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	labels, _, err := nodeLabels(ctx, c)
	return slices.Sorted(maps.Keys(labels)), err
}

func labelWords(ctx context.Context, c *client) ([]cobra.Completion, error) {
	labels, _, err := nodeLabels(ctx, c)
	var out []cobra.Completion
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		for _, value := range slices.Sorted(slices.Values(labels[name])) {
			out = append(out, name+"="+value)
		}
	}
	return out, err
}

func taskNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	r, err := c.ListTasks(ctx, &swarmpb.ListTasksRequest{CurrentOnly: true})
	var out []cobra.Completion
	for _, t := range r.GetTasks() {
		out = append(out, cobra.CompletionWithDesc(t.GetName(), t.GetState().Name()))
	}
	return out, err
}

func networkNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	r, err := c.ListNetworks(ctx, &swarmpb.ListNetworksRequest{})
	var out []cobra.Completion
	for _, n := range r.GetNetworks() {
		out = append(out, cobra.CompletionWithDesc(n.GetNetwork().GetSpec().GetName(), n.GetProgress().GetSubnet()))
	}
	return out, err
}

func imageNames(ctx context.Context, c *client) ([]cobra.Completion, error) {
	r, err := c.local.ListImages(ctx, &swarmpb.ListImagesRequest{})
	var out []cobra.Completion
	for _, i := range r.GetImages() {
		out = append(out, i.GetName())
	}
	return out, err
}
