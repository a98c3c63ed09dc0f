package dispatcher

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Assignments streams what the node has to run: the full set, then chained increments. The stream keeps only
// marks of what it has sent: while a slow receiver blocks it, changes gather in the store, not here.
func (s *Server) Assignments(req *swarmpb.AssignmentsRequest, stream grpc.ServerStreamingServer[swarmpb.AssignmentsResponse]) error {
	ctx := stream.Context()
	x, err := s.session(ctx, req.GetSessionId())
	if err != nil {
		return err
	}
	superseded, err := x.takeStream(ctx)
	if err != nil {
		return err
	}
	defer func() { <-x.streaming }()

	// Another manager may have told the node newer things: it must not be led back.
	fresh, err := s.freshView(ctx)
	if err != nil {
		return err
	}
	s.await(x, fresh.Index())
	defer func() {
		s.mu.Lock()
		delete(s.behind, x)
		s.mu.Unlock()
	}()

	told := newAssignment()
	told.from = fresh.Index()
	defer func() { s.reach.topics.listen(x, told.networks, nil) }()
	for {
		if err := s.sendSet(stream, x, told); err != nil {
			return err
		}
		// What changes right after a set waits for a moment, so that a burst is one set; what changes after a
		// quiet time goes out at once, and so does what a task waits for that is to stop.
		var err error
		if told.version != 0 {
			rest := time.NewTimer(s.merge())
			err = wait(ctx, x, superseded, x.hurry, rest.C)
			rest.Stop()
		}
		if err == nil {
			err = wait(ctx, x, superseded, x.wake, nil)
		}
		if err != nil {
			return err
		}
	}
}

// sendSet brings the node from what it was told to what reach holds.
func (s *Server) sendSet(stream grpc.ServerStreamingServer[swarmpb.AssignmentsResponse], x *session, told *assignment) error {
	base, wakes, parts := s.nextSet(x, told)
	if told.version == 0 {
		return nil // too little is known yet; the session is woken when there is more
	}
	empty := !slices.ContainsFunc(parts, func(part []message) bool { return len(part) > 0 })
	if !empty || base == 0 {
		x.sending(told.version)
		for chunk := range chunks(base, told.version, parts) {
			if x.isEnded() {
				return x.over()
			}
			if err := stream.Send(chunk); err != nil {
				return err
			}
		}
		told.base = told.version
	}
	x.delivered(told.version, wakes)
	if s.hastens(told.version) {
		poke(s.acks) // who had nothing to be told has nothing to acknowledge
	}
	return nil
}

// merge is how long what comes after a set is gathered: the longer, the more sessions are here, since what all are told
// costs the manager one message each.
func (s *Server) merge() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.limits.Merge, time.Duration(len(s.sessions))*mergePerSession)
}

// nextSet advances told and returns the changes since base.
func (s *Server) nextSet(x *session, told *assignment) (base, wakes uint64, parts [][]message) {
	r := s.reach
	r.mu.RLock()
	defer r.mu.RUnlock()
	wakes, own := x.looking()
	select { // what was in a hurry is taken in now
	case <-x.hurry:
	default:
	}
	if r.view == nil || r.view.Index() < told.from {
		return 0, wakes, nil
	}
	before, role := told.networks, s.roleOf(r.view, x.nodeID)
	ok := true
	// The role follows Raft's configuration, which changes without a row: an increment would have no version of
	// its own. All else of this version is told again with it.
	if told.version == 0 || r.view.Index() == told.base && role != told.config.role {
		ok = false
	} else {
		base = told.base
		parts, ok = told.advance(r, x.nodeID, role, own)
	}
	if !ok {
		// All is told anew.
		base, *told = 0, *newAssignment()
		x.restarted()
		parts, _ = told.advance(r, x.nodeID, role, allOwn)
	}
	r.topics.listen(x, before, told.networks)
	return base, wakes, parts
}

// takeStream makes the caller the session's only Assignments stream, once the one before has ended for it. The
// caller gives x.streaming back; it ends when superseded closes.
func (x *session) takeStream(ctx context.Context) (superseded <-chan struct{}, err error) {
	newer := make(chan struct{})
	x.mu.Lock()
	if x.newer != nil {
		close(x.newer)
	}
	x.newer = newer
	x.mu.Unlock()
	select {
	case x.streaming <- struct{}{}:
		return newer, nil
	case <-newer:
		return nil, errNewerStream()
	case <-x.ended:
		return nil, x.over()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func errNewerStream() error {
	return wire.Errorf(wire.CodeFailedPrecondition, "superseded by a newer assignments stream of the session")
}

// over is the error of a call in a session that has ended.
func (x *session) over() error {
	if err := x.reason(); err != nil {
		return err
	}
	return wire.Errorf(wire.CodeFailedPrecondition, "the session is over; open a new one")
}

// wait waits for an event or for the time, unless the stream has to end first.
func wait(ctx context.Context, x *session, superseded, event <-chan struct{}, until <-chan time.Time) error {
	select {
	case <-event:
		return nil
	case <-until:
		return nil
	case <-superseded:
		return errNewerStream()
	case <-x.ended:
		return x.over()
	case <-ctx.Done():
		return ctx.Err()
	}
}
