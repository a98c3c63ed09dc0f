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

// client returns a client of the manager at address; the connection to the one before is closed, which fails what is
// under way on it: that manager no longer leads.
func (f *forwarder) client(address string) (swarmpb.ReplicaClient, error) {
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
	return swarmpb.NewReplicaClient(f.conn), nil
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

// leaderClient returns a client of the leader, which is another member.
func (r *Replica) leaderClient() (swarmpb.ReplicaClient, error) {
	id, address := r.Leader()
	switch {
	case address == "":
		return nil, errNoLeader
	case id == r.cfg.NodeID:
		return nil, errNotLeading // it has just lost or just won it
	}
	return r.forward.client(address)
}

func (r *Replica) forwardWrite(ctx context.Context, p *swarmpb.Proposal) (*swarmpb.Result, error) {
	client, err := r.leaderClient()
	if err != nil {
		return nil, err
	}
	response, err := client.Propose(ctx, &swarmpb.ProposeRequest{Proposal: p})
	if err != nil {
		return nil, wire.FromStatus(err)
	}
	return response.GetResult(), nil
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
