package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/swarmd/swarmd/proto/wire"
)

// Member is a manager in Raft's configuration.
type Member struct {
	ID, Address string
	Voter       bool
}

// Members is Raft's newest configuration as this member has it on disk, by ID; empty when it has none yet.
func (r *Replica) Members() []Member {
	m, _ := r.membershipAt(^uint64(0))
	members := make([]Member, 0, len(m.servers))
	for _, s := range m.servers {
		members = append(members, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })
	return members
}

// AddMember adds a member without a vote, or gives one that is known the new address; a voter stays one. It returns
// when that is committed. Like every change of members it is the leader's alone: elsewhere the error is
// wire.ErrNotLeader. wire.ErrConflict says that the members changed meanwhile: look and decide again.
func (r *Replica) AddMember(ctx context.Context, id, address string) error {
	return r.changeMembers(ctx, "add manager "+id, func(servers []raft.Server) (configurationStep, error) {
		for _, s := range servers {
			switch {
			case s.ID == raft.ServerID(id) && s.Address == raft.ServerAddress(address):
				return nil, nil
			case s.ID != raft.ServerID(id) && s.Address == raft.ServerAddress(address):
				return nil, wire.Errorf(wire.CodeInUse, "address %s is manager %s's; remove that one first or give this one another address", address, s.ID)
			}
		}
		return addition(raft.ServerID(id), raft.ServerAddress(address)), nil
	})
}

// MakeVoter gives a member a vote. One whose log is not within reach yet is refused with wire.ErrFailedPrecondition: a
// commit might have to wait for it.
func (r *Replica) MakeVoter(ctx context.Context, id string) error {
	return r.changeMembers(ctx, "give manager "+id+" a vote", func(servers []raft.Server) (configurationStep, error) {
		switch s := find(servers, raft.ServerID(id)); {
		case s == nil:
			return nil, wire.Errorf(wire.CodeNotFound, "it is not a member; add it first")
		case s.Suffrage == raft.Voter:
			return nil, nil
		case !r.CaughtUp(id):
			return nil, wire.Errorf(wire.CodeFailedPrecondition, "its log has not caught up; try again when it has")
		default:
			return vote(s.ID, s.Address), nil
		}
	})
}

// RemoveMember takes a member out, and returns when that is committed; one that is none is fine. The leader does not
// remove itself: hand leadership over first. The last voter stays.
func (r *Replica) RemoveMember(ctx context.Context, id string) error {
	return r.changeMembers(ctx, "remove manager "+id, func(servers []raft.Server) (configurationStep, error) {
		s := find(servers, raft.ServerID(id))
		switch {
		case s == nil:
			return nil, nil
		case s.Suffrage == raft.Voter && len(voters(servers)) == 1:
			return nil, wire.Errorf(wire.CodeFailedPrecondition, "it is the last manager with a vote; add another one first")
		case id == r.cfg.NodeID:
			return nil, wire.Errorf(wire.CodeFailedPrecondition, "it leads; hand leadership over first")
		}
		return removal(s.ID), nil
	})
}

func voters(servers []raft.Server) []raft.Server {
	var list []raft.Server
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			list = append(list, s)
		}
	}
	return list
}

// configurationStep asks Raft for one change, to be refused unless its newest configuration is the one at prev.
type configurationStep func(node *raft.Raft, prev uint64, timeout time.Duration) raft.IndexFuture

func addition(id raft.ServerID, address raft.ServerAddress) configurationStep {
	return func(node *raft.Raft, prev uint64, timeout time.Duration) raft.IndexFuture {
		return node.AddNonvoter(id, address, prev, timeout) // which keeps the suffrage of a member
	}
}

func vote(id raft.ServerID, address raft.ServerAddress) configurationStep {
	return func(node *raft.Raft, prev uint64, timeout time.Duration) raft.IndexFuture {
		return node.AddVoter(id, address, prev, timeout)
	}
}

func demotion(id raft.ServerID) configurationStep {
	return func(node *raft.Raft, prev uint64, timeout time.Duration) raft.IndexFuture {
		return node.DemoteVoter(id, prev, timeout)
	}
}

func removal(id raft.ServerID) configurationStep {
	return func(node *raft.Raft, prev uint64, timeout time.Duration) raft.IndexFuture {
		return node.RemoveServer(id, prev, timeout)
	}
}

// after fixes the configuration that the step must find.
func (step configurationStep) after(index uint64) configurationStep {
	return func(node *raft.Raft, _ uint64, timeout time.Duration) raft.IndexFuture {
		return step(node, index, timeout)
	}
}

// changeMembers has the leader take the step that decide makes of the newest configuration; nil: it is so already. It
// returns when the outcome is committed.
func (r *Replica) changeMembers(caller context.Context, what string, decide func([]raft.Server) (configurationStep, error)) error {
	ctx, cancel := context.WithTimeout(caller, r.tuning.ProposeTimeout)
	defer cancel()
	node := r.node.Load()
	if node == nil || r.stopping.Load() || node.State() != raft.Leader {
		return wire.Errorf(wire.CodeNotLeader, "%s: manager %s does not lead", what, r.cfg.NodeID)
	}
	if err := r.revokeUnwritten(ctx, node); err != nil {
		return r.changeError(caller, what, err)
	}
	m, _ := r.membershipAt(^uint64(0))
	if m.index == 0 {
		return wire.Errorf(wire.CodeUnavailable, "%s: there are no members yet", what)
	}
	step, err := decide(m.servers)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if step == nil {
		// The entry that made it so may not be committed.
		return r.changeError(caller, what, r.await(ctx, node.Barrier(r.tuning.ProposeTimeout)))
	}
	if err := r.await(ctx, step(node, m.index, r.tuning.ProposeTimeout)); err != nil {
		return r.changeError(caller, what, err)
	}
	now, _ := r.membershipAt(^uint64(0))
	for _, s := range m.servers {
		// One whose vote was taken begins again with an empty log: how far it once was says nothing of it. See Rejoin.
		if left := find(now.servers, s.ID); left == nil || s.Suffrage == raft.Voter && left.Suffrage != raft.Voter {
			r.progress.forget(s.ID)
		}
	}
	return nil
}

// revokeUnwritten makes Raft forget a configuration that it failed to write.
func (r *Replica) revokeUnwritten(ctx context.Context, node *raft.Raft) error {
	written, unwritten := r.membershipAt(^uint64(0))
	step := revocation(node.GetConfiguration().Configuration().Servers, written.servers, unwritten)
	if step == nil {
		return nil
	}
	r.logger.Warn("a change of members that could not be written is revoked", "index", unwritten)
	return r.await(ctx, step(node, 0, r.tuning.ProposeTimeout))
}

func (r *Replica) changeError(caller context.Context, what string, err error) error {
	switch {
	case err == nil:
		return nil
	case caller.Err() != nil:
		return fmt.Errorf("%s: %w", what, caller.Err())
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrRaftShutdown):
		return wire.Errorf(wire.CodeNotLeader, "%s: %w", what, err)
	case strings.HasPrefix(err.Error(), "configuration changed since"): // Raft has no name for it
		return wire.Errorf(wire.CodeConflict, "%s: the managers have changed meanwhile: %w; try again", what, err)
	}
	return wire.Errorf(wire.CodeUnavailable, "%s: it may have been done or not: %w; try again", what, err)
}
