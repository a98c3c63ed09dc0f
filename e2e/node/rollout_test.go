package node_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRollout_AsAsked shares one cluster between all that is not about load.
func TestRollout_AsAsked(t *testing.T) {
	t.Parallel()
	registries := t.TempDir()
	file := fmt.Sprintf("[[registry]]\nhost = %q\nplain_http = true\n", openRegistry)
	if err := os.WriteFile(filepath.Join(registries, "registries.toml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newNetCluster(t, 3, 2, "--config-dir", registries)
	newMirror(openRegistry).start(t, c.cluster)
	for _, x := range []struct {
		name string
		run  func(*testing.T, *netCluster)
	}{
		{"BadVersions_LeaveTheOldOneUp_AndSayWhy", badVersionsFail},
		{"Canary_ItsShareAndNoMore_AbortedWithinASecond", canaryShares},
		{"BlueGreen_PreviewThenPromotedThenBack", blueGreenPreview},
		{"InPlace_SameNodes", inPlace},
		{"Recreate_NeverTwoVersions", recreate},
		{"PausedAndResumed", pausedAndResumed},
		{"SupersededAndScaled_EndsInTheLast", supersededAndScaled},
		{"History_DiffAndWayBack", historyAndBack},
		{"DryRun_ChangesNothing", dryRun},
	} {
		t.Run(x.name, func(t *testing.T) { t.Parallel(); x.run(t, c) })
	}
}

// places maps slots to nodes.
func places(tasks []task) map[int]string {
	out := map[int]string{}
	for _, x := range tasks {
		out[x.Slot] = x.Node
	}
	return out
}

func inPlace(t *testing.T, c *netCluster) {
	const web = "in-place"
	before := places(c.create(t, web, 4, "--update-strategy", "in-place", "--update-parallelism", "2", "--drain-timeout", "0s"))
	defer c.remove(t, web)
	c.ok(t, 1, "service", "update", "--image", "whoami:v2", web)
	after := places(c.allOf(t, web, 4, "whoami:v2"))
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("by slot the replicas are on %v, were on %v", after, before)
	}
	c.rolloutIs(t, web, "completed", "")
}

func recreate(t *testing.T, c *netCluster) {
	const web = "recreated"
	c.create(t, web, 4, "--update-strategy", "recreate", "--drain-timeout", "0s")
	defer c.remove(t, web)
	update := c.beside(1, "service", "update", "--image", "whoami:v2", web)
	until(t, func() error {
		old, fresh := 0, 0
		first, second := c.pids(), c.pids() // what is new in the first and what is old in the second look were there together
		for _, x := range c.tasks(t, web) {
			if len(second[x.ID]) > 0 && x.Image == "whoami:v1" {
				old++
			} else if len(first[x.ID]) > 0 && x.Image == "whoami:v2" {
				fresh++
			}
		}
		if old > 0 && fresh > 0 {
			t.Errorf("%d old and %d new replicas live at the same time", old, fresh)
		}
		if fresh < 4 {
			return fmt.Errorf("%d new replicas live", fresh)
		}
		return nil
	})
	if d := <-update; d.code != 0 {
		t.Error(d.text())
	}
	c.allOf(t, web, 4, "whoami:v2")
	c.rolloutIs(t, web, "completed", "")
}

func pausedAndResumed(t *testing.T, c *netCluster) {
	const web = "paused"
	c.create(t, web, 4, "--drain-timeout", "0s")
	defer c.remove(t, web)
	update := c.beside(1, "service", "update", "--image", "whoami:v2", "--update-delay", "1s", web)
	until(t, func() error {
		if len(ofImage(c.running(t, web), "whoami:v2")) == 0 {
			return fmt.Errorf("nothing is new:\n%s", describe(c.tasks(t, web)))
		}
		return nil
	})
	wantWords(t, c.ok(t, 1, "service", "pause", web), "paused; ", "service resume")
	if d := <-update; d.code != 1 {
		t.Errorf("whoever updates is not told that somebody has paused it: %s", d.text())
	}
	c.rolloutIs(t, web, "paused", "")
	stood := c.runningAre(t, web, 4)
	paused := time.Now()
	until(t, func() error { // longer than the delay and the monitor between two replicas
		if now := c.running(t, web); fmt.Sprint(now) != fmt.Sprint(stood) {
			t.Fatalf("while it was paused:\n%sbecame\n%s", describe(stood), describe(now))
		}
		if time.Since(paused) < 3*time.Second {
			return fmt.Errorf("it was paused for %s", time.Since(paused))
		}
		return nil
	})
	if n := len(ofImage(stood, "whoami:v2")); n == 0 || n == 4 {
		t.Errorf("%d of 4 replicas were new when it was paused", n)
	}
	c.ok(t, 1, "service", "resume", web)
	c.allOf(t, web, 4, "whoami:v2")
	c.rolloutIs(t, web, "completed", "")
	c.refused(t, 1, []string{web, "no update is under way"}, "service", "pause", web)
}

func supersededAndScaled(t *testing.T, c *netCluster) {
	const web = "superseded"
	c.create(t, web, 4, "--drain-timeout", "0s")
	defer c.remove(t, web)
	first := c.beside(1, "service", "update", "--image", "whoami:v2", "--update-delay", "1s", web)
	until(t, func() error {
		if len(ofImage(c.running(t, web), "whoami:v2")) == 0 {
			return fmt.Errorf("nothing is new:\n%s", describe(c.tasks(t, web)))
		}
		return nil
	})
	second := c.beside(1, "service", "update", "--image", "whoami:v3", "--update-delay", "0s", web)
	if d := <-first; d.code != 1 || !strings.Contains(d.errs, "superseded") {
		t.Errorf("of an update that was superseded: %s", d.text())
	}
	c.ok(t, 1, "service", "scale", "--detach", web+"=6")
	if d := <-second; d.code != 0 {
		t.Error(d.text())
	}
	c.allOf(t, web, 6, "whoami:v3")
	c.rolloutIs(t, web, "completed", "")
	third := c.beside(1, "service", "update", "--image", "whoami:v1", "--update-strategy", "canary", "--canary-steps", "50%:1s", "--promote-grace", "1s", web)
	until(t, func() error {
		if len(ofImage(c.running(t, web), "whoami:v1")) == 0 {
			return fmt.Errorf("nothing is new:\n%s", describe(c.tasks(t, web)))
		}
		return nil
	})
	c.ok(t, 1, "service", "scale", "--detach", web+"=2")
	if d := <-third; d.code != 0 {
		t.Error(d.text())
	}
	c.rolloutIs(t, web, "completed", "")
	c.allOf(t, web, 2, "whoami:v1")
}

func historyAndBack(t *testing.T, c *netCluster) {
	const web = "remembered"
	c.create(t, web, 2, "--drain-timeout", "0s", "--env", "COLOUR=red")
	defer c.remove(t, web)
	first := c.revision(t, web)
	c.ok(t, 1, "service", "update", "--image", "whoami:v2", "--env-add", "COLOUR=green", "--update-parallelism", "0", web)
	second := c.revision(t, web)
	c.ok(t, 1, "service", "update", "--image", "whoami:v3", web)
	list := c.ok(t, 1, "service", "history", web)
	wantWords(t, list, "whoami:v1", "whoami:v2", "whoami:v3", "completed", "create", "update")
	wantWords(t, c.ok(t, 1, "service", "diff", web), "task.container.image", "whoami:v2 -> whoami:v3")
	wantWords(t, c.ok(t, 1, "service", "diff", web, first), "whoami:v1 -> whoami:v3", "COLOUR")
	c.refused(t, 1, []string{"99"}, "service", "rollback", "--to", "99", web)
	c.ok(t, 1, "service", "rollback", "--to", first, web)
	for _, x := range c.allOf(t, web, 2, "whoami:v1") {
		if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.pid(t, x))); err != nil || !strings.Contains(string(env), "COLOUR=red") {
			t.Errorf("after the way back %s has the environment %q %v", x.Name, env, err)
		}
	}
	c.ok(t, 1, "service", "rollback", "--to", second, web)
	c.allOf(t, web, 2, "whoami:v2")
	list = c.ok(t, 1, "service", "history", web)
	wantWords(t, list, "rollback to version "+first, "rollback to version "+second)
	t.Log("\n" + list)
}

