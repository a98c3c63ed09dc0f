package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// batch is a job of five tasks, two at a time, of which so many have completed.
func batch(completed uint64, change func(*swarmpb.JobProgress)) *swarmpb.ServiceInfo {
	s := web(2)
	s.Service.Spec.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_ReplicatedJob{ReplicatedJob: &swarmpb.ReplicatedJobMode{Total: 5, MaxConcurrent: 2}}}
	job := &swarmpb.JobProgress{Run: 1, TemplateVersion: 1, StartedAt: 1, Completed: completed}
	s.Total, s.Progress = 5, &swarmpb.ServiceProgress{Job: job}
	if change != nil {
		change(job)
	}
	return s
}

func ofRun(t *swarmpb.TaskInfo) *swarmpb.TaskInfo {
	t.Task.Run = 1
	return t
}

func ends(outcome string, failed uint64) func(*swarmpb.JobProgress) {
	return func(job *swarmpb.JobProgress) {
		job.EndedAt = 9
		job.Runs = []*swarmpb.JobRun{{Run: 1, Total: 5, Completed: 5 - failed, Failed: failed, Outcome: outcome}}
	}
}

func TestProgress_Job_WaitsForTheEndOfItsRun(t *testing.T) {
	p := newPicture(goal{service: "s"})
	p.take(tell(batch(0, func(job *swarmpb.JobProgress) { job.Run = 0 })))
	if v := p.judge(noon); v.done || v.summary != "waiting for the leader" {
		t.Errorf("before it has begun: %+v", v)
	}
	p.take(tell(batch(2, nil), ofRun(task("a", 1, 1, complete, complete, "")), ofRun(task("b", 3, 1, complete, running, ""))))
	if v := p.judge(noon); v.done || v.err != nil || !strings.Contains(v.summary, "2/5 completed") || len(v.replicas) != 1 {
		t.Errorf("on its way: %+v", v)
	}
	p.take(tell(batch(5, ends("completed", 0))))
	if v := p.judge(noon); !v.done || v.err != nil {
		t.Errorf("at its end: %+v", v)
	}
	p.take(tell(batch(4, ends("failed", 1))))
	if v := p.judge(noon); v.err == nil || !strings.Contains(v.err.Error(), "4 of 5 tasks completed, 1 failed") {
		t.Errorf("failed: %+v", v)
	}
}

func TestProgress_JobTaskKeepsFailing_EndsTheWait(t *testing.T) {
	p := newPicture(goal{service: "s"})
	p.take(tell(batch(0, nil)))
	for _, id := range []string{"a", "b", "c"} {
		p.take(tell(batch(0, nil), ofRun(task(id, 1, uint64(id[0]-'a'+1), shutdown, failing, "exit code 3"))))
	}
	p.take(tell(batch(0, nil), ofRun(task("d", 1, 4, complete, starting, ""))))
	if v := p.judge(noon); v.err == nil || !strings.Contains(v.err.Error(), "failed 3 times: exit code 3") {
		t.Errorf("%+v", v)
	}
}

func TestProgress_Schedule_SaysWhenItRunsNext(t *testing.T) {
	p := newPicture(goal{service: "s"})
	s := batch(0, func(job *swarmpb.JobProgress) { job.Run = 0 })
	s.Service.Spec.Schedule = &swarmpb.Schedule{Cron: "@daily", Timezone: "Asia/Seoul"}
	p.take(tell(s))
	if v := p.judge(noon); v.done {
		t.Errorf("before the leader has read the schedule: %+v", v)
	}
	s.Progress.Job.Schedule, s.Progress.Job.NextAt = "Asia/Seoul @daily", noon.UnixNano()
	p.take(tell(s))
	if v := p.judge(noon); !v.done || v.note != "next run: 2026-01-01 21:00:00 KST" {
		t.Errorf("%+v", v)
	}
	s.Service.Spec.Schedule.Suspended, s.Progress.Job.NextAt = true, 0
	p.take(tell(s))
	if v := p.judge(noon); !v.done || v.summary != "suspended" || v.note != "next run: none, it is suspended" {
		t.Errorf("suspended: %+v", v)
	}
}

func TestReplicasWord_Job_SaysWhatHasCompleted(t *testing.T) {
	s := batch(2, nil)
	s.Running, s.Desired = 3, 5
	if word := replicasWord(s); word != "3/5 (2/5 completed)" {
		t.Error(word)
	}
}

func TestJobFlags_Applied_OrRefusedWithAReason(t *testing.T) {
	for name, c := range map[string]struct {
		mode string
		args []string
		want string // of the error; empty: none
	}{
		"job":             {"replicated-job", []string{"--total=9", "--max-concurrent=3"}, ""},
		"schedule":        {"replicated-job", []string{"--schedule=@daily", "--timezone=Asia/Seoul", "--overlap=allow", "--missed=skip", "--schedule-history=2", "--suspend"}, ""},
		"total of a web":  {"replicated", []string{"--total=9"}, "are of a replicated-job; this service is replicated"},
		"schedule of web": {"global", []string{"--overlap=allow"}, "--overlap is of a job; this service is global"},
		"no schedule":     {"global-job", []string{"--timezone=Asia/Seoul"}, "give one with --schedule"},
		"overlap":         {"replicated-job", []string{"--schedule=@daily", "--overlap=no"}, "use allow, forbid, replace"},
		"empty schedule":  {"replicated-job", []string{"--schedule="}, "would run at once"},
		"missed":          {"replicated-job", []string{"--schedule=@daily", "--missed=twice"}, "use once, skip"},
	} {
		t.Run(name, func(t *testing.T) {
			var flags jobFlags
			cmd := &cobra.Command{}
			flags.define(cmd, true)
			if err := cmd.ParseFlags(c.args); err != nil {
				t.Fatal(err)
			}
			spec := &swarmpb.ServiceSpec{}
			spec.Mode, _ = swarmpb.ParseServiceMode(c.mode)
			err := flags.apply(cmd.Flags(), spec)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			switch name {
			case "job":
				if job := spec.Mode.GetReplicatedJob(); job.Total != 9 || job.MaxConcurrent != 3 {
					t.Errorf("%v", job)
				}
			case "schedule":
				s := spec.Schedule
				if s.Cron != "@daily" || s.Timezone != "Asia/Seoul" || s.OverlapOr().Name() != "allow" || s.MissedOr().Name() != "skip" || s.HistoryOr() != 2 || !s.Suspended {
					t.Errorf("%v", s)
				}
			}
		})
	}
}
