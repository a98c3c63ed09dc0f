package dispatcher

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Leases is the leader's lease table as a keeper of sessions sees it: at hand on the leader, a call away
// elsewhere. Report fails while there is no leader to report to.
type Leases interface {
	Report(ctx context.Context, report *Report) (*Verdict, error)
}

// Report is what a keeper knows of the sessions that it holds, or held until lately.
type Report struct {
	// Keeper is the node ID of the manager.
	Keeper string
	Beats  []Beat
	// Refused are node IDs that a second live claimant asked for since the report before.
	Refused []string
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
}

// leaseTable decides which nodes are alive. It is a pure state machine over reports and the time: it does no
// I/O, starts nothing, and every call names the time. Only the leader has one, and it lives no longer than the
// term.
type leaseTable struct {
	limits Limits
	// start is when the term began: what has not been heard of since then has its reconnect lease from it.
	start time.Time
	nodes map[string]*lease
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
	l.seen, l.heard, l.age, l.applied = seen, now, max(b.Age, 0), b.Applied
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
	// vanishing: silent for longer than a healthy node ever is.
	vanishing bool
	due       bool
}

func (t *leaseTable) silence(now time.Time, id string) silence {
	l := t.nodes[id]
	if l != nil && l.keeper != "" && now.Sub(l.heard) <= t.limits.keeperLost() {
		return silence{began: l.seen, heard: true, vanishing: l.age > t.limits.beating(), due: l.age >= t.limits.Lease}
	}
	began := t.start
	if l != nil && l.heard.After(began) {
		began = l.heard
	}
	due := now.Sub(began) >= t.limits.ReconnectLease
	return silence{began: began, vanishing: due, due: due}
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
	if !s.due {
		if s.heard || now.Sub(s.began) < t.limits.Lease {
			return m.state, ""
		}
		return swarmpb.NodeState_NODE_STATE_DISCONNECTED, fmt.Sprintf("the manager that kept its session is lost; it has %s to reconnect", t.limits.ReconnectLease)
	}
	if l == nil {
		l = &lease{}
		t.nodes[m.id] = l
	}
	l.silent = s.began
	if n := brake.vanishedWith(s.began); n > 0 {
		l.held = true
		return swarmpb.NodeState_NODE_STATE_DISCONNECTED, fmt.Sprintf("its tasks are held: it vanished together with %d other nodes; start it again, or remove it with force", n-1)
	}
	if s.heard {
		return swarmpb.NodeState_NODE_STATE_DOWN, fmt.Sprintf("no beat for %s", t.limits.Lease)
	}
	return swarmpb.NodeState_NODE_STATE_DOWN, fmt.Sprintf("has not reconnected within %s", t.limits.ReconnectLease)
}

// isLive tells states in which a node's tasks count as running.
func isLive(s swarmpb.NodeState) bool {
	return s == swarmpb.NodeState_NODE_STATE_READY || s == swarmpb.NodeState_NODE_STATE_DISCONNECTED
}

func (t *leaseTable) forgetOthers(members []member) {
	if len(t.nodes) == 0 {
		return
	}
	known := make(map[string]struct{}, len(members))
	for _, m := range members {
		known[m.id] = struct{}{}
	}
	for id := range t.nodes {
		if _, ok := known[id]; !ok {
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
	began []time.Time
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
		}
	}
	slices.SortFunc(b.began, time.Time.Compare)
	return b
}

// vanishedWith counts the nodes that fell silent within one lease of the time, or 0 if they are too few.
func (b *brake) vanishedWith(began time.Time) int {
	lo := sort.Search(len(b.began), func(i int) bool { return !b.began[i].Before(began.Add(-b.lease)) })
	hi := sort.Search(len(b.began), func(i int) bool { return b.began[i].After(began.Add(b.lease)) })
	if n := hi - lo; n >= brakeNodes && 3*n > b.total {
		return n
	}
	return 0
}
