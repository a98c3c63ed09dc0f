package dispatcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Kinds of alarms that the dispatcher raises.
const (
	// AlarmNodesHeld: so many nodes vanished at once that their tasks are held. Its object is "cluster".
	AlarmNodesHeld = "nodes-held"
	// AlarmDuplicateNode: a second live host claims the ID of the node that is the object.
	AlarmDuplicateNode = "duplicate-node"
)

const (
	alarmCluster = "cluster"
	// cloneQuiet is how long no clone may have shown up before the alarm ends; it is raised again at most as
	// often as cloneRepeat.
	cloneQuiet  = time.Minute
	cloneRepeat = 10 * time.Second
	// describeInterval bounds how often a description or an address alone may enter the log, per node.
	describeInterval = 2 * time.Second
)

// Lead does what only the leader's dispatcher does, until ctx ends: it takes the keepers' reports, writes the
// states of nodes, ends the tasks of removed nodes, and notes which tasks are drained. Every node that is READY when it starts has a reconnect
// lease.
func (s *Server) Lead(ctx context.Context, leader store.Leader) error {
	now := time.Now()
	l := newLeaderPart(s, leader, now)
	s.contact.mark(now) // whoever is made the leader has just been confirmed
	s.mu.Lock()
	if s.leading != nil {
		s.mu.Unlock()
		return errors.New("dispatcher leads already")
	}
	s.leading = l
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.leading = nil
		s.mu.Unlock()
	}()
	poke(s.report)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.judge(ctx, g) })
	g.Go(func() error { return l.sweep(ctx) })
	g.Go(func() error { return l.drain(ctx) })
	return g.Wait()
}

// leaderPart is the state of one term.
type leaderPart struct {
	limits Limits
	store  func() *store.Store
	leader store.Leader
	log    *slog.Logger
	hints  Hints // may be nil
	// kick asks for a judgement before the next tick.
	kick chan struct{}
	// drains counts; applied says that a keeper has reported while tasks wait to be drained.
	drains   *drainCounters
	draining atomic.Bool
	applied  chan struct{}

	mu     sync.Mutex
	table  *leaseTable
	clones map[string]*clone
	// described is when a node's description or address last entered the log by itself.
	described map[string]time.Time
	health    map[string]health // by manager
	probes    map[string]probe  // by node, of the last probeKept
	probing   int               // probes under way
	// probedLast is the node whose probe began last.
	probedLast string
	members    []member // of the view with the index listed
	listed     uint64
}

// health is what a manager last said of itself.
type health struct {
	said *swarmpb.ManagerHealth
	at   time.Time
}

// clone is a node ID that a second live host asked for.
type clone struct{ seen, raised time.Time }

// newLeaderPart begins a term with what the store tells of the one before.
func newLeaderPart(s *Server, leader store.Leader, now time.Time) *leaderPart {
	l := &leaderPart{
		limits: s.limits, store: s.cfg.Store, leader: leader, log: s.log, hints: s.cfg.Hints,
		table: newLeaseTable(s.limits, now), clones: make(map[string]*clone), described: make(map[string]time.Time),
		health: make(map[string]health), probes: make(map[string]probe), kick: make(chan struct{}, 1),
		drains: &s.drains, applied: make(chan struct{}, 1),
	}
	l.takeOver(s.view())
	return l
}

// takeOver reads from the store what the leader before knew beyond the states.
func (l *leaderPart) takeOver(view *store.View) {
	held := view.Alarm(AlarmNodesHeld, alarmCluster) != nil
	for node := range view.Nodes() {
		if held && view.NodeStatus(node.GetId()).GetState() == swarmpb.NodeState_NODE_STATE_DISCONNECTED {
			l.table.hold(node.GetId())
		}
	}
	for alarm := range view.Alarms() {
		if alarm.GetKind() == AlarmDuplicateNode {
			l.clones[alarm.GetObject()] = &clone{seen: l.table.start, raised: l.table.start}
		}
	}
}

// report takes a keeper's report.
func (l *leaderPart) report(now time.Time, r *Report) *Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	news := len(r.Refused) > 0
	for i := range r.Beats {
		b := &r.Beats[i]
		lease := l.table.nodes[b.NodeID]
		news = news || b.Facts != nil || lease == nil || lease.session != b.SessionID
	}
	verdict := l.table.report(now, r)
	l.noteHealth(now, r)
	for _, id := range r.Refused {
		c := l.clones[id]
		if c == nil {
			c = &clone{}
			l.clones[id] = c
		}
		c.seen = now
	}
	if l.draining.Load() {
		poke(l.applied)
	}
	if news {
		poke(l.kick) // A node that comes is READY at once; silence is seen at the next tick.
	}
	return verdict
}

