package dispatcher

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// contact is the moment at which this manager last was certain of a leader, or of leading itself, by the monotonic
// clock; many may ask.
type contact struct {
	base  time.Time
	after atomic.Int64
}

func (c *contact) mark(at time.Time) { c.after.Store(int64(at.Sub(c.base))) }

func (c *contact) age(now time.Time) time.Duration {
	return now.Sub(c.base) - time.Duration(c.after.Load())
}

// leaderless tells whether the leader has been out of reach for longer than a lease.
func (s *Server) leaderless(now time.Time) bool { return s.contact.age(now) > s.limits.Lease }

// inContact tells whether the leader certainly counts this manager among those that live, so that a node which is
// heard here is not being called down elsewhere.
func (s *Server) inContact(now time.Time) bool { return s.contact.age(now) <= s.limits.keeperLost() }

// reports sends a report to the leader every interval, one at a time, until ctx ends.
func (s *Server) reports(ctx context.Context) error {
	ticker := time.NewTicker(s.limits.ReportInterval)
	defer ticker.Stop()
	early := time.NewTimer(0)
	defer early.Stop()
	for {
		began := time.Now()
		s.reportOnce(ctx)
		took := time.Since(began)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			continue
		case <-s.report:
		}
		// While thousands of nodes come back, reports before their time must not be all that this manager does.
		if pause := earlyEvery*took - time.Since(began); pause > 0 {
			early.Reset(pause)
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			case <-early.C:
			}
		}
	}
}

