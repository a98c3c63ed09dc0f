// Package control is the user's API, on every manager: it validates what users ask for, writes it through the
// replicated store, reads it back, and lets them watch.
//
// It promises: a read sees every write that was answered before it began, or says that it may not; a write with a
// request ID takes effect once however often it is sent; an error says what was wrong, with which object, and what to do.
//
// It alone writes Service, Template and ServiceRevision rows, and with the CA the Cluster and Node rows. A template is written once,
// with the service that refers to it.
package control

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Member is a manager as Raft's configuration has it.
type Member struct {
	ID, Address string
	// Voter counts for majorities; one that is not has still to catch up.
	Voter bool
}

// Config is what a Server needs; all fields are required unless they say otherwise.
type Config struct {
	// NodeID is this manager's.
	NodeID string
	// Store returns the current store; a restore swaps it.
	Store func() *store.Store
	// Proposer commits users' writes, from any manager.
	Proposer store.Proposer
	// ReadIndex returns once the local store has all that was committed before the call.
	ReadIndex func(context.Context) (uint64, error)
	// Leader returns the node ID of the leader, empty while there is none.
	Leader func() string
	// Members returns Raft's newest configuration as this manager has it. Optional: without it this manager is alone.
	Members func() []Member
	// LastContact returns how long ago this manager had contact with a leader, 0 on the leader itself; false: it had
	// none since it started. Optional.
	LastContact func() (time.Duration, bool)
	// ManagerAddress returns host:port of a manager that hosts can join at.
	ManagerAddress func() string
	// NewJoinToken makes a join token for the cluster of the root certificate (PEM).
	NewJoinToken func(root []byte) (string, error)
	// Planner answers dry runs. Optional: without it there are none.
	Planner Planner
	// Placing explains where tasks go and what they take of nodes. Optional: without it nodes show CPUs and memory alone.
	Placing Placing
	// Resolver finds the digests of images. Optional: without it the nodes go by tags.
	Resolver Resolver
	// CloseNode ends the connections of a removed node. Optional.
	CloseNode func(nodeID string)
	// Drains returns what the leader has counted of drained tasks; nil while that is not known here. Optional.
	Drains func() *swarmpb.Drains
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Resolver finds the digest (sha256:...) that an image's reference stands for, and the platforms that it is there for (none:
// not known). It answers within a bounded time of a few seconds; its error is one line for a user.
type Resolver interface {
	Resolve(ctx context.Context, image string, auth *swarmpb.RegistryAuth) (digest string, platforms []*swarmpb.Platform, err error)
}

// Bounds on requests and answers.
const (
	// maxPage bounds the tasks of a page or message, and maxPageBytes its size.
	maxPage      = 1000
	maxPageBytes = 2 << 20
	maxLookup    = 256
	maxRequestID = 64
	// watchInterval is the least time between two messages of a watch.
	watchInterval = 100 * time.Millisecond
	// writeTimeout and readTimeout bound how long a caller without a deadline waits for a quorum; a write's counts
	// from the call, with the reads that it needs.
	writeTimeout = 5 * time.Second
	readTimeout  = 5 * time.Second
	// leaderlessWait is how long there must have been no leader before a read stops waiting for one: longer than an
	// election takes. One that finds it to be long gone waits for leaderlessLeast.
	leaderlessWait  = 2 * time.Second
	leaderlessLeast = 300 * time.Millisecond
	leaderPoll      = 50 * time.Millisecond
	// rewrites is how often a write of our own making is decided anew after a conflict.
	rewrites = 5
)

// Server is the Control service.
type Server struct {
	swarmpb.UnimplementedControlServer

	cfg Config
	log *slog.Logger
	// plans holds a token for each plan or other answer that takes long to work out.
	plans chan struct{}
}

// New makes a Server.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.NodeID == "":
		return nil, errors.New("control: node ID is required")
	case cfg.Store == nil || cfg.Proposer == nil || cfg.ReadIndex == nil:
		return nil, errors.New("control: store, proposer and read index are required")
	case cfg.Leader == nil || cfg.ManagerAddress == nil || cfg.NewJoinToken == nil:
		return nil, errors.New("control: leader, manager address and token generator are required")
	}
	if cfg.Members == nil {
		alone := []Member{{ID: cfg.NodeID, Address: cfg.ManagerAddress(), Voter: true}}
		cfg.Members = func() []Member { return alone }
	}
	if cfg.LastContact == nil {
		cfg.LastContact = func() (time.Duration, bool) { return 0, false }
	}
	if cfg.CloseNode == nil {
		cfg.CloseNode = func(string) {}
	}
	if cfg.Drains == nil {
		cfg.Drains = func() *swarmpb.Drains { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Server{cfg: cfg, log: cfg.Logger, plans: make(chan struct{}, maxPlans)}, nil
}

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) { swarmpb.RegisterControlServer(r, s) }

// writing bounds a whole write, from the first read that it needs.
func writing(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, writeTimeout)
}

// extended gives a write the time back that went to something else than the cluster.
func extended(caller, ctx context.Context, spent time.Duration) (context.Context, context.CancelFunc) {
	until, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(caller)
	}
	return context.WithDeadline(caller, until.Add(spent))
}

// write commits a user's write and tells its conflicts apart from the loss of the leader.
func (s *Server) write(ctx context.Context, requestID string, proposal *swarmpb.Proposal) error {
	proposal.RequestId = requestID
	proposal.Now = time.Now().UnixNano()
	_, err := s.cfg.Proposer.Propose(ctx, proposal)
	var conflict *store.ConflictError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &conflict):
		return err
	case errors.Is(err, store.ErrInvalid):
		return wire.Errorf(wire.CodeInternal, "the cluster refused the write: %w", err)
	}
	return unavailable("write", err)
}

// unavailable explains an error of the way to the leader; an error that explains itself is kept.
func unavailable(verb string, err error) error {
	if errors.Is(err, context.Canceled) {
		return wire.Errorf(wire.CodeCanceled, "%s: the caller went away", verb)
	}
	var own *wire.Error
	if errors.As(err, &own) && own.Code != wire.CodeNotLeader && own.Code != wire.CodeDeadline && own.Message != "" {
		return err
	}
	return wire.Errorf(wire.CodeUnavailable,
		"%s: no leader answers: %w; check with `swarmctl node ls --stale` that a majority of the managers is up, then try again", verb, err)
}

// conflictError tells the user of a conflict with what somebody else did at the same time.
func conflictError(err error, what string) error {
	var conflict *store.ConflictError
	if errors.As(err, &conflict) {
		return wire.Errorf(wire.CodeConflict, "%s was changed by somebody else at the same time (%s); look at it again and repeat the command", what, conflict.Message)
	}
	return err
}

// requestID checks the name of a write, and makes one for a caller that gave none.
func requestID(id string) (string, error) {
	if id == "" {
		return swarmpb.NewID(), nil
	}
	if len(id) > maxRequestID {
		return "", wire.Errorf(wire.CodeInvalid, "request ID: %d bytes; at most %d are allowed", len(id), maxRequestID)
	}
	return id, nil
}

func put(row *swarmpb.Row) *swarmpb.Write {
	return &swarmpb.Write{Op: &swarmpb.Write_Put{Put: row}}
}

func guard(key *swarmpb.RowKey, version uint64) *swarmpb.Guard {
	return &swarmpb.Guard{Key: key, Version: version}
}
