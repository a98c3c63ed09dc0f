package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Times of the membership loop.
const (
	// membershipEvery is how often it looks without a change in the store: whether a log has caught up is in no row.
	membershipEvery = time.Second
	// A step that failed waits so long before it is tried again, longer each time; and one that succeeded is not
	// repeated sooner than stepPauseMin.
	stepPauseMin = 250 * time.Millisecond
	stepPauseMax = 30 * time.Second
	stepTimeout  = 10 * time.Second
)

// raftGroup is Raft's configuration as the leader can change it; *replica.Replica is one.
type raftGroup interface {
	Members() []replica.Member
	CaughtUp(id string) bool
	AddMember(ctx context.Context, id, address string) error
	MakeVoter(ctx context.Context, id string) error
	RemoveMember(ctx context.Context, id string) error
	TransferLeadership(ctx context.Context, id string) error
}

// step is one change of Raft's configuration, or of the leader.
type step struct {
	kind    stepKind
	node    string
	address string
}

type stepKind string

const (
	stepAdd      stepKind = "add a manager without a vote"
	stepVote     stepKind = "give a manager its vote"
	stepMove     stepKind = "write a manager's new address"
	stepHandOver stepKind = "hand leadership over, as this node is to be a manager no longer"
	stepRemove   stepKind = "remove a manager"
)

// situation is what the membership loop decides by: rows, Raft's configuration, and how far the members' logs are.
type situation struct {
	// self is the leader, which can be reached at address.
	self, address string
	view          *store.View
	members       []replica.Member
	// caughtUp says whether a member answers and its log is within reach of the leader's.
	caughtUp func(id string) bool
}

// steps returns what can be done now, the most useful first, and why other things have to wait, by node ID. Each step
// may be taken on its own. None makes a configuration whose voters do not have a majority that answers, gives two
// managers one address, or removes the leader.
func (s *situation) steps() (steps []step, blocked map[string]string) {
	blocked = make(map[string]string)
	if s.view.Cluster() == nil {
		return nil, blocked // before the first rows are there, no row says who should be a manager
	}
	var move, add, vote, drop, remove []step
	for _, m := range s.members {
		switch address := s.addressOf(m.ID); {
		case !s.wanted(m.ID):
			switch {
			case m.ID == s.self: // see handOver
			case !m.Voter:
				drop = append(drop, step{kind: stepRemove, node: m.ID})
			case !s.majorityWithout(m.ID):
				blocked[m.ID] = "it is to be no manager any more, but without it there would be no majority of managers that answers"
			default:
				remove = append(remove, step{kind: stepRemove, node: m.ID})
			}
		case address != "" && address != m.Address:
			if holder := s.holder(address, m.ID); holder != "" {
				blocked[m.ID] = addressTaken(address, holder)
				break
			}
			move = append(move, step{stepMove, m.ID, address})
		case !m.Voter && s.caughtUp(m.ID):
			vote = append(vote, step{kind: stepVote, node: m.ID})
		}
	}
	for node := range s.view.Nodes() {
		id := node.GetId()
		if s.member(id) != nil || !s.wanted(id) || node.GetRole() != swarmpb.NodeRole_NODE_ROLE_MANAGER || !s.ready(id) {
			continue
		}
		address := s.addressOf(id)
		switch holder := s.holder(address, id); {
		case address == "":
		case holder != "":
			blocked[id] = addressTaken(address, holder)
		default:
			add = append(add, step{stepAdd, id, address})
		}
	}
	// Managers come before others go: so there are enough at each moment.
	for _, list := range [][]step{drop, move, vote, firstOfEachAddress(add), s.handOver(blocked), remove} {
		steps = append(steps, list...)
	}
	return steps, blocked
}

func addressTaken(address, holder string) string {
	return fmt.Sprintf("its address %s is that of manager %s in Raft; remove that node, or demote it, if it is gone", address, holder)
}

// firstOfEachAddress leaves one of the nodes that claim the same address.
func firstOfEachAddress(steps []step) []step {
	var first []step
	taken := make(map[string]bool)
	for _, s := range steps {
		if !taken[s.address] {
			first = append(first, s)
		}
		taken[s.address] = true
	}
	return first
}

// handOver gives leadership to a voter that stays, where this leader is to go.
func (s *situation) handOver(blocked map[string]string) []step {
	m := s.member(s.self)
	if m == nil || s.wanted(s.self) {
		return nil
	}
	var steps []step
	for _, heir := range s.members {
		if heir.ID != s.self && heir.Voter && s.wanted(heir.ID) && s.ready(heir.ID) {
			steps = append(steps, step{kind: stepHandOver, node: heir.ID})
		}
	}
	if len(steps) == 0 {
		blocked[s.self] = "it leads and is to be no manager any more, but there is no other manager with a vote that could take over"
	}
	return steps
}

// wanted says whether the node should be a manager.
func (s *situation) wanted(id string) bool {
	return s.view.Node(id).GetSpec().GetDesiredRole() == swarmpb.NodeRole_NODE_ROLE_MANAGER
}

// ready says whether the node has a session; this one answers in any case.
func (s *situation) ready(id string) bool {
	return id == s.self || s.view.NodeStatus(id).GetState() == swarmpb.NodeState_NODE_STATE_READY
}

// addressOf is where the node's manager is reached; empty while that is not known. A loopback address is of use only
// in a cluster that is on one host.
func (s *situation) addressOf(id string) string {
	if id == s.self {
		return s.address
	}
	address := s.view.NodeStatus(id).GetManagerAddress()
	if isLoopback(address) && !isLoopback(s.address) {
		return ""
	}
	return address
}

func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

