package dispatcher

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// managerList is the list of managers that sessions have been told.
type managerList struct{ peers []*swarmpb.ManagerPeer }

// admit checks that the node belongs to the cluster. A replica that lags is no reason to turn a node away for
// good: before it says so, it catches up with the leader.
func (s *Server) admit(ctx context.Context, nodeID string) error {
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return errStopping()
	}
	if s.leaderless(time.Now()) {
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
		if s.leaderless(time.Now()) {
			return nil, errLeaderless()
		}
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "the session is over; open a new one")
	}
	return x, nil
}

// keep tells sessions of other managers and roles, and ends those that nobody beats in or that no leader hears of
// any more, until ctx ends.
func (s *Server) keep(ctx context.Context) error {
	ticker := time.NewTicker(s.limits.ReportInterval)
	defer ticker.Stop()
	for {
		s.refreshManagers()
		s.refreshRoles()
		s.expire(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
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

// refreshRoles wakes the assignments of nodes whose role in the cluster's configuration has changed.
func (s *Server) refreshRoles() {
	if s.cfg.Role == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.sessions {
		if role := s.cfg.Role(id); role != x.role {
			x.role = role
			x.notify(owed{config: true})
		}
	}
}

// roleOf is the role that the node is told to have.
func (s *Server) roleOf(view *store.View, nodeID string) swarmpb.NodeRole {
	if s.cfg.Role != nil {
		return s.cfg.Role(nodeID)
	}
	node := view.Node(nodeID)
	if role := node.GetSpec().GetDesiredRole(); role != swarmpb.NodeRole_NODE_ROLE_UNSPECIFIED {
		return role
	}
	return node.GetRole()
}

// expire ends sessions that have been silent for a reconnect lease, and all of them while no leader has heard of
// them for a lease: another manager may still reach it. It forgets those that ended long ago.
func (s *Server) expire(now time.Time) {
	leaderless := s.leaderless(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.sessions {
		switch age := now.Sub(x.lastBeat()); {
		case leaderless:
			x.end(errLeaderless())
			delete(s.sessions, id)
		case age > s.limits.forget() && x.isEnded():
			delete(s.sessions, id)
		case age > s.limits.ReconnectLease:
			x.end(wire.Errorf(wire.CodeDeadline, "no beat for %s", s.limits.ReconnectLease))
		}
	}
}

// left forgets a session that has ended while this manager had no contact with a leader. Its node may have gone to
// look for another manager for that very reason, and may have found none: its silence is no sign of its death, and
// must not be counted as one by the next leader. It has a reconnect lease then, as after the loss of its keeper.
func (s *Server) left(x *session) {
	if s.inContact(time.Now()) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[x.nodeID] == x {
		delete(s.sessions, x.nodeID)
	}
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

// notifyAll wakes the streams of all nodes.
func (s *Server) notifyAll(own owed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.sessions {
		x.notify(own)
	}
}
