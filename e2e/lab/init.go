package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// initArg, as the first argument, makes a process the first one of a host.
const initArg = "swarmd-lab-init"

// hostConfig is what a host's first process is told on its command line, as JSON.
type hostConfig struct {
	Hostname string
	// Dir is the host's directory outside: run and data are bound into the host, init.sock is served there.
	Dir string
}

// request and response travel over init.sock, one pair a connection.
type request struct {
	// Name of the process, for start, signal and wait.
	Name string
	// Start: argv, environment and the file that its output is appended to.
	Argv []string
	Env  []string
	Log  string
	// Signal to send to the process of that name; 0 = none.
	Signal int
	// Wait for it to end.
	Wait bool
}

type response struct {
	Pid   int // inside the host
	Code  int // with Wait: exit code, or 128 + signal
	Error string
}

// Dispatch runs one of the lab's own processes when this process was started as one, and does not return then. A program
// that makes labs calls it first in main or TestMain.
func Dispatch() {
	if len(os.Args) < 3 {
		return
	}
	switch os.Args[1] {
	case initArg:
		fmt.Fprintln(os.Stderr, "lab host:", runInit(os.Args[2]))
		os.Exit(1)
	case hangArg:
		if err := runHang(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "lab disk:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// runInit waits until its network is there (a byte on standard input), sets up the host's mounts and serves until
// the host is switched off; it returns only errors.
func runInit(arg string) error {
	var cfg hostConfig
	if err := json.Unmarshal([]byte(arg), &cfg); err != nil {
		return err
	}
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the network: %w", err)
	}
	if err := unix.Sethostname([]byte(cfg.Hostname)); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	if err := mountHost(cfg.Dir); err != nil {
		return err
	}
	sock := filepath.Join(cfg.Dir, "init.sock")
	_ = os.Remove(sock)
	l, err := net.Listen("unix", sock)
	if err != nil {
		return err
	}
	h := &hostInit{processes: map[string]*process{}}
	go h.reap()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go h.serve(c)
	}
}

func mountHost(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	mounts := []struct{ source, target, fstype string }{
		{"proc", "/proc", "proc"},
		{"tmpfs", "/run", "tmpfs"},
		{filepath.Join(dir, "run"), "/run/swarmd", ""},
		{filepath.Join(dir, "data"), "/var/lib/swarmd", ""},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		var flags uintptr
		if m.fstype == "" {
			flags = unix.MS_BIND
		}
		if err := unix.Mount(m.source, m.target, m.fstype, flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

type process struct {
	pid  int
	done chan struct{}
	code int
}

// hostInit is a host's first process: it starts others and reaps all.
type hostInit struct {
	mu        sync.Mutex
	processes map[string]*process
}

// reap waits for every child, also for those that were left to this process.
func (h *hostInit) reap() {
	born := make(chan os.Signal, 1)
	signal.Notify(born, unix.SIGCHLD)
	for {
		var info unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
			if errors.Is(err, unix.ECHILD) {
				<-born
			}
			continue
		}
		h.mu.Lock() // a start that has not yet entered its process in the map holds the lock
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == nil && pid > 0 {
			for _, p := range h.processes {
				if p.pid == pid {
					p.code = ws.ExitStatus()
					if ws.Signaled() {
						p.code = 128 + int(ws.Signal())
					}
					close(p.done)
					p.pid = 0
				}
			}
		}
		h.mu.Unlock()
	}
}

func (h *hostInit) serve(c net.Conn) {
	defer c.Close()
	var req request
	if json.NewDecoder(c).Decode(&req) != nil {
		return
	}
	resp, err := h.handle(req)
	if err != nil {
		resp.Error = err.Error()
	}
	_ = json.NewEncoder(c).Encode(resp)
}

func (h *hostInit) handle(req request) (response, error) {
	if len(req.Argv) > 0 {
		if err := h.start(req); err != nil {
			return response{}, err
		}
	}
	h.mu.Lock()
	p := h.processes[req.Name]
	if p == nil {
		h.mu.Unlock()
		return response{}, fmt.Errorf("no process %q was started", req.Name)
	}
	pid := p.pid
	if req.Signal != 0 && pid != 0 {
		if err := unix.Kill(pid, syscall.Signal(req.Signal)); err != nil {
			h.mu.Unlock()
			return response{}, err
		}
	}
	h.mu.Unlock()
	if req.Wait {
		<-p.done
		return response{Code: p.code}, nil
	}
	return response{Pid: pid}, nil
}

func (h *hostInit) start(req request) error {
	out, err := os.OpenFile(req.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.processes[req.Name]; p != nil && p.pid != 0 {
		return fmt.Errorf("process %q runs already", req.Name)
	}
	child, err := os.StartProcess(req.Argv[0], req.Argv, &os.ProcAttr{
		Dir: "/", Env: req.Env, Files: []*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	h.processes[req.Name] = &process{pid: child.Pid, done: make(chan struct{})}
	return child.Release()
}
