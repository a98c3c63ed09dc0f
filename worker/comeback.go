package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/worker/health"
	"github.com/swarmd/swarmd/worker/runtime"
)

// Restarts without managers. A manager replaces a task that has ended; a node that no manager can be reached from starts
// the container again itself, under the service's restart policy. To the managers the task has been running all the time:
// its status says how often it was started again, and after which exit codes.
const (
	// comebackEvery is how often a task that has ended looks whether there are managers.
	comebackEvery = 250 * time.Millisecond
	// maxExitCodes is how many exit codes a status keeps, the newest.
	maxExitCodes = 10
	// The pauses of a policy without a delay, and the time after which a container counts as stable: as the managers have them.
	comebackMin  = 500 * time.Millisecond
	comebackMax  = 30 * time.Second
	comebackFine = 60 * time.Second
)

// comeback is what is known of a task's restarts on this node; it is kept in the local database.
type comeback struct {
	// Ended is how the container ended, while that is neither reported nor answered by a restart; nil while it runs.
	Ended *runtime.Exit `json:"ended,omitempty"`
	// Begun: the container that ended may be gone, and the next one be there.
	Begun bool `json:"begun,omitempty"`
	// Count is of all restarts, Codes of the containers that ended before the newest of them.
	Count uint32  `json:"count,omitempty"`
	Codes []int32 `json:"codes,omitempty"`
	// Failures in a row, and the restarts of the window that began at WindowStart (Unix time in nanoseconds).
	Failures    uint32 `json:"failures,omitempty"`
	InWindow    uint64 `json:"inWindow,omitempty"`
	WindowStart int64  `json:"windowStart,omitempty"`

	// notBefore ends the policy's delay; a later process counts the delay anew.
	notBefore time.Time
}

// restartPolicy is a template's, with its defaults.
type restartPolicy struct{ spec *swarmpb.RestartPolicy }

// restarts tells whether a container that ended in this way is to be started again, attempts aside.
func (p restartPolicy) restarts(exit runtime.Exit) bool {
	switch p.spec.GetCondition() {
	case swarmpb.RestartCondition_RESTART_CONDITION_NONE:
		return false
	case swarmpb.RestartCondition_RESTART_CONDITION_ON_FAILURE:
		return explainExit(exit) != ""
	}
	return true
}

// wants is restarts for a task of a desired state: a job's that has completed is done, whatever the condition.
func (p restartPolicy) wants(desired swarmpb.TaskState, exit runtime.Exit) bool {
	return p.restarts(exit) && (desired != swarmpb.TaskState_TASK_STATE_COMPLETE || explainExit(exit) != "")
}

func (p restartPolicy) delay(failures uint32) time.Duration {
	switch {
	case p.spec.GetDelay() != nil:
		return max(0, p.spec.GetDelay().AsDuration())
	case failures == 0:
		return 0
	case failures > 16:
		return comebackMax
	}
	return min(comebackMax, comebackMin<<(failures-1))
}

// next is the record after a container's end; false when the policy wants no restart of it.
func (p restartPolicy) next(c comeback, exit runtime.Exit, ran time.Duration, now time.Time) (comeback, bool) {
	if !p.restarts(exit) {
		return c, false
	}
	if ran >= comebackFine {
		c.Failures = 0
	}
	window := p.spec.GetWindow().AsDuration()
	if c.WindowStart == 0 || window > 0 && now.UnixNano()-c.WindowStart > int64(window) {
		c.InWindow, c.WindowStart = 0, now.UnixNano()
	}
	if most := p.spec.GetMaxAttempts(); most > 0 && c.InWindow >= most {
		return c, false
	}
	c.notBefore = now.Add(p.delay(c.Failures))
	c.Failures = min(c.Failures+1, 1<<30)
	c.Ended, c.Begun = &exit, false
	return c, true
}

// restored is a record of a former process.
func (c comeback) restored(template *swarmpb.AssignedTemplate) comeback {
	if c.Ended != nil && !c.Begun {
		// Failures counts the restart that is to come already.
		c.notBefore = time.Now().Add(restartPolicy{template.GetSpec().GetRestart()}.delay(max(c.Failures, 1) - 1))
	}
	return c
}

// started is the record once the container runs again.
func (c comeback) started() comeback {
	c.Count++
	c.InWindow++
	c.Codes = append(c.Codes[max(0, len(c.Codes)-maxExitCodes+1):len(c.Codes):len(c.Codes)], int32(c.Ended.Code))
	c.Ended, c.Begun = nil, false
	return c
}

// note shows the restarts in a status.
func (c comeback) note(s *swarmpb.TaskStatus) {
	if c.Count == 0 || s.GetContainer() == nil {
		return
	}
	s.Container.LocalRestarts, s.Container.LocalExitCodes = c.Count, c.Codes
	last := fmt.Sprintf("exit code %d", c.Codes[len(c.Codes)-1])
	s.Message = fmt.Sprintf("started again %d times without managers, the last time after %s", c.Count, last)
	if c.Count == 1 {
		s.Message = "started again once without managers, after " + last
	}
}

