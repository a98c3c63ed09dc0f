package worker

import (
	"fmt"
	"sync"
	"time"
)

const (
	// clockFor is how long a measurement counts when the later ones are less exact.
	clockFor = 30 * time.Second
	// clockWrong is the least difference that is a problem: certificates and logs bear it, people do not.
	clockWrong = time.Second
	// aboutClock names the problem.
	aboutClock = "clock"
)

// clock compares this host's clock with that of the manager which the session is with: the answer to a beat says when
// it was sent, and was sent between the beat and its arrival here.
type clock struct {
	mu sync.Mutex
	at time.Time // of the measurement; zero = there is none
	// ahead is how far this host is before the manager, negative = behind, give or take within.
	ahead, within time.Duration
}

// measure takes an answer that a manager sent at its time sentAt to a beat that was sent here at a moment.
func (c *clock) measure(beat time.Time, sentAt int64) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	within := now.Sub(beat) / 2
	if !c.at.IsZero() && within > c.within && now.Sub(c.at) < clockFor {
		return
	}
	// In Unix time, as the wall clock may have been set since the beat.
	c.at, c.within = now, within
	c.ahead = time.Duration(now.UnixNano()-sentAt) - within
}

// read is false without a measurement that still counts.
func (c *clock) read() (ahead, within time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ahead, c.within, !c.at.IsZero() && time.Since(c.at) < 2*clockFor
}

// problem is that the clock is certainly wrong, or a manager's is.
func (c *clock) problem() error {
	ahead, within, ok := c.read()
	if !ok || ahead.Abs()-within < clockWrong {
		return nil
	}
	where := "ahead of"
	if ahead < 0 {
		where = "behind"
	}
	return fmt.Errorf("this host is %s %s the manager that it is connected to; have both keep time, for example with chrony", ahead.Abs().Round(100*time.Millisecond), where)
}
