package orchestrator_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"

	"github.com/swarmd/swarmd/manager/reconcile/script"
	"github.com/swarmd/swarmd/manager/store"
)

// modesWorld checks after each write what must hold of jobs and global services at any time.
type modesWorld struct {
	*script.World
	// completed are the tasks that have completed, by service, run and slot (or node).
	completed map[string]string
}

func (w *modesWorld) check(view *store.View) error {
	for service := range view.Services() {
		live := map[string]int{}
		for task := range view.TasksOf(service.Id) {
			state := view.Observed(task.Id)
			if service.Spec.IsJob() && state == swarmpb.TaskState_TASK_STATE_COMPLETE {
				key := fmt.Sprintf("%s run %d slot %d", service.Id, task.Run, task.Slot)
				if first := w.completed[key]; first != "" && first != task.Id {
					return fmt.Errorf("%s: both %s and %s have completed", key, first, task.Id)
				}
				w.completed[key] = task.Id
			}
			if state == swarmpb.TaskState_TASK_STATE_RUNNING && task.NodeId != "" && view.NodeID(task.Id) != task.NodeId {
				return fmt.Errorf("%s is for node %s, and runs on %s", task.Id, task.NodeId, view.NodeID(task.Id))
			}
			if state == swarmpb.TaskState_TASK_STATE_RUNNING && task.Run > 0 {
				key := fmt.Sprintf("%s run %d slot %d", service.Id, task.Run, task.Slot)
				if task.DesiredState.Wanted() {
					if live[key]++; live[key] > 1 {
						return fmt.Errorf("%s: two tasks run that are to", key)
					}
				}
			}
		}
		job := view.ServiceProgress(service.Id).GetJob()
		for _, run := range append(job.GetRuns(), job.GetActive()...) {
			if run.Completed+run.Failed > run.Total && run.Outcome == "completed" {
				return fmt.Errorf("%s run %d: %d completed and %d failed of %d", service.Id, run.Run, run.Completed, run.Failed, run.Total)
			}
		}
	}
	return nil
}

// forgotten checks, once nothing happens any more, that each run has what it should: a slot that its row counts as
// completed has completed, and the other way round.
func (w *modesWorld) forgotten() error {
	for service := range w.View().Services() {
		job := w.View().ServiceProgress(service.Id).GetJob()
		for _, run := range append(job.GetRuns(), job.GetActive()...) {
			n := uint64(0)
			for key := range w.completed {
				var slot, number uint64
				var id string
				if _, err := fmt.Sscanf(key, "%s run %d slot %d", &id, &number, &slot); err != nil {
					return err
				}
				if id == service.Id && number == run.Run && slot > run.Base && slot <= run.Base+run.Total {
					n++
				}
			}
			if service.Spec.Mode.GetReplicatedJob() != nil && run.Outcome == "completed" && n < run.Total {
				return fmt.Errorf("%s run %d of %d is said to have completed, %d slots have", service.Id, run.Run, run.Total, n)
			}
		}
	}
	return nil
}

