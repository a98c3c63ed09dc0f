package main

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// rollouts are what a fake control says and remembers of versions and rollouts.
type rollouts struct {
	// revision is what an update or a rollback makes, revisions what the history has.
	revision  uint64
	revisions []*swarmpb.RevisionInfo
	// message answers a command, refusal refuses it.
	message   string
	refusal   error
	plan      *swarmpb.PlanServiceResponse
	commands  []*swarmpb.CommandRolloutRequest
	rollbacks []*swarmpb.RollbackServiceRequest
	plans     []*swarmpb.PlanServiceRequest
	authors   []string
}

func (c *fakeControl) RollbackService(_ context.Context, req *swarmpb.RollbackServiceRequest) (*swarmpb.RollbackServiceResponse, error) {
	if c.conflicts > 0 {
		c.conflicts--
		return nil, wire.Errorf(wire.CodeConflict, "service %q: somebody else changed it", req.Service)
	}
	if c.refusal != nil {
		return nil, c.refusal
	}
	c.rollbacks, c.authors = append(c.rollbacks, req), append(c.authors, req.Author)
	return &swarmpb.RollbackServiceResponse{Id: req.Service, Warnings: c.warnings, Revision: c.revision}, nil
}

func (c *fakeControl) CommandRollout(ctx context.Context, req *swarmpb.CommandRolloutRequest) (*swarmpb.CommandRolloutResponse, error) {
	r, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: req.Service})
	if err == nil {
		err = c.refusal
	}
	if err != nil {
		return nil, err
	}
	c.commands, c.authors = append(c.commands, req), append(c.authors, req.Author)
	return &swarmpb.CommandRolloutResponse{Id: r.Service.Service.Id, Message: c.message}, nil
}

func (c *fakeControl) GetServiceHistory(ctx context.Context, req *swarmpb.GetServiceHistoryRequest) (*swarmpb.GetServiceHistoryResponse, error) {
	if err := c.answer(ctx); err != nil {
		return nil, err
	}
	if _, err := c.GetService(ctx, &swarmpb.GetServiceRequest{Service: req.Service}); err != nil {
		return nil, err
	}
	return &swarmpb.GetServiceHistoryResponse{Revisions: c.revisions}, nil
}

func (c *fakeControl) PlanService(_ context.Context, req *swarmpb.PlanServiceRequest) (*swarmpb.PlanServiceResponse, error) {
	c.plans = append(c.plans, req)
	if c.refusal != nil {
		return nil, c.refusal
	}
	r := swarmpb.Clone(c.plan)
	if create := req.GetCreate(); create != nil {
		r.After = create.Spec
	}
	if change := req.GetUpdate(); change != nil {
		r.Before, r.After = c.services[0].Service.Spec, change.Spec
	}
	return r, nil
}

// revisionFixtures are four versions, of which the third was superseded and the last failed.
func revisionFixtures() []*swarmpb.RevisionInfo {
	spec := serviceFixtures()[0].Service.Spec
	version := func(n uint64, age time.Duration, author, cause string, edit func(*swarmpb.ServiceSpec), outcome *swarmpb.RevisionOutcome) *swarmpb.RevisionInfo {
		spec = swarmpb.Clone(spec)
		edit(spec)
		return &swarmpb.RevisionInfo{Outcome: outcome, Revision: &swarmpb.ServiceRevision{
			ServiceId: webID, Revision: n, Spec: spec, TemplateVersion: n, At: before(age), Author: author, Cause: cause,
		}}
	}
	done := func(state swarmpb.UpdateState, message string) *swarmpb.RevisionOutcome {
		return &swarmpb.RevisionOutcome{State: state, Message: message, At: before(time.Minute)}
	}
	versions := []*swarmpb.RevisionInfo{
		version(3, 50*time.Hour, "root@n1", "create", func(*swarmpb.ServiceSpec) {}, nil),
		version(4, 5*time.Hour, "ann@desk", "update", func(s *swarmpb.ServiceSpec) {
			c := s.Task.Container
			c.Image, c.ImageDigest, c.Env, c.Args = "whoami:v2", "", []string{"LEVEL=debug", "MODE=prod", "NEW=a b"}, nil
			delete(s.Labels, "tier")
			s.Task.Resources.Limits.MemoryBytes = 256<<20 + 1
			s.Endpoint.Ports = append(s.Endpoint.Ports, &swarmpb.PortConfig{TargetPort: 443, PublishedPort: 8443, Protocol: swarmpb.Protocol_PROTOCOL_TCP})
		}, done(swarmpb.UpdateState_UPDATE_STATE_COMPLETED, "update completed")),
		version(5, 3*time.Hour, "ann@desk", "update", func(s *swarmpb.ServiceSpec) {
			s.Task.Container.Health = &swarmpb.Probe{Kind: &swarmpb.Probe_Http{Http: &swarmpb.HTTPProbe{Port: 8080, Path: "/healthz"}}, Interval: durationpb.New(5 * time.Second)}
			s.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_Global{Global: &swarmpb.GlobalMode{}}}
		}, done(swarmpb.UpdateState_UPDATE_STATE_UNSPECIFIED, "superseded by version 6")),
		version(6, time.Hour, "bob@laptop", "update", func(s *swarmpb.ServiceSpec) {
			s.Mode = replicated(0)
			s.Update.Strategy = swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY
			s.Update.CanarySteps = []*swarmpb.CanaryStep{{Share: 500, Watch: durationpb.New(2 * time.Minute)}, {Share: 5000, Manual: true}}
		}, done(swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, "task web.2 failed: exit code 1")),
	}
	versions[3].Current = true
	return versions
}

func planFixture() *swarmpb.PlanServiceResponse {
	step := func(at time.Duration, action swarmpb.PlanAction, slot uint64, node, replaces, message string) *swarmpb.PlanStep {
		s := &swarmpb.PlanStep{At: int64(at), Action: action, Slot: slot, NodeHostname: node, Replaces: replaces, Message: message, TemplateVersion: 2}
		if slot > 0 {
			s.TaskName = []string{"", "web.1", "web.2"}[slot]
		}
		return s
	}
	return &swarmpb.PlanServiceResponse{
		Starts: 2, Stops: 2, AtLeast: int64(30 * time.Second),
		Steps: []*swarmpb.PlanStep{
			step(0, swarmpb.PlanAction_PLAN_ACTION_PREPARE, 1, "n1", "", ""), step(0, swarmpb.PlanAction_PLAN_ACTION_STOP, 1, "n1", "", ""),
			step(0, swarmpb.PlanAction_PLAN_ACTION_START, 1, "n1", "web.1", ""), step(15*time.Second, swarmpb.PlanAction_PLAN_ACTION_STOP, 2, "n2", "", ""),
			step(15*time.Second, swarmpb.PlanAction_PLAN_ACTION_START, 2, "n2", "web.2", ""),
			step(30*time.Second, swarmpb.PlanAction_PLAN_ACTION_DONE, 0, "", "", "all replicas are of version 5"),
		},
	}
}