// noteHealth notes a manager's health, of a bounded number of managers.
func (l *leaderPart) noteHealth(now time.Time, r *Report) {
	maps.DeleteFunc(l.health, func(_ string, h health) bool { return now.Sub(h.at) > healthKept })
	if _, ok := l.health[r.Keeper]; r.Health != nil && (ok || len(l.health) < maxManagers) {
		l.health[r.Keeper] = health{said: r.Health, at: now}
	}
}

func (l *leaderPart) healthOf(now time.Time, managerID string) (*swarmpb.ManagerHealth, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h, ok := l.health[managerID]
	return h.said, ok && now.Sub(h.at) <= healthKept
}

// acked is the version that the node's keeper last reported as applied, with the keeper and the session; false
// without a session of a keeper that lives.
func (l *leaderPart) acked(now time.Time, nodeID string) (keeper, session string, applied uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	lease := l.table.nodes[nodeID]
	if !l.table.spokenFor(now, lease) || lease.ended {
		return "", "", 0, false
	}
	return lease.keeper, lease.session, lease.applied, true
}

// judge writes the states of nodes as they change. One proposal is in flight at a time.
func (l *leaderPart) judge(ctx context.Context, g *errgroup.Group) error {
	ticker := time.NewTicker(l.limits.ReportInterval)
	defer ticker.Stop()
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-l.kick:
		}
		began := time.Now()
		decisions := l.decide(l.store().View(), began)
		took := time.Since(began)
		l.probe(ctx, g)
		if err := l.propose(ctx, decisions); err != nil {
			if errors.Is(err, store.ErrStaleTerm) || ctx.Err() != nil {
				return nil // The term is over; whoever leads now decides.
			}
			l.log.Warn("writing node states failed; it is tried again", "error", err)
		}
		// While thousands of nodes come, judging them all again for each must not be all that the leader does. On a host that
		// has no time for it, the rest is no longer than the time between two ticks.
		rest.Reset(min(judgeRest*took, l.limits.ReportInterval))
		select {
		case <-ctx.Done():
			return nil
		case <-rest.C:
		}
	}
}

// decision is a write with the guards that it depends on.
type decision struct {
	write  *swarmpb.Write
	guards []*swarmpb.Guard
}

// propose writes decisions, in as many proposals as they need, up to the first error.
func (l *leaderPart) propose(ctx context.Context, decisions []decision) error {
	for len(decisions) > 0 {
		n := fitting(decisions, maxWrites, func(d decision) int { return proto.Size(d.write) })
		if err := l.proposeOne(ctx, decisions[:n]); err != nil {
			return err
		}
		decisions = decisions[n:]
	}
	return nil
}

func (l *leaderPart) proposeOne(ctx context.Context, decisions []decision) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	proposal := &swarmpb.Proposal{Term: l.leader.Term(), Now: time.Now().UnixNano()}
	for _, d := range decisions {
		proposal.Writes = append(proposal.Writes, d.write)
		proposal.Guards = append(proposal.Guards, d.guards...)
	}
	_, err := l.leader.Propose(ctx, proposal)
	return err
}

// decide compares what the table says with what the store has.
func (l *leaderPart) decide(view *store.View, now time.Time) []decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	members := l.membersOf(view)
	judged := make(map[string]judgement)
	for _, j := range l.table.judge(now, members) {
		judged[j.id] = j
	}
	maps.DeleteFunc(l.described, func(id string, _ time.Time) bool { return view.Node(id) == nil })
	var out []decision
	for _, m := range members {
		if d, ok := l.decideNode(view, now, m, judged); ok {
			out = append(out, d)
		}
	}
	return append(out, l.decideAlarms(view, now)...)
}

// membersOf lists the cluster's nodes. Call with mu held.
func (l *leaderPart) membersOf(view *store.View) []member {
	if l.listed == view.Index() {
		return l.members
	}
	l.listed, l.members = view.Index(), l.members[:0]
	for node := range view.Nodes() {
		state := view.NodeStatus(node.GetId()).GetState()
		if state == swarmpb.NodeState_NODE_STATE_UNSPECIFIED {
			state = swarmpb.NodeState_NODE_STATE_UNKNOWN
		}
		l.members = append(l.members, member{id: node.GetId(), state: state})
	}
	return l.members
}

