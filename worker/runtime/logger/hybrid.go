package main

import (
	"os"
	"runtime"
	"strings"
	"syscall"
)

const (
	// hybridName is the name under which the program runs crun, and realSuffix leads from there to crun itself.
	hybridName, realSuffix = "crun", ".real"
	// unifiedGroups is where a host with both versions of cgroups has the second.
	unifiedGroups = "/sys/fs/cgroup/unified"
)

func isHybrid(name string) bool { return strings.HasSuffix(name, "/"+hybridName) }

// runHybrid becomes crun in a mount namespace of its own from which the second version of cgroups is gone: crun refuses
// to work where it sees both. The host's mounts are copied into it and none made there comes back, so what the shim has
// mounted before, and network namespaces, are where crun looks for them. It returns only when it fails.
func runHybrid(argv []string) int {
	runtime.LockOSThread()
	steps := []func() error{
		func() error { return syscall.Unshare(syscall.CLONE_NEWNS) },
		func() error { return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, "") },
		func() error {
			err := syscall.Unmount(unifiedGroups, syscall.MNT_DETACH)
			if err == syscall.EINVAL || err == syscall.ENOENT {
				return nil // the host was booted with one version since
			}
			return err
		},
		func() error { return syscall.Exec(argv[0]+realSuffix, argv, os.Environ()) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			doing := []string{"leave the mount namespace", "keep mounts to itself", "unmount " + unifiedGroups, "run " + argv[0] + realSuffix}
			os.Stderr.WriteString("crun without cgroup v2: " + doing[i] + ": " + err.Error() + "\n")
			return 1
		}
	}
	return 1
}
