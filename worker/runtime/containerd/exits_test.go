package containerd_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
)

// A full disk keeps an exit from being written down: the shim keeps it then, for the next process too.
func TestExit_CannotBeWrittenDown_IsKnownToThisProcessAndTheNext(t *testing.T) {
	h := newHost(t)
	pid := h.run("ends", "sleep")
	blocked := filepath.Join(h.config.Dir, "containers", "ends", "state.json.next")
	if err := os.Mkdir(blocked, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(int(pid), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.wantExit("ends", 137)
	wantStopped := func(of *containerd.Runtime) {
		t.Helper()
		list, err := of.List(h.ctx)
		if err != nil || len(list) != 1 || list[0].State != runtime.Stopped || list[0].Exit == nil || list[0].Exit.Code != 137 || list[0].Exit.Unknown {
			t.Fatalf("list is %+v, %v; want it ended with code 137", list, err)
		}
	}
	wantStopped(h.runtime)
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	next, _ := open(t, h.config)
	wantStopped(next)
	if err := next.Remove(h.ctx, "ends"); err != nil {
		t.Fatal(err)
	}
	pins, err := client.New(h.daemon.child.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer pins.Close()
	h.eventually("no pin is left", func() bool {
		left, err := pins.SandboxStore().List(namespaces.WithNamespace(h.ctx, containerd.Namespace))
		return err == nil && len(left) == 0
	})
}

// Whatever keeps a containerd that died from being started again passes: that is no reason for the host's agent to end.
func TestChild_CannotBeStartedAgainForAWhile_IsOnceItCan(t *testing.T) {
	h := newHost(t)
	pid := h.run("stays", "sleep")
	before := h.daemonPid()
	log := h.daemon.child.LogFile()
	if err := os.Rename(log, log+".aside"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(log, 0o700); err != nil { // it cannot be opened
		t.Fatal(err)
	}
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	tries := time.NewTimer(time.Second)
	defer tries.Stop()
	select {
	case <-h.daemon.ended:
		t.Fatal("it is given up")
	case <-tries.C:
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	h.eventually("containerd runs again", func() bool {
		_, err := h.runtime.Info(h.ctx)
		return err == nil && h.daemonPid() != before
	})
	list, err := h.runtime.List(h.ctx)
	if err != nil || len(list) != 1 || list[0].Pid != pid || list[0].State != runtime.Running {
		t.Fatalf("list is %+v, %v; want the container running as %d", list, err, pid)
	}
}
