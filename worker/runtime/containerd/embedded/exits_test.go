package embedded

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	runcexit "github.com/containerd/go-runc"

	shim "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/process"
	shimrunc "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
)

// The shim may be about to write its record when containerd starts again.
func TestRecordExits_ProcessHasJustEnded_WaitsForItsShim(t *testing.T) {
	root := t.TempDir()
	c := &Child{Config: Config{State: root, Namespace: "ours", Root: t.TempDir()}}
	if err := os.MkdirAll(c.ExitDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	gone := exec.Command("/bin/true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	bundle := func(id string, pid int) string {
		dir := filepath.Join(root, "state", "io.containerd.runtime.v2.task", c.Namespace, id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, shim.InitPidFile), []byte(strconv.Itoa(pid)), 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	ended := bundle("ended", gone.Process.Pid)
	bundle("runs", os.Getpid())
	at := time.Unix(1_700_000_000, 0)
	written := make(chan error, 1)
	time.AfterFunc(50*time.Millisecond, func() {
		written <- shimrunc.WriteExitStatus(ended, runcexit.Exit{Pid: gone.Process.Pid, Status: 137, Timestamp: at})
	})
	if err := c.recordExits(); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if exit, ok := ReadExit(c.ExitDir(), "ended"); !ok || exit.Code != 137 || !exit.At.Equal(at) {
		t.Errorf("recorded %+v, %t; want code 137 at %s", exit, ok, at)
	}
	if exit, ok := ReadExit(c.ExitDir(), "runs"); ok {
		t.Errorf("recorded %+v of one that runs", exit)
	}
}
