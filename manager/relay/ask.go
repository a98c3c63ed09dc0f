package relay

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// ask brings a request to a node, wherever its session is, and returns the answer once it has begun. The answer ends with
// ctx. What a former session of the node left may look alive for a while: the first that answers counts.
func (s *Server) ask(ctx context.Context, nodeID string, req *swarmpb.RelayRequest) (*flow, error) {
	type begun struct {
		flow   *flow
		err    error
		cancel context.CancelFunc
	}
	var tries []context.CancelFunc
	won := -1
	defer func() {
		for i, cancel := range tries {
			if i != won {
				cancel()
			}
		}
	}()
	results := make(chan int, 1)
	outcome := map[int]*begun{}
	try := func(open func(context.Context) (*flow, error)) {
		ctx, cancel := context.WithCancel(ctx)
		i, b := len(tries), &begun{cancel: cancel}
		tries, outcome[i] = append(tries, cancel), b
		go func() {
			if b.flow, b.err = open(ctx); b.err == nil {
				_, b.err = b.flow.next(firstAnswer)
			}
			select {
			case results <- i:
			case <-ctx.Done():
			}
		}()
	}
	others := func() {
		for _, m := range s.cfg.Managers() {
			if m.GetNodeId() != s.cfg.NodeID && m.GetAddress() != "" {
				try(func(ctx context.Context) (*flow, error) { return s.askThere(ctx, m.GetAddress(), nodeID, req) })
			}
		}
	}
	wait := time.Duration(0)
	if s.serves(nodeID) {
		try(func(ctx context.Context) (*flow, error) { return s.askHere(ctx, nodeID, req) })
		wait = headStart
	}
	start, deadline := time.NewTimer(wait), time.NewTimer(firstAnswer)
	defer start.Stop()
	defer deadline.Stop()
	askedOthers, failed := false, 0
	err := wire.Errorf(wire.CodeNotFound, "no manager has a session with it")
	for !askedOthers || failed < len(tries) {
		select {
		case i := <-results:
			b := outcome[i]
			if b.err == nil {
				won = i
				return b.flow, nil
			}
			failed++
			if !errors.Is(b.err, wire.ErrNotFound) {
				err = b.err
			}
			start.Reset(0)
		case <-start.C:
			if !askedOthers {
				askedOthers = true
				others()
			}
		case <-deadline.C:
			return nil, wire.Errorf(wire.CodeDeadline, "no answer")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, err
}

// askThere asks a node that may serve the manager at the address.
func (s *Server) askThere(ctx context.Context, address, nodeID string, req *swarmpb.RelayRequest) (*flow, error) {
	conn, err := s.conn(address)
	if err != nil {
		return nil, err
	}
	// The call ends when carry does, which is when nobody wants the rest.
	call, cancel := context.WithCancel(ctx)
	stream, err := swarmpb.NewRelayClient(conn).Forward(call)
	if err != nil {
		cancel()
		return nil, wire.FromStatus(err)
	}
	if err := stream.Send(&swarmpb.RelayForwardRequest{NodeId: nodeID, Request: req}); err != nil {
		_, err := stream.Recv() // which says why
		cancel()
		return nil, wire.FromStatus(err)
	}
	f := newFlow(ctx)
	go func() {
		defer cancel()
		f.carry(call, stream.Recv, func(c *swarmpb.RelayCredit) error { return stream.Send(&swarmpb.RelayForwardRequest{Credit: c}) })
	}()
	return f, nil
}

// conn is the connection to the manager at the address. It is shared; those to managers that are none any more are closed.
func (s *Server) conn(address string) (*grpc.ClientConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, errStopping()
	}
	if conn := s.conns[address]; conn != nil {
		return conn, nil
	}
	known := map[string]bool{}
	for _, m := range s.cfg.Managers() {
		known[m.GetAddress()] = true
	}
	for other, conn := range s.conns {
		if !known[other] {
			conn.Close()
			delete(s.conns, other)
		}
	}
	conn, err := s.cfg.DialManager(address)
	if err != nil {
		return nil, wire.Errorf(wire.CodeUnavailable, "dial manager at %s: %w", address, err)
	}
	s.conns[address] = conn
	return conn, nil
}

// Forward implements swarmpb.RelayServer: it asks nodes that serve this manager alone, so that nothing goes round.
func (s *Server) Forward(stream grpc.BidiStreamingServer[swarmpb.RelayForwardRequest, swarmpb.RelayFrame]) error {
	ctx, cancel := s.within(stream.Context())
	defer cancel()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	if first.GetRequest() == nil {
		return wire.Errorf(wire.CodeInvalid, "forward: the first message has no request")
	}
	f, err := s.askHere(ctx, first.GetNodeId(), first.GetRequest())
	if err != nil {
		return err
	}
	go func() {
		defer cancel() // whoever asked is gone
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			f.grant(m.GetCredit().GetFrames())
		}
	}()
	for {
		select {
		case frame := <-f.frames:
			if err := stream.Send(frame); err != nil {
				return err
			}
		case <-f.done:
			return f.err
		case <-ctx.Done():
			if s.ctx.Err() != nil {
				return errStopping()
			}
			return ctx.Err()
		}
	}
}
