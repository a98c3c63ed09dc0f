package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// sweepRetry is the pause after a sweep that could not be written.
const sweepRetry = time.Second

// sweep ends the tasks of removed nodes, whose workers can report nothing any more: once for all at the start,
// then as nodes go.
func (l *leaderPart) sweep(ctx context.Context) error {
	for ctx.Err() == nil {
		st := l.store()
		view := st.View()
		watch, err := st.Watch(view.Index(), watchLimit)
		if err == nil {
			if err = l.sweepAll(ctx, view); err == nil {
				err = l.sweepChanges(ctx, watch)
			}
			watch.Close()
		}
		switch {
		case ctx.Err() != nil || errors.Is(err, store.ErrStaleTerm):
			return nil
		case errors.Is(err, store.ErrOverflow) || errors.Is(err, store.ErrCompacted):
			continue
		case err != nil:
			l.log.Warn("ending tasks of removed nodes failed; it is tried again", "error", err)
			select {
			case <-time.After(sweepRetry):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// sweepAll looks at every task once.
func (l *leaderPart) sweepAll(ctx context.Context, view *store.View) error {
	var writes []*swarmpb.Write
	for task := range view.Tasks() {
		if nodeID := view.NodeID(task.GetId()); nodeID != "" && view.Node(nodeID) == nil {
			writes = append(writes, orphan(view, task)...)
		}
	}
	return l.write(ctx, writes)
}

func (l *leaderPart) sweepChanges(ctx context.Context, watch *store.Watch) error {
	for {
		batch, err := watch.Next(ctx)
		if err != nil {
			return err
		}
		var writes []*swarmpb.Write
		for i := range batch.Changes {
			writes = append(writes, l.sweepChange(batch.View, &batch.Changes[i])...)
		}
		if err := l.write(ctx, writes); err != nil {
			return err
		}
	}
}

func (l *leaderPart) sweepChange(view *store.View, c *store.Change) []*swarmpb.Write {
	switch {
	case c.Table == swarmpb.Table_TABLE_NODE && c.New == nil:
		if view.Node(c.Key.ID) != nil {
			return nil
		}
		var writes []*swarmpb.Write
		for task := range view.TasksOn(c.Key.ID) {
			writes = append(writes, orphan(view, task)...)
		}
		return writes
	case c.Table == swarmpb.Table_TABLE_TASK_PLACEMENT && c.New != nil:
		// A task that was placed in the moment its node was removed.
		placement, ok := c.New.(*swarmpb.TaskPlacement)
		if task := view.Task(c.Key.ID); ok && task != nil && placement.GetNodeId() != "" && view.Node(placement.GetNodeId()) == nil {
			return orphan(view, task)
		}
	}
	return nil
}

// orphan ends a task unless it has ended.
func orphan(view *store.View, task *swarmpb.Task) []*swarmpb.Write {
	if view.Observed(task.GetId()).Ended() {
		return nil
	}
	status := &swarmpb.TaskStatus{TaskId: task.GetId()}
	if row := view.Status(task.GetId()); row != nil {
		status = swarmpb.Clone(row)
	}
	status.State = swarmpb.TaskState_TASK_STATE_ORPHANED
	status.At = time.Now().UnixNano()
	status.Message, status.Error = "", fmt.Sprintf("node %s was removed from the cluster", view.NodeID(task.GetId()))
	return []*swarmpb.Write{{Op: &swarmpb.Write_MergeStatus{MergeStatus: status}}}
}

func (l *leaderPart) write(ctx context.Context, writes []*swarmpb.Write) error {
	decisions := make([]decision, 0, len(writes))
	for _, w := range writes {
		decisions = append(decisions, decision{write: w})
	}
	return l.propose(ctx, decisions)
}
