package worker

import (
	"context"
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// A task that is to stop first waits until no node sends it new connections, which the managers say, and then until
// those that are established have ended, for no longer than its drain time: its stop grace period where its spec does not say. Between
// the two its pre-stop command runs (hook.go).
const (
	// drainLook is how often contact with the managers is looked at while a task waits for their word.
	drainLook = 250 * time.Millisecond
	// countMin and countMax bound the pause between looks at a task's connections.
	countMin, countMax = 50 * time.Millisecond, 500 * time.Millisecond
	// sayEvery is the least time between two messages of how many connections are left.
	sayEvery = 2 * time.Second
)

const waitsForDrained = "draining: waiting until no node sends it new connections"

// drain waits until the task may be stopped. It ends early when the task is to be stopped at once, or has ended.
func (f *fleet) drain(ctx, wait context.Context, t *task) {
	ended := make(chan struct{})
	wait, cancel := context.WithCancel(wait)
	defer cancel()
	go func() {
		defer close(ended)
		if _, err := f.runtime.Wait(wait, t.id); err == nil {
			f.gone(ctx, t)
		}
	}()
	defer func() { cancel(); <-ended }()
	drained := f.awaitDrained(wait, t, ended)
	if drained {
		f.hook(ctx, t) // to its end, whatever else the managers want now: it is run once
	}
	if drained && f.awaitConnections(wait, t, ended) || isClosed(ended) {
		f.mu.Lock()
		t.dry = true
		f.mu.Unlock()
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// awaitDrained waits until the managers say that no node sends the task new connections; false when wait ended first, or
// the task has. Without managers there is nobody to say so, and one that stays silent does not keep a task for ever.
func (f *fleet) awaitDrained(wait context.Context, t *task, ended <-chan struct{}) bool {
	began := time.Now()
	for {
		f.mu.Lock()
		told := t.assigned.GetDrained() || !speaksOfReach(f.config)
		f.mu.Unlock()
		switch {
		case told:
			return true
		case f.lostFor() >= f.cfg.Limits.Undrained:
			f.log.Info("stopping a task without the managers' word that nobody sends it connections", "task", t.id, "after", f.cfg.Limits.Undrained)
			return true
		case time.Since(began) >= f.cfg.Limits.Undrainable:
			f.log.Warn("the managers do not say that nobody sends a task connections; stopping it", "task", t.id, "after", f.cfg.Limits.Undrainable)
			return true
		}
		f.say(t, waitsForDrained, "")
		timer := time.NewTimer(drainLook)
		select {
		case <-timer.C:
		case <-t.wake:
		case <-ended:
			timer.Stop()
			return false
		case <-wait.Done():
			timer.Stop()
			return false
		}
		timer.Stop()
	}
}

// lostFor is for how long no manager with a leader has been in reach.
func (f *fleet) lostFor() time.Duration {
	if age, known := f.contact.age(); known {
		return age
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.began)
}

// awaitConnections waits until the task's connections have ended or have had their time; false when wait ended first,
// or the task has.
func (f *fleet) awaitConnections(wait context.Context, t *task, ended <-chan struct{}) bool {
	_, template, _ := f.look(t)
	until := time.Now().Add(drainOf(template.GetSpec().GetContainer()))
	pause := backoff{min: countMin, max: countMax}
	var said time.Time
	for {
		left, err := f.cfg.Network.Established(t.id)
		now := time.Now()
		switch {
		case err == nil && left == 0:
			return true
		case !now.Before(until):
			f.log.Info("a task's drain time is over; its connections are cut", "task", t.id, "connections", left)
			return true
		case now.Sub(said) >= sayEvery:
			said = now
			f.say(t, drainMessage(left, err), "")
		}
		timer := time.NewTimer(min(pause.next(nil), until.Sub(now)))
		select {
		case <-timer.C:
		case <-ended:
			timer.Stop()
			return false
		case <-wait.Done():
			timer.Stop()
			return false
		}
	}
}

func drainMessage(left int, err error) string {
	switch {
	case err != nil:
		return "draining: its connections cannot be counted: " + explain(err)
	case left == 1:
		return "draining: 1 connection left"
	}
	return fmt.Sprintf("draining: %d connections left", left)
}

// gone tells the network that the task's process has ended: new connections to it are refused here from now on.
func (f *fleet) gone(ctx context.Context, t *task) {
	_, _, status := f.look(t)
	if status.GetState() < swarmpb.TaskState_TASK_STATE_STARTING || ctx.Err() != nil {
		return // it never took any
	}
	f.goneByID(ctx, t.id)
}

func (f *fleet) goneByID(ctx context.Context, id string) {
	if err := f.cfg.Network.Gone(ctx, id); err != nil && ctx.Err() == nil {
		f.log.Warn("cannot take an ended task out of the node's balancers; the network tries again", "task", id, "error", err)
	}
}
