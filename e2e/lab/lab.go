// Package lab makes hosts out of namespaces: several of them on one machine, each with its own network, mounts,
// processes, hostname, cgroups, data and run directories, on a switch of their own. Real binaries and real
// containers run in them.
//
// Everything of a host lives in namespaces that die with its first process, and that dies with the program that
// made the lab (unless Config.Keep), so nothing is left behind even when that is killed. Only cgroup directories
// and Config.Dir remain then; New removes cgroups of labs whose maker is gone.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Subnet and Subnet6 of the hosts: host i has i as its last byte, the switch (and with it the lab as a client) 254, clients of
// their own those from 200 on.
var (
	Subnet  = netip.MustParsePrefix("10.77.0.0/24")
	Subnet6 = netip.MustParsePrefix("fd77::/64")
)

// defaultMTU of the wires.
const defaultMTU = 1500

// Config of a lab.
type Config struct {
	// Dir holds a directory a host. It must be on a filesystem that overlayfs can use as an upper layer.
	Dir string
	// Hosts to start with; more come with AddHost.
	Hosts int
	// Swarmd is the path of the binary under test.
	Swarmd string
	// MTU of the wires; 0 = 1500.
	MTU int
	// Keep leaves the hosts running when this program ends; Down ends them.
	Keep bool
	// Env is added to swarmd's environment.
	Env []string
}

// Lab is a switch with hosts.
type Lab struct {
	cfg   Config
	name  string
	sw    *node
	hosts []*Host

	clients []*Client
}

// node is a set of namespaces, held by its first process.
type node struct {
	pid int
	// open lets the first process go on: its network is there.
	open func()
}

// Host is one machine of the lab.
type Host struct {
	Name string
	// Addr and Addr6 are its addresses on the switch.
	Addr, Addr6 netip.Addr
	// Dir is its directory outside: Dir/run is /run/swarmd inside, Dir/data is /var/lib/swarmd.
	Dir string

	lab   *Lab
	index int
	node  *node
	// release ends the last hang of its disk.
	release func() error
}

// New makes the switch and the hosts. The hosts run nothing yet.
func New(cfg Config) (*Lab, error) {
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	removeStaleCgroups()
	l := &Lab{cfg: cfg, name: fmt.Sprintf("swarmd-lab-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)}
	if cfg.Keep {
		l.name = "swarmd-lab-kept"
	}
	swDir := filepath.Join(cfg.Dir, "switch")
	for _, d := range []string{"run", "data"} {
		if err := os.MkdirAll(filepath.Join(swDir, d), 0o755); err != nil {
			return nil, err
		}
	}
	var err error
	if l.sw, err = l.launch(hostConfig{Hostname: "switch", Dir: swDir}, filepath.Join(cfg.Dir, "switch.log")); err != nil {
		return nil, err
	}
	if err := l.inSwitch(l.makeSwitch); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.release(l.sw, swDir); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	for range cfg.Hosts {
		if _, err := l.AddHost(); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Hosts lists the hosts; host i of the story is Hosts()[i-1].
func (l *Lab) Hosts() []*Host { return l.hosts }

// AddHost adds a host, named node-1, node-2 and so on.
func (l *Lab) AddHost() (*Host, error) {
	i := len(l.hosts) + 1
	h := &Host{
		Name: fmt.Sprintf("node-%d", i), Addr: address4(byte(i)), Addr6: address6(byte(i)),
		Dir: filepath.Join(l.cfg.Dir, fmt.Sprintf("node-%d", i)), lab: l, index: i,
	}
	if err := h.PowerOn(); err != nil {
		return nil, err
	}
	l.hosts = append(l.hosts, h)
	if l.cfg.Keep {
		return h, l.remember()
	}
	return h, nil
}

// Close powers everything off and removes the cgroups; the directories stay.
func (l *Lab) Close() error {
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.PowerOff())
	}
	for _, c := range l.clients {
		c.Close()
		c.node.kill()
	}
	if l.sw != nil {
		l.sw.kill()
	}
	return errors.Join(append(errs, removeCgroups(l.name))...)
}

// launch starts a first process in namespaces of its own; it waits for release.
func (l *Lab) launch(cfg hostConfig, logPath string) (*node, error) {
	arg, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command("/proc/self/exe", initArg, string(arg))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC, Setsid: true,
	}
	if !l.cfg.Keep {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error)
	go func() {
		// The signal comes when the thread that started the child ends, so that thread is kept.
		runtime.LockOSThread()
		started <- cmd.Start()
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("make namespaces (this needs root): %w", err)
	}
	return &node{pid: cmd.Process.Pid, open: func() { _, _ = stdin.Write([]byte{1}); _ = stdin.Close() }}, nil
}

// release lets the first process go on, and waits until it serves.
func (l *Lab) release(n *node, dir string) error {
	n.open()
	return until(10*time.Second, func() error {
		c, err := net.Dial("unix", filepath.Join(dir, "init.sock"))
		if err != nil {
			return fmt.Errorf("host does not come up, see its log beside %s: %w", dir, err)
		}
		return c.Close()
	})
}

func (n *node) kill() {
	_ = unix.Kill(n.pid, unix.SIGKILL)
	_ = until(10*time.Second, func() error {
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(n.pid), "ns/pid")); err == nil {
			return errors.New("still there")
		}
		return nil
	})
}

// until repeats fn until it succeeds, or returns its last error.
func until(limit time.Duration, fn func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := fn()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// cgroupParent is where the host's containers have their cgroups.
func (h *Host) cgroupParent() string { return "/" + h.lab.name + "/" + h.Name }

func removeStaleCgroups() {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/swarmd-lab-*")
	for _, d := range dirs {
		parts := strings.Split(filepath.Base(d), "-")
		if len(parts) < 4 {
			continue
		}
		if _, err := os.Stat("/proc/" + parts[2]); err != nil {
			_ = removeCgroups(filepath.Base(d))
		}
	}
}

// removeCgroups removes the tree of that name in every hierarchy, leaves first.
func removeCgroups(name string) error {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	return until(10*time.Second, func() error {
		var errs []error
		for _, root := range roots {
			var dirs []string
			_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil
			})
			for i := len(dirs) - 1; i >= 0; i-- {
				if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
					errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dirs[i], err))
				}
			}
		}
		return errors.Join(errs...)
	})
}

// Dial connects from the switch, as a client outside the cluster would.
func (l *Lab) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var conn net.Conn
	err := l.inSwitch(func() error {
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}
