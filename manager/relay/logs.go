package relay

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// maxCalls bounds the users that read logs from this manager at a time.
	maxCalls = 64
	// maxTasks bounds the tasks whose logs one call reads at a time.
	maxTasks = 200
	// maxTarget bounds a target's name.
	maxTarget = 300
	// readTimeout is how long the leader is asked for the newest state before this manager's own has to do.
	readTimeout = 2 * time.Second
	// lookEvery is how often a followed service is looked at for new tasks.
	lookEvery = 300 * time.Millisecond
	// batchBytes is about how much goes to the user in one message.
	batchBytes = 64 << 10
)

// Stream implements swarmpb.LogsServer.
func (s *Server) Stream(req *swarmpb.LogsStreamRequest, stream grpc.ServerStreamingServer[swarmpb.LogsStreamResponse]) error {
	ctx, cancel := s.within(stream.Context())
	defer cancel()
	select {
	case s.calls <- struct{}{}:
		defer func() { <-s.calls }()
	default:
		return wire.Errorf(wire.CodeResourceExhausted, "read logs: %d users read logs from this manager already; ask another manager, or try again later", maxCalls)
	}
	err := s.stream(ctx, req, stream.Send)
	if s.ctx.Err() != nil {
		return errStopping()
	}
	return err
}

