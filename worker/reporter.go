package worker

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// reporter brings the tasks' newest states to the managers. What no manager has acknowledged is sent again, in
// every later session; a state that is overtaken before it is sent never is.
type reporter struct {
	limits Limits
	log    *slog.Logger
	issues *problems
	// acked is told of each status that the managers have, in any order. Set before run.
	acked func(*swarmpb.TaskStatus)

	mu      sync.Mutex
	seq     uint64
	waiting map[string]report
	wake    chan struct{}
}

// report is a status that waits. The message is not changed once it is here.
type report struct {
	status *swarmpb.TaskStatus
	seq    uint64 // order of arrival
	since  time.Time
}

func newReporter(limits Limits, log *slog.Logger, issues *problems) *reporter {
	return &reporter{limits: limits, log: log, issues: issues, waiting: map[string]report{}, wake: make(chan struct{}, 1)}
}

// restore takes up what a former process could not deliver.
func (r *reporter) restore(k kept) {
	for id, status := range k.statuses {
		if !k.acked[id] {
			r.put(status)
		}
	}
}

// put queues a task's newest status. The caller does not change it afterwards.
func (r *reporter) put(status *swarmpb.TaskStatus) {
	r.mu.Lock()
	r.seq++
	next := report{status, r.seq, time.Now()}
	if before, ok := r.waiting[status.GetTaskId()]; ok {
		next.seq, next.since = before.seq, before.since // it keeps its place, so that one that changes all the time is sent as well
	}
	r.waiting[status.GetTaskId()] = next
	r.mu.Unlock()
	poke(r.wake)
}

// drop forgets a task's status.
func (r *reporter) drop(taskID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waiting, taskID)
}

// waits says whether the managers do not have the task's newest status yet.
func (r *reporter) waits(taskID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, waits := r.waiting[taskID]
	return waits
}

// run reports in one session until ctx ends or the session is over.
func (r *reporter) run(ctx context.Context, client swarmpb.DispatcherClient, session string) error {
	pause := backoff{min: r.limits.RetryMin, max: r.limits.ReconnectMax}
	var last time.Time
	for {
		if !r.gather(ctx, last) {
			return ctx.Err()
		}
		batch := r.batch()
		if len(batch) == 0 {
			continue
		}
		last = time.Now()
		err := r.send(ctx, client, session, batch)
		if ctx.Err() != nil {
			return err // of the session's end, not of the managers
		}
		if r.issues.set("report statuses", err) && err != nil {
			r.log.Warn("managers do not take statuses", "error", err)
		}
		if err == nil {
			pause.reset()
			continue
		}
		if wire.CodeOf(err) == wire.CodeFailedPrecondition {
			return err // the session is over
		}
		if !sleep(ctx, pause.next(nil)) {
			return ctx.Err()
		}
	}
}

// gather waits until it is time for the next call, the last one having been at the given time; false when ctx ended.
func (r *reporter) gather(ctx context.Context, last time.Time) bool {
	for {
		var timer *time.Timer
		var due <-chan time.Time
		if at, any := r.due(last); any {
			timer = time.NewTimer(time.Until(at))
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-due:
			return ctx.Err() == nil
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return false
		}
	}
}

// due is when to call: statuses wait StatusDelay for others to come along. One that managers act upon, running or
// ended, goes at once, as long as that makes no more than one call in StatusDelay.
func (r *reporter) due(last time.Time) (at time.Time, any bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, waiting := range r.waiting {
		next := waiting.since
		if waiting.status.GetState() >= swarmpb.TaskState_TASK_STATE_RUNNING {
			next = last
		}
		if next = next.Add(r.limits.StatusDelay); !any || next.Before(at) {
			at, any = next, true
		}
	}
	return at, any
}

// batch is the statuses that wait longest.
func (r *reporter) batch() []*swarmpb.TaskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]report, 0, len(r.waiting))
	for _, waiting := range r.waiting {
		all = append(all, waiting)
	}
	slices.SortFunc(all, func(a, b report) int { return cmp.Compare(a.seq, b.seq) })
	out := make([]*swarmpb.TaskStatus, 0, min(len(all), maxStatuses))
	for _, waiting := range all[:min(len(all), maxStatuses)] {
		out = append(out, waiting.status)
	}
	return out
}

func (r *reporter) send(ctx context.Context, client swarmpb.DispatcherClient, session string, batch []*swarmpb.TaskStatus) error {
	err := r.call(ctx, client, session, batch)
	if err == nil || wire.CodeOf(err) != wire.CodeInvalid {
		return err
	}
	// One bad status must not hold the others up: find it, and give it up.
	if len(batch) == 1 {
		r.log.Error("managers refuse a status, given up", "task", batch[0].GetTaskId(), "state", batch[0].GetState().Name(), "error", err)
		r.done(batch)
		return nil
	}
	half := len(batch) / 2
	if err := r.send(ctx, client, session, batch[:half]); err != nil {
		return err
	}
	return r.send(ctx, client, session, batch[half:])
}

func (r *reporter) call(ctx context.Context, client swarmpb.DispatcherClient, session string, batch []*swarmpb.TaskStatus) error {
	ctx, cancel := context.WithTimeout(ctx, statusCall)
	defer cancel()
	_, err := client.UpdateStatus(ctx, &swarmpb.UpdateStatusRequest{SessionId: session, Statuses: batch})
	if err != nil {
		return wire.FromStatus(err)
	}
	r.done(batch)
	return nil
}

// done notes an acknowledgement; what has changed since it was sent stays.
func (r *reporter) done(batch []*swarmpb.TaskStatus) {
	var acked []*swarmpb.TaskStatus
	r.mu.Lock()
	for _, status := range batch {
		if r.waiting[status.GetTaskId()].status == status {
			delete(r.waiting, status.GetTaskId())
			acked = append(acked, status)
		}
	}
	r.mu.Unlock()
	for _, status := range acked {
		r.acked(status)
	}
}

// backoff is a pause that doubles from min to max.
type backoff struct {
	min, max time.Duration
	current  time.Duration
}

func (b *backoff) reset() { b.current = 0 }

// next is the next pause; a jitter in [0, 1) takes up to half of it away.
func (b *backoff) next(jitter func() float64) time.Duration {
	b.current = min(max(b.min, 2*b.current), b.max)
	if jitter == nil {
		return b.current
	}
	return b.current - time.Duration(jitter()*float64(b.current)/2)
}
