package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

const watchLimit = 10_000

// fanOut follows the store for all sessions at once and wakes those whose node a change concerns.
func (s *Server) fanOut(ctx context.Context) error {
	for ctx.Err() == nil {
		st := s.cfg.Store()
		view := st.View()
		watch, err := st.Watch(view.Index(), watchLimit)
		if err != nil && !errors.Is(err, store.ErrCompacted) {
			return fmt.Errorf("watch store: %w", err)
		}
		if err == nil {
			s.resync(view)
			err = s.follow(ctx, st, watch)
			watch.Close()
		}
		if err != nil && ctx.Err() == nil {
			s.log.Debug("watching the store anew", "reason", err)
		}
	}
	return nil
}

var errSwapped = errors.New("the store was swapped")

// follow fans out batches until the watch breaks or the store is swapped.
func (s *Server) follow(ctx context.Context, st *store.Store, watch *store.Watch) error {
	for {
		batch, err := s.nextOf(ctx, st, watch)
		if err != nil {
			return err
		}
		for i := range batch.Changes {
			s.wakeFor(&batch.Changes[i])
		}
		s.fanned.Store(batch.View.Index())
	}
}

// nextOf waits for the next batch, and looks now and then whether the store is still the current one.
func (s *Server) nextOf(ctx context.Context, st *store.Store, watch *store.Watch) (store.Batch, error) {
	for {
		look, cancel := context.WithTimeout(ctx, time.Second)
		batch, err := watch.Next(look)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return batch, err
		}
		if s.cfg.Store() != st {
			return batch, errSwapped
		}
	}
}

// resync treats everything as changed: after a start, an overflow or a restore.
func (s *Server) resync(view *store.View) {
	s.mu.Lock()
	nodes := make([]string, 0, len(s.sessions))
	for id := range s.sessions {
		nodes = append(nodes, id)
	}
	s.mu.Unlock()
	for _, id := range nodes {
		if view.Node(id) == nil {
			s.endNode(id)
		}
	}
	s.notify("")
	s.fanned.Store(view.Index())
}

// wakeFor wakes the sessions that a change concerns. Statuses are not among them: a node knows its own.
func (s *Server) wakeFor(c *store.Change) {
	switch c.Table {
	case swarmpb.Table_TABLE_TASK:
		if task, ok := c.New.(*swarmpb.Task); ok {
			s.wakeNode(s.view().Placement(task.GetId()).GetNodeId())
		}
	case swarmpb.Table_TABLE_TASK_PLACEMENT:
		before, _ := c.Old.(*swarmpb.TaskPlacement)
		after, _ := c.New.(*swarmpb.TaskPlacement)
		s.wakeNode(before.GetNodeId())
		if after.GetNodeId() != before.GetNodeId() {
			s.wakeNode(after.GetNodeId())
		}
	case swarmpb.Table_TABLE_ALLOCATION:
		before, _ := c.Old.(*swarmpb.Allocation)
		after, _ := c.New.(*swarmpb.Allocation)
		s.wakeNode(before.GetOwner())
		if after.GetOwner() != before.GetOwner() {
			s.wakeNode(after.GetOwner())
		}
	case swarmpb.Table_TABLE_SERVICE:
		before, _ := c.Old.(*swarmpb.Service)
		after, _ := c.New.(*swarmpb.Service)
		// New credentials are rare; who has no task of the service finds nothing to tell.
		if before != nil && after != nil && !(proto.Equal(before.GetRegistryAuth(), after.GetRegistryAuth()) &&
			proto.Equal(before.GetPreviousRegistryAuth(), after.GetPreviousRegistryAuth())) {
			s.notify("")
		}
	case swarmpb.Table_TABLE_CLUSTER:
		s.notify("")
	case swarmpb.Table_TABLE_NODE:
		before, _ := c.Old.(*swarmpb.Node)
		after, _ := c.New.(*swarmpb.Node)
		switch {
		case after == nil:
			s.endNode(before.GetId())
		case before.GetRole() != after.GetRole() || before.GetSpec().GetDesiredRole() != after.GetSpec().GetDesiredRole():
			s.wakeNode(after.GetId())
		}
	}
}

func (s *Server) wakeNode(nodeID string) {
	if nodeID != "" {
		s.notify(nodeID)
	}
}
