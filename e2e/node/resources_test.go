package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const gpuSpec = `cdiVersion: "0.6.0"
kind: example.com/gpu
devices:
- name: "0"
  containerEdits:
    env: ["GPU=zero"]
    mounts: [{hostPath: %q, containerPath: /gpu, options: [ro, bind]}]
- name: all
  containerEdits:
    env: ["GPU=all"]
`

// A host says of itself that it has a device, which a CDI spec file describes, some lanes, and a label. What it says first is
// taken, but for the label; what a task reserves it has, and nobody else.
func TestResources_OfAHost(t *testing.T) {
	t.Parallel()
	specs, driver := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(driver, "driver"), []byte("driver 7"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(specs, "gpu.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, gpuSpec, driver), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, 1, "--generic-resource", "lanes=2", "--engine-label", "disk=ssd", "--cdi-spec-dir", specs)
	t.Run("Device_OneHasIt_TheOtherWaits", func(t *testing.T) { deviceReserved(t, c) })
	t.Run("Device_DaemonAndContainerKilled_TheNextHasItToo", func(t *testing.T) { deviceSurvives(t, c) })
	t.Run("Lanes_TwoFit_TheThirdWaits", func(t *testing.T) {
		c.detached(t, "road", "--replicas", "3", "--generic-resource", "lanes=1")
		x := c.runningAre(t, "road", 2)[0]
		c.hasEnv(t, x, "DOCKER_RESOURCE_LANES=1")
		c.waits(t, "road", "insufficient generic resources on 1 node")
		c.remove(t, "road")
	})
	t.Run("EngineLabel_AttractsOnceAccepted", func(t *testing.T) {
		c.detached(t, "fast", "--constraint", "engine.labels.disk==ssd")
		c.waits(t, "fast", "scheduling constraints not satisfied on 1 node")
		wantWords(t, c.ok(t, 1, "node", "inspect", "--pretty", c.host(1).Name), "disk=ssd", "not accepted")
		c.ok(t, 1, "node", "update", "--accept", c.host(1).Name)
		c.runningAre(t, "fast", 1)
		c.remove(t, "fast")
	})
	t.Run("Device_Gone_IsReservedNoMore", func(t *testing.T) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		c.detached(t, "late", "--generic-resource", "example.com/gpu=1")
		until(t, func() error {
			for _, x := range c.tasks(t, "late") {
				said := x.Error + x.Message
				if x.State == "pending" && strings.Contains(said, "insufficient generic resources") || x.State == "rejected" && strings.Contains(said, "device example.com/gpu=0 is not there any more") {
					return nil
				}
			}
			return fmt.Errorf("late:\n%s", describe(c.tasks(t, "late")))
		})
		c.waits(t, "late", "insufficient generic resources on 1 node")
		c.remove(t, "late")
	})
}

// detached makes a service of the demo image and waits for nothing.
func (c *cluster) detached(t *testing.T, name string, flags ...string) {
	t.Helper()
	c.ok(t, c.via, append(append([]string{"service", "create", "--detach", "--name", name, "--update-monitor", "500ms"}, flags...), "whoami:v1")...)
}

// waits waits until a task of the service is pending for the reason.
func (c *cluster) waits(t *testing.T, service, reason string) {
	t.Helper()
	until(t, func() error {
		for _, x := range c.tasks(t, service) {
			if x.State == "pending" && strings.Contains(x.Error+x.Message, reason) {
				return nil
			}
		}
		return fmt.Errorf("no task of %s waits because of %q:\n%s", service, reason, describe(c.tasks(t, service)))
	})
}

func (c *cluster) hasEnv(t *testing.T, x task, want ...string) {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.pid(t, x)))
	if err != nil {
		t.Fatal(err)
	}
	env := "\x00" + string(body)
	for _, w := range want {
		if !strings.Contains(env, "\x00"+w+"\x00") {
			t.Errorf("%s has not %s: %q", x.Name, w, strings.Split(string(body), "\x00"))
		}
	}
}

// hasDevice checks that a task has what the spec file says of the device.
func (c *cluster) hasDevice(t *testing.T, x task) {
	t.Helper()
	c.hasEnv(t, x, "GPU=zero", "DOCKER_RESOURCE_EXAMPLE_COM_GPU=0")
	if got, err := os.ReadFile(c.root(t, x) + "/gpu/driver"); err != nil || string(got) != "driver 7" {
		t.Errorf("%s sees %q, %v", x.Name, got, err)
	}
}

func deviceReserved(t *testing.T, c *cluster) {
	c.hasDevice(t, c.create(t, "render", 1, "--generic-resource", "example.com/gpu=1")[0])
	c.detached(t, "train", "--generic-resource", "example.com/gpu=1")
	c.waits(t, "train", "insufficient generic resources on 1 node")
	c.remove(t, "render")
	c.hasDevice(t, c.runningAre(t, "train", 1)[0])
	c.remove(t, "train")
}

func deviceSurvives(t *testing.T, c *cluster) {
	x := c.create(t, "render", 1, "--generic-resource", "example.com/gpu=1", "--restart-delay", "0s")[0]
	h := c.host(1)
	if err := h.KillSwarmd(); err != nil {
		t.Fatal(err)
	}
	c.signal(t, c.pid(t, x), syscall.SIGKILL)
	c.start(h)
	until(t, func() error {
		for _, next := range c.running(t, "render") {
			if next.ID != x.ID && len(h.Containers()[next.ID]) > 0 {
				return nil
			}
		}
		return fmt.Errorf("no other task runs:\n%s", describe(c.tasks(t, "render")))
	})
	c.hasDevice(t, c.runningAre(t, "render", 1)[0])
	c.remove(t, "render")
}
