package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/swarmd/swarmd/proto/wire"
)

// TransferLeadership hands leadership to the voter id, or, when that is empty, to the one that answers and is the most
// up to date, and to the next when that fails. It returns when this member leads no more. Meanwhile it takes no
// writes: those that Propose has wait for the next leader.
func (r *Replica) TransferLeadership(ctx context.Context, id string) error {
	const what = "hand leadership over"
	node := r.node.Load()
	if node == nil || node.State() != raft.Leader {
		return wire.Errorf(wire.CodeNotLeader, "%s: manager %s does not lead", what, r.cfg.NodeID)
	}
	term := node.CurrentTerm()
	heirs, err := r.heirs(raft.ServerID(id), term)
	// One that has just been elected has not heard from the others yet.
	for begun := time.Now(); errors.Is(err, errNoHeir) && time.Since(begun) < r.tuning.LeaderLease && sleep(ctx, retryDelay); {
		heirs, err = r.heirs(raft.ServerID(id), term)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, heir := range heirs {
		for {
			err = r.await(ctx, node.LeadershipTransferToServer(heir.ID, heir.Address))
			switch {
			case ctx.Err() != nil:
				return fmt.Errorf("%s to manager %s: %w", what, heir.ID, ctx.Err())
			case err == nil || !r.leads(term):
				return nil
			}
			// Another transfer has just begun, or the one before has not quite ended.
			if !errors.Is(err, raft.ErrLeadershipTransferInProgress) && !errors.Is(err, raft.ErrEnqueueTimeout) || !sleep(ctx, retryDelay) {
				break
			}
		}
	}
	return wire.Errorf(wire.CodeUnavailable, "%s: %w; try again", what, err)
}

// summonHeir has another voter stand for election at once, when this leader's log cannot be written and it is about to give
// up: the others would wait for the heartbeats that end now. Any member may stand at any time, so nothing hangs on the answer.
func (r *Replica) summonHeir(term uint64) {
	heirs, err := r.heirs("", term)
	if err != nil {
		return
	}
	for _, heir := range heirs {
		request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
			ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(r.cfg.NodeID), Addr: []byte(r.cfg.Address),
		}}
		if err := r.transport.TimeoutNow(heir.ID, heir.Address, request, &raft.TimeoutNowResponse{}); err == nil {
			return
		}
	}
}

var errNoHeir = wire.Errorf(wire.CodeFailedPrecondition, "no other manager with a vote answers")

// heirs are the voters that may take over, the most up to date first.
func (r *Replica) heirs(id raft.ServerID, term uint64) ([]raft.Server, error) {
	m, _ := r.membershipAt(^uint64(0))
	others := slices.DeleteFunc(voters(m.servers), func(s raft.Server) bool {
		return s.ID == raft.ServerID(r.cfg.NodeID) || id != "" && s.ID != id
	})
	if id != "" && len(others) == 0 {
		return nil, wire.Errorf(wire.CodeInvalid, "manager %s is not another one with a vote", id)
	}
	match := make(map[raft.ServerID]uint64)
	others = slices.DeleteFunc(others, func(s raft.Server) bool {
		p := r.progress.of(s.ID, term)
		match[s.ID] = p.match
		return !r.isRecent(p)
	})
	if len(others) == 0 {
		return nil, errNoHeir
	}
	slices.SortStableFunc(others, func(a, b raft.Server) int { return cmp.Compare(match[b.ID], match[a.ID]) })
	return others, nil
}

// handOver gives leadership to another voter before a planned stop.
func (r *Replica) handOver() {
	node := r.node.Load()
	if node.State() != raft.Leader || !r.othersVote() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), transferTimeout)
	defer cancel()
	if err := r.TransferLeadership(ctx, ""); err != nil {
		r.logger.Warn("leadership could not be handed over before the stop; the others elect a leader", "error", err)
	}
}

// othersVote says whether another member could lead.
func (r *Replica) othersVote() bool {
	m, _ := r.membershipAt(^uint64(0))
	return slices.ContainsFunc(m.servers, func(s raft.Server) bool {
		return s.Suffrage == raft.Voter && s.ID != raft.ServerID(r.cfg.NodeID)
	})
}

// callGate counts callers that are inside, and lets no more in once it is shut.
type callGate struct {
	mu     sync.Mutex
	inside int
	isShut bool
	empty  chan struct{} // made by shut
}

func (g *callGate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isShut {
		return false
	}
	g.inside++
	return true
}

func (g *callGate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.isShut && g.inside == 0 {
		close(g.empty)
	}
}

// shut waits until nobody is inside, for timeout at most.
func (g *callGate) shut(timeout time.Duration) {
	g.mu.Lock()
	g.isShut, g.empty = true, make(chan struct{})
	if g.inside == 0 {
		close(g.empty)
	}
	g.mu.Unlock()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-g.empty:
	case <-timer.C:
	}
}
