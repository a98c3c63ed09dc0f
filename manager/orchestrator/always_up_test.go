package orchestrator_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// TestRandomUpdates_NothingElseBreaks_NeverBelowWhatTheStrategiesAllow has one update after the other begin, superseded,
// paused, promoted, aborted, with leaders that come and go, while nothing crashes but versions that are in a set of their
// own. So many tasks take connections at every moment as the strategies promise.
func TestRandomUpdates_NothingElseBreaks_NeverBelowWhatTheStrategiesAllow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, err := newWorld()
		must(t, err)
		const parallelism = 2
		replicas := uint64(rapid.IntRange(3, 8).Draw(t, "replicas"))
		atOnce := rapid.Bool().Draw(t, "stop-first")
		kinds := []string{"strategy=rolling order=start-first", "strategy=blue-green", "strategy=canary"}
		allowed := uint64(0)
		if atOnce {
			kinds = append(kinds, "strategy=rolling order=stop-first", "strategy=in-place")
			allowed = parallelism
		}
		guard := &watcher{seen: map[string]string{}, startFirst: true}
		w.Check = func(view *store.View) error {
			if err := guard.check(view); err != nil {
				return err
			}
			if up := upNow(view); view.ServiceProgress("web").GetUpdate() != nil && up+allowed < replicas {
				table, _ := w.Do("tasks")
				status, _ := w.Do("status", "web")
				return fmt.Errorf("%d of %d tasks are up, %d may be missing:\n%s%s", up, replicas, allowed, table, status)
			}
			return nil
		}
		do(t, w, "auto", "on")
		for i := range propertyNodes {
			do(t, w, "node", nodeName(i), "ready")
		}
		do(t, w, "service", "web", fmt.Sprintf("replicas=%d", replicas), fmt.Sprintf("parallelism=%d", parallelism),
			fmt.Sprintf("rollback-parallelism=%d", parallelism), "steps=20%:5s,50%:5s:manual", "grace=10s", "monitor=5s",
			"rollback-order="+map[bool]string{false: "start-first", true: "stop-first"}[atOnce])
		image, bad := 1, map[string]bool{}
		for range rapid.IntRange(1, 25).Draw(t, "events") {
			gentleEvent(t, w, kinds, &image, bad)
		}
		for i := range image + 1 {
			do(t, w, "image", fmt.Sprintf("v%d", i), "runs")
		}
		toTheEnd(t, w)
		if err := settled(w.View(), "web"); err != nil {
			status, _ := w.Do("status", "web")
			table, _ := w.Do("tasks")
			t.Fatalf("%v\n%s%s", err, status, table)
		}
	})
}

// gentleEvent lets a user do something that is not asking for trouble; bad are the images that crash.
func gentleEvent(t *rapid.T, w *script.World, kinds []string, image *int, bad map[string]bool) {
	switch rapid.IntRange(0, 5).Draw(t, "event") {
	case 0:
		*image++
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		acts := []string{"pulls", "in", "2s", "starts", "in", "1s", "stops", "in", "1s"}
		if (kind == "strategy=blue-green" || kind == "strategy=canary") && rapid.IntRange(0, 2).Draw(t, "bad") == 0 {
			acts = []string{"failed", "after", "2s"}
			bad[fmt.Sprintf("v%d", *image)] = true
		}
		do(t, w, append([]string{"image", fmt.Sprintf("v%d", *image)}, acts...)...)
		words := []string{"update", "web", fmt.Sprintf("image=v%d", *image)}
		var strategy, order string
		fmt.Sscan(kind, &strategy, &order)
		words = append(words, strategy, "failure-action="+rapid.SampledFrom([]string{"pause", "rollback"}).Draw(t, "action"))
		if order != "" {
			words = append(words, order)
		}
		do(t, w, words...)
	case 1:
		command := rapid.SampledFrom([]string{"pause", "resume", "promote", "promote-fully"}).Draw(t, "command")
		phase := w.View().ServiceProgress("web").GetUpdate().GetPhase()
		if command == "pause" || command == "resume" || phase == swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING || phase == swarmpb.RolloutPhase_ROLLOUT_PHASE_GRACE {
			do(t, w, command, "web") // nobody promotes what has not been watched
		}
	case 2:
		if update := w.View().ServiceProgress("web").GetUpdate(); update.Underway() &&
			(update.Sets() && update.State < swarmpb.UpdateState_UPDATE_STATE_ROLLBACK_STARTED || !bad[w.View().Service("web").GetPreviousSpec().GetTask().GetContainer().GetImage()]) {
			do(t, w, "abort", "web")
		}
	case 3:
		w.Relist()
		must(t, w.Settle())
	default:
		must(t, w.Advance(time.Duration(rapid.IntRange(1, 12_000).Draw(t, "ms"))*time.Millisecond))
	}
}

// upNow counts the tasks that take connections: they are meant to run, and do.
func upNow(view *store.View) (n uint64) {
	for task := range view.TasksOf("web") {
		if task.DesiredState == swarmpb.TaskState_TASK_STATE_RUNNING && view.Status(task.Id).Up() {
			n++
		}
	}
	return n
}
