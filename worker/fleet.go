package worker

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/health"
	"github.com/swarmd/swarmd/worker/runtime"
)

// staleFor is how long full sets older than what was applied are refused: a manager that lags behind would have
// this node stop what it does not know of yet. After that the managers are taken to have lost their newest state.
const staleFor = 15 * time.Second

// fleet is the node's tasks, assigned and local, and drives each towards what is desired.
type fleet struct {
	cfg     Config
	log     *slog.Logger
	db      *db
	reports *reporter
	issues  *problems
	reach   *reach
	runtime runtime.Runtime
	pulls   *pulls
	contact *contact
	tell    *teller
	prober  *health.Prober
	// starts and removals bound the runtime's expensive calls.
	starts, removals chan struct{}

	// depends: there are tasks that are not to go on without contact; tied is poked when they are to be looked at.
	depends atomic.Bool
	tied    chan struct{}
	// hinted is poked when there may be other nodes for gossip to speak of.
	hinted chan struct{}

	// linked: there is a session. began is when this process began.
	linked atomic.Bool
	began  time.Time

	// adopted is closed once what a former process left is taken up; sets are applied only after it.
	adopted chan struct{}

	mu        sync.Mutex
	ctx       context.Context // of run; nil outside of it
	work      sync.WaitGroup
	tasks     map[string]*task
	templates map[templateKey]*swarmpb.AssignedTemplate
	// strangers are containers without a record: kept until a full set says whether they are ours.
	strangers map[string]runtime.Container
	version   uint64 // the highest applied
	staleTill time.Time
	// logsSwept: what a former process left of logs is looked after, or is not to be.
	logsSwept bool
	config    *swarmpb.NodeConfig
	// configured is closed, and made anew, when the network has taken config, or something that tasks may wait for.
	configured  chan struct{}
	configuring bool
}

// task is one task of the node. Its fields are guarded by fleet.mu; status is replaced, never changed.
type task struct {
	id       string // never changes
	assigned *swarmpb.AssignedTask
	template *swarmpb.AssignedTemplate // nil = never known, or of a task that has ended
	status   *swarmpb.TaskStatus
	// removed: the managers name it no more. cleaned: its container and network are gone.
	removed, cleaned bool
	// dry: it is to stop, and its connections have ended or have had their time. unreached: no node ever sent it any.
	dry, unreached bool
	// wake is poked when something has changed that a step waits for.
	wake chan struct{}
	// cut: it has been without contact for as long as it may be. lapsed says so once it is ended for that.
	cut    bool
	lapsed string
	// checks are what it is asked, and health what it has answered; nil and zero until that is known.
	checks *health.Checks
	health health.State
	// sick is why it is stopped though it is to run: what its probe says. Empty while it says nothing of the kind.
	sick string
	// hooked: its pre-stop command has had its turn; hookFailed is what came of it, if that was no good.
	hooked     bool
	hookFailed string
	// comeback is of its restarts without managers.
	comeback comeback
	// doing is the step under way; hold = no goroutine is at it. interrupt ends a step that waits.
	doing     action
	interrupt context.CancelFunc
}

func newFleet(cfg Config, db *db, reports *reporter, issues *problems) *fleet {
	f := &fleet{
		cfg: cfg, log: cfg.Logger, db: db, reports: reports, issues: issues, runtime: cfg.Runtime, reach: newReach(cfg, issues),
		pulls: newPulls(cfg.Runtime, cfg.Limits.Pulls), contact: newContact(), tell: newTeller(cfg), tied: make(chan struct{}, 1), hinted: make(chan struct{}, 1),
		starts: make(chan struct{}, cfg.Limits.Starts), removals: make(chan struct{}, cfg.Limits.Removals),
	}
	f.prober = newProber(cfg)
	reports.acked = f.acknowledged
	f.reset()
	return f
}

func (f *fleet) reset() {
	f.adopted = make(chan struct{})
	f.tasks = map[string]*task{}
	f.templates = map[templateKey]*swarmpb.AssignedTemplate{}
	f.strangers = map[string]runtime.Container{}
	f.depends.Store(false)
	f.config, f.configured, f.version, f.staleTill = nil, make(chan struct{}), 0, time.Time{}
	f.logsSwept = false
}

// begin takes up the records of a former process, for a run until ctx ends.
func (f *fleet) begin(ctx context.Context, k kept) {
	f.reach.restore(ctx, k)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reset()
	f.ctx, f.began = ctx, time.Now()
	f.restore(k)
}

