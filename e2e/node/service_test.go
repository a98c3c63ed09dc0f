package node_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestService_OnThreeHosts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	t.Run("CreatedWithThreeReplicas_OneOnEachHost_EachAnswersThere", func(t *testing.T) { replicasAnswer(t, c) })
	t.Run("PortTaken_PendingSaysSo", func(t *testing.T) { portTaken(t, c) })
	t.Run("Scaled_HasThatManyReplicas", func(t *testing.T) { scaled(t, c) })
	t.Run("Updated_AllReplicasAreNew", func(t *testing.T) { updated(t, c) })
	t.Run("Removed_NoContainerIsLeft", func(t *testing.T) { removed(t, c) })
	t.Run("CreatedWithSettings_ContainerHasThem", func(t *testing.T) { settings(t, c) })
	t.Run("CreatedWithMounts_ContainerHasThem_VolumeSurvivesReplacement", func(t *testing.T) { mounts(t, c) })
	t.Run("CreatedDetached_ReturnsAtOnceAndRunsLater", func(t *testing.T) {
		c.ok(t, 1, "service", "create", "--detach", "--name", "later", "whoami:v1")
		c.runningAre(t, "later", 1)
		c.remove(t, "later")
	})
	t.Run("ReservationThatNoNodeHas_PendingSaysSo", func(t *testing.T) {
		c.refused(t, 1, []string{"huge.1", "insufficient resources on 3 nodes"}, "service", "create", "--name", "huge", "--reserve-memory", "900g", "whoami:v1")
		c.remove(t, "huge")
	})
}

func replicasAnswer(t *testing.T, c *cluster) {
	tasks := c.create(t, "web", 3, "-p", "mode=host,published=8080,target=80", "-e", "TASK={{.Task.Name}}", "-e", "NODE={{.Node.Hostname}}")
	on := map[string]bool{}
	for _, x := range tasks {
		on[x.Node] = true
		h := c.hostOf(t, x)
		answer := c.get(t, fmt.Sprintf("http://%s:8080/", h.Addr))
		if answer["Node"] != h.Name || !strings.HasPrefix(answer["Task"], x.Name) || answer["Version"] != "v1" {
			t.Errorf("%s of %s answered %v", x.Name, h.Name, answer)
		}
		if !strings.HasPrefix(answer["RemoteAddr"], "10.77.0.254:") {
			t.Errorf("%s sees its client as %q, want its own address 10.77.0.254", x.Name, answer["RemoteAddr"])
		}
		if local := c.ask(t, from(h), "http://127.0.0.1:8080/"); local["Node"] != h.Name {
			t.Errorf("on %s, 127.0.0.1:8080 answered %v", h.Name, local)
		}
		if own := c.ask(t, from(h), fmt.Sprintf("http://%s:8080/", h.Addr)); own["Node"] != h.Name {
			t.Errorf("on %s, its own address answered %v", h.Name, own)
		}
	}
	if len(on) != 3 {
		t.Errorf("replicas are on %v, want one on each host", on)
	}
}

func portTaken(t *testing.T, c *cluster) {
	c.refused(t, 1, []string{"late.1", "port already in use on 3 nodes", "service explain late"}, "service", "create", "--name", "late", "-p", "mode=host,published=8080,target=80", "whoami:v1")
	if out := c.ok(t, 1, "service", "ps", "late"); !strings.Contains(out, "port already in use") {
		t.Errorf("service ps does not say why:\n%s", out)
	}
	c.remove(t, "late")
}

func scaled(t *testing.T, c *cluster) {
	c.ok(t, 1, "service", "scale", "web=1")
	c.runningAre(t, "web", 1)
	c.ok(t, 1, "service", "scale", "web=3")
	c.runningAre(t, "web", 3)
}

func updated(t *testing.T, c *cluster) {
	for _, step := range []struct {
		flags []string
		want  map[string]string
	}{
		{[]string{"--image", "whoami:v2"}, map[string]string{"Version": "v2"}},
		{[]string{"--env-add", "TASK=named"}, map[string]string{"Version": "v2", "Task": "named"}},
		{[]string{"--force"}, map[string]string{"Version": "v2", "Task": "named"}},
	} {
		before := map[string]bool{}
		for _, x := range c.running(t, "web") {
			before[x.ID] = true
		}
		c.ok(t, 1, append(append([]string{"service", "update"}, step.flags...), "web")...)
		for _, x := range c.runningAre(t, "web", 3) {
			if before[x.ID] {
				t.Errorf("update %v: task %s was not replaced", step.flags, x.ID)
			}
			answer := c.get(t, fmt.Sprintf("http://%s:8080/", c.hostOf(t, x).Addr))
			for k, v := range step.want {
				if answer[k] != v {
					t.Errorf("update %v: %s answered %s %q, want %q", step.flags, x.Name, k, answer[k], v)
				}
			}
		}
	}
}

