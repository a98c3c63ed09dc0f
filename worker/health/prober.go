package health

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	goruntime "runtime"
	"sync"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/runtime"
)

// Config of a Prober. Fields without a remark are required.
type Config struct {
	// Exec runs a process in a task's container, as runtime.Runtime does.
	Exec func(ctx context.Context, taskID string, spec runtime.ExecSpec) (runtime.ExecResult, error)
	// Dial connects to a port of a task, as network.Network does.
	Dial func(ctx context.Context, taskID string, port uint16) (net.Conn, error)
	// Execs bounds the processes that are begun at once; 2 for each core.
	Execs int
	// Jitter in [0, 1) spreads the first probes after a restart; nil = random.
	Jitter func() float64
	Logger *slog.Logger
}

// execPlace is how long a process keeps its place among those that are begun at once. Beginning it is what costs; one that hangs
// must not keep others out.
const execPlace = time.Second

// faultPause is the least pause after a probe that this host could not make.
const faultPause = time.Second

// Prober asks the tasks of a node. It is safe for concurrent use.
type Prober struct {
	cfg    Config
	places chan struct{}
}

// New makes a Prober.
func New(cfg Config) *Prober {
	if cfg.Execs <= 0 {
		cfg.Execs = 2 * goruntime.NumCPU()
	}
	if cfg.Jitter == nil {
		cfg.Jitter = rand.Float64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Prober{cfg: cfg, places: make(chan struct{}, cfg.Execs)}
}

// Task is what is asked.
type Task struct {
	ID     string
	Checks Checks
	// Started is when its container did.
	Started time.Time
	// From is what was known before; not zero: it goes on from there, a part of an interval from now.
	From State
	// Untold: nobody was told of From, so that the first thing that is known for certain is news.
	Untold bool
}

// Watch asks a task until ctx ends, or it is unhealthy. Each change is told, one after the other; the last one before it returns.
func (p *Prober) Watch(ctx context.Context, t Task, tell func(State)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &watching{prober: p, task: t, machine: NewMachine(t.Checks, t.Started, t.From), tell: tell, end: cancel}
	w.machine.untold = t.Untold
	var asking sync.WaitGroup
	if t.Checks.Live != nil {
		asking.Go(func() { w.run(ctx, t.Checks.Live) })
	}
	if t.Checks.Ready != nil && t.Checks.Ready != t.Checks.Live {
		asking.Go(func() { w.run(ctx, t.Checks.Ready) })
	}
	asking.Wait()
}

// watching is one task being watched.
type watching struct {
	prober *Prober
	task   Task
	tell   func(State)
	end    context.CancelFunc

	mu      sync.Mutex
	machine *Machine
}

// run asks one check.
func (w *watching) run(ctx context.Context, check *Check) {
	pause := time.Duration(0)
	if w.task.From.WasReady {
		pause = time.Duration(w.prober.cfg.Jitter() * float64(check.Interval))
	}
	faults := uint32(0) // of this host, in a row
	for sleep(ctx, pause) {
		answer, err := w.prober.inPlace(ctx, w.task.ID, check)
		if ctx.Err() != nil {
			return
		}
		if faults++; err == nil {
			faults = 0
		} else if faults == check.Retries {
			w.prober.cfg.Logger.Warn("a task cannot be asked how it is; what is known of it stands", "task", w.task.ID, "probe", check.String(), "error", err)
			w.waits(err)
		}
		pause = w.take(check, answer, err)
	}
}

// waits tells of a task that was never ready why it is not, when that is this host's fault.
func (w *watching) waits(fault error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.machine.State().WasReady {
		w.tell(w.machine.Fault(fault, time.Now()))
	}
}

// take gives the pause until the next probe.
func (w *watching) take(check *Check, a Answer, failed error) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if failed == nil {
		state, changed := w.machine.Take(check, a, time.Now())
		if changed {
			w.tell(state)
		}
		if state.Live == swarmpb.HealthState_HEALTH_STATE_UNHEALTHY {
			w.end()
		}
	}
	pause := w.machine.Pause(check)
	if failed != nil {
		pause = max(pause, faultPause)
	}
	return pause
}

// inPlace asks once there is a place, if it needs one. Waiting for it is no part of the probe's timeout.
func (p *Prober) inPlace(ctx context.Context, taskID string, check *Check) (Answer, error) {
	if _, ok := check.Probe.GetKind().(*swarmpb.Probe_Exec); !ok {
		return p.Ask(ctx, taskID, check)
	}
	select {
	case p.places <- struct{}{}:
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
	leave := sync.OnceFunc(func() { <-p.places })
	defer leave()
	timer := time.AfterFunc(execPlace, leave)
	defer timer.Stop()
	return p.Ask(ctx, taskID, check)
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