// run takes up what a former process left running and works until ctx ends and every step has returned.
func (f *fleet) run(ctx context.Context) error {
	f.adopt(ctx)
	f.tether(ctx)

	f.mu.Lock()
	f.ctx = nil
	f.mu.Unlock()
	f.work.Wait()
	return nil
}

// spawn runs fn until the fleet ends; false when it has. f.mu may not be held by fn's caller's callers for long.
func (f *fleet) spawn(fn func(ctx context.Context)) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.spawnLocked(fn)
}

func (f *fleet) spawnLocked(fn func(ctx context.Context)) bool {
	if f.ctx == nil || f.ctx.Err() != nil {
		return false
	}
	ctx := f.ctx
	f.work.Go(func() { fn(ctx) })
	return true
}

func (f *fleet) running() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, t := range f.tasks {
		if t.status.GetState() == swarmpb.TaskState_TASK_STATE_RUNNING {
			n++
		}
	}
	return n
}

// apply makes a set the node's aim; it returns once the set is on the disk, as far as the disk takes it.
func (f *fleet) apply(ctx context.Context, s *set) error {
	select {
	case <-f.adopted:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := f.checkAge(s); err != nil {
		return err
	}
	rows, err := f.reach.take(ctx, s)
	if err != nil {
		return err
	}
	f.db.together(func() {
		for at, row := range rows {
			f.db.set(at.bucket, at.key, row)
		}
		f.take(s)
	})
	if !s.full && len(s.changes) == 0 {
		return nil // of what is lost with the disk the managers tell anew; until then the kernel has it
	}
	if err := f.db.flushed(ctx); err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return nil
}

func (f *fleet) take(s *set) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.reaches() {
		poke(f.hinted)
		f.stir() // a task may wait for a network or service that is known now
	}
	named := map[string]bool{}
	templates := map[templateKey]bool{}
	for _, c := range s.changes {
		switch c := c.GetChange().(type) {
		case *swarmpb.AssignmentChange_NodeConfig:
			f.takeConfig(c.NodeConfig)
			f.tell.configured(c.NodeConfig)
		case *swarmpb.AssignmentChange_Template:
			key := templateKey{c.Template.GetServiceId(), c.Template.GetVersion()}
			templates[key] = true
			f.templates[key] = told(c.Template)
			f.db.set(bucketTemplates, key.String(), unsealed(f.templates[key]))
		case *swarmpb.AssignmentChange_Task:
			if !validTaskID(c.Task.GetId()) {
				f.log.Error("assigned task has no valid ID, ignored", "task", c.Task.GetId())
				continue
			}
			named[c.Task.GetId()] = true
			f.takeTask(c.Task)
		case *swarmpb.AssignmentChange_RemoveTask:
			f.removeTask(c.RemoveTask)
		case *swarmpb.AssignmentChange_RemoveTemplate:
			f.removeTemplate(templateKey{c.RemoveTemplate.GetServiceId(), c.RemoveTemplate.GetVersion()})
		}
	}
	if s.full {
		f.takeFull(named, templates)
	}
	f.trimHistory()
	f.version = s.version
	f.db.set(bucketNode, keyVersion, &swarmpb.AssignmentsResponse{Version: s.version})
}

// stir has tasks that wait to be attached try at once. f.mu is held.
func (f *fleet) stir() {
	close(f.configured)
	f.configured = make(chan struct{})
}

// checkAge refuses a full set from a manager that lags behind what this node was told before.
func (f *fleet) checkAge(s *set) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !s.full || s.version >= f.version {
		f.staleTill = time.Time{}
		return nil
	}
	now := time.Now()
	if f.staleTill.IsZero() {
		f.staleTill = now.Add(staleFor)
	}
	if now.Before(f.staleTill) {
		return badSet("the manager offers assignments of version %d, older than %d", s.version, f.version)
	}
	f.log.Warn("managers have gone back to an older state", "from", f.version, "to", s.version)
	f.staleTill = time.Time{}
	return nil
}