// reportOnce sends one report to the leader and obeys its verdict. It takes no longer than the leader waits for a
// keeper: a leader that hangs costs this manager its contact, and nothing else.
func (s *Server) reportOnce(ctx context.Context) {
	report := s.makeReport(time.Now())
	call, cancel := context.WithTimeout(ctx, s.limits.keeperLost())
	defer cancel()
	verdict, err := s.send(call, report)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		s.log.Debug("report to the leader failed", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if verdict == nil { // nothing of it was taken
		s.leaderDrains.Store(nil)
		for _, id := range report.Refused {
			if len(s.refused) < maxReported {
				s.refused[id] = struct{}{}
			}
		}
		return
	}
	s.leaderDrains.Store(verdict.Drains)
	if len(verdict.End) == 0 {
		return
	}
	for _, x := range s.sessions {
		if reason, ok := verdict.End[x.id]; ok {
			s.log.Warn("session refused by the leader", "node", x.nodeID, "reason", reason)
			s.refused[x.nodeID] = struct{}{}
			x.end(errClone(x.nodeID))
		}
	}
}

// send gives the report to the leader, here or elsewhere. The verdict is nil when not even the first part was taken.
func (s *Server) send(ctx context.Context, report *Report) (*Verdict, error) {
	began := time.Now()
	if leading := s.leads(); leading != nil {
		return leading.report(began, report), nil
	}
	if s.cfg.LeaderConn == nil {
		return nil, errLeaderless()
	}
	conn, _, err := s.cfg.LeaderConn()
	if err != nil {
		return nil, err
	}
	verdict, err := sendParts(ctx, swarmpb.NewKeeperClient(conn), report)
	if err == nil {
		s.contact.mark(began)
	}
	return verdict, err
}

// leads is the leader's part while this manager leads, else nil.
func (s *Server) leads() *leaderPart {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leading
}

// confirm asks the other managers every interval, one question at a time, whether this one still leads, until ctx ends.
// One that has just been woken from a long sleep may not, and learns it only then.
func (s *Server) confirm(ctx context.Context) error {
	ticker := time.NewTicker(s.limits.ReportInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if s.leads() == nil {
			continue
		}
		began := time.Now()
		call, cancel := context.WithTimeout(ctx, s.limits.Lease)
		if _, err := s.cfg.ReadIndex(call); err == nil {
			s.contact.mark(began)
		}
		cancel()
	}
}

// sendParts reports in calls of bounded size. The first has what concerns the manager itself.
func sendParts(ctx context.Context, leader swarmpb.KeeperClient, report *Report) (*Verdict, error) {
	var verdict *Verdict
	part := &swarmpb.KeeperReportRequest{Refused: report.Refused, Health: report.Health}
	for beats := report.Beats; ; {
		n := fitting(beats, maxReported, func(b Beat) int { return b.Facts.size() })
		part.Sessions = kept(beats[:n])
		answer, err := leader.Report(ctx, part)
		if err != nil {
			return verdict, wire.FromStatus(err)
		}
		if verdict == nil {
			verdict = &Verdict{End: make(map[string]string)}
		}
		maps.Copy(verdict.End, answer.GetEnd())
		verdict.Drains = answer.GetDrains()
		if beats = beats[n:]; len(beats) == 0 {
			return verdict, nil
		}
		part = &swarmpb.KeeperReportRequest{}
	}
}

// kept are beats as they go over the wire; one piece of memory holds them all.
func kept(beats []Beat) []*swarmpb.KeptSession {
	slab := make([]swarmpb.KeptSession, len(beats))
	out := make([]*swarmpb.KeptSession, len(beats))
	for i := range beats {
		b, k := &beats[i], &slab[i]
		k.NodeId, k.SessionId, k.BootId = b.NodeID, b.SessionID, b.BootID
		k.Age, k.Ended, k.Applied = int64(b.Age), b.Ended, b.Applied
		if f := b.Facts; f != nil {
			k.Facts = &swarmpb.SessionFacts{Description: f.Description, Address: f.Address, ListenAddress: f.ListenAddress}
		}
		out[i] = k
	}
	return out
}

// size is what the facts add to a report; without them a session's part is small.
func (f *Facts) size() int {
	if f == nil {
		return 0
	}
	return proto.Size(f.Description) + len(f.Address) + len(f.ListenAddress)
}

// makeReport fills the keeper's report; it is good until the next call.
func (s *Server) makeReport(now time.Time) *Report {
	fanned := s.fanned.Load()
	report := &s.scratch
	report.Keeper, report.Refused, report.Health = s.cfg.NodeID, nil, nil
	if s.cfg.Health != nil {
		report.Health = s.cfg.Health()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	view := s.view() // with the lock: where a row is marked as changed, it has the change
	clear(report.Beats)
	report.Beats = report.Beats[:0]
	for _, x := range s.sessions {
		b := Beat{NodeID: x.nodeID, SessionID: x.id, BootID: x.boot, Ended: x.isEnded(), Applied: x.applied(fanned)}
		x.mu.Lock()
		b.Age = now.Sub(x.last)
		facts := x.facts
		x.mu.Unlock()
		if !b.Ended && !x.told.recorded(facts, view, x.nodeID) {
			b.Facts = facts
		}
		report.Beats = append(report.Beats, b)
	}
	for id := range s.refused {
		if len(report.Refused) == maxReported {
			break
		}
		report.Refused = append(report.Refused, id)
		delete(s.refused, id)
	}
	slices.Sort(report.Refused)
	return report
}

// told remembers a comparison of facts with the node's rows: both are never changed in place, and seldom others.
type told struct {
	facts *Facts
	// stale: a row of the node has changed.
	stale, equal bool
}

func (t *told) recorded(facts *Facts, view *store.View, nodeID string) bool {
	if t.facts != facts || t.stale {
		*t = told{facts: facts, equal: facts.recorded(view.NodeStatus(nodeID), view.Node(nodeID).GetRole())}
	}
	return t.equal
}

// recorded tells whether the row says what the facts say, and what the node said first.
func (f *Facts) recorded(row *swarmpb.NodeStatus, role swarmpb.NodeRole) bool {
	return row != nil && row.GetFirst() != nil && row.GetAddress() == f.Address && row.GetManagerAddress() == f.managerAddress(role) &&
		proto.Equal(row.GetDescription(), f.Description)
}

// Report takes what another manager knows of the sessions that it keeps. It is refused while this manager does not
// lead, or cannot be certain that it does.
func (s *Server) Report(ctx context.Context, req *swarmpb.KeeperReportRequest) (*swarmpb.KeeperReportResponse, error) {
	peer, err := s.peer(ctx)
	if err != nil {
		return nil, err
	}
	if n := max(len(req.GetSessions()), len(req.GetRefused())); n > maxReported {
		return nil, wire.Errorf(wire.CodeInvalid, "report: %d entries; at most %d are taken in one call", n, maxReported)
	}
	leading, now := s.leads(), time.Now()
	switch {
	case leading == nil:
		return nil, wire.Errorf(wire.CodeNotLeader, "this manager does not lead")
	case s.leaderless(now):
		return nil, errLeaderless()
	}
	verdict := leading.report(now, s.readReport(peer.NodeID, req))
	own := s.Drains()
	return &swarmpb.KeeperReportResponse{End: verdict.End, Drains: &swarmpb.DrainCounts{Noted: own.Noted, Late: own.Late}}, nil
}

// readReport is the report as the lease table takes it: of members of the cluster alone, with nothing longer than
// this manager would let a worker say.
func (s *Server) readReport(keeper string, req *swarmpb.KeeperReportRequest) *Report {
	view := s.view()
	report := &Report{Keeper: keeper, Beats: make([]Beat, 0, len(req.GetSessions())), Health: cleanHealth(req.GetHealth())}
	for _, k := range req.GetSessions() {
		if view.Node(k.GetNodeId()) == nil || len(k.GetSessionId()) > maxIDBytes || len(k.GetBootId()) > maxIDBytes {
			continue
		}
		report.Beats = append(report.Beats, Beat{
			NodeID: k.GetNodeId(), SessionID: k.GetSessionId(), BootID: k.GetBootId(),
			Age: min(max(time.Duration(k.GetAge()), 0), maxAge), Ended: k.GetEnded(), Applied: k.GetApplied(),
			Facts: readFacts(k.GetFacts()),
		})
	}
	for _, id := range req.GetRefused() {
		if view.Node(id) != nil {
			report.Refused = append(report.Refused, id)
		}
	}
	return report
}

// readFacts are another keeper's facts, nil when they make no sense.
func readFacts(f *swarmpb.SessionFacts) *Facts {
	if f == nil || len(f.GetListenAddress()) > maxNameBytes || cleanText(f.GetListenAddress(), maxNameBytes) != f.GetListenAddress() {
		return nil
	}
	description, err := cleanDescription(f.GetDescription())
	if err != nil {
		return nil
	}
	return &Facts{Description: description, Address: cleanText(f.GetAddress(), maxNameBytes), ListenAddress: f.GetListenAddress()}
}

// cleanHealth copies the known fields.
func cleanHealth(h *swarmpb.ManagerHealth) *swarmpb.ManagerHealth {
	if h == nil {
		return nil
	}
	return &swarmpb.ManagerHealth{LowSpace: h.GetLowSpace(), FreeBytes: h.GetFreeBytes(), StepDowns: h.GetStepDowns()}
}
