package worker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// aboutReach names problems of bringing what the managers told into the kernel.
const aboutReach = "networks and published ports"

// reach is what the managers have told of how tasks are reached: peers, networks, services and endpoints. It brings
// that to the network, in the order in which it came, and keeps what the local database has of it. Messages are read-only.
type reach struct {
	network Network
	limits  Limits
	log     *slog.Logger
	issues  *problems
	// retry is poked when the network has not taken all.
	retry chan struct{}

	mu        sync.Mutex
	rows      map[dbKey]proto.Message
	ofService map[string]map[string]bool // endpoints of a service, by task ID
	// since is when the network began to refuse; zero = it holds all. settled is closed when it holds all again.
	since   time.Time
	settled chan struct{}
	// held is told when the network holds all again.
	held func()
}

func newReach(cfg Config, issues *problems) *reach {
	return &reach{
		network: cfg.Network, limits: cfg.Limits, log: cfg.Logger, issues: issues, retry: make(chan struct{}, 1),
		rows: map[dbKey]proto.Message{}, ofService: map[string]map[string]bool{}, held: func() {},
	}
}

// reachRow is the row that a change makes, or with a nil message takes away; false for a change of something else.
func reachRow(c *swarmpb.AssignmentChange) (at dbKey, row proto.Message, ok bool) {
	switch c := c.GetChange().(type) {
	case *swarmpb.AssignmentChange_Peer:
		return dbKey{bucketPeers, c.Peer.GetNodeId()}, c.Peer, c.Peer.GetNodeId() != ""
	case *swarmpb.AssignmentChange_RemovePeer:
		return dbKey{bucketPeers, c.RemovePeer}, nil, c.RemovePeer != ""
	case *swarmpb.AssignmentChange_Network:
		return dbKey{bucketNetworks, c.Network.GetId()}, c.Network, c.Network.GetId() != ""
	case *swarmpb.AssignmentChange_RemoveNetwork:
		return dbKey{bucketNetworks, c.RemoveNetwork}, nil, c.RemoveNetwork != ""
	case *swarmpb.AssignmentChange_Service:
		return dbKey{bucketServices, c.Service.GetId()}, c.Service, c.Service.GetId() != ""
	case *swarmpb.AssignmentChange_RemoveService:
		return dbKey{bucketServices, c.RemoveService}, nil, c.RemoveService != ""
	case *swarmpb.AssignmentChange_Endpoint:
		return dbKey{bucketEndpoints, c.Endpoint.GetTaskId()}, c.Endpoint, c.Endpoint.GetTaskId() != ""
	case *swarmpb.AssignmentChange_RemoveEndpoint:
		return dbKey{bucketEndpoints, c.RemoveEndpoint.GetTaskId()}, nil, c.RemoveEndpoint.GetTaskId() != ""
	}
	return dbKey{}, nil, false
}

// rowChange is the change that makes a row.
func rowChange(row proto.Message) *swarmpb.AssignmentChange {
	switch row := row.(type) {
	case *swarmpb.Peer:
		return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Peer{Peer: row}}
	case *swarmpb.AssignedNetwork:
		return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Network{Network: row}}
	case *swarmpb.AssignedService:
		return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Service{Service: row}}
	case *swarmpb.Endpoint:
		return &swarmpb.AssignmentChange{Change: &swarmpb.AssignmentChange_Endpoint{Endpoint: row}}
	}
	return nil
}

// reachBuckets in the order in which one refers to another.
var reachBuckets = [...]string{bucketPeers, bucketNetworks, bucketServices, bucketEndpoints}

// newRow is an empty row of a bucket.
func newRow(bucket string) proto.Message {
	switch bucket {
	case bucketPeers:
		return &swarmpb.Peer{}
	case bucketNetworks:
		return &swarmpb.AssignedNetwork{}
	case bucketServices:
		return &swarmpb.AssignedService{}
	}
	return &swarmpb.Endpoint{}
}

// restore takes up what a former process was told and hands it to the network before anything else uses that. Where
// nothing is known to have been told, what is in the kernel is left as it is until a manager speaks.
func (r *reach) restore(ctx context.Context, k kept) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows, r.ofService, r.since, r.settled = map[dbKey]proto.Message{}, map[string]map[string]bool{}, time.Time{}, nil
	if k.unread || k.version == 0 {
		return
	}
	for at, row := range k.rows {
		r.put(at, row, nil)
	}
	r.applyLocked(ctx, true, r.all())
}

