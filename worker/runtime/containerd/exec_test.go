package containerd_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
)

// processes of a container, by its cgroup.
func processes(t *testing.T, id string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/fs/cgroup/*" + cgroupParent + "/" + id + "/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, "/sys/fs/cgroup"+cgroupParent+"/"+id+"/cgroup.procs")
	for _, file := range files {
		if body, err := os.ReadFile(file); err == nil {
			return strings.Fields(string(body))
		}
	}
	t.Fatalf("container %s has no cgroup", id)
	return nil
}

// What a process leaves behind, and what is needed to run it, is gone with it.
func TestExec_LeaksHangsAndFloods_NothingStays(t *testing.T) {
	for _, oci := range []string{containerd.Runc, containerd.Crun} {
		t.Run(oci, func(t *testing.T) {
			if _, err := exec.LookPath(oci); err != nil {
				t.Skipf("no %s on this host: apt-get install %s", oci, oci)
			}
			h := newHost(t)
			h.config.OCIRuntime = oci
			h.runtime, _ = open(t, h.config)
			h.run("one", "sleep")
			before := processes(t, "one")
			for _, args := range [][]string{{"leak"}, {"ignore-term"}, {"flood"}, {"exit", "1"}} {
				ctx, cancel := context.WithTimeout(h.ctx, time.Second)
				result, err := h.runtime.Exec(ctx, "one", runtime.ExecSpec{Args: append([]string{"/testimage"}, args...)})
				cancel()
				if leaks := args[0] == "leak"; leaks && (err != nil || result.Code != 0) {
					t.Errorf("%v: %+v, %v", args, result, err)
				}
				// A process that was killed takes a moment to end.
				h.eventually("the processes are those of before "+args[0], func() bool { return slices.Equal(before, processes(t, "one")) })
			}
			if files, err := os.ReadDir(filepath.Join(h.config.RunDir, "exec")); err != nil || len(files) > 0 {
				t.Errorf("left behind: %v, %v", files, err)
			}
		})
	}
}

// A process of ours that dies cannot see to what it runs in containers: the next one does.
func TestExec_FormerProcessDied_LeftoverIsKilledAtAdoption(t *testing.T) {
	h := newHost(t)
	r, stop := start(t, h.config)
	h.runtime = r
	t.Cleanup(func() { stop() }) // of the runtime in use: after the container's removal
	h.run("one", "sleep")
	before := processes(t, "one")
	oci, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	left := exec.Command(oci, "--root", filepath.Join(h.config.RunDir, "runc", containerd.Namespace), "exec", "-e", "SWARMD_EXEC=one.left", "one", "/testimage", "ignore-term")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	h.eventually("the process runs", func() bool {
		return slices.ContainsFunc(processes(t, "one"), func(pid string) bool {
			env, _ := os.ReadFile("/proc/" + pid + "/environ")
			return strings.Contains(string(env), "SWARMD_EXEC=one.left")
		})
	})
	stop()
	h.runtime, stop = start(t, h.config)
	if _, err := h.runtime.List(h.ctx); err != nil {
		t.Fatal(err)
	}
	if err := left.Wait(); err == nil {
		t.Error("what a former process had left was not killed")
	}
	h.eventually("the processes are those of before", func() bool { return slices.Equal(before, processes(t, "one")) })
}
