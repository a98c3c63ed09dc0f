package orchestrator_test

import (
	"testing"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/orchestrator"
	"github.com/swarmd/swarmd/manager/reconcile"
	"github.com/swarmd/swarmd/manager/reconcile/script"
)

// started is a world in which a service goes from v1 to v2.
func started(t *testing.T, words ...string) *script.World {
	t.Helper()
	w, err := newWorld()
	must(t, err)
	do(t, w, "node", "n1", "ready")
	do(t, w, "auto", "on")
	do(t, w, append([]string{"service", "web"}, words...)...)
	do(t, w, "update", "web", "image=v2")
	return w
}

func updateOf(w *script.World) *swarmpb.UpdateStatus {
	return w.View().ServiceProgress("web").GetUpdate()
}

// rolled lets a leader with another clock than the world's take the steps that are to be taken at its time. It answers when
// it asks to be woken.
func rolled(t *testing.T, w *script.World, now time.Time) time.Time {
	t.Helper()
	for range 100 {
		plan, err := orchestrator.Rollout{}.Reconcile(w.View(), reconcile.ID{Object: "web"}, now)
		must(t, err)
		_, err = w.Leader().Propose(t.Context(), &swarmpb.Proposal{
			Term: w.Leader().Term(), Now: now.UnixNano(), Guards: plan.Guards, Writes: plan.Writes})
		must(t, err)
		if !plan.More && len(plan.Writes) == 0 {
			return plan.At
		}
	}
	t.Fatal("the rollout does not come to rest")
	return time.Time{}
}

func TestRollout_AbortedAndScaledAtOnce_GoesBackAtOnce(t *testing.T) {
	w := started(t, "replicas=2", "strategy=blue-green", "monitor=5s", "grace=1h")
	must(t, w.Advance(6*time.Second))
	do(t, w, "promote", "web")
	if update := updateOf(w); update.Phase != swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE {
		t.Fatalf("it is not promoted: %v", update)
	}
	must(t, w.Abort("web"))
	must(t, w.Update("web", func(spec *swarmpb.ServiceSpec) error {
		spec.GetMode().GetReplicated().Replicas = 3
		return nil
	}))
	must(t, w.Settle())
	update := updateOf(w)
	if update.TemplateVersion != 1 || update.State != swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_COMPLETED && update.Share != swarmpb.WholeShare {
		t.Fatalf("it does not go back at once: %v", update)
	}
}

func TestRollout_ClockOfNewLeaderIsBehind_WatchesNoLongerThanIsMeant(t *testing.T) {
	w := started(t, "replicas=4", "strategy=canary", "steps=25%:10s", "monitor=5s")
	must(t, w.Advance(time.Second))
	behind := w.Now().Add(-time.Hour)
	at := rolled(t, w, behind)
	if update := updateOf(w); update.Phase != swarmpb.RolloutPhase_ROLLOUT_PHASE_WATCHING || at.After(behind.Add(10*time.Second)) {
		t.Fatalf("the step is watched until %s, now is %s: %v", at, behind, update)
	}
	rolled(t, w, at)
	if update := updateOf(w); update.Step != 1 {
		t.Fatalf("it does not go on: %v", update)
	}
}

func TestRollout_ClockOfNewLeaderIsBehind_GoesOnToTheNextSlotAlone(t *testing.T) {
	w := started(t, "replicas=4", "monitor=5s")
	must(t, w.Advance(time.Second))
	behind := w.Now().Add(-time.Hour)
	rolled(t, w, behind)
	old := 0
	for task := range w.View().TasksOf("web") {
		if task.TemplateVersion == 1 && task.DesiredState == swarmpb.TaskState_TASK_STATE_RUNNING {
			old++
		}
	}
	if old != 2 {
		t.Errorf("%d of 4 slots are left to the old tasks, want 2: one is done, one has its turn", old)
	}
	if began := updateOf(w).StartedAt; began > behind.UnixNano() {
		t.Errorf("the update began at %s, so that nothing which is made now is watched", time.Unix(0, began))
	}
}