// take merges a set into what is known, and has the network hold it. It returns the rows to keep, nil for those to
// delete. A network that refuses holds it up for a bounded time, and once, until it has recovered.
func (r *reach) take(ctx context.Context, s *set) (map[dbKey]proto.Message, error) {
	if !s.reaches() {
		return nil, nil
	}
	r.mu.Lock()
	rows, err := r.merge(s)
	if err != nil {
		r.mu.Unlock()
		return nil, err
	}
	r.applyLocked(ctx, s.full, s.reach)
	settled, left := r.settled, r.limits.ApplyFor-time.Since(r.since)
	r.mu.Unlock()
	if settled == nil || left <= 0 {
		return rows, nil
	}
	late := time.NewTimer(left)
	defer late.Stop()
	select {
	case <-settled:
	case <-late.C:
		r.log.Error("the kernel does not take what the managers told of networks and ports; going on with the tasks", "after", r.limits.ApplyFor)
	case <-ctx.Done():
		return rows, ctx.Err()
	}
	return rows, nil
}

// merge brings the rows up to a set and says which have changed.
func (r *reach) merge(s *set) (map[dbKey]proto.Message, error) {
	changed := map[dbKey]proto.Message{}
	named := map[dbKey]bool{}
	added := 0
	for _, c := range s.reach {
		at, row, _ := reachRow(c)
		if row != nil && r.rows[at] == nil && !named[at] {
			added++
		}
		named[at] = row != nil
	}
	if !s.full && len(r.rows)+added > maxSetChanges {
		return nil, badSet("more than %d peers, networks, services and endpoints", maxSetChanges)
	}
	if s.full {
		for at := range r.rows {
			if !named[at] {
				r.put(at, nil, changed)
			}
		}
	}
	for _, c := range s.reach {
		at, row, _ := reachRow(c)
		r.put(at, row, changed)
		if row == nil && at.bucket == bucketServices {
			for task := range r.ofService[at.key] {
				r.put(dbKey{bucketEndpoints, task}, nil, changed)
			}
		}
	}
	return changed, nil
}

// put sets or deletes a row, and notes in changed that it is another one.
func (r *reach) put(at dbKey, row proto.Message, changed map[dbKey]proto.Message) {
	was := r.rows[at]
	if was == nil && row == nil || was != nil && row != nil && proto.Equal(was, row) {
		return
	}
	if e, ok := was.(*swarmpb.Endpoint); ok {
		delete(r.ofService[e.GetServiceId()], at.key)
		if len(r.ofService[e.GetServiceId()]) == 0 {
			delete(r.ofService, e.GetServiceId())
		}
	}
	if row == nil {
		delete(r.rows, at)
	} else {
		r.rows[at] = row
	}
	if e, ok := row.(*swarmpb.Endpoint); ok {
		if r.ofService[e.GetServiceId()] == nil {
			r.ofService[e.GetServiceId()] = map[string]bool{}
		}
		r.ofService[e.GetServiceId()][at.key] = true
	}
	if changed != nil {
		changed[at] = row
	}
}

// all is a full set of what is known.
func (r *reach) all() []*swarmpb.AssignmentChange {
	out := make([]*swarmpb.AssignmentChange, 0, len(r.rows))
	for _, bucket := range reachBuckets {
		for at, row := range r.rows {
			if at.bucket == bucket {
				out = append(out, rowChange(row))
			}
		}
	}
	return out
}

// applyLocked hands changes to the network; everything, when it did not take what came before. r.mu is held.
func (r *reach) applyLocked(ctx context.Context, full bool, changes []*swarmpb.AssignmentChange) {
	if r.settled != nil {
		full, changes = true, r.all()
	}
	err := r.network.Apply(ctx, full, changes)
	if err != nil && ctx.Err() != nil {
		return // of this process's end
	}
	if r.issues.set(aboutReach, err) && err != nil {
		r.log.Error("the kernel does not take what the managers told of networks and ports; trying again", "error", err)
	}
	switch {
	case err != nil && r.settled == nil:
		r.since, r.settled = time.Now(), make(chan struct{})
		poke(r.retry)
	case err == nil && r.settled != nil:
		close(r.settled)
		r.since, r.settled = time.Time{}, nil
		r.log.Info("the kernel holds again what the managers told of networks and ports")
		r.held()
	}
}

// holds says whether the network holds all that was told.
func (r *reach) holds() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.settled == nil
}

// run tries again what the network did not take, until ctx ends.
func (r *reach) run(ctx context.Context) error {
	pause := backoff{min: r.limits.RetryMin, max: r.limits.RetryMax}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.retry:
		}
		for pause.reset(); !r.holds(); {
			if !sleep(ctx, pause.next(nil)) {
				return nil
			}
			r.mu.Lock()
			if r.settled != nil {
				r.applyLocked(ctx, true, nil)
			}
			r.mu.Unlock()
		}
	}
}

// nodes is how many are known, this one too.
func (r *reach) nodes() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at := range r.rows {
		if at.bucket == bucketPeers {
			n++
		}
	}
	return n
}

// peers are the nodes that are known, this one too.
func (r *reach) peers() []*swarmpb.Peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*swarmpb.Peer
	for at, row := range r.rows {
		if at.bucket == bucketPeers {
			out = append(out, row.(*swarmpb.Peer))
		}
	}
	return out
}
