package embedded

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// process is one process that cannot be mistaken for a later one with its pid.
type process struct {
	pid     int
	started uint64 // clock ticks after boot
	fd      int    // pidfd
	cmd     *exec.Cmd
}

// record is what the pid file says.
type record struct {
	Pid     int    `json:"pid"`
	Started uint64 `json:"started"`
}

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	started, err := startTime(pid)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &process{pid: pid, started: started, fd: fd}, nil
}

func (p *process) close() { unix.Close(p.fd) }

func (p *process) signal(s unix.Signal) error {
	if err := unix.PidfdSendSignal(p.fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func (p *process) alive() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n == 0 && err == nil
}

// wait returns when the process has ended, saying how if it was ours, or when ctx ends. It reaps our own.
func (p *process) wait(ctx context.Context) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(wake)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Write(wake, binaryOne)
		close(done)
	})
	defer func() {
		if !stop() {
			<-done // the write must not meet another file under this number
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		switch {
		case fds[0].Revents != 0 && p.cmd != nil:
			if err := p.cmd.Wait(); err != nil {
				return err
			}
			return errors.New("exit status 0")
		case fds[0].Revents != 0:
			return errors.New("ended")
		case fds[1].Revents != 0:
			return ctx.Err()
		}
	}
}

var binaryOne = []byte{1, 0, 0, 0, 0, 0, 0, 0}

func (p *process) write(path string) error {
	body, err := json.Marshal(record{Pid: p.pid, Started: p.started})
	if err != nil {
		return err
	}
	return os.WriteFile(path, body, 0o600)
}

// find is the live containerd of this configuration: the one that listens on the socket, or the one of the pid
// file, which may not listen yet. Its command line must name our configuration.
func (c *Child) find() (*process, bool) {
	for _, candidate := range []func() (record, bool){c.listener, c.recorded} {
		r, ok := candidate()
		if !ok {
			continue
		}
		p, err := openProcess(r.Pid)
		if err != nil {
			continue
		}
		if (r.Started == 0 || r.Started == p.started) && c.isOurs(p.pid) && p.alive() {
			return p, true
		}
		p.close()
	}
	return nil, false
}

// listener asks the kernel who listens on the socket.
func (c *Child) listener() (record, bool) {
	conn, err := dial(c.Socket)
	if err != nil {
		return record{}, false
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return record{}, false
	}
	var peer *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || peer == nil || peer.Pid <= 0 {
		return record{}, false
	}
	return record{Pid: int(peer.Pid)}, true
}

func (c *Child) recorded() (record, bool) {
	body, err := os.ReadFile(c.pidFile())
	if err != nil {
		return record{}, false
	}
	var r record
	if json.Unmarshal(body, &r) != nil || r.Pid <= 0 || r.Started == 0 {
		return record{}, false
	}
	return r, true
}

func (c *Child) isOurs(pid int) bool {
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	args := bytes.Split(bytes.TrimRight(line, "\x00"), []byte{0})
	return len(args) == 3 && filepath.Base(string(args[0])) == daemonName && string(args[2]) == c.configFile()
}

func dial(socket string) (*net.UnixConn, error) {
	conn, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// startTime is field 22 of /proc/PID/stat; the second field may hold anything, so it is cut off first.
func startTime(pid int) (uint64, error) {
	body, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	end := bytes.LastIndexByte(body, ')')
	fields := bytes.Fields(body[end+1:])
	if end < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("process %d: its stat is not understood", pid)
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
