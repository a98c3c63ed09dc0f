package dispatcher

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// session is one worker's lease with this manager. It outlives its stream for a while, so that the leader
// learns how long the node has been silent.
type session struct {
	id, nodeID, boot string

	// wake says that something of the node's assignment may have changed, and hurry that it must not wait for more.
	wake, hurry chan struct{}
	// renew says that there is something to answer: the list of managers has changed, or a beat was heard.
	renew chan struct{}
	// updating is taken by the one UpdateStatus call that a session may have at a time.
	updating chan struct{}
	// streaming is held by the one Assignments stream that a session may have; a new one ends the one before.
	streaming chan struct{}
	ended     chan struct{}
	// role is the one that the node was last woken for; under the server's lock.
	role swarmpb.NodeRole
	// told is what came of the last comparison of the facts; under the server's lock.
	told told

	mu    sync.Mutex
	err   error // why it ended
	last  time.Time
	facts *Facts
	// described is when the description changed last.
	described time.Time
	// acked is the highest version that the worker has applied, sent that of the last set sent to it, and
	// current the index at which nothing was left to send.
	acked, sent, current uint64
	// wakes counts what has concerned the node; looked is the count that the last set took in. owed is what of it was about
	// the node's own.
	wakes, looked uint64
	owed          owed
	// heard is the newest beat that was heard while a leader was within reach; 0 = none, or none that wants an answer.
	heard uint64
	// newer is closed when another Assignments stream takes the place of the last one.
	newer chan struct{}
}

func newSession(id, nodeID, boot string, facts *Facts, now time.Time) *session {
	return &session{
		id: id, nodeID: nodeID, boot: boot, facts: facts, last: now, wakes: 1, owed: allOwn,
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), renew: make(chan struct{}, 1),
		updating: make(chan struct{}, 1), streaming: make(chan struct{}, 1), ended: make(chan struct{}),
	}
}

// end ends the session once; err is what its streams return.
func (x *session) end(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	select {
	case <-x.ended:
	default:
		x.err = err
		close(x.ended)
	}
}

func (x *session) isEnded() bool {
	select {
	case <-x.ended:
		return true
	default:
		return false
	}
}

// reason is why it ended.
func (x *session) reason() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

func (x *session) lastBeat() time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.last
}

// beat takes a beat. One that carries a sequence is answered if a leader is within reach: answers that wait become
// one, the newest. news: it acknowledges what was not acknowledged before.
func (x *session) beat(now time.Time, b *swarmpb.SessionBeat, reach bool) (news bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last = now
	// A worker cannot have applied what it was never sent.
	news = min(b.GetAppliedVersion(), x.sent) > x.acked
	x.acked = max(x.acked, min(b.GetAppliedVersion(), x.sent))
	if reach && b.GetSequence() > x.heard {
		x.heard = b.GetSequence()
		poke(x.renew)
	}
	return news
}

// answer is the sequence of the newest beat that was heard.
func (x *session) answer() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.heard
}

// describe takes a changed description. soon: the leader should hear of it before the next report; a node that changes
// it all the time has to wait.
func (x *session) describe(now time.Time, d *swarmpb.NodeDescription) (soon bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.last = now
	if proto.Equal(d, x.facts.Description) {
		return false
	}
	soon = now.Sub(x.described) >= describeInterval
	x.described = now
	facts := *x.facts
	facts.Description = d
	x.facts = &facts
	return soon
}

// owed is what of a node's own has changed and is not yet told.
type owed struct {
	// config: its configuration, or credentials of its tasks.
	config bool
	// tasks are by ID, all stands for every one.
	tasks []string
	all   bool
}

var (
	nothingOwn = owed{}
	allOwn     = owed{config: true, all: true}
)

func (o *owed) add(other owed) {
	o.config, o.all = o.config || other.config, o.all || other.all
	if o.tasks = append(o.tasks, other.tasks...); o.all || len(o.tasks) > maxOwed {
		o.all, o.tasks = true, nil
	}
}

func (o *owed) any() bool { return o.config || o.all || len(o.tasks) > 0 }

// notify wakes the session's Assignments stream, for what is the node's own and for what others are told too.
func (x *session) notify(own owed) {
	x.mu.Lock()
	x.wakes++
	x.owed.add(own)
	x.mu.Unlock()
	poke(x.wake)
}

// looking is called before reach is looked at for changes, with its lock held: what is noted later is of a later view.
// wakes goes to delivered.
func (x *session) looking() (wakes uint64, own owed) {
	x.mu.Lock()
	defer x.mu.Unlock()
	own, x.owed = x.owed, owed{}
	return x.wakes, own
}

