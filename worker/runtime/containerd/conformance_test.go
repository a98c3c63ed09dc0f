package containerd_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

func TestConformance(t *testing.T) { conformance(t, func(*containerd.Config) {}) }

func TestConformance_SharedShim(t *testing.T) {
	conformance(t, func(c *containerd.Config) { c.SharedShim = true })
}

func TestConformance_Crun(t *testing.T) {
	if _, err := exec.LookPath(containerd.Crun); err != nil {
		t.Skip("no crun on this host: apt-get install crun")
	}
	conformance(t, func(c *containerd.Config) { c.OCIRuntime = containerd.Crun })
}

func conformance(t *testing.T, with func(*containerd.Config)) {
	child := shared.open(t)
	archive, err := runtimetest.Archive(runtimetest.ImageName, goruntime.GOARCH, binary(t))
	if err != nil {
		t.Fatal(err)
	}
	runtimetest.Conformance(t, runtimetest.Options{Open: func(t *testing.T) runtimetest.System {
		config := configure(t, child)
		with(&config)
		registry := emptyRegistry(t)
		config.InsecureRegistries = []string{registry}
		var last func() // of the runtime in use: it must outlive what the suite removes at the end
		t.Cleanup(func() { last() })
		r, stop := start(t, config)
		last = stop
		return runtimetest.System{
			Runtime: r,
			Reopen: func(t *testing.T) runtime.Runtime {
				stop()
				var again *containerd.Runtime
				again, last = start(t, config)
				return again
			},
			Archive:  func() io.Reader { return bytes.NewReader(archive) },
			Registry: registry,
			Logs:     func(id string) (string, error) { return readLogs(r, id) },
			Limits:   true,
		}
	}})
}

// readLogs gives the files of a container, oldest first.
func readLogs(r *containerd.Runtime, id string) (string, error) {
	files, err := filepath.Glob(filepath.Join(r.LogDir(id), "current.log*"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	slices.Reverse(files)
	var out strings.Builder
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		out.Write(body)
	}
	return out.String(), nil
}

// What the suite cannot see: which program has made the container.
func TestStart_Crun_HasMadeTheContainer(t *testing.T) {
	if _, err := exec.LookPath(containerd.Crun); err != nil {
		t.Skip("no crun on this host: apt-get install crun")
	}
	h := newHost(t)
	h.config.OCIRuntime = containerd.Crun
	h.runtime, _ = open(t, h.config)
	h.run("one", "sleep")
	if _, err := os.Stat(filepath.Join(h.config.RunDir, "crun", containerd.Namespace, "one", "status")); err != nil {
		t.Error(err)
	}
	if info, err := h.runtime.Info(h.ctx); err != nil || !strings.HasPrefix(info.OCIRuntime, "crun ") {
		t.Errorf("%+v, %v", info, err)
	}
}
