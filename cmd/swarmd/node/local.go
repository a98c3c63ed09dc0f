package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/swarmd/swarmd/manager"
	swarmpb "github.com/swarmd/swarmd/proto/swarm/v1"
	"github.com/swarmd/swarmd/proto/wire"
)

// Bounds of membership changes.
const (
	// foundTimeout bounds the wait until the first manager leads and has written the cluster's first rows.
	foundTimeout = 30 * time.Second
	joinTimeout  = 30 * time.Second
)

// localServer is the administrator's API of this host.
type localServer struct {
	swarmpb.UnimplementedLocalServer
	node *Node
}

// alone is an error unless the node belongs to no cluster.
func (n *Node) alone(verb string) error {
	if n.stopping() {
		return wire.Errorf(wire.CodeUnavailable, "%s: swarmd is stopping; try again once it has started", verb)
	}
	m := n.current()
	if m == nil {
		return nil
	}
	id, _ := m.creds.Identity()
	return wire.Errorf(wire.CodeFailedPrecondition, "%s: this host is already in cluster %s, as %s %s; leave it first with `swarmctl leave`",
		verb, id.ClusterID, id.Role.Name(), id.NodeID)
}

// Init founds a cluster with this host as its first manager.
func (s *localServer) Init(ctx context.Context, req *swarmpb.InitRequest) (*swarmpb.InitResponse, error) {
	n := s.node
	n.changing.Lock()
	defer n.changing.Unlock()
	if err := n.alone("init"); err != nil {
		return nil, err
	}
	spec := proto.CloneOf(req.GetSpec())
	if spec == nil {
		spec = &swarmpb.ClusterSpec{}
	}
	spec.SetDefaults()
	if err := spec.Validate(); err != nil {
		return nil, wire.Errorf(wire.CodeInvalid, "init: %w", err)
	}
	advertise, err := n.advertise(req.GetAdvertiseAddress())
	if err != nil {
		return nil, err
	}
	founding, err := manager.Foundation(spec, time.Now())
	if err != nil {
		return nil, err
	}
	st := state{Advertise: advertise, Managers: []string{advertise}}
	if err := n.found(ctx, st, founding); err != nil {
		return nil, errors.Join(n.explain(fmt.Errorf("init: %w", err)), n.forget())
	}
	n.log.Info("founded a cluster", "cluster", founding.Identity.ClusterID, "node", founding.Identity.NodeID)
	return &swarmpb.InitResponse{
		NodeId: founding.Identity.NodeID, ClusterId: founding.Identity.ClusterID, Tokens: founding.Tokens, ManagerAddress: advertise,
	}, nil
}

// found starts the first manager. The identity is saved last: before that, this host is in no cluster.
func (n *Node) found(ctx context.Context, st state, f *manager.Founding) error {
	if err := n.forget(); err != nil {
		return err
	}
	m, err := n.newMember(f.Identity, st)
	if err != nil {
		return err
	}
	p, err := m.open()
	if err != nil {
		return err
	}
	if err := p.manager.Bootstrap(); err != nil {
		return errors.Join(err, m.closePart())
	}
	m.founded = make(chan struct{})
	if err := n.start(m); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, foundTimeout)
	defer cancel()
	if err := p.manager.Found(ctx, f); err != nil {
		n.stopMember()
		return err
	}
	if err := n.save(st, f.Identity); err != nil {
		n.stopMember()
		return err
	}
	close(m.founded)
	return nil
}

// Join makes this host a node of a cluster.
func (s *localServer) Join(ctx context.Context, req *swarmpb.JoinRequest) (*swarmpb.JoinResponse, error) {
	n := s.node
	n.changing.Lock()
	defer n.changing.Unlock()
	if err := n.alone("join"); err != nil {
		return nil, err
	}
	advertise, err := n.advertise(req.GetAdvertiseAddress())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	id, err := wire.Join(ctx, wire.JoinConfig{Managers: req.GetManagers(), Token: req.GetToken()})
	if err != nil {
		return nil, err
	}
	st := state{Advertise: advertise, Managers: req.GetManagers()}
	if err := n.enter(st, id); err != nil {
		return nil, errors.Join(n.explain(fmt.Errorf("join: %w", err)), n.forget())
	}
	n.log.Info("joined a cluster", "cluster", id.ClusterID, "node", id.NodeID, "role", id.Role.Name())
	return &swarmpb.JoinResponse{NodeId: id.NodeID, ClusterId: id.ClusterID, Role: id.Role}, nil
}

func (n *Node) enter(st state, id wire.Identity) error {
	if err := n.forget(); err != nil {
		return err
	}
	m, err := n.newMember(id, st)
	if err != nil {
		return err
	}
	if id.Role == roleManager {
		if _, err := m.open(); err != nil {
			return err
		}
	}
	if err := n.save(st, id); err != nil {
		return errors.Join(err, m.closePart())
	}
	return n.start(m)
}
