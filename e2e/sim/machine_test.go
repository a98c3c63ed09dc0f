package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/swarmd/swarmd/manager"
	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker"
	"github.com/swarmd/swarmd/worker/runtime"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

const clusterPort = "2377"

// machine is a host: m1, m2 ... are managers and workers, w1, w2 ... workers alone. What a crash of its swarmd leaves
// is here: files, containers, the network.
type machine struct {
	w          *world
	name       string
	identity   atomic.Pointer[wire.Identity]
	manager    bool
	fake       *runtimetest.Fake
	runtime    *watchedRuntime
	net        *fakeNet
	disk       disk
	weather    weather
	generation int
	offs       int // how many faults keep its swarmd from running
	running    atomic.Pointer[life]
	// away: it has left the cluster; fresh is what it is to come back as.
	away  bool
	fresh atomic.Pointer[wire.Identity]
}

func (m *machine) host() string    { return hostOf(m.name) }
func (m *machine) address() string { return m.host() + ":" + clusterPort }

// node is the ID of the node that the machine is, or was when it left; empty before it has joined.
func (m *machine) node() string {
	if identity := m.identity.Load(); identity != nil {
		return identity.NodeID
	}
	return ""
}

// hostOf is the IP address of a machine, and machineAt its way back.
func hostOf(name string) string {
	if number, ok := strings.CutPrefix(name, "m"); ok {
		return "10.0.0." + number
	}
	return "10.0.1." + strings.TrimPrefix(name, "w")
}

func machineAt(host string) string {
	if number, ok := strings.CutPrefix(host, "10.0.0."); ok {
		return "m" + number
	}
	return "w" + strings.TrimPrefix(host, "10.0.1.")
}

// dir is where the swarmd of now keeps its files: a crash goes on with a copy, since the process that died here
// cannot be kept from writing.
func (m *machine) dir() string {
	return filepath.Join(m.w.dir, m.name, fmt.Sprint(m.generation))
}

// disk is what the manager's log lies on.
type disk struct {
	slow atomic.Int64 // nanoseconds that a write takes at most
	hung atomic.Int32 // faults that keep writes from returning
	full atomic.Int32 // faults for which they fail
}

// life of now, nil while no swarmd runs.
func (m *machine) life() *life { return m.running.Load() }

// weather is what the machine's containers and registries are like.
type weather struct {
	pulls   atomic.Int64 // nanoseconds that a pull takes at most
	failing atomic.Int32 // faults that keep containers from starting
}

