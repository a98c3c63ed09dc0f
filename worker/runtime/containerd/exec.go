package containerd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/swarmd/swarmd/worker/runtime"
)

// A process beside a container's own is made by the OCI runtime, called from here: it needs no containerd, leaves no record there,
// and costs no detour through the shim. What is left of it is found by a mark in its environment.

const (
	// execMark is the variable whose value begins with the container's ID.
	execMark = "SWARMD_EXEC"
	// execLook and execLookLast bound the pause between looks at a process that runs.
	execLook, execLookLast = 5 * time.Millisecond, 100 * time.Millisecond
	// execKill is how long the OCI runtime may outlive the process that it has started.
	execKill = 2 * time.Second
	// execDrain is how long output is waited for once everything that was started has ended.
	execDrain = 500 * time.Millisecond
	// floodAfter bytes of output, it is read no faster than floodChunk bytes in floodPause.
	floodAfter, floodChunk, floodPause = 1 << 20, 64 << 10, 10 * time.Millisecond
)

// execution is what an exec needs to know of a container, in containers/<id>/exec.json.
type execution struct {
	// OCI is the path of the program that made the container, and Root where it keeps it.
	OCI     string         `json:"oci"`
	Root    string         `json:"root"`
	Process *specs.Process `json:"process"`
}

func (r *Runtime) executionPath(id string) string {
	return filepath.Join(r.containerDir(id), "exec.json")
}

