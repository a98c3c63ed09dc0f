package dispatcher

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// managerList is the list of managers that sessions have been told.
type managerList struct{ peers []*swarmpb.ManagerPeer }

// admit checks that the node belongs to the cluster. A replica that lags is no reason to turn a node away for
// good: before it says so, it catches up with the leader.
func (s *Server) admit(ctx context.Context, nodeID string) error {
	s.mu.Lock()
	orphan := s.leaderless(time.Now())
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return errStopping()
	}
	if orphan {
		return errLeaderless()
	}
	if s.view().Node(nodeID) != nil {
		return nil
	}
	view, err := s.freshView(ctx)
	if err != nil {
		return err
	}
	switch {
	case view.Node(nodeID) != nil:
		return nil
	case view.Cluster() == nil: // before the first rows are there, nobody has been removed
		return wire.Errorf(wire.CodeUnavailable, "the cluster is being founded; try again")
	}
	return errRemoved(nodeID)
}

func errRemoved(nodeID string) error {
	return wire.Errorf(wire.CodePermissionDenied, "node %s does not belong to the cluster: it was removed; on that host run `swarmctl leave --force`, then join again", nodeID)
}

func errLeaderless() error {
	return wire.Errorf(wire.CodeUnavailable, "this manager has no contact with a leader; try another manager or try again")
}

