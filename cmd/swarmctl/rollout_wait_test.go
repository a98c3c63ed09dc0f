package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	updatingState = swarmpb.UpdateState_UPDATE_STATE_UPDATING
	pausedState   = swarmpb.UpdateState_UPDATE_STATE_PAUSED
	completed     = swarmpb.UpdateState_UPDATE_STATE_COMPLETED
	rollingBack   = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED
	rolledBack    = swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED

	replacingPhase = swarmpb.RolloutPhase_ROLLOUT_PHASE_UNSPECIFIED
	preparingPhase = swarmpb.RolloutPhase_ROLLOUT_PHASE_PREPARING
	startingPhase  = swarmpb.RolloutPhase_ROLLOUT_PHASE_STARTING
	watchingPhase  = swarmpb.RolloutPhase_ROLLOUT_PHASE_WATCHING
	waitingPhase   = swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING
	gracePhase     = swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE
	endingPhase    = swarmpb.RolloutPhase_ROLLOUT_PHASE_ENDING
	returningPhase = swarmpb.RolloutPhase_ROLLOUT_PHASE_RETURNING

	rollingStrategy   = swarmpb.UpdateStrategy_UPDATE_STRATEGY_ROLLING
	blueGreenStrategy = swarmpb.UpdateStrategy_UPDATE_STRATEGY_BLUE_GREEN
	canaryStrategy    = swarmpb.UpdateStrategy_UPDATE_STRATEGY_CANARY
)

// scene is a service of version 5, template 2, that comes from version 4, template 1.
type scene struct{ service *swarmpb.ServiceInfo }

func rollingWeb(desired uint64, strategy swarmpb.UpdateStrategy) scene {
	s := web(desired)
	s.Service.Revision, s.Service.TemplateVersion = 5, 2
	s.Service.Spec.Update = &swarmpb.UpdateConfig{Strategy: strategy}
	s.Progress = &swarmpb.ServiceProgress{Update: &swarmpb.UpdateStatus{
		State: updatingState, Strategy: strategy, StartedAt: 9, TemplateVersion: 2, StableTemplateVersion: 1, Revision: 5, PhaseSince: noon.UnixNano(),
	}}
	return scene{s}
}

// with is the scene with an edited update.
func (s scene) with(edit func(*swarmpb.UpdateStatus)) scene {
	next := scene{swarmpb.Clone(s.service)}
	edit(next.service.Progress.Update)
	return next
}

func (s scene) phase(phase swarmpb.RolloutPhase, share uint32) scene {
	return s.with(func(u *swarmpb.UpdateStatus) { u.Phase, u.Share = phase, share })
}

func (s scene) state(state swarmpb.UpdateState, message string) scene {
	return s.with(func(u *swarmpb.UpdateStatus) { u.State, u.Message = state, message })
}

// outcome is what the history says of version 5.
func (s scene) outcome(message string) scene {
	next := scene{swarmpb.Clone(s.service)}
	next.service.Progress.Outcomes = []*swarmpb.RevisionOutcome{{Revision: 4, State: completed, Message: "update completed"}, {Revision: 5, State: rolledBack, Message: message}}
	return next
}

// sets says how many tasks of the new and of the old version are up, of how many.
func (s scene) sets(newUp, newTasks, oldUp, oldTasks uint64) scene {
	next := scene{swarmpb.Clone(s.service)}
	share := next.service.Progress.Update.Share
	next.service.Sets = []*swarmpb.SetInfo{{TemplateVersion: 2, Revision: 5, Image: "whoami:v2", Tasks: newTasks, Up: newUp, Share: share}}
	if oldTasks > 0 {
		next.service.Sets = append(next.service.Sets, &swarmpb.SetInfo{TemplateVersion: 1, Revision: 4, Image: "whoami:v1", Tasks: oldTasks, Up: oldUp, Share: swarmpb.WholeShare - share})
	}
	return next
}

func (s scene) say(tasks ...*swarmpb.TaskInfo) step { return step{message: tell(s.service, tasks...)} }

