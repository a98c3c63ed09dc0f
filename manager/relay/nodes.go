package relay

import (
	"context"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// served is a node that takes requests from this manager.
type served struct {
	requests chan *swarmpb.RelayRequest
	// over is closed when its stream has ended, or another one of the node has come.
	over chan struct{}
}

// asked is a request to a node.
type asked struct {
	nodeID  string
	flow    *flow
	claimed bool // a call answers it
}

func (s *Server) node(ctx context.Context) (string, error) {
	peer, ok := s.cfg.Peer(ctx)
	if !ok || peer.NodeID == "" {
		return "", wire.Errorf(wire.CodeUnauthenticated, "the caller is no node")
	}
	return peer.NodeID, nil
}

// Serve implements swarmpb.RelayServer. Of several streams of a node the newest counts.
func (s *Server) Serve(_ *swarmpb.RelayServeRequest, stream grpc.ServerStreamingServer[swarmpb.RelayRequest]) error {
	nodeID, err := s.node(stream.Context())
	if err != nil {
		return err
	}
	if s.cfg.Store().View().Node(nodeID) == nil {
		return wire.Errorf(wire.CodeUnavailable, "this manager does not know node %s yet; try again", nodeID)
	}
	ctx, cancel := s.within(stream.Context())
	defer cancel()
	n := &served{requests: make(chan *swarmpb.RelayRequest, maxPerNode), over: make(chan struct{})}
	s.mu.Lock()
	if before := s.nodes[nodeID]; before != nil {
		close(before.over)
	}
	s.nodes[nodeID] = n
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.nodes[nodeID] == n {
			delete(s.nodes, nodeID)
			close(n.over)
		}
	}()
	for {
		select {
		case req := <-n.requests:
			if err := stream.Send(req); err != nil {
				return err
			}
		case <-n.over:
			return wire.Errorf(wire.CodeFailedPrecondition, "superseded by a newer stream of the node")
		case <-ctx.Done():
			if s.ctx.Err() != nil {
				return errStopping()
			}
			return ctx.Err()
		}
	}
}

// serves says whether the node takes requests from this manager.
func (s *Server) serves(nodeID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[nodeID] != nil
}

// askHere asks a node that serves this manager. The request ends with ctx.
func (s *Server) askHere(ctx context.Context, nodeID string, req *swarmpb.RelayRequest) (*flow, error) {
	req = swarmpb.Clone(req)
	req.Id = swarmpb.NewID()
	f := newFlow(ctx)
	s.mu.Lock()
	n := s.nodes[nodeID]
	switch {
	case n == nil:
		s.mu.Unlock()
		return nil, wire.Errorf(wire.CodeNotFound, "node %s does not serve this manager", nodeID)
	case s.load[nodeID] >= maxPerNode:
		s.mu.Unlock()
		return nil, wire.Errorf(wire.CodeResourceExhausted, "%d requests to it are under way; try again later, or ask for less", maxPerNode)
	}
	s.asked[req.Id] = &asked{nodeID: nodeID, flow: f}
	s.load[nodeID]++
	s.mu.Unlock()
	context.AfterFunc(ctx, func() { s.forget(nodeID, req.Id) })
	select {
	case n.requests <- req:
	default: // it does not even take what it is asked
		f.end(wire.Errorf(wire.CodeUnavailable, "it takes no requests"))
	}
	return f, nil
}

func (s *Server) forget(nodeID, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked, id)
	if s.load[nodeID]--; s.load[nodeID] <= 0 {
		delete(s.load, nodeID)
	}
}

// Answer implements swarmpb.RelayServer.
func (s *Server) Answer(stream grpc.BidiStreamingServer[swarmpb.RelayFrame, swarmpb.RelayCredit]) error {
	nodeID, err := s.node(stream.Context())
	if err != nil {
		return err
	}
	ctx, cancel := s.within(stream.Context())
	defer cancel()
	first, err := s.firstFrame(ctx, nodeID, stream.Recv)
	if err != nil {
		return err
	}
	f, err := s.claim(nodeID, first.GetRequestId())
	if err != nil {
		return err
	}
	// It has begun, which whoever asked is waiting for.
	select {
	case f.frames <- &swarmpb.RelayFrame{}:
	case <-f.ctx.Done():
		return nil
	case <-ctx.Done():
		f.end(wire.Errorf(wire.CodeUnavailable, "the answer was cut off"))
		return ctx.Err()
	}
	f.carry(ctx, stream.Recv, stream.Send)
	return nil
}

// firstFrame is what a call begins with, which has to come soon.
func (s *Server) firstFrame(ctx context.Context, nodeID string, recv func() (*swarmpb.RelayFrame, error)) (*swarmpb.RelayFrame, error) {
	s.mu.Lock()
	if s.anonymous[nodeID] >= maxAnonymous {
		s.mu.Unlock()
		return nil, wire.Errorf(wire.CodeResourceExhausted, "%d answers of this node do not say what they answer", maxAnonymous)
	}
	s.anonymous[nodeID]++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.anonymous[nodeID]--; s.anonymous[nodeID] <= 0 {
			delete(s.anonymous, nodeID)
		}
	}()
	type received struct {
		frame *swarmpb.RelayFrame
		err   error
	}
	got := make(chan received, 1)
	go func() {
		frame, err := recv()
		got <- received{frame, err}
	}()
	timer := time.NewTimer(firstAnswer)
	defer timer.Stop()
	select {
	case r := <-got:
		return r.frame, r.err
	case <-timer.C:
		return nil, wire.Errorf(wire.CodeDeadline, "the answer does not say what it answers")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// claim finds what a call answers: each request was made to one node, and is answered once.
func (s *Server) claim(nodeID, id string) (*flow, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.asked[id]
	// What was asked of another node is not told from what was not asked.
	if a == nil || a.nodeID != nodeID || a.claimed {
		return nil, wire.Errorf(wire.CodeNotFound, "this was not asked of node %s, or is wanted no more", nodeID)
	}
	a.claimed = true
	return a.flow, nil
}
