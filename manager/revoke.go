package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/replica"
	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// catchUpTimeout bounds how long the handshake of an unknown node waits for this manager to catch up.
	catchUpTimeout = 2 * time.Second
	// sweepEvery is how often it is looked whether Raft's configuration or the leader has changed.
	sweepEvery = time.Second
)

// judge says who may connect to this manager and in what role, by a store that may be behind.
//
// A manager must never keep out the leader that it has not heard of yet: it would stay behind for good. So where
// there is no leader, and about the leader itself, a manager's certificate is believed. Without a leader such a peer
// gains nothing: nothing can be written, and what can be read it has seen as a manager.
type judge struct {
	view   func() *store.View
	inRaft func(nodeID string) bool
	role   func(nodeID string) swarmpb.NodeRole
	// leader is the node ID of Raft's leader, empty for none.
	leader    func() string
	readIndex func(context.Context) (uint64, error)
}

// standing is wire's check of a connection. A node that has just joined may not be in this manager's store yet, so one
// that is not there counts as removed only with all that was committed before at hand.
func (j *judge) standing(nodeID string, certified swarmpb.NodeRole) wire.Standing {
	view := j.view()
	// Before the first rows are there, nobody has been removed.
	if view.Cluster() == nil || view.Node(nodeID) != nil || j.inRaft(nodeID) {
		return wire.StandingMember
	}
	leader := j.leader()
	if certified == swarmpb.NodeRole_NODE_ROLE_MANAGER && (leader == "" || leader == nodeID) {
		return wire.StandingMember
	}
	if leader == "" {
		return wire.StandingUnknown
	}
	ctx, cancel := context.WithTimeout(context.Background(), catchUpTimeout)
	defer cancel()
	if _, err := j.readIndex(ctx); err != nil {
		return wire.StandingUnknown
	}
	if j.view().Node(nodeID) == nil && !j.inRaft(nodeID) {
		return wire.StandingRemoved
	}
	return wire.StandingMember
}

// countsAs is wire's question what role a peer has whose certificate is a manager's. For a node without a row that is
// for standing to say.
func (j *judge) countsAs(nodeID string, certified swarmpb.NodeRole) swarmpb.NodeRole {
	view := j.view()
	if view.Cluster() == nil || view.Node(nodeID) == nil {
		return certified
	}
	if leader := j.leader(); leader == "" || leader == nodeID {
		return certified
	}
	return j.role(nodeID)
}

// guard has every connection judged, from now on until the function that it returns is called.
func (m *Manager) guard() (end func()) {
	j := &judge{
		view:   func() *store.View { return m.replica.Store().View() },
		inRaft: m.inRaft, role: m.role, leader: m.Leader, readIndex: m.replica.ReadIndex,
	}
	m.cfg.Credentials.SetStanding(j.standing)
	m.cfg.Credentials.SetRole(j.countsAs)
	return func() {
		// From here on the store grows old: nobody is judged by it.
		m.cfg.Credentials.SetStanding(nil)
		m.cfg.Credentials.SetRole(nil)
	}
}

// revoke closes the connections of nodes that guard would not let in any more: removed ones, and those for managers
// alone of managers that are none any more.
func (m *Manager) revoke(ctx context.Context) error {
	creds := m.cfg.Credentials
	sweep := func() {
		if n := creds.CloseRevoked(); n > 0 {
			m.log.Info("closed connections of nodes that were removed or are managers no longer", "connections", n)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.sweepChanges(ctx, sweep) })
	g.Go(func() error {
		return followRemovals(ctx, m.replica.Store, sweep, func(nodeID string) {
			if n := creds.CloseNode(nodeID); n > 0 {
				m.log.Info("closed the connections of a removed node", "node", nodeID, "connections", n)
			}
		})
	})
	return g.Wait()
}

// sweepChanges calls sweep after each change of Raft's configuration or of the leader: what judge says hangs on them.
func (m *Manager) sweepChanges(ctx context.Context, sweep func()) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	var members []replica.Member
	var leader string
	for {
		if now, by := m.replica.Members(), m.Leader(); by != leader || !slices.Equal(now, members) {
			members, leader = now, by
			sweep()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// followRemovals calls removed for every node that is removed from now on. It calls sweep each time it has begun to
// watch, at the start and after a gap, as what was removed before that it does not tell by itself; and when a node is
// to be a manager no longer.
func followRemovals(ctx context.Context, current func() *store.Store, sweep func(), removed func(nodeID string)) error {
	for {
		st := current()
		watch, err := st.Watch(st.View().Index(), 0)
		if errors.Is(err, store.ErrCompacted) {
			continue // the store went on between the two calls
		}
		if err != nil {
			return fmt.Errorf("watch nodes: %w", err)
		}
		sweep()
		err = removals(ctx, watch, sweep, removed)
		watch.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func removals(ctx context.Context, watch *store.Watch, sweep func(), removed func(nodeID string)) error {
	for {
		batch, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		demoted := false
		for _, c := range batch.Changes {
			if c.Table != swarmpb.Table_TABLE_NODE {
				continue
			}
			if c.New == nil {
				removed(c.Key.ID)
			} else if wantsManager(c.Old) && !wantsManager(c.New) {
				demoted = true
			}
		}
		if demoted {
			sweep()
		}
	}
}

func wantsManager(row proto.Message) bool {
	node, _ := row.(*swarmpb.Node)
	return node.GetSpec().GetDesiredRole() == swarmpb.NodeRole_NODE_ROLE_MANAGER
}
