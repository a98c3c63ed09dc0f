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
	preparing = swarmpb.TaskState_TASK_STATE_PREPARING
	starting  = swarmpb.TaskState_TASK_STATE_STARTING
)

// say is a step with a message: tasks of a service that wants so many replicas.
func say(desired uint64, tasks ...*swarmpb.TaskInfo) step {
	return step{message: tell(web(desired), tasks...)}
}

// on puts a task on a node.
func on(node string, t *swarmpb.TaskInfo) *swarmpb.TaskInfo {
	t.NodeHostname = node
	return t
}

func wait(d time.Duration) step { return step{advance: d} }

// rollout is two replicas that come up, one at its second try.
func rollout() []step {
	pulling := on("n2", task("b1", 2, 1, running, preparing, ""))
	pulling.Message = "pulling whoami:v1"
	return []step{
		say(2),
		say(2, task("a1", 1, 1, running, pending, ""), task("b1", 2, 1, running, pending, "")),
		say(2, on("n1", task("a1", 1, 1, running, starting, "")), pulling),
		say(2, on("n1", task("a1", 1, 1, running, running, ""))),
		say(2, on("n2", task("b1", 2, 1, shutdown, failing, "exit code 1")), on("n2", task("b2", 2, 2, running, starting, ""))),
		say(2, on("n2", task("b2", 2, 2, running, running, ""))),
		wait(2 * time.Second), wait(3 * time.Second),
	}
}

func removing(tasks ...*swarmpb.TaskInfo) step {
	s := web(0)
	s.Service.Removing = true
	return step{message: tell(s, tasks...)}
}

// updating says how far the update of web to its second template has come.
func updating(state swarmpb.UpdateState, message string, tasks ...*swarmpb.TaskInfo) step {
	s := web(1)
	s.Service.TemplateVersion = 2
	s.Progress = &swarmpb.ServiceProgress{Update: &swarmpb.UpdateStatus{State: state, StartedAt: 9, Message: message}}
	return step{message: tell(s, tasks...)}
}