func dryRun(t *testing.T, c *netCluster) {
	const web = "planned"
	c.create(t, web, 3, "--drain-timeout", "0s")
	defer c.remove(t, web)
	tasks, revision := describe(c.tasks(t, web)), c.revision(t, web)
	inspect := c.ok(t, 1, "service", "inspect", web)
	plan := c.ok(t, 1, "service", "update", "--dry-run", "--image", "whoami:v2", web)
	t.Log("\n" + plan)
	wantWords(t, plan, "whoami:v2", "STEP", "stop", "start", web+".3", "It fits.")
	var steps struct {
		Fits          bool
		Starts, Stops int
		Steps         []struct{ Action, Task, Node string }
	}
	text := c.ok(t, 1, "service", "update", "--dry-run", "--format", "json", "--image", "whoami:v2", web)
	if err := json.Unmarshal([]byte(text), &steps); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if !steps.Fits || steps.Starts != 3 || steps.Stops != 3 {
		t.Errorf("the plan is %+v, want 3 started and 3 stopped", steps)
	}
	out, errs, code := c.ctl(1, "service", "update", "--dry-run", "--reserve-memory", "1000g", web)
	if code != 2 {
		t.Errorf("a plan that does not fit: exit code %d, want 2", code)
	}
	wantWords(t, out+errs, "insufficient resources on 3 nodes")
	if now := c.ok(t, 1, "service", "inspect", web); now != inspect {
		t.Errorf("the service was\n%s\nand is after a dry run\n%s", inspect, now)
	}
	if now := describe(c.tasks(t, web)); now != tasks || c.revision(t, web) != revision {
		t.Errorf("the tasks were\n%sand are after a dry run\n%s", tasks, now)
	}
	// What was planned is what is done.
	c.ok(t, 1, "service", "update", "--image", "whoami:v2", web)
	fresh := c.allOf(t, web, 3, "whoami:v2")
	var planned, done []string
	for _, s := range steps.Steps {
		if s.Action == "start" {
			planned = append(planned, s.Task)
		}
	}
	for _, x := range fresh {
		done = append(done, x.Name)
	}
	slices.Sort(planned)
	slices.Sort(done)
	if !slices.Equal(planned, done) {
		t.Errorf("planned to start %v, started %v", planned, done)
	}
}
