package control

import (
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

func jobSpec(name string, total uint64, schedule *swarmpb.Schedule) *swarmpb.ServiceSpec {
	s := spec(name, name+":1", 1)
	s.Mode = &swarmpb.ServiceMode{Mode: &swarmpb.ServiceMode_ReplicatedJob{ReplicatedJob: &swarmpb.ReplicatedJobMode{Total: total, MaxConcurrent: 2}}}
	s.Update, s.Rollback, s.Endpoint, s.Schedule = nil, nil, nil, schedule
	return s
}

func createSpec(t *testing.T, w *world, s *swarmpb.ServiceSpec) string {
	t.Helper()
	r, err := w.server.CreateService(ctx, &swarmpb.CreateServiceRequest{Spec: s, RequestId: "create-" + s.Name})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetId()
}

func TestGetService_Job_CountsWhatHasCompleted(t *testing.T) {
	w := newWorld(t)
	id := createSpec(t, w, jobSpec("batch", 5, nil))
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Job: &swarmpb.JobProgress{
		Run: 1, Completed: 2, TemplateVersion: 1, Active: []*swarmpb.JobRun{{Run: 1, Total: 5, Completed: 2}}}}}})
	r, err := w.server.GetService(ctx, &swarmpb.GetServiceRequest{Service: id})
	if err != nil {
		t.Fatal(err)
	}
	if s := r.GetService(); s.GetDesired() != 2 || s.GetTotal() != 5 || s.GetProgress().GetJob().GetCompleted() != 2 {
		t.Errorf("%d at a time, %d of %d completed; want 2, 2 of 5", s.GetDesired(), s.GetProgress().GetJob().GetCompleted(), s.GetTotal())
	}
}

func TestGetService_Global_WantsATaskForEachSlot(t *testing.T) {
	w := newWorld(t)
	s := spec("agent", "agent:1", 1)
	s.Mode, _ = swarmpb.ParseServiceMode("global")
	id := createSpec(t, w, s)
	w.node("n2", "worker", swarmpb.NodeRole_NODE_ROLE_WORKER, swarmpb.NodeState_NODE_STATE_READY)
	made := w.nodeTask(id, self, 1)
	w.nodeTask(id, "n2", 1)
	w.nodeTask(id, "n2", 2) // which replaces it
	r, err := w.server.GetService(ctx, &swarmpb.GetServiceRequest{Service: id})
	if err != nil || r.GetService().GetDesired() != 2 {
		t.Errorf("desired %d, error %v; want 2", r.GetService().GetDesired(), err)
	}
	for _, ref := range []string{"agent." + self, "agent.boss"} {
		if got, err := w.server.GetTask(ctx, &swarmpb.GetTaskRequest{Task: ref}); err != nil || got.GetTask().GetTask().GetId() != made || got.GetTask().GetName() != "agent."+self {
			t.Errorf("%s: %v, error %v", ref, got, err)
		}
	}
}

func (w *world) nodeTask(service, node string, attempt uint64) string {
	task := &swarmpb.Task{ServiceId: service, Slot: swarmpb.NodeSlot(node), NodeId: node, Attempt: attempt, TemplateVersion: 1,
		DesiredState: swarmpb.TaskState_TASK_STATE_RUNNING}
	task.Id = swarmpb.TaskID(service, task.Slot, "", attempt)
	w.put(&swarmpb.Row{Row: &swarmpb.Row_Task{Task: task}})
	return task.Id
}

func TestCommandRollout_Schedule_IsSuspendedAndGoesOn(t *testing.T) {
	w := newWorld(t)
	id := createSpec(t, w, jobSpec("tick", 1, &swarmpb.Schedule{Cron: "*/5 * * * *"}))
	once := createSpec(t, w, jobSpec("once", 1, nil))
	tell := func(id string, action swarmpb.RolloutAction) (string, error) {
		r, err := w.server.CommandRollout(ctx, &swarmpb.CommandRolloutRequest{Service: id, Action: action, RequestId: swarmpb.NewID(), Author: "ann"})
		return r.GetMessage(), err
	}
	const pause, resume = swarmpb.RolloutAction_ROLLOUT_ACTION_PAUSE, swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME
	_, err := tell(id, resume)
	expectError(t, err, wire.CodeFailedPrecondition, "not suspended")
	if said, err := tell(id, pause); err != nil || !strings.Contains(said, "suspended") || !w.view().Service(id).GetSpec().GetSchedule().GetSuspended() {
		t.Errorf("pause: %q, error %v", said, err)
	}
	_, err = tell(id, pause)
	expectError(t, err, wire.CodeFailedPrecondition, "suspended already")
	if said, err := tell(id, resume); err != nil || !strings.Contains(said, "next run is at") || w.view().Service(id).GetSpec().GetSchedule().GetSuspended() {
		t.Errorf("resume: %q, error %v", said, err)
	}
	if service := w.view().Service(id); service.GetRevision() != 3 || service.GetTemplateVersion() != 1 {
		t.Errorf("revision %d, template %d; want 3 and 1", service.GetRevision(), service.GetTemplateVersion())
	}
	_, err = tell(once, pause)
	expectError(t, err, wire.CodeFailedPrecondition, "without a schedule")
	_, err = tell(id, swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE)
	expectError(t, err, wire.CodeFailedPrecondition, "no rollout")
}

func TestUpdateService_Job_SaysWhatComesOfIt(t *testing.T) {
	w := newWorld(t)
	id := createSpec(t, w, jobSpec("batch", 5, nil))
	progress := func(job *swarmpb.JobProgress) {
		w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: &swarmpb.ServiceProgress{ServiceId: id, Job: job}}})
	}
	update := func(s *swarmpb.ServiceSpec) string {
		r, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: id, Spec: s, RequestId: swarmpb.NewID()})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(r.GetWarnings(), "\n")
	}
	progress(&swarmpb.JobProgress{Run: 1, TemplateVersion: 1, EndedAt: 5})
	if said := update(jobSpec("batch", 7, nil)); !strings.Contains(said, "--force batch") {
		t.Errorf("another total after the end: %q", said)
	}
	progress(&swarmpb.JobProgress{Run: 2, TemplateVersion: 1, Active: []*swarmpb.JobRun{{Run: 2}}})
	other := jobSpec("batch", 7, nil)
	other.Task.Container.Image = "batch:2"
	if said := update(other); !strings.Contains(said, "run 2 is stopped") {
		t.Errorf("another image while a run goes on: %q", said)
	}
	global := jobSpec("batch", 7, nil)
	global.Mode, _ = swarmpb.ParseServiceMode("global-job")
	_, err := w.server.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: id, Spec: global})
	expectError(t, err, wire.CodeInvalid, "from replicated-job to global-job")
}
