package dispatcher

import (
	"fmt"
	"slices"
	"sort"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Report is what a keeper knows of the sessions that it holds, or held until lately.
type Report struct {
	// Keeper is the node ID of the manager.
	Keeper string
	Beats  []Beat
	// Refused are node IDs that a second live claimant asked for since the report before.
	Refused []string
	// Health is the keeper's own; nil when it says nothing of it.
	Health *swarmpb.ManagerHealth
}

// Beat is the age of one session.
type Beat struct {
	NodeID    string
	SessionID string
	BootID    string
	// Age is the time since the last beat, measured by the keeper's monotonic clock.
	Age time.Duration
	// Ended says that the stream is gone; the age goes on growing.
	Ended bool
	// Applied is the version up to which the node has applied everything that concerns it.
	Applied uint64
	// Facts are set while the keeper's view of the node's status differs from them.
	Facts *Facts
}

// Facts are what a session tells of its node.
type Facts struct {
	Description *swarmpb.NodeDescription
	// Address is the host that the session comes from.
	Address string
	// ListenAddress is host:port of the node's cluster port.
	ListenAddress string
}

// Verdict is the leader's answer: sessions that the keeper must end, by ID, with the reason.
type Verdict struct {
	End map[string]string
	// Drains are the leader's; nil = it does not say.
	Drains *swarmpb.DrainCounts
}

// leaseTable decides which nodes are alive. It is a pure state machine over reports and the time: it does no
// I/O, starts nothing, and every call names the time. Only the leader has one, and it lives no longer than the
// term.
type leaseTable struct {
	limits Limits
	// start is when the term began: what has not been heard of since then has its reconnect lease from it.
	start time.Time
	nodes map[string]*lease
	// round counts judgements.
	round uint64
}

// lease is what is known of one node.
type lease struct {
	keeper, session, boot string
	ended                 bool
	// seen is the last beat, and age how old it was at heard, when a keeper last spoke of the node.
	seen, heard time.Time
	age         time.Duration
	applied     uint64
	facts       *Facts
	// claim is a session of another boot under another keeper that wants the node ID while the holder beats.
	claim      string
	claimSince time.Time
	// held is set when the brake keeps the node from being called down; until it returns or is removed.
	held bool
	// silent is when the silence began for which the node was called down or held.
	silent time.Time
	// unreachable is when a probe of the leader's own failed last while gossip called the node dead.
	unreachable time.Time
	// round is the judgement that last found the node among the members.
	round uint64
}

func newLeaseTable(limits Limits, start time.Time) *leaseTable {
	return &leaseTable{limits: limits, start: start, nodes: make(map[string]*lease)}
}

// hold takes over a node that the leader before held.
func (t *leaseTable) hold(nodeID string) {
	t.nodes[nodeID] = &lease{held: true, silent: t.start}
}

// report takes a keeper's report and answers with the sessions that must end.
func (t *leaseTable) report(now time.Time, r *Report) *Verdict {
	v := &Verdict{}
	for i := range r.Beats {
		b := &r.Beats[i]
		if reason := t.beat(now, r.Keeper, b); reason != "" {
			if v.End == nil {
				v.End = make(map[string]string)
			}
			v.End[b.SessionID] = reason
		}
	}
	return v
}

func (t *leaseTable) beat(now time.Time, keeper string, b *Beat) (refused string) {
	l := t.nodes[b.NodeID]
	if l == nil {
		l = &lease{}
		t.nodes[b.NodeID] = l
	}
	seen := now.Add(-max(b.Age, 0))
	if seen.Before(t.start) {
		// What nobody has heard since this term began may be a session that the node has left for a keeper which was lost with
		// the leader before: that one would have called it down after a lease.
		if l.session != b.SessionID && t.start.Sub(seen) >= t.limits.Lease {
			return ""
		}
		if b.Ended {
			seen = t.start // the node may be looking for another manager since then
		}
	}
	if l.keeper != "" && l.keeper != keeper {
		if !seen.After(l.seen) || b.Ended {
			return "" // An old session, left behind when the node moved to another manager.
		}
		if l.boot != b.BootID && !l.ended {
			if wait, refused := t.contend(now, l, b); wait || refused != "" {
				return refused
			}
		}
	}
	if l.session != b.SessionID {
		l.claim = ""
	}
	l.keeper, l.session, l.boot, l.ended = keeper, b.SessionID, b.BootID, b.Ended
	l.seen, l.heard, l.age, l.applied = seen, now, now.Sub(seen), b.Applied
	if l.age < t.limits.Lease {
		l.unreachable = time.Time{}
	}
	if b.Facts != nil {
		l.facts = b.Facts
	}
	return ""
}

// contend judges between the holder of a node ID and a claimant of another boot under another keeper. The
// holder keeps it if it has beaten since the claim was made; it loses it once it has missed its beats.
func (t *leaseTable) contend(now time.Time, l *lease, b *Beat) (wait bool, refused string) {
	if now.Sub(l.seen) > t.limits.beating() {
		return false, ""
	}
	if l.claim != b.SessionID {
		l.claim, l.claimSince = b.SessionID, now
		return true, ""
	}
	if l.seen.After(l.claimSince) {
		l.claim = ""
		return false, "the node ID is in use by another live session"
	}
	return true, ""
}

// member is a node of the cluster with the state that the store has.
type member struct {
	id    string
	state swarmpb.NodeState
}

// judgement is a state that a node must be given.
type judgement struct {
	id      string
	state   swarmpb.NodeState
	message string
}

// silence is how long a node has not been heard, and whether that is enough to call it down.
type silence struct {
	began time.Time
	// heard: a live keeper speaks for the node; otherwise its reconnect lease runs.
	heard bool
	// long: it has lasted for a lease.
	long bool
	// hinted: its reconnect lease runs, gossip calls it dead and the leader could not reach it either.
	hinted bool
	// vanishing: silent for longer than a healthy node ever is.
	vanishing bool
	due       bool
}

func (t *leaseTable) silence(now time.Time, id string) silence {
	l := t.nodes[id]
	if t.spokenFor(now, l) {
		return silence{
			began: l.seen, heard: true,
			long: l.age >= t.limits.Lease, vanishing: l.age > t.limits.beating(), due: l.age >= t.limits.Lease,
		}
	}
	s := silence{began: t.start}
	if l != nil && l.heard.After(s.began) {
		s.began = l.heard
	}
	age := now.Sub(s.began)
	s.long, s.due = age >= t.limits.Lease, age >= t.limits.ReconnectLease
	// Before a lease is over, a live keeper may just not have found the leader yet.
	s.hinted = s.long && l != nil && !l.unreachable.IsZero() && now.Sub(l.unreachable) <= probeKept
	s.vanishing = s.due || s.hinted
	return s
}

// spokenFor tells whether a live keeper speaks for the node.
func (t *leaseTable) spokenFor(now time.Time, l *lease) bool {
	return l != nil && l.keeper != "" && now.Sub(l.heard) <= t.limits.keeperLost()
}

// doubtful tells whether the node's reconnect lease runs, so that a hint may shorten it.
func (t *leaseTable) doubtful(now time.Time, m member) bool {
	l := t.nodes[m.id]
	return isLive(m.state) && !t.spokenFor(now, l) && (l == nil || !l.held)
}

// probed takes the result of a probe that the leader made of a node which gossip called dead all the while. It means
// something only while the node's reconnect lease runs, and only for a moment.
func (t *leaseTable) probed(now time.Time, nodeID string, failed bool) {
	l := t.nodes[nodeID]
	switch {
	case !failed && l != nil:
		l.unreachable = time.Time{}
	case failed && !t.spokenFor(now, l):
		if l == nil {
			l = &lease{}
			t.nodes[nodeID] = l
		}
		l.unreachable = now
	}
}

// judge says which of the cluster's nodes must change their state, in the order of members. Nodes that are no
// longer members are forgotten.
func (t *leaseTable) judge(now time.Time, members []member) []judgement {
	t.forgetOthers(members)
	brake := t.newBrake(now, members)
	var out []judgement
	for _, m := range members {
		state, message := t.judgeOne(now, m, brake)
		if state != m.state {
			out = append(out, judgement{id: m.id, state: state, message: message})
		}
	}
	return out
}

func (t *leaseTable) judgeOne(now time.Time, m member, brake *brake) (swarmpb.NodeState, string) {
	l := t.nodes[m.id]
	s := t.silence(now, m.id)
	if s.heard && !s.due {
		l.held = false
		return swarmpb.NodeState_NODE_STATE_READY, ""
	}
	if !isLive(m.state) {
		return m.state, ""
	}
	if l != nil && l.held {
		return swarmpb.NodeState_NODE_STATE_DISCONNECTED, "its tasks are held: it vanished together with many other nodes; start it again, or remove it with force"
	}
	// A hint never decides over many nodes at once: those that have lost their keeper may all be about to return.
	hinted := s.hinted && brake.silentWith(s.began) == 0
	if !s.due && !hinted {
		if s.heard || !s.long {
			return m.state, ""
		}
		return swarmpb.NodeState_NODE_STATE_DISCONNECTED, fmt.Sprintf("the manager that kept its session is lost; it has %s to reconnect", t.limits.ReconnectLease)
	}
	if l == nil {
		l = &lease{round: t.round}
		t.nodes[m.id] = l
	}
	l.silent = s.began
	if n := brake.vanishedWith(s.began); n > 0 {
		l.held = true
		return swarmpb.NodeState_NODE_STATE_DISCONNECTED, fmt.Sprintf("its tasks are held: it vanished together with %d other nodes; start it again, or remove it with force", n-1)
	}
	switch {
	case s.heard:
		return swarmpb.NodeState_NODE_STATE_DOWN, fmt.Sprintf("no beat for %s", t.limits.Lease)
	case s.due:
		return swarmpb.NodeState_NODE_STATE_DOWN, fmt.Sprintf("has not reconnected within %s", t.limits.ReconnectLease)
	}
	return swarmpb.NodeState_NODE_STATE_DOWN, "the manager that kept its session is lost, the other nodes call it dead, and the leader cannot reach it"
}

// isLive tells states in which a node's tasks count as running.
func isLive(s swarmpb.NodeState) bool {
	return s == swarmpb.NodeState_NODE_STATE_READY || s == swarmpb.NodeState_NODE_STATE_DISCONNECTED
}

func (t *leaseTable) forgetOthers(members []member) {
	t.round++
	known := 0
	for _, m := range members {
		if l := t.nodes[m.id]; l != nil {
			l.round = t.round
			known++
		}
	}
	if known == len(t.nodes) {
		return
	}
	for id, l := range t.nodes {
		if l.round != t.round {
			delete(t.nodes, id)
		}
	}
}

// heldNodes counts the nodes that the brake holds.
func (t *leaseTable) heldNodes() []string {
	var ids []string
	for id, l := range t.nodes {
		if l.held {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// brake tells the loss of single nodes from the loss of the leader's own sight: when more than a third of the
// nodes, and at least three, fall silent within one lease, nobody is called down.
type brake struct {
	lease time.Duration
	total int
	// began is when the silence of each vanishing node began; silent has in addition those that nobody has spoken
	// for during a lease, though they may still return.
	began, silent []time.Time
}

const brakeNodes = 3

func (t *leaseTable) newBrake(now time.Time, members []member) *brake {
	b := &brake{lease: t.limits.Lease}
	for _, m := range members {
		l := t.nodes[m.id]
		if !isLive(m.state) {
			// Called down already, for a silence that may be part of the same event.
			if m.state == swarmpb.NodeState_NODE_STATE_DOWN && l != nil && !l.silent.IsZero() && now.Sub(l.silent) <= t.limits.ReconnectLease+t.limits.Lease {
				b.total++
				b.began = append(b.began, l.silent)
			}
			continue
		}
		b.total++
		if s := t.silence(now, m.id); s.vanishing {
			b.began = append(b.began, s.began)
		} else if l != nil && l.held {
			b.began = append(b.began, l.silent)
		} else if s.long {
			b.silent = append(b.silent, s.began)
		}
	}
	b.silent = append(b.silent, b.began...)
	slices.SortFunc(b.began, time.Time.Compare)
	slices.SortFunc(b.silent, time.Time.Compare)
	return b
}

// vanishedWith counts the nodes that fell silent within one lease of the time, or 0 if they are too few.
func (b *brake) vanishedWith(began time.Time) int { return b.count(b.began, began) }

// silentWith counts them together with those that may still return.
func (b *brake) silentWith(began time.Time) int { return b.count(b.silent, began) }

func (b *brake) count(times []time.Time, began time.Time) int {
	lo := sort.Search(len(times), func(i int) bool { return !times[i].Before(began.Add(-b.lease)) })
	hi := sort.Search(len(times), func(i int) bool { return times[i].After(began.Add(b.lease)) })
	if n := hi - lo; n >= brakeNodes && 3*n > b.total {
		return n
	}
	return 0
}
