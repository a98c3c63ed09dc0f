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
		s.fan(batch)
	}
}

// nextOf waits for the next batch, and looks now and then whether the store is still the current one.
func (s *Server) nextOf(ctx context.Context, st *store.Store, watch *store.Watch) (store.Batch, error) {
	for {
		look, cancel := context.WithTimeout(ctx, time.Second)
		s.interrupt.Store(&cancel)
		s.catchUp(watch)
		batch, err := watch.Next(look)
		interrupted := look.Err() != nil
		cancel()
		if err == nil || ctx.Err() != nil || !interrupted {
			return batch, err
		}
		if s.cfg.Store() != st {
			return batch, errSwapped
		}
	}
}

// catchUp brings reach to the newest version, of which there is no batch when nothing has changed, if a session waits
// for it.
func (s *Server) catchUp(watch *store.Watch) {
	s.mu.Lock()
	wanted := len(s.behind) > 0
	s.mu.Unlock()
	if !wanted {
		return
	}
	if view := watch.Reached(); view != nil && view.Index() > s.fanned.Load() {
		s.fan(store.Batch{View: view})
	}
}

// await has the session woken once reach is at an index.
func (s *Server) await(x *session, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fanned.Load() >= index {
		return
	}
	s.behind[x] = index
	if interrupt := s.interrupt.Load(); interrupt != nil {
		(*interrupt)()
	}
}

// fan brings reach to the batch's view and wakes the sessions that it concerns. All of it is one step for them.
func (s *Server) fan(batch store.Batch) {
	concerned := newTouched()
	own := newOwners()
	for i := range batch.Changes {
		concerned.see(batch.View, &batch.Changes[i])
		own.see(batch.View, &batch.Changes[i])
	}
	s.reach.mu.Lock()
	before := s.reach.reached(concerned.services)
	news := s.reach.step(batch.View, concerned)
	for id, was := range before {
		if is := s.reach.isReached(id); is != was {
			own.stopping(batch.View, id)
		}
	}
	s.wakeOwn(own)
	s.wakeTopics(news)
	s.reach.mu.Unlock()
	s.settle(batch.View.Index(), news)
	for _, id := range own.removed {
		s.endNode(id)
	}
}

// resync treats everything as changed: after a start, an overflow or a restore.
func (s *Server) resync(view *store.View) {
	s.mu.Lock()
	var removed []string
	for id, x := range s.sessions {
		x.told.stale = true
		if view.Node(id) == nil {
			removed = append(removed, id)
		}
	}
	s.mu.Unlock()
	s.reach.mu.Lock()
	news := s.reach.step(view, s.reach.everything(view))
	s.notifyAll(allOwn)
	s.reach.mu.Unlock()
	s.settle(view.Index(), news)
	for _, id := range removed {
		s.endNode(id)
	}
}

// settle notes that all up to an index has reached the sessions that it concerns.
func (s *Server) settle(index uint64, news news) {
	s.mu.Lock()
	s.fanned.Store(index)
	for x, wanted := range s.behind {
		if wanted <= index {
			delete(s.behind, x)
			x.notify(nothingOwn)
		}
	}
	s.mu.Unlock()
	if news.drained {
		s.awaited.Store(index)
	}
	if s.hastens(index) {
		poke(s.acks)
	}
}

// owners are the nodes whose own tasks or configuration a batch concerns.
type owners struct {
	all   bool
	nodes map[string]*owed
	// seen have another row of what they are or are seen as.
	seen []string
	// hurried have a task that may stop now; removed are no nodes any more.
	hurried map[string]struct{}
	removed []string
}

func newOwners() *owners {
	return &owners{nodes: make(map[string]*owed), hurried: make(map[string]struct{})}
}

func (o *owners) add(nodeID string, own owed) {
	if nodeID == "" {
		return
	}
	if o.nodes[nodeID] == nil {
		o.nodes[nodeID] = &owed{}
	}
	o.nodes[nodeID].add(own)
}

func (o *owners) addTask(nodeID, taskID string) { o.add(nodeID, owed{tasks: []string{taskID}}) }

