package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/runtime/containerd/embedded"
)

// OCIRuntime is the program that makes containers of bundles.
type OCIRuntime struct {
	Path    string
	Name    string // runc, crun or the program's own
	Version string
}

// String is what Info says: runc 1.1.5.
func (o OCIRuntime) String() string { return strings.TrimSpace(o.Name + " " + o.Version) }

// The choices of Config.OCIRuntime that are no path.
const (
	Runc = "runc"
	Crun = "crun"
	// Auto is crun where it is there and works, or else runc.
	Auto = "auto"
)

// FindOCIRuntime finds runc, crun or the program of a path on this host; empty = runc. Its error says which
// package to install. On a host with both versions of cgroups, crun
// works only as New uses it.
func FindOCIRuntime(name string) (OCIRuntime, error) {
	if name == "" {
		name = Runc
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
	return describeOCI(path)
}

// describeOCI asks the program itself.
func describeOCI(path string) (OCIRuntime, error) {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) && len(failed.Stderr) > 0 {
			err = errors.New(oneLine(string(failed.Stderr)))
		}
		return OCIRuntime{}, fmt.Errorf("ask OCI runtime %s for its version: %w", path, err)
	}
	o := OCIRuntime{Path: path, Name: filepath.Base(path)}
	line, _, _ := strings.Cut(string(out), "\n")
	// "runc version 1.1.5+ds1", "crun version 1.8.1"
	if kind, version, ok := strings.Cut(strings.TrimSpace(line), " version "); ok {
		o.Name, o.Version = kind, version
	}
	return o, nil
}

// chooseOCI finds the runtime of the configuration, ready for use; why says what Auto has decided, empty = there was no
// choice. The helper is the logger's program.
func chooseOCI(name, dir, helper string) (o OCIRuntime, why string, err error) {
	if name != Auto {
		o, err = findUsable(name, dir, helper)
		return o, "", err
	}
	if _, err := exec.LookPath(Crun); err != nil {
		o, err = findUsable(Runc, dir, helper)
		return o, "there is no crun on this host", err
	}
	o, err = findUsable(Crun, dir, helper)
	if err == nil {
		return o, "crun works on this host and starts containers faster", nil
	}
	why = "crun does not work on this host: " + err.Error()
	o, err = findUsable(Runc, dir, helper)
	return o, why, err
}

func findUsable(name, dir, helper string) (OCIRuntime, error) {
	o, err := FindOCIRuntime(name)
	if err != nil || o.Name != Crun || !hybridCgroups() {
		return o, err
	}
	wrapped, err := o.wrap(dir, helper)
	if err != nil {
		return OCIRuntime{}, fmt.Errorf("make crun work beside both cgroup versions of this host: %w; use --oci-runtime runc, or boot with one version alone", err)
	}
	return wrapped, nil
}

// wrap gives crun through the helper, which runs it where it sees one version of cgroups alone. Containers keep the path
// for as long as they live, so it stays the same over upgrades.
func (o OCIRuntime) wrap(dir, helper string) (OCIRuntime, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return OCIRuntime{}, err
	}
	path := filepath.Join(dir, Crun)
	for _, link := range [][2]string{{o.Path, path + ".real"}, {helper, path}} {
		if err := embedded.Link(link[0], link[1]); err != nil {
			return OCIRuntime{}, err
		}
	}
	return describeOCI(path)
}

// specVersion is what the OCI spec of a container claims to be: crun up to 1.8 refuses what it does not know,
// and nothing of a later version is used.
func (o OCIRuntime) specVersion(latest string) string {
	if o.Name == Crun {
		return "1.0.2"
	}
	return latest
}

func hybridCgroups() bool {
	var fs unix.Statfs_t
	if unix.Statfs(cgroupRoot, &fs) != nil || fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return false
	}
	return unix.Statfs(cgroupRoot+"/unified", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// host is what the specs of containers depend on.
type host struct {
	cgroups  string // their root
	unified  bool   // cgroup v2
	swap     bool   // swap can be limited
	apparmor bool   // profiles can be loaded
	nofile   uint64 // most open files that may be given
	recurse  bool   // a bind mount can be read-only all the way down
}

// noFiles is the hard limit of open files (the soft one is 1024, which programs raise themselves).
const noFiles = 524288

func probeHost() host {
	h := host{nofile: noFiles, cgroups: cgroupRoot}
	var fs unix.Statfs_t
	h.unified = unix.Statfs(cgroupRoot, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
	h.swap = boundsSwap(cgroupRoot, h.unified)
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
