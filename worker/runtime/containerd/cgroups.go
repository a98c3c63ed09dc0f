package containerd

import (
	"os"
	"path/filepath"
)

// cgroupRoot is where hosts have their cgroups.
const cgroupRoot = "/sys/fs/cgroup"

// memoryFile is a file of the cgroup that bounds a group's memory: one under version 1, two under version 2.
func (h host) memoryFile(group, one, two string) string {
	if h.unified {
		return filepath.Join(h.cgroups, group, two)
	}
	return filepath.Join(h.cgroups, "memory", group, one)
}

// boundsSwap says whether the kernel can. Under version 2 the root itself has no bounds, so that any group below it with bounds is
// asked; where there is none yet, it most likely can.
func boundsSwap(cgroups string, unified bool) bool {
	if !unified {
		_, err := os.Stat(filepath.Join(cgroups, "memory", "memory.memsw.limit_in_bytes"))
		return err == nil
	}
	bounded, err := filepath.Glob(filepath.Join(cgroups, "*", "memory.max"))
	if err != nil || len(bounded) == 0 {
		return true
	}
	_, err = os.Stat(filepath.Join(filepath.Dir(bounded[0]), "memory.swap.max"))
	return err == nil
}
