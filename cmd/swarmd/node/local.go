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
	leaveTimeout = 2 * time.Minute
)

// localServer is the administrator's API of this host.
type localServer struct {
	swarmpb.UnimplementedLocalServer
	node *Node
}

// alone is an error unless the node belongs to no cluster.
func (n *Node) alone(verb string) error {
	m := n.current()
	switch {
	case m == nil && n.lifetime().Err() != nil: // its membership has just been stopped
		return wire.Errorf(wire.CodeUnavailable, "%s: swarmd is stopping; try again once it has started", verb)
	case m == nil:
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
	if err := m.manager.Bootstrap(); err != nil {
		return errors.Join(err, m.closeManager())
	}
	m.founded = make(chan struct{})
	n.start(n.lifetime(), m)
	ctx, cancel := context.WithTimeout(ctx, foundTimeout)
	defer cancel()
	if err := m.manager.Found(ctx, f); err != nil {
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

// lifetime is the context of Run.
func (n *Node) lifetime() context.Context {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.running
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
	n.log.Info("joined a cluster", "cluster", id.ClusterID, "node", id.NodeID)
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
	if err := n.save(st, id); err != nil {
		return errors.Join(err, m.closeManager())
	}
	n.start(n.lifetime(), m)
	return nil
}

// Leave takes this host out of its cluster: its containers are stopped and removed.
func (s *localServer) Leave(ctx context.Context, req *swarmpb.LeaveRequest) (*swarmpb.LeaveResponse, error) {
	n := s.node
	n.changing.Lock()
	defer n.changing.Unlock()
	m := n.current()
	if m == nil {
		return nil, wire.Errorf(wire.CodeFailedPrecondition, "leave: this host belongs to no cluster")
	}
	if m.manager != nil && !req.GetForce() {
		return nil, wire.Errorf(wire.CodeFailedPrecondition,
			"leave: this is the last manager: the cluster, its services and its tokens would be lost; if that is what you want, use `swarmctl leave --force`")
	}
	id, _ := m.creds.Identity()
	n.stopMember()
	if err := n.forgetIdentity(); err != nil {
		err = fmt.Errorf("leave: this host is still in its cluster: %w", err)
		again, openErr := n.newMember(id, m.state)
		if openErr != nil {
			return nil, n.explain(errors.Join(err, openErr))
		}
		n.start(n.lifetime(), again)
		return nil, n.explain(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	if err := n.takeDown(ctx, m.agent); err != nil {
		return nil, n.explain(fmt.Errorf("leave: this host has left its cluster, but something is left behind, which the next start of swarmd removes: %w", err))
	}
	n.log.Info("left the cluster")
	return &swarmpb.LeaveResponse{}, nil
}

// takeDown removes what the host did for its cluster. The identity is gone before: whatever happens from here on, no
// start resumes the membership. Its last traces go at the end: while there are some, the next start does this again.
func (n *Node) takeDown(ctx context.Context, agent interface{ RemoveAll(context.Context) error }) error {
	if err := errors.Join(agent.RemoveAll(ctx), n.network.Teardown(ctx)); err != nil {
		return err
	}
	return n.forget()
}

// finishLeave removes what a leave that was cut short has left. changing is held.
func (n *Node) finishLeave(ctx context.Context) {
	if !n.hasTraces() {
		return
	}
	n.log.Warn("removing what a leave, init or join that did not end has left")
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	agent, err := n.newAgent("none", state{}, nil, nil)
	if err == nil {
		err = n.containerdReady(ctx)
	}
	if err == nil {
		err = n.takeDown(ctx, agent)
	}
	if err != nil {
		n.log.Error("something of a former cluster is left on this host; the next start tries to remove it again", "error", err)
	}
}

// GetInfo describes this host.
func (s *localServer) GetInfo(ctx context.Context, _ *swarmpb.GetInfoRequest) (*swarmpb.GetInfoResponse, error) {
	n := s.node
	info := &swarmpb.GetInfoResponse{
		Membership: swarmpb.Membership_MEMBERSHIP_NONE, Version: n.cfg.Version, DataDir: n.cfg.DataDir, RunDir: n.cfg.RunDir,
		ContainerdAddress: n.runtime.Address, Problems: n.problems(),
	}
	m := n.current()
	if m == nil {
		return info, nil
	}
	id, _ := m.creds.Identity()
	info.Membership = swarmpb.Membership_MEMBERSHIP_ACTIVE
	info.NodeId, info.ClusterId, info.Role = id.NodeID, id.ClusterID, id.Role
	info.AdvertiseAddress, info.ConnectedTo = m.state.Advertise, m.agent.ConnectedTo()
	info.CertificateExpiresAt = id.Expires.UnixNano()
	info.RunningContainers = uint32(m.agent.RunningContainers())
	info.Description = m.agent.Description(ctx)
	if info.ConnectedTo == "" || m.manager != nil && m.manager.Leader() == "" {
		info.Membership = swarmpb.Membership_MEMBERSHIP_DISCONNECTED
	}
	return info, nil
}
