package worker

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/devices"
)

// genericOf is what the host has of generic resources, by kind: what it was configured with, and its devices.
func genericOf(cfg Config) []*swarmpb.GenericResource {
	all := slices.Clone(cfg.Generic)
	if cfg.Devices != nil {
		all = append(all, cfg.Devices.Resources()...)
	}
	slices.SortStableFunc(all, func(a, b *swarmpb.GenericResource) int { return cmp.Compare(a.GetKind(), b.GetKind()) })
	return all
}

// watchDevices has the managers told of the host's devices when they change, until ctx ends.
func (a *Agent) watchDevices(ctx context.Context) {
	if a.cfg.Devices == nil {
		return
	}
	for sleep(ctx, devicesEvery) {
		if a.cfg.Devices.Look() {
			poke(a.session.described)
		}
	}
}

func deviceProblems(d Devices) []string {
	if d == nil {
		return nil
	}
	return d.Problems()
}

// genericEnv tells a container what it has of generic resources, as Docker Swarm does: names, or how many.
func genericEnv(has []*swarmpb.GenericResource) []string {
	var env []string
	for _, g := range has {
		value := strings.Join(g.GetInstances(), ",")
		if value == "" {
			value = strconv.FormatInt(g.GetCount(), 10)
		}
		env = append(env, swarmpb.GenericVariable(g.GetKind())+"="+value)
	}
	return env
}

// devicesOf are the devices among them. A kind with a slash is one of devices: no other may have one.
func devicesOf(has []*swarmpb.GenericResource) []string {
	var names []string
	for _, g := range has {
		if !strings.Contains(g.GetKind(), "/") {
			continue
		}
		for _, instance := range g.GetInstances() {
			names = append(names, devices.Name(g.GetKind(), instance))
		}
	}
	return names
}
