package control

import (
	"context"
	"errors"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	"github.com/swarmd/swarmd/proto/wire"
)

// read returns a view to answer a user with: one with everything that was committed before the call, or, where the
// user wishes it or no leader can be asked, this manager's own, and then the answer is marked.
func (s *Server) read(ctx context.Context) (*store.View, error) {
	if !wire.Stale(ctx) {
		view, err := s.ask(ctx)
		if err == nil || ctx.Err() != nil || !leaderless(err) {
			return view, err
		}
	}
	view, err := s.local()
	if err != nil {
		return nil, err
	}
	age, known := s.cfg.LastContact()
	wire.MarkStale(ctx, wire.StaleRead{Leaderless: age, Known: known})
	return view, nil
}

// leaderless tells the errors of a cluster that cannot answer now from those of a cluster that has answered.
func leaderless(err error) bool {
	return errors.Is(err, wire.ErrUnavailable) || errors.Is(err, wire.ErrNotLeader)
}

// errLeaderless is why a read ends before its time is over.
var errLeaderless = errors.New("there is no leader")

// ask is read while there may be a leader to ask.
func (s *Server) ask(caller context.Context) (*store.View, error) {
	bounded, done := context.WithTimeout(caller, readTimeout)
	defer done()
	ctx, cancel := context.WithCancelCause(bounded)
	defer cancel(nil)
	s.onLoss(ctx, func() { cancel(errLeaderless) })
	view, err := s.fresh(ctx)
	if err != nil && caller.Err() == nil && context.Cause(ctx) == errLeaderless {
		return nil, unavailable("read", errLeaderless)
	}
	return view, err
}

// onLoss calls lost when there has been no leader for so long that none is to be expected, unless ctx has ended. It
// costs a read that is answered soon no more than a timer.
func (s *Server) onLoss(ctx context.Context, lost func()) {
	var (
		timer *time.Timer
		since time.Time // that no leader was seen; zero: there was one a moment ago
		ready = make(chan struct{})
	)
	look := func() {
		<-ready
		if ctx.Err() != nil {
			return
		}
		if s.cfg.Leader() != "" {
			since = time.Time{}
		} else {
			if since.IsZero() {
				since = time.Now()
			}
			age, known := s.cfg.LastContact()
			if known && age >= leaderlessWait || time.Since(since) >= leaderlessWait-leaderlessLeast {
				lost()
				return
			}
		}
		timer.Reset(leaderPoll)
	}
	timer = time.AfterFunc(leaderlessLeast, look)
	close(ready)
	context.AfterFunc(ctx, func() { timer.Stop() })
}

// fresh returns a view with everything that was committed before the call: what a write is decided by.
func (s *Server) fresh(ctx context.Context) (*store.View, error) {
	if _, err := s.cfg.ReadIndex(ctx); err != nil {
		return nil, unavailable("read", err)
	}
	return s.local()
}

// local is what this manager has, which before its first contact with the others is nothing.
func (s *Server) local() (*store.View, error) {
	view := s.cfg.Store().View()
	if view.Cluster() == nil {
		return nil, wire.Errorf(wire.CodeUnavailable, "this manager has not received the cluster's state yet; try again in a moment, "+
			"and if that lasts, check that the other managers run and that this host reaches them")
	}
	return view, nil
}