// takeFull ends what a full set does not name.
func (f *fleet) takeFull(named map[string]bool, templates map[templateKey]bool) {
	for id, t := range f.tasks {
		// An ended task that is named no more only leaves its logs, which history bounds, but for one whose removal a former
		// process could not finish.
		if removed := t.assigned.GetDesiredState() >= swarmpb.TaskState_TASK_STATE_REMOVE; !named[id] && (removed || !t.status.GetState().Ended()) {
			f.removeTask(id)
		}
	}
	for key := range f.templates {
		if !templates[key] {
			f.removeTemplate(key)
		}
	}
	for id, c := range f.strangers {
		delete(f.strangers, id)
		f.spawnLocked(func(ctx context.Context) { f.removeStranger(ctx, c) })
	}
	if !f.logsSwept {
		f.logsSwept = f.spawnLocked(f.sweepLogs)
	}
}

// removeTemplate keeps on the disk what a task that is still to be stopped needs; the next full set after a
// restart takes it away.
func (f *fleet) removeTemplate(key templateKey) {
	delete(f.templates, key)
	for _, t := range f.tasks {
		if t.template.GetServiceId() == key.service && t.template.GetVersion() == key.version && !t.status.GetState().Ended() {
			return
		}
	}
	f.db.set(bucketTemplates, key.String(), nil)
}

// takeTask makes or changes a task.
func (f *fleet) takeTask(assigned *swarmpb.AssignedTask) {
	id := assigned.GetId()
	t, ok := f.tasks[id]
	if !ok {
		if assigned.GetObservedState().Ended() {
			return
		}
		t = &task{id: id, doing: hold, wake: make(chan struct{}, 1), status: &swarmpb.TaskStatus{TaskId: id, State: swarmpb.TaskState_TASK_STATE_ASSIGNED, At: time.Now().UnixNano()}}
		f.tasks[id] = t
	}
	was := t.assigned
	// What is drained though it is not to stop never had any connections to wait for.
	t.unreached = assigned.GetDrained() && (t.unreached || was.GetDrained() && was.GetDesiredState().Wanted())
	t.assigned, t.removed = assigned, false
	f.db.set(bucketTasks, id, assigned)
	if t.template == nil && !t.status.GetState().Ended() {
		t.template = f.templates[templateKey{assigned.GetServiceId(), assigned.GetTemplateVersion()}]
	}
	if !ok {
		f.greet(t)
	} else if assigned.GetObservedState() < t.status.GetState() && t.status.GetState() > swarmpb.TaskState_TASK_STATE_ASSIGNED {
		f.reports.put(t.status) // the managers do not have it, or not any more
	}
	if t.leash() > 0 {
		poke(f.tied)
	}
	f.kick(t)
}

// greet gives a task that is new to this process its first state.
func (f *fleet) greet(t *task) {
	id := t.id
	c, isStranger := f.strangers[id]
	delete(f.strangers, id)
	switch {
	case isStranger && c.State != runtime.Created:
		state := swarmpb.TaskState_TASK_STATE_RUNNING
		if t.assigned.GetObservedState() < state && t.awaitsReady() {
			state = swarmpb.TaskState_TASK_STATE_STARTING
		}
		f.setState(t, state, func(s *swarmpb.TaskStatus) {
			s.Container = &swarmpb.ContainerStatus{ContainerId: id, Pid: c.Pid, ImageDigest: c.Digest}
		})
	case t.assigned.GetObservedState() > swarmpb.TaskState_TASK_STATE_STARTING:
		f.spawnLocked(func(ctx context.Context) { f.goneByID(ctx, id) })
		f.setState(t, endedState(t), func(s *swarmpb.TaskStatus) { s.Error = errGone })
	case t.template == nil:
		f.setState(t, swarmpb.TaskState_TASK_STATE_REJECTED, func(s *swarmpb.TaskStatus) {
			s.Error = fmt.Sprintf("the managers sent no template %d of service %s", t.assigned.GetTemplateVersion(), t.assigned.GetServiceName())
		})
	}
}

// errGone is a task's error when its container is not there though it had run.
const errGone = "its container is gone"

// endedState of a task whose container ended by no fault that can be told.
func endedState(t *task) swarmpb.TaskState {
	if t.removed || t.assigned.GetDesiredState() >= swarmpb.TaskState_TASK_STATE_SHUTDOWN {
		return swarmpb.TaskState_TASK_STATE_SHUTDOWN
	}
	return swarmpb.TaskState_TASK_STATE_FAILED
}

func (f *fleet) removeTask(id string) {
	t, ok := f.tasks[id]
	if !ok {
		return
	}
	t.removed = true
	// A restart before it has stopped must not take it up again.
	t.assigned = swarmpb.Clone(t.assigned)
	t.assigned.DesiredState = swarmpb.TaskState_TASK_STATE_REMOVE
	f.db.set(bucketTasks, id, t.assigned)
	f.kick(t)
}

