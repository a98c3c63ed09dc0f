package worker

import (
	goruntime "runtime"
	"time"
)

// Bounds that no one needs to tune.
const (
	// maxStatuses in one call, which the protocol sets.
	maxStatuses = 500
	// maxSetChanges in one set of assignments, over all its chunks.
	maxSetChanges = 200_000
	// runtimeCall bounds a call of the runtime or the network that has no reason to take long.
	runtimeCall = 2 * time.Minute
	// stopSlack is what stopping a container may take beyond its grace period.
	stopSlack = time.Minute
	// statusCall bounds one report to a manager.
	statusCall = 15 * time.Second
	// describeEvery is how often the host is looked at for a changed description.
	describeEvery = time.Minute
	// devicesEvery is how often the host's devices are looked at.
	devicesEvery = 5 * time.Second
	// defaultGrace is the grace period of a stop when the spec has none.
	defaultGrace = 10 * time.Second
	// refusedPause is the pause after a manager refused the node for good.
	refusedPause = 30 * time.Second
)

func (l Limits) withDefaults() Limits {
	cores := goruntime.NumCPU()
	ints := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	times := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	ints(&l.Starts, 2*cores)
	ints(&l.Removals, 2*cores)
	ints(&l.Pulls, 4)
	ints(&l.History, 500)
	times(&l.StatusDelay, 100*time.Millisecond)
	times(&l.PullFor, 5*time.Minute)
	times(&l.StartFor, 15*time.Second)
	times(&l.RetryMin, 500*time.Millisecond)
	times(&l.RetryMax, 30*time.Second)
	times(&l.ReconnectMin, 100*time.Millisecond)
	times(&l.ReconnectMax, 5*time.Second)
	times(&l.Connect, 5*time.Second)
	times(&l.Answer, 3*time.Second)
	times(&l.Alone, 10*time.Second)
	times(&l.Leave, 3*time.Second)
	times(&l.ApplyFor, 5*time.Second)
	times(&l.Undrained, 5*time.Second)
	times(&l.Undrainable, 30*time.Second)
	times(&l.Overrule, 20*time.Second)
	return l
}