// setComeback keeps a task's record, in memory and on the disk; nothing is kept of one that was never needed. f.mu is held.
func (f *fleet) setComeback(t *task, c comeback) {
	t.comeback = c
	if c.Count == 0 && c.Ended == nil {
		f.db.setBytes(bucketComebacks, t.id, nil)
		return
	}
	value, err := json.Marshal(c)
	if err != nil {
		f.log.Error("encode for the local database", "bucket", bucketComebacks, "key", t.id, "error", err)
		return
	}
	f.db.setBytes(bucketComebacks, t.id, value)
}

// reachable says whether there are managers that hear of a task's end now, and will see to its replacement.
func (f *fleet) reachable() bool {
	age, known := f.contact.age()
	return f.linked.Load() && (!known || age < f.cfg.Limits.Answer)
}

// alone says whether managers have been out of reach for so long that the node sees to its tasks itself. f.mu is held.
func (f *fleet) alone() bool {
	age, known := f.contact.age()
	if !known {
		age = time.Since(f.began)
	}
	return !f.reachable() && age >= f.cfg.Limits.Alone
}

// onItsOwn says whether a task is started again without managers: there is nobody who would replace it.
func (f *fleet) onItsOwn(t *task) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return t.comeback.Ended != nil && !f.reachable()
}

// stays keeps a task that has ended from being reported so, because no manager can be reached and its policy wants it
// started again. What is to end anyhow, or did not run long enough to be known, ends.
func (f *fleet) stays(t *task, exit runtime.Exit) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reachable() || t.template == nil || t.situation().next() != watch {
		return false
	}
	ran := time.Duration(0)
	if started := t.status.GetContainer().GetStartedAt(); started != 0 && !exit.At.IsZero() {
		ran = exit.At.Sub(time.Unix(0, started))
	}
	policy := restartPolicy{t.template.GetSpec().GetRestart()}
	if !policy.wants(t.assigned.GetDesiredState(), exit) {
		return false
	}
	next, ok := policy.next(t.comeback, exit, ran, time.Now())
	if !ok {
		return false
	}
	f.setComeback(t, next)
	t.health = health.State{At: t.afterHealth(time.Now())}
	f.setState(t, t.status.GetState(), func(s *swarmpb.TaskStatus) {
		if s.GetHealth() != nil {
			s.Health = t.health.Status() // nothing is known of the container that comes
		}
		s.Message, s.Error = "it has ended, and no manager can be reached", explainExit(exit)
	})
	return true
}

// comeBack waits until managers can be reached, which then are told that the task has ended, or until the node has been
// alone for long enough, and then starts the container again. It can be cut short, and done again, at any point.
func (f *fleet) comeBack(ctx, wait context.Context, t *task) {
	f.mu.Lock()
	c := t.comeback
	f.mu.Unlock()
	for !c.Begun {
		f.mu.Lock()
		reachable, alone := f.reachable(), f.alone()
		f.mu.Unlock()
		switch {
		case reachable:
			f.ended(ctx, t, *c.Ended)
			return
		case alone && !time.Now().Before(c.notBefore):
			c.Begun = true
			f.mu.Lock()
			f.setComeback(t, c)
			f.mu.Unlock()
			// Without it a crash from here on would lose only the restart, not the word that it ended.
			if err := f.db.flushed(ctx); err != nil && ctx.Err() == nil {
				f.log.Warn("starting a container again without a record of it", "task", t.id, "error", err)
			}
		case !sleep(wait, comebackEvery):
			return
		}
	}
	pause := backoff{min: f.cfg.Limits.RetryMin, max: f.cfg.Limits.RetryMax}
	for {
		done, err := f.clearWay(wait, t, c)
		if done || wait.Err() != nil {
			return
		}
		if err == nil {
			break
		}
		f.sayTrouble(t, explain(err))
		if !sleep(wait, pause.next(nil)) {
			return
		}
	}
	f.log.Info("starting a container again without managers", "task", t.id, "after", explainExit(*c.Ended), "restarts", c.Count)
	f.start(ctx, wait, t)
}

// clearWay removes the container that ended, so that the next one can have its name. It is done when the next one is there
// already, from before a crash.
func (f *fleet) clearWay(ctx context.Context, t *task, c comeback) (done bool, err error) {
	call, cancel := context.WithTimeout(ctx, runtimeCall)
	defer cancel()
	all, err := f.runtime.List(call)
	if err != nil {
		return false, err
	}
	for _, there := range all {
		switch {
		case there.ID != t.id || there.State == runtime.Created:
		case there.Exit != nil && there.Exit.At.Equal(c.Ended.At):
			if !acquire(call, f.removals) {
				return false, call.Err()
			}
			defer func() { <-f.removals }()
			return false, f.runtime.Remove(call, t.id)
		default:
			f.update(t, swarmpb.TaskState_TASK_STATE_RUNNING, func(s *swarmpb.TaskStatus) {
				noteAdopted(s, there)
				f.cameBack(t, s)
			})
			return true, nil
		}
	}
	return false, nil
}

// cameBack notes that a task's container runs again; s is its new status. f.mu is held.
func (f *fleet) cameBack(t *task, s *swarmpb.TaskStatus) {
	if t.comeback.Ended != nil {
		f.setComeback(t, t.comeback.started())
		s.Error = ""
	}
	t.comeback.note(s)
}