// trimHistory forgets the oldest ended tasks beyond the limit.
func (f *fleet) trimHistory() {
	var ended []*task
	for _, t := range f.tasks {
		if t.status.GetState().Ended() && t.cleaned && !t.removed && !f.reports.waits(t.id) {
			ended = append(ended, t)
		}
	}
	if len(ended) <= f.cfg.Limits.History {
		return
	}
	slices.SortFunc(ended, func(a, b *task) int { return cmp.Compare(a.status.GetAt(), b.status.GetAt()) })
	for _, t := range ended[:len(ended)-f.cfg.Limits.History] {
		f.removeTask(t.id)
	}
}

// setState moves a task on; a state that is not above the present one only changes what edit changes. The new status
// is reported and kept.
func (f *fleet) setState(t *task, state swarmpb.TaskState, edit func(*swarmpb.TaskStatus)) {
	next := swarmpb.Clone(t.status)
	if state > next.GetState() {
		next.State, next.At = state, time.Now().UnixNano()
		next.Message, next.Error = state.Name(), ""
		f.log.Debug("task state", "task", t.id, "state", state.Name())
	}
	if edit != nil {
		edit(next)
	}
	t.status = next
	id := next.GetTaskId()
	f.db.set(bucketStatuses, id, next)
	f.db.set(bucketAcked, id, nil)
	f.reports.put(next)
}

// update is setState for one who does not hold the lock.
func (f *fleet) update(t *task, state swarmpb.TaskState, edit func(*swarmpb.TaskStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setState(t, state, edit)
}

// acknowledged notes that the managers have a status.
func (f *fleet) acknowledged(status *swarmpb.TaskStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t, ok := f.tasks[status.GetTaskId()]; ok && t.status == status {
		f.db.set(bucketAcked, status.GetTaskId(), &swarmpb.TaskStatus{})
	}
}

// kick looks at a task's next step: starts it when nothing is under way, and interrupts what is no longer right.
func (f *fleet) kick(t *task) {
	f.strain(t)
	act := t.situation().next()
	if t.doing != hold {
		if act != t.doing && t.interrupt != nil {
			t.interrupt()
		}
		poke(t.wake)
		return
	}
	if act != hold && f.spawnLocked(func(ctx context.Context) { f.drive(ctx, t) }) {
		t.doing = act
	}
}

func (t *task) situation() situation {
	return situation{
		desired: t.assigned.GetDesiredState(), observed: t.status.GetState(),
		removed: t.removed, cleaned: t.cleaned, cut: t.cut, lapsed: t.lapsed != "", again: t.comeback.Ended != nil,
		dry: t.dry || t.unreached, sick: t.sick != "",
	}
}

// drive takes a task's steps one after the other, until there is nothing to do.
func (f *fleet) drive(ctx context.Context, t *task) {
	for {
		f.mu.Lock()
		f.strain(t)
		act := t.situation().next()
		t.doing = hold
		if ctx.Err() != nil || act == hold {
			f.mu.Unlock()
			return
		}
		t.doing = act
		step, cancel := context.WithCancel(ctx)
		t.interrupt = cancel
		f.mu.Unlock()
		f.safely(ctx, t, func() { f.step(ctx, step, t, act) })
		cancel()
		if act == forget {
			return
		}
	}
}

// safely turns a panic over one task into that task's end.
func (f *fleet) safely(ctx context.Context, t *task, fn func()) {
	defer func() {
		if r := recover(); r != nil {
			defer sleep(ctx, f.cfg.Limits.RetryMax)
			f.log.Error("a task's step panicked", "task", t.id, "panic", r)
			f.update(t, swarmpb.TaskState_TASK_STATE_FAILED, func(s *swarmpb.TaskStatus) { s.Error = oneLine(fmt.Sprint("internal error: ", r)) })
		}
	}()
	fn()
}

// validTaskID keeps what is used as a file's or a link's name to harmless characters.
func validTaskID(id string) bool {
	if id == "" || len(id) > 64 {
		return false
	}
	for _, r := range id {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return false
		}
	}
	return true
}

// ids of the tasks that have, or may yet have, something on the network.
func (f *fleet) liveIDs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for id, t := range f.tasks {
		if !t.cleaned {
			out = append(out, id)
		}
	}
	return slices.AppendSeq(out, maps.Keys(f.strangers))
}