func TestWait_CreateUpdateScaleRemove_ShowProgress(t *testing.T) {
	second := on("n1", task("a2", 1, 2, running, running, ""))
	second.Task.TemplateVersion = 2
	crash := func(attempt int) step {
		return say(1, on("n1", task(fmt.Sprint("a", attempt), 1, uint64(attempt), shutdown, failing, fmt.Sprintf("exit code %d\x1b[2J", attempt))),
			on("n1", task(fmt.Sprint("a", attempt+1), 1, uint64(attempt+1), running, starting, "")))
	}
	stuck := task("a1", 1, 1, running, pending, "")
	stuck.Placement = &swarmpb.TaskPlacement{Message: "no suitable node (insufficient memory on 2 nodes)"}
	pulling := on("n1", task("a1", 1, 1, running, preparing, "image whoami:v9: registry docker.io: cannot resolve docker.io: no such host"))
	pulling.Message = pulling.Error + "; trying again"
	many := func(n int, state swarmpb.TaskState, text string) (out []*swarmpb.TaskInfo) {
		for i := range n {
			out = append(out, task(fmt.Sprint("m", i), uint64(i+1), 1, running, state, text))
		}
		return out
	}
	pulls := func(n, percent int) []*swarmpb.TaskInfo {
		tasks := many(n, preparing, "")
		for _, t := range tasks {
			on("n1", t).Message = fmt.Sprintf("pulling whoami:v1: %d MB of 100 MB", percent)
		}
		return tasks
	}
	const update = swarmpb.UpdateState_UPDATE_STATE_UPDATING
	for _, c := range []struct {
		name, line string
		steps      []step
	}{
		{"create", "service create --name web --replicas 2 whoami:v1", rollout()},
		{"slow pull", "service create --name web --replicas 8 whoami:v1", []step{
			say(8, pulls(8, 1)...), wait(4 * time.Second), say(8, pulls(8, 30)...), wait(time.Second), say(8, pulls(8, 31)...), wait(time.Second),
			say(8, append(pulls(8, 90)[:7], on("n1", task("m7", 8, 1, running, starting, "")))...), wait(4 * time.Second),
			say(8, many(8, starting, "")...), say(8, many(8, running, "")...), wait(5 * time.Second),
		}},
		{"quiet", "service create --name web -q --replicas 2 whoami:v1", rollout()},
		{"detach", "service create --name web -d --replicas 2 whoami:v1", nil},
		{"crash loop", "service create --name web whoami:v1", []step{say(1, task("a1", 1, 1, running, pending, "")), crash(1), crash(2), crash(3)}},
		{"no node", "service create --name web --reserve-memory 1t whoami:v1", []step{say(1, stuck), wait(9 * time.Second), wait(time.Second)}},
		{"no image", "service create --name web whoami:v9", []step{say(1, pulling), wait(14 * time.Second), wait(time.Second)}},
		{"many", "service create --name web --replicas 25 whoami:v1", []step{
			say(25, many(25, starting, "")...), say(25, many(8, failing, "disk full")...), say(25, many(25, running, "")...), wait(5 * time.Second),
		}},
		{"update", "service update --image whoami:v2 web", []step{
			say(1, on("n1", task("a1", 1, 1, running, running, ""))), updating(update, "", on("n1", task("a1", 1, 1, shutdown, running, ""))),
			updating(update, "", second, on("n1", task("a1", 1, 1, shutdown, shutdown, ""))),
			updating(swarmpb.UpdateState_UPDATE_STATE_COMPLETED, "", second), wait(5 * time.Second),
		}},
		{"update paused", "service update --image whoami:v2 web", []step{
			say(1, on("n1", task("a1", 1, 1, running, running, ""))), updating(swarmpb.UpdateState_UPDATE_STATE_PAUSED, "task web.1 failed: exit code 1"),
		}},
		{"rolled back", "service update --image whoami:v2 web", []step{
			say(1, on("n1", task("a1", 1, 1, running, running, ""))), updating(swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED, ""),
			updating(swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED, "task web.1 failed: exit code 1"),
		}},
		{"scale", "service scale web=1", []step{
			say(1, on("n1", task("a1", 1, 1, running, running, "")), on("n2", task("b1", 2, 1, shutdown, running, ""))),
			say(1, on("n2", task("b1", 2, 1, shutdown, shutdown, ""))), wait(5 * time.Second),
		}},
		{"remove", "service rm web", []step{removing(task("a1", 1, 1, shutdown, running, "")), removing(task("a1", 1, 1, shutdown, shutdown, "")), {message: &swarmpb.WatchServiceResponse{}}}},
		{"remove, stream ends", "service rm web nope", []step{removing(task("a1", 1, 1, shutdown, running, "")), {gone: true}}},
		{"removed meanwhile", "service create --name web whoami:v1", []step{say(1), {gone: true}}},
		{"interrupted", "service create --name web whoami:v1", []step{say(1, task("a1", 1, 1, running, pending, "")), {interrupt: true}}},
	} {
		var got strings.Builder
		for _, terminal := range []bool{false, true} {
			f := start(t, false)
			f.terminal, f.width, f.height = terminal, 60, 40
			if !terminal {
				f.width, f.height = 0, 0
			}
			f.control.watch[webID] = c.steps
			title := "== lines ==\n"
			if terminal {
				title = "== terminal ==\n"
			}
			got.WriteString(title + f.play(c.line))
		}
		golden(t, "wait_"+strings.NewReplacer(" ", "_", ",", "").Replace(c.name), got.String())
	}
}

func TestWait_ManyServices_EachIsWaitedForAndAllErrorsCount(t *testing.T) {
	f := start(t, false)
	f.control.services[0].Progress.Update.State = swarmpb.UpdateState_UPDATE_STATE_COMPLETED
	done := func() []step { return []step{say(1, task("a1", 1, 1, running, running, "")), wait(5 * time.Second)} }
	f.control.watch[webID], f.control.watch[apiID] = done(), done()
	golden(t, "scale_many", f.play("service scale web=1 nope=2 api=1", "service scale -d web=2 api=0"))
}

