package worker

import (
	"fmt"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// set is a set of changes, put together from its chunks.
type set struct {
	// full: it names all that the node has to run; otherwise it changes what was told before.
	full    bool
	version uint64
	changes []*swarmpb.AssignmentChange
	// reach are those changes that say how tasks are reached; the rest is in changes.
	reach []*swarmpb.AssignmentChange
	// silent: it is a full set of a manager that tells nothing of how tasks are reached, as of an older version. What is
	// known of that stays.
	silent bool
}

// reaches tells whether the set says anything of how tasks are reached.
func (s *set) reaches() bool { return s.full && !s.silent || len(s.reach) > 0 }

// take adds changes.
func (s *set) take(changes []*swarmpb.AssignmentChange) {
	for _, c := range changes {
		if _, _, ok := reachRow(c); ok {
			s.reach = append(s.reach, c)
			continue
		}
		s.changes = append(s.changes, c)
		if config := c.GetNodeConfig(); config != nil {
			s.silent = s.full && !speaksOfReach(config)
		}
	}
}

// speaksOfReach tells whether the managers that a configuration is from tell how tasks are reached.
func speaksOfReach(config *swarmpb.NodeConfig) bool { return config.GetDataPathPort() != 0 }

// badSetError says that a set cannot be applied and all must be asked for anew.
type badSetError struct{ reason string }

func (e *badSetError) Error() string { return e.reason }

func badSet(format string, args ...any) error { return &badSetError{fmt.Sprintf(format, args...)} }

// assembly puts the chunks of one stream together and checks that each set follows the one before.
type assembly struct {
	held uint64 // version of the last complete set; 0 before the first
	base uint64 // of the set in the making
	part *set
}

// add takes a chunk; it returns the set that the chunk completes, or nil.
func (a *assembly) add(chunk *swarmpb.AssignmentsResponse) (*set, error) {
	base, version := chunk.GetBaseVersion(), chunk.GetVersion()
	switch {
	case a.part == nil && base != 0 && base != a.held:
		return nil, badSet("a set of changes is based on version %d, but %d is held", base, a.held)
	case a.part != nil && (base != a.base || version != a.part.version):
		return nil, badSet("a chunk of version %d came in the middle of version %d", version, a.part.version)
	case a.part == nil:
		a.base = base
		a.part = &set{full: base == 0, version: version}
		a.part.silent = a.part.full
	}
	if len(a.part.changes)+len(a.part.reach)+len(chunk.GetChanges()) > maxSetChanges {
		return nil, badSet("a set of more than %d changes", maxSetChanges)
	}
	a.part.take(chunk.GetChanges())
	if !chunk.GetLastChunk() {
		return nil, nil
	}
	done := a.part
	a.part, a.held = nil, version
	return done, nil
}