// before is called by the runtime.
func (m *machine) before(ctx context.Context, op runtimetest.Op, _ string) error {
	switch op {
	case runtimetest.OpPull:
		if most := m.weather.pulls.Load(); most > 0 {
			timer := time.NewTimer(m.w.upTo(time.Duration(most)))
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	case runtimetest.OpStart:
		if m.weather.failing.Load() > 0 {
			return errors.New("the host is out of something")
		}
	}
	return nil
}

// life is one run of a machine's swarmd.
type life struct {
	m         *machine
	card      *card
	creds     *wire.Credentials
	mgr       *manager.Manager // nil on a worker
	ctx       context.Context
	cancel    context.CancelFunc
	agentDone chan struct{}
	done      chan struct{} // all of it has ended
	killed    atomic.Bool
}

// write is called before each write of the manager's log.
func (l *life) write() error {
	for l.m.disk.hung.Load() > 0 && !l.killed.Load() {
		time.Sleep(50 * time.Millisecond)
	}
	if slow := l.m.disk.slow.Load(); slow > 0 {
		time.Sleep(l.m.w.upTo(time.Duration(slow)))
	}
	if l.m.disk.full.Load() > 0 {
		return syscall.ENOSPC
	}
	return nil
}

// start begins a life. Of a new cluster's first manager, founding is the cluster.
func (m *machine) start(founding *manager.Founding) error {
	l := &life{
		m: m, card: &card{net: m.w.net, machine: m.name, host: m.host()}, creds: wire.NewCredentials(),
		agentDone: make(chan struct{}), done: make(chan struct{}),
	}
	l.creds.SetDialer(l.card.dial)
	l.creds.Set(*m.identity.Load())
	l.ctx, l.cancel = context.WithCancel(context.Background())
	var run []func(context.Context) error
	if m.manager {
		parts, err := l.openManager(founding != nil)
		if err != nil {
			l.cancel()
			return err
		}
		run = parts
	}
	agent, err := worker.New(worker.Config{
		NodeID: m.node(), Hostname: m.name, ListenAddress: m.address(), Dir: filepath.Join(m.dir(), "worker"),
		Runtime: m.runtime, Network: m.net, Seed: m.w.number(),
		Dial: func(_ context.Context, address string) (worker.Conn, error) {
			conn, err := wire.Dial(address, l.creds)
			if err != nil {
				return nil, err
			}
			return conn, nil
		},
		Managers: []*swarmpb.ManagerPeer{{Address: hostOf("m1") + ":" + clusterPort}},
		Logger:   m.w.logger(l),
	})
	if err != nil {
		l.cancel()
		return fmt.Errorf("agent of %s: %w", m.name, err)
	}
	m.running.Store(l)
	m.w.lives.Go(func() { l.run(agent, run) })
	if founding != nil {
		return l.mgr.Found(l.ctx, founding)
	}
	return nil
}

func (l *life) openManager(first bool) ([]func(context.Context) error, error) {
	m := l.m
	listener := wire.NewListener(l.card.listen(clusterPort), l.creds)
	var err error
	l.mgr, err = manager.New(manager.Config{
		Dir: filepath.Join(m.dir(), "manager"), Credentials: l.creds, Address: m.address(), Raft: listener.Raft(),
		Logger: m.w.logger(l), Tuning: replica.Tuning{SnapshotThreshold: 128, TrailingLogs: 32, SnapshotInterval: 5 * time.Second, LowSpaceBytes: 1, BeforeWrite: l.write},
	})
	if err == nil && first {
		err = l.mgr.Bootstrap()
	}
	if err != nil {
		return nil, fmt.Errorf("manager of %s: %w", m.name, errors.Join(err, listener.Close()))
	}
	st := l.mgr.Store()
	from := st.View().Index()
	server := wire.NewServer(wire.ServerConfig{Logger: m.w.logger(l)})
	l.mgr.Register(server)
	// The port answers until the manager has stopped, and so has handed leadership over.
	port, closePort := context.WithCancel(context.WithoutCancel(l.ctx))
	return []func(context.Context) error{
		func(context.Context) error { return listener.Run(port) },
		func(context.Context) error { return server.Serve(listener.GRPC()) },
		func(ctx context.Context) error { return l.follow(ctx, st, from) },
		func(ctx context.Context) error {
			defer server.Stop()
			defer closePort()
			return l.mgr.Run(ctx)
		},
	}, nil
}

func (l *life) run(agent *worker.Agent, parts []func(context.Context) error) {
	defer close(l.done)
	g, ctx := errgroup.WithContext(l.ctx)
	for _, part := range parts {
		g.Go(func() error { return part(ctx) })
	}
	g.Go(func() error {
		defer close(l.agentDone)
		return agent.Run(ctx)
	})
	err := g.Wait()
	if l.ctx.Err() == nil && !l.killed.Load() {
		l.m.w.checks.violate("swarmd on %s ended by itself: %v", l.m.name, err)
	}
	l.m.w.checks.lifeEnded(l)
}

// follow tells the checks every change of the manager's store, from what its disk held on.
func (l *life) follow(ctx context.Context, st *store.Store, from uint64) error {
	for ctx.Err() == nil {
		watch, err := st.Watch(from, 0)
		switch {
		case err == nil:
			l.tell(ctx, watch, from)
			watch.Close()
		case !errors.Is(err, store.ErrCompacted):
			return err
		}
		// It fell behind, or a snapshot took the store's place.
		st = l.mgr.Store()
		from = st.View().Index()
	}
	return ctx.Err()
}

func (l *life) tell(ctx context.Context, watch *store.Watch, from uint64) {
	for {
		batch, err := watch.Next(ctx)
		if err != nil {
			return
		}
		l.m.w.checks.batch(l.m.name, from, batch)
		from = batch.View.Index()
	}
}

// kill ends the swarmd as kill -9 does: from this instant it reaches nobody, and its files stay as they are. The
// caller sees to it that nothing else happens meanwhile.
func (m *machine) kill() { killAll([]*machine{m}) }

// killAll kills several in the same instant.
func killAll(machines []*machine) {
	var died []*life
	for _, m := range machines {
		l := m.running.Swap(nil)
		if l == nil {
			continue
		}
		died = append(died, l)
		m.moveOn()
	}
	// Only now something may move.
	for _, l := range died {
		l.killed.Store(true)
		l.m.w.checks.lifeEnded(l)
		l.card.pull()
	}
	for _, l := range died {
		l.cancel()
		<-l.agentDone // what is left of the manager dies cut off
	}
}

// stop ends the swarmd as SIGTERM does.
func (m *machine) stop() {
	if l := m.running.Swap(nil); l != nil {
		l.cancel()
		<-l.done
		l.card.pull()
		m.moveOn()
	}
}

// moveOn makes a copy of the files for the next life: writes that hang may return yet, and a file's lock with them, which
// the end of a process would take care of.
func (m *machine) moveOn() {
	old := m.dir()
	m.generation++
	if err := copyDir(old, m.dir()); err != nil {
		m.w.checks.violate("copy the files of %s: %v", m.name, err)
	}
}

// ways are all directions to and from a machine.
func (m *machine) ways() []way {
	var out []way
	for _, other := range m.w.machines {
		if other != m {
			out = append(out, way{m.name, other.name}, way{other.name, m.name})
		}
	}
	return out
}

func copyDir(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// watchedRuntime is a machine's containers; what starts and what ends is told to the checks.
type watchedRuntime struct {
	*runtimetest.Fake
	m *machine
}

func (r *watchedRuntime) Start(ctx context.Context, id string) (uint32, error) {
	pid, err := r.Fake.Start(ctx, id)
	if err == nil {
		r.m.w.checkStart(r.m, id)
	}
	return pid, err
}

func (r *watchedRuntime) Wait(ctx context.Context, id string) (runtime.Exit, error) {
	exit, err := r.Fake.Wait(ctx, id)
	if err == nil {
		r.m.w.checks.ended(id, exit)
	}
	return exit, err
}

var _ runtime.Runtime = (*watchedRuntime)(nil)

// leadLog is a slog.Handler that tells the checks when a manager leads, by what it logs for its operator.
type leadLog struct {
	slog.Handler
	l    *life
	term uint64
}

func (h leadLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "term" {
			h.term = a.Value.Uint64()
		}
	}
	h.Handler = h.Handler.WithAttrs(attrs)
	return h
}

func (h leadLog) Enabled(context.Context, slog.Level) bool { return true }

func (h leadLog) Handle(ctx context.Context, r slog.Record) error {
	if h.term != 0 {
		switch r.Message {
		case "leading":
			h.l.m.w.checks.leads(h.l, h.term)
		case "no longer leading":
			h.l.m.w.checks.leadsNoMore(h.l, h.term)
		}
	}
	if h.Handler.Enabled(ctx, r.Level) {
		return h.Handler.Handle(ctx, r)
	}
	return nil
}

func (w *world) logger(l *life) *slog.Logger {
	under := slog.DiscardHandler
	if w.log != nil {
		under = slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}).WithAttrs([]slog.Attr{
			slog.String("machine", cmp.Or(l.m.name, "?"))})
	}
	return slog.New(leadLog{Handler: under, l: l})
}
