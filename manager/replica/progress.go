package replica

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// caughtUpWithin is how many entries a member's log may lack to count as caught up: with a vote it then holds up a
// commit for a moment at most.
const caughtUpWithin = 1000

// progressTable is what this member, while it leads, hears from each other one. Raft keeps the same for itself.
type progressTable struct {
	mu    sync.Mutex
	term  uint64 // of the leadership to which peers belongs
	peers map[raft.ServerID]peerProgress
}

type peerProgress struct {
	contact time.Time // of the newest answer
	match   uint64    // up to here its log is the leader's; 0: not known
}

// observe notes the answer to a request.
func (t *progressTable) observe(id raft.ServerID, request *raft.AppendEntriesRequest, response *raft.AppendEntriesResponse) {
	if response.Term > request.Term {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.term > request.Term:
		return
	case t.term < request.Term || t.peers == nil:
		t.term, t.peers = request.Term, make(map[raft.ServerID]peerProgress)
	}
	p := t.peers[id]
	p.contact = time.Now()
	if heartbeat := request.PrevLogEntry == 0 && len(request.Entries) == 0; !heartbeat {
		p.match = 0
		if response.Success {
			p.match = request.PrevLogEntry + uint64(len(request.Entries))
		}
	}
	t.peers[id] = p
}

// of returns what is known in that term; the zero value when nothing is.
func (t *progressTable) of(id raft.ServerID, term uint64) peerProgress {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.term != term {
		return peerProgress{}
	}
	return t.peers[id]
}

// forget drops what is known of a member.
func (t *progressTable) forget(id raft.ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, id)
}

// CaughtUp says, on the leader, whether the member answers and its log reaches to within caughtUpWithin entries of the
// commit index.
func (r *Replica) CaughtUp(id string) bool {
	node := r.node.Load()
	if node == nil || node.State() != raft.Leader {
		return false
	}
	if m, _ := r.membershipAt(^uint64(0)); find(m.servers, raft.ServerID(id)) == nil {
		return false // what still arrives from a member that was removed
	}
	p := r.progress.of(raft.ServerID(id), node.CurrentTerm())
	return p.match > 0 && r.isRecent(p) && p.match+caughtUpWithin >= node.CommitIndex()
}

// isRecent says whether the member answered within the leader's lease.
func (r *Replica) isRecent(p peerProgress) bool {
	return !p.contact.IsZero() && time.Since(p.contact) <= r.tuning.LeaderLease
}

// observedTransport is Raft's transport, whose answers are noted.
type observedTransport struct {
	*raft.NetworkTransport
	progress *progressTable
}

var _ raft.WithPreVote = observedTransport{}

// AppendEntries implements raft.Transport.
func (t observedTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, request *raft.AppendEntriesRequest, response *raft.AppendEntriesResponse) error {
	err := t.NetworkTransport.AppendEntries(id, target, request, response)
	if err == nil {
		t.progress.observe(id, request, response)
	}
	return err
}

// AppendEntriesPipeline implements raft.Transport.
func (t observedTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &observedPipeline{AppendPipeline: inner, answers: make(chan raft.AppendFuture), done: make(chan struct{})}
	go p.pass(id, t.progress)
	return p, nil
}

type observedPipeline struct {
	raft.AppendPipeline
	answers chan raft.AppendFuture
	done    chan struct{}
	once    sync.Once
}

func (p *observedPipeline) pass(id raft.ServerID, progress *progressTable) {
	for {
		select {
		case answer := <-p.AppendPipeline.Consumer():
			if answer.Error() == nil { // it is answered already
				progress.observe(id, answer.Request(), answer.Response())
			}
			select {
			case p.answers <- answer:
			case <-p.done:
				return
			}
			if request, response := answer.Request(), answer.Response(); !response.Success || response.Term > request.Term {
				// Raft reads no further. What it sends meanwhile would wait forever for somebody to take the answers
				// before: a closed pipeline refuses it.
				_ = p.AppendPipeline.Close()
				return
			}
		case <-p.done:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *observedPipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// Close implements raft.AppendPipeline.
func (p *observedPipeline) Close() error {
	p.once.Do(func() { close(p.done) })
	return p.AppendPipeline.Close()
}
