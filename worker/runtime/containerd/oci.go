package containerd

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// OCIRuntime is the program that makes containers of bundles.
type OCIRuntime struct {
	Path    string
	Name    string // runc, crun or the program's own
	Version string
}

// String is what Info says: runc 1.1.5.
func (o OCIRuntime) String() string { return strings.TrimSpace(o.Name + " " + o.Version) }

// FindOCIRuntime finds runc, crun or the program of a path on this host; empty = runc. Its error says which
// package to install.
func FindOCIRuntime(name string) (OCIRuntime, error) {
	if name == "" {
		name = "runc"
	}
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil && strings.Contains(name, "/") {
		return OCIRuntime{}, fmt.Errorf("OCI runtime %s cannot be run: give --oci-runtime the path of one that can", name)
	}
	if err != nil {
		return OCIRuntime{}, fmt.Errorf("no %s on this host: install it (apt-get install %s, or dnf install %s) or choose another with --oci-runtime", name, name, name)
	}
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return OCIRuntime{}, fmt.Errorf("ask OCI runtime %s for its version: %w", path, err)
	}
	o := OCIRuntime{Path: path, Name: filepath.Base(path)}
	line, err := bufio.NewReader(bytes.NewReader(out)).ReadString('\n')
	if err == nil || line != "" {
		// "runc version 1.1.5+ds1", "crun version 1.8.1"
		if kind, version, ok := strings.Cut(strings.TrimSpace(line), " version "); ok {
			o.Name, o.Version, _ = kind, version, ok
		}
	}
	if o.Name == "crun" && hybridCgroups() {
		return OCIRuntime{}, fmt.Errorf("crun cannot work on this host: it has both cgroup versions (/sys/fs/cgroup/unified); use --oci-runtime runc, or boot with one version alone")
	}
	return o, nil
}

// specVersion is what the OCI spec of a container claims to be: crun up to 1.8 refuses what it does not know,
// and nothing of a later version is used.
func (o OCIRuntime) specVersion(latest string) string {
	if o.Name == "crun" {
		return "1.0.2"
	}
	return latest
}

func hybridCgroups() bool {
	var fs unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &fs) != nil || fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return false
	}
	return unix.Statfs("/sys/fs/cgroup/unified", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// host is what the specs of containers depend on.
type host struct {
	unified  bool   // cgroup v2
	swap     bool   // swap can be limited
	apparmor bool   // profiles can be loaded
	nofile   uint64 // most open files that may be given
	recurse  bool   // a bind mount can be read-only all the way down
}

// noFiles is the hard limit of open files (the soft one is 1024, which programs raise themselves).
const noFiles = 524288

func probeHost() host {
	h := host{nofile: noFiles}
	var fs unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		h.unified, h.swap = true, true
	} else if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); err == nil {
		h.swap = true
	}
	if body, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && strings.HasPrefix(string(body), "Y") {
		_, err = exec.LookPath("apparmor_parser")
		h.apparmor = err == nil
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		h.nofile = min(h.nofile, limit.Max)
	}
	// mount_setattr with nothing to do: known since Linux 5.12.
	h.recurse = unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{}) != unix.ENOSYS
	return h
}
