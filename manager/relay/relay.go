// Package relay asks nodes, which listen for no calls, and brings their answers back: Relay carries requests over the
// stream that a node holds to the manager of its session, and Logs (logs.go) is what users ask.
//
// It promises: a user's call needs no leader and ends or goes on within seconds whatever becomes of a node or of another
// manager, with a notice of what is missing; each stream holds at most a window of frames in memory here, however slow its
// reader; a node answers only what it was asked, for itself, and nothing that it sends stops a manager. It writes nothing.
package relay

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// firstAnswer is how long a node has to begin an answer; headStart is how long the node that this manager knows has
	// before the other managers are asked too.
	firstAnswer = 3 * time.Second
	headStart   = 500 * time.Millisecond
	// silence is how long an answer may pause: its sender shows every second that it lives.
	silence = 4 * time.Second
	// window is how many frames of an answer may be under way; nodes make them of 32 KiB.
	window = 8
	// maxFrame is the most bytes that a frame may have.
	maxFrame = 1 << 20
	// maxPerNode bounds the requests that a node is asked at a time, maxAnonymous the answers of a node that have not said
	// yet what they answer, for at most firstAnswer.
	maxPerNode   = 256
	maxAnonymous = 64
	// maxErrorBytes bounds what is shown of a node's words.
	maxErrorBytes = 500
)

// Config is what a Server needs; all fields are required unless they say otherwise.
type Config struct {
	// NodeID is this manager's.
	NodeID string
	// Store returns the current store.
	Store func() *store.Store
	// ReadIndex returns once the local store has all that was committed before the call.
	ReadIndex func(context.Context) (uint64, error)
	// Managers are all managers, this one too.
	Managers func() []*swarmpb.ManagerPeer
	// DialManager returns a client of the manager at the address.
	DialManager func(address string) (*grpc.ClientConn, error)
	// Find finds what a user names: a service, or a task with its service.
	Find func(view *store.View, ref string) (*swarmpb.Service, *swarmpb.Task, error)
	// Peer tells who calls; the default is wire.Peer.
	Peer func(context.Context) (wire.PeerInfo, bool)
	// Logger defaults to slog.Default().
	Logger *slog.Logger
}

// Server serves Relay and Logs on one manager.
type Server struct {
	swarmpb.UnimplementedRelayServer
	swarmpb.UnimplementedLogsServer

	cfg Config
	log *slog.Logger
	// ctx ends with the server.
	ctx    context.Context
	cancel context.CancelFunc
	// calls has one entry for each Stream call.
	calls chan struct{}

	mu sync.Mutex
	// nodes are those that serve this manager.
	nodes map[string]*served
	// asked are the requests under way, by ID.
	asked map[string]*asked
	// load counts the requests of a node, anonymous its calls that have not said what they answer.
	load, anonymous map[string]int
	// conns are to the other managers, by address.
	conns map[string]*grpc.ClientConn
}

// New makes a Server.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.NodeID == "":
		return nil, errors.New("relay: node ID is required")
	case cfg.Store == nil || cfg.ReadIndex == nil || cfg.Managers == nil || cfg.DialManager == nil || cfg.Find == nil:
		return nil, errors.New("relay: store, read index, managers, dial and find are required")
	}
	if cfg.Peer == nil {
		cfg.Peer = wire.Peer
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger, calls: make(chan struct{}, maxCalls),
		nodes: map[string]*served{}, asked: map[string]*asked{}, load: map[string]int{}, anonymous: map[string]int{},
		conns: map[string]*grpc.ClientConn{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Register adds the service of nodes and managers to a server of the cluster port.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	swarmpb.RegisterRelayServer(r, s)
	swarmpb.RegisterLogsServer(r, s)
}

// Run waits until ctx ends; then every call ends.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.Close()
	return nil
}

// Close ends every call, in place of Run.
func (s *Server) Close() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for address, conn := range s.conns {
		conn.Close()
		delete(s.conns, address)
	}
}

// within is a context that ends with the server too.
func (s *Server) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

func errStopping() error {
	return wire.Errorf(wire.CodeUnavailable, "this manager stops; try another one")
}
