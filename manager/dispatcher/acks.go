package dispatcher

import (
	"context"
	"time"
)

// Acknowledgements that the leader waits for are reported at once, when the last session here has given its own: a task
// that is to stop waits for them. Every manager sees for itself what the leader waits for.

const (
	// hastenRest bounds how often the sessions are looked through for it, as a multiple of how long that takes.
	hastenRest    = 20
	hastenRestMin = time.Millisecond
	hastenRestMax = 20 * time.Millisecond
)

// hastens tells whether it may be news to the leader that a node has applied this version.
func (s *Server) hastens(version uint64) bool {
	return s.awaited.Load() > s.hastened.Load() && version >= s.hastening.Load()
}

// hasten reports when all nodes of live sessions have applied what the leader waits for, until ctx ends. Those that are
// slower than the rest are reported in their time.
func (s *Server) hasten(ctx context.Context) error {
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.acks:
		}
		began := time.Now()
		// One index after the other: while tasks are drained without a pause, the newest is never applied everywhere.
		if s.hastening.Load() <= s.hastened.Load() {
			s.hastening.Store(s.awaited.Load())
		}
		if target := s.hastening.Load(); target > s.hastened.Load() && s.allApplied(target) {
			s.hastened.Store(target)
			poke(s.report)
			if s.awaited.Load() > target {
				poke(s.acks)
			}
		}
		rest.Reset(min(max(hastenRest*time.Since(began), hastenRestMin), hastenRestMax))
		select {
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
	}
}

// allApplied tells whether all sessions have applied what concerns them up to an index.
func (s *Server) allApplied(index uint64) bool {
	fanned := s.fanned.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		if !x.isEnded() && x.applied(fanned) < index {
			return false
		}
	}
	return true
}