func (s *Server) stream(ctx context.Context, req *swarmpb.LogsStreamRequest, send func(*swarmpb.LogsStreamResponse) error) error {
	if len(req.GetTarget()) > maxTarget {
		return wire.Errorf(wire.CodeInvalid, "read logs: the name is longer than any; `swarmctl service ls` shows what there is")
	}
	fresh := s.freshen(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	view := s.cfg.Store().View()
	service, task, err := s.cfg.Find(view, req.GetTarget())
	if err != nil {
		return err
	}
	c := &call{server: s, req: req, send: send, sources: map[string]*source{}, numbers: map[uint32]*source{}, quiet: map[string]bool{}, gone: map[string]bool{}}
	if !fresh {
		if err := c.notice(false, "no leader answers: tasks may be missing that this manager has not heard of"); err != nil {
			return err
		}
	}
	if task != nil {
		if view.Placement(task.GetId()) == nil && !req.GetFollow() {
			return wire.Errorf(wire.CodeFailedPrecondition, "read logs: task %s is on no node yet, so it has none; --follow waits for them", req.GetTarget())
		}
		c.taskID = task.GetId()
	}
	c.serviceID, c.serviceName = service.GetId(), service.GetSpec().GetName()
	if req.GetFollow() {
		return c.follow(ctx)
	}
	found, left, err := c.find(view)
	if err != nil {
		return err
	}
	if left > 0 {
		if err := c.notice(false, fmt.Sprintf("%d older tasks of %s have ended and are left out; name one by its ID to read it", left, c.serviceName)); err != nil {
			return err
		}
	}
	return c.merge(ctx, found)
}

// freshen says whether the view has everything that was committed before.
func (s *Server) freshen(ctx context.Context) bool {
	if wire.Stale(ctx) {
		return true // as the user wishes
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	_, err := s.cfg.ReadIndex(ctx)
	return err == nil
}

// source is a task whose log is read.
type source struct {
	info *swarmpb.LogSource
	// told: the user knows what its number stands for.
	told bool
	// ran: it has come so far that it may have written something.
	ran bool
	// done: it is read to its end.
	done atomic.Bool
}

// call is one user's.
type call struct {
	server                         *Server
	req                            *swarmpb.LogsStreamRequest
	serviceID, serviceName, taskID string

	mu      sync.Mutex // held while sending, so that a slow user slows all down
	send    func(*swarmpb.LogsStreamResponse) error
	sources map[string]*source // by task ID
	// numbers are the sources' too; those of tasks that are forgotten are given again, after telling so.
	numbers map[uint32]*source
	// quiet are nodes that do not answer, gone those that the user knows to have been removed, by ID.
	quiet, gone map[string]bool
}

func (c *call) notice(missing bool, text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.noticeLocked(missing, text)
}

func (c *call) noticeLocked(missing bool, text string) error {
	n := &swarmpb.LogNotice{Text: text, Missing: missing}
	return c.send(&swarmpb.LogsStreamResponse{Message: &swarmpb.LogsStreamResponse_Notice{Notice: n}})
}

// batch sends lines, after saying whose they are.
func (c *call) batch(records ...*swarmpb.LogRecords) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range records {
		src := c.numbers[r.GetSource()]
		if src == nil || src.told {
			continue
		}
		src.told = true
		if err := c.send(&swarmpb.LogsStreamResponse{Message: &swarmpb.LogsStreamResponse_Source{Source: src.info}}); err != nil {
			return err
		}
	}
	return c.send(&swarmpb.LogsStreamResponse{Message: &swarmpb.LogsStreamResponse_Batch{Batch: &swarmpb.LogBatch{Records: records}}})
}

// find makes sources of the tasks that are new since the last call: those that live, and of those that have ended as many
// as there is room for, the youngest; left is how many are not among them. It is an error when there are too many.
func (c *call) find(view *store.View) (found []*source, left int, err error) {
	var live, ended []*swarmpb.Task
	take := func(task *swarmpb.Task) {
		if _, known := c.sources[task.GetId()]; known || view.Placement(task.GetId()) == nil {
			return
		}
		if view.Observed(task.GetId()).Ended() {
			ended = append(ended, task)
		} else {
			live = append(live, task)
		}
	}
	if c.taskID != "" {
		if task := view.Task(c.taskID); task != nil {
			take(task)
		}
	} else {
		for task := range view.TasksOf(c.serviceID) {
			take(task)
		}
	}
	if len(live) > maxTasks {
		return nil, 0, wire.Errorf(wire.CodeResourceExhausted,
			"read logs: %d tasks of service %s run, and the logs of at most %d are read at once; name a task, such as %s.1", len(live), c.serviceName, maxTasks, c.serviceName)
	}
	slices.SortFunc(ended, func(a, b *swarmpb.Task) int {
		return cmp.Compare(view.Status(b.GetId()).GetAt(), view.Status(a.GetId()).GetAt())
	})
	if room := maxTasks - len(live); len(ended) > room {
		ended, left = ended[:room], len(ended)-room
	}
	for _, task := range append(live, ended...) {
		found = append(found, c.add(view, task))
	}
	return found, left, nil
}

func (c *call) add(view *store.View, task *swarmpb.Task) *source {
	id := task.GetId()
	nodeID := view.Placement(id).GetNodeId()
	status := view.Status(id)
	src := &source{info: &swarmpb.LogSource{
		TaskId: id, TaskName: swarmpb.TaskName(c.serviceName, task.GetSlot(), task.GetNodeId()),
		ServiceName: c.serviceName, Attempt: task.GetAttempt(), NodeId: nodeID,
		NodeHostname: cmp.Or(view.NodeStatus(nodeID).GetDescription().GetHostname(), nodeID),
	}}
	src.ran = mayHaveWritten(status.GetState())
	c.mu.Lock()
	defer c.mu.Unlock()
	src.info.Number = 1
	for c.numbers[src.info.Number] != nil {
		src.info.Number++
	}
	c.sources[id], c.numbers[src.info.Number] = src, src
	return src
}

// follow sends what is there and what comes, until the task has ended or the service is gone.
func (c *call) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	f := followed{call: c, ctx: ctx, cancel: cancel, places: make(chan struct{}, maxTasks)}
	defer f.work.Wait()
	defer cancel(nil)
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		view := c.server.cfg.Store().View()
		if err := f.look(view); err != nil {
			return err
		}
		if len(f.places) == 0 && c.over(view) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// followed is a call that follows.
type followed struct {
	*call
	ctx    context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup
	// places has an entry for each task that is read.
	places        chan struct{}
	begun, warned bool
	index         uint64 // of the view that was looked at last; 0 = look again
}

// look begins to read the tasks that are new in the view.
func (f *followed) look(view *store.View) error {
	if f.begun && f.index == view.Index() {
		return nil
	}
	f.index = view.Index()
	f.prune(view)
	found, left, err := f.find(view)
	if err != nil && !f.begun {
		return err
	}
	f.begun = true
	if (left > 0 || err != nil) && !f.warned {
		f.warned = true
		text := fmt.Sprintf("service %s has more tasks than the %d whose logs are read at once; name a task to see the others", f.serviceName, maxTasks)
		if err := f.notice(true, text); err != nil {
			return err
		}
	}
	for i, src := range found {
		select {
		case f.places <- struct{}{}:
		default: // there is room when others have ended
			f.forget(found[i:]...)
			f.index = 0
			return nil
		}
		f.work.Go(func() {
			if err := f.run(f.ctx, src, f.straight(src)); err != nil {
				f.cancel(err)
			}
			src.done.Store(true)
			<-f.places
		})
	}
	return nil
}

// prune forgets tasks that are gone and read to their end: a call may last for long.
func (f *followed) prune(view *store.View) {
	var gone []*source
	for id, src := range f.sources {
		if src.done.Load() && view.Task(id) == nil && id != f.taskID {
			gone = append(gone, src)
		}
	}
	f.forget(gone...)
}

func (c *call) forget(sources ...*source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, src := range sources {
		delete(c.sources, src.info.GetTaskId())
		delete(c.numbers, src.info.GetNumber())
	}
}

// over says whether no more tasks can come.
func (c *call) over(view *store.View) bool {
	if view.Service(c.serviceID) == nil {
		return true
	}
	if c.taskID == "" {
		return false
	}
	_, found := c.sources[c.taskID]
	return found || view.Task(c.taskID) == nil
}

// straight sends a frame's lines as they come.
func (c *call) straight(src *source) func(context.Context, *swarmpb.LogFrame) error {
	return func(_ context.Context, frame *swarmpb.LogFrame) error {
		return c.batch(&swarmpb.LogRecords{Source: src.info.GetNumber(), Records: frame.GetRecords()})
	}
}