func (s *situation) member(id string) *replica.Member {
	for i := range s.members {
		if s.members[i].ID == id {
			return &s.members[i]
		}
	}
	return nil
}

// holder is the other member at that address, empty for none.
func (s *situation) holder(address, except string) string {
	for _, m := range s.members {
		if m.Address == address && m.ID != except {
			return m.ID
		}
	}
	return ""
}

// majorityWithout says whether most of the other voters answer: if not, Raft could commit nothing any more.
func (s *situation) majorityWithout(id string) bool {
	voters, answering := 0, 0
	for _, m := range s.members {
		if !m.Voter || m.ID == id {
			continue
		}
		voters++
		if m.ID == s.self || s.caughtUp(m.ID) {
			answering++
		}
	}
	return answering >= voters/2+1
}

// membership changes Raft's configuration until the voters are the nodes that should be managers. It keeps nothing
// that the next leader needs.
type membership struct {
	store   *store.Store
	raft    raftGroup
	self    string
	address string
	log     *slog.Logger

	pauses  map[step]pause
	blocked map[string]string
}

// pause is how long a step waits, and until when.
type pause struct {
	length time.Duration
	until  time.Time
}

func newMembership(st *store.Store, raft raftGroup, self, address string, log *slog.Logger) *membership {
	return &membership{store: st, raft: raft, self: self, address: address, log: log, pauses: make(map[step]pause)}
}

// run works until ctx ends.
func (m *membership) run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.watch(ctx, changed) })
	g.Go(func() error { return m.loop(ctx, changed) })
	return g.Wait()
}

// watch pokes changed when a row has changed that may call for a step.
func (m *membership) watch(ctx context.Context, changed chan<- struct{}) error {
	for {
		watch, err := m.store.Watch(m.store.View().Index(), 0)
		if errors.Is(err, store.ErrCompacted) {
			continue // the store went on between the two calls
		}
		if err != nil {
			return fmt.Errorf("watch nodes: %w", err)
		}
		poke(changed) // what changed before the watch
		err = m.follow(ctx, watch, changed)
		watch.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (m *membership) follow(ctx context.Context, watch *store.Watch, changed chan<- struct{}) error {
	for {
		batch, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		for _, c := range batch.Changes {
			if concernsManagers(batch.View, c) {
				poke(changed)
				break
			}
		}
	}
}

// concernsManagers tells whether a row is of a node that is a manager, or is to be one, or was.
func concernsManagers(view *store.View, c store.Change) bool {
	const manager = swarmpb.NodeRole_NODE_ROLE_MANAGER
	switch c.Table {
	case swarmpb.Table_TABLE_NODE:
		before, _ := c.Old.(*swarmpb.Node)
		after, _ := c.New.(*swarmpb.Node)
		return slices.ContainsFunc([]*swarmpb.Node{before, after}, func(n *swarmpb.Node) bool {
			return n.GetRole() == manager || n.GetSpec().GetDesiredRole() == manager
		})
	case swarmpb.Table_TABLE_NODE_STATUS:
		return view.Node(c.Key.ID).GetSpec().GetDesiredRole() == manager
	}
	return false
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (m *membership) loop(ctx context.Context, changed <-chan struct{}) error {
	ticker := time.NewTicker(membershipEvery)
	defer ticker.Stop()
	for {
		if m.next(ctx) {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-ticker.C:
		}
	}
}

// next takes the first step that need not wait; true: there may be another one now.
func (m *membership) next(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	s := situation{self: m.self, address: m.address, view: m.store.View(), members: m.raft.Members(), caughtUp: m.raft.CaughtUp}
	steps, blocked := s.steps()
	m.report(blocked)
	m.forget(steps)
	now := time.Now()
	for _, next := range steps {
		p := m.pauses[next]
		if now.Before(p.until) {
			continue
		}
		err := m.take(ctx, next)
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			m.log.Info("managers changed", "step", string(next.kind), "node", next.node, "address", next.address)
			m.pauses[next] = pause{until: time.Now().Add(stepPauseMin)}
			return next.kind != stepHandOver // after that one this manager is about to hear that it leads no more
		}
		p.length = min(max(2*p.length, stepPauseMin), stepPauseMax)
		p.until = time.Now().Add(p.length)
		m.pauses[next] = p
		level := slog.LevelWarn
		if next.kind == stepVote && errors.Is(err, wire.ErrFailedPrecondition) {
			level = slog.LevelDebug // its log fell behind again: that is no fault
		}
		m.log.Log(ctx, level, "a change of the managers failed; it is tried again", "step", string(next.kind), "node", next.node,
			"address", next.address, "pause", p.length, "error", err)
		return true
	}
	return false
}

// forget drops the pauses of steps that are not called for any more.
func (m *membership) forget(steps []step) {
	called := make(map[step]bool, len(steps))
	for _, s := range steps {
		called[s] = true
	}
	for s, p := range m.pauses {
		if !called[s] && time.Now().After(p.until) {
			delete(m.pauses, s)
		}
	}
}

// report logs what has to wait, once for each reason.
func (m *membership) report(blocked map[string]string) {
	for id, why := range blocked {
		if m.blocked[id] != why {
			m.log.Warn("a change of the managers has to wait", "node", id, "reason", why)
		}
	}
	m.blocked = blocked
}

func (m *membership) take(ctx context.Context, s step) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	switch s.kind {
	case stepAdd, stepMove:
		return m.raft.AddMember(ctx, s.node, s.address)
	case stepVote:
		return m.raft.MakeVoter(ctx, s.node)
	case stepHandOver:
		return m.raft.TransferLeadership(ctx, s.node)
	case stepRemove:
		return m.raft.RemoveMember(ctx, s.node)
	}
	return fmt.Errorf("no such step: %q", s.kind)
}
