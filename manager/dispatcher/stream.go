package dispatcher

import (
	"context"
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

	told := newAssignment()
	for {
		if err := s.sendSet(stream, x, told); err != nil {
			return err
		}
		// What changes right after a set waits for a moment, so that a burst is one set; what changes after a
		// quiet time goes out at once.
		rest := time.NewTimer(s.limits.Merge)
		if err := wait(ctx, x, superseded, rest.C); err != nil {
			rest.Stop()
			return err
		}
		if err := wait(ctx, x, superseded, x.wake); err != nil {
			return err
		}
	}
}

// sendSet brings the node from what it was told to the current view.
func (s *Server) sendSet(stream grpc.ServerStreamingServer[swarmpb.AssignmentsResponse], x *session, told *assignment) error {
	wakes := x.looking()
	view := s.view()
	role := s.roleOf(view, x.nodeID)
	switch {
	case view.Index() < told.version:
		// The store was replaced by an older one: what was told before is worth nothing.
		*told = *newAssignment()
	case view.Index() == told.base && role != told.config.role:
		// The role follows Raft's configuration, which changes without a row: an increment would have no version of
		// its own. All else of this version is told again with it.
		*told = *newAssignment()
	}
	if told.version == 0 {
		x.restarted()
	}
	base := told.base
	changes := told.advance(view, x.nodeID, role)
	if len(changes) > 0 || base == 0 {
		x.sending(told.version)
		for chunk := range chunks(base, told.version, changes) {
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
	return nil
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

// wait waits for an event, unless the stream has to end first.
func wait[T any](ctx context.Context, x *session, superseded <-chan struct{}, event <-chan T) error {
	select {
	case <-event:
		return nil
	case <-superseded:
		return errNewerStream()
	case <-x.ended:
		return x.over()
	case <-ctx.Done():
		return ctx.Err()
	}
}
