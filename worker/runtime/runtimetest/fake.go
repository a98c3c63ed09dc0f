package runtimetest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest/program"
)

// Op is a method of a Runtime.
type Op string

// Ops that Before is asked about.
const (
	OpPull   Op = "pull"
	OpCreate Op = "create"
	OpStart  Op = "start"
	OpWait   Op = "wait"
	OpKill   Op = "kill"
	OpStop   Op = "stop"
	OpRemove Op = "remove"
	OpList   Op = "list"
	OpExec   Op = "exec"
)

// FakeConfig of a Fake; the zero value is a runtime whose registry holds every image.
type FakeConfig struct {
	// Before is called at the begin of each operation, without a lock held; name is the container's or the image's.
	// It may sleep, to make the operation slow, and an error is the operation's. It can be changed with SetBefore.
	Before func(ctx context.Context, op Op, name string) error
	// Remote answers for the registries; nil = any image is there. An error that is not runtime.ErrNotFound is
	// a registry that does not answer.
	Remote func(ref, digest string) (FakeImage, error)
	// Exec says what becomes of a process beside a container's own; nil = what package program says. It can be changed with
	// SetExec. Its ctx ends with the container too.
	Exec func(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.ExecResult, error)
	// Dir holds volumes; needed only where a container's report looks into one.
	Dir string
}

// FakeImage is an image of a Fake.
type FakeImage struct {
	Digest     string // empty = made from the reference
	Entrypoint []string
	Cmd        []string
	Env        []string
	Dir        string
	StopSignal string
	// Healthcheck of the image; nil = none.
	Healthcheck *runtime.Healthcheck

	size int64
	// test marks the suite's own image: what is not its program cannot be run.
	test    bool
	created time.Time
	loaded  bool
}

// Fake is a Runtime in memory. Containers do what their command line says in the terms of package program, without
// processes, in whatever time the caller lives in: it may be used in a synctest bubble. What it holds outlives
// any agent that uses it, as containerd's does.
type Fake struct {
	config FakeConfig

	mu         sync.Mutex
	before     func(ctx context.Context, op Op, name string) error
	images     map[string]FakeImage
	lastPull   runtime.PullRequest
	containers map[string]*fakeContainer
	logs       map[string]string
	volumes    map[string]bool // named ones that have been filled
	lastPid    uint32
	starts     map[string]int
	calls      map[Op]int
	exec       func(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.ExecResult, error)
	inherited  map[string]map[string]string // directories of volumes that were given to a container, by target
}

var _ runtime.Runtime = (*Fake)(nil)

type fakeContainer struct {
	spec    runtime.Spec
	image   FakeImage
	digest  string
	state   runtime.State
	pid     uint32
	program program.Program
	exit    runtime.Exit
	timer   *time.Timer
	// ended is closed at the end of the process, or when the container is removed before it had one.
	ended chan struct{}
	// scratch directories, gone with the container, by mount target; given are those that are not.
	scratch, given map[string]string
}

// NewFake makes a Fake without images and containers.
func NewFake(config FakeConfig) *Fake {
	return &Fake{
		config: config, before: config.Before, exec: config.Exec, lastPid: 1000, inherited: map[string]map[string]string{},
		images: map[string]FakeImage{}, containers: map[string]*fakeContainer{}, logs: map[string]string{},
		volumes: map[string]bool{}, starts: map[string]int{}, calls: map[Op]int{},
	}
}

