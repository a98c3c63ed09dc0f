package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// maxSocketDir is containerd's bound on the directory of the shims' sockets; longer ones do not fit a socket address.
const maxSocketDir = 42

// Limits of the child's upkeep.
const (
	backoffFirst = 100 * time.Millisecond
	backoffLast  = 30 * time.Second
	// stableAfter resets the backoff.
	stableAfter = time.Minute
	stopGrace   = 10 * time.Second
	probeEvery  = 20 * time.Millisecond
	logEvery    = 30 * time.Second
)

// Config of the child. Every path is absolute.
type Config struct {
	// Executable is the program that calls Dispatch; empty = this one.
	Executable string
	// Root is containerd's persistent directory (data-dir/containerd), State its transient one (run-dir/containerd).
	Root, State string
	// Socket is containerd's address; empty = State/containerd.sock.
	Socket string
	// Namespace whose lost exits are recorded before a start.
	Namespace string
	// LogLevel of containerd; empty = info.
	LogLevel string
	Logger   *slog.Logger
}

// Child is our containerd.
type Child struct {
	Config
	log   *slog.Logger
	ready chan struct{} // closed when the socket answered for the first time
	once  sync.Once
	stop  chan struct{} // closed by StopChild: Run must not start it again
	ended sync.Once
}

// New checks the configuration; Run starts or adopts the child.
func New(c Config) (*Child, error) {
	if c.Executable == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find own program: %w", err)
		}
		c.Executable = self
	}
	if c.Socket == "" {
		c.Socket = filepath.Join(c.State, "containerd.sock")
	}
	for name, path := range map[string]string{"program": c.Executable, "root": c.Root, "state": c.State, "socket": c.Socket} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("containerd's %s %q is not an absolute path", name, path)
		}
	}
	if dir := c.socketDir(); len(dir) > maxSocketDir {
		return nil, fmt.Errorf("the run directory is too deep for the sockets below it: %s has %d characters, at most %d fit; choose a shorter --run-dir", dir, len(dir), maxSocketDir)
	}
	if c.Namespace == "" {
		c.Namespace = "swarmd"
	}
	if c.LogLevel == "" {
		c.LogLevel = "info"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Child{Config: c, log: c.Logger, ready: make(chan struct{}), stop: make(chan struct{})}, nil
}

func (c Config) socketDir() string { return filepath.Join(c.State, "s") }
func (c Config) pidFile() string   { return filepath.Join(c.State, "containerd.pid") }
func (c Config) binDir() string    { return filepath.Join(c.Root, "bin") }
func (c Config) logFile() string   { return filepath.Join(c.Root, "containerd.log") }

// ExitDir is where exits are recorded that containerd itself would have lost: <container>.json, see exits.go.
func (c Config) ExitDir() string { return filepath.Join(c.Root, "exits") }

// Address of the socket.
func (c *Child) Address() string { return c.Socket }

// Ready waits until containerd has answered once.
func (c *Child) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for containerd (its log is %s): %w", c.logFile(), context.Cause(ctx))
	}
}

// Answered says whether containerd has answered once.
func (c *Child) Answered() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// LogFile is where containerd says what it does.
func (c *Child) LogFile() string { return c.logFile() }

// Run keeps one containerd alive until ctx ends: it adopts a live one or starts one, and starts it again, with
// backoff, whenever it dies; only a first one that cannot be started is an error. Neither the end of ctx nor that of this process touches it or its containers.
func (c *Child) Run(ctx context.Context) error {
	if err := c.prepare(); err != nil {
		return fmt.Errorf("prepare containerd: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.keep(ctx) })
	group.Go(func() error { return c.boundLog(ctx) })
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (c *Child) prepare() error {
	for _, dir := range []string{c.Root, c.State, c.binDir(), c.ExitDir(), filepath.Dir(c.Socket)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	return c.writeConfig()
}

func (c *Child) keep(ctx context.Context) error {
	backoff := backoffFirst
	for {
		begun := time.Now()
		p, err := c.adoptOrStart()
		switch {
		case err == nil:
			err = c.watch(ctx, p)
			p.close()
		case !c.Answered():
			return err
		}
		// One that has worked is started again whatever keeps it from that now: a full disk, want of memory, a program that
		// is just being replaced.
		select {
		case <-ctx.Done():
			return nil
		case <-c.stop:
			return nil
		default:
		}
		if time.Since(begun) > stableAfter {
			backoff = backoffFirst
		}
		c.log.Warn("containerd does not run; starting it again", "error", err, "after", backoff, "log", c.logFile())
		if !sleep(ctx, backoff) {
			return nil
		}
		backoff = min(2*backoff, backoffLast)
	}
}

func (c *Child) adoptOrStart() (*process, error) {
	if p, ok := c.find(); ok {
		c.log.Info("adopted the containerd that runs", "pid", p.pid)
		return p, nil
	}
	if err := c.recordExits(); err != nil {
		c.log.Warn("read exits of containers that ended while containerd was down", "error", err)
	}
	return c.start()
}

// start starts the child in a session of its own, so that no signal meant for us reaches it.
func (c *Child) start() (*process, error) {
	if err := os.Remove(c.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out, err := os.OpenFile(c.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open containerd's log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(c.Executable, "--config", c.configFile())
	cmd.Args[0] = daemonName
	cmd.Env = c.environment()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	p, err := openProcess(cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("watch containerd: %w", err), cmd.Process.Kill(), cmd.Wait())
	}
	p.cmd = cmd
	if err := p.write(c.pidFile()); err != nil {
		return nil, errors.Join(fmt.Errorf("write containerd's pid file: %w", err), cmd.Process.Kill(), cmd.Wait())
	}
	return p, nil
}

// watch returns when the process has ended or ctx has.
func (c *Child) watch(ctx context.Context, p *process) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group errgroup.Group
	defer group.Wait()
	group.Go(func() error { c.announce(ctx); return nil })
	defer cancel()
	return p.wait(ctx)
}

// announce closes ready once the socket answers.
func (c *Child) announce(ctx context.Context) {
	for {
		if conn, err := dial(c.Socket); err == nil {
			conn.Close()
			c.once.Do(func() { close(c.ready) })
			return
		}
		if !sleep(ctx, probeEvery) {
			return
		}
	}
}

// StopChild ends containerd and keeps Run from starting it again. Containers go on under their shims: remove
// them first where they must end too. It works without Run, on the containerd of a former process.
func (c *Child) StopChild(ctx context.Context) error {
	c.ended.Do(func() { close(c.stop) })
	p, ok := c.find()
	if !ok {
		return nil
	}
	defer p.close()
	if err := p.signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("stop containerd: %w", err)
	}
	grace, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if p.wait(grace); !p.alive() {
		return nil
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill containerd: %w", err)
	}
	p.wait(ctx)
	if p.alive() {
		return fmt.Errorf("stop containerd: process %d does not end", p.pid)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
