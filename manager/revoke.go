package manager

import (
	"context"
	"errors"
	"fmt"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// revoke keeps removed nodes out: it refuses their handshakes, and closes the connections that they have.
func (m *Manager) revoke(ctx context.Context) error {
	m.cfg.Credentials.SetRevoked(func(nodeID string, _ swarmpb.NodeRole) bool {
		view := m.replica.Store().View()
		// Before the first rows are there, nobody has been removed.
		return view.Cluster() != nil && view.Node(nodeID) == nil
	})
	return followRemovals(ctx, m.replica.Store, m.cfg.Credentials.CloseRevoked, func(nodeID string) {
		if n := m.cfg.Credentials.CloseNode(nodeID); n > 0 {
			m.log.Info("closed the connections of a removed node", "node", nodeID, "connections", n)
		}
	})
}

// followRemovals calls removed for every node that is removed from now on. It calls missed each time it has begun to
// watch, at the start and after a gap: what was removed before that it does not tell by itself.
func followRemovals(ctx context.Context, current func() *store.Store, missed func() int, removed func(nodeID string)) error {
	for {
		st := current()
		watch, err := st.Watch(st.View().Index(), 0)
		if errors.Is(err, store.ErrCompacted) {
			continue // the store went on between the two calls
		}
		if err != nil {
			return fmt.Errorf("watch nodes: %w", err)
		}
		missed()
		err = removals(ctx, watch, removed)
		watch.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func removals(ctx context.Context, watch *store.Watch, removed func(nodeID string)) error {
	for {
		batch, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		for _, c := range batch.Changes {
			if c.Table == swarmpb.Table_TABLE_NODE && c.New == nil {
				removed(c.Key.ID)
			}
		}
	}
}