// SetBefore replaces FakeConfig.Before from now on; nil = every operation is quick and works.
func (f *Fake) SetBefore(before func(ctx context.Context, op Op, name string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

func (f *Fake) enter(ctx context.Context, op Op, name string) error {
	f.mu.Lock()
	f.calls[op]++
	before := f.before
	f.mu.Unlock()
	if before != nil {
		if err := before(ctx, op, name); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Info implements Runtime.
func (f *Fake) Info(context.Context) (runtime.Info, error) {
	return runtime.Info{Version: "fake", OCIRuntime: "fake 1", Address: "memory"}, nil
}

// Create implements Runtime.
func (f *Fake) Create(ctx context.Context, spec runtime.Spec) error {
	if err := f.enter(ctx, OpCreate, spec.ID); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.containers[spec.ID]; ok {
		if c.state != runtime.Created {
			return nil
		}
		f.drop(c)
	}
	image, digest, err := f.local(spec.Image, spec.Digest)
	if err != nil {
		return &runtime.ContainerError{Doing: "make", ID: spec.ID, Err: err}
	}
	c := &fakeContainer{spec: spec, image: image, digest: digest, state: runtime.Created, ended: make(chan struct{})}
	if err := f.prepareMounts(c); err != nil {
		return &runtime.ContainerError{Doing: "make", ID: spec.ID, Err: err}
	}
	f.containers[spec.ID] = c
	return nil
}

// Start implements Runtime.
func (f *Fake) Start(ctx context.Context, id string) (uint32, error) {
	if err := f.enter(ctx, OpStart, id); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.get(id)
	if err != nil {
		return 0, err
	}
	switch c.state {
	case runtime.Running:
		return c.pid, nil
	case runtime.Stopped:
		return 0, fmt.Errorf("start container %s: it has already ended", id)
	}
	if err := c.load(); err != nil {
		return 0, &runtime.ContainerError{Doing: "start", ID: id, Err: err}
	}
	f.lastPid++
	f.starts[id]++
	c.pid, c.state = f.lastPid, runtime.Running
	switch c.program.Kind {
	case program.Print:
		f.logs[id] += c.program.Text + "\nerr " + c.program.Text + "\n"
	case program.WriteReport:
		if err := f.writeReport(c); err != nil {
			c.program.Code = 1
		}
	case program.Hog:
		if limit := c.spec.Resources.GetLimits().GetMemoryBytes(); limit > 0 && c.program.Bytes > limit {
			f.finish(c, runtime.Exit{Code: 128 + uint32(unix.SIGKILL), OOMKilled: true})
			return f.lastPid, nil
		}
	}
	if c.program.After >= 0 {
		c.timer = time.AfterFunc(c.program.After, func() { f.end(c, runtime.Exit{Code: uint32(c.program.Code)}) })
	}
	return c.pid, nil
}

// load finds out what the container's command line does.
func (c *fakeContainer) load() error {
	if _, _, err := userOf(c.spec.Container.GetUser()); err != nil {
		return err
	}
	argv := c.argv()
	if c.image.test && (len(argv) == 0 || argv[0] != imageProgram) {
		return fmt.Errorf("exec %q: no such file: %w", argv, runtime.ErrInvalid)
	}
	p, err := program.Parse(argv)
	switch {
	case err != nil && c.image.test:
		p = program.Program{Kind: program.Exit, Code: 2}
	case err != nil:
		p = program.Program{Kind: program.Sleep, After: program.Forever} // an image of any other kind: a server
	}
	c.program = p
	return nil
}

func (c *fakeContainer) argv() []string {
	command, args := c.image.Entrypoint, c.image.Cmd
	if given := c.spec.Container.GetCommand(); len(given) > 0 {
		command, args = given, nil
	}
	if given := c.spec.Container.GetArgs(); len(given) > 0 {
		args = given
	}
	return slices.Concat(command, args)
}

// Wait implements Runtime.
func (f *Fake) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	if err := f.enter(ctx, OpWait, id); err != nil {
		return runtime.Exit{}, err
	}
	f.mu.Lock()
	c, err := f.get(id)
	f.mu.Unlock()
	if err != nil {
		return runtime.Exit{}, err
	}
	return f.await(ctx, c)
}

func (f *Fake) await(ctx context.Context, c *fakeContainer) (runtime.Exit, error) {
	select {
	case <-c.ended:
	case <-ctx.Done():
		return runtime.Exit{}, fmt.Errorf("wait for container %s: %w", c.spec.ID, ctx.Err())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.state != runtime.Stopped {
		return runtime.Exit{}, fmt.Errorf("container %s: %w", c.spec.ID, runtime.ErrNotFound)
	}
	return c.exit, nil
}

// Kill implements Runtime.
func (f *Fake) Kill(ctx context.Context, id, signal string) error {
	if err := f.enter(ctx, OpKill, id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.get(id)
	if err != nil {
		return err
	}
	return f.signal(c, signal)
}

func (f *Fake) signal(c *fakeContainer, signal string) error {
	number := unix.SignalNum(signal)
	if number == 0 {
		return fmt.Errorf("kill container %s: unknown signal %q: %w", c.spec.ID, signal, runtime.ErrInvalid)
	}
	if c.state != runtime.Running {
		return fmt.Errorf("kill container %s: no process: %w", c.spec.ID, runtime.ErrNotFound)
	}
	switch number {
	case unix.SIGTERM:
		if c.program.Kind == program.IgnoreTerm {
			return nil
		}
	case unix.SIGKILL, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2:
	default:
		return nil // the first process of a container ignores what it does not handle
	}
	f.finish(c, runtime.Exit{Code: 128 + uint32(number)})
	return nil
}

// Stop implements Runtime.
func (f *Fake) Stop(ctx context.Context, id, signal string, grace time.Duration) (runtime.Exit, error) {
	if err := f.enter(ctx, OpStop, id); err != nil {
		return runtime.Exit{}, err
	}
	c, err := f.sendStop(id, signal)
	if err != nil {
		return runtime.Exit{}, err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.ended:
	case <-timer.C:
		f.end(c, runtime.Exit{Code: 128 + uint32(unix.SIGKILL)})
	case <-ctx.Done():
		return runtime.Exit{}, fmt.Errorf("stop container %s: %w", id, ctx.Err())
	}
	return f.await(ctx, c)
}

func (f *Fake) sendStop(id, signal string) (*fakeContainer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.get(id)
	if err != nil {
		return nil, err
	}
	if signal == "" {
		signal = c.image.StopSignal
	}
	if signal == "" {
		signal = "SIGTERM"
	}
	if c.state == runtime.Stopped {
		return c, nil
	}
	return c, f.signal(c, signal)
}

// Remove implements Runtime.
func (f *Fake) Remove(ctx context.Context, id string) error {
	if err := f.enter(ctx, OpRemove, id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.containers[id]; ok {
		f.finish(c, runtime.Exit{Code: 128 + uint32(unix.SIGKILL)})
		f.drop(c)
	}
	return nil
}

// drop forgets a container without a process.
func (f *Fake) drop(c *fakeContainer) {
	for target, dir := range c.scratch {
		if c.given[target] != "" {
			continue
		}
		_ = os.RemoveAll(dir) // a test's temporary directory: removed with it anyway
	}
	delete(f.containers, c.spec.ID)
	if c.state == runtime.Created {
		close(c.ended)
	}
}

// RemoveLogs implements Runtime.
func (f *Fake) RemoveLogs(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.logs, id)
	return nil
}

// Logged implements Runtime.
func (f *Fake) Logged(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := slices.AppendSeq(slices.Collect(maps.Keys(f.logs)), maps.Keys(f.inherited))
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// List implements Runtime.
func (f *Fake) List(ctx context.Context) ([]runtime.Container, error) {
	if err := f.enter(ctx, OpList, ""); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []runtime.Container
	for _, id := range slices.Sorted(maps.Keys(f.containers)) {
		c := f.containers[id]
		item := runtime.Container{ID: id, State: c.state, Pid: c.pid, Labels: maps.Clone(c.spec.Labels), Digest: c.digest}
		if c.state == runtime.Stopped {
			exit := c.exit
			item.Exit = &exit
		}
		out = append(out, item)
	}
	return out, nil
}

func (f *Fake) get(id string) (*fakeContainer, error) {
	c, ok := f.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %s: %w", id, runtime.ErrNotFound)
	}
	return c, nil
}

func (f *Fake) end(c *fakeContainer, exit runtime.Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finish(c, exit)
}

// finish ends the process, if it has one.
func (f *Fake) finish(c *fakeContainer, exit runtime.Exit) {
	if c.state != runtime.Running {
		return
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	c.state, c.pid, c.exit = runtime.Stopped, 0, exit
	close(c.ended)
}
