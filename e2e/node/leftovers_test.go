package node_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// crashEnv makes TestLeftovers_Child crash with a cluster up; its value is the directory for temporary files.
const crashEnv = "SWARMD_E2E_CRASH"

func TestLeftovers_Child(t *testing.T) {
	if os.Getenv(crashEnv) == "" {
		t.Skip("runs only as the child of the test below")
	}
	c := newCluster(t, 1)
	c.create(t, "web", 1, "-p", "mode=host,published=8080,target=80")
	crashed := make(chan bool)
	go func() { panic("crash in the middle of a test") }() // of another goroutine: no cleanup runs
	<-crashed
}

func TestLeftovers_TestProgramPanics_NothingOfTheLabIsLeft(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("namespaces and containers need root")
	}
	dir, err := os.MkdirTemp("", "swc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	links := hostLinks(t)
	cmd := exec.Command(os.Args[0], "-test.run", "^TestLeftovers_Child$")
	cmd.Env = append(os.Environ(), crashEnv+"=1", "TMPDIR="+dir)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "crash in the middle of a test") {
		t.Fatalf("the child did not crash as it should: %v\n%s", err, out)
	}
	until(t, func() error { return processOf(dir) })
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts are left: %v", err)
	}
	if now := hostLinks(t); now != links {
		t.Errorf("links were %q, are %q", links, now)
	}
	// Cgroup directories alone may stay until the next lab is made, which removes those of a dead maker.
	newBareHosts(t, 1)
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/swarmd-lab-" + strconv.Itoa(cmd.Process.Pid) + "-*"); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}

// hostLinks are the machine's own network links.
func hostLinks(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// processOf is an error while a process lives that was started with a path below dir.
func processOf(dir string) error {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, file := range all {
		line, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(line), dir) {
			return &os.PathError{Op: "still lives", Path: filepath.Dir(file), Err: os.ErrExist}
		}
	}
	return nil
}
