package worker

import (
	"strings"
	"testing"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

func TestTable_EveryPairOfStates_IsDefined(t *testing.T) {
	if len(states) != len(swarmpb.TaskState_name) {
		t.Fatalf("the table has %d states, the protocol %d", len(states), len(swarmpb.TaskState_name))
	}
	for i, desired := range states {
		if len(table[i]) != len(states) {
			t.Fatalf("row %s has %d columns, want %d", desired.Name(), len(table[i]), len(states))
		}
		for _, observed := range states {
			act := lookup(desired, observed)
			pair := "desired " + desired.Name() + ", observed " + observed.Name()
			if !strings.ContainsRune(".apswxqc", rune(act)) {
				t.Errorf("%s: %q is no action of the table", pair, act)
			}
			ended := observed >= stateComplete
			if ended != (act == clean) {
				t.Errorf("%s: %q, but exactly what has ended is cleaned", pair, act)
			}
			if observed >= stateRunning && strings.ContainsRune("aps", rune(act)) {
				t.Errorf("%s: %q, but what has run is never begun again", pair, act)
			}
			if !ended && (desired >= stateShutdown) != strings.ContainsRune("xq", rune(act)) {
				t.Errorf("%s: %q, but exactly a desired state of shutdown or more ends a task", pair, act)
			}
			if act == start && desired < stateRunning && observed <= stateReady {
				t.Errorf("%s: starts beyond what is desired", pair)
			}
			if act == prepare && desired < stateReady {
				t.Errorf("%s: prepares beyond what is desired", pair)
			}
		}
	}
}

func TestNext_StateOfALaterVersion_CountsAsTheOneBelow(t *testing.T) {
	if got := lookup(swarmpb.TaskState_TASK_STATE_RUNNING+5, stateReady); got != start {
		t.Errorf("desired above running: %q, want start", got)
	}
	if got := lookup(9999, stateRunning); got != stop {
		t.Errorf("desired beyond all: %q, want stop", got)
	}
	if got := lookup(-1, stateReady); got != hold {
		t.Errorf("desired below all: %q, want hold", got)
	}
}

func TestNext_RemovedOrCleaned_TakesTheLastSteps(t *testing.T) {
	for _, c := range []struct {
		name string
		s    situation
		want action
	}{
		{"removed while running", situation{desired: stateRunning, observed: stateRunning, removed: true}, stop},
		{"removed and ended", situation{desired: stateRunning, observed: stateFailed, removed: true}, clean},
		{"removed and cleaned", situation{desired: stateRunning, observed: stateFailed, removed: true, cleaned: true}, forget},
		{"ended and cleaned", situation{desired: stateRunning, observed: stateFailed, cleaned: true}, hold},
	} {
		if act := c.s.next(); act != c.want {
			t.Errorf("%s: %q, want %q", c.name, act, c.want)
		}
	}
}
