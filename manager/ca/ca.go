// Package ca gives nodes their identities: it checks join tokens and signs certificates.
//
// It promises that a certificate's role is the token's or, at renewal, the one that the node's row asks for, except
// that a manager stays one in its certificate while it takes part in Raft; that a node's row is committed before its
// certificate leaves; and that nobody without a certificate can make it work much: calls are limited per address and
// overall, and so are nodes that joined and never became ready.
//
// It alone makes Node rows, and alone writes their role and certificate_expires_at, and the keys of gossip, which Lead
// rotates on the leader.
package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"github.com/swarmd/swarmd/manager/store"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

const (
	// proposeTries bounds how often a write is decided anew after a conflict.
	proposeTries = 5
	sweepEvery   = time.Minute
)

// Config is what a Server needs.
type Config struct {
	Store    func() *store.Store
	Proposer store.Proposer
	// ReadIndex returns once the local store has all that was committed before the call.
	ReadIndex func(context.Context) (uint64, error)
	Logger    *slog.Logger
	// Limits; zero fields take their defaults.
	Limits Limits
	// Now; nil: time.Now.
	Now func() time.Time
	// InRaft says whether a node takes part in Raft, as this manager knows it; nil: none does.
	InRaft func(nodeID string) bool
	// Peer tells who calls; nil: wire.Peer.
	Peer func(context.Context) (wire.PeerInfo, bool)
}

// Server is the CA service of one manager.
type Server struct {
	swarmpb.UnsafeCAServer
	cfg      Config
	throttle *throttle
	// joining counts issues between the check of NeverReady and their commit.
	joining atomic.Int64
}

// New makes a server.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.Proposer == nil || cfg.ReadIndex == nil || cfg.Logger == nil {
		return nil, errors.New("ca: store, proposer, read index and logger are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.InRaft == nil {
		cfg.InRaft = func(string) bool { return false }
	}
	if cfg.Peer == nil {
		cfg.Peer = wire.Peer
	}
	cfg.Limits = cfg.Limits.orDefault()
	return &Server{cfg: cfg, throttle: newThrottle(cfg.Limits)}, nil
}

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) { swarmpb.RegisterCAServer(r, s) }

// Run forgets addresses that no longer call, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.throttle.sweep(s.cfg.Now())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// GetRootCertificate tells anyone the root. The caller checks it against its token.
func (s *Server) GetRootCertificate(ctx context.Context, _ *swarmpb.GetRootCertificateRequest) (*swarmpb.GetRootCertificateResponse, error) {
	if err := s.limit(ctx); err != nil {
		return nil, err
	}
	cluster, err := clusterOf(s.cfg.Store().View())
	if err != nil {
		return nil, err
	}
	return &swarmpb.GetRootCertificateResponse{Certificate: cluster.GetRootCa().GetCert()}, nil
}

// limit counts the calls of peers without a certificate.
func (s *Server) limit(ctx context.Context) error {
	p, ok := s.cfg.Peer(ctx)
	if !ok {
		return wire.Errorf(wire.CodeUnauthenticated, "the connection has no proven peer")
	}
	if p.Caller != swarmpb.Caller_CALLER_ANYONE {
		return nil
	}
	return s.throttle.allow(p.Host(), s.cfg.Now())
}

// fresh returns a view that holds all that was committed before the call, so that a token rotated or a node
// removed elsewhere counts here.
func (s *Server) fresh(ctx context.Context) (*store.View, *swarmpb.Cluster, error) {
	if _, err := s.cfg.ReadIndex(ctx); err != nil {
		return nil, nil, unavailable(err)
	}
	view := s.cfg.Store().View()
	cluster, err := clusterOf(view)
	return view, cluster, err
}

func clusterOf(view *store.View) (*swarmpb.Cluster, error) {
	cluster := view.Cluster()
	if cluster == nil {
		return nil, wire.Errorf(wire.CodeUnavailable, "the manager has not read the cluster's state yet; try again in some seconds")
	}
	return cluster, nil
}

// unavailable gives an error of the way to the leader its code, if it has none.
func unavailable(err error) error {
	if code := wire.CodeOf(err); code != wire.CodeInternal {
		return err
	}
	return wire.Errorf(wire.CodeUnavailable, "the manager cannot decide now: %w; try again in some seconds", err)
}

// propose writes what decide makes of a fresh view, and decides anew when it was overtaken.
func (s *Server) propose(ctx context.Context, decide func(*store.View, *swarmpb.Cluster) (*swarmpb.Proposal, error)) error {
	var conflict *store.ConflictError
	for range proposeTries {
		view, cluster, err := s.fresh(ctx)
		if err != nil {
			return err
		}
		proposal, err := decide(view, cluster)
		if err != nil {
			return err
		}
		proposal.Now = s.cfg.Now().UnixNano()
		_, err = s.cfg.Proposer.Propose(ctx, proposal)
		switch {
		case err == nil:
			return nil
		case errors.As(err, &conflict):
			continue
		case errors.Is(err, store.ErrInvalid):
			return fmt.Errorf("write node: %w", err)
		}
		return unavailable(err)
	}
	return wire.Errorf(wire.CodeUnavailable, "write node: it kept being changed meanwhile (%w); try again", conflict)
}
