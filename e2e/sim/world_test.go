package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/swarmd/swarmd/manager"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
	"github.com/swarmd/swarmd/worker/runtime/runtimetest"
)

// world is a cluster of several managers, with all that is real but the network, the containers and time.
type world struct {
	t        *testing.T
	dir      string
	log      io.Writer    // nil: what the daemons log is lost
	began    atomic.Int64 // what times are counted from, in nanoseconds
	net      *memNet
	checks   *checks
	machines []*machine // managers first
	lives    sync.WaitGroup
	// operators are at work on nodes.
	operators sync.WaitGroup
	tokens    *swarmpb.JoinTokens

	mu     sync.Mutex
	random *rand.Rand
	// singles are the services of which no two containers may run at a time, by ID.
	singles map[string]bool
	// tasks is the service of each task that a container was started for.
	tasks map[string]string
}

// scratchSpace is what memory must have free to be used for files, in bytes.
const scratchSpace = 256 << 20

// scratch is a directory for a test's files, in memory where that can be: fsync costs nothing there.
func scratch(t *testing.T) string {
	const memory = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(memory, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < scratchSpace {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "swarmd-sim-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// newWorld founds a cluster and waits until everybody is in it. It runs in a bubble.
func newWorld(t *testing.T, dir string, seed uint64, managers, workers int) *world {
	w := &world{
		t: t, dir: dir, random: rand.New(rand.NewPCG(seed, 1)),
		net: newNetwork(rand.New(rand.NewPCG(seed, 2))), singles: map[string]bool{}, tasks: map[string]string{},
	}
	if os.Getenv("SIM_LOG") != "" {
		w.log = os.Stderr
	}
	w.checks = newChecks(func() time.Duration { return time.Duration(time.Now().UnixNano() - w.began.Load()) })
	w.checks.onDrained = w.checkDrained
	w.begin()
	for i := range managers {
		w.add(fmt.Sprintf("m%d", i+1), true)
	}
	for i := range workers {
		w.add(fmt.Sprintf("w%d", i+1), false)
	}
	if err := w.found(); err != nil {
		t.Fatalf("found the cluster: %v", err)
	}
	w.await("every manager votes and every node is ready", time.Minute, w.assembled)
	return w
}

// begin has times counted from now on.
func (w *world) begin() time.Time {
	now := time.Now()
	w.began.Store(now.UnixNano())
	return now
}

func (w *world) add(name string, isManager bool) {
	m := &machine{w: w, name: name, manager: isManager}
	m.fake = runtimetest.NewFake(runtimetest.FakeConfig{Before: m.before})
	m.runtime = &watchedRuntime{Fake: m.fake, m: m}
	m.net = newFakeNet()
	w.machines = append(w.machines, m)
}

// found starts the first manager, and joins the others with its tokens.
func (w *world) found() error {
	spec := &swarmpb.ClusterSpec{}
	spec.SetDefaults()
	founding, err := manager.Foundation(spec, time.Now())
	if err != nil {
		return err
	}
	w.tokens = founding.Tokens
	first := w.machines[0]
	first.identity.Store(&founding.Identity)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := first.start(founding); err != nil {
		return err
	}
	for _, m := range w.machines[1:] {
		if err := m.join(ctx); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// join asks the first manager for an identity, as `swarmctl join` does, and starts.
func (m *machine) join(ctx context.Context) error {
	identity, err := m.apply(ctx, m.w.machines[0])
	if err != nil {
		return err
	}
	m.identity.Store(&identity)
	return m.start(nil)
}

// apply asks a manager for an identity.
func (m *machine) apply(ctx context.Context, to *machine) (wire.Identity, error) {
	token := m.w.tokens.Worker
	if m.manager {
		token = m.w.tokens.Manager
	}
	outside := &card{net: m.w.net, machine: m.name, host: m.host()}
	defer outside.pull()
	return wire.Join(ctx, wire.JoinConfig{Managers: []string{to.address()}, Token: token, Dial: outside.dial})
}

// assembled says what is missing.
func (w *world) assembled() string {
	for _, m := range w.managers() {
		voters := 0
		for _, member := range m.life().mgr.Members() {
			if member.Voter {
				voters++
			}
		}
		if voters != len(w.managers()) {
			return fmt.Sprintf("%s sees %d voters", m.name, voters)
		}
	}
	return w.nodesReady()
}

func (w *world) nodesReady() string {
	v := w.machines[0].life().mgr.Store().View()
	for _, m := range w.machines {
		if state := v.NodeStatus(m.node()).GetState(); state != swarmpb.NodeState_NODE_STATE_READY {
			return fmt.Sprintf("node %s is %s", m.name, state.Name())
		}
	}
	return ""
}

func (w *world) managers() []*machine {
	return slices.DeleteFunc(slices.Clone(w.machines), func(m *machine) bool { return !m.manager })
}

func (w *world) machine(name string) *machine {
	for _, m := range w.machines {
		if m.name == name {
			return m
		}
	}
	panic("no machine " + name)
}

// number and upTo are drawn anew each time.
func (w *world) number() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.random.Uint64()
}

func (w *world) upTo(d time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.random.Int64N(int64(d)))
}

// await polls until missing says nothing, twice in a row, a second apart.
func (w *world) await(what string, within time.Duration, missing func() string) bool {
	w.t.Helper()
	why, before := "", "not yet asked"
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(time.Second) {
		synctest.Wait()
		if why = missing(); why == "" && before == "" {
			return true
		}
		before = why
	}
	w.t.Errorf("after %s not yet: %s: %s", within, what, why)
	return false
}

// checkStart is told of each container that was started: a task's on one machine only, where it may be started again while
// no manager can be reached, and one a service that is single.
func (w *world) checkStart(on *machine, task string) {
	spec, _ := on.fake.Spec(task)
	service := spec.Labels[serviceLabel]
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tasks[task] = service
	starts := 0
	for _, m := range w.machines {
		starts += min(1, m.fake.Starts(task))
	}
	if starts > 1 {
		w.checks.violate("task %s was started on %d machines", task, starts)
	}
	w.checks.started(on, service, task, w.tasks)
	if !w.singles[service] {
		return
	}
	var running []string
	for _, m := range w.machines {
		for _, id := range m.fake.Running() {
			if w.tasks[id] == service {
				running = append(running, m.name+"/"+id)
			}
		}
	}
	if len(running) > 1 {
		w.checks.violate("a service that may run once runs %v", running)
	}
}

// converged says what keeps the cluster from being as its services say.
func (w *world) converged() string {
	w.comeBack()
	for _, m := range w.machines {
		if m.life() == nil {
			return "swarmd does not run on " + m.name
		}
	}
	leader, count := w.checks.leader()
	if count != 1 {
		return fmt.Sprintf("%d managers lead", count)
	}
	v := w.machine(leader).life().mgr.Store().View()
	for _, m := range w.managers() {
		if at := m.life().mgr.Store().View().Index(); at != v.Index() {
			return fmt.Sprintf("%s is at %d, the leader %s at %d", m.name, at, leader, v.Index())
		}
	}
	if why := w.nodesReady(); why != "" {
		return why
	}
	want := map[string]bool{}
	for service := range v.Services() {
		if why := w.goOn(leader, v, service); why != "" {
			return why
		}
		if why := servedBy(v, service, want); why != "" {
			return why
		}
	}
	for _, m := range w.machines {
		for _, id := range m.fake.Running() {
			if task := v.Task(id); task != nil && v.Service(task.ServiceId).GetSpec().GetSchedule() != nil {
				continue
			}
			if !want[id] {
				return fmt.Sprintf("%s runs container %s, which should not", m.name, id)
			}
			if v.TaskRows(id).Placement.GetNodeId() != m.node() {
				return fmt.Sprintf("%s runs container %s of another node", m.name, id)
			}
			delete(want, id)
		}
		if why := m.leftover(v); why != "" {
			return why
		}
		if why := m.net.differs(v, m.node()); why != "" {
			return m.name + " " + why
		}
	}
	if len(want) > 0 {
		return fmt.Sprintf("tasks %v run without a container", slices.Sorted(maps.Keys(want)))
	}
	return ""
}

// rest waits until nothing but schedules has begun anything for a while, balance aside, for which what runs for a moment is load
// too; then it has the schedules suspended, and waits for the runs that go on, and until nothing moves any more.
func (w *world) rest() {
	w.checks.calm()
	if !w.await("the cluster is at rest", convergence, func() string { return cmp.Or(w.converged(), w.checks.restless()) }) {
		return
	}
	leader, _ := w.checks.leader()
	v := w.machine(leader).life().mgr.Store().View()
	for service := range v.Services() {
		if s := service.GetSpec(); s.GetSchedule() != nil && !s.Schedule.Suspended && !service.Removing {
			if at := v.ServiceProgress(service.Id).GetJob().GetNextAt(); at < time.Now().Add(-onTime).UnixNano() {
				w.checks.violate("schedule of %s: its time was %s", s.Name, time.Unix(0, at))
			}
			s = swarmpb.Clone(s)
			s.Schedule.Suspended = true
			w.operate("suspend "+s.Name, func(ctx context.Context, api swarmpb.ControlServer) error {
				_, err := api.UpdateService(ctx, &swarmpb.UpdateServiceRequest{Service: service.Id, Spec: s})
				return err
			})
		}
	}
	if !w.await("the runs of all schedules have ended", convergence, w.converged) {
		return
	}
	w.checks.settled(w.machine(leader).life().mgr.Store().View())
	if w.machine(leader).life().mgr.Store().View().Cluster().GetSpec().GetNoRebalance() {
		w.even()
	}
	w.await("nothing moves any more", evenness, func() string { return cmp.Or(w.converged(), w.checks.restless(), w.checks.evening()) })
}

// goOn has the operator of a service bring an update with two sets of tasks to its end: one that waits is promoted, one that
// a fault has paused goes on. It says what it waits for.
func (w *world) goOn(leader string, v *store.View, service *swarmpb.Service) string {
	update := v.ServiceProgress(service.Id).GetUpdate()
	if !update.Sets() || service.Removing {
		return ""
	}
	request := &swarmpb.CommandRolloutRequest{Service: service.Id, Author: "operator"}
	switch {
	case update.Paused():
		request.Action = swarmpb.RolloutAction_ROLLOUT_ACTION_RESUME
	case update.Phase == swarmpb.RolloutPhase_ROLLOUT_PHASE_WAITING:
		request.Action = swarmpb.RolloutAction_ROLLOUT_ACTION_PROMOTE
	}
	if request.Action != swarmpb.RolloutAction_ROLLOUT_ACTION_UNSPECIFIED {
		if api, ctx, err := w.machine(leader).control(); err == nil {
			// What is refused has gone on meanwhile, and is looked at again.
			_, _ = api.CommandRollout(ctx, request)
		}
	}
	return fmt.Sprintf("the update of %s is under way: %s", service.GetSpec().GetName(), update.Message)
}

// leftover says what the machine keeps of tasks that nobody knows or that have ended.
func (m *machine) leftover(v *store.View) string {
	for _, id := range m.fake.Containers() {
		if v.Task(id) == nil {
			return fmt.Sprintf("%s keeps container %s of no task", m.name, id)
		}
	}
	for _, id := range m.net.owners() {
		// A task that waits for its turn in an update has its address.
		state := v.Observed(id)
		ready := state == swarmpb.TaskState_TASK_STATE_READY && v.Task(id).GetDesiredState() == state
		if state != swarmpb.TaskState_TASK_STATE_RUNNING && !ready {
			return fmt.Sprintf("%s keeps the address or a port of task %s, which is %s", m.name, id, v.Observed(id).Name())
		}
	}
	return ""
}

// compare has the checks compare all stores as they are.
func (w *world) compare() {
	for _, m := range w.managers() {
		if m.life() != nil {
			w.checks.snapshot(m.name, m.life().mgr.Store().View())
		}
	}
}

// end stops everything and waits for what a kill left behind.
func (w *world) end() {
	for _, m := range slices.Backward(w.machines) {
		if m.life() != nil {
			m.life().cancel()
		}
	}
	for _, m := range w.machines {
		m.stop()
	}
	w.lives.Wait()
}

// control is a manager's API, as for a user on that machine; an error while it is down.
func (m *machine) control() (swarmpb.ControlServer, context.Context, error) {
	l := m.life()
	if l == nil {
		return nil, nil, errors.New("swarmd does not run on " + m.name)
	}
	return l.mgr.Control(), l.ctx, nil
}

// table is every task of the newest store, for a failed test.
func (w *world) table() string {
	var newest *store.View
	for _, m := range w.managers() {
		if m.life() != nil {
			if v := m.life().mgr.Store().View(); newest == nil || v.Index() > newest.Index() {
				newest = v
			}
		}
	}
	if newest == nil {
		return "no manager runs"
	}
	var b strings.Builder
	for service := range newest.Services() {
		fmt.Fprintf(&b, "%s %s removing=%t %s\n", service.GetSpec().GetName(), service.Id, service.GetRemoving(), newest.ServiceProgress(service.Id).GetUpdate())
	}
	for task := range newest.Tasks() {
		rows := newest.TaskRows(task.Id)
		host := newest.NodeStatus(rows.Placement.GetNodeId()).GetDescription().GetHostname()
		fmt.Fprintf(&b, "  %s of %s slot %d attempt %d template %d: %s of %s on %q %s %s%s\n", task.Id, task.ServiceId, task.Slot, task.Attempt,
			task.TemplateVersion, rows.Observed.Name(), task.DesiredState.Name(), host, rows.Placement.GetMessage(), rows.Status.GetMessage(), rows.Status.GetError())
	}
	return b.String()
}

// verify has every store derive anew what it keeps up to date.
func (w *world) verify() {
	for _, m := range w.managers() {
		if l := m.life(); l != nil {
			if err := l.mgr.Store().View().Verify(); err != nil {
				w.checks.violate("derived rows on %s: %v", m.name, err)
			}
		}
	}
}