// sending notes the version of a set before it is sent, so that its acknowledgement cannot come too early.
func (x *session) sending(version uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sent = version
}

// delivered notes that everything up to the version has been sent.
func (x *session) delivered(version, wakes uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.current, x.looked = version, wakes
}

// restarted notes that a full set follows: what was acknowledged before counts no more.
func (x *session) restarted() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.acked, x.sent, x.current, x.looked = 0, 0, 0, 0
}

// applied is the index up to which the worker has applied all that concerns it, when all changes up to fanned
// have woken those that they concern.
func (x *session) applied(fanned uint64) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch {
	case x.sent == 0 || x.acked < x.sent || x.current < x.sent:
		return x.acked
	case x.wakes != x.looked:
		return max(x.acked, x.current)
	}
	return max(x.acked, x.current, fanned)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Session serves a worker's session until its stream, its node or this manager ends.
func (s *Server) Session(stream grpc.BidiStreamingServer[swarmpb.SessionRequest, swarmpb.SessionResponse]) error {
	peer, err := s.peer(stream.Context())
	if err != nil {
		return err
	}
	hello, err := receiveHello(stream)
	if err != nil {
		return err
	}
	facts, err := cleanHello(hello, peer.Addr)
	if err != nil {
		return err
	}
	if err := s.admit(stream.Context(), peer.NodeID); err != nil {
		return err
	}
	x, err := s.claim(stream.Context(), peer.NodeID, hello.GetBootId(), facts)
	if err != nil {
		return err
	}
	s.log.Debug("session began", "node", x.nodeID, "address", facts.Address)
	go func() { x.end(s.receive(stream, x)) }()
	err = s.converse(stream, x)
	x.end(err)
	s.left(x)
	s.log.Debug("session ended", "node", x.nodeID, "reason", err)
	poke(s.report)
	return err
}

// converse sends what the worker must know of the managers, and answers beats, until the session ends. Each message is
// whole: a worker that ignores what it does not know is told the same interval and managers again.
func (s *Server) converse(stream grpc.BidiStreamingServer[swarmpb.SessionRequest, swarmpb.SessionResponse], x *session) error {
	for {
		if err := stream.Send(&swarmpb.SessionResponse{
			SessionId:     x.id,
			BeatInterval:  int64(s.limits.BeatInterval),
			Managers:      s.managers.Load().peers,
			HeardSequence: x.answer(),
			SentAt:        time.Now().UnixNano(),
		}); err != nil {
			return err
		}
		select {
		case <-x.ended:
			return x.reason()
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-x.renew:
		}
	}
}

// receive takes beats until the worker ends the stream; it returns nil when the worker closes it cleanly.
func (s *Server) receive(stream grpc.BidiStreamingServer[swarmpb.SessionRequest, swarmpb.SessionResponse], x *session) error {
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m := req.GetMessage().(type) {
		case *swarmpb.SessionRequest_Beat:
			now := time.Now()
			if x.beat(now, m.Beat, s.inContact(now)) && s.hastens(m.Beat.GetAppliedVersion()) {
				poke(s.acks)
			}
		case *swarmpb.SessionRequest_Description:
			description, err := cleanDescription(m.Description)
			if err != nil {
				return err
			}
			if x.describe(time.Now(), description) {
				poke(s.report)
			}
		default:
			return wire.Errorf(wire.CodeInvalid, "session: a beat or a description was expected")
		}
	}
}

// receiveHello waits a bounded time for the first message. The receiving goroutine ends with the stream.
func receiveHello(stream grpc.BidiStreamingServer[swarmpb.SessionRequest, swarmpb.SessionResponse]) (*swarmpb.SessionHello, error) {
	type received struct {
		req *swarmpb.SessionRequest
		err error
	}
	first := make(chan received, 1)
	go func() {
		req, err := stream.Recv()
		first <- received{req, err}
	}()
	timer := time.NewTimer(helloTimeout)
	defer timer.Stop()
	select {
	case r := <-first:
		if r.err != nil {
			return nil, r.err
		}
		return r.req.GetHello(), nil
	case <-timer.C:
		return nil, wire.Errorf(wire.CodeInvalid, "session: no hello within %s", helloTimeout)
	case <-stream.Context().Done():
		return nil, stream.Context().Err()
	}
}

// peer is the node that calls, as the transport proved it.
func (s *Server) peer(ctx context.Context) (wire.PeerInfo, error) {
	peer, ok := s.cfg.Peer(ctx)
	if !ok || peer.NodeID == "" {
		return peer, wire.Errorf(wire.CodeUnauthenticated, "the caller is no node of a cluster")
	}
	return peer, nil
}
