package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// WatchService sends the service with all its tasks, then what changes, until the caller goes or the service is
// gone. A receiver that does not keep up gets fewer and larger steps, never a queue.
func (s *Server) WatchService(req *swarmpb.WatchServiceRequest, stream grpc.ServerStreamingServer[swarmpb.WatchServiceResponse]) error {
	ctx := stream.Context()
	view, err := s.read(ctx)
	if err != nil {
		return err
	}
	service, err := findService(view, req.GetService())
	if err != nil {
		return err
	}
	w := &serviceWatch{id: service.GetId(), known: make(map[string]part), count: make(tally), send: stream.Send}
	for {
		st := s.cfg.Store()
		view := st.View()
		watch, err := st.Watch(view.Index(), 0)
		if errors.Is(err, store.ErrCompacted) {
			continue // The store went on between the two lines above.
		}
		if err != nil {
			return wire.Errorf(wire.CodeInternal, "watch service: %w", err)
		}
		err = w.run(ctx, view, watch)
		watch.Close()
		// After an overflow, or a restore, everything is listed again.
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

// serviceWatch is the picture that one receiver has.
type serviceWatch struct {
	id string
	// known is what each task that the receiver was told of counts for.
	known map[string]part
	count tally
	send  func(*swarmpb.WatchServiceResponse) error
}

// run sends the whole picture, then what changes; nil when the service is gone.
func (w *serviceWatch) run(ctx context.Context, view *store.View, watch *store.Watch) error {
	changed := make(map[string]struct{})
	for id := range w.known {
		changed[id] = struct{}{}
	}
	for task := range view.TasksOf(w.id) {
		changed[task.GetId()] = struct{}{}
	}
	for {
		if gone, err := w.step(view, changed); gone || err != nil {
			return err
		}
		timer := time.NewTimer(watchInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		for relevant := false; !relevant; {
			batch, err := watch.Next(ctx)
			if err != nil {
				return err
			}
			view = batch.View
			changed, relevant = w.affected(&batch)
		}
	}
}

// affected collects the tasks of the service that a batch concerns, and whether it concerns the service at all.
func (w *serviceWatch) affected(batch *store.Batch) (map[string]struct{}, bool) {
	changed := make(map[string]struct{})
	relevant := false
	for i := range batch.Changes {
		c := &batch.Changes[i]
		switch c.Table {
		case swarmpb.Table_TABLE_SERVICE, swarmpb.Table_TABLE_SERVICE_PROGRESS, swarmpb.Table_TABLE_SERVICE_ENDPOINT, swarmpb.Table_TABLE_SERVICE_METRIC:
			relevant = relevant || c.Key.ID == w.id
		case swarmpb.Table_TABLE_TASK, swarmpb.Table_TABLE_TASK_PLACEMENT, swarmpb.Table_TABLE_TASK_ADDRESSES, swarmpb.Table_TABLE_TASK_STATUS:
			if _, known := w.known[c.Key.ID]; known || batch.View.Task(c.Key.ID).GetServiceId() == w.id {
				changed[c.Key.ID] = struct{}{}
			}
		case swarmpb.Table_TABLE_NODE_STATUS:
			before, _ := c.Old.(*swarmpb.NodeStatus)
			after, _ := c.New.(*swarmpb.NodeStatus)
			news := before.GetState() != after.GetState() || !slices.Equal(networkProblems(before), networkProblems(after))
			if news && batch.View.TasksOnByService(c.Key.ID, w.id) > 0 {
				w.onNode(batch.View, c.Key.ID, changed)
			}
			relevant = relevant || !slices.EqualFunc(conflictsOf(before), conflictsOf(after), samePort)
		}
	}
	return changed, relevant || len(changed) > 0
}

// onNode adds the tasks of the service on a node of which there is something new to say.
func (w *serviceWatch) onNode(view *store.View, nodeID string, changed map[string]struct{}) {
	for task := range view.TasksOn(nodeID) {
		if task.GetServiceId() == w.id {
			changed[task.GetId()] = struct{}{}
		}
	}
}

// step brings the receiver's picture to the view, in messages of a bounded size.
func (w *serviceWatch) step(view *store.View, changed map[string]struct{}) (gone bool, err error) {
	var tasks []*swarmpb.Task
	var removed []string
	for id := range changed {
		task := view.Task(id)
		if _, known := w.known[id]; task == nil && known {
			removed = append(removed, id)
		} else if task != nil {
			tasks = append(tasks, task)
		}
		w.recount(view, id, task)
	}
	slices.SortFunc(tasks, func(a, b *swarmpb.Task) int { return positionOf(a).compare(positionOf(b)) })
	slices.Sort(removed)
	service := view.Service(w.id)
	var info *swarmpb.ServiceInfo
	if service != nil {
		info = withConflicts(view, w.count.info(view, service))
	}
	for {
		message := &swarmpb.WatchServiceResponse{Service: info}
		for size := 0; len(tasks) > 0 && len(message.Tasks) < maxPage && size < maxPageBytes; tasks = tasks[1:] {
			task := taskInfo(view, tasks[0])
			message.Tasks = append(message.Tasks, task)
			size += proto.Size(task)
		}
		if len(tasks) == 0 {
			n := min(len(removed), maxPage)
			message.Removed, removed = removed[:n], removed[n:]
		}
		message.More = len(tasks)+len(removed) > 0
		if err := w.send(message); err != nil || !message.More {
			return service == nil, err
		}
	}
}

// recount takes a task's part in the counts from what it was to what it is.
func (w *serviceWatch) recount(view *store.View, id string, task *swarmpb.Task) {
	w.count.add(w.known[id], -1)
	if task == nil {
		delete(w.known, id)
		return
	}
	after := look(view, task)
	w.known[id] = after
	w.count.add(after, +1)
}