// TestModes_AnyFaults_NoSlotTwiceAndOneTaskANode plays nodes that come, go, and are drained, failures, updates and new
// leaders against a job, a cron job, a global service and a global job.
func TestModes_AnyFaults_NoSlotTwiceAndOneTaskANode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inner, err := newWorld()
		if err != nil {
			t.Fatal(err)
		}
		w := &modesWorld{World: inner, completed: map[string]string{}}
		w.Check = w.check
		do := func(words ...string) {
			if _, err := w.Do(words...); err != nil {
				t.Fatalf("%v: %v", words, err)
			}
			if err := w.Settle(); err != nil {
				t.Fatalf("%v: %v", words, err)
			}
		}
		overlap := rapid.SampledFrom([]string{"allow", "forbid", "replace"}).Draw(t, "overlap")
		for _, line := range [][]string{
			{"node", "n1", "ready"}, {"node", "n2", "ready"}, {"auto", "on"}, {"history", strconv.Itoa(rapid.IntRange(0, 2).Draw(t, "history"))},
			{"image", "v1", "complete", "after", "20s", "stops", "in", "2s"}, {"image", "v2", "failed", "after", "7s"}, {"image", "web", "runs"},
			{"service", "batch", "kind=replicated-job", "total=5", "max-concurrent=2", "restart-delay=3s"},
			{"service", "tick", "kind=replicated-job", "total=2", "schedule=@every_30s", "overlap=" + overlap},
			{"service", "each", "kind=global-job", "restart-delay=3s"},
			{"service", "web", "kind=global", "image=web"},
		} {
			do(line...)
		}
		nodes := []string{"n1", "n2", "n3", "n4"}
		for range rapid.IntRange(5, 25).Draw(t, "steps") {
			node := rapid.SampledFrom(nodes).Draw(t, "node")
			known := w.View().Node(node) != nil
			switch what := rapid.IntRange(0, 9).Draw(t, "what"); {
			case what <= 1 || !known:
				do("node", node, rapid.SampledFrom([]string{"ready", "down", "ready"}).Draw(t, "state"))
			case what == 2:
				do("node", node, rapid.SampledFrom([]string{"active", "pause", "drain"}).Draw(t, "availability"))
			case what == 3 && w.View().NodeCount() > 1:
				do("node", node, "gone")
			case what == 4:
				do("relist")
			case what == 5:
				do("leaderless", strconv.Itoa(rapid.IntRange(1, 100).Draw(t, "away"))+"s")
			case what == 6:
				do("update", rapid.SampledFrom([]string{"batch", "tick", "each"}).Draw(t, "job"), "image="+rapid.SampledFrom([]string{"v1", "v1", "v2"}).Draw(t, "image"))
			default:
				do("advance", strconv.Itoa(rapid.IntRange(1, 40).Draw(t, "time"))+"s")
			}
		}
		for _, job := range []string{"batch", "each"} {
			do("update", job, "image=v1")
		}
		do("update", "tick", "image=v1", "suspended=yes")
		do("node", "n1", "ready")
		do("node", "n1", "active")
		for _, node := range nodes[1:] {
			if w.View().Node(node) != nil {
				do("node", node, "ready")
			}
		}
		do("advance", "15m")
		if err := w.forgotten(); err != nil {
			t.Fatal(err)
		}
		for _, job := range []string{"batch", "each"} {
			state := w.View().ServiceProgress(job).GetJob()
			if len(state.GetActive()) > 0 || state.GetRuns()[len(state.Runs)-1].Outcome != "completed" {
				printed, _ := w.Do("job", job)
				t.Fatalf("job %s has not completed though all nodes are well:\n%s", job, printed)
			}
		}
		for node := range w.View().Nodes() {
			want, have := 1, 0
			switch node.Spec.Availability {
			case swarmpb.NodeAvailability_NODE_AVAILABILITY_DRAIN:
				want = 0
			case swarmpb.NodeAvailability_NODE_AVAILABILITY_PAUSE:
				continue // it keeps what it had
			}
			for task := range w.View().TasksOf("web") {
				if task.NodeId == node.Id && task.DesiredState.Wanted() && w.View().Observed(task.Id) == swarmpb.TaskState_TASK_STATE_RUNNING {
					have++
				}
			}
			if have != want {
				printed, _ := w.Do("tasks", "web")
				t.Fatalf("%d tasks of web run on %s at %s, %d should:\n%s", have, node.Id, w.Clock().Round(time.Second), want, printed)
			}
		}
	})
}

// TestJob_MoreAtATimeThanAPlanHolds_AllAreMade: one plan has at most 500 writes.
func TestJob_MoreAtATimeThanAPlanHolds_AllAreMade(t *testing.T) {
	for name, c := range map[string]struct {
		most string
		want int
	}{"all": {"0", 1200}, "seven hundred": {"700", 700}} {
		t.Run(name, func(t *testing.T) {
			w, err := newWorld()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Do("service", "batch", "kind=replicated-job", "total=1200", "max-concurrent="+c.most); err != nil {
				t.Fatal(err)
			}
			if err := w.Settle(); err != nil {
				t.Fatal(err)
			}
			if n := w.View().TaskCountOf("batch"); n != c.want {
				t.Errorf("%d tasks, want %d", n, c.want)
			}
		})
	}
}
