package containerd_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/devices"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const deviceSpec = `cdiVersion: "0.6.0"
kind: example.com/gpu
containerEdits:
  env: ["GPU_DRIVER=7"]
devices:
- name: "0"
  containerEdits:
    env: ["GPU=zero"]
    mounts: [{hostPath: %q, containerPath: /gpu, options: [ro, bind]}]
    deviceNodes: [{path: /dev/swarmd-null, hostPath: /dev/null}]
`

// A container has what the CDI spec of its device says, a device node and its permission among it; a process that is run in
// it later too; without the device it is not made.
func TestCreate_WithADevice_HasItsEnvironmentMountAndNode(t *testing.T) {
	h := newHost(t)
	dir, lib := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(lib, "driver"), []byte("driver 7"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "gpu.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, deviceSpec, lib), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := devices.New([]string{dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h.config.Devices = set
	h.runtime, _ = open(t, h.config)
	has := func(id string) runtime.Spec {
		return runtime.Spec{ID: id, Image: runtimetest.ImageName, Container: &swarmpb.ContainerSpec{Args: []string{"sleep"}, Env: []string{"GPU=the user's"}},
			Env: []string{"DOCKER_RESOURCE_GPU=0"}, Devices: []string{"example.com/gpu=0"}}
	}
	h.runSpec(has("one"))
	result, err := h.runtime.Exec(h.ctx, "one", runtime.ExecSpec{Args: []string{"/testimage", "report", "/dev/stdout", "read:/gpu/driver", "write:/gpu/new", "write:/dev/swarmd-null"}, Limit: 64 << 10})
	if err != nil || result.Code != 0 {
		t.Fatalf("%+v, %v", result, err)
	}
	report := string(result.Output)
	for _, want := range []string{`"GPU=zero"`, `"GPU_DRIVER=7"`, `"DOCKER_RESOURCE_GPU=0"`, `driver 7`, "read-only file system"} {
		if !strings.Contains(report, want) {
			t.Errorf("%s is missing: %s", want, report)
		}
	}
	if strings.Contains(report, "the user's") || strings.Contains(report, "operation not permitted") {
		t.Errorf("%s", report)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	err = h.runtime.Create(h.ctx, has("two"))
	if !errors.Is(err, runtime.ErrInvalid) || !strings.HasSuffix(err.Error(), ": device example.com/gpu=0 is not there any more") {
		t.Errorf("without the device: %v", err)
	}
	if all, err := h.runtime.List(h.ctx); err != nil || len(all) != 1 {
		t.Errorf("left: %v, %v", all, err)
	}
}
