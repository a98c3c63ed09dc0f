package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Daemon is the name of the swarmd process on every host.
const Daemon = "swarmd"

// PowerOn makes the host's namespaces, as a boot does: run directory empty, data kept. It does not start swarmd.
func (h *Host) PowerOn() error {
	if err := os.RemoveAll(filepath.Join(h.Dir, "run")); err != nil {
		return fmt.Errorf("power %s on: %w", h.Name, err)
	}
	for _, d := range []string{"run", "data"} {
		if err := os.MkdirAll(filepath.Join(h.Dir, d), 0o755); err != nil {
			return fmt.Errorf("power %s on: %w", h.Name, err)
		}
	}
	n, err := h.lab.launch(hostConfig{Hostname: h.Name, Dir: h.Dir}, filepath.Join(h.Dir, "init.log"))
	if err != nil {
		return fmt.Errorf("power %s on: %w", h.Name, err)
	}
	h.node = n
	if err := errors.Join(h.freezable(), h.connect()); err != nil {
		n.kill()
		return fmt.Errorf("power %s on: %w", h.Name, err)
	}
	return h.lab.release(n, h.Dir)
}

// PowerOff kills everything on the host at once.
func (h *Host) PowerOff() error {
	if h.node == nil {
		return nil
	}
	err := h.Resume()
	if h.release != nil { // what waits for a disk cannot be killed
		err = errors.Join(err, h.release())
		h.release = nil
	}
	h.node.kill()
	h.node = nil
	return errors.Join(err, removeCgroups(strings.TrimPrefix(h.cgroupParent(), "/")))
}

// Pid of the host's first process, as seen from outside.
func (h *Host) Pid() int { return h.node.pid }

// Socket is swarmd's local socket, as a path outside.
func (h *Host) Socket() string { return filepath.Join(h.Dir, "run", "swarmd.sock") }

// Log is the file that swarmd's output goes to.
func (h *Host) Log() string { return filepath.Join(h.Dir, "swarmd.log") }

// StartSwarmd starts the daemon with the given flags besides those that the lab needs.
func (h *Host) StartSwarmd(flags ...string) error {
	argv := append([]string{h.lab.cfg.Swarmd, "--cgroup-parent", h.cgroupParent()}, flags...)
	_, err := h.call(request{Name: Daemon, Argv: argv, Env: h.env(), Log: h.Log()})
	return err
}

// SignalSwarmd sends the daemon a signal.
func (h *Host) SignalSwarmd(sig syscall.Signal) error {
	_, err := h.call(request{Name: Daemon, Signal: int(sig)})
	return err
}

// WaitSwarmd waits for the daemon to end and returns its exit code (128 + signal when killed).
func (h *Host) WaitSwarmd() (int, error) {
	r, err := h.call(request{Name: Daemon, Wait: true})
	return r.Code, err
}

// KillSwarmd kills the daemon, and nothing else, and waits until it is gone.
func (h *Host) KillSwarmd() error {
	_, err := h.call(request{Name: Daemon, Signal: int(syscall.SIGKILL), Wait: true})
	return err
}

// Run runs a program on the host and returns its output and exit code.
func (h *Host) Run(argv ...string) (string, int, error) {
	f, err := os.CreateTemp(h.Dir, "run-")
	if err != nil {
		return "", 0, err
	}
	_ = f.Close()
	defer os.Remove(f.Name())
	r, err := h.call(request{Name: filepath.Base(f.Name()), Argv: argv, Env: h.env(), Log: f.Name(), Wait: true})
	if err != nil {
		return "", 0, err
	}
	out, err := os.ReadFile(f.Name())
	return string(out), r.Code, err
}

// Pause freezes every process of the host, containers too; Resume lets them go on.
func (h *Host) Pause() error { return h.freeze("FROZEN") }

// Resume undoes Pause.
func (h *Host) Resume() error { return h.freeze("THAWED") }

func (h *Host) freezer() string { return "/sys/fs/cgroup/freezer" + h.cgroupParent() }

// freezable puts the host's first process, and so all that it starts, into a freezer cgroup.
func (h *Host) freezable() error {
	if err := os.MkdirAll(h.freezer(), 0o755); err != nil {
		return fmt.Errorf("make freezer: %w", err)
	}
	return os.WriteFile(filepath.Join(h.freezer(), "cgroup.procs"), fmt.Append(nil, h.node.pid), 0o644)
}

func (h *Host) freeze(state string) error {
	err := os.WriteFile(filepath.Join(h.freezer(), "freezer.state"), []byte(state), 0o644)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (h *Host) env() []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/root"}, h.lab.cfg.Env...)
}

func (h *Host) call(req request) (response, error) {
	c, err := net.Dial("unix", filepath.Join(h.Dir, "init.sock"))
	if err != nil {
		return response{}, fmt.Errorf("reach %s: %w", h.Name, err)
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(req); err != nil {
		return response{}, fmt.Errorf("reach %s: %w", h.Name, err)
	}
	var r response
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		return response{}, fmt.Errorf("reach %s: %w", h.Name, err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("on %s: %s", h.Name, r.Error)
	}
	return r, nil
}

// Ready waits until swarmd answers on its local socket.
func (h *Host) Ready(limit time.Duration) error {
	return until(limit, func() error {
		c, err := net.Dial("unix", h.Socket())
		if err != nil {
			return fmt.Errorf("swarmd on %s does not come up, see %s: %w", h.Name, h.Log(), err)
		}
		return c.Close()
	})
}
