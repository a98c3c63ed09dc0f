package replica

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
)

// Leader returns the node ID and address of the leader as far as this member knows; both empty when it knows none.
func (r *Replica) Leader() (id, address string) {
	node := r.node.Load()
	if node == nil {
		return "", ""
	}
	a, i := node.LeaderWithID()
	return string(i), string(a)
}

// LeaderAddress returns the address of the leader, empty when this member knows none.
func (r *Replica) LeaderAddress() string {
	_, address := r.Leader()
	return address
}

// LastContact returns how long ago this member last heard from a leader, 0 while it leads; not ok when it never did.
func (r *Replica) LastContact() (age time.Duration, ok bool) {
	node := r.node.Load()
	if node == nil {
		return 0, false
	}
	if node.State() == raft.Leader {
		return 0, true
	}
	last := node.LastContact()
	if last.IsZero() {
		return 0, false
	}
	return time.Since(last), true
}

// followLeadership runs lead once for each time that this member becomes leader. Raft's notifications are taken in
// order, and while Lead winds down they wait: Raft itself does not.
func (r *Replica) followLeadership(ctx context.Context) {
	end := func() {}
	for {
		select {
		case <-ctx.Done():
			end()
			return
		case leads := <-r.notify:
			end()
			end = func() {}
			if leads {
				end = r.startLead(ctx)
			}
		}
	}
}

// startLead runs lead until the function it returns is called, which comes back when lead has.
func (r *Replica) startLead(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.lead(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// lead passes the barrier and runs Config.Lead until ctx ends.
func (r *Replica) lead(ctx context.Context) {
	term, ok := r.barrier(ctx)
	if !ok {
		return
	}
	r.readyAt.Store(term)
	r.logger.Info("this manager leads", "term", term)
	defer func() {
		r.readyAt.Store(0)
		r.logger.Info("this manager no longer leads", "term", term)
	}()
	if r.cfg.Lead == nil {
		<-ctx.Done()
		return
	}
	for {
		err := r.cfg.Lead(ctx, leader{r, term})
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it returned while this manager leads")
		}
		if !r.leads(term) {
			<-ctx.Done() // the notification is on its way
			return
		}
		r.logger.Error("the leader's work failed; leadership is handed over", "term", term, "error", err)
		if r.othersVote() && r.TransferLeadership(ctx, "") == nil {
			<-ctx.Done()
			return
		}
		if !sleep(ctx, leadRestartDelay) {
			return
		}
	}
}

// barrier waits until everything committed before this leadership is applied, and returns its term.
func (r *Replica) barrier(ctx context.Context) (term uint64, ok bool) {
	node := r.node.Load()
	for ctx.Err() == nil {
		term = node.CurrentTerm()
		if err := r.await(ctx, node.Barrier(enqueueTimeout)); err == nil && r.leads(term) {
			return term, true
		}
		if node.State() != raft.Leader {
			<-ctx.Done()
			return 0, false
		}
		if !sleep(ctx, retryDelay) {
			return 0, false
		}
	}
	return 0, false
}

// leads says whether this member leads in that term, as far as it knows.
func (r *Replica) leads(term uint64) bool {
	node := r.node.Load()
	return node != nil && node.State() == raft.Leader && node.CurrentTerm() == term
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// leader writes for Config.Lead, in one term and never through another member.
type leader struct {
	replica *Replica
	term    uint64
}

// Term implements store.Leader.
func (l leader) Term() uint64 { return l.term }

// Propose implements store.Proposer. When the term is over the error is store.ErrStaleTerm.
func (l leader) Propose(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	if !l.replica.leads(l.term) {
		return nil, errTermOver(l.term)
	}
	return l.replica.propose(ctx, p, false)
}

var _ store.Leader = leader{}