// of puts tasks at a template.
func of(template uint64, tasks ...*swarmpb.TaskInfo) []*swarmpb.TaskInfo {
	for _, t := range tasks {
		t.Task.TemplateVersion = template
		t.NodeHostname = "n1"
	}
	return tasks
}

// replicas are tasks that run, in slots from first to last.
func replicas(template, first, last uint64) (out []*swarmpb.TaskInfo) {
	for slot := first; slot <= last; slot++ {
		out = append(out, of(template, task(fmt.Sprintf("t%d-%d-0000000000000", template, slot), slot, template, running, running, ""))...)
	}
	return out
}

func stopped(tasks []*swarmpb.TaskInfo) []*swarmpb.TaskInfo {
	for _, t := range tasks {
		t.Task.DesiredState, t.State = shutdown, shutdown
	}
	return tasks
}

func TestRollout_EveryCourse_ReadsAsBefore(t *testing.T) {
	canary := rollingWeb(4, canaryStrategy)
	canary.service.Service.Spec.Update.CanarySteps = []*swarmpb.CanaryStep{{Share: 500, Watch: durationpb.New(2 * time.Minute)}, {Share: 5000, Manual: true}}
	rolling, blueGreen := rollingWeb(2, rollingStrategy), rollingWeb(2, blueGreenStrategy)
	failedTask := of(2, task("t2-1-00000000000000000000", 1, 2, shutdown, failing, "exit code 1: cannot open /etc/app.conf"))
	failedTask[0].Status = &swarmpb.TaskStatus{Health: &swarmpb.HealthStatus{Output: "connection refused"}}
	unready := of(2, task("t2-1-0000000000000", 1, 2, running, running, ""))
	unready[0].Status = &swarmpb.TaskStatus{Health: &swarmpb.HealthStatus{State: swarmpb.HealthState_HEALTH_STATE_HEALTHY, NotReady: true, NotReadyFailing: 3, Output: "503 warming up"}}
	commanded := func(s scene, obeyed uint64) scene {
		s = s.with(func(u *swarmpb.UpdateStatus) { u.CommandSequence = obeyed })
		s.service.Service.Command = &swarmpb.RolloutCommand{Sequence: 3, TemplateVersion: 2}
		return s
	}
	next := rollingWeb(2, rollingStrategy)
	next.service.Service.Revision, next.service.Service.TemplateVersion = 6, 3
	scaled := rollingWeb(3, rollingStrategy).sets(1, 1, 2, 2)
	scaled.service.Service.Revision = 6
	aborted := blueGreen.with(func(u *swarmpb.UpdateStatus) {
		u.TemplateVersion, u.StableTemplateVersion, u.Phase, u.Share, u.Revision, u.StartedAt = 1, 2, returningPhase, swarmpb.WholeShare, 6, 11
	})
	aborted.service.Service.Revision, aborted.service.Service.TemplateVersion = 6, 1
	aborted.service.Sets = []*swarmpb.SetInfo{{TemplateVersion: 1, Revision: 6, Image: "whoami:v1", Tasks: 2, Up: 2, Share: swarmpb.WholeShare}, {TemplateVersion: 2, Revision: 5, Image: "whoami:v2", Tasks: 1, Up: 1, Unhealthy: 1}}
	const image = "service update --image whoami:v2 web"
	for _, c := range []struct {
		name, line string
		revision   uint64
		steps      []step
	}{
		{"rolling", image, 5, []step{
			rolling.phase(preparingPhase, 0).sets(0, 1, 2, 2).say(append(replicas(1, 1, 2), of(2, task("t2-1-0000000000000", 1, 2, swarmpb.TaskState_TASK_STATE_READY, preparing, ""))...)...),
			rolling.state(updatingState, "update in progress: waiting for a node for web.1: no suitable node").sets(0, 1, 1, 1).say(append(stopped(replicas(1, 1, 1)), of(2, task("t2-1-0000000000000", 1, 2, running, starting, ""))...)...),
			rolling.sets(0, 1, 1, 1).say(unready...),
			rolling.sets(1, 1, 1, 1).say(replicas(2, 1, 1)...),
			rolling.state(completed, "").sets(2, 2, 0, 0).say(append(stopped(replicas(1, 2, 2)), replicas(2, 1, 2)...)...),
		}},
		{"rolling paused", image, 5, []step{
			rolling.sets(0, 1, 1, 1).say(replicas(1, 1, 2)...), rolling.state(pausedState, "task web.1 failed: exit code 1").sets(0, 1, 1, 1).say(failedTask...),
		}},
		{"rolling rolled back", image, 5, []step{
			rolling.sets(0, 1, 1, 1).say(replicas(1, 1, 2)...),
			rolling.with(func(u *swarmpb.UpdateStatus) {
				u.State, u.TemplateVersion, u.FailedTemplateVersion, u.Message = rollingBack, 1, 2, "task web.1 failed: exit code 1"
			}).sets(0, 1, 1, 1).say(failedTask...),
			rolling.with(func(u *swarmpb.UpdateStatus) {
				u.State, u.TemplateVersion, u.FailedTemplateVersion, u.Message = rolledBack, 1, 2, "rollback completed"
			}).outcome("task web.1 failed: exit code 1").sets(0, 0, 2, 2).say(),
		}},
		{"canary", image, 5, []step{
			canary.phase(startingPhase, 0).sets(0, 1, 4, 4).say(append(replicas(1, 1, 4), of(2, task("t2-5-0000000000000", 5, 2, running, starting, ""))...)...),
			canary.phase(watchingPhase, 500).sets(1, 1, 4, 4).say(replicas(2, 5, 5)...), wait(90 * time.Second),
			canary.phase(startingPhase, 500).with(func(u *swarmpb.UpdateStatus) { u.Step = 1 }).sets(1, 2, 4, 4).say(of(2, task("t2-6-0000000000000", 6, 2, running, starting, ""))...),
			canary.phase(waitingPhase, 5000).with(func(u *swarmpb.UpdateStatus) { u.Step = 1 }).sets(2, 2, 4, 4).say(replicas(2, 6, 6)...),
		}},
		{"canary fails", image, 5, []step{
			canary.phase(watchingPhase, 500).sets(1, 1, 4, 4).say(append(replicas(1, 1, 4), replicas(2, 5, 5)...)...),
			canary.phase(watchingPhase, 0).state(pausedState, "canary metric: 0.7 is above 0.5").sets(1, 1, 4, 4).say(),
		}},
		{"blue-green promoted", "service promote web", 0, []step{
			commanded(blueGreen.phase(waitingPhase, 0).sets(2, 2, 2, 2), 2).say(append(replicas(1, 1, 2), replicas(2, 3, 4)...)...),
			commanded(blueGreen.phase(gracePhase, swarmpb.WholeShare).sets(2, 2, 2, 2), 3).say(),
		}},
		{"blue-green aborted", "service abort web", 0, []step{
			{message: tell(func() *swarmpb.ServiceInfo {
				s := blueGreen.phase(waitingPhase, 0).sets(2, 2, 2, 2).service
				s.Service.Revision, s.Service.TemplateVersion = 6, 1
				return s
			}(), append(replicas(1, 1, 2), replicas(2, 3, 4)...)...)},
			aborted.say(stopped(replicas(2, 3, 3))...),
			aborted.state(completed, "").say(stopped(replicas(2, 4, 4))...),
		}},
		{"paused by hand", "service pause web", 0, []step{
			commanded(rolling.sets(1, 1, 1, 1), 2).say(append(replicas(1, 2, 2), replicas(2, 1, 1)...)...), commanded(rolling.state(pausedState, "paused by ann@desk").sets(1, 1, 1, 1), 3).say(),
		}},
		{"paused too late", "service pause web", 0, []step{commanded(rolling.state(completed, "").sets(2, 2, 0, 0), 3).say(replicas(2, 1, 2)...)}},
		{"resumed", "service resume web", 0, []step{
			commanded(rolling.state(pausedState, "task web.1 failed").sets(1, 1, 1, 1), 2).say(append(replicas(1, 2, 2), replicas(2, 1, 1)...)...),
			commanded(rolling.sets(1, 1, 1, 1), 3).say(), commanded(rolling.state(completed, "").sets(2, 2, 0, 0), 3).say(append(stopped(replicas(1, 2, 2)), replicas(2, 2, 2)...)...),
		}},
		{"way back resumed", "service resume web", 0, []step{
			commanded(rolling.state(swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED, "task web.1 failed").sets(1, 1, 1, 1), 2).say(append(replicas(1, 2, 2), replicas(2, 1, 1)...)...),
			commanded(rolling.state(rollingBack, "manually requested rollback").sets(1, 1, 1, 1), 3).say(), commanded(rolling.state(rolledBack, "rollback completed").sets(2, 2, 0, 0), 3).say(append(stopped(replicas(1, 2, 2)), replicas(2, 2, 2)...)...),
		}},
		{"rolled back by hand", "service rollback --to 3 web", 6, []step{
			{message: tell(func() *swarmpb.ServiceInfo {
				s := rollingWeb(1, rollingStrategy).with(func(u *swarmpb.UpdateStatus) { u.Revision = 6 }).sets(1, 1, 0, 0).service
				s.Service.Revision = 6
				return s
			}(), replicas(2, 1, 1)...)},
			{message: tell(func() *swarmpb.ServiceInfo {
				s := rollingWeb(1, rollingStrategy).with(func(u *swarmpb.UpdateStatus) { u.Revision, u.State = 6, rolledBack }).sets(1, 1, 0, 0).service
				s.Service.Revision = 6
				return s
			}(), replicas(2, 1, 1)...)},
		}},
		{"superseded", image, 5, []step{rolling.sets(1, 1, 1, 1).say(replicas(1, 1, 2)...), scaled.say(), next.say()}},
		{"manager lost", image, 5, []step{
			rolling.sets(0, 1, 1, 1).say(replicas(1, 1, 2)...), {lost: true},
			rolling.state(completed, "").sets(2, 2, 0, 0).say(append(stopped(replicas(1, 1, 2)), replicas(2, 1, 2)...)...),
		}},
	} {
		var got strings.Builder
		for _, terminal := range []bool{false, true} {
			f := start(t, false)
			f.patience = patience
			f.terminal, f.width, f.height = terminal, 90, 40
			if !terminal {
				f.width, f.height = 0, 0
			}
			f.control.watch[webID], f.control.revision, f.control.message = c.steps, c.revision, "the leader has been told"
			title := "== lines ==\n"
			if terminal {
				title = "== terminal ==\n"
			}
			got.WriteString(title + f.play(c.line))
		}
		golden(t, "rollout_"+strings.ReplaceAll(c.name, " ", "_"), got.String())
	}
}

