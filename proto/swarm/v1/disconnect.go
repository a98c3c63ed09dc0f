package swarmpb

import (
	"math"
	"time"
)

const (
	// DefaultStopGracePeriod is how long a container has to end by itself when its spec does not say.
	DefaultStopGracePeriod = 10 * time.Second
	// MinStopAfterDisconnect and MaxStopAfterDisconnect bound stop_after_disconnect.
	MinStopAfterDisconnect = time.Second
	MaxStopAfterDisconnect = 24 * time.Hour
	// disconnectMargin is what a node's count may begin later than the managers' (its lease), and a second for the stop
	// itself.
	disconnectMargin = 4 * time.Second
)

// DisconnectWait is how long after a node was called down a task of the template may still run there: the node's own
// count, the grace period of the stop, and what the two counts may be apart. False when the task is never stopped for
// being cut off, so that waiting proves nothing.
func (x *TaskSpec) DisconnectWait() (time.Duration, bool) {
	after := x.GetStopAfterDisconnect().AsDuration()
	if after <= 0 {
		return 0, false
	}
	grace := DefaultStopGracePeriod
	if x.GetContainer().GetStopGracePeriod() != nil {
		grace = max(0, x.GetContainer().GetStopGracePeriod().AsDuration())
	}
	if rest := math.MaxInt64 - disconnectMargin - after; grace > rest {
		grace = rest
	}
	return after + grace + disconnectMargin, true
}
