package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

type readAnswer struct {
	index uint64
	err   error
}

// readRounds gathers those who want a read index: one question at a time is asked for all who wait when it starts.
type readRounds chan chan readAnswer

// ReadIndex returns when this member's store holds everything that was acknowledged before the call, and the index
// from which it does: a read of the store after it is linearizable. Without a leader or a majority the error is
// wire.ErrUnavailable after Tuning.ProposeTimeout.
func (r *Replica) ReadIndex(ctx context.Context) (uint64, error) {
	var index uint64
	err := r.retry(ctx, "linearizable read", true, func(ctx context.Context) (err error) {
		node := r.node.Load()
		if node == nil {
			return errNotRunning
		}
		rounds := r.followerReads
		if node.State() == raft.Leader {
			rounds = r.leaderReads
		}
		if index, err = rounds.ask(ctx); err != nil {
			return err
		}
		return r.WaitApplied(ctx, index)
	})
	return index, err
}

// WaitApplied returns when this member's store has applied index, which must be that of a write: a result's, or one
// that ReadIndex returned.
func (r *Replica) WaitApplied(ctx context.Context, index uint64) error {
	return r.fsm.wait(ctx, index)
}

// ask joins the next round.
func (rounds readRounds) ask(ctx context.Context) (uint64, error) {
	answer := make(chan readAnswer, 1)
	select {
	case rounds <- answer:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	select {
	case a := <-answer:
		return a.index, a.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// run holds rounds until ctx ends; none lasts longer than timeout.
func (rounds readRounds) run(ctx context.Context, timeout time.Duration, question func(context.Context) (uint64, error)) {
	for {
		var waiting []chan readAnswer
		select {
		case <-ctx.Done():
			return
		case first := <-rounds:
			waiting = append(waiting, first)
		}
		for more := true; more; {
			select {
			case other := <-rounds:
				waiting = append(waiting, other)
			default:
				more = false
			}
		}
		round, cancel := context.WithTimeout(ctx, timeout)
		index, err := question(round)
		cancel()
		if ctx.Err() != nil {
			err = errNotRunning
		}
		for _, answer := range waiting {
			answer <- readAnswer{index, err}
		}
	}
}

// askLeader is a follower's question.
func (r *Replica) askLeader(ctx context.Context) (uint64, error) {
	client, err := r.leaderClient()
	if err != nil {
		return 0, err
	}
	response, err := client.ReadIndex(ctx, &swarmpb.ReadIndexRequest{})
	if err != nil {
		return 0, forwardedError(ctx, err)
	}
	return response.GetIndex(), nil
}

// confirm is the leader's question: the index of the last write that is committed, once a majority has confirmed that
// this member still leads.
func (r *Replica) confirm(ctx context.Context) (uint64, error) {
	// Before the barrier a new leader does not know what its predecessor committed.
	if !r.leads(r.readyAt.Load()) {
		return 0, errNotLeading
	}
	node := r.node.Load()
	commit := node.CommitIndex()
	if err := r.await(ctx, node.VerifyLeader()); err != nil {
		return 0, fmt.Errorf("%w: %w", errNotLeading, err)
	}
	return r.lastWrite(commit)
}

// lastWrite is the index of the newest write at or before index: what Raft commits for itself never reaches the
// store, and waiting for it would not end.
func (r *Replica) lastWrite(index uint64) (uint64, error) {
	for ; index > 0; index-- {
		var entry raft.Log
		err := r.logs.GetLog(index, &entry)
		switch {
		case errors.Is(err, raft.ErrLogNotFound):
			// Compacted: a snapshot covers it, so this store holds all writes up to here.
			return r.Store().View().Index(), nil
		case err != nil:
			return 0, err
		case entry.Type == raft.LogCommand:
			return index, nil
		}
	}
	return 0, nil
}
