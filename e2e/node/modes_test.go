package node_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestModes_OnThreeHosts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	t.Run("Global_OneOnEachHostThatSuits_FollowsLabels", func(t *testing.T) { globalFollowsLabels(t, c) })
	t.Run("Job_FiveByTwo_CompletesOnceEach", func(t *testing.T) { jobCompletes(t, c) })
	t.Run("Job_ThatFails_EndsTheWaitWithAnError", func(t *testing.T) {
		c.refused(t, 1, []string{"run 1 failed", "0 of 2 tasks completed, 2 failed"}, "service", "create", "--name", "bad", "--mode", "replicated-job",
			"--total", "2", "--restart-condition", "none", "whoami:v1", "exit", "3")
		c.remove(t, "bad")
	})
	t.Run("Cron_EveryTwoSeconds_RunsUntilItIsPaused", func(t *testing.T) { cronRuns(t, c) })
}

func globalFollowsLabels(t *testing.T, c *cluster) {
	for _, i := range []int{1, 2} {
		c.ok(t, 1, "node", "update", "--label-add", "disk=ssd", c.host(i).Name)
	}
	c.ok(t, 1, "service", "create", "--name", "agent", "--mode", "global", "--constraint", "node.labels.disk==ssd", "--update-monitor", "500ms", "whoami:v1")
	on := func(hosts ...int) {
		t.Helper()
		var got, want []string
		for _, x := range c.runningAre(t, "agent", len(hosts)) {
			got = append(got, x.Node)
		}
		for _, i := range hosts {
			want = append(want, c.host(i).Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("agent runs on %v, want %v", got, want)
		}
	}
	on(1, 2)
	c.ok(t, 1, "node", "update", "--label-add", "disk=ssd", c.host(3).Name)
	on(1, 2, 3)
	c.ok(t, 1, "node", "update", "--label-rm", "disk", c.host(2).Name)
	on(1, 3)
	c.ok(t, 1, "node", "update", "--availability", "drain", c.host(3).Name)
	on(1)
	c.ok(t, 1, "node", "update", "--availability", "active", c.host(3).Name)
	on(1, 3)
	c.ok(t, 1, "service", "update", "--image", "whoami:v2", "--update-monitor", "500ms", "agent")
	on(1, 3)
	if out := c.ok(t, 1, "service", "ls", "--format", "{{.Mode}} {{.Replicas}}"); !strings.Contains(out, "global 2/2") {
		t.Errorf("service ls says %q", out)
	}
	c.remove(t, "agent")
}

func jobCompletes(t *testing.T, c *cluster) {
	c.ok(t, 1, "service", "create", "--name", "batch", "--mode", "replicated-job", "--total", "5", "--max-concurrent", "2", "whoami:v1", "sleep", "500ms")
	completed := map[int]int{}
	for _, x := range c.tasks(t, "batch") {
		if x.State == "complete" {
			completed[x.Slot]++
		}
	}
	for slot := 1; slot <= 5; slot++ {
		if completed[slot] != 1 {
			t.Errorf("slot %d has completed %d times", slot, completed[slot])
		}
	}
	if out := c.ok(t, 1, "service", "ls", "--format", "{{.Name}} {{.Replicas}}"); !strings.Contains(out, "batch 0/2 (5/5 completed)") {
		t.Errorf("service ls says %q", out)
	}
	c.remove(t, "batch")
}

func cronRuns(t *testing.T, c *cluster) {
	c.ok(t, 1, "service", "create", "--name", "tick", "--mode", "replicated-job", "--schedule", "@every 2s", "--schedule-history", "3", "whoami:v1", "sleep", "100ms")
	runs := func() (completed int) {
		var all []struct {
			Progress struct {
				Job struct{ Runs []struct{ Outcome string } }
			}
		}
		if err := json.Unmarshal([]byte(c.ok(t, 1, "service", "inspect", "tick")), &all); err != nil {
			t.Fatal(err)
		}
		for _, run := range all[0].Progress.Job.Runs {
			if run.Outcome == "completed" {
				completed++
			}
		}
		return completed
	}
	until(t, func() error {
		if n := runs(); n < 3 {
			return fmt.Errorf("%d runs have completed, want 3", n)
		}
		return nil
	})
	if out := c.ok(t, 1, "service", "pause", "tick"); !strings.Contains(out, "suspended") {
		t.Errorf("pause says %q", out)
	}
	if out := c.ok(t, 1, "service", "inspect", "--pretty", "tick"); !strings.Contains(out, "none, it is suspended") || !strings.Contains(out, "@every 2s (UTC)") {
		t.Errorf("inspect says %s", out)
	}
	before := runs()
	c.ok(t, 1, "service", "resume", "tick")
	until(t, func() error {
		if n := runs(); n <= before && n < 10 {
			return fmt.Errorf("%d runs have completed after it was resumed, %d before", n, before)
		}
		return nil
	})
	c.remove(t, "tick")
}
