package containerd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/swarmd/swarmd/worker/runtime/logger/bin"
)

// program writes a shell script that answers --version with a line, or fails with a message.
func program(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestChooseOCI_Auto_TakesCrunWhereItWorks(t *testing.T) {
	helper, err := bin.Extract(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, crun, want, why string }{
		{"both", "echo crun version 1.8.1; echo spec: 1.0.0", "crun 1.8.1", "works on this host"},
		{"no crun", "", "runc 1.1.5", "no crun on this host"},
		{"broken crun", "echo it is broken >&2; exit 1", "runc 1.1.5", "it is broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.crun != "" && hybridCgroups() && os.Geteuid() != 0 {
				t.Skip("a mount namespace needs root")
			}
			dir := t.TempDir()
			program(t, dir, Runc, "echo runc version 1.1.5")
			if c.crun != "" {
				program(t, dir, Crun, c.crun)
			}
			t.Setenv("PATH", dir)
			o, why, err := chooseOCI(Auto, filepath.Join(t.TempDir(), "bin"), helper)
			if err != nil || o.String() != c.want || !strings.Contains(why, c.why) {
				t.Errorf("%s because %q: %v", o, why, err)
			}
		})
	}
	t.Run("neither", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, _, err := chooseOCI(Auto, t.TempDir(), helper); err == nil || !strings.Contains(err.Error(), "apt-get install runc") {
			t.Errorf("%v", err)
		}
	})
}

func TestChooseOCI_CrunOnAHybridHost_SeesOneVersionOfCgroups(t *testing.T) {
	if !hybridCgroups() || os.Geteuid() != 0 {
		t.Skip("this host has one version of cgroups, or a mount namespace cannot be made")
	}
	helper, err := bin.Extract(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program(t, dir, Crun, `[ "$1" = --version ] && echo crun version 1.0 || exec /bin/cat /proc/self/mounts`)
	o, err := findUsable(filepath.Join(dir, Crun), filepath.Join(t.TempDir(), "bin"), helper)
	if err != nil {
		t.Fatal(err)
	}
	seen, err := exec.Command(o.Path, "mounts").Output()
	if err != nil || !strings.Contains(string(seen), " /sys/fs/cgroup/memory ") || strings.Contains(string(seen), " "+"/sys/fs/cgroup/unified ") {
		t.Errorf("%v; it sees %s", err, seen)
	}
	if !hybridCgroups() {
		t.Error("the host has lost /sys/fs/cgroup/unified")
	}
}