func TestRollout_ManyChangesOfNumbers_AreNotAllPrinted(t *testing.T) {
	const n = 500
	base := rollingWeb(n, rollingStrategy)
	f := start(t, false)
	f.control.revision = 5
	steps := []step{base.sets(0, 0, n, n).say(replicas(1, 1, n)...)}
	for i := uint64(1); i <= n; i++ {
		steps = append(steps, base.sets(i, i, n-i, n-i).say())
	}
	steps = append(steps, base.state(completed, "").sets(n, n, 0, 0).say(append(stopped(replicas(1, 1, n)), replicas(2, 1, n)...)...))
	f.control.watch[webID] = steps
	o := f.run("service", "update", "--image", "whoami:v2", "web")
	lines := strings.Split(strings.TrimSpace(o.stdout), "\n")
	if o.code != 0 || len(lines) > saidSummaries+5 || !strings.Contains(lines[len(lines)-1], "500 of 500 replicas running; settled") {
		t.Errorf("%d lines, exit %d, last %q, %s", len(lines), o.code, lines[len(lines)-1], o.stderr)
	}
}

func TestServiceList_UpdateUnderWay_IsShownShortly(t *testing.T) {
	f := start(t, false)
	var got []string
	for _, s := range []scene{
		rollingWeb(2, rollingStrategy), rollingWeb(2, rollingStrategy).state(rollingBack, ""), rollingWeb(2, rollingStrategy).state(rolledBack, ""), rollingWeb(2, rollingStrategy).state(completed, ""),
		rollingWeb(2, canaryStrategy).phase(watchingPhase, 550), rollingWeb(2, canaryStrategy).phase(waitingPhase, 500), rollingWeb(2, canaryStrategy).phase(watchingPhase, 500).state(pausedState, ""),
		rollingWeb(2, blueGreenStrategy).phase(startingPhase, 0), rollingWeb(2, blueGreenStrategy).phase(gracePhase, 10000), rollingWeb(2, blueGreenStrategy).phase(endingPhase, 10000), rollingWeb(2, blueGreenStrategy).phase(returningPhase, 10000),
		rollingWeb(2, rollingStrategy).state(swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_PAUSED, ""),
	} {
		s.service.Running, s.service.NotReady = 1, 1
		f.control.services = []*swarmpb.ServiceInfo{s.service}
		lines := strings.Split(f.run("service", "ls").stdout, "\n")
		got = append(got, strings.TrimSpace(strings.TrimPrefix(lines[1], "s")))
	}
	golden(t, "rollout_ls", strings.Join(got, "\n")+"\n")
}

