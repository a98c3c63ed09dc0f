package lab

import (
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Start starts a program on the host beside swarmd, its output in Dir/NAME.log; it ends with the host.
func (h *Host) Start(name string, argv ...string) error {
	_, err := h.call(request{Name: name, Argv: argv, Env: h.env(), Log: filepath.Join(h.Dir, name+".log")})
	return err
}

// Processes finds the live processes of the host, outside of containers, whose program has the given name: their
// pids as seen from outside.
func (h *Host) Processes(name string) []int { return h.Programs()[name] }

// Programs are the live processes of the host, outside of containers, by their program's name: pids as seen from outside.
func (h *Host) Programs() map[string][]int {
	if h.node == nil {
		return nil
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", h.node.pid))
	if err != nil {
		return nil
	}
	out := map[string][]int{}
	for _, pid := range pidsWhere(func(pid string) bool {
		ns, err := os.Readlink(filepath.Join("/proc", pid, "ns/pid"))
		return err == nil && ns == own
	}) {
		if path := program(strconv.Itoa(pid)); path != "" {
			out[filepath.Base(path)] = append(out[filepath.Base(path)], pid)
		}
	}
	return out
}

// notBegun are the bases of what stands for a container's program until it begins; "." is that of a process that has ended.
var notBegun = []string{".", "runc", "crun"}

// Containers are the live processes in containers of the host, by the container's ID: pids as seen from outside. One whose
// program has not begun has none.
func (h *Host) Containers() map[string][]int {
	prefix := h.cgroupParent() + "/"
	out := map[string][]int{}
	for _, pid := range pidsWhere(func(pid string) bool { return !slices.Contains(notBegun, path.Base(program(pid))) }) {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		for line := range strings.Lines(string(data)) {
			_, below, ok := strings.Cut(strings.TrimSpace(line), prefix)
			id, _, _ := strings.Cut(below, "/")
			if ok && id != "" && !slices.Contains(out[id], pid) {
				out[id] = append(out[id], pid)
			}
		}
	}
	return out
}

// program is argv[0]; empty for one that has ended and for the kernel's own.
func program(pid string) string {
	data, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	name, _, _ := strings.Cut(string(data), "\x00")
	return name
}

func pidsWhere(fn func(pid string) bool) []int {
	var out []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && fn(e.Name()) {
			out = append(out, pid)
		}
	}
	return out
}

// Cgroups lists what is left below the host's cgroup, in every hierarchy.
func (h *Host) Cgroups() []string {
	found, _ := filepath.Glob("/sys/fs/cgroup/*" + h.cgroupParent() + "/*")
	return slices.DeleteFunc(found, func(p string) bool {
		var st unix.Stat_t
		return unix.Stat(p, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR
	})
}

// Listen listens on the switch: hosts reach it at .254.
func (l *Lab) Listen(network, addr string) (net.Listener, error) {
	var out net.Listener
	err := l.inSwitch(func() (err error) { out, err = net.Listen(network, addr); return err })
	return out, err
}