// claim makes the session of a node, or refuses a second live claimant. A claimant with the holder's boot ID is
// the same process on a new connection. Another boot ID is a restart if the old stream has ended or is only
// half open, which a missed beat shows; while the holder goes on beating, the claimant is a clone.
func (s *Server) claim(ctx context.Context, nodeID, boot string, facts *Facts) (*session, error) {
	claimed := time.Now()
	x := newSession(swarmpb.NewID(), nodeID, boot, facts, claimed)
	ticker := time.NewTicker(s.limits.BeatInterval / 4)
	defer ticker.Stop()
	for {
		now := time.Now()
		s.mu.Lock()
		if s.stopped {
			s.mu.Unlock()
			return nil, errStopping()
		}
		holder := s.sessions[nodeID]
		switch {
		case holder == nil || holder.isEnded() || holder.boot == boot || now.Sub(holder.lastBeat()) > s.limits.beating():
			s.sessions[nodeID] = x
			x.last = now
			s.mu.Unlock()
			if holder != nil {
				holder.end(wire.Errorf(wire.CodeFailedPrecondition, "superseded by a newer session of the node"))
			}
			poke(s.report)
			return x, nil
		case holder.lastBeat().After(claimed):
			s.refused[nodeID] = struct{}{}
			s.mu.Unlock()
			poke(s.report)
			return nil, errClone(nodeID)
		}
		s.mu.Unlock()
		select {
		case <-holder.ended:
		case <-ticker.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func errClone(nodeID string) error {
	return wire.Errorf(wire.CodeInUse, "node ID %s is in use by another live host; if this host is a copy of it, run `swarmctl leave --force` here and join again", nodeID)
}

// session returns the caller's live session with that ID.
func (s *Server) session(ctx context.Context, id string) (*session, error) {
	peer, err := s.peer(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	x := s.sessions[peer.NodeID]
	s.mu.Unlock()
	if x == nil || x.id != id || x.isEnded() {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "the session is over; open a new one")
	}
	return x, nil
}

// keep reports the sessions to the leader, and ends those that nobody beats in any more, until ctx ends.
func (s *Server) keep(ctx context.Context) error {
	ticker := time.NewTicker(s.limits.ReportInterval)
	defer ticker.Stop()
	for {
		s.refreshManagers()
		s.expire(time.Now())
		s.reportOnce(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-s.report:
		}
	}
}

// refreshManagers wakes all sessions when the list of managers has changed.
func (s *Server) refreshManagers() {
	peers := s.cfg.Managers()
	same := func(a, b *swarmpb.ManagerPeer) bool { return proto.Equal(a, b) }
	if slices.EqualFunc(peers, s.managers.Load().peers, same) {
		return
	}
	s.managers.Store(&managerList{peers: peers})
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		poke(x.renew)
	}
}

// expire ends sessions that have been silent for a reconnect lease, and forgets those that ended long ago.
func (s *Server) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.sessions {
		switch age := now.Sub(x.lastBeat()); {
		case age > s.limits.forget() && x.isEnded():
			delete(s.sessions, id)
		case age > s.limits.ReconnectLease:
			x.end(wire.Errorf(wire.CodeDeadline, "no beat for %s", s.limits.ReconnectLease))
		}
	}
}

// leaderless tells whether the leader has been out of reach for longer than a lease. Call with mu held.
func (s *Server) leaderless(now time.Time) bool { return now.Sub(s.contact) > s.limits.Lease }

// reportOnce sends one report to the leader and obeys its verdict. Without a leader for longer than a lease the
// sessions end: another manager may still reach it.
func (s *Server) reportOnce(ctx context.Context) {
	report := s.makeReport(time.Now())
	verdict, err := s.send(ctx, report)
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if err != nil {
		for _, id := range report.Refused {
			s.refused[id] = struct{}{}
		}
		if s.leaderless(now) {
			for _, x := range s.sessions {
				x.end(errLeaderless())
			}
		}
		return
	}
	s.contact = now
	for _, x := range s.sessions {
		if reason, ok := verdict.End[x.id]; ok {
			s.log.Warn("session refused by the leader", "node", x.nodeID, "reason", reason)
			s.refused[x.nodeID] = struct{}{}
			x.end(errClone(x.nodeID))
		}
	}
}

// send gives the report to the leader, here or elsewhere.
func (s *Server) send(ctx context.Context, report *Report) (*Verdict, error) {
	verdict, err := s.Report(ctx, report)
	if err == nil || s.cfg.Remote == nil {
		return verdict, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.keeperLost())
	defer cancel()
	return s.cfg.Remote.Report(ctx, report)
}

// Report is the leader's end of Leases, for its own keeper and those of other managers.
func (s *Server) Report(_ context.Context, report *Report) (*Verdict, error) {
	s.mu.Lock()
	leading := s.leading
	s.mu.Unlock()
	if leading == nil {
		return nil, wire.Errorf(wire.CodeNotLeader, "this manager does not lead")
	}
	return leading.report(time.Now(), report), nil
}

func (s *Server) makeReport(now time.Time) *Report {
	view, fanned := s.view(), s.fanned.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	report := &Report{Keeper: s.cfg.NodeID, Beats: make([]Beat, 0, len(s.sessions))}
	for _, x := range s.sessions {
		b := Beat{NodeID: x.nodeID, SessionID: x.id, BootID: x.boot, Ended: x.isEnded(), Applied: x.applied(fanned)}
		x.mu.Lock()
		b.Age = now.Sub(x.last)
		facts := x.facts
		x.mu.Unlock()
		if !b.Ended && !facts.recorded(view.NodeStatus(x.nodeID), view.Node(x.nodeID).GetRole()) {
			b.Facts = facts
		}
		report.Beats = append(report.Beats, b)
	}
	for id := range s.refused {
		report.Refused = append(report.Refused, id)
		delete(s.refused, id)
	}
	slices.Sort(report.Refused)
	return report
}

// recorded tells whether the row says what the facts say.
func (f *Facts) recorded(row *swarmpb.NodeStatus, role swarmpb.NodeRole) bool {
	return row != nil && row.GetAddress() == f.Address && row.GetManagerAddress() == f.managerAddress(role) &&
		proto.Equal(row.GetDescription(), f.Description)
}

// endNode ends the sessions of a node that was removed.
func (s *Server) endNode(nodeID string) {
	s.mu.Lock()
	x := s.sessions[nodeID]
	s.mu.Unlock()
	if x != nil {
		x.end(errRemoved(nodeID))
	}
}

// notify wakes the stream of one node, or of all with "".
func (s *Server) notify(nodeID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if nodeID != "" {
		if x := s.sessions[nodeID]; x != nil {
			x.notify()
		}
		return
	}
	for _, x := range s.sessions {
		x.notify()
	}
}

// Ensure at build time that a Server is what keepers report to.
var _ Leases = (*Server)(nil)