func (r *Runtime) writeExecution(id string, process *specs.Process) error {
	body, err := json.Marshal(execution{OCI: r.oci.Path, Root: path.Join(r.ociRoot(), Namespace), Process: process})
	if err == nil {
		err = os.WriteFile(r.executionPath(id), body, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write what is run beside it: %w", err)
	}
	return nil
}

// execution of a container. One that an older version made is found in containerd's record.
func (r *Runtime) execution(ctx context.Context, id string) (execution, error) {
	var e execution
	body, err := os.ReadFile(r.executionPath(id))
	if err == nil {
		if err = json.Unmarshal(body, &e); err == nil && e.Process != nil {
			return e, nil
		}
	}
	record, err := r.client.ContainerService().Get(r.namespaced(ctx), id)
	if errdefs.IsNotFound(err) {
		return e, notFound(id)
	}
	if err != nil {
		return e, translate("look up container "+id, err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(record.Spec.GetValue(), &spec); err != nil || spec.Process == nil {
		return e, fmt.Errorf("read the specification of container %s: %w", id, cmp.Or(err, errors.New("it has no process")))
	}
	e = execution{OCI: r.oci.Path, Root: path.Join(r.ociRoot(), Namespace), Process: spec.Process}
	var used options.Options
	if err := typeurl.UnmarshalTo(record.Runtime.Options, &used); err == nil && used.BinaryName != "" && used.Root != "" {
		e.OCI, e.Root = used.BinaryName, path.Join(used.Root, Namespace)
	}
	return e, nil
}

// Exec runs a process in a running container to its end.
func (r *Runtime) Exec(ctx context.Context, id string, spec runtime.ExecSpec) (runtime.ExecResult, error) {
	if len(spec.Args) == 0 || spec.Args[0] == "" {
		return runtime.ExecResult{}, execError(id, invalid("no program is named"))
	}
	ctx, done, ok := r.execs.enter(ctx, id)
	if !ok {
		return runtime.ExecResult{}, execError(id, runtime.ErrNotRunning)
	}
	defer done()
	defer context.AfterFunc(r.ctx, done)()
	s, err := r.readState(id)
	if err != nil {
		return runtime.ExecResult{}, err
	}
	if !s.started() || r.exitOf(s) != nil {
		return runtime.ExecResult{}, execError(id, runtime.ErrNotRunning)
	}
	e, err := r.execution(ctx, id)
	if err != nil {
		return runtime.ExecResult{}, err
	}
	result, err := r.execute(ctx, id, e, spec)
	if err != nil {
		return result, execError(id, err)
	}
	return result, nil
}

func execError(id string, err error) error {
	return &runtime.ContainerError{Doing: "run a process in", ID: id, Err: err}
}

func (r *Runtime) execsDir() string { return filepath.Join(r.RunDir, "exec") }

func (r *Runtime) execute(ctx context.Context, id string, e execution, spec runtime.ExecSpec) (runtime.ExecResult, error) {
	mark := id + "." + rand.Text()
	file := filepath.Join(r.execsDir(), mark)
	defer func() { _, _ = os.Remove(file+".json"), os.Remove(file+".pid") }()
	process := *e.Process
	process.Args, process.Terminal, process.ConsoleSize = spec.Args, false, nil
	process.Env = withEnv(e.Process.Env, append(slices.Clone(spec.Env), execMark+"="+mark))
	process.Cwd = cmp.Or(spec.Dir, process.Cwd)
	body, err := json.Marshal(process)
	if err == nil {
		err = os.WriteFile(file+".json", body, 0o600)
	}
	if err != nil {
		return runtime.ExecResult{}, err
	}
	p := &execProcess{runtime: r, id: id, mark: mark, pidFile: file + ".pid", before: r.processesOf(id), ended: make(chan struct{})}
	p.cmd = exec.Command(e.OCI, "--root", e.Root, "exec", "--process", file+".json", "--pid-file", p.pidFile, id)
	p.output = &head{limit: cmp.Or(spec.Limit, runtime.DefaultExecOutput)}
	err = p.run(ctx)
	result := runtime.ExecResult{Output: p.output.kept, Truncated: p.output.more}
	state := p.cmd.ProcessState
	switch {
	case err != nil:
		return result, err
	case ctx.Err() != nil && !p.over:
		return result, ctx.Err()
	case p.pid == 0 && state.ExitCode() != 0:
		return runtime.ExecResult{}, startReason(errors.New(ociSaid(string(p.output.kept))))
	case state.ExitCode() < 0:
		return result, fmt.Errorf("%s: %s", filepath.Base(e.OCI), state)
	}
	result.Code = uint32(state.ExitCode())
	return result, nil
}

// ociSaid is what the OCI runtime has against a process, out of a line of its log.
func ociSaid(output string) string {
	if _, message, ok := strings.Cut(output, `msg="`); ok {
		output = strings.ReplaceAll(strings.TrimSuffix(strings.TrimSpace(message), `"`), `\"`, `"`)
	}
	return cmp.Or(strings.TrimSpace(output), "the OCI runtime does not say why it cannot be run")
}

// withEnv is an environment with more variables, which replace those of their names.
func withEnv(env, more []string) []string {
	name := func(entry string) string { before, _, _ := strings.Cut(entry, "="); return before }
	out := slices.DeleteFunc(slices.Clone(env), func(entry string) bool {
		return slices.ContainsFunc(more, func(m string) bool { return name(m) == name(entry) })
	})
	return append(out, more...)
}

// execProcess is one on its way: the OCI runtime, which waits for the process in the container.
type execProcess struct {
	runtime  *Runtime
	id, mark string
	cmd      *exec.Cmd
	pidFile  string
	before   []int // processes of the container before it
	output   *head
	ended    chan struct{} // the OCI runtime has
	pid      int           // of the process in the container; 0 = not known
	over     bool          // it has ended by itself
}

func (p *execProcess) run(ctx context.Context) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	p.cmd.Stdout, p.cmd.Stderr = writer, writer
	err = p.cmd.Start()
	_ = writer.Close()
	if err != nil {
		return err
	}
	read := make(chan struct{})
	go func() { defer close(read); p.output.readFrom(reader) }()
	go func() { defer close(p.ended); _ = p.cmd.Wait() }()
	p.await(ctx)
	p.findPid()
	p.killLeft()
	_ = reader.SetReadDeadline(time.Now().Add(execDrain)) // who holds on to the output could not be killed
	<-read
	return nil
}

// await returns once the OCI runtime has ended. It is not always first: runc waits for who holds on to the output of a process
// that has ended.
func (p *execProcess) await(ctx context.Context) {
	var kill <-chan time.Time
	timer := time.NewTimer(execLook)
	defer timer.Stop()
	stop := ctx.Done()
	for pause := execLook; ; {
		select {
		case <-p.ended:
			p.over = p.over || stop != nil
			return
		case <-kill:
			_ = p.cmd.Process.Kill()
		case <-stop:
			stop, kill, pause = nil, time.After(execKill), execLook
			timer.Reset(0)
		case <-timer.C:
			p.findPid()
			p.over = p.over || stop != nil && p.pid != 0 && !lives(p.pid)
			if stop == nil || p.over {
				p.killLeft()
			}
			if p.over && kill == nil {
				kill = time.After(execKill)
			}
			pause = min(2*pause, execLookLast)
			timer.Reset(pause)
		}
	}
}

func (p *execProcess) findPid() {
	if p.pid != 0 {
		return
	}
	if body, err := os.ReadFile(p.pidFile); err == nil {
		p.pid, _ = strconv.Atoi(strings.TrimSpace(string(body)))
	}
}

// killLeft kills the process and what it has started: processes that have its mark, or are of its session. It goes on until it
// finds none, but not for ever.
func (p *execProcess) killLeft() {
	const passes = 20
	for range passes {
		found := false
		for _, pid := range p.runtime.processesOf(p.id) {
			if _, was := slices.BinarySearch(p.before, pid); !was {
				found = killProcess(pid, func() bool { return p.pid != 0 && sessionOf(pid) == p.pid || markOf(pid) == p.mark }) || found
			}
		}
		if !found {
			return
		}
		time.Sleep(time.Millisecond) // they take a moment to end
	}
}

// sweepExecs kills what a former process of ours has left running in a container beside its own.
func (r *Runtime) sweepExecs(s *state) {
	for _, pid := range r.processesOf(s.ID) {
		if pid != int(s.Pid) {
			killProcess(pid, func() bool { return strings.HasPrefix(markOf(pid), s.ID+".") })
		}
	}
}

// processesOf are the processes of a container, sorted, as far as they can be seen from here.
func (r *Runtime) processesOf(id string) (pids []int) {
	body, err := os.ReadFile(r.host.memoryFile(filepath.Join(r.CgroupParent, id), "cgroup.procs", "cgroup.procs"))
	if err != nil {
		return nil
	}
	for _, field := range strings.Fields(string(body)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// markOf is the mark of a process that was run beside a container's own, and of its children; empty of others.
func markOf(pid int) string {
	body, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return ""
	}
	mark := ""
	for entry := range bytes.SplitSeq(body, []byte{0}) {
		if value, ok := bytes.CutPrefix(entry, []byte(execMark+"=")); ok {
			mark = string(value)
		}
	}
	return mark
}

// lives says whether a process is there and is more than a number whose parent has not asked for it yet.
func lives(pid int) bool {
	fields := statOf(pid)
	return len(fields) > 0 && string(fields[0]) != "Z" && string(fields[0]) != "X"
}

func sessionOf(pid int) int {
	fields := statOf(pid)
	if len(fields) < 4 {
		return 0
	}
	session, _ := strconv.Atoi(string(fields[3]))
	return session
}

// statOf are the fields of a process's stat from the state on.
func statOf(pid int) [][]byte {
	body, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	return bytes.Fields(body[bytes.LastIndexByte(body, ')')+1:])
}

// killProcess kills a process that is ours; false for one that is not, or has ended already. It is held before it is looked at, so that
// one of the host that is given the number meanwhile is never killed in its place.
func killProcess(pid int, ours func() bool) bool {
	process, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	defer func() { _ = process.Release() }()
	return ours() && lives(pid) && process.Kill() == nil
}

// head keeps the begin of what is written.
type head struct {
	limit int
	kept  []byte
	more  bool
}

// readFrom reads until the end, and takes its time over a flood.
func (h *head) readFrom(r io.Reader) {
	buffer := make([]byte, 4<<10)
	for total := 0; ; {
		n, err := r.Read(buffer)
		keep := min(n, h.limit-len(h.kept))
		h.kept = append(h.kept, buffer[:keep]...)
		h.more = h.more || keep < n
		if err != nil {
			return
		}
		if total += n; total > floodAfter {
			if len(buffer) < floodChunk {
				buffer = make([]byte, floodChunk)
			}
			time.Sleep(floodPause)
		}
	}
}