func TestInspect_RolloutUnderWay_PrettyShowsAll(t *testing.T) {
	f := start(t, false)
	s := rollingWeb(4, canaryStrategy).phase(watchingPhase, 500).sets(1, 1, 3, 4)
	spec := rollingFixture()
	spec.Task.Container.DrainTimeout = durationpb.New(30 * time.Second)
	spec.Rollback = &swarmpb.UpdateConfig{Strategy: swarmpb.UpdateStrategy_UPDATE_STRATEGY_IN_PLACE, ProgressDeadline: durationpb.New(0)}
	s.service.Service.Id, s.service.Service.Spec, s.service.Running, s.service.NotReady = webID, spec, 4, 1
	s.service.Metric = &swarmpb.ServiceMetric{Message: "0.7 is above 0.5", FailedSince: before(time.Minute)}
	f.control.services[0] = s.service
	blueGreen := swarmpb.Clone(spec)
	blueGreen.Name = "api"
	blueGreen.Update = &swarmpb.UpdateConfig{Strategy: blueGreenStrategy, PreviewPorts: []*swarmpb.PortConfig{{TargetPort: 80, PublishedPort: 8081}, {TargetPort: 443}}}
	blueGreen.Task.Container = &swarmpb.ContainerSpec{Image: "api:3", NoHealthcheck: true}
	f.control.services[1].Service.Spec = blueGreen
	golden(t, "rollout_inspect", f.play("service inspect --pretty web api"))
}

