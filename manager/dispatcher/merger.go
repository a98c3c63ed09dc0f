package dispatcher

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// merger gathers the statuses of all sessions into proposals of a bounded size, one at a time. What comes after
// a quiet time is proposed at once; after that there is one proposal in an interval, which runs from when the last one began: a slow
// commit is no reason to wait longer.
type merger struct {
	proposer store.Proposer
	store    func() *store.Store
	interval time.Duration
	kick     chan struct{}

	mu      sync.Mutex
	pending map[string]*pendingStatus
	order   []string // of pending, oldest first
	stopped bool
}

// pendingStatus is a status that waits to be proposed, with the calls that wait for it.
type pendingStatus struct {
	status *swarmpb.TaskStatus
	calls  []*mergeCall
}

// mergeCall is one UpdateStatus that waits until all its statuses are committed.
type mergeCall struct {
	left int
	err  error
	done chan struct{}
}

func newMerger(proposer store.Proposer, st func() *store.Store, interval time.Duration) *merger {
	return &merger{
		proposer: proposer, store: st, interval: interval,
		kick: make(chan struct{}, 1), pending: make(map[string]*pendingStatus),
	}
}

// errEnded is merge's error when its caller's session has ended; the statuses may still be committed.
var errEnded = errors.New("the session has ended")

// merge hands in statuses and waits until they are committed, or found to change nothing, or ended closes.
func (m *merger) merge(ctx context.Context, ended <-chan struct{}, statuses []*swarmpb.TaskStatus) error {
	call, err := m.enqueue(statuses)
	if err != nil || call == nil {
		return err
	}
	poke(m.kick)
	select {
	case <-call.done:
		return call.err
	case <-ended:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *merger) enqueue(statuses []*swarmpb.TaskStatus) (*mergeCall, error) {
	view := m.store().View()
	call := &mergeCall{done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil, errStopping()
	}
	if len(m.pending)+len(statuses) > maxPendingStatuses {
		return nil, wire.Errorf(wire.CodeResourceExhausted, "%d statuses wait to be committed; try again in a moment", len(m.pending))
	}
	for _, st := range statuses {
		p := m.pending[st.GetTaskId()]
		if p == nil {
			if unchanged(view.Status(st.GetTaskId()), st) {
				continue
			}
			p = &pendingStatus{status: st}
			m.pending[st.GetTaskId()] = p
			m.order = append(m.order, st.GetTaskId())
		} else {
			p.status = newer(p.status, st)
		}
		p.calls = append(p.calls, call)
		call.left++
	}
	if call.left == 0 {
		return nil, nil
	}
	return call, nil
}

// take removes the oldest statuses from the queue, at most one proposal's worth; more: others are left.
func (m *merger) take() (batch []*pendingStatus, more bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := fitting(m.order, maxStatuses, func(id string) int { return proto.Size(m.pending[id].status) })
	for _, id := range m.order[:n] {
		batch = append(batch, m.pending[id])
		delete(m.pending, id)
	}
	m.order = slices.Delete(m.order, 0, n)
	return batch, len(m.order) > 0
}

// run proposes until ctx ends; calls that wait then fail.
func (m *merger) run(ctx context.Context) error {
	defer m.stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-m.kick:
		case <-ctx.Done():
			return nil
		}
		for {
			batch, more := m.take()
			if len(batch) == 0 {
				break
			}
			timer.Reset(m.interval)
			m.commit(ctx, batch)
			if more {
				continue
			}
			select {
			case <-timer.C:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// commit proposes a batch and answers the calls that wait for it. When the leader goes away meanwhile, the proposer turns to
// the next one: to propose a status twice does no harm.
func (m *merger) commit(ctx context.Context, batch []*pendingStatus) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err := m.propose(ctx, batch)
	if err != nil {
		err = wire.Errorf(wire.CodeUnavailable, "commit statuses: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	answer(batch, err)
}

// propose writes what the batch changes.
func (m *merger) propose(ctx context.Context, batch []*pendingStatus) error {
	view := m.store().View()
	proposal := &swarmpb.Proposal{Now: time.Now().UnixNano()}
	for _, p := range batch {
		if !unchanged(view.Status(p.status.GetTaskId()), p.status) {
			proposal.Writes = append(proposal.Writes, &swarmpb.Write{Op: &swarmpb.Write_MergeStatus{MergeStatus: p.status}})
		}
	}
	if len(proposal.Writes) == 0 {
		return nil
	}
	_, err := m.proposer.Propose(ctx, proposal)
	return err
}

func (m *merger) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	for _, id := range m.order {
		answer([]*pendingStatus{m.pending[id]}, errStopping())
	}
	m.pending, m.order = nil, nil
}

// answer counts down the calls of a batch; the first error is the one that a call gets.
func answer(batch []*pendingStatus, err error) {
	for _, p := range batch {
		for _, call := range p.calls {
			if call.err == nil {
				call.err = err
			}
			if call.left--; call.left == 0 {
				close(call.done)
			}
		}
	}
}
