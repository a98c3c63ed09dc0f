package worker

import (
	"context"
	"fmt"
	"math"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// contactEvery is how often the last contact is looked at, and kept on the disk, while there are tasks that depend on it.
const contactEvery = 2 * time.Second

// leash is how long a task may go on without contact with any manager; 0 = for ever.
func (t *task) leash() time.Duration {
	return max(0, t.template.GetSpec().GetStopAfterDisconnect().AsDuration())
}

// strain brings up to date whether the task has gone on without contact for as long as it may, and returns what is left
// of that time, or when it has passed when to look again. What is past READY then ends for good: the managers count
// on it, and start another one elsewhere. What is not waits for the managers. f.mu is held.
func (f *fleet) strain(t *task) (left time.Duration) {
	leash := t.leash()
	if leash == 0 || t.status.GetState().Ended() {
		t.cut = false
		return math.MaxInt64
	}
	age, known := f.contact.age()
	t.cut = !known || age >= leash
	if !t.cut {
		return leash - age
	}
	if state := t.status.GetState(); state >= swarmpb.TaskState_TASK_STATE_STARTING && t.lapsed == "" && t.situation().desired < swarmpb.TaskState_TASK_STATE_SHUTDOWN {
		t.lapsed = fmt.Sprintf("no contact with any manager for %s", leash)
		f.log.Warn("stopping a task that is not to go on without managers", "task", t.id, "service", t.assigned.GetServiceName(), "after", leash)
	}
	return contactEvery
}

// waitsForContact is the message of a task that may not be started before there is contact.
const waitsForContact = "waiting for contact with a manager that has a leader"

// tether ends what may not go on without contact, and lets go on what waits for it, until ctx ends.
func (f *fleet) tether(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			f.keepContact(0)
			return
		case <-timer.C:
		case <-f.tied:
		}
		next, any := time.Duration(math.MaxInt64), false
		f.mu.Lock()
		for _, t := range f.tasks {
			if t.leash() == 0 || t.status.GetState().Ended() {
				continue
			}
			any = true
			next = min(next, f.strain(t), contactEvery)
			if s := t.situation(); s.cut && s.observed == swarmpb.TaskState_TASK_STATE_READY && t.status.GetMessage() != waitsForContact {
				f.setState(t, s.observed, func(s *swarmpb.TaskStatus) { s.Message = waitsForContact })
			}
			f.kick(t)
		}
		f.depends.Store(any)
		f.mu.Unlock()
		timer.Stop()
		if any {
			f.keepContact(contactEvery)
			timer.Reset(next)
		}
	}
}

// touched notes that at a moment this node was not cut off.
func (f *fleet) touched(m moment) {
	if f.contact.touch(m) && f.depends.Load() {
		poke(f.tied)
	}
}

// keepContact writes the last contact down when there are tasks that depend on it, once in a while.
func (f *fleet) keepContact(every time.Duration) {
	if !f.depends.Load() {
		return
	}
	if record := f.contact.record(every); record != nil {
		f.db.setBytes(bucketNode, keyContact, record)
	}
}
