package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// ErrLeadershipLost says that leadership was lost while a write was on its way: it may have been committed or not.
// Propose tries a write that is repeatable again by itself.
var ErrLeadershipLost = errors.New("leadership was lost while committing: the write may have been made or not")

// Reasons to try again that leave nothing behind.
var (
	errNotLeading = errors.New("this manager does not lead")
	errNoLeader   = errors.New("there is no leader")
	errNotRunning = errors.New("this manager's replica does not run")
	errItLeads    = errors.New("this manager leads")
	errStopping   = errors.New("this manager stops; use another one")
)

func errTermOver(term uint64) error {
	return fmt.Errorf("%w: this manager no longer leads in term %d", store.ErrStaleTerm, term)
}

// pendingWrite is one proposal on its way into an entry.
type pendingWrite struct {
	ctx    context.Context
	data   []byte // marshalled Proposal
	answer chan writeAnswer
}

type writeAnswer struct {
	result *swarmpb.Result
	err    error
}

// Propose implements store.Proposer on any member: one that does not lead passes the proposal on to the leader. A
// proposal of a term (p.Term != 0) is only taken by the member that leads in it. Without a leader or a majority the
// error is wire.ErrUnavailable after Tuning.ProposeTimeout.
func (r *Replica) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	return r.propose(ctx, p, p.GetTerm() == 0)
}

