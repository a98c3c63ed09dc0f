package control

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func setLines(info *swarmpb.ServiceInfo) []string {
	lines := []string{fmt.Sprintf("%d/%d, %d not ready", info.GetRunning(), info.GetDesired(), info.GetNotReady())}
	for _, s := range info.GetSets() {
		lines = append(lines, fmt.Sprintf("%d (version %d, %s): %d of %d up, %d unhealthy, %s",
			s.GetTemplateVersion(), s.GetRevision(), s.GetImage(), s.GetUp(), s.GetTasks(), s.GetUnhealthy(), swarmpb.SharePercent(s.GetShare())))
	}
	return lines
}

func (w *world) healthOf(task string, at int64, notReady bool, state swarmpb.HealthState) {
	w.t.Helper()
	w.status(&swarmpb.TaskStatus{TaskId: task, State: stRunning, Health: &swarmpb.HealthStatus{State: state, NotReady: notReady, At: at}})
}

func TestServiceInfo_TwoSets_CountsTheOneThatServes(t *testing.T) {
	w := newWorld(t)
	update := &swarmpb.UpdateStatus{State: updating, Strategy: canary, Phase: phaseWatching, Share: 1000, ReplicaShare: 1000, StartedAt: 9}
	id := trial(t, w, update, 1)
	info := func() *swarmpb.ServiceInfo {
		t.Helper()
		r, err := w.server.GetService(ctx, &swarmpb.GetServiceRequest{Service: "web"})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetService()
	}
	progress := func(change func(*swarmpb.UpdateStatus)) {
		next := swarmpb.Clone(w.view().ServiceProgress(id))
		change(next.Update)
		w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceProgress{ServiceProgress: next}})
	}
	expectLines(t, setLines(info()), "3/3, 0 not ready",
		"2 (version 2, web:2): 1 of 1 up, 0 unhealthy, 10%", "1 (version 1, web:1): 3 of 3 up, 0 unhealthy, 90%")

	// One of the old ones is not ready, the new one fails its probe.
	w.healthOf(swarmpb.TaskID(id, 1, "", 1), 5, true, swarmpb.HealthState_HEALTH_STATE_HEALTHY)
	w.healthOf(swarmpb.TaskID(id, 11, "", 1), 5, true, swarmpb.HealthState_HEALTH_STATE_UNHEALTHY)
	expectLines(t, setLines(info()), "2/3, 2 not ready",
		"2 (version 2, web:2): 0 of 1 up, 1 unhealthy, 10%", "1 (version 1, web:1): 2 of 3 up, 0 unhealthy, 90%")

	progress(func(x *swarmpb.UpdateStatus) { x.Share, x.ReplicaShare = 10000, 10000 })
	w.healthOf(swarmpb.TaskID(id, 11, "", 1), 6, false, swarmpb.HealthState_HEALTH_STATE_HEALTHY)
	expectLines(t, setLines(info()), "1/3, 1 not ready",
		"2 (version 2, web:2): 1 of 1 up, 0 unhealthy, 100%", "1 (version 1, web:1): 2 of 3 up, 0 unhealthy, 0%")

	// A metric is shown with the update that it is about.
	w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceMetric{ServiceMetric: &swarmpb.ServiceMetric{ServiceId: id, Update: 9, Message: "0.1"}}})
	if got := info().GetMetric().GetMessage(); got != "0.1" {
		t.Errorf("metric %q", got)
	}
	progress(func(x *swarmpb.UpdateStatus) { x.StartedAt = 10 })
	if info().GetMetric() != nil {
		t.Error("the metric of another update is shown")
	}

	// The old set has gone.
	for slot := range uint64(3) {
		w.desire(swarmpb.TaskID(id, slot+1, "", 1), stShutdown)
	}
	progress(func(x *swarmpb.UpdateStatus) { x.Phase = phaseEnding })
	expectLines(t, setLines(info()), "1/3, 0 not ready",
		"2 (version 2, web:2): 1 of 1 up, 0 unhealthy, 100%", "1 (version 1, web:1): 0 of 0 up, 0 unhealthy, 0%")
	progress(func(x *swarmpb.UpdateStatus) { x.State = updated })
	expectLines(t, setLines(info()), "1/3, 0 not ready", "2 (version 2, web:2): 1 of 1 up, 0 unhealthy, 100%")
}

func TestServiceInfo_SlotsReplaced_TasksShareAlike(t *testing.T) {
	w := newWorld(t)
	trial(t, w, &swarmpb.UpdateStatus{State: updating, Strategy: rolling}, 1)
	r, err := w.server.ListServices(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	expectLines(t, setLines(r.GetServices()[0]), "4/3, 0 not ready",
		"2 (version 2, web:2): 1 of 1 up, 0 unhealthy, 25%", "1 (version 1, web:1): 3 of 3 up, 0 unhealthy, 75%")
}

func TestWatchService_HealthAndMetric_AreSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		id := trial(t, w, &swarmpb.UpdateStatus{State: updating, Strategy: canary, Share: 1000, ReplicaShare: 5000, StartedAt: 9}, 2)
		p, done, cancel := w.watch("web")
		p.same(t, w, id)
		for at := range int64(20) {
			task := swarmpb.TaskID(id, []uint64{1, 2, 11, 12}[at%4], "", 1)
			w.healthOf(task, at+1, at%3 == 0, swarmpb.HealthState(at%4))
			if at%5 == 0 {
				w.put(&swarmpb.Row{Row: &swarmpb.Row_ServiceMetric{ServiceMetric: &swarmpb.ServiceMetric{ServiceId: id, Update: 9, At: at}}})
			}
			if at == 10 {
				w.desire(task, stShutdown)
			}
			time.Sleep(2 * watchInterval)
			synctest.Wait()
			p.same(t, w, id)
		}
		if !slices.ContainsFunc(p.service.GetSets(), func(s *swarmpb.SetInfo) bool { return s.GetUp() > 0 }) {
			t.Error("nothing is up")
		}
		cancel()
		<-done
	})
}
