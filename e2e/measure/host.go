package measure

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// The hierarchies of cgroup v1 in which a lab's host, with all its processes and containers, has a group.
const (
	freezer = "/sys/fs/cgroup/freezer"
	cpuacct = "/sys/fs/cgroup/cpuacct"
)

// cgroup is the host's, the same in every hierarchy: that in which the lab put its first process.
func (h *Host) cgroup() string {
	body, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", h.Pid()))
	for line := range strings.Lines(string(body)) {
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 && parts[1] == "freezer" {
			return parts[2]
		}
	}
	return ""
}

// account has the CPU of all that will run on the host counted.
func (h *Host) account() error {
	group := h.cgroup()
	if group == "" || group == "/" {
		return errors.New("the host has no freezer group of its own; cgroup v1 is needed to measure")
	}
	dir := filepath.Join(cpuacct, group)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("count the host's CPU: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, h.Pid()), 0o644)
}

// CPU is what all processes of the host, dead ones and containers too, have used.
func (h *Host) CPU() (time.Duration, error) {
	body, err := os.ReadFile(filepath.Join(cpuacct, h.cgroup(), "cpuacct.usage"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
	return time.Duration(n), err
}

// Kept counts the containers and their network namespaces that the host's worker has, those without a process too.
func (h *Host) Kept() int {
	n := 0
	for _, dir := range []string{"data/containers", "run/network/netns"} {
		entries, _ := os.ReadDir(filepath.Join(h.Dir, dir)) // none of one that is not there yet
		n += len(entries)
	}
	return n
}

// OwnCPU is what this process has used.
func OwnCPU() time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// Memory of the processes of one kind.
type Memory struct {
	Processes int
	// Bytes; PSS shares what several processes map.
	RSS, PSS int64
}

// Memory of the host's processes by kind: swarmd, containerd, shim, logger.
func (h *Host) Memory() (map[string]Memory, error) {
	body, err := os.ReadFile(filepath.Join(cpuacct, h.cgroup(), "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	out := map[string]Memory{}
	for _, pid := range strings.Fields(string(body)) {
		cmdline, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		kind := kindOf(strings.Split(string(cmdline), "\x00"))
		m := out[kind]
		rss, pss := memoryOf(pid)
		m.Processes, m.RSS, m.PSS = m.Processes+1, m.RSS+rss, m.PSS+pss
		out[kind] = m
	}
	return out, nil
}

func kindOf(argv []string) string {
	name := filepath.Base(argv[0])
	switch {
	case strings.HasPrefix(name, "containerd-shim"), len(argv) > 1 && argv[1] == "-namespace":
		return "shim"
	case strings.HasPrefix(name, "logger"):
		return "logger"
	}
	return name
}

func memoryOf(pid string) (rss, pss int64) {
	body, _ := os.ReadFile(filepath.Join("/proc", pid, "smaps_rollup"))
	for line := range strings.Lines(string(body)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "Rss:":
			rss = kib << 10
		case "Pss:":
			pss = kib << 10
		}
	}
	return rss, pss
}

// ContainerdAddress is the path of containerd's socket, inside the host.
func (h *Host) ContainerdAddress(ctx context.Context) (string, error) {
	info, err := h.Local.GetInfo(ctx, &swarmpb.GetInfoRequest{})
	return info.GetContainerdAddress(), err
}
