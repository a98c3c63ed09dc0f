package worker

import (
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// action is the next step of a task.
type action byte

// Actions, by their letter in the table.
const (
	hold    action = '.' // nothing to do until something changes
	accept  action = 'a' // say that the task has arrived
	prepare action = 'p' // fetch the image, attach to the network
	start   action = 's' // make and start the container, or find that it runs
	watch   action = 'w' // wait for the container's end
	again   action = 'r' // it ended while no manager could be reached: start it again, or report its end
	drain   action = 'd' // wait until its connections have ended, as far as they are waited for; then stop
	stop    action = 'x' // end the container, with its grace period
	abandon action = 'q' // it was never started, and will not be
	clean   action = 'c' // ended: take container and network away
	forget  action = 'f' // not this node's any more: take logs and records away
)

// states in the order of the table's columns and rows.
var states = [...]swarmpb.TaskState{
	swarmpb.TaskState_TASK_STATE_UNSPECIFIED, swarmpb.TaskState_TASK_STATE_NEW, swarmpb.TaskState_TASK_STATE_PENDING,
	swarmpb.TaskState_TASK_STATE_ASSIGNED, swarmpb.TaskState_TASK_STATE_ACCEPTED, swarmpb.TaskState_TASK_STATE_PREPARING,
	swarmpb.TaskState_TASK_STATE_READY, swarmpb.TaskState_TASK_STATE_STARTING, swarmpb.TaskState_TASK_STATE_RUNNING,
	swarmpb.TaskState_TASK_STATE_COMPLETE, swarmpb.TaskState_TASK_STATE_SHUTDOWN, swarmpb.TaskState_TASK_STATE_FAILED,
	swarmpb.TaskState_TASK_STATE_REJECTED, swarmpb.TaskState_TASK_STATE_REMOVE, swarmpb.TaskState_TASK_STATE_ORPHANED,
}

// table says what to do for each desired state (row) and observed state (column). Desired bounds observed: below
// READY nothing is fetched, below RUNNING nothing is started. What has been started is never started again and is
// ended only by a desired state of SHUTDOWN or more: a desired state below the observed one is an older word of the
// managers, and what is done is done.
var table = [len(states)]string{
	//               unspecified
	//               |new
	//               ||pending
	//               |||assigned
	//               ||||accepted
	//               |||||preparing
	//               ||||||ready
	//               |||||||starting
	//               ||||||||running
	//               |||||||||complete, shutdown, failed, rejected, remove, orphaned
	/* unspecified */ ".......swcccccc",
	/* new         */ ".......swcccccc",
	/* pending     */ ".......swcccccc",
	/* assigned    */ ".......swcccccc",
	/* accepted    */ "aaaa...swcccccc",
	/* preparing   */ "aaaa...swcccccc",
	/* ready       */ "aaaapp.swcccccc",
	/* starting    */ "aaaapp.swcccccc",
	/* running     */ "aaaappsswcccccc",
	/* complete    */ "aaaappsswcccccc",
	/* shutdown    */ "qqqqqqqxxcccccc",
	/* failed      */ "qqqqqqqxxcccccc",
	/* rejected    */ "qqqqqqqxxcccccc",
	/* remove      */ "qqqqqqqxxcccccc",
	/* orphaned    */ "qqqqqqqxxcccccc",
}

// column is a state's place in the table. A state that this version does not know counts as the highest known
// one below it.
func column(s swarmpb.TaskState) int {
	at := 0
	for i, known := range states {
		if known <= s {
			at = i
		}
	}
	return at
}

// lookup reads the table.
func lookup(desired, observed swarmpb.TaskState) action {
	return action(table[column(desired)][column(observed)])
}

// situation is all that the next step of a task depends on.
type situation struct {
	desired, observed swarmpb.TaskState
	// removed: the managers name the task no more.
	removed bool
	// cleaned: container and network of the ended task are gone.
	cleaned bool
	// cut: the task may not be started, as the node has been without managers for too long.
	cut bool
	// lapsed: it ran while that happened, and ends for it even when they are back.
	lapsed bool
	// again: its container has ended, which is not told to the managers yet.
	again bool
	// sick: its probe says that it does not live; it ends, to be replaced.
	sick bool
	// dry: nothing is left to wait for before it is stopped.
	dry bool
}

// next is the next step. Time has no part in it: a start that is to wait has desired state READY until the
// managers' clock says so, so that a worker's clock may be wrong. What has been cut off for too long waits at READY.
func (s situation) next() action {
	desired := s.desired
	if s.removed {
		desired = swarmpb.TaskState_TASK_STATE_REMOVE
	}
	switch {
	case desired >= swarmpb.TaskState_TASK_STATE_SHUTDOWN:
	case s.lapsed:
		desired = swarmpb.TaskState_TASK_STATE_SHUTDOWN
	case s.cut:
		desired = min(desired, swarmpb.TaskState_TASK_STATE_READY)
	}
	act := lookup(desired, s.observed)
	switch {
	case act == clean && s.cleaned && s.removed:
		return forget
	case act == clean && s.cleaned:
		return hold
	case act == watch && s.again:
		return again
	case s.sick && s.observed >= swarmpb.TaskState_TASK_STATE_STARTING && (act == start || act == watch):
		return stop
	case act == stop && s.drains():
		return drain
	}
	return act
}

// drains tells whether a task that is to stop has its connections waited for: one that the managers replace or want
// no more. One that is taken from the node, or that may not go on without managers, ends at once.
func (s situation) drains() bool {
	return s.observed == swarmpb.TaskState_TASK_STATE_RUNNING && s.desired == swarmpb.TaskState_TASK_STATE_SHUTDOWN &&
		!s.dry && !s.removed && !s.lapsed && !s.cut && !s.again
}