func (r *Replica) propose(ctx context.Context, p *swarmpb.Proposal, forward bool) (*swarmpb.Result, error) {
	data, err := marshalProposal(p)
	if err != nil {
		return nil, err
	}
	var result *swarmpb.Result
	err = r.retry(ctx, "write", repeatable(p), func(ctx context.Context) (err error) {
		switch node := r.node.Load(); {
		case node == nil:
			return errNotRunning
		case node.State() == raft.Leader:
			result, err = r.write(ctx, data)
		case forward:
			result, err = r.forwardWrite(ctx, p)
		default:
			return errTermOver(p.GetTerm())
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return result, store.ResultError(result)
}

// repeatable says whether a proposal may be made twice without a second effect: the store answers a request ID that it
// knows as it did the first time, and a status never goes back.
func repeatable(p *swarmpb.Proposal) bool {
	isOther := func(w *swarmpb.Write) bool { return w.GetMergeStatus() == nil }
	return p.GetRequestId() != "" || len(p.GetGuards()) == 0 && !slices.ContainsFunc(p.GetWrites(), isOther)
}

func marshalProposal(p *swarmpb.Proposal) ([]byte, error) {
	if p == nil {
		return nil, fmt.Errorf("%w: it is empty", store.ErrInvalid)
	}
	data, err := proto.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", store.ErrInvalid, err)
	}
	if len(data) > maxProposalBytes {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d fit; split it", store.ErrInvalid, len(data), maxProposalBytes)
	}
	return data, nil
}

// retry calls attempt until it succeeds, fails for good or ProposeTimeout has passed. What may have left something
// behind is only tried again when that is safe.
func (r *Replica) retry(caller context.Context, what string, safe bool, attempt func(context.Context) error) error {
	if !r.calls.enter() {
		return giveUp(what, errStopping)
	}
	defer r.calls.leave()
	ctx, cancel := context.WithTimeout(caller, r.tuning.ProposeTimeout)
	defer cancel()
	defer context.AfterFunc(r.life, cancel)()
	for {
		err := attempt(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			again := isUntouched(err) || safe && isUncertain(err)
			if again && sleep(ctx, retryDelay) {
				continue
			}
			if ctx.Err() == nil {
				return giveUp(what, err)
			}
		}
		if caller.Err() != nil {
			return fmt.Errorf("%s: %w", what, caller.Err())
		}
		if r.life.Err() != nil {
			return giveUp(what, fmt.Errorf("%w (%w)", errStopping, err))
		}
		return wire.Errorf(wire.CodeUnavailable, "%s: no leader with a majority of managers behind it within %s; "+
			"check that most managers run and reach each other: %w", what, r.tuning.ProposeTimeout, err)
	}
}

// isUntouched: nothing was proposed. isUncertain: something may have been.
func isUntouched(err error) bool {
	for _, e := range []error{errNotLeading, errNoLeader, errNotRunning, errStopping, wire.ErrNotLeader} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func isUncertain(err error) bool {
	return errors.Is(err, ErrLeadershipLost) || errors.Is(err, wire.ErrUnavailable)
}

func giveUp(what string, err error) error {
	if isUntouched(err) || errors.Is(err, ErrLeadershipLost) {
		return wire.Errorf(wire.CodeUnavailable, "%s: %w; try again", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// write proposes on this member, which leads.
func (r *Replica) write(ctx context.Context, data []byte) (*swarmpb.Result, error) {
	p := &pendingWrite{ctx: ctx, data: data, answer: make(chan writeAnswer, 1)}
	select {
	case r.writes <- p:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-p.answer:
		return a.result, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w (%w)", ErrLeadershipLost, ctx.Err())
	}
}

// commitWrites gathers proposals into entries: a few entries are on their way to disk while the next gathers. It
// returns when ctx ends, with every proposal that it took answered or on its way.
func (r *Replica) commitWrites(ctx context.Context) {
	slots := make(chan struct{}, maxEntriesInFlight)
	var next *pendingWrite
	for {
		if next == nil {
			select {
			case next = <-r.writes:
			case <-ctx.Done():
				r.refuseWrites()
				return
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			next.answer <- writeAnswer{err: errNotRunning}
			r.refuseWrites()
			return
		}
		var batch []*pendingWrite
		batch, next = r.gather(next)
		if len(batch) == 0 {
			<-slots
			continue
		}
		future := r.node.Load().Apply(marshalEntry(batch), enqueueTimeout)
		r.outstanding.Go(func() {
			r.answer(batch, future)
			<-slots
		})
	}
}

// refuseWrites answers what waits when there is nobody left to gather it.
func (r *Replica) refuseWrites() {
	for {
		select {
		case p := <-r.writes:
			p.answer <- writeAnswer{err: errNotRunning}
		default:
			return
		}
	}
}

// gather takes what waits without waiting itself. rest did not fit.
func (r *Replica) gather(first *pendingWrite) (batch []*pendingWrite, rest *pendingWrite) {
	size := 0
	for p := first; ; {
		if p.ctx.Err() != nil {
			p.answer <- writeAnswer{err: p.ctx.Err()}
		} else if size += len(p.data); len(batch) > 0 && size > maxEntryBytes {
			return batch, p
		} else {
			batch = append(batch, p)
		}
		if len(batch) >= maxEntryProposals {
			return batch, nil
		}
		select {
		case p = <-r.writes:
		default:
			return batch, nil
		}
	}
}

// marshalEntry is proto.Marshal of the Entry of these proposals, which are marshalled already.
func marshalEntry(batch []*pendingWrite) []byte {
	size := 0
	for _, p := range batch {
		size += protowire.SizeTag(entryProposals) + protowire.SizeBytes(len(p.data))
	}
	b := make([]byte, 0, size)
	for _, p := range batch {
		b = protowire.AppendTag(b, entryProposals, protowire.BytesType)
		b = protowire.AppendBytes(b, p.data)
	}
	return b
}

const entryProposals protowire.Number = 1 // Entry.proposals

// answer hands an entry's results to those who wait for them.
func (r *Replica) answer(batch []*pendingWrite, future raft.ApplyFuture) {
	err := applyError(future.Error())
	var results []*swarmpb.Result
	if err == nil {
		switch response := future.Response().(type) {
		case []*swarmpb.Result:
			results = response
		case undecodable:
			err = fmt.Errorf("%w: %w", store.ErrInvalid, response.err)
		}
		if err == nil && len(results) != len(batch) {
			err = fmt.Errorf("entry %d of %d proposals has %d results", future.Index(), len(batch), len(results))
		}
	}
	for i, p := range batch {
		if err != nil {
			p.answer <- writeAnswer{err: err}
			continue
		}
		p.answer <- writeAnswer{result: results[i]}
	}
}

// applyError tells what left nothing behind from what may have.
func applyError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", errNotLeading, err)
	}
	return fmt.Errorf("%w: %w", ErrLeadershipLost, err)
}