func TestUpdate_NothingChanges_SaysSoAndWritesNothing(t *testing.T) {
	f := start(t, false)
	f.control.services[0].Progress.Update.State = swarmpb.UpdateState_UPDATE_STATE_COMPLETED
	golden(t, "unchanged", f.play(
		"service update web", "service update --replicas 2 --env-add MODE=prod --label-add team=shop --cap-add net_admin web",
		"service update --publish-add mode=host,published=8080,target=80 --mount-add type=volume,source=data,target=/data,readonly web", "service scale web=2", "service update -d --image whoami:v1 web",
	))
	// An image is resolved anew when it is named, so that its digest goes: that is a change.
	if len(f.control.updated) != 1 || f.control.updated[0].Task.Container.ImageDigest != "" {
		t.Errorf("updates: %v", f.control.updated)
	}
}

func TestWait_Timeout_EndsWithAnError(t *testing.T) {
	f := start(t, false)
	for line, want := range map[string]string{
		"service create --timeout 5ms whoami:v1": "swarmctl: service web0000000000000000000web has not settled within 5ms; the cluster goes on, see `swarmctl service ps web0000000000000000000web`\n",
		"service rm --timeout 5ms web":           "swarmctl: service web has not settled within 5ms; the cluster goes on, see `swarmctl service ls`\n",
	} {
		if o := f.run(strings.Fields(line)...); o.code != exitTimeout || o.stderr != want {
			t.Errorf("%s: %+v", line, o)
		}
	}
}

func TestUpdate_ChangedMeanwhile_IsTriedAgainAFewTimes(t *testing.T) {
	f := start(t, false)
	f.control.conflicts = changeTries - 1
	if o := f.run("service", "update", "-d", "--replicas", "3", "web"); o.code != 0 || len(f.control.updated) != 1 {
		t.Errorf("%+v", o)
	}
	f.control.conflicts = changeTries
	if o := f.run("service", "update", "-d", "--replicas", "3", "web"); o.code != exitFailed || !strings.Contains(o.stderr, "somebody else changed it") {
		t.Errorf("%+v", o)
	}
}

func TestCreate_Warnings_GoToStandardError(t *testing.T) {
	f := start(t, false)
	f.control.warnings = []string{"image \"nginx\": it has no tag"}
	o := f.run("service", "create", "-d", "nginx")
	if o.stdout != webID+"\n" || o.stderr != "warning: image \"nginx\": it has no tag\n" || o.code != 0 {
		t.Errorf("%+v", o)
	}
}

func TestInterrupt_OutsideAWait_Exits130WithoutPromises(t *testing.T) {
	f := start(t, false)
	if o := f.interrupted("service", "ls"); o.code != exitInterrupted || o.stderr != "swarmctl: interrupted\n" {
		t.Errorf("%+v", o)
	}
}

func TestStable_MonitorOfTheService_IsKept(t *testing.T) {
	s := web(1)
	s.Service.Spec.Update = &swarmpb.UpdateConfig{Monitor: durationpb.New(time.Minute)}
	p := newPicture(goal{})
	p.take(tell(s, task("a", 1, 1, running, running, "")))
	p.judge(noon)
	if v := p.judge(noon.Add(59 * time.Second)); v.done {
		t.Error("settled before the monitor time")
	}
	if v := p.judge(noon.Add(time.Minute)); !v.done || v.err != nil {
		t.Errorf("%+v", v)
	}
}

func TestUpdate_NothingChangesWhilePaused_IsSentAndResumes(t *testing.T) {
	f := start(t, false)
	f.play("service update -d web")
	if len(f.control.updated) != 1 {
		t.Errorf("%d updates were sent; want the one that lets the paused update go on", len(f.control.updated))
	}
}