// decideNode makes the row of one node, if it must change.
func (l *leaderPart) decideNode(view *store.View, now time.Time, m member, judged map[string]judgement) (decision, bool) {
	j, changed := judged[m.id]
	lease := l.table.nodes[m.id]
	if !changed && (lease == nil || lease.facts == nil) {
		return decision{}, false
	}
	node, row := view.Node(m.id), view.NodeStatus(m.id)
	next := &swarmpb.NodeStatus{NodeId: m.id, State: m.state}
	if row != nil {
		next = swarmpb.Clone(row)
	}
	if changed {
		next.State, next.Message, next.Since = j.state, j.message, now.UnixNano()
	}
	switch {
	case lease == nil || lease.facts == nil:
	case lease.facts.recorded(row, node.GetRole()):
		lease.facts = nil // its keeper tells them again when they are not what the row says
	case changed || now.Sub(l.described[m.id]) >= describeInterval:
		next.Description = withoutOthersKey(view, m.id, lease.facts.Description)
		if next.First == nil {
			next.First = firstFacts(next.Description)
		}
		next.Address = lease.facts.Address
		next.ManagerAddress = lease.facts.managerAddress(node.GetRole())
	}
	if proto.Equal(row, next) || next.GetState() == swarmpb.NodeState_NODE_STATE_UNKNOWN {
		return decision{}, false
	}
	if changed {
		l.logState(next)
	} else {
		l.described[m.id] = now
	}
	return decision{
		write: &swarmpb.Write{Op: &swarmpb.Write_Put{Put: &swarmpb.Row{Row: &swarmpb.Row_NodeStatus{NodeStatus: next}}}},
		guards: []*swarmpb.Guard{
			{Key: swarmpb.NodeKey(m.id), Version: node.GetMeta().GetVersion()},
			{Key: swarmpb.NodeStatusKey(m.id), Version: row.GetMeta().GetVersion()},
		},
	}, true
}

// withoutOthersKey is what a node says of itself without a key of the tunnel that another node has: whoever is told the same
// key of two nodes reaches neither. The one that has it keeps it.
func withoutOthersKey(view *store.View, nodeID string, d *swarmpb.NodeDescription) *swarmpb.NodeDescription {
	keyOf := func(id string) []byte { return view.NodeStatus(id).GetDescription().GetNetwork().GetWireguardKey() }
	key := d.GetNetwork().GetWireguardKey()
	if len(key) == 0 || bytes.Equal(key, keyOf(nodeID)) {
		return d
	}
	for node := range view.Nodes() {
		if id := node.GetId(); id != nodeID && bytes.Equal(key, keyOf(id)) && view.NodeStatus(id).GetState() != swarmpb.NodeState_NODE_STATE_DOWN {
			d = swarmpb.Clone(d)
			d.Network.WireguardKey, d.Network.Wireguard = nil, ""
			d.Network.Problems = append(d.Network.Problems, fmt.Sprintf("encrypted networks do not work here: the node's key is that of node %s; "+
				"if one is a copy of the other, make this one leave and join again", view.NodeName(id)))
			return d
		}
	}
	return d
}

func (l *leaderPart) logState(s *swarmpb.NodeStatus) {
	level := slog.LevelInfo
	if s.GetState() != swarmpb.NodeState_NODE_STATE_READY {
		level = slog.LevelWarn
	}
	l.log.Log(context.Background(), level, "node state changed", "node", s.GetNodeId(),
		"hostname", s.GetDescription().GetHostname(), "state", s.GetState().Name(), "reason", s.GetMessage())
}

// decideAlarms raises and ends the alarms of held nodes and of clones.
func (l *leaderPart) decideAlarms(view *store.View, now time.Time) []decision {
	var out []decision
	held := l.table.heldNodes()
	alarm := view.Alarm(AlarmNodesHeld, alarmCluster)
	switch {
	case len(held) == 0 && alarm != nil:
		out = append(out, clearAlarm(AlarmNodesHeld, alarmCluster))
	case len(held) > 0 && alarm.GetMessage() != heldMessage(view, held):
		out = append(out, raiseAlarm(AlarmNodesHeld, alarmCluster, heldMessage(view, held)))
	}
	for id, c := range l.clones {
		switch {
		case view.Node(id) == nil || now.Sub(c.seen) >= cloneQuiet:
			if view.Alarm(AlarmDuplicateNode, id) == nil {
				delete(l.clones, id)
				break
			}
			out = append(out, clearAlarm(AlarmDuplicateNode, id))
		case c.seen.After(c.raised) && now.Sub(c.raised) >= cloneRepeat:
			c.raised = now
			out = append(out, raiseAlarm(AlarmDuplicateNode, id, fmt.Sprintf(
				"a second live host claims the ID of node %s and is refused; if it is a copied machine, run `swarmctl leave --force` on it and join again",
				view.NodeName(id))))
		}
	}
	return out
}

func heldMessage(view *store.View, held []string) string {
	const shown = 10
	names := make([]string, 0, shown)
	for _, id := range held[:min(len(held), shown)] {
		names = append(names, view.NodeName(id))
	}
	more := ""
	if n := len(held) - shown; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("%d nodes that vanished together are held, and their tasks with them, until they return or are removed with `swarmctl node rm --force`: %s%s",
		len(held), strings.Join(names, ", "), more)
}

func raiseAlarm(kind, object, message string) decision {
	return decision{write: &swarmpb.Write{Op: &swarmpb.Write_RaiseAlarm{RaiseAlarm: &swarmpb.RaiseAlarm{Kind: kind, Object: object, Message: message}}}}
}

func clearAlarm(kind, object string) decision {
	return decision{write: &swarmpb.Write{Op: &swarmpb.Write_Delete{Delete: swarmpb.AlarmKey(kind, object)}}}
}
