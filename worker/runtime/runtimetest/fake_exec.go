package runtimetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest/program"
)

// SetExec replaces FakeConfig.Exec from now on; nil = what package program says.
func (f *Fake) SetExec(exec func(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.ExecResult, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exec = exec
}

// Healthcheck implements Runtime.
func (f *Fake) Healthcheck(_ context.Context, image, digest string) (*runtime.Healthcheck, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found, _, err := f.local(image, digest)
	if err != nil || found.Healthcheck == nil {
		return nil, err
	}
	check := *found.Healthcheck
	return &check, nil
}

// Exec implements Runtime.
func (f *Fake) Exec(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.ExecResult, error) {
	if err := f.enter(ctx, OpExec, id); err != nil {
		return runtime.ExecResult{}, err
	}
	f.mu.Lock()
	c, err := f.get(id)
	running, exec := err == nil && c.state == runtime.Running, f.exec
	f.mu.Unlock()
	if err != nil {
		return runtime.ExecResult{}, err
	}
	if !running {
		return runtime.ExecResult{}, execError(id, runtime.ErrNotRunning)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-c.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	if exec == nil {
		exec = f.play
	}
	result, err := exec(ctx, id, spec)
	if err != nil {
		return result, execError(id, err)
	}
	return result, nil
}

func execError(id string, err error) error {
	return &runtime.ContainerError{Doing: "run a process in", ID: id, Err: err}
}

// play does what package program says.
func (f *Fake) play(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.ExecResult, error) {
	if len(spec.Args) == 0 || spec.Args[0] != imageProgram {
		return runtime.ExecResult{}, fmt.Errorf("exec %q: no such file: %w", spec.Args, runtime.ErrInvalid)
	}
	p, err := program.Parse(spec.Args)
	if err != nil {
		return runtime.ExecResult{Code: 2, Output: []byte("testimage: " + err.Error() + "\n")}, nil
	}
	limit := spec.Limit
	if limit == 0 {
		limit = runtime.DefaultExecOutput
	}
	result := runtime.ExecResult{Code: uint32(p.Code)}
	switch p.Kind {
	case program.Print:
		result.Output = []byte(p.Text + "\nerr " + p.Text + "\n")
	case program.Flood:
		result.Output = bytes.Repeat([]byte("flood\n"), limit)
	case program.WriteReport:
		if err := f.reportExec(id, spec, p); err != nil {
			result.Code = 1
		}
	}
	if len(result.Output) > limit {
		result.Output, result.Truncated = result.Output[:limit], true
	}
	var end <-chan time.Time
	if p.After >= 0 {
		end = time.After(p.After)
	}
	select {
	case <-end:
		return result, nil
	case <-ctx.Done():
		return result, ctx.Err()
	}
}

// reportExec writes the container's report, with what is the process's own.
func (f *Fake) reportExec(id string, spec runtime.ExecSpec, p program.Program) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.get(id)
	if err != nil {
		return err
	}
	inside := *c
	inside.program = p
	inside.spec.Container = swarmpb.Clone(c.spec.Container)
	if spec.Dir != "" {
		inside.spec.Container.Dir = spec.Dir
	}
	inside.spec.Env = slices.Concat(inside.spec.Env, spec.Env)
	if err := f.writeReport(&inside); err != nil {
		return err
	}
	file, _, _ := f.resolve(c, p.File)
	body, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var r program.Report
	if err := json.Unmarshal(body, &r); err != nil {
		return err
	}
	r.Args = spec.Args
	if body, err = json.Marshal(r); err != nil {
		return err
	}
	return os.WriteFile(file, body, 0o644)
}

// TakeVolumes implements Runtime.
func (f *Fake) TakeVolumes(_ context.Context, from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	moves := f.inherited[from]
	delete(f.inherited, from)
	if c, ok := f.containers[from]; ok {
		if c.state == runtime.Running {
			return fmt.Errorf("take the volumes of container %s: %w: it runs", from, runtime.ErrInUse)
		}
		moves = map[string]string{}
		for _, m := range c.spec.Container.GetMounts() {
			if dir := c.scratch[m.GetTarget()]; dir != "" && m.GetType() == swarmpb.MountType_MOUNT_TYPE_VOLUME {
				moves[m.GetTarget()] = dir
				delete(c.scratch, m.GetTarget())
			}
		}
	}
	if f.inherited[to] == nil {
		f.inherited[to] = map[string]string{}
	}
	for target, dir := range moves {
		if f.inherited[to][target] == "" {
			f.inherited[to][target] = dir
		}
	}
	return nil
}

// RemoveVolumes implements Runtime.
func (f *Fake) RemoveVolumes(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, dir := range f.inherited[id] {
		_ = os.RemoveAll(dir) // a test's temporary directory: removed with it anyway
	}
	delete(f.inherited, id)
	return nil
}

// VolumeOf is the directory behind a container's anonymous volume; empty when there is none.
func (f *Fake) VolumeOf(id, target string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.containers[id]; ok {
		return c.scratch[target]
	}
	return ""
}

// Inherited are the directories of the volumes that were given to a container, by target.
func (f *Fake) Inherited(id string) map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.inherited[id])
}