func TestCompletion_Rollouts_VersionsStrategiesAndServices(t *testing.T) {
	f := start(t, false)
	f.control.revisions = revisionFixtures()[:2]
	for line, want := range map[string]string{
		"service pause ":                      "web\tpaused",
		"service promote ":                    "web\tpaused",
		"service rollback ":                   "web\twhoami:v1|api\tapi:2",
		"service rollback web --to ":          "4\twhoami:v2 update|3\twhoami:v1 create",
		"service diff ":                       "web\twhoami:v1|api\tapi:2",
		"service diff web ":                   "4\twhoami:v2 update|3\twhoami:v1 create",
		"service diff web 3 ":                 "4\twhoami:v2 update",
		"service diff web 3 4 ":               "",
		"service history ":                    "web\twhoami:v1|api\tapi:2",
		"service plan ":                       "web\twhoami:v1|api\tapi:2",
		"service update --update-strategy ":   "rolling|in-place|recreate|blue-green|canary",
		"service create --rollback-strategy ": "rolling|in-place|recreate",
		"service plan --format ":              "text|json",
		"service update --canary-steps ":      "10%:1m,50%:1m|5%:2m,25%:5m,50%:manual",
		"service update --dry-run --format ":  "text|json",
	} {
		o := f.run(append([]string{"__complete"}, strings.Split(line, " ")...)...)
		lines := strings.Split(strings.TrimSpace(o.stdout), "\n")
		if got := strings.Join(lines[:len(lines)-1], "|"); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestUpdate_OfAPausedServiceToTheSameSpec_ResumesAndIsNotTakenForTheFailure(t *testing.T) {
	f := start(t, false)
	f.control.revision = 5
	rolling := rollingWeb(2, rollingStrategy).sets(1, 1, 1, 1)
	rolling.service.Service.Command = &swarmpb.RolloutCommand{Sequence: 1, TemplateVersion: 2}
	f.control.watch[webID] = []step{
		rolling.state(pausedState, "task web.1 failed").say(append(replicas(1, 2, 2), replicas(2, 1, 1)...)...),
		rolling.with(func(u *swarmpb.UpdateStatus) { u.CommandSequence = 1 }).say(),
		rolling.with(func(u *swarmpb.UpdateStatus) { u.CommandSequence, u.State = 1, completed }).say(append(stopped(replicas(1, 2, 2)), replicas(2, 2, 2)...)...),
	}
	if o := f.run("service", "update", "web"); o.code != 0 || !strings.Contains(o.stdout, "2 of 2 replicas running; settled") {
		t.Errorf("%+v", o)
	}
}

func TestWait_PausedUpdateGoesOnAndPausesAgain_IsAFailure(t *testing.T) {
	p := newPicture(goal{service: "s", revision: 6})
	s := rollingWeb(2, rollingStrategy).sets(1, 1, 1, 1)
	s.service.Service.Revision = 6 // scaled meanwhile
	p.take(tell(s.state(pausedState, "first").service))
	if v := p.judge(noon); v.err != nil {
		t.Errorf("what was known before: %v", v.err)
	}
	p.take(tell(s.service))
	p.judge(noon)
	p.take(tell(s.state(pausedState, "second").service))
	if v := p.judge(noon); v.err == nil || !strings.Contains(v.err.Error(), "second") {
		t.Errorf("%+v", v)
	}
}

func TestScale_AfterAnUpdateThatWasRolledBack_Settles(t *testing.T) {
	p := newPicture(goal{service: "s", revision: 6})
	s := rollingWeb(2, rollingStrategy).with(func(u *swarmpb.UpdateStatus) {
		u.State, u.TemplateVersion, u.FailedTemplateVersion = rolledBack, 1, 2
	})
	s.service.Service.Revision = 6
	p.take(tell(s.service, replicas(1, 1, 2)...))
	p.judge(noon)
	if v := p.judge(noon.Add(defaultMonitor)); !v.done || v.err != nil {
		t.Errorf("%+v", v)
	}
}

func TestRollout_NotBegun_IsSaidInsteadOfNumbersOfTheFormerVersion(t *testing.T) {
	first := rollingWeb(2, rollingStrategy)
	first.service.Progress = nil
	second := rollingWeb(2, rollingStrategy).with(func(u *swarmpb.UpdateStatus) { u.State, u.TemplateVersion, u.Revision = completed, 1, 4 })
	for _, s := range []scene{first, second} {
		s.service.Service.TemplateVersion = 5
		p := newPicture(goal{service: "s", revision: 5})
		p.take(tell(s.service, replicas(1, 1, 2)...))
		if v := p.judge(noon); v.done || v.summary != "the rollout has not begun" {
			t.Errorf("%+v", v)
		}
		s.service.Service.TemplateVersion = 2 // as before: a priority, a budget or the like was changed while a replica is not up
		p = newPicture(goal{service: "s", revision: 5})
		p.take(tell(s.service, replicas(2, 1, 1)...))
		if v := p.judge(noon); v.done || v.summary != "1 of 2 replicas running" {
			t.Errorf("a change of what is no template: %+v", v)
		}
	}
}

func TestRollout_GraceBesideAnOldSetOfSeveralTemplates_EndsTheWait(t *testing.T) {
	p := newPicture(goal{service: "s", revision: 5})
	s := rollingWeb(2, canaryStrategy).phase(gracePhase, swarmpb.WholeShare)
	s.service.Service.TemplateVersion, s.service.Progress.Update.TemplateVersion, s.service.Progress.Update.StableTemplateVersion = 3, 3, 2
	p.take(tell(s.service, append(append(replicas(1, 1, 1), replicas(2, 2, 2)...), replicas(3, 3, 4)...)...))
	if v := p.judge(noon); !v.done || !strings.Contains(v.note, "promoted") {
		t.Errorf("%+v", v)
	}
}
