package dispatcher

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const (
	// drainTimeout is how long the leader waits for nodes to stop sending connections to a task that is to stop.
	drainTimeout = 5 * time.Second
	// drainRetry is the pause after a note that could not be written.
	drainRetry = 250 * time.Millisecond
)

// DrainCounts is how many tasks were noted as drained since this manager began, and how many of them late: some node
// with a live lease had not acknowledged within 5 s that they get no new connections.
type DrainCounts struct{ Noted, Late uint64 }

type drainCounters struct{ noted, late atomic.Uint64 }

// Drains counts what this manager has drained while it led.
func (s *Server) Drains() DrainCounts {
	return DrainCounts{Noted: s.drains.noted.Load(), Late: s.drains.late.Load()}
}

// LeaderDrains is what the leader has counted, as it last said; false: that is not known here.
func (s *Server) LeaderDrains() (DrainCounts, bool) {
	if s.leads() != nil {
		return s.Drains(), true
	}
	said := s.leaderDrains.Load()
	return DrainCounts{Noted: said.GetNoted(), Late: said.GetLate()}, said != nil
}

// drain notes tasks as drained: those that run and are to stop, once every node with a live lease has applied the index at
// which they were told so. Nothing of it is kept but in the store: a new leader asks again.
func (l *leaderPart) drain(ctx context.Context) error {
	var waiting map[string]drainWait
	for ctx.Err() == nil {
		st := l.store()
		view := st.View()
		watch, err := st.Watch(view.Index(), watchLimit)
		if err == nil {
			d := newDrainer(l, view, waiting)
			waiting = d.waiting
			err = d.run(ctx, view, watch)
			watch.Close()
		}
		switch {
		case ctx.Err() != nil || errors.Is(err, store.ErrStaleTerm):
			return nil
		case errors.Is(err, store.ErrOverflow) || errors.Is(err, store.ErrCompacted):
			continue
		case err != nil:
			l.log.Warn("noting drained tasks failed; it is tried again", "error", err)
			select {
			case <-time.After(drainRetry):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// drainer is what the leader waits for.
type drainer struct {
	l       *leaderPart
	waiting map[string]drainWait // by task
	// ready are the nodes that are READY; nil = to be listed anew.
	ready []string
	// behind are nodes to raise an alarm of; alarmed: there are such alarms.
	behind  []string
	alarmed bool
	// retry is when a note that failed may be written again.
	retry time.Time
}

type drainWait struct {
	// index is that at which nodes were told, since when it was seen here.
	index uint64
	since time.Time
	late  bool
}

// newDrainer lists what is waited for; a task that was waited for before goes on with the time that it has waited.
func newDrainer(l *leaderPart, view *store.View, before map[string]drainWait) *drainer {
	d := &drainer{l: l, waiting: make(map[string]drainWait), alarmed: anyBehind(view)}
	for task := range view.Tasks() {
		if !drains(task) {
			continue
		}
		d.see(view, task.GetId())
		if w, waits := d.waiting[task.GetId()]; waits {
			if old, ok := before[task.GetId()]; ok {
				w.since, w.late = old.since, old.late
				d.waiting[task.GetId()] = w
			}
		}
	}
	return d
}

// drains tells whether a task's node waits for the word that it gets no new connections: not for one that its user removes
// with the service, nobody is to reach that any more.
func drains(task *swarmpb.Task) bool {
	return stops(task) && task.GetDesiredState() < swarmpb.TaskState_TASK_STATE_REMOVE
}

// see begins or ends the wait for a task.
func (d *drainer) see(view *store.View, id string) {
	rows := view.TaskRows(id)
	if rows.Task == nil || !drains(rows.Task) || rows.Observed != swarmpb.TaskState_TASK_STATE_RUNNING ||
		rows.Status.GetDrainedAt() != 0 || !isReached(view, rows.Task.GetServiceId()) {
		delete(d.waiting, id)
		return
	}
	index := rows.Task.GetMeta().GetVersion()
	if old, ok := d.waiting[id]; ok {
		old.index = max(index, old.index)
		d.waiting[id] = old
		return
	}
	d.waiting[id] = drainWait{index: index, since: time.Now()}
}

// run waits and writes until the watch breaks or the term is over.
func (d *drainer) run(ctx context.Context, view *store.View, watch *store.Watch) error {
	ctx, cancel := context.WithCancel(ctx)
	batches, broken := make(chan store.Batch), make(chan error, 1)
	go func() { broken <- follow(ctx, watch, batches) }()
	defer func() { cancel(); <-broken }()
	late := time.NewTimer(0)
	defer late.Stop()
	for {
		d.l.draining.Store(len(d.waiting) > 0 || d.alarmed)
		if err := d.note(ctx, view); err != nil {
			return err
		}
		if err := d.alarm(ctx, view, time.Now()); err != nil {
			return err
		}
		late.Stop()
		if next, ok := d.next(); ok {
			late.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-broken:
			broken <- err
			return err
		case batch := <-batches:
			view = batch.View
			d.seeBatch(batch)
		case <-d.l.applied:
		case <-late.C:
		}
	}
}

// follow hands on batches until the watch breaks.
func follow(ctx context.Context, watch *store.Watch, batches chan<- store.Batch) error {
	for {
		batch, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		select {
		case batches <- batch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *drainer) seeBatch(batch store.Batch) {
	for i := range batch.Changes {
		switch c := &batch.Changes[i]; c.Table {
		case swarmpb.Table_TABLE_TASK, swarmpb.Table_TABLE_TASK_STATUS:
			d.see(batch.View, c.Key.ID)
		case swarmpb.Table_TABLE_NODE, swarmpb.Table_TABLE_NODE_STATUS:
			d.ready = nil
		case swarmpb.Table_TABLE_ALARM:
			if c.Key.ID == AlarmNodeBehind {
				d.alarmed = anyBehind(batch.View)
			}
		}
	}
}

// next is when to look again though nothing has happened.
func (d *drainer) next() (first time.Time, ok bool) {
	for _, w := range d.waiting {
		at := w.since.Add(drainTimeout)
		if at.Before(d.retry) {
			at = d.retry
		}
		if !ok || at.Before(first) {
			first, ok = at, true
		}
	}
	return first, ok
}

// note writes that the tasks are drained whose wait is over.
func (d *drainer) note(ctx context.Context, view *store.View) error {
	now := time.Now()
	if len(d.waiting) == 0 || now.Before(d.retry) {
		return nil
	}
	due := d.due(view, now)
	for len(due) > 0 {
		n := min(len(due), maxWrites)
		err := d.l.propose(ctx, []decision{{write: &swarmpb.Write{Op: &swarmpb.Write_SetDrained{
			SetDrained: &swarmpb.SetDrained{TaskIds: due[:n], At: now.UnixNano()}}}}})
		switch {
		case errors.Is(err, store.ErrStaleTerm) || ctx.Err() != nil:
			return err
		case err != nil:
			d.l.log.Warn("noting drained tasks failed; it is tried again", "error", err)
			d.retry = now.Add(drainRetry)
			return nil
		}
		d.l.drains.noted.Add(uint64(n))
		for _, id := range due[:n] {
			delete(d.waiting, id)
		}
		due = due[n:]
	}
	return nil
}

// due are the tasks whose wait is over, by ID.
func (d *drainer) due(view *store.View, now time.Time) []string {
	applied, slowest := d.appliedByAll(view, now)
	var due []string
	late, newest := 0, uint64(0)
	for id, w := range d.waiting {
		over := now.Sub(w.since) >= drainTimeout
		if w.index > applied && !over {
			continue
		}
		if w.index > applied && !w.late {
			late++
			newest = max(newest, w.index)
			w.late = true
			d.waiting[id] = w
		}
		due = append(due, id)
	}
	if late > 0 {
		d.l.drains.late.Add(uint64(late))
		d.l.log.Warn("a node has not stopped sending connections to tasks in time; they stop nevertheless",
			"node", slowest, "hostname", view.NodeName(slowest), "tasks", late, "waited", drainTimeout)
		d.behind = d.lacking(now, newest)
	}
	slices.Sort(due)
	return due
}

// appliedByAll is the index up to which every node that is READY has applied what concerns it, and the last one to do so.
func (d *drainer) appliedByAll(view *store.View, now time.Time) (applied uint64, slowest string) {
	d.list(view)
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	applied = view.Index()
	for _, id := range d.ready {
		if by := d.appliedBy(now, id); by < applied {
			applied, slowest = by, id
		}
	}
	return applied, slowest
}

// list lists the nodes that are READY, unless they are known.
func (d *drainer) list(view *store.View) {
	if d.ready != nil {
		return
	}
	d.ready = []string{}
	for node := range view.Nodes() {
		if view.NodeStatus(node.GetId()).GetState() == swarmpb.NodeState_NODE_STATE_READY {
			d.ready = append(d.ready, node.GetId())
		}
	}
}

// appliedBy is the index up to which a node has applied what concerns it; 0 without a session. Call with the leader's mu held.
func (d *drainer) appliedBy(now time.Time, id string) uint64 {
	lease := d.l.table.nodes[id]
	if !d.l.table.spokenFor(now, lease) || lease.ended {
		return 0
	}
	return lease.applied
}