// see adds the nodes that a change of a row concerns.
func (o *owners) see(view *store.View, c *store.Change) {
	switch c.Table {
	case swarmpb.Table_TABLE_TASK, swarmpb.Table_TABLE_TASK_ADDRESSES:
		o.addTask(view.NodeID(c.Key.ID), c.Key.ID) // a placement goes with its task
	case swarmpb.Table_TABLE_TASK_PLACEMENT:
		before, _ := c.Old.(*swarmpb.TaskPlacement)
		after, _ := c.New.(*swarmpb.TaskPlacement)
		o.addTask(before.GetNodeId(), c.Key.ID)
		o.addTask(after.GetNodeId(), c.Key.ID)
	case swarmpb.Table_TABLE_TASK_STATUS:
		o.seeStatus(view, c)
	case swarmpb.Table_TABLE_ALLOCATION:
		before, _ := c.Old.(*swarmpb.Allocation)
		after, _ := c.New.(*swarmpb.Allocation)
		o.add(before.GetOwner(), owed{config: true})
		o.add(after.GetOwner(), owed{config: true})
	case swarmpb.Table_TABLE_SERVICE:
		before, _ := c.Old.(*swarmpb.Service)
		after, _ := c.New.(*swarmpb.Service)
		// New credentials are rare; who has no task of the service finds nothing to tell.
		if before != nil && after != nil && !(proto.Equal(before.GetRegistryAuth(), after.GetRegistryAuth()) &&
			proto.Equal(before.GetPreviousRegistryAuth(), after.GetPreviousRegistryAuth())) {
			o.all = true
		}
	case swarmpb.Table_TABLE_CLUSTER:
		o.all = true
	case swarmpb.Table_TABLE_NODE_STATUS:
		o.seen = append(o.seen, c.Key.ID)
	case swarmpb.Table_TABLE_NODE:
		before, _ := c.Old.(*swarmpb.Node)
		after, _ := c.New.(*swarmpb.Node)
		o.seen = append(o.seen, c.Key.ID)
		switch {
		case after == nil:
			o.removed = append(o.removed, before.GetId())
		case before.GetRole() != after.GetRole() || before.GetSpec().GetDesiredRole() != after.GetSpec().GetDesiredRole():
			o.add(after.GetId(), owed{config: true})
		}
	}
}

// seeStatus: a node knows its own statuses, but not when a task is drained; and with the last task of a template or in a
// network it is no longer told of those.
func (o *owners) seeStatus(view *store.View, c *store.Change) {
	before, _ := c.Old.(*swarmpb.TaskStatus)
	after, _ := c.New.(*swarmpb.TaskStatus)
	node := view.NodeID(c.Key.ID)
	switch {
	case node == "":
	case after.GetDrainedAt() != before.GetDrainedAt():
		o.addTask(node, c.Key.ID)
		o.hurried[node] = struct{}{}
	case after.GetState().Ended() && !before.GetState().Ended():
		o.addTask(node, c.Key.ID)
	}
}

// stopping adds the nodes that wait to stop tasks of a service, which is reached no more, or now is.
func (o *owners) stopping(view *store.View, serviceID string) {
	for task := range view.TasksOf(serviceID) {
		if stops(task) && !view.Observed(task.GetId()).Ended() {
			o.addTask(view.NodeID(task.GetId()), task.GetId())
		}
	}
}

// wakeOwn and wakeTopics are called with reach's lock held, so that no session sees the new view without being told what
// of it is its own.
func (s *Server) wakeOwn(own *owners) {
	if own.all {
		s.notifyAll(allOwn)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range own.seen {
		if x := s.sessions[id]; x != nil {
			x.told.stale = true
		}
	}
	for id, what := range own.nodes {
		if x := s.sessions[id]; x != nil {
			x.notify(*what)
			if _, hurried := own.hurried[id]; hurried {
				poke(x.hurry)
			}
		}
	}
}

func (s *Server) wakeTopics(news news) {
	if _, all := news.topics[everyone]; all {
		s.notifyAll(nothingOwn)
		return
	}
	for name := range news.topics {
		s.reach.topics.wake(name)
	}
	if news.peers {
		s.wakeLater()
	}
}

// wakeLater has all sessions told of other nodes after a while: each node that comes is told to all, so that those which come one
// after another are told together. Whatever else a session is told brings them too.
func (s *Server) wakeLater() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peersLater {
		return
	}
	s.peersLater = true
	time.AfterFunc(max(s.limits.Merge, min(time.Duration(len(s.sessions))*peersPerSession, maxPeersWait)), func() {
		s.mu.Lock()
		s.peersLater = false
		s.mu.Unlock()
		s.notifyAll(nothingOwn)
	})
}
