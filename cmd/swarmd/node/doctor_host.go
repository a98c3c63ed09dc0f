package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/doctor"
	"github.com/swarmd/swarmd/worker/gossip"
	"github.com/swarmd/swarmd/worker/runtime/containerd"
)

// cgroupRoot is where cgroups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// A disk is short of room with less than this part of it, or this many bytes, whatever is less; below half of that
// it soon is full.
const (
	shortSpacePart = 10
	shortSpace     = 5 << 30
)

// hostChecks are of what containers need.
func (n *Node) hostChecks() []doctor.Check {
	checks := []doctor.Check{
		{Name: "containerd", Run: func(ctx context.Context) doctor.Finding {
			info, err := n.engine.Info(ctx)
			if err != nil {
				advice := "see that it runs, and that --containerd names its socket"
				if n.child != nil {
					advice = "see its log, " + n.child.LogFile()
				}
				return doctor.Problem("it does not answer: "+err.Error(), advice)
			}
			return doctor.OK("version %s", info.Version)
		}},
		{Name: "OCI runtime", Run: func(context.Context) doctor.Finding { return checkOCI(n.cfg.OCIRuntime) }},
		{Name: "cgroups", Run: func(context.Context) doctor.Finding { return checkCgroups(cgroupRoot) }},
		{Name: "registries", Run: func(context.Context) doctor.Finding {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.registryProblem != nil {
				return doctor.Problem("spoken to as before the last change of their file: "+n.registryProblem.Error(), "mend the file; swarmd reads it again by itself")
			}
			return doctor.OK("as configured")
		}},
	}
	for _, dir := range []string{n.cfg.DataDir, n.cfg.RunDir} {
		checks = append(checks, doctor.Check{Name: "free space in " + dir, Run: func(context.Context) doctor.Finding { return checkSpace(dir, statSpace) }})
	}
	return checks
}

// checkOCI runs the OCI runtime, whichever of them is chosen.
func checkOCI(name string) doctor.Finding {
	names := []string{name}
	if name == containerd.Auto {
		names = []string{containerd.Runc, containerd.Crun}
	}
	var problems []string
	for _, name := range names {
		oci, err := containerd.FindOCIRuntime(name)
		if err == nil {
			return doctor.OK("%s %s at %s", oci.Name, oci.Version, oci.Path)
		}
		problems = append(problems, err.Error())
	}
	return doctor.Problem("no container can start: "+strings.Join(problems, "; "), "install runc (apt-get install runc, or dnf install runc), or choose another with --oci-runtime")
}

// neededControllers are those that limits are made of.
var neededControllers = []string{"cpu", "memory", "pids"}

// checkCgroups makes a cgroup with each controller, and takes it away.
func checkCgroups(root string) doctor.Finding {
	version, dirs, lacking := "1", []string{}, []string{}
	if controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		version, dirs = "2", []string{root}
		for _, c := range neededControllers {
			if !slices.Contains(strings.Fields(string(controllers)), c) {
				lacking = append(lacking, c)
			}
		}
	} else {
		for _, c := range neededControllers {
			if _, err := os.Stat(filepath.Join(root, c, "cgroup.procs")); err != nil {
				lacking = append(lacking, c)
			} else {
				dirs = append(dirs, filepath.Join(root, c))
			}
		}
	}
	if len(lacking) > 0 {
		return doctor.Problem(fmt.Sprintf("version %s, without %s: limits of containers cannot be kept", version, strings.Join(lacking, ", ")),
			"mount the cgroup file system with all controllers, or boot with cgroup_enable="+lacking[0])
	}
	for _, dir := range dirs {
		own, err := os.MkdirTemp(dir, "swarmd-doctor-")
		if err == nil {
			err = os.Remove(own)
		}
		if err != nil {
			return doctor.Problem("no cgroup can be made: "+err.Error(), "run swarmd as root, with the cgroup file system mounted for writing")
		}
	}
	return doctor.OK("version %s with %s", version, strings.Join(neededControllers, ", "))
}

// statSpace is what a directory's file system has, in bytes.
func statSpace(dir string) (free, size uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	block := uint64(max(st.Bsize, 0))
	return st.Bavail * block, st.Blocks * block, nil
}

func checkSpace(dir string, stat func(string) (free, size uint64, err error)) doctor.Finding {
	free, size, err := stat(dir)
	if err != nil {
		return doctor.Problem("it cannot be looked at: "+err.Error(), "check the host's disk")
	}
	text := fmt.Sprintf("%d MiB of %d MiB are free", free>>20, size>>20)
	short := min(uint64(shortSpace), size/shortSpacePart)
	const advice = "make room there: images and logs are removed by themselves, what else is there is not"
	switch {
	case free < short/2:
		return doctor.Problem(text+": the node takes no new tasks when it is full", advice)
	case free < short:
		return doctor.Warning(text, advice)
	}
	return doctor.OK("%s", text)
}

func (m *member) gossipMembers() []gossip.Member {
	if m.gossip == nil {
		return nil
	}
	return m.gossip.Members()
}
