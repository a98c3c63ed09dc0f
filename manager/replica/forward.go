package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/grpc"

	"github.com/hashicorp/raft"

	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// forwarder keeps the connection to the leader.
type forwarder struct {
	dial func(address string) (*grpc.ClientConn, error)

	mu      sync.Mutex
	address string
	conn    *grpc.ClientConn
	closed  bool
}

// to returns the connection to the manager at address; the one before is closed, which fails what is under way on it:
// that manager no longer leads.
func (f *forwarder) to(address string) (*grpc.ClientConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errNotRunning
	}
	if f.conn == nil || f.address != address {
		conn, err := f.dial(address)
		if err != nil {
			return nil, fmt.Errorf("dial leader at %s: %w", address, err)
		}
		if f.conn != nil {
			f.conn.Close()
		}
		f.address, f.conn = address, conn
	}
	return f.conn, nil
}

// leaderIs fails what is under way to another manager than the one at address: it would wait in vain on one that is
// frozen.
func (f *forwarder) leaderIs(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil && address != "" && address != f.address {
		f.conn.Close()
		f.conn = nil
	}
}

// followLeader tells the forwarder who leads, until ctx ends.
func (r *Replica) followLeader(ctx context.Context, node *raft.Raft) {
	changes := make(chan raft.Observation, 1) // what does not fit may be dropped: who leads is read afterwards
	observer := raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	node.RegisterObserver(observer)
	defer node.DeregisterObserver(observer)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
			r.forward.leaderIs(r.LeaderAddress())
		}
	}
}

func (f *forwarder) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.conn != nil {
		f.conn.Close()
		f.conn = nil
	}
}

// LeaderConn returns the connection to the leader, which is another member, and its node ID. It is shared: the caller
// does not close it, and it ends when the leader changes. wire.ErrUnavailable: there is no leader, or it is this one.
func (r *Replica) LeaderConn() (*grpc.ClientConn, string, error) {
	id, address := r.Leader()
	conn, err := r.leaderConn(id, address)
	if err != nil {
		return nil, "", wire.Errorf(wire.CodeUnavailable, "connect to the leader: %w", err)
	}
	return conn, id, nil
}

func (r *Replica) leaderConn(id, address string) (*grpc.ClientConn, error) {
	switch {
	case address == "":
		return nil, errNoLeader
	case id == r.cfg.NodeID:
		return nil, errItLeads
	}
	return r.forward.to(address)
}

func (r *Replica) leaderClient() (swarmpb.ReplicaClient, error) {
	conn, err := r.leaderConn(r.Leader())
	if errors.Is(err, errItLeads) {
		return nil, errNotLeading // it has just lost or just won it
	}
	if err != nil {
		return nil, err
	}
	return swarmpb.NewReplicaClient(conn), nil
}

func (r *Replica) forwardWrite(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	client, err := r.leaderClient()
	if err != nil {
		return nil, err
	}
	response, err := client.Propose(ctx, &swarmpb.ProposeRequest{Proposal: p})
	if err != nil {
		return nil, forwardedError(ctx, err)
	}
	return response.GetResult(), nil
}

// forwardedError is the error of a call to the leader. A call that ended because its connection was closed has an
// outcome that is not known.
func forwardedError(ctx context.Context, err error) error {
	if err = wire.FromStatus(err); ctx.Err() == nil && errors.Is(err, wire.ErrCanceled) {
		return fmt.Errorf("%w: another manager leads now", ErrLeadershipLost)
	}
	return err
}

// Register serves the Replica service, by which the other managers pass writes and reads on to this one.
func (r *Replica) Register(server grpc.ServiceRegistrar) {
	swarmpb.RegisterReplicaServer(server, service{replica: r})
}

// service answers for this member alone: nothing is passed on twice.
type service struct {
	swarmpb.UnimplementedReplicaServer
	replica *Replica
}

// Propose implements swarmpb.ReplicaServer.
func (s service) Propose(ctx context.Context, request *swarmpb.ProposeRequest) (*swarmpb.ProposeResponse, error) {
	data, err := marshalProposal(request.GetProposal())
	if err != nil {
		return nil, wire.ToStatus(wire.Errorf(wire.CodeInvalid, "forwarded write: %w", err))
	}
	if err := s.checkLeads(); err != nil {
		return nil, err
	}
	result, err := s.replica.write(ctx, data)
	if err != nil {
		return nil, forwardError("forwarded write", err)
	}
	return &swarmpb.ProposeResponse{Result: result}, nil
}

// ReadIndex implements swarmpb.ReplicaServer.
func (s service) ReadIndex(ctx context.Context, _ *swarmpb.ReadIndexRequest) (*swarmpb.ReadIndexResponse, error) {
	if err := s.checkLeads(); err != nil {
		return nil, err
	}
	index, err := s.replica.leaderReads.ask(ctx)
	if err != nil {
		return nil, forwardError("forwarded read", err)
	}
	return &swarmpb.ReadIndexResponse{Index: index}, nil
}

func (s service) checkLeads() error {
	node := s.replica.node.Load()
	if node == nil || s.replica.stopping.Load() || node.State() != raft.Leader {
		return wire.ToStatus(wire.Errorf(wire.CodeNotLeader, "manager %s does not lead", s.replica.cfg.NodeID))
	}
	return nil
}

func forwardError(what string, err error) error {
	var known *wire.Error
	switch {
	case errors.As(err, &known):
		return wire.ToStatus(err)
	case isUntouched(err):
		return wire.ToStatus(wire.Errorf(wire.CodeNotLeader, "%s: %w", what, err))
	case isUncertain(err):
		return wire.ToStatus(wire.Errorf(wire.CodeUnavailable, "%s: %w", what, err))
	}
	return wire.ToStatus(fmt.Errorf("%s: %w", what, err))
}
