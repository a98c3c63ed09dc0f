package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	running  = swarmpb.TaskState_TASK_STATE_RUNNING
	pending  = swarmpb.TaskState_TASK_STATE_PENDING
	failing  = swarmpb.TaskState_TASK_STATE_FAILED
	complete = swarmpb.TaskState_TASK_STATE_COMPLETE
	shutdown = swarmpb.TaskState_TASK_STATE_SHUTDOWN
)

func task(id string, slot, attempt uint64, desired, state swarmpb.TaskState, text string) *swarmpb.TaskInfo {
	return &swarmpb.TaskInfo{
		Task: &swarmpb.Task{Id: id, Slot: slot, Attempt: attempt, TemplateVersion: 1, DesiredState: desired}, Name: fmt.Sprintf("web.%d", slot), State: state, Error: text,
	}
}

func web(desired uint64) *swarmpb.ServiceInfo {
	return &swarmpb.ServiceInfo{Service: &swarmpb.Service{Id: "s", TemplateVersion: 1, Spec: &swarmpb.ServiceSpec{Name: "web"}}, Desired: desired}
}

func tell(s *swarmpb.ServiceInfo, tasks ...*swarmpb.TaskInfo) *swarmpb.WatchServiceResponse {
	return &swarmpb.WatchServiceResponse{Service: s, Tasks: tasks}
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestProgress_AllRunningForTheMonitorTime_Settles(t *testing.T) {
	p := newPicture(goal{service: "s"})
	p.take(tell(web(2), task("a", 1, 1, running, running, ""), task("b", 2, 1, running, running, "")))
	if v := p.judge(noon); v.done || v.err != nil || !strings.Contains(v.countdown, "stable for 0s of 5s") {
		t.Errorf("at once: %+v", v)
	}
	if v := p.judge(noon.Add(5 * time.Second)); !v.done || v.err != nil {
		t.Errorf("after the monitor time: %+v", v)
	}
}

func TestProgress_ReplicaFailsAndComesBack_CountsAnew(t *testing.T) {
	p := newPicture(goal{service: "s"})
	p.take(tell(web(1), task("a", 1, 1, running, running, "")))
	p.judge(noon)
	p.take(tell(web(1), task("a", 1, 1, shutdown, failing, "exit code 3"), task("b", 1, 2, running, running, "")))
	p.take(tell(web(1), task("b", 1, 2, running, pending, "")))
	p.judge(noon.Add(4 * time.Second))
	p.take(tell(web(1), task("b", 1, 2, running, running, "")))
	p.judge(noon.Add(5 * time.Second))
	if v := p.judge(noon.Add(6 * time.Second)); v.done {
		t.Error("settled though a replica came back a second ago")
	}
	if v := p.judge(noon.Add(10 * time.Second)); !v.done {
		t.Errorf("%+v", v)
	}
}

func TestProgress_ReplicaKeepsFailing_EndsWithItsError(t *testing.T) {
	p := newPicture(goal{service: "s"})
	p.take(tell(web(1), task("a", 1, 1, running, pending, "")))
	for i, id := range []string{"a", "b", "c"} {
		p.take(tell(web(1), task(id, 1, uint64(i+1), running, failing, "exit code 3")))
	}
	if v := p.judge(noon); v.err == nil || !strings.Contains(v.err.Error(), "failed 3 times: exit code 3") {
		t.Errorf("%+v", v)
	}
}

func TestProgress_NoNodeSuits_WaitsAWhileThenSaysWhy(t *testing.T) {
	p := newPicture(goal{service: "s"})
	a := task("a", 1, 1, running, pending, "")
	a.Placement = &swarmpb.TaskPlacement{Message: "no suitable node (insufficient resources on 3 nodes)"}
	p.take(tell(web(1), a))
	if v := p.judge(noon.Add(time.Second)); v.err != nil {
		t.Errorf("too soon: %+v", v)
	}
	if v := p.judge(noon.Add(idle + 2*time.Second)); v.err == nil || !strings.Contains(v.err.Error(), "insufficient resources on 3 nodes") {
		t.Errorf("%+v", v)
	}
	// The managers name the command that says more, and so does the end of the wait: once is enough.
	a.Error = "the one before gave way to db.1 of higher priority; " + a.Placement.Message + "; `swarmctl service explain web` tells it node by node"
	p.take(tell(web(1), a))
	want := "pending: the one before gave way to db.1 of higher priority; no suitable node (insufficient resources on 3 nodes)"
	if v := p.judge(noon); len(v.replicas) != 1 || v.replicas[0].text != want {
		t.Errorf("%+v", v)
	}
}

func TestProgress_AttemptCarriesAnError_WaitsAWhileThenEndsWithIt(t *testing.T) {
	const trouble = "image app:v9: registry docker.io: cannot resolve docker.io"
	at := func(p *picture, after time.Duration) error { return p.judge(noon.Add(after)).err }
	for name, service := range map[string]*swarmpb.ServiceInfo{
		"created": web(1),
		"updated": {Service: web(1).Service, Desired: 1, Progress: &swarmpb.ServiceProgress{Update: &swarmpb.UpdateStatus{State: swarmpb.UpdateState_UPDATE_STATE_UPDATING}}},
	} {
		p := newPicture(goal{service: "s"})
		p.take(tell(service, task("a", 1, 1, running, preparing, trouble)))
		if err := at(p, 0); err != nil {
			t.Errorf("%s: at once: %v", name, err)
		}
		p.take(tell(service, task("a", 1, 1, running, preparing, trouble+": no such host"))) // other words for the same
		want := "web.1: " + trouble + ": no such host; the cluster goes on trying, see `swarmctl service ps web`"
		if err := at(p, troubled-time.Second); err != nil {
			t.Errorf("%s: too soon: %v", name, err)
		}
		if err := at(p, troubled); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
		p.take(tell(service, task("a", 1, 1, running, starting, "")))
		if err := at(p, troubled+time.Second); err != nil {
			t.Errorf("%s: it went on: %v", name, err)
		}
		p.take(tell(service, task("a", 1, 1, running, starting, "port is taken")))
		if err := at(p, troubled+2*time.Second); err != nil {
			t.Errorf("%s: another trouble counts anew: %v", name, err)
		}
		p.take(tell(service, task("a", 1, 1, shutdown, failing, "port is taken"), task("b", 1, 2, running, starting, "port is taken")))
		if err := at(p, 2*troubled+2*time.Second); err != nil {
			t.Errorf("%s: another attempt counts anew: %v", name, err)
		}
	}
}

func TestProgress_TaskThatCompletes_CountsAsSettled(t *testing.T) {
	p := newPicture(goal{service: "s"})
	p.take(tell(web(1), task("a", 1, 1, running, complete, "")))
	p.judge(noon)
	if v := p.judge(noon.Add(6 * time.Second)); !v.done {
		t.Errorf("%+v", v)
	}
}

func TestProgress_UpdatePausedOrRolledBack_IsAnError(t *testing.T) {
	for state, want := range map[swarmpb.UpdateState]string{
		swarmpb.UpdateState_UPDATE_STATE_PAUSED: "paused", swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED: "rolled back",
	} {
		p := newPicture(goal{service: "s"})
		p.take(tell(web(1)))
		s := web(1)
		s.Progress = &swarmpb.ServiceProgress{Update: &swarmpb.UpdateStatus{State: state, Message: "task x failed"}}
		p.take(tell(s, task("a", 1, 1, running, running, "")))
		if v := p.judge(noon); v.err == nil || !strings.Contains(v.err.Error(), want) || !strings.Contains(v.err.Error(), "task x failed") {
			t.Errorf("%v: %+v", state, v)
		}
	}
}

func TestProgress_ScaleDown_WaitsUntilSurplusHasStopped(t *testing.T) {
	p := newPicture(goal{service: "s"})
	p.take(tell(web(1), task("a", 1, 1, running, running, ""), task("b", 2, 1, shutdown, running, "")))
	if v := p.judge(noon.Add(time.Minute)); v.done {
		t.Error("settled with a surplus task")
	}
	p.take(tell(web(1), task("b", 2, 1, shutdown, shutdown, "")))
	p.judge(noon)
	if v := p.judge(noon.Add(6 * time.Second)); !v.done {
		t.Errorf("%+v", v)
	}
}

func TestProgress_Removal_DoneWhenGone(t *testing.T) {
	p := newPicture(goal{service: "s", removed: true})
	s := web(1)
	s.Service.Removing = true
	p.take(tell(s, task("a", 1, 1, shutdown, running, "")))
	if v := p.judge(noon); v.done || v.summary != "1 task to stop" {
		t.Errorf("%+v", v)
	}
	p.take(&swarmpb.WatchServiceResponse{})
	if v := p.judge(noon); !v.done {
		t.Errorf("%+v", v)
	}
}

func TestProgress_FormerUpdateThatFailed_IsHistory(t *testing.T) {
	p := newPicture(goal{service: "s"})
	s := web(1)
	s.Progress = &swarmpb.ServiceProgress{Update: &swarmpb.UpdateStatus{State: swarmpb.UpdateState_UPDATE_STATE_PAUSED, StartedAt: 7}}
	p.take(tell(s, task("a", 1, 1, running, running, "")))
	p.judge(noon)
	if v := p.judge(noon.Add(6 * time.Second)); !v.done || v.err != nil {
		t.Errorf("%+v", v)
	}
}