func removed(t *testing.T, c *cluster) {
	c.remove(t, "web")
	for _, h := range c.lab.Hosts() {
		if left := h.Containers(); len(left) > 0 {
			t.Errorf("containers on %s after service rm: %v", h.Name, left)
		}
	}
	until(t, func() error {
		for _, h := range c.lab.Hosts() {
			if left := h.Cgroups(); len(left) > 0 {
				return fmt.Errorf("cgroups on %s after service rm: %v", h.Name, left)
			}
		}
		return nil
	})
	if out := c.ok(t, 1, "service", "ls", "-q"); out != "" {
		t.Errorf("service ls after rm: %q", out)
	}
}

func settings(t *testing.T, c *cluster) {
	x := c.create(t, "set", 1, "-e", "COLOUR=blue", "--label", "team=a", "--container-label", "tier=front", "--hostname", "h-{{.Task.Slot}}",
		"--limit-cpu", "0.5", "--limit-memory", "64m", "--limit-pids", "50")[0]
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.pid(t, x)))
	if err != nil || !strings.Contains(string(env), "COLOUR=blue\x00") {
		t.Errorf("environment %q %v", env, err)
	}
	for file, want := range map[string]string{
		"memory/memory.limit_in_bytes": "67108864", "pids/pids.max": "50", "cpu/cpu.cfs_quota_us": "50000",
	} {
		controller, name := filepath.Split(file)
		found, _ := filepath.Glob("/sys/fs/cgroup/" + controller + "swarmd-lab-*/*/" + x.ID + "/" + name)
		if len(found) == 0 {
			if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
				t.Log("this host has the second version of cgroups alone; limits are compared on the first")
				break
			}
			t.Errorf("no %s for the container", file)
			continue
		}
		if got, _ := os.ReadFile(found[0]); strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, want %s", found[0], got, want)
		}
	}
	out := c.ok(t, 1, "service", "inspect", "set")
	wantWords(t, out, "COLOUR=blue", `"team"`, `"tier"`, "h-{{.Task.Slot}}")
	if !json.Valid([]byte(out)) {
		t.Errorf("service inspect is no JSON: %s", out)
	}
	out = c.ok(t, 1, "service", "inspect", "--pretty", "set")
	wantWords(t, out, "COLOUR=blue", "team=a", "0.5")
	name, err := os.ReadFile(filepath.Join(c.root(t, x), "etc/hostname"))
	if err != nil || strings.TrimSpace(string(name)) != "h-1" {
		t.Errorf("hostname %q %v, want h-1", name, err)
	}
	c.remove(t, "set")
}

func mounts(t *testing.T, c *cluster) {
	for _, h := range c.lab.Hosts() {
		if out, code, err := h.Run("/bin/sh", "-c", "mkdir -p /run/shared && hostname > /run/shared/name"); err != nil || code != 0 {
			t.Fatal(out, err)
		}
	}
	x := c.create(t, "store", 1, "--constraint", "node.hostname==node-2", "--mount", "type=bind,source=/run/shared,target=/shared,readonly",
		"--mount", "type=volume,source=data,target=/data", "--mount", "type=tmpfs,target=/scratch")[0]
	root := c.root(t, x)
	if name, err := os.ReadFile(root + "/shared/name"); err != nil || string(name) != "node-2\n" {
		t.Errorf("bind mount holds %q %v", name, err)
	}
	if err := os.WriteFile(root+"/shared/new", nil, 0o644); err == nil {
		t.Error("a read-only bind mount could be written")
	}
	for _, file := range []string{"/data/kept", "/scratch/lost"} {
		if err := os.WriteFile(root+file, []byte("x"), 0o644); err != nil {
			t.Error(err)
		}
	}
	c.ok(t, 1, "service", "update", "--force", "store")
	x = c.runningAre(t, "store", 1)[0]
	root = c.root(t, x)
	if _, err := os.Stat(root + "/data/kept"); err != nil {
		t.Error("the volume did not survive the replacement:", err)
	}
	if _, err := os.Stat(root + "/scratch/lost"); err == nil {
		t.Error("the tmpfs survived the replacement")
	}
	c.remove(t, "store")
}
