package containerd

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// A number that was ours when the container's processes were listed may be another process's by now.
func TestKillProcess_NumberIsAnothersByNow_Spared(t *testing.T) {
	other := exec.Command("sleep", "60")
	other.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- other.Wait() }()
	asked := false
	if killProcess(other.Process.Pid, func() bool { asked = true; return false }) || !asked || !lives(other.Process.Pid) {
		t.Error("a process that is not ours was killed")
	}
	if !killProcess(other.Process.Pid, func() bool { return markOf(os.Getpid()) == "" }) {
		t.Error("ours was not")
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if killProcess(other.Process.Pid, func() bool { return true }) {
		t.Error("one that has ended was killed")
	}
}
